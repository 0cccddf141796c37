"""Checkpoints of a run: whole or not there, a hash of every file, and nothing in them that a reader could run.

A checkpoint is written under another name, handed to the disk, and put in place by one rename, so that a kill or a full
disk costs the one that is being written and no other. ``SHA256SUMS`` in it is what ``sha256sum --check`` reads. Tensors
are safetensors, and numbers beside them are JSON in the same file.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from opengcl.whole_files import put

WEIGHTS, OPTIMISER, STATE, SUMS = "model.safetensors", "optimizer.safetensors", "trainer_state.json", "SHA256SUMS"
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = "unfinished-"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_PLAIN = "plain"


class CheckpointError(ValueError):
    """A checkpoint that is not what was written."""


class Checkpoints:
    """The checkpoints in one folder, by the number of steps after which they were written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, ascending."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.glob("checkpoint-*") if path.is_dir()]
        return sorted(int(match[1]) for match in found if match)

    def at(self, step: int) -> Path:
        """The checkpoint's folder."""
        return self.folder / f"checkpoint-{step}"

    def unfinished(self, step: int) -> Path:
        """Where a checkpoint is written."""
        return self.folder / f"{_UNFINISHED}{step}"

    def begin(self, step: int) -> Path:
        """An empty folder to write a checkpoint into; what a kill has left is removed."""
        self.clear()
        folder = self.unfinished(step)
        folder.mkdir(parents=True)
        return folder

    def finish(self, step: int) -> None:
        """Hashes what was written and puts it in place."""
        folder = self.unfinished(step)
        lines = [f"{_sum(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
        (folder / SUMS).write_text("".join(lines), encoding="utf-8")
        put(folder, self.at(step))

    def needed(self, step: int) -> set[int]:
        """What resuming from a checkpoint reads: itself, and the best so far, whose weights the run may end with."""
        best = json.loads((self.at(step) / STATE).read_text(encoding="utf-8"))["best_global_step"]
        return {step} if best is None else {step, int(best)}

    def prune(self) -> None:
        """Keeps what resuming from the newest needs, and one to go back to. Each other one loses its name first."""
        *older, newest = self.steps()
        kept = self.needed(newest)
        if kept == {newest} and older:
            kept |= self.needed(older[-1])
        for step in older:
            if step not in kept:
                self.at(step).rename(self.unfinished(step))
        self.clear()

    def clear(self) -> None:
        """Removes what was not finished."""
        for folder in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(folder)

    def check(self, step: int) -> None:
        """Every file of a checkpoint and of those it needs is what was written.

        Raises:
            CheckpointError: Naming the file, its hash as written and as found, and what to do.
        """
        before = [other for other in self.steps() if other < step]
        rest = f"goes on from {self.at(before[-1]).name}" if before else "begins at the first step"
        self._check_files(step, f"the checkpoint cannot be used. Remove {self.at(step)}; resuming then {rest}")
        for best in self.needed(step) - {step}:
            advice = f"it is the best so far. Remove {self.folder}; resuming then begins at the first step"
            self._check_files(best, advice)

    def _check_files(self, step: int, advice: str) -> None:
        for name, written in _read_sums(self.at(step), advice).items():
            file = self.at(step) / name
            if not file.is_file():
                raise CheckpointError(f"{file}: missing; {advice}")
            found = _sum(file)
            if found != written:
                raise CheckpointError(f"{file}: SHA-256 was {written}, now {found}; {advice}")


def _read_sums(folder: Path, advice: str) -> dict[str, str]:
    """File -> hash; every file of the checkpoint is among them."""
    file = folder / SUMS
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; {advice}")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [_LINE.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in found if match}
    if len(sums) < len(lines) or any("/" in name for name in sums):
        raise CheckpointError(f"{file}: not a list of hashes and names; {advice}")
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {SUMS}
    for name in sorted({WEIGHTS, OPTIMISER, STATE, random_file(0)} - set(sums)) + sorted(there - set(sums)):
        raise CheckpointError(f"{file}: holds no hash of {name}; {advice}")
    return sums


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def random_file(rank: int) -> str:
    """Name of the file of a process's random state."""
    return f"random-{rank}.safetensors"


def save_optimiser(file: Path, optimiser: Any, schedule: Any, scaler: Any | None) -> None:
    """Writes an optimiser, its schedule, and the scaler of fp16's gradients if there is one."""
    content = optimiser.state_dict()
    plain = {
        "groups": content["param_groups"],
        "schedule": schedule.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    entries = {f"{row}.{name}": value for row, entry in content["state"].items() for name, value in entry.items()}
    _save(file, entries, plain)


def load_optimiser(file: Path, optimiser: Any, schedule: Any, scaler: Any | None) -> None:
    """Reads what `save_optimiser` wrote."""
    tensors, plain = _load(file)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        row, _, name = key.partition(".")
        state.setdefault(int(row), {})[name] = value
    groups = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()} for group in plain["groups"]
    ]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    schedule.load_state_dict(plain["schedule"])
    if scaler is not None and plain["scaler"] is not None:
        scaler.load_state_dict(plain["scaler"])


def save_random_state(file: Path, device: torch.device) -> None:
    """Writes the state of the generators of Python, NumPy and PyTorch."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what libraries draw from
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    _save(file, tensors, {"python": [version, gauss], "numpy": [kind, *rest]})


def load_random_state(file: Path, device: torch.device) -> None:
    """Reads what `save_random_state` wrote."""
    tensors, plain = _load(file)
    version, gauss = plain["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, *rest = plain["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def save_weights(file: Path, module: nn.Module) -> None:
    """Writes a module's parameters and buffers; those that share memory once."""
    save_model(module, str(file))


def load_weights(file: Path, module: nn.Module) -> None:
    """Reads what `save_weights` wrote; every parameter must be there, in its shape."""
    load_model(module, str(file), strict=True, device="cpu")


def _save(file: Path, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, str(file), metadata={_PLAIN: json.dumps(plain)})


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(str(file), framework="pt") as opened:
        plain = json.loads(opened.metadata()[_PLAIN])
        return {name: opened.get_tensor(name) for name in opened.keys()}, plain  # noqa: SIM118 - not a dict
