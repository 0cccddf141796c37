"""LanceDB: an embedded store in a folder or in object storage. A table an index, and a table that names the live one.

A commit to a Lance table is atomic on a file system and in object storage alike, so the pointer is one as well.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from opengcl.index.filters import SMALLEST, And, Filter, In, Missing, Or, Value
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

APPROXIMATE_FROM = 20_000
"""Documents from which on `LanceIndex.finish` builds an approximate index; fewer are compared one by one."""

_PREFIX = "index_"
_LIVE = "live"
_SPEC = b"opengcl"
_SEARCHED = 128  # HNSW's ef: candidates kept in mind while the graph is walked
_BUILT = 150  # the same while it is built; 300, as LanceDB has it, takes 1.8 times as long for .988 instead of .975
_REFINED = 2  # times k candidates whose cosine is made from the kept vectors: the graph's are rounded, of another scale
_PARTITION_ROWS = 1_000_000
_KEEP_VERSIONS = timedelta(minutes=2)  # what a search that began before may read; each slows every search a little
_REMOTE_CONSISTENCY = timedelta(seconds=5)
_PROBES = 8
_IDS_AT_ONCE = 1000
_METADATA_BYTES = 64 << 20  # LanceDB's own default of 1 GiB fills with what describes versions that nobody reads again
_FRESH_AFTER = 2000  # commits: LanceDB's caches also keep some kB of each that they don't count, and never let go
_LOOK_SECONDS = 60.0
_TIDY_EVERY = 64  # commits: each leaves files of its own, and a search reads every one
_LARGE = 1024  # documents of a commit whose files are as good as tidy, as those of a build
_SOURCE = re.compile(r",? \S+\.rs:\d+:\d+")
_INT8_STEPS = 128  # int8 components are kept as float16 of n/128, without loss: LanceDB compares no other small type

log = logging.getLogger(__name__)


class LanceStore:
    """Implements `opengcl.index.protocol.Store`.

    Args:
        uri: A folder, or ``s3://``, ``gs://``, ``az://`` with the credentials of the environment. What other processes
            write is seen at once in a folder, and after five seconds at most in object storage.
        approximate_from: As `APPROXIMATE_FROM`.

    Raises:
        StoreError: It cannot be opened, or LanceDB is not installed.
    """

    def __init__(self, uri: str, *, approximate_from: int = APPROXIMATE_FROM) -> None:
        try:
            import lancedb  # noqa: F401
        except ImportError as error:
            raise StoreError("LanceDB is not installed; pip install 'opengcl[serve]'") from error
        self.uri = uri
        self.folder = None if "://" in uri else Path(uri)
        self.approximate_from = approximate_from
        self._lock = threading.Lock()
        with self.told():
            if self.folder:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._database = self._connect()
            self._tables()

    def create(self, name: str, spec: IndexSpec) -> LanceIndex:
        """As `Store.create`."""
        if check_name(name) in self.names():
            raise VectorIndexError(f"{self.uri}: index {name!r} is there already; allowed: a new name")
        with self.told():
            self._database.create_table(_PREFIX + name, schema=_schema(spec))
            return LanceIndex(self, name, spec)

    def open(self, name: str | None = None) -> LanceIndex:
        """As `Store.open`."""
        wanted = self.live() if name is None else name
        names = self.names()
        if wanted not in names or wanted is None:
            raise unknown(name, names, self.uri)
        with self.told():
            described = (self._database.open_table(_PREFIX + wanted).schema.metadata or {}).get(_SPEC, b"{}")
            return LanceIndex(self, wanted, IndexSpec.from_json(described.decode()))

    def names(self) -> list[str]:
        """As `Store.names`."""
        return sorted(name.removeprefix(_PREFIX) for name in self._tables() if name.startswith(_PREFIX))

    def live(self) -> str | None:
        """As `Store.live`."""
        if _LIVE not in self._tables():
            return None
        with self.told():
            return str(self._database.open_table(_LIVE).to_arrow()["name"][0])

    def swap(self, name: str) -> None:
        """As `Store.swap`: one commit to the table that names the live index."""
        names = self.names()
        if name not in names:
            raise unknown(name, names, self.uri)
        pointer = pa.table({"name": [name]})
        with self.told():
            if _LIVE in self._tables():
                self._database.open_table(_LIVE).add(pointer, mode="overwrite")
            else:
                self._database.create_table(_LIVE, data=pointer)

    def drop(self, name: str) -> None:
        """As `Store.drop`."""
        names = self.names()
        if name not in names:
            raise unknown(name, names, self.uri)
        if name == self.live():
            raise VectorIndexError(f"{self.uri}: index {name!r} is live; swap to another one first")
        with self.told():
            self._database.drop_table(_PREFIX + name)

    def close(self) -> None:
        """As `Store.close`: LanceDB keeps nothing open between calls."""

    def table(self, name: str, *, worn: Any = None) -> tuple[Any, Any]:
        """A connection and an index's table; a new connection, with empty caches, in place of a worn one."""
        with self._lock:
            if self._database is worn:
                self._database = self._connect()
            return self._database, self._database.open_table(_PREFIX + name)

    def _connect(self) -> Any:
        import lancedb

        consistency = timedelta(0) if self.folder else _REMOTE_CONSISTENCY
        session = lancedb.Session(metadata_cache_size_bytes=_METADATA_BYTES)
        return lancedb.connect(self.uri, read_consistency_interval=consistency, session=session)

    def _tables(self) -> list[str]:
        names: list[str] = []
        page = None
        with self.told():
            while True:
                found = self._database.list_tables(page_token=page)
                names += found.tables
                page = found.page_token
                if not page:
                    return names

    @contextmanager
    def told(self, index: str | None = None) -> Iterator[None]:
        """LanceDB's errors as ours; it raises plain ``RuntimeError`` and ``ValueError`` for nearly all."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            if isinstance(error, VectorIndexError | StoreError):
                raise
            if index is not None and _PREFIX + index not in self._tables():
                raise UnknownIndex(f"{self.uri}: index {index!r} was dropped") from error
            raise StoreError(f"{self.uri}: {_said(error)}") from error


class LanceIndex:
    """Implements `opengcl.index.protocol.Index`; from `LanceStore`.

    With an approximate index (HNSW over vectors rounded to 8 bits), the best candidates are compared again by the
    vectors that are kept, and documents added since are compared one by one.
    """

    def __init__(self, store: LanceStore, name: str, spec: IndexSpec) -> None:
        self.name = name
        self.spec = spec
        self._store = store
        self._database, self._opened = store.table(name)
        self._fresh_until = self._opened.version + _FRESH_AFTER
        self._look_at = time.monotonic() + _LOOK_SECONDS
        self._columns = column_names(spec)
        self._writing = threading.Lock()  # two merges of one process would make each other start again

    def upsert(self, ids: Sequence[str], vectors: np.ndarray, fields: Mapping[str, Sequence[Any]]) -> None:
        """As `Index.upsert`: one commit."""
        rows = checked_rows(self.spec, ids, vectors, fields)
        if not rows.ids:
            return
        schema = _schema(self.spec)
        kept = rows.vectors / np.float32(_INT8_STEPS) if self.spec.dtype == "int8" else rows.vectors
        flat = pa.array(kept.astype(schema.field("vector").type.value_type.to_pandas_dtype()).ravel())
        packed = pa.FixedSizeListArray.from_arrays(flat, self.spec.dimension)
        table = pa.Table.from_arrays([pa.array(rows.ids, pa.string()), packed, *rows.columns], schema=schema)
        with self._writing, self._told():
            merge = self._table.merge_insert("doc_id").when_matched_update_all().when_not_matched_insert_all()
            version = merge.execute(table).version
            if len(rows.ids) < _LARGE:
                self._tidy_up(version)

    def delete(self, ids: Sequence[str]) -> int:
        """As `Index.delete`: one commit for each thousand."""
        deleted = 0
        with self._writing, self._told():
            for predicate in _by_id(checked_ids(ids)):
                done = self._table.delete(predicate)
                deleted += done.num_deleted_rows
                self._tidy_up(done.version)
        return deleted

    def search(
        self, vectors: np.ndarray, k: int, *, where: Filter | None = None, offset: int = 0, exact: bool = False
    ) -> list[list[Hit]]:
        """As `Index.search`."""
        queries, where = checked_query(self.spec, vectors, k, offset, where)
        chosen = None if where is None else _sql(where, self._columns)
        with self._told():
            return [self._search(query, k, chosen, offset, exact) for query in queries]

    def count(self, where: Filter | None = None) -> int:
        """As `Index.count`."""
        where = checked_where(self.spec, where)
        with self._told():
            return int(self._table.count_rows(None if where is None else _sql(where, self._columns)))

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """As `Index.get`."""
        names = checked_ids(ids)
        found: dict[str, Row] = {}
        with self._told():
            for predicate in _by_id(names):
                table = self._table.search().where(predicate).limit(_IDS_AT_ONCE).to_arrow()
                if len(table):
                    unit = from_kept(_matrix(table["vector"], self.spec.dimension), self.spec.dtype)
                    for doc_id, vector, fields in zip(
                        table["doc_id"].to_pylist(), unit, fields_by_row(self.spec, table), strict=True
                    ):
                        found[doc_id] = Row(doc_id, vector, fields)
        return [found.get(one) for one in names]

    def finish(self) -> None:
        """As `Index.finish`: HNSW from 20,000 documents on; small files put together, old ones removed."""
        from lancedb.index import BTree, IvfHnswSq

        with self._writing, self._told():
            rows = self._table.count_rows()
            there = {column for index in self._table.list_indices() for column in index.columns}
            if rows and "doc_id" not in there:
                self._table.create_index("doc_id", config=BTree())
            if rows >= self._store.approximate_from and "vector" not in there:
                partitions = -(-rows // _PARTITION_ROWS)
                config = IvfHnswSq(distance_type="cosine", num_partitions=partitions, ef_construction=_BUILT)
                self._table.create_index("vector", config=config)
            self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)

    def size(self) -> int | None:
        """As `Index.size`: the table's files; None in object storage."""
        if self._store.folder is None:
            return None
        folder = self._store.folder / f"{_PREFIX}{self.name}.lance"
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    @property
    def _table(self) -> Any:
        """The table, opened anew after many commits of whatever process: see `_FRESH_AFTER`."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            version = self._opened.version
            if version >= self._fresh_until:
                self._database, self._opened = self._store.table(self.name, worn=self._database)
                self._fresh_until = version + _FRESH_AFTER
        return self._opened

    def _tidy_up(self, version: int) -> None:
        """After every so many commits, whoever made them: small files put together, old ones removed."""
        if version % _TIDY_EVERY:
            return
        try:
            self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)
        except (RuntimeError, ValueError, OSError) as error:  # the write before is there all the same
            log.warning("%s: index %r was not tidied up: %s", self._store.uri, self.name, _said(error))

    def _search(self, query: np.ndarray, k: int, where: str | None, offset: int, exact: bool) -> list[Hit]:
        search = self._table.search(query, vector_column_name="vector", query_type="vector").distance_type("cosine")
        search = search.select(["doc_id", *self._columns.values(), "_distance"]).limit(k).offset(offset)
        if where is not None:
            search = search.where(where, prefilter=True)
        if exact:
            search = search.bypass_vector_index()
        else:
            search = search.ef(max(_SEARCHED, 2 * (offset + k))).nprobes(_PROBES).refine_factor(_REFINED)
        table = search.to_arrow()
        if len(table) < k and not exact:  # the graph's neighbours ran out, as they can under a narrow filter
            return self._search(query, k, where, offset, True)
        scores = np.clip(1 - table["_distance"].to_numpy(), -1, 1)
        found = zip(table["doc_id"].to_pylist(), scores.tolist(), fields_by_row(self.spec, table), strict=True)
        return [Hit(doc_id, score, fields) for doc_id, score, fields in found]

    def _told(self) -> Any:
        return self._store.told(self.name)


def _said(error: Exception) -> str:
    """The first line of LanceDB's message, without the place in its own source."""
    first = str(error).partition("\n")[0]
    return _SOURCE.sub("", first) or type(error).__name__


def _schema(spec: IndexSpec) -> pa.Schema:
    component = pa.float16() if spec.dtype == "int8" else pa.float32()
    return pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(component, spec.dimension), nullable=False),
            *(pa.field(column, ARROW[spec.fields[name]]) for name, column in column_names(spec).items()),
        ],
        metadata={_SPEC: spec.to_json()},
    )


def _matrix(vectors: pa.ChunkedArray, dimension: int) -> np.ndarray:
    return vectors.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)


def _by_id(ids: Sequence[str]) -> Iterator[str]:
    """Predicates for the ids, a thousand at a time."""
    for start in range(0, len(ids), _IDS_AT_ONCE):
        yield f"doc_id IN ({', '.join(map(_literal, ids[start : start + _IDS_AT_ONCE]))})"


def _sql(where: Filter, columns: Mapping[str, str]) -> str:
    """The filter as SQL, of columns that we number."""
    if isinstance(where, And | Or):
        word = " AND " if isinstance(where, And) else " OR "
        return word.join(f"({_sql(part, columns)})" for part in where.parts)
    name = columns[where.field]
    if isinstance(where, Missing):
        return f"{name} IS NOT NULL" if where.negated else f"{name} IS NULL"
    if isinstance(where, In):
        values = ", ".join(map(_literal, where.values))
        # "x NOT IN (1) OR x NOT IN (2)" is simplified to true, which is wrong where x is missing
        return f"({name} NOT IN ({values}) AND {name} IS NOT NULL)" if where.negated else f"{name} IN ({values})"
    return f"{name} {where.operator} {_literal(where.value)}"


def _literal(value: Value) -> str:
    """A value in LanceDB's SQL, where a backslash is a character like any other.

    ``lancedb.expr.lit(value).to_sql()`` is no way to write one: it takes a quote after a backslash for escaped.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if value == SMALLEST and isinstance(value, int):
        return f"CAST('{value}' AS BIGINT)"  # as plain digits it is read as minus a number that is too large
    return repr(value)
