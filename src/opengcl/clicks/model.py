"""The position-based model: how likely each position is looked at, from clicks.

A result at position k is examined with probability theta_k and, if so, clicked with the pair's attractiveness alpha:
P(click) = theta_k alpha (Richardson et al. 2007). Only the product is identified, so theta_1 = 1.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Shaped

from opengcl.data.problems import DataSetError

STEPS, STILL = 200, 1e-5
"""EM stops after so many steps, or when nothing moves by more."""

SMALLEST = 1e-12
"""Keeps what is divided by above zero."""

Cells = Int[np.ndarray, " cells"]
Counts = Shaped[np.ndarray, " cells"]  # integers, or floats where showings are weighted by age


def fit_position_model(
    pair: Cells, position: Cells, impressions: Counts, clicks: Counts
) -> tuple[Float[np.ndarray, " positions"], Float[np.ndarray, " pairs"]]:
    """Theta by position and alpha by pair, by maximum likelihood, in [0, 1].

    EM (Chuklin, Markov & de Rijke 2015, section 4.2) on counts. E: a result without click was examined with
    probability theta (1 - alpha) / (1 - theta alpha), and attractive with alpha (1 - theta) / (1 - theta alpha). M:
    theta and alpha are the expected shares of the impressions.

    Args:
        pair: Index of the (query, document) pair of each cell, without gaps.
        position: From 1.
        impressions: Above 0.
        clicks: At most the impressions.
    """
    place = position - 1
    shown, of_pair = np.maximum(np.bincount(place, impressions), 1), np.bincount(pair, impressions)
    theta = np.bincount(place, clicks) / shown
    theta = np.minimum(theta / max(theta[0], SMALLEST), 1)
    alpha = np.bincount(pair, clicks) / np.maximum(np.bincount(pair, impressions * theta[place]), SMALLEST)
    alpha = np.minimum(alpha, 1)
    for _ in range(STEPS):
        looked, liked = theta[place], alpha[pair]
        missed = (impressions - clicks) / np.maximum(1 - looked * liked, SMALLEST)
        new = np.bincount(place, clicks + missed * looked * (1 - liked)) / shown
        alpha = np.minimum(np.bincount(pair, clicks + missed * liked * (1 - looked)) / of_pair * new[0], 1)
        new = np.minimum(new / max(new[0], SMALLEST), 1)
        moved, theta = np.abs(new - theta).max(), new
        if moved < STILL:
            break
    return theta, alpha


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
