"""Which of several evaluated systems is better, and is the difference more than chance.

Systems are compared query by query with the first one, on the same queries, for each split and metric:

* The 95% interval of the mean difference is a paired percentile bootstrap (Efron and Tibshirani 1993, chapter 13; for
  retrieval Sakai 2006): queries are drawn with replacement, the same ones for both systems.
* The p-value is a two-sided paired randomisation test (Smucker, Allan and Carterette 2007): under the null hypothesis
  the two systems' values of a query could be swapped, so the sign of each difference is drawn at random.
  p = (1 + draws with |mean| >= |observed mean|) / (1 + draws), so it is never 0.
* With several systems beside the first, p is also corrected after Holm (1979), for the systems of one split and
  metric. It is not corrected for looking at many splits and metrics.

A split's draws depend on the seed and its number of queries only: asking for fewer metrics changes no figure.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from opengcl.data.problems import number_of
from opengcl.given_lists import listed, not_one_text
from opengcl.named_folders import no_such_folder
from opengcl.per_query import KEYS, per_query_path, read_per_query

RESAMPLES = 10_000

_BLOCK_CELLS = 1 << 22  # cells of a block of resamples: 32 MiB


class CompareError(ValueError):
    """Evaluations that cannot be compared: says which and why."""


@dataclass(frozen=True)
class Row:
    """One system's figures for one split and metric.

    Attributes:
        split: the split.
        metric: the metric.
        system: the system.
        queries: over how many queries the mean goes.
        mean: the system's mean.
        difference: mean minus the first system's mean; None for the first system, like all below.
        percent: the difference in percent of the first system's mean; None when that mean is 0.
        low: lower end of the difference's 95% interval.
        high: upper end.
        p: of the randomisation test.
        p_holm: p corrected for several systems.
    """

    split: str
    metric: str
    system: str
    queries: int
    mean: float
    difference: float | None = None
    percent: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All figures, in the order split, metric, system.

    Attributes:
        systems: the names; the first is the one the others are compared with.
        rows: the figures.
        resamples: draws of the bootstrap and of the randomisation test.
        seed: of both.
    """

    systems: tuple[str, ...]
    rows: tuple[Row, ...]
    resamples: int
    seed: int


def compare(
    paths: Sequence[str | Path],
    metrics: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compares evaluations with the first one.

    Args:
        paths: two or more run folders, or FILE.json of an evaluation with FILE.parquet beside it.
        metrics: which metrics; None for those that all have.
        splits: which splits; None for those that all have.
        seed: of the resampling.
        resamples: draws of the bootstrap and of the randomisation test.

    Returns:
        The comparison.

    Raises:
        CompareError: for fewer than two paths, a split or metric that an evaluation lacks, or different queries.
        PerQueryError: for a per-query table that cannot be used.
    """
    not_one_text("paths", paths)
    if len(paths) < 2:
        raise CompareError(f"{len(paths)} evaluation given; a comparison needs at least two")
    if resamples < 1:
        raise CompareError(f"resamples is {resamples}; it must be at least 1")
    systems = _names(paths)
    tables = dict(zip(systems, (read_per_query(per_query_path(path)) for path in paths), strict=True))
    metrics = _shared("metric", {name: _metric_names(table) for name, table in tables.items()}, metrics)
    splits = _shared("split", {name: pc.unique(t["split"]).to_pylist() for name, t in tables.items()}, splits)
    rows: list[Row] = []
    for split in splits:
        values = _joined(tables, split, metrics)
        rows += _split_rows(split, metrics, values, resamples, seed)
    return Comparison(systems, tuple(rows), resamples, seed)


def bootstrap_interval(
    differences: Float[np.ndarray, "queries columns"], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Float[np.ndarray, "columns"], Float[np.ndarray, "columns"]]:
    """95% percentile bootstrap interval of each column's mean.

    Args:
        differences: one row a query, one column a comparison; a resample draws the same rows for all columns.
        resamples: how many.
        seed: of the draws.

    Returns:
        Lower and upper ends: the 2.5% and 97.5% quantiles of the resampled means.
    """
    queries = len(differences)
    rng = np.random.default_rng([seed, 0])
    means = [_draw_counts(rng, rows, queries) @ differences / queries for rows in _resample_blocks(resamples, queries)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975], axis=0)
    return low, high


def randomisation_p(
    differences: Float[np.ndarray, "queries columns"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "columns"]:
    """Two-sided p-value of a paired randomisation test of each column's mean against 0.

    Args:
        differences: one row a query, one column a comparison.
        resamples: how many sign vectors to draw.
        seed: of the draws.

    Returns:
        p = (1 + #{|sum of signed differences| >= |sum of differences|}) / (1 + resamples).
    """
    queries = len(differences)
    rng = np.random.default_rng([seed, 1])
    total = differences.sum(axis=0)
    # a draw that equals the observation must count, whatever order the terms were added in
    slack = 1e-12 * np.abs(differences).sum(axis=0)
    extreme = np.zeros(differences.shape[1], dtype=np.int64)
    for rows in _resample_blocks(resamples, queries):
        signed = 2.0 * (_draw_bits(rng, rows, queries) @ differences) - total
        extreme += (np.abs(signed) >= np.abs(total) - slack).sum(axis=0)
    return np.asarray((1 + extreme) / (1 + resamples))


def holm(p: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """Holm's step-down correction: p'_(i) = max_{j<=i} min(1, (m - j + 1) p_(j)) for the p sorted upwards (Holm 1979).

    Args:
        p: the p-values of one family of m tests.

    Returns:
        The corrected p-values in the given order.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(stepped)
    return corrected


def format_table(comparison: Comparison) -> str:
    """The comparison as Markdown: a table a split.

    Args:
        comparison: what ``compare`` returned.

    Returns:
        Plain text that reads as it is and renders as Markdown.
    """
    several = len(comparison.systems) > 2
    head = ["metric", "system", "mean", "difference", "%", "95% interval", "p"] + ["p (Holm)"] * several
    parts = []
    for split in dict.fromkeys(row.split for row in comparison.rows):
        rows = [row for row in comparison.rows if row.split == split]
        cells = [_cells(row, several) for row in rows]
        parts.append(f"### {split} ({number_of(rows[0].queries, 'query', 'queries')})\n\n{_markdown(head, cells)}")
    parts.append(
        f"Differences are to {comparison.systems[0]}; paired over queries: bootstrap 95% interval, randomisation test, "
        f"{comparison.resamples:,} draws each, seed {comparison.seed}."
    )
    return "\n\n".join(parts) + "\n"


def to_json(comparison: Comparison) -> str:
    """The comparison as JSON.

    Args:
        comparison: what ``compare`` returned.

    Returns:
        {"systems": [...], "resamples": n, "seed": n, "rows": [{"split": ..., "metric": ..., "system": ..., ...}]}.
    """
    return json.dumps(asdict(comparison), indent=2, allow_nan=False) + "\n"


def _names(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """A short name for each system, the path where short names are not distinct."""
    plain = [Path(path) for path in paths]
    for path in plain:
        if not path.exists() and not path.suffix:
            raise CompareError(no_such_folder(path))
    short = [
        path.resolve().name
        if path.is_dir()
        else path.resolve().parent.name
        if path.name == "metrics.json"
        else path.stem
        for path in plain
    ]
    names = tuple(short) if len(set(short)) == len(short) else tuple(str(path) for path in plain)
    if len(set(names)) < len(names):
        raise CompareError(f"an evaluation is given twice: {', '.join(names)}")
    return names


def _metric_names(table: pa.Table) -> list[str]:
    return [field.name for field in table.schema if field.name not in KEYS and pa.types.is_floating(field.type)]


def _shared(what: str, found: dict[str, list[str]], wanted: Sequence[str] | None) -> list[str]:
    """The wanted names, each of which every system must have; by default the names that all have."""
    first = next(iter(found.values()))
    shared = [name for name in first if all(name in other for other in found.values())]
    names = shared if wanted is None else listed(f"{what}s", wanted)
    if not names:
        raise CompareError(f"the evaluations have no {what} in common: {found}")
    for system, has in found.items():
        for name in names:
            if name not in has:
                raise CompareError(f"{system} has no {what} {name!r}; it has: {', '.join(has)}")
    return names


def _joined(tables: dict[str, pa.Table], split: str, metrics: list[str]) -> dict[str, np.ndarray]:
    """Each system's values, shape (queries, metrics), rows in the same order of queries."""
    reference: list[str] = []
    values = {}
    for system, table in tables.items():
        part = table.filter(pc.equal(table["split"], split)).sort_by("query_id")
        queries = part["query_id"].to_pylist()
        if not reference:
            reference, first = queries, system
        elif queries != reference:
            raise CompareError(_different(split, first, reference, system, queries))
        values[system] = np.stack([part[name].to_numpy() for name in metrics], axis=1)
    return values


def _different(split: str, first: str, reference: list[str], system: str, queries: list[str]) -> str:
    only_first, only_other = sorted(set(reference) - set(queries)), sorted(set(queries) - set(reference))
    return (
        f"split {split!r}: {first} ({len(reference)} queries) and {system} ({len(queries)} queries) were not evaluated "
        f"on the same queries; only in {first}: {len(only_first)} {only_first[:5]}, "
        f"only in {system}: {len(only_other)} {only_other[:5]}"
    )


def _split_rows(
    split: str, metrics: list[str], values: dict[str, np.ndarray], resamples: int, seed: int
) -> Iterator[Row]:
    systems = list(values)
    base = values[systems[0]]
    others = systems[1:]
    differences = np.concatenate([values[system] - base for system in others], axis=1)
    shape = (len(others), len(metrics))
    low, high = (end.reshape(shape) for end in bootstrap_interval(differences, resamples=resamples, seed=seed))
    p = randomisation_p(differences, resamples=resamples, seed=seed).reshape(shape)
    for m, metric in enumerate(metrics):
        mean = float(base[:, m].mean())
        yield Row(split, metric, systems[0], len(base), mean)
        corrected = holm(p[:, m])
        for s, system in enumerate(others):
            own = float(values[system][:, m].mean())
            difference = float(differences[:, s * len(metrics) + m].mean())
            yield Row(
                split,
                metric,
                system,
                len(base),
                own,
                difference,
                100.0 * difference / mean if mean else None,
                float(low[s, m]),
                float(high[s, m]),
                float(p[s, m]),
                float(corrected[s]),
            )


def _resample_blocks(resamples: int, queries: int) -> Iterator[int]:
    """Numbers of resamples that together are all of them and each stay within the budget of cells."""
    size = max(1, _BLOCK_CELLS // max(1, queries))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _draw_counts(rng: np.random.Generator, rows: int, queries: int) -> np.ndarray:
    """How often each query is in each of ``rows`` resamples of ``queries`` draws."""
    drawn = rng.integers(0, queries, size=(rows, queries), dtype=np.int64)
    drawn += np.arange(rows)[:, None] * queries
    return np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries).astype(np.float64)


def _draw_bits(rng: np.random.Generator, rows: int, queries: int) -> np.ndarray:
    """Fair bits, shape (rows, queries), as floats."""
    count = rows * queries
    raw = np.frombuffer(rng.bytes(math.ceil(count / 8)), dtype=np.uint8)
    return np.unpackbits(raw, count=count).reshape(rows, queries).astype(np.float64)


def _cells(row: Row, several: bool) -> list[str]:
    cells = [row.metric, row.system, f"{row.mean:.4f}"]
    if row.difference is None or row.p is None or row.p_holm is None:
        return cells + ["", "", "", ""] + [""] * several
    percent = "" if row.percent is None else f"{row.percent:+.1f}"
    interval = f"{row.low:+.4f} to {row.high:+.4f}"
    return [*cells, f"{row.difference:+.4f}", percent, interval, f"{row.p:.4f}"] + [f"{row.p_holm:.4f}"] * several


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table with aligned columns: names left, figures right."""
    escaped: list[list[Any]] = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in escaped) for i in range(len(head))]
    left = [i < 2 for i in range(len(head))]
    rule = ["-" * w if flag else "-" * (w - 1) + ":" for w, flag in zip(widths, left, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) if f else c.rjust(w) for c, w, f in zip(row, widths, left, strict=True)) + " |"
        for row in [escaped[0], rule, *escaped[1:]]
    ]
    return "\n".join(lines)
