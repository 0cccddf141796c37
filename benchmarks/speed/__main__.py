"""``python -m benchmarks.speed [SUBJECT ...] [--repeats N] [--json FILE]``; all subjects when none is named."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import pkgutil
import platform
from pathlib import Path
from statistics import median

import benchmarks.speed
import torch
from benchmarks.speed import Row

PACKAGES = (
    "torch",
    "sentence-transformers",
    "transformers",
    "datasets",
    "pillow",
    "numpy",
    "pyarrow",
    "pandas",
    "faiss-cpu",
    "pytrec_eval-terrier",
)
NO_SUBJECTS = ("__main__", "cost_model")


def subjects() -> list[str]:
    """The modules of this package that measure something."""
    return sorted(
        found.name for found in pkgutil.iter_modules(benchmarks.speed.__path__) if found.name not in NO_SUBJECTS
    )


def machine() -> dict[str, object]:
    """Where it ran, and with what."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def shown(row: Row) -> str:
    """One line: both medians, the ratio, and the aim."""
    aim = f"aim {row.aim:g}x" if row.aim is not None else "no aim"
    return f"{row.name}: {median(row.ours):.3f} s, {row.peer_name} {median(row.peer):.3f} s: {row.ratio:.2f}x ({aim})"


def main() -> None:
    """Measure what is asked, print it, and write it down."""
    parser = argparse.ArgumentParser(description=benchmarks.speed.__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(subjects())}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    unknown = sorted(set(asked.subjects) - set(subjects()))
    if unknown:
        parser.error(f"unknown subject {unknown[0]!r}; use one of {', '.join(subjects())}")
    torch.set_num_threads(1)
    rows = []
    for name in asked.subjects or subjects():
        for row in importlib.import_module(f"benchmarks.speed.{name}").measure(asked.repeats):
            print(shown(row), flush=True)
            rows.append({"subject": name, **dataclasses.asdict(row), "ratio": row.ratio})
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
