"""The typed client against a real server, and against servers that do not answer as they should."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import opengcl
from opengcl.client import Negative, ServerError
from opengcl.encode import encode_texts
from opengcl.serve.keys import ApiKeys
from tests.builders import picture
from tests.serving import FIELDS, Running, Shop, make_shop, running

KEY = "write-key-of-the-test"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Running]:
    with running([shop], keys=ApiKeys.load(None, {"OPENGCL_WRITE_KEYS": KEY})) as server:
        yield server


@pytest.fixture
def client(server: Running) -> Iterator[opengcl.Client]:
    with opengcl.Client(server.url, key=KEY) as client:
        yield client


def test_search(client: opengcl.Client, server: Running, tmp_path: Path) -> None:
    found = client.search("redshoe", k=5, where="price < 30", fields=["price"], offset=1)
    raw = server.post(
        "/search",
        {"query": {"text": "redshoe"}, "k": 5, "where": "price < 30", "fields": ["price"], "offset": 1},
        headers={"Authorization": f"Bearer {KEY}"},
    ).json()
    assert [(hit.doc_id, hit.rank, hit.fields) for hit in found.hits] == [
        (hit["doc_id"], hit["rank"], hit["fields"]) for hit in raw["hits"]
    ]
    assert (found.model, found.total, found.ndcg_at_10) == ("a", 30, None)
    data = picture(np.random.default_rng(1))
    (tmp_path / "one.png").write_bytes(data)
    ways = [data, tmp_path / "one.png", str(tmp_path / "one.png"), Image.open(io.BytesIO(data))]
    lists = [client.search(image=way, negatives=[Negative("winecup", weight=0.3)], k=4).hits for way in ways]
    assert all(one == lists[0] for one in lists[1:])
    assert len(lists[0]) == 4


def test_documents(client: opengcl.Client) -> None:
    data = picture(np.random.default_rng(2))
    assert client.upsert({"a/b c?": {"title": "redshoe", "image": data, "price": 5.0}, "new": {"title": "x"}}) == 2
    assert client.document("a/b c?") == {"title": "redshoe", "price": 5.0, "stock": None}
    assert client.search(image=data, k=1).total == 42
    assert client.delete("a/b c?")
    assert not client.delete("a/b c?")
    assert client.delete("new")
    with pytest.raises(ServerError, match="404 not_found: doc_id: no document"):
        client.document("a/b c?")
    assert Image.open(io.BytesIO(client.image("d0", "image", size=20))).size[0] == 20


ODD_IDS = (
    *(".", "..", "../..", "a/image/image", "a/image/b", "/", "//x", "/image/image", "image", "documents"),
    *("a?b", "a#b", "%2F", "%", "%2e%2e", "a+b", "a b", " a ", "a&doc_id=b", "doc_id=x", "a;b", "a\\b", '"', "'"),
    *("é", "e\u0301", "日本", "😀", "\u202e", "\u0085", "x" * 512, "é" * 512),
)


def test_any_id_can_be_read_and_deleted(client: opengcl.Client) -> None:
    assert client.upsert({one: {"title": "redshoe", "price": float(row)} for row, one in enumerate(ODD_IDS)})
    for row, one in enumerate(ODD_IDS):
        assert client.document(one)["price"] == row, one
    for row, one in enumerate(ODD_IDS):
        assert client.delete(one), one
        assert not client.delete(one), one
        for other in ODD_IDS[row + 1 : row + 2]:
            assert client.document(other)["price"] == row + 1
    assert client.models()[0].documents == 40


@pytest.mark.parametrize(
    ("doc_id", "message"),
    [
        ("", "at least 1 character"),
        ("x" * 1025, "at most 1024 characters"),
        ("é" * 600, "found 1,200 bytes; allowed: up to 1,024"),
        ("a\0b", "allowed: text without NUL"),
    ],
)
def test_ids_that_cannot_be_are_refused_wherever_they_come(client: opengcl.Client, doc_id: str, message: str) -> None:
    for ask in (client.document, client.delete):
        with pytest.raises(ServerError, match=message) as error:
            ask(doc_id)
        assert error.value.status == 422
    with pytest.raises(ServerError) as error:
        client.upsert({doc_id: {"title": "redshoe"}})
    assert error.value.status == 422


def test_ids_with_control_characters_are_not_taken(client: opengcl.Client) -> None:
    for one in ("a\nb", "\x1b[31m", "\x7f"):
        with pytest.raises(ServerError, match="422 invalid"):
            client.upsert({one: {"title": "redshoe"}})
        assert not client.delete(one)


def test_pictures_by_query_and_by_path_are_the_same(server: Running) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    by_query = server.get("/image", params={"doc_id": "d0", "field": "image", "size": 20}, headers=key)
    by_path = server.get("/documents/d0/image/image?size=20", headers=key)
    assert (by_query.status_code, by_query.content) == (200, by_path.content)
    assert server.get("/image", params={"doc_id": "a/image/b", "field": "image"}, headers=key).status_code == 404
    assert server.get("/documents", headers=key).status_code == 422
    for path in ("/documents?doc_id=d0", "/image?doc_id=d0&field=image"):
        assert server.get(path).status_code == 401


def test_models_suggestions_and_vectors(client: opengcl.Client, shop: Shop) -> None:
    (model,) = client.models()
    assert (model.name, model.documents, model.fields) == ("a", 40, FIELDS)
    assert model.more["images"] == ["image"]
    assert all("red" in text for text in client.suggest("red"))
    np.testing.assert_allclose(
        client.embed(["redshoe", "bluehat"]), encode_texts(shop.model, ["redshoe", "bluehat"]), atol=1e-6
    )
    assert client.embed(["redshoe"], dimensions=3).shape == (1, 3)
    assert client.ready()


def test_errors_say_what_the_server_said(client: opengcl.Client, server: Running) -> None:
    with pytest.raises(ServerError) as error:
        client.search("x", where="prise < 5")
    assert (error.value.status, error.value.type, error.value.field) == (422, "invalid", "where")
    assert "price" in error.value.message
    with opengcl.Client(server.url) as nobody, pytest.raises(ServerError, match="401 unauthorized"):
        nobody.models()


@contextmanager
def answering(replies: list[tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[str, list[float]]]:
    """A server that gives these answers, the last one for ever; and when it was asked."""
    times: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            times.append(time.monotonic())
            status, headers, body = replies.pop(0) if len(replies) > 1 else replies[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", times
        finally:
            http.shutdown()
            thread.join()


def busy(seconds: int) -> tuple[int, dict[str, str], bytes]:
    error = {"error": {"type": "too_many_requests", "message": "later", "field": None}}
    return 429, {"Retry-After": str(seconds)}, json.dumps(error).encode()


def test_it_waits_as_the_server_asks() -> None:
    with answering([busy(1), (200, {}, b'["red"]')]) as (url, times), opengcl.Client(url) as client:
        assert client.suggest("r") == ["red"]
        assert len(times) == 2
        assert times[1] - times[0] >= 0.9


def test_it_gives_up_in_the_end() -> None:
    with answering([busy(1)]) as (url, times), opengcl.Client(url, retries=1) as client:
        with pytest.raises(ServerError, match="429 too_many_requests: later") as error:
            client.suggest("r")
        assert error.value.retry_after == 1
        assert len(times) == 2


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (200, {}, b"<html>", "200 not_json"),
        (500, {}, b"oh", "500 error: oh"),
        (302, {"Location": "http://127.0.0.1:1/"}, b"", "302"),  # a key is not taken elsewhere
    ],
)
def test_answers_that_are_none(status: int, headers: dict[str, str], body: bytes, message: str) -> None:
    with answering([(status, headers, body)]) as (url, times), opengcl.Client(url, key=KEY) as client:
        with pytest.raises(ServerError, match=message):
            client.suggest("r")
        assert len(times) == 1


def test_no_server() -> None:
    with answering([(200, {}, b"[]")]) as (url, _):
        pass
    with opengcl.Client(url, retries=0) as client:
        with pytest.raises(ServerError, match="no answer"):
            client.suggest("r")
        assert not client.ready()
