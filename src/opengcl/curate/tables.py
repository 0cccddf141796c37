"""The three tables of a curated data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from opengcl.curate.judged_pairs import JudgedPairs
from opengcl.curate.products import Product
from opengcl.curate.scores import Values

_PICTURES = 64
"""Products a batch, so that few pictures are in memory."""

_QUERIES = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("category", pa.string()),
        ("style", pa.string()),
        ("prompt_hash", pa.string()),
        ("model", pa.string()),
        ("temperature", pa.float64()),
        ("seed", pa.int64()),
        ("request", pa.string()),
    ]
)
_DOCUMENTS = [
    pa.field("doc_id", pa.string()),
    pa.field("title", pa.string()),
    pa.field("url", pa.string()),
    pa.field("source", pa.string()),
    pa.field("price", pa.float64()),
    pa.field("rating", pa.float64()),
    pa.field("reviews", pa.int64()),
    pa.field("image_url", pa.string()),
]


def query_table(pairs: JudgedPairs, rows: Sequence[int]) -> pa.Table:
    """The queries of these rows, with where each comes from."""
    chosen = [pairs.queries[row] for row in rows]
    columns = [
        [one.id for one in chosen],
        [one.text for one in chosen],
        [one.category for one in chosen],
        [one.style for one in chosen],
        [one.prompt for one in chosen],
        [one.model for one in chosen],
        [one.temperature for one in chosen],
        [one.seed for one in chosen],
        [one.request for one in chosen],
    ]
    return pa.table(
        [pa.array(values, one.type) for values, one in zip(columns, _QUERIES, strict=True)], schema=_QUERIES
    )


def document_reader(
    documents: dict[str, Product], picture: Callable[[str], bytes | None] | None
) -> pa.RecordBatchReader:
    """The products, a few at a time.

    Args:
        documents: Id -> product.
        picture: Address -> bytes of the picture, if it was fetched; None for a table without pictures.
    """
    with_pictures = [pa.field("image", pa.large_binary())] if picture else []
    schema = pa.schema([*_DOCUMENTS[:2], *with_pictures, *_DOCUMENTS[2:]])

    def batches() -> Iterator[pa.RecordBatch]:
        names = list(documents)
        for start in range(0, len(names), _PICTURES):
            rows = [_document(name, documents[name], picture) for name in names[start : start + _PICTURES]]
            yield pa.RecordBatch.from_pylist(rows, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _document(name: str, product: Product, picture: Callable[[str], bytes | None] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "doc_id": name,
        "title": product.title,
        "url": product.url,
        "source": product.source,
        "price": product.price,
        "rating": product.rating,
        "reviews": product.reviews,
        "image_url": product.image,
    }
    if picture:
        row["image"] = picture(product.image) if product.image else None
    return row


def qrels_table(pairs: JudgedPairs, score: Values, rows: Sequence[int]) -> pa.Table:
    """The pairs of these rows: the score that counts, and beside it what each source says."""
    at = np.asarray(rows, np.int64)
    columns: dict[str, pa.Array] = {
        "query_id": pa.array([pairs.queries[pairs.query[row]].id for row in rows], pa.string()),
        "doc_id": pa.array([pairs.document[row] for row in rows], pa.string()),
        "score": pa.array(score[at]),
        "position": pa.array([pairs.position[row] for row in rows], pa.int32()),
    }
    for name, values in pairs.scores.items():
        columns[f"score_{name}"] = pa.array(values[at], from_pandas=True)  # NaN becomes null
    if "judge" in pairs.scores:
        columns["label"] = pa.array([pairs.labels[row] for row in rows], pa.string())
    return pa.table(columns)
