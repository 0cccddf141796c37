"""From judgments and results to the arrays of ``opengcl.metrics``, some queries at a time so that memory stays bounded.

Documents with equal scores need an order that does not depend on chance:

* ``document`` (the default): the smaller document id first, compared as a string (UTF-8 bytes).
* ``trec``: as trec_eval: scores are rounded to 32 bits, then the *greater* document id goes first.
* ``input``: the order of the run file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from opengcl.ranking_files import ScoredPairs, ranges, ranking_order

Ties = Literal["document", "trec", "input"]

_BLOCK_CELLS = 1 << 21  # cells of one array of a `Block`: 16 MiB


@dataclass(frozen=True)
class Block:
    """Some queries as the arrays of ``opengcl.metrics``."""

    query_ids: list[str]
    retrieved: Float[np.ndarray, "queries depth"]
    judged: Float[np.ndarray, "queries judged"]


def blocks(qrels: ScoredPairs, run: ScoredPairs, *, depth: int = 1000, ties: Ties = "document") -> Iterator[Block]:
    """The judged queries as arrays of relevance.

    Every query of ``qrels`` comes out once, in the order of ``qrels.query_ids``; one that the run left out has
    retrieved nothing. Queries that only the run has are ignored (``ignored_queries`` counts them).

    Args:
        qrels: the judgments.
        run: the results.
        depth: ranks of the run that count, at least 1.
        ties: the order of documents with equal scores (see the module).

    Yields:
        Blocks of queries.

    Raises:
        ValueError: for an unknown tie rule or a depth below 1.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"ties is {ties!r}; allowed: {', '.join(get_args(Ties))}")
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1")
    run_query = _positions(qrels.query_ids, run.query_ids)
    run_starts = run.offsets[run_query]
    run_lengths = np.append(run.lengths(), 0)[run_query]  # a query left out, -1, gets the appended 0
    judged_lengths = qrels.lengths()
    judged_document = _positions(run.doc_ids, qrels.doc_ids)
    tie_keys = _tie_keys(run, ties)
    score = _rounded(run.value) if ties == "trec" else run.value
    for part in _query_slices(np.maximum(run_lengths, judged_lengths)):
        found = ranges(run_starts[part], run_lengths[part])
        query = np.repeat(np.arange(part.stop - part.start), run_lengths[part])
        found = found[ranking_order(query, score[found], tie_keys(found))]
        known = slice(int(qrels.offsets[part.start]), int(qrels.offsets[part.stop]))
        known_query = np.repeat(np.arange(part.stop - part.start), judged_lengths[part])
        judgments = (known_query, qrels.document[known], qrels.value[known])
        relevance = _look_up(judgments, query, judged_document[run.document[found]])
        yield Block(
            query_ids=qrels.query_ids[part].to_pylist(),
            retrieved=_padded(query, relevance, run_lengths[part], depth),
            judged=_padded(known_query, qrels.value[known], judged_lengths[part], None),
        )


def missing_queries(qrels: ScoredPairs, run: ScoredPairs) -> int:
    """How many judged queries the run left out; they count as zero."""
    return int((_positions(qrels.query_ids, run.query_ids) < 0).sum())


def ignored_queries(qrels: ScoredPairs, run: ScoredPairs) -> int:
    """How many queries of the run have no judgments; they do not count."""
    return int((_positions(run.query_ids, qrels.query_ids) < 0).sum())


def _positions(values: pa.StringArray, among: pa.StringArray) -> np.ndarray:
    """For each value its position in ``among``, or -1."""
    return np.asarray(pc.fill_null(pc.index_in(values, value_set=among), -1).to_numpy(zero_copy_only=False))


def _tie_keys(run: ScoredPairs, ties: Ties) -> Callable[[np.ndarray], np.ndarray]:
    """From rows of the run to keys; among equal scores the smaller key goes first."""
    if ties == "input":
        return lambda rows: rows
    rank = run.document_rank() * (1 if ties == "document" else -1)
    return lambda rows: rank[run.document[rows]]


def _rounded(score: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return score.astype(np.float32)


def _query_slices(lengths: np.ndarray) -> Iterator[slice]:
    """Neighbouring queries whose padded arrays stay within the budget of cells."""
    start, width = 0, 1
    for query, length in enumerate(lengths.tolist()):
        width = max(width, length)
        if query > start and (query - start + 1) * width > _BLOCK_CELLS:
            yield slice(start, query)
            start, width = query, max(1, length)
    if start < len(lengths):
        yield slice(start, len(lengths))


def _look_up(
    judgments: tuple[np.ndarray, np.ndarray, np.ndarray], query: np.ndarray, document: np.ndarray
) -> np.ndarray:
    """The relevance of each (query, document), 0 where it is unjudged; document -1 is one that no query judged."""
    known_query, known_document, relevance = judgments
    width = int(max(known_document.max(initial=0), document.max(initial=0))) + 1
    keys = known_query.astype(np.int64) * width + known_document
    order = np.argsort(keys)
    wanted = query.astype(np.int64) * width + document
    row = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where((keys[row] == wanted) & (document >= 0), relevance[row], 0.0)


def _padded(query: np.ndarray, values: np.ndarray, lengths: np.ndarray, depth: int | None) -> np.ndarray:
    """Ragged rows as one array, cut at depth and padded with 0."""
    width = int(lengths.max(initial=0))
    width = width if depth is None else min(width, depth)
    rank = ranges(np.zeros(len(lengths), dtype=np.int64), lengths)
    kept = rank < width
    padded = np.zeros((len(lengths), width))
    padded[query[kept], rank[kept]] = values[kept]
    return padded
