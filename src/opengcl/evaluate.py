"""A model on a data set's splits: vectors, exact search, one value a query and metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from opengcl.data import SPLITS, RankedDataset, Records
from opengcl.data.splits import Part
from opengcl.encode import encode
from opengcl.inputs import Inputs
from opengcl.metrics import DEFAULT_METRICS, check_names, compute
from opengcl.model import BiEncoder, Side
from opengcl.search import exact_top_k

LISTED = 10  # documents of each query that results.parquet keeps
_BLOCK_QUERIES = 512
Matrix = Float[np.ndarray, "rows d"]


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on each split, per query and on average."""

    per_query: pa.Table  # split, query_id, pairs (the query's training pairs), one column a metric
    results: pa.Table  # split, query_id, rank, doc_id, score, relevance: the first `LISTED` of each query
    part: Part

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return [name for name in self.per_query.column_names if name not in ("split", "query_id", "pairs")]

    def splits(self) -> dict[str, dict[str, float]]:
        """Split -> metric -> mean over its queries, and ``queries``, their number."""
        split = self.per_query["split"].to_numpy(zero_copy_only=False)
        table: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(split.tolist()):
            inside = split == name
            means = {m: float(self.per_query[m].to_numpy()[inside].mean()) for m in self.metrics}
            table[name] = {**means, "queries": int(inside.sum())}
        return table

    def write(self, file: Path, *, per_query: Path, **extra: Any) -> None:
        """Write the means to ``file`` (JSON) and the per-query values to ``per_query`` (Parquet).

        Args:
            file: ``{"splits": {...}, "queries": part, ...}``.
            per_query: Beside it; ``opengcl compare`` reads both.
            extra: More keys for the JSON file.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.per_query, per_query)
        content = {"splits": self.splits(), "queries": self.part, **extra}
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Vectors:
    """Vectors of the rows that some splits need; other rows stay zero and are never read."""

    queries: Matrix
    documents: Matrix


def evaluate(
    model: BiEncoder,
    dataset: RankedDataset,
    *,
    splits: Sequence[str] = SPLITS,
    part: Part = "test",
    metrics: Sequence[str] = DEFAULT_METRICS,
    depth: int = 1000,
    inputs: tuple[Inputs, Inputs] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Rank each split's half of the corpus for the split's queries and score the lists.

    Relevance is the judged score itself, unjudged documents have 0; where the data set's scores may be negative, its
    lowest possible score counts as 0. Splits without a query are left out.

    Args:
        model: The model.
        dataset: The data set.
        splits: Which of the four.
        part: Which of their queries: ``dev``, ``test`` or ``all``.
        metrics: Names as in `opengcl.metrics`.
        depth: Documents retrieved a query.
        inputs: Cached features of queries and documents.
        progress: Show bars.

    Raises:
        ValueError: An unknown split, part or metric, no query in any of the splits, or a record that has no vector.
    """
    check_names(metrics)
    query_rows = {split: dataset.splits.query_rows(split, part) for split in splits}
    query_rows = {split: rows for split, rows in query_rows.items() if len(rows)}
    if not query_rows:
        raise ValueError(f"no query to evaluate: {', '.join(splits)} have no judged {part} query")
    document_rows = {split: dataset.splits.document_rows(split) for split in query_rows}
    vectors = _vectors(model, dataset, query_rows, document_rows, inputs, progress)
    trained = _training_pairs(dataset)
    per_query, results = [], []
    for split, rows in query_rows.items():
        candidates = document_rows[split]
        corpus = vectors.documents[candidates]
        for start in range(0, len(rows), _BLOCK_QUERIES):
            block = rows[start : start + _BLOCK_QUERIES]
            scores, found = exact_top_k(vectors.queries[block], corpus, depth, device=model.device)
            retrieved, judged = _relevance(
                dataset, block, candidates[found], dataset.splits.document_seen[candidates[0]]
            )
            ids = dataset.queries.ids(block)
            values = compute(metrics, retrieved, judged)
            per_query.append(
                pa.table({"split": [split] * len(ids), "query_id": ids, "pairs": trained[block], **values})
            )
            results.append(_listed(dataset, split, ids, scores, candidates[found], retrieved))
    return Evaluation(pa.concat_tables(per_query), pa.concat_tables(results), part)


def _vectors(
    model: BiEncoder,
    dataset: RankedDataset,
    query_rows: dict[str, Int[np.ndarray, " rows"]],
    document_rows: dict[str, Int[np.ndarray, " rows"]],
    inputs: tuple[Inputs, Inputs] | None,
    progress: bool,
) -> Vectors:
    own = inputs or (None, None)

    def of(
        records: Records, side: Side, by_split: dict[str, Int[np.ndarray, " rows"]], cached: Inputs | None
    ) -> Matrix:
        rows = np.unique(np.concatenate(list(by_split.values())))
        vectors = encode(model, records, side, rows, inputs=cached, progress=progress)
        every = np.zeros((len(records), vectors.shape[1]), dtype=np.float32)
        every[rows] = vectors
        return every

    return Vectors(
        of(dataset.queries, "query", query_rows, own[0]), of(dataset.documents, "document", document_rows, own[1])
    )


def _training_pairs(dataset: RankedDataset) -> Int[np.ndarray, " queries"]:
    """Judged pairs of each query that training sees."""
    pairs = dataset.splits.training_pairs()
    return np.bincount(dataset.qrels.query[pairs], minlength=len(dataset.queries)).astype(np.int32)


def _relevance(
    dataset: RankedDataset, queries: Int[np.ndarray, " q"], found: Int[np.ndarray, "q depth"], seen: bool
) -> tuple[Float[np.ndarray, "q depth"], Float[np.ndarray, "q judged"]]:
    """Relevance of the found documents, and all judged relevances in the split's half, padded with 0."""
    qrels, floor = dataset.qrels, min(0.0, dataset.schema.score_min)
    retrieved = np.zeros(found.shape)
    judged = []
    for number, query in enumerate(queries):
        span = slice(int(qrels.offsets[query]), int(qrels.offsets[query + 1]))
        document, score = np.asarray(qrels.document[span]), np.asarray(qrels.score[span], dtype=np.float64) - floor
        inside = dataset.splits.document_seen[document] == seen
        document, score = document[inside], score[inside]
        order = np.argsort(document)
        place = np.searchsorted(document[order], found[number]).clip(max=len(order) - 1)
        hit = document[order][place] == found[number]
        retrieved[number, hit] = score[order][place[hit]]
        judged.append(score)
    padded = np.zeros((len(queries), max(map(len, judged))))
    for number, values in enumerate(judged):
        padded[number, : len(values)] = values
    return retrieved, padded


def _listed(
    dataset: RankedDataset,
    split: str,
    ids: list[str],
    scores: Float[np.ndarray, "q depth"],
    found: Int[np.ndarray, "q depth"],
    relevance: Float[np.ndarray, "q depth"],
) -> pa.Table:
    kept = min(LISTED, found.shape[1])
    return pa.table(
        {
            "split": [split] * (len(ids) * kept),
            "query_id": np.repeat(np.array(ids, dtype=object), kept),
            "rank": np.tile(np.arange(1, kept + 1, dtype=np.int32), len(ids)),
            "doc_id": dataset.documents.ids(found[:, :kept].ravel()),
            "score": scores[:, :kept].ravel(),
            "relevance": relevance[:, :kept].ravel(),
        }
    )
