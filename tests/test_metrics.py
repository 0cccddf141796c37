"""The metrics against closed forms, loops, trec_eval and the laws they must obey."""

import math
import subprocess
import sys

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from opengcl import metrics
from tests.reference import metrics_loops as loops

NAMES = ("ndcg@3", "ndcg@10", "ndcg_exp@5", "err", "err@2", "rbp@0.7", "rbp@0.95", "recall@2", "recall@50")
NAMES += ("success@1", "success@3", "precision@1", "precision@20", "mrr", "mrr@2", "map", "map@3")


def one(function, retrieved, judged, **options):
    return float(function(np.array([retrieved], dtype=float), np.array([judged], dtype=float), **options)[0])


def loop(name, retrieved, judged, threshold=0.0):
    base, _, argument = name.partition("@")
    k = int(argument) if argument and base != "rbp" else None
    if base in ("ndcg", "ndcg_exp"):
        return loops.ndcg(retrieved, judged, k, exponential=base == "ndcg_exp")
    if base == "err":
        return loops.err(retrieved, judged, k)
    if base == "rbp":
        return loops.rbp(retrieved, judged, float(argument))
    function = {
        "recall": loops.recall,
        "precision": loops.precision,
        "success": loops.success,
        "mrr": loops.reciprocal_rank,
        "map": loops.average_precision,
    }[base]
    return function(retrieved, judged, k, threshold=threshold)


# ---- closed forms


def test_ndcg_by_hand():
    # DCG@3 = 3 + 0 + 2 / 2, IDCG@3 = 3 + 2 / log2(3) + 1 / 2
    expected = 4 / (3 + 2 / math.log2(3) + 0.5)
    assert one(metrics.ndcg, [3, 0, 2], [1, 2, 3], k=3) == pytest.approx(expected, abs=1e-15)
    expected = (7 + 3 / 2) / (7 + 3 / math.log2(3) + 1 / 2)
    assert one(metrics.ndcg, [3, 0, 2], [1, 2, 3], k=3, gain="exponential") == pytest.approx(expected, abs=1e-15)


def test_ndcg_ideal_goes_over_judged_not_over_retrieved():
    assert one(metrics.ndcg, [1, 0], [1, 1], k=2) == pytest.approx(1 / (1 + 1 / math.log2(3)), abs=1e-15)


def test_err_by_hand():
    # stop probabilities 3/4, 1/4 with a top grade of 2: 3/4 + 1/4 * 1/4 / 2
    assert one(metrics.err, [2, 1], [2, 1]) == pytest.approx(3 / 4 + 1 / 32, abs=1e-16)
    # Chapelle et al. with a global top grade of 4: 3/16 + 13/16 * 1/16 / 2
    assert one(metrics.err, [2, 1], [2, 1], max_grade=4.0) == pytest.approx(3 / 16 + 13 / 512, abs=1e-16)
    assert one(metrics.err, [0, 1], [2, 1], k=1) == 0.0


def test_err_of_the_100_grade_scale_is_the_best_document_alone():
    perfect = list(range(100, 0, -1))
    assert one(metrics.err, perfect, perfect) == pytest.approx(1.0, abs=1e-15)
    # the same list without its ten best
    assert one(metrics.err, perfect[10:], perfect) == pytest.approx(loops.err(perfect[10:], perfect), rel=1e-13)
    assert 0.0009 < one(metrics.err, perfect[10:], perfect) < 0.0015


def test_err_is_exact_for_tiny_and_huge_grades():
    # (2^g - 1) / 2^g for a tiny g is g ln 2: computing 2^g first would lose half the digits
    assert one(metrics.err, [1e-12], [1e-12]) == pytest.approx(1e-12 * math.log(2), rel=1e-11)
    assert one(metrics.err, [5000, 4999], [5000, 4999]) == 1.0
    assert one(metrics.err, [4999], [5000, 4999]) == 0.5
    assert one(metrics.ndcg, [4999], [5000, 4999], k=2, gain="exponential") == pytest.approx(
        0.5 / (1 + 0.5 / math.log2(3)), abs=1e-15
    )


def test_rbp_by_hand():
    # gains 1, 0, 1/2
    assert one(metrics.rbp, [4, 0, 2], [2, 4], p=0.8) == pytest.approx(0.2 * (1 + 0.5 * 0.64), abs=1e-16)
    assert one(metrics.rbp, [4, 0, 2], [2, 4], p=0.8, k=2) == pytest.approx(0.2, abs=1e-16)


def test_counting_metrics_by_hand():
    retrieved, judged = [0, 5, 0, 1, 3], [5, 3, 1, 2]
    assert one(metrics.recall, retrieved, judged, k=4) == 0.5
    assert one(metrics.recall, retrieved, judged, k=4, threshold=2.0) == 0.5
    assert one(metrics.precision, retrieved, judged, k=4) == 0.5
    assert one(metrics.precision, retrieved, judged, k=10) == 0.3
    assert one(metrics.reciprocal_rank, retrieved, judged) == 0.5
    assert one(metrics.reciprocal_rank, retrieved, judged, k=1) == 0.0
    assert one(metrics.reciprocal_rank, [0, 1, 5], [5, 1], threshold=1.0) == pytest.approx(1 / 3)
    assert one(metrics.average_precision, retrieved, judged) == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 4)
    assert one(metrics.average_precision, retrieved, judged, k=4) == pytest.approx((1 / 2 + 2 / 4) / 4)


def test_relevant_means_above_the_threshold_not_at_it():
    assert one(metrics.precision, [2.0], [2.0], k=1, threshold=2.0) == 0.0
    assert one(metrics.precision, [2.0], [2.0], k=1, threshold=1.9) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_retrieved_or_nothing_relevant_is_zero(name):
    retrieved, judged = np.zeros((2, 4)), np.array([[3.0, 1.0], [0.0, 0.0]])
    assert metrics.compute([name], retrieved, judged)[name].tolist() == [0.0, 0.0]
    for shape in ((2, 0), (0, 0), (0, 3)):
        empty = metrics.compute([name], np.zeros(shape), np.zeros((shape[0], 0)))[name]
        assert empty.tolist() == [0.0] * shape[0]


# ---- against loops and trec_eval

grades = st.one_of(
    st.lists(st.integers(0, 100), min_size=1, max_size=12),
    st.lists(st.decimals(0, 50, places=6).map(float), min_size=1, max_size=12),
)


@st.composite
def rankings(draw):
    """A judged list and a ranking of some of it among irrelevant documents."""
    judged = [float(g) for g in draw(grades)]
    kept = draw(st.lists(st.booleans(), min_size=len(judged), max_size=len(judged)))
    retrieved = [g for g, keep in zip(judged, kept, strict=True) if keep] + [0.0] * draw(st.integers(0, 6))
    return draw(st.permutations(retrieved)) or [0.0], judged


@settings(max_examples=150, deadline=None)
@given(rankings(), st.sampled_from([0.0, 1.0, 30.0]))
def test_compute_agrees_with_loops(ranking, threshold):
    retrieved, judged = ranking
    got = metrics.compute(NAMES, np.array([retrieved]), np.array([judged]), threshold=threshold)
    assert list(got) == list(NAMES)
    for name in NAMES:
        assert got[name][0] == pytest.approx(loop(name, retrieved, judged, threshold), rel=1e-9, abs=1e-12), name


def test_a_batch_gives_what_its_rows_give_alone(monkeypatch):
    rng = np.random.default_rng(3)
    judged = rng.integers(0, 5, (50, 9)).astype(float)
    retrieved = np.concatenate([rng.permuted(judged, axis=1)[:, :6], np.zeros((50, 3))], axis=1)
    monkeypatch.setattr(metrics, "_BLOCK_CELLS", 70)  # seven queries a block
    together = metrics.compute(NAMES, retrieved, judged)
    for name in NAMES:
        alone = [metrics.compute([name], retrieved[i : i + 1], judged[i : i + 1])[name][0] for i in range(50)]
        np.testing.assert_array_equal(together[name], alone)


def test_below_0_counts_as_0_by_hand():
    """The two documents above the grade 1 are junk (-1) and judged 0; a third of the list is relevant."""
    retrieved, judged = [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0, 2.0]
    assert one(metrics.reciprocal_rank, retrieved, judged) == pytest.approx(1 / 3)
    assert one(metrics.precision, retrieved, judged, k=3) == pytest.approx(1 / 3)
    assert one(metrics.recall, retrieved, judged, k=3) == 1 / 2
    assert one(metrics.average_precision, retrieved, judged) == pytest.approx(1 / 3 / 2)
    assert one(metrics.ndcg, retrieved, judged, k=3) == pytest.approx(0.5 / (2 + 1 / math.log2(3)))
    assert metrics.relevance(np.array([-1.0, 0.0, 0.5])).tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("name", NAMES)
def test_below_0_and_0_are_the_same(name):
    rng = np.random.default_rng(4)
    judged = rng.integers(-2, 4, (30, 8)).astype(float)
    retrieved = rng.permuted(judged, axis=1)[:, :6]
    expected = metrics.compute([name], np.maximum(retrieved, 0), np.maximum(judged, 0))[name]
    np.testing.assert_array_equal(metrics.compute([name], retrieved, judged)[name], expected)


@pytest.mark.parametrize("lowest", [0, -3])
def test_agrees_with_trec_eval_on_whole_grades(lowest):
    """Also on grades below 0, and on queries that have none above it."""
    rng = np.random.default_rng(0)
    queries, documents = 60, 40
    measures = {"ndcg_cut.10", "map", "map_cut.5", "recip_rank", "P.5", "P.100", "recall.20", "success.1,5"}
    names = ["ndcg@10", "map", "map@5", "mrr", "precision@5", "precision@100", "recall@20", "success@1", "success@5"]
    keys = ["ndcg_cut_10", "map", "map_cut_5", "recip_rank", "P_5", "P_100", "recall_20", "success_1", "success_5"]
    qrels, run, retrieved, judged = {}, {}, np.zeros((queries, 30)), np.zeros((queries, documents))
    for q in range(queries):
        judged[q] = np.maximum(lowest, rng.integers(-6, 1 if q % 10 == 0 else 5, documents))
        order = rng.permutation(documents)[:30]
        qrels[str(q)] = {str(d): int(judged[q, d]) for d in range(documents)}
        run[str(q)] = {str(d): float(-rank) for rank, d in enumerate(order)}
        retrieved[q] = judged[q, order]
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    ours = metrics.compute(names, retrieved, judged)
    for name, key in zip(names, keys, strict=True):
        np.testing.assert_allclose(ours[name], [theirs[str(q)][key] for q in range(queries)], atol=1e-12, err_msg=name)


# ---- laws


@settings(max_examples=100, deadline=None)
@given(rankings())
def test_every_metric_lies_between_0_and_1(ranking):
    for name, value in metrics.compute(NAMES, np.array([ranking[0]]), np.array([ranking[1]])).items():
        assert 0.0 <= value[0] <= 1.0 + 1e-12, name


@settings(max_examples=100, deadline=None)
@given(grades)
def test_the_perfect_order_scores_1_and_is_the_best(judged):
    judged = [float(g) for g in judged]
    judged[0] += 1.0
    perfect = sorted(judged, reverse=True)
    for name in ("ndcg@3", "ndcg@10", "ndcg_exp@5", "ndcg_exp@100"):
        assert metrics.compute([name], np.array([perfect]), np.array([judged]))[name][0] == pytest.approx(1, abs=1e-12)
    for name in ("err", "rbp@0.9"):
        best = metrics.compute([name], np.array([perfect]), np.array([judged]))[name][0]
        assert best >= metrics.compute([name], np.array([judged]), np.array([judged]))[name][0] - 1e-12


@settings(max_examples=150, deadline=None)
@given(rankings(), st.data())
def test_moving_the_better_document_up_never_lowers_a_metric(ranking, data):
    retrieved, judged = list(ranking[0]), ranking[1]
    i = data.draw(st.integers(0, len(retrieved) - 1))
    j = data.draw(st.integers(i, len(retrieved) - 1))
    swapped = retrieved.copy()
    swapped[i], swapped[j] = max(retrieved[i], retrieved[j]), min(retrieved[i], retrieved[j])
    before = metrics.compute(NAMES, np.array([retrieved]), np.array([judged]))
    after = metrics.compute(NAMES, np.array([swapped]), np.array([judged]))
    for name in NAMES:
        # for ERR too: by partial summation it is sum_r P(stopped by rank r) (1/r - 1/(r+1)), and each P can only grow
        assert after[name][0] >= before[name][0] - 1e-12, name


@settings(max_examples=60, deadline=None)
@given(rankings(), st.integers(1, 8), st.integers(0, 5))
def test_what_comes_after_k_or_is_irrelevant_at_the_end_changes_nothing(ranking, k, extra):
    retrieved, judged = np.array([ranking[0]]), np.array([ranking[1]])
    longer = np.concatenate([retrieved, np.zeros((1, extra))], axis=1)
    padded = np.concatenate([judged, np.zeros((1, extra))], axis=1)
    cut = retrieved[:, :k]
    for name in (f"ndcg@{k}", f"ndcg_exp@{k}", f"err@{k}", f"recall@{k}", f"precision@{k}", f"mrr@{k}", f"map@{k}"):
        expected = metrics.compute([name], retrieved, judged)[name]
        np.testing.assert_allclose(metrics.compute([name], cut, judged)[name], expected, atol=1e-12)
        np.testing.assert_allclose(metrics.compute([name], longer, padded)[name], expected, atol=1e-12)
    for name in ("err", "rbp@0.8", "map", "mrr"):
        expected = metrics.compute([name], retrieved, judged)[name]
        np.testing.assert_allclose(metrics.compute([name], longer, padded)[name], expected, atol=1e-12)


def test_scaling_relevance_changes_what_it_should():
    retrieved, judged = np.array([[2.0, 0, 4]]), np.array([[4.0, 2, 1]])
    for name in ("ndcg@3", "rbp@0.9", "recall@2", "map", "mrr"):
        same = metrics.compute([name], retrieved * 7, judged * 7)[name]
        np.testing.assert_allclose(same, metrics.compute([name], retrieved, judged)[name], atol=1e-15)
    assert metrics.err(retrieved * 7, judged * 7)[0] < metrics.err(retrieved, judged)[0]


# ---- what is refused


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_relevance_that_is_not_finite_is_refused_with_its_place(name, value):
    fine = np.ones((3, 4))
    bad = fine.copy()
    bad[2, 1] = value
    with pytest.raises(ValueError, match=r"retrieved\[2, 1\] is (-inf|nan|inf)"):
        metrics.compute([name], bad, fine)
    with pytest.raises(ValueError, match=r"judged\[2, 1\] is (-inf|nan|inf)"):
        metrics.compute([name], np.zeros((3, 4)), bad)


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"row 1 retrieved a relevance of 2.0, above its highest judged one \(1.0\)"):
        metrics.ndcg(np.array([[1.0], [2.0]]), np.ones((2, 1)), k=1)


@pytest.mark.parametrize(
    "name",
    [
        *("ndcg", "ndcg@0", "ndcg@-1", "ndcg@1.5", "ndcg@", "NDCG@10", "ndcg@1@5", "err@", "mrr@0"),
        *("rbp", "rbp@1", "rbp@0", "rbp@x", "recall", "hits@3", "", "map@٣"),
    ],
)
def test_unknown_names_are_refused_with_the_valid_forms(name):
    with pytest.raises(ValueError, match="valid forms: ndcg@K, ndcg_exp@K, err"):
        metrics.compute([name], np.ones((1, 1)), np.ones((1, 1)))
    with pytest.raises(ValueError, match="unknown metric"):
        metrics.check_names(["err", name])


def test_options_out_of_range_are_refused():
    array = np.ones((1, 2))
    with pytest.raises(ValueError, match="k is 0"):
        metrics.ndcg(array, array, k=0)
    with pytest.raises(ValueError, match=r"p is 1\.0"):
        metrics.rbp(array, array, p=1.0)
    with pytest.raises(ValueError, match="threshold is -1"):
        metrics.recall(array, array, k=1, threshold=-1.0)
    with pytest.raises(ValueError, match=r"max_grade is 0\.5, but a judged relevance is 1\.0"):
        metrics.err(array, array, max_grade=0.5)


def test_the_default_names_are_valid():
    metrics.check_names(metrics.DEFAULT_METRICS)


def outside_the_tests(code):
    """What the code prints in a process where signatures are not checked."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("err(np.ones((2, 3)), np.ones((3, 3)))", "found (2, 3) and (3, 3)"),
        ("compute(['err'], np.ones(3), np.ones((1, 3)))", "found (3,) and (1, 3)"),
        ("ndcg(np.ones((1, 1)), np.ones((1, 1)), k=1, gain='square')", "gain is 'square'; allowed: 'linear', 'exp"),
    ],
)
def test_wrong_shapes_and_gains_are_refused_without_checked_signatures(call, message):
    code = f"import numpy as np\nfrom opengcl.metrics import *\ntry: {call}\nexcept ValueError as e: print(e)"
    assert message in outside_the_tests(code)


def test_the_module_loads_without_torch_or_arrow():
    code = "import sys, opengcl.metrics; print([m for m in ('torch', 'pyarrow', 'pandas') if m in sys.modules])"
    assert outside_the_tests(code).strip() == "[]"
