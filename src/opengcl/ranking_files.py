"""Ranking files in and out: judgments (qrels) and results (runs).

Formats, chosen by the file's suffix, each but Parquet plain or gzipped (``.gz``):

* ``.parquet``: columns ``query_id``, ``doc_id`` and ``score``; in qrels a column ``relevance`` goes before ``score``.
* ``.tsv``: the same columns, named by a header line; a quote is a character like others. BEIR's ``query-id`` and
  ``corpus-id`` are understood too. Without a header: TREC's columns, or three, which are query, document and relevance,
  in runs query, document and rank, as MS MARCO has them.
* ``.csv``: the same columns, in any dialect that `opengcl.delimited_text` finds.
* ``.jsonl``, ``.json``: rows with the same keys, or ``{"query": {"document": 1.0}}``.
* any other: TREC, without a header and separated by blanks. Qrels have the columns ``query_id 0 doc_id relevance``,
  runs ``query_id Q0 doc_id rank score tag``. As in trec_eval the rank column is ignored: the score ranks.

Relevance and scores may be any finite floats; a relevance below 0 counts as 0 (`opengcl.metrics.relevance`).
Files are read block by block; what stays in memory is 12 bytes a row and each distinct id once (some 50 bytes a row
while rows are grouped).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from opengcl.data.problems import DataSetError, listed, shown
from opengcl.data.tables import rows_within, unreadable
from opengcl.delimited_text import DelimitedFile, TextOptions, with_points
from opengcl.json_rows import JsonFile
from opengcl.text_files import LONGEST_LINE, TextFile, refuse_foreign

Kind = Literal["qrels", "run"]

_JSON_ROWS = 1 << 14
_PARQUET_ROWS = 1 << 18
_WRITE_ROWS = 1 << 16

_TREC_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "qrels": ("query_id", "iteration", "doc_id", "relevance"),
    "run": ("query_id", "Q0", "doc_id", "rank", "score", "tag"),
}
_VALUE_NAMES: dict[Kind, tuple[str, ...]] = {"qrels": ("relevance", "score", "rel", "grade"), "run": ("score",)}
_QUERY_NAMES = ("query_id", "query-id", "qid", "q_id")
_DOCUMENT_NAMES = ("doc_id", "corpus-id", "docid", "doc-id", "document_id", "pid", "docno")


class RankingFileError(ValueError):
    """A ranking file that cannot be used: says which file, line (from 1) or row (from 0), column, and why."""


@dataclass(frozen=True)
class ScoredPairs:
    """(query, document, value) rows grouped by query, within a query in the order they came.

    Attributes:
        source: where the rows came from, for messages.
        query_ids: the distinct query ids in the order of first appearance.
        doc_ids: the distinct document ids.
        document: for each row a position in ``doc_ids``.
        value: for each row the relevance or the score.
        offsets: the rows of query i are ``offsets[i]`` to ``offsets[i + 1]``.
    """

    source: str
    query_ids: pa.StringArray
    doc_ids: pa.StringArray
    document: Int[np.ndarray, "rows"]
    value: Float[np.ndarray, "rows"]
    offsets: Int[np.ndarray, "queries_plus_1"]

    def lengths(self) -> Int[np.ndarray, "queries"]:
        """How many rows each query has."""
        return np.diff(self.offsets)

    def query_of_row(self) -> Int[np.ndarray, "rows"]:
        """For each row the position of its query in ``query_ids``."""
        return np.repeat(np.arange(len(self.query_ids), dtype=np.int32), self.lengths())

    def with_values(self, value: Float[np.ndarray, "rows"]) -> "ScoredPairs":
        """The same pairs with other values."""
        if len(value) != len(self.value):
            raise ValueError(f"{len(value)} values for {len(self.value)} rows")
        return replace(self, value=np.asarray(value, dtype=np.float64))

    def select(self, queries: Int[np.ndarray, "selected"]) -> "ScoredPairs":
        """Only the queries at these positions of ``query_ids``, in the given order."""
        lengths = self.lengths()[queries]
        rows = ranges(self.offsets[:-1][queries], lengths)
        return replace(
            self,
            query_ids=self.query_ids.take(pa.array(queries)),
            document=self.document[rows],
            value=self.value[rows],
            offsets=_offsets(lengths),
        )

    def document_rank(self) -> Int[np.ndarray, "documents"]:
        """For each document id its place in ascending order of the ids' UTF-8 bytes."""
        rank = np.empty(len(self.doc_ids), dtype=np.int64)
        rank[pc.sort_indices(self.doc_ids).to_numpy()] = np.arange(len(rank))
        return rank


def read_qrels(path: str | Path) -> ScoredPairs:
    """Reads judgments.

    Args:
        path: a .parquet, .tsv or TREC file (see the module).

    Returns:
        The judged pairs.

    Raises:
        RankingFileError: for a missing column, a malformed line, a relevance that is not finite, a pair that is judged
            twice, or no rows at all.
    """
    pairs = _read(Path(path), "qrels")
    if not len(pairs.value):
        raise RankingFileError(f"{path}: no judgments in the file")
    return pairs


def read_run(path: str | Path) -> ScoredPairs:
    """Reads results. A run without rows is allowed: every query of it scores 0.

    Args:
        path: a .parquet, .tsv or TREC file (see the module).

    Returns:
        The retrieved pairs, within a query in the order of the file.

    Raises:
        RankingFileError: for a missing column, a malformed line, a non-finite score or a pair that is there twice.
    """
    return _read(Path(path), "run")


def pairs_from_rows(
    query_ids: Sequence[str], doc_ids: Sequence[str], values: Sequence[float], *, source: str = "rows"
) -> ScoredPairs:
    """Scored pairs from three columns in memory.

    Args:
        query_ids: the query of each row.
        doc_ids: the document of each row.
        values: the relevance or score of each row.
        source: a name for messages.

    Returns:
        The rows grouped by query.

    Raises:
        RankingFileError: for a pair that is there twice or columns of different lengths.
    """
    if not len(query_ids) == len(doc_ids) == len(values):
        raise RankingFileError(
            f"{source}: {len(query_ids)} query ids, {len(doc_ids)} document ids and {len(values)} values; "
            "the three must be equally many"
        )
    batch = (pa.array(query_ids, pa.string()), pa.array(doc_ids, pa.string()), np.asarray(values, dtype=np.float64))
    return _collect([batch], source, lambda row: f"row {row}")


def write_qrels(path: str | Path, qrels: ScoredPairs) -> None:
    """Writes judgments in the format of the suffix.

    Args:
        path: the file to write.
        qrels: the judgments.

    Raises:
        RankingFileError: for an id that the format cannot hold.
    """
    _write(Path(path), qrels, "qrels", "")


def write_run(path: str | Path, run: ScoredPairs, *, tag: str = "opengcl") -> None:
    """Writes results in the format of the suffix, best first (ties by ascending document id).

    Args:
        path: the file to write.
        run: the results.
        tag: the last column of a TREC run.

    Raises:
        RankingFileError: for an id that the format cannot hold.
    """
    order = ranking_order(run.query_of_row(), run.value, run.document_rank()[run.document])
    _write(Path(path), replace(run, document=run.document[order], value=run.value[order]), "run", tag)


def ranking_order(
    query: Int[np.ndarray, "rows"], score: Float[np.ndarray, "rows"], tie_key: Int[np.ndarray, "rows"]
) -> Int[np.ndarray, "rows"]:
    """Positions of the rows by query, then descending score, then ascending tie key.

    Args:
        query: the query of each row.
        score: its score.
        tie_key: its place among rows of the same query and score.

    Returns:
        A permutation of the rows.
    """
    # Runs mostly come sorted, and seeing that costs a tenth of sorting.
    same = query[1:] == query[:-1]
    falls = (score[1:] < score[:-1]) | ((score[1:] == score[:-1]) & (tie_key[1:] > tie_key[:-1]))
    if ((query[1:] > query[:-1]) | (same & falls)).all():
        return np.arange(len(query))
    return np.lexsort((tie_key, -score, query))


def ranges(starts: Int[np.ndarray, "ranges"], lengths: Int[np.ndarray, "ranges"]) -> Int[np.ndarray, "total"]:
    """The whole numbers start, start + 1, ... of each range, one range after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


_Batch = tuple[pa.StringArray, pa.StringArray, np.ndarray]


@dataclass(frozen=True)
class _TextLayout:
    """How a text file's lines read: column names in order, the three that matter, the separator (None: blanks)."""

    text: TextFile
    columns: tuple[str, ...]
    query: str
    document: str
    value: str
    separator: bytes | None
    header: bool = False

    @property
    def path(self) -> Path:
        """The file, for messages."""
        return self.text.path


def _read(path: Path, kind: Kind) -> ScoredPairs:
    if not path.is_file():
        raise RankingFileError(f"{path}: no such file")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        if suffix == ".parquet":
            return _collect(_parquet_batches(path, kind), str(path), lambda row: f"row {row}")
        if suffix in (".json", ".jsonl", ".ndjson"):
            return _read_json(path, kind)
        if suffix == ".csv":
            return _read_csv(path, kind)
        return _read_text(path, kind, named=suffix in (".tsv", ".tab"))
    except DataSetError as error:
        folder = "" if str(error).startswith(str(path)) else f"{path.parent}/"
        raise RankingFileError(f"{folder}{error}") from error


def _read_text(path: Path, kind: Kind, *, named: bool) -> ScoredPairs:
    text = TextFile(path)
    layout = _text_layout(text, kind, named=named)

    def line_of(row: int) -> str:
        with text.opened() as stream:
            numbers = (number for number, _ in text.lines(stream))
            return f"line {next(islice(numbers, row + layout.header, None))}"

    pairs = _collect(_text_batches(layout), str(path), line_of)
    return _by_rank(pairs) if layout.value == "rank" else pairs


def _by_rank(pairs: ScoredPairs) -> ScoredPairs:
    """Ranks as scores.

    Raises:
        RankingFileError: The values of a query are not different whole numbers with 1 as the smallest.
    """
    query = pairs.query_of_row()
    order = np.lexsort((pairs.value, query))
    ordered, starts = pairs.value[order], pairs.offsets[:-1]
    repeated = (np.diff(ordered) == 0) & (np.diff(query[order]) == 0)
    if (pairs.value % 1).any() or (ordered[starts] != 1).any() or repeated.any():
        raise RankingFileError(
            f"{pairs.source}: found three columns without a header, and the third holds no ranks from 1; allowed: "
            "query, document and rank, or a header with query_id, doc_id and score"
        )
    return pairs.with_values(-pairs.value)


def _read_csv(path: Path, kind: Kind) -> ScoredPairs:
    file = DelimitedFile(TextFile(path), TextOptions())
    names = [_column(path, file.columns, wanted) for wanted in (_QUERY_NAMES, _DOCUMENT_NAMES, _VALUE_NAMES[kind])]

    def batches() -> Iterator[_Batch]:
        for rows in file.read(names):
            query, document, value = rows.batch.columns
            value = with_points(value, file.dialect.decimal, f"{path}, column {names[2]!r}", rows.lines)
            yield _typed(path, names, (query, document, value), rows.lines)

    def line_of(row: int) -> str:
        lines = (line for rows in file.read(names) for line in rows.lines)
        return f"line {next(islice(lines, row, None))}"

    return _collect(batches(), str(path), line_of)


def _read_json(path: Path, kind: Kind) -> ScoredPairs:
    file = JsonFile(TextFile(path))
    rows = _json_cells if file.is_nested else _json_rows

    def batches() -> Iterator[_Batch]:
        found = rows(file, kind)
        while block := list(islice(found, _JSON_ROWS)):
            lines, *columns = zip(*block, strict=True)
            yield _typed(path, ["query_id", "doc_id", _VALUE_NAMES[kind][0]], [*map(pa.array, columns)], lines)

    return _collect(batches(), str(path), lambda row: f"line {next(islice(rows(file, kind), row, None))[0]}")


_JsonRow = tuple[int, str | None, str | None, str | None]


def _json_cells(file: JsonFile, _kind: Kind) -> Iterator[_JsonRow]:
    with file.text.opened() as stream:
        for line, query, document, value in file.cells(stream):
            yield line, query, document, _plain(file, line, value)


def _json_rows(file: JsonFile, kind: Kind) -> Iterator[_JsonRow]:
    with file.text.opened() as stream:
        for line, row in file.objects(stream):
            names = (
                next((name for name in wanted if name in row), None)
                for wanted in (_QUERY_NAMES, _DOCUMENT_NAMES, _VALUE_NAMES[kind])
            )
            query, document, value = (_plain(file, line, row[name]) if name else None for name in names)
            yield line, query, document, value


def _plain(file: JsonFile, line: int, value: Any) -> str | None:
    """A text or number as text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RankingFileError(f"{file.text.path}: line {line}: {shown(value)} is neither a text nor a number")
    return repr(value)


def _typed(path: Path, names: Sequence[str], columns: Sequence[pa.Array], lines: Any) -> _Batch:
    """Texts as ids and numbers; `lines` has the line of each row."""
    query, document, value = (column.cast(pa.string()) for column in columns)
    trimmed = pc.utf8_trim_whitespace(value)
    try:
        values = trimmed.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        values = np.array([_number(one) for one in trimmed.to_pylist()])
    for name, column in zip(names, (query, document, trimmed), strict=True):
        there = np.asarray(pc.fill_null(pc.greater(pc.binary_length(column), 0), False))
        if not there.all():
            raise RankingFileError(f"{path}: line {lines[int(there.argmin())]}, column {name!r}: empty")
    if not (fine := np.isfinite(values)).all():
        row = int(fine.argmin())
        text = value[row].as_py()
        wrong = "is not a number" if np.isnan(values[row]) and text.strip().lower() != "nan" else "is not finite"
        raise RankingFileError(f"{path}: line {lines[row]}, column {names[2]!r}: {shown(text)} {wrong}")
    return query, document, values


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return np.nan


def _column(path: Path, found: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in found:
            return name
    raise RankingFileError(f"{path}: no column {' or '.join(map(repr, wanted[:2]))}; found: {listed(found)}")


def _parquet_batches(path: Path, kind: Kind) -> Iterator[_Batch]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        with path.open("rb") as raw:
            head = raw.read(1024)
        if not head.startswith(b"PAR1"):
            refuse_foreign(str(path), head)
        raise RankingFileError(f"{path}: not a Parquet file ({error})") from error
    with file:
        found = file.schema_arrow.names
        names = [_column(path, found, wanted) for wanted in (_QUERY_NAMES, _DOCUMENT_NAMES, _VALUE_NAMES[kind])]
        for name in names:
            _check_type(path, name, file.schema_arrow.field(name).type, number=name == names[2])
        first = 0
        try:
            for batch in file.iter_batches(rows_within(path, _PARQUET_ROWS, names), columns=names):
                yield _parquet_rows(path, names, batch, first)
                first += len(batch)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise RankingFileError(f"{path}, from row {first}: {unreadable(error)}") from error


def _parquet_rows(path: Path, names: list[str], batch: pa.RecordBatch, first: int) -> _Batch:
    query, document, value = columns = [batch.column(name) for name in names]
    for name, column in zip(names, columns, strict=True):
        if column.null_count:
            row = first + pc.index(column.is_null(), True).as_py()
            raise RankingFileError(f"{path}: row {row}, column {name!r}: empty")
    values = value.cast(pa.float64()).to_numpy(zero_copy_only=False)
    if not (fine := np.isfinite(values)).all():
        row = int(fine.argmin())
        raise RankingFileError(f"{path}: row {first + row}, column {names[2]!r}: {values[row]} is not finite")
    return query.cast(pa.string()), document.cast(pa.string()), values


def _check_type(path: Path, name: str, found: pa.DataType, *, number: bool) -> None:
    plain = found.value_type if pa.types.is_dictionary(found) else found
    integer = pa.types.is_integer(plain)
    text = pa.types.is_string(plain) or pa.types.is_large_string(plain)
    if not (integer or (pa.types.is_floating(plain) if number else text)):
        allowed = "numbers" if number else "strings or whole numbers"
        raise RankingFileError(f"{path}: column {name!r} is {found}; it must hold {allowed}")


def _text_layout(text: TextFile, kind: Kind, *, named: bool) -> _TextLayout:
    """The layout of TREC, or of TSV, which may have a header."""
    names = _TREC_COLUMNS[kind]
    trec = _TextLayout(text, names, "query_id", "doc_id", _VALUE_NAMES[kind][0], None)
    line = _first_line(text)
    columns = tuple(line.rstrip("\r\n").split("\t"))
    if not line or not named:
        return trec if len(columns) != 3 else _three_columns(text, kind, columns) or trec
    if any(name in columns for name in (*_QUERY_NAMES, *_DOCUMENT_NAMES)):
        wanted = (_QUERY_NAMES, _DOCUMENT_NAMES, _VALUE_NAMES[kind])
        query, document, value = (_column(text.path, columns, one) for one in wanted)
        for name in (query, document, value):
            if columns.count(name) > 1:
                raise RankingFileError(f"{text.path}: column {name!r} is in the header twice")
        return _TextLayout(text, columns, query, document, value, b"\t", header=True)
    if len(line.split()) == len(names):
        return trec if "\t" not in line else replace(trec, separator=b"\t")
    if three := _three_columns(text, kind, columns):
        return three
    raise RankingFileError(
        f"{text.path}: no header with query_id, doc_id and {_VALUE_NAMES[kind][0]}, nor the {len(names)} columns of "
        f"TREC ({' '.join(names)}); found: {', '.join(shown(one) for one in columns[:10])}"
    )


def _first_line(text: TextFile) -> str:
    """The first line that is not blank."""
    found = b""
    with text.opened() as stream:
        for block in text.blocks(stream):
            found = (found + block).lstrip(b" \r\n")
            if b"\n" in found or len(found) > LONGEST_LINE:
                break
    return found.partition(b"\n")[0].decode("utf-8", "replace")


def _three_columns(text: TextFile, kind: Kind, columns: tuple[str, ...]) -> _TextLayout | None:
    """Query, document and relevance or rank, separated by tabs, where the third is a number."""
    if len(columns) != 3 or not np.isfinite(_number(columns[2])):
        return None
    value = "relevance" if kind == "qrels" else "rank"
    return _TextLayout(text, ("query_id", "doc_id", value), "query_id", "doc_id", value, b"\t")


def _text_batches(layout: _TextLayout) -> Iterator[_Batch]:
    """Parses whole lines, some megabytes at a time."""
    line, skip, rest = 1, layout.header, b""
    with layout.text.opened() as stream:
        for piece in chain(layout.text.blocks(stream), (None,)):
            data = rest + (piece or b"")
            cut = len(data) if piece is None else data.rfind(b"\n") + 1
            block, rest = data[:cut], data[cut:]
            if len(rest) > LONGEST_LINE:
                raise RankingFileError(f"{layout.path}: line {line}: over {LONGEST_LINE:,} bytes, the limit of a line")
            while skip and block:
                head, _, block = block.partition(b"\n")
                skip, line = not head.strip(), line + 1
            if block.strip():
                yield _parse_fast(layout, block) or _parse_slowly(layout, block, line)
            line += block.count(b"\n")


def _parse_fast(layout: _TextLayout, block: bytes) -> _Batch | None:
    """The block's rows, or None when a line by line look is needed (perhaps only to say what is wrong)."""
    types = {layout.query: pa.string(), layout.document: pa.string(), layout.value: pa.float64()}
    try:
        table = csv.read_csv(
            pa.BufferReader(block if layout.separator else _single_blanks(block)),
            csv.ReadOptions(column_names=list(layout.columns), use_threads=False),
            csv.ParseOptions(delimiter="\t" if layout.separator else " ", quote_char=False),
            csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[], strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    query, document, value = (table[name].combine_chunks() for name in types)
    empty_id = any(pc.min(pc.binary_length(column)).as_py() == 0 for column in (query, document))
    values = value.to_numpy(zero_copy_only=False)
    return (query, document, values) if not empty_id and np.isfinite(values).all() else None


_BLANKS = re.compile(rb"[ \t\r\f\v]+")
_LINE_END = re.compile(rb" ?\n ?")


def _single_blanks(block: bytes) -> bytes:
    """The block with one blank between columns and none at the ends of lines."""
    if any(odd in block for odd in (b"\t", b"  ", b" \n", b"\n ", b"\r", b"\f", b"\v")) or block[:1] == b" ":
        block = _LINE_END.sub(b"\n", _BLANKS.sub(b" ", block))
    return block.strip(b" ")


def _parse_slowly(layout: _TextLayout, block: bytes, first_line: int) -> _Batch:
    """The block's rows line by line; the place where a file's mistake gets its line number."""
    places = [layout.columns.index(name) for name in (layout.query, layout.document, layout.value)]
    rows: list[tuple[str, str, float]] = []
    for number, raw in enumerate(block.split(b"\n"), start=first_line):
        if not raw.strip():
            continue
        where = f"{layout.path}: line {number}"
        try:
            parts = [part.decode("utf-8") for part in raw.rstrip(b"\r").split(layout.separator)]
        except UnicodeDecodeError as error:
            raise RankingFileError(f"{where}: not UTF-8 ({error.reason})") from error
        if len(parts) != len(layout.columns):
            wanted = f"{len(layout.columns)} ({' '.join(layout.columns)})"
            text = raw[:80].decode(errors="replace")
            raise RankingFileError(f"{where}: {len(parts)} columns, expected {wanted}: {text!r}")
        rows.append(_parse_row(layout, where, *(parts[place] for place in places)))
    queries, documents, values = zip(*rows, strict=True)
    return pa.array(queries, pa.string()), pa.array(documents, pa.string()), np.array(values)


def _parse_row(layout: _TextLayout, where: str, query: str, document: str, value: str) -> tuple[str, str, float]:
    for name, text in ((layout.query, query), (layout.document, document)):
        if not text:
            raise RankingFileError(f"{where}, column {name!r}: empty")
    try:
        number = float(value)
    except ValueError:
        raise RankingFileError(f"{where}, column {layout.value!r}: {value!r} is not a number") from None
    if not np.isfinite(number):
        raise RankingFileError(f"{where}, column {layout.value!r}: {number} is not finite")
    return query, document, number


def _collect(batches: Iterable[_Batch], source: str, place: Callable[[int], str]) -> ScoredPairs:
    """Rows from batches, ids replaced by codes, grouped by query; `place` names a row by its number from 0."""
    queries, documents, values = [], [], [np.empty(0)]
    for query, document, value in batches:
        queries.append(query.dictionary_encode())
        documents.append(document.dictionary_encode())
        values.append(value)
    query_ids, query_codes = _unified(queries)
    doc_ids, doc_codes = _unified(documents)
    value = np.concatenate(values)
    _check_unique(query_ids, query_codes, doc_ids, doc_codes, value, source, place)
    if (np.diff(query_codes) < 0).any():
        order = np.argsort(query_codes, kind="stable")
        doc_codes, value = doc_codes[order], value[order]
    offsets = _offsets(np.bincount(query_codes, minlength=len(query_ids)))
    return ScoredPairs(source, query_ids, doc_ids, doc_codes, value, offsets)


def _unified(chunks: list[Any]) -> tuple[pa.StringArray, np.ndarray]:
    """One dictionary over all chunks, and the codes."""
    if not chunks:
        return pa.array([], pa.string()), np.empty(0, dtype=np.int32)
    unified = pa.chunked_array(chunks).unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in unified.chunks])
    return unified.chunk(unified.num_chunks - 1).dictionary, codes


def _check_unique(
    query_ids: Any,
    query: np.ndarray,
    doc_ids: Any,
    document: np.ndarray,
    value: np.ndarray,
    source: str,
    place: Callable[[int], str],
) -> None:
    key = query.astype(np.int64) * max(1, len(doc_ids)) + document
    ordered = np.sort(key)
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        first, second = np.flatnonzero(key == ordered[twice[0]])[:2]
        raise RankingFileError(
            f"{source}: query {query_ids[query[first]].as_py()!r} has document "
            f"{doc_ids[document[first]].as_py()!r} twice: {place(int(first))} and {place(int(second))}, with "
            f"{value[first]} and {value[second]}; allowed: each pair once"
        )


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _write(path: Path, pairs: ScoredPairs, kind: Kind, tag: str) -> None:
    value_name = _VALUE_NAMES[kind][0]
    if path.suffix == ".parquet":
        columns = {
            "query_id": pairs.query_ids.take(pa.array(pairs.query_of_row())),
            "doc_id": pairs.doc_ids.take(pa.array(pairs.document)),
            value_name: pa.array(pairs.value),
        }
        pq.write_table(pa.table(columns), path)
        return
    tsv = path.suffix == ".tsv"
    _check_ids(path, pairs, "\t\r\n" if tsv else " \t\r\n\f\v")
    line = _tsv_line if tsv else _trec_qrels_line if kind == "qrels" else _trec_run_line
    with path.open("w", encoding="utf-8", newline="\n") as file:
        if tsv:
            file.write(f"query_id\tdoc_id\t{value_name}\n")
        for rows in _named_rows(pairs):
            file.writelines(line(*row, tag) for row in rows)


def _tsv_line(query: str, document: str, _rank: int, value: float, _tag: str) -> str:
    return f"{query}\t{document}\t{value!r}\n"


def _trec_qrels_line(query: str, document: str, _rank: int, value: float, _tag: str) -> str:
    return f"{query} 0 {document} {value!r}\n"


def _trec_run_line(query: str, document: str, rank: int, value: float, tag: str) -> str:
    return f"{query} Q0 {document} {rank} {value!r} {tag}\n"


def _named_rows(pairs: ScoredPairs) -> Iterator[Iterable[tuple[str, str, int, float]]]:
    """Rows as (query id, document id, rank from 1, value), some at a time."""
    codes = pairs.query_of_row()
    for start in range(0, len(codes), _WRITE_ROWS):
        rows = slice(start, min(start + _WRITE_ROWS, len(codes)))
        query = pairs.query_ids.take(pa.array(codes[rows])).to_pylist()
        document = pairs.doc_ids.take(pa.array(pairs.document[rows])).to_pylist()
        rank = np.arange(rows.start, rows.stop) - pairs.offsets[codes[rows]] + 1
        yield zip(query, document, rank.tolist(), pairs.value[rows].tolist(), strict=True)


def _check_ids(path: Path, pairs: ScoredPairs, forbidden: str) -> None:
    for ids in (pairs.query_ids, pairs.doc_ids):
        bad = pc.match_substring_regex(ids, f"[{forbidden}]|^$")
        if pc.any(bad).as_py():
            name = ids[pc.index(bad, True).as_py()].as_py()
            raise RankingFileError(
                f"{path}: the id {name!r} is empty or holds a blank that separates columns; write .parquet instead"
            )
