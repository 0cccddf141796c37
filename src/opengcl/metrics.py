"""Ranking metrics on float relevance: NDCG, ERR, RBP, recall, precision, success, MRR and MAP, one value a query.

Every function takes two arrays with a row for each query:

* ``retrieved``, shape (queries, depth): the relevance of the retrieved documents in rank order. An unjudged
  document has relevance 0, and so has the padding of a row that retrieved fewer than ``depth``.
* ``judged``, shape (queries, judged): all judged relevances of the query, in any order, padded with 0.

Relevance is in the data set's own units (for instance 1 to 100) and finite; below 0 it counts as 0 (TREC marks junk
with -1), which is `relevance`. A document judged 0 and one that is not judged count the same, as in trec_eval, and
"relevant" means *greater than* ``threshold``. A query that retrieved nothing scores 0, and so does one without a
relevant judgment, so a system cannot raise its mean by leaving queries out.

Ties: these functions see ranks, not scores, so whoever sorts decides about equal scores. In this package the
earlier document row goes first (for files: the smaller document id as a string); ``opengcl.ranking_blocks`` has
the rule and its alternatives.
"""

import math
import re
import sys
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

Gain = Literal["linear", "exponential"]

DEFAULT_METRICS = ("ndcg@10", "err", "rbp@0.9", "recall@100", "mrr", "map", "precision@10")

_FORMS = "ndcg@K, ndcg_exp@K, err, err@K, rbp@P, recall@K, precision@K, success@K, mrr, mrr@K, map, map@K"
_BLOCK_CELLS = 1 << 18  # cells of one block in `compute`: its temporaries stay within a core's cache


def relevance(scores: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """What scores say about relevance: themselves, and 0 for those below 0, as trec_eval counts negative grades.

    Args:
        scores: judged scores, of any shape and sign.

    Returns:
        The same shape and dtype; 0 means judged not relevant.
    """
    return np.maximum(scores, 0)


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
    return _ndcg(_Lists(retrieved, judged), k=k, gain=gain)


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
    return _err(_Lists(retrieved, judged), k=k, max_grade=max_grade)


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
    return _rbp(_Lists(retrieved, judged), p=p, k=k)


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
    return _recall(_Lists(retrieved, judged), k=k, threshold=threshold)


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
    return _precision(_Lists(retrieved, judged), k=k, threshold=threshold)


def success(
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    k: int,
    threshold: float = 0.0,
) -> Float[np.ndarray, "queries"]:
    """Whether any of the first k ranks holds a relevant document, 0 or 1 (as trec_eval's ``success``).

    Its mean is the share of the queries that found something, which sentence-transformers calls accuracy@k.

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
    return _success(_Lists(retrieved, judged), k=k, threshold=threshold)


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
    return _reciprocal_rank(_Lists(retrieved, judged), k=k, threshold=threshold)


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
    return _average_precision(_Lists(retrieved, judged), k=k, threshold=threshold)


def compute(
    names: Sequence[str],
    retrieved: Float[np.ndarray, "queries depth"],
    judged: Float[np.ndarray, "queries judged"],
    *,
    threshold: float = 0.0,
) -> dict[str, Float[np.ndarray, "queries"]]:
    """Several metrics by name, in blocks of queries so that temporaries stay small; cutoffs share their sums.

    Args:
        names: of the forms ndcg@K, ndcg_exp@K, err, err@K, rbp@P, recall@K, precision@K, success@K, mrr, mrr@K, map,
            map@K.
        retrieved: relevance in rank order.
        judged: all judged relevances.
        threshold: relevant means above this, for recall, precision, success, mrr and map.

    Returns:
        For each name, in the given order, one value a query.

    Raises:
        ValueError: for a name of no valid form, and as the metrics themselves.
    """
    check_names(names)
    measures = {name: _parse(name, threshold) for name in names}
    _check_shapes(retrieved, judged)
    values = {name: np.zeros(len(retrieved)) for name in measures}
    rows = max(1, _BLOCK_CELLS // max(1, retrieved.shape[1], judged.shape[1]))
    for start in range(0, len(retrieved), rows):
        block = slice(start, start + rows)
        lists = _Lists(retrieved[block], judged[block])
        for name, measure in measures.items():
            values[name][block] = measure(lists)
    return values


def check_names(names: Sequence[str]) -> None:
    """Checks metric names before any work is done.

    Args:
        names: as for ``compute``.

    Raises:
        ValueError: naming the first name of no valid form and listing the forms; one text in place of a list.
    """
    if isinstance(names, str):
        raise ValueError(f"metrics: found the text {names[:40]!r}; allowed: a list, such as [{names[:40]!r}]")
    for name in names:
        _parse(name, 0.0)


class _Lists:
    """Some queries' lists as what was found in them: rank and relevance of each retrieved document above 0.

    Every metric is a sum over these, down to its cutoff. So running sums are kept, which serve every cutoff, and all of
    the list that found nothing is passed over once. A row's sums run in rank order and do not depend on other rows.
    """

    def __init__(self, retrieved: np.ndarray, judged: np.ndarray) -> None:
        retrieved, self.judged = _checked(retrieved, judged)
        row, column = np.divmod(np.flatnonzero(retrieved > 0.0), max(1, retrieved.shape[1]))
        found = np.bincount(row, minlength=len(retrieved))
        place = np.arange(len(row)) - np.repeat(np.cumsum(found) - found, found)
        shape = len(retrieved), int(found.max(initial=0))
        self.rank = np.full(shape, math.inf)  # ascending; a row's padding is never reached
        self.relevance = np.zeros(shape)
        self.rank[row, place], self.relevance[row, place] = column + 1, retrieved[row, column]
        self.top = _row_max(self.judged)
        self._kept: dict[Hashable, np.ndarray] = {}

    def kept(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What ``make`` gives, made once for each key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def total(self, key: Hashable, make: Callable[[], np.ndarray], k: int | None) -> np.ndarray:
        """For each row the sum of ``make()``'s terms, one for each that was found, of the ranks down to k."""
        sums = self.kept(key, lambda: _running(make()))
        return sums[np.arange(len(sums)), self.found_by(k)]

    def found_by(self, k: int | None) -> np.ndarray:
        """How many were found down to rank k."""
        if k is not None and k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        return self.kept(("found by", k), lambda: (self.rank <= (k or sys.maxsize)).sum(axis=1))

    def relevant(self, threshold: float) -> np.ndarray:
        """Which of those found are relevant."""
        return self.kept(("relevant", threshold), lambda: _relevant(self.relevance, threshold))

    def all_relevant(self, threshold: float) -> np.ndarray:
        """How many judged ones are relevant."""
        return self.kept(("judged", threshold), lambda: _relevant(self.judged, threshold).sum(axis=1))


def _ndcg(lists: _Lists, *, k: int, gain: Gain) -> np.ndarray:
    if gain not in ("linear", "exponential"):
        raise ValueError(f"gain is {gain!r}; allowed: 'linear', 'exponential'")
    dcg = lists.total(("dcg", gain), lambda: _gains(lists.relevance, lists, gain) / np.log2(lists.rank + 1.0), k)
    return _ratio(dcg, lists.kept(("ideal", gain), lambda: _ideal(lists, gain))[:, min(k, lists.judged.shape[1])])


def _gains(relevance: np.ndarray, lists: _Lists, gain: Gain) -> np.ndarray:
    return relevance if gain == "linear" else _stop_probability(relevance, lists.top[:, None])


def _ideal(lists: _Lists, gain: Gain) -> np.ndarray:
    """DCG of the judged documents in the best order, at each cutoff from 0."""
    best = np.sort(lists.judged, axis=1)[:, ::-1]
    return _running(_gains(best, lists, gain) / np.log2(np.arange(2.0, best.shape[1] + 2.0)))


def _err(lists: _Lists, *, k: int | None, max_grade: float | None = None) -> np.ndarray:
    top = lists.top
    if max_grade is not None:
        if top.size and not float(top.max()) <= max_grade:
            raise ValueError(f"max_grade is {max_grade}, but a judged relevance is {float(top.max())}")
        top = np.full_like(top, max_grade)

    def terms() -> np.ndarray:
        stop = _stop_probability(lists.relevance, top[:, None])
        reached = np.ones_like(stop)
        np.cumprod(1.0 - stop[:, :-1], axis=1, out=reached[:, 1:])
        return stop * reached / lists.rank

    return lists.total(("err", max_grade), terms, k)


def _rbp(lists: _Lists, *, p: float, k: int | None = None) -> np.ndarray:
    if not 0.0 < p < 1.0:
        raise ValueError(f"rbp: p is {p}; it must lie between 0 and 1, both excluded")
    total = lists.total(("rbp", p), lambda: lists.relevance * np.power(p, lists.rank - 1.0), k)
    return (1.0 - p) * _ratio(total, lists.top)


def _recall(lists: _Lists, *, k: int, threshold: float) -> np.ndarray:
    return _ratio(_hits(lists, k, threshold), lists.all_relevant(threshold))


def _precision(lists: _Lists, *, k: int, threshold: float) -> np.ndarray:
    return np.asarray(_hits(lists, k, threshold) / float(k))


def _success(lists: _Lists, *, k: int, threshold: float) -> np.ndarray:
    return np.asarray(_hits(lists, k, threshold) > 0).astype(np.float64)


def _hits(lists: _Lists, k: int, threshold: float) -> np.ndarray:
    return lists.total(("hits", threshold), lambda: lists.relevant(threshold), k)


def _reciprocal_rank(lists: _Lists, *, k: int | None, threshold: float) -> np.ndarray:
    def first() -> np.ndarray:
        relevant = lists.relevant(threshold)
        return np.asarray(relevant & (np.cumsum(relevant, axis=1) == 1)) / lists.rank

    return lists.total(("first", threshold), first, k)


def _average_precision(lists: _Lists, *, k: int | None, threshold: float) -> np.ndarray:
    def precisions() -> np.ndarray:
        relevant = lists.relevant(threshold)
        return np.cumsum(relevant, axis=1) * relevant / lists.rank

    return _ratio(lists.total(("precisions", threshold), precisions, k), lists.all_relevant(threshold))


_Measure = Callable[[_Lists], np.ndarray]


def _parse(name: str, threshold: float) -> _Measure:
    """From "ndcg@10" to the function that computes it."""
    base, at, argument = name.partition("@")
    cut: dict[str, Callable[[int], _Measure]] = {
        "ndcg": lambda k: partial(_ndcg, k=k, gain="linear"),
        "ndcg_exp": lambda k: partial(_ndcg, k=k, gain="exponential"),
        "recall": lambda k: partial(_recall, k=k, threshold=threshold),
        "precision": lambda k: partial(_precision, k=k, threshold=threshold),
        "success": lambda k: partial(_success, k=k, threshold=threshold),
    }
    uncut: dict[str, Callable[[int | None], _Measure]] = {
        "err": lambda k: partial(_err, k=k),
        "mrr": lambda k: partial(_reciprocal_rank, k=k, threshold=threshold),
        "map": lambda k: partial(_average_precision, k=k, threshold=threshold),
    }
    if base in uncut and not at:
        return uncut[base](None)
    builder = cut.get(base) or uncut.get(base)
    if builder is not None and re.fullmatch("[1-9][0-9]*", argument):
        return builder(int(argument))
    if base == "rbp" and (p := _persistence(argument)) is not None:
        return partial(_rbp, p=p)
    raise ValueError(f"unknown metric {name!r}; valid forms: {_FORMS} (K a whole number from 1, P between 0 and 1)")


def _persistence(text: str) -> float | None:
    try:
        p = float(text)
    except ValueError:
        return None
    return p if 0.0 < p < 1.0 else None


def _checked(retrieved: np.ndarray, judged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays as float64 relevance, or a ValueError that says which row is wrong."""
    _check_shapes(retrieved, judged)
    retrieved, judged = np.asarray(retrieved, dtype=np.float64), np.asarray(judged, dtype=np.float64)
    for name, array in (("retrieved", retrieved), ("judged", judged)):
        if not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(f"{name}[{row}, {column}] is {array[row, column]}; a relevance must be finite")
    retrieved, judged = relevance(retrieved), relevance(judged)
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


def _relevant(relevance: np.ndarray, threshold: float) -> np.ndarray:
    if not threshold >= 0.0:
        raise ValueError(f"threshold is {threshold}; it must be at least 0, or the padding would be relevant")
    return np.asarray(relevance > threshold)


def _row_max(relevance: np.ndarray) -> np.ndarray:
    return np.asarray(relevance.max(axis=1, initial=0.0))


def _stop_probability(relevance: np.ndarray, top: np.ndarray) -> np.ndarray:
    """(2^relevance - 1) / 2^top without overflow or cancellation; relevance <= top."""
    return np.asarray(np.exp2(relevance - top) * -np.expm1(-math.log(2.0) * relevance))


def _running(terms: np.ndarray) -> np.ndarray:
    """Running sums of each row, with a 0 before them."""
    sums = np.zeros((len(terms), terms.shape[1] + 1))
    np.cumsum(terms, axis=1, out=sums[:, 1:])
    return sums


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole, 0 where whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0))
