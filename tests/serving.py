"""Real servers on loopback for the tests: a tiny model, a small shop, an exact index."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch

from opengcl.data import RankedDataset
from opengcl.encode import encode, encode_texts
from opengcl.fill_in import FieldMap, FillIn
from opengcl.index import IndexSpec, model_fingerprint, open_store
from opengcl.index.filters import FieldType
from opengcl.model import BiEncoder, FieldEmbeddings, FieldMix
from opengcl.serve import Settings
from opengcl.serve.app import State
from opengcl.serve.keys import ApiKeys
from opengcl.serve.run import ModelPlace, make_server, open_state
from tests.builders import clip, ranked

FIELDS: dict[str, FieldType] = {"title": "text", "price": "number", "stock": "boolean"}
SETTINGS = Settings(swap_seconds=0.1, drain_seconds=0.5, stop_seconds=10)


@dataclass
class Shop:
    """A run, its data set, and the store that its index is in."""

    run: Path
    dataset: RankedDataset
    store: str

    @property
    def model(self) -> BiEncoder:
        return BiEncoder.load(self.run, device="cpu")


def make_run(folder: Path, dataset: RankedDataset, *, seed: int = 0) -> Path:
    """A saved model of a few thousand untrained parameters, with maps that fill in missing fields."""
    encoder = clip(seed=seed)
    mix = FieldMix.choose(encoder, dataset.schema, document={"title": 0.3, "image": 0.7})
    BiEncoder(encoder, mix, fill_in=any_maps(seed)).save(folder)
    return folder


def any_maps(seed: int) -> FillIn:
    """Maps between title and image that nothing was learned from."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    pairs = (("title", "image"), ("image", "title"))
    return FillIn({pair: FieldMap(drawn(16), drawn(16), drawn(16, 16)) for pair in pairs})


def make_shop(folder: Path, *, documents: int = 40) -> Shop:
    dataset = ranked(folder / "shop", documents=documents)
    shop = Shop(make_run(folder / "run", dataset), dataset, f"exact:{folder / 'store'}")
    build(shop, "v1")
    return shop


def vectors_of(shop: Shop) -> np.ndarray:
    documents = shop.dataset.documents
    return encode(shop.model, documents, "document", np.arange(len(documents)))


def score_of_its_title(place: Shop, title: str) -> float:
    """The score of a document that has this title and no image, for the title as a query; its image is filled in."""
    vector = torch.from_numpy(encode_texts(place.model, [title]))
    present = torch.tensor([[True], [False]])
    document = place.model.fuse(FieldEmbeddings(torch.stack([vector, torch.zeros_like(vector)]), present), "document")
    return float(document[0] @ vector[0])


def columns_of(shop: Shop, **changed: Any) -> dict[str, list[Any]]:
    """Titles of the data set; price is the row, and every third is in stock."""
    rows = np.arange(len(shop.dataset.documents))
    columns = {
        "title": shop.dataset.documents.texts("title", rows),
        "price": [float(row) for row in rows],
        "stock": [row % 3 == 0 for row in rows.tolist()],
    }
    return {**columns, **changed}


def build(
    shop: Shop,
    name: str,
    *,
    model: str | None = None,
    swap: bool = True,
    fields: dict[str, FieldType] | None = None,
    **changed: Any,
) -> None:
    """A version of the index; ``model`` is another fingerprint to claim, ``changed`` are columns."""
    vectors = vectors_of(shop)
    spec = IndexSpec(
        model or model_fingerprint(shop.run),
        vectors.shape[1],
        "float32",
        dict(fields or FIELDS),
        shop.dataset.fingerprint,
        datetime.now(UTC).isoformat(),
    )
    store = open_store(shop.store)
    index = store.create(name, spec)
    index.upsert(shop.dataset.documents.ids(), vectors, columns_of(shop, **changed))
    index.finish()
    if swap:
        store.swap(name)
    store.close()


@dataclass
class Running:
    """A server that answers."""

    url: str
    state: State
    address: tuple[str, int]

    def post(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=30, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=30, **more)


@contextmanager
def running(
    models: Sequence[Shop],
    *,
    data: bool = True,
    keys: ApiKeys | None = None,
    settings: Settings = SETTINGS,
    host: str = "127.0.0.1",
    **changed: Any,
) -> Iterator[Running]:
    """uvicorn in a thread, as `opengcl serve` runs it."""
    places = [ModelPlace(shop.run, shop.store) for shop in models]
    state = open_state(
        places,
        data=models[0].dataset.path if data else None,
        keys=keys,
        settings=replace(settings, **changed),
        device="cpu",
    )
    server = make_server(state, host, 0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Running(f"http://{address[0]}:{address[1]}", server.state, address)
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


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
        try:
            until(self._answers, seconds=200)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

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


def under_way(server: Running) -> float:
    """Requests that the server has not answered yet."""
    return server.state.metrics.registry.get_sample_value("opengcl_requests_under_way") or 0.0


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for something that has to come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
