"""A text model of MiniLM's size fine-tuned on pairs: `opengcl train`'s Trainer against sentence-transformers'.

Both see the same pairs in the same batches, in the same order, with the same loss (both directions in the batch, a
fixed temperature) and optimiser; the loss of the first step must be the same in float32. Whole runs are timed, with
what each does before its first step: ours tokenises all texts, theirs does it batch by batch.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from benchmarks.gpu import Setting
from benchmarks.gpu.measure import synchronise
from benchmarks.gpu.models import parameters, sentences, text_encoder
from benchmarks.gpu.record import Record, Row
from benchmarks.gpu.steps import Clock
from sentence_transformers import SentenceTransformer
from transformers import PrinterCallback, TrainingArguments

from opengcl.batches import Relations
from opengcl.config import TrainConfig
from opengcl.data import RankedDataset, Schema, write_dataset
from opengcl.encode import inputs_for
from opengcl.evaluation import Limit
from opengcl.model import BiEncoder, FieldMix
from opengcl.objective import RankingObjective
from opengcl.training import RankingTrainer, TrainingBatches, make_batches
from opengcl.weights import weight_function

REPEATS = 2
SCALE = 20.0
"""1 / temperature, sentence-transformers' own."""
ROUNDING = 1e-4


def run(record: Record, setting: Setting) -> None:
    """The first step's loss in float32, then both trainers in turn."""
    work = Work(setting)
    losses: dict[str, float] = {}
    sides = {"ours": work.ours, "sentence-transformers": work.theirs}
    if importlib.util.find_spec("datasets") is None:
        record.skip("sentence-transformers", "its trainer needs datasets, which is not installed")
        del sides["sentence-transformers"]

    def same_loss(row: Row) -> None:
        for name, side in sides.items():
            losses[name] = side("fp32", 1)["losses"][0]
        row["losses"] = losses
        if len(losses) == 2 and not abs(losses["ours"] - losses["sentence-transformers"]) <= ROUNDING * losses["ours"]:
            raise ValueError(f"the first step's losses are {losses}; allowed: a difference of {ROUNDING:g} of them")

    record.piece("the first step's loss in float32", same_loss, needs=8 if setting.full else 1)
    for number in range(REPEATS if setting.full else 1):
        for name, side in sides.items():

            def whole(row: Row, side: Any = side) -> None:
                started = time.perf_counter()
                found = side("bf16", work.steps)
                synchronise(setting.device)
                row["seconds"] = [time.perf_counter() - started]
                row["step_seconds"] = found["seconds"][2:]
                row["loss"] = found["losses"][-1]

            about: dict[str, Any] = {"pairs": work.steps * work.batch_size, "parameters": parameters(work.encoder)}
            title = f"{name}, {work.steps * work.batch_size:,} pairs, bf16, run {number + 1}"
            record.piece(title, whole, needs=10 if setting.full else 1, **about)


class Work:
    """The pairs as a data set, the model, and both ways to train it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        pairs, self.batch_size = (100_000, 1_024) if setting.full else (48, 16)
        self.steps = pairs // self.batch_size
        queries = [f"{text} {row}" for row, text in enumerate(sentences(pairs, 4, 0))]
        words = sentences(pairs, 10, 1)
        titles = [f"{query} {more}" for query, more in zip(queries, words, strict=True)]
        self.dataset = _written(setting.scratch, queries, titles)
        self.encoder = text_encoder(setting, setting.scratch / "model", sentences(2_000, 10, 1))
        self._config = TrainConfig(
            data="", model="", out="", batch_size=self.batch_size, target="diagonal", queries_per_doc=0
        )
        self._batches = make_batches(self._config, self.dataset)
        qrels = self.dataset.qrels
        order = np.concatenate([self._batches.pairs(0, number) for number in range(self.steps)])
        self._queries = [queries[row] for row in qrels.query[order]]
        self._titles = [titles[row] for row in qrels.document[order]]

    def ours(self, precision: str, steps: int) -> dict[str, list[float]]:
        """Seconds and losses of each step, tokenising before the first."""
        mix = FieldMix({"query": 1.0}, {"title": 1.0}, {"query": "text"}, {"title": "text"})
        model = BiEncoder(copy.deepcopy(self.encoder), mix)
        objective = RankingObjective(
            model, target="diagonal", direction="both", temperature=1 / SCALE, learn_temperature=False
        )
        started = time.perf_counter()
        queries = inputs_for(model, self.dataset.queries, "query")
        documents = inputs_for(model, self.dataset.documents, "document")
        for name, inputs in (("queries", queries), ("documents", documents)):
            folder = self._setting.scratch / f"{name}{started}"
            inputs.cache(folder, image_cache_bytes=0, progress=False)
        relations = Relations(self.dataset, weight_function("constant"), "dataset")
        fed = TrainingBatches(self._batches, relations, (queries, documents))
        nothing = (self.dataset, (queries, documents))
        arguments = TrainingArguments(**self._arguments(precision, steps))
        trainer = RankingTrainer(objective, arguments, self.dataset, fed, nothing, Limit(1, 1))
        return self._trained(trainer)

    def theirs(self, precision: str, steps: int) -> dict[str, list[float]]:
        """The same by sentence-transformers' trainer, workers as ours has them."""
        import datasets
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        encoder: SentenceTransformer = copy.deepcopy(self.encoder)
        loss = MultipleNegativesRankingLoss(
            encoder, SCALE, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        )
        arguments = SentenceTransformerTrainingArguments(
            **self._arguments(precision, steps),
            batch_sampler=_in_order,
        )
        pairs = datasets.Dataset.from_dict({"query": self._queries, "title": self._titles})
        return self._trained(SentenceTransformerTrainer(model=encoder, args=arguments, train_dataset=pairs, loss=loss))

    def _arguments(self, precision: str, steps: int) -> dict[str, Any]:
        return {
            "output_dir": str(self._setting.scratch / "trainer"),
            "max_steps": steps,
            "per_device_train_batch_size": self.batch_size,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "logging_steps": 1 if steps == 1 else 20,
            "save_strategy": "no",
            "use_cpu": not self._setting.on_gpu,
            "bf16": precision == "bf16",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_drop_last": True,
        }

    def _trained(self, trainer: Any) -> dict[str, list[float]]:
        trainer.remove_callback(PrinterCallback)
        clock = Clock(self._setting.device)
        trainer.add_callback(clock)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        losses += [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
        return {"seconds": clock.seconds(), "losses": [float(loss) for loss in losses]}


class InOrder:
    """Batches of rows that follow each other, as a sampler of sentence-transformers' trainer."""

    def __init__(self, rows: int, batch_size: int) -> None:
        self._rows, self._batch_size = rows, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self._rows - self._batch_size + 1, self._batch_size):
            yield list(range(start, start + self._batch_size))

    def __len__(self) -> int:
        return self._rows // self._batch_size

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""


def _in_order(dataset: Any, batch_size: int, **_: Any) -> InOrder:
    return InOrder(len(dataset), batch_size)


def _written(folder: Path, queries: list[str], titles: list[str]) -> RankedDataset:
    """A document for each query, all of them seen."""
    rows = len(queries)
    query_ids, document_ids = [f"q{row}" for row in range(rows)], [f"d{row}" for row in range(rows)]
    seen = ["seen"] * rows
    write_dataset(
        folder / "pairs",
        Schema("pairs", {"query": "text"}, {"title": "text"}, 0.0, 1.0),
        pa.table({"query_id": query_ids, "query": queries, "split": seen}),
        pa.table({"doc_id": document_ids, "title": titles, "split": seen}),
        pa.table({"query_id": query_ids, "doc_id": document_ids, "score": [1.0] * rows}),
    )
    return RankedDataset.open(folder / "pairs", cache_dir=folder / "cache", progress=False)
