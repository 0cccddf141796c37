"""Rows that share an id made one: of each field the first value that is there, and what differed is told."""

# ruff: noqa: S608 - names in SQL are constants of ours, or quoted

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from opengcl.data import engine, tables
from opengcl.data.problems import ProblemLog, number_of, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID
from opengcl.sources.source import Side

FIRST_ROW = "first row"
"""Column of `later_rows`: the row of the side's table that has the same id."""

_EXAMPLES = 5
_MOST_COLUMNS_TOLD = 10
_MOST_PLACES = 1000


@dataclass
class Empty:
    """First rows of an id without any field: how many, and where some of them come from."""

    count: int = 0
    places: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, row: int, file: str, place: str) -> None:
        """Notes a row of the side's table."""
        self.count += 1
        if len(self.places) < _MOST_PLACES:
            self.places[row] = (file, place)


def later_rows(folder: Path, side: Side) -> Path:
    """Where rows go whose id came before with another content."""
    return folder / f"{side}.later.parquet"


@dataclass(frozen=True)
class Settled:
    """What became of the rows of a side.

    Attributes:
        rows: Left in the table.
        differing: Later rows that had another value somewhere than the one that stays.
        filled: Values taken from later rows, as the first had none.
        notes: Sentences about the columns that differed, with examples.
    """

    rows: int
    differing: int = 0
    filled: int = 0
    notes: tuple[str, ...] = ()


def settle_rows(
    folder: Path,
    spill: Path,
    side: Side,
    fields: Sequence[str],
    empty: Empty,
    log: ProblemLog,
    *,
    threads: int | None,
) -> Settled:
    """Fills what is missing in the rows of a side from later rows of the same id, and drops rows without any field.

    DuckDB groups the later rows on disk; the table itself streams by.

    Args:
        folder: With the side's table and, where there are such, its `later_rows`, which are removed.
        spill: Where DuckDB puts what does not fit into memory.
        side: ``queries`` or ``documents``.
        fields: The model's fields among the columns.
        empty: Rows of the table that may be left without any field.
        log: Where those are told.
        threads: Of DuckDB; all by default.
    """
    path, later = folder / f"{side}.parquet", later_rows(folder, side)
    settled = Settled(pq.read_metadata(path).num_rows)
    if later.exists():
        with engine.connect(spill, threads=threads) as database:
            database.read_parquet(str(later), file_row_number=True).create_view("later")
            filled = _fill(database, path)
            database.read_parquet(str(path), file_row_number=True).create_view("kept")
            differing, notes = _differences(database, side, pq.read_schema(path))
        settled = Settled(settled.rows, differing, filled, notes)
        later.unlink()
    if empty.count:
        rows = _drop_empty(path, side, fields, empty, log)
        settled = Settled(rows, settled.differing, settled.filled, settled.notes)
    return settled


def _fill(database: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Rewrites the table with values of later rows where its own are missing; says how many."""
    schema = pq.read_schema(path)
    names = [name for name in schema.names if name not in (QUERY_ID, DOCUMENT_ID)]
    first = ", ".join(
        f"arg_min({_quoted(one)}, file_row_number) FILTER ({_quoted(one)} IS NOT NULL) AS {_quoted(one)}"
        for one in names
    )
    grouped = f"SELECT {_quoted(FIRST_ROW)}, {first} FROM later GROUP BY ALL ORDER BY ALL"
    values = _Ahead(iter(database.sql(grouped).to_arrow_reader(4096)))
    new, filled, start = path.with_suffix(".new"), 0, 0
    with tables.Table.open(path) as table, pq.ParquetWriter(new, schema, compression="zstd") as writer:
        for batch in table.batches(task=f"{path.name}: joining rows of one id", progress=False):
            for part in values.below(start + len(batch)):
                batch, count = _patched(batch, part, start, names)
                filled += count
            writer.write_batch(batch)
            start += len(batch)
    if filled:
        new.replace(path)
    else:
        new.unlink()
    return filled


class _Ahead:
    """Batches in the order of their first column, handed out up to a bound."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._left: pa.RecordBatch | None = None

    def below(self, bound: int) -> Iterator[pa.RecordBatch]:
        while (batch := self._left if self._left is not None else next(self._batches, None)) is not None:
            count = int(np.searchsorted(np.asarray(batch.column(0)), bound))
            self._left = batch.slice(count)
            if count:
                yield batch.slice(0, count)
            if count < len(batch):
                return
            self._left = None


def _patched(batch: pa.RecordBatch, values: pa.RecordBatch, start: int, names: list[str]) -> tuple[pa.RecordBatch, int]:
    """A batch with values at some rows, where it has none; and how many were filled in."""
    at = np.asarray(values.column(0)) - start
    columns, filled = {name: batch.column(name) for name in batch.schema.names}, 0
    for name in names:
        column = tables.plain(values.column(name)).cast(columns[name].type)
        fits = np.asarray(column.is_valid()) & ~_there(columns[name])[at]
        if fits.any():
            filled += int(fits.sum())
            taken = np.arange(len(batch))
            taken[at[fits]] = len(batch) + np.flatnonzero(fits)
            columns[name] = pa.concat_arrays([columns[name], column]).take(pa.array(taken))
    return pa.RecordBatch.from_pydict(columns, batch.schema), filled


def _there(column: pa.Array) -> np.ndarray:
    """Which values are neither null, blank nor NaN."""
    kind = column.type
    if tables.is_text(kind) or pt.is_large_binary(kind) or kind == tables.PICTURE:
        return np.asarray(tables.present(column.cast(pa.large_string()) if tables.is_text(kind) else column))
    return ~np.asarray(column.is_null(nan_is_null=pt.is_floating(kind)))


def _differences(database: duckdb.DuckDBPyConnection, side: Side, schema: pa.Schema) -> tuple[int, tuple[str, ...]]:
    """How many later rows say something else than what stays, and a sentence for each column."""
    identifier = QUERY_ID if side == "queries" else DOCUMENT_ID
    names = [name for name in schema.names if name != identifier]
    differs = {
        name: f"(later.{_quoted(name)} IS NOT NULL AND {_value('later', name, schema)} "
        f"IS DISTINCT FROM {_value('kept', name, schema)})"
        for name in names
    }
    joined = f"FROM later JOIN kept ON later.{_quoted(FIRST_ROW)} = kept.file_row_number"
    counts = ", ".join(f"count(*) FILTER {one}" for one in [f"({' OR '.join(differs.values())})", *differs.values()])
    total, *each = database.sql(f"SELECT {counts} {joined}").fetchall()[0]
    notes = []
    for name, count in sorted(zip(names, each, strict=True), key=lambda one: -one[1])[:_MOST_COLUMNS_TOLD]:
        if count:
            shown_values = f"{_value('kept', name, schema)}, {_value('later', name, schema)}"
            found = database.sql(
                f"SELECT kept.{_quoted(identifier)}, {shown_values} {joined} WHERE {differs[name]} "
                f"ORDER BY later.file_row_number LIMIT {_EXAMPLES}"
            ).fetchall()
            listed = "; ".join(
                f"id {shown(one)} has {shown(kept)} and then {shown(other)}" for one, kept, other in found
            )
            more = f"; and {count - len(found):,} more" if count > len(found) else ""
            notes.append(
                f"{side}, '{name}': another value than in the first row of the id, which stays, in "
                f"{number_of(count, 'row')}: {listed}{more}"
            )
    return int(total), tuple(notes)


def _value(table: str, name: str, schema: pa.Schema) -> str:
    """A column in SQL, as it is compared: nested ones as text."""
    whole = f"{table}.{_quoted(name)}"
    kind = schema.field(name).type
    return f"CAST({whole} AS VARCHAR)" if pt.is_nested(kind) and kind != tables.PICTURE else whole


def _drop_empty(path: Path, side: Side, fields: Sequence[str], empty: Empty, log: ProblemLog) -> int:
    """Rewrites the table without rows that have no field, tells them, and says how many rows are left."""
    identifier = QUERY_ID if side == "queries" else DOCUMENT_ID
    new, start, left = path.with_suffix(".new"), 0, 0
    with (
        tables.Table.open(path) as table,
        pq.ParquetWriter(new, pq.read_schema(path), compression="zstd") as writer,
    ):
        for batch in table.batches(task=f"{path.name}: looking for empty rows", progress=False):
            there = np.logical_or.reduce([_there(batch.column(name)) for name in fields])
            for row in np.flatnonzero(~there).tolist():
                file, place = empty.places.get(start + row, (path.name, "a row"))
                example = f"{place} (id {shown(batch.column(identifier)[row].as_py())})"
                log.add(
                    file, ", ".join(fields), "no field present", "at least one field that is not empty", 1, [example]
                )
            start += len(batch)
            left += int(there.sum())
            writer.write_batch(batch.filter(pa.array(there)))
    new.replace(path)
    return left


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
