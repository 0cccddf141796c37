"""TREC topics: queries between tags, as the tracks publish them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from opengcl.data.problems import DataSetError, listed, shown
from opengcl.sources.table_files import Rows
from opengcl.text_files import TextFile

COLUMNS = ("query_id", "query", "description", "narrative")
"""Of the table that topics make. ``query`` is the title, or the only text of a topic without parts."""

_LARGEST_FILE = 64 << 20
_OPENING = re.compile(r"<(top|topic)\b([^>]*)>", re.IGNORECASE)
_CLOSING = re.compile(r"</(?:top|topic)\s*>", re.IGNORECASE)
_PART = re.compile(r"<(\w+)[^>]*>([^<]*)", re.DOTALL)
_NUMBER = re.compile(r"""\b(?:number|num|id)\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)
_PARTS = {
    "num": "query_id",
    "number": "query_id",
    "title": "query",
    "query": "query",
    "desc": "description",
    "description": "description",
    "question": "description",
    "narr": "narrative",
    "narrative": "narrative",
}
_LABELS = re.compile(r"^\s*(?:Number|Topic|Description|Narrative)\s*:\s*", re.IGNORECASE)


@dataclass(frozen=True)
class TopicsFile:
    """A file of topics, such as ``<top> <num> Number: 301 <title> Crime <desc> Description: ... </top>``.

    Tags of parts need not be closed, as they are not in the older tracks. ``<topic number="1">`` is read too.

    Attributes:
        text: The file.
    """

    text: TextFile

    @property
    def name(self) -> str:
        """The file's name."""
        return self.text.name

    @property
    def columns(self) -> list[str]:
        """Those of `COLUMNS` that some topic has."""
        found = {name for _, topic in self._topics for name in topic}
        return [name for name in COLUMNS if name in found]

    @property
    def told(self) -> str:
        """How it is read."""
        return f"{len(self._topics):,} TREC topics between tags"

    def read(self, columns: Sequence[str], *, progress: bool = True) -> Iterator[Rows]:
        """Its topics, all columns as text.

        Raises:
            DataSetError: A column is missing.
        """
        columns = list(dict.fromkeys(columns))
        if lost := [one for one in columns if one not in self.columns]:
            raise DataSetError(f"{self.name}: no part '{lost[0]}' in its topics; found {listed(self.columns)}")
        arrays = [pa.array([topic.get(one) for _, topic in self._topics], pa.large_string()) for one in columns]
        lines = np.array([line for line, _ in self._topics], np.int64)
        yield Rows(pa.RecordBatch.from_arrays(arrays, names=columns), 0, lines)

    @cached_property
    def _topics(self) -> list[tuple[int, dict[str, str]]]:
        """(line, part -> text) of every topic."""
        text = self._content()
        found = list[tuple[int, dict[str, str]]]()
        line, counted, place = 1, 0, 0
        while opening := _OPENING.search(text, place):
            line, counted = line + text.count("\n", counted, opening.start()), opening.start()
            closing = _CLOSING.search(text, opening.end())
            if closing is None:
                raise DataSetError(f"{self.name}, line {line}: found a topic without an end; allowed: <top> ... </top>")
            found.append((line, self._topic(opening[2], text[opening.end() : closing.start()], line)))
            place = closing.end()
        if not found:
            raise DataSetError(f"{self.name}: found no topics; allowed: <top> ... </top>, each with <num> and <title>")
        return found

    def _content(self) -> str:
        with self.text.opened() as stream:
            size, parts = 0, []
            for block in self.text.blocks(stream):
                size += len(block)
                if size > _LARGEST_FILE:
                    raise DataSetError(f"{self.name}: over {_LARGEST_FILE:,} bytes, the limit of a file of topics")
                parts.append(block)
        try:
            return b"".join(parts).decode()
        except UnicodeDecodeError as error:
            raise self.text.not_text(error.object.count(b"\n", 0, error.start) + 1, error) from error

    def _topic(self, attributes: str, body: str, line: int) -> dict[str, str]:
        topic: dict[str, str] = {}
        if number := _NUMBER.search(attributes):
            topic["query_id"] = number[1]
        for tag, written in _PART.findall(body):
            name, text = _PARTS.get(tag.lower()), " ".join(html.unescape(_LABELS.sub("", written)).split())
            if name is not None and text:
                topic.setdefault(name, text)
        if "query" not in topic and not _PART.search(body):
            topic["query"] = " ".join(html.unescape(body).split())
        if "query_id" not in topic:
            raise DataSetError(f"{self.name}, line {line}: found a topic without <num>: {shown(body)}")
        return topic
