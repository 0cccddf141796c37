"""Tables from files, a batch at a time: CSV, TSV, JSON, Parquet and TREC qrels, text plain or gzipped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, Protocol, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from opengcl.data.problems import DataSetError, listed, shown
from opengcl.data.tables import rows_within, unreadable
from opengcl.delimited_text import COMMA, TAB, DelimitedFile, Dialect, TextOptions, with_points, without
from opengcl.json_rows import JsonFile
from opengcl.progress import progress_bar
from opengcl.text_files import TextFile, refuse_foreign

FileKind = Literal["csv", "tsv", "jsonl", "parquet", "trec"]
KINDS: tuple[FileKind, ...] = get_args(FileKind)

_SUFFIXES: dict[str, FileKind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".trec": "trec",
    ".qrels": "trec",
}
_TREC_COLUMNS = ["query_id", "iteration", "doc_id", "relevance"]
_ROWS = 8192
_PARQUET_ROWS = 1 << 16
_PARQUET_BYTES = 64 << 20


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a table.

    Attributes:
        batch: The columns that were asked for.
        first: Number of the first row, from 0, header not counted.
        lines: The line of each row of a text file, from 1, header counted; None for others.
        decimal: The decimal sign of its numbers, where they are text.
        numbers: Of columns of JSON, which values are numbers there, whose decimal sign is a point whatever texts have.
    """

    batch: pa.RecordBatch
    first: int
    lines: np.ndarray | None = None
    decimal: str = "."
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)

    def place(self, row: int) -> str:
        """How a message names a row of the batch."""
        return f"row {self.first + row}" if self.lines is None else f"line {self.lines[row]}"

    def with_points(self, column: str, file: str) -> Rows:
        """The same rows with the decimal commas of a column as points.

        Raises:
            DataSetError: The decimal sign is a comma, and a value has a point.
        """
        place = self.batch.schema.names.index(column)
        array = whole = self.batch.column(place)
        numbers = pa.array(self.numbers.get(column, np.zeros(len(whole), bool)))
        if column in self.numbers:
            array = pc.if_else(numbers, pa.scalar(None, whole.type), whole)
        array = with_points(array, self.decimal, f"{file}, column '{column}'", self.lines)
        if column in self.numbers:
            array = pc.if_else(numbers, whole, array)
        return replace(self, batch=self.batch.set_column(place, self.batch.schema.field(place), array))


class Table(Protocol):
    """Something with named columns that can be read from its start to its end, more than once."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def columns(self) -> list[str]:
        """Names of its columns."""
        ...

    @property
    def told(self) -> str | None:
        """How it is read, where that had to be found out."""
        ...

    def read(self, columns: Sequence[str], *, progress: bool) -> Iterator[Rows]:
        """Its rows, in order, some thousands at a time."""
        ...


@dataclass(frozen=True)
class TableFile:
    """One file.

    Attributes:
        path: The file. Gzip is recognised by its first bytes.
        kind: Its format; by its suffix when not given, one ``.gz`` aside.
        encoding: Of text, any that Python knows. A byte order mark is skipped.
        quoted: Whether fields of CSV and TSV may be in double quotes, with delimiters and line ends in them. By default
            they may, and a file where quotes seem to join rows is refused; given, it is not doubted.
        delimiter: One ASCII character, or its name (comma, tab, semicolon, pipe); found when not given.
        decimal: ``.`` or ``,``, of numbers that are text; found in CSV and TSV when not given, a point in others.
        skip_lines: Lines of CSV and TSV before the header; found when not given.
        nulls: Texts that mean a missing value, beside the empty one.
        names: Names of the columns of CSV and TSV without a header.

    Raises:
        DataSetError: The file is missing, or its kind or encoding unknown, or an option is not allowed.
    """

    path: Path
    kind: FileKind | None = None
    encoding: str = "utf-8"
    quoted: bool | None = None
    delimiter: str | None = None
    decimal: str | None = None
    skip_lines: int | None = None
    nulls: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise DataSetError(f"{self.path}: no such file")
        if self.kind is not None and self.kind not in KINDS:
            raise DataSetError(f"{self.path}: found kind {self.kind!r}; allowed: {', '.join(KINDS)}")
        _ = self.text
        try:
            _ = self.options
        except DataSetError as error:
            raise DataSetError(f"{self.path}: {error}") from error
        _ = self.format  # an unknown suffix is told at once

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def text(self) -> TextFile:
        """The file as text."""
        return TextFile(self.path, self.encoding)

    @property
    def options(self) -> TextOptions:
        """What is known about its dialect."""
        return TextOptions(self.delimiter, self.quoted, self.decimal, self.skip_lines, self.nulls)

    @cached_property
    def format(self) -> FileKind:
        """The kind given, or the suffix's.

        Raises:
            DataSetError: The suffix says nothing.
        """
        if self.kind is not None:
            return self.kind
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        if suffixes and suffixes[-1] in (".gz", ".gzip"):
            suffixes.pop()
        if not suffixes or suffixes[-1] not in _SUFFIXES:
            with self.text.opened():
                pass  # the first bytes tell a file of another kind
            raise DataSetError(
                f"{self.path}: its suffix names no format; allowed: {', '.join(_SUFFIXES)}, with or without .gz, "
                f"or the format given: {', '.join(KINDS)}"
            )
        return _SUFFIXES[suffixes[-1]]

    @property
    def columns(self) -> list[str]:
        """Names of its columns, each once; those of JSON are the keys of the first hundred objects.

        Raises:
            DataSetError: The file is empty or not of its kind.
        """
        return list(self._columns)

    @cached_property
    def _columns(self) -> tuple[str, ...]:
        if self.format == "parquet":
            with _parquet(self.path) as file:
                return tuple(dict.fromkeys(file.schema_arrow.names))
        if self.format == "trec":
            return tuple(_TREC_COLUMNS)
        if self.format == "jsonl":
            return self._json_columns()
        return tuple(self.delimited.columns)

    @cached_property
    def delimited(self) -> DelimitedFile:
        """The file as CSV or TSV."""
        return DelimitedFile(self.text, self.options, TAB if self.format == "tsv" else COMMA, self.names)

    @cached_property
    def _json(self) -> JsonFile:
        return JsonFile(self.text)

    @property
    def dialect(self) -> Dialect | None:
        """How a CSV or TSV file reads; None for others.

        Raises:
            DataSetError: It cannot be read.
        """
        return self.delimited.dialect if self.format in ("csv", "tsv") else None

    @property
    def told(self) -> str | None:
        """How the file is read, where that had to be found out; None for Parquet and TREC."""
        if self.format == "jsonl":
            return f"{self._json.layout}{', decimal comma in texts' if self.decimal == COMMA else ''}"
        return str(self.dialect) if self.dialect else None

    def read(self, columns: Sequence[str], *, progress: bool = True) -> Iterator[Rows]:
        """Its rows; all columns of text files are strings, those of Parquet files have their own types.

        A column of JSON that holds lists has lists of strings. NaN is missing in all of them.

        Args:
            columns: Which, in this order. A column of JSON may be a path: ``product.title``.
            progress: Whether long reading shows a bar on stderr.

        Raises:
            DataSetError: A column is missing, or a row cannot be read; the message names file and line, or row.
        """
        columns = list(dict.fromkeys(columns))
        if self.format not in ("jsonl", "csv", "tsv") and (lost := [one for one in columns if one not in self.columns]):
            raise DataSetError(f"{self.name}, column '{lost[0]}': missing; the file has {listed(self.columns)}")
        if self.format == "parquet":
            yield from self._read_parquet(columns, progress)
            return
        bar = progress_bar(
            total=self.path.stat().st_size,
            desc=f"{self.name}: reading",
            unit="B",
            unit_scale=True,
            show=progress,
            delay=1.0,
        )
        with bar:
            if self.format in ("csv", "tsv"):
                yield from self._read_delimited(columns, bar)
                return
            read: Callable[[IO[bytes], list[str]], Iterator[Rows]]
            read = self._read_json if self.format == "jsonl" else self._read_trec
            with self.text.opened(bar) as stream:
                yield from read(stream, columns)

    def _read_parquet(self, columns: list[str], progress: bool) -> Iterator[Rows]:
        with _parquet(self.path) as file:
            metadata = file.metadata
            size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
            rows = max(16, min(_PARQUET_ROWS, _PARQUET_BYTES * max(1, metadata.num_rows) // max(1, size)))
            rows = self._within(rows, columns)
            task, first = f"{self.name}: reading", 0
            with progress_bar(total=metadata.num_rows, desc=task, unit=" rows", show=progress, delay=1.0) as bar:
                try:
                    for batch in file.iter_batches(rows, columns=columns):
                        found = without(_without_nan(batch.select(columns)), self.nulls)
                        yield Rows(found, first, decimal=self.decimal or ".")
                        first += len(batch)
                        bar.update(len(batch))
                except (pa.ArrowException, OSError, MemoryError) as error:
                    raise DataSetError(f"{self.name}, from row {first}: {unreadable(error)}") from error

    def _within(self, rows: int, columns: list[str]) -> int:
        try:
            return rows_within(self.path, rows, columns)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise DataSetError(f"{self.name}: {unreadable(error)}") from error

    def _read_delimited(self, columns: list[str], bar: Any) -> Iterator[Rows]:
        first, decimal = 0, self.delimited.dialect.decimal
        for rows in self.delimited.read(columns, bar):
            yield Rows(rows.batch, first, rows.lines, decimal)
            first += len(rows.batch)

    def _json_columns(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        with self.text.opened() as stream:
            for _, value in islice(self._json.objects(stream), 100):
                found.update(dict.fromkeys(value))
        if not found:
            raise DataSetError(f"{self.name}: the file is empty; allowed: JSON objects")
        return tuple(found)

    def _read_json(self, stream: IO[bytes], columns: list[str]) -> Iterator[Rows]:
        objects = self._json.objects(stream)
        values = ((line, [self._json_value(value, name, line) for name in columns]) for line, value in objects)
        for rows in _in_batches(values, columns):
            yield replace(rows, batch=without(rows.batch, self.nulls), decimal=self.decimal or ".")

    def _json_value(self, found: dict[str, Any], name: str, line: int) -> str | list[str | None] | None:
        value: Any = found.get(name)
        if value is None and "." in name:
            value = found
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, int | float):
            return _Number(json.dumps(value)) if math.isfinite(value) else None
        if isinstance(value, list) and not any(isinstance(one, dict | list) for one in value):
            return [one if isinstance(one, str) or one is None else json.dumps(one) for one in value]
        raise DataSetError(
            f"{self.name}, line {line}, '{name}': found {shown(value)}; allowed: text, a number, null, or a list of "
            f"these; what is inside an object is named by its path, as {name}.KEY"
        )

    def _read_trec(self, stream: IO[bytes], columns: list[str]) -> Iterator[Rows]:
        places = [_TREC_COLUMNS.index(name) for name in columns]
        rows = ((line, [parts[place] for place in places]) for line, parts in self._trec_rows(stream))
        for batch in _in_batches(rows, columns):
            yield replace(batch, decimal=self.decimal or ".")

    def _trec_rows(self, stream: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
        for number, line in self.text.lines(stream):
            parts = line.split()
            if len(parts) != len(_TREC_COLUMNS):
                allowed = " ".join(_TREC_COLUMNS)
                raise DataSetError(f"{self.name}, line {number}: found {len(parts)} parts; allowed: {allowed}")
            yield number, parts


class _Number(str):
    """The text of a number of JSON."""


def _in_batches(rows: Iterator[tuple[int, Sequence[Any]]], columns: list[str]) -> Iterator[Rows]:
    first = 0
    while block := list(islice(rows, _ROWS)):
        lines, values = zip(*block, strict=True)
        by_column = list(zip(*values, strict=True))
        numbers = {
            name: np.array([isinstance(one, _Number) for one in column])
            for name, column in zip(columns, by_column, strict=True)
        }
        batch = pa.RecordBatch.from_arrays([_array(column) for column in by_column], names=columns)
        yield Rows(batch, first, np.array(lines, np.int64), numbers=numbers)
        first += len(block)


def _array(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.large_string())
    except pa.ArrowTypeError:  # some are lists
        pass
    return pa.array([[one] if isinstance(one, str) else one for one in values], pa.list_(pa.large_string()))


def _without_nan(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Null where a column of floats holds NaN, which is how pandas writes a missing value."""
    arrays = [
        pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array) if pa.types.is_floating(array.type) else array
        for array in batch.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError, MemoryError) as error:
        with path.open("rb") as raw:
            head = raw.read(1024)
        if not head.startswith(b"PAR1"):
            refuse_foreign(path.name, head)
        raise DataSetError(f"{path}: {unreadable(error)}") from error
    with file:
        yield file
