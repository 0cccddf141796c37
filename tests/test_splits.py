"""Splits: the hash division is stable, and the four splits partition all pairs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl.data.problems import DataSetError
from opengcl.data.qrels import Qrels
from opengcl.data.splits import SPLITS, Splits, choose, uniform

ids = st.lists(st.text(max_size=8), unique=True, max_size=40)


@st.composite
def divided(draw: st.DrawFn) -> tuple[Splits, Qrels]:
    queries, documents = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    pair = st.tuples(st.integers(0, queries - 1), st.integers(0, documents - 1))
    pairs = np.array(draw(st.lists(pair, unique=True, max_size=30)), np.int64).reshape(-1, 2)
    qrels = Qrels.sort(pairs[:, 0], pairs[:, 1], np.arange(len(pairs), dtype=np.float32), queries)
    marks = [
        np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool) for n in (queries, documents, queries)
    ]
    return Splits(*marks, qrels.query, qrels.document), qrels


@given(ids, st.integers())
def test_uniform_is_the_documented_hash(names: list[str], seed: int) -> None:
    expected = [
        (int.from_bytes(hashlib.blake2b(f"{seed}:query:{name}".encode(), digest_size=8).digest(), "big") >> 11) / 2**53
        for name in names
    ]
    assert uniform(names, f"{seed}:query").tolist() == expected
    assert all(0 <= value < 1 for value in expected)


@given(ids, st.randoms(use_true_random=False), st.floats(0, 1))
def test_a_row_keeps_its_split_when_others_come_go_or_move(names, random, share) -> None:
    division = dict(zip(names, choose(names, seed=3, side="query", share=share).tolist(), strict=True))
    some = [*random.sample(names, len(names) // 2), "one more, longer than any"]
    again = dict(zip(some, choose(some, seed=3, side="query", share=share).tolist(), strict=True))
    assert all(again[name] == division[name] for name in some if name in division)


def test_shares_are_kept_and_salts_are_independent() -> None:
    names = [f"q{number}" for number in range(20_000)]
    seen = choose(names, seed=0, side="query", share=0.8)
    assert abs(seen.mean() - 0.8) < 0.015
    for other in (
        choose(names, seed=1, side="query", share=0.5),
        choose(names, seed=0, side="dev", share=0.5),
        choose(names, seed=0, side="document", share=0.5),
    ):
        assert abs(other[seen].mean() - 0.5) < 0.015
        assert abs(other[~seen].mean() - 0.5) < 0.03
    assert choose(names, seed=0, side="dev", share=1.0).all()
    assert not choose(names, seed=0, side="dev", share=0.0).any()


@given(divided())
def test_training_never_sees_a_novel_query_or_document(case: tuple[Splits, Qrels]) -> None:
    splits, qrels = case
    expected = [
        at
        for at, (query, document) in enumerate(zip(qrels.query, qrels.document, strict=True))
        if splits.query_seen[query] and splits.document_seen[document]
    ]
    assert splits.training_pairs().tolist() == expected
    assert splits.training_pairs().dtype == np.int64


@given(divided())
def test_the_splits_partition_all_pairs(case: tuple[Splits, Qrels]) -> None:
    splits, qrels = case
    parts = [splits.pairs(split) for split in SPLITS]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(qrels)))
    assert splits.pair_counts() == {split: len(part) for split, part in zip(SPLITS, parts, strict=True)}


@given(divided())
def test_query_rows_against_a_loop(case: tuple[Splits, Qrels]) -> None:
    splits, qrels = case
    wanted = dict(zip(SPLITS, ((True, True), (False, True), (True, False), (False, False)), strict=True))
    for split, (seen_query, seen_document) in wanted.items():
        half = [row for row, seen in enumerate(splits.document_seen) if seen == seen_document]
        assert splits.document_rows(split).tolist() == half
        rows = [
            row
            for row, seen in enumerate(splits.query_seen)
            if seen == seen_query and set(qrels.judged(row)[0].tolist()) & set(half)
        ]
        assert splits.query_rows(split, "all").tolist() == rows
        dev, test = splits.query_rows(split, "dev").tolist(), splits.query_rows(split, "test").tolist()
        assert dev == [row for row in rows if splits.query_dev[row]]
        assert sorted(dev + test) == rows


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    query, document = random.integers(0, 50, 500), random.integers(0, 60, 500)
    marks = [random.random(n) < 0.5 for n in (50, 60, 50)]
    whole = Splits(*marks, query, document)
    expected = whole.training_pairs(), whole.pair_counts()
    monkeypatch.setattr("opengcl.data.splits._BLOCK", 7)
    small = Splits(*marks, query, document)
    assert small.training_pairs().tolist() == expected[0].tolist()
    assert small.pair_counts() == expected[1]


@pytest.mark.usefixtures("unchecked")
def test_unknown_names_list_the_valid_ones() -> None:
    none, rows = np.zeros(1, bool), np.zeros(0, np.int32)
    splits = Splits(none, none, none, rows, rows)
    with pytest.raises(DataSetError, match=r"'indomain'; allowed: in_domain, novel_query, novel_document, zero_shot"):
        splits.query_rows("indomain")
    with pytest.raises(DataSetError, match="'train'; allowed: dev, test, all"):
        splits.query_rows("zero_shot", "train")  # type: ignore[arg-type]
    with pytest.raises(DataSetError, match="1 queries with 2 dev marks"):
        Splits(none, none, np.zeros(2, bool), rows, rows)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=40))
def test_csr_holds_each_query_s_pairs_in_file_order(pairs: list[tuple[int, int]]) -> None:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    qrels = Qrels.sort(table[:, 0], table[:, 1], np.arange(len(pairs), dtype=np.float32), 6)
    assert (qrels.query.dtype, qrels.document.dtype) == (np.int32, np.int32)
    assert (qrels.score.dtype, qrels.offsets.dtype) == (np.float32, np.int64)
    assert len(qrels.offsets) == 7
    assert qrels.offsets[-1] == len(qrels) == len(pairs)
    for row in range(6):
        documents, scores = qrels.judged(row)
        expected = [(document, at) for at, (query, document) in enumerate(pairs) if query == row]
        assert list(zip(documents.tolist(), scores.tolist(), strict=True)) == expected
        assert (qrels.query[qrels.offsets[row] : qrels.offsets[row + 1]] == row).all()
