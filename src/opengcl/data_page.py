"""A data set as one HTML page: counts, distributions, near duplicates, queries with their ranked documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opengcl.charts import HEIGHT, WIDTH, BarChart, bar_chart
from opengcl.data.build import sides
from opengcl.data.dataset import RankedDataset
from opengcl.data.overview import Bin, TextLengths, judged_bins, score_bins, text_lengths
from opengcl.data.splits import SPLITS
from opengcl.named_folders import require_place
from opengcl.near_duplicates import NearDuplicates
from opengcl.near_pictures import NEAR_COLOURS, LookAlikes
from opengcl.pages import Product, data_uri, environment, first_texts, picture, products, write_whole
from opengcl.plain_yaml import write_yaml
from opengcl.progress import tracked
from opengcl.report import EN_DASH, SPLIT_NAMES
from opengcl.shown_queries import judged_scores

TITLES = 10_000
"""Documents whose titles are compared with each other."""

PICTURES = 3_000
"""Documents whose pictures are decoded and compared with each other."""

SIMILAR = 0.8
"""Jaccard similarity of two titles' runs of three characters from which on they are near duplicates."""

EXAMPLES = 8
BEST, LAST = 10, 10
_LONGEST_TEXT = 300


@dataclass(frozen=True)
class Field:
    """One field of a side: how many rows lack it, and the lengths of its texts."""

    side: str
    name: str
    kind: str
    rows: int
    missing: int
    lengths: TextLengths | None


@dataclass(frozen=True)
class NearTitles:
    """What comparing titles found: how many were compared, how many are near an earlier one, and examples."""

    field: str
    compared: int
    of: int
    near: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True)
class NearPictures:
    """What comparing pictures found; examples are pairs of products and how far they differ, from 0."""

    field: str
    compared: int
    of: int
    unreadable: int
    near: int
    examples: list[tuple[Product, Product, float]]


@dataclass(frozen=True)
class ShownQuery:
    """One query with its best and its last judged documents."""

    text: str
    query_id: str
    tags: list[str]
    lists: list[tuple[str, list[Product]]]


def write_data_page(folder: Path, out: Path, *, queries: int = 20, seed: int = 0, progress: bool = True) -> Path:
    """Writes the page of a data set.

    Counts are of all rows. Titles and pictures are compared on a sample, and the page says of how many, so that time
    and memory stay bounded.

    Args:
        folder: The data set; one with problems is shown without the rows that have them, and its problems are listed.
        out: The HTML file.
        queries: Queries shown with their documents.
        seed: Of what is drawn.
        progress: Whether long work shows a progress bar on stderr.

    Returns:
        The file.

    Raises:
        DataSetError: If the data set cannot be used at all.
        ValueError: The file cannot go there.
    """
    require_place(out)
    data = RankedDataset.open(folder, strict=False, check_images=False, progress=progress)
    page = (
        environment(short=_short, share=_share)
        .get_template("data.html")
        .render(_context(data, queries, seed, progress))
    )
    write_whole(out, page)
    return out


def _context(data: RankedDataset, queries: int, seed: int, progress: bool) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    fields = list(_fields(data))
    return {
        "name": data.schema.name,
        "counts": data.describe(),
        "splits": [(key, *SPLIT_NAMES[key]) for key in SPLITS],
        "score_range": (data.schema.score_min, data.schema.score_max),
        "relevance_range": data.schema.relevance_range,
        "fields": fields,
        "charts": _charts(data, fields),
        "chart_size": (WIDTH, HEIGHT),
        "titles": _near_titles(data, generator, progress),
        "similar": SIMILAR,
        "pictures": _near_pictures(data, generator, progress),
        "near_colours": NEAR_COLOURS,
        "queries": _shown_queries(data, queries, generator),
        "problems": [str(problem) for problem in data.problems],
        "provenance": write_yaml(_provenance(data)),
    }


def _provenance(data: RankedDataset) -> dict[str, Any]:
    return {"fingerprint": data.fingerprint, "splits": vars(data.schema.splits), **data.schema.provenance}


def _fields(data: RankedDataset) -> Any:
    for side, records in zip(sides(data.schema), (data.queries, data.documents), strict=True):
        missing = records.missing()
        for name, kind in side.fields.items():
            lengths = text_lengths(records, name) if kind == "text" else None
            yield Field(side.name, name, kind, len(records), missing[name], lengths)


def _charts(data: RankedDataset, fields: Sequence[Field]) -> list[tuple[str, str, BarChart]]:
    """(title, unit, chart) of every distribution."""
    found = [
        ("Scores", "judged pairs", score_bins(data)),
        ("Judged documents of a query", "queries", judged_bins(data)),
        *((f"Words of {one.name} ({one.side})", one.side, one.lengths.words) for one in fields if one.lengths),
    ]
    return [(title, unit, chart) for title, unit, bins in found if (chart := _chart(bins)) is not None]


def _chart(bins: Sequence[Bin]) -> BarChart | None:
    """Shares in percent; the note of a bar is its count."""
    total = sum(one.count for one in bins)
    return bar_chart([(one.label, f"{one.count:,}", [100 * one.count / max(1, total)]) for one in bins], ["share"])


def _first_field(data: RankedDataset, kind: str) -> str | None:
    return next((name for name, found in data.documents.fields.items() if found == kind), None)


def _drawn(data: RankedDataset, field: str, most: int, generator: np.random.Generator) -> tuple[list[int], int]:
    """Rows of some documents that have a field, ascending, and how many have it."""
    there = np.flatnonzero(data.documents.present(field, np.arange(len(data.documents))))
    if len(there) > most:
        return np.sort(generator.choice(there, most, replace=False)).tolist(), len(there)
    return there.tolist(), len(there)


def _near_titles(data: RankedDataset, generator: np.random.Generator, progress: bool) -> NearTitles | None:
    field = _first_field(data, "text")
    if field is None:
        return None
    rows, of = _drawn(data, field, TITLES, generator)
    seen = NearDuplicates(SIMILAR)
    pairs = []
    texts = data.documents.texts(field, rows)
    for text in tracked(texts, desc="comparing titles", unit="title", show=progress, delay=1.0):
        short = (text or "")[:_LONGEST_TEXT]
        if (earlier := seen.add(short)) is not None:
            pairs.append((earlier, short))
    # Equal ones teach the least; they are shown where there is nothing else.
    pairs.sort(key=lambda pair: pair[0] == pair[1])
    return NearTitles(field, len(rows), of, len(pairs), pairs[:EXAMPLES])


def _near_pictures(data: RankedDataset, generator: np.random.Generator, progress: bool) -> NearPictures | None:
    field = _first_field(data, "image")
    if field is None:
        return None
    drawn, of = _drawn(data, field, PICTURES, generator)
    rows, found = [], LookAlikes()
    for row in tracked(drawn, desc="comparing pictures", unit="picture", show=progress, delay=1.0):
        image = picture(data.documents, field, row)
        if image is not None:
            rows.append(row)
            found.add(image)
    pairs, shares = found.pairs()
    examples = [
        _picture_pair(data, field, [rows[at] for at in pairs[one]], float(shares[one])) for one in _apart(pairs)
    ]
    near = len(np.unique(pairs[:, 1]))
    return NearPictures(field, len(rows), of, len(drawn) - len(rows), near, examples)


def _apart(pairs: np.ndarray) -> list[int]:
    """Which pairs to show: the first ones of which no two share a picture."""
    used: set[int] = set()
    chosen: list[int] = []
    for at, pair in enumerate(pairs.tolist()):
        if len(chosen) < EXAMPLES and not used & set(pair):
            used.update(pair)
            chosen.append(at)
    return chosen


def _picture_pair(data: RankedDataset, field: str, rows: Sequence[int], share: float) -> tuple[Product, Product, float]:
    titles, ids = first_texts(data.documents, rows), data.documents.ids(np.array(rows))
    images = [picture(data.documents, field, row) or Image.new("RGB", (1, 1)) for row in rows]
    shown = zip(titles, images, ids, strict=True)
    left, right = (Product(title, data_uri(image), name, None, 0) for title, image, name in shown)
    return left, right, share


def _shown_queries(data: RankedDataset, count: int, generator: np.random.Generator) -> list[ShownQuery]:
    judged = np.flatnonzero(np.diff(data.qrels.offsets))
    rows = generator.choice(judged, min(count, len(judged)), replace=False)
    return [_shown_query(data, int(row)) for row in np.sort(rows)]


def _shown_query(data: RankedDataset, row: int) -> ShownQuery:
    scores = judged_scores(data, row)
    order = sorted(scores, key=lambda document: -scores[document])
    lists = [("Highest", order[:BEST])]
    if len(order) > BEST:
        lists.append(("Lowest", order[BEST:][-LAST:]))
    seen, dev = bool(data.splits.query_seen[row]), bool(data.splits.query_dev[row])
    tags = [f"{len(order):,} judged", "seen" if seen else "novel", "dev" if dev else "test"]
    identifier = data.queries.ids([row])[0]
    text = first_texts(data.queries, [row])[0] or identifier
    return ShownQuery(text, identifier, tags, [(name, products(data, some, scores)) for name, some in lists])


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _share(part: int, of: int) -> str:
    return EN_DASH if not of else f"{part / of:.1%}"
