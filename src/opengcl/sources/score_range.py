"""Which scores there can be: a range that reaches down to 0, which means judged not relevant, unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from opengcl.data.problems import DataSetError, not_relevant_note, shown
from opengcl.data.schema import MOST_SCORE
from opengcl.sources.source import Description

Range = tuple[float, float]


@dataclass(frozen=True)
class Scores:
    """The scores of an import.

    Attributes:
        low: Smallest score possible, for ``dataset.yaml``.
        high: Largest score possible.
        found: Smallest and largest of the pairs that are left.
        pairs: How many these are.
        not_relevant: How many of them have a score of 0 or below.
        below: How many of them have a score below 0.
        why: Where the range comes from, in words.
    """

    low: float
    high: float
    found: Range
    pairs: int
    not_relevant: int
    below: int
    why: str

    @property
    def counts(self) -> dict[str, int]:
        """For the list of counts."""
        return {"pairs_judged_not_relevant": self.not_relevant, "pairs_with_scores_below_0": self.below}

    @property
    def told(self) -> dict[str, object]:
        """For the provenance."""
        return {"found": list(self.found), "range": [self.low, self.high], "why": self.why}

    @property
    def notes(self) -> tuple[str, ...]:
        """The range, and what the scores below 0 lose, where these are most of them."""
        found = f"{self.found[0]:g} to {self.found[1]:g}"
        notes = [f"score range {self.low:g} to {self.high:g}, {self.why}; found: {found}"]
        if lost := not_relevant_note(self.pairs, self.below):
            notes.append(f"{lost}; --score-zero names the score that means not relevant")
        return tuple(notes)


def check_zero(zero: float, described: Description) -> None:
    """Checks the score that means not relevant, which is taken off every score.

    Raises:
        DataSetError: It is not finite, or the source's scores are places in lists, which have no zero.
    """
    if not abs(zero) <= MOST_SCORE:
        raise DataSetError(
            f"score_zero (--score-zero): found {shown(zero)}; allowed: a finite number, up to {MOST_SCORE:g}"
        )
    if zero and described.scores_are_places:
        raise DataSetError(
            f"score_zero (--score-zero): found {zero:g}, but the scores of {described.source} are places in lists, "
            "and none of them means not relevant; allowed: 0"
        )


def settled_scores(
    qrels: Path, described: Description, *, seen: Range, given: Range | None, zero: float = 0.0
) -> Scores:
    """The range of the scores and what is among them.

    A range that is given counts; else what the source says (labels have gains, places go from 1 to 100). Else it goes
    from 0, or from the smallest score where that is below, to the largest: a file of grades in which nothing has the
    grade 0 does not make its lowest grade the same as not relevant.

    Args:
        qrels: The judged pairs that are left; ``zero`` is taken off their scores already.
        described: The source.
        seen: Smallest and largest score before pairs were merged and dropped, like those of ``qrels``.
        given: The range that was asked for, in the source's units.
        zero: What was taken off.

    Raises:
        DataSetError: The range that is given is no range, or no score is above 0.
    """
    scores = pq.read_table(qrels, columns=["score"])["score"]
    ends = pc.min_max(scores).as_py()
    found = float(ends["min"]), float(ends["max"])
    below, not_relevant = (pc.sum(one).as_py() for one in (pc.less(scores, 0.0), pc.less_equal(scores, 0.0)))
    if found[1] <= 0:
        raise DataSetError(_nothing_relevant(described, len(scores), found, zero))
    low, high, why = _range(described, seen, given, zero)
    return Scores(low, high, found, len(scores), not_relevant, below, why)


def _range(described: Description, seen: Range, given: Range | None, zero: float) -> tuple[float, float, str]:
    if given is not None:
        if not (all(abs(bound) <= MOST_SCORE for bound in given) and given[0] < given[1]):
            raise DataSetError(f"score_range (--score-range): found {shown(given)}; allowed: two numbers, lower first")
        return given[0] - zero, given[1] - zero, "as given"
    if described.score_range is not None:
        low, high = described.score_range
        return low - zero, high - zero, "as labels or positions have it"
    if described.scores_are_places and seen[0] < seen[1]:
        return *seen, "as found, since these are places in lists"
    low, high = min(0.0, seen[0]), seen[1]
    if low < seen[0]:
        return low, high, "from 0, which means judged not relevant (--score-range sets it)"
    return low, high, "as found"


def _nothing_relevant(described: Description, pairs: int, found: Range, zero: float) -> str:
    low, high = (one + zero for one in found)
    meaning = "0 or below means judged not relevant" if not zero else f"{zero:g} or below was said to mean not relevant"
    way = f"below {low:g} keeps every pair" if low < high else "below it"
    return (
        f"{described.source}: all {pairs:,} scores lie between {low:g} and {high:g}, and {meaning}. Allowed: at least "
        f"one score above that. --score-zero (score_zero) names the score that means not relevant, and is taken off "
        f"every score: a number {way}"
    )
