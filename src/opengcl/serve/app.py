"""The routes: each reads its request, calls a served model, and answers."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp

import opengcl
from opengcl.index import Store
from opengcl.index.protocol import LONGEST_ID
from opengcl.serve import api, errors
from opengcl.serve.cache import LeastRecentlyUsed
from opengcl.serve.description import body_of, describe
from opengcl.serve.errors import ApiError
from opengcl.serve.keys import ApiKeys, key_of
from opengcl.serve.limits import Limits
from opengcl.serve.metrics import CONTENT_TYPE, Metrics
from opengcl.serve.observe import Observe
from opengcl.serve.pictures import PictureThreads, too_large
from opengcl.serve.served import Served, Threads
from opengcl.serve.settings import Settings

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
_LARGE = 1 << 16  # bodies above this many bytes are parsed in a thread
Parsed = TypeVar("Parsed", bound=BaseModel)


@dataclass
class State:
    """What the routes share.

    Attributes:
        models: Name -> model; the first is the default.
        keys: API keys.
        settings: Limits.
        metrics: What is counted.
        pictures: Where pictures are decoded.
        threads: Where stores are asked.
        stores: To be closed at the end.
        draining: Whether SIGTERM came.
    """

    models: Mapping[str, Served]
    keys: ApiKeys
    settings: Settings
    metrics: Metrics
    pictures: PictureThreads
    threads: Threads
    stores: list[Store] = field(default_factory=list)
    draining: bool = False

    def model(self, name: str | None) -> Served:
        """A model by name, or the first.

        Raises:
            ApiError: 404 where there is none of this name.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ApiError(404, f"no model {name[:200]!r}; there: {', '.join(self.models)}", "model")
        return self.models[name]


def create_app(state: State, hosts: frozenset[str] = frozenset()) -> ASGIApp:
    """The whole server as an ASGI app.

    Args:
        state: Models, keys, limits.
        hosts: Host names that are answered; empty: any.
    """
    app = FastAPI(
        title="OpenGCL",
        version=opengcl.__version__,
        summary="Search, documents and embeddings of a trained model.",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        lifespan=_lifespan,
        responses={422: {"model": api.ErrorReply, "description": "Found something that is not allowed."}},
    )
    app.state.served = state
    errors.install(app)
    if state.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(state.settings.cors),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    for add in (_add_search, _add_documents, _add_pictures, _add_embeddings, _add_operations, _add_page):
        add(app, state)
    describe(app)
    return Observe(Limits(app, state.settings, state.metrics, hosts), state.metrics)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.served
    watch = asyncio.create_task(_follow_swaps(state))
    try:
        yield
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        for model in state.models.values():
            await model.encoder.close()
        state.pictures.close()
        await asyncio.to_thread(state.threads.close)
        for store in state.stores:
            await asyncio.to_thread(store.close)


async def _follow_swaps(state: State) -> None:
    while True:
        await asyncio.sleep(state.settings.swap_seconds)
        for model in state.models.values():
            await asyncio.to_thread(model.live.refresh)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": api.ErrorReply, "description": errors.TYPES[status]} for status in statuses}


_ALWAYS = _errors(400, 401, 503)


async def _reader(request: Request) -> None:  # async, or FastAPI takes a thread for each request
    state: State = request.app.state.served
    if not state.keys.may_read(key_of(request.scope["headers"])):
        raise ApiError(401, "no key, or one that is not known; allowed: Authorization: Bearer KEY")


async def _writer(request: Request) -> None:
    state: State = request.app.state.served
    key = key_of(request.scope["headers"])
    if state.keys.may_write(key) or (not state.keys and state.settings.allow_writes):
        return
    if state.keys and not state.keys.may_read(key):
        raise ApiError(401, "no key, or one that is not known; allowed: Authorization: Bearer KEY")
    raise ApiError(403, "documents can only be changed with a write key")


READ, WRITE = [Depends(_reader)], [Depends(_writer)]


AnyId = Annotated[str, Query(min_length=1, max_length=LONGEST_ID, description="The document's id.")]
ModelName = Annotated[str | None, Query(max_length=512)]
Pixels = Annotated[int, Query(ge=16, le=1024)]


def _add_search(app: FastAPI, state: State) -> None:
    @app.post(
        "/search",
        dependencies=READ,
        responses={**_ALWAYS, **_errors(404, 408, 413, 415, 429)},
        openapi_extra=body_of(api.SearchRequest, form_data=True),
    )
    async def search(request: Request) -> api.SearchReply:
        """Find documents by text, picture or both, minus others; as JSON, or as a form with the picture as a file."""
        if _content_type(request) == "multipart/form-data":
            asked, image = await _form(request, state.settings)
        else:
            asked, image = await _json(request, api.SearchRequest), None
        return await state.model(asked.model).search(asked, image)

    @app.get("/search", dependencies=READ, responses={**_ALWAYS, **_errors(404, 413, 429)})
    async def search_text(
        q: Annotated[str, Query(max_length=10_000)],
        k: Annotated[int, Query(ge=1, le=10_000)] = 20,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        where: Annotated[str | None, Query(max_length=10_000)] = None,
        model: ModelName = None,
    ) -> api.SearchReply:
        """Find documents by text, for a quick look and as one types."""
        asked = api.SearchRequest(query=api.Query(text=q), k=k, offset=offset, where=where)
        return await state.model(model).search(asked)

    @app.get("/suggest", dependencies=READ, responses={**_ALWAYS, **_errors(404)})
    async def suggest(q: Annotated[str, Query(max_length=1000)] = "", model: ModelName = None) -> list[str]:
        """Up to 8 queries of the data set that begin with or contain the text; the most judged ones for none."""
        catalogue = state.model(model).catalogue
        return await asyncio.to_thread(catalogue.suggest, q) if catalogue else []

    @app.get("/models", dependencies=READ, responses=_ALWAYS)
    async def models() -> list[api.ModelInfo]:
        """What is served, and what can be filtered on."""
        return [await model.info() for model in state.models.values()]


def _add_documents(app: FastAPI, state: State) -> None:
    @app.post(
        "/documents",
        dependencies=WRITE,
        responses={**_ALWAYS, **_errors(403, 404, 408, 409, 413, 415, 429)},
        openapi_extra=body_of(api.DocumentsRequest),
    )
    async def upsert(request: Request) -> api.DocumentsReply:
        """Encode documents and put them into the live index; answered when they are durable and found."""
        asked = await _json(request, api.DocumentsRequest)
        return await state.model(asked.model).upsert(asked.documents)

    @app.delete("/documents", dependencies=WRITE, responses={**_ALWAYS, **_errors(403, 404)})
    async def delete_by_id(doc_id: AnyId, model: ModelName = None) -> api.Deleted:
        """Remove a document, whatever its id."""
        return await state.model(model).delete(doc_id)

    @app.delete("/documents/{doc_id:path}", dependencies=WRITE, responses={**_ALWAYS, **_errors(403, 404)})
    async def delete(doc_id: str, model: ModelName = None) -> api.Deleted:
        """Remove a document whose id no path bends: not `.` or `..`."""
        return await state.model(model).delete(doc_id)


def _add_pictures(app: FastAPI, state: State) -> None:
    kept: LeastRecentlyUsed[str, bytes] = LeastRecentlyUsed(state.settings.thumbnail_bytes, len)

    pictures: dict[int | str, dict[str, Any]] = {
        **_ALWAYS,
        **_errors(404),
        200: {"content": {"image/jpeg": {}}},
        304: {"description": "unchanged"},
    }

    async def thumbnail(request: Request, doc_id: str, field: str, size: int, model: str | None) -> Response:
        catalogue = state.model(model).catalogue
        cell = await asyncio.to_thread(catalogue.cell, doc_id, field) if catalogue else None
        if catalogue is None or cell is None:
            raise ApiError(404, "the data set has no such picture")
        tag = catalogue.etag(doc_id, field, size)
        headers = {"ETag": tag, "Cache-Control": "private, max-age=3600"}
        if tag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        data = kept.get(tag)
        if data is None:
            data = await state.pictures.thumbnail(cell, catalogue.root, size)
            kept.put(tag, data)
        return Response(data, media_type="image/jpeg", headers=headers)

    @app.get("/image", dependencies=READ, response_class=Response, responses=pictures)
    async def image_by_id(
        request: Request,
        doc_id: AnyId,
        field: Annotated[str, Query(min_length=1, max_length=512)],
        size: Pixels = 256,
        model: ModelName = None,
    ) -> Response:
        """A document's picture as JPEG, at most so many pixels wide and high, whatever the document's id."""
        return await thumbnail(request, doc_id, field, size, model)

    @app.get("/documents/{doc_id:path}/image/{field}", dependencies=READ, response_class=Response, responses=pictures)
    async def image(request: Request, doc_id: str, field: str, size: Pixels = 256, model: ModelName = None) -> Response:
        """The same by path, for ids that no path bends: not `.` or `..`."""
        return await thumbnail(request, doc_id, field, size, model)

    @app.get("/documents", dependencies=READ, responses={**_ALWAYS, **_errors(404)})
    async def document_by_id(doc_id: AnyId, model: ModelName = None) -> api.Document:
        """A document's fields as the index keeps them, whatever its id."""
        return await state.model(model).document(doc_id)

    @app.get("/documents/{doc_id:path}", dependencies=READ, responses={**_ALWAYS, **_errors(404)})
    async def document(doc_id: str, model: ModelName = None) -> api.Document:
        """The same by path, for ids that no path bends: not `.` or `..`, nor those with `/image/` inside."""
        return await state.model(model).document(doc_id)


def _add_embeddings(app: FastAPI, state: State) -> None:
    @app.post(
        "/v1/embeddings",
        dependencies=READ,
        responses={**_ALWAYS, **_errors(404, 408, 413, 415, 429)},
        openapi_extra=body_of(api.EmbeddingsRequest),
    )
    async def embeddings(request: Request) -> api.EmbeddingsReply:
        """Unit vectors of texts, as OpenAI's clients ask for them; as queries where `input_type` says nothing else."""
        asked = await _json(request, api.EmbeddingsRequest)
        model = state.model(asked.model)
        vectors = await model.embed(asked.input, asked.dimensions, asked.input_type)
        plain = asked.encoding_format == "float"
        data = [
            api.Embedding(index=row, embedding=vector.tolist() if plain else _base64(vector))
            for row, vector in enumerate(vectors)
        ]
        return api.EmbeddingsReply(data=data, model=model.name)


def _add_operations(app: FastAPI, state: State) -> None:
    @app.get("/healthz")
    async def alive() -> api.Health:
        """Whether the process runs."""
        return api.Health()

    @app.get("/readyz", responses={503: {"model": api.Readiness, "description": "stopping"}})
    async def ready(response: Response) -> api.Readiness:
        """Whether requests are taken; what the operator should know."""
        response.status_code = 503 if state.draining else 200
        return api.Readiness(
            status="draining" if state.draining else "ready",
            models={name: model.live.current.name for name, model in state.models.items()},
            warnings=[f"{name}: {model.live.warning}" for name, model in state.models.items() if model.live.warning],
        )

    @app.get("/metrics", dependencies=READ, response_class=PlainTextResponse, responses=_errors(401))
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI, _: State) -> None:
    if (PAGE / "index.html").is_file():
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
        return

    @app.get("/", include_in_schema=False)
    async def placeholder() -> PlainTextResponse:
        return PlainTextResponse("OpenGCL is running. GET /search?q=...; the API is described in /openapi.json.\n")


async def _json(request: Request, form: type[Parsed]) -> Parsed:
    """The request's JSON in its form; large ones are parsed off the event loop.

    Raises:
        ApiError: 415 for another type, 400 for what is not JSON, 413 for too much, 422 for another form.
    """
    if _content_type(request) != "application/json":
        raise ApiError(415, f"found {_content_type(request)[:100]!r}; allowed: application/json", "Content-Type")
    return await _parsed(await request.body(), form)


async def _parsed(body: bytes | str, form: type[Parsed]) -> Parsed:
    try:
        if len(body) > _LARGE:
            return await asyncio.to_thread(form.model_validate_json, body)
        return form.model_validate_json(body)
    except ValidationError as error:
        raise errors.invalid(error) from None


async def _form(request: Request, settings: Settings) -> tuple[api.SearchRequest, bytes | None]:
    """A search as a form: ``query`` is the JSON, ``image`` the query's picture."""
    try:
        async with request.form(max_files=1, max_fields=1, max_part_size=settings.max_query_bytes) as form:
            written, image = form.get("query"), form.get("image")
            if unknown := [name for name in form if name not in ("query", "image")]:
                raise ApiError(422, f"found {unknown[0][:100]!r}; allowed: query, image", "form")
            asked = await _parsed(written if isinstance(written, str) else '{"query": {}}', api.SearchRequest)
            if not isinstance(image, UploadFile):
                return asked, None
            data = await image.read(settings.max_picture_bytes + 1)
            if len(data) > settings.max_picture_bytes:
                raise too_large("image", settings.max_picture_bytes)
            return asked, data or None
    except (MultiPartException, HTTPException) as error:
        raise ApiError(400, f"not a form: {getattr(error, 'message', None) or getattr(error, 'detail', '')}") from None


def _content_type(request: Request) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _base64(vector: Any) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
