"""Reading a run folder back: configuration, metrics, per-query values, ranked lists and training history."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from opengcl.data.problems import DataSetError, listed, shown
from opengcl.data.tables import is_text, read_whole
from opengcl.field_sets import MEASURES
from opengcl.named_folders import no_such_folder
from opengcl.per_query import KEYS, PerQueryError, read_per_query
from opengcl.plain_files import read_plain
from opengcl.plain_yaml import YamlError, read_yaml

FILES = ("config.yaml", "metrics.json", "per_query.parquet", "results.parquet", "history.json")
RESULT_COLUMNS = ("split", "query_id", "rank", "doc_id")

Key = tuple[str, str]
"""A split and a query id."""


class RunFolderError(ValueError):
    """A run folder lacks a file, or a file is not what it should be."""


@dataclass(frozen=True)
class PerQuery:
    """The rows of per_query.parquet.

    Attributes:
        keys: Split and query id of each row, each pair once.
        pairs: Training pairs of the query; 0 for a novel query.
        metrics: Metric name -> value per row.
    """

    keys: list[Key]
    pairs: Int[np.ndarray, " rows"]
    metrics: dict[str, Float[np.ndarray, " rows"]]

    def values(self, metric: str) -> dict[Key, float]:
        """One metric by split and query id."""
        return dict(zip(self.keys, map(float, self.metrics[metric]), strict=True))


@dataclass(frozen=True)
class Figures:
    """What metrics.json says.

    Attributes:
        splits: As in `Run`.
        fields: As in `Run`.
        provenance: Everything else.
    """

    splits: dict[str, dict[str, float]]
    fields: dict[str, dict[str, dict[str, float | None]]]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
        path: The folder.
        config: config.yaml.
        splits: Split -> metric -> mean over its queries; `queries` is their number.
        fields: Split -> field set -> measure -> mean, as `opengcl.field_sets` has them; empty where all documents have
            the same fields.
        provenance: Everything else in metrics.json.
        per_query: per_query.parquet.
        history: Log entries of the training, oldest first.
    """

    path: Path
    config: dict[str, Any]
    splits: dict[str, dict[str, float]]
    fields: dict[str, dict[str, dict[str, float | None]]]
    provenance: dict[str, Any]
    per_query: PerQuery
    history: list[dict[str, Any]]


def read_run(path: Path) -> Run:
    """Reads a run folder; the ranked lists stay on disk until `read_lists`.

    Raises:
        RunFolderError: A file is missing or not in the documented form.
    """
    if not path.is_dir():
        raise RunFolderError(no_such_folder(path))
    for name in FILES:
        if not (path / name).is_file():
            raise RunFolderError(f"{path / name} is missing; a run folder holds {', '.join(FILES)}")
    figures = read_figures(path)
    return Run(
        path=path,
        config=_read_config(path / "config.yaml"),
        splits=figures.splits,
        fields=figures.fields,
        provenance=figures.provenance,
        per_query=_read_per_query(path / "per_query.parquet"),
        history=_read_history(path / "history.json"),
    )


def read_figures(run: Path) -> Figures:
    """Reads the metrics.json of a run folder.

    Raises:
        RunFolderError: It cannot be read, or is not in the documented form.
    """
    file = run / "metrics.json"
    metrics = _read_json(file)
    splits = metrics.get("splits") if isinstance(metrics, dict) else None
    if not isinstance(splits, dict) or not splits:
        raise RunFolderError(f"{file}: found no 'splits' table; expected splits -> metric -> value")
    for split, row in splits.items():
        if not isinstance(row, dict) or not all(map(_is_number, row.values())):
            raise RunFolderError(f"{file}: the split {shown(split)} holds {shown(row)}; expected metric -> number")
        if row.keys() != next(iter(splits.values())).keys():
            raise RunFolderError(
                f"{file}: the split {shown(split)} has other metrics than the first; expected the same"
            )
    return Figures(
        splits=splits,
        fields=_read_fields(file, metrics.get("fields", {})),
        provenance={key: value for key, value in metrics.items() if key not in ("splits", "fields")},
    )


def read_lists(run: Path, keys: Collection[Key]) -> dict[Key, list[str]]:
    """The ranked document ids of some queries, best first, from results.parquet.

    Raises:
        RunFolderError: The file is no Parquet, lacks a column or a value, or holds no list for one of the keys.
    """
    file = run / "results.parquet"
    table = _read_results(file, sorted({query for _, query in keys}))
    ranked: dict[Key, list[tuple[int, str]]] = {key: [] for key in keys}
    for row in table.to_pylist():
        key = (row["split"], row["query_id"])
        if key in ranked:
            ranked[key].append((row["rank"], row["doc_id"]))
    for (split, query), entries in ranked.items():
        if not entries:
            raise RunFolderError(f"{file}: no ranked list for query {query!r} in split {split!r}")
    return {key: [document for _, document in sorted(entries)] for key, entries in ranked.items()}


def _read_fields(file: Path, written: Any) -> dict[str, dict[str, dict[str, float | None]]]:
    try:
        return {
            split: {
                kind: {name: None if (value := row[name]) is None else float(value) for name in MEASURES}
                for kind, row in kinds.items()
            }
            for split, kinds in written.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = f"split -> field set -> {', '.join(MEASURES)}"
        raise RunFolderError(f"{file}: 'fields' is not as expected ({error!r}); expected {expected}") from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(read_plain(file))
    except OSError as error:
        raise RunFolderError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{file}: not JSON ({error})") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_history(file: Path) -> list[dict[str, Any]]:
    history = _read_json(file)
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise RunFolderError(f"{file}: expected a list of log entries")
    for entry in history:
        for key, value in entry.items():
            if (key in ("step", "loss") or key.startswith("eval_")) and not _is_number(value):
                raise RunFolderError(f"{file}: {shown(key)} is {shown(value)}; expected a number")
    return history


def _read_config(file: Path) -> dict[str, Any]:
    try:
        return read_yaml(file).mapping()
    except YamlError as error:
        raise RunFolderError(str(error)) from error


def _read_per_query(file: Path) -> PerQuery:
    try:
        table = read_per_query(file)
    except PerQueryError as error:
        raise RunFolderError(str(error)) from error
    keys = list(zip(table["split"].to_pylist(), table["query_id"].to_pylist(), strict=True))
    names = [name for name in table.column_names if name not in KEYS]
    return PerQuery(keys, table["pairs"].to_numpy(), {name: table[name].to_numpy() for name in names})


def _asked(batch: pa.RecordBatch, queries: pa.Array) -> pa.Array:
    return pc.is_in(batch.column("query_id").cast(pa.string()), queries)


def _read_results(file: Path, queries: list[str]) -> pa.Table:
    try:
        found = pq.read_schema(file)
        if missing := [name for name in RESULT_COLUMNS if name not in found.names]:
            raise RunFolderError(f"{file}: found columns {listed(found.names)}; missing {', '.join(missing)}")
        for name in RESULT_COLUMNS:
            fits, allowed = (pa.types.is_integer, "integer") if name == "rank" else (is_text, "string")
            if not fits(found.field(name).type):
                kind = found.field(name).type
                raise RunFolderError(f"{file}, column {name!r}: found type {kind}; expected {allowed}")
        wanted = pa.array(queries, pa.string())
        table = read_whole(file, RESULT_COLUMNS, lambda batch: batch.filter(_asked(batch, wanted)))
    except (pa.ArrowException, OSError) as error:
        raise RunFolderError(f"{file}: not readable as Parquet: {error}") from error
    except DataSetError as error:
        raise RunFolderError(str(error)) from error
    for name in RESULT_COLUMNS:
        if table[name].null_count:
            raise RunFolderError(f"{file}, column {name!r}: found empty values; expected none")
    return table
