"""From counts by pair and position to a score for each pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Shaped

from opengcl.clicks.exposure import exposure_odds
from opengcl.clicks.identify import require_identified
from opengcl.clicks.log import CLICK
from opengcl.clicks.model import SMALLEST, Cells, Counts, fit_position_model, randomised_propensities
from opengcl.clicks.rates import posterior, rate_grid, rate_likelihood, rate_weights, shifts
from opengcl.data.problems import DataSetError, shown

Method = Literal["posterior", "ips", "ctr"]
Scale = Literal["percentile", "linear"]
Bias = Literal["auto", "model", "randomised", "none"]
VALUES = {CLICK: 1.0, "cart": 1.0, "purchase": 2.0}
"""What events are worth, where nothing else is said."""

_ENOUGH_RANDOM = 200  # clicks a position: a relative error of about 10%
_PRIOR_PAIRS = 30_000
_BLOCK = 4_000_000
_TOLD_APART = 0.5  # standard deviations


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
        exposure_prior: Whether `posterior` expects more of what the ranker showed more, as far as the clicks of the
            whole log bear that out. Without, a result that was often shown and never clicked comes after one that was
            hardly shown, and where clicks are rare that turns a good ranker's order around.
    """

    method: Method = "posterior"
    values: Mapping[str, float] = field(default_factory=lambda: dict(VALUES))
    scale: Scale = "percentile"
    position_bias: Bias | tuple[float, ...] = "auto"
    clip: float = 0.05
    fit_impressions: float = 50
    link_clicks: float = 20
    minimum_examinations: float = 0.2
    exposure_prior: bool = True

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
    query: Cells | None = None  # number of each pair's query, by pair; None: unknown


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
    deviation: Float[np.ndarray, " pairs"]  # standard deviation of the worth
    slope: float = 0.0  # of rates by exposure, in logarithms, that `posterior` expected

    @property
    def reliability(self) -> float:
        """Share of the differences in worth that the log tells, in [0, 1]; the rest is what it leaves open."""
        told, open_ = np.var(self.worth[self.supported]), np.mean(self.deviation[self.supported] ** 2)
        return float(told / (told + open_)) if told else 0.0


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
      share of clicks that e follows, each under the log's own distribution (`expected_rates`); what is expected of a
      pair before its clicks follows its exposure (`exposure_odds`);
    * ``ips``: worth = sum (v_click c + sum_e v_e c_e) / max(theta_k, clip) / sum n (inverse propensities; Joachims,
      Swaminathan & Schnabel 2017);
    * ``ctr``: the same with theta = 1: what users did an impression, whatever the position.

    A kind of event that never came has no part in the worth. Percentiles go over all supported pairs and not by query,
    so that little support gives scores in the middle; worths that differ by less than about half a standard deviation
    of what is known of them are tied.

    Raises:
        DataSetError: If no pair has enough support.
    """
    impressions = np.bincount(counts.pair, counts.impressions)
    looked = np.bincount(counts.pair, counts.impressions * theta[counts.position - 1])
    supported = looked >= options.minimum_examinations
    if not supported.any():
        raise DataSetError(
            f"no pair has {options.minimum_examinations:g} expected examinations; needed: a longer log, or a lower "
            "--min-examinations"
        )
    values = {
        kind: options.values[kind] for kind, one in counts.later.items() if options.values.get(kind) and one.any()
    }
    slope = 0.0
    if options.method == "posterior":
        rate, worth, deviation, slope = _posterior(counts, theta, looked, values, options)
    else:
        floor = np.maximum(theta, options.clip) if options.method == "ips" else np.ones_like(theta)
        rate, worth, deviation = _weighted(counts, 1 / floor[counts.position - 1], impressions, values, options)
    scale = percentiles if options.scale == "percentile" else _linear
    return Scored(scale(_told_apart(worth, deviation), supported), worth, rate, looked, supported, deviation, slope)


def _posterior(
    counts: Counted,
    theta: Float[np.ndarray, " positions"],
    looked: Float[np.ndarray, " pairs"],
    values: dict[str, float],
    options: ScoreOptions,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Expected rates, worths, their standard deviations, and the slope by exposure."""
    clicks = np.bincount(counts.pair, counts.clicks)
    odds, slope = None, 0.0
    if options.exposure_prior and counts.query is not None:
        odds, slope = exposure_odds(counts.query, clicks, np.maximum(looked, SMALLEST))
    rate, spread = _attractiveness(counts, theta, odds)
    value, doubt = np.full(len(rate), options.values[CLICK]), np.zeros(len(rate))
    for kind, each in values.items():
        rho, error = _follow_up_rates(np.bincount(counts.pair, counts.later[kind]), clicks)
        value, doubt = value + each * rho, doubt + (each * error) ** 2
    # Of a product of independent factors.
    variance = spread**2 * (doubt + value**2) + rate**2 * doubt
    return rate, rate * value, np.sqrt(variance), slope


def _weighted(
    counts: Counted, per_look: np.ndarray, impressions: np.ndarray, values: dict[str, float], options: ScoreOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted click rates, worths and their standard errors: those of Poisson counts, of one click where none is."""
    rate = np.bincount(counts.pair, counts.clicks * per_look) / impressions
    worth, variance, one = (np.zeros(len(impressions)) for _ in range(3))
    for kind, each in {CLICK: options.values[CLICK], **values}.items():
        happened = counts.clicks if kind == CLICK else counts.later[kind]
        worth += each * np.bincount(counts.pair, happened * per_look) / impressions
        variance += each**2 * np.bincount(counts.pair, happened * per_look**2) / impressions**2
        one = np.maximum(one, each / impressions)
    return rate, worth, np.sqrt(np.maximum(variance, one**2))


def _told_apart(worth: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Worths rounded to a power of two of about half their standard deviation, so that noise makes no order."""
    steps = 2.0 ** np.floor(np.log2(np.maximum(_TOLD_APART * deviation, SMALLEST)))
    return np.round(worth / steps) * steps


def percentiles(
    worth: Float[np.ndarray, " pairs"], supported: Bool[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """1 + 99 times the share of the other supported pairs that are worth less: even, whatever the tail of worth.

    The best have 100, however many of them are tied.
    """
    ordered = np.sort(worth[supported])
    below, most = np.searchsorted(ordered, worth), np.searchsorted(ordered, ordered[-1])
    return 1 + 99 * np.minimum(below / max(most, 1), 1)


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


def _attractiveness(
    counts: Counted, theta: Float[np.ndarray, " positions"], odds: Float[np.ndarray, " pairs"] | None = None
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """`expected_rates` in bounded memory: the distribution from a sample of the pairs, the means block by block."""
    pairs, depth = int(counts.pair[-1]) + 1, len(theta)
    looked = np.bincount(counts.pair, counts.impressions * theta[counts.position - 1])
    grid, shift = rate_grid(float(counts.clicks.sum()), looked), shifts(odds, pairs)
    width = max(depth, len(grid) + int(np.ptp(shift)))
    sample = np.arange(pairs)
    if pairs > _PRIOR_PAIRS:
        sample = np.sort(np.random.default_rng(0).choice(pairs, _PRIOR_PAIRS, replace=False))
    likelihood = [
        rate_likelihood(*_tables(counts, rows, depth), theta, grid, shift[rows]) for rows in _blocks(sample, width)
    ]
    weights = rate_weights(np.concatenate(likelihood))
    del likelihood
    found = [
        posterior(*_tables(counts, rows, depth), theta, grid, weights, shift[rows])
        for rows in _blocks(np.arange(pairs), width)
    ]
    mean, deviation = (np.concatenate(one) for one in zip(*found, strict=True))
    return mean, deviation


def _follow_up_rates(
    followed: Counts, clicks: Counts
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Expected share of each pair's clicks that an event follows, and its standard deviation."""
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
