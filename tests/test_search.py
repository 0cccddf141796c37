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


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="equally wide"):
        exact_top_k(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32), 1)
    with pytest.raises(ValueError, match="at least 1"):
        exact_top_k(np.ones((2, 3), np.float32), np.ones((0, 3), np.float32), 1)
