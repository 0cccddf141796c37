"""Columns of every type in every role: read as what they are used for, or refused by their type."""

from __future__ import annotations

import base64
import datetime
import decimal
import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from opengcl.data import DataSetError, RankedDataset, Schema
from opengcl.data import tables as typed
from opengcl.data.problems import ProblemLog
from opengcl.sources.columns import ids, joined_ids, labels, named, numbers, pictures, texts, truths
from opengcl.sources.importing import Imported, ImportOptions, import_dataset
from opengcl.sources.mapping import TableMapping
from opengcl.sources.stage import Stage
from opengcl.sources.table_files import TableFile
from opengcl.sources.tables import TableSource


def picture(shade: int = 200) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 20, 30)).save(out, "PNG")
    return out.getvalue()


RED, BLUE = picture(200), picture(10)
PARTS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
KINDS: dict[str, pa.Array] = {
    "null": pa.nulls(3),
    "bool": pa.array([True, False, None]),
    "int": pa.array([1, 2, None], pa.int8()),
    "uint64": pa.array([1, 2**64 - 1, None], pa.uint64()),
    "half": pa.array([1.0, 2.5, None], pa.float16()),
    "float": pa.array([1.0, 2.0, None]),
    "nan": pa.array([1.0, float("nan"), float("inf")]),
    "decimal": pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00"), None]),
    "decimal256": pa.array([decimal.Decimal("1"), None, None], pa.decimal256(50, 2)),
    "date": pa.array([datetime.date(2024, 1, 2), None, None]),
    "timestamp": pa.array([1, 2, None], pa.timestamp("us", "Europe/Berlin")),
    "time": pa.array([1, 2, None], pa.time64("us")),
    "duration": pa.array([1, 2, None], pa.duration("s")),
    "text": pa.array(["1", "2 ", None]),
    "text view": pa.array(["1", "a value that is too long to lie in the view", None], pa.string_view()),
    "dictionary": pa.array(["1", "2", None]).dictionary_encode(),
    "dictionary of numbers": pa.array([1, 2, None]).dictionary_encode(),
    "bytes": pa.array([b"\xff", b"2", None]),
    "bytes view": pa.array([b"1", b"2", None], pa.binary_view()),
    "fixed bytes": pa.array([b"12", b"34", None], pa.binary(2)),
    "uuid": pa.array([uuid.UUID(int=1).bytes, uuid.UUID(int=2).bytes, None], pa.uuid()),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', "2", None])),
    "list of texts": pa.array([["1", "2"], [], None]),
    "list of dictionaries": pa.array([["1", "2"], [], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "large list of numbers": pa.array([[1, 2], [], None], pa.large_list(pa.int64())),
    "fixed list": pa.array([["1", "2"], ["3", None], None], pa.list_(pa.string(), 2)),
    "list of lists": pa.array([[["1"]], [], None]),
    "list of bytes": pa.array([[b"1"], [], None]),
    "list of pictures": pa.array([[{"bytes": b"1", "path": None}], [], None], pa.list_(PARTS)),
    "map": pa.array([[("a", "1")], [], None], pa.map_(pa.string(), pa.string())),
    "object": pa.array([{"url": "1"}, {"url": None}, None]),
    "picture": pa.array([{"bytes": b"1", "path": None}, {"bytes": None, "path": "2"}, None], PARTS),
    "object with a dictionary": pa.StructArray.from_arrays([pa.array(["1", "2", "3"]).dictionary_encode()], ["path"]),
}
ROLES = ("query_id", "doc_id", "query", "title", "image", "score", "position", "label", "keep", "split")


def mapping_of(role: str) -> TableMapping:
    given: dict[str, Any] = {
        "queries": {"query": "query"},
        "doc_id": "doc_id",
        "query_id": "query_id",
        "documents": {"title": "title"},
        "images": {"image": "image"} if role == "image" else {},
        "keep": ("keep",),
    }
    if role == "split":
        given |= {"split": "split"}
    scores = {"position": {"position": "position"}, "label": {"label": "label", "gains": {"1": 1, "2": 2}}}
    return TableMapping(**given, **scores.get(role, {"score": "score"}))


def table_with(kind: str, role: str, path: Path) -> TableSource:
    """Three rows that are right, but for a column of some type."""
    columns: dict[str, pa.Array] = {
        "query_id": pa.array(["q1", "q2", "q3"]),
        "doc_id": pa.array(["d1", "d2", "d3"]),
        "query": pa.array(["a", "b", "c"]),
        "title": pa.array(["x", "y", "z"]),
        "score": pa.array([1, 2, 3]),
        "keep": pa.array([1, 2, 3]),
        role: KINDS[kind],
    }
    written(columns, path)
    return TableSource("parquet", TableFile(path), mapping_of(role), picture_root=path.parent)


def written(columns: dict[str, pa.Array], path: Path) -> None:
    try:
        pq.write_table(pa.table(columns), path, row_group_size=1)
    except (pa.ArrowException, OSError):
        pytest.skip("Parquet has no such type")


def refusal(do: Callable[[], object]) -> str | None:
    """What a refusal says; None where there is none."""
    try:
        do()
    except DataSetError as error:
        return str(error)
    return None


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_in_every_role_is_read_or_refused(tmp_path: Path, kind: str, role: str) -> None:
    source, log = table_with(kind, role, tmp_path / "t.parquet"), ProblemLog()

    def stage_all() -> None:
        with Stage(tmp_path, source.describe(), seen_documents=0.5, seed=0, log=log) as stage:
            for batch in source.batches(progress=False):
                stage.add(batch)

    told = refusal(stage_all)
    if told is None:
        assert {problem.column for problem in log.problems()} <= {role, *role.split(), "doc_id", "query_id"}
    else:
        assert f"column '{role}': found" in told or "not readable as Parquet: Nested data" in told
        assert len(told) < 1000


@pytest.mark.parametrize("kind", ["null", "text view", "bytes", "fixed list", "list of pictures", "picture"])
def test_pictures_of_every_type(tmp_path: Path, kind: str) -> None:
    source = table_with(kind, "image", tmp_path / "t.parquet")
    told = refusal(lambda: import_dataset(source, tmp_path / "out", ImportOptions(), progress=False))
    if told is None:  # none of them is a picture, and each that is there is listed
        listed = tmp_path / "out/picture_failures.parquet"
        assert kind == "null" or pq.read_metadata(listed).num_rows
        data = RankedDataset.open(tmp_path / "out", cache_dir=tmp_path / "cache", progress=False)
        assert data.documents.missing() == {"title": 0, "image": 3}


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        *((kind, "image") for kind in ("map", "int", "object", "list of lists", "large list of numbers", "bool")),
        *((f"list of {kind}", role) for kind in ("texts", "lists") for role in ("score", "position", "label")),
        *(("object", role) for role in ("query_id", "doc_id", "query", "title", "score", "split")),
        *((kind, "doc_id") for kind in ("bool", "timestamp", "bytes", "list of texts")),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, kind: str, role: str) -> None:
    columns = dict.fromkeys(("query_id", "doc_id", "query", "title", "score", "keep"), KINDS["text"])
    pq.write_table(pa.table({**columns, role: KINDS[kind]}), tmp_path / "t.parquet")
    source = TableSource("parquet", TableFile(tmp_path / "t.parquet"), mapping_of(role))
    with pytest.raises(DataSetError) as caught:
        import_dataset(source, tmp_path / "out", progress=False)
    found = str(typed.plain_type(KINDS[kind].type)).replace("item: ", "element: ").rstrip(">")
    assert f"t.parquet, column '{role}': found type {found}" in str(caught.value).replace("item: ", "element: ")
    assert "allowed: " in str(caught.value)


BY_HAND = (
    "half",
    "bytes view",
    "uuid",
    "list of dictionaries",
    "large list of numbers",
    "map",
    "object",
    "picture",
)


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_folder_made_by_hand_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    """Every type as text, picture and other column, over several row groups, so that dictionaries differ."""
    Schema("x", {"query": "text"}, {"title": "text"}, 0, 3)
    pq.write_table(pa.table({"query_id": ["q"], "query": ["a"]}), tmp_path / "queries.parquet")
    pq.write_table(pa.table({"query_id": ["q"], "doc_id": ["d1"], "score": [1.0]}), tmp_path / "qrels.parquet")
    for fields, fits in (("text", "title"), ("image", "image"), (None, "other")):
        documents = {"title": "text"} | ({fits: fields} if fields else {})
        (tmp_path / "dataset.yaml").write_text(Schema("x", {"query": "text"}, documents, 0, 3).to_yaml())  # type: ignore[arg-type]
        columns = {"doc_id": pa.array(["d1", "d2", "d3"]), "title": pa.array(["x", "y", "z"]), fits: KINDS[kind]}
        written(columns, tmp_path / "documents.parquet")
        told = refusal(lambda: RankedDataset.open(tmp_path, cache_dir=tmp_path / "cache", progress=False))
        assert told is None or (fields is not None and fits in told) or "Nested data" in told, told


# What each role makes of a column


def test_ids() -> None:
    def found(values: Any, kind: pa.DataType | None = None) -> list[str | None]:
        return ids(pa.array(values, kind), "t", "c").to_pylist()

    assert found([" a", "a ", None, "007"]) == ["a", "a", None, "007"]
    assert ids(pa.array([" a"]), "t", "c", trimmed=False).to_pylist() == [" a"]
    assert found([7, None]) == ["7", None]
    assert found([12.0, float("nan"), None, -3.0]) == ["12", None, None, "-3"]
    assert found([decimal.Decimal("12.00")]) == ["12"]
    assert found([uuid.UUID(int=1).bytes], pa.uuid()) == ["00000000-0000-0000-0000-000000000001"]
    with pytest.raises(DataSetError, match=r"t, row 6, column 'c': found 12\.5, type double; allowed: ids as text"):
        ids(pa.array([1.0, 12.5]), "t", "c", first=5)
    with pytest.raises(DataSetError, match="up to 9,007,199,254,740,992"):
        found([2.0**53 + 2])
    with pytest.raises(DataSetError, match="up to 16,777,216"):
        found([2.0**24 + 2], pa.float32())


@given(st.lists(st.tuples(st.text("ab:\\", min_size=1), st.text("ab:\\", min_size=1)), unique=True, max_size=8))
def test_different_parts_make_different_ids(parts: list[tuple[str, str]]) -> None:
    columns = [pa.array([one[at] for one in parts], pa.large_string()) for at in (0, 1)]
    assert len(set(joined_ids(columns).to_pylist())) == len(parts)


def test_joined_ids() -> None:
    columns = [pa.array(one, pa.large_string()) for one in (["us", "es", None, "jp"], ["B1", "B1", "B1", " "])]
    assert joined_ids(columns).to_pylist() == ["us:B1", "es:B1", None, None]


def test_texts() -> None:
    assert texts(pa.array([1.0, 12.5, float("nan")]), "t", "c").to_pylist() == ["1", "12.5", None]
    assert texts(pa.array([["a", "b"], [], None, ["", None, "c"]]), "t", "c", join=", ").to_pylist() == [
        "a, b",
        None,
        None,
        "c",
    ]
    assert texts(pa.array([[1, 2]]), "t", "c", join=" ").to_pylist() == ["1 2"]
    assert texts(pa.array([datetime.date(2024, 1, 2)]), "t", "c").to_pylist() == ["2024-01-02"]
    with pytest.raises(DataSetError, match=r"found type list<item: string>.*\['a'\].*--join-lists"):
        texts(pa.array([["a"]], pa.list_(pa.string())), "t", "c")


def test_numbers() -> None:
    assert numbers(pa.array([True, False, None]), "t", "c").to_pylist() == [1, 0, None]
    found = numbers(pa.array([" true", "FALSE", "3.5", "1_000", "much", "", None]), "t", "c").to_pylist()
    assert found == [1, 0, 3.5, None, None, None, None]
    assert truths(pa.array(["True ", "0", None, "false"])).tolist() == [True, False, False, True]
    assert numbers(pa.array([decimal.Decimal("1.25")]), "t", "c").to_pylist() == [1.25]


def test_labels() -> None:
    assert labels(pa.array([" Exact", "Partial "]), "t", "c").to_pylist() == ["Exact", "Partial"]
    assert labels(pa.array([3.0, 4.0]), "t", "c").to_pylist() == ["3", "4"]


@pytest.mark.parametrize(
    ("cells", "first", "several"),
    [
        ([["a.png", "b.png"], [], None, ["", None, "c.png"]], ["a.png", None, None, "c.png"], 1),
        ([[b"a", b"b"], [b"", b"c"]], [b"a", b"c"], 1),
        (
            [[{"bytes": b"a", "path": "p"}, {"bytes": b"b", "path": "q"}], []],
            [{"bytes": b"a", "path": "p"}, None],
            1,
        ),
        (
            ["https://x/a.jpg, https://x/b.jpg", "https://x/c.jpg|http://x/d.jpg"],
            ["https://x/a.jpg", "https://x/c.jpg"],
            2,
        ),
        (["https://x/a,b.jpg", "a, b.png"], ["https://x/a,b.jpg", "a, b.png"], 0),
    ],
)
def test_the_first_of_several_pictures(cells: list[Any], first: list[Any], several: int) -> None:
    found, count = pictures(pa.array(cells), "t", "c")
    there = typed.present(found).to_pylist()
    assert [one if is_there else None for one, is_there in zip(found.to_pylist(), there, strict=True)] == first
    assert count == several


# Whole imports


def bring(folder: Path, path: Path, mapping: TableMapping, **options: Any) -> tuple[RankedDataset, Imported]:
    source = TableSource("parquet", TableFile(path), mapping, picture_root=folder)
    imported = import_dataset(source, folder / "out", ImportOptions(**options), progress=False)
    return RankedDataset.open(folder / "out", cache_dir=folder / "cache", progress=False), imported


def test_the_first_of_a_list_of_images_is_taken_and_said(tmp_path: Path) -> None:
    """`Sequence(Image())` as `datasets` writes it."""
    images = [[Image.open(io.BytesIO(RED)), Image.open(io.BytesIO(BLUE))], [Image.open(io.BytesIO(BLUE))]]
    rows = {"query": ["a", "b"], "product_id": ["1", "2"], "images": images, "score": [1.0, 2.0], "title": ["x", "y"]}
    texts_of = {name: datasets.Value("string") for name in ("query", "product_id", "title")}
    features = datasets.Features(
        {**texts_of, "images": datasets.Sequence(datasets.Image()), "score": datasets.Value("float64")}
    )
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "t.parquet"))
    data, imported = bring(tmp_path, tmp_path / "t.parquet", TableMapping())
    found = [one.getpixel((0, 0)) for one in data.documents.images("image", [0, 1]) if one]
    assert found == [(200, 20, 30), (10, 20, 30)]
    told = "t.parquet, column 'images': the first of several pictures is taken in 1 row"
    assert told in imported.notes
    assert told in data.schema.provenance["notes"]


def test_data_uris_are_pictures(tmp_path: Path) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(RED).decode()}"
    cells = [uri, uri.rstrip("="), "data:image/png;base64,AAAA", "data:text/html,<b>", "data:image/png;base64,!"]
    rows = {"query": ["a"] * 5, "sku": list("12345"), "title": list("vwxyz"), "image": cells, "score": [1, 2, 3, 4, 5]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    data, imported = bring(tmp_path, tmp_path / "t.parquet", TableMapping())
    assert data.documents.present("image", range(5)).tolist() == [True, True, False, False, False]
    failures = pq.read_table(tmp_path / "out/picture_failures.parquet").to_pylist()
    assert [one["where"] for one in failures] == ["a data URI"] * 3
    assert "text/html" in failures[1]["reason"]
    assert imported.counts["pictures"] == 2


def test_names_of_class_labels_are_known(tmp_path: Path) -> None:
    rows = {"query": ["a", "a", "b"], "sku": list("123"), "title": list("xyz"), "grade": [1, 0, -1]}
    features = datasets.Features(
        {
            **{name: datasets.Value("string") for name in ("query", "sku", "title")},
            "grade": datasets.ClassLabel(names=["bad", "good"]),
        }
    )
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "t.parquet"))
    mapping = TableMapping(label="grade", gains={"good": 2.0, "bad": 1.0})
    data, _ = bring(tmp_path, tmp_path / "t.parquet", mapping, bad_rows="skip")
    assert data.qrels.score.tolist() == [2, 1]
    with pytest.raises(DataSetError, match=r"'grade': unusable score in 3 rows: .* holds 'good'.*--label"):
        bring(tmp_path / "x", tmp_path / "t.parquet", TableMapping(score="grade"))


def test_numbers_without_a_class_label_are_an_error() -> None:
    told = json.dumps({"info": {"features": {"c": {"_type": "ClassLabel", "names": ["a"]}}}})
    schema = pa.schema([("c", pa.int64())], {"huggingface": told})
    with pytest.raises(DataSetError, match=r"t, column 'c': found the label 3; allowed: 0 to 0"):
        named(pa.RecordBatch.from_arrays([pa.array([0, 3])], schema=schema), "t")
    for broken in ("{", "[]", '{"info": {"features": {"c": 3}}}'):
        batch = pa.RecordBatch.from_arrays([pa.array([3])], schema=schema.with_metadata({"huggingface": broken}))
        assert named(batch, "t").column(0).to_pylist() == [3]


def test_lists_of_texts_are_joined_where_asked(tmp_path: Path) -> None:
    rows = {"query": ["a"], "sku": ["1"], "title": ["x"], "tags": [["red", "shoe"]], "score": [1]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    mapping = TableMapping(documents={"title": "title", "tags": "tags"}, join_lists=", ")
    data, _ = bring(tmp_path, tmp_path / "t.parquet", mapping)
    assert data.documents.texts("tags", [0]) == ["red, shoe"]


@pytest.mark.parametrize("values", [[True, False], ["true", "FALSE"], ["True", " false"]])
def test_truth_values_are_scores(tmp_path: Path, values: list[Any]) -> None:
    rows = {"query": ["a", "a"], "sku": ["1", "2"], "title": ["x", "y"], "score": values}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    data, _ = bring(tmp_path, tmp_path / "t.parquet", TableMapping())
    assert data.qrels.score.tolist() == [1, 0]


def test_truth_values_beside_numbers_are_an_error(tmp_path: Path) -> None:
    rows = {"query": ["a"] * 3, "sku": list("123"), "title": list("xyz"), "score": ["true", "0", "false"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet", row_group_size=1)
    told = r"t\.parquet, column 'score': found true and false beside numbers: row 0 holds 'true', row 1 holds '0'"
    with pytest.raises(DataSetError, match=told):
        bring(tmp_path, tmp_path / "t.parquet", TableMapping())
