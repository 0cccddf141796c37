"""Pictures decoded and resized once, kept between runs: files of bytes, memory-mapped, checked on every read.

An entry is a folder: ``pixels.bin`` (a row of bytes a picture), ``rows.bin`` (each row's checksum and what it was made
of) and ``meta.json``, which is written last. A row counts from the moment its checksum is written, which is after its
pixels: a process killed at any point leaves rows that are whole and rows that are not there.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt32, UInt64

from opengcl.data import cache as dataset_cache
from opengcl.whole_files import take_room

LAYOUT = 1
"""Version of the files; part of every entry's name."""

META = "meta.json"
_PIXELS, _ROWS = "pixels.bin", "rows.bin"
_ROW = np.dtype([("whole", "<u4"), ("sum", "<u4"), ("stamp", "<u8")])
_WHOLE = 0x77686F6C  # not 0 or 1, so that a row file of other content is not taken for one of ours
logger = logging.getLogger(__name__)

Places = Int[np.ndarray, " rows"]
Pixels = UInt8[np.ndarray, "rows channels height width"]


def folder_of_pictures(cache_dir: Path | str | None = None) -> Path:
    """Where the entries are: in the data sets' cache folder."""
    return dataset_cache.root(cache_dir) / "pictures"


class PictureCache:
    """One entry: the pictures of one field of one table, as one processor makes them.

    While it is open, no other process removes it. Any number of processes may read, and write rows: what is written at
    a place is always the same. `fill` lets one process at a time do the work.

    Attributes:
        folder: The entry's.
        shape: (rows, channels, height, width).
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]) -> None:
        """Opens an entry that is there; see `open_entry`.

        Raises:
            FileNotFoundError: It is not there, or its files do not have the size of this shape.
        """
        self.folder, self.shape = folder, shape
        self._lock = os.open(_lock_file(folder), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(self._lock, fcntl.LOCK_SH)
            _require_whole(folder, shape)
            self._pixels = np.memmap(folder / _PIXELS, dtype=np.uint8, mode="r+", shape=shape)
            self._rows = np.memmap(folder / _ROWS, dtype=_ROW, mode="r+", shape=shape[:1])
            with suppress(OSError):
                os.utime(folder / META)
        except BaseException:
            os.close(self._lock)
            raise

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._lock)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to a spawned worker as its place."""
        return PictureCache, (self.folder, self.shape)

    def missing(self, stamps: UInt64[np.ndarray, " rows"]) -> Places:
        """Places that hold nothing, or what was made of another file (its stamp differs)."""
        return np.flatnonzero((self._rows["whole"] != _WHOLE) | (self._rows["stamp"] != stamps))

    def write(self, places: Places, pixels: Pixels, stamps: UInt64[np.ndarray, " rows"]) -> None:
        """Puts rows in place: first the pixels, then what says that they are there."""
        rows = np.zeros(len(places), dtype=_ROW)
        rows["whole"], rows["stamp"] = _WHOLE, stamps
        rows["sum"] = [zlib.crc32(row) for row in pixels]
        self._pixels[places] = pixels
        self._rows[places] = rows

    def read(self, places: Places) -> tuple[Pixels, Bool[np.ndarray, " rows"]]:
        """The rows, and which of them are what was written."""
        pixels, rows = np.asarray(self._pixels[places]), self._rows[places]
        sums = np.fromiter((zlib.crc32(row) for row in pixels), dtype=np.uint32, count=len(pixels))
        return pixels, (rows["whole"] == _WHOLE) & (rows["sum"] == sums)

    def sums(self) -> UInt32[np.ndarray, " rows"]:
        """The checksum of each row's pixels; 0 where there are none."""
        return np.where(self._rows["whole"] == _WHOLE, self._rows["sum"], np.uint32(0))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process fills this entry for the length of a ``with`` block; one that does is waited for."""
        handle = os.open(_lock_file(self.folder).with_suffix(".fill"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def flush(self) -> None:
        """Hands everything written to the disk, pixels first."""
        self._pixels.flush()
        self._rows.flush()


def open_entry(
    parent: Path, name: str, shape: tuple[int, int, int, int], *, limit_bytes: float, about: dict[str, Any]
) -> PictureCache | None:
    """An entry, new and empty if it is not there; those that were used longest ago make room for it.

    Args:
        parent: The folder of all entries; made if it is not there.
        name: The entry's name, which must change with whatever its content depends on.
        shape: (rows, channels, height, width).
        limit_bytes: All entries together take at most so much.
        about: Written into ``meta.json``, for people.

    Returns:
        None if there is no room, and the log says why: too large by itself, the others are in use, or the disk is full.
    """
    folder = parent / name
    needed = _size(shape)
    if needed > limit_bytes:
        logger.warning(
            "pictures are decoded per batch: kept, they would take %.2f GB, over the limit of %.2f GB (image_cache_gb)",
            needed / 1e9,
            limit_bytes / 1e9,
        )
        return None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent / "entries.lock"):  # entries come and go one at a time
            with suppress(FileNotFoundError):
                return PictureCache(folder, shape)
            _remove(folder)
            if not _make_room(parent, needed, limit_bytes):
                return None
            _create(folder, shape, about)
            return PictureCache(folder, shape)
    except OSError as error:
        logger.warning("pictures are decoded per batch: %s cannot be written: %s", folder, error)
        return None


def find_entry(parent: Path, name: str, shape: tuple[int, int, int, int]) -> PictureCache | None:
    """An entry that is there, or None."""
    if not (parent / name / META).is_file():
        return None
    try:
        return PictureCache(parent / name, shape)
    except OSError:  # another process has just removed it, or it is on a disk that may not be written
        return None


def _create(folder: Path, shape: tuple[int, int, int, int], about: dict[str, Any]) -> None:
    folder.mkdir()
    try:
        for name, size in ((_PIXELS, int(np.prod(shape, dtype=np.int64))), (_ROWS, shape[0] * _ROW.itemsize)):
            with (folder / name).open("wb") as file:
                take_room(file, max(size, 1))
        meta = {"layout": LAYOUT, "shape": list(shape), **about}
        (folder / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _require_whole(folder: Path, shape: tuple[int, int, int, int]) -> None:
    try:
        found = json.loads((folder / META).read_text(encoding="utf-8"))["shape"]
    except (ValueError, TypeError, KeyError) as error:
        raise FileNotFoundError(f"{folder / META}: not what was written there: {error}") from error
    sizes = [(folder / name).stat().st_size for name in (_PIXELS, _ROWS)]
    if found != list(shape) or sum(sizes) < _size(shape):
        raise FileNotFoundError(f"{folder}: holds pictures of shape {found} in {sizes} bytes; expected {list(shape)}")


def _size(shape: tuple[int, int, int, int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) + shape[0] * _ROW.itemsize


def _make_room(parent: Path, needed: int, limit_bytes: float) -> bool:
    """Removes entries, those used longest ago first, until the new one fits."""
    entries = [(file.stat().st_mtime_ns, file.parent) for file in parent.glob(f"*/{META}")]
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for _, folder in entries}
    for _, folder in sorted(entries):
        if sum(sizes.values()) + needed <= limit_bytes:
            break
        if _remove(folder):
            logger.info("removed the pictures in %s to make room", folder)
            del sizes[folder]
    if sum(sizes.values()) + needed <= limit_bytes:
        return True
    logger.warning(
        "pictures are decoded per batch: %.2f GB would be kept, and %.2f of the %.2f GB (image_cache_gb) are in use",
        needed / 1e9,
        sum(sizes.values()) / 1e9,
        limit_bytes / 1e9,
    )
    return False


def _remove(folder: Path) -> bool:
    """Removes an entry unless some process has it open."""
    handle = os.open(_lock_file(folder), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def _lock_file(folder: Path) -> Path:
    """Beside the entry, and never removed: a lock on a file that is gone protects nothing."""
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _flock(handle: int, operation: int) -> None:
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks: nothing is protected from removal by another process
        logger.debug("no locks on this file system")
