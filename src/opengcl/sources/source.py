"""What every source gives: rows of queries, documents and judged pairs, and what it knows about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from opengcl.data.schema import FieldType
from opengcl.sources.positions import Positions

Side = Literal["queries", "documents", "qrels"]
SIDES: tuple[Side, ...] = ("queries", "documents", "qrels")


@dataclass(frozen=True)
class Batch:
    """Some rows of one of the three tables.

    Attributes:
        side: Which table.
        rows: With its id columns (``query_id``, ``doc_id``, in qrels both), the fields, the ``score`` (float64, null
            where a pair has none that can be read), and other columns to keep; the same in every batch of a side. An id
            may come again, here or later, as it does where queries, documents and scores share a table.
        file: Where they come from, for messages.
        numbers: The rows' numbers there, from 0; None where ``first`` and those after it are meant.
        first: Number of the first row.
        raw_score: In qrels what the score was read from, for messages.
        score_column: The column that it was read from.
        allowed_score: What it may be.
        lines: The rows' lines, from 1 and with the header counted, where they come from a text file.
        spelling: Of queries and qrels whose query ids do not tell how a query is spelled: a 64-bit hash of that.
            Queries of one id are then the same query, however their fields differ.
        told: What a reader should know about these rows, as the start of a sentence -> rows that it is true of.
    """

    side: Side
    rows: pa.RecordBatch
    file: str
    first: int = 0
    numbers: Any = None
    raw_score: pa.Array | None = None
    score_column: str = "score"
    allowed_score: str = "a finite number"
    lines: Any = None
    spelling: pa.Array | None = None
    told: Mapping[str, int] = field(default_factory=dict)

    def place(self, row: int) -> str:
        """How a message names a row of the batch: by its line in a text file, by its number from 0 in others."""
        if self.lines is not None:
            return f"{self.file}, line {int(self.lines[row])}"
        number = self.first + row if self.numbers is None else int(self.numbers[row])
        return f"{self.file}, row {number}"


@dataclass(frozen=True)
class Description:
    """What a source knows about itself.

    Attributes:
        source: Its kind, such as ``csv`` or ``esci``.
        name: A name for the data set.
        queries: Query field -> type.
        documents: Document field -> type.
        score_range: Smallest and largest score possible; None for 0, or what is found below it, to the largest found.
        positions: How the ``position`` of pairs becomes their score; None where they have scores of their own.
        scores_are_places: Whether scores come from places in a result list. None of these means not relevant, so
            without a ``score_range`` the range begins with the smallest score found.
        options: What it was asked for, for the provenance.
        files: The files that it reads, to be hashed.
        picture_root: What picture paths are relative to; no path may leave it.
        split_queries: Whether queries have a column ``split`` of their own while documents have none, which are then
            divided by our formula.
        notes: What a reader should know, a sentence each.
    """

    source: str
    name: str
    queries: Mapping[str, FieldType]
    documents: Mapping[str, FieldType]
    score_range: tuple[float, float] | None = None
    positions: Positions | None = None
    scores_are_places: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    picture_root: Path | None = None
    split_queries: bool = False
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """Something that a data set can be made of."""

    def describe(self) -> Description:
        """What it holds, read from headers alone.

        Raises:
            DataSetError: It cannot be read as it was asked for.
        """
        ...

    def batches(self, *, progress: bool) -> Iterator[Batch]:
        """All rows of all three tables, in any order."""
        ...
