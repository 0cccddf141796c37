"""Wayfair's WANDS: three tab-separated files, with labels Exact, Partial and Irrelevant.

Chen, Y. et al., "WANDS: Dataset for Product Search Relevance Assessment", ECIR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opengcl.sources.mapping import TableMapping
from opengcl.sources.table_files import TableFile
from opengcl.sources.tables import TableSource

GAINS = {"Exact": 1.0, "Partial": 0.5, "Irrelevant": 0.0}
FILES = ("query.csv", "product.csv", "label.csv")
_KEPT = ("product_class", "category hierarchy", "rating_count", "average_rating", "review_count")


def wands_source(folder: Path, *, gains: Mapping[str, float] = GAINS) -> TableSource:
    """WANDS as its authors publish it: tab-separated, where a quote is a character like others.

    Fields are ``product_name`` as ``title``, ``product_description`` as ``description``, and ``product_features`` as
    ``features``. It has no splits: they are made by our formula.

    Args:
        folder: With ``query.csv``, ``product.csv`` and ``label.csv``.
        gains: Label -> score.

    Raises:
        DataSetError: A file is missing or has other columns.
    """
    queries, products, labels = (
        TableFile(folder / name, "tsv", quoted=False, delimiter="tab", decimal=".") for name in FILES
    )
    mapping = TableMapping(
        query_id="query_id",
        doc_id="product_id",
        queries={"query": "query"},
        documents={"title": "product_name", "description": "product_description", "features": "product_features"},
        images={},
        label="label",
        gains=gains,
        keep=tuple(name for name in _KEPT if name in products.columns),
    )
    return TableSource(
        "wands",
        labels,
        mapping,
        queries=queries,
        documents=products,
        name="wands",
        files=(queries.path, products.path, labels.path),
    )
