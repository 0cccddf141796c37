"""What queries are asked for: categories, or samples of a catalogue; or the queries themselves, from a file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from opengcl.curate.config import QueryOptions
from opengcl.curate.errors import CurateError
from opengcl.curate.texts import one_line
from opengcl.data.problems import DataSetError, listed, shown
from opengcl.json_rows import JsonFile
from opengcl.sources.table_files import TableFile
from opengcl.text_files import TextFile

_LONGEST = 200
_SAMPLE = 100_000
"""Products of a catalogue that samples are drawn from."""
_NUMBERS_AND_TEXTS = (str, int, float)


@dataclass(frozen=True)
class Topic:
    """What one request for queries is about.

    Attributes:
        name: A category, or a sample's number.
        text: What the model is told.
    """

    name: str
    text: str


def read_topics(options: QueryOptions, seed: int) -> list[Topic]:
    """The categories, in an order drawn by ``seed``, or samples of the catalogue.

    Raises:
        CurateError: If a file cannot be read, or holds nothing.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret hangs on it
    if options.categories is not None:
        names = list(dict.fromkeys(read_column(options.categories, options.column)))
        draw.shuffle(names)
        return [Topic(name, f"The category: {name}") for name in names]
    rows = _products(str(options.catalogue), options.columns)
    draw.shuffle(rows)
    size = options.products_per_request
    return [_sample(number, rows[start : start + size]) for number, start in enumerate(range(0, len(rows), size))]


def read_column(file: str, column: str | None) -> list[str]:
    """The texts of a text file's lines or a table's column; blank ones are left out.

    Raises:
        CurateError: If it cannot be read, the column is not there, or nothing is in it.
    """
    path = Path(file)
    if _is_table(path):
        with _told(path):
            columns = TableFile(path).columns
        column = column or (columns[0] if len(columns) == 1 else None)
        if column not in columns:
            raise CurateError(f"{file}: found the column {shown(column)}; allowed: {listed(columns)}")
        values: list[Any] = [row.get(column) for row in _rows(path, [column], None)]
    else:
        values = _lines(path)
    texts = [one_line(value, _LONGEST) for value in values if isinstance(value, str)]
    if not any(texts):
        raise CurateError(f"{file}: found no text; allowed: one or more lines, or rows of a column of strings")
    return [text for text in texts if text]


def _lines(path: Path) -> list[Any]:
    text = TextFile(path)
    with _told(path), text.opened() as stream:
        return [line for _, line in text.lines(stream)]


def _products(file: str, columns: Sequence[str] | None) -> list[dict[str, Any]]:
    path = Path(file)
    if not _is_table(path):
        raise CurateError(f"{path}: found the ending {path.suffix!r}; allowed: {', '.join(_ENDINGS)}")
    rows = _rows(path, columns, _SAMPLE)
    if not rows:
        raise CurateError(f"{file}: found no products; allowed: one or more rows")
    return rows


def _sample(number: int, rows: list[dict[str, Any]]) -> Topic:
    lines = []
    for row in rows:
        cells = {name: value for name, value in row.items() if isinstance(value, _NUMBERS_AND_TEXTS)}
        short = {name: one_line(value, _LONGEST) if isinstance(value, str) else value for name, value in cells.items()}
        lines.append(json.dumps(short, ensure_ascii=False))
    told = "\n".join(lines)
    return Topic(f"sample {number}", f"Each query should be answered by one or more of products like these:\n{told}")


def _is_table(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(_ENDINGS)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, DataSetError) as error:
        raise CurateError(f"{path}: cannot be read: {error}") from error


def _rows(path: Path, columns: Sequence[str] | None, most: int | None) -> list[dict[str, Any]]:
    """Rows of a table, up to so many.

    Raises:
        CurateError: If it cannot be read, or a column is not there.
    """
    with _told(path):
        file = TableFile(path)
        found = file.columns
        if missing := [name for name in columns or () if name not in found]:
            raise CurateError(f"{path}: found no column {shown(missing[0])}; it has {listed(found)}")
        wanted = list(columns) if columns else found
        rows = _objects(path, wanted) if file.format == "jsonl" else _table_rows(file, wanted)
        return list(islice(rows, most))


def _table_rows(file: TableFile, columns: list[str]) -> Iterator[dict[str, Any]]:
    for rows in file.read(columns, progress=False):
        yield from rows.batch.to_pylist()


def _objects(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    text = TextFile(path)
    with text.opened() as stream:
        for _, row in JsonFile(text).objects(stream):
            yield {name: row.get(name) for name in columns}


_ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")
