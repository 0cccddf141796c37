"""What options hold as text, read: lists, settings, paths; and how the commands speak to a person."""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from opengcl.plain_yaml import parse_yaml
from opengcl.terminal import safe


def names(written: str) -> list[str]:
    """``a, b``: parts between commas, blanks aside."""
    return [name.strip() for name in written.split(",") if name.strip()]


def columns(option: str, written: str | None) -> dict[str, str] | None:
    """``field=column,field=column``; a column alone is a field of its own name.

    Raises:
        ValueError: A field or column has no name.
    """
    if written is None:
        return None
    found = {}
    for part in names(written):
        name, equals, column = part.partition("=")
        if not name.strip() or (equals and not column.strip()):
            raise ValueError(f"{option} {written!r}: write field=column, with commas between them")
        found[name.strip()] = column.strip() or name.strip()
    return found


def settings(written: list[str], form: str = "name=value", texts: Collection[str] = ()) -> dict[str, Any]:
    """``name=value``, each the value of a ``--set``, with the value read as YAML.

    Args:
        written: What was given.
        form: How messages show one.
        texts: Names whose value is a text: it is taken as it is written, but for quotes around it, and ``null``.

    Raises:
        ValueError: There is no equals sign, no name or no value, or the value is not YAML.
    """
    found = {}
    for part in written:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise ValueError(f"--set {reprlib.repr(part)}: write {form}")
        if not value:
            way_out = "write null for none, and quotes for an empty text"
            raise ValueError(f"--set {reprlib.repr(part)}: found no value; {way_out}")
        if "." not in name:
            name = name.replace("-", "_")  # as the options are written; behind a dot, a name may be anybody's
        as_written = name in texts and value != "null" and value[0] not in "'\""
        found[name] = value if as_written else parse_yaml(value, name=f"--set {reprlib.repr(part)}").content
    return found


def text(path: Path | None) -> str | None:
    """A path as a configuration holds it."""
    return None if path is None else str(path)


def tell(message: str) -> None:
    """A result, on stdout; what would steer a terminal is written out."""
    typer.echo(safe(message))


def say(message: str) -> None:
    """A line on stderr: stdout is for results."""
    typer.echo(safe(message), err=True)
