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

from opengcl import json_rows, text_files
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


@pytest.mark.parametrize(
    ("layout", "lines"),
    [
        ('{"id": 1, "t": NaN}\n\n{"id": "a", "t": "x"}\n', [1, 3]),
        ('[{"id": 1, "t": NaN},\n {"id": "a",\n "t": "x"}]\n', [1, 2]),
        ('[\n  {\n    "id": 1,\n    "t": Infinity\n  },\n  {\n    "id": "a",\n    "t": "x"\n  }\n]', [2, 6]),
        ('{\n "id": 1,\n "t": -Infinity\n}\n{\n "id": "a",\n "t": "x"\n}\n', [1, 5]),
        ('{"total": 2, "rows": [{"id": 1, "t": 1e999},\n{"id": "a", "t": "x"}], "next": null}', [1, 2]),
        ('{"took": 1,\n "hits": {"total": {"value": 2},\n  "hits": [{"id": 1},\n {"id": "a", "t": "x"}]}}', [3, 4]),
        ('\ufeff[{"id": 1, "t": null}, {"id": "a", "t": "x"}]', [1, 1]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_json_in_every_layout_with_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, lines: list[int], packed: bool, block: int
) -> None:
    monkeypatch.setattr(json_rows, "_PIECE", block)
    path = written(tmp_path / "t.json", gzip.compress(layout.encode()) if packed else layout)
    assert read(path, ["id", "t"]) == [{"id": "1", "t": None}, {"id": "a", "t": "x"}]
    (part,) = TableFile(path).read(["id"], progress=False)
    assert part.lines is not None
    assert part.lines.tolist() == lines


def test_the_list_inside_an_object_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "t.json", '{"hits": {"hits": [{"id": 1}]}}')
    assert TableFile(path).told == "JSON, a row an element of the list 'hits.hits'"
    rows = "".join(json.dumps({"id": n, "tags": [{"a": 1}]}) + "\n" for n in range(3))
    assert TableFile(written(tmp_path / "t.json", rows)).columns == ["id", "tags"]


def test_lists_in_json_are_lists(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", '{"a": ["x", 1, null]}\n{"a": "y"}\n{"a": null}\n')
    assert [row["a"] for row in read(path, ["a"])] == [["x", "1", None], ["y"], None]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_names_of_missing_values_are_missing_where_they_are_told(tmp_path: Path, name: str) -> None:
    values = ["NULL", " N/A ", "null", r"\N", "a"]
    if name == "t.parquet":
        pq.write_table(pa.table({"i": [1, 2, 3, 4, 5], "v": values}), tmp_path / name)
    elif name == "t.jsonl":
        written(tmp_path / name, "".join(json.dumps({"i": 1, "v": value}) + "\n" for value in values))
    else:
        written(tmp_path / name, "\n".join(("i,v" if name == "t.csv" else "i\tv", *(f"1\t{v}" for v in values))))
        (tmp_path / name).write_text((tmp_path / name).read_text().replace("\t", "," if name == "t.csv" else "\t"))
    assert [row["v"] for row in read(tmp_path / name, ["v"])] == values
    told = [row["v"] for row in read(tmp_path / name, ["v"], nulls=("NULL", "N/A", r"\N"))]
    assert told == [None, None, "null", None, "a"]


def test_nan_in_parquet_is_missing(tmp_path: Path) -> None:
    nan = float("nan")
    pq.write_table(pa.table({"id": [12.0, nan], "score": pa.array([nan, 0.5], pa.float32())}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", ["id", "score"]) == [{"id": 12.0, "score": None}, {"id": None, "score": 0.5}]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
        ("t.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
        ("t.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a pointer of Git LFS"),
        ("t.csv", b"PAR1\x15\x04", "found a Parquet file, by its first bytes; name it .parquet, or give the format"),
        ("t.csv", b"PK\x03\x04\x14", "an Excel workbook, by its first bytes; unpack the archive, or save the sheet as"),
        ("t.parquet", b"PK\x03\x04\x14", "a zip archive or an Excel workbook"),
        ("t.xlsx", b"PK\x03\x04\x14", "a zip archive or an Excel workbook"),
        ("t.tsv", b"\x28\xb5\x2f\xfd\x00", "found compressed by Zstandard, by its first bytes; unpack it first"),
        ("t.csv.gz", gzip.compress(b"BZh91AY", mtime=0), "found compressed by bzip2"),
        ("t.tar.gz", gzip.compress(bytes(257) + b"ustar\x00", mtime=0), "a tar archive"),
        ("t.csv", b"\n <!DOCTYPE html><html>", "found an HTML page, by its first bytes; download the file itself"),
        ("t.csv", b"%PDF-1.7", "a PDF document"),
        ("t.csv", b"\x89PNG\r\n", "a PNG image"),
        ("t.trec", b"SQLite format 3\x00", "an SQLite database"),
        ("t.jsonl", b"\x80\x04\x95", "a Python pickle"),
    ],
)
def test_files_of_another_kind_are_told_by_their_first_bytes(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    path = written(tmp_path / name, data)
    with pytest.raises(DataSetError) as caught:
        read(path, ["doc_id" if name == "t.trec" else "a"])
    assert told in str(caught.value)
    assert name in str(caught.value)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=8))
def test_json_lines_give_back_any_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    written(path, "".join(json.dumps({"t": text}, ensure_ascii=False) + "\n" for text in texts))
    assert [row["t"] for row in read(path, ["t"])] == texts


TWICE = "found the key 'a' twice in one object; allowed: each key once"


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
        ("t.json", '[{"a": 1},\n\n{"a": tru}]', {}, "t.json, line 3: not JSON"),
        ("t.json", '[{"a": 1},\n"x"]', {}, "t.json, line 2: found 'x'; allowed: an object a row"),
        ("t.json", '[{"a": 1}\n', {}, "t.json, line 2: not JSON"),
        ("t.json", '[{"a": 1}] 3', {}, "t.json, line 1: not JSON: found '3'; allowed: nothing more"),
        ("t.json", '{"x": [{"a": 1}],\n"y": [{"a": 2}]}', {}, "found an object with the lists 'x' and 'y'"),
        ("t.jsonl", b'{"a": "\xff"}\n', {}, "t.jsonl, line 1: not utf-8 text"),
        ("t.jsonl", "[" * 100_000, {}, "t.jsonl, line 1: not JSON"),
        ("t.jsonl", '{"a": 1}\n{"a": 2, "b": 1, "a": 3}\n', {}, f"t.jsonl, line 2: {TWICE}"),
        ("t.jsonl", '{"a": 1, "a": 3}\n{"a": 1}\n', {}, f"t.jsonl, line 1: {TWICE}"),
        ("t.jsonl", '{"a": 1}\n{"b": {"a": 2, "a": 2}}\n', {}, f"t.jsonl, line 2: {TWICE}"),
        ("t.json", '[{"a": 1},\n\n{"a": 2,\n"a": 3}]', {}, f"t.json, line 3: {TWICE}"),
        ("t.json", '{"a": [{"a": 1}],\n"a": [{"a": 2}]}', {}, f"t.json, line 2: {TWICE}"),
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
