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
from numpy.random import default_rng

from opengcl.clicks.model import SMALLEST, fit_position_model
from opengcl.clicks.rates import expected_rates
from opengcl.clicks.scores import percentiles
from opengcl.clicks.simulate import Log, Simulation, simulate
from opengcl.compare import bootstrap_interval
from opengcl.data import RankedDataset, write_dataset
from opengcl.metrics import ndcg

Values = Float[np.ndarray, " pairs"]


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


class Pairs(NamedTuple):
    """What a log says of the (query, document) pairs that it shows, sorted by query and document."""

    query: Int[np.ndarray, " pairs"]
    document: Int[np.ndarray, " pairs"]
    clicked: Bool[np.ndarray, " pairs"]
    supported: Bool[np.ndarray, " pairs"]  # examined often enough for a score
    estimates: dict[str, Values]  # how good the pair is, by method; only orders are compared
    score: Values  # percentile of the last estimate among all supported pairs, in [1, 100]
    fitted: dict[str, list[float]]  # theta by position, and the distributions' rates and weights


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
    attractive = expected_rates(clicked, shown, theta)
    bought = expected_rates(purchases[:, None], clicks[:, None], np.ones(1))
    alpha = attractive.mean
    worth = alpha * (1 + settings.purchase_weight * bought.mean)
    estimates = {
        "ranker": -np.bincount(pair, log.impressions * log.position) / impressions,
        "ctr": clicks / impressions,
        "pbm": clicks / np.maximum(looked, SMALLEST),
        "alpha": alpha,
        "worth": worth,
    }
    score = percentiles(worth, supported)
    fitted = {"theta": theta}
    for name, rates in (("attractiveness", attractive), ("purchases", bought)):
        fitted |= {f"{name}_rates": rates.grid, name: rates.weights}
    rounded = {name: values.round(6).tolist() for name, values in fitted.items()}
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
        queries, documents = (pq.read_table(truth.path / f"{side}.parquet") for side in ("queries", "documents"))
        qrels = table(pairs.query[kept], pairs.document[kept], score=score[kept].astype(np.float32))
        write_dataset(out / name, schema, queries, documents, qrels)
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
    shop = Simulation(**{one.name: chosen[one.name] for one in dataclasses.fields(Simulation)})
    scoring = Scoring(**{one.name: chosen[one.name] for one in dataclasses.fields(Scoring)})
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
