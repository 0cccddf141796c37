"""Scores that waste the range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from opengcl.data import RankedDataset, Schema, write_dataset
from opengcl.data.check import check_dataset
from opengcl.data.score_use import unused_range

CASES: dict[str, tuple[tuple[float, float], list[list[float]], str | None]] = {
    "ten places of a hundred": (
        (1, 100),
        [[101.0 - place for place in range(1, 11)]] * 5,
        "found 91 to 100 of a range of 1 to 100, so that weights only go from 0.64 to 1 (exponential, the default). "
        "Import with --score-range 91,100",
    ),
    "the range is used": ((1, 100), [[1.0, 50.0, 100.0]] * 5, None),
    "grades": ((0, 2), [[0.0, 1.0, 2.0], [1.0, 2.0]], None),
    "labels": ((0, 1), [[0.0, 0.01, 0.1, 1.0]] * 5, None),
    "a few sell a thousand times more": (
        (0, 100_000),
        [[float(n) for n in range(1, 30)] for _ in range(20)] + [[100_000.0]],
        "nine tenths lie between 2 and 28 of a range of 0 to 100,000",
    ),
    "levels differ from query to query": (
        (0, 100),
        [[base + n for n in range(1, 5)] for base in (0.0, 20.0, 40.0, 60.0, 80.0, 95.0)],
        "in half of the queries they differ by 3% or less of the range of 0 to 100. Train with --set scaling=query",
    ),
    "one grade": ((0, 1), [[1.0, 1.0], [1.0, 0.0]], "all 3 above 0 are 1, so that every pair weighs the same"),
}


@pytest.mark.parametrize(("ends", "lists", "told"), CASES.values(), ids=list(CASES))
def test_what_wastes_the_range_is_told(
    tmp_path: Path, ends: tuple[float, float], lists: list[list[float]], told: str | None
) -> None:
    pairs = [(f"q{q}", f"d{d}", score) for q, scores in enumerate(lists) for d, score in enumerate(scores)]
    documents = sorted({document for _, document, _ in pairs})
    query, document, score = zip(*pairs, strict=True)
    names = list(dict.fromkeys(query))
    write_dataset(
        tmp_path / "shop",
        Schema("shop", {"query": "text"}, {"title": "text"}, *map(float, ends)),
        pa.table({"query_id": names, "query": [f"{name} {n * 7919}" for n, name in enumerate(names)]}),
        pa.table({"doc_id": documents, "title": documents}),
        pa.table({"query_id": query, "doc_id": document, "score": np.array(score)}),
    )
    data = RankedDataset.open(tmp_path / "shop", cache_dir=tmp_path / "cache", progress=False)
    found = unused_range(data)
    if told is None:
        assert found == []
    else:
        assert len(found) == 1
        assert told.replace("100,000", "100000") in found[0].replace("1e+05", "100000")
        assert found[0] in check_dataset(tmp_path / "shop", progress=False).remarks
