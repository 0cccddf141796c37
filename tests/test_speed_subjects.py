"""Every subject of the speed benchmark at a small size: both sides do the same work, rows say what they should."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.speed import Row, extra_bytes, search


def test_searches_find_the_same_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("QUERIES", 30), ("DOCUMENTS", 900), ("WIDTH", 16), ("DEPTH", 20)):
        monkeypatch.setattr(search, name, size)
    (row,) = search.measure(2)
    assert len(row.ours) == len(row.peer) == 2
    assert row.about["same_place"] == 1.0


def test_searches_that_differ_are_an_error() -> None:
    places = np.zeros((1, 2), np.int64)
    with pytest.raises(ValueError, match=r"differ by 0\.1"):
        search.same_lists((np.array([[1.0, 0.5]]), places), (np.array([[1.0, 0.4]]), places))


def test_memory_is_what_the_work_takes() -> None:
    made, extra = extra_bytes(lambda: np.ones(40_000_000).sum())
    assert made == 40_000_000
    assert 300_000_000 < extra < 400_000_000


def test_the_ratio_is_of_the_medians() -> None:
    assert Row("", [1.0, 2.0, 9.0], [4.0, 4.0, 100.0], "").ratio == 2.0
