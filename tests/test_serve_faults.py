"""Kills, stops, swaps, stores that go and come back: nothing acknowledged is lost, no answer is mixed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from opengcl.index import open_store
from opengcl.index.exact import ExactIndex
from tests.builders import WORDS
from tests.index_stores import postgres_server, postgres_uri, store_uri  # noqa: F401 - a fixture
from tests.serving import Process, Running, Shop, build, make_shop, process, running, until

KINDS = [pytest.param("exact", marks=pytest.mark.slow), "lancedb", "postgres"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def place(kind: str, shop: Shop, tmp_path: Path, request: pytest.FixtureRequest) -> Shop:
    """The shop with an empty store of its own."""
    return Shop(shop.run, shop.dataset, store_uri(kind, tmp_path, request))


@pytest.mark.parametrize("kind", KINDS)
def test_kill_during_writes_loses_nothing_that_was_acknowledged(place: Shop, tmp_path: Path) -> None:
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
    with closing(open_store(place.store)) as store:
        index = store.open()
        rows = index.get(acknowledged)
        assert [row.doc_id if row else None for row in rows] == acknowledged
        assert (index.count() - 40) % 3 == 0  # each request is there whole, also the last
        written = {name.rpartition("-")[0] for name in acknowledged}
        last = [f"w{writer}-{number}-0" for writer in range(3) for number in range(len(written) + 2)]
        for name in (row.doc_id for row in index.get(last) if row):
            assert None not in index.get([f"{name[:-1]}{part}" for part in range(3)])
        assert index.search(np.eye(16, dtype=np.float32)[:1], 5, exact=True)[0]


@pytest.mark.parametrize("kind", [*KINDS, pytest.param("milvus", marks=pytest.mark.slow)])
def test_swaps_while_queries_run_never_mix(place: Shop, kind: str) -> None:
    for name, price in (("one", 1.0), ("two", 2.0)):
        build(place, name, swap=name == "one", price=[price] * 40)
    stop = threading.Event()

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
        # One client alone can have Milvus Lite's file open
        store = server.state.stores[0] if kind == "milvus" else open_store(place.store)
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


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_what_is_acknowledged_after_a_swap_is_in_the_new_index(
    shop: Shop, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the server has not looked yet which index is live."""
    place = Shop(shop.run, shop.dataset, f"exact:{tmp_path / 'store'}")
    build(place, "one")
    build(place, "two", swap=False)
    upsert = ExactIndex.upsert
    with running([place], swap_seconds=60) as server, closing(open_store(place.store)) as store:

        def swapped_meanwhile(index: ExactIndex, *given: Any) -> None:
            upsert(index, *given)
            store.swap("two")

        if moment == "before":
            store.swap("two")
        else:
            monkeypatch.setattr(ExactIndex, "upsert", swapped_meanwhile)
        document = {"doc_id": "new", "fields": {"title": "redshoe", "price": 7}}
        assert server.post("/documents", {"documents": [document]}).status_code == 200
        assert store.open("two").get(["new"])[0] is not None
        assert server.get("/readyz").json()["models"] == {"a": "two"}
        assert httpx2.delete(f"{server.url}/documents/d5", timeout=30).status_code == 200
        assert store.open("two").get(["d5"]) == [None]


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
        assert "still searching 'good', and this model cannot be served again" in ready.json()["warnings"][0]
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


@pytest.fixture
def stoppable(shop: Shop, tmp_path: Path) -> Iterator[Process]:
    """A server that drains for a moment."""
    settings = ("drain_seconds=1.5", "stop_seconds=20")
    with process(shop, tmp_path / "log", *(word for one in settings for word in ("--set", one))) as server:
        yield server


def test_a_postgresql_that_is_gone_and_back(shop: Shop, postgres_server: Any) -> None:  # noqa: F811
    place = Shop(shop.run, shop.dataset, postgres_uri(postgres_server))
    build(place, "v1")

    def document(name: str) -> dict[str, Any]:
        return {"documents": [{"doc_id": name, "fields": {"title": "redshoe", "price": 7}}]}

    with running([place], swap_seconds=0.05) as server:
        assert server.post("/documents", document("before")).status_code == 200
        os.kill(postgres_server.get_pid(), signal.SIGQUIT)  # no check point, no farewell: recovery on the next start
        until(lambda: not postgres_server.get_postmaster_info().is_running())
        until(lambda: "cannot be reached" in str(server.get("/readyz").json()["warnings"]))
        replies = [
            *(server.get(path) for path in ("/search?q=redshoe", "/models", "/documents/before")),
            server.post("/documents", document("meanwhile")),
            httpx2.delete(f"{server.url}/documents/before", timeout=30),
        ]
        for reply in replies:
            assert reply.status_code == 503
            assert int(reply.headers["Retry-After"]) > 0
            assert "postgres" not in reply.text
        postgres_server.start()
        until(lambda: server.get("/readyz").json()["warnings"] == [])
        for _ in range(8):  # every thread's connection was lost
            assert server.get("/search?q=redshoe").json()["total"] == 41
        assert server.get("/documents/before").json()["fields"]["price"] == 7
        assert server.get("/documents/meanwhile").status_code == 404
        assert server.post("/documents", document("after")).status_code == 200
        assert server.get("/search?q=redshoe&where=price+%3D+7").json()["total"] == 3  # row 7 of the shop too


def test_sigterm_finishes_what_runs_and_ends_with_0(stoppable: Process) -> None:
    server = stoppable
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
