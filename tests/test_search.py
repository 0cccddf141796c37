"""Exact search against a full sort, with ties, over several blocks."""

from __future__ import annotations

import numpy as np
import pytest

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
