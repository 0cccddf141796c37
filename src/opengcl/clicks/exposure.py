"""What the ranker's own choice says: results that are shown more are often better, before anything is clicked."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from opengcl.clicks.model import SMALLEST, Cells, Counts

_STEPS, _STILL = 50, 1e-8
_STEEPEST = 20.0


def exposure_slope(query: Cells, clicks: Counts, looked: Counts) -> tuple[float, float]:
    """How fast rates grow with exposure within a query, and the standard error of that.

    A query's clicks fall on its pairs in proportion to looked^(1 + slope): 0 if what is shown more is no better. By
    maximum likelihood given the clicks of each query, so that how often a query is asked, and how much is clicked
    there, plays no part. No clicks, or no differences in exposure, give (0, infinity).

    Args:
        query: Any number of each pair's query.
        clicks: Of each pair.
        looked: Expected looks of each pair, above 0.
    """
    query = np.unique(query, return_inverse=True)[1]
    of_query = np.bincount(query, clicks)
    size = np.bincount(query)
    centred = np.log(looked)
    centred = centred - (np.bincount(query, centred) / size)[query]
    highest = np.full(len(size), -np.inf)
    np.maximum.at(highest, query, centred)
    slope = 0.0
    for _ in range(_STEPS):
        share = np.exp((1 + slope) * (centred - highest[query]))
        total = np.bincount(query, share)
        mean = np.bincount(query, share * centred) / total
        spread = np.bincount(query, share * centred**2) / total - mean**2
        bend = float((of_query * np.maximum(spread, 0)).sum())
        if bend < SMALLEST:
            return 0.0, np.inf
        step = float(np.clip(((clicks * centred).sum() - (of_query * mean).sum()) / bend, -1, 1))
        slope = float(np.clip(slope + step, -_STEEPEST, _STEEPEST))
        if abs(step) < _STILL:
            break
    return slope, float(1 / np.sqrt(bend))


def exposure_odds(query: Cells, clicks: Counts, looked: Counts) -> tuple[Float[np.ndarray, " pairs"], float]:
    """What exposure alone says of each pair, as a factor on the odds of its query's others; and the slope used.

    The slope is that of `exposure_slope`, less what chance alone would give it (James & Stein 1961); a ranker that
    shows worse results more is not believed, so it is never below 0.

    Args:
        query: As for `exposure_slope`.
        clicks: As for `exposure_slope`.
        looked: As for `exposure_slope`.
    """
    slope, error = exposure_slope(query, clicks, looked)
    used = slope * max(0.0, 1 - (error / slope) ** 2) if slope > 0 else 0.0
    query = np.unique(query, return_inverse=True)[1]
    centred = np.log(looked)
    centred = centred - (np.bincount(query, centred) / np.bincount(query))[query]
    return np.exp(np.clip(used * centred, -50, 50)), float(used)
