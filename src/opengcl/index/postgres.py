"""PostgreSQL with pgvector: a table an index, beside the shop's own tables; one row names the live one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np

from opengcl.index.filters import And, Filter, In, Missing, Or
from opengcl.index.protocol import Hit, IndexSpec, Row, StoreError, UnknownIndex, VectorIndexError, check_name, unknown
from opengcl.index.rows import checked_ids, checked_query, checked_rows, checked_where, column_names
from opengcl.index.vectors import from_kept

try:
    import psycopg
    from pgvector import HalfVector
    from pgvector.psycopg import register_vector
    from psycopg import errors, sql
    from psycopg.conninfo import conninfo_to_dict
except ImportError as missing:
    raise StoreError("PostgreSQL's client is not installed; pip install 'opengcl[pgvector]'") from missing

Result = TypeVar("Result")
Connection = psycopg.Connection[tuple[Any, ...]]

_SEARCHED = 128  # HNSW's ef: candidates kept in mind while the graph is walked
_MOST_SEARCHED = 1000  # pgvector's limit
_WIDEST = {"float32": 2000, "int8": 4000}  # what pgvector's index takes of each type
_TYPES = {"float32": "vector", "int8": "halfvec"}  # int8 numbers are kept as halves, without loss: there is no int8
_COLUMN_TYPES = {"text": "text", "integer": "int8", "number": "float8", "boolean": "bool"}
_CONNECT_SECONDS = 10
_SETUP_LOCK = 0x6F70656E67636C  # any number that all of our processes share

_TABLES = """
CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;
CREATE TABLE IF NOT EXISTS opengcl_index (name text PRIMARY KEY, spec text NOT NULL);
CREATE TABLE IF NOT EXISTS opengcl_live (
    one bool PRIMARY KEY DEFAULT true CHECK (one), name text NOT NULL REFERENCES opengcl_index
);
"""

_SETTINGS = f"SET hnsw.ef_search = {_SEARCHED}; SET hnsw.iterative_scan = strict_order"


class PostgresStore:
    """Implements `opengcl.index.protocol.Store`; there are as many connections as were needed at a time.

    Args:
        uri: ``postgresql://user:password@host/database``, with any of libpq's parameters, such as
            ``?options=-csearch_path%3Dshop,public`` for a schema. The password may be in ``PGPASSWORD``.

    Raises:
        StoreError: The server cannot be reached, or pgvector is not there and may not be installed by this user.
    """

    def __init__(self, uri: str) -> None:
        try:
            parts = conninfo_to_dict(uri)
        except psycopg.Error as error:
            raise VectorIndexError(
                "store: not an address of PostgreSQL; allowed: postgresql://user@host/database"
            ) from error
        self.uri = f"postgresql://{parts.get('user', '')}@{parts.get('host', '')}/{parts.get('dbname', '')}"
        self._address = uri
        self._connections: list[Connection] = []
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self.run(_set_up)

    def create(self, name: str, spec: IndexSpec) -> PostgresIndex:
        """As `Store.create`; float32 vectors of up to 2,000 components, int8 of up to 4,000."""
        check_name(name)
        widest = _WIDEST[spec.dtype]
        if spec.dimension > widest:
            raise VectorIndexError(
                f"dimension: found {spec.dimension}; allowed: up to {widest:,} of {spec.dtype} in pgvector"
            )
        columns = {"doc_id": "text PRIMARY KEY", "vector": f"{_TYPES[spec.dtype]}({spec.dimension}) NOT NULL"}
        columns |= {column: _COLUMN_TYPES[spec.fields[field]] for field, column in column_names(spec).items()}
        described = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind)) for column, kind in columns.items()
        )

        def make(connection: Connection) -> None:
            try:
                connection.execute("INSERT INTO opengcl_index VALUES (%s, %s)", (name, spec.to_json()))
            except errors.UniqueViolation as error:
                raise VectorIndexError(f"{self.uri}: index {name!r} is there already; allowed: a new name") from error
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(_table(name), described))

        self.run(make)
        return PostgresIndex(self, name, spec)

    def open(self, name: str | None = None) -> PostgresIndex:
        """As `Store.open`."""
        query = "SELECT name, spec FROM opengcl_index WHERE name = coalesce(%s, (SELECT name FROM opengcl_live))"
        found = self.run(lambda connection: connection.execute(query, (name,)).fetchone())
        if found is None:
            raise unknown(name, self.names(), self.uri)
        return PostgresIndex(self, found[0], IndexSpec.from_json(found[1]))

    def names(self) -> list[str]:
        """As `Store.names`."""
        query = 'SELECT name FROM opengcl_index ORDER BY name COLLATE "C"'
        return [name for (name,) in self.run(lambda connection: connection.execute(query).fetchall())]

    def live(self) -> str | None:
        """As `Store.live`."""
        found = self.run(lambda connection: connection.execute("SELECT name FROM opengcl_live").fetchone())
        return None if found is None else str(found[0])

    def swap(self, name: str) -> None:
        """As `Store.swap`: one transaction."""
        query = "INSERT INTO opengcl_live (name) VALUES (%s) ON CONFLICT (one) DO UPDATE SET name = excluded.name"
        names = self.names()

        def point(connection: Connection) -> None:
            try:
                connection.execute(query, (name,))
            except errors.ForeignKeyViolation as error:
                raise unknown(name, names, self.uri) from error

        self.run(point)

    def drop(self, name: str) -> None:
        """As `Store.drop`: one transaction."""
        if name not in self.names():
            raise unknown(name, self.names(), self.uri)

        def remove(connection: Connection) -> None:
            try:
                connection.execute("DELETE FROM opengcl_index WHERE name = %s", (name,))
            except errors.ForeignKeyViolation as error:
                raise VectorIndexError(f"{self.uri}: index {name!r} is live; swap to another one first") from error
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_table(name)))

        self.run(remove)

    def close(self) -> None:
        """As `Store.close`: all connections."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
            self._idle.clear()

    def run(
        self, work: Callable[[Connection], Result], *, index: str | None = None, transaction: bool = True
    ) -> Result:
        """Does something in one transaction, with PostgreSQL's errors as ours.

        A connection that was used before may have been lost since, as when the server was started anew; it is then done
        once more with a new one. Nothing here is changed by being done twice.
        """
        with self._lock:
            used = self._idle.pop() if self._idle else None
        if used is not None:
            try:
                return self._run(work, used, index, transaction)
            except StoreError:
                if not used.closed:
                    raise
        return self._run(work, self._connect(), index, transaction)

    def _run(
        self, work: Callable[[Connection], Result], connection: Connection, index: str | None, transaction: bool
    ) -> Result:
        try:
            with connection.transaction() if transaction else nullcontext():
                return work(connection)
        except errors.UndefinedTable as error:
            if index is None:
                raise StoreError(f"{self.uri}: {_said(error)}") from error
            raise UnknownIndex(f"{self.uri}: index {index!r} was dropped") from error
        except psycopg.Error as error:
            raise StoreError(f"{self.uri}: {_said(error)}") from error
        finally:
            with self._lock:
                if not connection.closed:
                    self._idle.append(connection)

    def _connect(self) -> Connection:
        try:
            connection: Connection = psycopg.connect(
                self._address, autocommit=True, connect_timeout=_CONNECT_SECONDS, prepare_threshold=None
            )
            connection.execute(_SETTINGS)
            with suppress(psycopg.ProgrammingError):  # before the store is set up, there may be no such types
                register_vector(connection)
        except psycopg.Error as error:
            raise StoreError(f"{self.uri}: cannot be reached: {_said(error)}") from error
        with self._lock:
            self._connections = [one for one in self._connections if not one.closed] + [connection]
        return connection


class PostgresIndex:
    """Implements `opengcl.index.protocol.Index`; from `PostgresStore`.

    The approximate index is HNSW, kept up to date by PostgreSQL with every change. Under a filter it is walked on until
    enough documents match; where the walk ends early, all that match are compared.
    """

    def __init__(self, store: PostgresStore, name: str, spec: IndexSpec) -> None:
        self.name = name
        self.spec = spec
        self._store = store
        self._table = _table(name)
        self._columns = column_names(spec)
        self._run = partial(store.run, index=name)

    def upsert(self, ids: Sequence[str], vectors: np.ndarray, fields: Mapping[str, Sequence[Any]]) -> None:
        """As `Index.upsert`: one transaction."""
        rows = checked_rows(self.spec, ids, vectors, fields)
        kinds = ["text", _TYPES[self.spec.dtype], *(_COLUMN_TYPES[kind] for kind in self.spec.fields.values())]
        values = [rows.ids, [self._vector(one) for one in rows.vectors], *(one.to_pylist() for one in rows.columns)]
        incoming = sql.Identifier(f"opengcl_incoming_{self.name}")
        columns = ["doc_id", "vector", *self._columns.values()]
        make = sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WHERE false")
        merge = sql.SQL(
            "INSERT INTO {table} ({columns}) SELECT {columns} FROM {incoming} ORDER BY doc_id "  # or two could deadlock
            "ON CONFLICT (doc_id) DO UPDATE SET {changes}"
        )
        listed = sql.SQL(", ").join(map(sql.Identifier, columns))
        changes = sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(column)) for column in columns[1:]
        )

        def write(connection: Connection) -> None:
            connection.execute(make.format(incoming, listed, self._table))
            copy_in = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(incoming, listed)
            with connection.cursor().copy(copy_in) as copy:
                copy.set_types(kinds)
                for row in zip(*values, strict=True):
                    copy.write_row(row)
            connection.execute(merge.format(table=self._table, columns=listed, incoming=incoming, changes=changes))

        self._run(write)

    def delete(self, ids: Sequence[str]) -> int:
        """As `Index.delete`: one transaction."""
        names = checked_ids(ids)
        query = sql.SQL("DELETE FROM {} WHERE doc_id = ANY(%s)").format(self._table)
        return self._run(lambda connection: connection.execute(query, (names,)).rowcount)

    def search(
        self, vectors: np.ndarray, k: int, *, where: Filter | None = None, offset: int = 0, exact: bool = False
    ) -> list[list[Hit]]:
        """As `Index.search`."""
        queries, where = checked_query(self.spec, vectors, k, offset, where)
        return [self._search(self._vector(query), k, where, offset, exact) for query in queries]

    def count(self, where: Filter | None = None) -> int:
        """As `Index.count`."""
        where = checked_where(self.spec, where)
        condition, values = _condition(where, self._columns)
        query = sql.SQL("SELECT count(*) FROM {}{}").format(self._table, condition)
        return int(self._run(lambda connection: connection.execute(query, values).fetchall())[0][0])

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """As `Index.get`."""
        names = checked_ids(ids)
        columns = sql.SQL(", ").join(map(sql.Identifier, ["doc_id", "vector", *self._columns.values()]))
        query = sql.SQL("SELECT {} FROM {} WHERE doc_id = ANY(%s)").format(columns, self._table)
        rows = self._run(lambda connection: connection.cursor(binary=True).execute(query, (names,)).fetchall())
        found = {}
        for doc_id, vector, *fields in rows:
            kept = from_kept(vector.to_numpy()[None], self.spec.dtype)[0]
            found[doc_id] = Row(doc_id, kept, dict(zip(self.spec.fields, fields, strict=True)))
        return [found.get(one) for one in names]

    def finish(self) -> None:
        """As `Index.finish`: makes the HNSW index, if it is not there, and lets PostgreSQL count and clean up.

        It takes ``maintenance_work_mem`` of memory; with less than the vectors take, far longer. Upserts wait for it.
        """
        index = sql.Identifier(f"opengcl_nearest_{self.name}")
        classes = sql.SQL(f"{_TYPES[self.spec.dtype]}_cosine_ops")
        make = sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (vector {})").format(index, self._table, classes)
        self._run(lambda connection: connection.execute(make))
        clean = sql.SQL("VACUUM ANALYZE {}").format(self._table)
        self._run(lambda connection: connection.execute(clean), transaction=False)

    def size(self) -> int:
        """As `Index.size`: the table with its indexes."""
        query = sql.SQL("SELECT pg_total_relation_size({}::regclass)").format(f"opengcl_rows_{self.name}")
        return int(self._run(lambda connection: connection.execute(query).fetchall())[0][0])

    def _vector(self, vector: np.ndarray) -> Any:
        return HalfVector(vector) if self.spec.dtype == "int8" else vector

    def _search(self, query: Any, k: int, where: Filter | None, offset: int, exact: bool) -> list[Hit]:
        columns = sql.SQL("").join(sql.SQL(", {}").format(sql.Identifier(column)) for column in self._columns.values())
        condition, values = _condition(where, self._columns)
        select = sql.SQL("SELECT doc_id, 1 - (vector <=> %s){} FROM {}{} ORDER BY vector <=> %s LIMIT %s OFFSET %s")
        statement = select.format(columns, self._table, condition)
        wide = offset + k > _SEARCHED // 2

        def read(connection: Connection) -> list[tuple[Any, ...]]:
            if exact:
                connection.execute("SET LOCAL enable_indexscan = off")
            elif wide:
                reach = min(_MOST_SEARCHED, 2 * (offset + k))
                connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(reach),))
            cursor = connection.cursor(binary=True)
            return cursor.execute(statement, (query, *values, query, k, offset)).fetchall()

        found = self._run(read, transaction=exact or wide)
        if len(found) < k and not exact:
            return self._search(query, k, where, offset, True)
        return [
            Hit(doc_id, min(1.0, max(-1.0, score)), dict(zip(self.spec.fields, fields, strict=True)))
            for doc_id, score, *fields in found
        ]


def _set_up(connection: Connection) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SETUP_LOCK,))
    connection.execute(_TABLES)
    register_vector(connection)


def _table(name: str) -> sql.Identifier:
    return sql.Identifier(f"opengcl_rows_{name}")


def _said(error: psycopg.Error) -> str:
    """The first line of PostgreSQL's message; it never has the password."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _condition(where: Filter | None, columns: Mapping[str, str]) -> tuple[sql.Composable, list[Any]]:
    """`` WHERE ...`` with placeholders, and the values for them."""
    if where is None:
        return sql.SQL(""), []
    text, values = _where(where, columns)
    return sql.SQL(" WHERE ") + text, values


def _where(where: Filter, columns: Mapping[str, str]) -> tuple[sql.Composable, list[Any]]:
    if isinstance(where, And | Or):
        parts = [_where(part, columns) for part in where.parts]
        word = sql.SQL(" AND " if isinstance(where, And) else " OR ")
        texts = word.join(sql.SQL("({})").format(text) for text, _ in parts)
        return texts, [value for _, values in parts for value in values]
    column = sql.Identifier(columns[where.field])
    if isinstance(where, Missing):
        return sql.SQL("{} IS NOT NULL" if where.negated else "{} IS NULL").format(column), []
    if isinstance(where, In):
        return sql.SQL("{} <> ALL(%s)" if where.negated else "{} = ANY(%s)").format(column), [list(where.values)]
    return sql.SQL("{} {} %s").format(column, sql.SQL(where.operator)), [where.value]
