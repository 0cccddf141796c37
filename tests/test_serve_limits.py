"""What is too large, too slow or too much: refused with the right status, and the server goes on."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from opengcl.encode import encode_texts
from opengcl.serve.limits import LARGEST_HEAD
from tests.builders import WORDS
from tests.serving import Running, Shop, make_shop, running, under_way, until

CHUNKED = (
    "POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("limits"))


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Running]:
    """Small limits of bytes, short limits of time."""
    limits = {"max_query_bytes": 300_000, "max_upload_bytes": 400_000, "max_bodies_bytes": 500_000}
    times = {"body_seconds": 0.6, "header_seconds": 0.6, "upload_seconds": 20.0}
    with running([shop], max_picture_bytes=100_000, **limits, **times) as server:
        yield server
        assert server.get("/search?q=redshoe").status_code == 200  # whatever happened


@contextmanager
def connection(server: Running) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, timeout=20) as raw:
        yield raw


def begin(raw: socket.socket, path: str, length: int, part: bytes = b"{") -> None:
    """A POST whose body has begun."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    raw.sendall(head.encode() + part)


def answer(raw: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes back."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = raw.recv(65536)
        if not piece:
            raise ConnectionError(f"cut off after {data!r}")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += raw.recv(65536)
    return int(first.split()[1]), headers, body


def error(body: bytes) -> str:
    return str(json.loads(body)["error"]["message"])


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG that says it has this size, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "JPEG")
    return out.getvalue()


PICTURES = {
    "too many pixels": (png(60_000, 60_000, b"\0"), 422, "60000 x 60000|exceeds limit|could be decompression bomb"),
    "a bomb": (png(5_001, 5_000, b"\0" * (5_002 * 5_000)), 422, "5001 x 5000 pixels; allowed: up to 25,000,000"),
    "cut off": (jpeg()[:300], 422, "cannot be decoded"),
    "no picture": (b"%PDF-1.7 ...", 422, "not a picture in a known format"),
    "a program for Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "not a picture"),
    "empty frames": (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", 422, "cannot be"),
    "too many bytes": (jpeg() + b"\0" * 120_000, 413, "over 100,000 bytes"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_cannot_be_used(server: Running, name: str) -> None:
    data, status, message = PICTURES[name]
    coded = base64.b64encode(data).decode()
    replies = [
        server.post("/search", {"query": {"image": coded}}),
        server.post("/search", {"query": {"text": "x", "negatives": [{"image": coded}]}}),
        httpx2.post(f"{server.url}/search", files={"image": data}, timeout=30),
        server.post("/documents", {"documents": [{"doc_id": "x", "fields": {"image": coded}}]}),
    ]
    assert [reply.status_code for reply in replies] == [status] * 4
    for reply in replies:
        assert any(part in reply.json()["error"]["message"] for part in message.split("|"))
    assert server.get("/documents/x").status_code == 404


def test_a_large_picture_within_the_limits_is_searched(shop: Shop) -> None:
    out = io.BytesIO()
    Image.new("RGB", (5_000, 5_000), "red").save(out, "JPEG")
    with running([shop]) as server:
        reply = httpx2.post(f"{server.url}/search", files={"image": out.getvalue()}, timeout=60)
        assert reply.status_code == 200


@pytest.mark.parametrize(("path", "size"), [("/search", 300_001), ("/documents", 400_001), ("/v1/embeddings", 300_001)])
def test_bodies_that_are_too_large(server: Running, path: str, size: int) -> None:
    announced = httpx2.post(server.url + path, content=b" " * size, headers={"Content-Type": "application/json"})
    assert (announced.status_code, announced.json()["error"]["type"]) == (413, "too_large")

    def pieces() -> Iterator[bytes]:
        for _ in range(size // 1000 + 1):
            yield b" " * 1000

    chunked = httpx2.post(server.url + path, content=pieces(), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 413
    fits = httpx2.post(server.url + path, content=b" " * (size - 1), headers={"Content-Type": "application/json"})
    assert fits.status_code == 400  # read whole, and not JSON


def test_a_body_that_comes_too_slowly(server: Running) -> None:
    with connection(server) as raw:
        begin(raw, "/search", 1000)
        started = time.monotonic()
        status, _, body = answer(raw)
        assert (status, 0.4 < time.monotonic() - started < 10) == (408, True)
        assert "0.6 s, the limit" in error(body)


def trickle(raw: socket.socket, letters: str) -> None:
    for letter in letters:
        raw.sendall(letter.encode())
        time.sleep(0.05)
    answer(raw)


def test_a_header_that_comes_too_slowly(server: Running) -> None:
    with connection(server) as raw:
        started = time.monotonic()
        with pytest.raises((ConnectionError, BrokenPipeError)):
            trickle(raw, "GET /search?q=" + "x" * 2000)
        assert time.monotonic() - started < 20
    with connection(server) as raw:  # and after a whole request
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer(raw)[0] == 200
        with pytest.raises((ConnectionError, BrokenPipeError)):
            trickle(raw, "G" * 2000)


@pytest.mark.parametrize(
    ("begun", "flood"),
    [
        ("GET /healthz?", "x"),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: ", "x"),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\n", "X-Many: 1\r\n"),
        (f"{CHUNKED}2;", "extension"),
        (f"{CHUNKED}2\r\n{{}}\r\n0\r\n", "X-Trailer: 1\r\n"),
    ],
    ids=["url", "header", "headers", "chunk", "trailer"],
)
def test_bytes_that_never_become_a_request(shop: Shop, begun: str, flood: str) -> None:
    """They are not kept, whatever they are part of; and no limit of time ends them here."""
    with running([shop], header_seconds=200.0, body_seconds=200.0, request_seconds=200.0) as server:
        with connection(server) as raw:
            raw.sendall(begun.encode())
            with pytest.raises((ConnectionError, BrokenPipeError)):
                pour(raw, flood * (LARGEST_HEAD // len(flood)))
        assert httpx2.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.parametrize("size", [LARGEST_HEAD // 2, LARGEST_HEAD - 200, LARGEST_HEAD + 10, 3 * LARGEST_HEAD])
def test_a_long_address_is_answered(server: Running, size: int) -> None:
    with connection(server) as raw:
        raw.sendall(b"GET /documents/" + b"x" * size + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, headers, body = answer(raw)
    assert headers["content-type"] == "application/json"
    assert status == (422 if size < LARGEST_HEAD else 400)  # an id has fewer letters
    assert json.loads(body)["error"]["type"] == ("invalid" if size < LARGEST_HEAD else "bad_request")


def pour(raw: socket.socket, text: str) -> None:
    for _ in range(500):
        raw.sendall(text.encode())


def test_all_bodies_together(shop: Shop) -> None:
    with running([shop], max_bodies_bytes=500_000) as server, connection(server) as first, connection(server) as second:
        begin(first, "/documents", 400_000, b" " * 300_000)
        until(lambda: server.state.metrics.registry.get_sample_value("opengcl_body_bytes") == 300_000)
        begin(second, "/documents", 400_000, b" " * 300_000)
        status, headers, body = answer(second)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "too many bytes" in error(body)
        first.sendall(b" " * 100_000)
        assert answer(first)[0] == 400
        whole = httpx2.post(
            f"{server.url}/documents", content=b" " * 450_000, headers={"Content-Type": "application/json"}
        )
        assert whole.status_code == 400  # what the others took was given back


def test_too_many_requests_under_way(shop: Shop) -> None:
    with running([shop], max_requests=2) as server:
        with connection(server) as first, connection(server) as second:
            begin(first, "/search", 1000)
            begin(second, "/search", 1000)
            until(lambda: under_way(server) == 2)
            reply = server.get("/search?q=x")
            assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
            assert "2 requests are under way" in reply.json()["error"]["message"]
            for path in ("/healthz", "/readyz", "/metrics"):
                assert server.get(path).status_code == 200
        until(lambda: under_way(server) == 0)  # the places are free once the clients are gone
        assert server.get("/search?q=x").status_code == 200
        assert 'opengcl_refused_total{status="503"}' in server.get("/metrics").text


def test_a_request_that_takes_too_long(shop: Shop) -> None:
    with running([shop], request_seconds=0.4) as server, connection(server) as raw:
        begin(raw, "/search", 1000)
        status, headers, body = answer(raw)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "over 0.4 s" in error(body)


def test_connections_beyond_the_limit(shop: Shop) -> None:
    with running([shop], max_connections=5, header_seconds=2.0) as server:
        idle = [socket.create_connection(server.address, timeout=20) for _ in range(8)]
        until(lambda: server.get("/healthz").status_code == 503)
        until(lambda: server.get("/healthz").status_code == 200)  # those that said nothing were cut
        for one in idle:
            one.close()


def ask_many(server: Running, texts: list[str], threads: int) -> list[httpx2.Response]:
    with (
        httpx2.Client(timeout=60, limits=httpx2.Limits(max_connections=threads)) as client,
        ThreadPoolExecutor(threads) as pool,
    ):

        def ask(text: str) -> httpx2.Response:
            return client.post(f"{server.url}/v1/embeddings", json={"input": text, "model": "a"})

        return list(pool.map(ask, texts))


def test_overload_is_refused_and_passes(shop: Shop) -> None:
    texts = [f"{WORDS[number % 16]} {number}" for number in range(200)]
    with running([shop], max_batch=1, max_waiting=1, max_wait_ms=30) as server:
        replies = ask_many(server, texts, threads=40)
        statuses = Counter(reply.status_code for reply in replies)
        assert set(statuses) == {200, 429}
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "too_many_requests"
        assert ask_many(server, texts[:1], threads=1)[0].status_code == 200
        assert server.state.models["a"].encoder.model.training is False


def test_batches_give_the_vectors_of_single_requests(shop: Shop) -> None:
    texts = [" ".join(WORDS[: 1 + number % 12]) + f" {number}" for number in range(64)]
    with running([shop], max_wait_ms=20, max_batch=16) as server:
        together = ask_many(server, texts, threads=32)
        sizes = server.state.metrics.registry.get_sample_value("opengcl_encoder_batch_size_count", {"model": "a"})
        assert sizes is not None
        assert sizes < 40  # 64 texts, so that many were encoded together

        def vectors(replies: list[httpx2.Response]) -> np.ndarray:
            return np.array([reply.json()["data"][0]["embedding"] for reply in replies])

        alone = ask_many(server, texts, threads=1)
        np.testing.assert_allclose(vectors(together), vectors(alone), atol=1e-5)
        np.testing.assert_allclose(vectors(together), encode_texts(shop.model, texts), atol=1e-5)


def test_pictures_share_batches_too(shop: Shop) -> None:
    pictures = shop.dataset.documents.values(
        "image", np.flatnonzero(shop.dataset.documents.present("image", np.arange(40)))
    )
    with running([shop], max_wait_ms=50, max_batch=16) as server, ThreadPoolExecutor(12) as pool:

        def ask(data: bytes) -> Any:
            return httpx2.post(f"{server.url}/search", files={"image": data}, timeout=60).json()["hits"]

        together = list(pool.map(ask, pictures[:12]))
        count = server.state.metrics.registry.get_sample_value("opengcl_encoder_batch_size_count", {"model": "a"})
        assert count is not None
        assert count < 12
    with running([shop]) as server:
        for data, hits in zip(pictures[:12], together, strict=True):
            alone = httpx2.post(f"{server.url}/search", files={"image": data}, timeout=60).json()["hits"]
            assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in alone], abs=1e-5)


@pytest.mark.parametrize("path", ["/search", "/documents"])
def test_clients_that_go_away_are_no_error(server: Running, path: str, caplog: pytest.LogCaptureFixture) -> None:
    def gone() -> float:
        labels = {"route": path, "method": "POST", "status": "499"}
        return server.state.metrics.registry.get_sample_value("opengcl_requests_total", labels) or 0

    before = gone()
    with connection(server) as raw:
        begin(raw, path, 1000, b'{"query": ')
        until(lambda: under_way(server) == 1)
    until(lambda: gone() == before + 1)
    assert under_way(server) == 0
    assert "Exception" not in caplog.text


def test_a_client_that_never_reads_does_not_hold_up_others(server: Running) -> None:
    with connection(server) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        for _ in range(50):
            raw.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        started = time.monotonic()
        assert server.get("/search?q=redshoe").status_code == 200
        assert time.monotonic() - started < 10
