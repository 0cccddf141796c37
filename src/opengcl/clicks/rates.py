"""What a rate is likely to be after few trials: nonparametric empirical Bayes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

from opengcl.clicks.model import SMALLEST, STEPS, STILL

Table = Shaped[np.ndarray, "pairs positions"]
Values = Float[np.ndarray, " pairs"]

RATES = (np.arange(50) + 0.5) / 50
"""What an attractiveness or a follow-up rate can be."""


def expected_rates(successes: Table, trials: Table, looks: Values) -> tuple[Values, Values]:
    """Posterior mean of each pair's rate alpha, given the distribution of the rates of all pairs.

    A pair's trials at position k succeed with probability looks_k alpha. Nothing is assumed of the distribution: it is
    a weight on each of `RATES`, by maximum marginal likelihood (Kiefer & Wolfowitz 1956), with EM (Laird 1978). So a
    pair with few trials stays near what most pairs are, and one with many goes where its own successes are.

    Args:
        successes: Counts, at most the trials.
        trials: Counts.
        looks: Probabilities in [0, 1], by position.

    Returns:
        The means in (0, 1), and the weight of each of `RATES`, which sum to 1.
    """
    likelihood = rate_likelihood(successes, trials, looks)
    weights = rate_weights(likelihood)
    return posterior_means(likelihood, weights), weights


def rate_likelihood(successes: Table, trials: Table, looks: Values) -> Float[np.ndarray, "pairs rates"]:
    """Likelihood of each pair's trials under each of `RATES`, over the pair's largest."""
    succeeding = np.maximum(looks[:, None], SMALLEST) * RATES
    likelihood = successes @ np.log(succeeding) + (trials - successes) @ np.log1p(-succeeding)
    return np.exp(likelihood - likelihood.max(axis=1, keepdims=True))


def rate_weights(likelihood: Float[np.ndarray, "pairs rates"]) -> Float[np.ndarray, " rates"]:
    """The distribution of the rates that makes the pairs' trials most likely."""
    weights = np.full(len(RATES), 1 / len(RATES))
    for _ in range(STEPS):
        new = weights * (likelihood.T @ (1 / (likelihood @ weights))) / len(likelihood)
        moved, weights = np.abs(new - weights).max(), new
        if moved < STILL:
            break
    return weights


def posterior_means(likelihood: Float[np.ndarray, "pairs rates"], weights: Float[np.ndarray, " rates"]) -> Values:
    """Mean rate of each pair under a distribution of rates and its own likelihood."""
    return likelihood @ (weights * RATES) / (likelihood @ weights)
