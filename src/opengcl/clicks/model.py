"""The position-based model: how likely each position is looked at, from clicks.

A result at position k is examined with probability theta_k and, if so, clicked with the pair's attractiveness alpha:
P(click) = theta_k alpha (Richardson et al. 2007). Only the product is identified, so theta_1 = 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Shaped

from opengcl.data.problems import DataSetError

STEPS, STILL = 100, 1e-8
"""Newton's method stops after so many steps, or when nothing moves by more."""

_SHORTEST = 1e-6

SMALLEST = 1e-12
"""Keeps what is divided by above zero."""

Cells = Int[np.ndarray, " cells"]
Counts = Shaped[np.ndarray, " cells"]  # integers, or floats where showings are weighted by age


def fit_position_model(
    pair: Cells, position: Cells, impressions: Counts, clicks: Counts
) -> tuple[Float[np.ndarray, " positions"], Float[np.ndarray, " pairs"]]:
    """Theta by position and alpha by pair, by maximum likelihood, in [0, 1].

    The log-likelihood, sum c (log theta + log alpha) + (n - c) log(1 - theta alpha), is concave in the logarithms, so
    Newton's method finds its maximum from anywhere, in as few steps at a click rate of .1% as at 50%. The steps of EM
    (Chuklin, Markov & de Rijke 2015, section 4.2) shrink with the rate, so that it stops near its start where clicks
    are rare. A position or pair without clicks has 0.

    Args:
        pair: Index of the (query, document) pair of each cell, without gaps.
        position: From 1.
        impressions: Above 0.
        clicks: At most the impressions.
    """
    theta, alpha = np.zeros(int(position.max())), np.zeros(int(pair.max()) + 1)
    clicked = np.bincount(position - 1, clicks) > 0
    theta[0] = 1
    if not clicked[0]:
        return theta, alpha
    some = (np.bincount(pair, clicks) > 0)[pair] & clicked[position - 1]
    rows, index = np.unique(pair[some], return_inverse=True)
    places, place = np.unique(position[some] - 1, return_inverse=True)
    kept = _Cells(index, place, impressions[some], clicks[some])
    theta[places], alpha[rows] = kept.maximum()
    return theta, alpha


class _Cells:
    """The likelihood of cells that all have clicks in their row and column, by the logarithms of theta and alpha."""

    def __init__(self, pair: Cells, place: Cells, impressions: Counts, clicks: Counts) -> None:
        self.pair, self.place, self.clicks = pair, place, clicks
        # A pair clicked on each time would be at infinity.
        self.missed = np.maximum(impressions - clicks, 0.01)
        self.pairs, self.positions = int(pair.max()) + 1, int(place.max()) + 1

    def maximum(self) -> tuple[np.ndarray, np.ndarray]:
        """Theta and alpha, at most 1."""
        look, like = self._start()
        value = self._value(look, like)
        for _ in range(STEPS):
            look_step, like_step = self._step(look, like)
            size = 1.0
            while size > _SHORTEST:
                tried = look + size * look_step, like + size * like_step
                found = self._value(*tried)
                if found >= value:
                    break
                size /= 2
            else:
                break
            gained, value = found - value, found
            look, like = tried
            if size * np.abs(look_step).max() < STILL and gained <= STILL * abs(value):
                break
        theta = np.minimum(np.exp(look), 1)
        return theta, self._likes(theta, np.exp(like))

    def _start(self) -> tuple[np.ndarray, np.ndarray]:
        """Where every rate is below 1: click rates by position, and clicks an examination by pair."""
        shown = self.clicks + self.missed
        rates = np.bincount(self.place, self.clicks) / np.bincount(self.place, shown)
        theta = np.minimum(rates / rates[0], 1)
        alpha = np.bincount(self.pair, self.clicks) / np.bincount(self.pair, shown * theta[self.place])
        return np.log(theta), np.log(np.minimum(alpha, 0.99))

    def _value(self, look: np.ndarray, like: np.ndarray) -> float:
        rate = look[self.place] + like[self.pair]
        if rate.max() >= 0:
            return -np.inf
        return float((self.clicks * rate + self.missed * np.log(-np.expm1(rate))).sum())

    def _step(self, look: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Newton's step with the first theta held: pairs are solved for at once, positions by conjugate gradients."""
        rate = np.exp(look[self.place] + like[self.pair])
        odds = self.missed * rate / (1 - rate)
        bend = odds / (1 - rate)
        pull = self.clicks - odds
        of_pair, of_place = np.bincount(self.pair, bend), np.bincount(self.place, bend)
        pull_pair, pull_place = np.bincount(self.pair, pull), np.bincount(self.place, pull)

        def across(moved: np.ndarray) -> np.ndarray:
            through = np.bincount(self.pair, bend * moved[self.place]) / of_pair
            found = of_place * moved - np.bincount(self.place, bend * through[self.pair])
            found[0] = 0
            return found

        target = pull_place - np.bincount(self.place, bend * (pull_pair / of_pair)[self.pair])
        target[0] = 0
        step = _conjugate_gradients(across, target, of_place)
        through = np.bincount(self.pair, bend * step[self.place])
        return step, (pull_pair - through) / of_pair

    def _likes(self, theta: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        """The likeliest alpha, at most 1, of given theta."""
        for _ in range(STEPS):
            rate = np.minimum(theta[self.place] * alpha[self.pair], 1 - SMALLEST)
            odds = self.missed * rate / (1 - rate)
            pull = np.bincount(self.pair, self.clicks - odds)
            step = np.clip(pull / np.bincount(self.pair, odds / (1 - rate)), -1, 1)
            new = np.minimum(alpha * np.exp(step), 1)
            moved, alpha = np.abs(new - alpha).max(), new
            if moved < STILL:
                break
        return alpha


def _conjugate_gradients(
    apply: Callable[[np.ndarray], np.ndarray], target: np.ndarray, diagonal: np.ndarray
) -> np.ndarray:
    """Solves a positive definite system (Hestenes & Stiefel 1952), with the diagonal as preconditioner."""
    found, left = np.zeros_like(target), target.copy()
    scaled = left / diagonal
    way, size = scaled.copy(), float(left @ scaled)
    enough = size * 1e-20
    for _ in range(4 * len(target)):
        if size <= max(enough, SMALLEST**2):
            break
        applied = apply(way)
        along = float(way @ applied)
        if along <= 0:
            break
        found += size / along * way
        left -= size / along * applied
        scaled = left / diagonal
        new = float(left @ scaled)
        way, size = scaled + new / size * way, new
    return found


def randomised_propensities(
    position: Cells, impressions: Counts, clicks: Counts
) -> tuple[Float[np.ndarray, " positions"], Float[np.ndarray, " positions"]]:
    """Theta by position from lists in random order, where every position shows equally good results.

    theta_k is the click rate at k over that at 1 (Joachims, Swaminathan & Schnabel 2017, section 5), at most 1. Its
    standard error is by the delta method: theta_k sqrt(1/c_k - 1/n_k + 1/c_1 - 1/n_1), c clicks of n impressions.

    Raises:
        DataSetError: If a position up to the last has no click.
    """
    shown, clicked = (np.bincount(position - 1, counts) for counts in (impressions, clicks))
    if not clicked.all():
        bare = ", ".join(str(one + 1) for one in np.flatnonzero(clicked == 0))
        raise DataSetError(f"randomised lists: found no click at position {bare}; needed: some at each position")
    rates, spread = clicked / shown, 1 / clicked - 1 / shown
    theta = np.minimum(rates / rates[0], 1)
    errors = theta * np.sqrt(np.maximum(spread + spread[0], 0))
    errors[0] = 0
    return theta, errors
