"""The splits of a data set made anew, everything else unchanged."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from opengcl.data import cache, tables
from opengcl.data.build import Side, sides
from opengcl.data.derive import bring_picture_files, rewrite_table, with_step
from opengcl.data.new_folder import new_folder
from opengcl.data.schema import PART, SCHEMA_FILE, SPLIT, Schema, SplitOptions
from opengcl.data.splits import choose

Counts = dict[str, dict[str, int]]


def resplit(
    folder: Path,
    out: Path | None,
    options: SplitOptions,
    *,
    by_hash: bool = False,
    keep_parts: bool = True,
    progress: bool = True,
) -> Counts:
    """Divides queries and documents into seen and novel by their ids.

    Args:
        folder: The data set.
        out: Folder of the new one; None to change `folder` itself.
        options: Seed and shares; they go into ``dataset.yaml`` too, and ``dev`` counts from there.
        by_hash: Leave the ``split`` columns out, so that the division is made from ``dataset.yaml`` at each opening.
            It is the same division, and rows that come later fall into it.
        keep_parts: Whether a ``part`` column of the queries (dev or test) stays, and goes before ``options.dev``.
        progress: Whether long work shows a progress bar on stderr.

    Returns:
        ``seen`` and ``novel`` rows for ``queries`` and ``documents``.

    Raises:
        DataSetError: If the data set is not readable, or `out` exists already.
    """
    schema = Schema.read(folder)
    step = {
        "command": "split",
        "from": cache.content_hash(folder),
        "written": "dataset.yaml" if by_hash else "columns",
        **asdict(options),
    }
    changed = with_step(replace(schema, splits=options), step)
    split = _Split(folder, changed, by_hash, keep_parts, progress)
    if out is None:
        with tempfile.TemporaryDirectory(prefix=".split-", dir=folder) as scratch:
            counts = split.write(Path(scratch))
            _take_place(Path(scratch), folder)
        return counts
    with new_folder(out) as into:
        counts = split.write(into, pictures=True)
        shutil.copyfile(folder / "qrels.parquet", into / "qrels.parquet")
    return counts


def _take_place(new: Path, folder: Path) -> None:
    """Old dataset.yaml away first, new one last: in between the folder is no data set, never one of two divisions."""
    (folder / SCHEMA_FILE).rename(new / f"{SCHEMA_FILE}.before")
    for name in ("queries.parquet", "documents.parquet", SCHEMA_FILE):
        (new / name).replace(folder / name)


@dataclass
class _Split:
    folder: Path
    schema: Schema
    by_hash: bool
    keep_parts: bool
    progress: bool
    counts: Counts = field(default_factory=dict)

    def write(self, into: Path, *, pictures: bool = False) -> Counts:
        """Writes ``dataset.yaml`` and the tables of both sides, with the picture files if asked."""
        for side in sides(self.schema):
            self.counts[side.name] = {"seen": 0, "novel": 0}

            def change(batch: pa.RecordBatch, first: int, side: Side = side) -> pa.RecordBatch:
                if pictures:
                    bring_picture_files(batch, side, self.folder, into)
                return self._divided(batch, side, first)

            task = f"{side.file}: dividing"
            rewrite_table(self.folder / side.file, into / side.file, change, task=task, progress=self.progress)
        (into / SCHEMA_FILE).write_text(self.schema.to_yaml(), encoding="utf-8")
        return self.counts

    def _divided(self, batch: pa.RecordBatch, side: Side, first: int) -> pa.RecordBatch:
        options, is_query = self.schema.splits, side.name == "queries"
        ids = tables.text(batch.column(side.id_column), file=side.file, column=side.id_column, first_row=first)
        share = options.seen_queries if is_query else options.seen_documents
        known = (one or "" for one in ids.to_pylist())
        seen = choose(known, seed=options.seed, side="query" if is_query else "document", share=share)
        self.counts[side.name]["seen"] += int(seen.sum())
        self.counts[side.name]["novel"] += int((~seen).sum())
        dropped = {SPLIT} if self.keep_parts or not is_query else {SPLIT, PART}
        columns: list[tuple[pa.Field, Any]] = [
            (one, column) for one, column in zip(batch.schema, batch.columns, strict=True) if one.name not in dropped
        ]
        if not self.by_hash:
            columns.append((pa.field(SPLIT, pa.string()), pa.array(np.where(seen, "seen", "novel"), pa.string())))
        fields, arrays = zip(*columns, strict=True)
        return pa.RecordBatch.from_arrays(list(arrays), schema=pa.schema(fields, metadata=batch.schema.metadata))
