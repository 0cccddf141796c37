"""Functions and classes of the user's own, by their import path: weight functions and losses, for training alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def is_import_path(module: str, name: str) -> bool:
    """Whether both are written as Python names; nothing is looked for."""
    return name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def imported(what: str, module: str, name: str) -> Any:
    """What ``module:name`` names, in an installed package or else in the current folder.

    The current folder comes last, so that no file there takes the place of an installed package; it stays on the
    import path where a module was found there. Importing runs the module, so only training may call this.

    Args:
        what: What it is for, for the message, such as ``"weight function"``.
        module: A module's full name.
        name: A name in it.

    Raises:
        ValueError: The module is not there or cannot be imported, or has no such name.
    """
    try:
        found = _module(module)
    except ModuleNotFoundError as error:
        searched = "installed packages and the current folder were searched"
        raise ValueError(f"{what} {module}:{name} cannot be imported: {error} ({searched}: {Path.cwd()})") from error
    except Exception as error:  # whatever the module's own code raises
        kind = type(error).__name__
        raise ValueError(f"{what} {module}:{name} cannot be imported: {kind}: {error}") from error
    try:
        return getattr(found, name)
    except AttributeError as error:
        place = getattr(found, "__file__", None) or module
        raise ValueError(f"{what} {module}:{name} cannot be imported: {place} has no {name!r}") from error


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top, folder = name.partition(".")[0], str(Path.cwd())
        if error.name != top or folder in sys.path:
            raise
    sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == top:
            sys.path.remove(folder)
        raise
