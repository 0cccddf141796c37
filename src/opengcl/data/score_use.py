"""Whether scores make use of the range that `dataset.yaml` declares: where they do not, weights hardly differ."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from opengcl.data.dataset import RankedDataset
from opengcl.weights import exponential, scale_scores

_LITTLE = 0.5
"""Share of the range below which all scores together use little of it."""

_LITTLE_WITHIN = 0.25
"""Share of the range below which the scores of half the queries use little of it."""

_CROWDED = 0.1
"""Share of the range below which the middle nine tenths of the scores are crowded."""

_MOST_PAIRS = 5_000_000


def unused_range(data: RankedDataset) -> list[str]:
    """Sentences about scores that waste the range, each with what helps; none where the range is used.

    Scores of 0 and below mean not relevant, and are left aside.
    """
    everything = data.qrels.score
    least = float(np.min(everything, where=everything > 0, initial=np.inf))
    most = float(np.max(everything, initial=-np.inf))
    if least > most:
        return []
    query, scores = _positive(data)
    low, high = data.schema.score_min, data.schema.score_max
    if least == most:
        count = int(np.count_nonzero(everything > 0))
        return [
            f"scores: all {count:,} above 0 are {most:g}, so that every pair weighs the same and nothing says which of "
            "two relevant documents is the better one"
        ]
    if most - least < _LITTLE * (high - low):
        return [
            f"scores: found {least:g} to {most:g} of a range of {low:g} to {high:g}, so that weights only go from "
            f"{_weights(data, least, most)}. Import with --score-range {least:g},{most:g} (short lists: with "
            "--position, which scales by their length), or train with --set scaling=query"
        ]
    lower, upper = np.quantile(scores, [0.05, 0.95])
    if upper - lower < _CROWDED * (high - low):
        return [
            f"scores: nine tenths lie between {lower:g} and {upper:g} of a range of {low:g} to {high:g}, so that their "
            f"weights only go from {_weights(data, lower, upper)}. Train with --set scaling=query, or take the "
            "logarithm of the scores before importing them"
        ]
    span = _median_span(query, scores) / (high - low)
    if span < _LITTLE_WITHIN:
        return [
            f"scores: in half of the queries they differ by {span:.0%} or less of the range of {low:g} to {high:g}. "
            "Train with --set scaling=query, where scores of different queries need not be compared"
        ]
    return []


def _positive(data: RankedDataset) -> tuple[Int[np.ndarray, pairs], Float[np.ndarray, pairs]]:
    """Query and score of the pairs above 0; of very many pairs those of every second, third, ... query that has any."""
    query, score = data.qrels.query, data.qrels.score
    step = -(-len(score) // _MOST_PAIRS)
    judged = np.cumsum(np.diff(data.qrels.offsets) > 0) - 1
    chosen = (score > 0) if step == 1 else (score > 0) & (judged[query] % step == 0)
    if not chosen.any():
        chosen = score > 0
    return np.asarray(query[chosen]), np.asarray(score[chosen], np.float64)


def _weights(data: RankedDataset, low: float, high: float) -> str:
    """Weights of two scores by the default function."""
    ends = scale_scores(np.array([low, high]), np.zeros(2, int), low=data.schema.score_min, high=data.schema.score_max)
    first, last = exponential(ends)
    return f"{first:.2g} to {last:.2g} (exponential, the default)"


def _median_span(query: np.ndarray, scores: np.ndarray) -> float:
    """Median over queries with two scores or more of largest less smallest; pairs are in the order of queries."""
    starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
    spans = np.maximum.reduceat(scores, starts) - np.minimum.reduceat(scores, starts)
    several = np.diff(np.r_[starts, len(query)]) > 1
    return float(np.median(spans[several])) if several.any() else float("inf")
