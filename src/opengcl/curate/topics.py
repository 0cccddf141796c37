"""What queries are asked for: categories, or samples of a catalogue; or the queries themselves, from a file."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from opengcl.curate.config import QueryOptions
from opengcl.curate.errors import CurateError
from opengcl.curate.texts import one_line
from opengcl.data.problems import shown

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
    if path.suffix in _READERS:
        table = _table(path, None)
        column = column or (table.column_names[0] if table.num_columns == 1 else None)
        if column not in table.column_names:
            raise CurateError(f"{file}: found the column {shown(column)}; allowed: {', '.join(table.column_names)}")
        values = table.column(column).to_pylist()
    else:
        values = _lines(path)
    texts = [one_line(value, _LONGEST) for value in values if isinstance(value, str)]
    if not any(texts):
        raise CurateError(f"{file}: found no text; allowed: one or more lines, or rows of a column of strings")
    return [text for text in texts if text]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CurateError(f"{path}: cannot be read: {error}") from error


def _products(file: str, columns: Sequence[str] | None) -> list[dict[str, Any]]:
    table = _table(Path(file), columns).slice(0, _SAMPLE)
    if table.num_rows == 0:
        raise CurateError(f"{file}: found no products; allowed: one or more rows")
    return [dict(row) for row in table.to_pylist()]


def _sample(number: int, rows: list[dict[str, Any]]) -> Topic:
    lines = []
    for row in rows:
        cells = {name: value for name, value in row.items() if isinstance(value, _NUMBERS_AND_TEXTS)}
        short = {name: one_line(value, _LONGEST) if isinstance(value, str) else value for name, value in cells.items()}
        lines.append(json.dumps(short, ensure_ascii=False))
    told = "\n".join(lines)
    return Topic(f"sample {number}", f"Each query should be answered by one or more of products like these:\n{told}")


def _table(path: Path, columns: Sequence[str] | None) -> pa.Table:
    """A table of a few columns.

    Raises:
        CurateError: If it cannot be read, or a column is not there.
    """
    if path.suffix not in _READERS:
        raise CurateError(f"{path}: found the ending {path.suffix!r}; allowed: {', '.join(_READERS)}")
    try:
        table = _READERS[path.suffix](path)
    except (OSError, pa.ArrowException) as error:
        raise CurateError(f"{path}: cannot be read: {error}") from error
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise CurateError(f"{path}: found no column {shown(missing[0])}; it has {', '.join(table.column_names)}")
    return table.select(list(columns)) if columns else table


_READERS = {".parquet": pq.read_table, ".csv": pyarrow.csv.read_csv, ".jsonl": pyarrow.json.read_json}
