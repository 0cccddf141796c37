"""Tables from files, a batch at a time: CSV, TSV, JSON lines, Parquet and TREC qrels, plain or compressed."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast, get_args

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from opengcl.data.problems import DataSetError, shown
from opengcl.progress import progress_bar

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
_GZIP = b"\x1f\x8b"
_BLOCK_BYTES = 8 << 20
_ROWS = 8192
_PARQUET_ROWS = 1 << 16
_PARQUET_BYTES = 64 << 20
_LONGEST_LINE = 64 << 20


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a table.

    Attributes:
        batch: The columns that were asked for.
        first: Number of the first row, from 0, header not counted.
    """

    batch: pa.RecordBatch
    first: int


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
        quoted: Whether fields of CSV and TSV may be in double quotes, with delimiters and newlines in them.
        delimiter: One character, instead of the comma or the tab.

    Raises:
        DataSetError: The file is missing, or its kind or encoding unknown.
    """

    path: Path
    kind: FileKind | None = None
    encoding: str = "utf-8"
    quoted: bool = True
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise DataSetError(f"{self.path}: no such file")
        if self.kind is not None and self.kind not in KINDS:
            raise DataSetError(f"{self.path}: found kind {self.kind!r}; allowed: {', '.join(KINDS)}")
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise DataSetError(f"{self.path}: unknown encoding {self.encoding!r}; allowed: Python's names") from error
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise DataSetError(f"{self.path}: found delimiter {self.delimiter!r}; allowed: one character")
        _ = self.format  # an unknown suffix is told at once

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
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
            raise DataSetError(
                f"{self.path}: its suffix names no format; allowed: {', '.join(_SUFFIXES)}, with or without .gz, "
                f"or the format given: {', '.join(KINDS)}"
            )
        return _SUFFIXES[suffixes[-1]]

    @property
    def columns(self) -> list[str]:
        """Names of its columns; those of JSON lines are the keys of the first hundred objects.

        Raises:
            DataSetError: The file is empty or not of its kind.
        """
        if self.format == "parquet":
            with _parquet(self.path) as file:
                return list(file.schema_arrow.names)
        if self.format == "trec":
            return list(_TREC_COLUMNS)
        if self.format == "jsonl":
            return self._json_columns()
        with _opened(self.path, None) as stream, self._csv(stream, None) as reader:
            return _distinct(self.name, list(reader.schema.names))

    def read(self, columns: Sequence[str], *, progress: bool = True) -> Iterator[Rows]:
        """Its rows; all columns of text files are strings, those of Parquet files have their own types.

        Args:
            columns: Which, in this order. A column of JSON lines may be a path: ``product.title``.
            progress: Whether long reading shows a bar on stderr.

        Raises:
            DataSetError: A column is missing, or a row cannot be read; the message names file and row.
        """
        columns = list(dict.fromkeys(columns))
        if self.format != "jsonl" and (lost := [one for one in columns if one not in self.columns]):
            raise DataSetError(f"{self.name}, column '{lost[0]}': missing; the file has {', '.join(self.columns)}")
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
        readers: dict[str, Callable[[IO[bytes], list[str]], Iterator[Rows]]] = {
            "jsonl": self._read_json,
            "trec": self._read_trec,
        }
        with bar, _opened(self.path, bar) as stream:
            yield from readers.get(self.format, self._read_csv)(stream, columns)

    def _read_parquet(self, columns: list[str], progress: bool) -> Iterator[Rows]:
        with _parquet(self.path) as file:
            metadata = file.metadata
            size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
            rows = max(16, min(_PARQUET_ROWS, _PARQUET_BYTES * max(1, metadata.num_rows) // max(1, size)))
            task, first = f"{self.name}: reading", 0
            with progress_bar(total=metadata.num_rows, desc=task, unit=" rows", show=progress, delay=1.0) as bar:
                try:
                    for batch in file.iter_batches(rows, columns=columns):
                        yield Rows(batch.select(columns), first)
                        first += len(batch)
                        bar.update(len(batch))
                except (pa.ArrowException, OSError) as error:
                    raise DataSetError(f"{self.name}, from row {first}: not readable as Parquet: {error}") from error

    @contextmanager
    def _csv(self, stream: IO[bytes], columns: list[str] | None) -> Iterator[csv.CSVStreamingReader]:
        wrong: list[csv.InvalidRow] = []

        def note(row: csv.InvalidRow) -> str:
            wrong.append(row)
            return "error"

        names = columns if columns is not None else None
        try:
            with csv.open_csv(
                stream,
                csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, encoding=_decoder(self.encoding)),
                csv.ParseOptions(
                    delimiter=self.delimiter or ("\t" if self.format == "tsv" else ","),
                    quote_char='"' if self.quoted else False,
                    newlines_in_values=self.quoted,
                    invalid_row_handler=note,
                ),
                csv.ConvertOptions(
                    include_columns=names,
                    column_types=dict.fromkeys(names or [], pa.string()),
                    strings_can_be_null=False,
                ),
            ) as reader:
                yield reader
        except (pa.ArrowException, UnicodeError) as error:
            raise DataSetError(self._csv_error(error, wrong)) from error

    def _csv_error(self, error: Exception, wrong: list[csv.InvalidRow]) -> str:
        if wrong:
            row = wrong[0]
            line = f"line {row.number}" if row.number is not None else "a row"
            return (
                f"{self.name}, {line}: found {row.actual_columns} columns; allowed: {row.expected_columns}, as in the "
                f"header: {shown(row.text)}"
            )
        if isinstance(error, UnicodeError) or "UTF8" in str(error) or "encoding" in str(error).lower():
            return f"{self.name}: not {self.encoding} text ({error}); name its encoding, such as latin-1 or cp1252"
        if "Empty" in str(error):
            return f"{self.name}: the file is empty; allowed: a header and rows"
        return f"{self.name}: not readable as {self.format.upper()}: {error}"

    def _read_csv(self, stream: IO[bytes], columns: list[str]) -> Iterator[Rows]:
        first = 0
        with self._csv(stream, columns) as reader:
            for batch in reader:
                yield Rows(batch.select(columns), first)
                first += len(batch)

    def _json_columns(self) -> list[str]:
        with _opened(self.path, None) as stream:
            found: dict[str, None] = {}
            for number, (_, value) in enumerate(self._objects(stream)):
                found.update(dict.fromkeys(value))
                if number == 100:
                    break
        if not found:
            raise DataSetError(f"{self.name}: the file is empty; allowed: one JSON object a line")
        return list(found)

    def _read_json(self, stream: IO[bytes], columns: list[str]) -> Iterator[Rows]:
        values = ([self._json_text(value, name, line) for name in columns] for line, value in self._objects(stream))
        yield from _in_batches(values, columns)

    def _objects(self, stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line from 1, object) of every line that is not blank."""
        for number, line in self._lines(stream):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataSetError(f"{self.name}, line {number}: not JSON ({error}): {shown(line)}") from error
            if not isinstance(value, dict):
                raise DataSetError(f"{self.name}, line {number}: found {shown(value)}; allowed: one object a line")
            yield number, value

    def _json_text(self, found: dict[str, Any], name: str, line: int) -> str | None:
        value: Any = found.get(name)
        if value is None and "." in name:
            value = found
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, int | float):
            return json.dumps(value)
        raise DataSetError(f"{self.name}, line {line}, '{name}': found {shown(value)}; allowed: text, a number or null")

    def _read_trec(self, stream: IO[bytes], columns: list[str]) -> Iterator[Rows]:
        places = [_TREC_COLUMNS.index(name) for name in columns]
        yield from _in_batches(([parts[place] for place in places] for parts in self._trec_rows(stream)), columns)

    def _trec_rows(self, stream: IO[bytes]) -> Iterator[list[str]]:
        for number, line in self._lines(stream):
            parts = line.split()
            if len(parts) != len(_TREC_COLUMNS):
                allowed = " ".join(_TREC_COLUMNS)
                raise DataSetError(f"{self.name}, line {number}: found {len(parts)} parts; allowed: {allowed}")
            yield parts

    def _lines(self, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
        """(number from 1, text) of the lines that are not blank."""
        text = codecs.getreader(_decoder(self.encoding))(stream) if not _is_ascii_like(self.encoding) else None
        number = 0
        while True:
            number += 1
            try:
                if text is not None:
                    line = text.readline()
                else:
                    line = _decoded(stream.readline(_LONGEST_LINE + 1), self.encoding, number)
            except UnicodeError as error:
                raise DataSetError(
                    f"{self.name}, line {number}: not {self.encoding} text ({error}); name its encoding, as latin-1"
                ) from error
            if not line:
                return
            if len(line) > _LONGEST_LINE:
                raise DataSetError(f"{self.name}, line {number}: over {_LONGEST_LINE:,} characters, the limit")
            if line.strip():
                yield number, line


def _is_ascii_like(encoding: str) -> bool:
    """Whether a line ends at the byte of a newline, as in all but UTF-16 and UTF-32."""
    return "\n".encode(encoding) == b"\n"


def _decoded(line: bytes, encoding: str, number: int) -> str:
    text = line.decode(encoding)
    return text.removeprefix("\ufeff") if number == 1 else text


def _decoder(encoding: str) -> str:
    """UTF-8 with or without a byte order mark."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _in_batches(rows: Iterator[Sequence[str | None]], columns: list[str]) -> Iterator[Rows]:
    first = 0
    while block := list(islice(rows, _ROWS)):
        arrays = [pa.array(column, pa.large_string()) for column in zip(*block, strict=True)]
        yield Rows(pa.RecordBatch.from_arrays(arrays, names=columns), first)
        first += len(block)


def _distinct(name: str, columns: list[str]) -> list[str]:
    if twice := next((one for one in columns if columns.count(one) > 1), None):
        raise DataSetError(f"{name}, column '{twice}': found more than once in the header; allowed: once")
    return columns


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DataSetError(f"{path}: not readable as Parquet: {error}") from error
    with file:
        yield file


@contextmanager
def _opened(path: Path, bar: Any) -> Iterator[IO[bytes]]:
    """A file's bytes, gunzipped where its first bytes say so; the bar counts what is read from disk."""
    with path.open("rb") as raw:
        counted = cast(IO[bytes], _Counted(raw, bar)) if bar is not None else raw
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        try:
            if packed:
                with gzip.open(counted) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                yield counted
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataSetError(f"{path.name}: its gzip stream is broken: {error}") from error


class _Counted:
    """Moves a bar by the bytes that are read."""

    def __init__(self, raw: IO[bytes], bar: Any) -> None:
        self._raw, self._bar = raw, bar

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self._bar.update(len(data))
        return data

    def readline(self, size: int = -1) -> bytes:
        data = self._raw.readline(size)
        self._bar.update(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)
