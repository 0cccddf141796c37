"""One query's ranked lists as a picture: a row of product photos per list, such as before, after and ideal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from opengcl.data.dataset import RankedDataset
from opengcl.shown_queries import judged_scores

CELL, GAP, MARGIN, HEADER, LABELS, CAPTION = 128, 14, 24, 64, 170, 40
INK, SOFT, PAGE, RULE = (27, 36, 48), (92, 104, 120), (255, 255, 255), (226, 230, 236)
UNJUDGED = (230, 233, 238)
LOW, HIGH = (251, 217, 211), (148, 215, 165)


def ranking_strip(
    dataset: RankedDataset, query_id: str, rows_by_label: Mapping[str, Sequence[str]], out_png: Path, *, title: str = ""
) -> Path:
    """Draws ranked lists of one query under each other.

    Args:
        dataset: Where pictures, titles and judged scores come from.
        query_id: The query that the lists answer.
        rows_by_label: Label of a row -> document ids, best first. A line break in a label starts a smaller second line.
        out_png: The file to write.
        title: Heading, such as the query in words; default its id.

    Returns:
        `out_png`.

    Raises:
        ValueError: There is no row, or a row is empty.
        DataSetError: The data set lacks the query or a document.
    """
    if not rows_by_label or not all(rows_by_label.values()):
        raise ValueError(f"rows_by_label has {len(rows_by_label)} rows; expected at least one, each with documents")
    judged = judged_scores(dataset, dataset.queries.row(query_id))
    longest = max(map(len, rows_by_label.values()))
    size = (
        2 * MARGIN + LABELS + longest * (CELL + GAP) - GAP,
        MARGIN + HEADER + len(rows_by_label) * (CELL + CAPTION + GAP),
    )
    sheet = Image.new("RGB", size, PAGE)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title or query_id, INK, _font(32), stroke_width=0.6)
    for i, (label, ids) in enumerate(rows_by_label.items()):
        _draw_row(sheet, dataset, label, ids, judged, top=MARGIN + HEADER + i * (CELL + CAPTION + GAP))
    sheet.save(out_png, "PNG", optimize=True)
    return out_png


def _draw_row(
    sheet: Image.Image,
    dataset: RankedDataset,
    label: str,
    ids: Sequence[str],
    judged: Mapping[int, float],
    *,
    top: int,
) -> None:
    draw = ImageDraw.Draw(sheet)
    first, _, second = label.partition("\n")
    draw.text((MARGIN, top + CELL // 2 - 24), first, INK, _font(23), stroke_width=0.5)
    draw.text((MARGIN, top + CELL // 2 + 6), second, SOFT, _font(18))
    rows = [dataset.documents.row(doc_id) for doc_id in ids]
    for i, (row, tile) in enumerate(zip(rows, _tiles(dataset, rows), strict=True)):
        left = MARGIN + LABELS + i * (CELL + GAP)
        sheet.paste(tile, (left, top))
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=RULE)
        _draw_score(draw, judged.get(row), dataset, left + CELL // 2, top + CELL + 18)


def _draw_score(
    draw: ImageDraw.ImageDraw, score: float | None, dataset: RankedDataset, middle: int, height: int
) -> None:
    colour = UNJUDGED
    if score is not None:
        share = dataset.schema.share(score)
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(LOW, HIGH, strict=True))
        colour = (red, green, blue)
    draw.rounded_rectangle((middle - 38, height - 13, middle + 38, height + 13), 8, fill=colour)
    text = "not judged" if score is None else f"{score:.3g}"
    draw.text((middle, height), text, SOFT if score is None else INK, _font(12 if score is None else 17), anchor="mm")


def _tiles(dataset: RankedDataset, rows: Sequence[int]) -> list[Image.Image]:
    """A square per document: its first picture, else its title or id."""
    where = np.array(rows, dtype=np.int64)
    tiles: list[Image.Image | None] = [None] * len(rows)
    words: list[str | None] = [None] * len(rows)
    for field, kind in dataset.documents.fields.items():
        if kind == "image":
            images = dataset.documents.images(field, where)
            tiles = [old or (None if new is None else _square(new)) for old, new in zip(tiles, images, strict=True)]
        else:
            words = [old or new for old, new in zip(words, dataset.documents.texts(field, where), strict=True)]
    ids = dataset.documents.ids(where)
    return [tile or _card(text or doc_id) for tile, text, doc_id in zip(tiles, words, ids, strict=True)]


def _square(picture: Image.Image) -> Image.Image:
    scale = CELL / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    tile = Image.new("RGB", (CELL, CELL), PAGE)
    fitted = picture.resize((width, height), Image.Resampling.LANCZOS)
    tile.paste(fitted, ((CELL - width) // 2, (CELL - height) // 2))
    return tile


def _card(text: str) -> Image.Image:
    """A title card, a few words a line."""
    tile = Image.new("RGB", (CELL, CELL), UNJUDGED)
    lines: list[str] = []
    for word in text.split()[:12]:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and len(joined) <= 15:
            lines[-1] = joined
        else:
            lines.append(word[:15])
    shown = "\n".join(lines[:6])
    ImageDraw.Draw(tile).multiline_text((CELL / 2, CELL / 2), shown, SOFT, _font(13), anchor="mm", align="center")
    return tile


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow brings."""
    return ImageFont.load_default(size)
