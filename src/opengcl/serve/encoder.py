"""Texts and pictures of requests -> unit vectors, through the one thread of a model."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from opengcl.inputs import Features, chunk_to_device, picture_features, text_features
from opengcl.model import BiEncoder, FieldEmbeddings
from opengcl.prompts import Side
from opengcl.serve.batching import Batch, Batcher, ClosedError, QueueFullError
from opengcl.serve.cache import LeastRecentlyUsed
from opengcl.serve.errors import ApiError
from opengcl.serve.metrics import Metrics
from opengcl.serve.pictures import PictureThreads, content_key
from opengcl.serve.settings import Settings

Vector = Float32[np.ndarray, " d"]
Vectors = Float32[np.ndarray, "rows d"]
Part = str | bytes
"""A text, or a picture's file."""


@dataclass(frozen=True)
class _Text:
    """A text, and whose prompt goes before it."""

    text: str
    side: Side


_Work = _Text | Features
_BULK = 16  # parts of an upload that are decoded and encoded at a time: the others wait as bytes


class Encoder:
    """One model's encoder.

    Args:
        name: Of the model, for metrics.
        model: The model; it is put into evaluation mode.
        fingerprint: Of the model; part of what vectors are kept by.
        pictures: Where pictures are decoded.
        settings: Sizes of batch, queue and cache.
        metrics: What is counted.
        hold: Whether the next batch may wait for more, as in `Batcher`.
    """

    def __init__(
        self,
        name: str,
        model: BiEncoder,
        fingerprint: str,
        pictures: PictureThreads,
        settings: Settings,
        metrics: Metrics,
        hold: Callable[[], bool],
    ) -> None:
        self.model = model.eval()
        self.reads = [kind for kind in ("text", "image") if model.encoder.supports(kind)]
        self.dimension = int(model.encoder.get_embedding_dimension() or 0)
        self._name, self._fingerprint, self._pictures, self._metrics = name, fingerprint, pictures, metrics
        self._kept: LeastRecentlyUsed[tuple[str, str, str], Vector] = LeastRecentlyUsed(settings.cached_queries)
        self._batcher: Batcher[_Work, Vector] = Batcher(
            self._encode,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_waiting=settings.max_waiting,
            hold=hold,
            done=self._count,
        )
        metrics.waiting.labels(name).set_function(lambda: self._batcher.waiting)

    async def queries(self, parts: Sequence[tuple[Part, str]]) -> list[Vector]:
        """Unit vectors of a query's parts, kept for the next time.

        Args:
            parts: Each a text or a picture's file, and the request's field for messages.

        Raises:
            ApiError: 422 for what the model cannot read or a picture that cannot be decoded, 429 when too much waits.
        """
        for part, field in parts:
            self.check_reads("text" if isinstance(part, str) else "image", field)
        keys = [self._key(part) for part, _ in parts]
        found = [self._kept.get(key) for key in keys]
        missing = [row for row, vector in enumerate(found) if vector is None]
        self._metrics.cache_hits.labels(self._name).inc(len(parts) - len(missing))
        self._metrics.cache_misses.labels(self._name).inc(len(missing))
        made = await self._vectors([parts[row] for row in missing], "query", bulk=False) if missing else []
        for row, vector in zip(missing, made, strict=True):
            self._kept.put(keys[row], vector)
            found[row] = vector
        return [vector for vector in found if vector is not None]

    async def texts(self, texts: Sequence[str], side: Side) -> Vectors:
        """Unit vectors of many texts, each with its side's prompt; queries of searches go first.

        Raises:
            ApiError: 429 when too much waits.
        """
        self.check_reads("text", "input")
        return np.stack(await self._in_turns([(text, "input") for text in texts], side))

    async def documents(self, documents: Sequence[Mapping[str, tuple[Part, str]]]) -> Vectors:
        """Unit vectors of documents from those of their model fields, as `opengcl.encode` fuses them.

        Args:
            documents: Each: field -> its text or picture's file, and the request's field; at least one.

        Raises:
            ApiError: 422 for a picture that cannot be decoded, 429 when too much waits.
        """
        places = [(name, row) for row, document in enumerate(documents) for name in document]
        made = await self._in_turns([documents[row][name] for name, row in places], "document")
        names = list(self.model.mix.document)
        vectors = torch.zeros(len(names), len(documents), self.dimension)
        present = torch.zeros(len(names), len(documents), dtype=torch.bool)
        for (name, row), vector in zip(places, made, strict=True):
            at = names.index(name), row
            vectors[at], present[at] = torch.from_numpy(vector), True
        return self.model.fuse(FieldEmbeddings(vectors, present), "document").numpy()

    def check_reads(self, kind: str, field: str) -> None:
        """Makes sure that the model reads text, or pictures.

        Raises:
            ApiError: 422 if not.
        """
        if kind not in self.reads:
            raise ApiError(422, f"this model does not read {kind}; it reads {', '.join(self.reads)}", field)

    async def close(self) -> None:
        """Ends the thread after what waits is done."""
        await asyncio.to_thread(self._batcher.close)

    async def _in_turns(self, parts: Sequence[tuple[Part, str]], side: Side) -> list[Vector]:
        made: list[Vector] = []
        for start in range(0, len(parts), _BULK):
            made += await self._vectors(parts[start : start + _BULK], side, bulk=True)
        return made

    async def _vectors(self, parts: Sequence[tuple[Part, str]], side: Side, *, bulk: bool) -> list[Vector]:
        work = list(await asyncio.gather(*(self._prepared(part, field, side) for part, field in parts)))
        try:
            return await self._batcher(work, bulk=bulk)
        except QueueFullError as error:
            raise ApiError(429, f"{error}, the limit; try again later", retry_after=error.seconds) from None
        except ClosedError:
            raise ApiError(503, "the server is stopping", retry_after=5) from None

    async def _prepared(self, part: Part, field: str, side: Side) -> _Work:
        """A picture as what the model reads, which is small; the unpacked picture may be a hundred times that."""
        if isinstance(part, str):
            return _Text(part, side)
        return await self._pictures.decode(
            part, field, lambda picture: picture_features(self.model.encoder, [picture], side)
        )

    def _encode(self, items: list[_Work]) -> list[Vector]:
        texts: defaultdict[Side, dict[int, str]] = defaultdict(dict)
        pictures: defaultdict[tuple[Any, ...], dict[int, Features]] = defaultdict(dict)
        for row, item in enumerate(items):
            if isinstance(item, _Text):
                texts[item.side][row] = item.text
            else:
                pictures[_form(item)][row] = item
        vectors = np.empty((len(items), self.dimension), dtype=np.float32)
        with torch.inference_mode():
            for side, of_side in texts.items():
                vectors[list(of_side)] = self._chunk(text_features(self.model.encoder, list(of_side.values()), side))
            for group in pictures.values():
                vectors[list(group)] = self._chunk(_joined(list(group.values())))
        if not np.isfinite(vectors).all():
            raise ValueError("the model's vector is not finite")
        return list(vectors)

    def _chunk(self, features: Features) -> Vectors:
        return self.model.encode_chunk(chunk_to_device(features, self.model.device)).cpu().numpy()

    def _key(self, part: Part) -> tuple[str, str, str]:
        kind = "text" if isinstance(part, str) else "image"
        return self._fingerprint, kind, part if isinstance(part, str) else content_key(part)

    def _count(self, batch: Batch[_Work]) -> None:
        self._metrics.batch_size.labels(self._name).observe(len(batch.items))
        self._metrics.encode_seconds.labels(self._name).observe(batch.took)
        self._metrics.wait_seconds.labels(self._name).observe(batch.waited)


def _form(features: Features) -> tuple[Any, ...]:
    """Pictures of one form can share a batch: tensors of one shape, and the rest equal."""
    return tuple(
        (name, tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else repr(value))
        for name, value in features.items()
    )


def _joined(pieces: list[Features]) -> Features:
    """Features of several pictures of one form as those of a batch."""
    return {
        name: torch.cat([piece[name] for piece in pieces]) if isinstance(value, torch.Tensor) else value
        for name, value in pieces[0].items()
    }
