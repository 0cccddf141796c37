"""Everything that is wrong with a data set, told at once, and what its owner should know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opengcl.data import cache
from opengcl.data.build import Builder
from opengcl.data.dataset import RankedDataset, build_entry, load_entry
from opengcl.data.problems import EXAMPLES, Problem, ProblemLog, shown
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
    _add_lost_scores(data, log)
    counts = data.describe()
    del counts["problems"]
    problems = [*log.problems(), *query_twins(data, examples=examples)]
    return Check(counts, problems, [*unused_range(data), *near_twins(data)])


def _add_lost_scores(dataset: RankedDataset, log: ProblemLog) -> None:
    """Tells where most scores are below 0, or none is above it: what such scores say about order is lost."""
    qrels, (not_relevant, below) = dataset.qrels, dataset.qrels.not_relevant()
    if 2 * below > len(qrels):
        kind, rows = "score below 0, which means judged not relevant,", np.flatnonzero(np.asarray(qrels.score) < 0)
    elif not_relevant == len(qrels):
        kind, rows = "score of 0, which means judged not relevant,", np.arange(len(qrels))
    else:
        return
    named = rows[: log.most]
    ids = zip(dataset.queries.ids(qrels.query[named]), dataset.documents.ids(qrels.document[named]), strict=True)
    examples = (f"ids {shown(pair)} hold {score}" for pair, score in zip(ids, qrels.score[named].tolist(), strict=True))
    allowed = "few of these; import again with the score that means not relevant named (--score-zero)"
    log.add("qrels.parquet", "score", kind, allowed, len(rows), examples)
