"""Rows from JSON: one a line, one after the other in any layout, or in a list that may be inside an object.

``NaN``, ``Infinity`` and ``-Infinity``, which Python writes though they are no JSON, are missing values.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import IO, Any

from opengcl.data.problems import DataSetError, shown
from opengcl.text_files import LONGEST_LINE, TextFile

_SAMPLE_CHARACTERS = 1 << 20
_PIECE = 1 << 20
_DEEPEST = 8
_LONGEST_WORD = len("-Infinity")
_BLANK = re.compile(r"[ \t\r\n]*+")


class _RepeatedKeyError(ValueError):
    """An object has a key twice; of such an object JSON readers keep one value and drop the other."""

    def __init__(self, key: str) -> None:
        super().__init__(f"found the key {shown(key)} twice in one object; allowed: each key once")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ.

    Raises:
        _RepeatedKeyError: Some do not.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        counted = Counter(key for key, _ in pairs)
        raise _RepeatedKeyError(next(key for key in counted if counted[key] > 1))
    return found


_DECODER = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=_once)


@dataclass(frozen=True)
class JsonLayout:
    """How rows lie in a file.

    Attributes:
        lines: Whether each line is a row.
        path: Keys of the list that holds the rows, where it is inside an object.
        listed: Whether the rows are in one list, which is all of the file.
    """

    lines: bool = True
    path: tuple[str, ...] = ()
    listed: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"JSON, a row an element of the list '{'.'.join(self.path)}'"
        if self.listed:
            return "JSON, a row an element of one list"
        return "JSON, a row a line" if self.lines else "JSON, one object after the other"


@dataclass(frozen=True)
class JsonFile:
    """One file of JSON rows."""

    text: TextFile

    @cached_property
    def layout(self) -> JsonLayout:
        """What its beginning says.

        Raises:
            DataSetError: It holds no rows, or several lists that may be meant.
        """
        with self.text.opened() as stream:
            reader = _Reader(self.text, stream)
            first = reader.peek()
            if first == "":
                raise DataSetError(f"{self.text.name}: the file is empty; allowed: JSON objects")
            if first == "[":
                return JsonLayout(lines=False, listed=True)
            line, _, rest = reader.text(_SAMPLE_CHARACTERS).lstrip().partition("\n")
            whole = _is_whole(line)
            if first != "{" or (whole and rest.strip()):
                return JsonLayout()
            return self._of_one_object(reader, whole)

    @cached_property
    def is_nested(self) -> bool:
        """Whether it begins as one object of objects of numbers: ``{"query": {"document": 1}}``."""
        with self.text.opened() as stream:
            reader = _Reader(self.text, stream)
            line, _, rest = reader.text(_SAMPLE_CHARACTERS).strip().partition("\n")
            if not line.startswith("{") or (rest.lstrip().startswith("{") and _is_whole(line)):
                return False
            for _ in reader.members():
                if reader.peek() != "{":
                    return False
                for _ in reader.members():
                    return isinstance(reader.value(), int | float)
            return False

    def _of_one_object(self, reader: _Reader, line: bool) -> JsonLayout:
        """The layout of a file whose first object goes over several lines, or is all that there is."""
        paths: list[tuple[str, ...]] = []
        for path, value in reader.walk(()):
            if isinstance(value, dict) and path not in paths:
                paths.append(path)
            if len(paths) > 1 or (paths and reader.consumed > _SAMPLE_CHARACTERS):
                break
        if len(paths) > 1:
            raise self._several(paths)
        if paths and (reader.consumed > _SAMPLE_CHARACTERS or reader.peek() == ""):
            return JsonLayout(lines=False, path=paths[0])
        return JsonLayout(lines=line)

    def _several(self, paths: Iterable[tuple[str, ...]]) -> DataSetError:
        names = " and ".join(f"'{'.'.join(path)}'" for path in paths)
        return DataSetError(
            f"{self.text.name}: found an object with the lists {names}; allowed: one list of rows, or an object a row. "
            "Write the one that is meant into a file of its own"
        )

    def objects(self, stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line from 1 where it begins, object) of every row.

        Raises:
            DataSetError: Something is no JSON object; the message names the line.
        """
        if self.layout.lines:
            yield from self._lines(stream)
            return
        for line, value in self._elements(_Reader(self.text, stream)):
            if not isinstance(value, dict):
                raise DataSetError(f"{self.text.name}, line {line}: found {shown(value)}; allowed: an object a row")
            yield line, value

    def _elements(self, reader: _Reader) -> Iterator[tuple[int, Any]]:
        layout = self.layout
        if layout.path:
            for path, value in reader.walk(()):
                if path == layout.path:
                    yield reader.line, value
                elif isinstance(value, dict):
                    raise self._several((layout.path, path))
            reader.end()
        else:
            for value in reader.elements() if layout.listed else reader.values():
                yield reader.line, value

    def cells(self, stream: IO[bytes]) -> Iterator[tuple[int, str, str, Any]]:
        """(line, outer key, inner key, value) of an object of objects, as ``{"query": {"document": 1}}``.

        Raises:
            DataSetError: Something else is in it.
        """
        reader = _Reader(self.text, stream)
        for key in reader.members():
            for inner in reader.members():
                value = reader.value()
                yield reader.line, key, inner, value
        reader.end()

    def _lines(self, stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in self.text.lines(stream):
            try:
                value = _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise not_json(self.text.name, number, error, line) from error
            if not isinstance(value, dict):
                raise DataSetError(f"{self.text.name}, line {number}: found {shown(value)}; allowed: an object a row")
            yield number, value


def not_json(name: str, line: int, error: Exception, text: str) -> DataSetError:
    """The error for a text that is no JSON, or has a key twice in an object."""
    if isinstance(error, _RepeatedKeyError):
        return DataSetError(f"{name}, line {line}: {error}")
    return DataSetError(f"{name}, line {line}: not JSON ({error}): {shown(text)}")


class _Reader:
    """JSON values one after the other, whatever the file's size; one value must fit into `LONGEST_LINE`.

    Attributes:
        line: Where the last value began, from 1.
        consumed: Characters that were read so far.
    """

    def __init__(self, file: TextFile, stream: IO[bytes]) -> None:
        self._file = file
        self._blocks = iter(_characters(file, stream))
        self._buffer, self._place, self._counted, self._at = "", 0, 0, 1
        self._before, self._whole = 0, False
        self.line = 1

    @property
    def consumed(self) -> int:
        """Characters that were read so far."""
        return self._before + self._place

    def text(self, size: int) -> str:
        """What comes next, up to so many characters, without moving on."""
        while len(self._buffer) - self._place < size and self._more():
            pass
        return self._buffer[self._place : self._place + size]

    def peek(self) -> str:
        """The next character that is not blank, or an empty text at the end."""
        while True:
            found = _BLANK.match(self._buffer, self._place)
            self._place = found.end() if found else self._place
            if self._place < len(self._buffer):
                return self._buffer[self._place]
            if not self._more():
                return ""

    def values(self) -> Iterator[Any]:
        """Values that follow one another, with or without commas between them."""
        while (character := self.peek()) != "":
            if character == ",":
                self._place += 1
                continue
            yield self.value()

    def elements(self) -> Iterator[Any]:
        """The elements of a list, which must be all that there is."""
        yield from self._elements()
        self.end()

    def end(self) -> None:
        """Raises `DataSetError` unless nothing more comes."""
        if (found := self.peek()) != "":
            raise self._wrong(shown(found), "nothing more")

    def members(self) -> Iterator[str]:
        """The keys of an object, each once; after each its value is to be read."""
        seen: set[str] = set()
        self._expect("{")
        while (character := self.peek()) != "}":
            if character == ",":
                self._place += 1
                continue
            key = self.value()
            if not isinstance(key, str):
                raise self._wrong(shown(key), "a key in double quotes")
            if key in seen:
                raise not_json(self._file.name, self.line, _RepeatedKeyError(key), key)
            seen.add(key)
            self._expect(":")
            yield key
        self._place += 1

    def walk(self, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        """(path, element) of the lists inside an object; of other values the path is empty, and they are None."""
        for key in self.members():
            here, following = (*path, key), self.peek()
            if following == "{" and len(here) < _DEEPEST:
                yield from self.walk(here)
            elif following == "[":
                for value in self._elements():
                    yield here, value
            else:
                self.value()
                yield (), None

    def value(self) -> Any:
        """The next value."""
        self.peek()
        self._count()
        self.line = self._at
        size = 1 << 16
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._place)
            except (ValueError, RecursionError) as error:
                if not self._is_cut(error) or not self._grow(size):
                    text = self._buffer[self._place : self._place + 200]
                    raise not_json(self._file.name, self._line_of(error), error, text) from error
                size *= 2
                continue
            if end == len(self._buffer) and not self._whole and self._grow(size):
                size *= 2
                continue  # a number may go on
            if end - self._place > LONGEST_LINE:
                raise self._too_long()
            self._place = end
            return value

    def _is_cut(self, error: Exception) -> bool:
        """Whether an error may come from the buffer's end, not from the text."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - _LONGEST_WORD

    def _elements(self) -> Iterator[Any]:
        self._expect("[")
        while (character := self.peek()) != "]":
            if character == ",":
                self._place += 1
                continue
            yield self.value()
        self._place += 1

    def _expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise self._wrong(shown(found) if found else "the end of the file", f"'{character}'")
        self._place += 1

    def _wrong(self, found: str, allowed: str) -> DataSetError:
        self._count()
        return DataSetError(f"{self._file.name}, line {self._at}: not JSON: found {found}; allowed: {allowed}")

    def _line_of(self, error: Exception) -> int:
        place = getattr(error, "pos", self._place)
        return self._at + self._buffer.count("\n", self._counted, place)

    def _count(self) -> None:
        self._at += self._buffer.count("\n", self._counted, self._place)
        self._counted = self._place

    def _grow(self, size: int) -> bool:
        """Reads on until so many characters are ahead."""
        ahead = len(self._buffer) - self._place
        if ahead > LONGEST_LINE:
            raise self._too_long()
        wanted = max(size, 2 * ahead)
        grown = False
        while len(self._buffer) - self._place < wanted and self._more():
            grown = True
        return grown

    def _too_long(self) -> DataSetError:
        limit = f"over {LONGEST_LINE:,} characters, the limit of a value"
        return DataSetError(f"{self._file.name}, line {self._at}: {limit}")

    def _more(self) -> bool:
        block = next(self._blocks, None)
        if block is None:
            self._whole = True
            return False
        self._count()
        self._before += self._place
        self._buffer, self._place, self._counted = self._buffer[self._place :] + block, 0, 0
        return True


def _characters(file: TextFile, stream: IO[bytes]) -> Iterator[str]:
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    pieces = (block[at : at + _PIECE] for block in file.blocks(stream) for at in range(0, len(block), _PIECE))
    for piece in chain(pieces, (b"",)):
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise file.not_text(line + error.object.count(b"\n", 0, error.start), error) from error
        line += text.count("\n")
        if text:
            yield text


def _is_whole(line: str) -> bool:
    try:
        _DECODER.decode(line)
    except _RepeatedKeyError:
        return True
    except (ValueError, RecursionError):
        return False
    return True
