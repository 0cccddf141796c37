"""The first opening of a data set: every row is checked and written to the cache, a batch at a time."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int, UInt64

from opengcl.data import images, tables
from opengcl.data.problems import NO_FIELD, DataSetError, ProblemLog, place, shown
from opengcl.data.qrels import Qrels
from opengcl.data.records import KEYS, ORDER, TABLE, Records, id_keys, present_file
from opengcl.data.schema import DOCUMENT_ID, PART, QUERY_ID, SPLIT, FieldType, Schema
from opengcl.data.splits import choose

SEEN, DEV = "seen.npy", "dev.npy"
_LARGEST_TABLE = 2**31 - 1
_THREADS = min(8, os.cpu_count() or 1)
_PICTURES_A_TASK = 32
_SPLIT_VALUES = ("seen", "novel")
_PART_VALUES = ("dev", "test")


@dataclass(frozen=True)
class Side:
    """Queries or documents: where they are and how their rows are named."""

    name: str
    id_column: str
    fields: dict[str, FieldType]

    @property
    def file(self) -> str:
        """Name of the Parquet file."""
        return f"{self.name}.parquet"


def sides(schema: Schema) -> tuple[Side, Side]:
    """Queries and documents, in this order."""
    return Side("queries", QUERY_ID, schema.queries), Side("documents", DOCUMENT_ID, schema.documents)


@dataclass(frozen=True)
class Builder:
    """Builds one cache entry.

    Attributes:
        folder: The data set's folder, only read.
        schema: Its schema.
        into: The entry's folder, filled here.
        strict: Whether a problem in a row stops the build, or costs that row.
        check_images: Whether pictures are decoded.
        progress: Whether progress bars are shown.
        log: The problems found.
    """

    folder: Path
    schema: Schema
    into: Path
    strict: bool
    check_images: bool
    progress: bool
    log: ProblemLog = field(default_factory=ProblemLog)

    def run(self) -> None:
        """Checks and writes the three tables.

        Raises:
            DataSetError: If a file cannot be used at all, or, when strict, if any row has a problem: then with
                all problems of queries and documents, or else with all those of the qrels.
        """
        queries, documents = sides(self.schema)
        self._check_columns(queries, documents)
        skipped = {side.id_column: self._write_side(side) for side in (queries, documents)}
        self._stop_if_strict()
        self._write_qrels(skipped)
        self._stop_if_strict()

    def records(self, side: Side) -> Records:
        """The rows of a side that is already written."""
        return Records(self.into / side.name, self.folder, side.file, side.id_column, side.fields)

    def _stop_if_strict(self) -> None:
        if self.strict:
            self.log.stop()

    def _check_columns(self, queries: Side, documents: Side) -> None:
        """Missing files and columns and wrong types, before any long work."""
        has_split = []
        for side in (queries, documents):
            with tables.Table.open(self.folder / side.file) as table:
                table.require_text(side.id_column)
                for name, kind in side.fields.items():
                    table.require_field(name, kind)
                has_split.append(SPLIT in table.columns)
                if has_split[-1]:
                    table.require_text(SPLIT)
                if side is queries and PART in table.columns:
                    table.require_text(PART)
                if table.rows > _LARGEST_TABLE:
                    raise DataSetError(f"{side.file}: found {table.rows:,} rows; allowed: up to {_LARGEST_TABLE:,}")
        if has_split[0] != has_split[1]:
            having, lacking = (queries, documents) if has_split[0] else (documents, queries)
            raise DataSetError(
                f"{lacking.file}, column '{SPLIT}': missing, while {having.file} has it; allowed: both or neither"
            )
        with tables.Table.open(self.folder / "qrels.parquet") as table:
            table.require_text(QUERY_ID)
            table.require_text(DOCUMENT_ID)
            table.require_number("score")

    def _write_side(self, side: Side) -> set[str]:
        """Writes one side and returns the ids of the rows it skipped."""
        with tables.Table.open(self.folder / side.file) as table:
            keys, keep = _IdCheck(table, side, self.log, self.progress).run()
            writer = _RowWriter(self, table, side, keep)
            writer.run()
        if not keep.any():
            raise DataSetError(f"{side.file}: no row is left of {len(keep):,}\n{_all(self.log)}")
        out = self.into / side.name
        order = np.argsort(keys[keep], kind="stable")
        np.save(out / KEYS, keys[keep][order])
        np.save(out / ORDER, order.astype(np.int32))
        for number, name in enumerate(side.fields):
            np.save(out / present_file(number), np.concatenate(writer.present[name]))
        np.save(out / SEEN, np.concatenate(writer.seen))
        np.save(out / DEV, np.concatenate(writer.dev))
        return writer.skipped

    def _write_qrels(self, skipped: dict[str, set[str]]) -> None:
        queries, documents = (self.records(side) for side in sides(self.schema))
        with tables.Table.open(self.folder / "qrels.parquet") as table:
            pairs = _PairCheck(self, table, queries, documents, skipped).run()
        if len(pairs) == 0:
            raise DataSetError(f"qrels.parquet: no row is left\n{_all(self.log)}")
        pairs.save(self.into / "qrels")


def _all(log: ProblemLog) -> str:
    return "\n".join(map(str, log.problems()))


@dataclass
class _IdCheck:
    """First pass over a side, ids only: null, empty and duplicate ids."""

    table: tables.Table
    side: Side
    log: ProblemLog
    progress: bool

    def run(self) -> tuple[UInt64[np.ndarray, "rows"], Bool[np.ndarray, "rows"]]:
        """The key of every row's id, and which rows to keep."""
        parts = []
        keep = np.ones(self.table.rows, bool)
        for first, ids in self._ids("checking ids"):
            parts.append(id_keys(one or "" for one in ids))
            empty = [row for row, one in enumerate(ids, first) if not one]
            keep[empty] = False
            found = (f"row {row} holds {ids[row - first]!r}" for row in empty)
            self._report("null or empty id", "a text that is not empty", len(empty), found)
        keys = np.concatenate(parts)
        self._drop_duplicates(keys, keep)
        return keys, keep

    def _drop_duplicates(self, keys: UInt64[np.ndarray, "rows"], keep: Bool[np.ndarray, "rows"]) -> None:
        """Keeps the first row of each id. Rows that share a key are read again, to compare the ids themselves."""
        ordered = np.sort(keys)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        suspects = np.isin(keys, repeated) & keep if len(repeated) else np.zeros(len(keys), bool)
        if not suspects.any():
            return
        seen: dict[str, int] = {}
        for first, ids in self._ids("comparing ids"):
            for row in (np.flatnonzero(suspects[first : first + len(ids)]) + first).tolist():
                before = seen.setdefault(ids[row - first], row)
                if before != row:
                    keep[row] = False
                    example = f"{place(row, ids[row - first])} repeats the id of row {before}"
                    self._report("duplicate id", "each id once", 1, [example])

    def _ids(self, task: str) -> Any:
        """(first row, ids) of each batch."""
        first, column = 0, self.side.id_column
        for batch in self.table.batches([column], task=f"{self.side.file}: {task}", progress=self.progress):
            array = tables.text(batch.column(0), file=self.side.file, column=column, first_row=first)
            yield first, array.to_pylist()
            first += len(batch)

    def _report(self, kind: str, allowed: str, count: int, examples: Any) -> None:
        self.log.add(self.side.file, self.side.id_column, kind, allowed, count, examples)


class _RowWriter:
    """Second pass over a side: fields, pictures and splits are checked, and the kept rows are written."""

    def __init__(self, builder: Builder, table: tables.Table, side: Side, keep: Bool[np.ndarray, "rows"]) -> None:
        self.builder = builder
        self.table = table
        self.side = side
        self.keep = keep
        self.present: dict[str, list[np.ndarray]] = {name: [] for name in side.fields}
        self.seen: list[np.ndarray] = []
        self.dev: list[np.ndarray] = []
        self.skipped: set[str] = set()

    def run(self) -> None:
        out = self.builder.into / self.side.name
        out.mkdir()
        sink: pa.RecordBatchFileWriter | None = None
        first = 0
        with ThreadPoolExecutor(_THREADS) as pool, pa.OSFile(str(out / TABLE), "wb") as file:
            task = f"{self.side.file}: checking rows"
            for raw in self.table.batches(task=task, progress=self.builder.progress):
                batch = self._plain(raw, first)
                kept = self._check(batch, first, pool)
                sink = sink or pa.ipc.new_file(file, batch.schema)
                sink.write_batch(batch.filter(pa.array(kept)))
                first += len(raw)
            if sink:
                sink.close()

    def _plain(self, raw: pa.RecordBatch, first: int) -> pa.RecordBatch:
        """The batch with the column types that the cache keeps."""
        columns = []
        for name, array in zip(raw.schema.names, raw.columns, strict=True):
            where = {"file": self.side.file, "column": name, "first_row": first}
            if self.side.fields.get(name) == "image":
                columns.append(tables.pictures(array, **where))
            elif name in self.side.fields:
                columns.append(self._texts(array, name, raw, first))
            elif name in (self.side.id_column, SPLIT) or self._is_part(name):
                columns.append(tables.text(array, **where))
            else:
                columns.append(self._other(array, name, raw, first))
        return pa.RecordBatch.from_arrays(columns, names=raw.schema.names)

    def _texts(self, array: pa.Array, name: str, raw: pa.RecordBatch, first: int) -> pa.Array:
        """A text field; values that cannot be used are reported, and missing from here on."""
        texts, broken = tables.readable_texts(array)
        texts, long = tables.short_texts(texts)
        self._report_cells(name, "text that is not UTF-8", "UTF-8 text", broken, raw, first)
        self._report_cells(name, "text too long", f"up to {tables.MAX_TEXT_BYTES:,} bytes", long, raw, first)
        return texts

    def _other(self, array: pa.Array, name: str, raw: pa.RecordBatch, first: int) -> pa.Array:
        """A column that is no field; strings that cannot be read are reported, and null from here on."""
        column, broken = tables.other(array, file=self.side.file, column=name, first_row=first)
        self._report_cells(name, "text that is not UTF-8", "UTF-8 text", broken, raw, first)
        return column

    def _report_cells(
        self, name: str, kind: str, allowed: str, found: Mapping[int, bytes | int], raw: pa.RecordBatch, first: int
    ) -> None:
        ids, keep = raw.column(self.side.id_column), self.keep[first : first + len(raw)]
        rows = [row for row in found if keep[row]]
        examples = (f"{place(first + row, ids[row].as_py())} holds {_found(found[row])}" for row in rows)
        self._report(name, kind, allowed, len(rows), examples)

    def _is_part(self, name: str) -> bool:
        return name == PART and self.side.name == "queries"

    def _check(self, batch: pa.RecordBatch, first: int, pool: ThreadPoolExecutor) -> Bool[np.ndarray, "rows"]:
        """Checks one batch, notes its presence and splits, and returns which of its rows are kept."""
        keep = self.keep[first : first + len(batch)]
        candidates = keep.copy()
        ids = batch.column(self.side.id_column).to_pylist()
        present = {name: np.asarray(tables.present(batch.column(name))) for name in self.side.fields}
        present = {name: there.copy() for name, there in present.items()}
        if self.builder.check_images:
            for name, there in present.items():
                if self.side.fields[name] == "image":
                    self._check_pictures(name, batch.column(name), there, candidates, ids, first, pool)
        self._check_any_present(present, keep, ids, first)
        seen = self._check_split(batch, keep, ids, first)
        dev = self._check_part(batch, keep, ids, first)
        self.skipped.update(ids[row] for row in np.flatnonzero(candidates & ~keep).tolist())
        for name, there in present.items():
            self.present[name].append(there[keep])
        self._note_splits(seen, dev, keep, ids)
        return keep

    def _check_pictures(
        self,
        name: str,
        column: pa.Array,
        there: Bool[np.ndarray, "rows"],
        keep: Bool[np.ndarray, "rows"],
        ids: list[str],
        first: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        """Unreadable pictures: reported and, where the row goes on without one, marked as missing."""
        rows = np.flatnonzero(there & keep).tolist()
        tasks = [rows[at : at + _PICTURES_A_TASK] for at in range(0, len(rows), _PICTURES_A_TASK)]
        check = functools.partial(_faults, column, self.builder.folder)
        faults = [one for found in pool.map(check, tasks) for one in found]
        examples = (f"{place(first + row, ids[row])}: {reason}" for row, reason in faults)
        self._report(name, "unreadable image", "a picture that can be decoded, or none", len(faults), examples)
        if not self.builder.strict:
            there[[row for row, _ in faults]] = False

    def _check_any_present(
        self, present: dict[str, np.ndarray], keep: Bool[np.ndarray, "rows"], ids: list[str], first: int
    ) -> None:
        names = ", ".join(self.side.fields)
        empty = np.flatnonzero(keep & ~np.logical_or.reduce(list(present.values())))
        examples = (f"{place(first + row, ids[row])} has none of {names}" for row in empty.tolist())
        self._report(names, NO_FIELD, "at least one field that is not empty", len(empty), examples)
        keep[empty] = False

    def _check_split(
        self, batch: pa.RecordBatch, keep: Bool[np.ndarray, "rows"], ids: list[str], first: int
    ) -> Bool[np.ndarray, "rows"] | None:
        """Which rows are seen, where there is a ``split`` column."""
        if SPLIT not in batch.schema.names:
            return None
        values = batch.column(SPLIT)
        valid = np.asarray(pc.is_in(values, pa.array(_SPLIT_VALUES, pa.large_string())))
        wrong = np.flatnonzero(keep & ~valid)
        examples = (f"{place(first + row, ids[row])} holds {shown(values[row].as_py())}" for row in wrong.tolist())
        self._report(SPLIT, "unknown split", " or ".join(_SPLIT_VALUES), len(wrong), examples)
        keep[wrong] = False
        return np.asarray(pc.fill_null(pc.equal(values, _SPLIT_VALUES[0]), False))

    def _check_part(
        self, batch: pa.RecordBatch, keep: Bool[np.ndarray, "rows"], ids: list[str], first: int
    ) -> tuple[Bool[np.ndarray, "rows"], Bool[np.ndarray, "rows"]] | None:
        """Which queries say that they are dev, and which say nothing, where there is a ``part`` column."""
        if not any(map(self._is_part, batch.schema.names)):
            return None
        values = batch.column(PART)
        wrong = np.asarray(pc.is_valid(values)) & ~np.asarray(pc.is_in(values, pa.array(_PART_VALUES, values.type)))
        rows = np.flatnonzero(keep & wrong)
        examples = (f"{place(first + row, ids[row])} holds {shown(values[row].as_py())}" for row in rows.tolist())
        self._report(PART, "unknown part", " or ".join(_PART_VALUES) + ", or null", len(rows), examples)
        keep[rows] = False
        return np.asarray(pc.fill_null(pc.equal(values, _PART_VALUES[0]), False)), np.asarray(pc.is_null(values))

    def _note_splits(
        self,
        seen: Bool[np.ndarray, "rows"] | None,
        part: tuple[Bool[np.ndarray, "rows"], Bool[np.ndarray, "rows"]] | None,
        keep: Bool[np.ndarray, "rows"],
        ids: list[str],
    ) -> None:
        options = self.builder.schema.splits
        kept = [ids[row] for row in np.flatnonzero(keep).tolist()]
        is_query = self.side.name == "queries"
        share = options.seen_queries if is_query else options.seen_documents
        side = "query" if is_query else "document"
        self.seen.append(choose(kept, seed=options.seed, side=side, share=share) if seen is None else seen[keep])
        dev = choose(kept if is_query else [], seed=options.seed, side="dev", share=options.dev)
        if part is not None:
            told, silent = part
            dev = np.where(silent[keep], dev, told[keep])
        self.dev.append(dev)

    def _report(self, column: str, kind: str, allowed: str, count: int, examples: Any) -> None:
        self.builder.log.add(self.side.file, column, kind, allowed, count, examples)


def _found(text: bytes | int) -> str:
    """Bytes that are no text, or how many they are."""
    return f"{text:,} bytes" if isinstance(text, int) else shown(text)


def _faults(column: pa.Array, folder: Path, rows: list[int]) -> list[tuple[int, str]]:
    """The rows of these whose picture is unreadable, with the reason."""
    found = ((row, images.fault(column[row].as_py(), folder)) for row in rows)
    return [(row, reason) for row, reason in found if reason is not None]


@dataclass
class _PairCheck:
    """The qrels: ids that point somewhere, scores in range, each pair once."""

    builder: Builder
    table: tables.Table
    queries: Records
    documents: Records
    skipped: dict[str, set[str]]

    def run(self) -> Qrels:
        query, document, score, row = self._read()
        keep = self._first_of_each_pair(query, document, score, row)
        return Qrels.sort(query[keep], document[keep], score[keep], len(self.queries))

    def _read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Query row, document row, score and row in the file of each pair that is right by itself."""
        parts: list[tuple[np.ndarray, ...]] = []
        first = 0
        columns = [QUERY_ID, DOCUMENT_ID, "score"]
        task = f"{self.table.name}: checking pairs"
        for batch in self.table.batches(columns, task=task, progress=self.builder.progress):
            query = self._resolve(batch, QUERY_ID, self.queries, first)
            document = self._resolve(batch, DOCUMENT_ID, self.documents, first)
            score, fine = self._scores(batch, first)
            kept = np.flatnonzero((query >= 0) & (document >= 0) & fine)
            parts.append((query[kept], document[kept], score[kept], kept + first))
            first += len(batch)
        query, document, score, row = (np.concatenate(part) for part in zip(*parts, strict=True))
        return query, document, score, row

    def _resolve(self, batch: pa.RecordBatch, column: str, records: Records, first: int) -> Int[np.ndarray, "rows"]:
        """Rows that a batch's ids point to; -1 for nowhere. Each distinct id is looked up once."""
        array = tables.text(batch.column(column), file=self.table.name, column=column, first_row=first)
        codes = pc.dictionary_encode(array, null_encoding="encode")
        ids = codes.dictionary.to_pylist()
        found = records.find([one or "" for one in ids]).astype(np.int32)
        indices = np.asarray(codes.indices)
        rows = found[indices]
        lost = np.flatnonzero(rows < 0)
        if len(lost):
            names = [ids[code] for code in indices[lost].tolist()]
            self._report_lost(column, records.file, list(zip((lost + first).tolist(), names, strict=True)))
        return rows

    def _report_lost(self, column: str, file: str, lost: Sequence[tuple[int, str | None]]) -> None:
        """Sorts ids that point nowhere by the reason."""
        null = [f"row {row} holds {one!r}" for row, one in lost if not one]
        self._report(column, "null or empty id", f"an id of {file}", len(null), null)
        gone = self.skipped[column]
        with_row = [f"{place(row, one)}" for row, one in lost if one and one in gone]
        self._report(column, "id of a skipped row", f"an id of {file}", len(with_row), with_row)
        nowhere = [f"row {row} holds {shown(one)}" for row, one in lost if one and one not in gone]
        self._report(column, "unknown id", f"an id of {file}", len(nowhere), nowhere)

    def _scores(
        self, batch: pa.RecordBatch, first: int
    ) -> tuple[Float32[np.ndarray, "rows"], Bool[np.ndarray, "rows"]]:
        """Scores as float32, and which of them are allowed. Bounds are rounded to float32 too."""
        column = batch.column("score")
        null = np.asarray(pc.is_null(column))
        with np.errstate(over="ignore"):
            exact = np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), 0.0))
            score = exact.astype(np.float32)
        low, high = np.float32(self.builder.schema.score_min), np.float32(self.builder.schema.score_max)
        infinite = ~null & ~np.isfinite(exact)
        outside = ~null & ~infinite & ~((score >= low) & (score <= high))
        allowed = f"{self.builder.schema.score_min} to {self.builder.schema.score_max}"
        for kind, wrong in (("null score", null), ("score not finite", infinite), ("score out of range", outside)):
            rows = np.flatnonzero(wrong)
            self._report("score", kind, allowed, len(rows), map(_pair_example(batch, first), rows.tolist()))
        return score, ~(null | infinite | outside)

    def _first_of_each_pair(
        self, query: np.ndarray, document: np.ndarray, score: np.ndarray, row: np.ndarray
    ) -> Bool[np.ndarray, "pairs"]:
        """Keeps the first of equal (query, document) pairs."""
        key = query.astype(np.int64) * len(self.documents) + document
        order = np.argsort(key, kind="stable")
        again = order[1:][key[order[1:]] == key[order[:-1]]]
        again.sort()
        keep = np.ones(len(key), bool)
        keep[again] = False
        columns = f"{QUERY_ID}, {DOCUMENT_ID}"

        def example(at: int) -> str:
            ids = (self.queries.ids(query[[at]])[0], self.documents.ids(document[[at]])[0])
            first = int(np.flatnonzero(key == key[at])[0])
            told = f"row {row[at]} repeats the pair {shown(ids)} of row {row[first]}"
            return (
                told if score[at] == score[first] else f"{told}, with the score {score[at]} instead of {score[first]}"
            )

        examples = map(example, again.tolist())
        self._report(columns, "duplicate pair", "each pair of ids once", len(again), examples)
        return keep

    def _report(self, column: str, kind: str, allowed: str, count: int, examples: Any) -> None:
        self.builder.log.add(self.table.name, column, kind, allowed, count, examples)


def _pair_example(batch: pa.RecordBatch, first: int) -> Callable[[int], str]:
    """Names a row of the qrels by its number and its ids, with its score."""

    def example(row: int) -> str:
        query, document, score = (batch.column(name)[row].as_py() for name in (QUERY_ID, DOCUMENT_ID, "score"))
        return f"row {first + row} (ids {shown((query, document))}) holds {score!r}"

    return example
