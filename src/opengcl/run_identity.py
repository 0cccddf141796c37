"""Whose a run folder is: the settings and the data it began with, and the one process that may write there."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
import transformers

import opengcl
from opengcl.config import TrainConfig, load_config
from opengcl.data import RankedDataset
from opengcl.data.changes import changes, described
from opengcl.data.problems import EXAMPLES, shown
from opengcl.distributed import world_size
from opengcl.inputs import Inputs
from opengcl.only_writer import FolderBusyError, locked
from opengcl.prompts import Side
from opengcl.whole_files import put, put_text

CONFIG, DATA, LOCK = "config.yaml", "data.json", ".lock"
_BEGINNING = (LOCK, DATA, f".{DATA}.partial", f".{CONFIG}.partial")
PICTURES = "pictures.npz"
_KEPT = ("data", "model", "begun")
FREE = ("out", "device", "workers", "image_cache_gb", "max_unreadable")
"""Settings that may change on resume: where and how fast, not what."""

_Marks = dict[tuple[str, ...], np.ndarray]
"""Table, field and kind -> a number for the picture of each row."""
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
    try:
        with locked(out / LOCK, f"{out}: another process is training here; wait for its end, or stop it"):
            yield
    except FolderBusyError as error:
        raise TrainError(str(error)) from None


def begin(
    out: Path, config: TrainConfig, data: Mapping[str, RankedDataset], prompts: Mapping[Side, str] | None = None
) -> None:
    """Marks a folder as this run's.

    Args:
        out: The folder.
        config: The settings.
        data: What the run trains on (``data``), and evaluates on where that is another one (``evaluation_data``).
        prompts: What goes before the texts of each side: the model's own prompts, or those of the settings.

    Raises:
        TrainError: It holds something else.
    """
    # config.yaml is written last: without it, the rest is what a kill left of a beginning.
    if (out / CONFIG).exists() or any(file.name not in _BEGINNING for file in out.iterdir()):
        raise TrainError(f"{out} is not empty; resume the run in it, or choose another folder")
    content = {
        "data": {role: described(one) for role, one in data.items()},
        "model": _model_files(config.model),
        "begun": _surroundings(),
        "prompts": dict(prompts or {}),
    }
    put_text(out / DATA, json.dumps(content, indent=1) + "\n")
    put_text(out / CONFIG, config.to_yaml())


def check(
    out: Path, config: TrainConfig, data: Mapping[str, RankedDataset], prompts: Mapping[Side, str] | None = None
) -> None:
    """The folder holds a run of these settings and these data.

    Raises:
        TrainError: It holds none, or what differs is named with its values then and now.
    """
    if not (out / CONFIG).is_file():
        raise TrainError(f"{out} holds no run to resume ({CONFIG} is missing)")
    _check_settings(out, load_config(out / CONFIG, {}), config)
    before = _read(out / DATA)
    _check_data(out, before["data"], data)
    _check_model(out, before["model"], _model_files(config.model))
    _check_prompts(out, before.get("prompts", {}), prompts or {})
    for name, value in _surroundings().items():
        found = before["begun"].get(name)
        if found != value:
            logger.warning("%s: %s was %s, now %s; the result may differ in its last bits", out, name, found, value)


def check_pictures(out: Path, tables: Mapping[str, Inputs], *, begun: bool) -> None:
    """Pictures in files of their own, which no fingerprint covers, are what they were; noted, where a run begins.

    They are compared by their pixels as the model reads them, where those are kept, else by size and time of the files.

    Args:
        out: The run folder.
        tables: Name -> inputs, their pictures decoded.
        begun: Whether the run has steps behind it.

    Raises:
        TrainError: Naming the pictures that have changed.
    """
    marks: _Marks = {
        (name, field, kind): values
        for name, inputs in tables.items()
        for field in inputs.fields_in_files
        for kind, values in inputs.marks(field).items()
    }
    if not marks:
        return
    if (out / PICTURES).is_file():
        with np.load(out / PICTURES) as file:
            before = {tuple(json.loads(key)): values for key, values in file.items()}
        _compare_pictures(before, marks, tables)
    elif begun:
        raise TrainError(
            f"{out / PICTURES}: missing; the run's pictures cannot be told from others. Start again in a new --out"
        )
    else:
        scratch = out / f".{PICTURES}.partial"
        with scratch.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{json.dumps(key): values for key, values in marks.items()})
        put(scratch, out / PICTURES)


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
    if set(before) != set(now):
        raise TrainError(f"{out}: the run began with {', '.join(before)}, and now has {', '.join(now)}")
    for role, dataset in now.items():
        told = changes(before[role], dataset)
        if told:
            raise TrainError(f"{out}: the data set has changed since this run began ({role}): {'; '.join(told)}")


def _model_files(model: str) -> dict[str, str]:
    """File -> SHA-256 of each folder that ``--model`` names; a run takes its tokenizer from there, resumed ones too."""
    folders = [Path(part.rpartition("=")[2]) for part in model.split(",")] if "=" in model else [Path(model)]
    found = [(file, file.relative_to(folder)) for folder in folders if folder.is_dir() for file in folder.rglob("*")]
    hidden = (".", "__pycache__")  # such as .git, which holds large files twice
    files = [file for file, inner in found if not any(part.startswith(hidden) for part in inner.parts)]
    return {str(file): _sha256(file) for file in sorted(files) if file.is_file()}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_model(out: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        told = [f"{name} ({_short(before.get(name))} then, {_short(now.get(name))} now)" for name in changed[:EXAMPLES]]
        raise TrainError(f"{out}: the model's files have changed since this run began: {'; '.join(told)}")


def _check_prompts(out: Path, before: Mapping[str, str], now: Mapping[Side, str]) -> None:
    """A hub's model may have got other prompts; and a run of a version without prompts by side was trained without."""
    differing = [
        f"{side}_prompt was {shown(before.get(side, ''))}, now {shown(prompt)}"
        for side, prompt in now.items()
        if before.get(side, "") != prompt
    ]
    if differing:
        raise TrainError(
            f"{out}: cannot resume with other prompts: {'; '.join(differing)}; train in another folder, or begin again"
        )


def _short(digest: str | None) -> str:
    return f"SHA-256 {digest[:16]}..." if digest else "no file"


def _compare_pictures(
    before: Mapping[tuple[str, ...], np.ndarray],
    now: Mapping[tuple[str, ...], np.ndarray],
    tables: Mapping[str, Inputs],
) -> None:
    for key in now:
        name, field, kind = key
        if key not in before or (kind == "file" and (name, field, "pixels") in set(before) & set(now)):
            continue  # pixels say more than times
        changed = np.flatnonzero(before[key] != now[key])
        if len(changed) == 0:
            continue
        records, rows = tables[name].records, changed[:EXAMPLES]
        examples = [
            f"{doc_id!r} ({_mark(kind, was)} then, {_mark(kind, found)} now)"
            for doc_id, was, found in zip(records.ids(rows), before[key][rows], now[key][rows], strict=True)
        ]
        raise TrainError(
            f"{records.file}, column {field!r}: {len(changed):,} pictures have changed since this run began: "
            f"{records.id_column} {'; '.join(examples)}{'; ...' if len(changed) > EXAMPLES else ''}"
        )


def _mark(kind: str, value: np.integer) -> str:
    what = {"pixels": "pixels with checksum", "file": "size and time with hash"}[kind]
    return f"{what} {int(value):x}" if value else "no picture"


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
        if isinstance(content, dict) and set(_KEPT) <= set(content):
            return content
    except (OSError, ValueError) as error:
        raise TrainError(f"{file}: cannot be read: {error}") from error
    raise TrainError(f"{file}: does not hold {', '.join(_KEPT)}; the run began with another version of opengcl")
