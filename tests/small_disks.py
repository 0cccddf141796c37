"""Disks that are soon full, for the tests of what happens then."""

from __future__ import annotations

import gc
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(megabytes: int) -> Iterator[Path]:
    """A file system of so many MB; where none can be mounted, the test is skipped."""
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "none", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here (root may): {done.stderr.strip()}")
        yield folder
    finally:
        gc.collect()  # files that are still mapped keep the disk busy
        subprocess.run(["umount", str(folder)], capture_output=True, check=False)  # noqa: S607
        folder.rmdir()
