"""The position-based model: what it recovers from counts, and where its likelihood ends."""

from __future__ import annotations

import numpy as np
import pytest

from opengcl.clicks.model import fit_position_model, randomised_propensities
from opengcl.data import DataSetError


def model_counts(seed: int, pairs: int, impressions: int) -> tuple[np.ndarray, ...]:
    """Counts of a position-based model: every pair at every of 6 positions."""
    rng = np.random.default_rng(seed)
    theta, alpha = np.array([1, 0.7, 0.5, 0.3, 0.25, 0.1]), rng.beta(2, 3, pairs)
    pair, position = np.divmod(np.arange(6 * pairs), 6)
    shown = np.full(6 * pairs, impressions)
    return theta, alpha, pair, position + 1, shown, rng.binomial(shown, theta[position] * alpha[pair])


def test_the_fit_recovers_examination_and_attractiveness():
    theta, alpha, *counts = model_counts(0, pairs=400, impressions=300)
    found_theta, found_alpha = fit_position_model(*counts)
    np.testing.assert_allclose(found_theta, theta, atol=0.012)
    assert np.abs(found_alpha - alpha).mean() < 0.015


def test_the_fit_recovers_examination_where_good_documents_stand_higher():
    """What a click rate by position cannot: there the lower positions look worse than they are."""
    theta, alpha, pair, position, _, _ = model_counts(1, pairs=400, impressions=1)
    rank = np.argsort(np.argsort(-alpha))
    shown = 40 + 600 * (np.abs(position - 1 - 6 * rank[pair] / 400) < 1)
    clicked = np.random.default_rng(2).binomial(shown, theta[position - 1] * alpha[pair])
    naive = np.bincount(position - 1, clicked) / np.bincount(position - 1, shown)
    found, _ = fit_position_model(pair, position, shown, clicked)
    assert np.abs(naive / naive[0] - theta).max() > 0.1
    np.testing.assert_allclose(found, theta, atol=0.025)


def test_the_fit_ends_where_the_likelihood_is_flat():
    theta, alpha, pair, position, shown, clicked = model_counts(3, pairs=30, impressions=500)
    found = fit_position_model(pair, position, shown, clicked)

    def likelihood(theta: np.ndarray, alpha: np.ndarray) -> float:
        rate = theta[position - 1] * alpha[pair]
        return float((clicked * np.log(rate) + (shown - clicked) * np.log1p(-rate)).sum())

    best = likelihood(*found)
    assert best > likelihood(theta, alpha)
    for row in range(1, 6):
        for factor in (0.97, 1.03):
            moved = found[0].copy()
            moved[row] *= factor
            assert likelihood(moved, found[1]) < best


@pytest.mark.parametrize("rate", [0.001, 0.003, 0.03, 0.5])
def test_examination_is_recovered_whatever_the_click_rate(rate: float):
    """Good documents stand higher, so that click rates by position, where EM starts, are far from the truth."""
    rng = np.random.default_rng(5)
    theta, alpha = 1 / np.arange(1, 7), np.sort(rng.beta(1, 2, 300))[::-1] * rate
    pair, position = np.divmod(np.arange(6 * 300), 6)
    shown = np.where(np.abs(position - 6 * pair / 300) < 1.5, 400, 40) * round(1 / rate)
    clicked = rng.binomial(shown, theta[position] * alpha[pair])
    naive = np.bincount(position, clicked) / np.bincount(position, shown)
    found, _ = fit_position_model(pair, position + 1, shown, clicked)
    assert np.abs(naive / naive[0] - theta).max() > 0.1
    np.testing.assert_allclose(found, theta, atol=0.015)


def test_what_was_never_clicked_has_nothing():
    pair, position = np.divmod(np.arange(12), 4)
    clicked = np.array([9, 5, 0, 2, 0, 0, 0, 0, 6, 2, 0, 1])
    theta, alpha = fit_position_model(pair, position + 1, np.full(12, 20), clicked)
    assert (theta[0], theta[2], alpha[1]) == (1, 0, 0)
    assert (theta[[1, 3]] > 0).all()
    assert (alpha[[0, 2]] > 0).all()


def test_counts_weighted_alike_change_nothing():
    """As a half-life weighs them, with floats."""
    _, _, pair, position, shown, clicked = model_counts(4, pairs=50, impressions=200)
    theta, alpha = fit_position_model(pair, position, shown, clicked)
    again = fit_position_model(pair, position, shown * 0.37, clicked * 0.37)
    np.testing.assert_allclose(again[0], theta, atol=1e-9)
    np.testing.assert_allclose(again[1], alpha, atol=1e-9)


def test_random_lists_give_examination_and_its_error():
    """The error is that of many such logs."""
    rng = np.random.default_rng(0)
    theta = np.array([1, 0.6, 0.3, 0.1])
    position, shown = np.arange(1, 5), np.array([4000, 4000, 2000, 1000])
    found = [randomised_propensities(position, shown, rng.binomial(shown, 0.4 * theta)) for _ in range(400)]
    values, errors = (np.array(column) for column in zip(*found, strict=True))
    np.testing.assert_allclose(values.mean(axis=0), theta, atol=0.005)
    np.testing.assert_allclose(errors.mean(axis=0), values.std(axis=0), rtol=0.1)


def test_random_lists_are_summed_over_cells():
    found, _ = randomised_propensities(np.array([1, 2, 1, 2]), np.array([10, 20, 30, 20]), np.array([4, 3, 4, 1]))
    np.testing.assert_allclose(found, [1, (4 / 40) / (8 / 40)])


def test_random_lists_without_clicks_are_told():
    with pytest.raises(DataSetError, match="found no click at position 2, 3; needed: some at each"):
        randomised_propensities(np.array([1, 2, 3]), np.array([9, 9, 9]), np.array([1, 0, 0]))
