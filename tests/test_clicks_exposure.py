"""How rates grow with exposure, from the clicks of each query."""

from __future__ import annotations

import numpy as np
import pytest

from opengcl.clicks.exposure import exposure_odds, exposure_slope


def clicks_of(seed: int, slope: float, rate: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries that are asked and clicked on differently, whose pairs' rates grow as looked^slope on average."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(200), 15)
    looked = np.exp(rng.standard_normal(200))[query] * np.exp(rng.standard_normal(3000)) * 200
    general = rate * np.exp(rng.standard_normal(200))[query]
    centred = np.log(looked) - (np.bincount(query, np.log(looked)) / 15)[query]
    return query, rng.poisson(looked * general * np.exp(slope * centred)).astype(float), looked


@pytest.mark.parametrize("slope", [-0.5, 0, 0.3, 1.5])
def test_the_slope_is_recovered(slope: float) -> None:
    found, error = exposure_slope(*clicks_of(0, slope))
    assert found == pytest.approx(slope, abs=0.06)
    assert 0 < error < 0.05


def test_two_pairs_have_a_closed_form() -> None:
    """3 to 1 looks and 12 to 2 clicks: (1 + slope) log 3 = log 6; the error is by the delta method."""
    found, error = exposure_slope(np.array([7, 7]), np.array([12.0, 2.0]), np.array([90.0, 30.0]))
    assert found == pytest.approx(np.log(6) / np.log(3) - 1)
    assert error == pytest.approx(np.sqrt(1 / 12 + 1 / 2) / np.log(3))


def test_nothing_to_tell_is_no_slope() -> None:
    query = np.array([0, 0, 1, 1])
    for clicks, looked in ((np.zeros(4), np.arange(1.0, 5)), (np.ones(4), np.ones(4))):
        assert exposure_slope(query, clicks, looked) == (0, np.inf)
        odds, slope = exposure_odds(query, clicks, looked)
        assert (odds.tolist(), slope) == ([1] * 4, 0)


def test_only_what_chance_does_not_give_is_used_and_never_backwards() -> None:
    query, clicks, looked = clicks_of(1, 1.0)
    odds, slope = exposure_odds(query, clicks, looked)
    assert slope == pytest.approx(exposure_slope(query, clicks, looked)[0], rel=0.01)
    ratio = np.log(odds[1] / odds[0]) / np.log(looked[1] / looked[0])
    assert ratio == pytest.approx(slope)
    assert exposure_odds(*clicks_of(1, -1.0))[1] == 0
    few = clicks_of(2, 0.02, rate=1e-5)
    assert 0 <= exposure_odds(*few)[1] <= max(exposure_slope(*few)[0], 0)
