"""Counts to scores: each method against loops, and where the propensities come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opengcl.clicks import scores
from opengcl.clicks.rates import expected_rates
from opengcl.clicks.scores import Counted, ScoreOptions, find_propensities, percentiles, score
from opengcl.data import DataSetError

THETA = np.array([1, 0.5, 0.2])
VALUES = {"click": 1.0, "cart": 0.5, "purchase": 4.0}


def counts_of(seed: int, pairs: int = 40, most: int = 60, randomised: bool = False) -> Counted:
    """Pairs at up to three positions, some of them in random lists."""
    rng = np.random.default_rng(seed)
    cells = [
        (pair, position, flag)
        for pair in range(pairs)
        for position in range(1, 4)
        for flag in ((0, 1) if randomised else (0,))
        if position == 1 + pair % 3 or rng.random() < 0.6
    ]
    pair, position, flag = np.array(cells).T
    alpha = rng.beta(2, 3, pairs)
    impressions = rng.integers(1, most, len(pair)).astype(float)
    clicks = rng.binomial(impressions.astype(int), THETA[position - 1] * alpha[pair])
    later = {"cart": rng.binomial(clicks, 0.3).astype(float), "purchase": rng.binomial(clicks, 0.1).astype(float)}
    return Counted(pair, position, flag.astype(bool), impressions, clicks.astype(float), later)


def options(**settings: Any) -> ScoreOptions:
    return ScoreOptions(values=VALUES, **settings)


@pytest.mark.parametrize(("method", "floor"), [("ips", 0.3), ("ips", 0.01), ("ctr", 1)])
def test_weighted_counts_are_those_of_a_loop(method: Any, floor: float) -> None:
    counts = counts_of(0)
    found = score(counts, THETA, options(method=method, clip=min(floor, 1)))
    for pair in range(40):
        worth = rate = impressions = 0.0
        for at in np.flatnonzero(counts.pair == pair):
            look = max(THETA[counts.position[at] - 1], floor) if method == "ips" else 1
            rate += counts.clicks[at] / look
            valued = counts.clicks[at] + 0.5 * counts.later["cart"][at] + 4 * counts.later["purchase"][at]
            worth += valued / look
            impressions += counts.impressions[at]
        assert found.worth[pair] == pytest.approx(worth / impressions)
        assert found.rate[pair] == pytest.approx(rate / impressions)


def test_posterior_worth_is_attractiveness_and_what_follows() -> None:
    counts = counts_of(1)
    clicked, shown = np.zeros((2, 40, 3))
    np.add.at(clicked, (counts.pair, counts.position - 1), counts.clicks)
    np.add.at(shown, (counts.pair, counts.position - 1), counts.impressions)
    alpha, _ = expected_rates(clicked, shown, THETA)
    worth = alpha.copy()
    for kind, value in (("cart", 0.5), ("purchase", 4)):
        followed = np.bincount(counts.pair, counts.later[kind])
        worth += value * alpha * expected_rates(followed[:, None], clicked.sum(axis=1)[:, None], np.ones(1))[0]
    found = score(counts, THETA, options())
    np.testing.assert_allclose(found.rate, alpha)
    np.testing.assert_allclose(found.worth, worth)
    np.testing.assert_allclose(found.examinations, shown @ THETA)


def test_many_pairs_in_blocks_are_scored_like_few(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counts_of(2, pairs=500)
    whole = score(counts, THETA, options()).worth
    monkeypatch.setattr(scores, "_PRIOR_PAIRS", 499)
    monkeypatch.setattr(scores, "_BLOCK", 50 * 33)
    blocks = score(counts, THETA, options()).worth
    np.testing.assert_allclose(blocks, whole, rtol=0.02)
    monkeypatch.setattr(scores, "_PRIOR_PAIRS", 250)
    np.testing.assert_allclose(score(counts, THETA, options()).worth, whole, atol=0.1)


def test_follow_ups_without_value_change_nothing() -> None:
    counts = counts_of(3)
    plain = ScoreOptions(values={"click": 1})
    np.testing.assert_array_equal(
        score(counts, THETA, plain).worth, score(counts._replace(later={}), THETA, options()).worth
    )


def test_scales_go_from_1_to_100() -> None:
    counts = counts_of(4)
    even, straight = (score(counts, THETA, options(scale=scale)) for scale in ("percentile", "linear"))
    np.testing.assert_array_equal(even.worth, straight.worth)
    for found in (even, straight):
        assert (found.score.min(), found.score.max()) == (1, 100)
        assert (np.argsort(found.score) == np.argsort(found.worth)).all()
    low, high = straight.worth.min(), straight.worth.max()
    np.testing.assert_allclose(straight.score, 1 + 99 * (straight.worth - low) / (high - low))


def test_percentiles_go_over_supported_pairs() -> None:
    worth, supported = np.array([3, 1, 2, 2, 9.0]), np.array([True, True, True, True, False])
    np.testing.assert_allclose(percentiles(worth, supported), [100, 1, 34, 34, 100])
    np.testing.assert_allclose(percentiles(np.array([0.5]), np.array([True])), [1])


def test_little_looked_at_has_no_support() -> None:
    counts = counts_of(5)
    looked = np.bincount(counts.pair, counts.impressions * THETA[counts.position - 1])
    found = score(counts, THETA, options(minimum_examinations=20))
    np.testing.assert_array_equal(found.supported, looked >= 20)
    assert 0 < found.supported.sum() < 40
    with pytest.raises(DataSetError, match=r"no pair has 1e\+06 expected examinations"):
        score(counts, THETA, options(minimum_examinations=1e6))


# Where the propensities come from


def test_the_model_is_fitted_where_nothing_is_random() -> None:
    found = find_propensities(counts_of(6, pairs=600, most=400), options())
    assert found.source == "model"
    np.testing.assert_allclose(found.theta, THETA, atol=0.02)


def test_random_lists_are_preferred_when_they_are_enough() -> None:
    counts = counts_of(7, pairs=600, most=400, randomised=True)
    found = find_propensities(counts, options())
    assert found.source == "randomised"
    assert found.errors is not None
    few = counts._replace(randomised=counts.randomised & (counts.clicks < 2))
    assert find_propensities(few, options()).source == "model"
    assert find_propensities(counts, options(position_bias="model")).source == "model"


def test_random_lists_asked_for_must_be_there() -> None:
    with pytest.raises(DataSetError, match="found no lists in random order"):
        find_propensities(counts_of(8), options(position_bias="randomised"))
    counts = counts_of(8, randomised=True)
    short = counts._replace(randomised=counts.randomised & (counts.position < 3))
    with pytest.raises(DataSetError, match="randomised lists: found positions up to 2; needed: up to 3"):
        find_propensities(short, options(position_bias="randomised"))


def test_propensities_can_be_given() -> None:
    counts = counts_of(9)
    assert find_propensities(counts, options(position_bias=(1.0, 0.4, 0.3, 0.2))).theta.tolist() == [1, 0.4, 0.3]
    assert find_propensities(counts, options(position_bias="none")).theta.tolist() == [1, 1, 1]
    with pytest.raises(DataSetError, match="found 2 propensities; needed: 3"):
        find_propensities(counts, options(position_bias=(1.0, 0.4)))


def test_too_few_impressions_are_refused() -> None:
    counts = counts_of(10, most=10)
    with pytest.raises(DataSetError, match="no pair has 50 impressions"):
        find_propensities(counts, options())
    last = ([600], [4], [False], [3.0], [1.0])
    columns = zip(counts_of(6, pairs=600, most=400)[:5], last, strict=True)
    deep = Counted(*(np.concatenate(both) for both in columns), {})
    with pytest.raises(DataSetError, match=r"positions 4 to 4: no pair with 50 impressions.*--max-position 3"):
        find_propensities(deep, options())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "method: found 'magic'; allowed: posterior, ips, ctr"),
        ({"scale": "log"}, "scale: found 'log'; allowed: percentile, linear"),
        ({"position_bias": "some"}, "position_bias: found 'some'; allowed: auto, model, randomised, none"),
        ({"position_bias": (1.0, 0.0)}, "position_bias: found .*; allowed: above 0, up to 1"),
        ({"position_bias": ()}, "position_bias: found"),
        ({"values": {"cart": 1}}, "values: found .*one for click"),
        ({"values": {"click": -1}}, "values: found .*from 0 on"),
        ({"values": {"click": 0, "cart": 0}}, "values: found 0 for all"),
        ({"clip": 0}, "clip: found 0; allowed: above 0"),
        ({"clip": 2}, "clip: found 2; allowed: up to 1"),
        ({"fit_impressions": -3}, "fit_impressions: found -3"),
    ],
)
def test_wrong_options_say_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataSetError, match=message):
        ScoreOptions(**settings)
