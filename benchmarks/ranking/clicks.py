"""Scores from clicks where the truth is known: an interaction log is simulated on a ranked data set, and scored.

    python -m benchmarks.ranking.clicks --data ../shared/fashion --out runs/data/clicks [--seed 0] [--sessions N ...]

A mediocre ranker shows lists to a user with position bias, for seen queries and of seen documents only. OUT receives
``log.parquet``, ``report.json`` and two data sets with the queries, documents and splits of the truth:

* ``scored``: continuous scores from the debiased log;
* ``clicked``: the same log as binary clicks, every clicked pair with score 1.

The user follows the position-based model (PBM; Richardson et al. 2007): a result at position k is examined with
probability theta_k, and clicked if so with the pair's attractiveness alpha: P(click) = theta_k alpha. The scoring is
not told theta: it estimates theta and alpha from the log.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int
from numpy.random import Generator, default_rng

from opengcl.compare import bootstrap_interval
from opengcl.data import RankedDataset, write_dataset
from opengcl.metrics import ndcg

Cells = Int[np.ndarray, " cells"]
Values = Float[np.ndarray, " pairs"]
Table = Float[np.ndarray, "pairs positions"]
Events = tuple[np.ndarray, np.ndarray, np.ndarray]  # (sessions, depth): place of the document shown, clicked?, bought?

_STEPS, _STILL = 200, 1e-5  # the EM stops after so many, or when no theta moves by more
_SMALLEST = 1e-12  # keeps what is divided by above zero
RATES = (np.arange(50) + 0.5) / 50
"""What an attractiveness or a purchase rate can be."""


@dataclasses.dataclass(frozen=True)
class Simulation:
    """The shop, its ranker and its user. Relevance rel is the true score over the data set's highest, in [0, 1]."""

    sessions: int = 400_000
    """Result lists shown, over all queries; a list is ``depth`` impressions."""
    popularity: float = 1.2
    """Standard deviation of a query's log share of the sessions (log-normal); 0: all queries alike."""
    depth: int = 20
    """Positions shown in a list."""
    distractors: int = 60
    """Random unjudged documents, rel 0, that the ranker has for each query beside the judged ones."""
    ranker_noise: float = 0.7
    session_noise: float = 0.3
    """Standard deviations, in units of rel, of the ranker's error about a pair: the same in all sessions, and new in
    each, so that a document is seen at several positions."""
    eta: float = 1.0
    """Steepness of the position bias: theta_k = (1 / k)^eta."""
    click_floor: float = 0.05
    click_ceiling: float = 0.8
    click_gamma: float = 1.0
    """P(click | examined) = floor + (ceiling - floor) rel^gamma."""
    purchase_ceiling: float = 0.3
    purchase_gamma: float = 2.0
    """P(purchase | click) = ceiling rel^gamma."""

    def __post_init__(self) -> None:
        bounds = {"click_floor": (0, self.click_ceiling), "click_ceiling": (0, 1), "purchase_ceiling": (0, 1)}
        for name, value in dataclasses.asdict(self).items():
            low, high = bounds.get(name, (1 if name in ("sessions", "depth") else 0, np.inf))
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; allowed: {low} to {high}")


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How a log becomes scores."""

    purchase_weight: float = 2.0
    """Worth of a purchase in clicks, beside the click that led to it."""
    minimum_examinations: float = 0.2
    """Support: a pair has a score from so many estimated examinations (impressions times theta) on. Little is enough,
    as what is known of few is pulled to the mean."""
    fit_impressions: int = 50
    """Theta is fitted on pairs shown so often. With fewer, alpha follows a handful of clicks, and theta comes out too
    high where such pairs mostly are, in the lower positions (incidental parameters)."""


class Log(NamedTuple):
    """An aggregated log: a cell for each (query, document, position) that was shown, query by query."""

    query: Cells  # row in the data set's queries
    document: Cells  # row in its documents
    position: Cells  # 1 is the top
    impressions: Cells  # at least 1
    clicks: Cells
    purchases: Cells


class Pairs(NamedTuple):
    """What a log says of the (query, document) pairs that it shows, sorted by query and document."""

    query: Int[np.ndarray, " pairs"]
    document: Int[np.ndarray, " pairs"]
    clicked: Bool[np.ndarray, " pairs"]
    supported: Bool[np.ndarray, " pairs"]  # examined often enough for a score
    estimates: dict[str, Values]  # how good the pair is, by method; only orders are compared
    score: Values  # percentile of the last estimate among all supported pairs, in [1, 100]
    fitted: dict[str, list[float]]  # theta by position, and the weights of `RATES`


def simulate(dataset: RankedDataset, settings: Simulation, seed: int) -> Log:
    """A log over the seen queries that have a judged seen document, and over seen documents only."""
    if dataset.schema.score_min < 0:
        raise ValueError(f"the data set's scores begin at {dataset.schema.score_min}; allowed: 0 or more, as relevance")
    queries = dataset.splits.query_rows("in_domain")
    rng = default_rng([seed, 0])
    popularity = np.exp(settings.popularity * rng.standard_normal(len(queries)))
    sessions = rng.multinomial(settings.sessions, popularity / popularity.sum())
    parts = []
    for query, count in zip(queries.tolist(), sessions.tolist(), strict=True):
        rng = default_rng([seed, 1, query])
        documents, relevance = candidates(dataset, query, settings.distractors, rng)
        place, *counts = count_events(sample_events(relevance, count, settings, rng))
        parts.append(np.stack([np.full(len(place), query), documents[place], *counts]))
    return Log(*np.concatenate(parts, axis=1).astype(np.int32))


def candidates(dataset: RankedDataset, query: int, distractors: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and relevance in [0, 1] of the seen documents that the ranker has for a query, judged ones first."""
    judged, score = dataset.qrels.judged(query)
    seen = dataset.splits.document_seen[judged]
    judged, score = judged[seen], score[seen]
    half = dataset.splits.document_rows("in_domain")
    drawn = rng.choice(half, min(len(half), distractors + len(judged)), replace=False)
    others = drawn[~np.isin(drawn, judged)][:distractors]
    relevance = np.concatenate([score / dataset.schema.score_max, np.zeros(len(others))])
    return np.concatenate([judged, others]), relevance


def sample_events(relevance: np.ndarray, sessions: int, settings: Simulation, rng: Generator) -> Events:
    """Sessions of one query, event by event; its candidates have these relevances."""
    opinion = relevance + settings.ranker_noise * rng.standard_normal(len(relevance))
    moved = opinion + settings.session_noise * rng.standard_normal((sessions, len(opinion)))
    shown = np.argsort(-moved, axis=1)[:, : settings.depth]
    examination = (1.0 / np.arange(1, shown.shape[1] + 1)) ** settings.eta
    span = settings.click_ceiling - settings.click_floor
    attractiveness = settings.click_floor + span * relevance**settings.click_gamma
    purchase = settings.purchase_ceiling * relevance**settings.purchase_gamma
    clicked = rng.random(shown.shape) < examination * attractiveness[shown]
    return shown, clicked, clicked & (rng.random(shown.shape) < purchase[shown])


def count_events(events: Events) -> tuple[Cells, Cells, Cells, Cells, Cells]:
    """Adds events up: document's place, position, impressions, clicks and purchases of each cell that was shown."""
    shown, clicked, bought = events
    depth = shown.shape[1]
    cell = shown * depth + np.arange(depth)
    size = cell.max(initial=0) + 1
    counts = [np.bincount(one, minlength=size) for one in (cell.ravel(), cell[clicked], cell[bought])]
    found = np.flatnonzero(counts[0])
    impressions, clicks, purchases = (count[found] for count in counts)
    return found // depth, found % depth + 1, impressions, clicks, purchases


def fit_position_model(pair: Cells, position: Cells, impressions: Cells, clicks: Cells) -> tuple[np.ndarray, Values]:
    """Theta by position and alpha by pair (an index without gaps), by maximum likelihood, in [0, 1].

    EM (Chuklin et al. 2015, section 4.2) on counts. E: a result without click was examined with probability
    theta (1 - alpha) / (1 - theta alpha), and attractive with alpha (1 - theta) / (1 - theta alpha). M: theta and
    alpha are the expected shares of the impressions. Only their product is identified, so theta_1 = 1.
    """
    place = position - 1
    shown, of_pair = np.maximum(np.bincount(place, impressions), 1), np.bincount(pair, impressions)
    theta = np.bincount(place, clicks) / shown
    theta = np.minimum(theta / max(theta[0], _SMALLEST), 1)
    alpha = np.bincount(pair, clicks) / np.maximum(np.bincount(pair, impressions * theta[place]), _SMALLEST)
    alpha = np.minimum(alpha, 1)
    for _ in range(_STEPS):
        looked, liked = theta[place], alpha[pair]
        missed = (impressions - clicks) / np.maximum(1 - looked * liked, _SMALLEST)
        new = np.bincount(place, clicks + missed * looked * (1 - liked)) / shown
        alpha = np.minimum(np.bincount(pair, clicks + missed * liked * (1 - looked)) / of_pair * new[0], 1)
        new = np.minimum(new / max(new[0], _SMALLEST), 1)
        moved, theta = np.abs(new - theta).max(), new
        if moved < _STILL:
            break
    return theta, alpha


def expected_rates(successes: Table, trials: Table, looks: Values) -> tuple[Values, Values]:
    """Posterior mean of each pair's rate alpha, given the distribution of the rates of all pairs.

    A pair's trials at position k succeed with probability looks_k alpha. Nothing is assumed of the distribution: it is
    a weight on each of `RATES`, by maximum marginal likelihood (Kiefer & Wolfowitz 1956), with EM (Laird 1978). So a
    pair with few trials stays near what most pairs are, and one with many goes where its own successes are.

    Args:
        successes: Counts, at most the trials.
        trials: Counts.
        looks: Probabilities in [0, 1], by position.

    Returns:
        The means in (0, 1), and the weight of each of `RATES`, which sum to 1.
    """
    succeeding = np.maximum(looks[:, None], _SMALLEST) * RATES
    likelihood = successes @ np.log(succeeding) + (trials - successes) @ np.log1p(-succeeding)
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    weights = np.full(len(RATES), 1 / len(RATES))
    for _ in range(_STEPS):
        new = weights * (likelihood.T @ (1 / (likelihood @ weights))) / len(likelihood)
        moved, weights = np.abs(new - weights).max(), new
        if moved < _STILL:
            break
    return likelihood @ (weights * RATES) / (likelihood @ weights), weights


def score_log(log: Log, settings: Scoring) -> Pairs:
    """Debiased scores of the pairs in a log.

    The estimates: ``ranker``, minus the mean position; ``ctr``, clicks an impression; ``pbm``, clicks an examination;
    ``alpha``, the expected attractiveness; ``worth`` = alpha (1 + purchase_weight rho) with rho the expected purchases
    a click (`expected_rates`). The score is the percentile of worth among all supported pairs, from 1 to 100: even, as
    weight functions of ranks expect, whatever the tail of worth; and not by query, so that little support gives scores
    in the middle.

    Raises:
        ValueError: If no pair was shown often enough to fit the model.
    """
    key, pair = np.unique(log.query.astype(np.int64) << 32 | log.document, return_inverse=True)
    impressions, clicks, purchases = (np.bincount(pair, counts) for counts in log[3:])
    often = np.flatnonzero((impressions >= settings.fit_impressions)[pair])
    if not len(often):
        raise ValueError(f"no pair has {settings.fit_impressions} impressions (fit_impressions); needed: a longer log")
    index = np.unique(pair[often], return_inverse=True)[1]
    theta, _ = fit_position_model(index, *(counts[often] for counts in log[2:5]))
    theta = np.pad(theta, (0, log.position.max() - len(theta)), mode="edge")
    looked = np.bincount(pair, log.impressions * theta[log.position - 1])
    supported = looked >= settings.minimum_examinations
    if not supported.any():
        raise ValueError(f"no pair has {settings.minimum_examinations} examinations; needed: a longer log")
    at = pair * len(theta) + log.position - 1
    clicked, shown = (
        np.bincount(at, counts, len(key) * len(theta)).reshape(-1, len(theta))
        for counts in (log.clicks, log.impressions)
    )
    alpha, attractive = expected_rates(clicked, shown, theta)
    rho, bought = expected_rates(purchases[:, None], clicks[:, None], np.ones(1))
    worth = alpha * (1 + settings.purchase_weight * rho)
    estimates = {
        "ranker": -np.bincount(pair, log.impressions * log.position) / impressions,
        "ctr": clicks / impressions,
        "pbm": clicks / np.maximum(looked, _SMALLEST),
        "alpha": alpha,
        "worth": worth,
    }
    below = np.searchsorted(np.sort(worth[supported]), worth)
    score = 1 + 99 * np.minimum(below / max(supported.sum() - 1, 1), 1)
    fitted = {"theta": theta, "attractiveness": attractive, "purchases": bought}
    rounded = {name: values.round(4).tolist() for name, values in fitted.items()}
    return Pairs(
        key >> 32,
        key & 0xFFFFFFFF,
        clicks > 0,
        supported,
        estimates,
        score,
        rounded,
    )


def kendall_tau_b(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Rank correlation in [-1, 1], corrected for ties (Kendall 1945); NaN if either is all ties."""
    signs = [np.sign(values[:, None] - values) for values in (first, second)]
    untied = [np.count_nonzero(sign) for sign in signs]
    return float((signs[0] * signs[1]).sum() / np.sqrt(untied[0] * untied[1])) if all(untied) else np.nan


def true_scores(dataset: RankedDataset, query: np.ndarray, document: np.ndarray) -> Float[np.ndarray, " asked"]:
    """True score of each asked pair, in the data set's units; 0 where it is not judged."""
    known = dataset.qrels.query.astype(np.int64) << 32 | dataset.qrels.document
    asked = query.astype(np.int64) << 32 | document
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known, asked, sorter=order), len(order) - 1)]
    return np.where(known[place] == asked, dataset.qrels.score[place], 0.0)


def _first_ten(values: np.ndarray, query: np.ndarray, order: np.ndarray, queries: int) -> np.ndarray:
    """(queries, 10): the first ten values of each query in an order that goes query by query; 0 where there is none."""
    rank = np.arange(len(order)) - np.searchsorted(query[order], query[order])
    table, kept = np.zeros((queries, 10)), rank < 10
    table[query[order][kept], rank[kept]] = values[order][kept]
    return table


def compare(dataset: RankedDataset, log: Log, pairs: Pairs, seed: int) -> dict[str, object]:
    """The estimates' orders of the supported pairs against the truth: [mean, low, high] over queries.

    NDCG@10 goes over all seen queries with a judged seen document, 0 for one without a supported pair, equal estimates
    in random order; ``shown_ndcg@10`` is that of the lists that users saw. Kendall's tau-b goes over the judged ones of
    the supported pairs, and the queries where it is defined for all. Intervals: 95% bootstrap over queries.
    """
    queries, known = dataset.splits.query_rows("in_domain"), dataset.splits.training_pairs()
    row, score = np.searchsorted(queries, dataset.qrels.query[known]), dataset.qrels.score[known]
    ideal = _first_ten(score, row, np.lexsort((-score, row)), len(queries))
    at = np.flatnonzero(pairs.supported)
    query, truth = np.searchsorted(queries, pairs.query[at]), true_scores(dataset, pairs.query[at], pairs.document[at])
    ties = default_rng([seed, 2]).random(len(at))
    starts = np.searchsorted(query, np.arange(1, len(queries)))
    judged = [rows[truth[rows] > 0] for rows in np.split(np.arange(len(at)), starts)]
    gains, taus = [], []
    for estimate in (values[at] for values in pairs.estimates.values()):
        order = np.lexsort((ties, -estimate, query))
        gains.append(ndcg(_first_ten(truth, query, order, len(queries)), ideal, k=10))
        taus.append([kendall_tau_b(estimate[rows], truth[rows]) for rows in judged])
    tau = np.array(taus).T
    names = [*pairs.estimates, "worth - ctr"]
    found: dict[str, object] = {"shown_ndcg@10": _shown_ndcg(dataset, log, ideal)}
    for metric, table in (("ndcg@10", np.array(gains).T), ("kendall_tau_b", tau[~np.isnan(tau).any(axis=1)])):
        table = np.column_stack([table, table[:, -1] - table[:, 1]])
        figures = np.stack([table.mean(axis=0), *bootstrap_interval(table, resamples=2000, seed=seed)]).T.round(4)
        found[metric] = {"queries": len(table), **dict(zip(names, figures.tolist(), strict=True))}
    return found


def _shown_ndcg(dataset: RankedDataset, log: Log, ideal: np.ndarray) -> float:
    """Mean NDCG@10 of the lists shown, first over a query's sessions: of the mean score at each position."""
    query, cells = np.unique(log.query, return_inverse=True)
    total, impressions = np.zeros((2, len(query), max(10, log.position.max())))
    np.add.at(total, (cells, log.position - 1), log.impressions * true_scores(dataset, log.query, log.document))
    np.add.at(impressions, (cells, log.position - 1), log.impressions)
    rows = np.searchsorted(dataset.splits.query_rows("in_domain"), query)
    return float(ndcg(total / np.maximum(impressions, 1), ideal[rows], k=10).mean().round(4))


def write(truth: RankedDataset, log: Log, pairs: Pairs, out: Path) -> None:
    """Writes OUT/scored, OUT/clicked and OUT/log.parquet, and opens both data sets as a check.

    Pictures must lie in the tables: files beside them are not copied.
    """
    ids = [pa.array(records.ids()) for records in (truth.queries, truth.documents)]

    def table(query: np.ndarray, document: np.ndarray, **columns: np.ndarray) -> pa.Table:
        names = [one.take(pa.array(rows)) for one, rows in zip(ids, (query, document), strict=True)]
        return pa.table({"query_id": names[0], "doc_id": names[1], **columns})

    ones = np.ones(len(pairs.score))
    kinds = {"scored": (pairs.supported, pairs.score, 1, 100), "clicked": (pairs.clicked, ones, 0, 1)}
    for name, (kept, score, low, high) in kinds.items():
        schema = dataclasses.replace(truth.schema, name=f"{truth.schema.name}-{name}", score_min=low, score_max=high)
        sides = (pq.read_table(truth.path / f"{side}.parquet") for side in ("queries", "documents"))
        qrels = table(pairs.query[kept], pairs.document[kept], score=score[kept].astype(np.float32))
        write_dataset(out / name, schema, *sides, qrels)
        RankedDataset.open(out / name, check_images=False, progress=False)
    pq.write_table(table(**log._asdict()), out / "log.parquet", compression="zstd")


def main(arguments: list[str] | None = None) -> None:
    """Simulates, scores, compares, writes and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    for field in (one for kind in (Simulation, Scoring) for one in dataclasses.fields(kind)):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    chosen, started = vars(parser.parse_args(arguments)), time.perf_counter()
    shop, scoring = (
        kind(**{one.name: chosen[one.name] for one in dataclasses.fields(kind)}) for kind in (Simulation, Scoring)
    )
    out, seed = chosen["out"], chosen["seed"]
    truth = RankedDataset.open(chosen["data"], check_images=False, progress=False)
    log = simulate(truth, shop, seed)
    pairs = score_log(log, scoring)
    write(truth, log, pairs, out)
    judged = true_scores(truth, pairs.query, pairs.document) > 0
    kinds = {"shown": pairs.clicked | True, "scored": pairs.supported, "clicked": pairs.clicked}
    report = {
        "data": truth.fingerprint,
        "seed": seed,
        "settings": dataclasses.asdict(shop) | dataclasses.asdict(scoring),
        "log": {name: int(getattr(log, name).sum()) for name in ("impressions", "clicks", "purchases")},
        "pairs": {name: {"all": int(kept.sum()), "judged": int((kept & judged).sum())} for name, kept in kinds.items()},
        "fitted": pairs.fitted,
        "against_truth": compare(truth, log, pairs, seed),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": f"{platform.machine()}, one process, numpy {np.__version__}",
    }
    text = json.dumps(report, indent=1)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
