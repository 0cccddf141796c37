"""Milvus, a server or in a file: a collection an index, one that lists them, and an alias for the live one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from opengcl.index.filters import And, Filter, In, Missing, Or, Value
from opengcl.index.protocol import (
    LONGEST_ID,
    LONGEST_TEXT,
    Hit,
    IndexSpec,
    Row,
    StoreError,
    UnknownIndex,
    VectorIndexError,
    check_name,
    unknown,
)
from opengcl.index.rows import checked_ids, checked_query, checked_rows, checked_where, column_names
from opengcl.index.vectors import from_kept

try:
    from pymilvus import DataType, MilvusClient, MilvusException
except ImportError as missing:
    raise StoreError("Milvus' client is not installed; pip install 'opengcl[milvus]'") from missing

_PREFIX = "opengcl_index_"
_LIST = "opengcl_indexes"  # name and spec of every index: Milvus Lite doesn't keep collections' descriptions
_LIVE = "opengcl_live"
_NOT_FOUND = 100
_NO_ALIAS = (100, 1600)  # of Milvus Lite and of the server
_SEARCHED = 128  # HNSW's ef: candidates kept in mind while the graph is walked
_AT_ONCE = 1000
_TYPES = {"text": DataType.VARCHAR, "integer": DataType.INT64, "number": DataType.DOUBLE, "boolean": DataType.BOOL}

# It writes every error with a traceback before it raises it.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)


class MilvusStore:
    """Implements `opengcl.index.protocol.Store`.

    Args:
        uri: ``http://user:password@host:19530/database``, user and database as needed, or a file for Milvus Lite, which
            one process at a time can open.

    Raises:
        StoreError: It cannot be reached or opened.
    """

    def __init__(self, uri: str) -> None:
        where: dict[str, Any] = {"uri": uri}
        self.uri, self.file = uri, None if "://" in uri else Path(uri)
        with self.told():
            if self.file is None:
                parts = urlsplit(uri)
                self.uri = where["uri"] = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
                where |= {"token": parts.netloc.rpartition("@")[0], "db_name": parts.path.strip("/")}
            else:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            self.client = MilvusClient(**where)
            if self.client.has_collection(_LIST):
                self.client.load_collection(_LIST)  # Milvus Lite gives up what was loaded when its process ends
            else:
                self._make_list()

    def create(self, name: str, spec: IndexSpec) -> MilvusIndex:
        """As `Store.create`; the components of int8 vectors are kept as floats."""
        if check_name(name) in self.names():
            raise VectorIndexError(f"{self.uri}: index {name!r} is there already; allowed: a new name")
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("doc_id", DataType.VARCHAR, is_primary=True, max_length=LONGEST_ID)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=spec.dimension)
        for field, column in column_names(spec).items():
            longest = {"max_length": LONGEST_TEXT} if spec.fields[field] == "text" else {}
            schema.add_field(column, _TYPES[spec.fields[field]], nullable=True, **longest)
        nearest = self.client.prepare_index_params()
        nearest.add_index("vector", index_type="HNSW", metric_type="COSINE", params={"M": 16, "efConstruction": 128})
        with self.told():
            if self.client.has_collection(_PREFIX + name):  # a call that was killed before the index was listed
                self.client.drop_collection(_PREFIX + name)
            self.client.create_collection(
                _PREFIX + name, schema=schema, index_params=nearest, consistency_level="Strong"
            )
            self.client.upsert(_LIST, [{"name": name, "spec": spec.to_json(), "unused": [0.0, 0.0]}])
        return MilvusIndex(self, name, spec)

    def open(self, name: str | None = None) -> MilvusIndex:
        """As `Store.open`."""
        wanted = self.live() if name is None else name
        specs = self._specs()
        if wanted not in specs or wanted is None:
            raise unknown(name, sorted(specs), self.uri)
        with self.told():
            self.client.load_collection(_PREFIX + wanted)
        return MilvusIndex(self, wanted, IndexSpec.from_json(specs[wanted]))

    def names(self) -> list[str]:
        """As `Store.names`."""
        return sorted(self._specs())

    def live(self) -> str | None:
        """As `Store.live`."""
        with self.told():
            try:
                return str(self.client.describe_alias(_LIVE)["collection_name"]).removeprefix(_PREFIX)
            except MilvusException as error:
                if error.code not in _NO_ALIAS:
                    raise
        return None

    def swap(self, name: str) -> None:
        """As `Store.swap`: Milvus changes an alias in one step."""
        names = self.names()
        if name not in names:
            raise unknown(name, names, self.uri)
        point = self.client.create_alias if self.live() is None else self.client.alter_alias
        with self.told():
            point(_PREFIX + name, _LIVE)

    def drop(self, name: str) -> None:
        """As `Store.drop`."""
        names = self.names()
        if name not in names:
            raise unknown(name, names, self.uri)
        if name == self.live():
            raise VectorIndexError(f"{self.uri}: index {name!r} is live; swap to another one first")
        with self.told():
            self.client.delete(_LIST, ids=[name])
            self.client.drop_collection(_PREFIX + name)

    def close(self) -> None:
        """As `Store.close`."""
        self.client.close()

    def _make_list(self) -> None:
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("name", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("spec", DataType.VARCHAR, max_length=LONGEST_TEXT)
        schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # there is no collection without vectors
        nearest = self.client.prepare_index_params()
        nearest.add_index("unused", index_type="FLAT", metric_type="COSINE")
        self.client.create_collection(_LIST, schema=schema, index_params=nearest, consistency_level="Strong")

    def _specs(self) -> dict[str, str]:
        with self.told():
            rows = self.client.query(_LIST, filter='name != ""', output_fields=["name", "spec"])
        return {row["name"]: row["spec"] for row in rows}

    @contextmanager
    def told(self, index: str | None = None) -> Iterator[None]:
        """Milvus' errors as ours."""
        try:
            yield
        except MilvusException as error:
            if index is not None and error.code == _NOT_FOUND:
                raise UnknownIndex(f"{self.uri}: index {index!r} was dropped") from error
            raise StoreError(f"{self.uri}: {error.message or error}".splitlines()[0]) from error


class MilvusIndex:
    """Implements `opengcl.index.protocol.Index`; from `MilvusStore`.

    A call of `upsert` is one request, of which Milvus takes up to 64 MB. Milvus cannot compare every vector: an exact
    search reads all of them from it.
    """

    def __init__(self, store: MilvusStore, name: str, spec: IndexSpec) -> None:
        self.name = name
        self.spec = spec
        self._store = store
        self._collection = _PREFIX + name
        self._columns = column_names(spec)

    def upsert(self, ids: Sequence[str], vectors: np.ndarray, fields: Mapping[str, Sequence[Any]]) -> None:
        """As `Index.upsert`: one request."""
        rows = checked_rows(self.spec, ids, vectors, fields)
        if not rows.ids:
            return
        kept = from_kept(rows.vectors, self.spec.dtype)
        columns = {"doc_id": rows.ids, "vector": list(kept)}
        columns |= {
            column: values.to_pylist() for column, values in zip(self._columns.values(), rows.columns, strict=True)
        }
        given = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        with self._told() as client:
            client.upsert(self._collection, given)

    def delete(self, ids: Sequence[str]) -> int:
        """As `Index.delete`: a request for each thousand."""
        names = list(dict.fromkeys(checked_ids(ids)))
        deleted = 0
        with self._told() as client:
            for some in _parts(names):
                there = client.query(self._collection, filter=_by_id(some), output_fields=["doc_id"])
                if there:
                    client.delete(self._collection, filter=_by_id(some))
                deleted += len(there)
        return deleted

    def search(
        self, vectors: np.ndarray, k: int, *, where: Filter | None = None, offset: int = 0, exact: bool = False
    ) -> list[list[Hit]]:
        """As `Index.search`."""
        queries, where = checked_query(self.spec, vectors, k, offset, where)
        if not len(queries):
            return []
        if exact:
            return self._exact(queries, k, where, offset)
        with self._told() as client:
            found = client.search(
                self._collection,
                data=list(queries),
                anns_field="vector",
                limit=k,
                filter=_text(where, self._columns),
                output_fields=list(self._columns.values()),
                search_params={
                    "metric_type": "COSINE",
                    "offset": offset,
                    "params": {"ef": max(_SEARCHED, 2 * (offset + k))},
                },
            )
        hits = [[self._hit(row["doc_id"], row["distance"], row["entity"]) for row in of_query] for of_query in found]
        fewest = min(map(len, hits))
        if fewest < k and offset + fewest < self._count(where):
            return self._exact(queries, k, where, offset)
        return hits

    def count(self, where: Filter | None = None) -> int:
        """As `Index.count`."""
        return self._count(checked_where(self.spec, where))

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """As `Index.get`."""
        names = checked_ids(ids)
        columns = ["doc_id", "vector", *self._columns.values()]
        found: dict[str, Row] = {}
        with self._told() as client:
            for some in _parts(list(dict.fromkeys(names))):
                for row in client.query(self._collection, filter=_by_id(some), output_fields=columns):
                    vector = np.asarray(row["vector"], dtype=np.float32)
                    found[row["doc_id"]] = Row(row["doc_id"], vector, self._fields(row))
        return [found.get(one) for one in names]

    def finish(self) -> None:
        """As `Index.finish`: Milvus builds its graph by itself, of what is flushed."""
        with self._told() as client:
            client.flush(self._collection)

    def size(self) -> int | None:
        """As `Index.size`; not told."""
        return None

    def _count(self, where: Filter | None) -> int:
        with self._told() as client:
            found = client.query(self._collection, filter=_text(where, self._columns), output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def _exact(self, queries: np.ndarray, k: int, where: Filter | None, offset: int) -> list[list[Hit]]:
        """Reads the vectors block by block and keeps each query's best."""
        depth = offset + k
        best = np.empty((len(queries), 0), dtype=np.float32)
        found = np.empty((len(queries), 0), dtype=object)
        for ids, vectors in self._blocks(where):
            scores = np.concatenate([best, queries @ vectors.T], axis=1)
            names = np.concatenate([found, np.broadcast_to(ids, (len(queries), len(ids)))], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
            best, found = np.take_along_axis(scores, order, 1), np.take_along_axis(names, order, 1)
        best, found = best[:, offset:], found[:, offset:]
        rows = {
            row.doc_id: row.fields for row in self.get(list(dict.fromkeys(found.ravel().tolist()))) if row is not None
        }
        return [
            [Hit(one, _cosine(score), rows[one]) for one, score in zip(of_query, scores, strict=True) if one in rows]
            for of_query, scores in zip(found.tolist(), best.tolist(), strict=True)
        ]

    def _blocks(self, where: Filter | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with self._told() as client:
            reader = client.query_iterator(
                self._collection,
                batch_size=_AT_ONCE,
                filter=_text(where, self._columns),
                output_fields=["doc_id", "vector"],
            )
            try:
                while rows := reader.next():
                    ids = np.array([row["doc_id"] for row in rows], dtype=object)
                    yield ids, np.array([row["vector"] for row in rows], dtype=np.float32)
            finally:
                reader.close()

    def _hit(self, doc_id: str, score: float, entity: Mapping[str, Any]) -> Hit:
        return Hit(doc_id, _cosine(score), self._fields(entity))

    def _fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: row.get(column) for name, column in self._columns.items()}

    @contextmanager
    def _told(self) -> Iterator[MilvusClient]:
        with self._store.told(self.name):
            yield self._store.client


def _cosine(score: float) -> float:
    return min(1.0, max(-1.0, float(score)))


def _parts(ids: list[str]) -> Iterator[list[str]]:
    return (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))


def _by_id(ids: list[str]) -> str:
    """A filter for the ids. What the client makes of ``ids=`` is none: it puts them between quotes as they are."""
    return f"doc_id in [{', '.join(map(_literal, ids))}]"


def _text(where: Filter | None, columns: Mapping[str, str]) -> str:
    """The filter as Milvus writes it: values as literals, of columns that we number.

    Milvus' own templates would take the values as they are, but Milvus Lite doesn't know them.
    """
    if where is None:
        return ""
    if isinstance(where, And | Or):
        word = " and " if isinstance(where, And) else " or "
        return word.join(f"({_text(part, columns)})" for part in where.parts)
    column = columns[where.field]
    if isinstance(where, Missing):
        return f"{column} is not null" if where.negated else f"{column} is null"
    if isinstance(where, In):
        values = ", ".join(map(_literal, where.values))
        # "not in" alone is true of what is missing
        return (
            f"({column} not in [{values}]) and ({column} is not null)" if where.negated else f"{column} in [{values}]"
        )
    return f"{column} {'==' if where.operator == '=' else where.operator} {_literal(where.value)}"


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    return repr(value)
