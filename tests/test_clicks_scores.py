"""Counts to scores: each method against loops, and where the propensities come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from benchmarks.ranking.clicks import kendall_tau_b

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
    alpha, doubt, *_ = expected_rates(clicked, shown, THETA)
    worth, second = alpha.copy(), np.ones(40)
    variance = np.zeros(40)
    for kind, value in (("cart", 0.5), ("purchase", 4)):
        followed = np.bincount(counts.pair, counts.later[kind])
        rho, error, *_ = expected_rates(followed[:, None], clicked.sum(axis=1)[:, None], np.ones(1))
        worth += value * alpha * rho
        second += value * rho
        variance += (value * error) ** 2
    found = score(counts, THETA, options())
    np.testing.assert_allclose(found.rate, alpha)
    np.testing.assert_allclose(found.worth, worth)
    drawn = np.random.default_rng(0).standard_normal((2, 100_000, 1))
    both = (alpha + doubt * drawn[0]) * (second + np.sqrt(variance) * drawn[1])
    np.testing.assert_allclose(found.deviation, both.std(axis=0), rtol=0.02)
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
        order = np.argsort(found.worth)
        assert (np.diff(found.score[order]) >= -99 / 39 * 1.01).all()  # rounding may turn neighbours around
    low, high = straight.worth.min(), straight.worth.max()
    exact = 1 + 99 * (straight.worth - low) / (high - low)
    assert (np.abs(straight.score - exact) < 99 * 0.5 * straight.deviation / (high - low)).all()


def test_what_the_log_cannot_tell_apart_is_tied() -> None:
    """Many pairs of one rate: what their few clicks differ in is noise, and is not spread over 1 to 100."""
    rng = np.random.default_rng(0)
    pair, shown = np.arange(500), np.full(500, 2000.0)
    alpha = np.where(pair < 490, 0.003, 0.1)
    ones = np.ones(500, int)
    counts = Counted(pair, ones, ones == 0, shown, rng.binomial(2000, alpha).astype(float), {})
    found = score(counts, np.ones(1), ScoreOptions())
    assert len(np.unique(found.score[:490])) < 20
    assert (found.score[490:] > found.score[:490].max()).all()
    assert found.deviation[:490].mean() < 0.0015
    assert 0.9 < found.reliability < 1


def test_kinds_that_never_came_have_no_part() -> None:
    counts = counts_of(3)
    never = counts._replace(later={"cart": np.zeros(len(counts.pair)), "purchase": np.zeros(len(counts.pair))})
    found = score(never, THETA, options())
    np.testing.assert_array_equal(found.worth, found.rate)
    np.testing.assert_array_equal(found.score, score(never._replace(later={}), THETA, options()).score)


def shop_log(seed: int, rate: float, informed: float) -> tuple[Counted, np.ndarray, np.ndarray]:
    """40 queries of 12 results, 4 shown in an order that follows their rates as far as ``informed``; and the rates.

    Each query's lists make up for low rates only in part, as in a shop: 26 clicks a pair at 10%, .3 at .1%.
    """
    rng = np.random.default_rng(seed)
    looks, queries, results, lists = np.array([1, 0.6, 0.4, 0.3]), 40, 12, 800
    relevance = rng.beta(1, 2, (queries, results))
    alpha = np.minimum(relevance / relevance.mean() / looks.mean() * rate, 1)
    order = np.argsort(-(informed * relevance[:, None] + rng.random((queries, lists, results))), axis=2)[:, :, :4]
    clicked = rng.random(order.shape) < looks * np.take_along_axis(alpha[:, None], order, axis=2)
    cell = (np.arange(queries)[:, None, None] * results + order) * 4 + np.arange(4)
    shown = np.bincount(cell.ravel(), minlength=queries * results * 4)
    taken = np.bincount(cell.ravel(), clicked.ravel(), minlength=len(shown))
    kept = np.flatnonzero(shown)
    names, pair = np.unique(kept // 4, return_inverse=True)
    counts = Counted(
        pair, kept % 4 + 1, kept < 0, shown[kept].astype(float), taken[kept],
        {"cart": np.zeros(len(kept)), "purchase": np.zeros(len(kept))}, names // results,
    )  # fmt: skip
    return counts, looks, alpha.ravel()[names]


def mean_tau(values: np.ndarray, truth: np.ndarray, query: np.ndarray) -> tuple[float, float]:
    """Mean over queries of Kendall's tau-b, and its standard error."""
    taus = np.array([kendall_tau_b(values[query == one], truth[query == one]) for one in np.unique(query)])
    taus = np.nan_to_num(taus)
    return float(taus.mean()), float(taus.std() / np.sqrt(len(taus)))


@pytest.mark.parametrize("rate", [0.001, 0.003, 0.01, 0.03, 0.1])
@pytest.mark.parametrize("informed", [0.0, 0.3, 1.0], ids=["random", "informed", "well informed"])
def test_scores_are_never_behind_click_rates_however_rare_clicks_are(rate: float, informed: float) -> None:
    counts, looks, truth = shop_log(0, rate, informed)
    clicks, shown = (np.bincount(counts.pair, one) for one in (counts.clicks, counts.impressions))
    found = score(counts, looks, ScoreOptions())
    assert counts.query is not None
    kept = found.supported
    plain, noise = mean_tau((clicks / shown)[kept], truth[kept], counts.query[kept])
    ours, _ = mean_tau(found.score[kept], truth[kept], counts.query[kept])
    assert ours > plain - 2 * noise
    if informed:
        assert ours > plain + 0.02 or plain > 0.85
        assert found.slope > 0.3


def test_the_ranker_is_not_believed_when_told_so() -> None:
    counts, looks, _ = shop_log(1, 0.01, 1.0)
    plain = score(counts, looks, ScoreOptions(exposure_prior=False))
    assert plain.slope == 0
    np.testing.assert_array_equal(plain.worth, score(counts._replace(query=None), looks, ScoreOptions()).worth)
    assert (plain.worth != score(counts, looks, ScoreOptions()).worth).any()


@pytest.mark.parametrize("method", ["ips", "ctr"])
def test_weighted_worths_have_the_error_of_many_such_logs(method: Any) -> None:
    counts = counts_of(0)._replace(later={})
    rng = np.random.default_rng(0)
    rate = np.maximum(counts.clicks / counts.impressions, 0.05)
    found = []
    for _ in range(300):
        clicks = rng.poisson(rate * counts.impressions * 10).astype(float)
        found.append(score(counts._replace(clicks=clicks), THETA, options(method=method)))
    spread = np.std([one.worth for one in found], axis=0)
    np.testing.assert_allclose(np.mean([one.deviation for one in found], axis=0), spread, rtol=0.2)
    nothing = score(counts._replace(clicks=0 * counts.clicks), THETA, options(method=method)).deviation
    np.testing.assert_allclose(nothing, 1 / np.bincount(counts.pair, counts.impressions))


def test_percentiles_go_over_supported_pairs() -> None:
    worth, supported = np.array([3, 1, 2, 2, 9.0]), np.array([True, True, True, True, False])
    np.testing.assert_allclose(percentiles(worth, supported), [100, 1, 34, 34, 100])
    np.testing.assert_allclose(percentiles(np.array([5, 1, 5, 2.0]), supported[:4]), [100, 1, 100, 50.5])
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
