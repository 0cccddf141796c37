"""One model that is served: its encoder, its live index, its data set."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from opengcl.cores import usable_cores
from opengcl.index import Filter, Index, StoreError, UnknownIndex, VectorIndexError, parse_filter, shorten
from opengcl.index import Hit as Found
from opengcl.index.filters import FieldType
from opengcl.index.rows import checked_value
from opengcl.prompts import Side
from opengcl.serve import api
from opengcl.serve.catalogue import JUDGED_DEPTH, Catalogue, Judgements, no_filter_info
from opengcl.serve.counts import Counts
from opengcl.serve.encoder import Encoder, Part, Vector
from opengcl.serve.errors import ApiError
from opengcl.serve.live import LiveIndex
from opengcl.serve.metrics import Metrics
from opengcl.serve.pictures import decode_base64
from opengcl.serve.settings import Settings

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_NOTHING_LEFT = 1e-4  # length of a mix below which its direction is rounding


class Threads:
    """Where stores are asked: several searches at a time, one write, so that writes keep their order.

    Args:
        searches: How many threads search.
    """

    def __init__(self, searches: int) -> None:
        self._enough = 3 * (usable_cores() - 1)  # while one core encodes, the others have searches to do
        self._searches, self._writes = ThreadPoolExecutor(searches, "search"), ThreadPoolExecutor(1, "write")
        self._under_way = 0

    @property
    def busy(self) -> bool:
        """Whether there are more searches than the other cores do while one encodes the next queries."""
        return self._under_way > self._enough

    async def search(self, ask: Callable[[], Result]) -> Result:
        """Its result, from one of the threads that search."""
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._searches, ask)
        finally:
            self._under_way -= 1

    async def write(self, ask: Callable[[], Result]) -> Result:
        """Its result, from the thread that writes."""
        return await asyncio.get_running_loop().run_in_executor(self._writes, ask)

    def close(self) -> None:
        """Ends them after what runs."""
        self._searches.shutdown(cancel_futures=True)
        self._writes.shutdown()


@dataclass(frozen=True)
class Served:
    """A model as requests meet it.

    Attributes:
        name: ``a`` or ``b``.
        label: What people call it.
        fingerprint: Of the model.
        encoder: Makes vectors.
        live: The index.
        catalogue: The data set, where one was given.
        threads: For the store.
        counts: How many documents match, of the last moment.
        settings: Limits.
        metrics: What is counted.
    """

    name: str
    label: str
    fingerprint: str
    encoder: Encoder
    live: LiveIndex
    catalogue: Catalogue | None
    threads: Threads
    counts: Counts
    settings: Settings
    metrics: Metrics

    async def search(self, request: api.SearchRequest, image: bytes | None = None) -> api.SearchReply:
        """Finds documents.

        Args:
            request: The query, already of the right form.
            image: The query's picture, where it came as a file.

        Raises:
            ApiError: 413 or 422 for what cannot be searched with, 429 or 503 when it cannot be done now.
        """
        started = time.perf_counter()
        self._check_depth(request)
        vector = await self._query_vector(request.query, image)
        judged = self._judgements(request, image)
        k = max(request.k, JUDGED_DEPTH) if judged and request.offset == 0 else request.k

        def look(index: Index) -> tuple[int, list[Found]]:
            where = _filter(request.where, index)
            _check_fields(request.fields, index)
            query = _shortened(vector, index.spec.dimension)
            total = self.counts((self.name, index.name, request.where or ""), lambda: index.count(where))
            return total, index.search(query[None], k, where=where, offset=request.offset)[0]

        with self.metrics.search_seconds.labels(self.name).time():
            total, found = await self._ask(look)
        hits = [
            {
                "doc_id": hit.doc_id,
                "rank": rank,
                "score": hit.score,
                "fields": _shown(hit.fields, request.fields),
                "relevance": judged.relevance(hit.doc_id) if judged else None,
            }
            for rank, hit in enumerate(found[: request.k], start=request.offset + 1)
        ]
        whole = judged is not None and request.offset == 0 and request.where is None
        return api.SearchReply.model_validate(
            {
                "model": self.name,
                "took_ms": _milliseconds(started),
                "total": total,
                "hits": hits,
                "ndcg_at_10": judged.ndcg([hit.doc_id for hit in found]) if judged and whole else None,
            }
        )

    async def upsert(self, documents: Sequence[api.NewDocument]) -> api.DocumentsReply:
        """Encodes documents and writes them; they are durable and found when it returns.

        Raises:
            ApiError: 413 or 422 naming the document and field, 429 or 503 when it cannot be done now.
        """
        started = time.perf_counter()
        if len(documents) > self.settings.max_documents:
            raise ApiError(413, f"{len(documents):,} documents; allowed: {self.settings.max_documents:,}", "documents")
        index = self.live.current
        parts = [self._parts(document, row, index) for row, document in enumerate(documents)]
        columns = {
            name: [_value(document, name, kind, row) for row, document in enumerate(documents)]
            for name, kind in index.spec.fields.items()
        }
        vectors = await self.encoder.documents(parts)
        ids = [document.doc_id for document in documents]

        def write(live: Index) -> None:
            if set(live.spec.fields) != set(columns):
                raise ApiError(409, "another index went live with other fields; send the documents again")
            live.upsert(ids, _shortened(vectors, live.spec.dimension), columns)

        await self._write(write)
        self.metrics.upserted.labels(self.name).inc(len(ids))
        return api.DocumentsReply(model=self.name, upserted=len(ids), took_ms=_milliseconds(started))

    async def delete(self, doc_id: str) -> api.Deleted:
        """Removes a document.

        Raises:
            ApiError: 404 where there is none with this id.
        """
        deleted = await self._write(lambda index: index.delete([doc_id]))
        if not deleted:
            raise ApiError(404, f"no document {doc_id[:200]!r}", "doc_id")
        self.metrics.deleted.labels(self.name).inc(deleted)
        return api.Deleted(model=self.name, deleted=deleted)

    async def document(self, doc_id: str) -> api.Document:
        """A document's fields.

        Raises:
            ApiError: 404 where there is none with this id.
        """
        row = (await self._ask(lambda index: index.get([doc_id])))[0]
        if row is None:
            raise ApiError(404, f"no document {doc_id[:200]!r}", "doc_id")
        return api.Document(doc_id=row.doc_id, fields=_shown(row.fields, None))

    async def info(self) -> api.ModelInfo:
        """What there is to search and filter."""
        index, documents = await self._ask(lambda index: (index, index.count()))
        return api.ModelInfo(
            name=self.name,
            label=self.label,
            dimension=index.spec.dimension,
            documents=documents,
            fields=dict(index.spec.fields),
            filters={
                name: self.catalogue.filter_info(name, kind) if self.catalogue else no_filter_info(kind)
                for name, kind in index.spec.fields.items()
            },
            images=self.catalogue.images if self.catalogue else [],
            query=self.encoder.reads,
            inputs=dict(self.encoder.model.mix.document_types),
            index=index.name,
            fingerprint=self.fingerprint,
        )

    async def embed(
        self, texts: Sequence[str], dimensions: int | None, side: Side = "query"
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Unit vectors of texts, (texts, dimensions), as queries or as texts of documents.

        Raises:
            ApiError: 413 for too many, 422 for a blank one or more dimensions than there are.
        """
        if len(texts) > self.settings.max_inputs:
            raise ApiError(413, f"{len(texts):,} texts; allowed: {self.settings.max_inputs:,}", "input")
        for row, text in enumerate(texts):
            self._check_text(text, f"input.{row}")
        if dimensions is not None and dimensions > self.encoder.dimension:
            raise ApiError(422, f"found {dimensions}; allowed: 1 to {self.encoder.dimension}", "dimensions")
        vectors = await self.encoder.texts(texts, side)
        return _shortened(vectors, dimensions or self.encoder.dimension)

    async def _ask(self, ask: Callable[[Index], Result], *, write: bool = False) -> Result:
        """The index's answer, in a thread; from one index alone, and once more where that was dropped meanwhile."""

        def asked() -> Result:
            try:
                return ask(self.live.current)
            except UnknownIndex:
                return ask(self.live.refresh())

        try:
            return await (self.threads.write(asked) if write else self.threads.search(asked))
        except (StoreError, UnknownIndex) as error:
            # A store's message can hold the filter, which is what a client wrote.
            log.error("model %s: the store failed with %s", self.name, _kind(error))
            log.debug("model %s: %s", self.name, error)
            raise ApiError(503, f"the store does not answer: {type(error).__name__}", retry_after=5) from error
        except ValueError as error:
            raise ApiError(422, str(error)) from None

    async def _write(self, write: Callable[[Index], Result]) -> Result:
        """The same for a change: made to the index that is live when it is acknowledged; documents are counted anew."""

        def written(index: Index) -> Result:
            try:
                done = write(index)
                while (live := self.live.refresh()) is not index:  # swapped before or meanwhile
                    index, done = live, write(live)
                return done
            finally:
                self.counts.forget()

        return await self._ask(written, write=True)

    async def _query_vector(self, query: api.Query, image: bytes | None) -> Vector:
        parts: list[tuple[Part, str]] = []
        weights: list[float] = []
        if query.text and query.text.strip() and query.text_weight > 0:
            self._check_text(query.text, "query.text")
            parts.append((query.text, "query.text"))
            weights.append(query.text_weight)
        picture = image if image is not None else self._picture(query.image, "query.image")
        if picture is not None and query.image_weight > 0:
            parts.append((picture, "query.image"))
            weights.append(query.image_weight)
        if not parts:
            raise ApiError(422, "found neither text nor image with a weight above 0; allowed: either, or both", "query")
        for row, negative in enumerate(query.negatives[: self.settings.max_negatives + 1]):
            if row == self.settings.max_negatives:
                raise ApiError(422, f"allowed: up to {row} negatives", "query.negatives")
            found = self._negative(negative, f"query.negatives.{row}")
            parts += found
            weights += [-negative.weight / len(found)] * len(found)
        vectors = await self.encoder.queries(parts)
        if len(parts) == 1:
            return vectors[0]
        mixed = np.asarray(np.array(weights) @ np.stack(vectors).astype(np.float64))
        length = float(np.linalg.norm(mixed))
        if length < _NOTHING_LEFT:
            raise ApiError(422, "the query's parts cancel each other out; allowed: smaller negative weights", "query")
        return np.asarray(mixed / length, dtype=np.float32)

    def _negative(self, negative: api.Negative, field: str) -> list[tuple[Part, str]]:
        parts: list[tuple[Part, str]] = []
        if negative.text and negative.text.strip():
            self._check_text(negative.text, f"{field}.text")
            parts.append((negative.text, f"{field}.text"))
        if (picture := self._picture(negative.image, f"{field}.image")) is not None:
            parts.append((picture, f"{field}.image"))
        if not parts:
            raise ApiError(422, "found neither text nor image; allowed: either, or both", field)
        return parts

    def _picture(self, written: str | None, field: str) -> bytes | None:
        return decode_base64(written, field, self.settings.max_picture_bytes) if written else None

    def _parts(self, document: api.NewDocument, row: int, index: Index) -> dict[str, tuple[Part, str]]:
        """What of a new document is encoded."""
        types = self.encoder.model.mix.document_types
        if unknown := [name for name in document.fields if name not in types and name not in index.spec.fields]:
            known = ", ".join(dict.fromkeys([*types, *index.spec.fields]))
            raise ApiError(422, f"unknown field; allowed: {known}", f"documents.{row}.fields.{unknown[0]}")
        parts: dict[str, tuple[Part, str]] = {}
        for name, kind in types.items():
            value, field = document.fields.get(name), f"documents.{row}.fields.{name}"
            if value is None or (isinstance(value, str) and not value.strip()):
                continue
            if not isinstance(value, str):
                raise ApiError(422, f"found {type(value).__name__}; allowed: text", field)
            if kind == "text":
                self._check_text(value, field)
            parts[name] = (
                value if kind == "text" else decode_base64(value, field, self.settings.max_picture_bytes),
                field,
            )
        if not parts:
            raise ApiError(422, f"found none of the model's fields {', '.join(types)}", f"documents.{row}.fields")
        return parts

    def _judgements(self, request: api.SearchRequest, image: bytes | None) -> Judgements | None:
        query = request.query
        plain = image is None and not query.image and not query.negatives
        return self.catalogue.judgements(query.text) if self.catalogue and plain and query.text else None

    def _check_depth(self, request: api.SearchRequest) -> None:
        if request.k > self.settings.max_k:
            raise ApiError(422, f"found {request.k}; allowed: 1 to {self.settings.max_k}", "k")
        if request.offset + request.k > self.settings.max_depth:
            raise ApiError(
                422, f"found {request.offset}; allowed: offset + k up to {self.settings.max_depth:,}", "offset"
            )

    def _check_text(self, text: str, field: str) -> None:
        if not text.strip():
            raise ApiError(422, "found a blank text; allowed: a text that is not blank", field)
        if len(text) > self.settings.max_text:
            raise ApiError(413, f"{len(text):,} characters; allowed: {self.settings.max_text:,}", field)


def _shortened(vectors: np.ndarray[Any, Any], dimension: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Vectors as an index keeps them, also one alone."""
    return shorten(np.atleast_2d(vectors), dimension).reshape(*vectors.shape[:-1], dimension)


def _filter(where: str | None, index: Index) -> Filter | None:
    if where is None or not where.strip():
        return None
    try:
        return parse_filter(where, index.spec.fields)
    except ValueError as error:
        raise ApiError(422, str(error), "where") from None


def _check_fields(asked: Sequence[str] | None, index: Index) -> None:
    if unknown := [name for name in asked or () if name not in index.spec.fields]:
        raise ApiError(422, f"found {unknown[0]!r}; allowed: {', '.join(index.spec.fields) or 'none'}", "fields")


def _shown(fields: Mapping[str, Any], asked: Sequence[str] | None) -> dict[str, Any]:
    """The asked fields, ready for JSON, which has no NaN."""
    names = fields if asked is None else asked
    return {
        name: None if isinstance(fields[name], float) and not math.isfinite(fields[name]) else fields[name]
        for name in names
    }


def _value(document: api.NewDocument, name: str, kind: FieldType, row: int) -> Any:
    try:
        return checked_value(kind, document.fields.get(name))
    except VectorIndexError as error:
        raise ApiError(422, str(error).replace("or None", "or null"), f"documents.{row}.fields.{name}") from None


def _kind(error: BaseException) -> str:
    """The type of an error, and of the one that it came from."""
    cause = error.__cause__
    return type(error).__name__ + (f" from {type(cause).__name__}" if cause else "")


def _milliseconds(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 2)
