"""Every vector compared with every query: the oracle of the other stores, and enough for a small shop.

One SQLite file holds all versions. Vectors and fields are read into memory at the first search and after each change.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32

from opengcl.index.filters import And, Filter, In, Missing, Or
from opengcl.index.protocol import Hit, IndexSpec, Row, StoreError, UnknownIndex, VectorIndexError, check_name, unknown
from opengcl.index.rows import (
    ARROW,
    checked_ids,
    checked_query,
    checked_rows,
    checked_where,
    column_names,
    fields_by_row,
)
from opengcl.index.vectors import from_kept
from opengcl.search import exact_top_k

FILE = "exact.sqlite"
_BUSY_SECONDS = 60.0
_TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS version (name TEXT PRIMARY KEY, spec TEXT NOT NULL, changes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS live (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL REFERENCES version);
"""


class ExactStore:
    """Implements `opengcl.index.protocol.Store` in a folder of its own.

    Args:
        folder: Made if it is not there.

    Raises:
        StoreError: It cannot be opened, or its file is something else.
    """

    def __init__(self, folder: Path) -> None:
        self.uri = f"exact:{folder}"
        self._file = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StoreError(f"{self.uri}: found a file; allowed: a folder, which is made if it is missing") from error
        except OSError as error:
            raise StoreError(f"{self.uri}: {error}") from error
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(self._file, timeout=_BUSY_SECONDS, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreError(f"{self._file}: {error}") from error
        try:
            with self.transaction() as database:
                database.executescript(_TABLES)
        except StoreError:
            self._connection.close()
            raise

    def create(self, name: str, spec: IndexSpec) -> ExactIndex:
        """As `Store.create`."""
        check_name(name)
        with self.transaction() as database:
            if database.execute("SELECT 1 FROM version WHERE name = ?", (name,)).fetchone():
                raise VectorIndexError(f"{self.uri}: index {name!r} is there already; allowed: a new name")
            database.execute("INSERT INTO version VALUES (?, ?, 0)", (name, spec.to_json()))
            database.execute(
                f"CREATE TABLE rows_{name} (number INTEGER PRIMARY KEY, doc_id TEXT UNIQUE NOT NULL, "
                "vector BLOB NOT NULL, fields TEXT NOT NULL)"
            )
        return ExactIndex(self, name, spec)

    def open(self, name: str | None = None) -> ExactIndex:
        """As `Store.open`."""
        with self.transaction() as database:
            found = database.execute(
                "SELECT name, spec FROM version WHERE name = coalesce(?, (SELECT name FROM live))", (name,)
            ).fetchone()
        if found is None:
            raise unknown(name, self.names(), self.uri)
        return ExactIndex(self, found[0], IndexSpec.from_json(found[1]))

    def names(self) -> list[str]:
        """As `Store.names`."""
        with self.transaction() as database:
            return [name for (name,) in database.execute("SELECT name FROM version ORDER BY name")]

    def live(self) -> str | None:
        """As `Store.live`."""
        with self.transaction() as database:
            found = database.execute("SELECT name FROM live").fetchone()
        return None if found is None else str(found[0])

    def swap(self, name: str) -> None:
        """As `Store.swap`: one transaction."""
        with self.transaction() as database:
            known = database.execute("SELECT 1 FROM version WHERE name = ?", (name,)).fetchone()
            if known:
                database.execute("INSERT OR REPLACE INTO live VALUES (1, ?)", (name,))
        if not known:
            raise unknown(name, self.names(), self.uri)

    def drop(self, name: str) -> None:
        """As `Store.drop`."""
        if name not in self.names():
            raise unknown(name, self.names(), self.uri)
        with self.transaction() as database:
            if database.execute("SELECT 1 FROM live WHERE name = ?", (name,)).fetchone():
                raise VectorIndexError(f"{self.uri}: index {name!r} is live; swap to another one first")
            database.execute("DELETE FROM version WHERE name = ?", (name,))
            database.execute(f"DROP TABLE IF EXISTS rows_{name}")

    def close(self) -> None:
        """As `Store.close`."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction of one thread."""
        try:
            with self._lock, self._connection:
                yield self._connection
        except sqlite3.Error as error:
            raise StoreError(f"{self._file}: {error}") from error


@dataclass(frozen=True, eq=False)
class _Content:
    """An index in memory, as it was after so many changes."""

    changes: int
    ids: list[str]
    vectors: Float32[np.ndarray, "rows dimension"]
    fields: pa.Table


class ExactIndex:
    """Implements `opengcl.index.protocol.Index`; from `ExactStore`."""

    def __init__(self, store: ExactStore, name: str, spec: IndexSpec) -> None:
        self.name = name
        self.spec = spec
        self._store = store
        self._content: _Content | None = None
        self._reading = threading.Lock()

    def upsert(self, ids: Sequence[str], vectors: np.ndarray, fields: Mapping[str, Sequence[Any]]) -> None:
        """As `Index.upsert`."""
        rows = checked_rows(self.spec, ids, vectors, fields)
        values = zip(*(column.to_pylist() for column in rows.columns), strict=True) if rows.columns else [()] * len(ids)
        given = [
            (one, vector.tobytes(), json.dumps(list(of_row)))
            for one, vector, of_row in zip(rows.ids, rows.vectors, values, strict=True)
        ]
        with self._change() as database:
            database.executemany(
                f"INSERT INTO rows_{self.name} (doc_id, vector, fields) VALUES (?, ?, ?) "  # noqa: S608 - a checked name
                "ON CONFLICT (doc_id) DO UPDATE SET vector = excluded.vector, fields = excluded.fields",
                given,
            )

    def delete(self, ids: Sequence[str]) -> int:
        """As `Index.delete`."""
        names = [(one,) for one in dict.fromkeys(checked_ids(ids))]
        with self._change() as database:
            return database.executemany(f"DELETE FROM rows_{self.name} WHERE doc_id = ?", names).rowcount  # noqa: S608

    def search(
        self, vectors: np.ndarray, k: int, *, where: Filter | None = None, offset: int = 0, exact: bool = False
    ) -> list[list[Hit]]:
        """As `Index.search`; documents with equal scores come in the order in which they were added."""
        queries, where = checked_query(self.spec, vectors, k, offset, where)
        content = self._read()
        rows = None if where is None else _matching(where, self.spec, content.fields)
        if not len(queries) or not len(content.ids) or (rows is not None and not len(rows)):
            return [[] for _ in queries]
        scores, found = exact_top_k(queries, content.vectors, k + offset, rows=rows)
        return [self._hits(content, score[offset:], row[offset:]) for score, row in zip(scores, found, strict=True)]

    def count(self, where: Filter | None = None) -> int:
        """As `Index.count`."""
        where = checked_where(self.spec, where)
        content = self._read()
        return len(content.ids) if where is None else len(_matching(where, self.spec, content.fields))

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """As `Index.get`."""
        names = checked_ids(ids)
        query = f"SELECT vector, fields FROM rows_{self.name} WHERE doc_id = ?"  # noqa: S608
        with self._access() as database:
            found = [database.execute(query, (one,)).fetchone() for one in names]
        return [None if row is None else self._row(one, *row) for one, row in zip(names, found, strict=True)]

    def finish(self) -> None:
        """As `Index.finish`: there is no approximate index, so all there is to do is to read the vectors."""
        self._read()

    def size(self) -> int:
        """As `Index.size`: bytes of vectors, ids and fields."""
        with self._access() as database:
            query = f"SELECT sum(length(doc_id) + length(vector) + length(fields)) FROM rows_{self.name}"  # noqa: S608
            return int(database.execute(query).fetchone()[0] or 0)

    def _row(self, doc_id: str, vector: bytes, fields: str) -> Row:
        unit = from_kept(np.frombuffer(vector, dtype=self.spec.dtype)[None], self.spec.dtype)[0]
        return Row(doc_id, unit, dict(zip(self.spec.fields, json.loads(fields), strict=True)))

    def _hits(self, content: _Content, scores: np.ndarray, rows: np.ndarray) -> list[Hit]:
        fields = fields_by_row(self.spec, content.fields.take(rows))
        found = zip(rows.tolist(), np.clip(scores, -1, 1).tolist(), fields, strict=True)
        return [Hit(content.ids[row], score, of_row) for row, score, of_row in found]

    def _read(self) -> _Content:
        with self._reading, self._access() as database:
            query = "SELECT changes FROM version WHERE name = ?"
            changes = int(database.execute(query, (self.name,)).fetchone()[0])
            if self._content is None or self._content.changes != changes:
                query = f"SELECT doc_id, vector, fields FROM rows_{self.name} ORDER BY number"  # noqa: S608
                self._content = self._loaded(changes, database.execute(query).fetchall())
            return self._content

    def _loaded(self, changes: int, rows: list[tuple[str, bytes, str]]) -> _Content:
        kept = np.frombuffer(b"".join(vector for _, vector, _ in rows), dtype=self.spec.dtype)
        kept = kept.reshape(len(rows), self.spec.dimension)
        values = [json.loads(fields) for _, _, fields in rows]
        columns = {"row": pa.array(np.arange(len(rows), dtype=np.int64))}
        for number, (name, kind) in enumerate(self.spec.fields.items()):
            columns[column_names(self.spec)[name]] = pa.array([of_row[number] for of_row in values], ARROW[kind])
        unit = from_kept(kept, self.spec.dtype)
        return _Content(changes, [one for one, _, _ in rows], unit, pa.table(columns))

    @contextmanager
    def _access(self) -> Iterator[sqlite3.Connection]:
        with self._store.transaction() as database:
            if not database.execute("SELECT 1 FROM version WHERE name = ?", (self.name,)).fetchone():
                raise UnknownIndex(f"{self._store.uri}: index {self.name!r} was dropped")
            yield database

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._access() as database:
            database.execute("UPDATE version SET changes = changes + 1 WHERE name = ?", (self.name,))
            yield database


def _matching(where: Filter, spec: IndexSpec, fields: pa.Table) -> np.ndarray:
    """Rows that match, in their order."""
    columns = {name: pc.field(column) for name, column in column_names(spec).items()}
    return fields.filter(_expression(where, columns))["row"].to_numpy()


def _expression(where: Filter, columns: Mapping[str, pc.Expression]) -> pc.Expression:
    if isinstance(where, And | Or):
        return reduce(and_ if isinstance(where, And) else or_, (_expression(part, columns) for part in where.parts))
    column = columns[where.field]
    if isinstance(where, Missing):
        return column.is_valid() if where.negated else column.is_null()
    if isinstance(where, In):
        within = column.isin(list(where.values))
        return column.is_valid() & (~within if where.negated else within)
    return _COMPARE[where.operator](column, where.value)


_COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
