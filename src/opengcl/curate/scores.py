"""From places in a list, labels and a teacher's outputs to one score a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Values = np.ndarray[Any, np.dtype[np.float64]]


def position_scores(positions: Values, form: Literal["linear", "reciprocal"] = "linear", depth: int = 100) -> Values:
    """Scores of places in a result list, as in Marqo-GS-10M (Zhu et al. 2024, "Generalized Contrastive Learning").

    ``linear``: 100 - 99 (p - 1) / (depth - 1), which is 101 - p for a depth of 100.
    ``reciprocal``: 100 / p.

    Args:
        positions: (pairs,), from 1; NaN where a pair has none.
        form: Which of the two.
        depth: The place that ``linear`` gives 1, >= 2.

    Returns:
        (pairs,), in [1, 100] for places up to ``depth`` (up to 100 for ``reciprocal``); NaN stays NaN.
    """
    if form == "reciprocal":
        return 100.0 / positions
    return 100.0 - 99.0 * (positions - 1.0) / (depth - 1.0)


def sigmoid_scores(outputs: Values) -> Values:
    """100 / (1 + exp(-x)): a cross-encoder's probability of relevance, in percent.

    Args:
        outputs: (pairs,), before any activation.
    """
    return np.asarray(50.0 * (1.0 + np.tanh(outputs / 2.0)))  # the same, and never overflows


def query_range_scores(outputs: Values) -> Values:
    """1 for a query's lowest output, 100 for its highest, and straight in between; 100 for all if they are equal.

    Not from 0, which means judged not relevant: of a query's results, one is always the lowest.

    Args:
        outputs: (pairs of one query,).
    """
    spread = np.ptp(outputs)
    return 1.0 + (outputs - outputs.min()) / spread * 99.0 if spread > 0 else np.full_like(outputs, 100.0)


def mixed(sources: Mapping[str, Values], weights: Mapping[str, float]) -> Values:
    """The weighted mean of each pair's scores, over the sources that have one for it.

    Args:
        sources: Name -> (pairs,), NaN where a source does not judge a pair.
        weights: Name -> weight, >= 0.

    Returns:
        (pairs,); NaN where no source with a weight judges a pair.
    """
    values = np.array([sources[name] for name in sources])
    factors = np.array([weights[name] for name in sources])[:, None] * np.isfinite(values)
    total = factors.sum(axis=0)
    summed = (factors * np.where(np.isfinite(values), values, 0.0)).sum(axis=0)
    return np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)
