"""Builds killed at any moment: the old index answers, the same call goes on, and ends as an undisturbed build does."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from opengcl.data import RankedDataset, Schema, write_dataset
from opengcl.index import Index, Store, open_store
from opengcl.index.build import build_index
from opengcl.index.lance import LanceStore
from opengcl.model import BiEncoder, FieldMix
from tests.builders import WORDS, static
from tests.index_stores import (  # noqa: F401 - a fixture
    names,
    postgres_server,
    postgres_uri,
    spec,
    store_uri,
    unit_vectors,
)

DOCUMENTS = 3000
CHUNK = 150
QUERIES = unit_vectors(10, 8, seed=5)
KINDS = ["exact", "lancedb", "postgres"]

# Children come from a process that has loaded what they need, so a build lasts a second and kills spread over it.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RankedDataset]:
    """A run whose model is small, and documents for twenty chunks."""
    folder = tmp_path_factory.mktemp("shop")
    generator = np.random.default_rng(0)
    titles = [" ".join(generator.choice(WORDS, 3)) for _ in range(DOCUMENTS)]
    write_dataset(
        folder / "data",
        Schema("shop", {"query": "text"}, {"title": "text"}, 1.0, 100.0),
        pa.table({"query_id": ["q0"], "query": ["redshoe"]}),
        pa.table({"doc_id": names(DOCUMENTS), "title": titles, "price": np.arange(DOCUMENTS) / 2}),
        pa.table({"query_id": ["q0"], "doc_id": ["d0"], "score": [5.0]}),
    )
    mix = FieldMix({"query": 1.0}, {"title": 1.0}, {"query": "text"}, {"title": "text"})
    BiEncoder(static(), mix).save(folder / "run" / "model")
    return folder / "run", RankedDataset.open(folder / "data", cache_dir=folder / "cache", progress=False)


def opened(address: str) -> Store:
    """A store that builds its approximate index for as few documents as these."""
    return open_store(address) if ":" in address else LanceStore(address, approximate_from=1000)


def build(address: str, run: Path, data: Path, cache: Path, name: str) -> None:
    dataset = RankedDataset.open(data, cache_dir=cache, progress=False)
    build_index(
        opened(address),
        run,
        dataset,
        name=name,
        keep=["title", "price"],
        chunk_rows=CHUNK,
        replace_model=True,
        progress=False,
    )


def finish(address: str, name: str) -> None:
    opened(address).open(name).finish()


def _told(started: Event, work: Callable[..., None], *words: Any) -> None:
    started.set()
    work(*words)


def in_child(work: Callable[..., None], *words: Any, kill_after: float | None = None) -> tuple[bool, float]:
    """Runs something in a process of its own, which may be killed; whether it came to its end, and its seconds."""
    started = _processes.Event()
    child = _processes.Process(target=_told, args=(started, work, *words))
    child.start()
    assert started.wait(60)
    begun = time.monotonic()
    child.join(kill_after)
    child.kill()  # nothing, where it has ended
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0, time.monotonic() - begun


def everything(index: Index) -> dict[str, tuple[bytes, str, float]]:
    rows = [row for row in index.get(names(DOCUMENTS)) if row is not None]
    return {row.doc_id: (row.vector.tobytes(), row.fields["title"], row.fields["price"]) for row in rows}


def scores(index: Index, *, exact: bool) -> np.ndarray:
    return np.array([[hit.score for hit in hits] for hits in index.search(QUERIES, 20, exact=exact)])


def has_graph(store: Any, name: str) -> bool:
    """Whether the approximate index is there, and usable."""
    if isinstance(store, LanceStore):
        return "vector" in {column for one in store.table(name)[1].list_indices() for column in one.columns}
    query = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid AND indisready"
    found = store.run(lambda connection: connection.execute(query, (f"opengcl_nearest_{name}",)).fetchone())
    return bool(found[0] == 1)


def old_answers(store: Store) -> None:
    assert store.live() == "old"
    assert [hit.doc_id for hit in store.open().search(unit_vectors(1), 1)[0]] == ["d0"]


def check_killed_builds(kind: str, address: str, shop: tuple[Path, RankedDataset], builds: int, kills: int) -> int:
    """Builds so many indexes, each killed so often at random; how many of those kills struck."""
    run, dataset = shop
    words = (address, run, dataset.path, run.parent / "cache")
    chosen, struck = random.Random(kind), 0
    store = opened(address)
    store.create("old", spec(fields={})).upsert(names(50), unit_vectors(50), {})
    ended, seconds = in_child(build, *words, "quiet")
    assert ended
    assert store.live() == "quiet"
    quiet = store.open("quiet")
    wanted = everything(quiet)
    assert len(wanted) == quiet.count() == DOCUMENTS
    for number in range(builds):
        name = f"n{number}"
        store.swap("old")
        for _ in range(kills):
            ended, _ = in_child(build, *words, name, kill_after=chosen.uniform(0.0, 0.9 * seconds))
            if ended or store.live() == name:
                break
            struck += 1
            old_answers(store)
            if name in store.names():
                assert store.open(name).count() % CHUNK == 0  # whole chunks
        assert in_child(build, *words, name)[0]
        assert store.live() == name
        index = store.open()
        assert index.count() == DOCUMENTS
        assert everything(index) == wanted
        np.testing.assert_allclose(scores(index, exact=True), scores(quiet, exact=True), atol=1e-6)
        assert kind == "exact" or has_graph(store, name)
    store.close()
    return struck


@pytest.mark.parametrize("kind", KINDS)
def test_builds_killed_at_any_moment_go_on_to_the_same_index(
    kind: str, shop: tuple[Path, RankedDataset], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert check_killed_builds(kind, store_uri(kind, tmp_path, request), shop, builds=2, kills=3) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_many_kills_during_builds(
    kind: str, shop: tuple[Path, RankedDataset], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert check_killed_builds(kind, store_uri(kind, tmp_path, request), shop, builds=10, kills=3) > 15


@pytest.mark.parametrize("kind", ["lancedb", "postgres"])
def test_a_graph_whose_making_was_killed_is_made_by_the_next_call(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address = store_uri(kind, tmp_path, request)
    store = opened(address)
    vectors = unit_vectors(DOCUMENTS)
    for name in ("quiet", "killed"):
        store.create(name, spec(fields={})).upsert(names(DOCUMENTS), vectors, {})
    ended, seconds = in_child(finish, address, "quiet")
    assert ended
    chosen = random.Random(kind)
    index = store.open("killed")
    best = np.sort(QUERIES @ vectors.T)[:, ::-1][:, :20]
    for part in range(4):
        in_child(finish, address, "killed", kill_after=(part + chosen.random()) * seconds / 4)
        assert index.count() == DOCUMENTS
        np.testing.assert_allclose(scores(index, exact=True), best, atol=1e-5)
        assert np.mean(scores(index, exact=False) >= best[:, -1:] - 1e-5) > 0.9
    assert in_child(finish, address, "killed")[0]
    assert has_graph(store, "killed")
    assert np.mean(scores(store.open("killed"), exact=False) >= best[:, -1:] - 1e-5) > 0.9
    store.close()
