"""Random access to the rows of one table, queries or documents, without reading it into memory."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, UInt64
from PIL import Image

from opengcl.data import images
from opengcl.data.cache import META
from opengcl.data.problems import DataSetError, listed, number_of, shown
from opengcl.data.schema import FieldType
from opengcl.given_lists import not_one_text

Rows = Int[np.ndarray, "rows"] | Sequence[SupportsIndex]

TABLE, KEYS, ORDER = "table.arrow", "keys.npy", "order.npy"


def present_file(number: int) -> str:
    """Name of the file that says where field `number` (from 0) is present."""
    return f"present-{number}.npy"


def id_keys(ids: Iterable[str]) -> UInt64[np.ndarray, "ids"]:
    """blake2b-64 of each id: what ids are looked up by. Equal keys do not prove equal ids."""
    coded = (one.encode(errors="surrogatepass") for one in ids)  # no id has lone surrogates, but a question may
    joined = b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in coded)
    return np.frombuffer(joined, dtype=np.uint64)


class Records:
    """The rows of queries.parquet or documents.parquet, memory-mapped; safe in forked and spawned workers.

    Attributes:
        file: Name of the Parquet file, for messages.
        id_column: Name of its id column.
        fields: Model field -> type.
    """

    def __init__(self, cache: Path, folder: Path, file: str, id_column: str, fields: dict[str, FieldType]) -> None:
        """Opens a table in the cache; nothing but offsets is read.

        Args:
            cache: Folder of this table in the cache.
            folder: The data set's folder, which picture paths are relative to.
            file: Name of the Parquet file.
            id_column: Name of its id column.
            fields: Model field -> type.
        """
        self._arguments = (cache, folder, file, id_column, fields)
        self._folder = folder
        self.file = file
        self.id_column = id_column
        self.fields = fields
        self._table = pa.ipc.open_file(pa.memory_map(str(cache / TABLE))).read_all()
        self._chunks: dict[str, list[pa.Array]] = {}
        lengths = [len(chunk) for chunk in self._table.column(id_column).chunks]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._keys = np.load(cache / KEYS, mmap_mode="r")
        self._order = np.load(cache / ORDER, mmap_mode="r")
        self._present = {
            name: np.load(cache / present_file(number), mmap_mode="r") for number, name in enumerate(fields)
        }

    def __reduce__(self) -> tuple[type["Records"], tuple[Path, Path, str, str, dict[str, FieldType]]]:
        """Travels to a spawned worker as its place, not its content."""
        return Records, self._arguments

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def columns(self) -> list[str]:
        """Names of all columns of the table, model fields or not."""
        return list(self._table.column_names)

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column, memory-mapped: titles, attributes, whatever the file has.

        Raises:
            DataSetError: If there is no such column.
        """
        if name not in self._table.column_names:
            raise DataSetError(f"{self.file}: no column {name!r}; the file has {listed(self.columns)}")
        return self._table.column(name)

    def values(self, name: str, rows: Rows) -> list[Any]:
        """Values of any column at these rows, in their order, as Python objects."""
        if name not in self._chunks:
            self._chunks[name] = self.column(name).chunks
        chunks = self._chunks[name]
        positions = self._rows(rows)
        parts = np.searchsorted(self._starts, positions, side="right") - 1
        inner = positions - self._starts[parts]
        return [chunks[part][at].as_py() for part, at in zip(parts.tolist(), inner.tolist(), strict=True)]

    def ids(self, rows: Rows | None = None) -> list[str]:
        """Ids at these rows, or all ids in row order."""
        if rows is None:
            return cast(list[str], self._table.column(self.id_column).to_pylist())
        return self.values(self.id_column, rows)

    def row(self, id: str) -> int:  # noqa: A002 - the name that callers read best
        """The row of an id.

        Raises:
            DataSetError: If there is no such id.
        """
        row = int(self.find([id])[0])
        if row < 0:
            raise DataSetError(f"{self.file}: no {self.id_column} {id!r} among its {number_of(len(self), 'row')}")
        return row

    def find(self, ids: Sequence[str]) -> Int[np.ndarray, "ids"]:
        """Rows of many ids at once; -1 where there is no such id.

        Args:
            ids: Any strings, repeated or not.

        Returns:
            int64, (ids,).

        Raises:
            ValueError: One text in place of a list of ids.
        """
        not_one_text("ids", ids)
        keys = id_keys(ids)
        first = np.searchsorted(self._keys, keys)
        rows = np.full(len(ids), -1, np.int64)
        inside = np.flatnonzero(first < len(self._keys))
        same = inside[self._keys[first[inside]] == keys[inside]]
        rows[same] = self._order[first[same]]
        for at, found in zip(same.tolist(), self.ids(rows[same]), strict=True):
            if found != ids[at]:
                rows[at] = self._find_in_run(ids[at], int(first[at]))
        return rows

    def texts(self, field: str, rows: Rows) -> list[str | None]:
        """Texts of a field at these rows; None where it is missing (null, empty or blank).

        Raises:
            DataSetError: If there is no such text field, or a row is out of range.
        """
        self._require(field, "text")
        present = self.present(field, rows)
        texts = self.values(field, rows)
        return [text if there else None for text, there in zip(texts, present.tolist(), strict=True)]

    def images(self, field: str, rows: Rows) -> list[Image.Image | None]:
        """Pictures of a field at these rows, upright RGB; None where it is missing.

        Raises:
            DataSetError: If there is no such image field, a row is out of range, or a picture cannot be
                decoded: the message names the id and the column.
        """
        self._require(field, "image")
        positions = self._rows(rows)
        present = self.present(field, positions)
        pictures: list[Image.Image | None] = [None] * len(positions)
        for at in np.flatnonzero(present).tolist():
            pictures[at] = self._image(field, int(positions[at]))
        return pictures

    def picture(self, field: str, row: int) -> Image.Image:
        """One picture of a row that has the field, upright RGB.

        Raises:
            PictureError: If it cannot be decoded; the caller adds which picture.
        """
        return images.load(self.values(field, [row])[0], self._folder)

    def stamps(self, field: str, rows: Rows) -> UInt64[np.ndarray, "rows"]:
        """What changes when a picture's file outside the table does: size and time. 0 for bytes inside the table."""
        column = self.column(field)
        if pa.types.is_large_binary(column.type):
            return np.zeros(len(rows), dtype=np.uint64)
        return np.array([images.stamp(cell, self._folder) for cell in self.values(field, rows)], dtype=np.uint64)

    @property
    def fields_in_files(self) -> list[str]:
        """Image fields whose pictures may lie in files outside the table."""
        images_of = [name for name, kind in self.fields.items() if kind == "image"]
        return [name for name in images_of if not pa.types.is_large_binary(self.column(name).type)]

    @property
    def fingerprint(self) -> str:
        """Of the data set, and which of its rows these are: it changes with the tables' bytes and what was skipped."""
        meta = json.loads((self._arguments[0].parent / META).read_text(encoding="utf-8"))
        digest = hashlib.blake2b(meta["fingerprint"].encode(), digest_size=16)
        for part in (self._keys, self._order):
            digest.update(part.tobytes())
        return digest.hexdigest()

    def present(self, field: str, rows: Rows) -> Bool[np.ndarray, "rows"]:
        """Where a field is there to be encoded.

        Raises:
            DataSetError: If there is no such field, or a row is out of range.
        """
        self._require(field, None)
        return np.asarray(self._present[field][self._rows(rows)])

    def missing(self) -> dict[str, int]:
        """How many rows lack each field."""
        return {name: len(self) - int(np.count_nonzero(there)) for name, there in self._present.items()}

    def _image(self, field: str, row: int) -> Image.Image:
        try:
            return self.picture(field, row)
        except images.PictureError as error:
            raise DataSetError(
                f"{self.file}, {self.id_column} {self.ids([row])[0]!r}, column '{field}': {error}"
            ) from error

    def _find_in_run(self, identifier: str, start: int) -> int:
        """The row of an id whose key others share too: looks through all of them."""
        end = int(np.searchsorted(self._keys, self._keys[start], side="right"))
        candidates = self._order[start:end]
        names = self.ids(candidates)
        return int(candidates[names.index(identifier)]) if identifier in names else -1

    def _require(self, field: str, kind: FieldType | None) -> None:
        valid = [name for name, found in self.fields.items() if kind in (None, found)]
        if field not in valid:
            raise DataSetError(
                f"{self.file}: no {kind or 'model'} field {shown(field)}; allowed: {', '.join(valid) or 'none'}"
            )

    def _rows(self, rows: Rows) -> Int[np.ndarray, "rows"]:
        found = np.asarray(rows)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise DataSetError(
                f"{self.file}: rows of type {found.dtype} and shape {found.shape}; allowed: integers, (rows,)"
            )
        positions = found.astype(np.int64, copy=False)
        if len(positions) and not (positions.min() >= 0 and positions.max() < len(self)):
            raise DataSetError(
                f"{self.file}: rows from {positions.min()} to {positions.max()}; allowed: 0 to {len(self) - 1}"
            )
        return positions
