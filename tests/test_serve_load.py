"""Minutes of searches, uploads, deletes and errors at once: right answers, nothing acknowledged lost, memory flat.

Each worker writes documents of its own and keeps a ledger of what was acknowledged, so it knows every answer.
"""

from __future__ import annotations

import base64
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from opengcl.encode import encode_texts
from opengcl.index import open_store
from tests.builders import WORDS, picture
from tests.index_stores import postgres_server, store_uri  # noqa: F401 - a fixture
from tests.serving import Process, Shop, build, make_shop, process, score_of_its_title, vectors_of

WORKERS = 4
OWN = 50  # documents that each worker writes and deletes
DOCUMENTS = 40
BUSY = (429, 503)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("load"), documents=DOCUMENTS)


class Oracle:
    """What the shop's own documents answer, whatever else is written: only they are in stock, and cheap."""

    def __init__(self, shop: Shop) -> None:
        self.shop, vectors, self.in_stock = shop, vectors_of(shop), np.arange(0, DOCUMENTS, 3)
        self.scores = encode_texts(shop.model, WORDS) @ vectors.T

    def check(self, word: int, hits: list[dict[str, Any]]) -> None:
        """A search for one of the words among what is in stock."""
        wanted = np.sort(self.scores[word][self.in_stock])[::-1][: len(hits)]
        np.testing.assert_allclose([hit["score"] for hit in hits], wanted, atol=2e-3)
        rows = [int(hit["doc_id"][1:]) for hit in hits]
        assert set(rows) <= set(self.in_stock.tolist())
        np.testing.assert_allclose(self.scores[word][rows], wanted, atol=2e-3)
        assert [hit["fields"]["price"] for hit in hits] == [float(row) for row in rows]


@dataclass
class Ledger:
    """What a worker's documents must be: id -> price and title as acknowledged; None: known to be gone."""

    kept: dict[str, tuple[float, str] | None] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)  # whose last change was not acknowledged

    def settle(self, doc_id: str, state: tuple[float, str] | None) -> None:
        self.kept[doc_id] = state
        self.unsure.discard(doc_id)


class Worker:
    """One client after the other of everything there is to ask."""

    def __init__(self, number: int, server: Process, oracle: Oracle) -> None:
        self.number, self.server, self.oracle = number, server, oracle
        self.ledger, self.statuses, self.searches = Ledger(), Counter[int](), list[tuple[float, float]]()
        self._generator = np.random.default_rng(number)
        self._picture = picture(self._generator)
        self._prices = itertools.count(1_000_000 * (number + 1))

    def run(self, end: float) -> None:
        steps = (
            self.write,
            self.read,
            self.search_among_the_known,
            self.find,
            self.remove,
            self.read,
            self.other_requests,
        )
        with httpx2.Client(base_url=self.server.url, timeout=60) as client:
            for step in itertools.cycle(steps):
                if time.monotonic() > end:
                    return
                step(client)

    def write(self, client: httpx2.Client) -> None:
        ids = {self._own() for _ in range(3)}
        given = {one: (float(next(self._prices)), str(self._generator.choice(WORDS))) for one in ids}
        documents = [
            {"doc_id": one, "fields": {"title": title, "price": price}} for one, (price, title) in given.items()
        ]
        reply = self._said(client.post("/documents", json={"documents": documents}))
        for one, state in given.items():
            if reply.status_code == 200:
                self.ledger.settle(one, state)
            else:
                self.ledger.unsure.add(one)

    def remove(self, client: httpx2.Client) -> None:
        one = self._own()
        reply = self._said(client.delete(f"/documents/{one}"))
        if reply.status_code in BUSY:
            self.ledger.unsure.add(one)
            return
        if one not in self.ledger.unsure:
            assert reply.status_code == (200 if self.ledger.kept.get(one) else 404)
        self.ledger.settle(one, None)

    def read(self, client: httpx2.Client) -> None:
        one = self._own()
        reply = self._said(client.get(f"/documents/{one}"))
        if one in self.ledger.unsure or reply.status_code in BUSY:
            return
        if (state := self.ledger.kept.get(one)) is None:
            assert reply.status_code == 404
        else:
            assert reply.json()["fields"] == {"price": state[0], "title": state[1], "stock": None}

    def find(self, client: httpx2.Client) -> None:
        """What was acknowledged is found by its own text, and nothing that was replaced or removed is."""
        sure = [(one, state) for one, state in self.ledger.kept.items() if one not in self.ledger.unsure and state]
        if not sure:
            return
        doc_id, (price, title) = sure[self._generator.integers(len(sure))]
        found = self._search(client, {"query": {"text": title}, "where": f"price = {price}"})
        if found is not None:
            assert [(hit["doc_id"], hit["fields"]["title"]) for hit in found["hits"]] == [(doc_id, title)]
            assert found["hits"][0]["score"] == pytest.approx(score_of_its_title(self.oracle.shop, title), abs=1e-3)

    def search_among_the_known(self, client: httpx2.Client) -> None:
        word = int(self._generator.integers(len(WORDS)))
        found = self._search(client, {"query": {"text": WORDS[word]}, "where": "stock = true", "k": 10})
        if found is not None:
            assert found["total"] == len(self.oracle.in_stock)
            self.oracle.check(word, found["hits"])
        found = self._search(client, {"query": {"text": WORDS[word]}, "where": "price < 20", "k": 30})
        if found is not None:
            assert {hit["doc_id"] for hit in found["hits"]} == {f"d{row}" for row in range(20)}

    def other_requests(self, client: httpx2.Client) -> None:
        number = int(self._generator.integers(1000))
        text = f"{WORDS[number % 16]} {number}"
        broken = base64.b64encode(self._picture[: 20 + number % 200]).decode()
        asked: list[tuple[int, Callable[[], httpx2.Response]]] = [
            (200, lambda: client.post("/search", files={"image": self._picture})),
            (200, lambda: client.post("/search", json={"query": {"text": text, "negatives": [{"text": "winecup"}]}})),
            (200, lambda: client.post("/v1/embeddings", json={"input": [text] * 8, "model": "a"})),
            (200, lambda: client.get("/suggest", params={"q": text[:3]})),
            (200, lambda: client.get("/documents/d2/image/image", params={"size": 16 + number % 64})),
            (422, lambda: client.post("/search", json={"query": {"image": broken}})),
            (422, lambda: client.get("/search", params={"q": text, "where": "prise < 20"})),
            (404, lambda: client.get(f"/unknown/{number}")),
        ]
        status, ask = asked[number % len(asked)]
        assert self._said(ask()).status_code in (status, *BUSY)
        socket.create_connection(self.server.address).close()

    def check_all(self, client: httpx2.Client) -> None:
        for one in self.ledger.kept:
            state, reply = self.ledger.kept[one], client.get(f"/documents/{one}")
            if one not in self.ledger.unsure:
                assert reply.status_code == (200 if state else 404)
                assert state is None or reply.json()["fields"]["price"] == state[0]

    def _own(self) -> str:
        return f"m{self.number}-{self._generator.integers(OWN)}"

    def _search(self, client: httpx2.Client, body: dict[str, Any]) -> Any:
        started = time.monotonic()
        reply = self._said(client.post("/search", json=body))
        self.searches.append((started, time.monotonic() - started))
        assert reply.status_code in (200, *BUSY)
        return reply.json() if reply.status_code == 200 else None

    def _said(self, reply: httpx2.Response) -> httpx2.Response:
        self.statuses[reply.status_code] += 1
        assert reply.status_code in (200, 404, 422, *BUSY), reply.text
        return reply


def resident_while(server: Process, done: threading.Event) -> list[tuple[float, float]]:
    """Seconds and MiB in memory, four times a second."""
    seen = []
    while not done.wait(0.25):
        seen.append((time.monotonic(), server.resident() / 2**20))
    return seen


def mixed_load(place: Shop, log: Path, seconds: float, *, growth: float) -> None:
    """Loads a server for so long; after a third of it, memory may grow by so many MiB until the end."""
    oracle = Oracle(place)
    with process(place, log, "--set", "cached_queries=64") as server, ThreadPoolExecutor(WORKERS + 1) as pool:
        done, started = threading.Event(), time.monotonic()
        workers = [Worker(number, server, oracle) for number in range(WORKERS)]
        watching = pool.submit(resident_while, server, done)
        working = [pool.submit(worker.run, started + seconds) for worker in workers]
        try:
            for one in working:
                one.result()
        finally:
            done.set()
        assert server.process.poll() is None
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            for worker in workers:
                worker.check_all(client)
    statuses = sum((worker.statuses for worker in workers), Counter())
    assert sum(statuses[one] for one in BUSY) <= statuses.total() / 100
    assert "Traceback" not in log.read_text()
    check_what_a_killed_server_left(place, workers)
    grown = growth_of([one for one in watching.result() if one[0] > started + seconds / 3])
    print(summary(statuses, workers, started, seconds), f"memory grew by {grown:.1f} MiB in the last two thirds")
    assert grown < growth


def check_what_a_killed_server_left(place: Shop, workers: list[Worker]) -> None:
    store = open_store(place.store)
    index, sure = store.open(), 0
    for worker in workers:
        ids = [one for one in worker.ledger.kept if one not in worker.ledger.unsure]
        for row, one in zip(index.get(ids), ids, strict=True):
            state = worker.ledger.kept[one]
            assert (row.fields["price"] if row else None) == (state[0] if state else None)
            sure += row is not None
    unsure = sum(len(worker.ledger.unsure) for worker in workers)
    assert DOCUMENTS + sure <= index.count() <= DOCUMENTS + sure + unsure
    store.close()


def growth_of(seen: list[tuple[float, float]]) -> float:
    """The slope of a straight line through what was seen, times how long that was."""
    times, sizes = np.array(seen).T
    return float(np.polyfit(times - times[0], sizes, 1)[0] * (times[-1] - times[0]))


def summary(statuses: Counter[int], workers: list[Worker], started: float, seconds: float) -> str:
    searches = np.array([one for worker in workers for one in worker.searches])
    thirds = [searches[(searches[:, 0] - started) // (seconds / 3) == third, 1] for third in range(3)]
    medians = ", ".join(f"{1000 * np.median(third):.0f}" for third in thirds)
    return f"{statuses.total():,} requests {dict(statuses)}; median search in ms by thirds: {medians};"


def test_seconds_of_mixed_load(shop: Shop, tmp_path: Path) -> None:
    place = Shop(shop.run, shop.dataset, f"lancedb:{tmp_path / 'store'}")
    build(place, "v1")
    mixed_load(place, tmp_path / "log", 20, growth=48)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["exact", "lancedb", "postgres"])
def test_ten_minutes_of_mixed_load(shop: Shop, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    place = Shop(shop.run, shop.dataset, store_uri(kind, tmp_path, request))
    build(place, "v1")
    mixed_load(place, tmp_path / "log", 600, growth=32)
