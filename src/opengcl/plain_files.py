"""Files of folders from outside, opened so that no pipe or device in their place can hold the process."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MOST_BYTES = 256 << 20
"""Bytes of a file that is read whole, such as a run's figures."""


def open_plain(path: Path | str) -> BinaryIO:
    """Opens a file for reading, if it is a plain one or a link to one.

    Raises:
        OSError: It is not there, or is a pipe, a socket, a device or a folder.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(*_refusal(mode), str(path))
    return os.fdopen(handle, "rb")


def _refusal(mode: int) -> tuple[int, str]:
    if stat.S_ISDIR(mode):
        return errno.EISDIR, os.strerror(errno.EISDIR)
    return errno.EINVAL, "not a plain file"


def read_plain(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """A plain file's bytes.

    Raises:
        OSError: As `open_plain`, or it has more than ``most`` bytes.
    """
    with open_plain(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return data
