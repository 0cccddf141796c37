"""Text files as UTF-8, a block or a line at a time, plain or gzipped; other kinds of files by their first bytes."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from opengcl.data.problems import DataSetError

LONGEST_LINE = 32 << 20
"""Bytes of a line, or of a row of a table with line ends in its fields. Far more than any field of a model can hold."""

BLOCK_BYTES = 8 << 20
"""What is read at a time."""

_GZIP = b"\x1f\x8b"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNPACK = "unpack it first"
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS", "fetch the file itself with: git lfs pull"),
    (b"/annex/objects/", "a pointer of git-annex", "fetch the file itself with: git annex get"),
    (b"PAR1", "a Parquet file", "name it .parquet, or give the format parquet"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack the archive, or save the sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook", "save the sheet as CSV UTF-8"),
    (b"BZh", "compressed by bzip2", f"{_UNPACK}: bunzip2"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", f"{_UNPACK}: unzstd"),
    (b"\xfd7zXZ\x00", "compressed by xz", f"{_UNPACK}: unxz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed by LZ4", f"{_UNPACK}: unlz4"),
    (b"%PDF", "a PDF document", "export the table that it shows as CSV"),
    (b"\x89PNG", "a PNG image", "give a table; images go in by a column of paths"),
    (b"\xff\xd8\xff", "a JPEG image", "give a table; images go in by a column of paths"),
    (b"GIF8", "a GIF image", "give a table; images go in by a column of paths"),
    (b"RIFF", "a WebP image or another RIFF file", "give a table; images go in by a column of paths"),
    (b"SQLite format 3\x00", "an SQLite database", "export the table as CSV: sqlite3 -header -csv FILE 'SELECT ...'"),
    (b"ARROW1", "an Arrow or Feather file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"\x89HDF", "an HDF5 file", "write its table as Parquet"),
    (b"\x93NUMPY", "a NumPy array", "write a table with named columns as Parquet"),
    (b"\x7fELF", "a program", "give a table"),
)
_PICKLES = tuple(b"\x80" + bytes([version]) for version in range(2, 6))
_PAGES = (b"<!doctype html", b"<html", b"<head")
_HEAD_BYTES = 1024


@dataclass(frozen=True)
class TextFile:
    """One text file.

    Attributes:
        path: The file. Gzip is recognised by its first bytes.
        encoding: Any that Python knows. A byte order mark is skipped; one of UTF-16 or UTF-32 wins over UTF-8.

    Raises:
        DataSetError: The encoding is unknown.
    """

    path: Path
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise DataSetError(f"{self.path}: unknown encoding {self.encoding!r}; allowed: Python's names") from error

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path.name

    @contextmanager
    def opened(self, bar: Any = None) -> Iterator[IO[bytes]]:
        """Its bytes, gunzipped where its first bytes say so; the bar counts what is read from disk.

        Raises:
            DataSetError: Its first bytes are those of another kind of file, or its gzip stream is broken.
        """
        with self.path.open("rb") as raw:
            counted = cast(IO[bytes], _Counted(raw, bar)) if bar is not None else raw
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            try:
                if packed:
                    with gzip.open(counted) as unpacked:
                        yield _checked(self.name, cast(IO[bytes], unpacked))
                else:
                    yield _checked(self.name, counted)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataSetError(f"{self.name}: its gzip stream is broken: {error}") from error

    def blocks(self, stream: IO[bytes]) -> Iterator[bytes]:
        """The text as UTF-8 without a byte order mark, some megabytes at a time.

        Carriage returns become newlines where the beginning of the file has no newline.

        Raises:
            DataSetError: It is not of the encoding; the message names the line.
        """
        first = stream.read(BLOCK_BYTES)
        encoding = self.found_encoding(first)
        alone: bool | None = None
        for block in self._decoded(stream, first, encoding):
            if alone is None:
                alone = b"\n" not in block and b"\r" in block
            yield block.replace(b"\r", b"\n") if alone else block

    def found_encoding(self, first: bytes) -> str:
        """The encoding given, or that of a byte order mark where UTF-8 is asked for."""
        name = codecs.lookup(self.encoding).name
        if name in ("utf-8", "utf-8-sig"):
            return next((found for mark, found in _MARKS if first.startswith(mark)), "utf-8")
        return self.encoding

    def _decoded(self, stream: IO[bytes], first: bytes, encoding: str) -> Iterator[bytes]:
        if encoding == "utf-8":
            block = first.removeprefix(codecs.BOM_UTF8)
            while block:
                yield block
                block = stream.read(BLOCK_BYTES)
            return
        decoder, line, block = codecs.getincrementaldecoder(encoding)(), 1, first
        while True:
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeError as error:
                raise self.not_text(line + _lines_before(error, encoding), error, encoding) from error
            line += text.count("\n")
            if text:
                yield text.removeprefix("\ufeff").encode("utf-8", "replace")
            if not block:
                return
            block = stream.read(BLOCK_BYTES)

    def not_text(self, line: int, error: Exception, encoding: str | None = None) -> DataSetError:
        """The error for a line that is not of the encoding."""
        return DataSetError(
            f"{self.name}, line {line}: not {encoding or self.encoding} text ({error}); name its encoding, such as "
            "latin-1, cp1252 or utf-16 (--encoding)"
        )

    def lines(self, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
        """(number from 1, text) of the lines that are not blank.

        Raises:
            DataSetError: A line is not of the encoding, or longer than `LONGEST_LINE`.
        """
        number, rest = 1, b""
        for block in self.blocks(stream):
            data = rest + block
            end = data.rfind(b"\n")
            for line in self._texts(data[: max(0, end)], number) if end >= 0 else ():
                if line.strip():
                    yield number, line
                number += 1
            rest = data[end + 1 :]
            if len(rest) > LONGEST_LINE:
                raise self._too_long(number)
        for line in self._texts(rest, number):
            if line.strip():
                yield number, line

    def _texts(self, data: bytes, number: int) -> list[str]:
        """The lines of some bytes, the first of which is that of a number."""
        try:
            lines = data.decode().split("\n")
        except UnicodeDecodeError as error:
            raise self.not_text(number + data.count(b"\n", 0, error.start), error) from error
        if len(data) > LONGEST_LINE:
            for line, text in enumerate(lines, number):
                if len(text) > LONGEST_LINE:
                    raise self._too_long(line)
        return lines

    def _too_long(self, number: int) -> DataSetError:
        return DataSetError(f"{self.name}, line {number}: over {LONGEST_LINE:,} bytes, the limit of a line")


def refuse_foreign(name: str, head: bytes) -> None:
    """Refuses a file that is no text by its first bytes, and says what to do with it.

    Args:
        name: What the message calls the file.
        head: Its first bytes, a thousand or so.

    Raises:
        DataSetError: They are those of another kind.
    """
    found = next(((what, way) for mark, what, way in _SIGNATURES if head.startswith(mark)), None)
    if found is None and head[257:262] == b"ustar":
        found = "a tar archive", _UNPACK
    if found is None and head.startswith(_PICKLES) and b"\n" not in head[:2]:
        found = "a Python pickle", "write it as Parquet; pickles are never read, as they can run code"
    if found is None and head.lstrip().lower().startswith(_PAGES):
        found = "an HTML page", "download the file itself; a login page or an error page may have come in its place"
    if found is not None:
        raise DataSetError(f"{name}: found {found[0]}, by its first bytes; {found[1]}")


def _checked(name: str, stream: IO[bytes]) -> IO[bytes]:
    head = stream.read(_HEAD_BYTES)
    refuse_foreign(name, head)
    stream.seek(0)
    return stream


def _lines_before(error: UnicodeError, encoding: str) -> int:
    if not isinstance(error, UnicodeDecodeError):
        return 0
    return error.object[: error.start].decode(encoding, "ignore").count("\n")


class _Counted:
    """Moves a bar by the bytes that are read."""

    def __init__(self, raw: IO[bytes], bar: Any) -> None:
        self._raw, self._bar = raw, bar

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self._bar.update(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)
