"""Optimiser steps a second: the Trainer around our batches, against a bare PyTorch loop on tensors made beforehand.

Both take the same steps on the same batches: forward, backward, clipping, AdamW. The loop has them in memory; the
Trainer draws pairs, looks up the relation, gathers features from the caches that `opengcl train` fills, checks that the
loss is finite, and logs every fifth step. Each side begins with a step that is not counted.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import Row
from sentence_transformers import SentenceTransformer
from transformers import CLIPConfig, CLIPModel, PrinterCallback, TrainerCallback, TrainingArguments

from opengcl.batches import Relations
from opengcl.config import TrainConfig
from opengcl.data import RankedDataset
from opengcl.data.synthetic import make_shop
from opengcl.encode import inputs_for
from opengcl.encoders import tiny_clip, training_texts
from opengcl.evaluation import Limit
from opengcl.inputs import Inputs
from opengcl.objective import Batch, RankingObjective
from opengcl.training import RankingTrainer, TrainingBatches, build_objective, make_batches
from opengcl.weights import weight_function

UNCOUNTED = 1


@dataclass(frozen=True)
class Size:
    """A model, and the batches that are worth timing with it on two cores."""

    name: str
    image_size: int
    products: int
    batch_size: int
    steps: int
    aim: float


SIZES = (Size("tiny", 64, 1_000, 512, 12, 0.90), Size("ViT-B/32", 224, 200, 64, 3, 0.97))


def measure(repeats: int) -> Iterator[Row]:
    """Yield both sizes."""
    for size in SIZES:
        with tempfile.TemporaryDirectory(prefix="opengcl-speed-") as folder:
            training = Training(size, Path(folder))
            taken: dict[str, list[float]] = {"ours": [], "loop": []}
            for _ in range(repeats):
                taken["ours"].append(training.trainer_seconds())
                taken["loop"].append(training.loop_seconds())
            about: dict[str, object] = {
                "steps": size.steps,
                "pairs": size.batch_size,
                "parameters": sum(p.numel() for p in training.objective.parameters()),
                "image_size": size.image_size,
                **encoded(training.made[UNCOUNTED:]),
            }
            yield Row(
                f"{size.steps} optimiser steps, {size.name}", taken["ours"], taken["loop"], "bare loop", size.aim, about
            )


class Training:
    """A data set with its caches, a model, and both ways to train it."""

    def __init__(self, size: Size, folder: Path) -> None:
        self._size, self._folder = size, folder
        make_shop(folder / "shop", products=size.products, image_size=size.image_size)
        self.dataset = RankedDataset.open(folder / "shop", cache_dir=folder / "cache", progress=False)
        name = "tiny" if size.name == "tiny" else str(vit_b32(training_texts(self.dataset), folder / "model"))
        self.config = TrainConfig(
            data=str(folder / "shop"), model=name, out=str(folder / "run"), batch_size=size.batch_size, device="cpu"
        )
        self.objective = build_objective(self.config, self.dataset)
        self.inputs = self._inputs("query"), self._inputs("document")
        relations = Relations(self.dataset, weight_function(self.config.weights), self.config.scaling)
        self.fed = TrainingBatches(make_batches(self.config, self.dataset), relations, self.inputs)
        self.made = [without_rows(self.fed[(0, number)]) for number in range(UNCOUNTED + size.steps)]

    def trainer_seconds(self) -> float:
        """Ours, from the end of the uncounted step to the end of the last."""
        clock = Clock()
        limit = Limit(self.config.dev_queries, self.config.dev_documents)
        judged = self.dataset, self.inputs
        trainer = RankingTrainer(self.objective, self._arguments(), self.dataset, self.fed, judged, limit)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
        return clock.ends[-1] - clock.ends[UNCOUNTED - 1]

    def loop_seconds(self) -> float:
        """The peer, likewise."""
        optimiser = adamw(self.objective, self.config)
        ends = []
        for batch in self.made:
            step(self.objective, batch, optimiser, self.config.max_grad_norm)
            ends.append(time.perf_counter())
        return ends[-1] - ends[UNCOUNTED - 1]

    def _inputs(self, side: Any) -> Inputs:
        records = self.dataset.queries if side == "query" else self.dataset.documents
        inputs = inputs_for(self.objective.model, records, side)
        kept = self._folder / side
        inputs.cache(kept, image_cache_bytes=1e9, pictures=self._folder / "pictures", progress=False)
        return inputs

    def _arguments(self) -> TrainingArguments:
        """As `opengcl train` has them, but for a few steps, without checkpoints and evaluations."""
        return TrainingArguments(
            output_dir=str(self._folder / "checkpoints"),
            max_steps=len(self.made),
            per_device_train_batch_size=self.config.batch_size,
            learning_rate=self.config.peak_learning_rate,
            lr_scheduler_type="constant",
            weight_decay=self.config.weight_decay,
            max_grad_norm=self.config.max_grad_norm,
            logging_steps=5,
            logging_nan_inf_filter=False,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
        )


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def step(objective: RankingObjective, batch: dict[str, Any], optimiser: torch.optim.Optimizer, max_norm: float) -> None:
    """One step of the bare loop."""
    optimiser.zero_grad(set_to_none=True)
    objective(**batch)["loss"].backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), max_norm)
    optimiser.step()


def adamw(objective: RankingObjective, config: TrainConfig, *, fused: bool | None = True) -> torch.optim.AdamW:
    """The Trainer's optimiser: fused, and no decay on vectors and the temperature."""
    split: tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]] = [], []
    for parameter in objective.parameters():
        split[parameter.ndim > 1].append(parameter)
    groups = [{"params": split[0], "weight_decay": 0.0}, {"params": split[1], "weight_decay": config.weight_decay}]
    return torch.optim.AdamW(groups, lr=config.peak_learning_rate, fused=fused)


def without_rows(batch: Batch) -> dict[str, Any]:
    """What the module is called with."""
    return {name: part for name, part in batch.items() if name != "rows"}


def encoded(batches: list[dict[str, Any]]) -> dict[str, float]:
    """Pictures, texts, and tokens with their padding, that go through the encoder in a step."""
    chunks = [
        chunk
        for batch in batches
        for side in ("queries", "documents")
        for field in batch[side].values()
        for chunk in field["chunks"]
    ]
    pictures = sum(len(chunk["pixel_values"]) for chunk in chunks if "pixel_values" in chunk)
    texts = [chunk["input_ids"] for chunk in chunks if "input_ids" in chunk]
    sums = {"pictures": pictures, "texts": sum(map(len, texts)), "tokens": sum(ids.numel() for ids in texts)}
    return {name: total / len(batches) for name, total in sums.items()}


def vit_b32(texts: Iterable[str], folder: Path) -> Path:
    """A CLIP of ViT-B/32's size with random weights; tokenizer and processor as those of ``tiny``."""
    small = tiny_clip(texts, image_size=224)
    tokenizer = small.tokenizer
    shutil.rmtree(folder, ignore_errors=True)
    small.save(str(folder))
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = CLIPConfig(text_config=special, architectures=["CLIPModel"])  # its defaults are those of ViT-B/32
    CLIPModel(config).save_pretrained(folder)
    SentenceTransformer(str(folder), device="cpu")
    return folder
