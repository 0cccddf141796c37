"""Ranking score -> weight functions, and the scaling that brings any score into their range.

Every function takes scores s in [1, 100] (rank r = 101 - s) and gives weights >= 0, as in arXiv 2404.08535; ``log``,
``reciprocal_sqrt``, ``exponential`` and ``piecewise`` are ours. A score of 0 or below, before it is scaled, means
judged not relevant: no function sees it, and its weight is 0 (`pair_weights`).
"""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from jaxtyping import Float, Int

from opengcl.own_functions import imported, is_import_path

Scores = Float[np.ndarray, " pairs"]
WeightFunction = Callable[[Scores], Scores]
Scaling = Literal["dataset", "query"]
SCALINGS: tuple[str, ...] = get_args(Scaling)
LOWEST, HIGHEST = 1.0, 100.0


def constant(scores: Scores) -> Scores:
    """``1``: plain CLIP, the baseline."""
    return np.ones_like(scores)


def linear(scores: Scores) -> Scores:
    """``s / 100``: Marqo-GS-10M's ``score_linear``."""
    return np.divide(scores, HIGHEST)


def reciprocal(scores: Scores) -> Scores:
    """``1 / r``: Marqo-GS-10M's ``score_reciprocal``."""
    return 1.0 / _rank(scores)


def reciprocal_sqrt(scores: Scores) -> Scores:
    """``1 / sqrt(r)``."""
    return 1.0 / np.sqrt(_rank(scores))


def log(scores: Scores) -> Scores:
    """``1 / log2(1 + r)``: the discount of DCG (Järvelin and Kekäläinen 2002)."""
    return 1.0 / np.log2(1.0 + _rank(scores))


def exponential(scores: Scores, *, decay: float = 20.0, floor: float = 0.0) -> Scores:
    """``exp((s - 100) / decay) + floor``: falls by e every ``decay`` points of score (> 0), down to ``floor`` (>= 0).

    A small ``decay`` orders the top of the list; a ``floor`` keeps the rest of it above what is not judged.
    """
    if not decay > 0:
        raise ValueError(f"exponential: decay is {decay}; it must be above 0 (score points per factor e)")
    if not floor >= 0:
        raise ValueError(f"exponential: floor is {floor}; it must be at least 0")
    return np.exp(np.subtract(scores, HIGHEST) / decay) + floor


def piecewise(scores: Scores, *, knots: Mapping[float, float]) -> Scores:
    """Straight lines between the user's knots ``{score: weight}``; flat beyond the first and the last."""
    if len(knots) < 2 or any(weight < 0 for weight in knots.values()):
        raise ValueError(f"piecewise: knots are {dict(knots)}; give at least two score=weight with weights >= 0")
    points = sorted((float(score), float(weight)) for score, weight in knots.items())
    return np.interp(scores, [score for score, _ in points], [weight for _, weight in points]).astype(scores.dtype)


WEIGHTS: dict[str, Callable[..., Scores]] = {
    "constant": constant,
    "linear": linear,
    "reciprocal": reciprocal,
    "reciprocal_sqrt": reciprocal_sqrt,
    "log": log,
    "exponential": exponential,
    "piecewise": piecewise,
}


def weight_function(spec: str | WeightFunction) -> WeightFunction:
    """Read a weight function from its written form.

    ``"linear"``; ``"exponential:decay=10"``; ``"piecewise:1=0,50=0.1,100=1"``; or the import path of a Python function,
    ``"my_shop.weights:margin"`` (of an installed package or of the current folder), or such a function itself. It gets
    a float64 array of scores in [1, 100] and returns one weight >= 0 a score.

    Raises:
        ValueError: The name, option or function is unknown or fails; the message lists what is allowed. Values that the
            function returns are checked at each call.
    """
    if callable(spec):
        return _Checked(weights_name(spec), spec)
    name, _, rest = spec.partition(":")
    if is_own_function(spec):
        return _Checked(spec, _import_function(name, rest))
    return _Checked(spec, functools.partial(WEIGHTS[name], **_options(name, rest)))


def check_weights(spec: str) -> None:
    """Checks how a weight function is written; nothing is imported, so this may read what comes from outside.

    Raises:
        ValueError: As `weight_function`, but for functions that are named by an import path, which may be missing.
    """
    if not is_own_function(spec):
        weight_function(spec)


def is_own_function(spec: str) -> bool:
    """Whether a weight function is written as an import path, which runs code of the user's own; else it is one here.

    Raises:
        ValueError: It is neither.
    """
    name, _, rest = spec.partition(":")
    if name in WEIGHTS:
        return False
    if is_import_path(name, rest):
        return True
    raise ValueError(
        f"weight function {reprlib.repr(spec)} is unknown; use one of {', '.join(WEIGHTS)} "
        "(options as exponential:decay=10), or the import path of a function as package.module:function"
    )


def weights_name(spec: str | WeightFunction) -> str:
    """How a weight function is written: a function by its import path."""
    if isinstance(spec, str):
        return spec
    return f"{getattr(spec, '__module__', '')}:{getattr(spec, '__qualname__', type(spec).__qualname__)}"


def pair_weights(
    scores: Scores,
    queries: Int[np.ndarray, " pairs"],
    function: WeightFunction,
    *,
    by: Scaling = "dataset",
    low: float,
    high: float,
) -> Scores:
    """The weights of judged pairs: ``function`` of the scaled score, and 0 where the score is 0 or below.

    Args:
        scores: One score a judged pair, any float dtype; 0 or below means judged not relevant.
        queries: As for `scale_scores`, like what follows.
        function: What `weight_function` gives; it sees the other scores alone.
        by: ``dataset`` or ``query``.
        low: The lowest possible score.
        high: The highest possible score.

    Returns:
        float64 weights >= 0.

    Raises:
        ValueError: As `scale_scores`.
    """
    relevant = np.asarray(scores > 0)
    scaled = scale_scores(scores, queries, by=by, low=low, high=high)
    if relevant.all():
        return function(scaled)
    weights = np.zeros(len(scores))
    if relevant.any():
        weights[relevant] = function(scaled[relevant])
    return weights


def scale_scores(
    scores: Scores,
    queries: Int[np.ndarray, " pairs"],
    *,
    by: Scaling = "dataset",
    low: float,
    high: float,
) -> Scores:
    """Bring scores into [1, 100]; a score below 0 counts as 0, and so does a ``low`` below 0.

    ``dataset``: ``low`` maps to 1 and ``high`` to 100, for every query alike. ``query``: each query's own lowest and
    highest score do; a query whose scores are all equal gets 100 throughout, as nothing tells its documents apart.
    What becomes of a score of 0 is for `pair_weights` to say.

    Args:
        scores: One score a judged pair, any float dtype.
        queries: The pair's query, as integers in any order.
        by: ``dataset`` or ``query``.
        low: The lowest possible score of the data set.
        high: The highest possible score; above ``low``.

    Returns:
        float64 scores in [1, 100].

    Raises:
        ValueError: An unknown ``by``, or ``low >= high``.
    """
    if by not in SCALINGS:
        raise ValueError(f"score scaling {by!r} is unknown; use one of {', '.join(SCALINGS)}")
    if not low < high:
        raise ValueError(f"the score range is [{low}, {high}]; its lower end must be below its upper end")
    scores = scores.astype(np.float64)
    if low < 0:
        scores, low, high = np.maximum(scores, 0.0), 0.0, max(high, 0.0)
    if low == high:  # no score can be above 0
        return np.full(len(scores), LOWEST)
    if by == "dataset":
        return LOWEST + (HIGHEST - LOWEST) * (scores - low) / (high - low)
    if len(scores) == 0:
        return scores
    _, group = np.unique(queries, return_inverse=True)
    least = np.full(group.max() + 1, np.inf)
    most = np.full(group.max() + 1, -np.inf)
    np.minimum.at(least, group, scores)
    np.maximum.at(most, group, scores)
    spread = (most - least)[group]
    flat = spread == 0
    share = np.where(flat, 1.0, (scores - least[group]) / np.where(flat, 1.0, spread))
    return LOWEST + (HIGHEST - LOWEST) * share


def _rank(scores: Scores) -> Scores:
    return HIGHEST + 1.0 - scores


def _options(name: str, written: str) -> dict[str, object]:
    pairs: Sequence[tuple[str, str, str]] = [part.partition("=") for part in written.split(",") if part.strip()]
    try:
        numbers = {key.strip(): float(value) for key, _, value in pairs}
        if name == "piecewise":
            return {"knots": {float(score): weight for score, weight in numbers.items()}}
    except ValueError:
        raise ValueError(f"weight options {written!r} of {name!r} must be written as name=number,...") from None
    allowed = [p.name for p in inspect.signature(WEIGHTS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(numbers) - set(allowed))
    if unknown:
        raise ValueError(
            f"weight function {name!r} has no option {unknown[0]!r}; it has: {', '.join(allowed) or 'none'}"
        )
    return dict(numbers)


def _import_function(module: str, name: str) -> WeightFunction:
    function = imported("weight function", module, name)
    if not callable(function):
        raise ValueError(f"weight function {module}:{name} is a {type(function).__name__}, not a function")
    return cast(WeightFunction, function)


@dataclass(frozen=True)
class _Checked:
    """A weight function whose results are checked; of module level, so that it travels to spawned processes."""

    spec: str
    function: WeightFunction

    def __post_init__(self) -> None:
        tried = np.array([LOWEST, 50.0, HIGHEST])  # a wrong function fails here, not in the first batch
        try:
            np.asarray(self.function(tried), dtype=np.float64)
        except Exception as error:  # whatever the function's own code raises
            raise ValueError(
                f"weight function {self.spec!r} fails on the scores {tried.tolist()}: {type(error).__name__}: {error}; "
                "it gets an array of scores in [1, 100] and returns one weight >= 0 a score"
            ) from error
        self(tried)

    def __call__(self, scores: Scores) -> Scores:
        weights = np.asarray(self.function(scores), dtype=np.float64)
        if weights.shape != scores.shape:
            raise ValueError(f"weight function {self.spec!r} returned shape {weights.shape} for {scores.shape} scores")
        bad = ~np.isfinite(weights) | (weights < 0)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"weight function {self.spec!r} gave {weights[at]} for score {scores[at]}; weights must be >= 0"
            )
        return weights
