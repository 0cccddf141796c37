"""Opening a data set: every check, the cache, and random access."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opengcl.data import DataSetError, RankedDataset, Schema, SplitOptions, cache, images, write_dataset
from opengcl.data.records import Records, id_keys

SCHEMA = Schema("small", {"query": "text"}, {"title": "text", "image": "image"}, 1.0, 100.0)


def picture(colour: Any = (200, 30, 30), size: tuple[int, int] = (6, 8), **options: Any) -> bytes:
    mode = options.pop("mode", "RGB")
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, options.pop("format", "PNG"), **options)
    return out.getvalue()


def queries(**columns: Any) -> pa.Table:
    return pa.table({"query_id": ["q0", "q1", "q2"], "query": ["red", "blue", "green"], **columns})


def documents(**columns: Any) -> pa.Table:
    base = {
        "doc_id": ["d0", "d1", "d2", "d3"],
        "title": ["red shoe", "blue shoe", None, " "],
        "image": [picture(), None, picture(format="JPEG"), picture((0, 0, 255))],
        "brand": ["a", "b", None, "a"],
    }
    return pa.table({**base, **columns})


def qrels(**columns: Any) -> pa.Table:
    base = {
        "query_id": ["q1", "q0", "q1", "q2"],
        "doc_id": ["d1", "d0", "d2", "d3"],
        "score": [100.0, 1.0, 50.0, 7.0],
    }
    return pa.table({**base, **columns})


Tables = dict[str, Any]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def write(**tables: Any) -> Path:
        everything: Tables = {"schema": SCHEMA, "queries": queries(), "documents": documents(), "qrels": qrels()}
        return write_dataset(tmp_path / "data", **{**everything, **tables})

    return write


def message(folder: Path, **options: Any) -> str:
    with pytest.raises(DataSetError) as caught:
        RankedDataset.open(folder, **options)
    return str(caught.value)


def test_the_part_column_decides_and_null_leaves_it_to_the_formula(make, tmp_path: Path) -> None:
    told = make(queries=queries(part=["dev", "test", None]), schema=replace(SCHEMA, splits=SplitOptions(dev=1.0)))
    opened = RankedDataset.open(told, cache_dir=tmp_path / "cache", progress=False)
    assert opened.splits.query_dev.tolist() == [True, False, True]
    (told / "dataset.yaml").write_text(replace(SCHEMA, splits=SplitOptions(dev=0.0)).to_yaml())
    opened = RankedDataset.open(told, cache_dir=tmp_path / "cache", progress=False)
    assert opened.splits.query_dev.tolist() == [True, False, False]
    with pytest.raises(DataSetError, match="the column 'part' cannot be a model field"):
        replace(SCHEMA, queries={"part": "text"})


# Reading


def test_rows_come_back_as_written(make) -> None:
    data = RankedDataset.open(make())
    assert (len(data.queries), len(data.documents), len(data.qrels)) == (3, 4, 4)
    assert data.queries.ids() == ["q0", "q1", "q2"]
    assert data.documents.ids([3, 0]) == ["d3", "d0"]
    assert [data.documents.row(name) for name in ("d0", "d3", "d1")] == [0, 3, 1]
    assert data.documents.texts("title", [1, 3, 2, 0, 1]) == ["blue shoe", None, None, "red shoe", "blue shoe"]
    assert data.documents.present("image", [0, 1, 2]).tolist() == [True, False, True]
    assert data.documents.column("brand").to_pylist() == ["a", "b", None, "a"]
    assert data.problems == []
    red, none, _ = data.documents.images("image", [0, 1, 2])
    assert none is None
    assert red is not None
    assert (red.mode, red.size, red.getpixel((0, 0))) == ("RGB", (6, 8), (200, 30, 30))
    assert data.qrels.query.tolist() == [0, 1, 1, 2]
    assert data.qrels.document.tolist() == [0, 1, 2, 3]
    assert data.qrels.score.tolist() == [1.0, 100.0, 50.0, 7.0]
    assert data.qrels.offsets.tolist() == [0, 1, 3, 4]
    assert isinstance(data.qrels.query, np.memmap)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rows", [[0.5], [True], np.zeros((1, 1), np.int64), ["d0"]])
def test_rows_are_integers_not_a_mask(make, rows: Any) -> None:
    with pytest.raises(DataSetError, match=r"documents.parquet: rows of type .*; allowed: integers, \(rows,\)"):
        RankedDataset.open(make()).documents.texts("title", rows)


@pytest.mark.usefixtures("unchecked")
def test_wrong_requests_say_what_is_allowed(make) -> None:
    data = RankedDataset.open(make())
    records = data.documents
    with pytest.raises(DataSetError, match=r"documents.parquet: no doc_id 'd9' among its 4 rows"):
        records.row("d9")
    with pytest.raises(DataSetError, match=r"no doc_id '\\ud800'"):
        records.row("\ud800")
    with pytest.raises(DataSetError, match="query row 3; allowed: 0 to 2"):
        data.qrels.judged(3)
    with pytest.raises(DataSetError, match="no text field 'image'; allowed: title"):
        records.texts("image", [0])
    with pytest.raises(DataSetError, match="no image field 'brand'; allowed: image"):
        records.images("brand", [0])
    with pytest.raises(DataSetError, match="rows from -1 to 0; allowed: 0 to 3"):
        records.texts("title", [0, -1])
    with pytest.raises(DataSetError, match="rows from 4 to 4; allowed: 0 to 3"):
        records.present("title", [4])
    with pytest.raises(DataSetError, match="no column 'price'; the file has doc_id, title, image, brand"):
        records.column("price")
    assert records.texts("title", []) == []
    assert records.images("image", []) == []


def test_describe_counts(make) -> None:
    split = {"queries": ["seen", "seen", "novel"], "documents": ["seen", "novel", "seen", "seen"]}
    folder = make(queries=queries(split=split["queries"]), documents=documents(split=split["documents"]))
    counts = RankedDataset.open(folder).describe()
    assert json.loads(json.dumps(counts)) == counts
    assert (counts["queries"], counts["documents"], counts["pairs"]) == (3, 4, 4)
    assert {split: one["pairs"] for split, one in counts["splits"].items()} == {
        "in_domain": 2,
        "novel_query": 1,
        "novel_document": 1,
        "zero_shot": 0,
    }
    assert counts["splits"]["zero_shot"] == {
        "queries": 0,
        "dev_queries": 0,
        "test_queries": 0,
        "documents": 1,
        "pairs": 0,
    }
    assert counts["missing"] == {"queries": {"query": 0}, "documents": {"title": 2, "image": 1}}


def test_all_column_types_read_alike(make, tmp_path: Path) -> None:
    png = picture((1, 2, 3))
    (tmp_path / "data").mkdir()
    schema = Schema("s", {"query": "text", "photo": "image"}, {"title": "text", "a": "image", "b": "image"}, 0, 1)
    struct = pa.array([{"bytes": png, "path": "not/there.png"}, {"bytes": None, "path": "in/x.png"}, None])
    folder = make(
        schema=schema,
        queries=pa.table(
            {
                "query_id": pa.array(["q0", "q1", "q0"][:2]).dictionary_encode(),
                "query": pa.array(["x", None], pa.string_view()),
                "photo": pa.array([b"", png], pa.large_binary()),
            }
        ),
        documents=pa.table(
            {
                "doc_id": pa.array(["d0", "d1", "d2"], pa.large_string()),
                "title": pa.array(["t", "t", "u"]).dictionary_encode(),
                "a": pa.array(["in/x.png", "", None]),
                "b": struct,
            }
        ),
        qrels=pa.table({"query_id": ["q0", "q1"], "doc_id": ["d2", "d0"], "score": pa.array([0, 1], pa.int8())}),
    )
    (folder / "in").mkdir()
    (folder / "in" / "x.png").write_bytes(png)
    data = RankedDataset.open(folder)
    for field, there in (("a", [True, False, False]), ("b", [True, True, False])):
        assert data.documents.present(field, [0, 1, 2]).tolist() == there
        for image, expected in zip(data.documents.images(field, [0, 1, 2]), there, strict=True):
            assert (image is not None) == expected
            assert image is None or image.getpixel((0, 0)) == (1, 2, 3)
    assert data.queries.texts("query", [0, 1]) == ["x", None]
    assert data.queries.present("photo", [0, 1]).tolist() == [False, True]
    assert data.documents.texts("title", [0, 1, 2]) == ["t", "t", "u"]


def test_many_batches_give_the_same_rows(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opengcl.data.tables._BATCH_ROWS", (3, 3))
    count = 50
    names = [f"d{number}" for number in range(count)]
    pairs = pa.table({"query_id": ["q0"] * count, "doc_id": names[::-1], "score": np.linspace(1, 100, count)})
    table = pa.table({"doc_id": names, "title": [f"t{number}" for number in range(count)], "image": [None] * count})
    data = RankedDataset.open(make(documents=table, qrels=pairs))
    rows = np.random.default_rng(0).permutation(count)
    assert data.documents.column("title").num_chunks == 17
    assert data.documents.texts("title", rows) == [f"t{row}" for row in rows]
    assert data.documents.find([*names, "d", ""]).tolist() == [*range(count), -1, -1]
    assert data.qrels.document.tolist() == list(range(count))[::-1]


def test_ids_with_equal_keys_are_told_apart(make, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(ids):  # a hash with three values
        return np.array([len(one) for one in ids], np.uint64)

    for module in ("build", "records"):
        monkeypatch.setattr(f"opengcl.data.{module}.id_keys", few)
    data = RankedDataset.open(make())
    assert [data.documents.row(name) for name in ("d0", "d1", "d2", "d3")] == [0, 1, 2, 3]
    assert data.documents.find(["d9", "zzz", "d2"]).tolist() == [-1, -1, 2]
    assert data.qrels.document.tolist() == [0, 1, 2, 3]


def test_keys_are_stable() -> None:
    assert id_keys(["a"]).tolist() == id_keys(["a", "b"])[:1].tolist()
    assert len(id_keys([])) == 0


# Checks: each names file, row, column, what was found and what is allowed


def struct_of(path: str) -> list[Any]:
    return [{"bytes": None, "path": path}] + [None] * 3


def truncated() -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "JPEG")
    return out.getvalue()[: len(out.getvalue()) // 2]


BROKEN = truncated()

ROW_PROBLEMS: dict[str, tuple[Tables, list[str]]] = {
    "duplicate query": (
        {"queries": queries(query_id=["q0", "q1", "q1"])},
        ["queries.parquet, column 'query_id': duplicate id in 1 row", "row 2 (id 'q1') repeats the id of row 1"],
    ),
    "duplicate document": (
        {"documents": documents(doc_id=["d0", "d1", "d2", "d1"])},
        ["documents.parquet, column 'doc_id': duplicate id", "row 3 (id 'd1')", "Allowed: each id once"],
    ),
    "null document id": (
        {"documents": documents(doc_id=["d0", "d1", "d2", None])},
        ["documents.parquet, column 'doc_id': null or empty id", "row 3 holds None"],
    ),
    "empty query id": (
        {"queries": queries(query_id=["q0", "q1", ""])},
        ["queries.parquet, column 'query_id': null or empty id", "row 2 holds ''"],
    ),
    "unknown document": (
        {"qrels": qrels(doc_id=["d1", "d0", "d2", "d7"])},
        ["qrels.parquet, column 'doc_id': unknown id", "row 3 holds 'd7'", "an id of documents.parquet"],
    ),
    "unknown query": (
        {"qrels": qrels(query_id=["q1", "q9", "q1", "q2"])},
        ["qrels.parquet, column 'query_id': unknown id", "row 1 holds 'q9'", "an id of queries.parquet"],
    ),
    "null in qrels": (
        {"qrels": qrels(query_id=["q1", None, "q1", "q2"])},
        ["qrels.parquet, column 'query_id': null or empty id", "row 1 holds None"],
    ),
    "duplicate pair": (
        {"qrels": qrels(query_id=["q1", "q0", "q1", "q1"], doc_id=["d1", "d0", "d2", "d1"])},
        ["qrels.parquet, column 'query_id, doc_id': duplicate pair", "row 3 repeats the pair ('q1', 'd1') of row 0"],
    ),
    "score too high": (
        {"qrels": qrels(score=[100.0, 1.0, 100.5, 7.0])},
        ["qrels.parquet, column 'score': score out of range", "row 2 (ids ('q1', 'd2')) holds 100.5", "1.0 to 100.0"],
    ),
    "score too low": (
        {"qrels": qrels(score=[100.0, 0.5, 50.0, 7.0])},
        ["column 'score': score out of range", "row 1 (ids ('q0', 'd0')) holds 0.5"],
    ),
    "score nan": (
        {"qrels": qrels(score=[100.0, 1.0, float("nan"), 7.0])},
        ["qrels.parquet, column 'score': score not finite", "row 2 (ids ('q1', 'd2')) holds nan"],
    ),
    "score inf": (
        {"qrels": qrels(score=[float("-inf"), 1.0, 50.0, 7.0])},
        ["column 'score': score not finite", "row 0 (ids ('q1', 'd1')) holds -inf"],
    ),
    "score null": (
        {"qrels": qrels(score=[100.0, None, 50.0, 7.0])},
        ["column 'score': null score", "row 1 (ids ('q0', 'd0')) holds None"],
    ),
    "no field": (
        {"documents": documents(title=["a", "\t ", None, "d"])},
        ["documents.parquet, column 'title, image': no field present", "row 1 (id 'd1') has none of title, image"],
    ),
    "no query text": (
        {"queries": queries(query=["red", "", "green"])},
        ["queries.parquet, column 'query': no field present", "row 1 (id 'q1') has none of query"],
    ),
    "not a picture": (
        {"documents": documents(image=[b"text", None, picture(), picture()])},
        ["documents.parquet, column 'image': unreadable image", "row 0 (id 'd0'): not a picture in a known format"],
    ),
    "truncated picture": (
        {"documents": documents(image=[BROKEN, None, picture(), picture()])},
        ["column 'image': unreadable image", "row 0 (id 'd0'): cannot be decoded", "truncated"],
    ),
    "absolute path": (
        {"documents": documents(image=["/etc/passwd", None, None, None], title=list("abcd"))},
        ["column 'image': unreadable image", "row 0 (id 'd0'): path '/etc/passwd' is absolute"],
    ),
    "windows path": (
        {"documents": documents(image=["C:\\x.png", None, None, None], title=list("abcd"))},
        ["row 0 (id 'd0'): path 'C:\\\\x.png' is absolute"],
    ),
    "path upwards": (
        {"documents": documents(image=struct_of("a/../../x.png"), title=list("abcd"))},
        ["row 0 (id 'd0'): path 'a/../../x.png' has a '..'"],
    ),
    "no file": (
        {"documents": documents(image=struct_of("x.png"), title=list("abcd"))},
        ["row 0 (id 'd0'): no file", "x.png"],
    ),
    "split value": (
        {"queries": queries(split=["seen", "train", "novel"]), "documents": documents(split=["seen"] * 4)},
        ["queries.parquet, column 'split': unknown split", "row 1 (id 'q1') holds 'train'", "seen or novel"],
    ),
    "part value": (
        {"queries": queries(part=["dev", "train", None])},
        ["queries.parquet, column 'part': unknown part", "row 1 (id 'q1') holds 'train'", "dev or test, or null"],
    ),
    "split null": (
        {"queries": queries(split=["seen"] * 3), "documents": documents(split=["seen", None, "novel", "seen"])},
        ["documents.parquet, column 'split': unknown split", "row 1 (id 'd1') holds None"],
    ),
}


@pytest.mark.parametrize(("tables", "expected"), ROW_PROBLEMS.values(), ids=list(ROW_PROBLEMS))
def test_problems_in_rows(make, cache_dir: Path, tables: Tables, expected: list[str]) -> None:
    folder = make(**tables)
    told = message(folder, cache_dir=cache_dir)
    for part in expected:
        assert part in told
    assert list(cache_dir.iterdir()) == [], "a failed opening left something"


@pytest.mark.parametrize(("tables", "expected"), ROW_PROBLEMS.values(), ids=list(ROW_PROBLEMS))
def test_lenient_opening_counts_the_same_problems(
    make, tables: Tables, expected: list[str], caplog, monkeypatch
) -> None:
    monkeypatch.setattr("opengcl.data.tables._BATCH_ROWS", (1, 1))  # row numbers go on from batch to batch
    folder = make(**tables)
    with caplog.at_level(logging.WARNING, logger="opengcl"):
        data = RankedDataset.open(folder, strict=False)
    told = "\n".join(str(problem) for problem in data.problems)
    for part in expected:
        assert part in told
        assert part in caplog.text
    again = RankedDataset.open(folder, strict=False)
    assert again.problems == data.problems
    message(folder)  # the entry with skipped rows does not serve a strict opening


def test_skipping_a_document_drops_its_pairs_and_counts_them(make) -> None:
    data = RankedDataset.open(make(documents=documents(title=["a", "", None, "d"])), strict=False)
    assert data.documents.ids() == ["d0", "d2", "d3"]
    assert [(one.file, one.column, one.kind, one.count) for one in data.problems] == [
        ("documents.parquet", "title, image", "no field present", 1),
        ("qrels.parquet", "doc_id", "id of a skipped row", 1),
    ]
    assert data.qrels.query.tolist() == [0, 1, 2]
    assert data.qrels.document.tolist() == [0, 1, 2]
    assert data.documents.texts("title", [0, 1, 2]) == ["a", None, "d"]


def test_a_skipped_query_drops_its_pairs(make) -> None:
    data = RankedDataset.open(make(queries=queries(query=["red", "", "green"])), strict=False)
    assert [(one.column, one.kind, one.count) for one in data.problems] == [
        ("query", "no field present", 1),
        ("query_id", "id of a skipped row", 2),
    ]
    assert data.qrels.offsets.tolist() == [0, 1, 2]


def test_an_unreadable_picture_costs_the_picture_or_the_document(make) -> None:
    data = RankedDataset.open(make(documents=documents(image=[b"x", None, b"y", picture()])), strict=False)
    assert data.documents.ids() == ["d0", "d1", "d3"]
    assert data.documents.present("image", [0, 1, 2]).tolist() == [False, False, True]
    assert data.documents.images("image", [0])[0] is None
    assert {(one.kind, one.count) for one in data.problems} == {
        ("unreadable image", 2),
        ("no field present", 1),
        ("id of a skipped row", 1),
    }


def test_the_first_of_duplicates_is_kept(make) -> None:
    pairs = qrels(query_id=["q1", "q0", "q1", "q1"], doc_id=["d1", "d0", "d2", "d1"])
    data = RankedDataset.open(make(documents=documents(doc_id=["d0", "d1", "d2", "d0"]), qrels=pairs), strict=False)
    assert data.documents.texts("title", [data.documents.row("d0")]) == ["red shoe"]
    assert data.qrels.score[data.qrels.offsets[1] : data.qrels.offsets[2]].tolist() == [100.0, 50.0]


def test_five_examples_and_the_count_of_all(make) -> None:
    count = 40
    names = [f"d{number}" for number in range(count)]
    table = pa.table({"doc_id": names, "title": [""] * (count - 1) + ["x"], "image": [None] * count})
    told = message(make(documents=table))
    assert "no field present in 39 rows" in told
    assert "row 4 (id 'd4')" in told
    assert "row 5 " not in told
    assert "and 34 more" in told


def test_problems_of_both_sides_come_in_one_error(make) -> None:
    told = message(make(queries=queries(query_id=["q0", "q1", "q1"]), documents=documents(title=["", "", "", "x"])))
    assert "queries.parquet, column 'query_id'" in told
    assert "documents.parquet, column 'title, image'" in told


def test_float_bounds_are_compared_as_stored(make) -> None:
    schema = Schema("s", SCHEMA.queries, SCHEMA.documents, 0.0, 0.1)
    data = RankedDataset.open(make(schema=schema, qrels=qrels(score=pa.array([0.1, 0.1, 0.0, 0.05], pa.float32()))))
    assert len(data.qrels) == 4


STRUCTURE: dict[str, tuple[Tables, str]] = {
    "id type": (
        {"documents": documents(doc_id=[0, 1, 2, 3])},
        "documents.parquet, column 'doc_id': found type int64; allowed: string",
    ),
    "text type": (
        {"queries": queries(query=[1, 2, 3])},
        "queries.parquet, column 'query': found type int64; allowed for a text field: string",
    ),
    "image type": (
        {"documents": documents(image=[[1], [2], [3], [4]])},
        "documents.parquet, column 'image': found type list<",
    ),
    "image struct": (
        {"documents": documents(image=[{"data": b"x"}] * 4)},
        "column 'image': found type struct<data: binary>; allowed for an image field: binary",
    ),
    "score type": (
        {"qrels": qrels(score=["1", "2", "3", "4"])},
        "qrels.parquet, column 'score': found type string; allowed: integer or float",
    ),
    "split type": (
        {"queries": queries(split=[1, 1, 1]), "documents": documents(split=["seen"] * 4)},
        "queries.parquet, column 'split': found type int64; allowed: string",
    ),
    "no score": (
        {"qrels": qrels().drop_columns("score")},
        "qrels.parquet, column 'score': missing; the file has query_id, doc_id",
    ),
    "no title": ({"documents": documents().drop_columns("title")}, "documents.parquet, column 'title': missing"),
    "no query id": ({"queries": queries().drop_columns("query_id")}, "queries.parquet, column 'query_id': missing"),
    "one split": (
        {"queries": queries(split=["seen"] * 3)},
        "documents.parquet, column 'split': missing, while queries.parquet has it; allowed: both or neither",
    ),
    "no rows": ({"qrels": qrels().slice(0, 0)}, "qrels.parquet: found no rows; allowed: 1 or more"),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("tables", "expected"), STRUCTURE.values(), ids=list(STRUCTURE))
def test_problems_of_whole_files(make, tables: Tables, expected: str, strict: bool) -> None:
    assert expected in message(make(**tables), strict=strict)


@pytest.mark.parametrize("name", ["dataset.yaml", "queries.parquet", "documents.parquet", "qrels.parquet"])
def test_missing_files(make, name: str) -> None:
    folder = make()
    (folder / name).unlink()
    assert name in message(folder)


def test_no_folder(tmp_path: Path) -> None:
    assert "nothing: no such folder" in message(tmp_path / "nothing")


@pytest.mark.parametrize("cut", [0, 50, 300])
def test_broken_parquet(make, cut: int) -> None:
    folder = make()
    path = folder / "documents.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    assert "documents.parquet: not readable as Parquet" in message(folder)


def test_parquet_broken_in_the_middle(make) -> None:
    folder = make()
    path = folder / "qrels.parquet"
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    assert "qrels.parquet" in message(folder)


@pytest.mark.parametrize("batch", [1, 100])
def test_text_that_is_not_utf8(make, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opengcl.data.tables._BATCH_ROWS", (batch, batch))
    wrong = pa.Array.from_buffers(
        pa.string(), 4, [None, pa.py_buffer(np.arange(0, 15, 3, dtype=np.int32)), pa.py_buffer(b"abcde\xfffghijk")]
    )
    told = message(make(documents=documents(title=wrong)))
    assert (
        "documents.parquet, column 'title': text that is not UTF-8 in 1 row: row 1 (id 'd1') holds b'de\\xff'. "
        "Allowed: UTF-8 text" in told
    )


GOOD = "name: s\nqueries: {query: text}\ndocuments: {title: text, image: image}\nscore: {min: 1, max: 100}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not readable as YAML"),
        ("- a", "the file: found ['a']; allowed: a mapping"),
        ("", "the file: found nothing; allowed: a mapping"),
        (GOOD + "scores: 1\n", "unknown key 'scores'; allowed: name, queries, documents, score, splits, provenance"),
        (GOOD.replace("name: s\n", ""), "the key 'name' is missing"),
        (GOOD.replace("name: s", "name: [3]"), "line 1: name: found [3]; allowed: a text"),
        (GOOD.replace("name: s", "name: null"), "line 1: name: found None; allowed: a text"),
        (GOOD.replace("title: text", "title: words"), "line 3: documents.title: found 'words'; allowed: text, image"),
        (GOOD.replace("{query: text}", "[query]"), "queries: found ['query']; allowed: a mapping"),
        (GOOD.replace("{query: text}", "{}"), "queries: found {}"),
        (GOOD.replace("query: text", "'': text"), "line 2: queries: found the field ''; allowed: a column's name"),
        (GOOD.replace("query: text", "yes: text"), "queries.parquet, column 'yes': missing"),
        (GOOD.replace("query: text", "query: {1: 2}"), "queries.query: found {'1': 2}; allowed: text, image"),
        (GOOD.replace("title: text", "split: text"), "documents: the column 'split' cannot be a model field"),
        (GOOD.replace("title: text", "doc_id: text"), "documents: the column 'doc_id' cannot be a model field"),
        (GOOD.replace("min: 1,", ""), "score: the key 'min' is missing; required: min, max"),
        (GOOD.replace("min: 1", "min: '1'"), "score.min: found '1'; allowed: a finite number (a number is written"),
        (GOOD.replace("min: 1", "min: yes"), "score.min: found 'yes'; allowed: a finite number (yes is a text"),
        (GOOD.replace("{min: 1, max: 100}", "5"), "line 4: score: found 5; allowed: a mapping"),
        (GOOD + "splits:\n", "line 5: splits: found nothing; allowed: a mapping"),
        (GOOD + "provenance: {a: &x [1], b: *x}\n", "line 5: found the anchor '&x'; allowed: none"),
        (GOOD + "name: t\n", "line 5: found the key 'name' twice"),
        (GOOD.replace("min: 1", "min: low"), "score.min: found 'low'; allowed: a finite number"),
        (GOOD.replace("max: 100", "max: .nan"), "score.max: found nan; allowed: a finite number"),
        (GOOD.replace("max: 100", "max: 1"), "score: found min 1 and max 1; allowed: min < max"),
        (GOOD.replace("max: 100", "max: 100, mean: 3"), "score: unknown key 'mean'; allowed: min, max"),
        (GOOD + "splits: {dev: 2}\n", "splits.dev: found 2; allowed: a number from 0 to 1"),
        (GOOD + "provenance: hub\n", "provenance: found 'hub'; allowed: a mapping"),
        (GOOD + "splits: {seed: 0.5}\n", "splits.seed: found 0.5; allowed: an integer"),
        (
            GOOD + "splits: {test: 0.5}\n",
            "splits: unknown key 'test'; allowed: seed, seen_queries, seen_documents, dev",
        ),
    ],
)
def test_wrong_yaml(make, text: str, expected: str) -> None:
    folder = make()
    (folder / "dataset.yaml").write_text(text)
    told = message(folder)
    assert told.startswith((str(folder / "dataset.yaml"), "queries.parquet"))
    assert expected in told


def test_yaml_that_is_not_text(make) -> None:
    folder = make()
    (folder / "dataset.yaml").write_bytes(b"name: \xff")
    assert "dataset.yaml, line 1: byte 6 is not UTF-8" in message(folder)


def test_a_name_that_looks_like_a_number_is_a_text() -> None:
    for written in ("2024", "007", "1e-5", "yes", "true", "2020-01-01", "1:30"):
        assert Schema.parse(GOOD.replace("name: s", f"name: {written}")).name == written
    small = Schema.parse(GOOD.replace("max: 100", "max: 1e5") + "splits: {dev: .25, seed: 010}")
    assert (small.score_max, small.splits.dev, small.splits.seed) == (1e5, 0.25, 10)


def test_schema_round_trip() -> None:
    schema = Schema("a b", {"q": "text"}, {"t": "text", "i": "image"}, -1, 2.5, SplitOptions(seed=4, dev=0.25))
    assert Schema.parse(schema.to_yaml()) == schema
    assert Schema.parse(SCHEMA.to_yaml()) == SCHEMA
    assert list(Schema.parse(schema.to_yaml()).documents) == ["t", "i"]


def test_provenance_is_kept() -> None:
    told = {"source": "csv", "options": {"gains": {"E": 1.0}}, "counts": {"queries": 3}, "files": [{"name": "a.csv"}]}
    schema = Schema("a", {"q": "text"}, {"t": "text"}, 0, 1, provenance=told)
    assert Schema.parse(schema.to_yaml()).provenance == told


# Pictures


def loaded(data: bytes) -> Image.Image:
    return images.load(data, Path())


def test_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = loaded(picture(size=(6, 8), format="JPEG", exif=exif))
    assert image.size == (8, 6)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (picture((0, 255, 0, 0), mode="RGBA"), (255, 255, 255)),
        (picture((0, 0, 0, 128), mode="RGBA"), (127, 127, 127)),
        (picture((0, 0), mode="LA"), (255, 255, 255)),
        (picture(0x8000, mode="I;16"), (128, 128, 128)),
        (picture(1, mode="1"), (255, 255, 255)),
        (picture(77, mode="L"), (77, 77, 77)),
        (picture(77, mode="L", transparency=77), (255, 255, 255)),
        (picture(0, mode="P"), (0, 0, 0)),
        (picture((0, 0, 0, 0), mode="CMYK", format="TIFF"), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(data: bytes, expected: tuple[int, int, int]) -> None:
    image = loaded(data)
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == expected
    assert images.fault(data, Path()) is None


def test_of_an_animation_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert loaded(out.getvalue()).getpixel((0, 0)) == (255, 0, 0)


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data does not have."""
    data = bytearray(picture())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("side", [7_100, 10_000, 60_000])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    start = time.perf_counter()
    told = images.fault(huge_png(side, side), Path())
    assert told is not None
    assert "allowed: up to 50,000,000 pixels" in told
    with pytest.raises(images.PictureError, match="allowed: up to 50,000,000 pixels"):
        loaded(huge_png(side, side))
    assert time.perf_counter() - start < 1


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    (tmp_path / "x").write_bytes(b"\0" * 10_000)
    assert "over 100 bytes" in str(images.fault(b"\0" * 101, tmp_path))
    assert "over 100 bytes" in str(images.fault("x", tmp_path))


def test_formats_that_start_programs_are_refused() -> None:
    postscript = picture(format="EPS")
    assert "not a picture in a known format" in str(images.fault(postscript, Path()))


def test_floating_point_pixels_are_refused() -> None:
    data = picture(0.5, mode="F", format="TIFF")
    assert "floating-point pixels" in str(images.fault(data, Path()))
    with pytest.raises(images.PictureError, match="floating-point pixels"):
        loaded(data)


def test_one_pixel_jpeg_passes_the_check() -> None:
    assert images.fault(picture(size=(1, 1), format="JPEG"), Path()) is None


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "x.png").write_bytes(picture())
    (inside / "real.png").write_bytes(picture())
    (inside / "link").symlink_to(outside)
    (inside / "file.png").symlink_to(outside / "x.png")
    (inside / "fine.png").symlink_to("real.png")
    assert "leaves the data set's folder through a link" in str(images.fault("link/x.png", inside))
    assert "leaves the data set's folder through a link" in str(images.fault("file.png", inside))
    assert images.fault("fine.png", inside) is None
    assert images.fault("./real.png", inside) is None
    assert "no file" in str(images.fault("in\0x", inside)) or "cannot be followed" in str(images.fault("\0", inside))


def test_a_bad_picture_at_read_time_names_id_and_column(make) -> None:
    folder = make(documents=documents(image=[picture(), None, BROKEN, picture()]))
    data = RankedDataset.open(folder, check_images=False)
    with pytest.raises(DataSetError, match=r"documents.parquet, doc_id 'd2', column 'image': cannot be decoded"):
        data.documents.images("image", [0, 2])
    assert "unreadable image" in message(folder)  # the entry without a check does not serve


# The cache


def entries(cache_dir: Path) -> list[Path]:
    return sorted(cache_dir.iterdir())


def test_the_second_opening_builds_nothing(make, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    first = RankedDataset.open(folder, cache_dir=cache_dir)
    monkeypatch.setattr("opengcl.data.dataset.Builder", None)
    for options in ({}, {"strict": False}, {"check_images": False}):
        again = RankedDataset.open(folder, cache_dir=cache_dir, **options)
        assert again.fingerprint == first.fingerprint
        assert again.qrels.score.tolist() == first.qrels.score.tolist()
    assert len(entries(cache_dir)) == 1


def test_a_changed_file_is_read_again(make, cache_dir: Path) -> None:
    folder = make()
    before = RankedDataset.open(folder, cache_dir=cache_dir)
    pq.write_table(queries(query=["one", "two", "three"]), folder / "queries.parquet")
    after = RankedDataset.open(folder, cache_dir=cache_dir)
    assert after.queries.texts("query", [0]) == ["one"]
    assert after.fingerprint != before.fingerprint
    (folder / "dataset.yaml").write_text(SCHEMA.to_yaml() + "splits: {seed: 5}\n")
    assert RankedDataset.open(folder, cache_dir=cache_dir).schema.splits.seed == 5
    assert len(entries(cache_dir)) == 3


def test_the_fingerprint_is_of_the_content(make, tmp_path: Path, cache_dir: Path) -> None:
    folder = make()
    first = RankedDataset.open(folder, cache_dir=cache_dir)
    moved = folder.rename(tmp_path / "moved")
    os.utime(moved / "qrels.parquet")
    assert RankedDataset.open(moved, cache_dir=cache_dir).fingerprint == first.fingerprint
    assert len(entries(cache_dir)) == 2


def test_the_environment_names_the_cache(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "named"))
    RankedDataset.open(make())
    assert len(entries(tmp_path / "named")) == 1
    monkeypatch.delenv("OPENGCL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root(None) == tmp_path / ".cache" / "opengcl"


def test_the_data_set_s_folder_is_never_written(make, cache_dir: Path) -> None:
    folder = make()
    before = {path.name: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    folder.chmod(0o555)
    RankedDataset.open(folder, cache_dir=cache_dir)
    folder.chmod(0o755)
    assert {path.name: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_a_cache_that_cannot_be_written_is_told(make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = message(make(), cache_dir=tmp_path / "file" / "cache")
    assert "cannot be written" in told
    assert "OPENGCL_CACHE" in told


KILLED = """
import os, sys
from opengcl.data import RankedDataset, build
build._PairCheck.run = lambda self: os._exit(9)
RankedDataset.open(sys.argv[1], cache_dir=sys.argv[2])
"""


def test_a_killed_build_leaves_nothing_that_is_used(make, cache_dir: Path) -> None:
    folder = make()
    done = subprocess.run([sys.executable, "-c", KILLED, folder, cache_dir], check=False)
    assert done.returncode == 9
    assert any(path.is_dir() for path in entries(cache_dir)), "the test killed it too early"
    data = RankedDataset.open(folder, cache_dir=cache_dir)
    assert len(data.qrels) == 4
    assert len(entries(cache_dir)) == 1, "what the killed build left was not removed"


def test_a_build_that_is_under_way_is_left_alone(make, cache_dir: Path) -> None:
    folder = make()

    def build(into: Path) -> str:
        (into / "part").write_text("")
        RankedDataset.open(folder, cache_dir=cache_dir)
        assert (into / "part").exists()
        (into / cache.META).write_text("{}")
        return "entry"

    assert cache.store(cache_dir, build) == cache_dir / "entry"


def test_of_two_builds_at_once_the_first_wins(cache_dir: Path) -> None:
    def inner(into: Path) -> str:
        (into / cache.META).write_text("first")
        return "entry"

    def outer(into: Path) -> str:
        cache.store(cache_dir, inner)
        (into / cache.META).write_text("second")
        return "entry"

    assert (cache.store(cache_dir, outer) / cache.META).read_text() == "first"
    assert [path.name for path in entries(cache_dir)] == ["entry"]


def test_two_processes_may_open_at_once(make, cache_dir: Path) -> None:
    code = "import sys; from opengcl.data import RankedDataset; RankedDataset.open(sys.argv[1], cache_dir=sys.argv[2])"
    folder = make()
    both = [subprocess.Popen([sys.executable, "-c", code, folder, cache_dir]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(entries(cache_dir)) == 1


@pytest.mark.parametrize("name", ["meta.json", "qrels/score.npy", "documents/table.arrow"])
def test_a_damaged_entry_is_told(make, cache_dir: Path, name: str) -> None:
    folder = make()
    RankedDataset.open(folder, cache_dir=cache_dir)
    (entries(cache_dir)[0] / name).write_bytes(b"")
    told = message(folder, cache_dir=cache_dir)
    assert "this cache entry is damaged" in told
    assert str(cache_dir) in told


@pytest.mark.parametrize("progress", [True, False])
def test_progress_shows_on_stderr_only_when_wanted(make, progress: bool, capsys, monkeypatch) -> None:
    monkeypatch.setattr("opengcl.data.tables._PROGRESS_DELAY", 0)
    RankedDataset.open(make(), progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("documents.parquet: checking rows: 100%" in err) == progress
    assert progress or err == ""


def test_a_file_that_changes_while_it_is_read(make, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    content_hash = cache.content_hash

    def touch(path: Path) -> str:
        os.utime(path / "qrels.parquet", ns=(1, 1))
        return content_hash(path)

    monkeypatch.setattr(cache, "content_hash", touch)
    assert "changed while it was read" in message(folder, cache_dir=cache_dir)
    assert entries(cache_dir) == []


# Workers


def _first_title(records: Records) -> list[str | None]:
    return records.texts("title", [0, 1])


def test_it_travels_to_workers_as_its_place(make) -> None:
    data = RankedDataset.open(make())
    packed = pickle.dumps(data)
    assert len(packed) < 2_000
    again = pickle.loads(packed)  # noqa: S301 - our own bytes
    assert again.documents.texts("title", [0]) == ["red shoe"]
    assert again.splits.training_pairs().tolist() == data.splits.training_pairs().tolist()


def test_forked_workers_read(make) -> None:
    data = RankedDataset.open(make())
    data.documents.texts("title", [0])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(_first_title, (data.documents,)) for _ in range(4)]
        assert [result.get(timeout=60) for result in results] == [["red shoe", "blue shoe"]] * 4


# Writing


def test_write_dataset_is_all_or_nothing(tmp_path: Path) -> None:
    def broken():
        yield qrels().to_batches()[0]
        raise RuntimeError("the source ended")

    reader = pa.RecordBatchReader.from_batches(qrels().schema, broken())
    with pytest.raises(RuntimeError, match="the source ended"):
        write_dataset(tmp_path / "out", SCHEMA, queries(), documents(), reader)
    assert list(tmp_path.iterdir()) == []
    good = pa.RecordBatchReader.from_batches(qrels().schema, qrels().to_batches())
    out = write_dataset(tmp_path / "out", SCHEMA, queries(), documents(), good)
    assert len(RankedDataset.open(out).qrels) == 4
    with pytest.raises(DataSetError, match="exists already"):
        write_dataset(out, SCHEMA, queries(), documents(), qrels())


# Size

WARM = """
import resource, sys, time
import numpy as np
from opengcl.data import RankedDataset

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, start = peak(), time.perf_counter()
data = RankedDataset.open(sys.argv[1], progress=False)
opened = time.perf_counter() - start
rows = np.random.default_rng(0).integers(0, len(data.documents), 1_000)
start = time.perf_counter()
texts = data.documents.texts("title", rows)
read = time.perf_counter() - start
assert texts[0].startswith(f"title of product {rows[0]} ")
print(opened, read, peak() - before)
"""


def test_a_large_table_opens_at_once_and_stays_on_disk(tmp_path: Path) -> None:
    rows, pairs, count = 300_000, 1_000_000, 10_000
    names = np.char.add("d", np.arange(rows).astype(str))
    titles = [f"title of product {row} " + "x" * 300 for row in range(rows)]
    keys = np.arange(pairs)
    folder = write_dataset(
        tmp_path / "large",
        Schema("large", {"query": "text"}, {"title": "text"}, 0, 1),
        pa.table({"query_id": [f"q{row}" for row in range(count)], "query": ["text"] * count}),
        pa.table({"doc_id": names, "title": titles}),
        pa.table(
            {
                "query_id": np.char.add("q", (keys % count).astype(str)),
                "doc_id": names[(keys * 7 + keys // count) % rows],
                "score": np.linspace(0, 1, pairs),
            }
        ),
    )
    RankedDataset.open(folder)
    done = subprocess.run([sys.executable, "-c", WARM, folder], check=True, capture_output=True, text=True)
    opened, read, grown = map(float, done.stdout.split())
    assert opened < 1
    assert read < 0.1
    assert grown < 40, f"{grown:.0f} MB for tables of 100 MB and more"


# The real data set


def test_fashion_has_the_counts_of_its_readme(fashion: Path) -> None:
    data = RankedDataset.open(fashion, check_images=False, progress=False)
    counts = data.describe()
    assert (counts["queries"], counts["documents"], counts["pairs"]) == (4_803, 43_966, 480_300)
    assert {split: one["pairs"] for split, one in counts["splits"].items()} == {
        "in_domain": 189_071,
        "novel_query": 48_939,
        "novel_document": 192_529,
        "zero_shot": 49_761,
    }
    assert len(data.splits.training_pairs()) == 189_071
    assert (np.diff(data.qrels.offsets) == 100).all()
    image = data.documents.images("image", [43_965])[0]
    assert image is not None
    assert image.size == (60, 80)
