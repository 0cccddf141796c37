"""From records to what an encoder reads: features of distinct rows, in chunks of like length.

Every text is tokenised once per run, into flat files that are memory-mapped, and every picture is decoded once, into a
cache that later runs use too; a batch is then a gather. Where a model's features are not of a plain kind, or would not
fit the limit, they are made per batch.

A picture that cannot be read although the data set was checked, such as a file that has gone since, is a missing field
from then on. It is logged with its id, and too many of them are an error.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt32, UInt64
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality import infer_modality
from torch import Tensor

from opengcl.cores import usable_cores
from opengcl.data import DataSetError, Records
from opengcl.data.images import PictureError
from opengcl.data.problems import EXAMPLES
from opengcl.data.schema import QUERY_ID
from opengcl.picture_cache import LAYOUT, PictureCache, find_entry, folder_of_pictures, open_entry
from opengcl.picture_pixels import NotPixelsError, PixelForm
from opengcl.progress import progress_bar, tracked
from opengcl.prompts import Side, prompt_of

Features = dict[str, Any]
Rows = Int[np.ndarray, " rows"]
# Rows of one forward pass. Sorted by length, short rows then share a chunk and are not padded to the longest.
CHUNK_ROWS = 256
MAX_UNREADABLE = 0.01
"""Share of a field's pictures that may turn out unreadable. A few rot in any catalogue; more say: a disk is missing."""
_MOST_WORKERS = 8  # that decode pictures, where nothing else is said
_BUILD_ROWS = 1024
_DECODE_ROWS = 256
logger = logging.getLogger(__name__)


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


class UnreadableError(Exception):
    """Pictures of a field that cannot be read: row -> reason. Only between a source and `Inputs`."""

    def __init__(self, found: Mapping[int, str]) -> None:
        super().__init__(found)
        self.found = found


class Inputs:
    """The inputs of one table (queries or documents) for one encoder.

    Args:
        encoder: Whose ``preprocess`` makes the features.
        records: The table.
        fields: Which of its fields, in order.
        side: Whose prompt and route its texts take; that of the table when not given.
        chunk_rows: Rows of one forward pass at most.
        max_unreadable: Share of a field's pictures that may turn out unreadable.

    Attributes:
        records: The table.
        side: Whose prompt and route its texts take.
        unreadable: Field -> row -> why its picture cannot be read; what has been found so far by this process.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        records: Records,
        fields: Sequence[str],
        *,
        side: Side | None = None,
        chunk_rows: int = CHUNK_ROWS,
        max_unreadable: float = MAX_UNREADABLE,
    ) -> None:
        self.records, self._fields, self.chunk_rows = records, list(fields), chunk_rows
        self.side: Side = side or ("query" if records.id_column == QUERY_ID else "document")
        self._sources: dict[str, FieldSource] = {
            field: _OnTheFly(encoder, records, field, self.side) for field in fields
        }
        self._encoder = encoder
        self.max_unreadable = max_unreadable
        self.unreadable: dict[str, dict[int, str]] = {field: {} for field in fields}
        self._form: PixelForm | None = None

    def cache(
        self,
        folder: Path,
        *,
        image_cache_bytes: float,
        pictures: Path | None = None,
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        """Tokenise every text into files under ``folder``, and decode every picture that no run has decoded before.

        Args:
            folder: Where the texts' files go; it is made.
            image_cache_bytes: The pictures kept for all data sets and processors take at most so much; what does not
                fit is decoded per batch. 0: nothing is kept.
            pictures: Where they are kept; ``pictures`` in the data sets' cache folder when not given.
            workers: Threads that decode; as many as there are cores, up to eight, when 0.
            progress: Show a bar.

        Raises:
            DataSetError: More pictures than `max_unreadable` cannot be read.
        """
        for number, field in enumerate(self._fields):
            if self.records.fields[field] == "image":
                if image_cache_bytes > 0:
                    self._cache_pictures(
                        field, image_cache_bytes, pictures, workers or min(_MOST_WORKERS, usable_cores()), progress
                    )
                continue
            part = folder / str(number)  # a field's name may hold what a file's cannot
            part.mkdir(parents=True, exist_ok=True)
            for kind in (_CachedText, _CachedBags):
                cached = kind.build(self._encoder, self.records, field, self.side, part, progress)
                if cached is not None:
                    self._sources[field] = cached
                    break

    def use_kept_pictures(self, pictures: Path | None = None) -> None:
        """Read the pictures that a run has decoded before, and decode none now.

        Args:
            pictures: As in `cache`.
        """
        parent = pictures or folder_of_pictures()
        for field in self._fields:
            if self.records.fields[field] == "image" and any(parent.glob("*/")):
                form, rows = self._pixel_form(field), _rows_with(self.records, field)
                entry = form and find_entry(parent, _entry_name(form, self.records, field), (len(rows), *form.shape))
                if form and entry:
                    self._sources[field] = _KeptPictures(self.records, field, form, entry, rows)

    @property
    def fields_in_files(self) -> list[str]:
        """Those of its fields whose pictures may lie in files outside the table."""
        return [field for field in self._fields if field in self.records.fields_in_files]

    def marks(self, field: str) -> dict[str, UInt64[np.ndarray, " rows"]]:
        """What a changed picture in a file of its own is known by, row by row; 0 where there is no picture.

        ``pixels``: a checksum of what the model reads, where pictures are kept. ``file``: of size and time.
        """
        rows = _rows_with(self.records, field)
        rows = rows[self.present(field, rows)]
        found = {"file": np.zeros(len(self.records), dtype=np.uint64)}
        found["file"][rows] = self.records.stamps(field, rows)
        source = self._sources[field]
        if isinstance(source, _KeptPictures):
            found["pixels"] = np.zeros(len(self.records), dtype=np.uint64)
            found["pixels"][rows] = source.sums(rows)
        return found

    def of(self, rows: Rows) -> dict[str, FieldInput]:
        """Features of the rows, field by field.

        Raises:
            DataSetError: More pictures than `max_unreadable` cannot be read.
        """
        return {field: self._field(field, rows) for field in self._fields}

    def present(self, field: str, rows: Rows) -> Bool[np.ndarray, " rows"]:
        """Where a field is there and, as far as known, readable."""
        there = self.records.present(field, rows)
        lost = self.unreadable[field]
        return there & ~np.isin(rows, np.fromiter(lost, np.int64, len(lost))) if lost else there

    def usable(self, rows: Rows) -> Bool[np.ndarray, " rows"]:
        """Which rows have any field left, as far as known."""
        return np.any([self.present(field, rows) for field in self._fields], axis=0)

    def _field(self, field: str, rows: Rows) -> FieldInput:
        source = self._sources[field]
        while True:
            present = self.present(field, rows)
            places = np.flatnonzero(present)
            places = places[np.argsort(source.lengths(rows[places]), kind="stable")]
            pieces = [places[start : start + self.chunk_rows] for start in range(0, len(places), self.chunk_rows)]
            try:
                chunks = [source.features(rows[piece]) for piece in pieces]
            except UnreadableError as error:
                self._go_on_without(field, error.found)
                continue
            return {"chunks": chunks, "order": torch.from_numpy(places), "present": torch.from_numpy(present)}

    def _cache_pictures(self, field: str, limit: float, parent: Path | None, threads: int, progress: bool) -> None:
        form, rows = self._pixel_form(field), _rows_with(self.records, field)
        if form is None or len(rows) == 0:
            return
        about = {"table": self.records.file, "field": field, "pixels": form.identity}
        name, shape = _entry_name(form, self.records, field), (len(rows), *form.shape)
        entry = open_entry(parent or folder_of_pictures(), name, shape, limit_bytes=limit, about=about)
        if entry is None:
            return
        kept = _KeptPictures(self.records, field, form, entry, rows)
        self._go_on_without(field, kept.fill(threads, progress=progress))
        self._sources[field] = kept

    def _pixel_form(self, field: str) -> PixelForm | None:
        try:
            self._form = self._form or PixelForm(self._encoder, task=self.side)
            return self._form
        except NotPixelsError as error:
            logger.warning("field %r: pictures are decoded per batch, as they cannot be kept: %s", field, error)
            return None

    def _go_on_without(self, field: str, found: Mapping[int, str]) -> None:
        """Notes unreadable pictures, unless there are too many of them."""
        if not found:
            return
        lost, total = self.unreadable[field], len(_rows_with(self.records, field))
        lost.update(found)
        rows = list(found)[:EXAMPLES]
        examples = "; ".join(
            f"{name!r}: {found[row]}" for name, row in zip(self.records.ids(np.array(rows)), rows, strict=True)
        )
        told = (
            f"{self.records.file}, column {field!r}: {len(lost):,} of {total:,} pictures cannot be read "
            f"({self.records.id_column} {examples}{'; ...' if len(found) > EXAMPLES else ''})"
        )
        if len(lost) > self.max_unreadable * total:
            raise DataSetError(f"{told}; allowed: a share of {self.max_unreadable:g} (max_unreadable)")
        logger.warning("%s; they are left out", told)


class _OnTheFly:
    def __init__(self, encoder: SentenceTransformer, records: Records, field: str, side: Side) -> None:
        self._encoder, self._records, self._field, self._side = encoder, records, field, side
        self._is_text = records.fields[field] == "text"

    def lengths(self, rows: Rows) -> Int[np.ndarray, " rows"]:
        if not self._is_text:
            return np.zeros(len(rows), dtype=np.int64)
        return np.array([len(text or "") for text in self._records.texts(self._field, rows)], dtype=np.int64)

    def features(self, rows: Rows) -> Features:
        if self._is_text:
            return preprocess(self._encoder, self._records, self._field, rows, self._side)
        pictures, faults = _decoded(self._records, self._field, rows)
        if faults:
            raise UnreadableError(faults)
        return picture_features(self._encoder, pictures, self._side)


def preprocess(encoder: SentenceTransformer, records: Records, field: str, rows: Rows, side: Side) -> Features:
    """The encoder's own features of rows that have the field."""
    if records.fields[field] == "text":
        return text_features(encoder, [text or "" for text in records.texts(field, rows)], side)
    return dict(encoder.preprocess(records.images(field, rows), task=side))


def text_features(encoder: SentenceTransformer, texts: Sequence[str], side: Side) -> Features:
    """The encoder's own features of texts of one side, that side's prompt before each.

    What ``encode_query`` and ``encode_document`` make of them: an encoder with a route for each side takes the side's,
    and where the prompt's tokens are left out of the pooling, the features say how many they are.
    """
    return dict(encoder.preprocess([only_text(text) for text in texts], prompt=prompt_of(encoder, side), task=side))


def picture_features(encoder: SentenceTransformer, pictures: Sequence[Image.Image], side: Side) -> Features:
    """The encoder's own features of pictures of one side; no prompt goes before a picture."""
    return dict(encoder.preprocess(list(pictures), task=side))


def only_text(text: str) -> str:
    """A text that is a picture's address, path or data is a text all the same, with a space before it.

    sentence-transformers would fetch or open it, whoever wrote it.
    """
    return text if infer_modality(text) == "text" else f" {text}"


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
        cls, encoder: SentenceTransformer, records: Records, field: str, side: Side, folder: Path, progress: bool
    ) -> _CachedText | None:
        rows = np.flatnonzero(records.present(field, np.arange(len(records))))
        if len(rows) == 0:
            return None
        probe = preprocess(encoder, records, field, rows[:2], side)
        padded = [key for key, value in probe.items() if isinstance(value, Tensor)]
        if "attention_mask" not in padded or any(
            probe[key].shape != probe["attention_mask"].shape or probe[key].is_floating_point() for key in padded
        ):
            return None  # flattened or multi-modal features
        if int(probe["attention_mask"].sum(1).max()) < probe["attention_mask"].shape[1]:
            return None  # padded beyond the longest row, as the model was trained (SigLIP): nothing to cut
        rest = {key: value for key, value in probe.items() if key not in padded}
        lengths = np.zeros(len(rows), dtype=np.int64)
        with ExitStack() as opened:  # closes all, also where a full disk makes closing one an error
            files = {key: opened.enter_context((folder / f"{key}.bin").open("wb")) for key in padded}
            for start, chunk in _chunks(rows, f"tokenising {field}", progress):
                features = preprocess(encoder, records, field, chunk, side)
                mask = features["attention_mask"].bool()
                lengths[start : start + len(chunk)] = mask.sum(1).numpy()
                for key in padded:
                    files[key].write(features[key][mask].to(torch.int32).numpy().tobytes())
        flat = {key: np.memmap(folder / f"{key}.bin", dtype=np.int32, mode="r") for key in padded}
        place = np.full(len(records), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        return cls(flat, np.r_[0, np.cumsum(lengths)], place, rest, _padding(encoder, side))

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


def _padding(encoder: SentenceTransformer, side: Side) -> dict[str, int]:
    """What stands behind the shorter of two texts; asked of the encoder, as each route may have its own tokenizer."""
    features = text_features(encoder, ["a", "a a a a a a a a"], side)
    empty = ~features["attention_mask"].bool()
    if not bool(empty.any()):
        return {}
    shape = empty.shape
    return {
        key: int(value[empty][0])
        for key, value in features.items()
        if isinstance(value, Tensor) and value.shape == shape and key != "attention_mask"
    }


class _CachedBags:
    """Tokens of a `StaticEmbedding`: flat ids of all rows, and where each row begins."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray, place: np.ndarray, rest: Features) -> None:
        self._flat, self._offsets, self._place, self._rest = flat, offsets, place, rest

    @classmethod
    def build(
        cls, encoder: SentenceTransformer, records: Records, field: str, side: Side, folder: Path, progress: bool
    ) -> _CachedBags | None:
        rows = np.flatnonzero(records.present(field, np.arange(len(records))))
        if len(rows) == 0:
            return None
        probe = preprocess(encoder, records, field, rows[:1], side)
        rest = {key: value for key, value in probe.items() if not isinstance(value, Tensor)}
        if set(probe) - set(rest) != {"input_ids", "offsets"}:
            return None
        flat, starts, end = [np.empty(0, dtype=np.int32)], [], 0
        with (folder / "input_ids.bin").open("wb") as file:
            for _start, chunk in _chunks(rows, f"tokenising {field}", progress):
                features = preprocess(encoder, records, field, chunk, side)
                file.write(features["input_ids"].to(torch.int32).numpy().tobytes())
                starts.append(features["offsets"].numpy() + end)
                end += len(features["input_ids"])
        if end:
            flat.append(np.memmap(folder / "input_ids.bin", dtype=np.int32, mode="r"))
        place = np.full(len(records), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        return cls(flat[-1], np.r_[np.concatenate(starts), end], place, rest)

    def lengths(self, rows: Rows) -> Int[np.ndarray, " rows"]:
        return np.zeros(len(rows), dtype=np.int64)  # nothing is padded

    def features(self, rows: Rows) -> Features:
        place = self._place[rows]
        starts, lengths = self._offsets[place], self._offsets[place + 1] - self._offsets[place]
        offsets = np.cumsum(lengths) - lengths
        source = np.arange(lengths.sum()) + np.repeat(starts - offsets, lengths)
        ids = torch.from_numpy(self._flat[source].astype(np.int64))
        return {**self._rest, "input_ids": ids, "offsets": torch.from_numpy(offsets)}


class _KeptPictures:
    """Pictures as 8-bit pixels in a `PictureCache`; a row whose checksum is wrong is decoded again."""

    def __init__(self, records: Records, field: str, form: PixelForm, cache: PictureCache, rows: Rows) -> None:
        self._records, self._field, self._form, self._cache, self._rows = records, field, form, cache, rows
        self._place = np.full(len(records), -1, dtype=np.int64)
        self._place[rows] = np.arange(len(rows))

    def fill(self, threads: int, *, progress: bool) -> dict[int, str]:
        """Decodes what is not there yet, and returns the rows that cannot be read, with the reasons."""
        faults: dict[int, str] = {}
        with self._cache.alone(), ThreadPoolExecutor(threads) as pool:
            stamps = self._records.stamps(self._field, self._rows)
            missing = self._cache.missing(stamps)
            what = f"decoding {self._field}"
            with progress_bar(total=len(missing), desc=what, unit="picture", show=progress, leave=False) as bar:
                for start in range(0, len(missing), _DECODE_ROWS):
                    places = missing[start : start + _DECODE_ROWS]
                    faults |= self._put(places, pool.map(self._pixels, self._rows[places].tolist()), stamps[places])
                    bar.update(len(places))
            if len(missing):
                self._cache.flush()
        return faults

    def sums(self, rows: Rows) -> UInt32[np.ndarray, " rows"]:
        """Checksums of the pixels."""
        return self._cache.sums()[self._place[rows]]

    def lengths(self, rows: Rows) -> Int[np.ndarray, " rows"]:
        return np.zeros(len(rows), dtype=np.int64)

    def features(self, rows: Rows) -> Features:
        places = self._place[rows]
        pixels, right = self._cache.read(places)
        if not right.all():
            wrong, stamps = places[~right], self._records.stamps(self._field, rows[~right])
            faults = self._put(wrong, map(self._pixels, rows[~right].tolist()), stamps)
            logger.warning("%d pictures in %s were not as written; decoded again", len(wrong), self._cache.folder)
            if faults:
                raise UnreadableError(faults)
            return self.features(rows)
        return {**self._form.rest, "pixel_values": self._form.floats(pixels)}

    def _pixels(self, row: int) -> np.ndarray | PictureError:
        try:
            return self._form.pixels(self._records.picture(self._field, row))
        except PictureError as error:
            return error

    def _put(self, places: Rows, made: Iterable[np.ndarray | PictureError], stamps: np.ndarray) -> dict[int, str]:
        """Writes what could be decoded and returns the rest."""
        found = list(made)
        faults = {
            int(self._rows[place]): str(one)
            for place, one in zip(places, found, strict=True)
            if isinstance(one, PictureError)
        }
        right = np.array([not isinstance(one, PictureError) for one in found])
        if right.any():
            pixels = np.stack([one for one in found if not isinstance(one, PictureError)])
            self._cache.write(places[right], pixels, stamps[right])
        return faults


def _decoded(records: Records, field: str, rows: Rows) -> tuple[list[Image.Image], dict[int, str]]:
    """Pictures of rows that have the field, and the rows whose pictures cannot be read."""
    pictures, faults = [], {}
    for row in rows.tolist():
        try:
            pictures.append(records.picture(field, row))
        except PictureError as error:
            faults[row] = str(error)
    return pictures, faults


def _rows_with(records: Records, field: str) -> Rows:
    return np.flatnonzero(records.present(field, np.arange(len(records))))


def _entry_name(form: PixelForm, records: Records, field: str) -> str:
    """Changes with the data set's content, which of its rows are used, the field, and what the processor does."""
    content = f"{LAYOUT}\n{records.fingerprint}\n{records.file}\n{field}\n{form.identity}\n".encode()
    digest = hashlib.blake2b(content, digest_size=12)
    digest.update(_rows_with(records, field).tobytes())
    return digest.hexdigest()


def _chunks(rows: Rows, label: str, progress: bool) -> Iterator[tuple[int, Rows]]:
    starts = range(0, len(rows), _BUILD_ROWS)
    for start in tracked(starts, desc=label, unit="k rows", show=progress, leave=False):
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
