"""Where results live: one JSON file a cell, and its per-query values beside it for paired tests.

benchmarks/results/ranking/DATA/FIELDS/SIDE/seed-N.json       what a cell scored, and how it was made
benchmarks/results/ranking/DATA/FIELDS/SIDE/seed-N.parquet    split, query_id, NDCG@10 and recall@100 a test query
benchmarks/results/ranking/DATA/FIELDS/SIDE/tuning.json       the grid on dev queries, and what was chosen
benchmarks/results/ranking/DATA/FIELDS/cost.json              seconds of a training step, the sides in turn
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sentence_transformers
import torch

from opengcl.data import SPLITS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ranking"
METRICS = ("ndcg@10", "err", "rbp@0.9", "recall@100")
PAIRED = ("ndcg@10", "recall@100")


@dataclass(frozen=True)
class Place:
    """Where a side's results on some data and fields are."""

    data: str
    fields: str
    side: str

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return RESULTS / self.data / self.fields / self.side

    def cell(self, seed: int) -> Path:
        """The file of one seed."""
        return self.folder / f"seed-{seed}.json"

    @property
    def tuning(self) -> Path:
        """The file of the grid."""
        return self.folder / "tuning.json"


def cost_file(data: str, fields: str) -> Path:
    """The file of what a step costs."""
    return RESULTS / data / fields / "cost.json"


def write_cell(place: Place, seed: int, content: Mapping[str, Any], per_query: pa.Table) -> None:
    """Write a cell's two files; the JSON comes last and says that the cell is done.

    Args:
        place: Whose.
        seed: Of the weights and batches.
        content: What to write beside data, fields, side, seed and provenance; ``splits`` among it.
        per_query: One row a test query: ``split``, ``query_id``, ``ndcg@10``, ``recall@100``; others are left out.
    """
    file = place.cell(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    order = pa.array([SPLITS.index(split) for split in per_query["split"].to_pylist()])
    rows = per_query.append_column("order", order).sort_by([("order", "ascending"), ("query_id", "ascending")])
    kept = {"split": rows["split"].combine_chunks().dictionary_encode(), "query_id": rows["query_id"]}
    kept |= {name: rows[name].cast(pa.float32()) for name in PAIRED}
    pq.write_table(
        pa.table(kept),
        file.with_suffix(".parquet"),
        compression="zstd",
        compression_level=19,
        use_dictionary=["split", "recall@100"],
        column_encoding={"query_id": "DELTA_BYTE_ARRAY", "ndcg@10": "BYTE_STREAM_SPLIT"},
    )
    named = {"data": place.data, "fields": place.fields, "side": place.side, "seed": seed}
    write_json(file, {**named, **content, "provenance": provenance()})


def read_cells(data: str, fields: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Side -> seed -> content of every finished cell on some data and fields."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted((RESULTS / data / fields).glob("*/seed-*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(content["side"], {})[content["seed"]] = content
    return found


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(rounded(content), indent=1) + "\n", encoding="utf-8")
    partial.rename(file)


def rounded(value: Any) -> Any:
    """The same with six decimals for every float."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return value


def provenance() -> dict[str, Any]:
    """Versions and hardware."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }
