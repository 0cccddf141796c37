"""What a training step of each side costs beside CLIP's, measured in turn: the seconds in the cells are not comparable.

A round is some steps of every side, one side after the other, so that other work on the machine and its changing clock
meet all sides alike. A step is all of it: drawing the batch, looking up what is judged, gathering features, encoding,
the loss, the backward pass and the optimiser.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from opengcl import RankedDataset, TrainConfig
from opengcl.batches import Relations
from opengcl.encode import inputs_for
from opengcl.training import TrainingBatches, build_objective, make_batches
from opengcl.weights import weight_function

from .cell import Cell, tune
from .cell_file import cost_file, provenance, write_json

MAIN = ("clip", "paper", "ours", "ours-drawn", "full-row", "bixse", "x-clr", "m3-kd")
ROUNDS, STEPS, WARM_UP = 7, 20, 5


def measure(
    data: str, fields: str, sides: Sequence[str] | None = None, *, rounds: int = ROUNDS, steps: int = STEPS
) -> Path:
    """Time the sides and write ``cost.json`` beside their cells.

    Args:
        data: The data set's name.
        fields: The fields' name.
        sides: Which; those of `MAIN` that are tuned there when not given.
        rounds: Of which the median is taken.
        steps: Of a side in a round.

    Returns:
        The file: a row a side with ``seconds`` of a step in every round, and the ``queries`` and ``documents`` that a
        step encodes in the mean.
    """
    torch.set_num_threads(1)
    if sides is None:
        sides = [side for side in MAIN if Cell(data, fields, side, 0).place.tuning.is_file()]
    rows: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as folder:
        timed = {}
        for side in sides:
            cell = Cell(data, fields, side, 0)
            config = cell.config(Path(folder) / side, steps=(rounds + 1) * steps, **tune(cell))
            timed[side] = _stepper(config, Path(folder) / f"{side}-cache")
            rows[side] = {"seconds": [], "queries": 0.0, "documents": 0.0}
            for _ in range(WARM_UP):
                timed[side]()
        for _ in range(rounds):
            for side, step in timed.items():
                started = time.perf_counter()
                encoded = np.mean([step() for _ in range(steps)], axis=0)
                rows[side]["seconds"].append((time.perf_counter() - started) / steps)
                rows[side]["queries"] += float(encoded[0]) / rounds
                rows[side]["documents"] += float(encoded[1]) / rounds
    file = cost_file(data, fields)
    write_json(file, {"rounds": rounds, "steps": steps, "sides": rows, "provenance": provenance()})
    return file


def _stepper(config: TrainConfig, cache: Path) -> Callable[[], tuple[int, int]]:
    """A function that takes one training step and tells how many queries and documents it encoded."""
    dataset = RankedDataset.open(config.data, progress=False)
    objective = build_objective(config, dataset).train()
    queries = inputs_for(objective.model, dataset.queries, "query")
    documents = inputs_for(objective.model, dataset.documents, "document")
    for name, inputs in (("queries", queries), ("documents", documents)):
        inputs.cache(cache / name, image_cache_bytes=config.image_cache_gb * 1e9, progress=False)
    relations = Relations(dataset, weight_function(config.weights), config.scaling)
    batches = make_batches(config, dataset)
    fed = TrainingBatches(batches, relations, (queries, documents))
    optimiser = torch.optim.AdamW(objective.parameters(), lr=config.peak_learning_rate)

    def places() -> Iterator[tuple[int, int]]:
        step = 0
        while True:
            yield divmod(step, len(batches))
            step += 1

    coming = places()

    def step() -> tuple[int, int]:
        batch = fed[next(coming)]
        optimiser.zero_grad()
        objective(batch["queries"], batch["documents"], batch["relation"])["loss"].backward()
        optimiser.step()
        return len(batch["rows"]["queries"]), len(batch["rows"]["documents"])

    return step
