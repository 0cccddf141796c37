"""A shop for the search page: real products where they are, drawn ones otherwise, served by two models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from opengcl.data import RankedDataset, Schema, write_dataset
from opengcl.data.synthetic import make_shop
from opengcl.encode import encode
from opengcl.encoders import tiny_clip
from opengcl.index import IndexSpec, model_fingerprint, open_store
from opengcl.model import BiEncoder, FieldMix
from opengcl.serve.keys import ApiKeys
from tests.serving import Running, Shop, running

FIELDS = {"title": "text", "price": "number", "brand": "text", "base_colour": "text", "stock": "boolean"}
HOSTILE = '<img src=x onerror="document.title=\'owned\'"><b>Hat</b> & "bag" --%s ${1}'
"""The title of one document, and one of its colours."""
_QUERIES, _DEPTH = 40, 8


@contextmanager
def page_shop(folder: Path, fashion: Path | None, keys: ApiKeys | None = None) -> Iterator[Running]:
    """A server with models a and b over some hundred documents."""
    data = folder / "shop"
    if not data.exists():
        _write(data, _fashion_tables(fashion) if fashion else _drawn_tables(folder / "drawn"))
    dataset = RankedDataset.open(data, progress=False)
    with running([_indexed(folder, dataset, seed) for seed in (0, 1)], keys=keys) as server:
        yield server


def _fashion_tables(fashion: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Every hundredth query with its best documents."""
    queries = pq.read_table(fashion / "queries.parquet")
    queries = queries.take(list(range(0, 100 * _QUERIES, 100))).select(["query_id", "query"])
    qrels = pq.read_table(fashion / "qrels.parquet", filters=pc.field("position") <= _DEPTH)
    qrels = qrels.filter(pc.is_in(qrels["query_id"], queries["query_id"])).select(["query_id", "doc_id", "score"])
    documents = pq.read_table(
        fashion / "documents.parquet", columns=["doc_id", "title", "brand", "base_colour", "image"]
    )
    return queries, documents.filter(pc.is_in(documents["doc_id"], qrels["doc_id"])), qrels


def _drawn_tables(folder: Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    shop = make_shop(folder, products=200, queries=_QUERIES)
    queries, documents, qrels = (pq.read_table(shop / f"{name}.parquet") for name in ("queries", "documents", "qrels"))
    documents = documents.rename_columns(
        ["base_colour" if name == "colour" else name for name in documents.column_names]
    )
    return (
        queries,
        documents.select(["doc_id", "title", "brand", "base_colour", "image"]),
        qrels.drop_columns("position"),
    )


def _write(folder: Path, tables: tuple[pa.Table, pa.Table, pa.Table]) -> None:
    """The tables with a price from 5 upwards, two thirds in stock, and one hostile document."""
    queries, documents, qrels = tables
    rows = np.arange(len(documents))
    titles, colours = (documents[name].to_pylist() for name in ("title", "base_colour"))
    titles[3] = colours[3] = HOSTILE
    documents = documents.drop_columns(["title", "base_colour"])
    for name, values in {
        "title": titles,
        "base_colour": colours,
        "price": (5 + rows * 0.5).tolist(),
        "stock": (rows % 3 > 0).tolist(),
    }.items():
        documents = documents.append_column(name, pa.array(values))
    schema = Schema("page-shop", {"query": "text"}, {"title": "text", "image": "image"}, 1.0, 100.0)
    write_dataset(folder, schema, queries, documents, qrels)


def _indexed(folder: Path, dataset: RankedDataset, seed: int) -> Shop:
    """An untrained model of this seed and the index of its vectors, made once."""
    run, uri = folder / f"model-{seed}", f"exact:{folder / f'store-{seed}'}"
    if not run.exists():
        rows = np.arange(len(dataset.documents))
        titles = [title for title in dataset.documents.texts("title", rows) if title]
        encoder = tiny_clip(titles, seed=seed, dim=32, image_size=32, vocabulary=512, image_layers=1)
        model = BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema, document={"title": 0.7, "image": 0.3}))
        model.save(run)
        vectors = encode(model, dataset.documents, "document", rows)
        made = datetime.now(UTC).isoformat()
        spec = IndexSpec(model_fingerprint(run), vectors.shape[1], "float32", FIELDS, dataset.fingerprint, made)
        store = open_store(uri)
        index = store.create("v1", spec)
        index.upsert(
            dataset.documents.ids(), vectors, {name: dataset.documents.column(name).to_pylist() for name in FIELDS}
        )
        index.finish()
        store.swap("v1")
        store.close()
    return Shop(run, dataset, uri)
