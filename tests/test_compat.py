"""The GCL mode against a loop-written evaluation, trec_eval and pandas' own draw."""

import numpy as np
import pandas as pd
import pytest
import pytrec_eval

from opengcl.compat import GCL_METRICS, gcl_relevance, gcl_sample
from opengcl.ranking_files import pairs_from_rows, write_qrels, write_run
from opengcl.run_metrics import gcl_run_metrics, metrics_of_files
from tests.reference import metrics_loops as loops


def pairs(nested):
    table = [(q, d, v) for q, docs in nested.items() for d, v in docs.items()]
    return pairs_from_rows(*([row[i] for row in table] for i in range(3)))


def evaluation(seed=0, queries=30):
    """Positions as scores, 1 to 100, and a run with float32 scores of which many tie."""
    rng = np.random.default_rng(seed)
    qrels, run = {}, {}
    for q in range(queries):
        judged = rng.permutation(400)[: rng.integers(5, 100)]
        qrels[f"query {q}"] = {f"p{d}": float(100 - i) for i, d in enumerate(judged)}
        found = rng.permutation(400)[:300]
        scores = np.sort(np.round(rng.random(300), 2).astype(np.float32))[::-1]
        run[f"query {q}"] = {f"p{d}": float(s) for d, s in zip(found, scores, strict=True)}
    return qrels, run


def test_agrees_with_the_loops():
    qrels, run = evaluation()
    expected = loops.gcl_evaluation(qrels, run)
    found = gcl_run_metrics(pairs(qrels), pairs(run)).means()
    assert tuple(found) == GCL_METRICS
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_the_tie_rules_matter_in_this_test_data():
    qrels, run = evaluation()
    reversed_input = {q: dict(reversed(docs.items())) for q, docs in run.items()}
    one, other = (gcl_run_metrics(pairs(qrels), pairs(r)).means() for r in (run, reversed_input))
    assert one["ndcg@10"] == other["ndcg@10"]
    assert abs(one["rbp@0.9"] - other["rbp@0.9"]) > 1e-4


def test_ndcg_is_trec_evals():
    qrels, run = evaluation(1)
    scaled = {q: {d: int(v - 0) for d, v in docs.items()} for q, docs in qrels.items()}
    low = min(v for docs in qrels.values() for v in docs.values())
    scaled = {q: {d: int((v - low) / (100 - low) * 99 + 1) for d, v in docs.items()} for q, docs in qrels.items()}
    theirs = pytrec_eval.RelevanceEvaluator(scaled, {"ndcg_cut.10"}).evaluate(run)
    mean = np.mean([value["ndcg_cut_10"] for value in theirs.values()])
    assert gcl_run_metrics(pairs(qrels), pairs(run)).means()["ndcg@10"] == pytest.approx(mean, abs=1e-12)


def test_only_the_first_thousand_results_count():
    qrels = {"q": {"best": 2.0, "other": 1.0}}
    run = {"q": {f"x{i}": 2000.0 - i for i in range(1000)} | {"best": 1.0}}
    assert gcl_run_metrics(pairs(qrels), pairs(run)).means() == dict.fromkeys(GCL_METRICS, 0.0)
    run["q"].pop("x0")
    assert gcl_run_metrics(pairs(qrels), pairs(run), ["err"]).means()["err"] > 0


def test_negative_grades_are_scaled_as_the_script_scales_them():
    """It takes the lowest value of the file for 1, so that -1 and 0 differ there: relevance 1, 34 and 100."""
    qrels = {"a": {"1": -1.0, "2": 0.0, "3": 2.0}}
    assert gcl_relevance(pairs(qrels)).value.tolist() == [1.0, 34.0, 100.0]
    run = {"a": {"2": 3.0, "1": 2.0, "3": 1.0}}
    dcg, ideal = 34 + 1 / np.log2(3) + 100 / 2, 100 + 34 / np.log2(3) + 1 / 2
    assert gcl_run_metrics(pairs(qrels), pairs(run)).means()["ndcg@10"] == pytest.approx(dcg / ideal)


def test_relevance_is_scaled_over_the_whole_file_and_truncated():
    qrels = pairs({"a": {"1": 0.0, "2": 0.5}, "b": {"1": 1.0, "2": 0.999}})
    assert gcl_relevance(qrels).value.tolist() == [1.0, 50.0, 100.0, 99.0]
    frame = pd.Series(qrels.value)
    expected = ((frame - frame.min()) / (frame.max() - frame.min()) * 99 + 1).astype(int)
    assert gcl_relevance(qrels).value.tolist() == expected.tolist()
    steps = pairs({"a": {str(i): float(i) for i in range(1, 101)}})
    frame = pd.Series(steps.value)
    expected = (((frame - frame.min()) / (frame.max() - frame.min())) * 99 + 1).astype(int)
    assert gcl_relevance(steps).value.tolist() == expected.tolist()
    assert gcl_relevance(pairs({"a": {"1": 7.0, "2": 7.0}})).value.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["query {}", "{}"])
def test_the_draw_is_that_of_pandas(name):
    rng = np.random.default_rng(2)
    ids = [name.format(i) for i in rng.permutation(300)]
    qrels = gcl_relevance(pairs({q: {f"d{i}": float(rng.integers(1, 100)) for i in range(4)} for q in ids}))
    frame = pd.DataFrame({"query": np.repeat(ids, 4), "weight": qrels.value.astype(int)})
    if name == "{}":
        frame["query"] = frame["query"].astype(int)
    sums = frame.groupby("query").sum()
    drawn = sums.sample(n=60, weights=sums["weight"], random_state=1, replace=False).index
    assert gcl_sample(qrels, 60).query_ids.to_pylist() == [str(q) for q in drawn]


def test_a_draw_scores_only_the_drawn_queries():
    qrels, run = evaluation()
    found = gcl_run_metrics(pairs(qrels), pairs(run), sample=10)
    assert len(set(found.query_ids)) == 10
    whole = gcl_run_metrics(pairs(qrels), pairs(run))
    values = dict(zip(whole.query_ids, whole.values["rbp@0.9"], strict=True))
    np.testing.assert_allclose(found.values["rbp@0.9"], [values[q] for q in found.query_ids], atol=1e-12)
    assert (found.missing, found.ignored) == (0, 0)
    with pytest.raises(ValueError, match="cannot draw 31 queries: rows has 30"):
        gcl_sample(pairs(qrels), 31)


@pytest.mark.parametrize("suffix", ["trec", "parquet", "tsv"])
def test_from_files(tmp_path, suffix):
    qrels, run = evaluation()
    qrels, run = ({q.replace(" ", "_"): v for q, v in part.items()} for part in (qrels, run))
    write_qrels(tmp_path / f"qrels.{suffix}", pairs(qrels))
    write_run(tmp_path / f"run.{suffix}", pairs(run))
    found = metrics_of_files(tmp_path / f"qrels.{suffix}", tmp_path / f"run.{suffix}", compat="gcl")
    # writing sorts ties by document id, so that is the order of the file
    ordered = {q: {d: docs[d] for d in loops.rank(docs, "document")} for q, docs in run.items()}
    for name, value in loops.gcl_evaluation(qrels, ordered).items():
        assert found["metrics"][name] == pytest.approx(value, abs=1e-6), name
    assert found["settings"] == {"compat": "gcl", "sample": None}
