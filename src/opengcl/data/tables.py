"""The Parquet files of a data set: opened, types checked, and read a batch at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from opengcl.data.problems import DataSetError, listed, shown
from opengcl.data.schema import FieldType
from opengcl.progress import progress_bar

PICTURE = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
"""Hugging Face's `Image` column, with 64-bit offsets."""

_PICTURES = (
    "binary (the file's bytes), string (a path relative to the folder, or a data URI), or "
    "struct<bytes: binary, path: string>"
)

MAX_TEXT_BYTES = 1_000_000
"""A text field's largest value. Encoders read some hundred words; a tokeniser takes gigabytes for far longer ones."""

_BROKEN = (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError)
"""What pyarrow raises on a damaged file; its names are decoded when they are first asked for."""
_BATCH_BYTES = 64 << 20
_BATCH_ROWS = (16, 65_536)
_PROGRESS_DELAY = 1.0
_MOST_TOLD = 500
_MOST_BYTES = 2 << 30


@dataclass(frozen=True)
class Table:
    """One Parquet file, checked to have the columns it needs."""

    file: pq.ParquetFile
    name: str
    path: Path

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Table]:
        """Opens a file for the length of a ``with`` block.

        Raises:
            DataSetError: If it is missing, not Parquet, has no rows, or two columns of one name.
        """
        if not path.is_file():
            raise DataSetError(f"{path}: no such file; required: dataset.yaml and three Parquet tables")
        try:
            file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
            names = file.schema_arrow.names
        except _BROKEN as error:
            raise DataSetError(f"{path}: {unreadable(error)}") from error
        with file:
            if file.metadata.num_rows <= 0:
                raise DataSetError(f"{path}: found no rows; allowed: 1 or more")
            if twice := next((name for name, count in Counter(names).items() if count > 1), None):
                raise DataSetError(f"{path}, column '{twice}': found more than once; allowed: once")
            yield cls(file, path.name, path)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.file.metadata.num_rows)

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in file order."""
        return list(self._types)

    @cached_property
    def _types(self) -> dict[str, pa.DataType]:
        return {field.name: field.type for field in self.file.schema_arrow}

    def type_of(self, column: str) -> pa.DataType:
        """A column's type as `plain` leaves it.

        Raises:
            DataSetError: If there is no such column.
        """
        if column not in self._types:
            raise DataSetError(f"{self.name}, column '{column}': missing; the file has {listed(list(self._types))}")
        return plain_type(self._types[column])

    def require_text(self, column: str) -> None:
        """Raises `DataSetError` unless the column exists and holds strings."""
        found = self.type_of(column)
        if not is_text(found):
            raise DataSetError(f"{self.name}, column '{column}': found type {found}; allowed: string")

    def require_number(self, column: str) -> None:
        """Raises `DataSetError` unless the column exists and holds integers or floats."""
        found = self.type_of(column)
        if not (pt.is_integer(found) or pt.is_floating(found)):
            raise DataSetError(f"{self.name}, column '{column}': found type {found}; allowed: integer or float")

    def require_field(self, column: str, kind: FieldType) -> None:
        """Raises `DataSetError` unless the column can be a model field of this kind."""
        found = self.type_of(column)
        if kind == "text" and not (is_text(found) or pt.is_null(found)):
            raise DataSetError(f"{self.name}, column '{column}': found type {found}; allowed for a text field: string")
        if kind == "image" and picture_type(found) is None:
            raise DataSetError(
                f"{self.name}, column '{column}': found type {found}; allowed for an image field: {_PICTURES}"
            )

    def batches(self, columns: list[str] | None = None, *, task: str, progress: bool) -> Iterator[pa.RecordBatch]:
        """Reads the file in order, in batches of about 64 MB, with a progress bar on stderr if it takes long.

        Args:
            columns: Which columns; None for all.
            task: What the progress bar says.
            progress: Whether there is one.

        Raises:
            DataSetError: If the file turns out to be broken.
        """
        with progress_bar(total=self.rows, desc=task, unit=" rows", show=progress, delay=_PROGRESS_DELAY) as bar:
            rows = self._told(lambda: rows_within(self.path, self._batch_rows(columns), columns))
            batches = self._told(lambda: self.file.iter_batches(rows, columns=columns))
            read = 0
            while batch := self._told(lambda: next(batches, None)):
                read += len(batch)
                if read > self.rows:
                    break
                yield batch
                bar.update(len(batch))
        if read != self.rows:
            raise DataSetError(f"{self.name}: not readable as Parquet: its footer counts {self.rows:,} rows wrongly")

    def _told(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except _BROKEN as error:
            raise DataSetError(f"{self.name}: {unreadable(error)}") from error

    def _batch_rows(self, columns: list[str] | None) -> int:
        """Rows of about `_BATCH_BYTES`, by the sizes in the file's footer; of single columns (ids, scores), many."""
        low, high = _BATCH_ROWS
        if columns is not None:
            return high
        # A column's own metadata is left alone: where they are damaged, pyarrow ends the process.
        groups = map(self.file.metadata.row_group, range(self.file.metadata.num_row_groups))
        size = max(1, sum(group.total_byte_size for group in groups))
        return max(low, min(high, _BATCH_BYTES * self.rows // size))


def rows_within(path: Path, rows: int, columns: Sequence[str] | None = None) -> int:
    """How many rows of a Parquet file may be read at a time, so that they are about 64 MB at most when decoded.

    The footer counts a value of a column's dictionary once, however many rows have it: a file of kilobytes can ask for
    many gigabytes. So the dictionaries themselves are looked at, as they are in the file.

    Args:
        path: The file.
        rows: The most.
        columns: Which are read; all by default.

    Returns:
        1 to ``rows``.

    Raises:
        ArrowException, OSError or MemoryError: It cannot be read.
    """
    with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
        wanted = None if columns is None else set(columns)
        leaves = [(one.path, one.physical_type) for one in file.schema]
        coded = [leaf for leaf, kind in leaves if kind == "BYTE_ARRAY" and _is_among(leaf, wanted)]
        groups = file.metadata.num_row_groups
    if not coded:
        return rows
    with pq.ParquetFile(path, memory_map=True, pre_buffer=False, read_dictionary=coded) as file:
        for group in range(groups):
            for batch in file.iter_batches(1, row_groups=[group], columns=columns):
                longest = sum(map(_longest, batch.columns))
                rows = max(1, min(rows, _BATCH_BYTES // max(1, longest)))
                break
    return rows


def read_whole(
    path: Path, columns: Sequence[str] | None = None, keep: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None
) -> pa.Table:
    """A small Parquet file as one table, such as a run's results per query.

    Args:
        path: The file.
        columns: Which; all by default.
        keep: What is kept of each batch.

    Raises:
        DataSetError: It cannot be read, or what is kept has more than 2 GB.
    """
    kept, size = [], 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            rows = rows_within(path, _BATCH_ROWS[1], columns)
            names = file.schema_arrow.names if columns is None else list(columns)
            schema = pa.schema([file.schema_arrow.field(name) for name in names])
            for batch in file.iter_batches(rows, columns=columns):
                kept.append(batch.select(names) if keep is None else keep(batch.select(names)))
                size += kept[-1].nbytes
                if size > _MOST_BYTES:
                    raise DataSetError(f"{path}: holds more than {_MOST_BYTES >> 30} GB; allowed: less")
    except _BROKEN as error:
        raise DataSetError(f"{path}: {unreadable(error)}") from error
    return pa.Table.from_batches(kept, schema=schema)


def _is_among(leaf: str, wanted: set[str] | None) -> bool:
    return wanted is None or leaf in wanted or leaf.partition(".")[0] in wanted


def _longest(array: pa.Array) -> int:
    """Bytes of the longest value in a column's dictionaries, at any depth."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _longest(array.storage)
    if pt.is_dictionary(kind):
        values = array.dictionary
        coded = is_text(values.type) or _is_bytes(values.type)
        return (pc.max(pc.binary_length(values)).as_py() or 0) if coded else 0
    if pt.is_struct(kind):
        return sum(_longest(array.field(number)) for number in range(kind.num_fields))
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        return _longest(array.values)
    return 0


def unreadable(error: BaseException) -> str:
    """What messages say of a Parquet file that pyarrow cannot read."""
    if isinstance(error, MemoryError):
        return (
            "reading it needs more memory than there is; write it with smaller row groups, or its values are too long"
        )
    return f"not readable as Parquet: {str(error)[:_MOST_TOLD]}"


def plain(array: pa.Array) -> pa.Array:
    """A column as the cache keeps it: dictionaries resolved at any depth, as they differ from batch to batch.

    Extension types become what they store, runs single values, and views plain texts and bytes.
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(array.storage)
    if pt.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(array))
    if pt.is_dictionary(kind):
        return plain(array.dictionary_decode())
    wanted = plain_type(kind)
    return array if wanted == kind else array.cast(wanted)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that `plain` gives."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pt.is_struct(kind):
        return pa.struct([one.with_type(plain_type(one.type)) for one in kind])
    if pt.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if pt.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)), kind.list_size)
    if pt.is_string_view(kind):
        return pa.large_string()
    if pt.is_binary_view(kind):
        return pa.large_binary()
    if pt.is_list(kind) or pt.is_large_list(kind):
        make = pa.list_ if pt.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(plain_type(kind.value_type)))
    return kind


def text(array: pa.Array, *, file: str, column: str, first_row: int) -> pa.Array:
    """A text column as ``large_string``, checked to be UTF-8, which Parquet files need not be.

    Raises:
        DataSetError: Naming the first row that is not UTF-8.
    """
    array = plain(array)
    try:
        array.validate(full=True)
        return array.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        for row, value in enumerate(array.cast(pa.large_binary(), safe=False)):
            try:
                str(value.as_py() or b"", "utf-8")
            except UnicodeDecodeError:
                raise DataSetError(
                    f"{file}, row {first_row + row}, column '{column}': found {shown(value.as_py())}; "
                    "allowed: UTF-8 text"
                ) from error
        raise DataSetError(f"{file}, column '{column}', from row {first_row}: {error}") from error


def readable_texts(array: pa.Array) -> tuple[pa.Array, dict[int, bytes]]:
    """A column of strings as ``large_string``, null where its bytes are not UTF-8; and row -> such bytes."""
    array = plain(array)
    if pt.is_null(array.type) or _is_valid(array):
        return array.cast(pa.large_string()), {}
    coded = array.cast(pa.large_binary(), safe=False)
    broken = {row: value.as_py() for row, value in enumerate(coded) if _is_broken(value)}
    return _without(coded, list(broken)).cast(pa.large_string()), broken


def short_texts(array: pa.Array) -> tuple[pa.Array, dict[int, int]]:
    """A column of strings, null where they have more than `MAX_TEXT_BYTES`; and row -> how many."""
    lengths = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False)
    long = {row: int(lengths[row]) for row in np.flatnonzero(lengths > MAX_TEXT_BYTES).tolist()}
    return _without(array, list(long)) if long else array, long


def other(array: pa.Array, *, file: str, column: str, first_row: int) -> tuple[pa.Array, dict[int, bytes]]:
    """A column that is no field of a model, so that reading it later cannot fail; strings as `readable_texts` does.

    Raises:
        DataSetError: It holds what its type does not allow.
    """
    array = plain(array)
    if _is_valid(array):
        return array, {}
    if is_text(array.type):
        return readable_texts(array)
    raise DataSetError(f"{file}, column '{column}', from row {first_row}: not valid as {array.type}")


def _without(array: pa.Array, rows: list[int]) -> pa.Array:
    usable = np.ones(len(array), dtype=bool)
    usable[rows] = False
    return pc.if_else(pa.array(usable), array, pa.scalar(None, array.type))


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
        return True
    except pa.ArrowInvalid:
        return False


def _is_broken(value: pa.Scalar) -> bool:
    try:
        str(value.as_py() or b"", "utf-8")
        return False
    except UnicodeDecodeError:
        return True


def pictures(array: pa.Array, *, file: str, column: str, first_row: int) -> pa.Array:
    """An image column as ``large_binary``, ``large_string`` or `PICTURE`.

    Raises:
        DataSetError: Its type cannot hold pictures, or a path is not UTF-8.
    """
    array = plain(array)
    target = picture_type(array.type)
    if target is None:
        raise DataSetError(f"{file}, column '{column}': found type {array.type}; allowed for pictures: {_PICTURES}")
    if target == pa.large_string():
        return text(array, file=file, column=column, first_row=first_row)
    if target == pa.large_binary():
        return array.cast(target)
    parts = []
    for part in PICTURE:
        if array.type.get_field_index(part.name) < 0:
            parts.append(pa.nulls(len(array), part.type))
        elif part.name == "path":
            parts.append(text(pc.struct_field(array, "path"), file=file, column=column, first_row=first_row))
        else:
            parts.append(plain(pc.struct_field(array, "bytes")).cast(part.type))
    return pa.StructArray.from_arrays(parts, fields=list(PICTURE))


def present(array: pa.Array) -> pa.BooleanArray:
    """Which values of a column made by `text` or `pictures` are there: not null, empty or blank."""
    if pt.is_struct(array.type):
        return pc.or_(present(array.field("bytes")), present(array.field("path")))
    if pt.is_large_string(array.type):
        array = pc.utf8_trim_whitespace(array)
    return pc.fill_null(pc.greater(pc.binary_length(array), 0), False)


def is_text(found: pa.DataType) -> bool:
    """Whether a type is one of Arrow's string types."""
    return bool(pt.is_string(found) or pt.is_large_string(found) or pt.is_string_view(found))


def _is_bytes(found: pa.DataType) -> bool:
    return bool(pt.is_binary(found) or pt.is_large_binary(found) or pt.is_binary_view(found))


def picture_type(found: pa.DataType) -> pa.DataType | None:
    """The type that `pictures` gives, or None for a type that cannot hold pictures."""
    if is_text(found):
        return pa.large_string()
    if _is_bytes(found) or pt.is_null(found):
        return pa.large_binary()
    if not pt.is_struct(found):
        return None
    parts = {part.name: part.type for part in found}
    fits = {
        "bytes": lambda kind: _is_bytes(kind) or pt.is_null(kind),
        "path": lambda kind: is_text(kind) or pt.is_null(kind),
    }
    ok = bool(parts) and all(name in fits and fits[name](kind) for name, kind in parts.items())
    return PICTURE if ok else None
