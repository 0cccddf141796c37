"""HTML pages of one file: what the report of a run and the page of a data set have in common.

A page makes no requests and runs no script, and everything that comes from data is escaped.
"""

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from opengcl.data.dataset import RankedDataset
from opengcl.data.problems import DataSetError
from opengcl.data.records import Records
from opengcl.named_folders import require_place

PICTURE_SIDE = 112
SCORE_CLASSES = 5


@dataclass(frozen=True)
class Product:
    """A document in a ranked list; `shade` is 0 where it is not judged, else 1 to `SCORE_CLASSES`."""

    title: str | None
    picture: str | None
    doc_id: str
    score: float | None
    shade: int


def environment(**filters: Callable[..., str]) -> jinja2.Environment:
    """The templates, escaping everything, with more filters by name."""
    found = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= filters
    return found


def write_whole(out: Path, page: str) -> None:
    """Writes beside the target first, so that a reader never sees half a page.

    Raises:
        ValueError: The target is a folder, or the folder that it goes into is not there.
    """
    require_place(out)
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        scratch.write_text(page, encoding="utf-8")
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)


def products(dataset: RankedDataset, rows: Sequence[int], judged: Mapping[int, float]) -> list[Product]:
    """Documents as a page shows them.

    Args:
        dataset: Where they are.
        rows: Their rows.
        judged: Row -> score, for those that are judged.
    """
    where = np.array(rows, dtype=np.int64)
    titles, pictures = first_texts(dataset.documents, rows), first_pictures(dataset.documents, rows)
    shown = zip(rows, titles, pictures, dataset.documents.ids(where), strict=True)
    return [
        Product(title, picture, doc_id, judged.get(row), _shade(judged.get(row), dataset))
        for row, title, picture, doc_id in shown
    ]


def first_texts(records: Records, rows: Sequence[int]) -> list[str | None]:
    """The first text field that a row has, in the order of the schema."""
    found: list[str | None] = [None] * len(rows)
    for field, kind in records.fields.items():
        if kind == "text":
            texts = records.texts(field, np.array(rows, dtype=np.int64))
            found = [old or new for old, new in zip(found, texts, strict=True)]
    return found


def first_pictures(records: Records, rows: Sequence[int]) -> list[str | None]:
    """The first image field that a row has, as a data URI of at most `PICTURE_SIDE` pixels a side."""
    found: list[str | None] = [None] * len(rows)
    for field, kind in records.fields.items():
        if kind == "image":
            for at, row in enumerate(rows):
                if found[at] is None and (image := picture(records, field, row)) is not None:
                    found[at] = data_uri(image)
    return found


def picture(records: Records, field: str, row: int) -> Image.Image | None:
    """A row's picture; None where it is missing, and where it cannot be decoded."""
    try:
        return records.images(field, [row])[0]
    except DataSetError:
        return None


def data_uri(image: Image.Image) -> str:
    """A small JPEG of a picture, for the page itself."""
    small = image.copy()
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shade(score: float | None, dataset: RankedDataset) -> int:
    if score is None:
        return 0
    return 1 + min(SCORE_CLASSES - 1, int(dataset.schema.share(score) * SCORE_CLASSES))
