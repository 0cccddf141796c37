"""The run: sections one after the other, each in its process and its time, and a line a row at the end."""

from __future__ import annotations

import gc
import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import SECTIONS, Section, Setting, Size
from benchmarks.gpu.apart import apart, use_fresh
from benchmarks.gpu.measure import middle
from benchmarks.gpu.record import Record, partial_of, put_json

_RESERVE = 6.0
"""Seconds of the whole that no section gets: for ending processes and printing."""
_SPARE = 3.0
"""Seconds between a section's own deadline and the moment when its process is ended."""
_LOADED = (
    "torch._dynamo",
    "transformers.models.clip.modeling_clip",
    "transformers.models.bert.modeling_bert",
    "opengcl.training",
)


class NoGpuError(Exception):
    """There is none that can be used."""


def run(
    out: Path, *, device: str, size: Size, end: float, sections: Sequence[Section], fashion: Path | None = None
) -> None:
    """Run sections until a moment on `time.monotonic`'s clock.

    Args:
        out: Where their files go.
        device: ``cuda`` or ``cpu``.
        size: ``full`` or ``check``.
        end: When all must have ended.
        sections: Which ones.
        fashion: Folder of fashion-small.

    Raises:
        NoGpuError: ``cuda`` was asked for, and there is no GPU that can be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    _load()
    end -= _RESERVE
    with tempfile.TemporaryDirectory(prefix="opengcl-gpu-") as scratch:
        error = _no_gpu(Path(scratch) / "first.log", end) if device == "cuda" else None
        if error is not None:
            raise NoGpuError(error)
        for number, section in enumerate(sections):
            share = section.share / sum(later.share for later in sections[number:])
            deadline = time.monotonic() + (end - time.monotonic()) * share
            setting = Setting(device, size, deadline - _SPARE, Path(scratch) / section.name, fashion)
            _one(section, setting, out, deadline)


def _load() -> None:
    """Import, before the forks, what nearly every section needs. What fails here fails again, and is told, there."""
    for name in (*_LOADED, *(f"benchmarks.gpu.{section.name}" for section in SECTIONS)):
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"{name} cannot be imported: {type(error).__name__}: {error}", file=sys.stderr)
    gc.collect()
    gc.freeze()  # what is loaded stays: the sections need not look through it again


def _no_gpu(log: Path, end: float) -> str | None:
    """Why the GPU cannot be used by processes that are forked, or else by fresh ones; None where it can."""
    error: str | None = None
    for fresh in (False, True):
        if fresh:
            use_fresh()
        found = apart(_first_use, deadline=min(end, time.monotonic() + 60), log=log)
        if found.error is None:
            return None
        error = error or found.error
    return error


def _first_use() -> str:
    """Make something on the GPU."""
    import torch

    return str(torch.ones(8, device="cuda").sum().item())


def _one(section: Section, setting: Setting, out: Path, deadline: float) -> None:
    """One section in a process of its own, and what it left."""
    started = time.monotonic()
    file, log = out / f"{section.name}.json", setting.scratch.with_suffix(".log")
    file.unlink(missing_ok=True)
    setting.scratch.mkdir(parents=True)
    print(f"{section.title} (until {deadline - started:.0f} s) ...", end=" ", flush=True)
    ended = apart(_section, section.name, setting, file, deadline=deadline, log=log)
    partial_of(file).unlink(missing_ok=True)
    shutil.rmtree(setting.scratch, ignore_errors=True)
    content = _read(file)
    if ended.error is not None:
        content |= {
            "section": section.name,
            "ended": "failed" if ended.in_time else "out of time",
            "error": f"{ended.error}, in {content['now']!r}" if content.get("now") else ended.error,
            "log": ended.log,
        }
        put_json(file, content)
    seconds = time.monotonic() - started
    print(f"{content['ended']}, {len(content.get('rows', []))} rows, {seconds:.1f} s", flush=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {"rows": []}


def _section(name: str, setting: Setting, file: Path) -> None:
    """The section itself, in its process."""
    if setting.on_gpu and name not in ("truth", "fashion"):  # these two fork before they use it
        _first_use()
    record = Record(file, name, setting)
    record.read_card("before")
    record.write()
    importlib.import_module(f"benchmarks.gpu.{name}").run(record, setting)
    record.read_card("after")
    record.end("out of time" if setting.left() <= 0 else "complete")


def summary(out: Path, sections: Sequence[Section] = SECTIONS) -> str:
    """Every row in a line: its median, its memory, or what went wrong."""
    lines = []
    for section in sections:
        file = out / f"{section.name}.json"
        if not file.is_file():
            continue
        content = _read(file)
        lines.append(f"== {section.title}: {content.get('ended')} {content.get('error') or ''}".rstrip())
        lines += [_shown(row) for row in content.get("rows", [])]
        lines += [f"  {skipped['name']}: skipped, {skipped['why']}" for skipped in content.get("skipped", [])]
    return "\n".join(lines)


def _shown(row: dict[str, Any]) -> str:
    parts = []
    seconds = middle(row)
    if seconds is not None:
        parts.append(f"{seconds * 1e3:.4g} ms")
    if row.get("flop") and seconds:
        parts.append(f"{row['flop'] / seconds / 1e12:.3g} TFLOP/s")
    if row.get("documents") and seconds:
        parts.append(f"{row['documents'] / seconds:,.0f} documents/s")
    if row.get("bytes") and seconds:
        parts.append(f"{row['bytes'] / seconds / 1e9:,.0f} GB/s")
    if row.get("peak_bytes"):
        parts.append(f"{row['peak_bytes'] / 1e9:.2f} GB")
    parts += [f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, float) and name != "flop"]
    for wrong in ("out_of_memory", "error"):
        if wrong in row:
            parts.append(f"{wrong.replace('_', ' ')}: {row[wrong][:120]}")
    return f"  {row['name']}: {', '.join(parts)}"
