"""The pictures of the results page: SVG made by hand, readable in light and dark, and one query before and after.

Each function takes figures and returns the SVG's text; positions are pixels from the top left.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from opengcl.charts import Tick
from opengcl.data import RankedDataset
from opengcl.run_folder import read_lists, read_run
from opengcl.shown_queries import ideal_rows, judged_scores
from opengcl.strip import ranking_strip

from .cell import FIELDS, ROOT, Cell
from .data import dataset_folder

IMAGES = ROOT / "docs" / "images"
BEFORE_AFTER = "before-after.png"
TONES = ("clip", "paper", "ours", "form", "published", "two", "other")
"""Colours by what a side is; the last is for sides that no sentence names."""

STYLE = """
svg { --card: #ffffff; --ink: #1b2430; --soft: #5c6878; --rule: #e2e6ec;
  --clip: #7a8599; --paper: #d9822b; --ours: #2f5fd0; --form: #a44fb5; --published: #1f9d75; --two: #b3352c;
  --other: #bcc4d0; font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --card: #1a2029; --ink: #e8ecf2; --soft: #9aa7b8; --rule: #2b3441;
  --clip: #9aa7b8; --paper: #f0a860; --ours: #7aa2ff; --form: #cf8fdd; --published: #56cfa4; --two: #ff9187;
  --other: #566274; } }
.card { fill: var(--card); }
text { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
.soft { fill: var(--soft); }
.title { font-size: 14px; font-weight: 600; }
.named { font-weight: 600; }
.rule { stroke: var(--rule); stroke-width: 1; }
.level { stroke: var(--clip); stroke-width: 1.5; stroke-dasharray: 5 4; }
.leader { stroke: var(--soft); stroke-width: .75; opacity: .6; }
.line { fill: none; stroke-width: 2.25; stroke-linejoin: round; }
.dot { stroke: var(--card); stroke-width: 1.5; }
""" + "\n".join(f".dot.{tone} {{ fill: var(--{tone}); }} .line.{tone} {{ stroke: var(--{tone}); }}" for tone in TONES)
CHARACTER, BOLD, TALL = 6.7, 7.9, 13.0  # width of a character and height of a line of labels, rounded up
LISTED = 76  # characters of a line of small print under a panel
GAP = 15.0  # least distance of labels under each other
NEAR = 24.0  # how far from its dot the name of a side that no sentence names may stand in a crowd


@dataclass(frozen=True)
class Curve:
    """A side's values over the run; `points` are (documents encoded, value), both above 0."""

    name: str
    tone: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Dot:
    """A side's place in a picture; `reach` is where a horizontal whisker ends."""

    name: str
    tone: str
    x: float
    y: float
    reach: float | None = None


@dataclass(frozen=True)
class Scale:
    """Values to pixels, evenly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; values beyond the ends stop there."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + min(1.0, max(0.0, (at - low) / (high - low))) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value lies within the ends."""
        return self.low <= value <= self.high


@dataclass
class Frame:
    """A drawing area with its axes, and what has been drawn in it."""

    x: Scale
    y: Scale
    parts: list[str] = field(default_factory=list)

    def axes(self, x_ticks: Sequence[Tick], y_ticks: Sequence[Tick], x_name: str, y_name: str) -> None:
        """Rules and figures of the y axis, figures of the x axis, both names."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        for tick in y_ticks:
            self.parts.append(_line("rule", left, tick.at, right, tick.at))
            self.parts.append(_text(left - 6, tick.at + 4, tick.label, "soft", "end"))
        for tick in x_ticks:
            self.parts.append(_line("rule", tick.at, bottom, tick.at, bottom + 4))
            self.parts.append(_text(tick.at, bottom + 18, tick.label, "soft", "middle"))
        self.parts.append(_text(right, bottom + 35, x_name, "soft", "end"))
        self.parts.append(_text(left - 30, top - 8, y_name, "soft"))


def learning_curves(
    curves: Sequence[Curve],
    level: tuple[str, float] | None,
    *,
    title: str,
    axes: tuple[str, str] = ("documents encoded (log)", "mean dev NDCG@10"),
) -> str | None:
    """Quality on dev queries against documents encoded, a line a side, names at their ends.

    Args:
        curves: The lines.
        level: A dashed horizontal line: its name and value.
        title: Of the picture.
        axes: Names of both axes; x is always a number of documents.

    Returns:
        SVG, or None where no curve has a point.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points] + ([level[1]] if level else [])
    y_values = round_numbers(*_spread(ys, 0.06), 6)
    frame = Frame(Scale(min(xs), _above(xs), 54, 560, log=True), Scale(y_values[0], y_values[-1], 300, 66))
    x_ticks = [Tick(frame.x(v), _documents(v)) for v in _log_ticks(frame.x.low, frame.x.high)]
    frame.axes(x_ticks, [Tick(frame.y(v), f"{v:.6g}") for v in y_values], *axes)
    if level:
        at = frame.y(level[1])
        frame.parts.append(_line("level", frame.x.start, at, frame.x.end, at))
    ends = [(frame.x(curve.points[-1][0]), frame.y(curve.points[-1][1])) for curve in curves]
    for curve in curves:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in curve.points)
        frame.parts.append(f'<polyline class="line {curve.tone}" points="{path}"/>')
    if level:
        frame.parts.append(_level_name(frame, curves, *level))
    for curve, (x, y), label in zip(curves, ends, spread_labels([y for _, y in ends]), strict=True):
        frame.parts.append(_line("leader", x, y, frame.x.end + 14, label))
        frame.parts.append(_dot(curve.tone, x, y))
        frame.parts.append(
            _text(frame.x.end + 18, label + 4, f"{curve.name} {curve.points[-1][1]:.3f}", _weight(curve.tone))
        )
    return _svg(780, 345, title, frame.parts)


def _level_name(frame: Frame, curves: Sequence[Curve], name: str, value: float) -> str:
    """The name of a horizontal line, above or below it where no curve is near."""
    at, wide = frame.y(value), CHARACTER * len(name)
    best = (-1.0, frame.x.start, at)
    for left in np.arange(frame.x.start + 6, frame.x.end - wide, 10):
        across = np.linspace(left, left + wide, 7)
        for base in (at - 5, at + 15):
            gaps = [np.abs(_heights(frame, curve, across) - (base - 4)).min() for curve in curves]
            best = max(best, (round(min(30.0, *gaps)), float(left), base), key=lambda found: found[0])
    return _text(best[1], best[2], name, "soft")


def _heights(frame: Frame, curve: Curve, across: np.ndarray) -> np.ndarray:
    """Pixels of a curve at pixels across; infinite where it has no value."""
    xs, ys = ([scale(p[i]) for p in curve.points] for i, scale in enumerate((frame.x, frame.y)))
    return np.interp(across, xs, ys, left=np.inf, right=np.inf)


def order_and_recall(panels: Sequence[tuple[str, Sequence[Dot]]], *, title: str) -> str | None:
    """Order against recall, a dot a side, a panel a split; a dashed line stands at CLIP's recall.

    Dots far below the others are listed under their panel. In a crowd, sides of the tone ``other`` go without a name.

    Args:
        panels: Split -> dots whose x is recall@100 and y NDCG@10.
        title: Of the picture.

    Returns:
        SVG, or None where no panel has a dot.
    """
    panels = [(name, dots) for name, dots in panels if dots]
    if not panels:
        return None
    width, height = 530.0, 486.0
    parts: list[str] = []
    for number, (name, dots) in enumerate(panels):
        left, top = width * (number % 2), 36 + height * (number // 2)
        parts += _panel(name, dots, left, top, width, height)
    columns, rows = min(2, len(panels)), math.ceil(len(panels) / 2)
    return _svg(columns * width, 44 + rows * height, title, parts)


def _panel(name: str, dots: Sequence[Dot], left: float, top: float, width: float, height: float) -> list[str]:
    named = [dot for dot in dots if dot.tone != "other"] or list(dots)
    x_low, x_high = _window([dot.x for dot in dots], [dot.x for dot in named])
    y_low, y_high = _window([dot.y for dot in dots], [dot.y for dot in named])
    frame = Frame(Scale(x_low, x_high, left + 54, left + width - 20), Scale(y_low, y_high, top + height - 98, top + 48))
    x_ticks = [Tick(frame.x(v), f"{v:.6g}") for v in round_numbers(x_low, x_high, 5) if frame.x.holds(v)]
    y_ticks = [Tick(frame.y(v), f"{v:.6g}") for v in round_numbers(y_low, y_high, 6) if frame.y.holds(v)]
    frame.axes(x_ticks, y_ticks, "recall@100", "NDCG@10")
    frame.parts.append(_text(left + width / 2, top + 20, name, "named", "middle"))
    clip = next((dot for dot in dots if dot.tone == "clip"), None)
    if clip is not None:
        frame.parts.append(_line("level", frame.x(clip.x), frame.y.start, frame.x(clip.x), frame.y.end))
    inside = [dot for dot in dots if frame.x.holds(dot.x) and frame.y.holds(dot.y)]
    unnamed = _place(frame, sorted(inside, key=lambda dot: -TONES.index(dot.tone)), near=NEAR)
    told = _outside([dot for dot in dots if dot not in inside])
    if unnamed:
        told.append(f"{unnamed} dots in the crowd have no name here; the table has all")
    for number, line in enumerate(told):
        frame.parts.append(_text(frame.x.start, frame.y.start + 54 + 14 * number, line, "soft"))
    return frame.parts


def _outside(dots: Sequence[Dot]) -> list[str]:
    """Names of sides beyond a panel's axes, with recall@100 and NDCG@10, in lines of a panel's width."""
    if not dots:
        return []
    told = ", ".join(
        f"{dot.name} ({dot.x:.2f}, {dot.y:.2f})".replace(" (", "\u00a0(").replace(", ", ",\u00a0") for dot in dots
    )
    return textwrap.wrap(f"below: {told}", LISTED, break_on_hyphens=False)


def latency_and_order(dots: Sequence[Dot], *, title: str) -> str | None:
    """Latency against order: x is the median in milliseconds, the whisker ends at the 99th percentile.

    Returns:
        SVG, or None where there is no dot.
    """
    if not dots:
        return None
    xs = [x for dot in dots for x in (dot.x, dot.reach or dot.x)]
    y_values = round_numbers(*_spread([dot.y for dot in dots], 0.15), 5)
    frame = Frame(Scale(min(xs) / 1.4, max(xs) * 1.8, 54, 640, log=True), Scale(y_values[0], y_values[-1], 300, 66))
    frame.axes(
        [Tick(frame.x(v), f"{v:.6g}") for v in _log_ticks(frame.x.low, frame.x.high)],
        [Tick(frame.y(v), f"{v:.6g}") for v in y_values],
        "milliseconds a query, median to 99th percentile (log)",
        "mean test NDCG@10",
    )
    for dot in dots:
        if dot.reach is not None:
            at = frame.y(dot.y)
            frame.parts.append(
                f'<path class="line {dot.tone}" d="M{frame.x(dot.x):.1f} {at:.1f}H{frame.x(dot.reach):.1f}"/>'
            )
    _place(frame, dots)
    return _svg(670, 345, title, frame.parts)


def _place(frame: Frame, dots: Sequence[Dot], *, near: float = math.inf) -> int:
    """Draw dots and their names, the last ones first at choosing a free place; a thin line leads to a distant name.

    A dot of the tone ``other`` goes without a name where the nearest free place is further away than ``near``; how many
    do is returned.
    """
    at = {dot.name: (frame.x(dot.x), frame.y(dot.y)) for dot in dots}
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
    taken += [
        (at[dot.name][0], at[dot.name][1] - 2, frame.x(dot.reach), at[dot.name][1] + 2)
        for dot in dots
        if dot.reach is not None
    ]
    lines, marks, names = [], [], []
    for dot in reversed(dots):
        x, y = at[dot.name]
        marks.append(_dot(dot.tone, x, y))
        wide = (CHARACTER if dot.tone == "other" else BOLD) * len(dot.name)
        box = _free_box(frame, x, y, wide, taken)
        nearest = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        if dot.tone == "other" and math.dist(nearest, (x, y)) > near:
            continue
        taken.append(box)
        if math.dist(nearest, (x, y)) > 9:
            lines.append(_line("leader", x, y, *nearest))
        left, anchor = (
            (box[0], "start") if box[0] > x else (box[2], "end") if box[2] < x else (sum(box[::2]) / 2, "middle")
        )
        names.append(_text(left, box[3] - 3, dot.name, _weight(dot.tone), anchor))
    frame.parts += [*lines, *reversed(marks), *names]
    return len(dots) - len(names)


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _free_box(frame: Frame, x: float, y: float, wide: float, taken: Sequence[Box]) -> Box:
    """The nearest place for a label of a dot that overlaps least with what is taken."""
    best: tuple[float, Box] | None = None
    for distance in (7, 12, 18, 26, 36, 48, 62, 78, 96, 116, 140, 170):
        for turn in (0, 12, 6, 18, 3, 21, 9, 15, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23):
            angle = turn * math.pi / 12
            middle_x = x + math.cos(angle) * (distance + wide / 2)
            middle_y = y + math.sin(angle) * (distance + TALL / 2)
            box = (middle_x - wide / 2, middle_y - TALL / 2, middle_x + wide / 2, middle_y + TALL / 2)
            if box[0] < frame.x.start + 2 or box[2] > frame.x.end + 14:
                continue
            if box[1] < frame.y.end - 4 or box[3] > frame.y.start - 2:
                continue
            overlap = sum(_overlap(box, other) for other in taken)
            if best is None or overlap < best[0]:
                best = overlap, box
            if overlap == 0:
                return box
    return best[1] if best else (x + 7, y - TALL / 2, x + 7 + wide, y + TALL / 2)


def _overlap(one: Box, two: Box) -> float:
    wide = min(one[2], two[2]) - max(one[0], two[0])
    tall = min(one[3], two[3]) - max(one[1], two[1])
    return wide * tall if wide > 0 and tall > 0 else 0.0


def spread_labels(heights: Sequence[float], gap: float = GAP) -> list[float]:
    """Heights of labels at least a gap apart, in the same order from the top, near where they should be."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    groups: list[list[float]] = []  # [sum of the wished heights less their offsets, labels]
    for i in order:
        groups.append([heights[i], 1])
        while len(groups) > 1 and _first(groups[-2], gap) + groups[-2][1] * gap > _first(groups[-1], gap):
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
    placed = [_first(group, gap) + k * gap for group in groups for k in range(int(group[1]))]
    result = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        result[i] = height
    return result


def _first(group: Sequence[float], gap: float) -> float:
    """Height of the first label of labels that touch, centred on where they should be."""
    total, count = group
    return total / count - gap * (count - 1) / 2


def round_numbers(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose [low, high], about ``count`` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**p for p in powers for f in (1, 2, 5) if low <= f * 10.0**p <= high]


def _spread(values: Sequence[float], share: float) -> tuple[float, float]:
    """The range of values and a margin of a share of it."""
    low, high = min(values), max(values)
    margin = share * (high - low) or 0.01
    return low - margin, high + margin


def _above(values: Sequence[float]) -> float:
    return max(max(values), min(values) * 1.01)


def _window(values: Sequence[float], named: Sequence[float]) -> tuple[float, float]:
    """A range that holds the named values and all others that are not far below the middle half."""
    first, third = np.quantile(values, [0.25, 0.75])
    low = min(min(named), max(min(values), float(first - 1.5 * (third - first))))
    return _spread([low, max(values)], 0.06)


def _documents(count: float) -> str:
    return f"{count / 1e6:g} M" if count >= 1e6 else f"{count / 1e3:g} k" if count >= 1e3 else f"{count:g}"


def _weight(tone: str) -> str:
    return "soft" if tone == "other" else "named"


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(tone: str, x: float, y: float) -> str:
    return f'<circle class="dot {tone}" cx="{x:.1f}" cy="{y:.1f}" r="{3.5 if tone == "other" else 5}"/>'


def _text(x: float, y: float, text: str, name: str = "", anchor: str = "start") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" width="{width:.0f}" height="{height:.0f}" rx="8"/>',
        _text(20, 26, title, "title"),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def before_and_after(
    data: str = "fashion", fields: str = "image+title", split: str = "novel_query", k: int = 8
) -> Path | None:
    """One query's lists from CLIP, from ours and ideal: of the split's test queries for shoes the one of median gain.

    Returns:
        The picture, or None where a run folder is missing and the picture stays as it is.
    """
    folders = [Cell(data, fields, side, 0).run_folder for side in ("clip", FIELDS[fields].ours)]
    if not all((folder / "metrics.json").is_file() for folder in folders):
        return None
    runs = [read_run(folder) for folder in folders]
    ndcg = [
        {query: value for (of, query), value in run.per_query.values("ndcg@10").items() if of == split} for run in runs
    ]
    dataset = RankedDataset.open(dataset_folder(data), progress=False)
    texts = dict(zip(ndcg[0], dataset.queries.texts("query", dataset.queries.find(list(ndcg[0]))), strict=True))
    gains = sorted((ndcg[1][query] - ndcg[0][query], query) for query in ndcg[0] if "shoes" in (texts[query] or ""))
    query = gains[len(gains) // 2][1]
    ideal = ideal_rows(judged_scores(dataset, dataset.queries.row(query)), dataset.splits.document_rows(split), k=k)
    lists = [read_lists(folder, [(split, query)])[split, query][:k] for folder in folders]
    labels = [f"{name}\nNDCG@10 {ndcg[n][query]:.2f}" for n, name in enumerate(("Plain CLIP", "OpenGCL"))]
    rows = {labels[0]: lists[0], labels[1]: lists[1], "Ideal\n ": dataset.documents.ids(np.array(ideal))}
    IMAGES.mkdir(parents=True, exist_ok=True)
    return ranking_strip(dataset, query, rows, IMAGES / BEFORE_AFTER, title=f"“{texts[query]}”")
