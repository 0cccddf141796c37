"""Batches: each training pair once an epoch, from (seed, epoch, number) alone; relations against a loop; no leaks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opengcl.batches import Batches, DocumentBatches, GroupedBatches, Relations, ShuffledBatches
from opengcl.config import TrainConfig
from opengcl.data import RankedDataset
from opengcl.training import make_batches
from opengcl.weights import weight_function

from .builders import ranked

WEIGHTS = ("linear", "exponential:decay=10")


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    folder = tmp_path_factory.mktemp("graded") / "data"
    return ranked(folder, queries=30, documents=80, judged=20, grades=(-1, 0, 0, 0, 1, 2))


@pytest.mark.parametrize("how", [{"queries_per_doc": 3}, {"docs_per_query": 4}, {"queries_per_doc": 0}])
def test_a_pair_judged_0_or_below_is_never_drawn(graded: RankedDataset, how: dict[str, int]) -> None:
    config = TrainConfig(str(graded.path), "static", "unused", batch_size=16, **how)
    batches, drawn = make_batches(config, graded), set()
    for epoch in range(8):
        drawn |= set(epoch_of(batches, epoch).tolist())
    inside = graded.splits.pairs("in_domain")
    relevant = inside[graded.qrels.score[inside] > 0]
    assert len(relevant) < len(inside)
    assert drawn == set(relevant.tolist()) == set(graded.splits.training_pairs().tolist())
    only_zeros = set(graded.qrels.query[inside].tolist()) - set(graded.qrels.query[relevant].tolist())
    assert only_zeros  # queries that are not trained on
    relation = Relations(graded, weight_function("constant"), "dataset").of(batches.pairs(0, 0))
    assert not only_zeros & set(relation.queries.tolist())


def test_a_data_set_of_zeros_has_nothing_to_draw(tmp_path: Path) -> None:
    zeros = ranked(tmp_path / "data", grades=(-1, 0))
    with pytest.raises(ValueError, match="no seen query is judged for a seen document with a score above 0"):
        make_batches(TrainConfig(str(zeros.path), "static", "unused"), zeros)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    return ranked(tmp_path_factory.mktemp("batches") / "data", queries=30, documents=80, judged=20)


def made(kind: str, *, pairs: int = 53, batch_size: int = 8, seed: int = 0) -> Batches:
    positions = np.arange(pairs) * 3 + 7  # not 0, 1, 2, ...: places and positions must not be mixed up
    if kind == "shuffled":
        return ShuffledBatches(positions, batch_size, seed)
    queries = np.random.default_rng(5).integers(0, 9, pairs)  # not sorted
    if kind == "documents":
        return DocumentBatches(positions, queries, batch_size, min(3, batch_size), seed)
    return GroupedBatches(positions, queries, batch_size, min(3, batch_size), seed)


def epoch_of(batches: Batches, epoch: int) -> np.ndarray:
    return np.concatenate([batches.pairs(epoch, number) for number in range(len(batches))])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["shuffled", "grouped"]), st.integers(1, 40), st.integers(1, 50), st.integers(0, 99))
def test_each_pair_at_most_once_an_epoch(kind: str, pairs: int, batch_size: int, seed: int) -> None:
    batches = made(kind, pairs=pairs, batch_size=batch_size, seed=seed)
    size = min(pairs, batch_size)
    assert len(batches) == pairs // size
    for epoch in range(2):
        drawn = [batches.pairs(epoch, number) for number in range(len(batches))]
        assert {len(batch) for batch in drawn} == {size}
        found = np.concatenate(drawn)
        assert len(np.unique(found)) == len(found) == len(batches) * size
        assert set(found) <= set(np.arange(pairs) * 3 + 7)


@pytest.mark.parametrize("kind", ["shuffled", "grouped", "documents"])
def test_a_batch_depends_on_seed_epoch_and_number_alone(kind: str) -> None:
    places = [(epoch, number) for epoch in range(3) for number in range(6)]
    batches, again = made(kind), made(kind)
    forward = {place: batches.pairs(*place).copy() for place in places}
    for place in np.random.default_rng(0).permutation(places).tolist():
        np.testing.assert_array_equal(again.pairs(*place), forward[tuple(place)])
    np.testing.assert_array_equal(made(kind).pairs(2, 4), forward[2, 4])  # as a resumed run asks


@pytest.mark.parametrize("kind", ["shuffled", "grouped", "documents"])
def test_epochs_and_seeds_differ(kind: str) -> None:
    orders = [epoch_of(made(kind, seed=seed), epoch).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(map(tuple, orders))) == len(orders)


def test_all_pairs_come_within_a_few_epochs() -> None:
    batches = made("shuffled")
    left_out = set(np.arange(53) * 3 + 7)
    for epoch in range(6):
        left_out -= set(epoch_of(batches, epoch).tolist())
    assert not left_out


def test_pairs_of_a_query_come_together() -> None:
    queries = np.repeat(np.arange(20), 12)[np.random.default_rng(1).permutation(240)]
    batches = GroupedBatches(np.arange(240), queries, 24, 4, seed=3)
    partners = Counter()
    for epoch in range(2):
        groups = epoch_of(batches, epoch).reshape(-1, 4)  # 12 is a multiple of 4, 24 too: no group is cut
        assert len(groups) == 60
        assert (queries[groups] == queries[groups[:, :1]]).all()
        assert Counter(queries[groups[:, 0]].tolist()) == dict.fromkeys(range(20), 3)
        partners.update(frozenset(group) for group in groups.tolist())
        runs = np.diff(queries[groups[:, 0]]) == 0
        assert runs.mean() < 0.3  # groups of a query are spread over the epoch
    assert max(partners.values()) == 1  # and mixed anew each epoch


def test_the_last_group_of_a_query_is_smaller() -> None:
    queries = np.repeat(np.arange(50), 7)
    order = epoch_of(GroupedBatches(np.arange(350), queries, 350, 3, seed=0), 0)
    assert sorted(order.tolist()) == list(range(350))
    runs = np.diff(np.flatnonzero(np.r_[True, np.diff(queries[order]) != 0, True]))
    assert set(runs.tolist()) <= {1, 3, 4, 6, 7}  # 3 + 3 + 1, some by chance side by side
    assert np.isin(runs, (1, 3)).mean() > 0.8


@pytest.mark.parametrize("group", [0, 9])
def test_a_group_must_fit_the_batch(group: int) -> None:
    with pytest.raises(ValueError, match=f"docs_per_query is {group}; it must lie between 1 and the batch size, 8"):
        GroupedBatches(np.arange(20), np.zeros(20, int), 8, group, 0)


def test_documents_come_evenly_however_often_they_are_judged() -> None:
    counts = np.r_[np.full(20, 1), np.full(20, 4), np.full(5, 60)]
    documents = np.repeat(np.arange(45), counts)[np.random.default_rng(1).permutation(counts.sum())]
    batches = DocumentBatches(np.arange(len(documents)), documents, 30, 3, seed=2)
    assert len(batches) == counts.sum() // 30  # 13 batches of 10 documents: 45 documents in 4.5 orders less a document
    drawn, pairs = Counter(), Counter()
    for epoch in range(9):
        for number in range(len(batches)):
            batch = batches.pairs(epoch, number)
            assert len(set(batch.tolist())) == len(batch)
            found = Counter(documents[batch].tolist())
            assert len(found) <= 10
            assert all(times == min(3, counts[document]) for document, times in found.items())
            drawn.update(found.keys())
            pairs.update(batch.tolist())
    # 13 x 10 draws an epoch are 2 whole orders of 45 and most of a third.
    assert min(drawn.values()) >= 18
    assert max(drawn.values()) <= 27
    rare = [pairs[p] for p in range(len(documents)) if documents[p] == 44]
    assert min(rare) >= 0
    assert sum(rare) == 3 * drawn[44]
    assert len([count for count in rare if count]) > 40  # every time other queries


def judged_unevenly(counts: tuple[int, ...] = (1, 4, 16, 64), of_each: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """How often each document is judged, and the documents of the judged pairs in random order."""
    times = np.repeat(counts, of_each)
    return times, np.repeat(np.arange(len(times)), times)[np.random.default_rng(1).permutation(times.sum())]


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_documents_come_by_a_power_of_how_often_they_are_judged(exponent: float) -> None:
    counts, documents = judged_unevenly()
    batches, again = (
        DocumentBatches(np.arange(len(documents)), documents, 12, 3, seed=2, exponents=(exponent, exponent))
        for _ in range(2)
    )
    drawn, epochs = np.zeros(240), 6
    for epoch in range(epochs):
        for number in range(len(batches)):
            batch = batches.pairs(epoch, number)
            np.testing.assert_array_equal(batch, again.pairs(epoch, number))
            found, times = np.unique(documents[batch], return_counts=True)
            assert len(found) <= 4
            np.testing.assert_array_equal(times, np.minimum(3, counts[found]))
            drawn[found] += 1
    share = counts**exponent
    expected = epochs * len(batches) * 4 * share / share.sum()
    # Of four draws a batch few fall on the same document, which then counts once.
    assert drawn.sum() > 0.97 * expected.sum()
    for count in (1, 4, 16, 64):
        assert drawn[counts == count].mean() == pytest.approx(expected[counts == count].mean(), rel=0.05)


@pytest.mark.parametrize("exponents", [(1.0, 0.0), (0.25, 1.5)])
@pytest.mark.parametrize("epochs", [1.0, 2.5])
def test_the_exponent_goes_on_a_straight_line_over_the_run(exponents: tuple[float, float], epochs: float) -> None:
    counts, documents = judged_unevenly()
    sections, runs = 10, 12  # a section is a fifth or a quarter of an epoch, the last ones after the end
    drawn, expected = np.zeros((sections, 240)), np.zeros((sections, 240))
    for seed in range(runs):
        batches = DocumentBatches(np.arange(len(documents)), documents, 12, 3, seed, exponents, epochs)
        steps = int(1.25 * epochs * len(batches))
        for step in range(steps):
            section = sections * step // steps
            found = np.unique(documents[batches.pairs(*divmod(step, len(batches)))])
            drawn[section, found] += 1
            done = min(1.0, (step + 0.5) / len(batches) / epochs)
            share = counts ** (exponents[0] + done * (exponents[1] - exponents[0]))
            expected[section] += 1 - (1 - share / share.sum()) ** 4  # at least one of four draws
    for count in (1, 4, 16, 64):
        of = counts == count
        np.testing.assert_allclose(drawn[:, of].sum(axis=1), expected[:, of].sum(axis=1), rtol=0.1, atol=25)


@pytest.mark.parametrize(
    ("asked", "exponents"),
    [
        ({}, (0, 0)),
        ({"fields": {"title": 0.1, "image": 0.9}}, (0, 0)),
        ({"fields": {"image": 1.0}}, (1.5, 0)),
        ({"fields": {"image": 1.0}, "sampling_exponent": 0.0}, (0, 0)),
        ({"fields": {"image": 1.0}, "final_sampling_exponent": 1.0}, (0, 1)),
        ({"sampling_exponent": 1.5}, (1.5, 1.5)),
        ({"sampling_exponent": 2.0, "final_sampling_exponent": 0.5}, (2, 0.5)),
    ],
)
def test_the_settings_say_how_documents_are_drawn(
    dataset: RankedDataset, asked: dict[str, Any], exponents: tuple[float, float]
) -> None:
    config = TrainConfig(str(dataset.path), "static", "unused", epochs=2, batch_size=16, **asked)
    pairs = dataset.splits.training_pairs()
    expected = DocumentBatches(pairs, dataset.qrels.document[pairs], 16, 4, config.seed, exponents, epochs=2)
    made = make_batches(config, dataset)
    assert len(made) == len(expected) > 5
    for epoch in range(2):
        np.testing.assert_array_equal(epoch_of(made, epoch), epoch_of(expected, epoch))


def test_an_exponent_draws_whole_epochs_of_few_documents() -> None:
    for exponents in ((1.0, 1.0), (2.0, 0.0)):
        documents = np.repeat(np.arange(3), [37, 2, 1])
        batches = DocumentBatches(np.arange(40), documents, 8, 2, 0, exponents, epochs=10)
        for epoch in range(20):
            assert all(len(batches.pairs(epoch, number)) >= 1 for number in range(len(batches)))


def test_more_documents_a_batch_than_there_are() -> None:
    batches = DocumentBatches(np.arange(6), np.array([0, 0, 0, 1, 1, 2]), 6, 1, seed=0)
    assert len(batches) == 1
    assert len(batches.pairs(0, 0)) == 3
    assert sorted(DocumentBatches(np.arange(6), np.zeros(6, int), 6, 6, seed=0).pairs(0, 0)) == list(range(6))


@pytest.mark.parametrize("queries_per_doc", [0, 9])
def test_queries_of_a_document_must_fit_the_batch(queries_per_doc: int) -> None:
    message = f"queries_per_doc is {queries_per_doc}; it must lie between 1 and the batch size, 8"
    with pytest.raises(ValueError, match=message):
        DocumentBatches(np.arange(20), np.zeros(20, int), 8, queries_per_doc, 0)
    with pytest.raises(ValueError, match="no training pair"):
        DocumentBatches(np.arange(0), np.arange(0), 8, 2, 0)
    with pytest.raises(IndexError, match="batch 2 of an epoch of 2"):
        DocumentBatches(np.arange(20), np.zeros(20, int), 8, 2, 0).pairs(0, 2)


def test_bad_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        ShuffledBatches(np.arange(3), 0, 0)
    with pytest.raises(ValueError, match="no training pair"):
        ShuffledBatches(np.arange(0), 4, 0)
    with pytest.raises(IndexError, match="batch 6 of an epoch of 6"):
        made("shuffled").pairs(0, 6)


def loop_weights(dataset: RankedDataset, spec: str, scaling: str) -> dict[tuple[int, int], float]:
    """(query row, document row) -> weight of every judged pair with a seen document, a query at a time."""
    function = weight_function(spec)
    found = {}
    for query in range(len(dataset.queries)):
        documents, scores = dataset.qrels.judged(query)
        seen = [(int(d), float(s)) for d, s in zip(documents, scores, strict=True) if dataset.splits.document_seen[d]]
        if not seen:
            continue
        low, high = 1.0, 100.0
        if scaling == "query":
            low, high = min(s for _, s in seen), max(s for _, s in seen)
        for document, score in seen:
            scaled = 100.0 if low == high else 1 + 99 * (score - low) / (high - low)
            found[query, document] = float(function(np.array([scaled]))[0])
    return found


@pytest.mark.parametrize("scaling", ["dataset", "query"])
@pytest.mark.parametrize("spec", WEIGHTS)
@pytest.mark.parametrize("grouped", [False, True])
def test_relations_are_what_a_loop_finds(dataset: RankedDataset, spec: str, scaling: str, grouped: bool) -> None:
    known = loop_weights(dataset, spec, scaling)
    pairs = dataset.splits.training_pairs()
    batches = GroupedBatches(pairs, dataset.qrels.query[pairs], 16, 4, 0) if grouped else ShuffledBatches(pairs, 16, 0)
    relations = Relations(dataset, weight_function(spec), scaling)
    seen_off_the_batch = 0
    for number in range(len(batches)):
        batch = batches.pairs(0, number)
        relation = relations.of(batch)
        sampled = [(int(dataset.qrels.query[p]), int(dataset.qrels.document[p])) for p in batch]
        queries, documents = relation.queries.tolist(), relation.documents.tolist()
        assert queries == sorted({query for query, _ in sampled})
        assert documents == sorted({document for _, document in sampled})
        named = zip(relation.pair_query, relation.pair_document, strict=True)
        assert [(queries[i], documents[j]) for i, j in named] == sampled
        np.testing.assert_allclose(relation.pair_weight, [known[pair] for pair in sampled], rtol=1e-6)
        expected = {(q, d): known[q, d] for q in queries for d in documents if (q, d) in known}
        judged = [
            (queries[i], documents[j]) for i, j in zip(relation.judged_query, relation.judged_document, strict=True)
        ]
        assert len(set(judged)) == len(judged)
        assert dict(zip(judged, relation.judged_weight.tolist(), strict=True)) == pytest.approx(expected, rel=1e-6)
        assert (np.diff(relation.judged_query) >= 0).all()
        seen_off_the_batch += len(judged) - len(sampled)
    assert seen_off_the_batch > 0


@pytest.mark.parametrize("kind", ["shuffled", "grouped", "documents"])
def test_no_novel_row_in_an_epoch(dataset: RankedDataset, kind: str) -> None:
    pairs = dataset.splits.training_pairs()
    batches: Batches = {
        "shuffled": ShuffledBatches(pairs, 16, 0),
        "grouped": GroupedBatches(pairs, dataset.qrels.query[pairs], 16, 4, 0),
        "documents": DocumentBatches(pairs, dataset.qrels.document[pairs], 16, 4, 0),
    }[kind]
    relations = Relations(dataset, weight_function("linear"), "query")
    queries, documents = set(), set()
    for number in range(len(batches)):
        relation = relations.of(batches.pairs(0, number))
        queries.update(relation.queries.tolist())
        documents.update(relation.documents.tolist())
    assert len(queries) > 15
    assert len(documents) > 20
    assert dataset.splits.query_seen[sorted(queries)].all()
    assert dataset.splits.document_seen[sorted(documents)].all()
    assert not dataset.splits.document_seen.all()  # there was something to leak
    assert not dataset.splits.query_seen.all()


@pytest.mark.parametrize("scaling", ["dataset", "query"])
def test_scores_of_novel_documents_change_no_weight(tmp_path: Path, scaling: str) -> None:
    lowest, highest = (ranked(tmp_path / str(score), novel_score=score) for score in (1.0, 100.0))
    pairs = lowest.splits.training_pairs()
    np.testing.assert_array_equal(pairs, highest.splits.training_pairs())
    one, other = (Relations(data, weight_function("linear"), scaling).of(pairs) for data in (lowest, highest))
    for name in ("queries", "documents", "pair_weight", "judged_query", "judged_document", "judged_weight"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len(np.unique(one.pair_weight)) > 5
