"""CLIP, the paper's form and ours on fashion-small, title and image, ViT-B/32 from scratch, thumbnails upscaled.

The three sides of `benchmarks.ranking` with the same model, steps and learning rate; how many steps depends on the time
that is left, and is the same for all. Each finished run is a row, seed by seed. The final evaluation draws some of
the queries and documents, so its figures compare with each other and with nothing else.
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.gpu import Setting
from benchmarks.gpu.apart import apart
from benchmarks.gpu.record import Record, Row
from benchmarks.ranking.sides import SIDES
from benchmarks.speed.steps import vit_b32

import opengcl.training
from opengcl import TrainConfig, evaluate, train
from opengcl.cores import usable_cores
from opengcl.data import RankedDataset
from opengcl.data.synthetic import make_shop
from opengcl.encoders import training_texts
from opengcl.evaluation import Limit
from opengcl.training import make_batches

COMPARED = ("clip", "paper", "ours")
SEEDS = (0, 1, 2)
STEP_SECONDS, REST_SECONDS = 0.25, 20.0
"""What a step, and all of a run but its steps, are taken to cost."""
LEARNING_RATE = 5e-4
WORKERS = 6
"""Batches of 0.6 GB lie in shared memory, two a worker."""
DRAWN = Limit(2_000, 6_000)


def run(record: Record, setting: Setting) -> None:
    """All sides of a seed before the next."""
    if setting.full and setting.fashion is None:
        record.skip("all", "fashion-small is not there; --fashion FOLDER names it")
        return
    data = setting.fashion if setting.full else None
    work = Work(setting, data or make_shop(setting.scratch / "shop", products=40, image_size=16))
    prepared = record.piece("model and data", work.prepare, needs=30 if setting.full else 1)
    if prepared is None:
        return
    steps = work.steps()
    for seed in SEEDS if setting.full else SEEDS[:1]:
        for side in COMPARED:
            record.piece(
                f"{side}, seed {seed}, {steps} steps",
                functools.partial(work.train, side=side, seed=seed, steps=steps),
                needs=REST_SECONDS + 0.5 * steps * STEP_SECONDS if setting.full else 1.0,
                side=side,
                seed=seed,
                steps=steps,
            )


class Work:
    """The data, the model's folder, and the runs."""

    def __init__(self, setting: Setting, data: Path) -> None:
        self._setting, self._data, self._model = setting, data, setting.scratch / "model"

    def steps(self) -> int:
        """As many as let each side run once in the time that is left."""
        if not self._setting.full:
            return 2
        room = self._setting.left() / len(COMPARED) - REST_SECONDS
        return int(min(1_000, max(100, room / STEP_SECONDS)))

    def prepare(self, row: Row) -> None:
        """The model of random weights, and every picture decoded once for all runs."""
        started = time.perf_counter()
        row["pairs"] = self._apart("prepare", self._prepared)
        row["seconds"] = [time.perf_counter() - started]

    def train(self, row: Row, *, side: str, seed: int, steps: int) -> None:
        """One run, its seconds and its metrics."""
        started = time.perf_counter()
        row["splits"] = self._apart(f"{side}-{seed}", self._trained, side, seed, steps)
        row["seconds"] = [time.perf_counter() - started]

    def _config(self, side: str, seed: int, epochs: float = 1) -> TrainConfig:
        settings: dict[str, Any] = {**SIDES[side].settings}
        if not self._setting.full:
            settings["batch_size"] = 8 if side != "ours" else 32
        return TrainConfig(
            data=str(self._data),
            model=str(self._model) if self._setting.full else "tiny",
            out=str(self._setting.scratch / f"run-{side}-{seed}"),
            epochs=epochs,
            seed=seed,
            learning_rate=LEARNING_RATE,
            precision="bf16" if self._setting.on_gpu else "fp32",
            evaluations=1,
            dev_queries=100,
            dev_documents=1_000,
            image_cache_gb=50,
            workers=min(WORKERS, usable_cores()) if self._setting.full else 0,
            device=self._setting.device,
            **settings,
        )

    def _prepared(self) -> int:
        dataset = self._opened()
        if self._setting.full:
            vit_b32(training_texts(dataset), self._model)
        objective = opengcl.training.build_objective(self._config("clip", 0), dataset)
        queries, documents = opengcl.training._inputs(objective.model, dataset, self._config("clip", 0))
        folder = self._setting.scratch / "texts"
        for name, inputs in (("queries", queries), ("documents", documents)):
            inputs.cache(folder / name, image_cache_bytes=5e10, workers=usable_cores(), progress=False)
        return len(dataset.splits.training_pairs())

    def _trained(self, side: str, seed: int, steps: int) -> dict[str, dict[str, float]]:
        dataset = self._opened()
        epochs = (steps - 0.5) / len(make_batches(self._config(side, seed), dataset))
        config = self._config(side, seed, epochs)
        with patch.object(opengcl.training, "evaluate", functools.partial(evaluate, limit=DRAWN)):
            out = train(config, progress=False)
        splits: dict[str, dict[str, float]] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["splits"]
        return splits

    def _opened(self) -> RankedDataset:
        os.environ["OPENGCL_CACHE"] = str(self._setting.scratch / "cache")
        return RankedDataset.open(self._data, progress=False)

    def _apart(self, name: str, work: Any, *words: Any) -> Any:
        ended = apart(work, *words, deadline=self._setting.deadline, log=self._setting.scratch / f"{name}.log")
        if ended.error is not None:
            raise RuntimeError(f"{ended.error}; {ended.log[-1_000:]}")
        return ended.returned
