"""A small data set that is built like a large one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from opengcl.data import tables
from opengcl.data.build import Side, sides
from opengcl.data.dataset import RankedDataset
from opengcl.data.derive import bring_picture_files, rewrite_table, with_step
from opengcl.data.new_folder import new_folder
from opengcl.data.problems import DataSetError
from opengcl.data.schema import QUERY_ID, SCHEMA_FILE

_BLOCK = 1 << 20


def sample(
    folder: Path, out: Path, *, queries: int, documents: int | None = None, seed: int = 0, progress: bool = True
) -> dict[str, int]:
    """Writes a data set of some of the queries, with all that is judged for them.

    Queries are drawn from each split and part in proportion; there they are ordered by their number of judged documents
    and their mean score, and taken at equal distances, so that both distributions stay. Documents are those judged for
    the drawn queries and others drawn evenly. Rows keep their order, their split and their other columns.

    Args:
        folder: The data set.
        out: Folder of the new one.
        queries: How many.
        documents: How many, with those that are judged. None for as many as keep the share that no query judges.
        seed: Of the draw.
        progress: Whether long work shows a progress bar on stderr.

    Returns:
        Rows written: ``queries``, ``documents``, ``pairs``; and ``judged``, documents judged for a drawn query.

    Raises:
        DataSetError: If the data set has problems, a count is not possible, or `out` exists already.
    """
    data = RankedDataset.open(folder, check_images=False, progress=progress)
    generator = np.random.default_rng(seed)
    query_rows = _draw_queries(data, queries, generator)
    judged = _judged(data, query_rows)
    document_rows = _draw_documents(judged, documents, _unjudged_share(data), generator)
    with new_folder(out) as into:
        writer = _Writer(data, into, query_rows, document_rows, progress)
        counts = {**writer.write(), "judged": int(judged.sum())}
        step = {"command": "sample", "from": data.fingerprint, "seed": seed, **counts}
        schema = with_step(replace(data.schema, name=f"{data.schema.name}-sample"), step)
        (into / SCHEMA_FILE).write_text(schema.to_yaml(), encoding="utf-8")
    return counts


def _draw_queries(data: RankedDataset, count: int, generator: np.random.Generator) -> Bool[np.ndarray, "queries"]:
    total = len(data.queries)
    if not 1 <= count <= total:
        raise DataSetError(f"queries: found {count:,}; allowed: 1 to {total:,}, the queries of {data.path}")
    stratum = np.asarray(data.splits.query_seen) * 2 + np.asarray(data.splits.query_dev)
    order = np.lexsort((np.arange(total), _mean_scores(data), np.diff(data.qrels.offsets)))
    drawn = np.zeros(total, bool)
    sizes = np.bincount(stratum, minlength=4)
    for number, share in enumerate(proportional(sizes, count)):
        rows = order[stratum[order] == number]
        drawn[rows[at_equal_distances(len(rows), share, generator.random())]] = True
    return drawn


def proportional(sizes: Int[np.ndarray, "strata"], count: int) -> Int[np.ndarray, "strata"]:
    """How many of each stratum: proportional to its size, rounded by the largest remainders, `count` in all."""
    exact = sizes * (count / sizes.sum())
    shares = np.floor(exact).astype(np.int64)
    most = np.argsort(shares - exact, kind="stable")[: count - int(shares.sum())]
    shares[most] += 1
    return shares


def at_equal_distances(length: int, count: int, start: float) -> Int[np.ndarray, "count"]:
    """Systematic sampling: `count` different positions from 0 to length - 1, the first after a share of a distance."""
    return np.floor((start + np.arange(count)) * (length / max(count, 1))).astype(np.int64).clip(0, max(length - 1, 0))


def _mean_scores(data: RankedDataset) -> Float[np.ndarray, "queries"]:
    sums = np.zeros(len(data.queries))
    for start in range(0, len(data.qrels), _BLOCK):
        part = slice(start, start + _BLOCK)
        sums += np.bincount(data.qrels.query[part], weights=data.qrels.score[part], minlength=len(sums))
    return sums / np.maximum(1, np.diff(data.qrels.offsets))


def _judged(data: RankedDataset, queries: Bool[np.ndarray, "queries"]) -> Bool[np.ndarray, "documents"]:
    """Documents judged for one of these queries."""
    found = np.zeros(len(data.documents), bool)
    for start in range(0, len(data.qrels), _BLOCK):
        part = slice(start, start + _BLOCK)
        found[data.qrels.document[part][queries[data.qrels.query[part]]]] = True
    return found


def _unjudged_share(data: RankedDataset) -> float:
    return 1 - float(_judged(data, np.ones(len(data.queries), bool)).mean())


def _draw_documents(
    judged: Bool[np.ndarray, "documents"], count: int | None, unjudged: float, generator: np.random.Generator
) -> Bool[np.ndarray, "documents"]:
    """The judged documents and others drawn evenly."""
    needed, total = int(judged.sum()), len(judged)
    if count is None:
        count = min(total, round(needed / (1 - unjudged)))
    if not needed <= count <= total:
        raise DataSetError(
            f"documents: found {count:,}; allowed: {needed:,} (judged for the drawn queries) to {total:,}"
        )
    drawn = judged.copy()
    drawn[generator.choice(np.flatnonzero(~judged), count - needed, replace=False)] = True
    return drawn


@dataclass(frozen=True)
class _Writer:
    data: RankedDataset
    into: Path
    query_rows: Bool[np.ndarray, "queries"]
    document_rows: Bool[np.ndarray, "documents"]
    progress: bool

    def write(self) -> dict[str, int]:
        query_side, document_side = sides(self.data.schema)
        return {
            "queries": self._side(query_side, self.query_rows),
            "documents": self._side(document_side, self.document_rows),
            "pairs": self._pairs(),
        }

    def _side(self, side: Side, rows: Bool[np.ndarray, "rows"]) -> int:
        def change(batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
            kept = batch.filter(pa.array(rows[first : first + len(batch)]))
            bring_picture_files(kept, side, self.data.path, self.into)
            return kept

        return self._rewrite(side.file, change)

    def _pairs(self) -> int:
        ids = pa.array(self.data.queries.ids(np.flatnonzero(self.query_rows)), pa.large_string())

        def change(batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
            found = tables.text(batch.column(QUERY_ID), file="qrels.parquet", column=QUERY_ID, first_row=first)
            return batch.filter(pc.is_in(found, ids))

        return self._rewrite("qrels.parquet", change)

    def _rewrite(self, file: str, change: Any) -> int:
        task = f"{file}: sampling"
        return rewrite_table(self.data.path / file, self.into / file, change, task=task, progress=self.progress)
