"""``python -m benchmarks.gpu --out FOLDER``; ``--help`` tells the rest."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu import SECTIONS

FASHION = Path("shared/fashion")


def main() -> int:
    """Run the sections, and print what they found."""
    begun = time.monotonic()
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # whether there is a GPU is asked without using it
    asked = _arguments()
    chosen = [section for section in SECTIONS if section.name in (asked.sections or [s.name for s in SECTIONS])]
    from benchmarks.gpu import runner  # loads PyTorch, which a mistaken option need not wait for

    end = begun + 60 * asked.minutes
    try:
        runner.run(asked.out, device=asked.device, size=asked.size, end=end, sections=chosen, fashion=asked.fashion)
    except runner.NoGpuError as error:
        print(f"no GPU can be used: {error}; --device cpu runs without one", file=sys.stderr)
        return 2
    print(runner.summary(asked.out, chosen))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=benchmarks.gpu.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the result files go, one a section")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole run (default 8)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "check"), default="full", help="check: small, no figures")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--sections", nargs="+", choices=names, metavar="NAME", help=f"only these: {', '.join(names)}")
    parser.add_argument("--fashion", type=Path, default=FASHION, help=f"folder of fashion-small (default {FASHION})")
    asked = parser.parse_args()
    if not asked.minutes >= 0.5:
        parser.error(f"--minutes is {asked.minutes:g}; allowed: 0.5 and more")
    if not (asked.fashion / "dataset.yaml").is_file():
        asked.fashion = None
    return asked


if __name__ == "__main__":
    sys.exit(main())
