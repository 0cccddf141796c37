"""A run folder as one HTML page that needs nothing else: numbers by split, training curves, ranked product pictures.

The page makes no requests and runs no script. Everything that comes from data or configuration is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from opengcl.charts import HEIGHT, WIDTH, BarChart, LineChart, bar_chart, line_chart
from opengcl.data.dataset import RankedDataset
from opengcl.data.problems import number_of
from opengcl.data.splits import SPLITS
from opengcl.field_sets import MEASURES
from opengcl.pages import Product, environment, first_texts, products, write_whole
from opengcl.plain_yaml import write_yaml
from opengcl.run_folder import Key, Run, RunFolderError, read_lists, read_run
from opengcl.shown_queries import Pick, ideal_rows, judged_scores, pick_queries

PRIMARY = "ndcg@10"
LIST_LENGTH = 10
FREQUENCY_BINS = 4

EN_DASH, MINUS = "\u2013", "\u2212"

SPLIT_NAMES = {
    "in_domain": ("In domain", "queries and products seen in training"),
    "novel_query": ("Novel query", "new queries, seen products"),
    "novel_document": ("Novel document", "seen queries, new products"),
    "zero_shot": ("Zero shot", "both new"),
}
METRIC_NAMES = {
    "ndcg": "NDCG",
    "ndcg_exp": "NDCG, exponential gain",
    "err": "ERR",
    "rbp": "RBP",
    "recall": "Recall",
    "precision": "Precision",
    "success": "Success",
    "mrr": "MRR",
    "map": "MAP",
}


@dataclass(frozen=True)
class Number:
    """A mean of the run, the baseline's, and the difference; None where there is none."""

    value: float | None
    base: float | None = None

    @property
    def gain(self) -> float | None:
        """Run minus baseline."""
        return None if self.value is None or self.base is None else self.value - self.base


@dataclass(frozen=True)
class SplitView:
    """One split of the results."""

    key: str
    name: str
    about: str
    queries: int
    primary: Number


@dataclass(frozen=True)
class FieldSetView:
    """Results of a split's documents that have the same fields, by measure of `opengcl.field_sets`."""

    split: str
    fields: str
    numbers: dict[str, Number]


@dataclass(frozen=True)
class RankedList:
    """One row of products with the list's value of the primary metric; None where it is not known."""

    name: str
    kind: str
    value: float | None
    products: list[Product]


@dataclass(frozen=True)
class QueryView:
    """One query with its lists."""

    text: str
    split: str
    pairs: int
    reason: str
    lists: list[RankedList]


def write_report(
    run: Path, dataset: RankedDataset, *, baseline: Path | None = None, out: Path | None = None, note: str = ""
) -> Path:
    """Writes the report of a run.

    Args:
        run: A run folder: config.yaml, metrics.json, per_query.parquet, results.parquet, history.json.
        dataset: The data set that the run was evaluated on.
        baseline: Another run folder on the same data set, to compare with.
        out: The HTML file; default report.html in the run folder.
        note: A sentence about the data, shown at the top, such as how its ranking came about.

    Returns:
        The file.

    Raises:
        RunFolderError: A file of a run folder is missing or malformed, or the two runs share no query.
        DataSetError: The run names a query or document that the data set lacks.
    """
    this = read_run(run)
    other = None if baseline is None else read_run(baseline)
    if other is not None and not set(this.per_query.keys) & set(other.per_query.keys):
        raise RunFolderError(f"{other.path} shares no evaluated query with {this.path}; are they of one data set?")
    metric = _primary_metric(this, other)
    page = (
        environment(number=_number, signed=_signed, share=_share, metric=metric_name)
        .get_template("report.html")
        .render(_context(this, other, dataset, metric, note))
    )
    out = this.path / "report.html" if out is None else out
    write_whole(out, page)
    return out


def _primary_metric(this: Run, other: Run | None) -> str:
    """NDCG@10 where the runs have it, else the first metric they have."""
    names = [name for name in this.per_query.metrics if other is None or name in other.per_query.metrics]
    if not names:
        raise RunFolderError(f"{this.path / 'per_query.parquet'}: no metric column (in common with the baseline)")
    return PRIMARY if PRIMARY in names else names[0]


def _context(this: Run, other: Run | None, dataset: RankedDataset, metric: str, note: str) -> dict[str, Any]:
    return {
        "run_name": this.path.resolve().name,
        "base_name": other and other.path.resolve().name,
        "model": _model_name(this.config),
        "data": _data_facts(dataset),
        "note": note,
        "metric": metric,
        "splits": _split_views(this, other, metric),
        "table": _table(this, other),
        "field_sets": _field_set_views(this, other),
        "loss": _loss_chart(this),
        "dev": _dev_chart(this, metric),
        "frequency": _frequency_charts(this, other, metric),
        "queries": _query_views(this, other, dataset, metric),
        "picked": _how_picked(other, metric),
        "chart_size": (WIDTH, HEIGHT),
        "score_range": dataset.schema.relevance_range,
        "config": write_yaml(this.config),
        "provenance": write_yaml(_provenance(this, dataset)),
    }


def metric_name(name: str) -> str:
    """A metric's name for people: `ndcg@10` is NDCG@10."""
    stem, at, depth = name.partition("@")
    return METRIC_NAMES.get(stem, stem) + at + depth


def _number(value: float | None) -> str:
    return EN_DASH if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return EN_DASH if value is None else f"{value:.1%}"


def _signed(value: float | None) -> str:
    if value is None:
        return EN_DASH
    return "±0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", MINUS)


def _model_name(config: Mapping[str, Any]) -> str:
    model = config.get("model", "model not named")
    if isinstance(model, Mapping):
        names = [model[key] for key in ("name", "base", "checkpoint", "encoder", "path") if model.get(key)]
        return str(names[0]) if names else "model not named"
    return str(model)


def _data_facts(dataset: RankedDataset) -> dict[str, Any]:
    return {
        "name": dataset.schema.name,
        "synthetic": dataset.schema.name.lower().startswith("synthetic"),
        "queries": len(dataset.queries),
        "documents": len(dataset.documents),
        "pairs": len(dataset.qrels.score),
    }


def _provenance(this: Run, dataset: RankedDataset) -> dict[str, Any]:
    return {"dataset": dataset.schema.name, "dataset_fingerprint": dataset.fingerprint, **this.provenance}


def _ordered_splits(this: Run) -> list[str]:
    return [split for split in SPLITS if split in this.splits] + sorted(set(this.splits) - set(SPLITS))


def _compare(this: Run, other: Run | None, split: str, metric: str) -> Number:
    base = None if other is None else other.splits.get(split, {}).get(metric)
    return Number(this.splits[split].get(metric), base)


def _split_views(this: Run, other: Run | None, metric: str) -> list[SplitView]:
    return [
        SplitView(
            split,
            *SPLIT_NAMES.get(split, (split, "")),
            int(this.splits[split].get("queries", 0)),
            _compare(this, other, split, metric),
        )
        for split in _ordered_splits(this)
    ]


def _table(this: Run, other: Run | None) -> list[tuple[str, list[Number]]]:
    """A row per metric, a number per split."""
    splits = _ordered_splits(this)
    metrics = dict.fromkeys(name for split in splits for name in this.splits[split] if name != "queries")
    return [(metric, [_compare(this, other, split, metric) for split in splits]) for metric in metrics]


def _field_set_views(this: Run, other: Run | None) -> list[FieldSetView]:
    views = []
    for split in (split for split in _ordered_splits(this) if split in this.fields):
        for kind, row in this.fields[split].items():
            base = {} if other is None else other.fields.get(split, {}).get(kind, {})
            numbers = {name: Number(row[name], base.get(name)) for name in MEASURES}
            views.append(FieldSetView(SPLIT_NAMES.get(split, (split, ""))[0], kind.replace("+", " + "), numbers))
    return views


def _loss_chart(this: Run) -> LineChart | None:
    points = [(e["step"], e["loss"]) for e in this.history if "loss" in e and "step" in e]
    return line_chart({"Training loss": points})


def _dev_chart(this: Run, metric: str) -> LineChart | None:
    curves = {}
    for split in SPLITS:
        key = f"eval_{split}_{metric}"
        curves[SPLIT_NAMES[split][0]] = [(e["step"], e[key]) for e in this.history if key in e and "step" in e]
    return line_chart(curves)


def _frequency_charts(this: Run, other: Run | None, metric: str) -> list[tuple[str, BarChart]]:
    """Mean of the metric by training pairs of the query, for seen and for new documents."""
    splits = np.array([split for split, _ in this.per_query.keys])
    charts = []
    for title, kinds in (
        ("Products seen in training", ("in_domain", "novel_query")),
        ("Products new to the model", ("novel_document", "zero_shot")),
    ):
        chart = _frequency_chart(this, other, metric, np.isin(splits, kinds))
        if chart is not None:
            charts.append((title, chart))
    return charts


def _frequency_chart(this: Run, other: Run | None, metric: str, inside: Bool[np.ndarray, " rows"]) -> BarChart | None:
    pairs, values = this.per_query.pairs, this.per_query.metrics[metric]
    base = None if other is None else _aligned(this, other, metric)
    if base is not None:
        inside = inside & np.isfinite(base)
    groups = []
    for low, high in _bins(pairs[inside]):
        rows = inside & (pairs >= low) & (pairs <= high)
        means = [float(column[rows].mean()) for column in (base, values) if column is not None]
        groups.append((_bin_name(low, high), number_of(int(rows.sum()), "query", "queries"), means))
    return bar_chart(groups, ["Baseline", "This model"] if other else ["This model"])


def _aligned(this: Run, other: Run, metric: str) -> np.ndarray:
    """The baseline's values in the order of this run's rows; NaN where it lacks the query."""
    values = other.per_query.values(metric)
    return np.array([values.get(key, np.nan) for key in this.per_query.keys])


def _bins(pairs: np.ndarray) -> list[tuple[int, int]]:
    """0, then up to `FREQUENCY_BINS` ranges with about as many queries each; only ranges that hold a query."""
    positive = np.sort(pairs[pairs > 0])
    bins = [(0, 0)] if (pairs == 0).any() else []
    if not len(positive):
        return bins
    edges = np.unique(np.quantile(positive, np.arange(1, FREQUENCY_BINS + 1) / FREQUENCY_BINS, method="higher"))
    low = int(positive[0])
    for edge in edges:
        bins.append((low, int(edge)))
        later = positive[positive > edge]
        low = int(later[0]) if len(later) else int(edge)
    return bins


def _bin_name(low: int, high: int) -> str:
    if high == 0:
        return "0 (new)"
    return f"{low:,}" if low == high else f"{low:,}{EN_DASH}{high:,}"


def _how_picked(other: Run | None, metric: str) -> str:
    """How the shown queries were chosen, in words."""
    what = f"{metric_name(metric)} of this model" + (" minus the baseline's" if other else "")
    return (
        f"All evaluated queries of all splits, ordered by {what}: the three largest, two at the median, three smallest."
    )


def _query_views(this: Run, other: Run | None, dataset: RankedDataset, metric: str) -> list[QueryView]:
    values = this.per_query.values(metric)
    base = None if other is None else other.per_query.values(metric)
    gains = values if base is None else {key: values[key] - base[key] for key in values if key in base}
    picks = pick_queries(gains, what="gain" if other else metric_name(metric))
    keys = [pick.key for pick in picks]
    found = [("This model", "model", values, read_lists(this.path, keys))]
    if other is not None and base is not None:
        found.insert(0, ("Baseline", "base", base, read_lists(other.path, keys)))
    pairs = dict(zip(this.per_query.keys, map(int, this.per_query.pairs), strict=True))
    ideal_is_one = metric.startswith("ndcg")
    return [_query_view(pick, pairs[pick.key], found, dataset, ideal_is_one=ideal_is_one) for pick in picks]


def _query_view(
    pick: Pick,
    pairs: int,
    found: Sequence[tuple[str, str, Mapping[Key, float], Mapping[Key, list[str]]]],
    dataset: RankedDataset,
    *,
    ideal_is_one: bool,
) -> QueryView:
    split, query_id = pick.key
    query_row = dataset.queries.row(query_id)
    judged = judged_scores(dataset, query_row)
    lists = []
    for name, kind, values, ids in found:
        rows = [dataset.documents.row(doc_id) for doc_id in ids[pick.key][:LIST_LENGTH]]
        lists.append(RankedList(name, kind, values[pick.key], products(dataset, rows, judged)))
    best = ideal_rows(judged, dataset.splits.document_rows(split), k=LIST_LENGTH)
    value = 1.0 if ideal_is_one and best else None
    lists.append(RankedList("Ideal order", "ideal", value, products(dataset, best, judged)))
    text = first_texts(dataset.queries, [query_row])[0] or query_id
    return QueryView(text, SPLIT_NAMES.get(split, (split, ""))[0], pairs, pick.reason, lists)
