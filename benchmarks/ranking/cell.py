"""One cell of the matrix: tune a side's learning rate and temperature on dev queries, then train it from one seed."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opengcl import RankedDataset, TrainConfig, train
from opengcl.batches import Batches
from opengcl.data import SPLITS
from opengcl.per_query import read_per_query
from opengcl.training import make_batches

from .cell_file import METRICS, Place, write_cell, write_json
from .data import dataset_folder
from .sides import GRID, LADDER, SIDES, TUNING_SHARE

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "ranking"


@dataclass(frozen=True)
class Fields:
    """What documents are read by, with which encoder, for how many steps of 1,024 pairs or documents.

    ``ours`` is the side that the project recommends there, by dev queries.
    """

    weights: dict[str, float]
    model: str
    steps: int
    ours: str


FIELDS = {
    "title": Fields({"title": 1.0}, "static", 1840, "ours"),
    "image": Fields({"image": 1.0}, "tiny", 460, "ours-annealed"),
    "image+title": Fields({"image": 0.5, "title": 0.5}, "tiny", 460, "ours"),
}
EVALUATIONS = 8  # on dev queries over a run; the best checkpoint by NDCG@10 is the model


@dataclass(frozen=True)
class Cell:
    """One side on some data and fields from one seed."""

    data: str
    fields: str
    side: str
    seed: int

    @property
    def place(self) -> Place:
        """Where its results go."""
        return Place(self.data, self.fields, self.side)

    @property
    def run_folder(self) -> Path:
        """Where it is trained."""
        return RUNS / self.data / self.fields / self.side / f"seed-{self.seed}"

    @property
    def is_done(self) -> bool:
        """Whether its file is there."""
        return self.place.cell(self.seed).is_file()

    def config(self, out: Path, steps: int, **settings: Any) -> TrainConfig:
        """Its settings for a number of steps."""
        truth, side, fields = dataset_folder(self.data), SIDES[self.side], FIELDS[self.fields]
        trained = truth if side.data is None else dataset_folder(self.data, side.data)
        config = TrainConfig(
            **{
                "data": str(trained),
                "evaluation_data": None if trained == truth else str(truth),
                "model": fields.model,
                "out": str(out),
                "fields": fields.weights,
                "seed": self.seed,
                "device": "cpu",
                **side.settings,
                **settings,
            }
        )
        batches = make_batches(config, RankedDataset.open(trained, progress=False))
        # Half a step less, as the number of steps is rounded up.
        return TrainConfig(**{**vars(config), "epochs": (steps - 0.5) / len(batches)})


def tune(cell: Cell) -> dict[str, Any]:
    """The best settings by mean dev NDCG@10 of the four splits, searched once a side and kept.

    Every point of the grid, then the best point's neighbours on the ladder until it is better than all of them, then
    the other values of the side's own constant there; each is one run of `TUNING_SHARE` of the steps from seed 0.
    """
    cell = Cell(cell.data, cell.fields, cell.side, 0)
    file = cell.place.tuning
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8"))["chosen"])
    steps = round(TUNING_SHARE * FIELDS[cell.fields].steps)
    grid, ladder = (values[FIELDS[cell.fields].model] for values in (GRID, LADDER))
    points: list[dict[str, Any]] = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]
    tried: list[tuple[dict[str, Any], dict[str, float]]] = []
    while points:
        tried += [(point, _dev_figures(cell, steps, point)) for point in points]
        best = max(tried, key=_ndcg)[0]
        points = [point for point in _neighbours(best, ladder) if point not in [one for one, _ in tried]]
    for other in SIDES[cell.side].others:
        point = {**best, **other}
        tried.append((point, _dev_figures(cell, steps, point)))
    chosen = max(tried, key=_ndcg)[0]
    rows = [{**point, **figures} for point, figures in tried]
    write_json(file, {"chosen": chosen, "criterion": "mean dev ndcg@10", "steps": steps, "tried": rows})
    return chosen


def _neighbours(point: dict[str, Any], ladder: dict[str, tuple[float, ...]]) -> list[dict[str, Any]]:
    """The points one step up or down the ladder in one value."""
    steps = [(name, values.index(point[name]) + step) for name, values in ladder.items() for step in (-1, 1)]
    return [{**point, name: ladder[name][place]} for name, place in steps if 0 <= place < len(ladder[name])]


def _ndcg(tried: tuple[dict[str, Any], dict[str, float]]) -> float:
    return tried[1]["ndcg@10"]


def _dev_figures(cell: Cell, steps: int, point: dict[str, Any]) -> dict[str, float]:
    """NDCG@10 and recall@100 on dev queries, mean of the splits, of a short run."""
    name = "-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in point.values())
    out = cell.run_folder.parent / f"tuning-{name}"
    kept = out / "metrics.json"
    if not kept.is_file():
        shutil.rmtree(out, ignore_errors=True)
        train(cell.config(out, steps, evaluations=0, final_queries="dev", **point), progress=False)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    content = json.loads(kept.read_text(encoding="utf-8"))
    means = {name: float(np.mean([content["splits"][s][name] for s in SPLITS])) for name in ("ndcg@10", "recall@100")}
    return {**means, "training_seconds": content["provenance"]["training_seconds"]}


def run(cell: Cell) -> None:
    """Train a cell unless its file is there; one that was cut off goes on from its last checkpoint."""
    if cell.is_done:
        return
    point = tune(cell)
    steps = round(SIDES[cell.side].share * FIELDS[cell.fields].steps)
    config = cell.config(cell.run_folder, steps, evaluations=EVALUATIONS, **point)
    train(config, resume=(cell.run_folder / "config.yaml").is_file(), progress=False)
    shutil.rmtree(cell.run_folder / "checkpoints", ignore_errors=True)
    content = json.loads((cell.run_folder / "metrics.json").read_text(encoding="utf-8"))
    encoded = encoded_rows(config)
    queries, documents = encoded[-1].tolist()
    write_cell(
        cell.place,
        cell.seed,
        {
            "label": SIDES[cell.side].label,
            "settings": _settings(config),
            "steps": content["provenance"]["steps"],
            "best_step": content["provenance"]["best_step"],
            "queries_encoded": queries,
            "documents_encoded": documents,
            "training_seconds": content["provenance"]["training_seconds"],
            "splits": {split: _figures(row) for split, row in content["splits"].items()},
            "dev": _history(cell.run_folder / "history.json", encoded),
        },
        read_per_query(cell.run_folder / "per_query.parquet"),
    )


def encoded_rows(config: TrainConfig) -> np.ndarray:
    """(steps, 2): queries and documents that the encoder has read after each step of a run.

    Each distinct query and document of a batch is encoded once, whatever the objective.
    """
    dataset = RankedDataset.open(config.data, progress=False)
    batches: Batches = make_batches(config, dataset)
    counts = []
    for step in range(int(np.ceil(config.epochs * len(batches)))):
        pairs = batches.pairs(*divmod(step, len(batches)))
        counts.append([len(np.unique(rows[pairs])) for rows in (dataset.qrels.query, dataset.qrels.document)])
    return np.cumsum(counts, axis=0)


def _settings(config: TrainConfig) -> dict[str, Any]:
    kept = ["model", "fields", "combine", "weights", "target", "direction", "temperature", "learning_rate", "epochs"]
    kept += ["batch_size", "docs_per_query", "queries_per_doc", "sampling_exponent", "final_sampling_exponent"]
    kept += ["weight_decay", "schedule", "warmup"]
    return {name: getattr(config, name) for name in kept}


def _figures(row: dict[str, float]) -> dict[str, float]:
    return {name: row[name] for name in (*METRICS, "queries")}


def _history(file: Path, encoded: np.ndarray) -> list[dict[str, Any]]:
    """Dev figures over the run, with what had been encoded by then."""
    rows = []
    for entry in json.loads(file.read_text(encoding="utf-8")):
        if "eval_ndcg@10" in entry:
            queries, documents = encoded[entry["step"] - 1].tolist()
            figures = {
                split: {name: entry[f"eval_{split}_{name}"] for name in ("ndcg@10", "recall@100")} for split in SPLITS
            }
            rows.append({"step": entry["step"], "queries_encoded": queries, "documents_encoded": documents, **figures})
    return rows
