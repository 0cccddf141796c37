"""The rows of a source, checked as they stream by, into the tables of a data set."""

from __future__ import annotations

from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from opengcl.data import tables
from opengcl.data.problems import ProblemLog, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID, SPLIT
from opengcl.data.splits import choose
from opengcl.sources.repeated_rows import FIRST_ROW, Empty, later_rows
from opengcl.sources.source import SIDES, Batch, Description, Side

BadRows = Literal["error", "skip"]
SPELLING = "spelling hash"
"""Column of a staged ``qrels.parquet`` that says how a pair's query is spelled, where its id does not."""

_ID_COLUMNS: dict[Side, tuple[str, ...]] = {
    "queries": (QUERY_ID,),
    "documents": (DOCUMENT_ID,),
    "qrels": (QUERY_ID, DOCUMENT_ID),
}
_NULL_MARKERS = pa.array(
    ["nan", "na", "n/a", "#n/a", "null", "none", "nil", "undefined", "<na>", "<null>", r"\n", "-", "--", "?"],
    pa.large_string(),
)


class Stage:
    """Writes the three tables into a folder while a source is read.

    A row without an id, and a score that is no finite number are problems. The first row of each id goes into the
    table; later ones that say something else go beside it, for `opengcl.sources.repeated_rows.settle_rows`.

    Memory holds three 64-bit numbers for each distinct id (about 130 bytes in Python), and one batch.

    Args:
        folder: Where the tables go.
        description: Of the source.
        seen_documents: Share of the documents that are seen, where the source divides its queries but not these.
        seed: Of that division.
        log: Where problems go.

    Attributes:
        counts: Rows of each table, and ``repeated`` and ``skipped`` rows.
        told: What the batches told, as the start of a sentence -> rows that it is true of.
        empty: First rows of queries and documents in which no field is there.
        scores: Smallest and largest.
    """

    def __init__(
        self, folder: Path, description: Description, *, seen_documents: float, seed: int, log: ProblemLog
    ) -> None:
        self._folder, self._description, self._log = folder, description, log
        self._share, self._seed = seen_documents, seed
        self._fields = {"queries": list(description.queries), "documents": list(description.documents)}
        self._rows: dict[Side, dict[int, int]] = {"queries": {}, "documents": {}}
        self._contents: dict[Side, array[int]] = {"queries": array("q"), "documents": array("q")}
        self._spellings: set[int] = set()
        self._writers: dict[Path, pq.ParquetWriter] = {}
        self._open = ExitStack()
        self.counts: dict[str, int] = dict.fromkeys([*SIDES, "repeated", "skipped"], 0)
        self.told: dict[str, int] = {}
        self.empty: dict[Side, Empty] = {"queries": Empty(), "documents": Empty()}
        self.scores = (np.inf, -np.inf)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        for known in (self._rows, self._contents):
            known.clear()  # their memory is wanted for what comes next
        self._spellings.clear()

    def add(self, batch: Batch) -> None:
        """Checks some rows and writes those that say something new."""
        for what, count in batch.told.items():
            self.told[what] = self.told.get(what, 0) + count
        keep = self._with_ids(batch)
        if batch.side == "qrels":
            self._add_pairs(batch, keep)
        else:
            self._add_rows(batch, keep)

    def _add_pairs(self, batch: Batch, keep: np.ndarray) -> None:
        keep &= self._with_scores(batch, keep)
        rows = batch.rows if batch.spelling is None else batch.rows.append_column(SPELLING, batch.spelling)
        kept = rows.filter(pa.array(keep))
        self.counts["skipped"] += int((~keep).sum())
        self.counts["qrels"] += len(kept)
        if len(kept):
            low, high = pc.min_max(kept.column("score")).as_py().values()
            self.scores = min(self.scores[0], low), max(self.scores[1], high)
            self._write(self._folder / "qrels.parquet", kept)

    def _add_rows(self, batch: Batch, keep: np.ndarray) -> None:
        side = batch.side
        self.counts["skipped"] += int((~keep).sum())
        fields = {name: np.asarray(tables.present(batch.rows.column(name))) for name in self._fields[side]}
        fresh, later, owners = self._sorted_out(batch, keep, fields)
        empty = np.flatnonzero(fresh & ~np.logical_or.reduce(list(fields.values())))
        first_row = self.counts[side]
        for row in empty.tolist():
            self.empty[side].add(first_row + int(fresh[:row].sum()), batch.file, batch.place(row))
        rows = self._divided(side, batch.rows)
        if fresh.any():
            self.counts[side] += int(fresh.sum())
            self._write(self._folder / f"{side}.parquet", rows.filter(pa.array(fresh)))
        if later.any():
            columns = {name: _without(rows.column(name), fields.get(name)) for name in rows.schema.names}
            more = pa.RecordBatch.from_pydict({**columns, FIRST_ROW: pa.array(owners)})
            self._write(later_rows(self._folder, side), more.filter(pa.array(later)))

    def _with_ids(self, batch: Batch) -> np.ndarray:
        keep = np.ones(len(batch.rows), bool)
        for column in _ID_COLUMNS[batch.side]:
            empty = np.flatnonzero(~np.asarray(tables.present(batch.rows.column(column))))
            examples = (f"{batch.place(row)}" for row in empty.tolist())
            self._report(batch, column, "null or empty id", "a text that is not empty", empty, examples)
            keep[empty] = False
            self._note_markers(batch, column)
        return keep

    def _note_markers(self, batch: Batch, column: str) -> None:
        """Counts ids that look like a name for a missing value."""
        found = batch.rows.column(column)
        found = found.filter(pc.is_in(pc.utf8_lower(found), _NULL_MARKERS))
        for one in pc.value_counts(found).to_pylist():
            what = (
                f"rows of {batch.file} have the {column} {shown(one['values'])}, which is kept as an id and looks like "
                f"a missing value (--null {one['values']} reads it as one)"
            )
            self.told[what] = self.told.get(what, 0) + one["counts"]

    def _with_scores(self, batch: Batch, keep: np.ndarray) -> np.ndarray:
        score = batch.rows.column("score")
        fine = np.asarray(pc.fill_null(pc.is_finite(score), False))
        wrong = np.flatnonzero(keep & ~fine)
        raw = batch.raw_score if batch.raw_score is not None else score
        examples = (f"{batch.place(row)} holds {shown(raw[row].as_py())}" for row in wrong.tolist())
        self._report(batch, batch.score_column, "unusable score", batch.allowed_score, wrong, examples)
        return fine

    def _sorted_out(
        self, batch: Batch, keep: np.ndarray, fields: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which rows are the first of their id, which come later with another content, and each row's first one.

        Hashes of ids and of contents are compared, 64 bits each.
        """
        known, contents = self._rows[batch.side], self._contents[batch.side]
        fresh, later = np.zeros(len(batch.rows), bool), np.zeros(len(batch.rows), bool)
        owners = np.zeros(len(batch.rows), np.int64)
        ids = batch.rows.column(_ID_COLUMNS[batch.side][0]).to_pylist()
        found = self._content_hashes(batch, fields)
        if batch.side == "queries" and batch.spelling is not None:
            self._count_spellings(batch.spelling, keep)
        for row in np.flatnonzero(keep).tolist():
            size = len(known)
            owner = known.setdefault(hash(ids[row]), size)
            owners[row] = owner
            if len(known) > size:
                fresh[row] = True
                contents.append(found[row])
            elif contents[owner] == found[row]:
                self.counts["repeated"] += 1
            else:
                later[row] = True
        return fresh, later, owners

    def _content_hashes(self, batch: Batch, fields: dict[str, np.ndarray]) -> list[int]:
        """A hash of each row, ids aside; values that are missing, empty or blank count as the same."""
        names = [name for name in batch.rows.schema.names if name not in _ID_COLUMNS[batch.side]]
        if batch.spelling is not None:  # the id stands for the fields
            names = [name for name in names if name not in self._fields[batch.side]]
        columns = [_without(batch.rows.column(name), fields.get(name)).to_pylist() for name in names]
        if not columns:
            return [0] * len(batch.rows)
        return [_hash(content) for content in zip(*columns, strict=True)]

    def _count_spellings(self, spelling: pa.Array, keep: np.ndarray) -> None:
        self._spellings.update(spelling.filter(pa.array(keep)).to_pylist())

    @property
    def merged_spellings(self) -> int:
        """How many spellings of queries became one with another."""
        return max(0, len(self._spellings) - self.counts["queries"]) if self._spellings else 0

    def _divided(self, side: Side, rows: pa.RecordBatch) -> pa.RecordBatch:
        """With a column ``split``, where the source divides its queries only."""
        if side != "documents" or not self._description.split_queries:
            return rows
        ids = rows.column(DOCUMENT_ID).to_pylist()
        seen = choose((one or "" for one in ids), seed=self._seed, side="document", share=self._share)
        return rows.append_column(SPLIT, pa.array(np.where(seen, "seen", "novel")))

    def _write(self, path: Path, rows: pa.RecordBatch) -> None:
        if path not in self._writers:
            self._writers[path] = self._open.enter_context(pq.ParquetWriter(path, rows.schema, compression="zstd"))
        self._writers[path].write_batch(rows.cast(self._writers[path].schema))

    def _report(self, batch: Batch, column: str, kind: str, allowed: str, rows: np.ndarray, examples: Any) -> None:
        self._log.add(batch.file, column, kind, allowed, len(rows), examples)


def _without(column: pa.Array, there: np.ndarray | None) -> pa.Array:
    """A column with nulls where a field is blank, or a text empty, or a number NaN."""
    if there is None and pt.is_floating(column.type):
        there = ~np.asarray(pc.fill_null(pc.is_nan(column), True))
    elif there is None and tables.is_text(column.type):
        there = np.asarray(tables.present(column.cast(pa.large_string())))
    if there is None or there.all():
        return column
    return column.filter(pa.array(there)).take(pa.array(np.cumsum(there) - 1, mask=~there))


def _hash(content: tuple[Any, ...]) -> int:
    try:
        return hash(content)
    except TypeError:  # lists and objects of columns that are kept
        return hash(repr(content))
