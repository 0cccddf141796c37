"""What is given to an index, checked once for all stores."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from opengcl.data.problems import shown
from opengcl.index.filters import EXACT, LARGEST, SMALLEST, FieldType, Filter, fit_filter
from opengcl.index.protocol import LONGEST_ID, LONGEST_TEXT, IndexSpec, VectorIndexError
from opengcl.index.vectors import check_unit, to_int8

DEEPEST = 10_000
"""``offset + k`` of a search, at most."""

ARROW: dict[FieldType, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}

_AS_TEXT = "keep the field as text (--as-text, as_text)"


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that every store can take.

    Attributes:
        ids: Each once.
        vectors: (rows, dimension), float32 of length 1 or int8, as the spec says.
        columns: The fields in the spec's order, of the types of `ARROW`.
    """

    ids: list[str]
    vectors: np.ndarray
    columns: list[pa.Array]


def column_names(spec: IndexSpec) -> dict[str, str]:
    """Field -> column. Columns have numbers, since a field's name may be nothing that a store takes as one."""
    return {name: f"f{number}" for number, name in enumerate(spec.fields)}


def fields_by_row(spec: IndexSpec, table: pa.Table) -> list[dict[str, Any]]:
    """The fields of each row of a table with the columns of `column_names`."""
    columns = [table[column].to_pylist() for column in column_names(spec).values()]
    return [dict(zip(spec.fields, values, strict=True)) for values in zip(*columns, strict=True)] or [
        {} for _ in range(len(table))
    ]


def checked_rows(spec: IndexSpec, ids: Sequence[str], vectors: np.ndarray, fields: Mapping[str, Sequence[Any]]) -> Rows:
    """The rows of an upsert.

    Raises:
        VectorIndexError: An id that isn't allowed or comes twice; other numbers of ids, vectors and values; a vector of
            another width or length; unknown or missing fields; a value of another type. It names the row, from 0.
    """
    names = checked_ids(ids)
    seen: dict[str, int] = {}
    for row, one in enumerate(names):
        if seen.setdefault(one, row) != row:
            raise VectorIndexError(f"row {row}: id {shown(one)} is that of row {seen[one]}; allowed: each id once")
    unit = check_unit(vectors, spec.dimension, "vectors")
    if len(unit) != len(names):
        raise VectorIndexError(f"found {len(names)} ids and {len(unit)} vectors; allowed: as many of both")
    if set(fields) != set(spec.fields):
        raise VectorIndexError(
            f"fields: found {', '.join(fields) or 'none'}; required: {', '.join(spec.fields) or 'none'}"
        )
    columns = [_column(name, kind, fields[name], len(names)) for name, kind in spec.fields.items()]
    return Rows(names, to_int8(unit) if spec.dtype == "int8" and len(unit) else unit, columns)


def checked_ids(ids: Sequence[str]) -> list[str]:
    """Ids as a list.

    Raises:
        VectorIndexError: One that isn't text, is empty or too long, or that not every store can hold.
    """
    if isinstance(ids, str):
        raise VectorIndexError(f"ids: found the text {shown(ids)}; allowed: a list of texts")
    names = list(ids)
    for row, one in enumerate(names):
        if not isinstance(one, str) or not one:
            raise VectorIndexError(f"row {row}: found the id {shown(one)}; allowed: text that is not empty")
        try:
            _check_text(one, LONGEST_ID)
        except VectorIndexError as error:
            raise VectorIndexError(f"row {row}, id: {error}") from None
    return names


def checked_query(
    spec: IndexSpec, vectors: np.ndarray, k: int, offset: int, where: Filter | None
) -> tuple[np.ndarray, Filter | None]:
    """The vectors of a search as float32 and its filter as `fit_filter` makes it, once all of it is sure to be allowed.

    Raises:
        VectorIndexError: Naming what is not.
        FilterError: A filter that doesn't fit the fields.
    """
    for name, value, low in (("k", k, 1), ("offset", offset, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise VectorIndexError(f"{name}: found {value!r}; allowed: a whole number from {low} on")
    if k + offset > DEEPEST:
        raise VectorIndexError(f"offset + k: found {offset} + {k}; allowed: up to {DEEPEST:,}")
    fitted = checked_where(spec, where)
    return check_unit(vectors, spec.dimension, "queries"), fitted


def checked_where(spec: IndexSpec, where: Filter | None) -> Filter | None:
    """A filter as `fit_filter` makes it; None stays None.

    Raises:
        FilterError: A filter that doesn't fit the fields.
    """
    return None if where is None else fit_filter(where, spec.fields)


def checked_value(kind: FieldType, value: Any) -> str | int | float | bool | None:
    """A document's value as an index keeps it: of the field's type, and exactly what was given.

    Raises:
        VectorIndexError: It is of another type, or the type cannot hold it.
    """
    if value is None:
        return None
    if kind == "text" and isinstance(value, str):
        return _check_text(value, LONGEST_TEXT)
    if kind == "boolean" and isinstance(value, bool | np.bool_):
        return bool(value)
    if kind == "integer" and not isinstance(value, bool) and isinstance(value, numbers.Real):
        return _integer(value)
    if kind == "number" and not isinstance(value, bool) and isinstance(value, numbers.Real):
        return _float(value)
    raise VectorIndexError(f"found {_bounded(value)}; allowed: {kind}, or None")


def _integer(value: numbers.Real) -> int:
    if isinstance(value, numbers.Integral):
        if SMALLEST <= int(value) <= LARGEST:
            return int(value)
        raise VectorIndexError(f"found {_bounded(value)}; allowed: integers from -2^63 to 2^63 - 1, or {_AS_TEXT}")
    found = float(value)
    if found == value and found.is_integer() and abs(found) < EXACT:
        return int(found)  # tables whose whole numbers became floats because some are missing
    raise VectorIndexError(f"found {_bounded(value)}; allowed: integer, or None")


def _float(value: numbers.Real) -> float:
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if isinstance(value, numbers.Integral) and (math.isinf(found) or int(found) != int(value)):
        raise VectorIndexError(
            f"found {_bounded(value)}, which a number (float64) cannot hold exactly; allowed: integers up to 2^53, "
            f"an integer field (an index built from an integer column), or {_AS_TEXT}"
        )
    if not math.isfinite(found):
        raise VectorIndexError(f"found {value}; allowed: a finite number, or None")
    return found


def _bounded(value: Any) -> str:
    """A value for a message; Python refuses to write very long integers."""
    if isinstance(value, int) and abs(value) > 10**60:
        return f"an integer of {value.bit_length()} bits"
    return shown(value)


def _column(name: str, kind: FieldType, values: Sequence[Any], rows: int) -> pa.Array:
    if len(values) != rows:
        raise VectorIndexError(f"field {name!r}: found {len(values)} values; allowed: {rows}, one a document")
    return pa.array([_value(name, kind, value, row) for row, value in enumerate(values)], ARROW[kind])


def _value(name: str, kind: FieldType, value: Any, row: int) -> str | int | float | bool | None:
    try:
        return checked_value(kind, value)
    except VectorIndexError as error:
        raise VectorIndexError(f"row {row}, field {name!r}: {error}") from None


def _check_text(text: str, longest: int) -> str:
    """Text that every store can hold as it is."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise VectorIndexError(f"found {shown(text)}; allowed: text without lone surrogates") from None
    if size > longest:
        raise VectorIndexError(f"found {size:,} bytes; allowed: up to {longest:,}")
    if "\0" in text:
        raise VectorIndexError(f"found {shown(text)}; allowed: text without NUL")
    return text
