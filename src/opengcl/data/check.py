"""Everything that is wrong with a data set, told at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opengcl.data import cache
from opengcl.data.build import Builder
from opengcl.data.dataset import build_entry, load_entry
from opengcl.data.problems import EXAMPLES, Problem, ProblemLog
from opengcl.data.schema import Schema


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        counts: `RankedDataset.describe` of what is left without the problems.
        problems: All of them, with the rows.
    """

    counts: dict[str, Any]
    problems: list[Problem]


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

    counts = load_entry(folder, schema, cache.store(cache.root(None), build)).describe()
    del counts["problems"]
    return Check(counts, log.problems())
