"""Every objective on the same model, data and budget.

    python -m benchmarks.ranking cell fashion title full-row --seed 0   # one cell, its side tuned first
    python -m benchmarks.ranking matrix --jobs 2                        # every cell that is missing, one thread each
    python -m benchmarks.ranking cost fashion title                     # seconds of a step of the main sides, in turn
    python -m benchmarks.ranking tables                                 # docs/results.md, the README and the plots

A cell that is there is left alone and one that was cut off goes on, so the matrix can be stopped at any time.
"""

from __future__ import annotations

import argparse
import os
import sys

from .cell import FIELDS, ROOT, Cell
from .cost import ROUNDS, STEPS, measure
from .data import DATA
from .matrix import run_alone, run_matrix
from .sides import SIDES


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ranking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("cell", help="one side on some data and fields from one seed")
    one.add_argument("data", choices=DATA)
    one.add_argument("fields", choices=FIELDS)
    one.add_argument("side", choices=SIDES)
    one.add_argument("--seed", type=int, default=0)
    matrix = commands.add_parser("matrix", help="every cell that is missing")
    matrix.add_argument("--jobs", type=int, default=2, help="cells side by side, one thread each")
    matrix.add_argument("--data", choices=DATA, action="append", help="only these data; may be repeated")
    matrix.add_argument("--fields", choices=FIELDS, action="append", help="only these fields; may be repeated")
    matrix.add_argument("--side", choices=SIDES, action="append", help="only these sides; may be repeated")
    matrix.add_argument("--seed", type=int, action="append", help="only these seeds; may be repeated")
    cost = commands.add_parser("cost", help="what a training step costs, side by side")
    cost.add_argument("data", choices=DATA)
    cost.add_argument("fields", choices=FIELDS)
    cost.add_argument("--side", choices=SIDES, action="append", help="may be repeated; the main ones when not given")
    cost.add_argument("--rounds", type=int, default=ROUNDS, help="the median is taken; %(default)s when not given")
    cost.add_argument("--steps", type=int, default=STEPS, help="of a side in a round; %(default)s when not given")
    commands.add_parser("tables", help="write the tables and plots")
    asked = parser.parse_args()
    os.chdir(ROOT)
    if asked.command == "cell":
        os.environ["OMP_NUM_THREADS"] = "1"
        run_alone(Cell(asked.data, asked.fields, asked.side, asked.seed))
    elif asked.command == "matrix":
        sys.exit(run_matrix(asked.jobs, asked.data, asked.fields, asked.side, asked.seed))
    elif asked.command == "cost":
        os.environ["OMP_NUM_THREADS"] = "1"
        print(measure(asked.data, asked.fields, asked.side, rounds=asked.rounds, steps=asked.steps))
    else:
        from .tables import write_everything

        write_everything()


if __name__ == "__main__":
    main()
