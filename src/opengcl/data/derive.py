"""A data set made from another: what is not changed is carried over, and where it came from is told."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from opengcl.data import images, tables
from opengcl.data.build import Side
from opengcl.data.schema import Schema

Change = Callable[[pa.RecordBatch, int], pa.RecordBatch]
"""A batch of a table and the row, in the file, that it begins with -> the batch as it is written."""


def with_step(schema: Schema, step: dict[str, Any]) -> Schema:
    """The schema with one more entry in ``provenance.steps``; whatever stood in the provenance stays.

    Args:
        schema: That of the data set before.
        step: What was done to it: ``command``, its options, counts, the fingerprint before.
    """
    before = schema.provenance.get("steps", [])
    steps = [*(before if isinstance(before, list) else [before]), step]
    return replace(schema, provenance={**schema.provenance, "steps": steps})


def rewrite_table(source: Path, target: Path, change: Change, *, task: str, progress: bool) -> int:
    """Writes a table anew, a batch at a time.

    Args:
        source: A Parquet file.
        target: The new one.
        change: Makes the new batches, all of one schema; an empty one is left out.
        task: What the progress bar says.
        progress: Whether there is one.

    Returns:
        Rows written.

    Raises:
        DataSetError: If the source is not a readable table.
    """
    first = rows = 0
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(tables.Table.open(source))
        writer: pq.ParquetWriter | None = None
        for batch in table.batches(task=task, progress=progress):
            changed = change(batch, first)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(target, changed.schema, compression="zstd"))
            if len(changed):
                writer.write_batch(changed)
            first += len(batch)
            rows += len(changed)
    return rows


def bring_picture_files(batch: pa.RecordBatch, side: Side, folder: Path, out: Path) -> None:
    """Puts the picture files that a batch names by path into another folder, at the same path.

    They are linked where the file system can, and copied otherwise. A path that is not allowed or leads to no file is
    left as it is: opening the data set names it, there as here.
    """
    for name, kind in side.fields.items():
        if kind == "image":
            for cell in tables.pictures(batch.column(name), file=side.file, column=name, first_row=0):
                value = cell.as_py()
                path = value if isinstance(value, str) else _path_only(value)
                if path and not images.is_data_uri(path):
                    _bring(path, folder, out)


def _path_only(value: Any) -> str | None:
    """The path of a ``{bytes, path}`` that has no bytes."""
    return value["path"] if isinstance(value, dict) and not value["bytes"] else None


def _bring(path: str, folder: Path, out: Path) -> None:
    try:
        source = images.inside(path, folder)
    except images.PictureError:
        return
    target = out / path
    if not os.path.isfile(source) or target.exists():  # noqa: PTH113 - Path.is_file raises where a name is too long
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
