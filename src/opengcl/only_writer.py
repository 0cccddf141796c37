"""One writer at a time for a folder: the lock that every command takes before it makes or changes one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


class FolderBusyError(ValueError):
    """Another process, or another thread of this one, writes into the folder."""


@dataclass
class _Held:
    """A lock of this process; a file lock alone would not keep its threads apart."""

    thread: int
    depth: int = 1


_held: dict[Path, _Held] = {}
_guard = threading.Lock()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """No other command writes into this folder for the length of a ``with`` block; the lock ends with its process.

    The lock lies beside the folder, as ``.NAME.lock``, so that the folder itself can be made, renamed or replaced. The
    same thread may take it again inside the block. Where the file system has no locks, that is logged.

    Args:
        folder: It need not exist.

    Raises:
        FolderBusyError: Another process or thread has the lock; nothing was changed.
    """
    place = folder.resolve()
    lock = place.with_name(f".{place.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"{folder}: another process is writing here; wait for its end, or stop it", remove=True):
        yield


@contextmanager
def locked(lock: Path, busy: str, *, remove: bool = False) -> Iterator[None]:
    """A lock file is held for the length of a ``with`` block, by this thread of this process alone.

    Args:
        lock: The file; it is made where it is missing.
        busy: What the error says when another one holds it.
        remove: Whether the file is removed at the end.

    Raises:
        FolderBusyError: As above.
    """
    if not _enter(lock):
        raise FolderBusyError(busy)
    try:
        with contextlib.ExitStack() as stack:
            if _held[lock].depth == 1:
                _take(lock, busy, stack, remove=remove)
            yield
    finally:
        _leave(lock)


def _enter(lock: Path) -> bool:
    with _guard:
        held = _held.setdefault(lock, _Held(threading.get_ident(), 0))
        if held.thread != threading.get_ident():
            return False
        held.depth += 1
        return True


def _leave(lock: Path) -> None:
    with _guard:
        _held[lock].depth -= 1
        if not _held[lock].depth:
            del _held[lock]


def _take(lock: Path, busy: str, stack: contextlib.ExitStack, *, remove: bool) -> None:
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            logger.warning("%s cannot be written (%s): do not let two processes write there", lock, error)
            return
        stack.callback(os.close, handle)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # workers that outlive a killed process do not hold it
        except (BlockingIOError, PermissionError):
            raise FolderBusyError(busy) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not let two processes write there", lock, error)
            return
        if _is_there(lock, handle):
            break
    if remove:
        stack.callback(lock.unlink, missing_ok=True)  # before it is closed, so that nobody locks a file that is gone


def _is_there(lock: Path, handle: int) -> bool:
    """Whether the locked file still has its name: its last holder removes it."""
    try:
        found = lock.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(handle)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)
