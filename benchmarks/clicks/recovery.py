"""Logs of users whose truth is known, scored by the command's own code, and compared with the truth."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.ranking.clicks import kendall_tau_b
from numpy.random import Generator, default_rng

from opengcl.clicks import LogOptions, ScoreOptions, from_logs
from opengcl.clicks.counts import query_id
from opengcl.clicks.simulate import Events, Simulation, User, event_table, position_based, sample_events
from opengcl.compare import bootstrap_interval
from opengcl.data import DataSetError
from opengcl.metrics import ndcg

from .users import cascade, personal_lists, trusting

CANDIDATES, DEPTH, BEST = 40, 10, 10
SHOP = Simulation(sessions=1, depth=DEPTH)


class World(NamedTuple):
    """What makes the log."""

    settings: Simulation = SHOP
    user: User = position_based
    sample: Callable[..., Events] = sample_events
    shuffled: float = 0.0  # share of the lists in random order, and marked
    returns: bool = False  # what the log calls purchases are returns: the worse, the more
    bias: Any = "auto"
    lists: int = 1  # times as many as asked for


def _rare(rate: float, lists: int = 1) -> World:
    """A shop where about so many impressions are clicked."""
    ceiling = rate / 0.145
    return World(dataclasses.replace(SHOP, click_floor=ceiling / 16, click_ceiling=ceiling), lists=lists)


WORLDS = {
    "as the model says": World(),
    "no position bias": World(dataclasses.replace(SHOP, eta=0)),
    "a look depends on clicks above (cascade)": World(user=cascade),
    "trust in the ranker": World(user=trusting),
    "lists follow the user's taste": World(sample=personal_lists),
    "the same, a fifth of the lists shuffled": World(sample=personal_lists, shuffled=0.2),
    "`purchase` means returned": World(returns=True),
    "lists hardly vary": World(dataclasses.replace(SHOP, session_noise=0.02)),
    "lists never vary": World(dataclasses.replace(SHOP, session_noise=0)),
    "lists never vary, `--position-bias none`": World(dataclasses.replace(SHOP, session_noise=0), bias="none"),
    "lists never vary, true propensities given": World(
        dataclasses.replace(SHOP, session_noise=0), bias=tuple(SHOP.examination(DEPTH).tolist())
    ),
    "10% of impressions are clicked": _rare(0.1),
    "3%": _rare(0.03),
    "1%": _rare(0.01),
    "0.3%, four times the lists": _rare(0.003, lists=4),
    "0.1%, four times the lists": _rare(0.001, lists=4),
}


def measure(queries: int, sessions: int, seed: int, worlds: Sequence[str] = tuple(WORLDS)) -> dict[str, Any]:
    """Every world's figures: means over queries and 95% bootstrap intervals, or why its log was refused."""
    truth = [default_rng([seed, 1, query]).beta(1, 2, CANDIDATES) for query in range(queries)]
    popularity = np.exp(1.0 * default_rng([seed, 0]).standard_normal(queries))
    shares = popularity / popularity.sum()
    counts = {
        times: default_rng([seed, 3]).multinomial(sessions * times, shares)
        for times in {WORLDS[name].lists for name in worlds}
    }
    with tempfile.TemporaryDirectory() as folder:
        return {
            "worlds": {
                name: _measure_world(Path(folder) / str(number), WORLDS[name], truth, counts[WORLDS[name].lists], seed)
                for number, name in enumerate(worlds)
            }
        }


def _measure_world(
    folder: Path, world: World, truth: list[np.ndarray], sessions: np.ndarray, seed: int
) -> dict[str, Any]:
    folder.mkdir()
    pq.write_table(pa.concat_tables(_queries(world, truth, sessions, seed)), folder / "log.parquet")
    ids = [_name(query, place) for query in range(len(truth)) for place in range(CANDIDATES)]
    pq.write_table(pa.table({"doc_id": ids, "title": ids}), folder / "documents.parquet")
    tables = {}
    for method in ("posterior", "ips"):
        scoring = ScoreOptions(method=method, position_bias=world.bias)
        try:
            report = from_logs(
                folder / "log.parquet",
                folder / "documents.parquet",
                folder / method,
                columns=LogOptions(randomised="randomised"),
                scoring=scoring,
                threads=1,
                progress=False,
            )
        except DataSetError as error:
            return {"refused": str(error)}
        tables[method] = pq.read_table(folder / method / "qrels.parquet")
    scored = tables["posterior"]
    clicks, impressions = (np.array(scored[name]) for name in ("clicks", "impressions"))
    estimates = {
        "ctr": clicks / impressions,
        "ips": np.array(tables["ips"]["score"]),
        "posterior": np.array(scored["score"]),
    }
    if report.propensities is None:
        raise RuntimeError(f"the report of {folder} holds no propensities")
    theta = report.propensities.theta
    told = {"pairs": report.pairs, "clicks": int(clicks.sum()), "slope": round(report.exposure_slope, 3)}
    return {"theta": theta.round(4).tolist(), **told} | _compare(scored, estimates, truth, seed)


def _queries(world: World, truth: list[np.ndarray], sessions: np.ndarray, seed: int) -> Iterator[pa.Table]:
    first = 0
    for query, (relevance, count) in enumerate(zip(truth, sessions.tolist(), strict=True)):
        names = [_name(query, place) for place in range(CANDIDATES)]
        shuffled = round(world.shuffled * count)
        for part, flag in ((count - shuffled, False), (shuffled, True)):
            if part:
                rng = default_rng([seed, 2, query, int(flag)]) if flag else default_rng([seed, 2, query])
                events = _events(world, relevance, part, rng, **({"shuffled": True} if flag else {}))
                table = event_table(events, f"query {query}", names, first)
                yield table.append_column("randomised", pa.repeat(flag, len(table)))
            first += part


def _events(world: World, relevance: np.ndarray, count: int, rng: Generator, **options: bool) -> Events:
    shown, clicked, bought = world.sample(relevance, count, world.settings, rng, world.user, **options)
    if world.returns:
        worse = world.settings.purchase_ceiling * (1 - relevance[shown]) ** world.settings.purchase_gamma
        bought = clicked & (rng.random(shown.shape) < worse)
    return shown, clicked, bought


def _name(query: int, place: int) -> str:
    return f"d{query}-{place}"


def _compare(
    scored: pa.Table, estimates: dict[str, np.ndarray], truth: list[np.ndarray], seed: int
) -> dict[str, dict[str, list[float]]]:
    """[mean, low, high] of each metric and estimate, and of posterior minus ctr; the pairs are those with a score."""
    numbers = {query_id(f"query {query}"): query for query in range(len(truth))}
    query = np.array([numbers[one] for one in scored["query_id"].to_pylist()])
    place = np.array([int(one.rpartition("-")[2]) for one in scored["doc_id"].to_pylist()])
    taus, taus_b, gains = [], [], []
    for number, relevance in enumerate(truth):
        rows = np.flatnonzero(query == number)
        true = relevance[place[rows]]
        taus.append([kendall_tau(values[rows], true) for values in estimates.values()])
        taus_b.append([kendall_tau_b(values[rows], true) for values in estimates.values()])
        ideal = np.sort(relevance)[::-1][None, :BEST]
        orders = [np.argsort(-values[rows], kind="stable")[:BEST] for values in estimates.values()]
        gains.append([ndcg(_padded(true[order])[None], ideal, k=BEST)[0] for order in orders])
    found = {}
    for metric, values in (
        ("kendall_tau", np.array(taus)),
        ("kendall_tau_b", np.array(taus_b)),
        ("ndcg@10", np.array(gains)),
    ):
        values = values[~np.isnan(values).any(axis=1)]
        values = np.column_stack([values, values[:, -1] - values[:, 0]])
        figures = np.stack([values.mean(axis=0), *bootstrap_interval(values, resamples=2000, seed=seed)]).T
        found[metric] = dict(zip([*estimates, "posterior - ctr"], figures.round(4).tolist(), strict=True))
    return found


def kendall_tau(values: np.ndarray, truth: np.ndarray) -> float:
    """Rank correlation in [-1, 1] as expected if ties among the values are broken at random; NaN if the truth is ties.

    Kendall's tau-b takes tied pairs out instead, and so favours an estimate that leaves most pairs tied, as click rates
    do where clicks are rare. A list has to put one first. This is Somers' (1962) D of the values given the truth.
    """
    signs = [np.sign(one[:, None] - one) for one in (values, truth)]
    untied = np.count_nonzero(signs[1])
    return float((signs[0] * signs[1]).sum() / untied) if untied else np.nan


def _padded(values: np.ndarray) -> np.ndarray:
    return np.pad(values, (0, BEST - len(values)))


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| log | τ ctr | τ ips | τ posterior | posterior - ctr | by τ-b "
        "| NDCG@10 ctr | NDCG@10 posterior | posterior - ctr | θ at 2, 5, 10 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, world in found["worlds"].items():
        if "refused" in world:
            lines.append(f"| {name} | refused | | | | | | | | |")
            continue
        tau, tau_b, gain = (world[one] for one in ("kendall_tau", "kendall_tau_b", "ndcg@10"))
        cells = [f"{tau[one][0]:.3f}" for one in ("ctr", "ips", "posterior")]
        cells += [
            _interval(tau),
            _interval(tau_b),
            *(f"{gain[one][0]:.3f}" for one in ("ctr", "posterior")),
            _interval(gain),
        ]
        cells.append(", ".join(f"{world['theta'][position - 1]:.2f}" for position in (2, 5, 10)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(figures: dict[str, list[float]]) -> str:
    mean, low, high = figures["posterior - ctr"]
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
