"""Comparing systems: figures by hand, tests that have their level and power, and mismatches that are named."""

import itertools
import json

import numpy as np
import pytest

from opengcl import compare as module
from opengcl.compare import (
    CompareError,
    bootstrap_interval,
    compare,
    format_table,
    holm,
    randomisation_p,
    to_json,
)
from opengcl.per_query import PerQueryError, per_query_path, per_query_table, read_per_query, write_per_query


def save(path, splits, shuffle=0):
    """Writes per-query values {split: {metric: values}} as a run folder (no suffix) or FILE.json with its table."""
    if not path.suffix:
        path.mkdir()
    tables = []
    for split, values in splits.items():
        count = len(next(iter(values.values())))
        order = np.random.default_rng(shuffle).permutation(count)
        ids = [f"q{i:04}" for i in order]
        tables.append(per_query_table(split, ids, order, {name: np.asarray(v)[order] for name, v in values.items()}))
    write_per_query(per_query_path(path), tables)
    return path


def two(tmp_path, first, second, **options):
    paths = [save(tmp_path / "a", {"s": {"m": first}}), save(tmp_path / "b", {"s": {"m": second}}, shuffle=5)]
    return compare(paths, **options).rows[1]


# ---- figures


def test_means_and_differences_by_hand_whatever_the_order_of_the_rows(tmp_path):
    row = two(tmp_path, [0.1, 0.2, 0.3], [0.3, 0.2, 0.4])
    assert (row.split, row.metric, row.system, row.queries) == ("s", "m", "b", 3)
    assert row.mean == pytest.approx(0.3)
    assert row.difference == pytest.approx(0.1)
    assert row.percent == pytest.approx(50.0)


def test_a_constant_difference_has_an_interval_of_no_width(tmp_path):
    row = two(tmp_path, [0.1] * 20, [0.35] * 20)
    assert (row.low, row.high) == (pytest.approx(0.25), pytest.approx(0.25))
    assert row.p == row.p_holm == pytest.approx(1 / 10_001)


def test_equal_systems_have_p_1_and_no_percentage_of_zero(tmp_path):
    row = two(tmp_path, [0.0] * 5, [0.0] * 5)
    assert (row.difference, row.percent, row.p) == (0.0, None, 1.0)


def test_the_randomisation_test_approaches_the_exact_one():
    differences = np.array([0.3, -0.1, 0.2, 0.25, -0.05, 0.15, 0.4, 0.02])
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean()
    assert randomisation_p(differences[:, None], resamples=40_000)[0] == pytest.approx(exact, abs=0.006)


def test_draws_that_equal_the_observation_count_in_any_order_of_addition():
    # every assignment with all signs equal gives the observed |sum|; rounding must not lose them
    differences = np.array([0.1, 0.2, 0.3])[:, None]
    assert randomisation_p(differences, resamples=40_000)[0] == pytest.approx(0.25, abs=0.01)


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.2])).tolist() == [0.2]


# ---- level, power, coverage


def test_p_is_uniform_when_there_is_no_difference():
    rng = np.random.default_rng(0)
    # skewed values, many zeros, as metrics are; swapped at random, so the null hypothesis holds
    differences = (rng.exponential(size=(60, 1000)) - rng.exponential(size=(60, 1000))) * (rng.random((60, 1000)) < 0.4)
    p = randomisation_p(differences, resamples=999)
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 1000))


def test_a_real_difference_is_found():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.03, 0.1, size=(300, 50))
    assert (randomisation_p(differences, resamples=999) < 0.05).mean() > 0.95
    low, _ = bootstrap_interval(differences, resamples=999)
    assert (low > 0).mean() > 0.95


def test_the_interval_covers_the_true_difference():
    rng = np.random.default_rng(2)
    differences = 0.1 + rng.normal(0, 0.3, size=(100, 800))
    low, high = bootstrap_interval(differences, resamples=999)
    assert ((low <= 0.1) & (high >= 0.1)).mean() == pytest.approx(0.945, abs=0.03)
    width = 2 * 1.96 * 0.3 / 10
    assert (high - low).mean() == pytest.approx(width, rel=0.05)


# ---- reproducibility and memory


def test_figures_do_not_depend_on_what_else_is_asked(tmp_path):
    rng = np.random.default_rng(3)
    values = [{"s": {m: rng.random(40) for m in "xy"}, "t": {m: rng.random(30) for m in "xy"}} for _ in range(3)]
    paths = [save(tmp_path / name, v) for name, v in zip("abc", values, strict=True)]
    everything = compare(paths)
    alone = compare(paths[:2], metrics=["y"], splits=["t"])
    (row,) = [r for r in everything.rows if (r.split, r.metric, r.system) == ("t", "y", "b")]
    other = alone.rows[1]
    assert (other.low, other.high) == (pytest.approx(row.low), pytest.approx(row.high))
    assert other.p == row.p
    assert compare(paths[:2], seed=1).rows[1].low != everything.rows[1].low
    assert compare(paths) == everything


def test_blocks_hold_the_memory_and_all_draws_are_made(monkeypatch):
    rng = np.random.default_rng(4)
    differences = rng.normal(0.02, 0.2, size=(200, 1))
    whole = randomisation_p(differences), *bootstrap_interval(differences)
    sizes = []
    for name in ("_draw_bits", "_draw_counts"):
        original = getattr(module, name)

        def draw(rng, rows, queries, original=original):
            sizes.append(rows)
            return original(rng, rows, queries)

        monkeypatch.setattr(module, name, draw)
    monkeypatch.setattr(module, "_BLOCK_CELLS", 200 * 300)
    pieces = randomisation_p(differences), *bootstrap_interval(differences)
    assert sum(sizes) == 20_000
    assert max(sizes) == 300
    assert pieces[0] == pytest.approx(whole[0], abs=0.01)
    assert pieces[1:] == (pytest.approx(whole[1], abs=0.003), pytest.approx(whole[2], abs=0.003))


# ---- files, names and mistakes


def test_run_folders_and_evaluation_files_mix(tmp_path):
    folder = save(tmp_path / "base", {"s": {"m": [0.1, 0.2]}})
    file = save(tmp_path / "tuned.json", {"s": {"m": [0.2, 0.2]}})
    assert compare([folder, file]).systems == ("base", "tuned")
    assert compare([folder / "metrics.json", file]).systems == ("base", "tuned")
    (tmp_path / "x").mkdir()
    same_name = save(tmp_path / "x" / "base", {"s": {"m": [0.2, 0.2]}})
    assert compare([folder, same_name]).systems == (str(folder), str(same_name))


def test_only_what_all_have_is_compared_unless_asked_for(tmp_path):
    a = save(tmp_path / "a", {"s": {"m": [0.1], "n": [0.1]}, "t": {"m": [0.1], "n": [0.1]}})
    b = save(tmp_path / "b", {"s": {"n": [0.2], "o": [0.1]}})
    assert {(r.split, r.metric) for r in compare([a, b]).rows} == {("s", "n")}
    with pytest.raises(CompareError, match="b has no metric 'm'; it has: n, o"):
        compare([a, b], metrics=["m"])
    with pytest.raises(CompareError, match="b has no split 't'; it has: s"):
        compare([a, b], splits=["t"])


def test_different_queries_are_named(tmp_path):
    a, b = save(tmp_path / "a", {"s": {"m": [0.1, 0.2]}}), save(tmp_path / "b", {"s": {"m": [0.1, 0.2, 0.3]}})
    message = r"split 's': a \(2 queries\) and b \(3 queries\).*only in a: 0 \[\], only in b: 1 \['q0002'\]"
    with pytest.raises(CompareError, match=message):
        compare([a, b])


def test_mistakes_are_named(tmp_path):
    a = save(tmp_path / "a", {"s": {"m": [0.1]}})
    with pytest.raises(CompareError, match="1 evaluation given"):
        compare([a])
    with pytest.raises(CompareError, match="given twice"):
        compare([a, a])
    with pytest.raises(CompareError, match="no metric in common"):
        compare([a, save(tmp_path / "b", {"s": {"other": [0.1]}})])
    with pytest.raises(PerQueryError, match=r"gone\.parquet: no such file"):
        compare([a, tmp_path / "gone.json"])
    with pytest.raises(PerQueryError, match=r"column 'm' has an empty or NaN value"):
        compare([a, save(tmp_path / "c", {"s": {"m": [np.nan]}})])
    twice = per_query_table("s", ["q", "q"], np.zeros(2, int), {"m": np.zeros(2)})
    write_per_query(tmp_path / "d.parquet", [twice])
    with pytest.raises(PerQueryError, match="a query is there twice"):
        read_per_query(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="different lengths"):
        per_query_table("s", ["q"], np.zeros(2, int), {"m": np.zeros(1)})


# ---- what is printed


def test_the_table_and_the_json_hold_the_figures(tmp_path):
    a = save(tmp_path / "base", {"in_domain": {"ndcg@10": [0.2] * 30}})
    b = save(tmp_path / "tuned", {"in_domain": {"ndcg@10": [0.25] * 30}})
    text = format_table(compare([a, b], resamples=999))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "### in_domain (30 queries)"
    assert lines[2] == "| metric | system | mean | difference | % | 95% interval | p |"
    assert lines[5] == "| ndcg@10 | tuned | 0.2500 | +0.0500 | +25.0 | +0.0500 to +0.0500 | 0.0010 |"
    assert len({len(line) for line in text.splitlines()[2:6]}) == 1
    found = json.loads(to_json(compare([a, b], resamples=999)))
    assert found["systems"] == ["base", "tuned"]
    assert found["rows"][0]["p"] is None
    assert found["rows"][1]["p"] == 0.001
    c = save(tmp_path / "third", {"in_domain": {"ndcg@10": [0.21] * 30}})
    assert "p (Holm)" in format_table(compare([a, b, c], resamples=999))
    assert {row.p_holm for row in compare([a, b, c], resamples=999).rows[1:]} == {0.002}
