"""Every endpoint of a real server on loopback, against what the library itself computes."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from opengcl import cli
from opengcl.cores import usable_cores
from opengcl.encode import encode, encode_texts
from opengcl.index import StoreError, open_store
from opengcl.index.exact import ExactIndex
from opengcl.serve import Settings
from opengcl.serve.keys import ApiKeys
from opengcl.serve.observe import access_log
from opengcl.serve.run import is_local
from tests.builders import picture
from tests.serving import FIELDS, Running, Shop, build, make_run, make_shop, running, vectors_of

TEXT = "redshoe bluehat"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Running]:
    with running([shop]) as server:
        yield server


@pytest.fixture(scope="module")
def vectors(shop: Shop) -> np.ndarray:
    return vectors_of(shop)


@pytest.fixture(scope="module")
def photo() -> bytes:
    return picture(np.random.default_rng(7))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def picture_vector(shop: Shop, data: bytes) -> np.ndarray:
    """By sentence-transformers' own path."""
    return unit(shop.model.encoder.encode([Image.open(io.BytesIO(data)).convert("RGB")])[0])


def ranking(shop: Shop, vectors: np.ndarray, query: np.ndarray, k: int) -> list[tuple[str, float]]:
    """The k best as a full sort finds them."""
    scores = vectors @ unit(query)
    order = np.argsort(-scores, kind="stable")[:k]
    return [(shop.dataset.documents.ids([row])[0], float(scores[row])) for row in order]


def check_hits(found: dict[str, Any], expected: list[tuple[str, float]]) -> None:
    assert [hit["doc_id"] for hit in found["hits"]] == [doc_id for doc_id, _ in expected]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert [hit["rank"] for hit in found["hits"]] == list(range(1, len(expected) + 1))


def test_a_text_finds_what_a_full_sort_finds(server: Running, shop: Shop, vectors: np.ndarray) -> None:
    expected = ranking(shop, vectors, encode_texts(shop.model, [TEXT])[0], 7)
    found = server.post("/search", {"query": {"text": TEXT}, "k": 7}).json()
    check_hits(found, expected)
    assert found["total"] == len(vectors)
    assert found["model"] == "a"
    assert found["took_ms"] > 0
    by_get = server.get("/search", params={"q": TEXT, "k": 7}).json()
    assert by_get["hits"] == found["hits"]


def test_the_mix_is_the_weighted_sum_of_unit_vectors_minus_the_negatives(
    server: Running, shop: Shop, vectors: np.ndarray, photo: bytes
) -> None:
    text, minus = encode_texts(shop.model, [TEXT, "winecup"])
    image = picture_vector(shop, photo)
    mixed = 0.5 * text + 2 * image - 0.25 * minus - 0.4 * (minus + image) / 2
    query = {
        "text": TEXT,
        "image": b64(photo),
        "text_weight": 0.5,
        "image_weight": 2,
        "negatives": [
            {"text": "winecup", "weight": 0.25},
            {"text": "winecup", "image": f"data:image/png;base64,{b64(photo)}", "weight": 0.4},
        ],
    }
    check_hits(server.post("/search", {"query": query, "k": 9}).json(), ranking(shop, vectors, mixed, 9))


def test_a_picture_alone_as_json_and_as_a_form(server: Running, shop: Shop, vectors: np.ndarray, photo: bytes) -> None:
    expected = ranking(shop, vectors, picture_vector(shop, photo), 5)
    check_hits(server.post("/search", {"query": {"image": b64(photo)}, "k": 5}).json(), expected)
    asked = {"query": json.dumps({"query": {}, "k": 5})}
    form = httpx2.post(f"{server.url}/search", files={"image": photo}, data=asked)
    check_hits(form.json(), expected)
    alone = httpx2.post(f"{server.url}/search", files={"image": photo})
    assert [hit["doc_id"] for hit in alone.json()["hits"]][:5] == [doc_id for doc_id, _ in expected]


def test_pages_add_up_and_ranks_go_on(server: Running) -> None:
    body = {"query": {"text": TEXT}, "k": 30}
    whole = server.post("/search", body).json()["hits"]
    pages = [server.post("/search", {**body, "k": 10, "offset": offset}).json()["hits"] for offset in (0, 10, 20)]
    assert [hit for page in pages for hit in page] == whole


def test_integers_are_exact_over_http(tmp_path: Path) -> None:
    shop = make_shop(tmp_path)
    skus = [9_223_372_036_854_775_000 + row for row in range(len(shop.dataset.documents))]
    build(shop, "v2", fields={**FIELDS, "sku": "integer"}, sku=skus)
    with running([shop]) as server:
        found = server.post("/search", {"query": {"text": TEXT}, "where": f"sku = {skus[7]}"})
        assert found.json()["total"] == 1
        assert f'"sku":{skus[7]}}}' in found.text
        new = {"doc_id": "new", "fields": {"title": "y", "sku": 2**63 - 1, "price": 3}}
        assert server.post("/documents", {"documents": [new]}).status_code == 200
        assert server.get("/documents/new").json()["fields"]["sku"] == 2**63 - 1
        for field, value in (("sku", 2**63), ("sku", 2024.5), ("sku", True), ("price", 2**53 + 1), ("price", 10**4000)):
            bad = {"doc_id": "bad", "fields": {"title": "y", field: value}}
            reply = server.post("/documents", {"documents": [bad]})
            assert (reply.status_code, reply.json()["error"]["field"]) == (422, f"documents.0.fields.{field}")
            assert len(reply.content) < 1000
        assert server.get("/models").json()[0]["fields"]["sku"] == "integer"


def test_deep_filters_are_refused_before_the_store_is_asked(server: Running) -> None:
    for where in ("(" * 24 + "price < 5" + ")" * 24, "price < 1 or price < 2 and (" * 12 + "price < 50" + ")" * 12):
        reply = server.post("/search", {"query": {"text": TEXT}, "where": where})
        assert (reply.status_code, reply.json()["error"]["field"]) == (422, "where")
        assert "allowed: up to 16 levels" in reply.json()["error"]["message"]


def test_what_a_client_wrote_is_not_logged_when_a_store_fails(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> int:
        try:
            raise RuntimeError("cannot read: \x1b[2J secret words")
        except RuntimeError as error:
            raise StoreError("exact: cannot read: \x1b[2J secret words\nERROR: forged") from error

    monkeypatch.setattr(ExactIndex, "count", fail)
    reply = server.post("/search", {"query": {"text": TEXT}, "where": "title = '\x1b[2J secret words'"})
    assert reply.status_code == 503
    assert "secret" not in reply.text
    assert "the store failed with StoreError from RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    assert "\x1b" not in caplog.text


def test_filters_and_fields(server: Running) -> None:
    body = {"query": {"text": TEXT}, "k": 40, "where": "price < 20 and stock = true", "fields": ["price"]}
    found = server.post("/search", body).json()
    prices = [float(price) for price in range(0, 20, 3)]
    assert found["total"] == len(prices)
    assert sorted(hit["fields"]["price"] for hit in found["hits"]) == prices
    assert all(set(hit["fields"]) == {"price"} for hit in found["hits"])


def test_judged_relevance_and_ndcg(server: Running, shop: Shop) -> None:
    data = shop.dataset
    for row in range(3):
        text = data.queries.texts("query", [row])[0]
        documents, scores = data.qrels.judged(row)
        judged = dict(zip(data.documents.ids(documents), scores.tolist(), strict=True))
        found = server.post("/search", {"query": {"text": f" {text.upper()} "}, "k": 40}).json()
        plain = server.post("/search", {"query": {"text": text}, "k": 4}).json()
        gains = []
        for hit in found["hits"]:
            score = judged.get(hit["doc_id"])
            assert hit["relevance"] == (None if score is None else pytest.approx((score - 1) / 99))
            gains.append(score or 0.0)
        best = sorted(judged.values(), reverse=True)
        expected = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:10]))
        expected /= sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best[:10]))
        assert found["ndcg@10"] == pytest.approx(expected)
        if found["hits"][:4] == plain["hits"]:  # upper case may be another vector
            assert plain["ndcg@10"] == pytest.approx(expected)
    assert server.post("/search", {"query": {"text": "not judged"}}).json()["ndcg@10"] is None
    filtered = server.post("/search", {"query": {"text": text}, "where": "price < 10"}).json()
    assert filtered["ndcg@10"] is None
    assert server.post("/search", {"query": {"text": text}, "offset": 3}).json()["ndcg@10"] is None
    mixed = {"text": text, "negatives": [{"text": "winecup"}]}
    assert server.post("/search", {"query": mixed}).json()["ndcg@10"] is None


def test_suggestions_begin_with_or_contain_the_text(server: Running, shop: Shop) -> None:
    rows = np.arange(len(shop.dataset.queries))
    texts = sorted(set(shop.dataset.queries.texts("query", rows)))
    for typed in ("red", "Bag", "  cup", "zzz", "blue"):
        wanted = typed.strip().lower()
        begin = [text for text in texts if text.startswith(wanted)]
        contain = [text for text in texts if wanted in text and text not in begin]
        assert server.get("/suggest", params={"q": typed}).json() == [*begin, *contain][:8]
    most = server.get("/suggest").json()
    assert len(most) == 8
    judged = {
        text: len(shop.dataset.qrels.judged(row)[0])
        for row, text in zip(rows, shop.dataset.queries.texts("query", rows), strict=True)
    }
    assert min(judged[text] for text in most) >= sorted(judged.values(), reverse=True)[7]


def test_models_tell_what_can_be_filtered(server: Running) -> None:
    (model,) = server.get("/models").json()
    assert {name: model[name] for name in ("name", "label", "dimension", "documents", "fields")} == {
        "name": "a",
        "label": "run",
        "dimension": 16,
        "documents": 40,
        "fields": FIELDS,
    }
    assert model["filters"]["title"] == {"type": "text", "values": None, "min": None, "max": None}
    assert model["images"] == ["image"]
    assert model["query"] == ["text", "image"]
    assert model["index"] == "v1"


def test_thumbnails(server: Running, shop: Shop) -> None:
    reply = server.get("/documents/d0/image/image", params={"size": 16})
    small = Image.open(io.BytesIO(reply.content))
    assert (small.format, max(small.size)) == ("JPEG", 16)
    assert reply.headers["Content-Type"] == "image/jpeg"
    again = server.get("/documents/d0/image/image?size=16", headers={"If-None-Match": reply.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = server.get("/documents/d0/image/image?size=20", headers={"If-None-Match": reply.headers["ETag"]})
    assert other.status_code == 200
    without = int(np.flatnonzero(~shop.dataset.documents.present("image", np.arange(40)))[0])
    for path in (f"d{without}/image/image", "d999/image/image", "d0/image/title", "d0/image/../../etc/passwd"):
        assert server.get(f"/documents/{path}").status_code == 404
    assert server.get("/documents/d0/image/image?size=9999").status_code == 422


def test_documents_sent_are_encoded_as_the_library_does(server: Running, shop: Shop, vectors: np.ndarray) -> None:
    rows = np.arange(20)
    titles = shop.dataset.documents.texts("title", rows)
    pictures = shop.dataset.documents.values("image", rows)
    documents = [
        {
            "doc_id": f"sent/{row} é",
            "fields": {"title": title, "image": b64(data) if data else None, "price": 100 + row, "stock": None},
        }
        for row, (title, data) in enumerate(zip(titles, pictures, strict=True))
    ]
    reply = server.post("/documents", {"documents": documents})
    assert (reply.status_code, reply.json()["upserted"]) == (200, 20)
    try:
        index = open_store(shop.store).open()
        kept = index.get([document["doc_id"] for document in documents])
        np.testing.assert_allclose([row.vector for row in kept], vectors[:20], atol=1e-5)
        found = server.post("/search", {"query": {"text": TEXT}, "where": "price >= 100", "k": 30}).json()
        assert found["total"] == 20
        assert server.get("/documents/sent%2F3%20%C3%A9").json() == {
            "doc_id": "sent/3 é",
            "fields": {"title": titles[3], "price": 103.0, "stock": None},
        }
        again = [{"doc_id": "sent/3 é", "fields": {"title": "winecup", "stock": True}}]
        assert server.post("/documents", {"documents": again}).status_code == 200
        replaced = server.get("/documents/sent%2F3%20%C3%A9").json()["fields"]
        assert replaced == {"title": "winecup", "price": None, "stock": True}
    finally:
        for document in documents:
            place = f"{server.url}/documents/{httpx2.URL('/').copy_with(path=document['doc_id']).raw_path.decode()}"
            assert httpx2.delete(place).json() == {"model": "a", "deleted": 1}
    assert httpx2.delete(f"{server.url}/documents/sent%2F3").status_code == 404
    assert server.get("/models").json()[0]["documents"] == 40


def test_a_refused_upload_writes_nothing(server: Running) -> None:
    good = {"doc_id": "good", "fields": {"title": "redshoe"}}
    bad = {"doc_id": "bad", "fields": {"title": "redshoe", "image": b64(b"no picture")}}
    reply = server.post("/documents", {"documents": [good, bad]})
    assert reply.status_code == 422
    assert reply.json()["error"]["field"] == "documents.1.fields.image"
    assert server.get("/documents/good").status_code == 404


@pytest.mark.parametrize("form", ["float", "base64"])
def test_the_openai_client_gets_the_vectors_of_encode(server: Running, shop: Shop, form: Any) -> None:
    rows = np.arange(6)
    texts = shop.dataset.queries.texts("query", rows)
    expected = encode(shop.model, shop.dataset.queries, "query", rows)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        reply = client.embeddings.create(model="a", input=texts, encoding_format=form)
        one = client.embeddings.create(model="a", input=texts[2])
        short = client.embeddings.create(model="a", input=texts, dimensions=5)
        with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
            client.embeddings.create(model="gpt", input="x")
        with pytest.raises(openai.UnprocessableEntityError, match="allowed: 1 to 16"):
            client.embeddings.create(model="a", input="x", dimensions=17)
        with pytest.raises(openai.UnprocessableEntityError, match="blank"):
            client.embeddings.create(model="a", input=["x", " "])

    def vectors_in(reply: Any) -> np.ndarray:
        found = [one.embedding for one in reply.data]
        assert [one.index for one in reply.data] == list(range(len(found)))
        plain = [np.frombuffer(base64.b64decode(one), "<f4") if isinstance(one, str) else one for one in found]
        return np.array(plain)

    np.testing.assert_allclose(vectors_in(reply), expected, atol=1e-6)
    np.testing.assert_allclose(vectors_in(one), expected[2:3], atol=1e-6)
    cut = expected[:, :5] / np.linalg.norm(expected[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_in(short), cut, atol=1e-6)


BAD: list[tuple[str, Any, int, str | None, str]] = [
    ("/search", {}, 422, "query", "required"),
    ("/search", {"query": {}}, 422, "query", "neither text nor image"),
    ("/search", {"query": {"text": "   "}}, 422, "query", "neither text nor image"),
    ("/search", {"query": {"text": "x", "text_weight": 0}}, 422, "query", "neither text nor image"),
    ("/search", {"query": {"text": "x", "text_weight": -1}}, 422, "query.text_weight", "greater than or equal to 0"),
    ("/search", {"query": {"texts": "x"}}, 422, "query.texts", "unknown key"),
    ("/search", {"query": {"text": "x"}, "k": 0}, 422, "k", "greater than or equal to 1"),
    ("/search", {"query": {"text": "x"}, "k": 201}, 422, "k", "1 to 200"),
    ("/search", {"query": {"text": "x"}, "k": "5"}, 422, "k", "integer"),
    ("/search", {"query": {"text": "x"}, "offset": 9990}, 422, "offset", "10,000"),
    ("/search", {"query": {"text": "x"}, "where": "prise < 5"}, 422, "where", "prise"),
    ("/search", {"query": {"text": "x"}, "where": "price < 'a'"}, 422, "where", "number"),
    ("/search", {"query": {"text": "x"}, "where": "price <"}, 422, "where", "end"),
    ("/search", {"query": {"text": "x"}, "fields": ["colour"]}, 422, "fields", "title, price, stock"),
    ("/search", {"query": {"text": "x"}, "model": "c"}, 404, "model", "there: a"),
    ("/search", {"query": {"text": "x" * 10_001}}, 422, "query.text", "10000"),
    ("/search", {"query": {"text": "x", "negatives": [{}]}}, 422, "query.negatives.0", "neither text nor image"),
    ("/search", {"query": {"text": "x", "negatives": [{"text": "y"}] * 9}}, 422, "query.negatives", "up to 8"),
    (
        "/search",
        {"query": {"text": "x", "negatives": [{"text": "x", "weight": 1}]}},
        422,
        "query",
        "cancel each other out",
    ),
    ("/search", {"query": {"image": "not base64!"}}, 422, "query.image", "base64"),
    ("/search", {"query": {"image": b64(b"GIF89a nothing")}}, 422, "query.image", "picture"),
    ("/documents", {"documents": []}, 422, "documents", "at least 1"),
    ("/documents", {"documents": [{"doc_id": "", "fields": {}}]}, 422, "documents.0.doc_id", "at least 1"),
    ("/documents", {"documents": [{"doc_id": "x\0", "fields": {}}]}, 422, "documents.0.doc_id", "pattern"),
    ("/documents", {"documents": [{"doc_id": "x", "fields": {}}]}, 422, "documents.0.fields", "title, image"),
    ("/documents", {"documents": [{"doc_id": "x", "fields": {"price": 3}}]}, 422, "documents.0.fields", "title, image"),
    (
        "/documents",
        {"documents": [{"doc_id": "x", "fields": {"title": "y", "colour": "red"}}]},
        422,
        "documents.0.fields.colour",
        "title, image, price, stock",
    ),
    (
        "/documents",
        {"documents": [{"doc_id": "x", "fields": {"title": "y", "price": "3"}}]},
        422,
        "documents.0.fields.price",
        "number",
    ),
    ("/documents", {"documents": [{"doc_id": "x", "fields": {"title": 5}}]}, 422, "documents.0.fields.title", "text"),
    ("/documents", {"documents": [{"doc_id": "x", "fields": {"title": "y"}}] * 2}, 422, None, "each id once"),
    ("/v1/embeddings", {"model": "a", "input": []}, 422, None, "at least 1"),
    ("/v1/embeddings", {"model": "a", "input": ["x"] * 257}, 413, "input", "256"),
    ("/v1/embeddings", {"model": "a", "input": "x", "encoding_format": "int8"}, 422, "encoding_format", "'float'"),
]


@pytest.mark.parametrize(("path", "body", "status", "field", "message"), BAD)
def test_errors_name_the_field_and_what_is_allowed(
    server: Running, path: str, body: Any, status: int, field: str | None, message: str
) -> None:
    reply = server.post(path, body)
    error = reply.json()["error"]
    assert reply.status_code == status
    assert message in error["message"]
    assert field is None or error["field"] == field
    assert set(error) == {"type", "message", "field"}


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"query": {"text": "\\ud800"}}', "application/json", 400),
        (b'{"query": {"text": "x", "text_weight": NaN}}', "application/json", 422),
        (b"\xff\xfe", "application/json", 400),
        (b"[]", "application/json", 422),
        (b'{"query": {"text": "x"}}', "text/plain", 415),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=y", 400),
        (b"--y\r\nContent-Disposition: form-data\r\n\r\nx\r\n--y--", "multipart/form-data; boundary=y", 400),
        (b'--y\r\nContent-Disposition: form-data; name="z"\r\n\r\nx\r\n--y--', "multipart/form-data; boundary=y", 422),
        (
            b'--y\r\nContent-Disposition: form-data; name="query"\r\n\r\n{\r\n--y--',
            "multipart/form-data; boundary=y",
            400,
        ),
    ],
)
def test_bodies_that_are_no_request(server: Running, content: bytes, kind: str, status: int) -> None:
    reply = httpx2.post(f"{server.url}/search", content=content, headers={"Content-Type": kind}, timeout=30)
    assert (reply.status_code, set(reply.json())) == (status, {"error"})


def test_unknown_places_and_methods(server: Running) -> None:
    assert server.get("/nothing").status_code == 404
    assert httpx2.put(f"{server.url}/search").status_code == 405
    assert server.get("/documents/d1234").json()["error"]["field"] == "doc_id"
    assert server.get("/search").status_code == 422


def test_the_page_and_every_reply_have_security_headers(server: Running) -> None:
    for path in ("/", "/healthz", "/nothing", "/models"):
        headers = server.get(path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'self'; img-src 'self' data: blob:;")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
    assert server.get("/").headers["Content-Type"].startswith("text/html")


def test_foreign_origins_and_hosts(shop: Shop, server: Running) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil"):
        reply = server.get("/models", headers={"Host": host})
        assert (reply.status_code, reply.json()["error"]["field"]) == (400, "Host")
    for host in ("localhost", "LOCALHOST:99", "[::1]:8000"):
        assert server.get("/models", headers={"Host": host}).status_code == 200
    ask = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert httpx2.options(f"{server.url}/search", headers=ask).status_code == 405
    with running([shop], cors=("https://shop.example",)) as open_to_shop:
        allowed = httpx2.options(f"{open_to_shop.url}/search", headers=ask)
        assert allowed.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        refused = httpx2.options(f"{open_to_shop.url}/search", headers={**ask, "Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in refused.headers


READ, WRITE = "read-" + "r" * 20, "write-" + "w" * 20


def test_keys(shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"# of the shop\nread {READ}\n\nwrite sha256:{hashlib.sha256(WRITE.encode()).hexdigest()}\n")
    document = {"documents": [{"doc_id": "k", "fields": {"title": "redshoe"}}]}

    def bearer(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    caplog.set_level(logging.DEBUG)
    with running([shop], keys=ApiKeys.load(file, {})) as server:
        for path in ("/models", "/search?q=x", "/suggest", "/documents/d1", "/documents/d1/image/image", "/metrics"):
            for headers in ({}, bearer("wrong-key-of-some-length"), {"Authorization": f"Basic {READ}"}):
                reply = server.get(path, headers=headers)
                assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
            for headers in (bearer(READ), bearer(WRITE), {"X-API-Key": READ}):
                assert server.get(path, headers=headers).status_code == 200
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert server.get(path).status_code == 200
        assert server.post("/v1/embeddings", {"input": "x"}).status_code == 401
        assert server.post("/search", {"query": {"text": "x"}}).status_code == 401
        assert server.post("/documents", document).status_code == 401
        assert server.post("/documents", document, headers=bearer(READ)).status_code == 403
        assert server.post("/documents", document, headers=bearer(WRITE)).status_code == 200
        place = f"{server.url}/documents/k"
        assert httpx2.delete(place).status_code == 401
        assert httpx2.delete(place, headers=bearer(READ)).status_code == 403
        assert httpx2.delete(place, headers=bearer(WRITE)).status_code == 200
    assert READ not in caplog.text
    assert WRITE not in caplog.text


def test_beyond_loopback_without_keys_documents_cannot_be_changed(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    with running([shop], host="0.0.0.0") as server:  # noqa: S104 - it listens on loopback all the same
        document = {"documents": [{"doc_id": "k", "fields": {"title": "redshoe"}}]}
        assert server.post("/documents", document).status_code == 403
        assert httpx2.delete(f"{server.url}/documents/d1").status_code == 403
        assert server.get("/search?q=x", headers={"Host": "search.example"}).status_code == 200
    assert "without API keys" in caplog.text
    assert [is_local(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "search.example")] == [  # noqa: S104
        *(True, True, True),
        *(False, False, False),
    ]


def test_the_page_is_asked_for_again_and_not_sent_again(server: Running) -> None:
    for path in ("/", "/style.css"):
        reply = server.get(path)
        assert (reply.status_code, reply.headers["Cache-Control"]) == (200, "no-cache")
        assert server.get(path, headers={"If-None-Match": reply.headers["ETag"]}).status_code == 304


def test_the_access_log_has_every_request_and_no_secret(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=access_log.name)
    reply = server.get("/search?q=secretwords&k=2", headers={"Authorization": f"Bearer {READ}"})
    server.get("/documents/d1%0Aforged")

    def logged() -> list[Any]:
        return [json.loads(record.getMessage()) for record in caplog.records if record.name == access_log.name]

    assert eventually(lambda: len(logged()) == 2)  # a line is written once the reply is out
    lines = logged()
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/search", 200),
        ("GET", "/documents/d1\nforged", 404),
    ]
    assert lines[0]["id"] == reply.headers["X-Request-ID"]
    assert lines[0]["bytes"] == len(reply.content)
    assert not re.search(r"secretwords|rrrrr", caplog.text)
    assert all("\n" not in record.getMessage() for record in caplog.records)


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether something becomes true before long."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def metric(server: Running, name: str, **labels: str) -> float:
    return server.state.metrics.registry.get_sample_value(name, labels) or 0.0


def test_metrics_count_what_happened(server: Running) -> None:
    before = {name: metric(server, f"opengcl_query_cache_{name}_total", model="a") for name in ("hits", "misses")}
    answered = metric(server, "opengcl_requests_total", route="/search", method="GET", status="200")
    for _ in range(3):
        server.get("/search?q=winebag%20winebag%20tealcup")
    assert metric(server, "opengcl_query_cache_misses_total", model="a") == before["misses"] + 1
    assert metric(server, "opengcl_query_cache_hits_total", model="a") == before["hits"] + 2
    asked = {"route": "/search", "method": "GET", "status": "200"}
    assert eventually(lambda: metric(server, "opengcl_requests_total", **asked) == answered + 3)
    for _ in range(5):
        server.get(f"/documents/{_}")
    text = server.get("/metrics").text
    assert 'opengcl_index_info{created="' in text
    assert '/documents/{doc_id:path}"' in text
    assert "/documents/4" not in text


def test_two_models_answer_for_themselves(shop: Shop, tmp_path: Path) -> None:
    other = Shop(make_run(tmp_path / "other", shop.dataset, seed=5), shop.dataset, f"exact:{tmp_path / 'store'}")
    build(other, "b1")
    with running([shop, other]) as server:
        models = server.get("/models").json()
        assert [(model["name"], model["label"], model["index"]) for model in models] == [
            ("a", "run", "v1"),
            ("b", "other", "b1"),
        ]
        for name, one in (("a", shop), ("b", other)):
            expected = ranking(one, vectors_of(one), encode_texts(one.model, [TEXT])[0], 6)
            found = server.post("/search", {"query": {"text": TEXT}, "k": 6, "model": name}).json()
            check_hits(found, expected)
            assert found["model"] == name
            assert [hit["doc_id"] for hit in server.get(f"/search?q={TEXT}&k=6&model={name}").json()["hits"]] == [
                doc_id for doc_id, _ in expected
            ]
        document = {"documents": [{"doc_id": "two", "fields": {"title": "redshoe"}}], "model": "b"}
        assert server.post("/documents", document).json()["model"] == "b"
        assert server.get("/documents/two?model=a").status_code == 404
        assert server.get("/documents/two?model=b").status_code == 200


def test_without_a_data_set(shop: Shop) -> None:
    with running([shop], data=False) as server:
        found = server.post("/search", {"query": {"text": shop.dataset.queries.texts("query", [0])[0]}}).json()
        assert found["ndcg@10"] is None
        assert all(hit["relevance"] is None for hit in found["hits"])
        assert server.get("/suggest?q=red").json() == []
        assert server.get("/documents/d0/image/image").status_code == 404
        filters = server.get("/models").json()[0]["filters"]
        assert filters["price"] == {"type": "number", "values": None, "min": None, "max": None}


def test_the_description_names_every_form(server: Running) -> None:
    description = server.get("/openapi.json").json()
    text = json.dumps(description)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in description["components"]["schemas"]
    forms = description["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(forms) == {"application/json", "multipart/form-data"}
    assert "/v1/embeddings" in description["paths"]


def test_every_setting_is_in_the_table_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/serve.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page[page.index("## Settings") :], re.MULTILINE))
    actual = {field.name: json.dumps(getattr(Settings(), field.name)) for field in dataclasses.fields(Settings)}
    assert told == actual | {"search_threads": "cores + 1"}
    assert Settings().search_threads == usable_cores() + 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--store", "exact:EMPTY"], "no index is live"),
        (["OTHER", "--store", "STORE"], "holds vectors of the model"),
        (["RUN", "--store", "STORE", "--compare", "OTHER"], "--compare and --compare-store go together"),
        (["RUN", "--store", "STORE", "--compare", "OTHER", "--compare-store", "STORE"], "holds vectors of the model"),
        (["nowhere", "--store", "STORE"], "holds no trained model"),
        (["RUN", "--store", "STORE", "--data", "nowhere"], "nowhere: no such folder"),
        (["RUN", "--store", "STORE", "--set", "max_batch"], "write name=value"),
        (["RUN", "--store", "STORE", "--set", "max_batch=0"], "max_batch: found 0"),
        (["RUN", "--store", "STORE", "--cors", "*"], "cors: found"),
        (["RUN", "--store", "STORE", "--keys", "nowhere"], "cannot be read as a file of keys"),
        (["RUN", "--store", "ftp://x"], "store: found"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    shop: Shop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    other = tmp_path / "other"
    if "OTHER" in words:
        make_run(other, shop.dataset, seed=9)
    places = {
        "RUN": str(shop.run),
        "STORE": shop.store,
        "OTHER": str(other),
        "exact:EMPTY": f"exact:{tmp_path / 'empty'}",
    }
    monkeypatch.setattr(sys, "argv", ["opengcl", "serve", *(places.get(word, word) for word in words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert "Traceback" not in error
