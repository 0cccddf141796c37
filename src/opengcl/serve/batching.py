"""Work that waits is done together: one thread, bounded queues, queries before bulk."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

HELD = 0.1
"""Seconds that a batch is held at most."""

_LOOK = 0.005  # seconds after which it is asked again whether to hold
Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """Too much waits already.

    Attributes:
        seconds: After which there is likely room.
    """

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(f"{waiting:,} texts and pictures wait for the encoder")
        self.seconds = seconds


class ClosedError(Exception):
    """The worker has ended."""


@dataclass
class Batch(Generic[Item]):
    """What was done together, for metrics: how many, and seconds it waited and took."""

    items: list[Item]
    waited: float
    took: float


@dataclass
class _Waiting(Generic[Item, Result]):
    item: Item
    future: Future[Result] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[Item, Result]):
    """One thread that does what waits, up to ``max_batch`` at a time.

    Bulk work is taken only while no query waits, so that an upload delays a search by one batch at most.

    A batch waits for as many as the one before it had: who asks alone is answered at once, and of many who ask again as
    soon as they are answered, none is left behind for a batch of its own. It waits longer, up to `HELD` seconds, while
    ``hold`` says that more results are of no use yet: a larger batch takes less time for each.

    Args:
        work: Items -> their results, in order.
        max_batch: Items at a time.
        max_wait: Seconds that the first of a batch waits for others at most.
        max_waiting: Items that may wait, for queries and for bulk each.
        hold: Whether more results are of no use yet.
        done: Called with every batch, in the thread.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result]],
        *,
        max_batch: int,
        max_wait: float,
        max_waiting: int,
        hold: Callable[[], bool] = lambda: False,
        done: Callable[[Batch[Item]], None] = lambda _: None,
    ) -> None:
        self._work, self._hold, self._done = work, hold, done
        self._max_batch, self._max_wait, self._max_waiting = max_batch, max_wait, max_waiting
        self._queries: deque[_Waiting[Item, Result]] = deque()
        self._bulk: deque[_Waiting[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._expected = max_batch  # items that a batch waits for
        self._pace = 0.01  # seconds an item takes, smoothed: what Retry-After is made from
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items in both queues."""
        return len(self._queries) + len(self._bulk)

    async def __call__(self, items: Sequence[Item], *, bulk: bool = False) -> list[Result]:
        """The results of some items; when the caller is cancelled, those not begun are dropped.

        Raises:
            QueueFullError: At once, if there is no room for all of them.
            ClosedError: After `close`.
        """
        entries: list[_Waiting[Item, Result]] = [_Waiting(item) for item in items]
        self._put(entries, self._bulk if bulk else self._queries)
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(entry.future) for entry in entries)))
        finally:
            for entry in entries:
                entry.future.cancel()

    def close(self) -> None:
        """Ends the thread after what waits is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _put(self, entries: list[_Waiting[Item, Result]], queue: deque[_Waiting[Item, Result]]) -> None:
        with self._changed:
            if self._closed:
                raise ClosedError("the encoder has ended")
            # Into an empty queue all fit, or a request with more parts than the limit could never be answered.
            if queue and len(queue) + len(entries) > self._max_waiting:
                raise QueueFullError(len(queue), len(queue) * self._pace)
            queue.extend(entries)
            self._changed.notify_all()

    def _run(self) -> None:
        while entries := self._take():
            entries = [entry for entry in entries if entry.future.set_running_or_notify_cancel()]
            if not entries:
                continue
            started = time.monotonic()
            self._finish(entries)
            took = time.monotonic() - started
            self._pace += 0.1 * (took / len(entries) - self._pace)
            self._done(Batch([entry.item for entry in entries], started - entries[0].since, took))

    def _take(self) -> list[_Waiting[Item, Result]]:
        """The next batch, all queries or all bulk; empty when closed and nothing waits."""
        with self._changed:
            while not self.waiting and not self._closed:
                self._changed.wait()
            queue = self._queries or self._bulk
            if queue:
                self._wait_for_others(queue)
                queue = self._queries or queue
                if queue is self._queries:
                    self._expected = min(len(queue), self._max_batch)
            return [queue.popleft() for _ in range(min(len(queue), self._max_batch))]

    def _wait_for_others(self, queue: deque[_Waiting[Item, Result]]) -> None:
        since = queue[0].since
        until = since + self._max_wait
        while len(queue) < self._expected and not self._closed and (left := until - time.monotonic()) > 0:
            self._changed.wait(left)
        until = since + HELD
        while len(queue) < self._max_batch and not self._closed and time.monotonic() < until and self._hold():
            self._changed.wait(_LOOK)

    def _finish(self, entries: list[_Waiting[Item, Result]]) -> None:
        try:
            results = self._work([entry.item for entry in entries])
        except Exception as error:
            if len(entries) == 1:
                _fail(entries[0].future, error)
            else:  # one bad item must not take its neighbours along
                for entry in entries:
                    self._finish([entry])
            return
        for entry, result in zip(entries, results, strict=True):
            with suppress(CancelledError, InvalidStateError):
                entry.future.set_result(result)


def _fail(future: Future[Result], error: Exception) -> None:
    with suppress(CancelledError, InvalidStateError):
        future.set_exception(error)
