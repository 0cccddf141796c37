"""From the cells to docs/results.md, the README's short table and the pictures: no figure on them is typed by hand.

What is shown is what is in the folder of results: sides, seeds, fields and data may be missing, and a table with
nothing in it is left out.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from opengcl.compare import bootstrap_interval, holm, randomisation_p
from opengcl.data import SPLITS
from opengcl.weights import WEIGHTS

from . import cell_file, plots
from .cell import FIELDS, ROOT
from .cell_file import PAIRED, Place, read_cells
from .data import DATA
from .matrix import cells as matrix_cells
from .sides import SIDES

PAGE, FRONT = ROOT / "docs" / "results.md", ROOT / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

CLIP, PAPER, TWO_STAGES = "clip", "paper", "cross-encoder"
CLICKS_CLIP, CLICKS_OURS = "clicks-clip", "clicks-ours"
FIFTH = "ours-fifth"
"""The side that encodes a fifth of the documents, where the recommended one needs more to reach CLIP."""
FRONT_PAGE = ("fashion", "title")
"""Data and fields of the README's table."""

FAMILIES = ("CLIP", "paper", "ours", "published", "published, our batches", "clicks", "untrained", "two stages")
FAMILY_OF = {"bm25": "untrained", "untrained": "untrained", "minilm": "untrained", TWO_STAGES: "two stages"}
"""Families of sides that are not trained by the matrix; an unknown side is in the family ``other``."""
DATA_TITLES = {"fashion": "fashion-small", "teacher": "the second ranking of the same products"}
FIELD_TITLES = {"title": "titles", "image": "pictures", "image+title": "pictures and titles"}

AIMED_GAINS = {
    ("fashion", "title"): (29.3, 15.0),
    ("fashion", "image"): (25.0, 10.0),
    ("fashion", "image+title"): (25.0, 15.0),
    ("teacher", "title"): (25.0, 8.0),
}
"""NDCG@10 over CLIP in percent, in domain and on each cold split; the paper reports +29.3% and +6.0% to +10.0%."""
AIMED_CLICKS = (11.2, 0.0)
"""The same for training from a log of interactions, over CLIP on clicked pairs; +11.2% is the paper's."""
AIMED_SHARE = 0.2
"""Documents encoded until CLIP's last dev NDCG@10 is reached, as a share of what CLIP encodes: at most this."""
AIMED_RATIO = 1.0
"""Latency of two stages over one: more than this."""

NDCG, RECALL = PAIRED
TUNED = ("learning_rate", "temperature")
ELSEWHERE = (
    "Ours with other fields (on pictures alone, documents that many queries ask for come first, as is the default "
    "there), and on a second ranking by another teacher for other queries:"
)
FRONT_HEAD = "NDCG@10 (over CLIP) / recall@100"
MISSING = "-"
NOTHING = "No cell has been run yet."


@dataclass(frozen=True)
class Results:
    """Everything that was measured on some data and fields.

    Attributes:
        data: The data set's name.
        fields: The fields' name.
        cells: Side -> seed -> content of its file.
        tuned: Side -> content of its grid's file.
        cost: Content of the file of steps that were timed in turn; empty where there is none.
    """

    data: str
    fields: str
    cells: Mapping[str, Mapping[int, Mapping[str, Any]]]
    tuned: Mapping[str, Mapping[str, Any]]
    cost: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, data: str, fields: str) -> Results:
        """The results in the folder."""
        folder = cell_file.RESULTS / data / fields
        found = read_cells(data, fields)
        tuned = {
            file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*/tuning.json")
        }
        timed = cell_file.cost_file(data, fields)
        cost = json.loads(timed.read_text(encoding="utf-8")) if timed.is_file() else {}
        return cls(data, fields, {side: found[side] for side in _in_order(found)}, tuned, cost)

    @property
    def title(self) -> str:
        """Data and fields in words."""
        return f"{DATA_TITLES.get(self.data, self.data)}, {FIELD_TITLES.get(self.fields, self.fields)}"

    @property
    def ours(self) -> str:
        """The side that the project recommends on these fields."""
        return FIELDS[self.fields].ours if self.fields in FIELDS else "ours"

    def seeds(self, side: str) -> list[int]:
        """The seeds behind a side's figures, in order."""
        return sorted(self.cells[side])

    def values(self, side: str, split: str, metric: str) -> np.ndarray:
        """A metric's mean over test queries, one value a seed; empty where the split was not evaluated."""
        runs = (self.cells[side][seed]["splits"] for seed in self.seeds(side))
        return np.array([splits[split][metric] for splits in runs if metric in splits.get(split, {})])

    def mean(self, side: str, split: str, metric: str) -> float:
        """Mean over seeds; NaN where there is none."""
        values = self.values(side, split, metric)
        return float(values.mean()) if len(values) else float("nan")

    def overall(self, side: str, metric: str = NDCG) -> float:
        """Mean over the splits; NaN where one is missing."""
        return float(np.mean([self.mean(side, split, metric) for split in SPLITS]))

    def median(self, side: str, name: str) -> float:
        """Median over seeds of a figure beside the metrics; 0 where no cell has it."""
        return float(np.median([run.get(name, 0) for run in self.cells[side].values()]))

    def best(self, family: str, split: str | None = None) -> str | None:
        """The side of a family with the highest test NDCG@10, on a split or on their mean; None where there is none."""
        scored = {
            side: self.mean(side, split, NDCG) if split else self.overall(side)
            for side in self.cells
            if family_of(side) == family
        }
        scored = {side: value for side, value in scored.items() if np.isfinite(value)}
        return max(scored, key=scored.__getitem__) if scored else None

    def learning_curve(self, side: str) -> list[tuple[float, float]]:
        """(documents encoded, dev NDCG@10 as mean of splits and seeds) at the evaluations that all seeds have."""
        runs = [
            {entry["step"]: (entry["documents_encoded"], _mean_ndcg(entry)) for entry in run.get("dev", [])}
            for run in self.cells[side].values()
        ]
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        return [
            (float(np.mean([run[step][0] for run in runs])), float(np.mean([run[step][1] for run in runs])))
            for step in steps
        ]

    def per_query(self, side: str, split: str) -> tuple[list[str], np.ndarray]:
        """Test queries of a split and their (queries, 2) NDCG@10 and recall@100, averaged over seeds.

        Raises:
            ValueError: Two seeds were evaluated on different queries.
        """
        found: list[np.ndarray] = []
        queries: list[str] = []
        for seed in self.seeds(side):
            file = Place(self.data, self.fields, side).cell(seed).with_suffix(".parquet")
            table = pq.read_table(file, filters=[("split", "=", split)]).sort_by("query_id")
            asked = table["query_id"].to_pylist()
            if found and asked != queries:
                raise ValueError(f"{file}: not the queries of {split!r} that the side's other seeds have")
            queries = asked
            found.append(np.stack([table[name].to_numpy().astype(np.float64) for name in PAIRED], axis=1))
        return queries, np.mean(found, axis=0)


def family_of(side: str) -> str:
    """The family that a side is shown in."""
    return SIDES[side].family if side in SIDES else FAMILY_OF.get(side, "other")


def _in_order(sides: Iterable[str]) -> list[str]:
    """Sides by family, then as they are declared; unknown ones at the end by name."""
    families, declared = [*FAMILIES, "other"], [*SIDES, *FAMILY_OF]
    return sorted(
        sides,
        key=lambda side: (
            families.index(family_of(side)),
            declared.index(side) if side in declared else len(declared),
            side,
        ),
    )


def _mean_ndcg(entry: Mapping[str, Any]) -> float:
    return float(np.mean([entry[split][NDCG] for split in SPLITS]))


def all_results() -> list[Results]:
    """The results of every data set and fields with a finished cell, in the order in which they are declared."""
    places = {(folder.parent.name, folder.name) for folder in cell_file.RESULTS.glob("*/*") if folder.is_dir()}
    known = [(data, fields) for data in DATA for fields in FIELDS]
    order = [place for place in known if place in places] + sorted(places - set(known))
    found = [Results.read(*place) for place in order]
    return [results for results in found if results.cells]


@dataclass(frozen=True)
class Difference:
    """A side less the base on a split and metric, paired over queries.

    Attributes:
        gain: Mean difference.
        percent: The same in percent of the base's mean.
        low: Lower end of its 95% bootstrap interval.
        high: Upper end.
        p: Of the randomisation test, corrected after Holm within the table.
    """

    gain: float
    percent: float
    low: float
    high: float
    p: float


COMPARED = ((CLIP, NDCG), (PAPER, NDCG), (CLIP, RECALL))
"""Base and metric of each table of differences."""
Table = dict[str, dict[str, Difference]]
"""Side -> split -> its difference to a base."""


def differences(results: Results) -> dict[tuple[str, str], Table]:
    """(Base, metric) of `COMPARED` -> a table; values are averaged over each side's seeds first.

    All tables of a split share its draws, which is what takes the time.

    Raises:
        ValueError: A side was not evaluated on the queries of the base.
    """
    tables: dict[tuple[str, str], Table] = {}
    for split in SPLITS:
        deltas = _deltas(results, split)
        if not deltas:
            continue
        matrix = np.stack([delta for delta, _ in deltas.values()], axis=1)
        low, high = bootstrap_interval(matrix)
        p = randomisation_p(matrix)
        for i, ((base, metric, side), (delta, mean)) in enumerate(deltas.items()):
            gain = float(delta.mean())
            row = tables.setdefault((base, metric), {}).setdefault(side, {})
            row[split] = Difference(gain, 100 * gain / mean, float(low[i]), float(high[i]), float(p[i]))
    return {key: _corrected(table) for key, table in tables.items()}


def _deltas(results: Results, split: str) -> dict[tuple[str, str, str], tuple[np.ndarray, float]]:
    """(Base, metric, side) -> the side less the base, a value a query, and the base's mean."""
    sides = [side for side in results.cells if len(results.values(side, split, NDCG))]
    values = {side: results.per_query(side, split) for side in sides}
    found = {}
    for base, metric in COMPARED:
        if base not in values:
            continue
        queries, own = values[base]
        column = PAIRED.index(metric)
        for side, (asked, scored) in values.items():
            if asked != queries:
                raise ValueError(
                    f"{results.data}, {results.fields}, {split}: {side} has {len(asked)} test queries and {base} "
                    f"{len(queries)}, or others; they cannot be paired"
                )
            if side != base:
                found[base, metric, side] = scored[:, column] - own[:, column], float(own[:, column].mean())
    return found


def _corrected(table: Table) -> Table:
    """The same with every p corrected after Holm over the table."""
    places = [(side, split) for side, row in table.items() for split in row]
    corrected = holm(np.array([table[side][split].p for side, split in places]))
    for (side, split), p in zip(places, corrected, strict=True):
        table[side][split] = replace(table[side][split], p=float(p))
    return table


@dataclass(frozen=True)
class Aim:
    """What ours should reach, what it did, by how much it is beyond (or short of) it, and whether it is met."""

    what: str
    aim: str
    measured: str
    margin: str
    met: bool


def aims(results: Results) -> list[Aim]:
    """Every aim whose sides are there."""
    if results.ours not in results.cells:
        return []
    found: list[Aim] = []
    if CLIP in results.cells:
        found += _gains(results, results.ours, CLIP, AIMED_GAINS.get((results.data, results.fields), (0.0, 0.0)))
        found += [_not_below(results, f"recall@100 not below CLIP's, {split}", CLIP, split, RECALL) for split in SPLITS]
    rivals = {
        "published": "the best published loss",
        "published, our batches": "the same on our batches",
        "paper": "the best of the paper's form",
    }
    for family, words in rivals.items():
        for split in SPLITS:
            rival = results.best(family, split)
            if rival is not None:
                among = _among(results, family)
                found.append(_not_below(results, f"NDCG@10 ahead of {words}, {split}", rival, split, NDCG, among))
    found += _encoded_aim(results)
    if TWO_STAGES in results.cells:
        found += [
            _not_below(results, f"NDCG@10 not below two stages, {split}", TWO_STAGES, split, NDCG) for split in SPLITS
        ]
        found += _latency_aim(results)
    if {CLICKS_CLIP, CLICKS_OURS} <= set(results.cells):
        found += _gains(results, CLICKS_OURS, CLICKS_CLIP, AIMED_CLICKS)
    return [aim for aim in found if "nan" not in aim.measured]


def _gains(results: Results, side: str, base: str, aimed: tuple[float, float]) -> list[Aim]:
    """NDCG@10 over the base in percent, split by split; ``aimed`` is for in_domain and for the cold splits."""
    found = []
    for split in SPLITS:
        own, other = (results.mean(name, split, NDCG) for name in (side, base))
        gain, aim = 100 * (own - other) / other, aimed[split != "in_domain"]
        what = f"NDCG@10 of `{side}` over `{base}`, {split}"
        found.append(Aim(what, f"{aim:+.1f}%", f"{gain:+.1f}%", f"{gain - aim:+.1f} points", gain >= aim))
    return found


def _among(results: Results, family: str) -> str:
    """How much of a family has been run, while some of it has not."""
    there = sum(family_of(side) == family for side in results.cells)
    here = {cell.side for cell in matrix_cells() if (cell.data, cell.fields) == (results.data, results.fields)}
    declared = sum(family_of(side) == family for side in here)
    return f"best of the {there} run of {declared}" if there < declared else ""


def _not_below(results: Results, what: str, side: str, split: str, metric: str, among: str = "") -> Aim:
    ours, other = (results.mean(name, split, metric) for name in (results.ours, side))
    ahead = " ahead of " in what
    asked = f"{'more than' if ahead else 'at least'} {other:.3f} (`{side}`{', ' * bool(among)}{among})"
    return Aim(what, asked, f"{ours:.3f}", f"{ours - other:+.3f}", ours > other if ahead else ours >= other)


def _encoded_aim(results: Results) -> list[Aim]:
    """How early ours is as good on dev queries as CLIP at its end, in documents encoded."""
    clip = results.learning_curve(CLIP) if CLIP in results.cells else []
    if not clip:
        return []
    total, level = clip[-1]
    asked = f"at most {AIMED_SHARE:.0%}"
    found = []
    for side in (results.ours, FIFTH):
        curve = results.learning_curve(side) if side in results.cells else []
        what = f"documents that `{side}` encodes until CLIP's last dev NDCG@10 ({level:.3f})"
        reached = [documents / total for documents, value in curve if value >= level]
        if reached:
            points = f"{100 * (AIMED_SHARE - reached[0]):+.1f} points"
            found.append(Aim(what, asked, f"{reached[0]:.1%}", points, reached[0] <= AIMED_SHARE))
        elif curve:
            best = max(value for _, value in curve)
            found.append(Aim(what, asked, "not reached", f"{best - level:+.3f} dev NDCG@10", False))
    return found


def _latency_aim(results: Results) -> list[Aim]:
    ratio = results_latency(results, "ratio")
    if ratio is None:
        return []
    what, asked = "latency of two stages over one, median", f"more than {AIMED_RATIO:g} times"
    return [Aim(what, asked, f"{ratio:.1f} times", f"{ratio - AIMED_RATIO:+.1f}", ratio > AIMED_RATIO)]


def results_latency(results: Results, name: str, quantile: str | None = None) -> float | None:
    """Median over seeds of a figure of the two-stage side's latency; None where none was measured."""
    measured = [run["latency"] for run in results.cells.get(TWO_STAGES, {}).values() if "latency" in run]
    found = [one[name] if quantile is None else one[name][quantile] for one in measured]
    return float(np.median(found)) if found else None


def page_block(found: Sequence[Results]) -> str:
    """The generated part of docs/results.md."""
    return "\n\n".join(section(results) for results in found) if found else NOTHING


def section(results: Results) -> str:
    """Every table on some data and fields."""
    parts = [f"### {_capital(results.title)}", _how(results)]
    parts += _titled(
        "**NDCG@10 / recall@100** on test queries, mean ± standard deviation over seeds.", quality(results)
    )
    parts += [f"![{_capital(title)}](images/{name})" for name, title, _ in pictures(results)]
    counts = [f"`{side}` {len(results.seeds(side))}" for side in (results.ours, CLIP, PAPER) if side in results.cells]
    heading = f"**Aims** of the recommended side, `{results.ours}`, on means over seeds; seeds: {', '.join(counts)}."
    parts += _titled(heading, aims_table(results))
    told = "Percent of the base's mean, 95% interval of the difference, p after Holm over the table."
    found = differences(results)
    for (base, metric), name in zip(COMPARED, ("NDCG@10", "NDCG@10", "recall@100"), strict=True):
        heading = f"**{name} against `{base}`**, paired over queries. {told}"
        parts += _titled(heading, differences_table(results, base, found.get((base, metric), {})))
    heading = "**Seconds of a training step**, the sides in turn on one thread; medians over rounds."
    parts += _titled(heading, step_costs(results))
    parts += _titled("**ERR / RBP (p = 0.9)** on the same queries.", other_metrics(results))
    parts += _titled(
        "**What the grid chose** on dev queries, seed 0; * stands at the edge of what was tried.",
        chosen(results),
    )
    return "\n\n".join(parts)


def _titled(heading: str, table: str) -> list[str]:
    return [heading, table] if table else []


def _how(results: Results) -> str:
    """Encoder, steps, queries, versions and hardware, as the cells tell them."""
    runs = [run for runs in results.cells.values() for run in runs.values()]
    trained = [run for side, of in results.cells.items() if side in SIDES for run in of.values()]
    models = {run["settings"]["model"] for run in trained if "model" in run.get("settings", {})}
    steps = {run["steps"] for run in trained if "steps" in run}
    queries = {
        split: sorted(
            {int(run["splits"][split]["queries"]) for run in runs if "queries" in run["splits"].get(split, {})}
        )
        for split in SPLITS
    }
    told = []
    if models and steps:
        told.append(f"Encoder {_listed(f'`{model}`' for model in sorted(models))}, {_counts(steps)} steps.")
    asked = [f"{_counts(counts)} in {split}" for split, counts in queries.items() if counts]
    told += [f"Test queries: {', '.join(asked)}."] if asked else []
    made = sorted({_provenance(run["provenance"]) for run in runs if "provenance" in run})
    return " ".join([*told, *([f"Made with {'; '.join(made)}."] if made else [])])


def _provenance(told: Mapping[str, Any]) -> str:
    threads = f"{told['threads']} thread{'s' * (told['threads'] != 1)} a run"
    libraries = f"torch {told['torch']}, sentence-transformers {told['sentence_transformers']}"
    return f"Python {told['python']}, {libraries} on {told['hardware']}, {threads}"


def quality(results: Results) -> str:
    """Side x split, grouped by family, and what training took."""
    head = ["side", "seeds", *SPLITS, "training seconds", "queries encoded", "documents encoded"]
    rows: list[list[str]] = []
    for family, sides in _by_family(results.cells).items():
        rows.append([f"**{family}**", *[""] * (len(head) - 1)])
        for side in sides:
            costs = [
                results.median(side, name) for name in ("training_seconds", "queries_encoded", "documents_encoded")
            ]
            figures = [pair(results, side, split, NDCG, RECALL) for split in SPLITS]
            seeds = str(len(results.seeds(side)))
            rows.append([named(results, side), seeds, *figures, *(f"{c:,.0f}" if c else MISSING for c in costs)])
    return markdown(head, rows)


def step_costs(results: Results) -> str:
    """Side x what a step takes and encodes, beside CLIP's."""
    timed = results.cost.get("sides", {})
    seconds = {side: float(np.median(row["seconds"])) for side, row in timed.items()}
    rows = [
        [
            f"`{side}`",
            f"{seconds[side]:.3f}",
            f"{seconds[side] / seconds[CLIP]:.2f}",
            *(f"{row[name]:,.0f}" for name in ("queries", "documents")),
        ]
        for side, row in timed.items()
    ]
    return markdown(["side", "seconds", f"over `{CLIP}`", "queries encoded", "documents encoded"], rows)


def other_metrics(results: Results) -> str:
    """ERR and RBP, side x split."""
    rows = [
        [
            f"`{side}`",
            str(len(results.seeds(side))),
            *(pair(results, side, split, "err", "rbp@0.9") for split in SPLITS),
        ]
        for side in results.cells
    ]
    return markdown(["side", "seeds", *SPLITS], rows)


def differences_table(results: Results, base: str, table: Table) -> str:
    """Side x split of paired differences to a base."""
    rows = []
    for side, row in table.items():
        seeds = f"{len(results.seeds(side))} and {len(results.seeds(base))}"
        rows.append([f"`{side}`", seeds, *(difference_text(row.get(split)) for split in SPLITS)])
    return markdown(["side", "seeds", *SPLITS], rows)


def aims_table(results: Results) -> str:
    """Each aim, met or missed, and by how much."""
    rows = [[aim.what, aim.aim, aim.measured, aim.margin, "met" if aim.met else "**missed**"] for aim in aims(results)]
    return markdown(["", "aim", "measured", "margin", ""], rows)


def chosen(results: Results) -> str:
    """What each side's grid chose, and the dev NDCG@10 that it was chosen for."""
    rows = []
    for side in _in_order(results.tuned):
        told = results.tuned[side]
        point = told["chosen"]
        tried = told.get("tried") or told.get("grid") or []
        scores = [row[NDCG] for row in tried if NDCG in row and point.items() <= row.items()]
        grid = [_grid_text(name, point, tried) for name in TUNED]
        best = f"{max(scores):.3f}" if scores else MISSING
        rows.append([f"`{side}`", *grid, own_constants(side, point) or MISSING, str(len(tried)), best])
    return markdown(["side", *(name.replace("_", " ") for name in TUNED), "own constant", "tried", "dev NDCG@10"], rows)


def _grid_text(name: str, point: Mapping[str, Any], tried: Iterable[Mapping[str, Any]]) -> str:
    """A value of the grid; starred where it is the lowest or highest of three or more."""
    if name not in point:
        return MISSING
    values = sorted({row[name] for row in tried})
    edge = len(values) > 2 and point[name] in (values[0], values[-1])
    return f"{point[name]:g}{'*' * edge}"


def own_constants(side: str, point: Mapping[str, Any]) -> str:
    """A side's own constants at a point of its grid, the default where the point does not name it.

    ``{"weights": "exponential:decay=10"}`` gives ``decay=10``.
    """
    declared = SIDES.get(side)
    other = declared.others[0] if declared and declared.others else {}
    settings = {name: declared.settings[name] for name in other if name in declared.settings} if declared else {}
    settings |= {name: value for name, value in point.items() if name not in TUNED}
    parts = []
    for name, value in settings.items():
        options = _options(value)
        if options:
            parts.append(options)
        elif name in other and _options(other[name]):
            parts += [_default(name, value, part.partition("=")[0]) for part in _options(other[name]).split(",")]
        else:
            parts.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return ", ".join(parts)


def _options(written: object) -> str:
    """``name=value,...`` at the end of a written weight function or target, else nothing."""
    last = written.rpartition(":")[2] if isinstance(written, str) else ""
    return last if "=" in last else ""


def _default(setting: str, written: str, option: str) -> str:
    """The default of an option of a weight function or of a loss named by its import path."""
    if setting == "weights":
        function: Any = WEIGHTS[written]
    else:
        module, _, name = written.partition(":")
        if not module.startswith("benchmarks."):
            raise ValueError(f"{setting}: found {written!r}; allowed: a function of these benchmarks")  # it is imported
        function = getattr(importlib.import_module(module), name)
    return f"{option}={inspect.signature(function).parameters[option].default:.3g}"


def front_block(found: Sequence[Results]) -> str:
    """The README's short tables: CLIP, the paper's form, the best published side, ours; then ours on all else."""
    results = next((one for one in found if (one.data, one.fields) == FRONT_PAGE), None)
    if results is None:
        return NOTHING
    best = results.best("published")
    shown = {CLIP: "", PAPER: "the paper: "} | ({best: "best published: "} if best else {}) | {results.ours: "ours: "}
    sides = [side for side in shown if side in results.cells]
    if not sides:
        return NOTHING
    head = [FRONT_HEAD, *SPLITS]
    rows = [
        [shown[side] + label(results, side), *(_front_cell(results, side, split) for split in SPLITS)] for side in sides
    ]
    counts = sorted({len(results.seeds(side)) for side in sides})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' * (counts[0] != 1)}"
    among = _among(results, "published") if best else ""
    run = f" {_capital(among)} published losses." if among else ""
    told = (
        f"{_capital(results.title)}, {seeds}, test queries; every side with the same encoder, steps and grid.{run} "
        f"All {len(results.cells)} sides, intervals and other fields: [results](docs/results.md)."
    )
    others = [
        [
            _capital(one.title),
            str(len(one.seeds(one.ours))),
            *(_front_cell(one, one.ours, split) for split in SPLITS),
        ]
        for one in found
        if one is not results and {CLIP, one.ours} <= set(one.cells)
    ]
    return "\n\n".join(
        [markdown(head, rows), told, *_titled(ELSEWHERE, markdown([FRONT_HEAD, "seeds", *SPLITS], others))]
    )


def _front_cell(results: Results, side: str, split: str) -> str:
    ndcg, recall = (results.mean(side, split, metric) for metric in PAIRED)
    if not np.isfinite(ndcg):
        return MISSING
    gain = ""
    if side != CLIP and CLIP in results.cells:
        base = results.mean(CLIP, split, NDCG)
        gain = f" ({100 * (ndcg - base) / base:+.1f}%)"
    return f"{ndcg:.3f}{gain} / {recall:.3f}"


def pictures(results: Results) -> list[tuple[str, str, str]]:
    """(file name, title, SVG) of every picture that the cells allow."""
    drawn = {
        "learning": ("Quality on dev queries against documents encoded", _learning),
        "order-recall": ("Order against recall on test queries", _order_recall),
        "latency": ("One stage and two: latency against order", _latency),
    }
    found = []
    for kind, (words, draw) in drawn.items():
        title = f"{words}: {results.title}"
        svg = draw(results, title)
        if svg is not None:
            found.append((f"{kind}-{results.data}-{results.fields.replace('+', '-')}.svg", title, svg))
    return found


def tone(results: Results, side: str) -> str:
    """The colour of a side in the pictures."""
    tones = {
        results.best("published"): "published",
        TWO_STAGES: "two",
        PAPER: "paper",
        CLIP: "clip",
        results.ours: "ours",
    }
    return tones.get(side, "form" if side in ("full-row", FIFTH) else "other")


def _learning(results: Results, title: str) -> str | None:
    sides = [side for side in results.cells if tone(results, side) not in ("other", "two")]
    curves = [plots.Curve(side, tone(results, side), results.learning_curve(side)) for side in sides]
    clip = results.learning_curve(CLIP) if CLIP in results.cells else []
    return plots.learning_curves(curves, ("where CLIP ends", clip[-1][1]) if clip else None, title=title)


def _order_recall(results: Results, title: str) -> str | None:
    panels = []
    for split in SPLITS:
        means = {side: [results.mean(side, split, metric) for metric in (RECALL, NDCG)] for side in results.cells}
        dots = [plots.Dot(side, tone(results, side), *at) for side, at in means.items() if np.isfinite(at).all()]
        panels.append((split, dots))
    return plots.order_and_recall(panels, title=title)


def _latency(results: Results, title: str) -> str | None:
    if results_latency(results, "ratio") is None:
        return None
    sides = [*(side for side in (CLIP, results.best("published"), results.ours) if side in results.cells), TWO_STAGES]
    dots = []
    for side in sides:
        name = "two_stage_ms" if side == TWO_STAGES else "single_ms"
        middle, late = (results_latency(results, name, quantile) for quantile in ("p50", "p99"))
        if middle is not None and side is not None and np.isfinite(results.overall(side)):
            words = "two stages" if side == TWO_STAGES else side
            dots.append(plots.Dot(words, tone(results, side), middle, results.overall(side), late))
    return plots.latency_and_order(dots, title=title)


def named(results: Results, side: str) -> str:
    """A side's name and what it is."""
    return f"`{side}` {label(results, side)}"


def label(results: Results, side: str) -> str:
    """What a side is, in words."""
    return str(results.cells[side][results.seeds(side)[0]].get("label", side))


def pair(results: Results, side: str, split: str, first: str, second: str) -> str:
    """``0.939 ± 0.001 / 0.981 ± 0.002``; without the spread where there is one seed."""
    return " / ".join(_spread_text(results.values(side, split, metric)) for metric in (first, second))


def _spread_text(values: np.ndarray) -> str:
    if not len(values):
        return MISSING
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def difference_text(found: Difference | None) -> str:
    """``+30.4% [+0.210, +0.227] p = .010``."""
    if found is None:
        return MISSING
    p = f"p = {found.p:.3f}".replace("0.", ".") if found.p >= 0.001 else "p < .001"
    return f"{found.percent:+.1f}% [{found.low:+.3f}, {found.high:+.3f}] {p}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, names left and figures right; nothing where there is no row."""
    if not rows:
        return ""
    written = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *written]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_family(sides: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for side in _in_order(sides):
        found.setdefault(family_of(side), []).append(side)
    return found


def _counts(values: Iterable[int]) -> str:
    return _listed(f"{value:,}" for value in sorted(values))


def _listed(words: Iterable[str]) -> str:
    return " or ".join(words)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def generated() -> dict[Path, str]:
    """File -> its text with what the cells say: both pages and the SVG pictures."""
    found = all_results()
    drawn = {plots.IMAGES / name: svg for results in found for name, _, svg in pictures(results)}
    return {PAGE: between_markers(PAGE, page_block(found)), FRONT: between_markers(FRONT, front_block(found)), **drawn}


def between_markers(page: Path, content: str) -> str:
    """A page's text with its generated part replaced.

    Raises:
        ValueError: The page has not one pair of markers.
    """
    text = page.read_text(encoding="utf-8")
    marked = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(marked.findall(text)) != 1 or text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: expected {BEGIN} and {END} once each, in this order")
    return marked.sub(lambda _: f"{BEGIN}\n\n{content}\n\n{END}", text)


def write_everything() -> None:
    """Write the pages and pictures; the picture of one query is made anew where its runs are there."""
    for file, text in generated().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(file)
    drawn = plots.before_and_after()
    if drawn is not None:
        print(drawn)
