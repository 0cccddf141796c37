"""How good and how fast an index is: what it finds against what is there, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from opengcl.data import RankedDataset
from opengcl.data.problems import number_of
from opengcl.encode import encode, inputs_for, rows_with_fields
from opengcl.index.build import CHUNK_ROWS, from_shards
from opengcl.index.protocol import Hit, Index
from opengcl.index.vectors import shorten
from opengcl.model import BiEncoder
from opengcl.progress import tracked
from opengcl.search import exact_top_k

DEPTHS = (10, 100)
_WARM_UP = 10
_SAME = 1e-4  # cosines that differ by less are of equally good documents: of duplicates, any may be found


@dataclass(frozen=True)
class Depth:
    """One number of results.

    Attributes:
        k: How many are asked for.
        recall: Share of the best k that is found, mean over queries: against every vector in the index compared.
        kept_recall: Share of the best k by the model's whole vectors that is found; None where those were not given.
            What int8, fewer dimensions and the approximate index cost together.
        exact_kept_recall: The same where every vector in the index is compared: what int8 and fewer dimensions cost.
        p50_ms: Median time of a search of one query, in milliseconds.
        p99_ms: 99th percentile of it.
    """

    k: int
    recall: float
    kept_recall: float | None
    exact_kept_recall: float | None
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class IndexReport:
    """What `check_index` found."""

    index: str
    documents: int
    dimension: int
    dtype: str
    size_bytes: int | None  # on disk; None where the store doesn't tell
    queries: int
    exact_p50_ms: float  # of a search that compares every vector, of the largest k
    depths: tuple[Depth, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """A few lines to read."""
        size = "unknown" if self.size_bytes is None else f"{self.size_bytes / 1e6:,.1f} MB"
        lines = [
            f"index {self.index}: {number_of(self.documents, 'document')}, {self.dimension} x {self.dtype}, "
            f"{size} on disk",
            f"{number_of(self.queries, 'query', 'queries')}; comparing every vector takes {self.exact_p50_ms:.1f} ms "
            "(median)",
        ]
        for one in self.depths:
            kept = "" if one.kept_recall is None else f", {one.kept_recall:.4f} of the model's whole vectors' best"
            lines.append(f"recall@{one.k:<4}{one.recall:.4f}{kept}; {one.p50_ms:.1f} ms p50, {one.p99_ms:.1f} ms p99")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Reference:
    """The model's whole vectors, to say what keeping less of them costs.

    Attributes:
        vectors: float32 of length 1, at the model's width.
        row_of: Document id -> row.
    """

    vectors: Float32[np.ndarray, "documents width"]
    row_of: Callable[[Sequence[str]], Int64[np.ndarray, " ids"]]


def sample_queries(
    model: BiEncoder, dataset: RankedDataset, number: int, seed: int = 0
) -> Float32[np.ndarray, "queries width"]:
    """Vectors of some of a data set's queries, drawn evenly."""
    generator = np.random.default_rng(seed)
    inputs = inputs_for(model, dataset.queries, "query", strict=dataset.strict)
    usable = rows_with_fields(model, dataset.queries, "query")
    rows = usable[np.sort(generator.permutation(len(usable))[:number])]
    return encode(model, dataset.queries, "query", rows, inputs=inputs)


def read_reference(folder: Path, dataset: RankedDataset, model: str) -> Reference:
    """Whole vectors from files of `opengcl.vector_shards.encode_table`, read into memory.

    Raises:
        ShardError: They are not all there, or not the float32 vectors of this model and data's documents.
    """
    width, every, source = from_shards(folder, dataset.documents, model=model, data=dataset.fingerprint)
    vectors = np.zeros((len(dataset.documents), width), dtype=np.float32)
    for start in range(0, len(every), CHUNK_ROWS):
        rows = every[start : start + CHUNK_ROWS]
        vectors[rows] = source(rows)
    return Reference(vectors, dataset.documents.find)


def check_index(
    index: Index,
    queries: Float32[np.ndarray, "queries width"],
    *,
    depths: Sequence[int] = DEPTHS,
    reference: Reference | None = None,
    progress: bool = True,
) -> IndexReport:
    """Searches for each query, approximately and exactly, and compares.

    Args:
        index: Which.
        queries: The model's own vectors at their whole width; they are made as short as the index's.
        depths: Numbers of results to ask for.
        reference: The documents' whole vectors, if what int8 and fewer dimensions cost is to be told.
        progress: Show a bar.

    Returns:
        Recall and latency at each depth. Documents with the same cosine count as the same.
    """
    short = shorten(queries, index.spec.dimension)
    deepest = max(depths)
    for query in short[:_WARM_UP]:
        index.search(query[None], deepest)
    exact, times = _timed(index, short, deepest, exact=True, progress=progress)
    best = None if reference is None else exact_top_k(queries, reference.vectors, deepest)[0]
    found = []
    for k in depths:
        hits, took = _timed(index, short, k, exact=False, progress=progress)
        found.append(
            Depth(
                k=k,
                recall=float(
                    np.mean([_recall(a, [hit.score for hit in b[:k]]) for a, b in zip(hits, exact, strict=True)])
                ),
                kept_recall=_kept(hits, queries, reference, best, k),
                exact_kept_recall=_kept([one[:k] for one in exact], queries, reference, best, k),
                p50_ms=float(np.percentile(took, 50)),
                p99_ms=float(np.percentile(took, 99)),
            )
        )
    return IndexReport(
        index=index.name,
        documents=index.count(),
        dimension=index.spec.dimension,
        dtype=index.spec.dtype,
        size_bytes=index.size(),
        queries=len(queries),
        exact_p50_ms=float(np.percentile(times, 50)),
        depths=tuple(found),
    )


def _timed(
    index: Index, queries: np.ndarray, k: int, *, exact: bool, progress: bool
) -> tuple[list[list[Hit]], list[float]]:
    """Results of every query, and what each took in milliseconds."""
    found, took = [], []
    label = f"{'exact' if exact else 'approximate'} {k}"
    for query in tracked(queries, desc=label, unit="query", show=progress, leave=False):
        start = time.perf_counter()
        found += index.search(query[None], k, exact=exact)
        took.append(1000 * (time.perf_counter() - start))
    return found, took


def _recall(hits: Sequence[Hit], best: Sequence[float]) -> float:
    """Share of the best that was found; ``best`` has their scores in order."""
    return _share([hit.score for hit in hits], best)


def _share(scores: Sequence[float], best: Sequence[float]) -> float:
    if not len(best):
        return 1.0
    good = sum(score >= best[-1] - _SAME for score in scores)
    return min(good, len(best)) / len(best)


def _kept(
    hits: Sequence[Sequence[Hit]],
    queries: np.ndarray,
    reference: Reference | None,
    best: np.ndarray | None,
    k: int,
) -> float | None:
    if reference is None or best is None:
        return None
    shares = []
    for query, of_query, scores in zip(queries, hits, best, strict=True):
        rows = reference.row_of([hit.doc_id for hit in of_query])
        found = reference.vectors[rows[rows >= 0]] @ query
        shares.append(_share(found.tolist(), scores[:k].tolist()))
    return float(np.mean(shares))
