"""What a person may have meant by the name of a folder that is not there, told at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

_LOOKED_AT = 2000  # folders at most, so that a mistake in a large tree is reported as fast
_NAMED = 3


def no_such_folder(path: str | Path) -> str:
    """``PATH: no such folder``, or that it is a file, with the names nearby that look most like it."""
    found = Path(path)
    if found.exists():
        return f"{path} is a file, not a folder"
    near = near_folders(path)
    return f"{path}: no such folder" + (f"; there is {', '.join(near)}" if near else "")


def require_place(out: Path) -> None:
    """Makes sure, before any work, that a file can go there as far as names tell.

    Raises:
        ValueError: A folder has this name, or the folder that the file goes into is not there.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder; allowed: the name of a file")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: cannot be written: {no_such_folder(out.parent)}")


def near_folders(path: str | Path) -> list[str]:
    """Up to three folders whose names look like that of one that is not there, most alike first."""
    wanted = os.path.normpath(Path(path).expanduser())
    base = next((parent for parent in Path(wanted).parents if parent.is_dir()), None)
    if base is None:
        return []
    names = [str(folder) for folder in islice(_folders(base, depth=2), _LOOKED_AT)]
    return difflib.get_close_matches(wanted, names, n=_NAMED, cutoff=0.7)


def _folders(base: Path, depth: int) -> Iterator[Path]:
    """Folders below, those nearest first; hidden ones and those that cannot be read aside."""
    level = [base]
    for _ in range(depth):
        below = []
        for folder in level:
            try:
                children = sorted(child for child in islice(folder.iterdir(), _LOOKED_AT) if child.is_dir())
            except OSError:
                continue
            below += [child for child in children if not child.name.startswith(".")]
        yield from below
        level = below[:_LOOKED_AT]
