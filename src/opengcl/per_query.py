"""The per-query table of an evaluation: one row a split and query, one column a metric.

Columns: ``split``, ``query_id``, ``pairs`` (the query's training pairs) and a float64 column for each metric.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from opengcl.data.problems import DataSetError, listed
from opengcl.data.tables import is_text, read_whole

KEYS = ("split", "query_id", "pairs")
_TYPES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "split": (is_text, "string"),
    "query_id": (is_text, "string"),
    "pairs": (pa.types.is_integer, "integer"),
}


class PerQueryError(ValueError):
    """A per-query table that cannot be used: says which file, which column and why."""


def per_query_path(report: str | Path) -> Path:
    """Where the per-query table of an evaluation lies.

    Args:
        report: a run folder, the metrics.json in one, or the FILE.json of an evaluation.

    Returns:
        ``per_query.parquet`` in the run folder, or ``FILE.parquet`` beside ``FILE.json``.
    """
    report = Path(report)
    if report.is_dir():
        return report / "per_query.parquet"
    if report.name == "metrics.json":
        return report.with_name("per_query.parquet")
    return report.with_suffix(".parquet")


def by_fields_path(per_query: Path) -> Path:
    """Where the table of `opengcl.field_sets` lies: ``FILE.by_fields.parquet`` beside ``FILE.parquet``."""
    return per_query.with_suffix(".by_fields.parquet")


def per_query_table(
    split: str,
    query_ids: Sequence[str],
    pairs: Int[np.ndarray, "queries"],
    values: Mapping[str, Float[np.ndarray, "queries"]],
) -> pa.Table:
    """One split's table.

    Args:
        split: the split's name.
        query_ids: the queries.
        pairs: for each query how many training pairs it has.
        values: for each metric one value a query.

    Returns:
        The table.

    Raises:
        ValueError: for columns of different lengths.
    """
    columns: dict[str, pa.Array] = {
        "split": pa.array([split] * len(query_ids), pa.string()),
        "query_id": pa.array(query_ids, pa.string()),
        "pairs": pa.array(np.asarray(pairs), pa.int32()),
    }
    columns |= {name: pa.array(np.asarray(value), pa.float64()) for name, value in values.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"per-query columns of split {split!r} have different lengths: {lengths}")
    return pa.table(columns)


def write_per_query(path: str | Path, tables: Iterable[pa.Table]) -> None:
    """Writes the splits' tables into one Parquet file.

    Args:
        path: the file, see ``per_query_path``.
        tables: as ``per_query_table`` makes them, all with the same metrics.
    """
    pq.write_table(pa.concat_tables(tables), path)


def read_per_query(path: str | Path) -> pa.Table:
    """Reads and checks a per-query table.

    Args:
        path: the Parquet file.

    Returns:
        The table.

    Raises:
        PerQueryError: when the file or a column is missing or of another type, the file is no Parquet, a value is null
            or NaN, or a query is there twice.
    """
    path = Path(path)
    if not path.is_file():
        raise PerQueryError(f"{path}: no such file; an evaluation writes it beside its metrics")
    try:
        table = read_whole(path)
    except DataSetError as error:
        raise PerQueryError(str(error)) from error
    for name in KEYS:
        if name not in table.column_names:
            raise PerQueryError(f"{path}: no column {name!r}; found: {listed(table.column_names)}")
    for name in table.column_names:
        column = table[name]
        fits, allowed = _TYPES.get(name, (pa.types.is_floating, "float"))
        if not fits(column.type):
            raise PerQueryError(f"{path}, column {name!r}: found type {column.type}; allowed: {allowed}")
        if column.null_count or (pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py()):
            raise PerQueryError(f"{path}: column {name!r} has an empty or NaN value")
    if len(table.group_by(["split", "query_id"]).aggregate([])) != len(table):
        raise PerQueryError(f"{path}: a query is there twice in the same split")
    return table
