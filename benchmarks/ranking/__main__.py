"""Every objective on the same model, data and budget.

    python -m benchmarks.ranking cell fashion title full-row --seed 0   # one cell, its side tuned first
    python -m benchmarks.ranking matrix --jobs 2                        # every cell that is missing, one thread each
    python -m benchmarks.ranking tables                                 # docs/results.md, the README and the plots

A cell that is there is left alone and one that was cut off goes on, so the matrix can be stopped at any time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from .cell import FIELDS, ROOT, Cell, run
from .data import DATA
from .matrix import cells
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
    commands.add_parser("tables", help="write the tables and plots")
    asked = parser.parse_args()
    os.chdir(ROOT)
    if asked.command == "cell":
        os.environ["OMP_NUM_THREADS"] = "1"
        run_alone(Cell(asked.data, asked.fields, asked.side, asked.seed))
    elif asked.command == "matrix":
        sys.exit(run_matrix(asked.jobs, asked.data, asked.fields, asked.side, asked.seed))
    else:
        from .tables import write_everything

        write_everything()


def run_matrix(
    jobs: int,
    data: list[str] | None = None,
    fields: list[str] | None = None,
    sides: list[str] | None = None,
    seeds: list[int] | None = None,
) -> int:
    """Run what is missing, two or more at a time; the number of cells that failed."""
    missing = [
        cell
        for cell in cells()
        if not cell.is_done
        and cell.data in (data or DATA)
        and cell.fields in (fields or FIELDS)
        and cell.side in (sides or SIDES)
        and (seeds is None or cell.seed in seeds)
    ]
    print(f"{len(missing)} cells to run", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are about to start
    failed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=20) as pool:
        for seed in sorted({cell.seed for cell in missing}):  # one after the other: a side is tuned in its first cell
            waiting = {pool.submit(run_alone, cell): cell for cell in missing if cell.seed == seed}
            for future in as_completed(waiting):
                if future.exception() is not None:
                    failed += 1
                    print(f"{waiting[future]}: failed: {future.exception()!r}", flush=True)
    return failed


def run_alone(cell: Cell) -> None:
    """Run a cell on one thread, and say how long it took."""
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    run(cell)
    name = f"{cell.data} {cell.fields} {cell.side} {cell.seed}"
    print(f"{time.strftime('%H:%M:%S')} {name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
