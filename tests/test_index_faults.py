"""Killed, full, gone: what was acknowledged is there, and some index is live."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opengcl.index import Index, Store, StoreError, open_store
from tests.index_stores import (  # noqa: F401 - a fixture
    names,
    postgres_in,
    postgres_server,
    postgres_uri,
    spec,
    store_uri,
    unit_vectors,
)
from tests.small_disks import mounted

BATCH = 5

WRITER = """
import sys
from opengcl.index import open_store
from tests.index_stores import names, spec, unit_vectors

store = open_store(sys.argv[1])
index = store.open("new")
print("ready", flush=True)
for number in range(10_000):
    index.upsert(names(5, 5 * number), unit_vectors(5, seed=number), {})
    store.swap("old" if number % 2 else "new")
    print(number, flush=True)
"""


def killed(script: str, *words: str, after: int, delay: float) -> int:
    """Runs a script until it has said so many numbers and a moment more, and kills it. The last number it said."""
    command = [sys.executable, "-c", script, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(after + 2)]
        assert said[0] == "ready"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL
    return max(int(one) for one in said[1:] if one)


@pytest.mark.parametrize("kind", ["exact", "lancedb", "postgres"])
def test_a_kill_loses_nothing_acknowledged(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    address = store_uri(kind, tmp_path, request)
    store = open_store(address)
    old = store.create("old", spec(fields={}))
    old.upsert(names(30), unit_vectors(30), {})
    store.create("new", spec(fields={}))
    store.swap("old")
    store.close()
    chosen = random.Random(kind)
    last = killed(WRITER, address, after=chosen.randrange(3, 9), delay=chosen.random() / 20)

    store = open_store(address)
    new = store.open("new")
    assert store.live() in ("old", "new")
    assert store.open().name == store.live()
    # What was under way when it was killed is there whole or not at all
    assert new.count() in (BATCH * (last + 1), BATCH * (last + 2))
    rows = new.get(names(BATCH * (last + 1)))
    assert all(row is not None for row in rows)
    for number in range(last + 1):
        written = [row.vector for row in rows[BATCH * number : BATCH * (number + 1)] if row is not None]
        np.testing.assert_allclose(written, unit_vectors(BATCH, seed=number), atol=1e-6)
    assert store.open("old").count() == 30
    new.upsert(["after"], unit_vectors(1), {})
    assert new.search(unit_vectors(1), 1)[0][0].score == pytest.approx(1, abs=1e-5)
    store.swap("new")
    assert store.live() == "new"
    store.close()


FULL = """
import resource, sys
from opengcl.index import StoreError, open_store
from tests.index_stores import names, spec, unit_vectors

store = open_store(sys.argv[1])
new = store.create("new", spec(64, fields={}))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for number in range(20):
        new.upsert(names(1000, 1000 * number), unit_vectors(1000, 64, seed=number), {})
    new.finish()
    store.swap("new")
except StoreError as error:
    print("told:", error)
"""


@pytest.mark.parametrize("kind", ["exact", "lancedb"])
def test_a_full_disk_is_told_and_the_old_index_stays(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    address = store_uri(kind, tmp_path, request)
    store = open_store(address)
    store.create("old", spec(64, fields={})).upsert(names(10), unit_vectors(10, 64), {})
    store.swap("old")
    store.close()
    done = subprocess.run(
        [sys.executable, "-c", FULL, address],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert "told:" in done.stdout, done.stderr
    assert address.removeprefix("exact:") in done.stdout
    assert ".rs:" not in done.stdout
    store = open_store(address)
    assert store.live() == "old"
    assert [hit.doc_id for hit in store.open().search(unit_vectors(1, 64), 1)[0]] == ["d0"]
    # With room again, the same index is gone on with
    new = store.open("new")
    assert new.count() % 1000 == 0
    new.upsert(names(1000), unit_vectors(1000, 64), {})
    store.swap("new")
    assert store.open().search(unit_vectors(1, 64), 1)[0][0].doc_id == "d0"
    store.close()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 250 MB."""
    with mounted(250) as folder:
        yield folder


@dataclass
class OnSmallDisk:
    """A store on it; of PostgreSQL, the whole server, which its operator starts again where it has given up."""

    store: Store
    server: Any = None

    def answers(self) -> bool:
        if self.server and not self.server.get_postmaster_info().is_running():
            with contextlib.suppress(subprocess.SubprocessError):
                self.server.start()
        try:
            return self.store.live() is not None
        except StoreError:
            return False


@pytest.fixture
def small(kind: str, small_disk: Path) -> Iterator[OnSmallDisk]:
    if kind != "postgres":
        store = open_store({"exact": f"exact:{small_disk}/exact", "lancedb": f"{small_disk}/lance"}[kind])
        yield OnSmallDisk(store)
        store.close()
        return
    with postgres_in(small_disk / "pg") as server:
        store = open_store(postgres_uri(server))
        yield OnSmallDisk(store, server)
        store.close()


# PostgreSQL stops where its log of changes has no room, and takes no connections while it recovers.
NO_ROOM = ("No space left", "disk is full", "closed the connection", "terminat", "recovery mode", "starting up")


def written_until_full(index: Index, first: int) -> tuple[int, str]:
    """Adds 200 documents at a time until that fails; the number of the call that failed, and what it said."""
    for number in range(first, first + 1000):
        try:
            index.upsert(names(200, 200 * number), unit_vectors(200, 256, seed=number), {})
        except StoreError as error:
            return number, str(error)
    raise AssertionError("the disk was never full")


@pytest.mark.parametrize("kind", ["exact", "lancedb", "postgres"])
def test_a_disk_without_room_and_with_room_again(small: OnSmallDisk, small_disk: Path) -> None:
    store = small.store
    store.create("old", spec(256, fields={})).upsert(names(10), unit_vectors(10, 256), {})
    store.swap("old")
    index = store.create("new", spec(256, fields={}))
    ballast = small_disk / "ballast"
    acknowledged = 0
    for _ in range(2):  # full, with room again, and full again
        with ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(small_disk).free - (6 << 20))
        acknowledged, said = written_until_full(index, acknowledged)
        assert any(part in said for part in NO_ROOM), said
        for step in (index.finish, lambda: store.swap("new"), lambda: store.swap("old")):
            with contextlib.suppress(StoreError):  # there may be room for so little
                step()
        ballast.unlink()
        _wait_until(small.answers)
        assert store.live() in ("old", "new")
        assert index.count() == 200 * acknowledged
        assert [hit.doc_id for hit in store.open("old").search(unit_vectors(1, 256), 1)[0]] == ["d0"]
    assert acknowledged > 0
    for number in range(acknowledged):
        rows = index.get(names(200, 200 * number))
        kept = [row.vector for row in rows if row is not None]
        np.testing.assert_allclose(kept, unit_vectors(200, 256, seed=number), atol=1e-6)
    index.upsert(["after"], unit_vectors(1, 256, seed=10_000), {})
    index.finish()
    store.swap("new")
    assert store.open().search(unit_vectors(1, 256, seed=10_000), 1)[0][0].doc_id == "after"


def test_a_server_that_goes_and_comes_back(postgres_server: Any) -> None:  # noqa: F811
    """Killed as by a crash: clear errors meanwhile, every acknowledged write after, without opening anything anew."""
    store = open_store(postgres_uri(postgres_server))
    index = store.create("a", spec(fields={}))
    written, wrong = [], []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            some = names(BATCH, BATCH * len(written))
            try:
                index.upsert(some, unit_vectors(BATCH, seed=len(written)), {})
            except StoreError:
                time.sleep(0.05)
            except BaseException as error:
                wrong.append(error)
                raise
            else:
                written.append(some)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        _wait_until(lambda: len(written) >= 5 or wrong)
        os.kill(postgres_server.get_pid(), signal.SIGQUIT)  # no check point, no farewell: recovery on the next start
        _wait_until(lambda: not postgres_server.get_postmaster_info().is_running())
        with pytest.raises(StoreError, match="cannot be reached"):
            index.search(unit_vectors(1), 1)
        with pytest.raises(StoreError, match="cannot be reached"):
            store.live()
        postgres_server.start()
        before = len(written)
        _wait_until(lambda: len(written) >= before + 3 or wrong)
    finally:
        stop.set()
        writer.join()
    assert wrong == []
    assert index.count() == BATCH * len(written)
    assert all(row is not None for some in written for row in index.get(some))
    store.close()


def test_threads_that_come_and_go_take_no_connections_along(postgres_server: Any) -> None:  # noqa: F811
    store = open_store(postgres_uri(postgres_server))
    index = store.create("a", spec(fields={}))
    index.upsert(names(3), unit_vectors(3), {})
    query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"

    def connections() -> int:
        return int(store.run(lambda connection: connection.execute(query).fetchone())[0])  # type: ignore[attr-defined]

    before = connections()
    for _ in range(5):
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda row: index.search(unit_vectors(3)[[row]], 1), [0, 1, 2] * 4))
        assert [hits[0][0].doc_id for hits in found] == ["d0", "d1", "d2"] * 4
    assert connections() <= before + 3
    store.close()


def test_searches_outlive_a_dropped_connection(postgres_server: Any) -> None:  # noqa: F811
    """A server's administrator, a proxy or a firewall may cut connections that lie idle."""
    address = postgres_uri(postgres_server)
    store, other = open_store(address), open_store(address)
    index = store.create("a", spec(fields={}))
    index.upsert(names(3), unit_vectors(3), {})
    other.run(  # type: ignore[attr-defined]
        lambda connection: connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    )
    assert index.search(unit_vectors(1), 1)[0][0].doc_id == "d0"
    store.close()
    other.close()


def _wait_until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
