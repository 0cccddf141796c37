"""From records to what an encoder reads: features of distinct rows, in chunks of like length.

Every text is tokenised once per run and every picture decoded once, into flat files that are memory-mapped; a batch is
then a gather. Where a model's features are not of a plain kind, or would not fit the limit, they are made per batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Int
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality import infer_modality
from torch import Tensor
from tqdm.auto import tqdm

from opengcl.data import Records

Features = dict[str, Any]
Rows = Int[np.ndarray, " rows"]
# Rows of one forward pass. Sorted by length, short rows then share a chunk and are not padded to the longest.
CHUNK_ROWS = 256
_BUILD_ROWS = 1024


class FieldInput(TypedDict):
    """One field of the rows of a batch: features by chunk, and where each encoded row belongs."""

    chunks: list[Features]
    order: Tensor  # int64; the k-th encoded row is row order[k] of the batch
    present: Tensor  # bool, (rows,)


class FieldSource(Protocol):
    """Makes the features of any rows of one field."""

    def lengths(self, rows: Rows) -> Int[np.ndarray, " rows"]:
        """What to sort by so that rows of a chunk need little padding."""
        ...

    def features(self, rows: Rows) -> Features:
        """Model features of rows that have the field."""
        ...


class Inputs:
    """The inputs of one table (queries or documents) for one encoder.

    Args:
        encoder: Whose ``preprocess`` makes the features.
        records: The table.
        fields: Which of its fields, in order.
        chunk_rows: Rows of one forward pass at most.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        records: Records,
        fields: Sequence[str],
        *,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        self._records, self._fields, self.chunk_rows = records, list(fields), chunk_rows
        self._sources: dict[str, FieldSource] = {field: _OnTheFly(encoder, records, field) for field in fields}
        self._encoder = encoder

    def cache(self, folder: Path, *, image_cache_bytes: float, progress: bool = True) -> None:
        """Tokenise every text and decode every picture once, into files under ``folder``.

        Args:
            folder: Where the files go; it is made.
            image_cache_bytes: Above this size of all pictures together, they are decoded per batch instead.
            progress: Show a bar.
        """
        for number, field in enumerate(self._fields):
            part = folder / str(number)  # a field's name may hold what a file's cannot
            part.mkdir(parents=True, exist_ok=True)
            kinds = (_CachedText, _CachedBags) if self._records.fields[field] == "text" else (_CachedImages,)
            for kind in kinds:
                cached = kind.build(self._encoder, self._records, field, part, image_cache_bytes, progress)
                if cached is not None:
                    self._sources[field] = cached
                    break

    def of(self, rows: Rows) -> dict[str, FieldInput]:
        """Features of the rows, field by field."""
        return {field: self._field(field, rows) for field in self._fields}

    def _field(self, field: str, rows: Rows) -> FieldInput:
        present: Bool[np.ndarray, " rows"] = self._records.present(field, rows)
        places = np.flatnonzero(present)
        source = self._sources[field]
        places = places[np.argsort(source.lengths(rows[places]), kind="stable")]
        pieces = [places[start : start + self.chunk_rows] for start in range(0, len(places), self.chunk_rows)]
        return {
            "chunks": [source.features(rows[piece]) for piece in pieces],
            "order": torch.from_numpy(places),
            "present": torch.from_numpy(present),
        }


class _OnTheFly:
    def __init__(self, encoder: SentenceTransformer, records: Records, field: str) -> None:
        self._encoder, self._records, self._field = encoder, records, field
        self._is_text = records.fields[field] == "text"

    def lengths(self, rows: Rows) -> Int[np.ndarray, " rows"]:
        if not self._is_text:
            return np.zeros(len(rows), dtype=np.int64)
        return np.array([len(text or "") for text in self._records.texts(self._field, rows)], dtype=np.int64)

    def features(self, rows: Rows) -> Features:
        return preprocess(self._encoder, self._records, self._field, rows)


def preprocess(encoder: SentenceTransformer, records: Records, field: str, rows: Rows) -> Features:
    """The encoder's own features of rows that have the field."""
    if records.fields[field] == "text":
        return text_features(encoder, [text or "" for text in records.texts(field, rows)])
    return dict(encoder.preprocess(records.images(field, rows)))


def text_features(encoder: SentenceTransformer, texts: list[str]) -> Features:
    """The encoder's own features of texts, its default prompt before each.

    A text that is a picture's address, path or data is a text all the same: sentence-transformers would fetch or open
    it, whoever wrote it.
    """
    return dict(encoder.preprocess([_only_text(text) for text in texts], prompt=_prompt(encoder)))


def _only_text(text: str) -> str:
    return text if infer_modality(text) == "text" else f" {text}"


def _prompt(encoder: SentenceTransformer) -> str | None:
    name = encoder.default_prompt_name
    return encoder.prompts[name] if name is not None else None


class _CachedText:
    """Token rows laid end to end; the tensors that a tokenizer pads are cut to each row's own length."""

    def __init__(
        self,
        flat: Mapping[str, np.ndarray],
        offsets: np.ndarray,
        place: np.ndarray,
        rest: Features,
        pad: dict[str, int],
    ) -> None:
        self._flat, self._offsets, self._place, self._rest, self._pad = flat, offsets, place, rest, pad

    @classmethod
    def build(
        cls, encoder: SentenceTransformer, records: Records, field: str, folder: Path, _: float, progress: bool
    ) -> _CachedText | None:
        rows = np.flatnonzero(records.present(field, np.arange(len(records))))
        if len(rows) == 0:
            return None
        probe = preprocess(encoder, records, field, rows[:2])
        padded = [key for key, value in probe.items() if isinstance(value, Tensor)]
        if "attention_mask" not in padded or any(
            probe[key].shape != probe["attention_mask"].shape or probe[key].is_floating_point() for key in padded
        ):
            return None  # flattened or multi-modal features
        if int(probe["attention_mask"].sum(1).max()) < probe["attention_mask"].shape[1]:
            return None  # padded beyond the longest row, as the model was trained (SigLIP): nothing to cut
        rest = {key: value for key, value in probe.items() if key not in padded}
        files = {key: (folder / f"{key}.bin").open("wb") for key in padded}
        lengths = np.zeros(len(rows), dtype=np.int64)
        try:
            for start, chunk in _chunks(rows, f"tokenising {field}", progress):
                features = preprocess(encoder, records, field, chunk)
                mask = features["attention_mask"].bool()
                lengths[start : start + len(chunk)] = mask.sum(1).numpy()
                for key in padded:
                    files[key].write(features[key][mask].to(torch.int32).numpy().tobytes())
        finally:
            for file in files.values():
                file.close()
        flat = {key: np.memmap(folder / f"{key}.bin", dtype=np.int32, mode="r") for key in padded}
        place = np.full(len(records), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        tokenizer = encoder.tokenizer
        pad = {"input_ids": int(tokenizer.pad_token_id or 0), "token_type_ids": int(tokenizer.pad_token_type_id)}
        return cls(flat, np.r_[0, np.cumsum(lengths)], place, rest, pad)

    def lengths(self, rows: Rows) -> Int[np.ndarray, " rows"]:
        place = self._place[rows]
        return self._offsets[place + 1] - self._offsets[place]

    def features(self, rows: Rows) -> Features:
        starts, lengths = self._offsets[self._place[rows]], self.lengths(rows)
        column = np.arange(lengths.max())
        inside = column < lengths[:, None]
        source = (starts[:, None] + column)[inside]
        features: Features = dict(self._rest)
        for key, flat in self._flat.items():
            values = np.full(inside.shape, self._pad.get(key, 0), dtype=np.int64)
            values[inside] = flat[source]
            features[key] = torch.from_numpy(values)
        return features


class _CachedBags:
    """Tokens of a `StaticEmbedding`: flat ids of all rows, and where each row begins."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray, place: np.ndarray) -> None:
        self._flat, self._offsets, self._place = flat, offsets, place

    @classmethod
    def build(
        cls, encoder: SentenceTransformer, records: Records, field: str, folder: Path, _: float, progress: bool
    ) -> _CachedBags | None:
        rows = np.flatnonzero(records.present(field, np.arange(len(records))))
        if len(rows) == 0 or set(preprocess(encoder, records, field, rows[:1])) != {"input_ids", "offsets"}:
            return None
        flat, starts, end = [np.empty(0, dtype=np.int32)], [], 0
        with (folder / "input_ids.bin").open("wb") as file:
            for _start, chunk in _chunks(rows, f"tokenising {field}", progress):
                features = preprocess(encoder, records, field, chunk)
                file.write(features["input_ids"].to(torch.int32).numpy().tobytes())
                starts.append(features["offsets"].numpy() + end)
                end += len(features["input_ids"])
        if end:
            flat.append(np.memmap(folder / "input_ids.bin", dtype=np.int32, mode="r"))
        place = np.full(len(records), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        return cls(flat[-1], np.r_[np.concatenate(starts), end], place)

    def lengths(self, rows: Rows) -> Int[np.ndarray, " rows"]:
        return np.zeros(len(rows), dtype=np.int64)  # nothing is padded

    def features(self, rows: Rows) -> Features:
        place = self._place[rows]
        starts, lengths = self._offsets[place], self._offsets[place + 1] - self._offsets[place]
        offsets = np.cumsum(lengths) - lengths
        source = np.arange(lengths.sum()) + np.repeat(starts - offsets, lengths)
        ids = torch.from_numpy(self._flat[source].astype(np.int64))
        return {"input_ids": ids, "offsets": torch.from_numpy(offsets)}


class _CachedImages:
    """Pictures of one shape as the encoder's processor leaves them, float32."""

    def __init__(self, pixels: np.ndarray, place: np.ndarray, rest: Features) -> None:
        self._pixels, self._place, self._rest = pixels, place, rest

    @classmethod
    def build(
        cls,
        encoder: SentenceTransformer,
        records: Records,
        field: str,
        folder: Path,
        limit_bytes: float,
        progress: bool,
    ) -> _CachedImages | None:
        rows = np.flatnonzero(records.present(field, np.arange(len(records))))
        if len(rows) == 0:
            return None
        probe = preprocess(encoder, records, field, rows[:1])
        tensors = [key for key, value in probe.items() if isinstance(value, Tensor)]
        if tensors != ["pixel_values"] or probe["pixel_values"].shape[0] != 1:
            return None  # features of varying shape: made per batch
        shape = (len(rows), *probe["pixel_values"].shape[1:])
        if 4 * np.prod(shape, dtype=np.float64) > limit_bytes:
            return None
        pixels = np.memmap(folder / "pixels.bin", dtype=np.float32, mode="w+", shape=shape)
        for start, chunk in _chunks(rows, f"decoding {field}", progress):
            pixels[start : start + len(chunk)] = preprocess(encoder, records, field, chunk)["pixel_values"].numpy()
        pixels.flush()
        place = np.full(len(records), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        return cls(pixels, place, {key: value for key, value in probe.items() if key not in tensors})

    def lengths(self, rows: Rows) -> Int[np.ndarray, " rows"]:
        return np.zeros(len(rows), dtype=np.int64)

    def features(self, rows: Rows) -> Features:
        return {**self._rest, "pixel_values": torch.from_numpy(self._pixels[self._place[rows]])}


def _chunks(rows: Rows, label: str, progress: bool) -> Iterator[tuple[int, Rows]]:
    starts = range(0, len(rows), _BUILD_ROWS)
    for start in tqdm(starts, desc=label, unit="k rows", disable=not progress, leave=False):
        yield start, rows[start : start + _BUILD_ROWS]


def temporary_cache(folder: Path | None) -> tempfile.TemporaryDirectory[str]:
    """A folder for cached features that vanishes with the run."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="features-", dir=folder)


def to_device(inputs: dict[str, FieldInput], device: torch.device) -> dict[str, FieldInput]:
    """The same inputs with every tensor on ``device``."""
    return {
        field: {
            "chunks": [chunk_to_device(chunk, device) for chunk in field_input["chunks"]],
            "order": field_input["order"].to(device),
            "present": field_input["present"].to(device),
        }
        for field, field_input in inputs.items()
    }


def chunk_to_device(features: Features, device: torch.device) -> Features:
    """The same features with every tensor on ``device``."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in features.items()}
