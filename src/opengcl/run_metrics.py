"""Metrics of a run file against a qrels file: what ``opengcl metrics`` prints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from opengcl import compat as gcl
from opengcl import metrics
from opengcl.ranking_blocks import Ties, blocks, ignored_queries, missing_queries
from opengcl.ranking_files import ScoredPairs, read_qrels, read_run

COMPAT_MODES = ("gcl",)


@dataclass(frozen=True)
class RunMetrics:
    """One run's metrics, query by query.

    Attributes:
        query_ids: the judged queries.
        values: for each metric one value a query.
        missing: judged queries that the run left out; they are in ``values`` with 0.
        ignored: queries of the run without judgments; they are not in ``values``.
    """

    query_ids: list[str]
    values: dict[str, Float[np.ndarray, "queries"]]
    missing: int
    ignored: int

    def means(self) -> dict[str, float]:
        """Each metric's mean over the queries."""
        return {name: float(value.mean()) for name, value in self.values.items()}


def run_metrics(
    qrels: ScoredPairs,
    run: ScoredPairs,
    names: Sequence[str],
    *,
    depth: int = 1000,
    ties: Ties = "document",
    threshold: float = 0.0,
) -> RunMetrics:
    """Scores a run, block by block.

    Args:
        qrels: the judgments.
        run: the results.
        names: metric names as of ``opengcl.metrics.compute``.
        depth: ranks of the run that count.
        ties: the order of documents with equal scores, see ``opengcl.ranking_blocks``.
        threshold: relevant means above this.

    Returns:
        One value a judged query and metric.

    Raises:
        ValueError: for an unknown metric or tie rule.
    """
    metrics.check_names(names)
    query_ids: list[str] = []
    parts: list[dict[str, np.ndarray]] = []
    for block in blocks(qrels, run, depth=depth, ties=ties):
        query_ids += block.query_ids
        parts.append(metrics.compute(names, block.retrieved, block.judged, threshold=threshold))
    values = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return RunMetrics(query_ids, values, missing_queries(qrels, run), ignored_queries(qrels, run))


def gcl_run_metrics(
    qrels: ScoredPairs, run: ScoredPairs, names: Sequence[str] = gcl.GCL_METRICS, *, sample: int | None = None
) -> RunMetrics:
    """Scores a run as Marqo's GCL script does, see ``opengcl.compat``.

    Args:
        qrels: the judgments in the data set's units; scaling is done here.
        run: the results.
        names: metric names as of ``opengcl.metrics.compute``.
        sample: how many queries to draw (the script: 2,000); None for all.

    Returns:
        One value a judged query and metric.

    Raises:
        ValueError: for an unknown metric or a sample larger than the queries.
    """
    metrics.check_names(names)
    scaled = gcl.gcl_relevance(qrels)
    chosen = scaled if sample is None else gcl.gcl_sample(scaled, sample)
    values: dict[str, np.ndarray] = {}
    for rule, group in gcl.gcl_ties(names).items():
        values |= run_metrics(chosen, run, group, depth=gcl.GCL_DEPTH, ties=rule).values
    return RunMetrics(
        chosen.query_ids.to_pylist(),
        {name: values[name] for name in names},
        missing_queries(chosen, run),
        ignored_queries(qrels, run),
    )


def metrics_of_files(
    qrels_path: str | Path,
    run_path: str | Path,
    names: Sequence[str] | None = None,
    *,
    compat: str | None = None,
    ties: Ties = "document",
    depth: int = 1000,
    sample: int | None = None,
    threshold: float = 0.0,
) -> dict[str, Any]:
    """Mean metrics of a run file against a qrels file.

    Args:
        qrels_path: judgments, in a format of `opengcl.ranking_files`.
        run_path: results, in one of them.
        names: metric names as of ``opengcl.metrics.compute``; None for the defaults of the mode.
        compat: "gcl" for the numbers of Marqo's GCL script, which fixes ties, depth and threshold; None for ours.
        ties: the order of documents with equal scores, see ``opengcl.ranking_blocks``.
        depth: ranks of the run that count.
        sample: with compat "gcl", how many queries to draw (the script: 2,000); None for all.
        threshold: relevant means above this.

    Returns:
        {"metrics": {name: mean}, "queries": judged queries, "missing_queries": those of them that the run left out
        (they count as zero), "ignored_queries": queries of the run without judgments, "settings": {...}}.

    Raises:
        ValueError: for an unknown mode or metric, settings that the mode fixes, or files that cannot be read.
    """
    if compat is not None and compat not in COMPAT_MODES:
        raise ValueError(f"compat is {compat!r}; allowed: {', '.join(COMPAT_MODES)}, or none")
    if compat is None and sample is not None:
        raise ValueError("sample needs compat 'gcl'")
    if compat and (ties, depth, threshold) != ("document", gcl.GCL_DEPTH, 0.0):
        raise ValueError(f"compat {compat!r} fixes ties, depth and threshold; leave them at their defaults")
    names = names or (gcl.GCL_METRICS if compat else metrics.DEFAULT_METRICS)
    metrics.check_names(names)
    qrels, run = read_qrels(qrels_path), read_run(run_path)
    if compat:
        result = gcl_run_metrics(qrels, run, names, sample=sample)
        settings: dict[str, Any] = {"compat": compat, "sample": sample}
    else:
        result = run_metrics(qrels, run, names, depth=depth, ties=ties, threshold=threshold)
        settings = {"ties": ties, "depth": depth, "threshold": threshold}
    return {
        "metrics": result.means(),
        "queries": len(result.query_ids),
        "missing_queries": result.missing,
        "ignored_queries": result.ignored,
        "settings": settings,
    }
