"""Files and folders that are there whole or not at all, also after a kill or a power cut; and room for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


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


def take_room(file: BinaryIO, size: int) -> None:
    """Takes the room on the disk for a new file of ``size`` bytes that will be memory-mapped.

    A full disk is an error here, and not a crash at some write to mapped memory.

    Raises:
        OSError: There is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(1 << 20)  # macOS has no such call, and files that are only made long hold no room
    for start in range(0, size, len(zeros)):
        file.write(zeros[: size - start])
