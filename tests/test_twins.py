"""Queries and documents on both sides of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from opengcl import cli
from opengcl.data import RankedDataset, Schema, write_dataset
from opengcl.data.check import check_dataset
from opengcl.data.twins import near_twins, query_twins, same_queries
from opengcl.query_text import normalised

SCHEMA = Schema("shop", {"query": "text"}, {"title": "text"}, 0.0, 10.0)
Row = tuple[str, str, str]


def dataset(folder: Path, queries: list[Row], titles: list[tuple[str, str]] | None = None) -> RankedDataset:
    """Queries as (text, split, part), documents as (title, split); every query judges the first document."""
    titles = titles or [("a shoe", "seen"), ("one more hat", "novel")]
    text, split, part = zip(*queries, strict=True)
    ids = [f"q{n}" for n in range(len(queries))]
    write_dataset(
        folder / "shop",
        SCHEMA,
        pa.table({"query_id": ids, "query": text, "split": split, "part": part}),
        pa.table(
            {
                "doc_id": [f"d{n}" for n in range(len(titles))],
                "title": [title for title, _ in titles],
                "split": [split for _, split in titles],
            }
        ),
        pa.table({"query_id": ids + ids[:1], "doc_id": ["d0"] * len(ids) + ["d1"], "score": [1.0, *[10.0] * len(ids)]}),
    )
    return RankedDataset.open(folder / "shop", cache_dir=folder / "cache", progress=False)


def test_seen_queries_among_novel_ones_and_dev_among_test(tmp_path: Path) -> None:
    data = dataset(
        tmp_path,
        [
            ("red shoe", "seen", "dev"),
            ("RED  SHOE", "novel", "dev"),
            ("red shoe ", "novel", "test"),
            ("blue hat", "novel", "test"),
            ("Blue Hat", "novel", "dev"),
            ("green bag", "seen", "test"),
        ],
    )
    novel, test = query_twins(data, examples=5)
    assert (novel.count, test.count) == (2, 2)
    assert str(novel).startswith(
        "queries.parquet, column 'query': of 4 novel queries, a seen one has the same text but for its spelling in "
        "2 rows: 'RED  SHOE' (id 'q1') and 'red shoe' (id 'q0'); 'red shoe ' (id 'q2') and 'red shoe' (id 'q0'). "
    )
    assert "of 3 test queries, a dev one has the same text" in str(test)
    assert test.examples == (
        "'red shoe ' (id 'q2') and 'red shoe' (id 'q0')",
        "'blue hat' (id 'q3') and 'Blue Hat' (id 'q4')",
    )
    assert same_queries(data.queries) == 3
    assert [one.count for one in check_dataset(tmp_path / "shop", progress=False).problems] == [2, 2]


def test_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(tmp_path, [("red shoe", "seen", "dev"), ("RED SHOE", "novel", "dev")])
    monkeypatch.setattr("sys.argv", ["opengcl", "data", "check", str(tmp_path / "shop")])
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "'RED SHOE' (id 'q1') and 'red shoe' (id 'q0')" in printed
    assert "no problems" not in printed


def test_the_count_is_that_of_a_loop(tmp_path: Path) -> None:
    """A messy log: 365 queries of 60 words in many spellings."""
    generator = np.random.default_rng(5)
    forms = [str, str.upper, str.title, lambda one: f" {one} "]
    rows = [
        (
            forms[generator.integers(4)](f"word{generator.integers(200)} shoe"),
            "novel" if generator.random() < 0.2 else "seen",
            "dev" if generator.random() < 0.5 else "test",
        )
        for _ in range(365)
    ]
    data = dataset(tmp_path, rows)
    seen = {normalised(text) for text, split, _ in rows if split == "seen"}
    dev = {normalised(text) for text, _, part in rows if part == "dev"}
    expected = [
        sum(normalised(text) in seen for text, split, _ in rows if split == "novel"),
        sum(normalised(text) in dev for text, _, part in rows if part == "test"),
    ]
    found = query_twins(data, examples=2)
    assert [one.count for one in found] == expected
    assert [len(one.examples) for one in found] == [2, 2]


def test_near_duplicates_across_a_division(tmp_path: Path) -> None:
    data = dataset(
        tmp_path,
        [
            ("black running shoes for men", "seen", "dev"),
            ("black running shoes for mens", "novel", "dev"),
            ("Black running shoes for men", "novel", "dev"),
            ("silver necklace", "novel", "test"),
        ],
        [("leather bag in brown", "seen"), ("leather bag in Brown", "novel"), ("wool cap", "novel")],
    )
    queries, documents = near_twins(data)
    assert queries.startswith("queries: of 3 novel ones compared, 1 nearly repeat one of 1 seen ones")
    assert "'black running shoes for mens' and 'black running shoes for men'" in queries
    assert documents.startswith("documents: of 2 novel ones compared, 1 nearly repeat one of 1 seen ones")


def test_a_data_set_without_twins(tmp_path: Path) -> None:
    data = dataset(tmp_path, [("red shoe", "seen", "dev"), ("a blue hat", "novel", "test")])
    assert query_twins(data, examples=5) == []
    assert near_twins(data) == []
    assert same_queries(data.queries) == 0
