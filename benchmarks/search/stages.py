"""One stage and two: latency against NDCG@10, from the cells of `benchmarks.ranking`.

The cross-encoder's cell has the latency of both, measured in turn in one process; every single stage is the same
encoder with other weights, so all of them have that of the first stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from benchmarks.ranking import plots, tables
from benchmarks.ranking.cell_file import RESULTS

from . import cells

DATA, FIELDS = "fashion", "title"
TITLE = "One stage and two: latency against NDCG@10 on test queries"


@dataclass(frozen=True)
class Stage:
    """A side with its quality and latency.

    Attributes:
        side: Its name among the ranking benchmark's.
        ndcg: Mean test NDCG@10 over the splits.
        p50_ms: Of a query alone, on one thread.
        p99_ms: The same.
        tone: Its colour.
    """

    side: str
    ndcg: float
    p50_ms: float
    p99_ms: float
    tone: str


def stages() -> list[Stage]:
    """CLIP, the best published loss and ours alone, and CLIP with a cross-encoder; none where that was not measured."""
    results = tables.Results.read(DATA, FIELDS)
    if missing() is not None:
        return []
    single = [tables.CLIP, results.best("published"), results.ours]
    sides = [side for side in (*single, tables.TWO_STAGES) if side in results.cells]
    found = []
    for side in cast(list[str], sides):
        name = "two_stage_ms" if side == tables.TWO_STAGES else "single_ms"
        p50, p99 = (tables.results_latency(results, name, share) or 0.0 for share in ("p50", "p99"))
        stage = Stage(side, results.overall(side), p50, p99, tables.tone(results, side))
        if np.isfinite(stage.ndcg):
            found.append(stage)
    return found


def missing() -> str | None:
    """What is not there yet and how it is made; None where all is."""
    results = tables.Results.read(DATA, FIELDS)
    if tables.results_latency(results, "ratio") is not None:
        return None
    folder = RESULTS / DATA / FIELDS / tables.TWO_STAGES
    return (
        f"`{_named(folder)}/seed-*.json` with a latency is not there: "
        "`python -m benchmarks.ranking.two_stages --first RUN_FOLDER` makes it"
    )


def picture(found: list[Stage]) -> str | None:
    """SVG; None where there is no stage."""
    dots = [
        plots.Dot(
            "CLIP + cross-encoder" if one.side == tables.TWO_STAGES else one.side,
            one.tone,
            one.p50_ms,
            one.ndcg,
            one.p99_ms,
        )
        for one in found
    ]
    return plots.latency_and_order(dots, title=TITLE)


def text(found: list[Stage]) -> str:
    """A table, or what is missing."""
    if not found:
        return f"Missing: {missing()}."
    rows = [[f"`{one.side}`", f"{one.ndcg:.3f}", f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}"] for one in found]
    return tables.markdown(["side", "NDCG@10", "p50 ms", "p99 ms"], rows)


def _named(folder: Path) -> str:
    return str(folder.relative_to(cells.ROOT)) if folder.is_relative_to(cells.ROOT) else str(folder)
