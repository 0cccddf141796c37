"""What options hold as text, read: lists, settings, paths; and how the commands speak to a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
import yaml


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


def settings(written: list[str], form: str = "name=value") -> dict[str, Any]:
    """``name=value``, each the value of a ``--set``, with the value read as YAML; ``form`` is how messages show one.

    Raises:
        ValueError: There is no equals sign.
    """
    found = {}
    for part in written:
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--set {part!r}: write {form}")
        found[name.strip().replace("-", "_")] = yaml.safe_load(value)
    return found


def text(path: Path | None) -> str | None:
    """A path as a configuration holds it."""
    return None if path is None else str(path)


def say(message: str) -> None:
    """A line on stderr: stdout is for results."""
    typer.echo(message, err=True)
