"""The parts of the server that need no server: batches, the cache, keys, settings."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl.serve import ServeError, Settings, served
from opengcl.serve.batching import HELD, Batch, Batcher, ClosedError, QueueFullError
from opengcl.serve.cache import LeastRecentlyUsed
from opengcl.serve.counts import Counts
from opengcl.serve.keys import ApiKeys, key_of
from opengcl.serve.served import Threads


class Worker:
    """Doubles numbers, remembers its batches, waits while told to, and fails on -1."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.begun.set()
        assert self.go.wait(10)
        self.batches.append(list(items))
        if -1 in items:
            raise ValueError("no -1")
        return [2 * item for item in items]


def make(worker: Any, **limits: Any) -> Batcher[int, int]:
    return Batcher(worker, **{"max_batch": 4, "max_wait": 0.0, "max_waiting": 8, **limits})


def test_what_waits_is_done_together_and_in_order() -> None:
    worker = Worker()
    worker.go.clear()
    batcher = make(worker)

    async def ask() -> list[list[int]]:
        first = asyncio.ensure_future(batcher([0]))
        await asyncio.to_thread(worker.begun.wait, 10)
        others = [asyncio.ensure_future(batcher([item])) for item in range(1, 7)]
        await asyncio.sleep(0.05)
        assert batcher.waiting == 6
        worker.go.set()
        return list(await asyncio.gather(first, *others))

    assert asyncio.run(ask()) == [[2 * item] for item in range(7)]
    assert worker.batches == [[0], [1, 2, 3, 4], [5, 6]]
    batcher.close()


def test_the_first_waits_for_others_but_not_forever() -> None:
    done: list[Batch[int]] = []
    worker = Worker()
    batcher = make(worker, max_wait=0.2, done=done.append)

    async def ask() -> None:
        first = asyncio.ensure_future(batcher([1]))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, batcher([2]))

    asyncio.run(ask())
    batcher.close()
    assert worker.batches == [[1, 2]]
    assert 0.15 < done[0].waited < 5


def test_a_batch_waits_for_as_many_as_the_last_one_had() -> None:
    done: list[Batch[int]] = []
    worker = Worker()
    batcher = make(worker, max_wait=0.5, done=done.append)

    async def ask() -> None:
        await batcher([1, 2])  # nobody knows yet how many will come
        first = asyncio.ensure_future(batcher([3]))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, batcher([4]))  # two, as before: nothing to wait for
        await batcher([5])  # the one too few is waited for, once
        await batcher([6])

    asyncio.run(ask())
    batcher.close()
    assert worker.batches == [[1, 2], [3, 4], [5], [6]]
    waited = [batch.waited for batch in done]
    assert waited[0] > 0.4
    assert 0.04 < waited[1] < 0.4
    assert waited[2] > 0.4
    assert waited[3] < 0.4


def test_queries_go_before_bulk() -> None:
    worker = Worker()
    worker.go.clear()
    batcher = make(worker, max_batch=2)

    async def ask() -> None:
        first = asyncio.ensure_future(batcher([0]))
        await asyncio.to_thread(worker.begun.wait, 10)
        bulk = asyncio.ensure_future(batcher([10, 11, 12, 13], bulk=True))
        await asyncio.sleep(0.02)
        query = asyncio.ensure_future(batcher([1]))
        await asyncio.sleep(0.02)
        worker.go.set()
        await asyncio.gather(first, bulk, query)

    asyncio.run(ask())
    batcher.close()
    assert worker.batches == [[0], [1], [10, 11], [12, 13]]


def test_a_full_queue_refuses_at_once_and_takes_again_later() -> None:
    worker = Worker()
    worker.go.clear()
    batcher = make(worker, max_waiting=3)

    async def ask() -> None:
        first = asyncio.ensure_future(batcher([0]))
        await asyncio.to_thread(worker.begun.wait, 10)
        waiting = asyncio.ensure_future(batcher([1, 2]))
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFullError, match="2 texts and pictures wait"):
            await batcher([3, 4])
        bulk = asyncio.ensure_future(batcher([5, 6, 7, 8, 9], bulk=True))  # a queue of its own, and it was empty
        await asyncio.sleep(0.02)
        worker.go.set()
        await asyncio.gather(first, waiting, bulk)
        assert await batcher([3, 4]) == [6, 8]

    asyncio.run(ask())
    batcher.close()


def test_one_bad_item_fails_alone() -> None:
    worker = Worker()
    worker.go.clear()
    batcher = make(worker)

    async def ask() -> list[Any]:
        first = asyncio.ensure_future(batcher([0]))
        await asyncio.to_thread(worker.begun.wait, 10)
        others = [asyncio.ensure_future(batcher([item])) for item in (1, -1, 2)]
        await asyncio.sleep(0.02)
        worker.go.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    first, one, bad, two = asyncio.run(ask())
    assert (first, one, two) == ([0], [2], [4])
    assert isinstance(bad, ValueError)
    batcher.close()


def test_what_nobody_waits_for_is_not_begun() -> None:
    worker = Worker()
    worker.go.clear()
    batcher = make(worker)

    async def ask() -> None:
        first = asyncio.ensure_future(batcher([0]))
        await asyncio.to_thread(worker.begun.wait, 10)
        dropped = asyncio.ensure_future(batcher([1]))
        kept = asyncio.ensure_future(batcher([2]))
        await asyncio.sleep(0.02)
        dropped.cancel()
        await asyncio.sleep(0.02)
        worker.go.set()
        await asyncio.gather(first, kept)

    asyncio.run(ask())
    batcher.close()
    assert worker.batches == [[0], [2]]


def test_closing_does_what_waits_and_takes_no_more() -> None:
    worker = Worker()
    worker.go.clear()
    batcher = make(worker)

    async def ask() -> list[int]:
        first = asyncio.ensure_future(batcher([0]))
        await asyncio.to_thread(worker.begun.wait, 10)
        waiting = asyncio.ensure_future(batcher([1]))
        await asyncio.sleep(0.02)
        closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.02)
        with pytest.raises(ClosedError):
            await batcher([2])
        worker.go.set()
        await closing
        return [*await first, *await waiting]

    assert asyncio.run(ask()) == [0, 2]


@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.sampled_from("gp"), st.integers(0, 6), st.integers(0, 8)), max_size=60),
)
def test_the_cache_keeps_what_was_used_last(limit: int, steps: list[tuple[str, int, int]]) -> None:
    """Against a list in order of use."""
    cache: LeastRecentlyUsed[int, int] = LeastRecentlyUsed(limit, size=lambda value: value)
    expected: list[tuple[int, int]] = []
    for step, key, value in steps:
        found = dict(expected).get(key)
        if step == "g":
            assert cache.get(key) == found
            if found is not None:
                expected = [*((k, v) for k, v in expected if k != key), (key, found)]
        else:
            cache.put(key, value)
            expected = [(k, v) for k, v in expected if k != key]
            if value <= limit:
                expected.append((key, value))
            while sum(v for _, v in expected) > limit:
                expected.pop(0)
        assert len(cache) == len(expected)


READ, WRITE, OTHER = "r" * 16, "w" * 16, "o" * 16


def test_keys_of_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# comment\n\nwrite {WRITE}\nread sha256:{hashlib.sha256(OTHER.encode()).hexdigest()}\n")
    keys = ApiKeys.load(file, {"OPENGCL_API_KEYS": f" {READ} ,"})
    assert [keys.may_read(key) for key in (READ, WRITE, OTHER)] == [True] * 3
    assert [keys.may_write(key) for key in (READ, WRITE, OTHER)] == [False, True, False]
    assert not any(keys.may_read(key) for key in (None, "", READ[:-1], READ + "r", "\udcff"))
    assert keys
    none = ApiKeys.load(None, {})
    assert not none
    assert none.may_read(None)
    assert not none.may_write(READ)
    assert READ not in repr(keys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("admin " + READ, "line 1: found another form"),
        (READ, "line 1: found another form"),
        ("read short", "found a key of 5 characters; allowed: at least 16"),
        ("read sha256:abc", "64 hex digits"),
    ],
)
def test_keys_in_another_form_are_not_quoted(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(line)
    with pytest.raises(ServeError, match=message) as error:
        ApiKeys.load(file, {})
    assert READ not in str(error.value)
    with pytest.raises(ServeError, match="cannot be read as a file of keys"):
        ApiKeys.load(tmp_path / "absent", {})


def test_the_key_of_a_request() -> None:
    assert key_of([(b"authorization", b"Bearer  abc ")]) == "abc"
    assert key_of([(b"authorization", b"bearer abc")]) == "abc"
    assert key_of([(b"x-api-key", b"abc")]) == "abc"
    assert key_of([(b"authorization", b"Basic abc")]) is None
    assert key_of([]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch": 0}, "max_batch: found 0; allowed: an integer, at least 1"),
        ({"max_batch": 2.5}, "max_batch: found 2.5"),
        ({"max_batch": True}, "max_batch: found True"),
        ({"request_seconds": float("nan")}, "request_seconds: found nan"),
        ({"request_seconds": "5"}, "request_seconds: found '5'"),
        ({"cors": ["*"]}, r"cors: found '\*'"),
        ({"cors": "https://shop.example"}, "cors: found 'https://shop.example'; allowed: a list of texts"),
        ({"max_picture_bytes": 1 << 30}, "max_picture_bytes"),
        ({"allow_writes": 1}, "allow_writes: found 1; allowed: true or false"),
        ({"allow_writes": "no"}, r"allow_writes: found 'no'; allowed: true or false \(no is a text by YAML 1.2"),
        ({"max_batch": "1_000"}, r"max_batch: found '1_000'; .* \(a number is written without"),
        ({"max_batch": None}, "max_batch: found None; allowed: an integer"),
        ({"hosts": [2024]}, r"hosts: found \(2024,\); allowed: a list of texts"),
        ({"hosts": {"a": "b"}}, "hosts: found {'a': 'b'}; allowed: a list of texts"),
        ({"x" * 10_000: 4}, r"setting 'xxxxxxxxxxxx\.\.\.xxxxxxxxxxxxx' is not known"),
        ({"batch": 4}, "setting 'batch' is not known; allowed: max_batch"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ServeError, match=message):
        Settings().changed(changes)


def test_settings_can_be_changed() -> None:
    changed = Settings().changed({"max_wait_ms": 0, "hosts": ["search.example"], "request_seconds": 5})
    assert (changed.max_wait_ms, changed.hosts, changed.request_seconds) == (0, ("search.example",), 5)


def test_many_threads_and_one_batcher() -> None:
    batcher = make(lambda items: [int(value) for value in np.array(items) * 2], max_batch=16, max_waiting=10_000)
    found: dict[int, list[int]] = {}

    def ask(start: int) -> None:
        async def all_of_them() -> list[int]:
            return [value for item in range(start, start + 50) for value in await batcher([item])]

        found[start] = asyncio.run(all_of_them())

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(0, 400, 50)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert {start: [2 * item for item in range(start, start + 50)] for start in found} == found
    assert len(found) == 8
    assert time.monotonic() - started < 60


def test_counts_are_kept_until_something_is_written() -> None:
    counts, counted = Counts(seconds=60), iter(range(10, 20))

    def count() -> int:
        return next(counted)

    one, other = ("a", "v1", ""), ("a", "v1", "price < 5")
    assert [counts(one, count), counts(one, count), counts(other, count), counts(one, count)] == [10, 10, 11, 10]
    counts.forget()
    assert [counts(one, count), counts(other, count), counts(one, count)] == [12, 13, 12]


def test_a_count_during_a_write_is_not_kept() -> None:
    counts = Counts(seconds=60)

    def written_meanwhile() -> int:
        counts.forget()
        return 1

    asked = ("a", "v1", "")
    assert [counts(asked, written_meanwhile), counts(asked, lambda: 2), counts(asked, lambda: 3)] == [1, 2, 2]


def test_counts_are_of_the_last_moment() -> None:
    counts = Counts(seconds=0.05)
    asked = ("a", "v1", "")
    assert counts(asked, lambda: 1) == 1
    time.sleep(0.06)
    assert counts(asked, lambda: 2) == 2


def test_a_batch_is_held_while_more_results_are_of_no_use() -> None:
    worker = Worker()
    held = threading.Event()
    held.set()
    batcher = make(worker, max_batch=3, hold=held.is_set)

    async def ask() -> list[list[int]]:
        first = asyncio.ensure_future(batcher([1]))
        await asyncio.sleep(HELD / 4)
        second = asyncio.ensure_future(batcher([2]))
        await asyncio.sleep(HELD / 4)
        assert not worker.batches
        held.clear()
        return list(await asyncio.gather(first, second))

    assert asyncio.run(ask()) == [[2], [4]]
    assert worker.batches == [[1, 2]]
    held.set()
    started = time.monotonic()
    assert asyncio.run(batcher([5, 6, 7])) == [10, 12, 14]  # a full one is not
    assert time.monotonic() - started < HELD
    assert asyncio.run(batcher([8])) == [16]  # nor any for long
    assert HELD <= time.monotonic() - started < 5
    batcher.close()


def test_threads_are_busy_when_others_have_enough_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "usable_cores", lambda: 2)
    threads, go = Threads(3), threading.Event()

    async def ask() -> list[bool]:
        seen = []
        tasks = []
        for _ in range(4):
            tasks.append(asyncio.ensure_future(threads.search(lambda: go.wait(10))))
            await asyncio.sleep(0)
            seen.append(threads.busy)
        go.set()
        assert all(await asyncio.gather(*tasks))
        return [*seen, threads.busy]

    assert asyncio.run(ask()) == [False, False, False, True, False]
    threads.close()
