"""A typed client of `opengcl serve`."""

from __future__ import annotations

import base64
import io
import reprlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx2
import numpy as np
from jaxtyping import Float32
from PIL import Image

from opengcl.given_lists import listed

Picture = bytes | str | Path | Image.Image
"""A picture's bytes, the place of its file, or a decoded one."""

_AGAIN = (429, 503)
_LONGEST_WAIT = 30.0


class ServerError(Exception):
    """The server said no, or did not answer.

    Attributes:
        status: HTTP status; 0 where no answer came.
        type: The server's name for what is wrong, such as ``invalid``.
        message: What was found and what is allowed.
        field: Which part of the request.
        retry_after: Seconds after which to try again, where the server says.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {kind}: {field + ': ' if field else ''}{message}")
        self.status, self.type, self.message, self.field, self.retry_after = status, kind, message, field, retry_after


@dataclass(frozen=True)
class Negative:
    """What results should not be like: a text, a picture or both, and how strongly."""

    text: str | None = None
    image: Picture | None = None
    weight: float = 0.5


@dataclass(frozen=True)
class FoundDocument:
    """One hit.

    Attributes:
        doc_id: The document.
        rank: From 1, over all pages.
        score: Cosine, -1 to 1.
        fields: What the index keeps of it.
        relevance: Judged score over its range, 0 to 1; None where not judged.
    """

    doc_id: str
    rank: int
    score: float
    fields: dict[str, Any]
    relevance: float | None


@dataclass(frozen=True)
class Found:
    """A search's answer.

    Attributes:
        model: Name of the model that searched.
        took_ms: Milliseconds in the server.
        total: Documents that match the filter.
        hits: The best of them, best first.
        ndcg_at_10: Where the query is one that was judged.
    """

    model: str
    took_ms: float
    total: int
    hits: list[FoundDocument]
    ndcg_at_10: float | None


@dataclass(frozen=True)
class ServedModel:
    """A model that the server has, and its live index.

    Attributes:
        name: What requests call it.
        label: What people call it.
        dimension: Components of the index's vectors.
        documents: In the index.
        fields: What travels along -> ``text``, ``integer``, ``number`` or ``boolean``.
        filters: Field -> its values, least and most, as far as known.
        index: Name of the live index.
        fingerprint: Of the model.
        more: Whatever else the server says.
    """

    name: str
    label: str
    dimension: int
    documents: int
    fields: dict[str, str]
    filters: dict[str, dict[str, Any]]
    index: str
    fingerprint: str
    more: dict[str, Any] = field(default_factory=dict)


class Client:
    """Talks to one server; threads may share it. Use it in a ``with``, or call `close`.

    Answers of 429 and 503 are waited out as the server asks. Every request can be repeated without harm.

    Args:
        url: Such as ``http://127.0.0.1:8000``.
        key: API key, where the server has keys.
        timeout: Seconds for each try.
        retries: Further tries after 429, 503 or a broken connection.

    Example:
        >>> with opengcl.Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
        ...     found = client.search("red shoes", k=5, where="price < 50")
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 30.0, retries: int = 3) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout, follow_redirects=False)
        self._retries = retries

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends its connections."""
        self._http.close()

    def search(
        self,
        text: str | None = None,
        *,
        image: Picture | None = None,
        text_weight: float = 1.0,
        image_weight: float = 1.0,
        negatives: Sequence[Negative] | Negative = (),
        k: int = 20,
        offset: int = 0,
        where: str | None = None,
        fields: Sequence[str] | None = None,
        model: str | None = None,
    ) -> Found:
        """Finds documents.

        Args:
            text: What to look for.
            image: A picture to look for, alone or with the text.
            text_weight: Of the text in the mix, from 0.
            image_weight: Of the picture.
            negatives: What to move away from; one or several.
            k: How many.
            offset: How many of the best to leave out first.
            where: A filter, such as ``price < 50 and brand in ("x", "y")``.
            fields: Which to give back; all by default.
            model: ``a`` or ``b`` where the server has two.

        Raises:
            ServerError: What the server said, or that it did not.
        """
        negatives = [negatives] if isinstance(negatives, Negative) else listed("negatives", negatives)
        query: dict[str, Any] = {"text": text, "text_weight": text_weight, "image_weight": image_weight}
        query["image"] = _encoded(image)
        query["negatives"] = [
            {"text": one.text, "image": _encoded(one.image), "weight": one.weight} for one in negatives
        ]
        chosen = None if fields is None else listed("fields", fields)
        body = {"query": query, "k": k, "offset": offset, "where": where, "fields": chosen, "model": model}
        reply = self._ask("POST", "/search", json=body)
        hits = [FoundDocument(**hit) for hit in reply["hits"]]
        return Found(reply["model"], reply["took_ms"], reply["total"], hits, reply["ndcg@10"])

    def suggest(self, text: str = "", *, model: str | None = None) -> list[str]:
        """Up to 8 queries of the data set that begin with or contain a text."""
        found: list[str] = self._ask("GET", "/suggest", params=_given(q=text, model=model))
        return found

    def models(self) -> list[ServedModel]:
        """What is served."""
        return [_model(one) for one in self._ask("GET", "/models")]

    def document(self, doc_id: str, *, model: str | None = None) -> dict[str, Any]:
        """A document's fields as the index keeps them.

        Raises:
            ValueError: Something else than one id.
            ServerError: 404 where there is none.
        """
        asked = _given(doc_id=_one_id(doc_id), model=model)
        fields: dict[str, Any] = self._ask("GET", "/documents", params=asked)["fields"]
        return fields

    def image(self, doc_id: str, field: str, *, size: int = 256, model: str | None = None) -> bytes:
        """A document's picture as JPEG, at most ``size`` pixels wide and high.

        Raises:
            ServerError: 404 where there is none.
        """
        asked = _given(doc_id=_one_id(doc_id), field=field, size=size, model=model)
        return self._send("GET", "/image", params=asked).content

    def upsert(self, documents: Mapping[str, Mapping[str, Any]], *, model: str | None = None) -> int:
        """Encodes documents and puts them into the index; they are durable and found when it returns.

        Args:
            documents: Id -> fields: the model's, pictures as `Picture` or base64, and those that travel along.
            model: ``a`` or ``b`` where the server has two.

        Returns:
            How many.
        """
        rows = [
            {"doc_id": doc_id, "fields": {name: _value(value) for name, value in fields.items()}}
            for doc_id, fields in documents.items()
        ]
        return int(self._ask("POST", "/documents", json={"documents": rows, "model": model})["upserted"])

    def delete(self, doc_id: str, *, model: str | None = None) -> bool:
        """Removes a document; whether it was there.

        Raises:
            ValueError: Something else than one id.
            ServerError: What the server said, or that it did not.
        """
        try:
            self._ask("DELETE", "/documents", params=_given(doc_id=_one_id(doc_id), model=model))
        except ServerError as error:
            if error.status == 404 and error.field == "doc_id":
                return False
            raise
        return True

    def embed(
        self,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        model: str | None = None,
        input_type: Literal["query", "document"] = "query",
    ) -> Float32[np.ndarray, "texts d"]:
        """Unit vectors of texts: of queries, or of texts of documents, for a model whose prompts differ.

        Raises:
            ValueError: One text in place of a list; write ``[text]``.
            ServerError: What the server said, or that it did not.
        """
        body = _given(
            input=listed("texts", texts),
            dimensions=dimensions,
            model=model,
            input_type=input_type,
            encoding_format="base64",
        )
        data = self._ask("POST", "/v1/embeddings", json=body)["data"]
        return np.stack([np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4") for one in data])

    def ready(self) -> bool:
        """Whether the server takes requests now."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.HTTPError:
            return False

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        response = self._send(method, path, **request)
        try:
            return response.json()
        except ValueError:
            raise ServerError(response.status_code, "not_json", "the answer is not JSON: is this the server?") from None

    def _send(self, method: str, path: str, **request: Any) -> httpx2.Response:
        for further in range(self._retries, -1, -1):
            try:
                response = self._http.request(method, path, **request)
                if response.status_code == 200:
                    return response
                error = _error(response)
            except httpx2.TransportError as broken:
                error = ServerError(0, "unanswered", f"no answer ({type(broken).__name__})")
            if further == 0 or error.status not in (0, *_AGAIN):
                break
            time.sleep(min(error.retry_after or 0.5 * (self._retries - further + 1), _LONGEST_WAIT))
        raise error


def _error(response: httpx2.Response) -> ServerError:
    retry_after = response.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.isdigit() else None
    try:
        told = response.json()["error"]
        return ServerError(response.status_code, told["type"], told["message"], told.get("field"), seconds)
    except (ValueError, KeyError, TypeError):
        return ServerError(response.status_code, "error", response.text[:200], retry_after=seconds)


def _model(reply: Mapping[str, Any]) -> ServedModel:
    names = [name for name in ServedModel.__dataclass_fields__ if name != "more"]
    more = {name: value for name, value in reply.items() if name not in names}
    return ServedModel(**{name: reply[name] for name in names}, more=more)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _one_id(doc_id: str) -> str:
    if not isinstance(doc_id, str):
        raise ValueError(f"doc_id: found {reprlib.repr(doc_id)}; allowed: one id, which is text")
    return doc_id


def _value(value: Any) -> Any:
    """A document's field: pictures as base64, all else as it is; a plain text is never taken for a file's name."""
    return _encoded(value) if isinstance(value, bytes | Path | Image.Image) else value


def _encoded(picture: Picture | None) -> str | None:
    """A picture's file in base64; decoded ones become PNG, so that nothing is lost."""
    if picture is None:
        return None
    if isinstance(picture, Image.Image):
        out = io.BytesIO()
        picture.save(out, "PNG")
        picture = out.getvalue()
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return base64.b64encode(data).decode("ascii")
