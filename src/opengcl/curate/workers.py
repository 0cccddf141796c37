"""Many requests at a time, their results in the order of the questions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from opengcl.curate.errors import CallError, CurateError, NotKeptError, StoppedError
from opengcl.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def together(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    failures: float,
    stop: threading.Event,
    task: str,
    progress: bool,
) -> list[Result | CallError]:
    """Applies ``work`` to every item.

    An error other than `CallError` ends all: what is under way is waited for, since it is paid for, and the rest is
    not begun.

    Args:
        work: Asks a service; runs in several threads.
        items: What to apply it to.
        workers: Threads.
        failures: Share of the items that may end in a `CallError`; replies not kept (`NotKeptError`) are not counted.
        stop: Set when the rest is not to be begun.
        task: What the progress bar says.
        progress: Whether there is one.

    Returns:
        For each item its result, or the `CallError` it ended in.

    Raises:
        CurateError: If more items failed than allowed.
    """
    allowed = failures * len(items)
    failed: list[CallError] = []

    def one(item: Item) -> Result | CallError:
        try:
            return work(item)
        except CallError as error:
            if isinstance(error, NotKeptError | StoppedError):
                return error
            failed.append(error)
            if len(failed) > allowed:
                stop.set()
                raise CurateError(_too_many(task, failed, len(items))) from error
            return error
        except BaseException:
            stop.set()
            raise

    with (
        progress_bar(total=len(items), desc=task, unit="request", show=progress) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):

        def count(future: Future[Result | CallError]) -> None:
            ended = future.cancelled() or future.exception() or isinstance(future.result(), StoppedError)
            bar.update(0 if ended else 1)

        futures = [pool.submit(one, item) for item in items]
        for future in futures:
            future.add_done_callback(count)
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            _raise_first(futures)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _raise_first(futures: Sequence[Future[Result | CallError]]) -> None:
    for future in futures:
        if future.done() and not future.cancelled() and (error := future.exception()) is not None:
            raise error


def _too_many(task: str, failed: list[CallError], items: int) -> str:
    return (
        f"{task}: {len(failed)} of {items} requests failed for good; the setting failures allows fewer. What came is "
        f"kept; run again to go on. The first: {failed[0]}"
    )
