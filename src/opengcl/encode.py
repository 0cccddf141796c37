"""The one path from records to vectors: evaluation and search both use it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from opengcl.data import Records
from opengcl.data.problems import EXAMPLES, shown
from opengcl.distributed import gather_rows, rank, slice_of_rank, world_size
from opengcl.fill_in import MIN_ROWS, FillIn, Moments, drawn
from opengcl.given_lists import listed
from opengcl.inputs import MAX_UNREADABLE, Inputs, chunk_to_device, text_features, to_device
from opengcl.model import BiEncoder
from opengcl.progress import tracked
from opengcl.prompts import Side

Rows = Int[np.ndarray, " rows"]
_told: WeakSet[BiEncoder] = WeakSet()
logger = logging.getLogger(__name__)


def rows_with_fields(model: BiEncoder, records: Records, side: Side) -> Rows:
    """Rows of a table that have any of a model's fields, ascending; a row of images has none for a model of texts."""
    every = np.arange(len(records))
    return np.flatnonzero(np.any([records.present(field, every) for field in model.mix.weights(side)], axis=0))


def inputs_for(
    model: BiEncoder,
    records: Records,
    side: Side,
    *,
    strict: bool = True,
    max_unreadable: float = MAX_UNREADABLE,
) -> Inputs:
    """The inputs of a table for a model's fields of one side.

    Pictures that a run has decoded for the same data set and processor are read from where they are kept.

    Args:
        model: Whose fields.
        records: The table.
        side: Which side it is.
        strict: Whether rows without any of the fields are an error. If not, they are left out: a warning counts and
            names them, and `Inputs.usable` says which are left.
        max_unreadable: As in `Inputs`.

    Raises:
        ValueError: The table lacks a field of the model, or has it with another type, or has rows without any of the
            fields (if not ``strict``: has no other rows); the message names them.
    """
    for name, kind in model.mix.types(side).items():
        if records.fields.get(name) != kind:
            found = f"which is {records.fields[name]}" if name in records.fields else "which the data set lacks"
            raise ValueError(f"the model reads the {side} field {name!r} as {kind}, {found}")
    fields = list(model.mix.weights(side))
    without = np.setdiff1d(np.arange(len(records)), rows_with_fields(model, records, side), assume_unique=True)
    if len(without):
        _tell_of_rows_without(records, side, fields, without, strict=strict)
    inputs = Inputs(model.encoder, records, fields, side=side, max_unreadable=max_unreadable)
    inputs.use_kept_pictures()
    return inputs


def _tell_of_rows_without(records: Records, side: Side, fields: list[str], without: Rows, *, strict: bool) -> None:
    named = ", ".join(map(shown, records.ids(without[:EXAMPLES])))
    told = (
        f"{len(without):,} of {len(records):,} {records.file} rows have none of the fields {', '.join(fields)} "
        f"({side} {named}{', ...' if len(without) > EXAMPLES else ''})"
    )
    if len(without) == len(records):
        raise ValueError(f"{told}; the model needs a field that they have")
    if strict:
        raise ValueError(
            f"{told}; name a field that they have (--fields, --query-fields), or leave them out: --no-strict, "
            "strict: false in a config, strict=False in Python"
        )
    logger.warning("%s; they are left out", told)


def encode(
    model: BiEncoder,
    records: Records,
    side: Side,
    rows: Rows,
    *,
    inputs: Inputs | None = None,
    into: Float[np.ndarray, "rows d"] | None = None,
    zero_unreadable: bool = False,
    batch_size: int = 1024,
    progress: bool = False,
) -> Float[np.ndarray, "rows d"]:
    """Unit vectors of some rows of a table.

    Under ``torchrun`` each rank encodes its share of every block and gets all vectors.

    Args:
        model: The encoder and its fields; its training mode is left as it was.
        records: Queries or documents.
        side: Whose fields to use.
        rows: Which rows, in the order of the result.
        inputs: Features made before (the training run's caches); made here when not given.
        into: float32 array to fill and return, such as a memory map that is larger than memory.
        zero_unreadable: Give zeros, and no error, for a row that has nothing that can be read.
        batch_size: Rows read and encoded at a time.
        progress: Show a bar on the first rank.

    Returns:
        float32, one unit row each.

    Raises:
        ValueError: As `inputs_for`; ``into`` has another shape; a vector is not finite, or a row cannot be read, and
            the message names it.
    """
    inputs = inputs or inputs_for(model, records, side)
    _note_unfilled(model, inputs, side, rows)
    width = model.encoder.get_embedding_dimension() or 0
    if into is None:
        into = np.empty((len(rows), width), dtype=np.float32)
    if into.shape != (len(rows), width):
        raise ValueError(f"into has shape {into.shape}; {len(rows)} rows of width {width} are to be written")
    step = batch_size * world_size()
    what = f"encoding {len(rows):,} {'queries' if side == 'query' else 'documents'}"
    shown = progress and rank() == 0
    for start in tracked(range(0, len(rows), step), desc=what, unit="batch", show=shown, leave=False):
        block = rows[start : start + step]
        own = block[slice_of_rank(len(block), rank(), world_size())]
        part = _encode_batch(model, records, side, own, inputs)
        if not zero_unreadable:
            _require_usable(inputs, records, side, own)
        into[start : start + len(block)] = gather_rows(part, len(block)).cpu().numpy()
    return into


def fit_fill_in(
    model: BiEncoder, documents: Records, rows: Rows, *, inputs: Inputs | None = None, batch_size: int = 1024
) -> FillIn:
    """What stands for fields that a document lacks, learned from those that have two or more.

    Assigned to ``model.fill_in``, it is used wherever the model encodes documents, and ``model.save`` keeps it.

    Args:
        model: The encoder and its document fields.
        documents: The table.
        rows: Which documents may be used, such as those of ``dataset.splits.document_seen``; of those that have two
            fields, `opengcl.fill_in.FIT_ROWS` are drawn where there are more.
        inputs: As in `encode`.
        batch_size: Rows read and encoded at a time.

    Returns:
        Maps between every two fields that enough documents have together; another one is noted in the log.
    """
    inputs = inputs or inputs_for(model, documents, "document")
    fields = list(model.mix.document)
    several = drawn(rows[np.sum([inputs.present(field, rows) for field in fields], axis=0) > 1])
    moments = Moments(fields)
    for start in range(0, len(several), batch_size):
        block = several[start : start + batch_size]
        own = block[slice_of_rank(len(block), rank(), world_size())]
        with _evaluating(model):
            part = model.encode_fields(to_device(inputs.of(own), model.device), "document")
        whole = gather_rows(part.embeddings.transpose(0, 1).contiguous(), len(block)).transpose(0, 1)
        present = gather_rows(part.present.T.to(torch.uint8).contiguous(), len(block)).T.bool()
        moments.add(whole.cpu(), present.cpu())
    found = moments.fit()
    for one, other in itertools.combinations(fields, 2):
        if (one, other) not in found.maps:
            told = "%r and %r are not filled in from each other: fewer than %d of the seen documents have both"
            logger.warning(told, one, other, MIN_ROWS)
    return found


def lacks_fields(model: BiEncoder, inputs: Inputs, rows: Rows) -> Bool[np.ndarray, " rows"]:
    """Which documents lack some of the model's fields, and not all of them."""
    there = np.stack([inputs.present(field, rows) for field in model.mix.document])
    return np.asarray(there.any(0) & ~there.all(0))


def _note_unfilled(model: BiEncoder, inputs: Inputs, side: Side, rows: Rows) -> None:
    """Says once a model that it leaves out what it should fill in."""
    if side == "query" or model.missing_fields == "leave_out" or model.fill_in is not None or model in _told:
        return
    lacking = int(lacks_fields(model, inputs, rows).sum())
    if lacking:
        _told.add(model)
        logger.warning(
            "%d of %d documents lack a field and are encoded by the others alone, as the model has not learned to fill "
            "it in: model.fill_in = opengcl.encode.fit_fill_in(model, documents, rows)",
            lacking,
            len(rows),
        )


def encode_texts(model: BiEncoder, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
    """Unit vectors of queries that are plain text, as a search box gives them; the query prompt goes before each.

    Raises:
        ValueError: The model's query side has no text field, a text is blank, or one text is given in place of a list.
    """
    texts = listed("texts", texts)
    if "text" not in model.mix.query_types.values():
        raise ValueError(f"the model's query fields are {', '.join(model.mix.query_types)}; none of them is text")
    if not all(text.strip() for text in texts):
        raise ValueError("a query is blank")
    chunk = text_features(model.encoder, texts, "query")
    with _evaluating(model):
        return model.encode_chunk(chunk_to_device(chunk, model.device)).cpu().numpy()


@contextmanager
def _evaluating(model: BiEncoder) -> Iterator[None]:
    """No gradients and no dropout; the training mode is put back after."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _require_usable(inputs: Inputs, records: Records, side: Side, rows: Rows) -> None:
    lost = rows[~inputs.usable(rows)]
    if len(lost):
        reasons = [found.get(int(lost[0]), f"no {field}") for field, found in inputs.unreadable.items()]
        raise ValueError(
            f"{records.file}: {side} {records.ids(lost[:1])[0]!r} has nothing to be encoded by: {'; '.join(reasons)}"
        )


def _encode_batch(model: BiEncoder, records: Records, side: Side, rows: Rows, inputs: Inputs) -> torch.Tensor:
    with _evaluating(model):
        fields = model.encode_fields(to_device(inputs.of(rows), model.device), side)
        vectors = model.fuse(fields, side)
    bad = ~vectors.isfinite().all(1)
    if bool(bad.any()):
        name = records.ids(rows[bad.cpu().numpy()])[0]
        raise ValueError(f"the model's vector of {side} {name!r} is not finite")
    return vectors
