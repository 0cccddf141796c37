"""``python -m benchmarks.gpu --out FOLDER [--minutes 8] [--device cuda|cpu] [--size full|check] [--sections NAME ...]``."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks.gpu
from benchmarks.gpu import SECTIONS, Section, Setting
from benchmarks.gpu.apart import apart, use_fresh
from benchmarks.gpu.record import Record, partial_of, put_json

FASHION = Path("shared/fashion")
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


def main() -> int:
    """Run the sections, and print what they found."""
    begun = time.monotonic()
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # whether there is a GPU is asked without using it
    asked = _arguments()
    chosen = [section for section in SECTIONS if section.name in (asked.sections or [s.name for s in SECTIONS])]
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    _load()
    end = begun + 60 * asked.minutes - _RESERVE
    with tempfile.TemporaryDirectory(prefix="opengcl-gpu-") as scratch:
        if asked.device == "cuda":
            error = _no_gpu(Path(scratch) / "first.log", end)
            if error is not None:
                print(f"no GPU can be used: {error}; --device cpu runs without one", file=sys.stderr)
                return 2
        for number, section in enumerate(chosen):
            left = end - time.monotonic()
            share = section.share / sum(later.share for later in chosen[number:])
            deadline = time.monotonic() + left * share
            folder = Path(scratch) / section.name
            setting = Setting(asked.device, asked.size, deadline - _SPARE, folder, asked.fashion)
            _one(section, setting, out, deadline)
    print(summary(out, chosen))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=benchmarks.gpu.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the result files go, one a section")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole run (default 8)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--size", choices=("full", "check"), default="full", help="check: seconds a section, no figures"
    )
    names = [section.name for section in SECTIONS]
    parser.add_argument(
        "--sections", nargs="+", choices=names, metavar="NAME", help=f"only these of {', '.join(names)}"
    )
    parser.add_argument(
        "--fashion", type=Path, default=FASHION, help=f"folder of fashion-small (default {FASHION}, where it is there)"
    )
    asked = parser.parse_args()
    if not asked.minutes >= 0.5:
        parser.error(f"--minutes is {asked.minutes:g}; allowed: 0.5 and more")
    if not (asked.fashion / "dataset.yaml").is_file():
        asked.fashion = None
    return asked


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
    for prepare in (lambda: None, use_fresh):
        prepare()
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
            "error": ended.error,
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
    from benchmarks.gpu.measure import middle

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


if __name__ == "__main__":
    sys.exit(main())
