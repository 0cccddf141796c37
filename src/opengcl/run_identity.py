"""Whose a run folder is: the settings and the data it began with, and the one process that may write there."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
import transformers

import opengcl
from opengcl.config import TrainConfig, load_config
from opengcl.data import RankedDataset
from opengcl.distributed import world_size
from opengcl.whole_files import put_text

CONFIG, DATA, LOCK = "config.yaml", "data.json", ".lock"
_BEGINNING = (LOCK, DATA, f".{DATA}.partial", f".{CONFIG}.partial")
FREE = ("out", "device", "workers", "image_cache_gb", "max_unreadable")
"""Settings that may change on resume: where and how fast, not what."""

logger = logging.getLogger(__name__)


class TrainError(ValueError):
    """A run that cannot start, go on or end as asked."""


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """No other process trains in this folder for the length of a ``with`` block; the lock ends with its process.

    Raises:
        TrainError: Another one does.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # workers that outlive a killed process do not hold it
        except BlockingIOError:
            raise TrainError(f"{out}: another process is training here; wait for its end, or stop it") from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not let two processes train there", out, error)
        yield


def begin(out: Path, config: TrainConfig, data: Mapping[str, RankedDataset]) -> None:
    """Marks a folder as this run's.

    Args:
        out: The folder.
        config: The settings.
        data: What the run trains on (``data``), and evaluates on where that is another one (``evaluation_data``).

    Raises:
        TrainError: It holds something else.
    """
    # config.yaml is written last: without it, the rest is what a kill left of a beginning.
    if (out / CONFIG).exists() or any(file.name not in _BEGINNING for file in out.iterdir()):
        raise TrainError(f"{out} is not empty; resume the run in it, or choose another folder")
    put_text(out / DATA, json.dumps({"data": _described(data), "begun": _surroundings()}, indent=1) + "\n")
    put_text(out / CONFIG, config.to_yaml())


def check(out: Path, config: TrainConfig, data: Mapping[str, RankedDataset]) -> None:
    """The folder holds a run of these settings and these data.

    Raises:
        TrainError: It holds none, or what differs is named with its values then and now.
    """
    if not (out / CONFIG).is_file():
        raise TrainError(f"{out} holds no run to resume ({CONFIG} is missing)")
    _check_settings(out, load_config(out / CONFIG, {}), config)
    before = _read(out / DATA)
    _check_data(out, before["data"], data)
    for name, value in _surroundings().items():
        found = before["begun"].get(name)
        if found != value:
            logger.warning("%s: %s was %s, now %s; the result may differ in its last bits", out, name, found, value)


def tidy(out: Path) -> None:
    """Removes what a killed process leaves: features of texts, and a model that was not written to its end."""
    for name in ("cache", "model.partial"):
        shutil.rmtree(out / name, ignore_errors=True)


def _check_settings(out: Path, before: TrainConfig, now: TrainConfig) -> None:
    differing = [
        f"{name} was {getattr(before, name)!r}, now {getattr(now, name)!r}"
        for name in vars(before)
        if name not in FREE and getattr(before, name) != getattr(now, name)
    ]
    if differing:
        raise TrainError(f"{out}: cannot resume with other settings: {'; '.join(differing)}")


def _check_data(out: Path, before: Mapping[str, Any], now: Mapping[str, RankedDataset]) -> None:
    found = _described(now)
    if found != before:
        raise TrainError(f"{out}: the data set has changed since this run began ({before} then, {found} now)")


def _described(data: Mapping[str, RankedDataset]) -> dict[str, dict[str, str]]:
    return {role: {"name": one.schema.name, "fingerprint": one.fingerprint} for role, one in data.items()}


def _surroundings() -> dict[str, Any]:
    """What the last bits of a result depend on besides settings and data."""
    return {
        "opengcl": opengcl.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and {"data", "begun"} <= set(content):
            return content
    except (OSError, ValueError) as error:
        raise TrainError(f"{file}: cannot be read: {error}") from error
    raise TrainError(f"{file}: holds no 'data' and 'begun'; the run began with another version of opengcl")
