"""Exact search against a full sort, with ties, over several blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import opengcl.search
from opengcl.search import exact_top_k


@pytest.mark.parametrize("k", [1, 7, 300, 500])
def test_equals_a_stable_full_sort_with_ties(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opengcl.search, "BLOCK_ELEMENTS", 64 * 16)
    generator = np.random.default_rng(0)
    queries = generator.integers(-2, 3, (33, 4)).astype(np.float32)  # few values: many exact ties
    documents = generator.integers(-2, 3, (300, 4)).astype(np.float32)
    scores, rows = exact_top_k(queries, documents, k, block_queries=16)
    full = queries @ documents.T
    expected = np.argsort(-full, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(full, expected, 1))


def test_a_search_of_some_rows_gives_their_own_numbers() -> None:
    generator = np.random.default_rng(1)
    queries, documents = (
        generator.normal(size=(5, 4)).astype(np.float32),
        generator.normal(size=(50, 4)).astype(np.float32),
    )
    rows = np.arange(1, 50, 3)
    scores, found = exact_top_k(queries, documents, 4, rows=rows)
    expected = rows[np.argsort(-(queries @ documents[rows].T), axis=1, kind="stable")[:, :4]]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, found, 1), rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="equally wide"):
        exact_top_k(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32), 1)
    with pytest.raises(ValueError, match="at least 1"):
        exact_top_k(np.ones((2, 3), np.float32), np.ones((0, 3), np.float32), 1)


@pytest.mark.parametrize("scale", [1, -1])
def test_candidates_are_thinned_whichever_way_the_scores_lie(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opengcl.search, "BLOCK_ELEMENTS", 32 * 4)
    rising = scale * np.arange(1000, dtype=np.float32)[:, None] // 3  # in threes, each block above the last or below
    scores, rows = exact_top_k(np.ones((4, 1), np.float32), rising, 10, block_queries=4)
    expected = np.argsort(-rising[:, 0], kind="stable")[:10]
    np.testing.assert_array_equal(rows, np.tile(expected, (4, 1)))
    np.testing.assert_array_equal(scores, np.tile(rising[expected, 0], (4, 1)))


def test_a_query_whose_scores_are_not_numbers_is_refused() -> None:
    queries = np.array([[1.0], [np.nan]], np.float32)
    with pytest.raises(ValueError, match="query row 1 has fewer than 2 finite scores"):
        exact_top_k(queries, np.ones((3, 1), np.float32), 2)


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """bfloat16 first, however few the vectors are and whatever the processor; which blocks it gave a result for."""
    for name in ("HALVES_DOCUMENTS", "HALVES_QUERIES", "HALVES_WIDTH"):
        monkeypatch.setattr(opengcl.search, name, 1)
    monkeypatch.setattr(opengcl.search, "_multiplies_bfloat16", lambda _: True)
    monkeypatch.setattr(opengcl.search, "BLOCK_ELEMENTS", 16 * 64)
    search, given_a_result = opengcl.search._best_by_halves, []

    def watched(*arguments: object) -> object:
        found = search(*arguments)  # type: ignore[arg-type]
        given_a_result.append(found is not None)
        return found

    monkeypatch.setattr(opengcl.search, "_best_by_halves", watched)
    return given_a_result


def of_unit_length(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-4, 1e4])
def test_bfloat16_first_gives_what_float32_gives(halves: list[bool], scale: float) -> None:
    generator = np.random.default_rng(3)
    queries = of_unit_length(generator.normal(size=(40, 24)))
    documents = (scale * of_unit_length(generator.normal(size=(3000, 24)))).astype(np.float32)
    documents[1500:] = documents[:1500]  # each twice: exact ties, far apart
    scores, rows = exact_top_k(queries, documents, 10, block_queries=16)
    full = np.einsum("qd,nd->qn", queries, documents, dtype=np.float64)
    np.testing.assert_allclose(scores, np.take_along_axis(full, rows, 1), rtol=1e-5, atol=1e-6 * abs(scale))
    np.testing.assert_allclose(scores, -np.sort(-full, axis=1)[:, :10], rtol=1e-5, atol=1e-6 * abs(scale))
    assert (rows[:, ::2] + 1500 == rows[:, 1::2]).all()  # of equal ones the first comes first
    assert halves == [True, True, True]


def test_bfloat16_first_searches_some_rows_of_a_file(halves: list[bool], tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    np.save(tmp_path / "documents.npy", of_unit_length(generator.normal(size=(2000, 24))))
    documents = np.load(tmp_path / "documents.npy", mmap_mode="r")
    queries, rows = of_unit_length(generator.normal(size=(20, 24))), np.arange(1999, 0, -2)
    found = exact_top_k(queries, documents, 5, rows=rows, block_queries=20)[1]
    expected = rows[np.argsort(-(queries @ documents[rows].T), axis=1, kind="stable")[:, :5]]
    np.testing.assert_array_equal(found, expected)
    assert halves == [True]


def test_scores_too_near_for_bfloat16_are_told_apart(halves: list[bool]) -> None:
    generator = np.random.default_rng(5)
    near = of_unit_length(np.ones((3000, 24)) + 1e-4 * generator.normal(size=(3000, 24)))  # within its rounding
    queries = of_unit_length(generator.normal(size=(40, 24)))
    scores, rows = exact_top_k(queries, near, 10, block_queries=16)
    full = queries.astype(np.float64) @ near.T.astype(np.float64)
    np.testing.assert_allclose(np.take_along_axis(full, rows, 1), -np.sort(-full, axis=1)[:, :10], atol=1e-6)
    np.testing.assert_allclose(scores, np.take_along_axis(full, rows, 1), atol=1e-6)
    assert halves == [False]  # and isn't tried again


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e30])
def test_vectors_without_a_bound_are_scored_in_float32(halves: list[bool], length: float) -> None:
    generator = np.random.default_rng(6)
    documents = of_unit_length(generator.normal(size=(500, 8)))
    documents[77] *= length
    queries = of_unit_length(generator.normal(size=(4, 8)))
    rows = exact_top_k(queries, documents, 3, block_queries=4)[1]
    full = queries @ documents.T
    np.testing.assert_array_equal(rows, np.argsort(-full, axis=1, kind="stable")[:, :3])
    assert halves == [False]


def test_documents_that_are_not_numbers_are_refused_with_bfloat16_too(halves: list[bool]) -> None:
    with pytest.raises(ValueError, match="query row 0 has fewer than 2 finite scores"):
        exact_top_k(np.ones((2, 3), np.float32), np.full((9, 3), np.nan, np.float32), 2)
    assert halves == [False]


COMPONENTS = st.floats(-100, 100, width=32)


@given(arrays(np.float32, (3, 6), elements=COMPONENTS), arrays(np.float32, (5, 6), elements=COMPONENTS))
def test_the_bound_of_bfloat16_scores_holds(queries: np.ndarray, documents: np.ndarray) -> None:
    rounded = opengcl.search._Halves(torch.from_numpy(queries), len(documents))
    approximate = rounded.scores(torch.from_numpy(documents))
    if approximate is None:
        assert min(np.linalg.norm(queries, axis=1).min(), np.linalg.norm(documents, axis=1).min()) < 1e-9
        return
    exact = torch.from_numpy(queries.astype(np.float64) @ documents.T.astype(np.float64))
    for kth in range(len(documents)):  # whatever is at least as good as the k-th passes
        order = approximate.argsort(dim=1, descending=True)
        least = rounded.least(approximate.gather(1, order[:, kth : kth + 1]))
        best = exact >= -(-exact).kthvalue(kth + 1, dim=1, keepdim=True).values
        assert bool((approximate > least)[best].all())
