"""Results by field set: by hand, against a loop, and where ideal lists have ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opengcl.field_sets import FieldSets, by_field_set, field_set_means

# Documents 0 to 5: 0, 1, 2 have both fields, 3 and 4 a title, 5 a picture.
PRESENT = {
    "image": np.array([True, True, True, False, False, True]),
    "title": np.array([True, True, True, True, True, False]),
}


def test_sets_are_named_by_their_fields() -> None:
    sets = FieldSets.read({**PRESENT, "text": np.array([False, True, False, False, False, False])})
    assert sets.names == ["image+title+text", "image+title", "image", "title"]
    assert [sets.names[place] for place in sets.of] == [
        "image+title",
        "image+title+text",
        "image+title",
        "title",
        "title",
        "image",
    ]
    nothing = FieldSets.read({"a": np.array([True, False]), "b": np.array([True, False])})
    assert nothing.names == ["a+b", "none"]


def test_by_hand() -> None:
    sets = FieldSets.read(PRESENT)
    candidates = np.arange(6)
    rows = np.array([[3, 0, 5, 1, 4, 2], [0, 1, 2, 3, 4, 5]])
    relevance = np.array([[0.0, 3.0, 0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]])
    judged = [(np.array([0, 4]), np.array([3.0, 2.0])), (np.array([3, 4, 0]), np.array([1.0, 1.0, 0.0]))]
    table = by_field_set(sets, "zero_shot", candidates, ["a", "b"], rows, relevance, judged)
    found = {(row["query_id"], row["fields"]): row for row in table.to_pylist()}
    assert len(found) == 6
    both, title, image = (found["a", name] for name in ("image+title", "title", "image"))
    assert [both[name] for name in ("documents", "first", "ideal_first", "top10", "ideal_top10")] == [
        0.5,
        0,
        1,
        0.5,
        0.5,
    ]
    assert [title[name] for name in ("documents", "first", "ideal_first", "top10", "ideal_top10")] == pytest.approx(
        [2 / 6, 1, 0, 2 / 6, 0.5]
    )
    # Titles alone are listed as 3, 4: relevance 0, 2 where 2 would be best.
    assert title["ndcg@10"] == pytest.approx(1 / np.log2(3))
    assert (both["ndcg@10"], both["recall@100"], title["recall@100"]) == (1, 1, 1)
    assert (image["ndcg@10"], image["recall@100"], image["ideal_first"]) == (None, None, 0)
    assert found["b", "title"]["ideal_first"] == 1  # the one judged 0 is no part of an ideal list
    means = field_set_means(table)["zero_shot"]
    assert list(means) == ["image+title", "image", "title"]
    assert means["title"]["first"] == 0.5
    assert means["title"]["ndcg@10"] == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert means["image"]["recall@100"] is None


def test_equally_relevant_documents_share_an_ideal_place() -> None:
    sets = FieldSets.read(PRESENT)
    judged = [(np.array([0, 1, 3, 5]), np.array([2.0, 2.0, 2.0, 1.0]))]
    table = by_field_set(sets, "s", np.arange(6), ["a"], np.arange(6)[None], np.zeros((1, 6)), judged)
    shares = {row["fields"]: row["ideal_first"] for row in table.to_pylist()}
    assert shares == pytest.approx({"image+title": 2 / 3, "title": 1 / 3, "image": 0})


def test_nothing_relevant_is_no_ideal_list() -> None:
    sets = FieldSets.read(PRESENT)
    judged = [(np.array([0]), np.array([0.0]))]
    table = by_field_set(sets, "s", np.arange(6), ["a"], np.arange(6)[None], np.zeros((1, 6)), judged)
    assert table["ideal_first"].null_count == table["ideal_top10"].null_count == table["ndcg@10"].null_count == 3
    assert field_set_means(table)["s"]["title"]["ideal_top10"] is None


def test_a_split_of_one_set_is_left_out() -> None:
    sets = FieldSets.read(PRESENT)
    judged = [(np.array([0]), np.array([1.0]))]
    table = by_field_set(sets, "s", np.arange(3), ["a"], np.arange(3)[None], np.zeros((1, 3)), judged)
    assert len(table) == 1
    assert field_set_means(table) == {}


@given(seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_shares_add_up_and_agree_with_a_draw_of_ties(seed: int) -> None:
    generator = np.random.default_rng(seed)
    present = {name: generator.random(30) < 0.7 for name in ("image", "title")}
    sets = FieldSets.read(present)
    rows = np.stack([generator.permutation(30)[:20] for _ in range(3)])
    pairs = []
    for _ in range(3):
        documents = generator.permutation(30)[: generator.integers(1, 25)]
        pairs.append((documents, generator.integers(0, 4, len(documents)).astype(float)))
    known = [dict(zip(d.tolist(), s.tolist(), strict=True)) for d, s in pairs]
    relevance = np.array([[known[q].get(row, 0.0) for row in rows[q].tolist()] for q in range(3)])
    table = by_field_set(sets, "s", np.arange(30), list("abc"), rows, relevance, pairs).to_pylist()
    for number, query in enumerate("abc"):
        own = [row for row in table if row["query_id"] == query]
        for name in ("documents", "first", "top10"):
            assert sum(row[name] for row in own) == pytest.approx(1)
        documents, score = pairs[number]
        if not (score > 0).any():
            continue
        assert sum(row["ideal_top10"] for row in own) == pytest.approx(1)
        draws = []
        for _ in range(400):  # equally relevant documents in random order
            order = np.lexsort((generator.random(len(score)), -score))
            ideal = documents[order[score[order] > 0]][:10]
            draws.append([(sets.of[ideal] == sets.names.index(row["fields"])).mean() for row in own])
        np.testing.assert_allclose(np.mean(draws, 0), [row["ideal_top10"] for row in own], atol=0.09)
        for row in own:
            kind = sets.names.index(row["fields"])
            relevant = {d for d, s in known[number].items() if s > 0 and sets.of[d] == kind}
            if relevant:
                found = sum(one in relevant for one in rows[number].tolist())
                assert row["recall@100"] == pytest.approx(found / len(relevant))
            else:
                assert row["recall@100"] is None
