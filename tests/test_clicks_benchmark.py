"""The benchmark of scores from logs: its users, its figures, and its large log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmarks.clicks import __main__ as benchmark
from benchmarks.clicks import big_log, cost, recovery
from benchmarks.clicks.users import cascade, personal_lists, trusting

from opengcl.clicks.simulate import Simulation, count_events, event_table, position_based, sample_events

SETTINGS = Simulation(sessions=1, depth=3, eta=1)


def test_event_rows_are_those_that_are_counted() -> None:
    relevance = np.linspace(0, 1, 7)
    events = sample_events(relevance, 80, SETTINGS, np.random.default_rng(0))
    rows = event_table(events, "q", [f"d{one}" for one in range(7)], 1000).to_pylist()
    assert {row["query"] for row in rows} == {"q"}
    assert {row["session"] for row in rows} == {f"s{1000 + one}" for one in range(80)}
    place, position, *counts = count_events(events)
    for event, expected in zip(("impression", "click", "purchase"), counts, strict=True):
        found = {}
        for row in rows:
            if row["event"] == event:
                key = (row["doc_id"], row["position"])
                found[key] = found.get(key, 0) + 1
        wanted = {(f"d{a}", b): c for a, b, c in zip(place.tolist(), position.tolist(), expected.tolist(), strict=True)}
        assert found == {key: count for key, count in wanted.items() if count}


def test_a_cascade_looks_less_below_clicks() -> None:
    rng = np.random.default_rng(0)
    always, never = np.ones((40_000, 3)), np.zeros((40_000, 3))
    np.testing.assert_allclose(cascade(always, SETTINGS, rng).mean(axis=0), [1, 0.3, 0.09], atol=0.01)
    never[:, 2] = 1
    np.testing.assert_allclose(cascade(never, SETTINGS, rng).mean(axis=0), [0, 0, 0.81], atol=0.01)


def test_trust_clicks_on_what_is_not_wanted() -> None:
    rng = np.random.default_rng(0)
    found = trusting(np.zeros((40_000, 3)), SETTINGS, rng).mean(axis=0)
    np.testing.assert_allclose(found, [0.6, 0.3 / 2, 0.2 / 3], atol=0.01)
    np.testing.assert_allclose(trusting(np.ones((40_000, 3)), SETTINGS, rng).mean(axis=0), [1, 0.5, 1 / 3], atol=0.01)


def test_a_taste_moves_what_is_liked_up() -> None:
    """Where all are alike, what users see on top is liked more than what they see below."""
    flat = Simulation(sessions=1, depth=4, eta=0, ranker_noise=0)
    _, clicked, _ = personal_lists(np.full(8, 0.5), 20_000, flat, np.random.default_rng(0), position_based)
    rates = clicked.mean(axis=0)
    assert (np.diff(rates) < -0.02).all()


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    worlds = ["as the model says", "lists never vary", "lists never vary, true propensities given"]
    return recovery.measure(queries=40, sessions=12_000, seed=0, worlds=worlds)


def test_debiased_scores_recover_the_order_better_than_click_rates(found: dict) -> None:
    world = found["worlds"]["as the model says"]
    for metric in ("kendall_tau_b", "ndcg@10"):
        assert world[metric]["posterior - ctr"][1] > 0  # the lower end of the interval
    np.testing.assert_allclose(world["theta"], 1 / np.arange(1, 11), atol=0.06)


def test_scores_are_not_behind_click_rates_where_clicks_are_rare() -> None:
    name = "1%"
    rare = recovery.measure(queries=25, sessions=20_000, seed=0, worlds=[name])["worlds"][name]
    assert rare["clicks"] == pytest.approx(0.01 * 200_000, rel=0.15)
    for metric in ("kendall_tau_b", "ndcg@10"):
        assert rare[metric]["posterior - ctr"][2] > 0  # the upper end of the interval
    np.testing.assert_allclose(rare["theta"][:5], 1 / np.arange(1, 6), atol=0.15)


def test_lists_that_never_vary_are_refused_or_known(found: dict) -> None:
    worlds = found["worlds"]
    assert "at one position only" in worlds["lists never vary"]["refused"]
    given = worlds["lists never vary, true propensities given"]
    assert given["kendall_tau_b"]["posterior - ctr"][1] > 0
    assert "| lists never vary | refused |" in recovery.table(found)


def test_the_large_log_is_the_same_each_time(tmp_path: Path) -> None:
    count = big_log.write_big_log(tmp_path / "one", 20_000)
    assert count == pytest.approx(20_000, rel=0.1)
    big_log.write_big_log(tmp_path / "two", 20_000)
    one, two = (pq.read_table(tmp_path / name / "log.parquet") for name in ("one", "two"))
    assert one.equals(two)
    events = one["event"].value_counts().to_pylist()
    assert {row["values"] for row in events} == {"impression", "click", "purchase"}


@pytest.mark.slow
def test_the_cost_is_measured_on_equal_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["cost", "--events", "2000000", "--repeats", "1", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["peak_gigabytes"] < 2
    assert cost.table(found) == capsys.readouterr().out.strip()
