"""Whether a GPU gives the same numbers: loss and evaluation as on a CPU, and a run that goes on after a SIGKILL.

Everything happens in processes of its own, some of which kill themselves.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu import Setting
from benchmarks.gpu.apart import Ended, apart
from benchmarks.gpu.record import Record, Row
from benchmarks.speed.loss import judged_pairs
from safetensors import safe_open
from transformers import TrainerCallback

from opengcl import TrainConfig, evaluate, gcl_loss, train
from opengcl.checkpoints import OPTIMISER, Checkpoints, load_optimiser, save_optimiser
from opengcl.data import RankedDataset
from opengcl.data.synthetic import make_shop
from opengcl.loss import DIRECTIONS, TARGETS
from opengcl.model import BiEncoder
from opengcl.training import RankingTrainer

LOSS_ALLOWED, METRICS_ALLOWED = 1e-5, 1e-4
METRICS = ("ndcg@10", "recall@100", "map", "mrr")


def run(record: Record, setting: Setting) -> None:
    """Loss, a run that is killed, evaluation of its model, fp16's scaler; then what depends on settings."""
    shop = make_shop(setting.scratch / "shop", products=600 if setting.full else 40, image_size=64)
    runs = Runs(record, setting, shop)
    record.piece("loss, CPU against GPU", lambda row: same_loss(row, setting), needs=4, allowed=LOSS_ALLOWED)
    runs.killed("killed and resumed, float32", "fp32")
    record.piece("evaluation, CPU against GPU", runs.same_evaluation, needs=4, allowed=METRICS_ALLOWED)
    record.piece("fp16's scaler, saved and read", lambda row: scaler_kept(row, setting), needs=1)
    if setting.on_gpu:
        runs.killed("killed and resumed, fp16", "fp16")
    else:
        record.skip("killed and resumed, fp16", "it needs a GPU")
    if setting.full:
        runs.killed("killed and resumed, float32, deterministic algorithms", "fp32", deterministic=True)
        runs.killed("killed and resumed, bf16", "bf16")
        record.piece("the same run twice, float32", runs.twice, needs=8)


def same_loss(row: Row, setting: Setting) -> None:
    """Every target and direction on both devices."""
    sides = {device: value_of(_apart(setting, f"loss-{device}", losses, device)) for device in {"cpu", setting.device}}
    differences = {
        name: abs(sides[setting.device][name] - value) / max(1e-30, abs(value)) for name, value in sides["cpu"].items()
    }
    row["differences"], row["largest"] = differences, max(differences.values())
    row["met"] = row["largest"] <= LOSS_ALLOWED


def losses(device: str) -> dict[str, float]:
    """The loss of made-up vectors by target and direction, in float32."""
    generator = torch.Generator().manual_seed(0)
    queries, documents = (
        torch.nn.functional.normalize(torch.randn(384, 64, generator=generator)).to(device) for _ in range(2)
    )
    judged = judged_pairs(384, generator).to(device)
    return {
        f"{target}, {direction}": gcl_loss(
            queries,
            documents,
            judged,
            1 / 0.07,
            target=target,  # type: ignore[arg-type]
            direction=direction,  # type: ignore[arg-type]
        ).item()
        for target, direction in product(TARGETS, DIRECTIONS)
    }


def scaler_kept(row: Row, setting: Setting) -> None:
    """A scaler that has been through something, written into a checkpoint's file and read into a new one."""
    row |= value_of(_apart(setting, "scaler", _scaler, setting.scratch))
    row["met"] = row["saved"] == row["read"] != row["fresh"]


def _scaler(folder: Path) -> dict[str, Any]:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimiser = torch.optim.AdamW([parameter])
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser)
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3) for _ in range(2))
    fresh = scaler.state_dict()
    for _ in range(4):
        scaler.scale(parameter.sum()).backward()
        scaler.step(optimiser)
        scaler.update()
    file = folder / "scaler.safetensors"
    save_optimiser(file, optimiser, schedule, scaler)
    load_optimiser(file, optimiser, schedule, other)
    return {"fresh": fresh, "saved": scaler.state_dict(), "read": other.state_dict()}


@dataclass(frozen=True)
class Training:
    """A run, told in a form that goes to another process."""

    config: TrainConfig
    cache: Path
    deterministic: bool = False
    killed_after: int | None = None

    def __call__(self) -> None:
        """Begin it, or go on where it was killed."""
        os.environ["OPENGCL_CACHE"] = str(self.cache)
        if self.deterministic:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
            torch.use_deterministic_algorithms(True, warn_only=True)
        if self.killed_after is not None:
            _kill_after(self.killed_after)
        train(self.config, resume=(Path(self.config.out) / "config.yaml").is_file(), progress=False)


class _Kill(TrainerCallback):  # type: ignore[misc]
    """SIGKILL to this process when a step has ended."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def _kill_after(step: int) -> None:
    started = RankingTrainer.__init__

    def with_the_callback(trainer: RankingTrainer, *words: Any) -> None:
        started(trainer, *words)
        trainer.add_callback(_Kill(step))

    RankingTrainer.__init__ = with_the_callback  # type: ignore[method-assign,assignment]


class Runs:
    """Runs of ``tiny`` on the synthetic shop."""

    def __init__(self, record: Record, setting: Setting, shop: Path) -> None:
        self._record, self._setting, self._shop = record, setting, shop
        self._whole: dict[tuple[str, bool], Path] = {}

    def killed(self, name: str, precision: str, *, deterministic: bool = False) -> None:
        """A run that is killed between two checkpoints and resumed, against one that is not."""

        def work(row: Row) -> None:
            whole = self._train(f"whole-{precision}{deterministic}", precision, deterministic)
            self._whole[precision, deterministic] = whole
            steps = Checkpoints(whole / "checkpoints").steps()
            kill = max(1, steps[0] + (steps[-1] - steps[0]) // 2)
            row["steps"], row["killed_after"] = steps[-1], kill
            label = f"killed-{precision}{deterministic}"
            ended = self._apart(label, precision, deterministic, kill)
            if ended.error != "ended by SIGKILL":
                raise ValueError(f"the run was to be killed, but {ended.error or 'came to its end'}")
            resumed = self._train(label, precision, deterministic)
            row |= compared(whole, resumed)
            row["scaler"], row["scaler_resumed"] = scaler_of(whole), scaler_of(resumed)

        needs = 15.0 if self._setting.full else 2.0
        self._record.piece(name, work, needs=needs, precision=precision, deterministic=deterministic)

    def twice(self, row: Row) -> None:
        """What differs between two runs of the same, neither of them killed."""
        row |= compared(self._whole["fp32", False], self._train("again", "fp32", False))

    def same_evaluation(self, row: Row) -> None:
        """The trained model's metrics on both devices."""
        model = self._whole["fp32", False]
        sides = {
            device: value_of(
                _apart(self._setting, f"metrics-{device}", metrics, model, self._shop, self._cache, device)
            )
            for device in {"cpu", self._setting.device}
        }
        differences = {name: abs(value - sides["cpu"][name]) for name, value in sides[self._setting.device].items()}
        row["metrics"], row["largest"] = sides["cpu"], max(differences.values())
        row["met"] = row["largest"] <= METRICS_ALLOWED

    @property
    def _cache(self) -> Path:
        return self._setting.scratch / "cache"

    def _train(self, name: str, precision: str, deterministic: bool) -> Path:
        value_of(self._apart(name, precision, deterministic, None))
        return self._setting.scratch / name

    def _apart(self, name: str, precision: str, deterministic: bool, kill: int | None) -> Ended:
        config = TrainConfig(
            data=str(self._shop),
            model="tiny",
            out=str(self._setting.scratch / name),
            epochs=2 if self._setting.full else 1,
            batch_size=128 if self._setting.full else 32,
            evaluations=4 if self._setting.full else 2,
            dev_queries=50,
            precision=precision,  # type: ignore[arg-type]
            device=self._setting.device,
        )
        training = Training(config, self._cache, deterministic, kill)
        return _apart(self._setting, name, training)


def metrics(model: Path, shop: Path, cache: Path, device: str) -> dict[str, float]:
    """Split and metric -> value."""
    dataset = RankedDataset.open(shop, cache_dir=cache, progress=False)
    found = evaluate(BiEncoder.load(model, device=device), dataset, metrics=METRICS).splits()
    return {f"{split}, {name}": row[name] for split, row in found.items() for name in METRICS}


def compared(whole: Path, resumed: Path) -> dict[str, Any]:
    """How far the weights of two runs' models are from each other."""
    differ, largest = 0, 0.0
    for (name, one), (_, other) in zip(weights(whole), weights(resumed), strict=True):
        if one.shape != other.shape:
            raise ValueError(f"{name} has shape {tuple(one.shape)} and {tuple(other.shape)}")
        if not torch.equal(one, other):
            differ += 1
            largest = max(largest, ((one - other).abs().max() / one.abs().max()).item())
    return {"equal_to_the_bit": differ == 0, "tensors_that_differ": differ, "largest_difference": largest}


def weights(run: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a run's model, by name."""
    for file in sorted((run / "model").rglob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            for name in sorted(opened.keys()):
                yield name, opened.get_tensor(name).float()


def scaler_of(run: Path) -> dict[str, Any] | None:
    """What the last checkpoint says of fp16's scaler."""
    kept = Checkpoints(run / "checkpoints")
    with safe_open(str(kept.at(kept.steps()[-1]) / OPTIMISER), framework="pt") as opened:
        found = json.loads(opened.metadata()["plain"])["scaler"]
    return found or None


def value_of(ended: Ended) -> Any:
    """What a process returned.

    Raises:
        RuntimeError: It did not get there.
    """
    if ended.error is not None:
        raise RuntimeError(f"{ended.error}; {ended.log[-1_000:]}")
    return ended.returned


def _apart(setting: Setting, name: str, work: Callable[..., Any], *words: Any) -> Ended:
    return apart(work, *words, deadline=setting.deadline, log=setting.scratch / f"{name}.log")
