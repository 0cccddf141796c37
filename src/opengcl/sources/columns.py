"""A column of any type read as what it is used for: ids, texts, labels, numbers or pictures, or refused by its type."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from opengcl.data import tables as typed
from opengcl.data.problems import DataSetError, shown

_LARGEST_WHOLE = 2**53
"""Up to here a float64 tells whole numbers apart."""
_LARGEST_WHOLE_SINGLE = 2**24
_TRUTHS = pa.array(["true", "false"], pa.large_string())
_SEVERAL_ADDRESSES = r"^\s*(https?://\S*?)(?:\s*[,;|]\s*|\s+)https?://"
"""Addresses side by side in one text, as shop systems export a product's pictures."""


def named(rows: pa.RecordBatch, file: str) -> pa.RecordBatch:
    """Rows with the names of Hugging Face's ``ClassLabel`` columns instead of their numbers; -1 is missing.

    The names are in the schema's metadata, in Parquet files too.

    Raises:
        DataSetError: A number has no name.
    """
    for name, names in _class_labels(rows.schema).items():
        place = rows.schema.get_field_index(name)
        column = typed.plain(rows.column(place))
        if not pt.is_integer(column.type):
            continue
        numbers = column.cast(pa.int64())
        numbers = pc.if_else(pc.equal(numbers, -1), pa.scalar(None, pa.int64()), numbers)
        known = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(names)))
        if pc.any(pc.invert(known)).as_py():
            wrong = numbers.filter(pc.invert(known))[0].as_py()
            raise DataSetError(
                f"{file}, column '{name}': found the label {wrong}; allowed: 0 to {len(names) - 1}, which have names"
            )
        rows = rows.set_column(place, name, pa.array(names, pa.large_string()).take(numbers))
    return rows


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> the names of its labels, as `datasets` writes them beside a table."""
    written = (schema.metadata or {}).get(b"huggingface")
    if written is None:
        return {}
    try:
        features = json.loads(written)["info"]["features"]
        found = {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):  # what others wrote there is no reason to stop
        return {}
    return {
        name: list(map(str, names)) for name, names in found.items() if name in schema.names and isinstance(names, list)
    }


def ids(column: pa.Array, file: str, name: str, *, first: int = 0, trimmed: bool = True) -> pa.Array:
    """A column of ids as text: texts without white space around them, whole numbers, UUIDs.

    A column of floats or decimals with whole numbers alone, as pandas makes of integers beside gaps, holds ids as well.

    Args:
        column: Of any type.
        file: Name of the file, for messages.
        name: Name of the column, for messages.
        first: Number of the first row, for messages.
        trimmed: Whether white space around ids is removed.

    Raises:
        DataSetError: It holds something else.
    """
    if isinstance(column.type, pa.UuidType):
        return pa.array([None if one is None else str(one) for one in column.to_pylist()], pa.large_string())
    column = typed.plain(column)
    kind = column.type
    if pt.is_integer(kind) or pt.is_null(kind):
        return column.cast(pa.large_string())
    if pt.is_floating(kind) or pt.is_decimal(kind):
        return _whole(column, file, name, first).cast(pa.large_string())
    if not typed.is_text(kind):
        raise _wrong_type(column, file, name, "text or whole numbers, as these are ids")
    found = typed.text(column, file=file, column=name, first_row=first)
    return pc.utf8_trim_whitespace(found) if trimmed else found


def padded(column: pa.Array) -> int:
    """In how many rows white space stands around a text."""
    column = typed.plain(column)
    if not typed.is_text(column.type):
        return 0
    found = typed.readable_texts(column)[0]
    return int(pc.sum(pc.not_equal(found, pc.utf8_trim_whitespace(found))).as_py() or 0)


def joined_ids(columns: Sequence[pa.Array]) -> pa.Array:
    r"""One id of several columns of ids: ``us:B00`` of ``us`` and ``B00``; null where one is missing.

    Colons and backslashes in all but the last get a backslash before them, so that different ids stay different.
    """
    if len(columns) == 1:
        return columns[0]
    parts = [pc.if_else(typed.present(one), one, pa.scalar(None, one.type)) for one in columns]
    parts[:-1] = [pc.replace_substring_regex(one, pattern=r"[\\:]", replacement=r"\\\0") for one in parts[:-1]]
    return pc.binary_join_element_wise(*parts, pa.scalar(":", pa.large_string()))


def _whole(column: pa.Array, file: str, name: str, first: int) -> pa.Array:
    """Floats and decimals as integers; NaN is missing."""
    largest = _LARGEST_WHOLE_SINGLE if column.type in (pa.float16(), pa.float32()) else _LARGEST_WHOLE
    exact = pt.is_decimal(column.type)
    found = column.cast(pa.float64(), safe=False)
    found = pc.if_else(pc.is_nan(found), pa.scalar(None, pa.float64()), found)
    small = pc.less_equal(pc.abs(found), float(2**63 - 1024) if exact else float(largest))
    fine = pc.fill_null(pc.and_(small, pc.equal(found, pc.floor(found))), True)
    if exact:
        fine = pc.and_(fine, pc.fill_null(pc.equal(column, pc.floor(column)), True))
    wrong = np.flatnonzero(~np.asarray(fine))
    if len(wrong):
        value = column[int(wrong[0])].as_py()
        raise DataSetError(
            f"{file}, row {first + int(wrong[0])}, column '{name}': found {shown(value)}, type {column.type}; "
            f"allowed: ids as text or whole numbers{'' if exact else f' (of this type up to {largest:,})'}"
        )
    return column.cast(pa.int64(), safe=False) if exact else found.cast(pa.int64())


def texts(column: pa.Array, file: str, name: str, *, first: int = 0, join: str | None = None) -> pa.Array:
    """A column as text: texts, numbers, truth values, dates, and lists of them where they may be joined.

    Args:
        column: Of any type.
        file: Name of the file, for messages.
        name: Name of the column, for messages.
        first: Number of the first row, for messages.
        join: What stands between the texts of a list; None refuses lists.

    Raises:
        DataSetError: It holds something else, or text that is not UTF-8.
    """
    if isinstance(column.type, pa.UuidType):
        return ids(column, file, name)
    column = typed.plain(column)
    if (elements := _elements(column)) is None:
        return _texts(column, file, name, first)
    if join is None or _elements(elements[0]) is not None:
        more = "" if join is not None else "; join_lists (--join-lists ', ') makes one text of a list of texts"
        raise _wrong_type(column, file, name, f"text, numbers or dates{more}")
    return _joined(column, *elements, join, file, name, first)


def _joined(
    column: pa.Array, elements: pa.Array, parents: np.ndarray, join: str, file: str, name: str, first: int
) -> pa.Array:
    found = _texts(elements, file, name, first)
    there = np.flatnonzero(np.asarray(typed.present(found)))
    counts = np.bincount(parents[there], minlength=len(column))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int64())
    lists = pa.LargeListArray.from_arrays(offsets, found.take(pa.array(there)))
    one_text = pc.binary_join(lists, pa.scalar(join, pa.large_string()))
    return pc.if_else(pa.array(counts > 0), one_text, pa.scalar(None, pa.large_string()))


def _texts(column: pa.Array, file: str, name: str, first: int) -> pa.Array:
    """Text of a column without lists."""
    kind = column.type
    if typed.is_text(kind):
        return typed.text(column, file=file, column=name, first_row=first)
    if pt.is_floating(kind):
        finite = pc.is_finite(column)
        return pc.if_else(finite, column, pa.scalar(None, kind)).cast(pa.large_string())
    if any(is_kind(kind) for is_kind in (pt.is_null, pt.is_integer, pt.is_boolean, pt.is_decimal)):
        return column.cast(pa.large_string())
    if pt.is_temporal(kind) and not pt.is_duration(kind) and not pt.is_interval(kind):
        return column.cast(pa.string()).cast(pa.large_string())
    raise _wrong_type(column, file, name, "text, numbers or dates")


def labels(column: pa.Array, file: str, name: str, *, first: int = 0) -> pa.Array:
    """A column of labels as text without white space around it; truth values are ``true`` and ``false``.

    Raises:
        DataSetError: It holds lists, objects or other things that are no labels.
    """
    return pc.utf8_trim_whitespace(texts(column, file, name, first=first))


def numbers(column: pa.Array, file: str, name: str) -> pa.Array:
    """A column as float64; null where a value is no number. Truth values are 1 and 0, in text columns too.

    Raises:
        DataSetError: Its type holds neither numbers nor texts.
    """
    column = typed.plain(column)
    kind = column.type
    if pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind) or pt.is_null(kind):
        return column.cast(pa.float64(), safe=False)
    if pt.is_boolean(kind):
        return column.cast(pa.int8()).cast(pa.float64())
    if not typed.is_text(kind):
        raise _wrong_type(column, file, name, "numbers, or text that reads as numbers")
    trimmed = pc.utf8_trim_whitespace(typed.readable_texts(column)[0])
    try:
        return trimmed.cast(pa.float64())
    except pa.ArrowInvalid:
        return pa.array([_number(value) for value in trimmed.to_pylist()], pa.float64())


def truths(column: pa.Array) -> np.ndarray:
    """Which values of a column are truth values: booleans, or the texts true and false in any case. (rows,) bool."""
    column = typed.plain(column)
    if pt.is_boolean(column.type):
        return np.asarray(pc.is_valid(column))
    if not typed.is_text(column.type):
        return np.zeros(len(column), bool)
    found = pc.utf8_lower(pc.utf8_trim_whitespace(typed.readable_texts(column)[0]))
    return np.asarray(pc.fill_null(pc.is_in(found, _TRUTHS), False))


def _number(value: str | None) -> float | None:
    if value is None or "_" in value:
        return None
    if value.lower() in ("true", "false"):
        return float(value.lower() == "true")
    try:
        return float(value)
    except ValueError:
        return None


def pictures(column: pa.Array, file: str, name: str, *, first: int = 0) -> tuple[pa.Array, int]:
    """A column of pictures as `opengcl.data.tables.pictures` gives it, and in how many rows there were several.

    Of several pictures (a list, or addresses side by side in one text) the first is taken.

    Raises:
        DataSetError: Its type holds no pictures.
    """
    column = typed.plain(column)
    elements, several = _elements(column), 0
    kind = column.type if elements is None else elements[0].type
    if typed.picture_type(kind) is None:
        raise _wrong_type(
            column,
            file,
            name,
            "pictures as bytes, as text (a path, URL or data URI), as {bytes, path}, or a list of these",
        )
    if elements is not None:
        found = typed.pictures(elements[0], file=file, column=name, first_row=first)
        column, several = _first_of_each(found, elements[1], len(column))
    column = typed.pictures(column, file=file, column=name, first_row=first)
    if pt.is_large_string(column.type):
        column, more = _first_address(column)
        several += more
    return column, several


def _first_of_each(found: pa.Array, parents: np.ndarray, rows: int) -> tuple[pa.Array, int]:
    """The first picture that is there of each row, and how many rows have more than one."""
    there = np.flatnonzero(np.asarray(typed.present(found)))
    owners, places, counts = np.unique(parents[there], return_index=True, return_counts=True)
    chosen = np.zeros(rows, np.int64)
    chosen[owners] = there[places]
    without = np.ones(rows, bool)
    without[owners] = False
    return found.take(pa.array(chosen, mask=without)), int((counts > 1).sum())


def _first_address(column: pa.Array) -> tuple[pa.Array, int]:
    several = pc.fill_null(pc.match_substring_regex(column, _SEVERAL_ADDRESSES), False)
    count = int(pc.sum(several).as_py() or 0)
    if not count:
        return column, 0
    found = (re.match(_SEVERAL_ADDRESSES, one or "") for one in column.to_pylist())
    firsts = pa.array([None if match is None else match[1] for match in found], pa.large_string())
    return pc.coalesce(firsts, column), count


def _elements(column: pa.Array) -> tuple[pa.Array, np.ndarray] | None:
    """The elements of all lists of a column, and the row of each; None for a column that holds no lists."""
    kind = column.type
    views = (pt.is_list_view(kind), pt.is_large_list_view(kind))
    if not (pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind) or any(views)):
        return None
    wanted = pa.large_list(kind.value_type)
    lists = pa.array(column.to_pylist(), wanted) if any(views) else column.cast(wanted)
    return typed.plain(pc.list_flatten(lists)), np.asarray(pc.list_parent_indices(lists), np.int64)


def _wrong_type(column: pa.Array, file: str, name: str, allowed: str) -> DataSetError:
    found = str(column.type)
    value: Any = next((one.as_py() for one in column[:1000] if one.is_valid), None)
    example = "" if value is None else f", such as {shown(value)}"
    return DataSetError(
        f"{file}, column '{name}': found type {found if len(found) < 200 else found[:200] + '...'}{example}; "
        f"allowed: {allowed}"
    )
