"""Pictures of a catalogue that are paths, URLs or bytes, brought in as ``opengcl data import`` brings them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from opengcl.clicks.files import DOCUMENTS, Catalogue
from opengcl.data import tables
from opengcl.data.problems import DataSetError, shown
from opengcl.data.schema import DOCUMENT_ID
from opengcl.fetch import FetchOptions
from opengcl.sources.bring_pictures import FAILURES, bring_pictures

_BATCH = 2048  # rows at a time, which may hold pictures


@dataclass(frozen=True)
class PictureOptions:
    """How a catalogue's pictures are brought in.

    Attributes:
        root: What paths are relative to; by default the catalogue's own folder.
        image_size: Pictures are stored as JPEG with at most so many pixels on the longer side; as they are by default.
        fetch: Limits for those that are URLs.
    """

    root: Path | None = None
    image_size: int | None = None
    fetch: FetchOptions = field(default_factory=FetchOptions)

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            DataSetError: Naming the setting, what was found and what is allowed.
        """
        if self.image_size is not None and not 1 <= self.image_size <= 8192:
            raise DataSetError(f"image_size: found {self.image_size}; allowed: 1 to 8192 pixels")


def bring_catalogue_pictures(
    connection: duckdb.DuckDBPyConnection,
    catalogue: Catalogue,
    folder: Path,
    store: Path,
    options: PictureOptions,
    *,
    progress: bool,
) -> dict[str, int]:
    """Makes `DOCUMENTS` a view of the same documents with pictures as bytes, less those that nothing is left of.

    Args:
        connection: With the view `DOCUMENTS`, as `opengcl.clicks.files.open_catalogue` makes it.
        catalogue: Its fields and root.
        folder: Where the table goes that the view then reads, and the list of pictures that could not be read.
        store: Folder of fetched pictures; what is there is not fetched again.
        options: How.
        progress: Whether long work shows bars.

    Returns:
        As `opengcl.sources.bring_pictures.bring_pictures`.

    Raises:
        DataSetError: If no document is left.
    """
    path = folder / "documents.parquet"
    _write(connection, catalogue, path)
    root = options.root or catalogue.root
    size = options.image_size
    counts = bring_pictures(folder, catalogue.fields, store, root, options.fetch, image_size=size, progress=progress)
    if not pq.read_metadata(path).num_rows:
        lost = pq.read_table(folder / FAILURES).slice(0, 1).to_pylist()[0]
        raise DataSetError(
            f"the catalogue: no document is left, as {counts['picture_failures']:,} pictures could not be read and "
            f"there is no other field; the first: {shown(lost['where'])}: {lost['reason']}"
        )
    connection.read_parquet(str(path)).create_view(DOCUMENTS, replace=True)
    return counts


def _write(connection: duckdb.DuckDBPyConnection, catalogue: Catalogue, path: Path) -> None:
    """The view as a file, with its fields in the types that pictures are looked for in."""
    names = [name for name, kind in catalogue.fields.items() if kind == "image"]
    texts = [DOCUMENT_ID, *(name for name, kind in catalogue.fields.items() if kind == "text")]
    writer = None
    try:
        first = 0
        for batch in connection.cursor().sql(f"FROM {DOCUMENTS}").to_arrow_reader(_BATCH):
            columns = {name: batch.column(name) for name in batch.schema.names}
            for name in columns:
                where = {"file": "the catalogue", "column": name, "first_row": first}
                if name in names:
                    columns[name] = tables.pictures(columns[name], **where)
                elif name in texts:
                    columns[name] = tables.text(columns[name], **where)
            rows = pa.RecordBatch.from_pydict(columns)
            writer = writer or pq.ParquetWriter(path, rows.schema, compression="zstd")
            writer.write_batch(rows)
            first += len(rows)
    finally:
        if writer is not None:
            writer.close()
