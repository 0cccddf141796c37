"""Amazon's Shopping Queries (ESCI): judged examples and products as two Parquet files.

Reddy, C. et al., "Shopping Queries Dataset: A Large-Scale ESCI Benchmark for Improving Product Search",
arXiv 2206.06588.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opengcl.data.problems import DataSetError, listed, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID, SPLIT
from opengcl.sources.columns import ids, texts
from opengcl.sources.source import Batch, Description
from opengcl.sources.table_files import TableFile

GAINS = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
"""Gains of Exact, Substitute, Complement and Irrelevant: those of the paper's ranking task."""

LOCALES = ("us", "es", "jp")
EXAMPLES = "shopping_queries_dataset_examples.parquet"
PRODUCTS = "shopping_queries_dataset_products.parquet"
_FIELDS = {
    "title": "product_title",
    "description": "product_description",
    "bullet_points": "product_bullet_point",
    "brand": "product_brand",
    "color": "product_color",
}
_LABELS = {"exact": "E", "substitute": "S", "complement": "C", "irrelevant": "I"}

_COLON = pa.scalar(":", pa.large_string())

Version = Literal["small", "large"]


@dataclass(frozen=True)
class EsciSource:
    """ESCI as its authors publish it.

    Ids are ``locale:product_id``, as a product id is unique within a locale only. Queries of the split ``train`` are
    seen, those of ``test`` novel; documents are divided by our formula, as ESCI does not divide them.

    Attributes:
        folder: With the two Parquet files.
        locales: Which of us, es and jp.
        version: ``large`` (all examples) or ``small`` (the ranking task's harder queries).
        gains: Label -> score.
    """

    folder: Path
    locales: tuple[str, ...] = LOCALES
    version: Version = "large"
    gains: Mapping[str, float] = field(default_factory=lambda: GAINS)

    def __post_init__(self) -> None:
        if wrong := [one for one in self.locales if one not in LOCALES] or (not self.locales and ["none"]):
            raise DataSetError(f"locale: found {shown(wrong[0])}; allowed: {', '.join(LOCALES)}")
        if self.version not in ("small", "large"):
            raise DataSetError(f"version: found {shown(self.version)}; allowed: small, large")
        if set(self.gains) != set(GAINS):
            raise DataSetError(f"gains: found {', '.join(self.gains)}; required: one for each of {', '.join(GAINS)}")

    def describe(self) -> Description:
        """See `Source`."""
        examples, products = self._files()
        for file, columns in ((examples, self._example_columns()), (products, self._product_columns(products))):
            if lost := [one for one in columns if one not in file.columns]:
                raise DataSetError(f"{file.name}, column '{lost[0]}': missing; it has {listed(file.columns)}")
        options = {"locales": list(self.locales), "version": self.version, "gains": dict(self.gains)}
        return Description(
            source="esci",
            name=f"esci-{'-'.join(self.locales)}-{self.version}",
            queries={"query": "text"},
            documents={name: "text" for name, column in _FIELDS.items() if column in products.columns},
            score_range=(min(0.0, *self.gains.values()), max(self.gains.values())),
            options=options,
            files=(examples.path, products.path),
            split_queries=True,
        )

    def batches(self, *, progress: bool) -> Iterator[Batch]:
        """See `Source`."""
        examples, products = self._files()
        for rows in examples.read(self._example_columns(), progress=progress):
            locale = texts(rows.batch.column("product_locale"), examples.name, "product_locale")
            wanted = self._wanted(locale)
            if self.version == "small":
                wanted = pc.and_(wanted, pc.equal(pc.cast(rows.batch.column("small_version"), pa.int64()), 1))
            numbers = np.flatnonzero(np.asarray(wanted)) + rows.first
            yield from self._examples(rows.batch.filter(wanted), examples.name, numbers)
        fields = {name: column for name, column in _FIELDS.items() if column in products.columns}
        for rows in products.read(self._product_columns(products), progress=progress):
            wanted = self._wanted(texts(rows.batch.column("product_locale"), products.name, "product_locale"))
            batch, numbers = rows.batch.filter(wanted), np.flatnonzero(np.asarray(wanted)) + rows.first
            columns = {DOCUMENT_ID: _document_ids(batch, products.name)}
            columns |= {name: texts(batch.column(column), products.name, column) for name, column in fields.items()}
            yield Batch("documents", pa.RecordBatch.from_pydict(columns), products.name, numbers=numbers)

    def _examples(self, batch: pa.RecordBatch, file: str, numbers: np.ndarray) -> Iterator[Batch]:
        query_id = ids(batch.column("query_id"), file, "query_id")
        split = texts(batch.column("split"), file, "split")
        queries = {
            QUERY_ID: query_id,
            "query": texts(batch.column("query"), file, "query"),
            SPLIT: pc.if_else(pc.equal(split, "train"), "seen", "novel"),
        }
        yield Batch("queries", pa.RecordBatch.from_pydict(queries), file, numbers=numbers)
        raw = texts(batch.column("esci_label"), file, "esci_label")
        labels = [_LABELS.get((one or "").lower(), one) for one in raw.to_pylist()]
        pairs = {
            QUERY_ID: query_id,
            DOCUMENT_ID: _document_ids(batch, file),
            "score": pa.array([self.gains.get(str(one)) for one in labels], pa.float64()),
            "label": pa.array(labels, pa.large_string()),
        }
        yield Batch(
            "qrels",
            pa.RecordBatch.from_pydict(pairs),
            file,
            numbers=numbers,
            raw_score=raw,
            score_column="esci_label",
            allowed_score=" or ".join(self.gains),
        )

    def _wanted(self, locale: pa.Array) -> pa.Array:
        return pc.is_in(locale, pa.array(list(self.locales), pa.large_string()))

    def _files(self) -> tuple[TableFile, TableFile]:
        return TableFile(self.folder / EXAMPLES), TableFile(self.folder / PRODUCTS)

    def _example_columns(self) -> list[str]:
        return ["query", "query_id", "product_id", "product_locale", "esci_label", "split", "small_version"]

    def _product_columns(self, products: TableFile) -> list[str]:
        return ["product_id", "product_locale", *(column for column in _FIELDS.values() if column in products.columns)]


def _document_ids(batch: pa.RecordBatch, file: str) -> pa.Array:
    locale = texts(batch.column("product_locale"), file, "product_locale")
    return pc.binary_join_element_wise(locale, ids(batch.column("product_id"), file, "product_id"), _COLON)
