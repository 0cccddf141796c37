"""Expected rates after few trials, under a distribution that is estimated."""

from __future__ import annotations

import numpy as np
import pytest

from opengcl.clicks.rates import RATES, expected_rates


def rates_of(successes: list[int], trials: list[int]) -> np.ndarray:
    """Expected rates of plain trials, every one looked at."""
    return expected_rates(np.array(successes)[:, None], np.array(trials)[:, None], np.ones(1))[0]


def test_the_distribution_of_the_rates_is_recovered():
    """Two heaps, which no Beta distribution has, told from few trials that are mostly not looked at."""
    rng = np.random.default_rng(0)
    looks = np.array([1, 0.5, 0.2])
    true = np.where(rng.random(20_000) < 0.6, 0.05, 0.65)
    trials = rng.integers(2, 9, (20_000, 3))
    found, weights = expected_rates(rng.binomial(trials, looks * true[:, None]), trials, looks)
    assert weights.sum() == pytest.approx(1)
    assert weights[RATES < 0.2].sum() == pytest.approx(0.6, abs=0.02)
    assert weights @ RATES == pytest.approx(true.mean(), abs=0.005)
    assert ((found - true) ** 2).mean() < 0.02


def test_expected_rates_are_those_of_a_loop():
    """Posterior means under the weights that were found, a pair and a position at a time."""
    rng = np.random.default_rng(1)
    looks = np.array([1, 0.3])
    trials = rng.integers(0, 6, (40, 2))
    successes = rng.binomial(trials, looks * rng.random((40, 1)))
    found, weights = expected_rates(successes, trials, looks)
    for pair in range(40):
        above = below = 0.0
        for rate, weight in zip(RATES.tolist(), weights.tolist(), strict=True):
            for position in range(2):
                hit = looks[position] * rate
                weight *= hit ** successes[pair, position] * (1 - hit) ** (
                    trials[pair, position] - successes[pair, position]
                )
            above, below = above + weight * rate, below + weight
        assert found[pair] == pytest.approx(above / below)


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
    assert many == pytest.approx(0.89, abs=0.01)  # the step of the grid is .02


def test_a_click_far_down_says_less_than_many():
    """Six results at a position hardly looked at, one clicked: not a rate near 1, as clicks over examinations say."""
    looks = np.array([1, 0.05])
    rng = np.random.default_rng(0)
    known = rng.binomial(40, rng.beta(2, 3, 500))
    successes = np.concatenate([[[0, 1]], np.stack([known, np.zeros(500, int)], axis=1)])
    trials = np.concatenate([[[0, 6]], np.tile([40, 0], (500, 1))])
    found = expected_rates(successes, trials, looks)[0]
    assert 0.4 < found[0] < 0.6 < 1 / (6 * 0.05)
