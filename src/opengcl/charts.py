"""Line and bar charts as positions in a drawing area; a template turns them into SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 520.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 12.0, 36.0
BAR_SHARE = 0.72
"""Share of a bar group's width that bars fill."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in pixels, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve: the points of an SVG polyline, its end, and the last value."""

    name: str
    points: str
    end: tuple[float, float]
    last: float


@dataclass(frozen=True)
class LineChart:
    """Curves over a common x axis."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


@dataclass(frozen=True)
class Bar:
    """One bar in pixels, with its value and the row of its series."""

    x: float
    y: float
    width: float
    height: float
    value: float
    series: int


@dataclass(frozen=True)
class BarGroup:
    """The bars over one label; `note` goes on a second line."""

    at: float
    label: str
    note: str
    bars: list[Bar]


@dataclass(frozen=True)
class BarChart:
    """Groups of bars side by side, from zero up."""

    y_ticks: list[Tick]
    groups: list[BarGroup]
    series: list[str]


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]]) -> LineChart | None:
    """Places curves.

    Args:
        series: Name -> (x, y) points; points that are not finite are left out.

    Returns:
        The chart, or None where no curve has a point.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    everything = [point for points in finite.values() for point in points]
    if not everything:
        return None
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    x_values, y_values = _round_numbers(min(xs), max(xs), 6), _round_numbers(min(ys), max(ys), 5)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = min(*ys, y_values[0]), max(*ys, y_values[-1])
    lines = []
    for name, points in finite.items():
        placed = [(_x(x, x_low, x_high), _y(y, y_low, y_high)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        lines.append(Line(name, path, placed[-1], points[-1][1]))
    x_ticks = [Tick(_x(v, x_low, x_high), f"{v:,.6g}") for v in x_values if x_low <= v <= x_high]
    return LineChart(x_ticks, [Tick(_y(v, y_low, y_high), f"{v:.6g}") for v in y_values], lines)


def bar_chart(groups: Sequence[tuple[str, str, Sequence[float]]], series: Sequence[str]) -> BarChart | None:
    """Places groups of bars.

    Args:
        groups: (label, note, one value per series), values at least 0.
        series: Name of each series.

    Returns:
        The chart, or None where there is no group.
    """
    if not groups:
        return None
    top_values = _round_numbers(0.0, max(max(values) for _, _, values in groups) or 1.0, 5)
    high = top_values[-1]
    slot = (WIDTH - LEFT - RIGHT) / len(groups)
    width = min(46.0, slot * BAR_SHARE / len(series))
    placed = []
    for i, (label, note, values) in enumerate(groups):
        middle = LEFT + slot * (i + 0.5)
        start = middle - width * len(series) / 2
        bars = []
        for j, value in enumerate(values):
            y = _y(value, 0.0, high)
            bars.append(Bar(start + j * width, y, width - 2, HEIGHT - BOTTOM - y, value, j))
        placed.append(BarGroup(middle, label, note, bars))
    return BarChart([Tick(_y(v, 0.0, high), f"{v:.6g}") for v in top_values], placed, list(series))


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _round_numbers(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose [low, high], about `count` of them."""
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
