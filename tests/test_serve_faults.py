"""Kills, stops, swaps and long load: nothing acknowledged is lost, no answer is mixed, memory stays flat."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from opengcl.index import open_store
from tests.builders import WORDS, picture
from tests.serving import Running, Shop, build, make_shop, running, until


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("faults"))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Process:
    """`opengcl serve` as a process of its own."""

    def __init__(self, shop: Shop, log: Path, *words: str) -> None:
        port = free_port()
        self.log = log
        self.url, self.address = f"http://127.0.0.1:{port}", ("127.0.0.1", port)
        command = ["serve", str(shop.run), "--store", shop.store, "--data", str(shop.dataset.path), "--port", str(port)]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "opengcl.cli", *command, "--device", "cpu", *words],
                stderr=stream,
                stdout=stream,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        until(self._answers, seconds=120)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the server ended"
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def resident(self) -> int:
        """Bytes in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


@contextmanager
def process(shop: Shop, log: Path, *words: str) -> Iterator[Process]:
    started = Process(shop, log, *words)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


@pytest.mark.parametrize("kind", [pytest.param("exact", marks=pytest.mark.slow), "lancedb"])
def test_kill_during_writes_loses_nothing_that_was_acknowledged(shop: Shop, tmp_path: Path, kind: str) -> None:
    place = Shop(shop.run, shop.dataset, f"{kind}:{tmp_path / 'store'}")
    build(place, "v1")
    acknowledged: list[str] = []
    with process(place, tmp_path / "log") as server:

        def write(writer: int) -> None:
            for number in range(10_000):
                names = [f"w{writer}-{number}-{part}" for part in range(3)]
                documents = [{"doc_id": name, "fields": {"title": "redshoe", "price": number}} for name in names]
                try:
                    reply = httpx2.post(f"{server.url}/documents", json={"documents": documents}, timeout=30)
                except httpx2.TransportError:
                    return
                assert reply.status_code == 200
                acknowledged.extend(names)

        writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for writer in writers:
            writer.start()
        until(lambda: len(acknowledged) > 60, seconds=60)
        server.process.send_signal(signal.SIGKILL)
        for writer in writers:
            writer.join(60)
    index = open_store(place.store).open()
    rows = index.get(acknowledged)
    assert [row.doc_id if row else None for row in rows] == acknowledged
    written = {name.rpartition("-")[0] for name in acknowledged}
    for request in sorted(written):  # each request is there whole
        assert None not in index.get([f"{request}-{part}" for part in range(3)])
    assert (index.count() - 40) % 3 == 0
    assert index.search(np.eye(16, dtype=np.float32)[:1], 5, exact=True)[0]


def test_swaps_while_queries_run_never_mix(shop: Shop, tmp_path: Path) -> None:
    place = Shop(shop.run, shop.dataset, f"exact:{tmp_path / 'store'}")
    for name, price in (("one", 1.0), ("two", 2.0)):
        build(place, name, swap=name == "one", price=[price] * 40)
    store, stop = open_store(place.store), threading.Event()

    def ask(server: Running, number: int) -> list[set[float]]:
        seen = []
        with httpx2.Client(timeout=30) as client:
            while not stop.is_set():
                body = {"query": {"text": f"{WORDS[number]} {len(seen) % 7}"}, "k": 40}
                reply = client.post(f"{server.url}/search", json=body)
                assert reply.status_code == 200
                assert reply.json()["total"] == 40
                seen.append({hit["fields"]["price"] for hit in reply.json()["hits"]})
        return seen

    with running([place], swap_seconds=0.02) as server, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, server, number) for number in range(4)]

        def live() -> Any:
            return server.get("/readyz").json()["models"]["a"]

        for name in ["two", "one"] * 3:
            store.swap(name)
            until(lambda name=name: live() == name)  # type: ignore[misc]
            time.sleep(0.1)
        store.swap("two")
        until(lambda: live() == "two")
        store.drop("one")
        time.sleep(0.2)
        stop.set()
        seen = [one for asked in asking for one in asked.result(60)]
        assert {frozenset(one) for one in seen} == {frozenset({1.0}), frozenset({2.0})}
        swaps = server.state.metrics.registry.get_sample_value("opengcl_index_swaps_total", {"model": "a"})
        assert swaps == 7
    store.close()


def test_an_index_of_another_model_is_not_taken(shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = Shop(shop.run, shop.dataset, f"exact:{tmp_path / 'store'}")
    build(place, "good")
    build(place, "foreign", swap=False, model="0" * 32)
    build(place, "better", swap=False)
    store = open_store(place.store)
    with running([place], swap_seconds=0.02) as server:

        def refused() -> float | None:
            return server.state.metrics.registry.get_sample_value("opengcl_index_swap_refused", {"model": "a"})

        store.swap("foreign")
        until(lambda: refused() == 1)
        ready = server.get("/readyz")
        assert (ready.status_code, ready.json()["models"]) == (200, {"a": "good"})
        assert "still searching 'good'" in ready.json()["warnings"][0]
        assert server.get("/search?q=redshoe").status_code == 200
        assert caplog.text.count("still searching 'good'") == 1
        store.swap("better")
        until(lambda: server.get("/readyz").json() == {"status": "ready", "models": {"a": "better"}, "warnings": []})
        assert refused() == 0
    store.swap("foreign")
    store.close()
    with pytest.raises(ValueError, match="holds vectors of the model 00000"), running([place]):
        pass


def test_a_store_that_is_gone_and_back(shop: Shop, tmp_path: Path) -> None:
    place = Shop(shop.run, shop.dataset, f"lancedb:{tmp_path / 'store'}")
    build(place, "v1")
    with running([place], swap_seconds=0.05) as server:
        (tmp_path / "store").rename(tmp_path / "elsewhere")
        until(lambda: bool(server.get("/readyz").json()["warnings"]))
        document = {"documents": [{"doc_id": "gone", "fields": {"title": "redshoe"}}]}
        replies = [server.post("/documents", document), server.get("/search?q=redshoe"), server.get("/models")]
        assert {reply.status_code for reply in replies} <= {200, 503}
        assert replies[0].status_code == 503
        assert int(replies[0].headers["Retry-After"]) > 0
        assert str(tmp_path) not in replies[0].text
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        (tmp_path / "elsewhere").rename(tmp_path / "store")
        until(lambda: server.get("/readyz").json()["warnings"] == [])
        assert server.get("/search?q=redshoe").json()["total"] == 40
        assert server.post("/documents", document).status_code == 200
        assert server.get("/documents/gone").status_code == 200


def mixed_load(server: Process, seconds: float, growth: int) -> int:
    """Searches by text and picture, uploads, deletes, thumbnails, errors and broken connections; how many."""
    generator = np.random.default_rng(0)
    pictures = [picture(generator) for _ in range(8)]
    end, done = time.monotonic() + seconds, [0] * 4

    def one(client: httpx2.Client, worker: int, number: int) -> None:
        text = f"{WORDS[number % 16]} {generator.integers(10**6)}"
        steps: list[Callable[[], Any]] = [
            lambda: client.post("/search", json={"query": {"text": text, "negatives": [{"text": "winecup"}]}, "k": 20}),
            lambda: client.post("/search", files={"image": pictures[number % 8]}),
            lambda: client.get("/search", params={"q": text, "where": "price < 20"}),
            lambda: client.post(
                "/documents", json={"documents": [{"doc_id": f"m{worker}-{number % 50}", "fields": {"title": text}}]}
            ),
            lambda: client.delete(f"/documents/m{worker}-{(number + 7) % 50}"),
            lambda: client.get(f"/documents/d{number % 40}/image/image", params={"size": 16 + number % 64}),
            lambda: client.post("/search", json={"query": {"image": "AAAA"}}),
            lambda: client.post("/v1/embeddings", json={"input": [text] * 8, "model": "a"}),
            lambda: client.get("/suggest", params={"q": text[:3]}),
            lambda: client.get(f"/unknown/{number}"),
            lambda: socket.create_connection(server.address).close(),
        ]
        reply = steps[number % len(steps)]()
        assert reply is None or reply.status_code in (200, 404, 422, 429, 503)

    def work(worker: int) -> None:
        with httpx2.Client(base_url=server.url, timeout=30) as client:
            while time.monotonic() < end:
                one(client, worker, done[worker])
                done[worker] += 1

    def run() -> None:
        with ThreadPoolExecutor(4) as pool:
            for finished in [pool.submit(work, worker) for worker in range(4)]:
                finished.result()

    warm = time.monotonic() + seconds / 3
    thread = ThreadPoolExecutor(1)
    running_load = thread.submit(run)
    while time.monotonic() < warm:
        time.sleep(0.1)
    before = server.resident()
    running_load.result()
    thread.shutdown()
    after = server.resident()
    assert after - before < growth, f"{before / 2**20:.0f} MiB after a third, {after / 2**20:.0f} MiB at the end"
    assert server.process.poll() is None
    return sum(done)


@pytest.fixture(scope="module")
def long_running(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("long")
    place = Shop(shop.run, shop.dataset, f"exact:{folder / 'store'}")
    build(place, "v1")
    settings = ("cached_queries=64", "drain_seconds=1.5", "stop_seconds=20")
    with process(place, folder / "log", *(word for one in settings for word in ("--set", one))) as server:
        yield server


def test_memory_is_flat_under_mixed_load(long_running: Process) -> None:
    assert mixed_load(long_running, 20, growth=48 << 20) > 100
    assert "Traceback" not in long_running.log.read_text()


def test_sigterm_finishes_what_runs_and_ends_with_0(long_running: Process) -> None:
    server = long_running
    body = json.dumps({"query": {"text": "redshoe"}, "k": 3}).encode()
    with socket.create_connection(server.address, timeout=30) as raw:
        head = (
            f"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        raw.sendall(head.encode() + b"\r\n\r\n" + body[:10])
        httpx2.get(f"{server.url}/healthz")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx2.get(f"{server.url}/readyz").status_code == 503, seconds=5)
        assert httpx2.get(f"{server.url}/readyz").json()["status"] == "draining"
        assert httpx2.get(f"{server.url}/search?q=redshoe").status_code == 200  # until the load balancer looked away

        def refused() -> bool:
            try:
                socket.create_connection(server.address, timeout=5).close()
            except OSError:
                return True
            return False

        until(refused)
        assert server.process.poll() is None  # one request still runs
        raw.sendall(body[10:])
        reply = b""
        while piece := raw.recv(65536):
            reply += piece
        assert reply.startswith(b"HTTP/1.1 200")
        assert b'"rank":3' in reply
        assert server.process.wait(30) == 0
    log = server.log.read_text()
    assert "Traceback" not in log
    accesses = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert ("/search", 200) in {(line["path"], line["status"]) for line in accesses}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["exact", "lancedb"])
def test_memory_is_flat_under_ten_minutes_of_load(shop: Shop, tmp_path: Path, kind: str) -> None:
    place = Shop(shop.run, shop.dataset, f"{kind}:{tmp_path / 'store'}")
    build(place, "v1")
    with process(place, tmp_path / "log", "--set", "cached_queries=64") as server:
        assert mixed_load(server, 600, growth=64 << 20) > 2000
    assert "Traceback" not in (tmp_path / "log").read_text()
