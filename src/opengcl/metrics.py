"""Ranking metrics on float relevance: NDCG, ERR, RBP, recall, precision, MRR and MAP, one value a query.

Every function takes two arrays with a row for each query:

* ``retrieved``, shape (queries, depth): the relevance of the retrieved documents in rank order. An unjudged
  document has relevance 0, and so has the padding of a row that retrieved fewer than ``depth``.
* ``judged``, shape (queries, judged): all judged relevances of the query, in any order, padded with 0.

Relevance is in the data set's own units (for instance 1 to 100), finite and at least 0; "relevant" means
*greater than* ``threshold``. A query that retrieved nothing scores 0, and so does one without a relevant
judgment, so a system cannot raise its mean by leaving queries out.

Ties: these functions see ranks, not scores, so whoever sorts decides about equal scores. In this package the
earlier document row goes first (for files: the smaller document id as a string); ``opengcl.ranking_blocks`` has
the rule and its alternatives.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

Gain = Literal["linear", "exponential"]

DEFAULT_METRICS = ("ndcg@10", "err", "rbp@0.9", "recall@100", "mrr", "map", "precision@10")

_FORMS = "ndcg@K, ndcg_exp@K, err, err@K, rbp@P, recall@K, precision@K, mrr, mrr@K, map, map@K"
_BLOCK_CELLS = 1 << 18  # cells of one block in `compute`: its temporaries stay within a core's cache


def ndcg(
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    k: int,
    gain: Gain = "linear",
) -> Float[np.ndarray, "queries"]:
    """Normalised discounted cumulative gain of the first k ranks, in [0, 1].

    NDCG@k = DCG@k / IDCG@k with DCG@k = sum_{r=1..k} gain(rel_r) / log2(r + 1); IDCG@k is the DCG@k of the
    judged documents in the best order. ``gain="linear"`` is rel itself (Järvelin and Kekäläinen 2002, as
    trec_eval computes it); ``gain="exponential"`` is 2^rel - 1 (Burges et al. 2005). The exponential gain is
    scaled by 2^-max(rel) of the query, which cancels in the ratio, so that it cannot overflow.

    Args:
        retrieved: relevance in rank order.
        judged: all judged relevances.
        k: ranks that count, at least 1.
        gain: from relevance to gain.

    Returns:
        One value a query, 0 where no judged relevance is positive.

    Raises:
        ValueError: for arrays that are not as the module describes, a k below 1 or an unknown gain.
    """
    retrieved, judged = _checked(retrieved, judged)
    best = _best(judged, _cutoff(k, judged.shape[1]))
    found = retrieved[:, : _cutoff(k, retrieved.shape[1])]
    if gain == "exponential":
        top = _row_max(judged)[:, None]
        found, best = _stop_probability(found, top), _stop_probability(best, top)
    elif gain != "linear":
        raise ValueError(f"gain is {gain!r}; allowed: 'linear', 'exponential'")
    return _ratio(_discounted(found), _discounted(best))


def err(
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    k: int | None = None,
    max_grade: float | None = None,
) -> Float[np.ndarray, "queries"]:
    """Expected reciprocal rank, in [0, 1): a user reads down and stops at rank r with probability R_r.

    ERR = sum_r 1/r R_r prod_{i<r} (1 - R_i) with R = (2^rel - 1) / 2^g (Chapelle et al. 2009, equations 4 to
    6). There g is the top grade of the scale: pass it as ``max_grade``. Without it g is the query's own
    highest judged relevance, as Marqo's GCL evaluation has it. On a scale of 1 to 100 a document ten grades
    below g has R = 0.001, so only the very best grades count.

    R is computed as 2^(rel - g) (1 - 2^-rel), which neither overflows nor cancels.

    Args:
        retrieved: relevance in rank order.
        judged: all judged relevances.
        k: ranks that count; None for all retrieved.
        max_grade: the scale's top grade; None for the query's highest.

    Returns:
        One value a query, 0 where nothing relevant was retrieved.

    Raises: ValueError: for arrays that are not as the module describes, a k below 1, or a relevance above
    ``max_grade``.
    """
    retrieved, judged = _checked(retrieved, judged)
    top = _row_max(judged)
    if max_grade is not None:
        if top.size and not float(top.max()) <= max_grade:
            raise ValueError(f"max_grade is {max_grade}, but a judged relevance is {float(top.max())}")
        top = np.full_like(top, max_grade)
    depth = _cutoff(k, retrieved.shape[1])
    if depth == 0:
        return np.zeros(len(retrieved))
    stop = _stop_probability(retrieved[:, :depth], top[:, None])
    reached = np.ones_like(stop)
    np.cumprod(1.0 - stop[:, :-1], axis=1, out=reached[:, 1:])
    stop *= reached
    return _weighted_sum(stop, 1.0 / np.arange(1, depth + 1))


def rbp(
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    p: float,
    k: int | None = None,
) -> Float[np.ndarray, "queries"]:
    """Rank-biased precision, in [0, 1): a user goes on to the next rank with probability p.

    RBP = (1 - p) sum_r g_r p^(r-1) (Moffat and Zobel 2008, equation 3) with the graded gain g = rel /
    max(rel), where max(rel) is the query's highest judged relevance, as Marqo's GCL evaluation has it. A
    perfect list stays below 1: it would need infinitely many documents of the top grade.

    Args:
        retrieved: relevance in rank order.
        judged: all judged relevances.
        p: persistence, 0 < p < 1.
        k: ranks that count; None for all retrieved.

    Returns:
        One value a query.

    Raises:
        ValueError: for arrays that are not as the module describes, a p outside (0, 1) or a k below 1.
    """
    if not 0.0 < p < 1.0:
        raise ValueError(f"rbp: p is {p}; it must lie between 0 and 1, both excluded")
    retrieved, judged = _checked(retrieved, judged)
    depth = _cutoff(k, retrieved.shape[1])
    total = _weighted_sum(retrieved[:, :depth], np.power(p, np.arange(depth)))
    return (1.0 - p) * _ratio(total, _row_max(judged))


def recall(
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    k: int,
    threshold: float = 0.0,
) -> Float[np.ndarray, "queries"]:
    """Share of the relevant documents that are among the first k, in [0, 1].

    recall@k = |{r <= k: rel_r > threshold}| / |{judged rel > threshold}|. With more relevant documents than k
    it cannot reach 1.

    Args:
        retrieved: relevance in rank order.
        judged: all judged relevances.
        k: ranks that count, at least 1.
        threshold: relevant means above this, at least 0.

    Returns:
        One value a query, 0 where nothing judged is relevant.

    Raises:
        ValueError: for arrays that are not as the module describes, a k below 1 or a negative threshold.
    """
    retrieved, judged = _checked(retrieved, judged)
    found = _relevant(retrieved[:, : _cutoff(k, retrieved.shape[1])], threshold)
    return _ratio(found.sum(axis=1), _relevant(judged, threshold).sum(axis=1))


def precision(
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    k: int,
    threshold: float = 0.0,
) -> Float[np.ndarray, "queries"]:
    """Share of the first k ranks that hold a relevant document, in [0, 1].

    precision@k = |{r <= k: rel_r > threshold}| / k; ranks that nothing was retrieved for count as irrelevant
    (as trec_eval).

    Args:
        retrieved: relevance in rank order.
        judged: all judged relevances.
        k: ranks that count, at least 1.
        threshold: relevant means above this, at least 0.

    Returns:
        One value a query.

    Raises:
        ValueError: for arrays that are not as the module describes, a k below 1 or a negative threshold.
    """
    retrieved, _ = _checked(retrieved, judged)
    found = _relevant(retrieved[:, : _cutoff(k, retrieved.shape[1])], threshold)
    return np.asarray(found.sum(axis=1) / float(k))


def reciprocal_rank(
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    k: int | None = None,
    threshold: float = 0.0,
) -> Float[np.ndarray, "queries"]:
    """One over the rank of the first relevant document, in [0, 1]; its mean is MRR (Voorhees 1999).

    Args:
        retrieved: relevance in rank order.
        judged: all judged relevances.
        k: ranks that count; None for all retrieved.
        threshold: relevant means above this, at least 0.

    Returns:
        One value a query, 0 where no relevant document was retrieved.

    Raises:
        ValueError: for arrays that are not as the module describes, a k below 1 or a negative threshold.
    """
    retrieved, _ = _checked(retrieved, judged)
    depth = _cutoff(k, retrieved.shape[1])
    found = _relevant(retrieved[:, :depth], threshold)
    if depth == 0:
        return np.zeros(len(retrieved))
    return np.where(found.any(axis=1), 1.0 / (found.argmax(axis=1) + 1.0), 0.0)


def average_precision(
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    k: int | None = None,
    threshold: float = 0.0,
) -> Float[np.ndarray, "queries"]:
    """Average precision, in [0, 1]; its mean over queries is MAP.

    AP = 1/N sum_{r: rel_r > threshold} precision@r, N the number of *judged* relevant documents (Buckley and
    Voorhees 2000; as trec_eval's ``map`` and ``map_cut``): with a cutoff k, N stays the same.

    Args:
        retrieved: relevance in rank order.
        judged: all judged relevances.
        k: ranks that count; None for all retrieved.
        threshold: relevant means above this, at least 0.

    Returns:
        One value a query, 0 where nothing judged is relevant.

    Raises:
        ValueError: for arrays that are not as the module describes, a k below 1 or a negative threshold.
    """
    retrieved, judged = _checked(retrieved, judged)
    depth = _cutoff(k, retrieved.shape[1])
    found = _relevant(retrieved[:, :depth], threshold)
    hits = np.cumsum(found, axis=1, dtype=np.float64)
    hits *= found
    total = _weighted_sum(hits, 1.0 / np.arange(1, depth + 1))
    return _ratio(total, _relevant(judged, threshold).sum(axis=1))


def compute(
    names: Sequence[str],
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    threshold: float = 0.0,
) -> dict[str, Float[np.ndarray, "queries"]]:
    """Several metrics by name, in blocks of queries so that temporaries stay small.

    Args: names: of the forms ndcg@K, ndcg_exp@K, err, err@K, rbp@P, recall@K, precision@K, mrr, mrr@K, map,
    map@K. retrieved: relevance in rank order. judged: all judged relevances. threshold: relevant means above
    this, for recall, precision, mrr and map.

    Returns:
        For each name, in the given order, one value a query.

    Raises:
        ValueError: for a name of no valid form, and as the metrics themselves.
    """
    measures = {name: _parse(name, threshold) for name in names}
    _check_shapes(retrieved, judged)
    values = {name: np.zeros(len(retrieved)) for name in measures}
    rows = max(1, _BLOCK_CELLS // max(1, retrieved.shape[1], judged.shape[1]))
    for start in range(0, len(retrieved), rows):
        block = slice(start, start + rows)
        found, known = _checked(retrieved[block], judged[block])
        for name, measure in measures.items():
            values[name][block] = measure(found, known)
    return values


def check_names(names: Sequence[str]) -> None:
    """Checks metric names before any work is done.

    Args:
        names: as for ``compute``.

    Raises:
        ValueError: naming the first name of no valid form and listing the forms.
    """
    for name in names:
        _parse(name, 0.0)


_Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _parse(name: str, threshold: float) -> _Measure:
    """From "ndcg@10" to the function that computes it."""
    base, at, argument = name.partition("@")
    cut: dict[str, Callable[[int], _Measure]] = {
        "ndcg": lambda k: partial(ndcg, k=k),
        "ndcg_exp": lambda k: partial(ndcg, k=k, gain="exponential"),
        "recall": lambda k: partial(recall, k=k, threshold=threshold),
        "precision": lambda k: partial(precision, k=k, threshold=threshold),
    }
    uncut: dict[str, Callable[[int | None], _Measure]] = {
        "err": lambda k: partial(err, k=k),
        "mrr": lambda k: partial(reciprocal_rank, k=k, threshold=threshold),
        "map": lambda k: partial(average_precision, k=k, threshold=threshold),
    }
    if base in uncut and not at:
        return uncut[base](None)
    builder = cut.get(base) or uncut.get(base)
    if builder is not None and re.fullmatch("[1-9][0-9]*", argument):
        return builder(int(argument))
    if base == "rbp" and (p := _persistence(argument)) is not None:
        return partial(rbp, p=p)
    raise ValueError(f"unknown metric {name!r}; valid forms: {_FORMS} (K a whole number from 1, P between 0 and 1)")


def _persistence(text: str) -> float | None:
    try:
        p = float(text)
    except ValueError:
        return None
    return p if 0.0 < p < 1.0 else None


def _checked(retrieved: np.ndarray, judged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays as float64, or a ValueError that says which row is wrong."""
    _check_shapes(retrieved, judged)
    retrieved, judged = np.asarray(retrieved, dtype=np.float64), np.asarray(judged, dtype=np.float64)
    for name, array in (("retrieved", retrieved), ("judged", judged)):
        # NaN makes both comparisons false
        if array.size and not (array.min() >= 0.0 and array.max() < math.inf):
            row, column = np.argwhere(~((array >= 0.0) & (array < math.inf)))[0]
            raise ValueError(
                f"{name}[{row}, {column}] is {array[row, column]}; a relevance must be finite and at least 0"
            )
    over = _row_max(retrieved) > _row_max(judged)
    if over.any():
        row = int(over.argmax())
        raise ValueError(
            f"query row {row} retrieved a relevance of {retrieved[row].max()}, above its highest judged one "
            f"({_row_max(judged)[row]}); judged must hold all judged relevances of the query"
        )
    return retrieved, judged


def _check_shapes(retrieved: np.ndarray, judged: np.ndarray) -> None:
    if np.ndim(retrieved) != 2 or np.ndim(judged) != 2 or len(retrieved) != len(judged):
        raise ValueError(
            "retrieved must have shape (queries, depth) and judged (queries, judged) with the same queries; "
            f"found {np.shape(retrieved)} and {np.shape(judged)}"
        )


def _cutoff(k: int | None, columns: int) -> int:
    """How many of the columns count."""
    if k is None:
        return columns
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    return min(k, columns)


def _relevant(relevance: np.ndarray, threshold: float) -> np.ndarray:
    if not threshold >= 0.0:
        raise ValueError(f"threshold is {threshold}; it must be at least 0, or the padding would be relevant")
    return np.asarray(relevance > threshold)


def _row_max(relevance: np.ndarray) -> np.ndarray:
    return np.asarray(relevance.max(axis=1, initial=0.0))


def _best(judged: np.ndarray, k: int) -> np.ndarray:
    """The k highest relevances of each row, highest first."""
    columns = judged.shape[1]
    top = judged if k == columns else np.partition(judged, columns - k, axis=1)[:, columns - k :]
    return np.sort(top, axis=1)[:, ::-1]


def _stop_probability(relevance: np.ndarray, top: np.ndarray) -> np.ndarray:
    """(2^relevance - 1) / 2^top without overflow or cancellation; relevance <= top."""
    return np.asarray(np.exp2(relevance - top) * -np.expm1(-math.log(2.0) * relevance))


def _discounted(gains: np.ndarray) -> np.ndarray:
    return _weighted_sum(gains, 1.0 / np.log2(np.arange(2, gains.shape[1] + 2)))


def _weighted_sum(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum over ranks; a row's result does not depend on the rows beside it (a BLAS product's would)."""
    return np.asarray(np.einsum("qr,r->q", values, weights))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole, 0 where whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0))
