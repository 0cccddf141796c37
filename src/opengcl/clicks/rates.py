"""What a rate is likely to be after few trials: nonparametric empirical Bayes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from opengcl.clicks.model import SMALLEST

Table = Shaped[np.ndarray, "pairs positions"]
Values = Float[np.ndarray, " pairs"]
Grid = Float[np.ndarray, " rates"]

STEP = 0.125
"""Between neighbours of a grid of rates, in log-odds: below 10% each rate is an eighth above the one before."""

_HIGHEST = 7.0  # log-odds of a rate of .999
_FARTHEST = 4.0  # of a pair's expectation from the others', in log-odds
_EM_STEPS, _STILL = 200, 1e-5
_NEWTON_STEPS = 50
_NODES = np.arange(-4, 4.25, 0.5)  # in standard deviations; sums over them are integrals to 1e-8


class Rates(NamedTuple):
    """What rates are likely to be."""

    mean: Values  # expected rate of each pair, in (0, 1)
    sd: Values  # standard deviation of what the rate may be
    grid: Grid  # rates, ascending
    weights: Grid  # share of the pairs that have each rate, summing to 1


def expected_rates(successes: Table, trials: Table, looks: Values, odds: Values | None = None) -> Rates:
    """Posterior mean of each pair's rate alpha, given the distribution of the rates of all pairs.

    A pair's trials at position k succeed with probability looks_k alpha. Nothing is assumed of the distribution: it is
    a weight on each rate of a grid, by maximum marginal likelihood (Kiefer & Wolfowitz 1956), with EM (Laird 1978). So
    a pair with few trials stays near what most pairs are, and one with many goes where its own successes are.

    Args:
        successes: Counts, at most the trials.
        trials: Counts.
        looks: Probabilities in [0, 1], by position.
        odds: What is expected of each pair before its trials, as a factor on the odds of the others; 1 by default. The
            distribution is then that of the rates with this factor taken out.
    """
    grid = rate_grid(successes.sum(), trials @ looks)
    shift = shifts(odds, len(trials))
    weights = rate_weights(rate_likelihood(successes, trials, looks, grid, shift))
    return Rates(*posterior(successes, trials, looks, grid, weights, shift), grid, weights)


def rate_grid(successes: float, looked: Values) -> Grid:
    """Rates in steps of `STEP` in log-odds, from what the data can just tell from nothing up to .999.

    Args:
        successes: Of all pairs.
        looked: Expected trials of each pair that were looked at.
    """
    mean = successes / max(looked.sum(), SMALLEST)
    lowest = min(mean / 10, 0.1 / max(looked.max(), 1), 0.01)
    low = np.log(max(lowest, SMALLEST))
    return 1 / (1 + np.exp(-(_HIGHEST - STEP * np.arange(np.ceil((_HIGHEST - low) / STEP) + 1)[::-1])))


def shifts(odds: Values | None, pairs: int) -> Int[np.ndarray, " pairs"]:
    """Factors on odds as steps of a grid."""
    if odds is None:
        return np.zeros(pairs, np.int64)
    return np.round(np.clip(np.log(odds), -_FARTHEST, _FARTHEST) / STEP).astype(np.int64)


def rate_likelihood(
    successes: Table, trials: Table, looks: Values, grid: Grid, shift: Int[np.ndarray, " pairs"]
) -> Float[np.ndarray, "pairs rates"]:
    """Likelihood of each pair's trials under each rate of the grid, moved by the pair's shift; its largest is 1."""
    low, high = int(min(shift.min(), 0)), int(max(shift.max(), 0))
    start = np.log(grid[0]) - np.log1p(-grid[0])
    rates = 1 / (1 + np.exp(-(start + STEP * np.arange(low, len(grid) + high))))
    succeeding = np.maximum(looks[:, None], SMALLEST) * np.minimum(rates, 1 - SMALLEST)
    found = successes @ np.log(succeeding) + (trials - successes) @ np.log1p(-succeeding)
    if high > low:
        found = np.take_along_axis(found, (shift - low)[:, None] + np.arange(len(grid)), axis=1)
    return np.exp(found - found.max(axis=1, keepdims=True))


def rate_weights(likelihood: Float[np.ndarray, "pairs rates"]) -> Grid:
    """The distribution of the rates that makes the pairs' trials most likely, smoothed over neighbours of the grid."""
    weights = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    likelihood = likelihood.astype(np.float32)  # read some hundred times
    for _ in range(_EM_STEPS):
        inverse = 1 / np.maximum(likelihood @ weights.astype(np.float32), np.float32(1e-30))
        new = weights * (likelihood.T @ inverse) / len(likelihood)
        new /= new.sum()
        moved, weights = np.abs(new - weights).max(), new
        if moved < _STILL:
            break
    # What is likeliest are a few sharp peaks (Lindsay 1983), which would pull rates between them together.
    padded = np.pad(weights, 1, mode="edge")
    smooth = padded[:-2] / 4 + padded[1:-1] / 2 + padded[2:] / 4
    return smooth / smooth.sum()


def posterior(
    successes: Table,
    trials: Table,
    looks: Values,
    grid: Grid,
    weights: Grid,
    shift: Int[np.ndarray, " pairs"],
) -> tuple[Values, Values]:
    """Mean and standard deviation of each pair's rate under a distribution of rates and its own likelihood.

    Where a pair's trials tell its rate more finely than the grid, the sum goes over rates around its own instead.
    """
    likelihood = rate_likelihood(successes, trials, looks, grid, shift)
    odds = np.log(grid) - np.log1p(-grid)
    total, first, second = np.empty((3, len(shift)))
    for one in np.unique(shift):
        rates = 1 / (1 + np.exp(-odds - STEP * one))
        rows = shift == one
        moments = likelihood[rows] @ (weights * np.stack([np.ones_like(rates), rates, rates**2])).T
        total[rows], first[rows], second[rows] = moments.T
    mean = first / total
    deviation = np.sqrt(np.maximum(second / total - mean**2, 0))
    centre, width = _peaks(successes, trials, looks, mean)
    fine = np.flatnonzero(width < STEP)
    if len(fine):
        mean[fine], deviation[fine] = _between(
            successes[fine], trials[fine], looks, odds, weights, shift[fine], centre[fine], width[fine]
        )
    return mean, deviation


def _peaks(successes: Table, trials: Table, looks: Values, start: Values) -> tuple[Values, Values]:
    """Log-odds at which each pair's likelihood is largest, and the standard deviation it has there; or infinity.

    By Newton's method, for those pairs that have enough successes and failures to be told so finely.
    """
    centre, width = np.zeros(len(start)), np.full(len(start), np.inf)
    total = successes.sum(axis=1)
    rows = np.flatnonzero((total > 0.5 / STEP**2) & (trials.sum(axis=1) > total))
    if not len(rows):
        return centre, width
    at, clicked, missed = np.log(start[rows]) - np.log1p(-start[rows]), total[rows], (trials - successes)[rows]
    for _ in range(_NEWTON_STEPS):
        rate = 1 / (1 + np.exp(-at))
        seen = looks * rate[:, None]
        share = missed * seen / np.maximum(1 - seen, SMALLEST)
        # By log-odds, of which alpha's logarithm has the derivative 1 - alpha.
        slope = (1 - rate) * (clicked - share.sum(axis=1))
        bend = (1 - rate) ** 2 * (share / np.maximum(1 - seen, SMALLEST)).sum(axis=1)
        bend += rate * (1 - rate) * (clicked - share.sum(axis=1))
        curve = np.maximum(bend, SMALLEST)
        step = np.clip(slope / curve, -1, 1)
        at = np.clip(at + step, -40, 2 * _HIGHEST)
        if np.abs(step).max() < 1e-9:
            break
    centre[rows], width[rows] = at, np.where((np.abs(at) < _HIGHEST * 5) & (bend > 0), 1 / np.sqrt(curve), np.inf)
    return centre, width


def _between(
    successes: Table,
    trials: Table,
    looks: Values,
    odds: Grid,
    weights: Grid,
    shift: Int[np.ndarray, " pairs"],
    centre: Values,
    width: Values,
) -> tuple[Values, Values]:
    """Mean and standard deviation over rates around each pair's own, with the weights between those of the grid."""
    at = centre[:, None] + width[:, None] * _NODES
    rates = 1 / (1 + np.exp(-at))
    weight = np.interp(at - STEP * shift[:, None], odds, weights) + SMALLEST
    clicked, missed = successes.sum(axis=1, keepdims=True), trials - successes
    found = clicked * np.log(rates)
    for place, look in enumerate(looks):
        found += missed[:, place, None] * np.log1p(-np.minimum(look * rates, 1 - SMALLEST))
    joint = weight * np.exp(found - found.max(axis=1, keepdims=True))
    joint /= joint.sum(axis=1, keepdims=True)
    mean = (joint * rates).sum(axis=1)
    return mean, np.sqrt((joint * (rates - mean[:, None]) ** 2).sum(axis=1))
