"""From counts by pair and position to a score for each pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Shaped

from opengcl.clicks.identify import require_identified
from opengcl.clicks.log import CLICK
from opengcl.clicks.model import SMALLEST, Cells, Counts, fit_position_model, randomised_propensities
from opengcl.clicks.rates import expected_rates, posterior_means, rate_likelihood, rate_weights
from opengcl.data.problems import DataSetError, shown

Method = Literal["posterior", "ips", "ctr"]
Scale = Literal["percentile", "linear"]
Bias = Literal["auto", "model", "randomised", "none"]
VALUES = {CLICK: 1.0, "cart": 1.0, "purchase": 2.0}
"""What events are worth, where nothing else is said."""

_ENOUGH_RANDOM = 200  # clicks a position: a relative error of about 10%
_PRIOR_PAIRS = 100_000
_BLOCK = 4_000_000


@dataclass(frozen=True)
class ScoreOptions:
    """How counts become scores.

    Attributes:
        method: `posterior`, `ips` or `ctr`; see `score`.
        values: Kind of event -> worth; an event's worth comes on top of the click's that led to it.
        scale: `percentile`, or `linear` between the smallest and the largest worth.
        position_bias: `model` (EM), `randomised` (from lists in random order), `none` (all positions are looked at
            alike), `auto` (randomised if such lists have 200 clicks at each position, else the model), or propensities
            by position.
        clip: Smallest propensity that `ips` divides by.
        fit_impressions: The model is fitted on pairs shown so often. With fewer, alpha follows a handful of clicks, and
            theta comes out too high where such pairs mostly are, in the lower positions (incidental parameters).
        link_clicks: Each position must be comparable with a higher one through so many clicks.
        minimum_examinations: A pair has a score from so many expected examinations (impressions times theta) on.
    """

    method: Method = "posterior"
    values: Mapping[str, float] = field(default_factory=lambda: dict(VALUES))
    scale: Scale = "percentile"
    position_bias: Bias | tuple[float, ...] = "auto"
    clip: float = 0.05
    fit_impressions: float = 50
    link_clicks: float = 20
    minimum_examinations: float = 0.2

    def __post_init__(self) -> None:
        """Checks each setting.

        Raises:
            DataSetError: Naming the setting, what was found and what is allowed.
        """
        for name, allowed in (("method", get_args(Method)), ("scale", get_args(Scale))):
            if getattr(self, name) not in allowed:
                raise DataSetError(f"{name}: found {shown(getattr(self, name))}; allowed: {', '.join(allowed)}")
        if isinstance(self.position_bias, str):
            if self.position_bias not in get_args(Bias):
                raise DataSetError(
                    f"position_bias: found {shown(self.position_bias)}; allowed: {', '.join(get_args(Bias))}"
                )
        elif not self.position_bias or not all(0 < one <= 1 for one in self.position_bias):
            raise DataSetError(f"position_bias: found {shown(self.position_bias)}; allowed: above 0, up to 1")
        if CLICK not in self.values or not all(0 <= one < np.inf for one in self.values.values()):
            raise DataSetError(f"values: found {dict(self.values)}; allowed: numbers from 0 on, one for {CLICK}")
        if not any(self.values.values()):
            raise DataSetError("values: found 0 for all events; allowed: one above 0")
        for name in ("clip", "fit_impressions", "link_clicks", "minimum_examinations"):
            if not getattr(self, name) > 0:
                raise DataSetError(f"{name}: found {getattr(self, name)}; allowed: above 0")
        if self.clip > 1:
            raise DataSetError(f"clip: found {self.clip}; allowed: up to 1")


class Counted(NamedTuple):
    """Counts of a log: a cell for each pair and position, by pair; randomised lists in cells of their own."""

    pair: Cells  # from 0, ascending, without gaps
    position: Cells  # from 1
    randomised: Bool[np.ndarray, " cells"]
    impressions: Counts
    clicks: Counts
    later: dict[str, Counts]  # kind of event after a click -> count


class Propensities(NamedTuple):
    """How likely each position is looked at, as a share of the first."""

    theta: Float[np.ndarray, " positions"]
    source: str  # model, randomised, none or given
    errors: Float[np.ndarray, " positions"] | None = None  # standard errors, where known


class Scored(NamedTuple):
    """What the log says of each pair."""

    score: Float[np.ndarray, " pairs"]  # from 1 to 100
    worth: Float[np.ndarray, " pairs"]
    rate: Float[np.ndarray, " pairs"]  # of clicks: an examination's for posterior and ips, an impression's for ctr
    examinations: Float[np.ndarray, " pairs"]
    supported: Bool[np.ndarray, " pairs"]


def find_propensities(counts: Counted, options: ScoreOptions) -> Propensities:
    """Theta by position, as `ScoreOptions.position_bias` says.

    Raises:
        DataSetError: If the log cannot tell, or the propensities given are too few.
    """
    depth, bias = int(counts.position.max()), options.position_bias
    if isinstance(bias, tuple):
        if len(bias) < depth:
            raise DataSetError(f"position_bias: found {len(bias)} propensities; needed: {depth}, one a position")
        return Propensities(np.array(bias[:depth]), "given")
    if bias == "none":
        return Propensities(np.ones(depth), "none")
    if bias == "randomised" or (bias == "auto" and _enough_randomised(counts, depth)):
        if not counts.randomised.any():
            raise DataSetError("position_bias: found no lists in random order; needed for 'randomised' (--randomised)")
        at = counts.randomised
        columns = (counts.position[at], counts.impressions[at], counts.clicks[at])
        if int(columns[0].max()) < depth:
            raise DataSetError(
                f"randomised lists: found positions up to {columns[0].max()}; needed: up to {depth} (--max-position)"
            )
        theta, errors = randomised_propensities(*columns)
        return Propensities(theta, "randomised", errors)
    return Propensities(_fitted(counts, options, depth), "model")


def score(counts: Counted, theta: Float[np.ndarray, " positions"], options: ScoreOptions) -> Scored:
    """Scores every pair.

    With c clicks of n impressions at positions k, values v and later events e:

    * ``posterior``: worth = E[alpha] (v_click + sum_e v_e E[rho_e]), the expected attractiveness and the expected
      share of clicks that e follows, each under the log's own distribution (`expected_rates`);
    * ``ips``: worth = sum (v_click c + sum_e v_e c_e) / max(theta_k, clip) / sum n (inverse propensities; Joachims,
      Swaminathan & Schnabel 2017);
    * ``ctr``: the same with theta = 1: what users did an impression, whatever the position.

    Percentiles go over all supported pairs and not by query, so that little support gives scores in the middle.

    Raises:
        DataSetError: If no pair has enough support.
    """
    clicks, impressions = (np.bincount(counts.pair, one) for one in (counts.clicks, counts.impressions))
    looked = np.bincount(counts.pair, counts.impressions * theta[counts.position - 1])
    supported = looked >= options.minimum_examinations
    if not supported.any():
        raise DataSetError(
            f"no pair has {options.minimum_examinations:g} expected examinations; needed: a longer log, or a lower "
            "--min-examinations"
        )
    if options.method == "posterior":
        rate = _attractiveness(counts, theta)
        worth = rate * options.values[CLICK]
        for kind, later in counts.later.items():
            if options.values.get(kind):
                rho = _follow_up_rates(np.bincount(counts.pair, later), clicks)
                worth = worth + rate * options.values[kind] * rho
    else:
        floor = np.maximum(theta, options.clip) if options.method == "ips" else np.ones_like(theta)
        per_look = 1 / floor[counts.position - 1]
        rate = np.bincount(counts.pair, counts.clicks * per_look) / impressions
        valued = counts.clicks * options.values[CLICK]
        for kind, later in counts.later.items():
            valued = valued + later * options.values.get(kind, 0)
        worth = np.bincount(counts.pair, valued * per_look) / impressions
    scale = percentiles if options.scale == "percentile" else _linear
    return Scored(scale(worth, supported), worth, rate, looked, supported)


def percentiles(
    worth: Float[np.ndarray, " pairs"], supported: Bool[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """1 + 99 times the share of the other supported pairs that are worth less: even, whatever the tail of worth."""
    below = np.searchsorted(np.sort(worth[supported]), worth)
    return 1 + 99 * np.minimum(below / max(supported.sum() - 1, 1), 1)


def _linear(worth: Float[np.ndarray, " pairs"], supported: Bool[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    low, high = worth[supported].min(), worth[supported].max()
    return 1 + 99 * np.clip((worth - low) / max(high - low, SMALLEST), 0, 1)


def _fitted(counts: Counted, options: ScoreOptions, depth: int) -> Float[np.ndarray, " positions"]:
    """Theta by EM, on the pairs shown often, where it is identified."""
    often = np.bincount(counts.pair, counts.impressions)[counts.pair] >= options.fit_impressions
    if not often.any():
        raise DataSetError(
            f"no pair has {options.fit_impressions:g} impressions; needed for the position model: a longer log, or a "
            "lower --fit-impressions"
        )
    key = counts.pair[often].astype(np.int64) * (depth + 1) + counts.position[often]
    cell, place = np.unique(key, return_inverse=True)  # randomised lists and others together
    impressions, clicks = (np.bincount(place, one[often]) for one in (counts.impressions, counts.clicks))
    pair, position = np.divmod(cell, depth + 1)
    if position.max() < depth:
        raise DataSetError(
            f"positions {position.max() + 1} to {depth}: no pair with {options.fit_impressions:g} impressions is shown "
            f"there; allowed: --max-position {position.max()}, or a lower --fit-impressions"
        )
    require_identified(pair, position, clicks, options.link_clicks)
    theta, _ = fit_position_model(np.unique(pair, return_inverse=True)[1], position, impressions, clicks)
    return theta


def _enough_randomised(counts: Counted, depth: int) -> bool:
    at = counts.randomised
    return bool((np.bincount(counts.position[at] - 1, counts.clicks[at], depth) >= _ENOUGH_RANDOM).all())


def _attractiveness(counts: Counted, theta: Float[np.ndarray, " positions"]) -> Float[np.ndarray, " pairs"]:
    """`expected_rates` in bounded memory: the distribution from a sample of the pairs, the means block by block."""
    pairs = int(counts.pair[-1]) + 1
    if pairs <= _PRIOR_PAIRS:
        return expected_rates(*_tables(counts, np.arange(pairs), len(theta)), theta)[0]
    sample = np.sort(np.random.default_rng(0).choice(pairs, _PRIOR_PAIRS, replace=False))
    weights = rate_weights(
        np.concatenate(
            [rate_likelihood(*_tables(counts, rows, len(theta)), theta) for rows in _blocks(sample, len(theta))]
        )
    )
    return np.concatenate(
        [
            posterior_means(rate_likelihood(*_tables(counts, rows, len(theta)), theta), weights)
            for rows in _blocks(np.arange(pairs), len(theta))
        ]
    )


def _follow_up_rates(followed: Counts, clicks: Counts) -> Float[np.ndarray, " pairs"]:
    """Expected share of each pair's clicks that an event follows."""
    pairs = len(clicks)
    index = np.arange(pairs)
    one = np.ones(pairs, np.int64)
    return _attractiveness(Counted(index, one, one == 0, clicks, followed, {}), np.ones(1))


def _blocks(rows: np.ndarray, width: int) -> Iterator[np.ndarray]:
    size = max(1, _BLOCK // max(width, 50))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _tables(
    counts: Counted, rows: np.ndarray, depth: int
) -> tuple[Shaped[np.ndarray, "rows depth"], Shaped[np.ndarray, "rows depth"]]:
    """Clicks and impressions of some pairs (ascending) by position."""
    first, last = np.searchsorted(counts.pair, [rows[0], rows[-1] + 1])
    cells = slice(int(first), int(last))
    place = np.searchsorted(rows, counts.pair[cells])
    held = rows[np.minimum(place, len(rows) - 1)] == counts.pair[cells]
    at = place[held] * depth + counts.position[cells][held] - 1
    clicks, impressions = (
        np.bincount(at, one[cells][held], len(rows) * depth).reshape(-1, depth)
        for one in (counts.clicks, counts.impressions)
    )
    return clicks, impressions
