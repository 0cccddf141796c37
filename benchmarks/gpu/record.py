"""The result file of a section: JSON, on the disk as a whole after every row, so that a run cut off keeps its rows."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu import Setting

Row = dict[str, Any]
FORMAT = 1
LONGEST = 2_000
"""Characters of an error that are kept."""
PACKAGES = (
    "torch",
    "triton",
    "sentence-transformers",
    "transformers",
    "accelerate",
    "tokenizers",
    "datasets",
    "numpy",
    "pyarrow",
    "pillow",
    "safetensors",
    "torchvision",
    "timm",
)
CARD = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu")


class Record:
    """The rows of a section, its machine, and how it ended.

    Args:
        file: Where it is written.
        section: The section's name.
        setting: How it runs.
    """

    def __init__(self, file: Path, section: str, setting: Setting) -> None:
        self._file, self._setting, self._begun = file, setting, time.monotonic()
        self.rows: list[Row] = []
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "section": section,
            "size": setting.size,
            "device": setting.device,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds_allowed": round(setting.left(), 1),
            "seconds": 0.0,
            "ended": "running",
            "error": None,
            "now": None,
            "machine": machine(),
            "card": [],
            "skipped": [],
            "rows": self.rows,
        }

    def piece(self, name: str, work: Callable[[Row], object], *, needs: float = 0.0, **about: object) -> Row | None:
        """One row, measured by ``work``, which fills it; what goes wrong is kept in it and costs no other row.

        Args:
            name: Of the row.
            work: Gets the row to fill.
            needs: Seconds that it takes about; with less left on the clock it is skipped, and the file says so.
            about: Sizes and settings, put into the row first.

        Returns:
            The row, or None where it was skipped or failed.
        """
        left = self._setting.left()
        if left < max(needs, 0.5):
            self.skip(name, f"{left:.0f} s were left of the section's time; it takes about {needs:.0f} s")
            return None
        row: Row = {"name": name, **about}
        self.content["now"] = name
        self.write()  # where the process is ended in it, the file says in what
        self.rows.append(row)
        try:
            work(row)
        except torch.OutOfMemoryError as error:
            row["out_of_memory"] = shortened(error)
        except Exception as error:  # whatever a library raises: the other rows are worth more than this one
            row["error"] = shortened(error)
        tidy_memory()
        self.content["now"] = None
        self.write()
        return None if "error" in row or "out_of_memory" in row else row

    def skip(self, name: str, why: str) -> None:
        """Say that something was not measured, and why."""
        self.content["skipped"].append({"name": name, "why": why})
        self.write()

    def read_card(self, moment: str) -> None:
        """Note clocks, power and temperature, where ``nvidia-smi`` tells them."""
        found = card() if self._setting.on_gpu else None
        if found is not None:
            self.content["card"].append({"moment": moment, **found})

    def end(self, how: str) -> None:
        """Write it for the last time."""
        self.content["ended"] = how
        self.write()

    def write(self) -> None:
        """Put everything so far onto the disk."""
        self.content["seconds"] = round(time.monotonic() - self._begun, 2)
        put_json(self._file, self.content)


def put_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file beside its place and rename it: it is there as it was or as it is, never half."""
    scratch = partial_of(file)
    scratch.write_text(json.dumps(content, indent=1, allow_nan=True, default=str) + "\n", encoding="utf-8")
    scratch.replace(file)


def partial_of(file: Path) -> Path:
    """The name under which a file is written."""
    return file.with_name(f".{file.name}.partial")


def shortened(error: BaseException) -> str:
    """An error's class and message, bounded."""
    told = f"{type(error).__name__}: {error}".strip()
    return told if len(told) <= LONGEST else f"{told[:LONGEST]} ..."


def tidy_memory() -> None:
    """Give back what nothing refers to, also on the GPU, so that one row's memory is not counted in the next."""
    gc.collect()
    if torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # an error of an earlier kernel comes up here; it has been recorded
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def machine() -> dict[str, Any]:
    """Where it runs, and with which versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    processors = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    about: dict[str, Any] = {
        "cpu": processors[0] if processors else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }
    if torch.cuda.is_initialized():
        properties = torch.cuda.get_device_properties(0)
        about["gpu"] = {
            "name": properties.name,
            "bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cudnn": torch.backends.cudnn.version(),
        }
    return about


def card() -> dict[str, str] | None:
    """What ``nvidia-smi`` reads of the first card; None where there is none."""
    try:
        asked = ["nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader", "--id=0"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in told.strip().split(",")]
    return dict(zip(CARD, values, strict=True)) if len(values) == len(CARD) else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
