"""Expected rates after few trials, under a distribution that is estimated."""

from __future__ import annotations

import numpy as np
import pytest

from opengcl.clicks.rates import expected_rates, posterior, shifts


def rates_of(successes: list[int], trials: list[int]) -> np.ndarray:
    """Expected rates of plain trials, every one looked at."""
    return expected_rates(np.array(successes)[:, None], np.array(trials)[:, None], np.ones(1)).mean


def test_the_distribution_of_the_rates_is_recovered():
    """Two heaps, which no Beta distribution has, told from few trials that are mostly not looked at."""
    rng = np.random.default_rng(0)
    looks = np.array([1, 0.5, 0.2])
    true = np.where(rng.random(20_000) < 0.6, 0.05, 0.65)
    trials = rng.integers(2, 9, (20_000, 3))
    found, _, grid, weights = expected_rates(rng.binomial(trials, looks * true[:, None]), trials, looks)
    assert weights.sum() == pytest.approx(1)
    assert weights[grid < 0.2].sum() == pytest.approx(0.6, abs=0.02)
    assert weights @ grid == pytest.approx(true.mean(), abs=0.005)
    assert ((found - true) ** 2).mean() < 0.02


@pytest.mark.parametrize("mean", [1e-4, 1e-3, 3e-3, 0.05])
def test_rare_successes_are_told_down_to_what_the_data_hold(mean: float):
    """Rates of a gamma distribution: its mean and spread are found, and each pair's error is as large as said."""
    rng = np.random.default_rng(1)
    true = mean * rng.gamma(2, 0.5, 4000)
    trials = np.full((4000, 1), round(10 / mean))
    found = expected_rates(rng.binomial(trials, true[:, None]), trials, np.ones(1))
    average = found.weights @ found.grid
    assert average == pytest.approx(true.mean(), rel=0.02)
    assert np.sqrt(found.weights @ (found.grid - average) ** 2) == pytest.approx(true.std(), rel=0.05)
    assert np.sqrt(((found.mean - true) ** 2).mean()) == pytest.approx(np.sqrt((found.sd**2).mean()), rel=0.05)


def plainly(successes: np.ndarray, trials: np.ndarray, looks: np.ndarray, rates: np.ndarray, weights: np.ndarray):
    """Posterior mean and standard deviation over any rates, a pair and a position at a time."""
    for clicks, shown in zip(successes.tolist(), trials.tolist(), strict=True):
        logs = np.log(weights)
        for look, hit, all_ in zip(looks.tolist(), clicks, shown, strict=True):
            logs = logs + hit * np.log(look * rates) + (all_ - hit) * np.log1p(-look * rates)
        share = np.exp(logs - logs.max())
        share /= share.sum()
        mean = float((share * rates).sum())
        yield mean, float(np.sqrt((share * (rates - mean) ** 2).sum()))


def test_expected_rates_are_those_of_a_loop():
    """Under the weights that were found, where the pairs' own trials tell no more than the grid."""
    rng = np.random.default_rng(1)
    looks = np.array([1, 0.3])
    trials = rng.integers(0, 6, (40, 2))
    successes = rng.binomial(trials, looks * rng.random((40, 1)))
    found = expected_rates(successes, trials, looks)
    for pair, (mean, sd) in enumerate(plainly(successes, trials, looks, found.grid, found.weights)):
        assert (found.mean[pair], found.sd[pair]) == pytest.approx((mean, sd))


def test_much_is_told_more_finely_than_the_grid():
    """Against a sum over 20,001 rates with the weights drawn as straight lines between those of the grid."""
    looks = np.array([1, 0.4])
    trials = np.array([[9000, 4000], [90_000, 0], [400, 3000], [2000, 2000], [60, 20]])
    successes = np.array([[3000, 560], [180, 0], [300, 900], [1800, 700], [30, 5]])
    grid = 1 / (1 + np.exp(-np.arange(-10, 7.01, 0.125)))
    weights = np.exp(-((np.arange(len(grid)) - 80) ** 2) / 2000)
    fine = 1 / (1 + np.exp(-np.linspace(-10, 7, 20_001)))
    between = np.interp(np.log(fine / (1 - fine)), np.log(grid / (1 - grid)), weights)
    mean, sd = posterior(successes, trials, looks, grid, weights, shifts(None, 5))
    expected = np.array(list(plainly(successes, trials, looks, fine, between)))
    np.testing.assert_allclose(mean, expected[:, 0], rtol=2e-3)
    np.testing.assert_allclose(sd, expected[:, 1], rtol=0.03)


def test_more_successes_are_a_higher_rate_however_much_is_known():
    """No two pairs fall on one rate of the grid: a hundredth more is told where it is known."""
    for trials in (100, 10_000, 1_000_000):
        successes = np.arange(trials // 10, trials // 2, max(trials // 1000, 1))
        found = rates_of(successes.tolist(), [trials] * len(successes))
        assert (np.diff(found) > 0).all()


def test_what_is_expected_of_a_pair_counts_where_little_is_known():
    rng = np.random.default_rng(2)
    odds = np.repeat([0.25, 1.0, 4.0], 1000)
    true = odds * 0.01 * rng.gamma(4, 0.25, 3000)
    trials = np.full((3000, 1), 50)
    successes = rng.binomial(trials, true[:, None])
    told = expected_rates(successes, trials, np.ones(1), odds).mean
    plain = expected_rates(successes, trials, np.ones(1)).mean
    means = [told[odds == one].mean() for one in (0.25, 1.0, 4.0)]
    np.testing.assert_allclose(means, [0.0025, 0.01, 0.04], rtol=0.25)
    assert ((told - true) ** 2).mean() < 0.6 * ((plain - true) ** 2).mean()


def test_equal_rates_are_pulled_to_their_mean():
    rng = np.random.default_rng(0)
    successes = rng.binomial(20, 0.3, 2000)
    found = rates_of(successes.tolist(), [20] * 2000)
    assert found.std() < 0.3 * (successes / 20).std()
    assert found.mean() == pytest.approx((successes / 20).mean(), abs=0.003)


def test_nothing_known_is_the_mean_and_much_known_is_the_rate():
    rng = np.random.default_rng(0)
    trials = [0, 1, 100_000, *[30] * 500]
    successes = [0, 1, 89_000, *rng.binomial(30, rng.beta(2, 3, 500)).tolist()]
    nothing, one, many = rates_of(successes, trials)[:3]
    assert nothing == pytest.approx(0.4, abs=0.03)
    assert nothing < one < 0.6
    assert many == pytest.approx(0.89, abs=0.001)


def test_a_click_far_down_says_less_than_many():
    """Six results at a position hardly looked at, one clicked: not a rate near 1, as clicks over examinations say."""
    looks = np.array([1, 0.05])
    rng = np.random.default_rng(0)
    known = rng.binomial(40, rng.beta(2, 3, 500))
    successes = np.concatenate([[[0, 1]], np.stack([known, np.zeros(500, int)], axis=1)])
    trials = np.concatenate([[[0, 6]], np.tile([40, 0], (500, 1))])
    found = expected_rates(successes, trials, looks).mean
    assert 0.4 < found[0] < 0.6 < 1 / (6 * 0.05)
