"""Pictures of a staged data set: fetched, read from files, checked or resized, and put into the table."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from opengcl.data import images, tables
from opengcl.data.schema import DOCUMENT_ID, FieldType
from opengcl.fetch import FetchOptions, fetch_pictures, stored_form
from opengcl.picture_store import PictureStore

FAILURES = "picture_failures.parquet"
"""Pictures that could not be read: ``doc_id``, ``field``, ``where`` they were looked for, and the ``reason``."""

_FAILURE_SCHEMA = pa.schema([(name, pa.string()) for name in (DOCUMENT_ID, "field", "where", "reason")])
_THREADS = 4
_LONGEST_PLACE = 2000


def bring_pictures(
    folder: Path,
    fields: dict[str, FieldType],
    store_folder: Path,
    root: Path | None,
    fetch: FetchOptions,
    *,
    image_size: int | None,
    progress: bool,
) -> dict[str, int]:
    """Replaces URLs and paths in ``documents.parquet`` by the files' bytes, and checks that all can be decoded.

    A document whose picture cannot be had stays without it, or goes if it has no other field. All such pictures are
    listed in `FAILURES` beside the table.

    Args:
        folder: With ``documents.parquet``; an image field holds URLs, data URIs, paths, bytes, or
            structs of bytes and path.
        fields: The documents' fields.
        store_folder: Where fetched pictures are kept until the import is done.
        root: What paths are relative to; none is read without it.
        fetch: Limits for URLs.
        image_size: Longer side in pixels that larger pictures are resized to, as JPEG; None leaves all as they are.
        progress: Whether long work shows bars.

    Returns:
        ``pictures`` in the table, ``picture_failures``, and ``documents_dropped``.
    """
    path = folder / "documents.parquet"
    names = [name for name, kind in fields.items() if kind == "image"]
    counts = {"pictures": 0, "picture_failures": 0, "documents_dropped": 0}
    with PictureStore(store_folder) as store:
        urls = (url for batch in _batches(path, names, "looking for pictures", progress) for url in _urls(batch, names))
        fetch_pictures(urls, store, replace(fetch, image_size=image_size), progress=progress)
        bringer = _Bringer(names, store, root, image_size)
        schema = _with_bytes(pq.read_schema(path), names)
        new, told = folder / "documents.new", folder / FAILURES
        with (
            ThreadPoolExecutor(_THREADS) as pool,
            pq.ParquetWriter(new, schema, compression="zstd") as writer,
            pq.ParquetWriter(told, _FAILURE_SCHEMA, compression="zstd") as failures,
        ):
            for batch in _batches(path, None, "bringing pictures", progress):
                rows, lost = bringer.bring(batch, schema, pool)
                kept = rows.filter(_any_present(rows, list(fields)))
                counts["documents_dropped"] += len(rows) - len(kept)
                counts["picture_failures"] += len(lost)
                counts["pictures"] += sum(len(kept) - kept.column(name).null_count for name in names)
                writer.write_batch(kept)
                failures.write_batch(lost)
    new.replace(path)
    if not counts["picture_failures"]:
        told.unlink()
    return counts


@dataclass(frozen=True)
class _Found:
    """What became of a cell: bytes, or why there are none."""

    data: bytes | None = None
    where: str = ""
    reason: str | None = None


@dataclass(frozen=True)
class _Bringer:
    """Fills the image columns of batches of documents."""

    names: list[str]
    store: PictureStore
    root: Path | None
    image_size: int | None

    def bring(
        self, batch: pa.RecordBatch, schema: pa.Schema, pool: ThreadPoolExecutor
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """The batch with bytes for pictures, and a table of those that could not be read."""
        columns = {name: batch.column(name) for name in batch.schema.names}
        ids = batch.column(DOCUMENT_ID).to_pylist()
        lost: list[tuple[str, ...]] = []
        for name in self.names:
            found = list(pool.map(self._find, columns[name].to_pylist()))
            columns[name] = pa.array([one.data for one in found], pa.large_binary())
            pairs = zip(ids, found, strict=True)
            lost += [(one, name, cell.where, cell.reason) for one, cell in pairs if cell.reason is not None]
        parts = zip(*lost, strict=True) if lost else [()] * len(_FAILURE_SCHEMA)
        failures = [pa.array(part, pa.string()) for part in parts]
        return pa.RecordBatch.from_pydict(columns, schema), pa.RecordBatch.from_arrays(failures, schema=_FAILURE_SCHEMA)

    def _find(self, cell: images.Cell | None) -> _Found:
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if not cell or (isinstance(cell, str) and not cell.strip()):
            return _Found()
        if isinstance(cell, str) and _is_url(cell):
            return self._fetched(cell.strip())
        where = _place(cell)
        if self.root is None and isinstance(cell, str) and not images.is_data_uri(cell):
            return _Found(None, where, "a path, where no folder of pictures is given")
        try:
            data = images.read(cell, self.root or Path())
            return _Found(stored_form(data, self.image_size), where)
        except images.PictureError as error:
            return _Found(None, where, str(error))

    def _fetched(self, url: str) -> _Found:
        data = self.store.get(url)  # checked and resized when it was fetched
        if data is not None:
            return _Found(data, url)
        failure = self.store.failure(url)
        return _Found(None, url, "not fetched" if failure is None else failure.reason)


def _batches(path: Path, columns: list[str] | None, task: str, progress: bool) -> Iterator[pa.RecordBatch]:
    with tables.Table.open(path) as table:
        yield from table.batches(columns, task=f"{path.name}: {task}", progress=progress)


def _urls(batch: pa.RecordBatch, names: list[str]) -> Iterator[str]:
    for name in names:
        column = batch.column(name)
        if pa.types.is_struct(column.type):
            column = pc.if_else(tables.present(column.field("bytes")), None, column.field("path"))
        if not pa.types.is_large_binary(column.type):
            yield from (cell.strip() for cell in cast(list[str | None], column.to_pylist()) if cell and _is_url(cell))


def _place(cell: images.Cell) -> str:
    """Where a picture is looked for, as it is told: a path, a short piece of it if it is long, or what holds it."""
    if not isinstance(cell, str):
        return "bytes"
    if images.is_data_uri(cell):
        return "a data URI"
    return cell if len(cell) <= _LONGEST_PLACE else f"{cell[:_LONGEST_PLACE]}..."


def _is_url(cell: str) -> bool:
    return cell.lstrip()[:8].lower().startswith(("http://", "https://"))


def _with_bytes(schema: pa.Schema, names: list[str]) -> pa.Schema:
    return pa.schema([pa.field(one.name, pa.large_binary()) if one.name in names else one for one in schema])


def _any_present(rows: pa.RecordBatch, fields: list[str]) -> pa.Array:
    found = tables.present(rows.column(fields[0]))
    for name in fields[1:]:
        found = pc.or_(found, tables.present(rows.column(name)))
    return found
