"""Training steps of a CLIP of ViT-B/32's size on pictures that are decoded and on the device, and where the time goes.

The bare loop is forward, backward, clipping and fused AdamW around `opengcl.objective.RankingObjective`. Beside it:
the same model under open_clip's loss with the whole batch in one forward pass, and the Trainer that `opengcl train`
uses, whose batches come from the host's memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.gpu import Setting, loss
from benchmarks.gpu.measure import measure, synchronise
from benchmarks.gpu.models import Prepared, clip_folder, objective, parameters, prepared
from benchmarks.gpu.record import Record, Row
from benchmarks.speed.cost_model import Clip
from benchmarks.speed.steps import adamw
from sentence_transformers import SentenceTransformer
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from opengcl.config import TrainConfig
from opengcl.data import RankedDataset
from opengcl.data.synthetic import make_shop
from opengcl.evaluation import Limit
from opengcl.inputs import CHUNK_ROWS
from opengcl.model import open_encoder
from opengcl.objective import RankingObjective
from opengcl.training import RankingTrainer

REPEATS = 5
CONFIG = TrainConfig(data="", model="", out="", learning_rate=1e-4)
CALLS = 25
"""Lines of the profiler's table."""


def run(record: Record, setting: Setting) -> None:
    """The questions in order of worth; every cell builds its own model, so that none pays for another's memory."""
    folder, clip, pixels = clip_folder(setting, setting.scratch / "model")
    sizes = (1_024, 4_096, 8_192, 2_048) if setting.full else (4, 6, 8)
    cells = Cells(record, setting, open_encoder(str(folder), device="cpu"), clip, pixels)
    first, second = sizes[:2]
    cells.bare(first)
    cells.open_clip(first)
    cells.profile(first)
    cells.bare(second)
    cells.bare(second, recompute=True)
    cells.bare(first, chunk_rows=first)
    cells.bare(first, precision="fp16")
    cells.trainer(first)
    cells.bare(second, chunk_rows=second)
    cells.open_clip(second)
    for documents in sizes[2:]:
        cells.bare(documents)
        cells.bare(documents, recompute=True)
        cells.bare(documents, checkpointing=True)
    cells.bare(second, precision="fp16")
    cells.bare(first, precision="fp32")
    cells.optimiser()


class Cells:
    """One row each, of one model."""

    def __init__(self, record: Record, setting: Setting, encoder: SentenceTransformer, clip: Clip, pixels: int) -> None:
        self._record, self._setting, self._encoder, self._clip, self._pixels = record, setting, encoder, clip, pixels
        self._needs = 6.0 if setting.full else 1.0
        self._chunk_rows = CHUNK_ROWS if setting.full else 2

    def bare(
        self,
        documents: int,
        *,
        precision: str = "bf16",
        recompute: bool = False,
        checkpointing: bool = False,
        chunk_rows: int | None = None,
    ) -> None:
        """The bare loop around our objective."""
        rows = min(chunk_rows or self._chunk_rows, documents)

        def work(row: Row) -> None:
            made = self._objective(recompute=recompute, checkpointing=checkpointing)
            batch = self._batch(made, documents, rows)
            self._measure(row, batch, stepper(made, batch.batch, precision, self._setting))

        kept = "recomputed by chunk" if recompute else "recomputed by layer" if checkpointing else "all kept"
        name = f"bare loop, {documents:,} documents, {precision}, {kept}, chunks of {rows:,}"
        self._record.piece(
            name, work, needs=self._needs, documents=documents, precision=precision, kept=kept, chunk_rows=rows
        )

    def open_clip(self, documents: int) -> None:
        """The whole batch in one pass of each tower, and ``ClipLoss`` on what autocast gives."""

        def work(row: Row) -> None:
            made = self._objective()
            batch = self._batch(made, documents, documents)
            (texts,), (pictures,) = (
                batch.batch[side][field]["chunks"] for side, field in (("queries", "query"), ("documents", "image"))
            )
            optimiser, device = adamw(made, CONFIG), self._setting.device

            def step() -> None:
                optimiser.zero_grad(set_to_none=True)
                with torch.autocast(device, torch.bfloat16):
                    images, words = (
                        torch.nn.functional.normalize(made.model.encoder(dict(part))["sentence_embedding"], dim=-1)
                        for part in (pictures, texts)
                    )
                    value = loss.clip_loss(images, words, made.log_logit_scale.exp())
                value.backward()
                optimiser.step()
                with torch.no_grad():
                    made.log_logit_scale.clamp_(0, 4.6052)

            self._measure(row, batch, step)

        name = f"open_clip's form, {documents:,} documents, bf16"
        self._record.piece(name, work, needs=self._needs, documents=documents, precision="bf16", kept="all kept")

    def trainer(self, documents: int) -> None:
        """Ours as `opengcl train` has it, on batches that lie in the host's memory."""

        def work(row: Row) -> None:
            made = self._objective()
            batch = self._batch(made, documents, self._chunk_rows, device="cpu")
            row["flop"] = batch.flop(self._clip)
            repeats, warm_up = (REPEATS, 2) if self._setting.full else (1, 1)
            row["seconds"] = trainer_seconds(made, batch, self._setting, "bf16", warm_up + repeats)[warm_up:]

        name = f"Trainer, {documents:,} documents, bf16, from the host's memory"
        self._record.piece(name, work, needs=2 * self._needs, documents=documents, precision="bf16")

    def profile(self, documents: int) -> None:
        """Time by operation over a step of the bare loop."""

        def work(row: Row) -> None:
            made = self._objective()
            step = stepper(made, self._batch(made, documents, self._chunk_rows).batch, "bf16", self._setting)
            step()
            synchronise(self._setting.device)
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self._setting.on_gpu:
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            with torch.profiler.profile(activities=kinds) as profiler:
                started = time.perf_counter()
                step()
                synchronise(self._setting.device)
                row["profiled_seconds"] = time.perf_counter() - started
            events = profiler.key_averages()
            on_host = [event for event in events if event.device_type.name == "CPU"]
            row["operations"] = calls(on_host, "device" if self._setting.on_gpu else "cpu")
            kernels = [event for event in events if event.device_type.name != "CPU"]
            row["kernels"] = calls(kernels, "device")
            row["busy_seconds"] = sum(event.self_device_time_total for event in kernels) / 1e6

        name = f"profile, {documents:,} documents, bf16"
        self._record.piece(name, work, needs=2 * self._needs, documents=documents)

    def optimiser(self) -> None:
        """AdamW's step alone, whose bytes the memory's bandwidth bounds."""

        def work(row: Row) -> None:
            made = self._objective()
            for parameter in made.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimiser = adamw(made, CONFIG)
            row["parameters"] = parameters(made)
            measure(row, optimiser.step, self._setting, repeats=REPEATS, warm_up=3, inner=5)

        self._record.piece("AdamW, fused, its step alone", work, needs=self._needs / 2)

    def _objective(self, **options: bool) -> RankingObjective:
        return objective(self._encoder, self._setting.device, **options)

    def _batch(self, made: RankingObjective, documents: int, chunk_rows: int, device: str | None = None) -> Prepared:
        place = device or self._setting.device
        return prepared(made.model.encoder, documents, self._pixels, place, chunk_rows=chunk_rows)

    def _measure(self, row: Row, batch: Prepared, step: Callable[[], None]) -> None:
        row["flop"] = batch.flop(self._clip)
        measure(row, step, self._setting, repeats=REPEATS, warm_up=3)


def stepper(made: RankingObjective, batch: dict[str, Any], precision: str, setting: Setting) -> Callable[[], None]:
    """A step of the bare loop: forward under autocast, backward, clipping, fused AdamW; fp16 with its scaler."""
    optimiser = adamw(made, CONFIG)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]
    scaler = torch.amp.GradScaler(setting.device, enabled=precision == "fp16" and setting.on_gpu)
    parts = list(made.parameters())

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(setting.device, half, enabled=half is not None):
            value = made(**batch)["loss"]
        scaler.scale(value).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(parts, CONFIG.max_grad_norm)
        scaler.step(optimiser)
        scaler.update()

    return step


def calls(events: list[Any], side: str) -> list[dict[str, Any]]:
    """The operations that take the most time themselves: their seconds, and how often they are called."""
    found = [(getattr(event, f"self_{side}_time_total", 0.0) / 1e6, event.key, event.count) for event in events]
    found.sort(reverse=True)
    total = sum(seconds for seconds, _, _ in found) or 1.0
    return [
        {"seconds": seconds, "share": seconds / total, "name": name[:120], "calls": count}
        for seconds, name, count in found[:CALLS]
    ]


class _OneBatch(Dataset[Any]):
    """The same batch again and again, made once."""

    def __init__(self, batch: dict[str, Any], times: int) -> None:
        rows = torch.arange(len(batch["documents"]["image"]["present"]))
        self._batch, self._times = {**batch, "rows": {"queries": rows, "documents": rows}}, times

    def __getitem__(self, place: tuple[int, int]) -> Any:
        return dict(self._batch)

    def __len__(self) -> int:
        return self._times


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step had ended, on the device too."""

    def __init__(self, device: str) -> None:
        self._device, self.ends = device, [time.perf_counter()]

    def on_step_end(self, *_: object, **__: object) -> None:
        """Note the time."""
        synchronise(self._device)
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def trainer_seconds(
    made: RankingObjective, batch: Prepared, setting: Setting, precision: str, steps: int
) -> list[float]:
    """Seconds of each step of the Trainer."""
    shop = make_shop(setting.scratch / "shop", products=30, image_size=16)
    dataset = RankedDataset.open(shop, cache_dir=setting.scratch / "cache", progress=False)  # names rows in errors
    arguments = TrainingArguments(
        output_dir=str(setting.scratch / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=batch.documents,
        learning_rate=CONFIG.peak_learning_rate,
        lr_scheduler_type="constant",
        weight_decay=CONFIG.weight_decay,
        max_grad_norm=CONFIG.max_grad_norm,
        logging_steps=5,
        logging_nan_inf_filter=False,
        save_strategy="no",
        use_cpu=not setting.on_gpu,
        bf16=precision == "bf16",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    clock = Clock(setting.device)
    fed: Any = _OneBatch(batch.batch, steps)
    nothing: Any = (None, None)
    trainer = RankingTrainer(made, arguments, dataset, fed, (dataset, nothing), Limit(1, 1))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds()
