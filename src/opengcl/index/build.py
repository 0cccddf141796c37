"""From a data set's documents to an index beside the live one, which then takes its place."""

from __future__ import annotations

import bisect
import decimal
import functools
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from jaxtyping import Float32, Int

from opengcl.data import DataSetError, RankedDataset, Records
from opengcl.encode import encode, inputs_for, rows_with_fields
from opengcl.given_lists import listed
from opengcl.index.filters import FieldType
from opengcl.index.identity import model_fingerprint
from opengcl.index.protocol import Index, IndexSpec, Store, VectorIndexError, VectorType, require_live_model
from opengcl.index.vectors import shorten
from opengcl.model import BiEncoder
from opengcl.progress import progress_bar
from opengcl.vector_shards import ShardError, read_left_out, read_manifest, read_shard

CHUNK_ROWS = 4096
"""Documents encoded and written at a time; a build that was stopped goes on with the first chunk that isn't there."""

Rows = Int[np.ndarray, " rows"]
Vectors = Callable[[Rows], Float32[np.ndarray, "rows width"]]

log = logging.getLogger(__name__)


def build_index(
    store: Store,
    run: str | Path,
    dataset: RankedDataset,
    *,
    name: str | None = None,
    keep: Sequence[str] | None = None,
    as_text: Sequence[str] = (),
    dimension: int | None = None,
    dtype: VectorType = "float32",
    swap: bool = True,
    replace_model: bool = False,
    vectors: str | Path | None = None,
    device: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
    progress: bool = True,
) -> Index:
    """Encodes all documents of a data set into a new index, and makes it the live one.

    Documents without any of the model's fields are an error that names them; in a data set that was not opened strictly
    they are left out, with a warning that counts them.

    The index that was live is searched meanwhile and stays in the store. Stopped at any moment, the same call goes on
    where it was, and gives the same index. A call for what is live already does nothing.

    Args:
        store: Where the index goes.
        run: A run folder or model folder.
        dataset: Whose documents to take, seen and novel alike.
        name: Of the index; made from what goes into it by default, so the same call finds its own index again.
        keep: Columns of the documents that travel along: text, integers, numbers, booleans. By default the first text
            field.
        as_text: Which of them to keep as texts: dates and times (as 2024-05-01), integers beyond 64 bits, decimals of
            many digits.
        dimension: Keep this many components of each vector, at length 1; all by default.
        dtype: ``float32``, or ``int8`` as `IndexSpec.dtype` says.
        swap: Whether the index becomes the live one when it is whole.
        replace_model: Whether it may take the place of a live index that another model made, whose servers cannot be
            started again then.
        vectors: Folder of `opengcl.vector_shards.encode_table` with the documents' vectors, which are then taken.
        device: ``cpu`` or ``cuda``; the best there is by default.
        chunk_rows: Documents encoded and written at a time.
        progress: Show a bar.

    Returns:
        The index, whole.

    Raises:
        ModelError: There is no trained model.
        DataSetError: A column to keep that isn't there or of another type.
        ShardError: The vectors are not all there, or not of this model and data.
        VectorIndexError: ``dimension`` beyond the model's, a value that an index cannot hold, or an index of that name
            with other content; with ``swap``, a live index of another model, unless ``replace_model``.
        StoreError: The store cannot be written; what was written stays for the next call.
    """
    fingerprint = model_fingerprint(run)
    if swap:
        require_live_model(store, fingerprint, replace_model=replace_model)
    documents = dataset.documents
    if vectors is None:
        model = BiEncoder.load(run, device=device)
        width, source = encoded(model, documents, strict=dataset.strict)
        rows = rows_with_fields(model, documents, "document")
    else:
        width, rows, source = from_shards(Path(vectors), documents, model=fingerprint, data=dataset.fingerprint)
    if dimension is not None and not 1 <= dimension <= width:
        raise VectorIndexError(f"dimension: found {dimension}; allowed: 1 to {width}, the width of the model's vectors")
    spec = IndexSpec(
        model=fingerprint,
        dimension=dimension or width,
        dtype=dtype,
        fields=kept_fields(documents, keep, as_text),
        data=dataset.fingerprint,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    index = open_or_create(store, name or name_of(spec), spec)
    if index.name == store.live():
        log.info("index %s is live already", index.name)
        return index
    fill(index, documents, source, rows=rows, chunk_rows=chunk_rows, progress=progress)
    index.finish()
    if swap:
        store.swap(index.name)
    return index


def encoded(model: BiEncoder, documents: Records, *, strict: bool = True) -> tuple[int, Vectors]:
    """The width of a model's vectors, and what encodes rows of documents; ``strict`` as in `inputs_for`."""
    inputs = inputs_for(model, documents, "document", strict=strict)

    def source(rows: Rows) -> Float32[np.ndarray, "rows width"]:
        return encode(model, documents, "document", rows, inputs=inputs)

    return model.encoder.get_embedding_dimension() or 0, source


def from_shards(folder: Path, documents: Records, *, model: str, data: str) -> tuple[int, Rows, Vectors]:
    """The width of vectors in files, the rows of the documents that have one, and what reads those of rows.

    Raises:
        ShardError: The files are not all there, or not the float32 vectors of this model and data's documents.
    """
    manifest = read_manifest(folder)
    required = {"model": model, "data": data, "side": "document", "dtype": "float32"}
    for name, value in required.items():
        if getattr(manifest, name) != value:
            raise ShardError(f"{folder}: {name}: found {getattr(manifest, name)}; required: {value}")

    kept = np.setdiff1d(np.arange(len(documents)), documents.find(read_left_out(folder, manifest)))
    if len(kept) != manifest.rows:
        raise ShardError(f"{folder}: rows: found {manifest.rows:,}; required: {len(kept):,}, those of {documents.file}")

    @functools.lru_cache(maxsize=2)
    def shard(number: int) -> np.ndarray:
        return read_shard(folder, manifest, number)[1]

    def source(rows: Rows) -> Float32[np.ndarray, "rows width"]:
        places = np.searchsorted(kept, rows).tolist()
        return np.stack([shard(place // manifest.shard_rows)[place % manifest.shard_rows] for place in places])

    return manifest.dimension, kept, source


def name_of(spec: IndexSpec) -> str:
    """A name that is the same for the same model, data and settings, whenever the index is made."""
    content = [spec.model, spec.data, spec.dtype, str(spec.dimension), *(f"{a}={b}" for a, b in spec.fields.items())]
    return f"v{hashlib.blake2b(chr(0).join(content).encode(), digest_size=6).hexdigest()}"


def open_or_create(store: Store, name: str, spec: IndexSpec) -> Index:
    """The index of that name, if its content is to be the same, or a new one.

    Raises:
        VectorIndexError: It is there with other content.
    """
    if name not in store.names():
        return store.create(name, spec)
    index = store.open(name)
    if not index.spec.same_content(spec):
        parts = ("model", "data", "dimension", "dtype", "fields")
        other = [part for part in parts if getattr(index.spec, part) != getattr(spec, part)]
        raise VectorIndexError(
            f"{store.uri}: index {name!r} is there with another {' and '.join(other)}; choose another name, or drop it"
        )
    return index


def fill(
    index: Index,
    documents: Records,
    vectors: Vectors,
    *,
    rows: Rows | None = None,
    chunk_rows: int = CHUNK_ROWS,
    progress: bool = True,
) -> None:
    """Writes the documents that aren't there yet, chunk by chunk in their order.

    A chunk is written whole or not at all, so the first whose last document is missing is where an earlier call ended.

    Args:
        index: Where to.
        documents: Which.
        vectors: Gives the vectors of rows, as wide as the index's or wider.
        rows: Which of the documents, ascending; all by default.
        chunk_rows: Documents of a chunk.
        progress: Show a bar.
    """
    every = np.arange(len(documents)) if rows is None else rows
    starts = range(0, len(every), chunk_rows)

    def is_missing(start: int) -> bool:
        last = min(start + chunk_rows, len(every)) - 1
        return index.get(documents.ids(every[[last]]))[0] is None

    begin = bisect.bisect_left(starts, True, key=is_missing)
    with progress_bar(total=len(every), desc="indexing", unit="doc", show=progress) as bar:
        bar.update(min(begin * chunk_rows, len(every)))
        for start in starts[begin:]:
            block = every[start : start + chunk_rows]
            try:
                fields = {name: kept_values(documents, name, block, kind) for name, kind in index.spec.fields.items()}
                index.upsert(documents.ids(block), shorten(vectors(block), index.spec.dimension), fields)
            except VectorIndexError as error:
                raise VectorIndexError(f"{documents.file}, counted from row {block[0]}: {error}") from error
            bar.update(len(block))


def kept_fields(documents: Records, keep: Sequence[str] | None, as_text: Sequence[str] = ()) -> dict[str, FieldType]:
    """The columns that travel along, with their types; those of ``as_text`` as texts, whatever they are.

    Raises:
        DataSetError: A column that isn't there, or is of a type that an index does not keep.
    """
    if keep is None:
        keep = [name for name, kind in documents.fields.items() if kind == "text"][:1]
    keep, as_text = listed("keep", keep), listed("as_text", as_text)
    if unknown := [name for name in as_text if name not in keep]:
        raise DataSetError(f"as_text: found {unknown[0]!r}; allowed: columns to keep, {', '.join(keep) or 'none'}")
    return {name: _field_type(documents, name, as_text=name in as_text) for name in dict.fromkeys(keep)}


def kept_values(documents: Records, name: str, rows: Rows, kind: FieldType) -> list[Any]:
    """Values as an index takes them. Tables often say NaN for a number that is missing.

    Raises:
        VectorIndexError: A decimal that a float64 would round; it names the row, from 0 within ``rows``.
    """
    values = documents.values(name, rows)
    if kind == "text":
        return [one if one is None or isinstance(one, str) else _as_text(one) for one in values]
    found = [_plain(one, name, row) if isinstance(one, decimal.Decimal) else one for row, one in enumerate(values)]
    return [None if isinstance(one, float) and math.isnan(one) else one for one in found]


def _as_text(value: Any) -> str | None:
    """A value as people write it; NaN is missing."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, date | time):
        return value.isoformat()
    return f"{value:f}" if isinstance(value, decimal.Decimal) else str(value)


def _plain(value: decimal.Decimal, name: str, row: int) -> int | float:
    """A decimal as the integer it is, or as the float64 that is written with the same digits."""
    if value == value.to_integral_value():
        return int(value)
    if decimal.Decimal(repr(float(value))) != value:
        raise VectorIndexError(
            f"row {row}, field {name!r}: found {value}, which a float64 would round; keep the field as text (--as-text)"
        )
    return float(value)


def _field_type(documents: Records, name: str, *, as_text: bool) -> FieldType:
    found = documents.column(name).type
    if pt.is_dictionary(found):
        found = found.value_type
    if as_text and (pt.is_primitive(found) or pt.is_decimal(found)):
        return "text"
    if pt.is_boolean(found):
        return "boolean"
    if pt.is_integer(found) or (pt.is_decimal(found) and found.scale <= 0):
        return "integer"
    if pt.is_floating(found) or pt.is_decimal(found):
        return "number"
    if pt.is_string(found) or pt.is_large_string(found) or found in (pa.string_view(), pa.null()):
        return "text"
    if pt.is_temporal(found):
        raise DataSetError(
            f"{documents.file}, column {name!r}: found {found}; an index keeps text, integers, numbers and booleans; "
            f"keep it as text (--as-text {name})"
        )
    raise DataSetError(
        f"{documents.file}, column {name!r}: found {found}; an index keeps text, integers, numbers and booleans"
    )
