"""A shop's own tables as a source: one with everything, or queries, documents and scores apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opengcl.data.schema import FieldType
from opengcl.sources.mapping import TableMapping
from opengcl.sources.source import Batch, Description
from opengcl.sources.table_files import Rows, Table


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
        documents: dict[str, FieldType] = dict.fromkeys(mapping.documents, "text")
        documents |= dict.fromkeys(mapping.images, "image")
        told = {name: value for name, value in asdict(mapping).items() if value}
        return Description(
            source=self.kind,
            name=self.name,
            queries=dict.fromkeys(mapping.queries, "text"),
            documents=documents,
            score_range=mapping.score_range,
            options={"mapping": told, **self.options},
            files=self.files,
            picture_root=self.picture_root,
            split_queries=mapping.split is not None,
        )

    def batches(self, *, progress: bool) -> Iterator[Batch]:
        """See `Source`."""
        mapping = self._completed()
        wanted: dict[str, list[str | None]] = {
            "queries": [mapping.query_id, *mapping.queries.values(), mapping.split],
            "documents": [mapping.doc_id, *mapping.documents.values(), *mapping.images.values(), *mapping.keep],
            "qrels": [mapping.doc_id, mapping.score_column],
        }
        wanted["qrels"] += [mapping.query_id] if mapping.query_id else list(mapping.queries.values())
        parts: dict[int, tuple[Table, list[str]]] = {}
        given = {"queries": self.queries, "documents": self.documents}
        for side in wanted:
            table = given.get(side) or self.qrels
            parts.setdefault(id(table), (table, []))[1].append(side)
        for table, sides in parts.values():
            columns = [one for side in sides for one in wanted[side] if one is not None]
            for rows in table.read(columns, progress=progress):
                yield from (self._batch(side, rows, table.name, mapping) for side in sides)

    def _batch(self, side: str, rows: Rows, file: str, mapping: TableMapping) -> Batch:
        if side == "queries":
            return Batch("queries", mapping.query_rows(rows.batch, file), file, rows.first, lines=rows.lines)
        if side == "documents":
            return Batch("documents", mapping.document_rows(rows.batch, file), file, rows.first, lines=rows.lines)
        column, allowed = str(mapping.score_column), mapping.allowed_score
        if mapping.label is None:
            rows = rows.with_points(column, file)
            if rows.lines is not None and rows.decimal == ".":
                allowed += " (--decimal , reads decimal commas)"
        pairs, raw = mapping.qrels_rows(rows.batch, file)
        return Batch(
            "qrels",
            pairs,
            file,
            rows.first,
            raw_score=raw,
            score_column=column,
            allowed_score=allowed,
            lines=rows.lines,
        )

    def _completed(self) -> TableMapping:
        tables = (self.queries or self.qrels, self.documents or self.qrels, self.qrels)
        return self.mapping.completed(*(table.columns for table in tables))
