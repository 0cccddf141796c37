"""Reading a run folder back: configuration, metrics, per-query values, ranked lists and training history."""

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

from opengcl.data.tables import read_whole
from opengcl.field_sets import MEASURES
from opengcl.named_folders import no_such_folder
from opengcl.plain_files import read_plain
from opengcl.plain_yaml import YamlError, read_yaml

FILES = ("config.yaml", "metrics.json", "per_query.parquet", "results.parquet", "history.json")
KEY_COLUMNS = ("split", "query_id", "pairs")
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
    metrics = _read_json(path / "metrics.json")
    if not isinstance(metrics, dict) or not isinstance(metrics.get("splits"), dict):
        raise RunFolderError(f"{path / 'metrics.json'}: found no 'splits' table; expected splits -> metric -> value")
    history = _read_json(path / "history.json")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise RunFolderError(f"{path / 'history.json'}: expected a list of log entries")
    return Run(
        path=path,
        config=_read_config(path / "config.yaml"),
        splits=metrics["splits"],
        fields=_read_fields(path / "metrics.json", metrics.get("fields", {})),
        provenance={key: value for key, value in metrics.items() if key not in ("splits", "fields")},
        per_query=_read_per_query(path / "per_query.parquet"),
        history=history,
    )


def read_lists(run: Path, keys: Collection[Key]) -> dict[Key, list[str]]:
    """The ranked document ids of some queries, best first, from results.parquet.

    Raises:
        RunFolderError: The file lacks a column, or holds no list for one of the keys.
    """
    file = run / "results.parquet"
    _check_columns(file, RESULT_COLUMNS)
    wanted = pa.array(sorted({query for _, query in keys}), pa.string())

    def asked(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.filter(pc.is_in(batch.column("query_id").cast(pa.string()), wanted))

    table = read_whole(file, RESULT_COLUMNS, asked)
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
    except ValueError as error:
        raise RunFolderError(f"{file}: not JSON ({error})") from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        return read_yaml(file).mapping()
    except YamlError as error:
        raise RunFolderError(str(error)) from error


def _read_per_query(file: Path) -> PerQuery:
    _check_columns(file, KEY_COLUMNS)
    table = read_whole(file)
    keys = list(zip(table["split"].to_pylist(), table["query_id"].to_pylist(), strict=True))
    if len(set(keys)) != len(keys):
        raise RunFolderError(f"{file}: {len(keys) - len(set(keys))} rows repeat a split and query id")
    names = [name for name in table.column_names if name not in KEY_COLUMNS]
    return PerQuery(keys, table["pairs"].to_numpy(), {name: table[name].to_numpy() for name in names})


def _check_columns(file: Path, expected: tuple[str, ...]) -> None:
    found = pq.read_schema(file).names
    missing = [name for name in expected if name not in found]
    if missing:
        raise RunFolderError(f"{file}: found columns {', '.join(found)}; missing {', '.join(missing)}")
