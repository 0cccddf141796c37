"""Delimited text (CSV, TSV and their relatives): the dialect found, quotes checked, rows read with their lines.

A quote that opens a field must close it: after the closing quote comes a delimiter or the end of the line, as RFC 4180
has it. Quotes inside a field that does not begin with one are part of the text. Readers that are laxer than this join
rows where a title holds an inch mark, without a word.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from opengcl.data.problems import DataSetError, listed, shown
from opengcl.text_files import LONGEST_LINE, TextFile

COMMA, TAB, SEMICOLON, PIPE = DELIMITERS = (",", "\t", ";", "|")
"""What is looked for where no delimiter is given."""

_NAMES = {COMMA: "comma", TAB: "tab", SEMICOLON: "semicolon", PIPE: "pipe"}
_QUOTE, _NEWLINE, _RETURN = (ord(one) for one in '"\n\r')
_SAMPLE_BYTES = 1 << 18
_SAMPLE_LINES = 2000
_SEPARATOR_LINE = re.compile(rb'"?sep=(.|\\t)"?\s*', re.IGNORECASE)

_NUMBER = r"^\s*[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?\s*$"
_POINT = r"\.\d"
DECIMAL_COMMA = r"^\s*[+-]?(\d*,(\d{1,2}|\d{4,})|0*,\d+|\d{4,},\d+)([eE][+-]?\d+)?\s*$"
"""A comma with other than three digits after it, or nothing but zeros before it: no thousands are written so."""
_ANY_COMMA = r"^\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*$"


@dataclass(frozen=True)
class TextOptions:
    """What a user may say about delimited text; the rest is found.

    Attributes:
        delimiter: One ASCII character, or its name: comma, tab, semicolon, pipe.
        quotes: Whether fields may be in double quotes, with delimiters and line ends in them. Given, it is not doubted.
        decimal: ``.`` or ``,``.
        skip_lines: Lines before the header.
        nulls: Texts that mean a missing value, beside the empty one.

    Raises:
        DataSetError: A value is not allowed.
    """

    delimiter: str | None = None
    quotes: bool | None = None
    decimal: str | None = None
    skip_lines: int | None = None
    nulls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", _character(self.delimiter))
        if self.decimal not in (None, ".", ","):
            raise DataSetError(f"decimal: found {shown(self.decimal)}; allowed: '.' or ','")
        if self.decimal == "," == self.delimiter:
            raise DataSetError("decimal: found a comma, and commas as delimiters; allowed: two different characters")
        if self.skip_lines is not None and self.skip_lines < 0:
            raise DataSetError(f"skip_lines: found {self.skip_lines}; allowed: 0 or more")


@dataclass(frozen=True)
class Dialect:
    """How a file of delimited text reads.

    Attributes:
        delimiter: Between fields.
        quotes: Whether fields may be in double quotes.
        decimal: ``.`` or ``,``.
        skip_lines: Lines before the header, blank ones after them aside.
        header: Names of all columns, blanks around them removed; a name may come more than once.
        header_line: Line of the header, from 1; 0 where the names were given and the file has none.
        encoding: Of the text.
        has_quotes: Whether the beginning of the file has fields in quotes.
    """

    delimiter: str
    quotes: bool
    decimal: str
    skip_lines: int
    header: tuple[str, ...]
    header_line: int
    encoding: str
    has_quotes: bool

    def __str__(self) -> str:
        told = [f"{_NAMES.get(self.delimiter, repr(self.delimiter))} between fields"]
        if self.has_quotes:
            told.append("fields in double quotes" if self.quotes else "double quotes as part of the text")
        if self.decimal == COMMA:
            told.append("decimal comma")
        if not self.header_line:
            told.append("no header")
        elif self.header_line > 1:
            told.append(f"header in line {self.header_line}")
        if self.encoding != "utf-8":
            told.append(self.encoding)
        return ", ".join(told)

    @property
    def is_usual(self) -> bool:
        """Whether nothing about it can surprise: commas or tabs, decimal points, a header in the first line, UTF-8."""
        plain = self.delimiter in (COMMA, TAB) and self.decimal == "." and self.header_line == 1
        return plain and self.encoding == "utf-8"

    def told(self) -> dict[str, object]:
        """Its parts as a provenance keeps them."""
        return {
            "delimiter": self.delimiter,
            "quotes": self.quotes,
            "decimal": self.decimal,
            "header_line": self.header_line,
            "encoding": self.encoding,
        }


@dataclass(frozen=True)
class DelimitedRows:
    """Consecutive rows.

    Attributes:
        batch: The columns asked for, as ``large_string``.
        lines: The line of each row, from 1, the header counted.
    """

    batch: pa.RecordBatch
    lines: np.ndarray


@dataclass(frozen=True)
class DelimitedFile:
    """One file of delimited text.

    Attributes:
        text: The file.
        options: What is known about it.
        default: The delimiter that its name promises.
        names: Names of its columns, where it has no header.
    """

    text: TextFile
    options: TextOptions
    default: str = COMMA
    names: tuple[str, ...] = ()

    @cached_property
    def dialect(self) -> Dialect:
        """What its beginning says.

        Raises:
            DataSetError: The file is empty, or its header cannot be read.
        """
        with self.text.opened() as stream:
            encoding = self.text.found_encoding(stream.read(4))
            stream.seek(0)
            sample, whole = b"", True
            for block in self.text.blocks(stream):
                sample += block
                if len(sample) > _SAMPLE_BYTES:
                    sample, whole = sample[:_SAMPLE_BYTES], False
                    break
        return _find(self, sample, whole, encoding)

    @property
    def columns(self) -> list[str]:
        """Names of its columns, each once."""
        return list(dict.fromkeys(self.dialect.header))

    def read(self, columns: Sequence[str], bar: object = None) -> Iterator[DelimitedRows]:
        """Its rows.

        Args:
            columns: Which, in this order, each once.
            bar: A progress bar over the file's bytes.

        Raises:
            DataSetError: A column is missing or there twice, a row has another number of fields than the header, or
                a quote does not close as it should. Messages name the line.
        """
        dialect, name = self.dialect, self.text.name
        places = [self._place(column) for column in columns]
        records = Records(name, dialect, sure=self.options.quotes is not None)
        with self.text.opened(bar) as stream:
            for block, lines in records.blocks(self.text.blocks(stream)):
                if not len(lines):
                    continue
                batch = self._parsed(block, lines, places, list(columns))
                if dialect.header_line and lines[0] == dialect.header_line:
                    batch, lines = batch.slice(1), lines[1:]
                if len(lines):
                    yield DelimitedRows(self._without_nulls(batch), lines)
            records.finish()

    def check(self, columns: Collection[str] = ()) -> None:
        """Reads the file and checks its quotes alone, for a reader that is not ours.

        Args:
            columns: Names that may not be in the header twice.

        Raises:
            DataSetError: As `read`, but for columns that are missing.
        """
        for column in columns:
            if column in self.dialect.header:
                self._place(column)
        records = Records(self.text.name, self.dialect, sure=self.options.quotes is not None)
        with self.text.opened() as stream:
            for _ in records.blocks(self.text.blocks(stream)):
                pass
        records.finish()

    def _place(self, column: str) -> int:
        header = self.dialect.header
        if column not in header:
            raise DataSetError(f"{self.text.name}, column '{column}': missing; the file has {listed(self.columns)}")
        if header.count(column) > 1:
            places = listed([str(place) for place, one in enumerate(header, 1) if one == column])
            raise DataSetError(
                f"{self.text.name}, column '{column}': found more than once in the header; allowed: once, "
                f"where it is read (columns {places} have this name)"
            )
        return header.index(column)

    def _parsed(self, block: bytes, lines: np.ndarray, places: list[int], columns: list[str]) -> pa.RecordBatch:
        dialect, wrong = self.dialect, []

        def note(row: pacsv.InvalidRow) -> str:
            wrong.append(row)
            return "error"

        names = [f"c{place}" for place in range(len(dialect.header))]
        wanted = [names[place] for place in places] or names[:1]
        try:
            table = pacsv.read_csv(
                pa.BufferReader(block),
                pacsv.ReadOptions(column_names=names, use_threads=False, block_size=len(block) + 1),
                pacsv.ParseOptions(
                    delimiter=dialect.delimiter,
                    quote_char='"' if dialect.quotes else False,
                    newlines_in_values=dialect.quotes,
                    invalid_row_handler=note,
                ),
                pacsv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.large_string()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._parse_error(error, wrong, block, lines) from error
        if len(table) != len(lines):  # no input is known that leads here, but a wrong line would be worse than none
            raise DataSetError(f"{self.text.name}, from line {lines[0]}: found {len(table)} rows in {len(lines)} lines")
        arrays = [table.column(names[place]).combine_chunks() for place in places]
        return pa.RecordBatch.from_arrays(arrays, names=columns)

    def _parse_error(
        self, error: Exception, wrong: list[pacsv.InvalidRow], block: bytes, lines: np.ndarray
    ) -> DataSetError:
        name, dialect = self.text.name, self.dialect
        if wrong:
            row = wrong[0]
            source = "as in the header" if dialect.header_line else "one for each name"
            way = "--delimiter, --skip-lines and --quotes or --no-quotes say it otherwise"
            return DataSetError(
                f"{name}, line {lines[row.number - 1]}: found {row.actual_columns} columns; allowed: "
                f"{row.expected_columns}, {source}: {shown(row.text)}. Read with {dialect}; {way}"
            )
        try:
            block.decode()
        except UnicodeDecodeError as bad:
            before = block.count(b"\n", 0, bad.start)
            return self.text.not_text(int(lines[0]) + before, bad, dialect.encoding)
        return DataSetError(f"{name}, from line {lines[0]}: not readable as delimited text: {error}")

    def _without_nulls(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return without(batch, self.options.nulls)


def without(batch: pa.RecordBatch, nulls: Sequence[str]) -> pa.RecordBatch:
    """The columns of text with null where they hold one of these texts, blanks around it aside."""
    if not nulls:
        return batch
    names, arrays = pa.array([one.strip() for one in nulls], pa.large_string()), []
    for array in batch.columns:
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            marked = pc.is_in(pc.utf8_trim_whitespace(array.cast(pa.large_string())), names)
            array = pc.if_else(marked, pa.scalar(None, array.type), array)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


class Records:
    """Cuts blocks of text where a record ends, counts lines, and refuses quotes that join what are lines of their own.

    Args:
        name: What messages call the file.
        dialect: Of the file.
        sure: Whether a user said that quotes enclose fields, so that fields with line ends are not doubted.
    """

    def __init__(self, name: str, dialect: Dialect, *, sure: bool) -> None:
        self._name, self._dialect, self._sure = name, dialect, sure
        self._delimiter = ord(dialect.delimiter)
        self._closed = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')
        self._line = 1
        self._skip = dialect.skip_lines
        self._several, self._first_several = 0, 0
        self._like_rows, self._written_with_quotes = True, False

    def blocks(self, blocks: Iterator[bytes]) -> Iterator[tuple[bytes, np.ndarray]]:
        """Whole records, and the line of each that is not blank.

        Raises:
            DataSetError: A quote does not close its field, or a line is too long.
        """
        rest = b""
        for block in blocks:
            data = self._skipped(rest + block)
            cut, lines = self._records(data, last=False)
            if cut:
                yield data[:cut], lines
            rest = data[cut:]
            del data
            if len(rest) > LONGEST_LINE:
                raise DataSetError(
                    f"{self._name}, line {self._line}: over {LONGEST_LINE:,} bytes, the limit of a row"
                    + (", or a double quote in it does not close (--no-quotes)" if b'"' in rest else "")
                )
        rest = self._skipped(rest)
        if rest and not self._skip:
            _, lines = self._records(rest, last=True)
            yield rest, lines

    def finish(self) -> None:
        """Refuses fields with line ends that look like rows joined by stray quotes.

        Raises:
            DataSetError: It is the only such field, or the lines of every such field are rows by themselves.
        """
        if self._sure or not self._several:
            return
        if self._several == 1 or (self._like_rows and not self._written_with_quotes):
            only = "as no other field of the file does" if self._several == 1 else f"as {self._several:,} fields do"
            alone = ", and each line in it is a row by itself" if self._like_rows else ""
            raise DataSetError(
                f"{self._name}, line {self._first_several}: a double quote opens a field that ends in a later line, "
                f"{only}{alone}; if it is right so: --quotes (quotes=True); if quotes are part of the "
                "texts, as inch marks are: --no-quotes (quotes=False)"
            )

    def _skipped(self, data: bytes) -> bytes:
        while self._skip and (end := data.find(b"\n")) >= 0:
            data, self._skip, self._line = data[end + 1 :], self._skip - 1, self._line + 1
        return data

    def _records(self, data: bytes, *, last: bool) -> tuple[int, np.ndarray]:
        """Where the last whole record ends, and the lines of the records that are not blank."""
        if self._skip:
            return 0, np.empty(0, np.int64)
        view = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(view == _NEWLINE)
        if last and (not len(ends) or ends[-1] != len(data) - 1):
            ends = np.append(ends, len(data))
        quotes = np.empty(0, np.int64)
        if self._dialect.quotes and b'"' in data:
            quotes = self._quotes(data, view, last=last)
        inside = (np.searchsorted(quotes, ends) & 1).astype(bool) if len(quotes) else np.zeros(len(ends), bool)
        closing = ends[~inside]
        cut = min(len(data), int(closing[-1]) + 1) if len(closing) else 0
        starts = np.concatenate([[0], closing[:-1] + 1])[: len(closing)].astype(np.int64)
        lines = self._line + (np.searchsorted(ends, starts) if inside.any() else np.arange(len(starts)))
        self._check_returns(data[:cut], view[:cut], quotes, ends)
        if inside.any() and not self._sure:
            self._note_several(data, view, quotes, ends[inside], starts, closing, lines)
        sizes = closing - starts
        blank = sizes == 0
        if b"\r" in data:
            blank |= (sizes == 1) & (view[np.minimum(starts, len(view) - 1)] == _RETURN)
        self._line += int(np.searchsorted(ends, cut))
        return cut, lines[~blank]

    def _quotes(self, data: bytes, view: np.ndarray, *, last: bool) -> np.ndarray:
        """Positions of the quotes that open, close or are doubled in a field; those inside plain text left out."""
        found = np.flatnonzero(view == _QUOTE)
        opening, closing = found[0::2], found[1::2]
        before = np.where(opening > 0, view[opening - 1], _NEWLINE)
        after = view[np.minimum(closing + 1, len(view) - 1)]
        fine = bool(np.isin(before, (self._delimiter, _NEWLINE, _QUOTE)).all()) and bool(
            (np.isin(after, (self._delimiter, _NEWLINE, _RETURN, _QUOTE)) | (closing == len(view) - 1)).all()
        )
        if fine and (len(found) % 2 == 0 or not last):
            return found
        return self._quotes_one_by_one(data, view, found, last=last)

    def _quotes_one_by_one(self, data: bytes, view: np.ndarray, found: np.ndarray, *, last: bool) -> np.ndarray:
        before = np.where(found > 0, view[found - 1], _NEWLINE)
        positions: list[int] = []
        place = 0
        for start in found[(before == self._delimiter) | (before == _NEWLINE)].tolist():
            if start < place:
                continue
            closed = self._closed.match(data, start)
            end = closed.end() if closed else len(data)
            if end == len(data) and not last:
                positions.append(start)
                break
            if closed is None:
                raise self._open_quote(data, start, "does not close")
            if end < len(data) and data[end] not in (self._delimiter, _NEWLINE, _RETURN):
                raise self._open_quote(data, start, "closes before the field ends")
            low, high = np.searchsorted(found, (start, end))
            positions += found[low:high].tolist()
            place = end
        return np.array(positions, np.int64)

    def _open_quote(self, data: bytes, start: int, what: str) -> DataSetError:
        line = self._line + data.count(b"\n", 0, start)
        text = data[start : start + 80].decode("utf-8", "replace")
        return DataSetError(
            f"{self._name}, line {line}: a double quote opens a field and {what}: {shown(text)}; if quotes are part of "
            "the texts, as inch marks are: --no-quotes (quotes=False); otherwise mend the line"
        )

    def _check_returns(self, data: bytes, view: np.ndarray, quotes: np.ndarray, ends: np.ndarray) -> None:
        """A carriage return alone would end a row to one reader and not to another."""
        if b"\r" not in data or data.count(b"\r") == data.count(b"\r\n") + data.endswith(b"\r"):
            return
        returns = np.flatnonzero(view == _RETURN)
        alone = returns[view[np.minimum(returns + 1, len(view) - 1)] != _NEWLINE]
        alone = alone[(alone != len(view) - 1) & ~(np.searchsorted(quotes, alone) & 1).astype(bool)]
        if len(alone):
            line = self._line + int(np.searchsorted(ends, alone[0]))
            raise DataSetError(
                f"{self._name}, line {line}: found a carriage return within a line; allowed: line ends of one kind, "
                "and carriage returns in quoted fields only"
            )

    def _note_several(
        self,
        data: bytes,
        view: np.ndarray,
        quotes: np.ndarray,
        inside: np.ndarray,
        starts: np.ndarray,
        closing: np.ndarray,
        lines: np.ndarray,
    ) -> None:
        """Counts the records of several lines, and looks whether they could be rows joined by mistake."""
        inside = inside[inside < (closing[-1] if len(closing) else 0)]
        records = np.unique(np.searchsorted(closing, inside))
        if self._dialect.header_line:
            records = records[lines[records] != self._dialect.header_line]
        if not len(records):
            return
        if not self._several:
            self._first_several = int(lines[records[0]])
        self._several += len(records)
        if not self._like_rows or self._written_with_quotes:
            return
        doubled = quotes[1:-1:2] + 1 == quotes[2::2]
        separators = np.flatnonzero(view == self._delimiter)
        enclosed = separators[(np.searchsorted(quotes, separators) & 1).astype(bool)]
        alone = np.setdiff1d(np.searchsorted(closing, enclosed), records)
        self._written_with_quotes = bool(doubled.any() or (alone < len(closing)).any())
        width, separator = len(self._dialect.header), self._dialect.delimiter.encode()
        for record in records.tolist():
            parts = data[starts[record] : closing[record]].split(b"\n")
            if any(part.count(separator) != width - 1 for part in parts):
                self._like_rows = False
                break


def _character(written: str) -> str:
    named = {name: one for one, name in _NAMES.items()} | {"\\t": TAB}
    found = named.get(written.lower(), written)
    if len(found) != 1 or not found.isascii() or found in '"\r\n':
        raise DataSetError(
            f"found delimiter {written!r}; allowed: one character (ASCII, no quote and no line end), or "
            f"{', '.join(_NAMES.values())}"
        )
    return found


def _find(file: DelimitedFile, sample: bytes, whole: bool, encoding: str) -> Dialect:
    name, options = file.text.name, file.options
    if not sample.strip():
        raise DataSetError(f"{name}: the file is empty; allowed: a header and rows")
    if b"\0" in sample:
        line = sample.count(b"\n", 0, sample.index(b"\0")) + 1
        raise DataSetError(
            f"{name}, line {line}: found a NUL character, which no text has; if it is UTF-16, say so: "
            "--encoding utf-16-le"
        )
    quotes = options.quotes is not False
    first = sample.split(b"\n", 1)[0]
    separator = _SEPARATOR_LINE.fullmatch(first) if options.skip_lines is None else None
    skipped = options.skip_lines or (1 if separator else 0)
    delimiter = options.delimiter
    if delimiter is None and separator:
        delimiter = _character(separator[1].decode("latin-1"))
    start = _after_lines(sample, skipped)
    if not sample[start:].strip():
        raise DataSetError(f"{name}: found nothing after line {skipped}; allowed: a header and rows")
    candidates = [delimiter] if delimiter else [file.default, *(one for one in DELIMITERS if one != file.default)]
    looks = [_look(sample[start:], one, quotes, whole, options.skip_lines is None) for one in candidates]
    look = _best(looks)
    if file.names:
        header, header_line, preamble = file.names, 0, skipped
    else:
        preamble = skipped + look.preamble
        begin = _after_lines(sample, preamble)
        header = _header(file, sample[begin:], look.delimiter, quotes, preamble)
        header_line = preamble + 1 + _blank_lines(sample[begin:])
    rest = sample[_after_lines(sample, preamble) :]
    has_quotes = bool(re.search(rb"(?:\A|[\n" + re.escape(look.delimiter.encode()) + rb'])"', rest))
    dialect = Dialect(look.delimiter, quotes, ".", preamble, header, header_line, encoding, has_quotes)
    decimal = options.decimal or _decimal(dialect, rest, whole)
    return Dialect(look.delimiter, quotes, decimal, preamble, header, header_line, encoding, has_quotes)


@dataclass(frozen=True)
class _Look:
    """A sample read with one delimiter: lines before the header, fields in it, and the share of lines with as many."""

    delimiter: str
    preamble: int
    fields: int
    fitting: float


def _look(sample: bytes, delimiter: str, quotes: bool, whole: bool, skip: bool) -> _Look:
    fence = re.escape(delimiter.encode())
    if quotes and b'"' in sample:
        field = re.compile(rb"(?<![^\n" + fence + rb'])"[^"]*+(?:""[^"]*+)*+"(?=[\r\n' + fence + rb"]|\Z)")
        sample = field.sub(lambda found: b"Q" + b"\0" * found.group().count(b"\n"), sample)
    lines = sample.split(b"\n")
    lines = (lines if whole or len(lines) == 1 else lines[:-1])[:_SAMPLE_LINES]
    counts = [line.count(delimiter.encode()) + 1 if line.strip() else 0 for line in lines]
    skipped = _preamble(lines, counts) if skip else 0
    rows = [count for count in counts[skipped:] if count]
    fields = rows[0] if rows else 1
    before = sum(1 + line.count(b"\0") for line in lines[:skipped])
    return _Look(delimiter, before, fields, sum(count == fields for count in rows) / max(1, len(rows)))


def _preamble(lines: list[bytes], counts: list[int]) -> int:
    """How many lines before the header are no part of the table: comments, and lines without a delimiter.

    The table must be whole: a header and one or more rows, all of as many fields.
    """
    usual = Counter(count for count in counts if count > 1).most_common(1)
    if not usual:
        return 0
    width = usual[0][0]
    for number, (line, count) in enumerate(zip(lines, counts, strict=True)):
        if count == width:
            rest = [one for one in counts[number:] if one]
            return number if len(rest) > 1 and all(one == width for one in rest) else 0
        if count > 1 and not line.startswith(b"#"):
            return 0
    return 0


def _best(looks: list[_Look]) -> _Look:
    several = [look for look in looks if look.fields > 1]
    whole = [look for look in several if look.fitting == 1]
    if whole:
        return max(whole, key=lambda look: (-look.preamble, look.fields))
    if several:
        return several[0] if several[0] is looks[0] else max(several, key=lambda look: (look.fitting, look.fields))
    return looks[0]


def _after_lines(sample: bytes, lines: int) -> int:
    place = 0
    for _ in range(lines):
        end = sample.find(b"\n", place)
        if end < 0:
            return len(sample)
        place = end + 1
    return place


def _blank_lines(sample: bytes) -> int:
    begin = re.match(rb"(?:[ \t\r]*\n)*", sample)
    return sample.count(b"\n", 0, begin.end()) if begin else 0


def _header(file: DelimitedFile, sample: bytes, delimiter: str, quotes: bool, skipped: int) -> tuple[str, ...]:
    line = skipped + 1 + _blank_lines(sample)
    text = sample.lstrip(b"\r\n").decode("utf-8", "surrogateescape")
    try:
        if quotes:
            found = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        else:
            found = text.split("\n", 1)[0].rstrip("\r").split(delimiter)
    except csv.Error as error:
        raise DataSetError(f"{file.text.name}, line {line}: not readable as a header: {error}") from error
    names = tuple(one.strip() for one in found)
    for one in names:
        try:
            one.encode()
        except UnicodeEncodeError as error:
            raise file.text.not_text(line, error) from error
    return names


def _decimal(dialect: Dialect, sample: bytes, whole: bool) -> str:
    """The decimal sign: a comma where columns of numbers have commas that can be nothing else, and none a point."""
    if b"," not in sample:
        return "."
    cut = len(sample) if whole else sample.rfind(b"\n") + 1
    names = [f"c{place}" for place in range(len(dialect.header))]
    try:
        table = pacsv.read_csv(
            pa.BufferReader(sample[:cut]),
            pacsv.ReadOptions(column_names=names, use_threads=False, block_size=cut + 1),
            pacsv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char='"' if dialect.quotes else False,
                newlines_in_values=dialect.quotes,
                invalid_row_handler=lambda _: "skip",
            ),
            pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return "."
    table = table.slice(1 if dialect.header_line else 0)
    commas = points = False
    for column in table.columns:
        values = column.filter(pc.not_equal(pc.utf8_trim_whitespace(column), ""))
        if len(values) and pc.all(pc.match_substring_regex(values, _NUMBER)).as_py():
            commas |= bool(pc.any(pc.match_substring_regex(values, DECIMAL_COMMA)).as_py())
            points |= bool(pc.any(pc.match_substring_regex(values, _POINT)).as_py())
    return COMMA if commas and not points else "."


def with_points(column: pa.Array, decimal: str, where: str, lines: np.ndarray | None) -> pa.Array:
    """A column of numbers as text, its decimal commas made points; the rest is left as it is.

    Args:
        column: Texts.
        decimal: The file's decimal sign.
        where: File and column, for messages.
        lines: The line of each value, for messages.

    Raises:
        DataSetError: The decimal sign is a comma and a value has a point.
    """
    if decimal != COMMA or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    points = pc.fill_null(pc.match_substring(column, "."), False)
    if pc.any(points).as_py():
        row = pc.index(points, True).as_py()
        line = f", line {lines[row]}" if lines is not None else ""
        raise DataSetError(
            f"{where}{line}: found {shown(column[row].as_py())}; allowed: numbers with a decimal comma and no "
            "separators of thousands, as the others have (--decimal . reads points)"
        )
    commas = pc.fill_null(pc.match_substring_regex(column, _ANY_COMMA), False)
    return pc.if_else(commas, pc.replace_substring(column, ",", "."), column)
