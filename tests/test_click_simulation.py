"""The simulated interaction log, its debiasing, and the data sets made of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.ranking import clicks
from benchmarks.ranking.clicks import Pairs, Scoring

from opengcl.clicks import simulate as simulator
from opengcl.clicks.simulate import Log, Simulation
from opengcl.data import RankedDataset, Schema, write_dataset

SHOP = Simulation(sessions=12_000, popularity=0.5, depth=8, distractors=10, ranker_noise=0.5)
SCORING = Scoring()


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> RankedDataset:
    """60 queries and 400 documents, titles only; a third of the queries and half of the documents are novel."""
    folder = tmp_path_factory.mktemp("truth")
    rng = np.random.default_rng(5)
    chosen = np.stack([rng.permutation(400)[:40] for _ in range(60)])
    queries, documents = [f"q{row}" for row in range(60)], np.array([f"d{row}" for row in range(400)])
    write_dataset(
        folder / "data",
        Schema("toy", {"query": "text"}, {"title": "text"}, 1, 100),
        pa.table(
            {"query_id": queries, "query": queries, "split": ["novel" if r % 3 == 2 else "seen" for r in range(60)]}
        ),
        pa.table(
            {"doc_id": documents, "title": documents, "split": ["novel" if r % 2 else "seen" for r in range(400)]}
        ),
        pa.table(
            {
                "query_id": np.repeat(queries, 40),
                "doc_id": documents[chosen.ravel()],
                "score": np.tile(np.linspace(100, 1, 40), 60),
            }
        ),
    )
    return RankedDataset.open(folder / "data", cache_dir=folder / "cache", progress=False)


@pytest.fixture(scope="module")
def log(truth) -> Log:
    return simulator.simulate(truth, SHOP, seed=3)


@pytest.fixture(scope="module")
def pairs(log) -> Pairs:
    return clicks.score_log(log, SCORING)


def test_candidates_are_seen_and_each_once(truth):
    for query in truth.splits.query_rows("in_domain").tolist():
        documents, relevance = simulator.candidates(truth, query, 150, np.random.default_rng(query))
        known = dict(zip(*(column.tolist() for column in truth.qrels.judged(query)), strict=True))
        assert len(set(documents.tolist())) == len(documents) == (relevance > 0).sum() + 150
        assert truth.splits.document_seen[documents].all()
        assert [100 * one for one in relevance] == pytest.approx([known.get(one, 0) for one in documents.tolist()])
        assert (relevance > 0).sum() == truth.splits.document_seen[list(known)].sum()


def test_counts_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    shown, clicked, bought = simulator.sample_events(np.linspace(0, 1, 7), 50, dataclasses.replace(SHOP, depth=4), rng)
    assert shown.shape == (50, 4)
    assert all(len(set(row)) == 4 for row in shown.tolist())
    cells: dict[tuple[int, int], list[int]] = {}
    for session in range(50):
        for place in range(4):
            cell = cells.setdefault((int(shown[session, place]), place + 1), [0, 0, 0])
            cell[0] += 1
            cell[1] += int(clicked[session, place])
            cell[2] += int(bought[session, place])
    counted = zip(*(column.tolist() for column in simulator.count_events((shown, clicked, bought))), strict=True)
    assert {(place, position): counts for place, position, *counts in counted} == cells


def test_rates_of_the_user_are_those_of_the_model():
    shop = dataclasses.replace(SHOP, depth=3, ranker_noise=0, session_noise=9, eta=0.7, click_gamma=2)
    relevance = np.array([1.0, 0.5, 0.0])
    shown, clicked, bought = simulator.sample_events(relevance, 60_000, shop, np.random.default_rng(0))
    for place, alpha, purchase in ((0, 0.8, 0.3), (1, 0.05 + 0.75 / 4, 0.3 / 4), (2, 0.05, 0.0)):
        for position in range(3):
            here = shown[:, position] == place
            assert clicked[:, position][here].mean() == pytest.approx(alpha * (position + 1) ** -0.7, abs=0.015)
        assert bought[shown == place].sum() / clicked[shown == place].sum() == pytest.approx(purchase, abs=0.015)


def test_no_click_without_impression_and_no_purchase_without_click(log):
    assert (log.impressions >= 1).all()
    assert (log.clicks <= log.impressions).all()
    assert (log.purchases <= log.clicks).all()
    assert log.purchases.sum() > 0
    assert log.impressions.sum() == SHOP.sessions * SHOP.depth
    assert np.isin(log.position, np.arange(1, SHOP.depth + 1)).all()


def test_nothing_novel_is_in_the_log(truth, log):
    assert truth.splits.query_seen[log.query].all()
    assert truth.splits.document_seen[log.document].all()
    assert not truth.splits.query_seen.all()
    assert not truth.splits.document_seen.all()


def test_novel_judgments_change_nothing(truth, log, tmp_path):
    """The log of a truth without novel pairs is the same to the last count."""
    kept = np.sort(truth.splits.training_pairs())
    qrels = pq.read_table(truth.path / "qrels.parquet")
    order = np.argsort([int(one[1:]) for one in qrels["query_id"].to_pylist()], kind="stable")
    tables = (pq.read_table(truth.path / f"{side}.parquet") for side in ("queries", "documents"))
    write_dataset(tmp_path / "data", truth.schema, *tables, qrels.take(order[kept]))
    blind = RankedDataset.open(tmp_path / "data", cache_dir=tmp_path / "cache", progress=False)
    assert len(blind.qrels) < len(truth.qrels)
    for one, other in zip(simulator.simulate(blind, SHOP, seed=3), log, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_seed_decides_everything(truth, log, pairs):
    again, other = simulator.simulate(truth, SHOP, seed=3), simulator.simulate(truth, SHOP, seed=4)
    for one, two in zip(again, log, strict=True):
        np.testing.assert_array_equal(one, two)
    assert len(other.query) != len(log.query) or (other.clicks != log.clicks).any()
    np.testing.assert_array_equal(clicks.score_log(again, SCORING).score, pairs.score)


def test_debiased_orders_beat_the_click_rate(truth, log, pairs):
    found = clicks.compare(truth, log, pairs, seed=0)
    for metric in ("ndcg@10", "kendall_tau_b"):
        assert found[metric]["worth - ctr"][1] > 0  # the lower end of the interval
        assert found[metric]["worth"][0] > found[metric]["ranker"][0]
    taus = found["kendall_tau_b"]
    assert taus["alpha"][0] > taus["pbm"][0]


def test_without_position_bias_theta_is_flat(truth):
    flat = clicks.score_log(simulator.simulate(truth, dataclasses.replace(SHOP, eta=0), seed=0), SCORING)
    np.testing.assert_allclose(flat.fitted["theta"], 1, atol=0.06)


def test_examination_is_estimated_from_the_log(pairs):
    np.testing.assert_allclose(pairs.fitted["theta"], 1 / np.arange(1, SHOP.depth + 1), atol=0.03)


def test_scores_are_even_percentiles_of_worth(pairs):
    score, worth = pairs.score[pairs.supported], pairs.estimates["worth"][pairs.supported]
    assert (score.min(), score.max()) == (1, 100)
    for at in range(0, len(score), 97):
        assert score[at] == pytest.approx(1 + 99 * (worth < worth[at]).sum() / (len(worth) - 1))
    assert 0 < pairs.supported.sum() < len(pairs.score)


def test_purchases_raise_worth(log):
    plain = clicks.score_log(log, Scoring(purchase_weight=0)).estimates
    np.testing.assert_array_equal(plain["worth"], plain["alpha"])
    assert (clicks.score_log(log, Scoring(purchase_weight=3)).estimates["worth"] > plain["worth"]).all()


def test_ndcg_of_the_lists_shown_is_that_of_their_sessions(truth):
    """Session by session, as loops."""
    shop = dataclasses.replace(SHOP, sessions=300, depth=12)
    log = simulator.simulate(truth, shop, seed=1)
    means = []
    for query in np.unique(log.query).tolist():
        documents, scores = truth.qrels.judged(query)
        known = {d: float(s) for d, s in zip(documents.tolist(), scores, strict=True) if truth.splits.document_seen[d]}
        ideal = sum(s / np.log2(r + 2) for r, s in enumerate(sorted(known.values(), reverse=True)[:10]))
        here = [cell for cell in zip(*(c.tolist() for c in log[:4]), strict=True) if cell[0] == query and cell[2] <= 10]
        sessions = sum(shown for _, _, position, shown in here if position == 1)
        gain = sum(shown * known.get(document, 0) / np.log2(position + 1) for _, document, position, shown in here)
        means.append(gain / sessions / ideal)
    pairs = clicks.score_log(simulator.simulate(truth, SHOP, seed=1), SCORING)
    assert clicks.compare(truth, log, pairs, seed=0)["shown_ndcg@10"] == pytest.approx(np.mean(means), abs=1e-4)


def test_orders_by_the_truth_itself_are_perfect(truth, log, pairs):
    true = clicks.true_scores(truth, pairs.query, pairs.document)
    ideal = pairs._replace(
        supported=np.ones(len(true), bool), estimates={**pairs.estimates, "worth": true, "ctr": -true}
    )
    found = clicks.compare(truth, log, ideal, seed=0)
    assert found["kendall_tau_b"]["worth"] == [1, 1, 1]
    unjudged_first = {**ideal.estimates, "worth": np.where(true > 0, true, 200)}
    other = clicks.compare(truth, log, ideal._replace(estimates=unjudged_first), seed=0)
    assert other["kendall_tau_b"]["worth"] == [1, 1, 1]  # over judged pairs
    assert other["ndcg@10"]["worth"][0] < 0.5
    assert found["kendall_tau_b"]["ctr"] == [-1, -1, -1]
    assert found["ndcg@10"]["worth"][0] > 0.99


def test_tau_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    for size in (2, 5, 40):
        first, second = rng.integers(0, 6, size).tolist(), rng.integers(0, 9, size).tolist()
        agreed = untied_first = untied_second = 0
        for (a, b), (c, d) in itertools.combinations(zip(first, second, strict=True), 2):
            agreed += (a > c) * (b > d) + (a < c) * (b < d) - (a > c) * (b < d) - (a < c) * (b > d)
            untied_first += a != c
            untied_second += b != d
        expected = agreed / (untied_first * untied_second) ** 0.5
        assert clicks.kendall_tau_b(np.array(first), np.array(second)) == pytest.approx(expected)
    assert np.isnan(clicks.kendall_tau_b(np.ones(4), np.arange(4.0)))


def test_true_scores_are_zero_where_unjudged(truth):
    known = {
        (q, d): s
        for q, d, s in zip(
            *(a.tolist() for a in (truth.qrels.query, truth.qrels.document, truth.qrels.score)), strict=True
        )
    }
    query, document = (grid.ravel() for grid in np.mgrid[0:60, 0:400])
    expected = [known.get(pair, 0.0) for pair in zip(query.tolist(), document.tolist(), strict=True)]
    np.testing.assert_array_equal(clicks.true_scores(truth, query, document), expected)


def test_a_log_too_short_is_an_error(truth):
    short = simulator.simulate(truth, dataclasses.replace(SHOP, sessions=40), seed=0)
    with pytest.raises(ValueError, match=r"no pair has 50 impressions \(fit_impressions\)"):
        clicks.score_log(short, SCORING)


@pytest.mark.parametrize("wrong", [{"sessions": 0}, {"click_floor": 0.9}, {"eta": -1.0}, {"purchase_ceiling": 1.1}])
def test_settings_out_of_range_are_errors(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; allowed: "):
        Simulation(**wrong)


@pytest.fixture(scope="module")
def written(truth, tmp_path_factory) -> Path:
    """What the command writes."""
    out = tmp_path_factory.mktemp("clicks") / "out"
    options = {name.replace("_", "-"): value for name, value in dataclasses.asdict(SHOP).items()}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    clicks.main(["--data", str(truth.path), "--out", str(out), "--seed", "3", *given])
    return out


def test_folders_open_strictly_and_hold_seen_pairs_only(truth, written, pairs, tmp_path):
    kept = {"scored": pairs.supported, "clicked": pairs.clicked}
    for name, mask in kept.items():
        data = RankedDataset.open(written / name, strict=True, cache_dir=tmp_path, progress=False)
        assert data.problems == []
        assert len(data.qrels) == mask.sum() == len(data.splits.training_pairs())
        np.testing.assert_array_equal(data.qrels.query, pairs.query[mask])
        np.testing.assert_array_equal(data.qrels.document, pairs.document[mask])
        for split in ("query_seen", "document_seen", "query_dev"):
            np.testing.assert_array_equal(getattr(data.splits, split), getattr(truth.splits, split))
        for side in ("queries", "documents"):
            assert pq.read_table(written / name / f"{side}.parquet").equals(
                pq.read_table(truth.path / f"{side}.parquet")
            )
        if name == "scored":
            np.testing.assert_allclose(data.qrels.score, pairs.score[mask], rtol=1e-6)
        else:
            assert set(data.qrels.score.tolist()) == {data.schema.score_max} == {1}


def test_report_and_log_are_those_of_the_run(written, log, pairs, truth):
    report = json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert report["against_truth"] == clicks.compare(truth, log, pairs, seed=3)
    assert report["pairs"]["scored"]["all"] == pairs.supported.sum()
    assert report["pairs"]["shown"]["judged"] < report["pairs"]["shown"]["all"] == len(pairs.score)
    table = pq.read_table(written / "log.parquet")
    assert table["clicks"].to_pylist() == log.clicks.tolist()
    assert table["doc_id"].to_pylist() == [f"d{row}" for row in log.document]
