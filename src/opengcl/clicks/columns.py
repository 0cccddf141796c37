"""Where a log keeps what: columns by name, and values within columns by a path of names with dots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ibis
from ibis.expr import datatypes as dt
from ibis.expr import types as ir

from opengcl.data.problems import DataSetError, shown

PLACE = "place_in_list"
"""Column of a result's place in its list, from 0, after `one_row_a_result`."""

_JOINED = "\x1f"
_FEW = 20


def one_row_a_result(table: ir.Table, lists: Sequence[str]) -> ir.Table:
    """A row for each element of a column of lists, with its `PLACE`; the others of ``lists`` go along in step.

    Columns keep their names and hold the elements. A row whose list is null or empty gives none.

    Raises:
        DataSetError: If a column is missing, or holds anything but lists.
    """
    for number, name in enumerate(lists):
        if name not in table.columns:
            raise DataSetError(
                f"the log has no column {shown(name)} of lists; it has {_few(table.columns)} (--results)"
            )
        kind = table[name].type()
        if kind.is_string() or kind.is_json():
            as_json: Any = table[name].try_cast("json")
            table = table.mutate(**{name: as_json.array.map(lambda one: one.cast("json"))})
        elif not kind.is_array():
            raise DataSetError(f"the log, column {shown(name)}: found {_told(kind)}; allowed for --results: lists")
        # The first is taken apart; of the others each row has its own element.
        table = (
            table.mutate(**{name: _element(table[name], table[PLACE])}) if number else table.unnest(name, offset=PLACE)
        )
    return table


def text_at(table: ir.Table, path: str, role: str, lists: Sequence[str] = ()) -> Any:
    """`value_at` as text; several with + between them are one text, null where one of them is."""
    if path not in table.columns and "+" in path:
        parts = [text_at(table, one.strip(), role, lists) for one in path.split("+")]
        joined = parts[0]
        for part in parts[1:]:
            joined = joined + _JOINED + part
        return joined
    return value_at(table, path, role, lists).cast("string")


def value_at(table: ir.Table, path: str, role: str, lists: Sequence[str] = ()) -> Any:
    """What a path leads to: a column of this name; or one, and names within it after dots.

    A name leads into a struct, a map, JSON as text, or a list of (key, value) as Google Analytics has it; a number,
    into a list, from 0. A name alone may also be one of a field of the elements of ``lists``.

    Args:
        table: The log.
        path: Such as ``event_attributes.object.object_id``.
        role: What is looked for, for messages; also the option's name.
        lists: Columns that `one_row_a_result` has taken apart.

    Raises:
        DataSetError: If it leads nowhere, or to several values.
    """
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in table.columns:
            value, taken = table[name], length
            break
    else:
        holders = [one for one in lists if parts[0] in getattr(table[one].type(), "names", ())]
        if not holders:
            raise DataSetError(
                f"the log has no column {shown(path)} for the {role}; it has {_few(table.columns)} ({_way_out(role)})"
            )
        value, taken = table[holders[0]], 0
    for step in parts[taken:]:
        value = _step(value, step, path, role)
    return _single(value, path, role)


def _element(values: Any, at: Any) -> Any:
    """An element of a list; null beyond its end, which is an error to some backends."""
    return ibis.ifelse(values.length() > at, values[at], ibis.null())


def _step(value: Any, step: str, path: str, role: str) -> Any:
    kind = value.type()
    if kind.is_struct():
        if step in kind.names:
            return value[step]
        raise DataSetError(f"the log, {role} {shown(path)}: found no {shown(step)}; it has {_few(kind.names)}")
    if kind.is_map():
        return value.get(step)
    if kind.is_array() and {"key", "value"} <= set(getattr(kind.value_type, "names", ())):
        return _element(value.filter(lambda one: one["key"] == step), 0)["value"]
    if kind.is_array() and step.isdecimal():
        return _element(value, int(step))
    if kind.is_string() or kind.is_json():
        inside = value if kind.is_json() else value.try_cast("json")
        return inside[int(step) if step.isdecimal() else step]
    raise DataSetError(
        f"the log, {role} {shown(path)}: found {_told(kind)} where {shown(step)} is looked for; allowed: a struct, a "
        "map, JSON, or a list of keys and values"
    )


def _single(value: Any, path: str, role: str) -> Any:
    """A value that is one: of Google Analytics' {string_value, int_value, ...} the one that is set."""
    kind = value.type()
    if kind.is_struct() and kind.names and all(one.endswith("_value") for one in kind.names):
        return ibis.coalesce(*(value[one].cast("string") for one in kind.names))
    if kind.is_json():
        return ibis.coalesce(value.str, value.cast("string"))
    if kind.is_nested():
        inside = f" of {_few(kind.names)}" if kind.is_struct() else ""
        raise DataSetError(
            f"the log, {role} {shown(path)}: found {_told(kind)}{inside}; allowed: one value (a path with dots leads "
            "into it; --results takes lists apart)"
        )
    return value


def _way_out(role: str) -> str:
    if role.startswith("flag "):
        return f"--flag {role.removeprefix('flag ')}=COLUMN names another"
    option = "--event-column" if role == "event" else f"--{role}"
    more = {
        "query": "; --query-text TEXT where there are no queries, as in a feed",
        "position": "; --list-order for the order of the lists of --results",
        "event": "; --flag click=COLUMN where a row says whether its result was clicked",
        "session": "; --no-session where a row says whether its result was clicked",
    }
    return f"{option} names another{more.get(role, '')}"


def _told(kind: dt.DataType) -> str:
    return "a struct" if kind.is_struct() else "lists" if kind.is_array() else f"type {str(kind)[:60]}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
