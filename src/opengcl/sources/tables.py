"""A shop's own tables as a source: one with everything, or queries, documents and scores apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opengcl.data.problems import DataSetError, shown
from opengcl.data.schema import FieldType
from opengcl.data.tables import is_text
from opengcl.sources.columns import named, truths
from opengcl.sources.mapping import TableMapping
from opengcl.sources.positions import Positions
from opengcl.sources.source import SIDES, Batch, Description, Side
from opengcl.sources.table_files import Rows, Table

_PADDED_IDS = "{file}, column '{column}': white space around ids is removed"
_SEVERAL_PICTURES = "{file}, column '{column}': the first of several pictures is taken"


@dataclass(frozen=True)
class TableSource:
    """Tables with a mapping.

    Attributes:
        kind: What the provenance calls them, such as ``csv``.
        qrels: The table with scores; without the others it holds queries and documents too.
        mapping: Which column is what; what it leaves open is guessed from the usual names.
        queries: A table with one row a query.
        documents: A table with one row a document.
        name: A name for the data set.
        files: The files behind the tables.
        picture_root: What picture paths are relative to.
        options: More for the provenance.
    """

    kind: str
    qrels: Table
    mapping: TableMapping
    queries: Table | None = None
    documents: Table | None = None
    name: str = "shop"
    files: tuple[Path, ...] = ()
    picture_root: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> Description:
        """See `Source`."""
        mapping = self._completed()
        documents: dict[str, FieldType] = dict.fromkeys(mapping.texts_of_documents, "text")
        documents |= dict.fromkeys(mapping.pictures_of_documents, "image")
        plain = asdict(TableMapping(documents={}, images={}))
        told = {name: value for name, value in asdict(mapping).items() if value != plain[name]}
        return Description(
            source=self.kind,
            name=self.name,
            queries=dict.fromkeys(mapping.queries, "text"),
            documents=documents,
            score_range=mapping.score_range,
            positions=None if mapping.position is None else self._positions(mapping),
            scores_are_places=mapping.position is not None,
            options={"mapping": told, **self._read_as(), **self.options},
            files=self.files,
            picture_root=self.picture_root,
            split_queries=mapping.split is not None,
            notes=(*self._layouts(), *self._guessed(mapping)),
        )

    def batches(self, *, progress: bool) -> Iterator[Batch]:
        """See `Source`."""
        mapping, scores = self._completed(), _ScoreKinds()
        parts: dict[int, tuple[Table, list[Side]]] = {}
        given = {"queries": self.queries, "documents": self.documents}
        for side in SIDES:
            table = given.get(side) or self.qrels
            parts.setdefault(id(table), (table, []))[1].append(side)
        for table, sides in parts.values():
            columns = [one for side in sides for one in mapping.columns_of(side, table.columns)]
            for rows in table.read(columns, progress=progress):
                rows = replace(rows, batch=named(rows.batch, table.name))
                for side in sides:
                    batch = self._batch(side, rows, table.name, mapping, scores)
                    if side == sides[-1]:  # judgments name the ids of all sides in their table
                        padded = mapping.padded_ids(side, rows.batch)
                        told = {_PADDED_IDS.format(file=table.name, column=one): n for one, n in padded.items()}
                        batch = replace(batch, told={**batch.told, **told})
                    yield batch

    def _batch(self, side: Side, rows: Rows, file: str, mapping: TableMapping, scores: _ScoreKinds) -> Batch:
        first = rows.first
        if side == "queries":
            found = mapping.query_rows(rows.batch, file, first)
            spelling = mapping.spellings(rows.batch, file, first)
            return Batch("queries", found, file, first, spelling=spelling, lines=rows.lines)
        if side == "documents":
            found, several = mapping.document_rows(rows.batch, file, first)
            told = {_SEVERAL_PICTURES.format(file=file, column=column): count for column, count in several.items()}
            return Batch("documents", found, file, first, told=told, lines=rows.lines)
        column, allowed = str(mapping.score_column), mapping.allowed_score
        if mapping.label is None:
            rows = rows.with_points(column, file)
            if is_text(rows.batch.schema.field(column).type) and rows.decimal == ".":
                allowed += " (--decimal , reads decimal commas)"
        pairs, raw = mapping.qrels_rows(rows.batch, file, first)
        if mapping.score is not None:
            scores.add(raw, pairs.column("score"), f"{file}, column '{column}'", rows)
        return Batch(
            "qrels",
            pairs,
            file,
            first,
            raw_score=raw,
            score_column=column,
            allowed_score=allowed,
            spelling=mapping.spellings(rows.batch, file, first),
            lines=rows.lines,
        )

    def _positions(self, mapping: TableMapping) -> Positions:
        place = f"{self.qrels.name}, column '{mapping.position}'"
        return Positions(place, mapping.first_position, mapping.list_length)

    def _layouts(self) -> tuple[str, ...]:
        """A sentence about each text file and how it is read."""
        return tuple(f"{table.name}: {table.told}" for table in self._tables() if table.told)

    def _read_as(self) -> dict[str, Any]:
        """The same for the provenance."""
        found = {table.name: table.told for table in self._tables() if table.told}
        return {"read_as": found} if found else {}

    def _tables(self) -> list[Table]:
        given = (self.qrels, self.queries, self.documents)
        return list({id(table): table for table in given if table is not None}.values())

    def _guessed(self, mapping: TableMapping) -> tuple[str, ...]:
        """A sentence about the columns that were not named."""
        found = [
            f"{name} is {column!r}" for name, column in _roles(mapping).items() if name not in _roles(self.mapping)
        ]
        return (f"columns guessed from their names: {', '.join(found)}",) if found else ()

    def _completed(self) -> TableMapping:
        queries, documents = (None if one is None else one.columns for one in (self.queries, self.documents))
        return self.mapping.completed(queries, documents, self.qrels.columns)


def _roles(mapping: TableMapping) -> dict[str, str]:
    """What a mapping says about columns that may be guessed: role or field -> column."""
    single = ("query_id", "queries_id", "doc_id", "documents_id", "score", "position")
    found = {name: str(getattr(mapping, name)) for name in single if getattr(mapping, name) is not None}
    for kind in ("queries", "documents", "images"):
        found |= {f"{kind}.{name}": column for name, column in (getattr(mapping, kind) or {}).items()}
    return found


@dataclass
class _ScoreKinds:
    """Where a column of scores first held a truth value and where a number: it may hold one kind only."""

    truth: str | None = None
    number: str | None = None

    def add(self, raw: pa.Array, score: pa.Array, place: str, rows: Rows) -> None:
        """Looks at some rows.

        Raises:
            DataSetError: Both kinds are found.
        """
        true_false = truths(raw)
        others = np.asarray(pc.is_valid(score)) & ~true_false
        self.truth = self.truth or _first_of(true_false, raw, rows)
        self.number = self.number or _first_of(others, raw, rows)
        if self.truth and self.number:
            raise DataSetError(
                f"{place}: found true and false beside numbers: {self.truth}, {self.number}; allowed: one of them, or "
                "labels with a score each (--label with --gains true=1,false=0,...)"
            )


def _first_of(found: np.ndarray, raw: pa.Array, rows: Rows) -> str | None:
    places = np.flatnonzero(found)
    return f"{rows.place(int(places[0]))} holds {shown(raw[int(places[0])].as_py())}" if len(places) else None
