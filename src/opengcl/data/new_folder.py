"""Folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opengcl.data.problems import DataSetError
from opengcl.only_writer import only_writer


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place when the block ends, and is removed if it ends with an error.

    Args:
        out: Where it goes; it must not exist yet, or be empty.

    Raises:
        DataSetError: If it exists and is not empty.
        FolderBusyError: Another process or thread makes it.
    """
    with only_writer(out):
        require_free(out)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def require_free(out: Path) -> None:
    """Checks that a folder can be made here.

    Raises:
        DataSetError: It exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataSetError(f"{out}: exists already; allowed: a new or empty folder")
