"""Everything that is wrong with a data set, told at once, and what its owner should know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opengcl.data import cache
from opengcl.data.build import Builder
from opengcl.data.dataset import build_entry, load_entry
from opengcl.data.problems import EXAMPLES, Problem, ProblemLog
from opengcl.data.schema import Schema
from opengcl.data.score_use import unused_range
from opengcl.data.twins import near_twins, query_twins


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        counts: `RankedDataset.describe` of what is left without the problems.
        problems: All of them, with the rows: what stops the data set from opening, and queries that are on both sides
            of a division.
        remarks: Sentences about what is allowed and may be meant, but is often a mistake: near duplicates across a
            division, and scores that use little of their range.
    """

    counts: dict[str, Any]
    problems: list[Problem]
    remarks: list[str]


def check_dataset(folder: Path, *, examples: int = EXAMPLES, progress: bool = True) -> Check:
    """Reads every row and decodes every picture, whatever the cache says.

    What it makes goes into the cache, so that the next opening is quick.

    Args:
        folder: The data set.
        examples: Rows named for each kind of problem; the count is always of all of them.
        progress: Whether long work shows a progress bar on stderr.

    Raises:
        DataSetError: If the data set cannot be used at all: a file or column is missing or unreadable, or no row is
            left.
    """
    schema = Schema.read(folder)
    log = ProblemLog(most=examples)

    def build(into: Path) -> str:
        return build_entry(Builder(folder, schema, into, strict=False, check_images=True, progress=progress, log=log))

    data = load_entry(folder, schema, cache.store(cache.root(None), build))
    counts = data.describe()
    del counts["problems"]
    problems = [*log.problems(), *query_twins(data, examples=examples)]
    return Check(counts, problems, [*unused_range(data), *near_twins(data)])
