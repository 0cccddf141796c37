"""Weight functions at hand-computed points, their written forms, and the scaling of scores."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl.weights import WEIGHTS, pair_weights, scale_scores, weight_function


def halve(scores: np.ndarray) -> np.ndarray:
    return scores / 2


def negative(scores: np.ndarray) -> np.ndarray:
    return -scores


@pytest.mark.parametrize(
    ("spec", "at_100", "at_98", "at_1"),
    [
        ("constant", 1, 1, 1),
        ("linear", 1, 0.98, 0.01),
        ("reciprocal", 1, 1 / 3, 1 / 100),
        ("reciprocal_sqrt", 1, 3**-0.5, 0.1),
        ("log", 1, 0.5, 1 / np.log2(101)),
        ("exponential", 1, np.exp(-0.1), np.exp(-99 / 20)),
        ("exponential:decay=10", 1, np.exp(-0.2), np.exp(-9.9)),
        ("exponential:decay=10,floor=0.5", 1.5, 0.5 + np.exp(-0.2), 0.5 + np.exp(-9.9)),
        ("piecewise:1=0,98=0.5,100=2", 2, 0.5, 0),
        (f"{__name__}:halve", 50, 49, 0.5),
    ],
)
def test_values(spec: str, at_100: float, at_98: float, at_1: float) -> None:
    weights = weight_function(spec)(np.array([100.0, 98.0, 1.0]))
    np.testing.assert_allclose(weights, [at_100, at_98, at_1], rtol=1e-12)


@pytest.mark.parametrize(
    ("spec", "of_1", "of_2"),
    [
        ("constant", 1, 1),
        ("linear", 0.505, 1),
        ("log", 1 / np.log2(51.5), 1),
        ("reciprocal", 1 / 50.5, 1),
        ("exponential:floor=0.5", 0.5 + np.exp(-49.5 / 20), 1.5),
        ("piecewise:1=0.5,100=1", 0.75, 1),
        (f"{__name__}:halve", 25.25, 50),
    ],
)
@pytest.mark.parametrize("lowest", [0, -1])
def test_a_score_of_0_or_below_has_no_weight(spec: str, of_1: float, of_2: float, lowest: float) -> None:
    scores = np.array([0.0, 1.0, 2.0, lowest], dtype=np.float32)
    function, queries = weight_function(spec), np.array([0, 0, 1, 1])
    for by in ("dataset", "query"):
        found = pair_weights(scores, queries, function, by=by, low=lowest, high=2)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, [0, of_1 if by == "dataset" else of_2, of_2, 0], rtol=1e-12)
    assert pair_weights(scores[[0, 3]], queries[:2], function, low=lowest, high=2).tolist() == [0, 0]


def test_within_a_query_the_lowest_score_above_0_is_no_zero() -> None:
    """A query with 0, 1, 2, one with 1, 2 and one with nothing but zeros, which once weighed as much as the best."""
    scores, queries = np.array([0.0, 1, 2, 1, 2, 0, 0]), np.array([0, 0, 0, 1, 1, 2, 2])
    found = pair_weights(scores, queries, weight_function("linear"), by="query", low=0, high=2)
    np.testing.assert_allclose(found, [0, 0.505, 1, 0.01, 1, 0, 0])


def test_scores_below_0_are_scaled_as_0() -> None:
    scores, queries = np.array([-1.0, 0, 1, 2]), np.array([0, 0, 0, 0])
    np.testing.assert_allclose(scale_scores(scores, queries, low=-1, high=2), [1, 1, 50.5, 100])
    np.testing.assert_allclose(scale_scores(scores, queries, by="query", low=-1, high=2), [1, 1, 50.5, 100])
    assert scale_scores(scores - 3, queries, low=-4, high=-1).tolist() == [1, 1, 1, 1]


@given(st.sampled_from([name for name in WEIGHTS if name != "piecewise"]), st.floats(1, 99), st.floats(0.001, 1))
def test_a_higher_score_never_weighs_less(name: str, score: float, step: float) -> None:
    low, high = weight_function(name)(np.array([score, score + step]))
    assert 0 < low <= high


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("steep", "use one of constant, linear"),
        ("linear:decay=3", "has no option 'decay'; it has: none"),
        ("exponential:decay=fast", "must be written as name=number"),
        ("exponential:decay=0", "must be above 0"),
        ("exponential:floor=-0.1", "floor is -0.1; it must be at least 0"),
        ("piecewise:1=0", "at least two"),
        ("no.such.module:f", "cannot be imported"),
        (f"{__name__}:pytest", "not a function"),
        (f"{__name__}:negative", "weights must be >= 0"),
    ],
)
def test_wrong_specs_say_what_is_allowed(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weight_function(spec)


def test_scaling_by_data_set_and_by_query() -> None:
    scores, queries = np.array([0.0, 2.0, 4.0, 3.0, 3.0]), np.array([7, 7, 7, 2, 2])
    np.testing.assert_allclose(scale_scores(scores, queries, low=0, high=4), [1, 50.5, 100, 75.25, 75.25])
    np.testing.assert_allclose(scale_scores(scores, queries, by="query", low=0, high=4), [1, 50.5, 100, 100, 100])


def test_scaling_refuses_an_empty_range_and_an_unknown_unit() -> None:
    with pytest.raises(ValueError, match="below its upper end"):
        scale_scores(np.array([1.0]), np.array([0]), low=1, high=1)
    with pytest.raises(ValueError, match="use one of dataset, query"):
        scale_scores(np.array([1.0]), np.array([0]), by="split", low=0, high=1)


@pytest.mark.parametrize("spec", ["exponential:decay=10,floor=0.5", "piecewise:1=0,98=0.5,100=2", f"{__name__}:halve"])
def test_weight_functions_travel_to_spawned_processes(spec: str) -> None:
    scores = np.array([100.0, 98.0, 1.0])
    function = weight_function(spec)
    travelled = pickle.loads(pickle.dumps(function))  # noqa: S301 - what multiprocessing does
    np.testing.assert_array_equal(travelled(scores), function(scores))
