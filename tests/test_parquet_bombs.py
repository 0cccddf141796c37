"""Parquet files of kilobytes that ask for gigabytes, made here: read in bounded memory, or refused in a sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl.data import DataSetError
from opengcl.data.tables import Table, read_whole, rows_within
from opengcl.per_query import PerQueryError, read_per_query
from opengcl.ranking_files import _parquet_batches
from opengcl.sources.table_files import TableFile

LONG = 900_000
ROWS = 60_000


def bomb(path: Path, *columns: str, stored: bool = False) -> Path:
    """Each column is one long value, counted once, for every row: 54 GB a column."""
    one = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array(["x" * LONG]))
    table = pa.table({**dict.fromkeys(columns, one), "score": [1.0] * ROWS})
    pq.write_table(table, path, compression="zstd", store_schema=stored)
    assert path.stat().st_size < 200_000
    return path


def small(batches: Iterator[Any]) -> None:
    for _, batch in zip(range(3), batches, strict=False):
        assert 0 < sum(column.nbytes for column in batch.columns) < 100 << 20


@pytest.mark.parametrize("stored", [True, False])
def test_batches_are_bounded_by_what_they_decode_to(tmp_path: Path, stored: bool) -> None:
    path = bomb(tmp_path / "bomb.parquet", "doc_id", "title", stored=stored)
    with Table.open(path) as table:
        small(table.batches(task="", progress=False))
        small(table.batches(["title"], task="", progress=False))
        assert len(next(table.batches(["title"], task="", progress=False))) == (64 << 20) // LONG
        assert len(next(table.batches(["score"], task="", progress=False))) == ROWS
    small(rows.batch for rows in TableFile(path).read(["doc_id", "title"], progress=False))


def test_values_inside_structs_and_lists_count(tmp_path: Path) -> None:
    image = pa.StructArray.from_arrays([pa.array([b"z" * LONG] * 500), pa.array(["p"] * 500)], ["bytes", "path"])
    table = pa.table({"image": image, "tags": pa.array([["y" * LONG]] * 500), "a.b": pa.array(["w" * LONG] * 500)})
    path = tmp_path / "nested.parquet"
    pq.write_table(table, path, compression="zstd")
    for name in table.column_names:
        assert rows_within(path, 65_536, [name]) == (64 << 20) // LONG or name == "image"
    assert rows_within(path, 65_536, ["image"]) == (64 << 20) // (LONG + 1)
    assert rows_within(path, 65_536) == (64 << 20) // (3 * LONG + 1)


def test_files_of_runs_and_rankings_are_bounded(tmp_path: Path) -> None:
    path = bomb(tmp_path / "per_query.parquet", "split", "query_id", "doc_id")
    for read in (read_whole, read_per_query):
        with pytest.raises((DataSetError, PerQueryError), match="holds more than 2 GB"):
            read(path)
    for query, document, _ in _parquet_batches(path, "qrels"):
        assert query.nbytes + document.nbytes < 200 << 20
        break


@given(st.lists(st.text(max_size=8), min_size=1, max_size=40), st.integers(1, 7))
def test_a_whole_table_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], group: int
) -> None:
    path = tmp_path_factory.mktemp("whole") / "t.parquet"
    table = pa.table({"a": texts, "b": list(range(len(texts)))})
    pq.write_table(table, path, row_group_size=group)
    assert read_whole(path).equals(table)
    assert read_whole(path, ["b"]).equals(table.select(["b"]))


def test_an_error_of_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object, **__: object) -> Iterator[pa.RecordBatch]:
        raise pa.ArrowMemoryError("malloc of size 58982400000 failed")

    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"doc_id": ["a"]}), path)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", without)
    for read in (lambda: TableFile(path).read(["doc_id"], progress=False), lambda: iter([read_whole(path)])):
        with pytest.raises(DataSetError, match="needs more memory than there is"):
            next(read())


def test_many_columns_take_no_square_of_time(tmp_path: Path) -> None:
    path = tmp_path / "wide.parquet"
    pq.write_table(pa.table({f"c{number}": [1] for number in range(20_000)}), path)
    started = time.process_time()
    with Table.open(path) as table:
        for name in table.columns:
            table.type_of(name)
        with pytest.raises(DataSetError, match=r"c49 and 19,950 more$"):
            table.type_of("none")
    assert time.process_time() - started < 4  # 41 s before
