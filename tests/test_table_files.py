"""Reading tables: formats, encodings, compression, quoting, and rows that are wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl import text_files
from opengcl.data import DataSetError
from opengcl.sources import table_files
from opengcl.sources.table_files import TableFile


def read(path: Path, columns: list[str], **options: Any) -> list[dict[str, Any]]:
    parts = list(TableFile(path, **options).read(columns, progress=False))
    first = 0
    for part in parts:
        assert part.first == first
        first += len(part.batch)
    return [row for part in parts for row in part.batch.to_pylist()]


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


TEXT = 'id,title\n007,"line\none, and two"\n8,\n'
ROWS = [{"title": "line\none, and two", "id": "007"}, {"title": "", "id": "8"}]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "shift_jis"])
def test_csv_of_any_encoding(tmp_path: Path, encoding: str, packed: bool) -> None:
    data = TEXT.encode(encoding)
    path = written(tmp_path / ("t.csv.gz" if packed else "t.csv"), gzip.compress(data) if packed else data)
    asked = "utf-8" if encoding.startswith("utf-8") else encoding
    assert TableFile(path, encoding=asked, quoted=True).columns == ["id", "title"]
    assert read(path, ["title", "id"], encoding=asked, quoted=True) == ROWS


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", gzip.compress(TEXT.encode()))
    assert read(path, ["title", "id"], quoted=True) == ROWS


def test_tab_separated_text_keeps_quotes_when_told(tmp_path: Path) -> None:
    path = written(tmp_path / "t.tsv", 'id\ttitle\n1\t5" screen\n2\tplain\n')
    assert [row["title"] for row in read(path, ["title"], quoted=False)] == ['5" screen', "plain"]


def test_json_lines_with_numbers_nulls_and_paths(tmp_path: Path) -> None:
    lines = [{"id": 12, "p": {"t": "a"}}, {"id": "x", "p": None}, {"id": 1.5}, {"p": {"t": "ü"}, "id": True}]
    path = written(tmp_path / "t.jsonl", "\n\n".join(map(json.dumps, lines)))
    assert read(path, ["id", "p.t"]) == [
        {"id": "12", "p.t": "a"},
        {"id": "x", "p.t": None},
        {"id": "1.5", "p.t": None},
        {"id": "true", "p.t": "ü"},
    ]
    assert TableFile(path).columns == ["id", "p"]
    wide = written(tmp_path / "w.jsonl", '{"id": "ü"}\n'.encode("utf-16"))
    assert read(wide, ["id"], encoding="utf-16") == [{"id": "ü"}]
    marked = written(tmp_path / "m.jsonl", b'\xef\xbb\xbf{"id": "a"}\n')
    assert read(marked, ["id"]) == [{"id": "a"}]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "b": [b"x", None], "s": ["a", "b"]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", ["b", "id"]) == [{"b": b"x", "id": 1}, {"b": None, "id": 2}]


def test_trec_qrels(tmp_path: Path) -> None:
    path = written(tmp_path / "t.trec", "q1 0 d1 3\n\nq1\t0  d2 0.5\n")
    rows = read(path, ["doc_id", "query_id", "relevance"])
    assert rows == [
        {"doc_id": "d1", "query_id": "q1", "relevance": "3"},
        {"doc_id": "d2", "query_id": "q1", "relevance": "0.5"},
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_many_batches_are_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(table_files, "_ROWS", 7)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 64)
    rows = [{"id": str(number), "t": f'a "{number}"\n, b'} for number in range(100)]
    if kind == "csv":
        text = "id,t\n" + "".join('{},"{}"\n'.format(row["id"], row["t"].replace('"', '""')) for row in rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    path = written(tmp_path / f"t.{kind}", text)
    assert len(list(TableFile(path).read(["id"], progress=False))) > 3
    assert read(path, ["id", "t"]) == rows


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=8))
def test_json_lines_give_back_any_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    written(path, "".join(json.dumps({"t": text}, ensure_ascii=False) + "\n" for text in texts))
    assert [row["t"] for row in read(path, ["t"])] == texts


@pytest.mark.parametrize(
    ("name", "data", "options", "told"),
    [
        ("t.csv", "a,b\n1,2\n1,2,3\n", {}, "t.csv, line 3: found 3 columns; allowed: 2, as in the header: '1,2,3'"),
        ("t.csv", b"a,b\n\xff,2\n", {}, "t.csv, line 2: not utf-8 text"),
        ("t.csv", "", {}, "t.csv: the file is empty"),
        ("t.csv", "a,a\n1,2\n", {}, "t.csv, column 'a': found more than once in the header; allowed: once"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', {}, "t.jsonl, line 2: not JSON"),
        ("t.jsonl", '{"a": 1}\n[1]\n', {}, "t.jsonl, line 2: found [1]"),
        (
            "t.jsonl",
            '{"a": 1}\n{"a": [{}]}\n',
            {},
            "t.jsonl, line 2, 'a': found [{}]; allowed: text, a number, null, or a list",
        ),
        ("t.jsonl", b'{"a": "\xff"}\n', {}, "t.jsonl, line 1: not utf-8 text"),
        ("t.jsonl", "[" * 100_000, {}, "t.jsonl, line 1: not JSON"),
        (
            "t.trec",
            "q 0 d 1\nq 0 d\n",
            {},
            "t.trec, line 2: found 3 parts; allowed: query_id iteration doc_id relevance",
        ),
        ("t.parquet", "no", {}, "not readable as Parquet"),
        ("t.csv.gz", gzip.compress(b"a\n" + b"1\n" * 9000, mtime=0)[:40], {}, "its gzip stream is broken"),
        ("t.bin", "a\n1\n", {}, "its suffix names no format; allowed: .csv"),
        ("t.csv", "a\n1\n", {"encoding": "klingon"}, "unknown encoding 'klingon'"),
        ("t.csv", "a\n1\n", {"delimiter": ";;"}, "found delimiter ';;'; allowed: one character"),
        ("t.csv", "b\n1\n", {}, "t.csv, column 'a': missing; the file has b"),
    ],
)
def test_wrong_files_say_where(
    tmp_path: Path, name: str, data: bytes | str, options: dict[str, Any], told: str
) -> None:
    path = written(tmp_path / name, data)
    with pytest.raises(DataSetError) as caught:
        read(path, ["doc_id" if name.endswith("trec") else "a"], **options)
    assert told in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="no such file"):
        TableFile(tmp_path / "t.csv")
