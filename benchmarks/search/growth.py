"""From ten thousand to a million documents: what an index costs to build and keep, what it finds, and how fast.

A build goes through the store's own class as `opengcl index build` does: create, upsert by chunks, finish. Its figures
are one cell, those of searching it another, since a build may run for an hour beside other work and a latency may not.
"""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float32, Int64

from opengcl.data import Records
from opengcl.index import Index, IndexSpec
from opengcl.index.build import fill

from . import cells
from .made import DIMENSION, Clusters, MadeDocuments, best_rows, queries, row_of, write_vectors
from .processes import memory_bytes, processor_seconds, watched
from .stores import STORES, opened

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
DEPTH = 10
ROUNDS = 5
WARM_UP = 50
_FIELDS = {"title": "text", "price": "number"}


def cell_name(kind: str, documents: int, what: str) -> str:
    """Of the cell of a build or a search."""
    return f"growth/{kind}-{documents}-{what}"


def folder_of(kind: str, documents: int) -> Path:
    """Where the index lies."""
    return cells.WORK / f"{kind}-{documents}"


def build(kind: str, documents: int, most: int = SIZES[-1]) -> dict[str, Any]:
    """Build an index anew and write its cell.

    Args:
        kind: One of `STORES`.
        documents: How many.
        most: How many vectors are made and kept for all sizes.
    """
    vectors = made_vectors(most)[:documents]
    folder = folder_of(kind, documents)
    shutil.rmtree(folder, ignore_errors=True)
    with opened(kind, folder) as place:
        index = place.store.create("made", _spec())
        before = memory_bytes(place.processes)
        with watched(place.processes) as peak:
            load = _timed(place.processes, lambda: _load(index, vectors))
            finish = _timed(place.processes, index.finish)
        place.store.swap("made")
        found = {
            "store": kind,
            "documents": documents,
            "dimension": vectors.shape[1],
            "load": load,
            "finish": finish,
            "memory_before_mb": before / 1e6,
            "peak_memory_mb": peak.bytes / 1e6,
            "size_mb": (index.size() or 0) / 1e6,
        }
    cells.write(cell_name(kind, documents, "build"), found)
    return found


def search(kind: str, documents: int, most: int = SIZES[-1], rounds: int = ROUNDS) -> dict[str, Any]:
    """Search a built index for queries one at a time, and write the cell: recall of the best ten, and latency.

    Args:
        kind: One of `STORES`.
        documents: How many it holds.
        most: As `build` was told.
        rounds: How often all queries are searched; latency is the median of the rounds' percentiles.
    """
    asked = queries(Clusters.of())
    best = _best(asked, documents, most)
    with opened(kind, folder_of(kind, documents)) as place:
        index = place.store.open()
        first = _first_search(index, asked[:1])
        for query in asked[:WARM_UP]:
            index.search(query[None], DEPTH)
        times, recalls = [], []
        for _ in range(rounds):
            took, found = _searched(index, asked)
            times.append(took)
            recalls.append(recall(found, best))
        result = {
            "store": kind,
            "documents": documents,
            "queries": len(asked),
            "rounds": rounds,
            "first_ms": first,
            "p50_ms": float(np.median([np.percentile(one, 50) for one in times])),
            "p99_ms": float(np.median([np.percentile(one, 99) for one in times])),
            "recall@10": float(np.mean(recalls)),
            "memory_mb": memory_bytes(place.processes) / 1e6,
        }
    cells.write(cell_name(kind, documents, "search"), result)
    return result


def recall(found: Int64[np.ndarray, "queries k"], best: Int64[np.ndarray, "queries k"]) -> float:
    """Share of the best that was found, mean over queries; order does not count."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), best.tolist(), strict=True)]))


def made_vectors(rows: int) -> Float32[np.ndarray, "rows d"]:
    """The vectors of all sizes: a smaller size takes the first."""
    return write_vectors(cells.WORK / f"vectors-{rows}.npy", Clusters.of(), rows)


def missing(what: str) -> list[tuple[str, int]]:
    """Stores and sizes whose cell is not there, the small ones first; those to search must be built."""
    wanted = [(kind, documents) for documents in SIZES for kind in STORES]
    return [
        (kind, documents)
        for kind, documents in wanted
        if cells.read(cell_name(kind, documents, what)) is None and (what == "build" or _is_built(kind, documents))
    ]


def _is_built(kind: str, documents: int) -> bool:
    built = cells.read(cell_name(kind, documents, "build")) is not None
    return built and folder_of(kind, documents).is_dir()


def _spec() -> IndexSpec:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return IndexSpec("made", DIMENSION, "float32", dict(_FIELDS), "made", created)  # type: ignore[arg-type]


def _load(index: Index, vectors: Float32[np.ndarray, "rows d"]) -> None:
    documents = cast(Records, MadeDocuments(len(vectors)))
    fill(index, documents, lambda rows: np.asarray(vectors[rows]))


def _timed(processes: tuple[int, ...], work: Any) -> dict[str, float]:
    """Seconds by the clock and of the processors, all processes together."""
    clock, used = time.perf_counter(), processor_seconds(processes)
    work()
    return {"seconds": time.perf_counter() - clock, "processor_seconds": processor_seconds(processes) - used}


def _first_search(index: Index, query: Float32[np.ndarray, "1 d"]) -> float:
    started = time.perf_counter()
    index.search(query, DEPTH)
    return 1000 * (time.perf_counter() - started)


def _searched(index: Index, asked: Float32[np.ndarray, "queries d"]) -> tuple[list[float], Int64[np.ndarray, "q k"]]:
    times, found = [], np.full((len(asked), DEPTH), -1, dtype=np.int64)
    for number, query in enumerate(asked):
        started = time.perf_counter()
        (hits,) = index.search(query[None], DEPTH)
        times.append(1000 * (time.perf_counter() - started))
        found[number, : len(hits)] = [row_of(hit.doc_id) for hit in hits]
    return times, found


def _best(asked: Float32[np.ndarray, "queries d"], documents: int, most: int) -> Int64[np.ndarray, "queries k"]:
    """Made once a size: comparing everything takes a while at a million."""
    file = cells.WORK / f"best-{documents}-of-{most}.npy"
    if not file.is_file():
        np.save(file, best_rows(asked, made_vectors(most)[:documents], DEPTH))
    return np.load(file)
