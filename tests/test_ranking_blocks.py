"""From files to metric arrays: tie rules, depth, queries left out, and blocks that do not change the result."""

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from opengcl import ranking_blocks
from opengcl.ranking_blocks import blocks, ignored_queries, missing_queries
from opengcl.ranking_files import pairs_from_rows, write_run
from opengcl.run_metrics import metrics_of_files, run_metrics
from tests.reference import metrics_loops as loops


def pairs(nested):
    table = [(q, d, v) for q, docs in nested.items() for d, v in docs.items()]
    return pairs_from_rows(*([row[i] for row in table] for i in range(3)))


def only(qrels, run, **options):
    (block,) = blocks(pairs(qrels), pairs(run), **options)
    return block


def test_rows_come_in_rank_order_with_unjudged_documents_as_0():
    block = only({"q": {"a": 3, "b": 1}}, {"q": {"b": 0.2, "x": 0.9, "a": 0.5}})
    assert block.query_ids == ["q"]
    assert block.retrieved.tolist() == [[0, 3, 1]]
    assert sorted(block.judged[0]) == [1, 3]


def test_ties_follow_the_rule():
    qrels = {"q": {"a": 1, "b": 2, "c": 3}}
    run = {"q": {"b": 0.5, "c": 0.5, "a": 0.5}}
    assert only(qrels, run).retrieved.tolist() == [[1, 2, 3]]
    assert only(qrels, run, ties="trec").retrieved.tolist() == [[3, 2, 1]]
    assert only(qrels, run, ties="input").retrieved.tolist() == [[2, 3, 1]]


def test_document_ids_are_compared_as_strings():
    assert only({"q": {"9": 1, "10": 2}}, {"q": {"9": 0.5, "10": 0.5}}).retrieved.tolist() == [[2, 1]]


def test_trec_ties_are_those_of_32_bit_scores():
    qrels, run = {"q": {"a": 1, "b": 2}}, {"q": {"a": 1.0 + 1e-9, "b": 1.0}}
    assert only(qrels, run, ties="trec").retrieved.tolist() == [[2, 1]]
    assert only(qrels, run).retrieved.tolist() == [[1, 2]]
    theirs = pytrec_eval.RelevanceEvaluator({"q": {"a": 0, "b": 1}}, {"recip_rank"}).evaluate(run)
    assert theirs["q"]["recip_rank"] == 1.0


def test_depth_cuts_after_sorting():
    block = only({"q": {"a": 1, "b": 2}}, {"q": {"a": 0.1, "x": 0.2, "b": 0.3}}, depth=2)
    assert block.retrieved.tolist() == [[2, 0]]


def test_a_query_left_out_counts_zero_and_an_unjudged_one_not_at_all():
    qrels, run = pairs({"q1": {"a": 1}, "q2": {"a": 1}}), pairs({"q3": {"a": 1.0}, "q1": {"a": 1.0}})
    result = run_metrics(qrels, run, ["mrr"])
    assert result.query_ids == ["q1", "q2"]
    assert result.values["mrr"].tolist() == [1.0, 0.0]
    assert result.means() == {"mrr": 0.5}
    assert (result.missing, result.ignored) == (1, 1) == (missing_queries(qrels, run), ignored_queries(qrels, run))


def test_an_empty_run_scores_zero():
    assert run_metrics(pairs({"q": {"a": 1}}), pairs({}), ["ndcg@10", "map"]).means() == {"ndcg@10": 0, "map": 0}


scores = st.sampled_from([0.1, 0.2, 0.5, 0.50000000001, -1.0])
documents = st.sampled_from(["a", "b", "c", "d", "e", "é", "10", "9", "z"])
judgments = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q4"]), st.dictionaries(documents, st.floats(0, 9), min_size=1), min_size=1
)
runs = st.dictionaries(st.sampled_from(["q1", "q2", "q3", "q5"]), st.dictionaries(documents, scores, min_size=1))


@settings(max_examples=100, deadline=None)
@given(judgments, runs, st.sampled_from(["document", "input"]), st.integers(1, 6), st.sampled_from([1, 12, 10**6]))
def test_blocks_agree_with_a_loop_for_every_size(qrels, run, rule, depth, cells):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_blocks, "_BLOCK_CELLS", cells)
        found = {}
        for block in blocks(pairs(qrels), pairs(run), depth=depth, ties=rule):
            assert block.retrieved.size <= max(cells, depth)
            found |= dict(zip(block.query_ids, zip(block.retrieved, block.judged, strict=True), strict=True))
    assert list(found) == list(qrels)
    for query, (retrieved, judged) in found.items():
        expected = [qrels[query].get(d, 0.0) for d in loops.rank(run.get(query, {}), rule)][:depth]
        assert retrieved[: len(expected)].tolist() == expected
        assert not retrieved[len(expected) :].any()
        assert sorted(v for v in judged if v) == sorted(v for v in qrels[query].values() if v)


def test_agrees_with_trec_eval_with_many_ties():
    rng = np.random.default_rng(1)
    qrels = {f"q{q}": {f"d{d}": int(rng.integers(0, 4)) for d in range(20)} for q in range(40)}
    run = {f"q{q}": {f"d{d}": float(rng.integers(0, 4)) for d in rng.permutation(30)} for q in range(40)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map", "recip_rank", "P.5", "recall.10"}).evaluate(
        run
    )
    names = {
        "ndcg@10": "ndcg_cut_10",
        "map": "map",
        "mrr": "recip_rank",
        "precision@5": "P_5",
        "recall@10": "recall_10",
    }
    ours = run_metrics(pairs(qrels), pairs(run), list(names), ties="trec")
    for name, key in names.items():
        np.testing.assert_allclose(
            ours.values[name], [theirs[q][key] for q in ours.query_ids], atol=1e-12, err_msg=name
        )


def test_negative_grades_count_as_trec_eval_counts_them(tmp_path):
    """As in trec-covid, whose junk has -1; also queries that are judged with nothing above 0."""
    rng = np.random.default_rng(5)
    grades = {f"q{q}": {f"d{d}": int(rng.integers(-1, 3 if q % 8 else 1)) for d in range(20)} for q in range(40)}
    run = {f"q{q}": {f"d{d}": float(rng.random()) for d in range(30)} for q in range(40)}
    lines = [f"{query} 0 {document} {grade}" for query, found in grades.items() for document, grade in found.items()]
    (tmp_path / "qrels.txt").write_text("\n".join(lines))
    write_run(tmp_path / "run.trec", pairs(run))
    measures = {"ndcg@10": "ndcg_cut_10", "mrr": "recip_rank", "precision@10": "P_10", "map": "map"}
    found = metrics_of_files(tmp_path / "qrels.txt", tmp_path / "run.trec", list(measures), ties="trec")
    asked = {"ndcg_cut.10", "recip_rank", "P.10", "map"}
    theirs = pytrec_eval.RelevanceEvaluator(grades, asked).evaluate(run).values()
    for ours, measure in measures.items():
        assert found["metrics"][ours] == pytest.approx(np.mean([one[measure] for one in theirs]), abs=1e-12)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="ties is 'random'; allowed: document, trec, input"):
        only({"q": {"a": 1}}, {}, ties="random")
    with pytest.raises(ValueError, match="depth is 0"):
        only({"q": {"a": 1}}, {}, depth=0)


def test_metrics_of_files_counts_what_it_left_out(tmp_path):
    (tmp_path / "qrels.trec").write_text("q1 0 a 2\nq2 0 a 1\n")
    (tmp_path / "run.trec").write_text("q1 Q0 a 1 0.5 x\nq9 Q0 a 1 0.5 x\n")
    found = metrics_of_files(tmp_path / "qrels.trec", tmp_path / "run.trec", ["ndcg@10", "precision@1"])
    assert found["metrics"] == {"ndcg@10": 0.5, "precision@1": 0.5}
    assert (found["queries"], found["missing_queries"], found["ignored_queries"]) == (2, 1, 1)
    with pytest.raises(ValueError, match="compat is 'beir'; allowed: gcl"):
        metrics_of_files(tmp_path / "qrels.trec", tmp_path / "run.trec", compat="beir")
    with pytest.raises(ValueError, match="fixes ties, depth and threshold"):
        metrics_of_files(tmp_path / "qrels.trec", tmp_path / "run.trec", compat="gcl", depth=10)
    with pytest.raises(ValueError, match="sample needs compat"):
        metrics_of_files(tmp_path / "qrels.trec", tmp_path / "run.trec", sample=10)
    with pytest.raises(ValueError, match="unknown metric 'ndgc@10'"):
        metrics_of_files(tmp_path / "qrels.trec", tmp_path / "run.trec", ["ndgc@10"])
