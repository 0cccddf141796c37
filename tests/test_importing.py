"""From a source to a data set's folder: mapping, checks, pictures, pairs, provenance, kills."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from opengcl.cli import app
from opengcl.data import DataSetError, RankedDataset
from opengcl.fetch import FetchOptions
from opengcl.query_text import normalised
from opengcl.sources.importing import Imported, ImportOptions, import_dataset
from opengcl.sources.mapping import TableMapping, hashed
from opengcl.sources.table_files import TableFile
from opengcl.sources.tables import TableSource

MAPPING = TableMapping(queries={"query": "q"}, doc_id="sku", documents={"title": "name"}, score="s")


def picture(size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(out, kind)
    return out.getvalue()


def table(path: Path, rows: list[dict[str, Any]]) -> TableFile:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return TableFile(path)


def judged(queries: int = 4, documents: int = 6) -> list[dict[str, Any]]:
    return [
        {"q": f"query {q}", "sku": f"s{d}", "name": f"product {d}", "s": 10 * q + d, "price": d / 4}
        for q in range(queries)
        for d in range(documents)
    ]


def source(folder: Path, rows: list[dict[str, Any]], mapping: TableMapping = MAPPING, **options: Any) -> TableSource:
    file = table(folder / "judged.csv", rows)
    return TableSource("csv", file, mapping, files=(file.path,), picture_root=folder, **options)


def made(folder: Path, rows: list[dict[str, Any]], mapping: TableMapping = MAPPING, **options: Any) -> RankedDataset:
    import_dataset(source(folder, rows, mapping), folder / "out", ImportOptions(**options), progress=False)
    return RankedDataset.open(folder / "out", cache_dir=folder / "cache", progress=False)


def pairs_of(data: RankedDataset) -> dict[tuple[str, str], float]:
    queries, documents = data.queries.ids(data.qrels.query), data.documents.ids(data.qrels.document)
    return dict(zip(zip(queries, documents, strict=True), data.qrels.score.tolist(), strict=True))


def test_one_table_becomes_three(tmp_path: Path) -> None:
    data = made(tmp_path, judged(), TableMapping(**{**vars(MAPPING), "keep": ("price",)}))
    assert data.queries.texts("query", range(4)) == [f"query {q}" for q in range(4)]
    assert data.documents.ids() == [f"s{d}" for d in range(6)]
    assert data.documents.values("price", [3]) == ["0.75"]
    ids = {hashed([f"query {q}"]): q for q in range(4)}
    assert {(ids[q], d): s for (q, d), s in pairs_of(data).items()} == {
        (q, f"s{d}"): 10.0 * q + d for q in range(4) for d in range(6)
    }
    assert (data.schema.score_min, data.schema.score_max) == (0, 35)
    told = data.schema.provenance
    assert told["counts"]["repeated"] == 4 * 6 - 4 + 4 * 6 - 6
    assert told["files"][0]["bytes"] == (tmp_path / "judged.csv").stat().st_size
    assert len(told["files"][0]["sha256"]) == 64
    assert told["options"]["mapping"]["documents"] == {"title": "name"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "judged.csv", "out"]


def test_queries_and_documents_in_tables_of_their_own(tmp_path: Path) -> None:
    queries = table(tmp_path / "q.csv", [{"qid": "1", "text": "shoes"}, {"qid": "2", "text": "hats"}])
    pq.write_table(pa.table({"id": [7, 8], "t": ["red", "blue"], "b": ["x", None]}), tmp_path / "d.parquet")
    qrels = table(tmp_path / "r.csv", [{"qid": 1, "id": 7, "grade": "good"}, {"qid": 2, "id": 8, "grade": "bad"}])
    mapping = TableMapping(
        query_id="qid",
        doc_id="id",
        queries={"query": "text"},
        documents={"title": "t", "brand": "b"},
        label="grade",
        gains={"good": 2, "bad": 0.5},
    )
    given = TableSource("csv", qrels, mapping, queries=queries, documents=TableFile(tmp_path / "d.parquet"))
    import_dataset(given, tmp_path / "out", progress=False)
    data = RankedDataset.open(tmp_path / "out", cache_dir=tmp_path / "cache", progress=False)
    assert pairs_of(data) == {("1", "7"): 2.0, ("2", "8"): 0.5}
    assert data.documents.texts("brand", [0, 1]) == ["x", None]
    assert (data.schema.score_min, data.schema.score_max) == (0, 2)


PLACED = TableMapping(**{**vars(MAPPING), "score": None, "position": "p"})


def test_positions_become_scores(tmp_path: Path) -> None:
    rows = [{"q": "a", "sku": f"d{p}", "name": "n", "p": p} for p in (1, 2, 100, 101, 250)]
    data = made(tmp_path, rows, replace(PLACED, list_length=100))
    assert list(pairs_of(data).values()) == [100, 99, 1, 1, 1]
    assert (data.schema.score_min, data.schema.score_max) == (1, 100)
    assert pq.read_table(tmp_path / "out/qrels.parquet")["position"].to_pylist() == [1, 2, 100, 101, 250]


def test_usual_names_are_guessed(tmp_path: Path) -> None:
    rows = [{"Query": "a", "product_id": "1", "product_title": "x", "rank": 1, "colour": "red"}]
    data = made(tmp_path, rows, TableMapping())
    assert data.schema.provenance["options"]["mapping"] == {
        "queries": {"query": "Query"},
        "doc_id": "product_id",
        "documents": {"title": "product_title"},
        "position": "rank",
    }


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"x": 1}, "no column holds the queries; name it (query): the columns are x"),
        ({"query": 1}, "no column holds document ids"),
        ({"query": 1, "sku": 2}, "no column is a document field"),
        ({"query": 1, "sku": 2, "title": 3}, "no column holds scores"),
    ],
)
def test_what_is_not_found_is_asked_for(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    with pytest.raises(DataSetError) as caught:
        made(tmp_path, [columns], TableMapping())
    assert told in str(caught.value)


WRONG_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "score": ({"s": "much"}, "judged.csv, column 's': unusable score in 1 row: judged.csv, line 7 holds 'much'"),
    "infinite": ({"s": "inf"}, "line 7 holds 'inf'. Allowed: a finite number"),
    "empty score": ({"s": ""}, "line 7 holds ''"),
    "no document": ({"sku": " "}, "judged.csv, column 'doc_id': null or empty id in 2 rows: judged.csv, line 7"),
    "no query": ({"q": ""}, "judged.csv, column 'query_id': null or empty id in 2 rows"),
    "no field": (
        {"name": "", "sku": "new"},
        "column 'title': no field present in 1 row: judged.csv, line 7 (id 'new')",
    ),
}


@pytest.mark.parametrize(("wrong", "told"), WRONG_ROWS.values(), ids=list(WRONG_ROWS))
def test_wrong_rows_stop_an_import_or_are_left_out(tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    rows = judged()
    rows[5] = {**rows[5], **wrong}
    with pytest.raises(DataSetError) as caught:
        made(tmp_path, rows)
    assert told in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judged.csv"], "a failed import left something"
    data = made(tmp_path, rows, bad_rows="skip")
    assert len(data.qrels) == len(rows) - 1
    assert data.schema.provenance["skipped"]
    assert data.problems == []


def test_pairs_of_unknown_ids(tmp_path: Path) -> None:
    documents = table(tmp_path / "d.csv", [{"sku": "s0", "name": "x"}])
    given = source(tmp_path, judged(2, 2), documents=documents)
    with pytest.raises(DataSetError) as caught:
        import_dataset(given, tmp_path / "out", progress=False)
    told = "column 'doc_id': unknown id in 2 rows: id 's1'; and 1 more. Allowed: an id of documents"
    assert told in str(caught.value)
    found = import_dataset(given, tmp_path / "out", ImportOptions(bad_rows="skip"), progress=False)
    assert (found.counts["qrels"], found.counts["pairs_without_documents"]) == (2, 2)


@pytest.mark.parametrize(("choice", "score"), [("max", 9.0), ("mean", 16 / 3), ("first", 5.0)])
def test_pairs_with_several_scores(tmp_path: Path, choice: str, score: float) -> None:
    rows = judged(2, 2) + [{"q": "query 0", "sku": "s0", "name": "product 0", "s": s, "price": 1} for s in (5, 9, 2)]
    rows = rows[1:]  # the first row would judge that pair with 0
    same = [rows[0], rows[0]]
    with pytest.raises(DataSetError) as caught:
        made(tmp_path, rows + same)
    assert "1 pair has several scores" in str(caught.value)
    query = hashed(["query 0"])
    assert f"the pair of query 'query 0' (id {query!r}) and document 's0' has [2.0, 5.0, 9.0]" in str(caught.value)
    lines = ", ".join(f"judged.csv, line {line} holds {held!r}" for line, held in ((5, "5"), (6, "9"), (7, "2")))
    assert f"{lines}. Allowed: one score a pair; --repeated-pairs max, mean or first" in str(caught.value)
    data = made(tmp_path, rows + same, repeated_pairs=choice)
    assert pairs_of(data)[hashed(["query 0"]) or "", "s0"] == pytest.approx(score)
    counts = data.schema.provenance["counts"]
    assert (counts["qrels"], counts["pairs_merged"], counts["pairs_with_several_scores"]) == (4, 4, 1)


def test_rows_of_one_id_that_differ_are_counted_and_the_first_stays(tmp_path: Path) -> None:
    rows = judged(2, 2)
    rows[2]["name"] = "another title"
    data = made(tmp_path, rows)
    assert data.documents.texts("title", [0]) == ["product 0"]
    assert data.schema.provenance["counts"]["differing"] == 1


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    with pytest.raises(DataSetError, match="exists already"):
        made(tmp_path, judged())
    assert (tmp_path / "out/mine").read_text() == "kept"


# Columns and ids by their names


def tables_of(folder: Path, **tables: list[dict[str, Any]]) -> dict[str, TableFile]:
    return {name: table(folder / f"{name}.csv", rows) for name, rows in tables.items()}


def imported(
    folder: Path, files: dict[str, TableFile], mapping: TableMapping, **options: Any
) -> tuple[RankedDataset, Imported]:
    source = TableSource("csv", files["qrels"], mapping, files.get("queries"), files.get("documents"))
    found = import_dataset(source, folder / "out", ImportOptions(**options), progress=False)
    return RankedDataset.open(folder / "out", cache_dir=folder / "cache", progress=False), found


ONE_ROW: dict[str, Any] = {"query": "a", "product_id": "1", "product_title": "x", "image_url": "", "rank": 1}


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"images": {"image": "image_url"}}, {"title": "text", "image": "image"}),
        ({"documents": {"name": "product_title"}}, {"name": "text", "image": "image"}),
        ({"images": {"picture": "image_url"}}, {"title": "text", "picture": "image"}),
        ({"documents": {"title": "product_title"}, "images": {}}, {"title": "text"}),
        ({}, {"title": "text", "image": "image"}),
    ],
)
def test_naming_one_kind_of_field_leaves_the_other_guessed(
    tmp_path: Path, given: dict[str, Any], fields: dict[str, str]
) -> None:
    data, found = imported(tmp_path, tables_of(tmp_path, qrels=[ONE_ROW]), TableMapping(**given))
    assert data.schema.documents == fields
    assert any("columns guessed from their names: doc_id is 'product_id'" in note for note in found.notes)
    assert not any("'product_title'" in note for note in found.notes if given.get("documents"))


@pytest.mark.parametrize(
    ("judged", "asked", "shown", "ids"),
    [  # columns of judgments, queries and documents; and what the ids are then
        (("query_id", "item_id"), ("query_id", "query"), ("id", "title"), ("query_id", None, "item_id", "id")),
        (("qid", "docid"), ("id", "text"), ("_id", "title"), ("qid", "id", "docid", "_id")),
        (("topic", "docno"), ("topic", "title"), ("docno", "title"), ("topic", None, "docno", None)),
        (
            ("query_id", "product_id"),
            ("query_id", "query"),
            ("g:id", "g:title"),
            ("query_id", None, "product_id", "g:id"),
        ),
        (("query_id", "objectID"), ("query_id", "query"), ("objectID", "name"), ("query_id", None, "objectID", None)),
        (
            ("query_id", "product_id"),
            ("query_id", "query"),
            ("ID", "SKU", "Name"),
            ("query_id", None, "product_id", "ID"),
        ),
        (
            ("query_id", "sku"),
            ("query_id", "query"),
            ("Handle", "Title", "Variant SKU"),
            ("query_id", None, "sku", "Variant SKU"),
        ),
        (("query_id", "handle"), ("query_id", "query"), ("Handle", "Title"), ("query_id", None, "handle", "Handle")),
    ],
)
def test_ids_have_other_names_in_each_table(
    judged: tuple[str, ...],
    asked: tuple[str, ...],
    shown: tuple[str, ...],
    ids: tuple[str | None, ...],
) -> None:
    given = TableMapping(query_id="topic") if judged[0] == "topic" else TableMapping()
    mapping = given.completed(list(asked), list(shown), [*judged, "score"])
    found = (mapping.query_id, mapping.queries_id, mapping.doc_id, mapping.documents_id)
    assert found == (ids[0], ids[1], ids[2], ids[3])


def test_a_row_number_of_the_judgments_is_no_document_id() -> None:
    """WANDS' labels have ``id`` and ``product_id``, and a feed calls its products ``id``."""
    mapping = TableMapping().completed(
        ["query_id", "query"], ["id", "title"], ["id", "query_id", "product_id", "score"]
    )
    assert (mapping.doc_id, mapping.documents_id) == ("product_id", "id")


def test_ids_are_named_for_each_table(tmp_path: Path) -> None:
    files = tables_of(
        tmp_path,
        qrels=[{"question": 1, "thing": "d1", "score": 3}, {"question": 2, "thing": " d2 ", "score": 1}],
        queries=[{"number": "1", "query": "a"}, {"number": "2", "query": "b"}],
        documents=[{"nr": "d1", "title": "x"}, {"nr": "d2", "title": "y"}],
    )
    mapping = TableMapping(query_id="question", queries_id="number", doc_id="thing", documents_id="nr")
    data, found = imported(tmp_path, files, mapping)
    assert pairs_of(data) == {("1", "d1"): 3, ("2", "d2"): 1}
    assert "qrels.csv, column 'thing': white space around ids is removed in 1 row" in found.notes
    with pytest.raises(DataSetError, match=r"no column of the documents' table holds .*--documents-id.* nr, title"):
        imported(tmp_path / "x", files, replace(mapping, documents_id=None))
    with pytest.raises(DataSetError, match="queries_id: found without a table of queries"):
        imported(tmp_path / "x", {"qrels": files["qrels"]}, mapping)


def test_ids_of_several_columns(tmp_path: Path) -> None:
    """ESCI's product ids repeat across locales: the Spanish query must not get the English title."""
    files = tables_of(
        tmp_path,
        qrels=[
            {"query": "red shoe", "product_id": "B1", "product_locale": "us", "score": 1},
            {"query": "zapato rojo", "product_id": "B1", "product_locale": "es", "score": 1},
        ],
        documents=[
            {"product_id": "B1", "product_locale": "us", "title": "shoe"},
            {"product_id": "B1", "product_locale": "es", "title": "zapato"},
        ],
    )
    mapping = TableMapping(doc_id="product_locale+product_id")
    data, _ = imported(tmp_path, files, mapping)
    titles = dict(zip(data.documents.ids(), data.documents.texts("title", [0, 1]), strict=True))
    assert titles == {"us:B1": "shoe", "es:B1": "zapato"}
    assert pairs_of(data) == {(hashed(["red shoe"]), "us:B1"): 1, (hashed(["zapato rojo"]), "es:B1"): 1}
    _, found = imported(tmp_path / "plain", files, TableMapping(doc_id="product_id"))
    assert found.counts["differing"] == 1
    (note,) = [one for one in found.notes if "'title'" in one and "columns guessed" not in one]
    assert "documents, 'title': another value than in the first row of the id, which stays, in 1 row: " in note
    assert "id 'B1' has 'shoe' and then 'zapato'" in note


def test_ids_of_queries_of_several_columns(tmp_path: Path) -> None:
    files = tables_of(
        tmp_path,
        qrels=[{"lang": one, "nr": 1, "sku": "d", "score": n} for n, one in enumerate(("us", "es"), 1)],
        queries=[{"locale": one, "id": 1, "query": text} for one, text in (("us", "shoe"), ("es", "zapato"))],
        documents=[{"sku": "d", "title": "x"}],
    )
    data, _ = imported(tmp_path, files, TableMapping(query_id="lang+nr", queries_id="locale+id"))
    assert pairs_of(data) == {("us:1", "d"): 1, ("es:1", "d"): 2}
    assert dict(zip(data.queries.ids(), data.queries.texts("query", [0, 1]), strict=True))["es:1"] == "zapato"


NUMBERS: dict[str, tuple[pa.Array, pa.Array, str | None]] = {
    "floats of pandas": (pa.array([7.0, 12.0]), pa.array(["7", "12"]), None),
    "integers": (pa.array([7, 12]), pa.array(["7", "12"]), None),
    "floats on both sides": (pa.array([7.0, 12.0]), pa.array([7, 12]), None),
    "zeros in front": (
        pa.array([7, 12]),
        pa.array(["007", "012"]),
        "without zeros in front 2 of 2 such ids are found",
    ),
    "floats as text": (pa.array(["7.0", "12.0"]), pa.array([7, 12]), "without .0 behind 2 of 2 such ids are found"),
    "case": (pa.array(["A-7", "B-12"]), pa.array(["a-7", "b-12"]), "in lower case 2 of 2 such ids are found"),
    "addresses": (pa.array(["7", "12"]), pa.array(["gid://shop/7", "gid://shop/12"]), "by their last part"),
    "others": (
        pa.array(["7", "12"]),
        pa.array(["x", "y"]),
        "name a document that is not among the documents: '12', '7'",
    ),
}


@pytest.mark.parametrize(("judged", "listed", "told"), NUMBERS.values(), ids=list(NUMBERS))
@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_numbers_and_texts_as_ids_are_joined_or_refused(
    tmp_path: Path, judged: pa.Array, listed: pa.Array, told: str | None, bad_rows: str
) -> None:
    pq.write_table(pa.table({"query": ["a", "b"], "doc_id": judged, "score": [1, 2]}), tmp_path / "r.parquet")
    pq.write_table(pa.table({"doc_id": listed, "title": ["x", "y"]}), tmp_path / "d.parquet")
    documents = TableFile(tmp_path / "d.parquet")
    source = TableSource("parquet", TableFile(tmp_path / "r.parquet"), TableMapping(), documents=documents)
    options = ImportOptions(bad_rows=bad_rows)  # type: ignore[arg-type]
    if told is None:
        assert import_dataset(source, tmp_path / "out", options, progress=False).counts["qrels"] == 2
        return
    with pytest.raises(DataSetError) as caught:
        import_dataset(source, tmp_path / "out", options, progress=False)
    assert "2 of 2 judged pairs name a document" in str(caught.value)
    assert told in str(caught.value)
    assert "--documents-id" in str(caught.value)


def test_few_unknown_ids_are_left_out_and_many_only_if_asked(tmp_path: Path) -> None:
    documents = table(tmp_path / "d.csv", [{"sku": f"s{n}", "name": "x"} for n in range(2)])
    given = source(tmp_path, judged(2, 5), documents=documents)
    with pytest.raises(DataSetError, match="6 of 10 judged pairs name a document"):
        import_dataset(given, tmp_path / "out", ImportOptions(bad_rows="skip"), progress=False)
    options = ImportOptions(bad_rows="skip", max_unmatched=0.6)
    assert import_dataset(given, tmp_path / "out", options, progress=False).counts["pairs_without_documents"] == 6


# Rows that share an id


def test_the_first_value_that_is_there_of_each_field_stays(tmp_path: Path) -> None:
    """A Shopify product: only its first row has the title, later ones have further pictures and variants."""
    documents = [
        {"Handle": "shirt", "Title": "Linen shirt", "Vendor": "", "Option1 Value": "S", "Price": "10"},
        {"Handle": "shirt", "Title": "", "Vendor": "Acme", "Option1 Value": "M", "Price": "10"},
        {"Handle": "hat", "Title": " ", "Vendor": "Acme", "Option1 Value": "", "Price": ""},
        {"Handle": "shirt", "Title": "", "Vendor": "Other", "Option1 Value": "L", "Price": "12"},
        {"Handle": "hat", "Title": "Felt hat", "Vendor": "", "Option1 Value": "", "Price": "30"},
        {"Handle": "cap", "Title": "", "Vendor": "", "Option1 Value": "", "Price": "5"},
        {"Handle": "cap", "Title": "Cap", "Vendor": "", "Option1 Value": "", "Price": "5"},
    ]
    qrels = [{"query": "a", "handle": one, "score": n} for n, one in enumerate(("shirt", "hat", "cap"))]
    mapping = TableMapping(documents={"title": "Title", "brand": "Vendor", "size": "Option1 Value"}, keep=("Price",))
    data, found = imported(tmp_path, tables_of(tmp_path, qrels=qrels, documents=documents), mapping)
    assert data.documents.ids() == ["shirt", "hat", "cap"]
    assert data.documents.texts("title", range(3)) == ["Linen shirt", "Felt hat", "Cap"]
    assert data.documents.texts("brand", range(3)) == ["Acme", "Acme", None]
    assert data.documents.texts("size", range(3)) == ["S", None, None]
    assert data.documents.values("Price", range(3)) == ["10", "30", "5"]
    assert found.counts["filled_from_later_rows"] == 4  # a brand, two titles, a price
    assert found.counts["differing"] == 2  # sizes M and L; L's row differs in brand and price as well
    told = [note for note in found.notes if note.startswith("documents, ")]
    assert told == [
        "documents, 'size': another value than in the first row of the id, which stays, in 2 rows: "
        "id 'shirt' has 'S' and then 'M'; id 'shirt' has 'S' and then 'L'",
        "documents, 'Price': another value than in the first row of the id, which stays, in 1 row: "
        "id 'shirt' has '10' and then '12'",
        "documents, 'brand': another value than in the first row of the id, which stays, in 1 row: "
        "id 'shirt' has 'Acme' and then 'Other'",
    ]
    assert data.schema.provenance["notes"] == list(found.notes)


def test_rows_of_one_id_without_any_field_are_a_problem_only_if_all_are(tmp_path: Path) -> None:
    rows = judged(2, 3)
    rows[0]["name"] = ""  # s0 has a name in row 3
    rows += [{**rows[0], "sku": "s9"}] * 2
    with pytest.raises(DataSetError, match=r"column 'title': no field present in 1 row: judged.csv, .* \(id 's9'\)"):
        made(tmp_path, rows)
    data = made(tmp_path, rows, bad_rows="skip")
    assert data.documents.ids() == ["s0", "s1", "s2"]
    assert data.documents.texts("title", [0]) == ["product 0"]
    assert len(data.qrels) == 6


def test_pictures_of_later_rows_fill_gaps_and_are_compared(tmp_path: Path) -> None:
    one, other = picture((4, 4)), picture((8, 8))
    rows = {
        "query": ["a"] * 4,
        "sku": ["1", "1", "1", "2"],
        "title": ["x", "x", "x", "y"],
        "image": [None, {"bytes": one, "path": None}, {"bytes": other, "path": None}, {"bytes": other, "path": None}],
        "score": [1, 1, 1, 2],
        "weights": [[1.0], [1.0], [2.0], None],
    }
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    source = TableSource("parquet", TableFile(tmp_path / "t.parquet"), TableMapping(keep=("weights",)))
    found = import_dataset(source, tmp_path / "out", progress=False)
    assert pq.read_table(tmp_path / "out/documents.parquet")["image"].to_pylist() == [one, other]
    assert (found.counts["filled_from_later_rows"], found.counts["differing"]) == (1, 1)
    assert (
        sum("documents, 'image': another" in note or "documents, 'weights': another" in note for note in found.notes)
        == 2
    )


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["", " ", "x", "y"]), st.sampled_from(["", "1", "2"])),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=12, deadline=None)
def test_settled_rows_are_those_of_a_loop(rows: list[tuple[str, str, str]]) -> None:
    expected: dict[str, list[str]] = {}
    for one, *values in rows:
        before = expected.setdefault(one, ["", ""])
        expected[one] = [old if old.strip() else new for old, new in zip(before, values, strict=True)]
    differing = sum(
        any(new.strip() and new != kept for new, kept in zip(values, expected[one], strict=True))
        for one, *values in rows
    )
    kept = {
        one: [value.strip() or None for value in values] for one, values in expected.items() if "".join(values).strip()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        judged = [{"q": "a", "sku": one, "name": title, "brand": brand, "s": 1} for one, title, brand in rows]
        mapping = replace(MAPPING, documents={"title": "name", "brand": "brand"}, images={})
        given = source(folder, judged, mapping)
        if not kept:
            with pytest.raises(DataSetError):
                import_dataset(given, folder / "out", ImportOptions(bad_rows="skip"), progress=False)
            return
        found = import_dataset(given, folder / "out", ImportOptions(bad_rows="skip"), progress=False)
        table_of = pq.read_table(folder / "out/documents.parquet").to_pylist()
    made_of = {row["doc_id"]: [(row[name] or "").strip() or None for name in ("title", "brand")] for row in table_of}
    assert made_of == kept
    assert found.counts["differing"] == differing


# Spellings of queries

MESSY = ["red shoe", "RED SHOE", "red shoe ", " Red\u00a0 shoe", "\uff52ed shoe", "red shoes"]


def messy(scores: list[float]) -> list[dict[str, Any]]:
    return [{"q": q, "sku": "s1", "name": "n", "s": s} for q, s in zip(MESSY, scores, strict=True)]


def test_spellings_of_a_query_are_one(tmp_path: Path) -> None:
    source_of_all = source(tmp_path, messy([1, 5, 2, 2, 3, 4]))
    found = import_dataset(source_of_all, tmp_path / "out", progress=False)
    data = RankedDataset.open(tmp_path / "out", cache_dir=tmp_path / "cache", progress=False)
    assert data.queries.texts("query", [0, 1]) == ["red shoe", "red shoes"]
    assert pairs_of(data) == {(hashed(["red shoe"]), "s1"): 5, (hashed(["red shoes"]), "s1"): 4}
    assert found.counts["query_spellings_merged"] == 4
    assert found.counts["pairs_of_merged_queries"] == 1
    assert any(note.startswith("4 spellings of queries that differ from an earlier one only") for note in found.notes)
    assert any("1 pair of such queries with several scores: their max is taken" in note for note in found.notes)
    assert pq.read_schema(tmp_path / "out/qrels.parquet").names == ["query_id", "doc_id", "score"]


def test_spellings_are_kept_where_asked(tmp_path: Path) -> None:
    data = made(tmp_path, messy([1, 5, 2, 2, 3, 4]), replace(MAPPING, spelling="verbatim"))
    assert data.queries.texts("query", range(6)) == MESSY
    assert data.schema.provenance["counts"]["query_spellings_merged"] == 0


@pytest.mark.parametrize(("choice", "score"), [("max", 5.0), ("mean", 13 / 5), ("first", 1.0)])
def test_pairs_of_merged_queries_follow_repeated_pairs(tmp_path: Path, choice: str, score: float) -> None:
    data = made(tmp_path, messy([1, 5, 2, 2, 3, 4]), repeated_pairs=choice)
    assert pairs_of(data)[hashed(["red shoe"]) or "", "s1"] == pytest.approx(score)


def test_positions_of_merged_queries_are_the_best_ones(tmp_path: Path) -> None:
    rows = [
        {"q": q, "sku": f"s{d}", "name": "n", "p": p}
        for q, d, p in (("a", 1, 3), ("A", 1, 1), ("a", 2, 1), ("b", 3, 3))
    ]
    made(tmp_path, rows, replace(PLACED, list_length=3))
    pairs = pq.read_table(tmp_path / "out/qrels.parquet").to_pylist()
    assert [(row["doc_id"], row["score"], row["position"]) for row in pairs] == [
        ("s1", 100, 1),
        ("s2", 100, 1),
        ("s3", 1, 3),
    ]


def test_several_scores_of_one_spelling_are_still_an_error(tmp_path: Path) -> None:
    rows = messy([1, 5, 2, 2, 3, 4])
    # Of the same pair other spellings are in lines 2 and 4 to 6.
    told = r"1 pair has several scores: .* has \[5.0, 7.0\]: judged.csv, line 3 holds '5', judged.csv, line 8 holds"
    with pytest.raises(DataSetError, match=told):
        made(tmp_path, [*rows, {**rows[1], "s": 7}])


def test_queries_with_ids_of_their_own_are_never_merged(tmp_path: Path) -> None:
    rows = [{**row, "qid": f"q{n}"} for n, row in enumerate(messy([1, 5, 2, 2, 3, 4]))]
    data = made(tmp_path, rows, replace(MAPPING, query_id="qid"))
    assert len(data.queries) == 6


def test_import_and_logs_call_the_same_queries_the_same() -> None:
    assert {normalised(one) for one in MESSY} == {"red shoe", "red shoes"}
    assert normalised("soft\u00adhyphen\u200b \ufeffend") == "softhyphen end"


# Positions


def lists(*lengths: int, first: int = 1) -> list[dict[str, Any]]:
    return [
        {"q": f"query {n}", "sku": f"s{p}", "name": "n", "p": p + first - 1}
        for n, length in enumerate(lengths)
        for p in range(1, length + 1)
    ]


@pytest.mark.parametrize(
    ("lengths", "length"),
    [
        ((10,) * 5, 10),
        ((10, 5, 8), 10),
        ((10, 3), 10),
        ((10,) * 6 + (200,), 10),  # one outlier must not squash all others
        ((10,) * 30 + (200,), 10),
        ((10,) * 15 + (20,) * 15, 20),
        ((1,), 1),
    ],
)
def test_positions_are_scored_by_the_length_of_usual_lists(
    tmp_path: Path, lengths: tuple[int, ...], length: int
) -> None:
    data = made(tmp_path, lists(*lengths), PLACED)
    found = pairs_of(data)
    for (_, document), score in found.items():
        place = int(document[1:])
        expected = 100 if place == 1 else max(1.0, 100 - 99 * (place - 1) / max(1, length - 1))
        assert score == pytest.approx(expected, rel=1e-6)
    assert (data.schema.score_min, data.schema.score_max) == (1, 100)
    assert data.schema.provenance["list_length"] == length
    assert any(f"position {length:,} and those after it score 1" in one for one in data.schema.provenance["notes"])


def test_a_length_of_lists_is_set(tmp_path: Path) -> None:
    data = made(tmp_path, lists(10), replace(PLACED, list_length=4))
    assert sorted(pairs_of(data).values(), reverse=True) == [100, 67, 34] + [1] * 7
    with pytest.raises(DataSetError, match="list_length: found 0; allowed: a position from 1"):
        replace(PLACED, list_length=0)


@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_positions_from_zero_are_refused_or_set(tmp_path: Path, bad_rows: Any) -> None:
    rows = lists(3, 3, first=0)
    with pytest.raises(DataSetError, match=r"'p': found the position 0 in 2 of 2 lists; .*--first-position 0"):
        made(tmp_path, rows, PLACED, bad_rows=bad_rows)
    data = made(tmp_path, rows, replace(PLACED, first_position=0))
    assert sorted(set(pairs_of(data).values())) == [1, 50.5, 100]
    assert sorted(set(pq.read_table(tmp_path / "out/qrels.parquet")["position"].to_pylist())) == [1, 2, 3]


def test_zeros_that_are_no_positions_are_left_out(tmp_path: Path) -> None:
    rows = [*lists(3), {"q": "query 0", "sku": "s9", "name": "n", "p": 0}]
    with pytest.raises(DataSetError, match=r"holds '0'\. Allowed: a whole number from 1"):
        made(tmp_path, rows, replace(PLACED, first_position=1))
    assert len(made(tmp_path, rows, replace(PLACED, first_position=1), bad_rows="skip").qrels) == 3


@pytest.mark.parametrize("wrong", ["1.5", "-1", "true", "4000000000", "first", ""])
def test_what_is_no_position_is_told(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(DataSetError, match="column 'p': unusable score in 1 row"):
        made(tmp_path, [*lists(3), {"q": "b", "sku": "s9", "name": "n", "p": wrong}], PLACED)


def test_unknown_splits_are_told(tmp_path: Path) -> None:
    rows = [{**row, "part": "train"} for row in judged(2, 2)]
    with pytest.raises(DataSetError, match=r"row 0, column 'part': found 'train'; allowed: seen, novel"):
        made(tmp_path, rows, replace(MAPPING, split="part"))
    data = made(tmp_path, rows, replace(MAPPING, split="part", splits={"train": "seen"}))
    assert data.splits.query_seen.all()


# Pictures


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[str]:
    """A server on loopback with two pictures and something else."""
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (folder / "b.jpg").write_bytes(picture((900, 300), "JPEG"))
    (folder / "text.png").write_text("not a picture")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


PICTURED = TableMapping(**{**vars(MAPPING), "images": {"image": "pic"}})
LOCAL = FetchOptions(allow_private=True, retries=0)


def test_pictures_from_urls_and_files(tmp_path: Path, shop: str) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/c.png").write_bytes(picture((8, 8)))
    (tmp_path.parent / "outside.png").write_bytes(picture())
    cells = [f"{shop}/a.png", f"{shop}/b.jpg", "pics/c.png", "", f"{shop}/text.png", f"{shop}/none.png"]
    cells += ["pics/none.png", "../outside.png"]
    rows = [
        {"q": "a", "sku": f"s{n}", "name": "" if n == 7 else "n", "s": n, "pic": cell} for n, cell in enumerate(cells)
    ]
    data = made(tmp_path, rows, PICTURED, image_size=100, fetch=LOCAL)
    sizes = [None if one is None else one.size for one in data.documents.images("image", range(7))]
    assert sizes == [(40, 30), (100, 33), (8, 8), None, None, None, None]
    told = {row["doc_id"]: row for row in pq.read_table(tmp_path / "out/picture_failures.parquet").to_pylist()}
    assert sorted(told) == ["s4", "s5", "s6", "s7"]
    assert "404" in told["s5"]["reason"]
    assert "has a '..'" in told["s7"]["reason"]
    counts = data.schema.provenance["counts"]
    assert (counts["documents"], counts["documents_dropped"], counts["pairs_of_dropped_documents"]) == (7, 1, 1)
    assert (counts["pictures"], counts["picture_failures"], counts["qrels"]) == (3, 4, 7)


def test_private_addresses_are_not_asked_unless_allowed(tmp_path: Path, shop: str) -> None:
    rows = [{"q": "a", "sku": "s", "name": "n", "s": s, "pic": f"{shop}/a.png"} for s in (1, 1)]
    data = made(tmp_path, rows, PICTURED, fetch=FetchOptions(retries=0))
    assert data.documents.missing() == {"title": 0, "image": 1}


def test_bytes_stay_as_they_are_without_a_size(tmp_path: Path) -> None:
    good, bad = picture(), b"\x89PNG broken"
    rows = {"query": ["a", "a"], "doc_id": ["1", "2"], "title": ["x", "y"], "image": [good, bad], "score": [1.0, 2.0]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    given = TableSource("parquet", TableFile(tmp_path / "t.parquet"), TableMapping())
    found = import_dataset(given, tmp_path / "out", progress=False)
    assert found.counts["picture_failures"] == 1
    assert pq.read_table(tmp_path / "out/documents.parquet")["image"].to_pylist() == [good, None]


# The command


def test_the_command_imports_and_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    table(tmp_path / "judged.csv", judged())
    (tmp_path / "map.yaml").write_text("queries: {query: q}\ndoc_id: sku\nscore: price\n")
    arguments = ["data", "import", str(tmp_path / "judged.csv"), "--mapping", str(tmp_path / "map.yaml")]
    arguments += ["--fields", "title=name", "--score", "s", "--keep", "price", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--name", "shop", "--seen-queries", "0.5", "--seed", "3"])
    assert result.exit_code == 0, result.output
    content = yaml.safe_load((tmp_path / "out/dataset.yaml").read_text())
    assert content["name"] == "shop"
    assert content["splits"] == {"seed": 3, "seen_queries": 0.5, "seen_documents": 0.5, "dev": 0.5}
    assert content["provenance"]["options"]["mapping"]["score"] == "s"
    assert any((tmp_path / "cache").iterdir())


# Text tables through the command

LAMPS = (
    "query\tproduct_id\ttitle\tscore\n"
    'lamp\tA1\t"Star lamp\t3\nlamp\tA2\tplain\t2\nlamp\tA3\t"Moon lamp\t1\nlamp\tA4\tlast\t1\n'
)


def by_command(folder: Path, text: str, *words: str, name: str = "t.csv") -> tuple[str, dict[str, tuple[Any, float]]]:
    """What the command prints, and document id -> (title, score); empty where it fails, with one sentence."""
    (folder / name).write_bytes(text.encode())
    arguments = ["data", "import", str(folder / name), "--out", str(folder / "out"), "--no-check", *words]
    result = CliRunner().invoke(app, arguments)
    if result.exit_code:
        assert isinstance(result.exception, ValueError)
        return str(result.exception), {}
    titles = {row["doc_id"]: row["title"] for row in pq.read_table(folder / "out/documents.parquet").to_pylist()}
    scores = {row["doc_id"]: row["score"] for row in pq.read_table(folder / "out/qrels.parquet").to_pylist()}
    return result.output, {one: (title, scores[one]) for one, title in titles.items()}


def test_titles_with_inch_marks_are_not_joined(tmp_path: Path) -> None:
    told, found = by_command(tmp_path, LAMPS, name="lamps.tsv")
    assert not found
    assert "lamps.tsv, line 2: a double quote opens a field" in told
    assert "--no-quotes" in told
    told, found = by_command(tmp_path, LAMPS, "--no-quotes", name="lamps.tsv")
    assert found == {"A1": ('"Star lamp', 3), "A2": ("plain", 2), "A3": ('"Moon lamp', 1), "A4": ("last", 1)}
    assert "note: lamps.tsv: tab between fields, double quotes as part of the text" in told
    provenance = yaml.safe_load((tmp_path / "out/dataset.yaml").read_text())["provenance"]
    assert provenance["options"]["read_as"] == {"lamps.tsv": "tab between fields, double quotes as part of the text"}


SPREADSHEETS: dict[str, tuple[str, tuple[str, ...], dict[str, float]]] = {
    "european": ("query;sku;title;score\na;1;x;3,5\na;2;y, z;1\n", (), {"1": 3.5, "2": 1}),
    "sep": ('sep=;\r\nquery;sku;title;score\r\na;1;"x;y";0,25\r\na;2;z;1\r\n', (), {"1": 0.25, "2": 1}),
    "told": ("query;sku;title;score\na;1;x;1,234\na;2;y;1\n", ("--decimal", ","), {"1": 1.234, "2": 1}),
    "quoted": ('query,sku,title,score\na,1,x,"3,5"\na,2,y,1\n', (), {"1": 3.5, "2": 1}),
    "preamble": ("Report of May\n\nquery|sku|title|score\na|1|x|3\na|2|y|1\n", (), {"1": 3, "2": 1}),
    "skipped": ("x,y\nquery,sku,title,score\na,1,x,3\na,2,y,1\n", ("--skip-lines", "1"), {"1": 3, "2": 1}),
    "position": (
        "query;sku;title;rank;w\na;1;x;1,0;0,5\na;2;y;2,0;0,5\n",
        ("--list-length", "100"),
        {"1": 100, "2": 99},
    ),
}


@pytest.mark.parametrize(("text", "words", "scores"), SPREADSHEETS.values(), ids=list(SPREADSHEETS))
def test_spreadsheets(tmp_path: Path, text: str, words: tuple[str, ...], scores: dict[str, float]) -> None:
    told, found = by_command(tmp_path, text, *words)
    assert {one: score for one, (_, score) in found.items()} == scores, told


def test_decimal_commas_in_texts_of_json_and_parquet(tmp_path: Path) -> None:
    rows = [{"query": "a", "sku": "1", "title": "1,5", "score": "3,5"}, {"query": "a", "sku": "2", "title": "2.5"}]
    lines = "".join(json.dumps({"score": 0.25} | row) + "\n" for row in rows)
    told, found = by_command(tmp_path, lines, "--decimal", ",", "--score", "title", "--fields", "score", name="t.jsonl")
    assert not found
    assert "t.jsonl, column 'title', line 2: found '2.5'; allowed: numbers with a decimal comma" in told
    told, found = by_command(tmp_path, lines, name="t.jsonl")
    assert not found
    assert "(--decimal , reads decimal commas)" in told
    told, found = by_command(tmp_path, lines, "--decimal", ",", name="t.jsonl")
    assert found == {"1": ("1,5", 3.5), "2": ("2.5", 0.25)}, told
    assert "t.jsonl: JSON, a row a line, decimal comma in texts" in told

    pq.write_table(pa.Table.from_pylist([rows[0], rows[1] | {"score": "1"}]), tmp_path / "p.parquet")
    made = tmp_path / "from-parquet"
    words = ["data", "import", str(tmp_path / "p.parquet"), "--out", str(made), "--decimal", ",", "--no-check"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert pq.read_table(tmp_path / "from-parquet/qrels.parquet")["score"].to_pylist() == [3.5, 1]


REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "thousands": (
        "query;sku;title;score\na;1;x;1,234\na;2;y;2\n",
        (),
        "t.csv, line 2 holds '1,234'. Allowed: a finite number",
    ),
    "both signs": (
        "query;sku;title;score\na;1;x;1,5\na;2;y;1.234\n",
        ("--decimal", ","),
        "t.csv, column 'score', line 3: found '1.234'; allowed: numbers with a decimal comma",
    ),
    "lines after fields of several": (
        'query,sku,title,score\na,1,"x\ny",1\na,2,"z\n, b",2\na,3,w,much\n',
        (),
        "t.csv, line 6 holds 'much'",
    ),
    "no id": ("query,sku,title,score\na,1,x,1\na,,y,1\n", (), "null or empty id in 2 rows: t.csv, line 3"),
    "null id": ("query,sku,title,score\na,1,x,1\na,NULL,y,1\n", ("--null", "NULL"), "null or empty id in 2 rows"),
    "null score": ("query,sku,title,score\na,1,x,NA\n", ("--null", "NA"), "t.csv, line 2 holds None"),
    "no field": ("query,sku,title,score\na,1,,1\n", (), "t.csv, line 2"),
}


@pytest.mark.parametrize(("text", "words", "told"), REFUSED.values(), ids=list(REFUSED))
def test_refused_tables_name_the_line(tmp_path: Path, text: str, words: tuple[str, ...], told: str) -> None:
    message, found = by_command(tmp_path, text, *words)
    assert not found
    assert told in message


def test_ids_that_look_like_missing_values_are_pointed_out(tmp_path: Path) -> None:
    told, found = by_command(tmp_path, "query,sku,title,score\na,NULL,x,1\na,2,y,1\nb,NULL,x,2\n")
    assert sorted(found) == ["2", "NULL"]
    assert "rows of t.csv have the doc_id 'NULL', which is kept as an id and looks like a missing value" in told
    assert "(--null NULL reads it as one)" in told


@pytest.mark.parametrize("field", ["query", "sku", "title", "score"])
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "null"])
def test_nan_in_json_is_missing(tmp_path: Path, field: str, literal: str) -> None:
    good = {"query": '"a"', "sku": '"1"', "title": '"x"', "score": "1"}
    bad = good | {"sku": '"2"', field: literal}
    lines = "".join("{" + ", ".join(f'"{k}": {v}' for k, v in row.items()) + "}\n" for row in (good, bad))
    told, found = by_command(tmp_path, lines, name="t.jsonl")
    assert not found
    assert "t.jsonl, line 2" in told
    assert "NaN" not in told
    assert "Infinity" not in told


def test_the_command_names_columns_and_says_what_it_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    table(tmp_path / "q.csv", [{"nr": 1, "text": "Red"}, {"nr": 2, "text": "red "}])
    documents = {"key": ["7", "8"], "name": ["x", "y"], "image": ["a.png", "b.png"], "tags": [["p", "q"], []]}
    pq.write_table(pa.table(documents), tmp_path / "d.parquet")
    table(tmp_path / "r.csv", [{"asked": q, "thing": d, "rank": d - 7} for q, d in ((1, 7), (1, 8), (1, 9), (2, 8))])
    words = (
        f"data import {tmp_path}/r.csv --queries {tmp_path}/q.csv --documents {tmp_path}/d.parquet --out {tmp_path}/out"
    )
    words += (
        " --query-id asked --queries-id nr --doc-id thing --documents-id key --fields title=name,tags --images none"
    )
    words += (
        " --join-lists ; --first-position 0 --list-length 2 --bad-rows skip --max-unmatched 0.3 --spelling normalised"
    )
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 0, result.output
    pairs = pq.read_table(tmp_path / "out/qrels.parquet").to_pylist()
    assert [(row["query_id"], row["doc_id"], row["score"]) for row in pairs] == [
        ("1", "7", 100),
        ("1", "8", 1),
        ("2", "8", 1),
    ]
    assert pq.read_table(tmp_path / "out/documents.parquet")["tags"].to_pylist() == ["p;q", None]
    assert "the text of an earlier query, but for its spelling, has another id in 1 query" in result.output
    assert "position 2 and those after it score 1 (as asked for" in result.output


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("queries: [q]", "line 1: queries: found ['q']; allowed: a mapping"),
        ("rows: 3", "unknown key 'rows'; allowed: query_id, doc_id"),
        ("{score: a, position: b}", "found score and position columns; allowed: one of"),
        ("{label: a}", "a label column without gains"),
        ("{label: a, gains: {x: much}}", "gains, x: found 'much'; allowed: a number"),
        (
            "{documents: {title: a}, keep: [title]}",
            "keep: the column 'title' has the name of a field that is read from 'a'",
        ),
        ("{keep: [split]}", "keep: found 'split', which has a meaning of its own"),
        ("{spelling: loose}", "spelling: found 'loose'; allowed: normalised, verbatim"),
        ("{first_position: 2}", "first_position: found 2; allowed: 0 or 1"),
        ("{list_length: long}", "list_length: found 'long'; allowed: a whole number"),
        ("{documents: {i: a}, images: {i: b}}", "the document field 'i' is a text and a picture"),
        ("- a", "found ['a']; allowed: a mapping"),
        ("doc_id: a\nlabel: a\ngains:\n  x: 1_000\n", "map.yaml, line 4: gains, x: found '1_000'; allowed: a number"),
        ("doc_id: a\nsplit: s\nsplits:\n  train: [seen]\n", "line 4: splits, train: found ['seen']; allowed: seen"),
        ("keep: title", "line 1: keep: found 'title'; allowed: a list of columns"),
        ("keep: [title, {a: b}]", "keep, 1: found {'a': 'b'}; allowed: a column's name"),
        ("documents: {title: [a]}", "documents, title: found ['a']; allowed: a column's name"),
        ("queries: {query: ''}", "queries, query: found ''; allowed: a column's name"),
        ("doc_id: [a]", "doc_id: found ['a']; allowed: a column's name"),
        ("doc_id: a\ndoc_id: b", "line 2: found the key 'doc_id' twice"),
        ("", "found nothing; allowed: a mapping"),
        ("{", "not readable as YAML"),
    ],
)
def test_wrong_mappings(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(DataSetError) as caught:
        TableMapping.read(tmp_path / "map.yaml")
    assert told in str(caught.value)


def test_a_mapping_reads_labels_and_columns_as_texts(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(
        "doc_id: 007\nquery_id: null\nlabel: yes\ngains: {0: 0, 1: 1e-1, yes: 1, no: 0, Exact: 1}\n"
        "documents: {title: 1}\nkeep: [2024, 2020-01-01, on]\n"
    )
    assert TableMapping.read(tmp_path / "map.yaml") == TableMapping(
        doc_id="007",
        label="yes",
        gains={"0": 0, "1": 0.1, "yes": 1, "no": 0, "Exact": 1},
        documents={"title": "1"},
        keep=("2024", "2020-01-01", "on"),
    )


KILLED = """
import sys, time
from pathlib import Path
from opengcl.sources import importing
from tests.test_importing import PICTURED, LOCAL, source_of
folder, step = Path(sys.argv[1]), sys.argv[2]
real = getattr(importing, step)
def stop(*arguments, **options):
    result = real(*arguments, **options)
    print("reached", flush=True)
    time.sleep(60)
setattr(importing, step, stop)
importing.import_dataset(source_of(folder), folder / "out", importing.ImportOptions(fetch=LOCAL), progress=False)
"""


def source_of(folder: Path) -> TableSource:
    file = TableFile(folder / "judged.csv")
    return TableSource("csv", file, PICTURED, files=(file.path,), picture_root=folder)


@pytest.mark.parametrize("step", ["bring_pictures", "settle_pairs", "_write_schema"])
def test_a_killed_import_leaves_nothing_and_goes_on(tmp_path: Path, shop: str, step: str) -> None:
    rows = [{"q": "a", "sku": f"s{n}", "name": "n", "s": n, "pic": f"{shop}/a.png?{n}"} for n in range(4)]
    table(tmp_path / "judged.csv", rows)
    command = [sys.executable, "-c", KILLED, str(tmp_path), step]
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": root})
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"reached\n"
        process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    if step != "settle_pairs":  # what was fetched is not asked for again
        (tmp_path / "www/a.png").unlink()
    import_dataset(source_of(tmp_path), tmp_path / "out", ImportOptions(fetch=LOCAL), progress=False)
    assert pq.read_table(tmp_path / "out/documents.parquet")["image"].to_pylist() == [picture()] * 4
    assert not (tmp_path / ".out.import").exists()


MEASURED = """
import resource, sys, time
from pathlib import Path
from opengcl.sources.importing import import_dataset
from opengcl.sources.mapping import TableMapping
from opengcl.sources.table_files import TableFile
from opengcl.sources.tables import TableSource
folder = Path(sys.argv[1])
source = TableSource("parquet", TableFile(folder / "qrels.parquet"), TableMapping(),
                     queries=TableFile(folder / "queries.parquet"), documents=TableFile(folder / "documents.parquet"))
started = time.perf_counter()
import_dataset(source, folder / "out", progress=False)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_million_pairs_and_five_million_documents_in_bounded_memory(tmp_path: Path) -> None:
    documents, queries, each = 5_000_000, 100_000, 100
    with pq.ParquetWriter(
        tmp_path / "documents.parquet", pa.schema([("doc_id", "string"), ("title", "string")])
    ) as out:
        for first in range(0, documents, 100_000):
            numbers = range(first, first + 100_000)
            titles = [f"product {n} of the brand {n % 977} in colour {n % 31}" for n in numbers]
            out.write_table(pa.table({"doc_id": [f"doc-{n}" for n in numbers], "title": titles}))
    names = [f"query-{n}" for n in range(queries)]
    pq.write_table(pa.table({"query_id": names, "query": [f"words {n}" for n in names]}), tmp_path / "queries.parquet")
    columns = [("query_id", "string"), ("doc_id", "string"), ("score", "double")]
    with pq.ParquetWriter(tmp_path / "qrels.parquet", pa.schema(columns)) as out:
        for first in range(0, queries, 1000):
            query = np.repeat(np.arange(first, first + 1000), each)
            document = (query * 7919 + np.tile(np.arange(each), 1000) * 49_999) % documents
            score = np.tile(np.arange(each, 0, -1.0), 1000)
            rows = {"query_id": [f"query-{n}" for n in query], "doc_id": [f"doc-{n}" for n in document]}
            out.write_table(pa.table({**rows, "score": score}))
    started = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, found.stdout.split()[-2:])
    print(f"{seconds:.0f} s, {megabytes:.0f} MB at most; with the start {time.perf_counter() - started:.0f} s")
    assert pq.read_metadata(tmp_path / "out/qrels.parquet").num_rows == queries * each
    assert pq.read_metadata(tmp_path / "out/documents.parquet").num_rows == documents
    assert megabytes < 2000
