"""Which cells there are, in the order in which they are worth having, and running them side by side."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from .cell import FIELDS, Cell, run
from .data import DATA
from .sides import SEEDS, SIDES

# The claim itself comes first, then its closest rivals, then everything else.
FIRST = (
    "clip",
    "paper",
    "ours",
    "bixse",
    "m3-kd",
    "x-clr",
    "clicks-ours",
    "full-row",
    "bixse-documents",
    "x-clr-documents",
)
SECOND_RULE = (
    "clip",
    "paper",
    "ours",
    "full-row",
    "bixse",
    "x-clr",
    "m3-kd",
    "clip-evenly",
    "paper-shuffled",
    "ours-shuffled",
)
PICTURES = ("clip", "ours", "ours-drawn", "paper", "x-clr")
PICTURES_ALONE = ("ours-annealed", "ours-fifth")
TWO_FIELDS = ("paper-pairwise", "paper-both")


def cells() -> list[Cell]:
    """All cells, a seed of every side before the next seed, so that a matrix cut short is even."""
    order = [*FIRST, *(side for side in SIDES if side not in (*FIRST, *PICTURES_ALONE, *TWO_FIELDS))]
    blocks: list[tuple[str, str, Sequence[str]]] = [("fashion", "title", order), ("teacher", "title", SECOND_RULE)]
    blocks += [("fashion", "image", (*PICTURES, *PICTURES_ALONE)), ("fashion", "image+title", (*PICTURES, *TWO_FIELDS))]
    return [Cell(data, fields, side, seed) for data, fields, sides in blocks for seed in SEEDS for side in sides]


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
        for seed in sorted({cell.seed for cell in missing}):  # one after the other: seed 0 tunes the side
            waiting = {pool.submit(run_alone, cell): cell for cell in missing if cell.seed == seed}
            for future in as_completed(waiting):
                if future.exception() is not None:
                    failed += 1
                    print(f"{waiting[future]}: failed: {future.exception()!r}", flush=True)
    return failed


def run_alone(cell: Cell) -> None:
    """Run a cell on one thread, and say how long it took."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    run(cell)
    name = f"{cell.data} {cell.fields} {cell.side} {cell.seed}"
    print(f"{time.strftime('%H:%M:%S')} {name}: {time.perf_counter() - started:.0f} s", flush=True)
