"""Whether a log can tell a position's examination from its documents' attractiveness.

log P(click) = log theta_k + log alpha has one free constant for each connected part of the graph between positions and
pairs, so two positions can be compared only through pairs that were shown at both, in steps if need be.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from opengcl.clicks.model import Cells, Counts
from opengcl.data.problems import DataSetError


def position_links(pair: Cells, position: Cells, clicks: Counts) -> np.ndarray:
    """(positions, positions): the clicks that compare two positions.

    A pair shown at several positions links each with its next; the strength of a link is the smaller of the clicks that
    its pairs have at one end and at the other, as the log of a ratio of rates has a variance of about 1/c + 1/c'.

    Args:
        pair: Any number of the pair of each cell.
        position: From 1; a pair's positions are distinct.
        clicks: Of the cell.
    """
    order = np.lexsort((position, pair))
    pair, place, clicks = pair[order], position[order] - 1, clicks[order]
    same = pair[1:] == pair[:-1]
    upper, lower = place[:-1][same], place[1:][same]
    size = int(position.max())
    at_upper, at_lower = np.zeros((2, size, size))
    np.add.at(at_upper, (upper, lower), clicks[:-1][same])
    np.add.at(at_lower, (upper, lower), clicks[1:][same])
    strength = np.minimum(at_upper, at_lower)
    return strength + strength.T


def cut_off(links: np.ndarray, needed: float) -> Int[np.ndarray, " positions"]:
    """The positions that cannot be reached from position 1 when each step rests on at least so many clicks.

    The best linked position is taken first; its own links then help to reach the others.
    """
    inside = np.zeros(len(links), bool)
    inside[0] = True
    while not inside.all():
        strength = np.where(inside, -1, links[inside].sum(axis=0))
        best = int(strength.argmax())
        if strength[best] < needed:
            break
        inside[best] = True
    return np.flatnonzero(~inside) + 1


def require_identified(pair: Cells, position: Cells, clicks: Counts, needed: float) -> None:
    """Refuses a log whose position bias cannot be estimated.

    Args:
        pair: As for `position_links`.
        position: As for `position_links`.
        clicks: As for `position_links`.
        needed: Clicks that each comparison must rest on.

    Raises:
        DataSetError: Naming the positions, why they are cut off, and what can be done.
    """
    links = position_links(pair, position, clicks)
    missing = cut_off(links, needed)
    if not len(missing):
        return
    alone = " Each pair is shown at one position only." if not links.any() else ""
    raise DataSetError(
        f"position bias: positions {_ranges(missing)} cannot be compared with position 1: fewer than {needed:g} clicks "
        f"of pairs that are also shown higher up.{alone} Allowed: a log whose lists vary, or with lists in random "
        "order; --max-position to leave lower positions out; --position-bias FILE with propensities known otherwise, "
        "or none"
    )


def _ranges(numbers: np.ndarray) -> str:
    """``2, 5-9`` for 2, 5, 6, 7, 8, 9."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
