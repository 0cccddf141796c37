"""Data sets of any content: opened, or refused with a `DataSetError`; never another exception."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from opengcl.data import DataSetError, RankedDataset, Schema
from opengcl.data.schema import SCHEMA_FILE

YAML = "name: s\nqueries: {query: text}\ndocuments: {title: text, image: image}\nscore: {min: 1, max: 100}\n"
TABLES = {
    "queries.parquet": {"query_id": ["q0", "q1"], "query": ["red", "blue"]},
    "documents.parquet": {"doc_id": ["d0", "d1"], "title": ["red shoe", "hat"], "image": [None, b"no picture"]},
    "qrels.parquet": {"query_id": ["q0", "q1"], "doc_id": ["d0", "d1"], "score": [100.0, 1.0]},
}
PLACES = [(file, column) for file, columns in TABLES.items() for column in columns]
EXTRA = [
    ("queries.parquet", "split"),
    ("documents.parquet", "split"),
    ("queries.parquet", "part"),
    ("documents.parquet", "brand"),
]

# What a column of two rows may hold. Bytes are laid into string columns as they are, valid or not.
TEXTS = st.one_of(
    st.text(), st.sampled_from(["q0", "d0", "d1", "seen", "novel", "dev", "", " ", "\0", "\x1b[2J", "‮", "x" * 70_000])
)
BYTES = st.one_of(st.binary(), st.sampled_from([b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]))
KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
    (pa.dictionary(pa.int32(), pa.string()), TEXTS),
    (pa.binary(), BYTES),
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float16(), st.floats(width=16).map(np.float16)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
    (pa.date32(), st.just(datetime.date(2020, 1, 1))),
    (pa.decimal128(20, 2), st.just(decimal.Decimal("1.50"))),
    (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=3)),
    (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        st.fixed_dictionaries({"bytes": BYTES, "path": TEXTS}),
    ),
    (pa.struct([("a", pa.int32())]), st.fixed_dictionaries({"a": st.integers(0, 5)})),
    (pa.map_(pa.string(), pa.int32()), st.just([("a", 1)])),
]


@st.composite
def columns(draw: st.DrawFn) -> pa.Array:
    if draw(st.integers(0, 4)) == 0:
        raw = pa.array(draw(st.lists(st.one_of(BYTES, st.none()), min_size=2, max_size=2)), pa.binary())
        return raw.view(pa.string())
    kind, values = draw(st.sampled_from(KINDS))
    return pa.array(draw(st.lists(st.one_of(values, st.none()), min_size=2, max_size=2)), kind)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def written(folder: Path, changed: dict[tuple[str, str], pa.Array], schema: str = YAML) -> Path:
    shop = Path(tempfile.mkdtemp(dir=folder))
    (shop / SCHEMA_FILE).write_text(schema, encoding="utf-8")
    for file, table in TABLES.items():
        own = {column: array for (place, column), array in changed.items() if place == file}
        pq.write_table(pa.table({**table, **own}), shop / file)
    return shop


def read_everything(dataset: RankedDataset) -> None:
    dataset.describe()
    for records in (dataset.queries, dataset.documents):
        assert len(set(records.ids())) == len(records) > 0
        for column in records.columns:
            records.column(column).to_pylist()
        for field, kind in records.fields.items():
            if kind == "text":
                assert all(one is None or one.strip() for one in records.texts(field, range(len(records))))
    assert np.isfinite(dataset.qrels.score).all()


def open_or_refuse(shop: Path, *, strict: bool) -> bool:
    try:
        dataset = RankedDataset.open(shop, strict=strict, cache_dir=shop / "cache", progress=False)
    except DataSetError:
        return False
    read_everything(dataset)
    return True


def test_what_is_fuzzed_opens_as_it_is(folder: Path) -> None:
    assert open_or_refuse(written(folder, {}), strict=False)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(changed=st.dictionaries(st.sampled_from(PLACES + EXTRA), columns(), max_size=3), strict=st.booleans())
def test_tables_of_any_types_and_values(folder: Path, changed: dict[tuple[str, str], pa.Array], strict: bool) -> None:
    open_or_refuse(written(folder, changed), strict=strict)


# The same every time: a fault in pyarrow's own code would end the process, and every other test with it.
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(TABLES)), st.integers(0, 2**31), st.binary(min_size=1, max_size=8), st.booleans())
def test_tables_with_damaged_bytes(folder: Path, name: str, at: int, found: bytes, cut: bool) -> None:
    shop = written(folder, {})
    content = bytearray((shop / name).read_bytes())
    at %= len(content)
    content[at : len(content) if cut else at + len(found)] = found
    (shop / name).write_bytes(content)
    open_or_refuse(shop, strict=False)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("text")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
KEYS = st.sampled_from(["name", "queries", "documents", "score", "splits", "provenance", "other"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, VALUES))
def test_settings_of_any_values(changed: dict[str, Any]) -> None:
    content = yaml.safe_load(YAML) | changed
    try:
        text = yaml.safe_dump(content, allow_unicode=True)
    except yaml.YAMLError:
        assume(False)
    try:
        schema = Schema.parse(text)
    except DataSetError:
        return
    assert Schema.parse(schema.to_yaml()) == schema


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text("name:[]{}&*!|>'\"%@`-? \n\t0123", max_size=60).map(lambda text: YAML + text)))
def test_settings_of_any_text(text: str) -> None:
    with contextlib.suppress(DataSetError):
        Schema.parse(text)
