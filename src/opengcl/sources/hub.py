"""Tables of Hugging Face's `datasets`: on the hub, streamed, or in a local folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from opengcl.data.problems import DataSetError, listed
from opengcl.delimited_text import without
from opengcl.progress import progress_bar
from opengcl.sources.hub_folders import check_files, check_folder
from opengcl.sources.table_files import Rows

_ROWS = 1024
_HUB = "hf://datasets/"
_MESSAGE = 2000
_PARQUET_ROWS = 256  # decoded at once: a dictionary makes many rows of a few bytes


@dataclass(frozen=True)
class HubTable:
    """One split of a data set, read as a stream; pictures stay as their files' bytes.

    Attributes:
        location: A name on the hub, a folder that `datasets` understands, or one written by ``save_to_disk``.
            What a folder names must lie inside it.
        split: Which split.
        config: Which configuration, where there are several.
        revision: Commit or branch on the hub.
        nulls: Texts that mean a missing value, beside the empty one.

    Raises:
        DataSetError: It cannot be opened.
    """

    location: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    nulls: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.location}[{self.split}]"

    @property
    def columns(self) -> list[str]:
        """Names of its columns."""
        if self._data.column_names is None:
            raise DataSetError(f"{self.name}: its columns are not known before reading")
        return list(self._data.column_names)

    @property
    def told(self) -> None:
        """Nothing: `datasets` reads it."""

    def read(self, columns: Sequence[str], *, progress: bool = True) -> Iterator[Rows]:
        """Its rows, as Arrow batches."""
        columns = list(dict.fromkeys(columns))
        if lost := [one for one in columns if one not in self.columns]:
            raise DataSetError(f"{self.name}, column '{lost[0]}': missing; it has {listed(self.columns)}")
        data = self._data.select_columns(columns)
        for column, kind in (data.features or {}).items():
            if isinstance(kind, datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))
        first = 0
        with progress_bar(desc=f"{self.name}: reading", unit=" rows", show=progress, delay=1.0) as bar:
            for table in data.with_format("arrow").iter(batch_size=_ROWS):
                for batch in table.select(columns).combine_chunks().to_batches():
                    yield Rows(without(batch, self.nulls), first)
                    first += len(batch)
                    bar.update(len(batch))

    @cached_property
    def _data(self) -> Any:
        folder = Path(self.location)
        try:
            if folder.is_dir():
                check_folder(folder)
            if any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
                found = datasets.load_from_disk(self.location)
                return found[self.split] if isinstance(found, datasets.DatasetDict) else found
            builder = datasets.load_dataset_builder(self.location, self.config, revision=self.revision)
            root = str(folder) if folder.is_dir() else f"{_HUB}{self.location}@"
            check_files(self.name, root, builder.config.data_files or {}, _kind(builder))
            if hasattr(builder.config, "batch_size"):
                builder.config.batch_size = _PARQUET_ROWS
            return builder.as_streaming_dataset(split=self.split)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
            if isinstance(error, DataSetError):
                raise
            raise DataSetError(f"{self.name}: cannot be opened: {str(error)[:_MESSAGE]}") from error


def _kind(builder: Any) -> str:
    """The kind of files that a builder reads: `datasets` makes a class of its own for each folder."""
    packaged = "datasets.packaged_modules."
    modules = (base.__module__ for base in type(builder).__mro__)
    return next((name.removeprefix(packaged).split(".")[0] for name in modules if name.startswith(packaged)), "code")
