"""Scores from interaction logs: what they recover where the truth is known, and what they cost.

    python -m benchmarks.clicks recovery [--queries 200 --sessions 60000 --seed 0]
    python -m benchmarks.clicks cost [--events 10000000 --repeats 5 --threads 1]

Both print a Markdown table; --out writes the figures as JSON too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import cost, recovery


def main(arguments: list[str] | None = None) -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    options = {
        "recovery": {"queries": 200, "sessions": 60_000, "seed": 0},
        "cost": {"events": 10_000_000, "repeats": 5, "threads": 1},
    }
    for command, defaults in options.items():
        added = commands.add_parser(command)
        for name, default in defaults.items():
            added.add_argument(f"--{name}", type=int, default=default)
        added.add_argument("--out", type=Path)
    chosen = vars(parser.parse_args(arguments))
    command, out = chosen.pop("command"), chosen.pop("out")
    measure = {"recovery": recovery, "cost": cost}[command]
    found = measure.measure(**chosen)
    print(measure.table(found))
    if out is not None:
        out.write_text(json.dumps({"command": command, "options": chosen, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
