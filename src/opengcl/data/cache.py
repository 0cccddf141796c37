"""Where opened data sets are kept as memory-mapped files, and how they get there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from opengcl.data.problems import DataSetError
from opengcl.data.schema import SCHEMA_FILE

LAYOUT = 2
"""Version of the cache's files; another version, another folder."""

TABLES = ("queries.parquet", "documents.parquet", "qrels.parquet")
META = "meta.json"
_BUILDING = ".building-"


def root(cache_dir: Path | str | None) -> Path:
    """The cache folder: the argument, else ``OPENGCL_CACHE``, else ``~/.cache/opengcl``."""
    chosen = cache_dir or os.environ.get("OPENGCL_CACHE") or Path.home() / ".cache" / "opengcl"
    return Path(chosen).expanduser()


def key(folder: Path) -> str:
    """Changes with the folder's place, ``dataset.yaml``, and the tables' sizes and times: 24 hex digits.

    Raises:
        DataSetError: If one of the files is missing.
    """
    digest = hashlib.blake2b(f"{LAYOUT}\n{folder.resolve()}\n".encode(), digest_size=12)
    try:
        digest.update((folder / SCHEMA_FILE).read_bytes())
        for name in TABLES:
            stat = (folder / name).stat()
            digest.update(f"\n{name} {stat.st_size} {stat.st_mtime_ns}".encode())
    except OSError as error:
        raise DataSetError(
            f"{error.filename}: {error.strerror}; required in a data set's folder: {SCHEMA_FILE}, {', '.join(TABLES)}"
        ) from error
    return digest.hexdigest()


def content_hash(folder: Path) -> str:
    """A hash over the bytes of ``dataset.yaml`` and the tables: the same wherever the folder lies, 32 hex digits.

    Raises:
        DataSetError: If one of the files cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        for name in (SCHEMA_FILE, *TABLES):
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    except OSError as error:
        raise DataSetError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def find(parent: Path, names: Sequence[str]) -> Path | None:
    """The first of these entries that exists."""
    return next((parent / name for name in names if (parent / name / META).is_file()), None)


def store(parent: Path, build: Callable[[Path], str]) -> Path:
    """Builds an entry in a temporary folder beside its place and renames it, so that no half entry is ever seen.

    Two processes may build the same entry at once: the first to finish wins, the other's copy is dropped.

    Args:
        parent: The cache folder; made if it is not there.
        build: Fills the folder it is given and returns the entry's name.

    Returns:
        The entry's folder.

    Raises:
        DataSetError: If the cache folder cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        with _temporary(parent) as folder:
            place = parent / build(folder)
            with contextlib.suppress(OSError):  # not empty: another process was first
                folder.rename(place)
            if not (place / META).is_file():
                raise DataSetError(f"{place}: cannot be put in place; remove it and open the data set again")
            return place
    except OSError as error:
        raise DataSetError(
            f"the cache folder {parent} cannot be written: {error}; choose another with cache_dir or OPENGCL_CACHE"
        ) from error


@contextlib.contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A folder that is locked while its process lives, and removed at the end if it is still there."""
    handle, lock_name = tempfile.mkstemp(prefix=_BUILDING, suffix=".lock", dir=parent)
    lock, folder = Path(lock_name), Path(lock_name).with_suffix("")
    try:
        # Locked before the folder exists: an unlocked folder is an abandoned one.
        with contextlib.suppress(OSError):  # a file system without locks: nothing is ever taken for abandoned
            fcntl.flock(handle, fcntl.LOCK_EX)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(handle)


def _remove_abandoned(parent: Path) -> None:
    """Removes what killed builds left."""
    for folder in parent.glob(f"{_BUILDING}*"):
        if not folder.is_dir():
            continue
        lock = folder.with_name(f"{folder.name}.lock")
        with contextlib.suppress(OSError), lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
