"""Distributions against counts made one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl.data import RankedDataset, Schema, write_dataset
from opengcl.data.overview import Bin, count_bins, judged_bins, score_bins, text_lengths


def data(
    folder: Path, scores: list[float], low: float, high: float, titles: list[str | None] | None = None
) -> RankedDataset:
    """One query that judges a document for each score, and one that judges none."""
    ids = [f"d{row}" for row in range(max(len(scores), len(titles or ())))]
    titles = titles or ["title"] * len(ids)
    write_dataset(
        folder,
        Schema("some", {"query": "text"}, {"title": "text", "brand": "text"}, low, high),
        pa.table({"query_id": ["q0", "q1"], "query": ["a", "b c"]}),
        pa.table({"doc_id": ids, "title": pa.array(titles, pa.string()), "brand": ["b"] * len(ids)}),
        pa.table({"query_id": ["q0"] * len(scores), "doc_id": ids[: len(scores)], "score": scores}),
    )
    return RankedDataset.open(folder, progress=False)


def test_grades_get_a_bar_each(tmp_path: Path) -> None:
    found = score_bins(data(tmp_path / "a", [0, 3, 3, 1, 0, 0], 0, 3))
    assert found == [Bin("0", 3), Bin("1", 1), Bin("2", 0), Bin("3", 2)]


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (1.0, 100.0), (-5.0, 5.0)])
def test_other_scores_get_twenty_ranges_that_hold_all(low: float, high: float, tmp_path: Path) -> None:
    scores = [low, high, *np.random.default_rng(0).uniform(low, high, 500).tolist()]
    found = score_bins(data(tmp_path / "a", scores, low, high))
    width = (high - low) / 20
    for at, one in enumerate(found):
        start, end = low + at * width, low + (at + 1) * width
        assert one.count == sum(start <= np.float32(s) < end or (at == 19 and s == high) for s in scores)
    assert sum(one.count for one in found) == len(scores)
    assert found[0].label.startswith(f"{low:.4g} to ")


def test_judged_documents_count_queries_without_any(tmp_path: Path) -> None:
    assert judged_bins(data(tmp_path / "a", [1.0, 0.5, 0.25], 0, 1)) == [
        Bin("0", 1),
        Bin("1", 0),
        Bin("2", 0),
        Bin("3", 1),
    ]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_bins_of_counts_hold_every_row_in_its_range(counts: list[int]) -> None:
    bins = count_bins(np.array(counts))
    covered = 0
    for one in bins:
        ends = [int(end.replace(",", "")) for end in one.label.split(" to ")]
        assert one.count == sum(ends[0] <= count <= ends[-1] for count in counts)
        covered += one.count
    assert covered == len(counts)
    assert len(bins) <= 21
    assert bins[0].count
    assert bins[-1].count


def test_no_rows_have_no_bins() -> None:
    assert count_bins(np.empty(0, np.int64)) == []


def test_lengths_are_of_the_texts_that_are_there(tmp_path: Path) -> None:
    titles = ["red shoe", None, "  ", "", "Größe 42 für alle", "a\tb\nc", "鞋"]
    found = text_lengths(data(tmp_path / "a", [1.0], 0, 1, titles).documents, "title")
    assert found.characters == (1, 5, 17, 17)
    assert found.words == [Bin("1", 1), Bin("2", 1), Bin("3", 1), Bin("4", 1)]


def test_a_field_without_texts_has_no_lengths(tmp_path: Path) -> None:
    found = text_lengths(data(tmp_path / "a", [1.0], 0, 1, [None, " "]).documents, "title")
    assert found.characters == ()
    assert found.words == []
