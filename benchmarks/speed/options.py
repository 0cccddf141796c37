"""What could make a step faster, each against the step without it: bf16, channels_last, torch.compile, fused AdamW.

A run is a few steps of the bare loop of `benchmarks.speed.steps` on batches made beforehand; a first run of each is not
counted, so that what is compiled is compiled for every shape that comes. A ratio above 1 is a gain.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import Row, all_in_turn
from benchmarks.speed.steps import SIZES, Training, adamw, step

from opengcl.lora import backbones
from opengcl.objective import RankingObjective

STEPS = {"tiny": 4, "ViT-B/32": 1}
OFF = "off"
Options = dict[str, Callable[[], None]]


def measure(repeats: int) -> Iterator[Row]:
    """Yield every option at both sizes."""
    for size in SIZES:
        with tempfile.TemporaryDirectory(prefix="opengcl-speed-") as folder:
            training = Training(replace(size, steps=STEPS[size.name]), Path(folder))
            yield from _rows(f"a step of {size.name}", sides(training), repeats, len(training.made))
            yield from _rows(f"AdamW, {size.name}", optimisers(training), repeats, 1)


def _rows(what: str, taken_by: Options, repeats: int, steps: int) -> Iterator[Row]:
    for run in taken_by.values():
        run()
    taken = all_in_turn(taken_by, repeats)
    for name in taken_by:
        if name != OFF:
            yield Row(f"{what}, {name}", taken[name], taken[OFF], OFF, None, {"steps": steps})


def sides(training: Training) -> Options:
    """A run without anything, and one with each option."""
    channels_last, compiled = (copy.deepcopy(training.objective) for _ in range(2))
    channels_last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for backbone in backbones(compiled.model.encoder):
        backbone.text_model.compile()  # the towers are what sentence-transformers calls, never the whole CLIP
        backbone.vision_model.compile()
    turned = [with_channels_last(batch) for batch in training.made]
    return {
        OFF: lambda: run(training, training.objective, training.made),
        "bf16": lambda: run(training, training.objective, training.made, torch.autocast("cpu", torch.bfloat16)),
        "channels_last": lambda: run(training, channels_last, turned),
        "torch.compile": lambda: run(training, compiled, training.made),
    }


def run(
    training: Training,
    objective: RankingObjective,
    batches: list[dict[str, Any]],
    within: contextlib.AbstractContextManager[Any] | None = None,
) -> None:
    """Steps over all batches. The loss is in float32 whatever encodes."""
    optimiser = adamw(objective, training.config)
    for batch in batches:
        with within or contextlib.nullcontext():
            step(objective, batch, optimiser, training.config.max_grad_norm)


def optimisers(training: Training) -> Options:
    """The optimiser's step alone, on gradients that are there."""
    training.objective(**training.made[0])["loss"].backward()
    made = {name: adamw(training.objective, training.config, fused=name == "fused") for name in (OFF, "fused")}
    return {name: optimiser.step for name, optimiser in made.items()}


def with_channels_last(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch, its pictures laid out pixel by pixel."""
    turned = copy.deepcopy(batch)
    for side in ("queries", "documents"):
        for field in turned[side].values():
            for chunk in field["chunks"]:
                if "pixel_values" in chunk:
                    chunk["pixel_values"] = chunk["pixel_values"].contiguous(memory_format=torch.channels_last)
    return turned
