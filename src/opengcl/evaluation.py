"""A model on a data set's splits: vectors, exact search, one value a query and metric."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int

from opengcl.data import SPLITS, RankedDataset, Records
from opengcl.data.splits import Part
from opengcl.distributed import rank
from opengcl.encode import encode, fit_fill_in, inputs_for, lacks_fields
from opengcl.field_sets import FieldSets, by_field_set, field_set_means
from opengcl.given_lists import not_one_text
from opengcl.inputs import Inputs
from opengcl.metrics import DEFAULT_METRICS, check_names, compute
from opengcl.metrics import relevance as relevance_of
from opengcl.model import BiEncoder
from opengcl.per_query import KEYS, by_fields_path, per_query_table, write_per_query
from opengcl.prompts import Side
from opengcl.search import exact_top_k
from opengcl.whole_files import take_room

LISTED = 10  # documents of each query that results.parquet keeps
_BLOCK_QUERIES = 512
_BLOCK_ROWS = 16_384  # vectors read at a time where they may be mapped from disk
_PAIRS = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("score", pa.float64())])
_IN_MEMORY = 1 << 30  # bytes of vectors; more go to a temporary file


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on each split, per query and on average."""

    per_query: pa.Table  # split, query_id, pairs (the query's training pairs, score above 0), one column a metric
    results: pa.Table  # split, query_id, rank, doc_id, score, relevance: the first `LISTED` of each query
    part: Part
    by_fields: pa.Table | None = None  # see `opengcl.field_sets`; None where all documents have the same fields
    left_out: dict[str, int] = field(default_factory=dict)  # queries and documents that the model could not read

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return [name for name in self.per_query.column_names if name not in KEYS]

    def splits(self) -> dict[str, dict[str, float]]:
        """Split -> metric -> mean over its queries, and ``queries``, their number."""
        return split_means(self.per_query)

    def write(self, file: Path, *, per_query: Path, **extra: Any) -> None:
        """Write the means to ``file`` (JSON) and the per-query values to ``per_query`` (Parquet).

        Args:
            file: ``{"splits": {...}, "queries": part, ...}``, and ``fields`` where documents have different ones.
            per_query: Beside it; ``opengcl compare`` reads both. ``by_fields`` goes beside that (`by_fields_path`).
            extra: More keys for the JSON file.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        write_per_query(per_query, [self.per_query])
        content = {"splits": self.splits(), "queries": self.part, "left_out": self.left_out, **extra}
        by_fields_path(per_query).unlink(missing_ok=True)
        if self.by_fields is not None:
            pq.write_table(self.by_fields, by_fields_path(per_query))
            content["fields"] = field_set_means(self.by_fields)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Limit:
    """How much of a split is evaluated at most, drawn by seed: what keeps dev evaluations short on a large corpus."""

    queries: int
    documents: int  # judged ones of the drawn queries always stay, and others are drawn up to this number
    seed: int = 0

    def apply(
        self, dataset: RankedDataset, queries: Int[np.ndarray, " q"], documents: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " n"]]:
        """The drawn rows, ascending."""
        generator = np.random.default_rng(self.seed)
        if len(queries) > self.queries:
            queries = np.sort(generator.choice(queries, self.queries, replace=False))
        if len(documents) > self.documents:
            seen = bool(dataset.splits.document_seen[documents[0]])
            judged = np.unique(np.concatenate([_judged_in_half(dataset, query, seen)[0] for query in queries]))
            others = np.setdiff1d(documents, judged, assume_unique=True)
            room = max(0, self.documents - len(judged))
            documents = np.sort(
                np.concatenate([judged, generator.choice(others, min(room, len(others)), replace=False)])
            )
        return queries, documents


@dataclass(frozen=True)
class Vectors:
    """Vectors of some rows of a table."""

    rows: Int[np.ndarray, " rows"]  # ascending
    matrix: Float[np.ndarray, "rows d"]

    def readable(self, rows: Int[np.ndarray, " asked"]) -> Int[np.ndarray, " left"]:
        """Those of the rows that have a vector: zeros stand for what could not be read."""
        places = self.places(rows)
        blocks = (places[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS))
        return rows[np.concatenate([self.matrix[block].any(1) for block in blocks])] if len(rows) else rows

    def unreadable(self) -> int:
        """How many have none."""
        return len(self.rows) - len(self.readable(self.rows))

    def places(self, rows: Int[np.ndarray, " asked"]) -> Int[np.ndarray, " asked"]:
        """Where in ``matrix`` the vectors of some of the rows are."""
        return np.searchsorted(self.rows, rows)


def evaluate(
    model: BiEncoder,
    dataset: RankedDataset,
    *,
    splits: Sequence[str] = SPLITS,
    part: Part = "test",
    metrics: Sequence[str] = DEFAULT_METRICS,
    depth: int = 1000,
    inputs: tuple[Inputs, Inputs] | None = None,
    runs: Path | None = None,
    limit: Limit | None = None,
    progress: bool = False,
) -> Evaluation:
    """Rank each split's half of the corpus for the split's queries and score the lists.

    Relevance is the judged score itself; unjudged documents have 0, and so have those judged below 0
    (`opengcl.metrics.relevance`), as in trec_eval. Splits without a query are left out, and so is, with a warning in
    the log, what has nothing but pictures that cannot be read, and in a data set that was not opened strictly what has
    none of the model's fields. A document that is left out is still judged, and counts as not found.

    Args:
        model: The model.
        dataset: The data set.
        splits: Which of the four.
        part: Which of their queries: ``dev``, ``test`` or ``all``.
        metrics: Names as in `opengcl.metrics`.
        depth: Documents retrieved a query.
        inputs: Cached features of queries and documents.
        runs: Folder for ``SPLIT.run.parquet`` and ``SPLIT.qrels.parquet``, which other tools can score again.
        limit: Evaluate a part of the queries and documents; such numbers compare with each other only.
        progress: Show bars.

    Raises:
        ValueError: An unknown split, part or metric, no query in any of the splits, or a record that has no vector.
    """
    check_names(metrics)
    not_one_text("splits", splits)
    if not splits:
        raise ValueError(f"splits: found none; allowed: {', '.join(SPLITS)}")
    query_rows = {split: dataset.splits.query_rows(split, part) for split in splits}
    query_rows = {split: rows for split, rows in query_rows.items() if len(rows)}
    if not query_rows:
        raise ValueError(f"no query to evaluate: {', '.join(splits)} have no judged {part} query")
    document_rows = {split: dataset.splits.document_rows(split) for split in query_rows}
    if limit is not None:
        for split in query_rows:
            query_rows[split], document_rows[split] = limit.apply(dataset, query_rows[split], document_rows[split])
    trained = _training_pairs(dataset)
    own = inputs or (
        inputs_for(model, dataset.queries, "query", strict=dataset.strict),
        inputs_for(model, dataset.documents, "document", strict=dataset.strict),
    )
    model = _ready_to_fill_in(model, dataset, own[1], np.concatenate(list(document_rows.values())))
    sets = _field_sets(model, dataset, own[1])
    per_query, results, by_fields = [], [], []
    with tempfile.TemporaryDirectory(prefix="opengcl-vectors-") as folder:
        asked = _vectors(model, dataset.queries, "query", query_rows.values(), own[0], folder, progress)
        corpus = _vectors(model, dataset.documents, "document", document_rows.values(), own[1], folder, progress)
        for split, rows in query_rows.items():
            rows, candidates = asked.readable(rows), corpus.readable(document_rows[split])
            if len(candidates) == 0 or len(rows) == 0:
                continue
            seen = bool(dataset.splits.document_seen[candidates[0]])
            with _RunFiles(runs, split) as files:
                for start in range(0, len(rows), _BLOCK_QUERIES):
                    block = rows[start : start + _BLOCK_QUERIES]
                    ranked = _rank(dataset, asked, corpus, block, candidates, depth, model.device)
                    values = compute(metrics, ranked.relevance, ranked.judged)
                    per_query.append(per_query_table(split, ranked.query_ids, trained[block], values))
                    results.append(_listed(dataset, split, ranked))
                    if len(sets.among(candidates)) > 1:
                        pairs = [_judged_in_half(dataset, query, seen) for query in block]
                        listed = ranked.query_ids, ranked.rows, ranked.relevance
                        by_fields.append(by_field_set(sets, split, candidates, *listed, pairs))
                    files.add(dataset, block, ranked, seen=seen)
    kinds = pa.concat_tables(by_fields) if by_fields else None
    if not per_query:
        raise ValueError(f"no query to evaluate: {', '.join(query_rows)} have none that the model can read")
    left_out = {"queries": asked.unreadable(), "documents": corpus.unreadable()}
    return Evaluation(pa.concat_tables(per_query), pa.concat_tables(results), part, kinds, left_out)


def score_lists(
    dataset: RankedDataset,
    split: str,
    queries: Int[np.ndarray, " q"],
    rows: Int[np.ndarray, "q depth"],
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> pa.Table:
    """The per-query table of one split for lists that something else ranked, scored as `evaluate` scores its own.

    Args:
        dataset: The data set.
        split: Whose half of the documents was searched.
        queries: Rows of the queries.
        rows: Each query's document rows, best first; -1 fills a list that found fewer, at its end.
        metrics: Names as in `opengcl.metrics`.

    Raises:
        ValueError: An unknown split or metric, a query without a judged document in the split, or a list that leaves
            the split's half, names a document twice, or goes on after a -1.
    """
    check_names(metrics)
    _check_lists(dataset, split, queries, rows)
    trained, seen = _training_pairs(dataset), _searches_seen(dataset, split)
    tables = []
    for start in range(0, len(queries), _BLOCK_QUERIES):
        block = slice(start, start + _BLOCK_QUERIES)
        relevance, judged = _judge(dataset, queries[block], rows[block], seen=seen)
        ids = dataset.queries.ids(queries[block])
        tables.append(per_query_table(split, ids, trained[queries[block]], compute(metrics, relevance, judged)))
    return pa.concat_tables(tables)


def split_means(per_query: pa.Table) -> dict[str, dict[str, float]]:
    """Split -> metric -> mean over its queries, and ``queries``, their number."""
    split = per_query["split"].to_numpy(zero_copy_only=False)
    names = [name for name in per_query.column_names if name not in KEYS]
    table: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(split.tolist()):
        inside = split == name
        means = {metric: float(per_query[metric].to_numpy()[inside].mean()) for metric in names}
        table[name] = {**means, "queries": int(inside.sum())}
    return table


@dataclass(frozen=True)
class _Ranked:
    """The lists of a block of queries."""

    query_ids: list[str]
    rows: Int[np.ndarray, "q depth"]
    scores: Float[np.ndarray, "q depth"]
    relevance: Float[np.ndarray, "q depth"]  # at least 0
    judged: Float[np.ndarray, "q judged"]


class _RunFiles:
    """Writes a split's run and qrels as Parquet, a block of queries at a time, or nothing where no folder is given."""

    def __init__(self, folder: Path | None, split: str) -> None:
        self._writers: dict[str, pq.ParquetWriter] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("run", "qrels"):
                self._writers[name] = pq.ParquetWriter(folder / f"{split}.{name}.parquet", _PAIRS)

    def __enter__(self) -> _RunFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def add(self, dataset: RankedDataset, block: Int[np.ndarray, " q"], ranked: _Ranked, *, seen: bool) -> None:
        if not self._writers:
            return
        depth = ranked.rows.shape[1]
        self._write("run", ranked.query_ids, [depth] * len(block), dataset, ranked.rows.ravel(), ranked.scores.ravel())
        pairs = [_judged_in_half(dataset, query, seen) for query in block]
        documents, scores = (np.concatenate(part) for part in zip(*pairs, strict=True))
        self._write("qrels", ranked.query_ids, [len(found) for found, _ in pairs], dataset, documents, scores)

    def _write(
        self,
        name: str,
        query_ids: list[str],
        counts: list[int],
        dataset: RankedDataset,
        documents: Int[np.ndarray, " pairs"],
        scores: Float[np.ndarray, " pairs"],
    ) -> None:
        columns = [np.repeat(np.array(query_ids, dtype=object), counts), dataset.documents.ids(documents), scores]
        self._writers[name].write_table(pa.table(dict(zip(_PAIRS.names, columns, strict=True)), schema=_PAIRS))


def _ready_to_fill_in(
    model: BiEncoder, dataset: RankedDataset, inputs: Inputs, rows: Int[np.ndarray, " rows"]
) -> BiEncoder:
    """The model, or the same with maps learned from the data set's seen documents where it needs and lacks them."""
    if model.missing_fields == "leave_out" or model.fill_in is not None or not lacks_fields(model, inputs, rows).any():
        return model
    seen = np.flatnonzero(dataset.splits.document_seen)
    return model.with_fill_in(fit_fill_in(model, dataset.documents, seen, inputs=inputs))


def _field_sets(model: BiEncoder, dataset: RankedDataset, inputs: Inputs) -> FieldSets:
    every = np.arange(len(dataset.documents))
    return FieldSets.read({field: inputs.present(field, every) for field in model.mix.document})


def _vectors(
    model: BiEncoder,
    records: Records,
    side: Side,
    by_split: Collection[Int[np.ndarray, " rows"]],
    inputs: Inputs,
    folder: str,
    progress: bool,
) -> Vectors:
    """Vectors of all rows of the splits, in a file where they would fill the memory."""
    rows = np.unique(np.concatenate(list(by_split)))
    shape = (len(rows), model.encoder.get_embedding_dimension() or 0)
    matrix = None
    if 4 * shape[0] * shape[1] > _IN_MEMORY:
        file = Path(folder) / f"{side}.{rank()}.bin"
        try:
            with file.open("wb") as stream:
                take_room(stream, 4 * shape[0] * shape[1])
        except OSError as error:
            raise OSError(
                error.errno, f"no room for {shape[0]:,} vectors; TMPDIR names another folder", folder
            ) from error
        matrix = np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
    vectors = encode(model, records, side, rows, inputs=inputs, into=matrix, zero_unreadable=True, progress=progress)
    return Vectors(rows, vectors)


def _training_pairs(dataset: RankedDataset) -> Int[np.ndarray, " queries"]:
    """Judged pairs of each query that training sees."""
    pairs = dataset.splits.training_pairs()
    return np.bincount(dataset.qrels.query[pairs], minlength=len(dataset.queries)).astype(np.int32)


def _rank(
    dataset: RankedDataset,
    query_vectors: Vectors,
    document_vectors: Vectors,
    queries: Int[np.ndarray, " q"],
    candidates: Int[np.ndarray, " documents"],
    depth: int,
    device: torch.device,
) -> _Ranked:
    """Search the candidates for the queries and look up what is judged."""
    asked = query_vectors.matrix[query_vectors.places(queries)]
    searched = document_vectors.places(candidates)
    scores, found = exact_top_k(asked, document_vectors.matrix, depth, rows=searched, device=device)
    rows = document_vectors.rows[found]
    seen = bool(dataset.splits.document_seen[candidates[0]])
    relevance, judged = _judge(dataset, queries, rows, seen=seen)
    return _Ranked(dataset.queries.ids(queries), rows, scores, relevance, judged)


def _judge(
    dataset: RankedDataset, queries: Int[np.ndarray, " q"], rows: Int[np.ndarray, "q depth"], *, seen: bool
) -> tuple[Float[np.ndarray, "q depth"], Float[np.ndarray, "q judged"]]:
    """Relevance of each listed document, and all judged relevances of each query in the half; padded with 0."""
    relevance = np.zeros(rows.shape)
    lists = []
    for number, query in enumerate(queries):
        document, score = _judged_in_half(dataset, query, seen)
        score = relevance_of(score)
        order = np.argsort(document)
        place = np.searchsorted(document, rows[number], sorter=order).clip(max=len(order) - 1)
        hit = document[order[place]] == rows[number]
        relevance[number, hit] = score[order[place[hit]]]
        lists.append(score)
    judged = np.zeros((len(queries), max(map(len, lists))))
    for number, score in enumerate(lists):
        judged[number, : len(score)] = score
    return relevance, judged


def _searches_seen(dataset: RankedDataset, split: str) -> bool:
    """Whether a split is searched over the seen half."""
    return bool(dataset.splits.document_seen[dataset.splits.document_rows(split)[:1]].any())


def _check_lists(
    dataset: RankedDataset, split: str, queries: Int[np.ndarray, " q"], rows: Int[np.ndarray, "q depth"]
) -> None:
    allowed = dataset.splits.query_rows(split)
    outside = np.setdiff1d(queries, allowed)
    if len(outside) or len(queries) == 0:
        found = f"query row {outside[0]}" if len(outside) else "no query"
        raise ValueError(f"{split}: found {found}; allowed: rows of queries with a judged document in this split")
    if rows.ndim != 2 or len(rows) != len(queries):
        raise ValueError(f"{split}: lists of shape {rows.shape} for {len(queries)} queries; one row a query is needed")
    inside = np.zeros(len(dataset.documents) + 1, dtype=bool)
    inside[dataset.splits.document_rows(split)] = True
    inside[-1] = True  # the place that -1 points to
    for query, row in zip(queries, rows, strict=True):
        found = row[row != -1]
        if row.min(initial=0) < -1 or row.max(initial=0) >= len(inside) - 1 or not inside[row].all():
            raise ValueError(f"{split}: the list of query row {query} leaves the documents that the split searches")
        if len(np.unique(found)) < len(found) or (row[: len(found)] == -1).any():
            raise ValueError(f"{split}: the list of query row {query} has a document twice or goes on after a -1")


def _judged_in_half(
    dataset: RankedDataset, query: int, seen: bool
) -> tuple[Int[np.ndarray, " judged"], Float[np.ndarray, " judged"]]:
    """A query's judged documents among the seen or the novel ones, and their scores."""
    document, score = dataset.qrels.judged(int(query))
    inside = dataset.splits.document_seen[document] == seen
    return document[inside], score[inside].astype(np.float64)


def _listed(dataset: RankedDataset, split: str, ranked: _Ranked) -> pa.Table:
    kept = min(LISTED, ranked.rows.shape[1])
    queries = len(ranked.query_ids)
    return pa.table(
        {
            "split": [split] * (queries * kept),
            "query_id": np.repeat(np.array(ranked.query_ids, dtype=object), kept),
            "rank": np.tile(np.arange(1, kept + 1, dtype=np.int32), queries),
            "doc_id": dataset.documents.ids(ranked.rows[:, :kept].ravel()),
            "score": ranked.scores[:, :kept].ravel(),
            "relevance": ranked.relevance[:, :kept].ravel(),
        }
    )
