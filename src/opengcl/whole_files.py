"""Files and folders that are there whole or not at all, also after a kill or a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def put_text(file: Path, text: str) -> None:
    """Writes a file beside its place, hands it to the disk, and puts it in place in one step."""
    scratch = file.with_name(f".{file.name}.partial")
    scratch.write_text(text, encoding="utf-8")
    put(scratch, file)


def put(scratch: Path, place: Path) -> None:
    """Hands a finished file or folder to the disk and gives it its name; a folder's place must be free."""
    _sync_tree(scratch)
    scratch.replace(place)
    _sync(place.parent)


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _sync_tree(inner)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
