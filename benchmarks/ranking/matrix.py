"""Which cells there are, in the order in which they are worth having."""

from __future__ import annotations

from .cell import Cell
from .sides import SEEDS, SIDES

FIRST = ("clip", "paper", "full-row")  # the claim itself comes first, then its rivals, then the other forms


def cells() -> list[Cell]:
    """All cells of the matrix: a seed of every side before the next seed, so that a matrix cut short is even."""
    order = [*FIRST, *(side for side in SIDES if side not in FIRST)]
    return [Cell("fashion", "title", side, seed) for seed in SEEDS for side in order]
