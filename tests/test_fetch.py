"""Fetching from servers on loopback that behave as badly as the internet does."""

from __future__ import annotations

import gzip
import http.server
import io
import logging
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opengcl import fetch
from opengcl.data import images
from opengcl.fetch import FetchCounts, FetchOptions, fetch_pictures, without_query
from opengcl.picture_store import PictureStore


def picture(colour: Any = (200, 30, 30), size: tuple[int, int] = (24, 16), kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


RED = picture()

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a path with what the test put there."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.asked[self.path] += 1
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
            self.server.headers.append(dict(self.headers))
        try:
            self.server.answers.get(path, lambda handler: handler.reply(404))(self)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.running -= 1

    def reply(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.running = self.most = 0

    def url(self, path: str = "/1.jpg", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}{path}"

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PictureStore]:
    with PictureStore(tmp_path / "store") as found:
        yield found


def run(urls: Any, store: PictureStore, **options: Any) -> FetchCounts:
    options = {"allow_private": True, "retries": 0, "timeout": 5.0, **options}
    return fetch_pictures(urls, store, FetchOptions(**options), progress=False)


def reason(store: PictureStore, url: str) -> str:
    found = store.failure(url)
    assert found is not None
    return found.reason


# What arrives


def test_pictures_arrive_as_they_are_whatever_the_server_calls_them(server: Server, store: PictureStore) -> None:
    kinds = {"/a": picture(kind="PNG"), "/b": picture(kind="WEBP"), "/c.txt": picture(kind="GIF")}
    for path, body in kinds.items():
        server.answers[path] = lambda handler, body=body: handler.reply(body=body, Content_Type="text/html")
    assert run([server.url(path) for path in kinds], store) == FetchCounts(3, 0, 0)
    assert {path: store.get(server.url(path)) for path in kinds} == kinds
    assert server.headers[0]["Host"] == f"127.0.0.1:{server.server_address[1]}"
    assert server.headers[0]["Accept-Encoding"] == "identity"
    assert "Cookie" not in server.headers[-1]


def test_a_size_makes_small_jpegs(server: Server, store: PictureStore) -> None:
    server.answers["/1.jpg"] = lambda handler: handler.reply(body=picture((0, 200, 0), (400, 200), "PNG"))
    server.answers["/small"] = lambda handler: handler.reply(body=picture((0, 200, 0), (40, 20), "PNG"))
    run([server.url(), server.url("/small")], store, image_size=100)
    found = [Image.open(io.BytesIO(store.get(server.url(path)) or b"")) for path in ("/1.jpg", "/small")]
    assert [(one.format, one.size) for one in found] == [("JPEG", (100, 50)), ("JPEG", (40, 20))]
    red, green, blue = found[0].getpixel((50, 25))  # type: ignore[misc]
    assert abs(green - 200) < 4
    assert red + blue < 8
    with pytest.raises(ValueError, match="image_size 100, found None; allowed: the same"):
        run([server.url()], store)


def test_redirects_are_followed_to_the_picture(server: Server, store: PictureStore) -> None:
    server.answers["/a"] = lambda handler: handler.reply(302, Location="/b?x=1")
    server.answers["/b"] = lambda handler: handler.reply(308, Location=server.url("/c", "localhost"))
    server.answers["/c"] = lambda handler: handler.reply(body=RED)
    assert run([server.url("/a")], store).fetched == 1
    assert store.get(server.url("/a")) == RED
    assert server.headers[-1]["Host"].startswith("localhost:")


def test_the_same_url_many_times_is_fetched_once(server: Server, store: PictureStore) -> None:
    server.answers["/1.jpg"] = lambda handler: (time.sleep(0.1), handler.reply(body=RED))[1]
    assert run([server.url()] * 20, store) == FetchCounts(1, 19, 0)
    assert run([server.url("/none")] * 20, store) == FetchCounts(0, 0, 20)
    assert server.asked == {"/1.jpg": 1, "/none": 1}


# What does not


BOMB = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)


def png_bomb() -> bytes:
    """A PNG of 400 million pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", BOMB) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda handler: handler.reply(404, RED), "HTTP status 404"),
        (lambda handler: handler.reply(403, RED), "HTTP status 403"),
        (lambda handler: handler.reply(204), "HTTP status 204"),
        (
            lambda handler: handler.reply(body=b"<html>no picture</html>", Content_Type="image/jpeg"),
            "not a usable picture",
        ),
        (lambda handler: handler.reply(body=b""), "not a usable picture"),
        (lambda handler: handler.reply(body=picture(size=(300, 300))[:-400]), "cannot be decoded"),
        (lambda handler: handler.reply(body=png_bomb(), Content_Type="image/png"), "allowed: up to 50,000,000 pixels"),
        (lambda handler: handler.reply(body=gzip.compress(bytes(10**7)), Content_Encoding="gzip"), "encoding 'gzip'"),
        (lambda handler: handler.reply(body=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "known format"),
        (lambda handler: handler.reply(302), "status 302 without a place"),
        (lambda handler: handler.reply(302, Location="file:///etc/passwd"), "refused: the scheme 'file'"),
        (lambda handler: handler.reply(302, Location="http://a:b@127.0.0.1/"), "refused: a user name or password"),
        (lambda handler: handler.reply(302, Location=handler.path), "more than 5 redirects"),
        (lambda handler: handler.reply(body=bytes(3000), Content_Type="image/jpeg"), "over 2,000 bytes"),
    ],
)
def test_permanent_failures_are_asked_once(server: Server, store: PictureStore, answer: Answer, why: str) -> None:
    server.answers["/1.jpg"] = answer
    options = {"retries": 3, "max_bytes": 2000 if "2,000" in why else 10**6}
    assert run([server.url()], store, **options) == FetchCounts(0, 0, 1)
    assert why in reason(store, server.url())
    asked = server.asked["/1.jpg"]
    assert asked == (6 if "redirects" in why else 1)
    assert run([server.url()], store, **options) == FetchCounts(0, 0, 1)
    assert server.asked["/1.jpg"] == asked
    server.answers["/1.jpg"] = lambda handler: handler.reply(body=picture(size=(8, 8)))
    assert run([server.url()], store, **options, retry_failed=True) == FetchCounts(1, 0, 0)
    assert store.failures().num_rows == 0


def test_an_endless_body_is_cut(server: Server, store: PictureStore) -> None:
    sent = Counter[str]()

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header(
            "Content-Length" if "lie" in handler.path else "Connection",
            "100000000000" if "lie" in handler.path else "close",
        )
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1 << 16))
            sent[handler.path] += 1 << 16

    server.answers |= {"/lie": endless, "/open": endless}
    assert run([server.url("/lie"), server.url("/open")], store, max_bytes=1 << 20).failed == 2
    assert {reason(store, server.url(path)) for path in ("/lie", "/open")} == {"over 1,048,576 bytes, the limit"}
    time.sleep(0.1)
    assert max(sent.values()) < 16 << 20  # what was on its way, in the sockets' buffers


def test_a_slow_drip_is_cut_after_the_time_of_the_whole_request(server: Server, store: PictureStore) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    def hop(handler: Handler) -> None:
        time.sleep(0.3)
        handler.reply(302, Location=handler.path)

    server.answers |= {"/drip": drip, "/hop": hop}
    start = time.monotonic()
    assert run([server.url("/drip"), server.url("/hop")], store, timeout=0.8, max_redirects=50).failed == 2
    assert time.monotonic() - start < 15
    for path in ("/drip", "/hop"):
        assert reason(store, server.url(path)) == "no complete answer within 0.8 s"
    assert store.failure(server.url("/drip")).permanent is False  # type: ignore[union-attr]


def test_a_body_shorter_than_promised_is_asked_again(server: Server, store: PictureStore) -> None:
    def cut(handler: Handler) -> None:
        handler.close_connection = True
        if server.asked["/1.jpg"] > 1:
            handler.reply(body=RED)
        else:
            handler.reply(body=RED[:-50], Content_Length=str(len(RED)))

    server.answers["/1.jpg"] = cut
    assert run([server.url()], store, retries=1) == FetchCounts(1, 0, 0)
    assert store.get(server.url()) == RED


@pytest.mark.parametrize(
    "url", ["http://xn--/", "http://-xn--a-/", "http://%00/", "http://a..b/", "x" * 9000, "\ud800"]
)
def test_a_strange_url_is_a_failure_among_others(url: str, server: Server, store: PictureStore) -> None:
    server.answers["/1.jpg"] = lambda handler: handler.reply(body=RED)
    assert run([url, server.url()], store) == FetchCounts(1, 0, 1)
    assert store.failures().num_rows == 1


@pytest.mark.parametrize(
    "answer", [b"", b"banana\r\n\r\n", b"HTTP/1.1 9999 ?\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + bytes(1 << 20)]
)
def test_what_is_not_http_is_a_failure_that_may_pass(answer: bytes, server: Server, store: PictureStore) -> None:
    def raw(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(answer)

    server.answers["/1.jpg"] = raw
    assert run([server.url()], store) == FetchCounts(0, 0, 1)
    assert reason(store, server.url()).startswith("no connection: ")
    assert len(reason(store, server.url())) < 300


# Private addresses


def test_private_addresses_are_refused_before_anything_is_sent(server: Server, store: PictureStore) -> None:
    hosts = ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0")  # noqa: S104
    urls = [server.url("/1.jpg", host) for host in hosts]
    assert run(urls, store, allow_private=False) == FetchCounts(0, 0, len(urls))
    for url in urls:
        assert "allowed: public addresses" in reason(store, url)
        assert store.failure(url).permanent  # type: ignore[union-attr]
    assert server.asked == {}


def test_a_redirect_to_a_private_address_is_refused(
    server: Server, store: PictureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 stands in for a public host here; 127.0.0.2, where the same server would answer too, stays private."""
    monkeypatch.setattr("opengcl.public_network.is_public", lambda address: address == "127.0.0.1")
    server.answers["/1.jpg"] = lambda handler: handler.reply(body=RED)
    server.answers["/away"] = lambda handler: handler.reply(302, Location="http://127.0.0.2:1/latest/meta-data")
    urls = [server.url("/1.jpg"), server.url("/away")]
    assert run(urls, store, allow_private=False) == FetchCounts(1, 0, 1)
    assert reason(store, urls[1]) == "refused: the address 127.0.0.2; allowed: public addresses"


def test_proxies_of_the_environment_are_not_used(
    server: Server, store: PictureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/1.jpg"] = lambda handler: handler.reply(body=RED)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert run([server.url()], store).fetched == 1


# TLS


@pytest.fixture
def tls(server: Server, tmp_path: Path) -> ssl.SSLContext:
    """The server behind a certificate for shop.example that no one trusts but the context returned."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=shop.example"]
    command += ["-addext", "subjectAltName=DNS:shop.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.names = names  # type: ignore[attr-defined]
    return ssl.create_default_context(cafile=str(certificate))


def test_tls_keeps_the_name_and_checks_the_certificate(
    server: Server, store: PictureStore, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _host, *rest, **more: real("127.0.0.1", *rest, **more))
    server.answers["/1.jpg"] = lambda handler: handler.reply(body=RED)
    urls = [server.url(host=name).replace("http:", "https:") for name in ("shop.example", "other.example")]
    assert run(urls, store, retries=3) == FetchCounts(0, 0, 2)
    found = store.failure(urls[0])
    assert found is not None
    assert "certificate" in found.reason.lower()
    assert found.attempts == 1
    monkeypatch.setattr("httpx2.create_ssl_context", lambda **_: tls)
    assert run(urls, store) == FetchCounts(1, 0, 1)
    assert store.get(urls[0]) == RED
    assert {"shop.example", "other.example"} <= set(server.names)  # type: ignore[attr-defined]


# Trying again


def test_500_then_200(server: Server, store: PictureStore) -> None:
    server.answers["/1.jpg"] = lambda handler: handler.reply(*((500,) if server.asked["/1.jpg"] < 3 else (200, RED)))
    start = time.monotonic()
    assert run([server.url()], store, retries=2) == FetchCounts(1, 0, 0)
    assert server.asked["/1.jpg"] == 3
    assert time.monotonic() - start >= 0.25 + 0.5


def test_temporary_failures_are_tried_again_by_the_next_run(server: Server, store: PictureStore) -> None:
    server.answers["/1.jpg"] = lambda handler: handler.reply(503)
    assert run([server.url()], store, retries=1) == FetchCounts(0, 0, 1)
    assert store.failures().to_pylist() == [{"url": server.url(), "reason": "HTTP status 503", "attempts": 2}]
    server.answers["/1.jpg"] = lambda handler: handler.reply(body=RED)
    assert run([server.url()], store) == FetchCounts(1, 0, 0)
    assert store.failures().num_rows == 0


def test_retry_after_holds_the_whole_host(server: Server, store: PictureStore) -> None:
    times: list[float] = []

    def answer(handler: Handler) -> None:
        times.append(time.monotonic())
        handler.reply(*((429, b"") if len(times) == 1 else (200, RED)), Retry_After="1")

    server.answers |= {"/1.jpg": answer, "/2.jpg": answer, "/3.jpg": answer}
    urls = [server.url(f"/{number}.jpg") for number in (1, 2, 3)]
    assert run(urls, store, retries=1, per_host=1) == FetchCounts(3, 0, 0)
    assert min(times[1:]) - times[0] >= 0.95


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("999999999999", 60),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
        ("soon", None),
        ("-3", None),
        ("", None),
    ],
)
def test_retry_after_is_bounded(value: str, seconds: float | None) -> None:
    assert fetch._retry_after(value) == seconds


def test_back_off_doubles_spreads_and_ends() -> None:
    for attempt in range(1, 12):
        full = min(0.5 * 2 ** (attempt - 1), 30)
        waits = [fetch._back_off(attempt) for _ in range(50)]
        assert full / 2 <= min(waits) < max(waits) <= full


def test_a_host_that_never_answers_is_given_up(store: PictureStore, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    dead = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(60)]
    server.answers["/1.jpg"] = lambda handler: handler.reply(body=RED)
    assert run([*dead, server.url(host="localhost")], store, per_host=1) == FetchCounts(1, 0, 60)
    reasons = Counter(store.failures().column("reason").to_pylist())
    assert reasons["its host left 20 requests in a row without an answer"] == 40
    assert not store.failure(dead[-1]).permanent  # type: ignore[union-attr]


# Many


def test_a_host_gets_its_share_and_no_more(server: Server, store: PictureStore) -> None:
    for number in range(30):
        server.answers[f"/{number}"] = lambda handler: (time.sleep(0.03), handler.reply(body=RED))[1]
    assert run([server.url(f"/{number}") for number in range(30)], store, per_host=3).fetched == 30
    assert server.most == 3


def test_a_slow_host_does_not_hold_up_another(server: Server, store: PictureStore) -> None:
    """Before the last of six requests to the slow host begins, the other host has answered all of twenty."""
    asked: list[str] = []

    def answer(handler: Handler) -> None:
        asked.append(handler.path.partition("?")[0])
        time.sleep(0.5 if asked[-1] == "/slow" else 0)
        handler.reply(body=RED)

    server.answers |= {"/slow": answer, "/fast": answer}
    slow = [server.url(f"/slow?{number}") for number in range(6)]
    fast = [server.url(f"/fast?{number}", "localhost") for number in range(20)]
    assert run([*slow, *fast], store, per_host=1, concurrency=4).fetched == 26
    assert asked[-1] == "/slow"


def test_urls_are_read_as_they_are_needed(server: Server, store: PictureStore) -> None:
    taken: list[str] = []
    counted: list[int] = []

    def urls() -> Iterator[str]:
        while not counted:
            taken.append(server.url(f"/1.jpg?{len(taken)}"))
            yield taken[-1]

    def slow(handler: Handler) -> None:
        time.sleep(0.5)
        counted.append(len(taken))
        handler.reply(404)

    server.answers["/1.jpg"] = lambda handler: handler.reply(404) if counted else slow(handler)
    run(urls(), store, concurrency=4)
    assert 4 < counted[0] < 100


def test_memory_does_not_grow_with_the_urls_that_are_skipped(store: PictureStore) -> None:
    with store._access() as connection:
        connection.executemany(
            "INSERT INTO failure VALUES (?, 'gone', 1, 1, 0)", ((f"http://a/{n}",) for n in range(10_000))
        )
    tracemalloc.start()
    assert run((f"http://a/{number}" for number in range(10_000)), store) == FetchCounts(0, 0, 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


KILLED = """
import sys
from pathlib import Path
from opengcl.fetch import FetchOptions, fetch_pictures
from opengcl.picture_store import PictureStore

base, folder = sys.argv[1:]
with PictureStore(Path(folder)) as store:
    options = FetchOptions(allow_private=True, per_host=4, retries=0)
    fetch_pictures((f"{base}?{number}" for number in range(150)), store, options, progress=False)
"""


def test_killed_in_the_middle_it_goes_on_from_there(server: Server, tmp_path: Path) -> None:
    def answer(handler: Handler) -> None:
        time.sleep(0.03)
        handler.reply(body=picture((int(handler.path.partition("?")[2]), 0, 0)))

    server.answers["/1.jpg"] = answer
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.url(), tmp_path / "store"])
    while sum(server.asked.values()) < 50:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    urls = [f"{server.url()}?{number}" for number in range(150)]
    with PictureStore(tmp_path / "store") as store:
        before = {url for url in urls if url in store}
        assert 30 < len(before) < 150
        server.asked.clear()
        assert run(urls, store) == FetchCounts(150 - len(before), len(before), 0)
        assert {server.url(path) for path in server.asked} == set(urls) - before
        assert all(store.get(url) == picture((number, 0, 0)) for number, url in enumerate(urls))


# Words


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("concurrency", 0, "1 to 1024"),
        ("concurrency", 2.5, "1 to 1024"),
        ("per_host", 0, "1 or more"),
        ("timeout", 0, "more than 0"),
        ("timeout", float("nan"), "more than 0"),
        ("retries", -1, "0 or more"),
        ("max_bytes", images.MAX_BYTES + 1, "1 to"),
        ("max_redirects", True, "0 or more"),
        ("image_size", 0, "1 or more"),
        ("user_agent", "a\r\nX: b", "printable ASCII"),
    ],
)
def test_options_say_what_is_allowed(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: found .*; allowed: .*{allowed}"):
        FetchOptions(**{option: value})


def test_messages_hold_no_query_string(
    server: Server, store: PictureStore, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "opengcl")
    server.answers["/away"] = lambda handler: handler.reply(302, Location="http://127.0.0.1:1/?token=s3cret")
    urls = [server.url("/none?token=s3cret"), server.url("/away?token=s3cret"), "http://u:s3cret@a.example/"]
    assert fetch_pictures(urls, store, FetchOptions(allow_private=True, retries=0)).failed == 3
    printed = capsys.readouterr()
    assert "HTTP status 404" in caplog.text
    assert "s3cret" not in caplog.text + printed.out + printed.err
    assert all("s3cret" not in one for one in store.failures().column("reason").to_pylist())
    assert without_query("http://u:s3cret@a.example/b?s3cret#s3cret") == "http://a.example/b"
    assert without_query("http://a:port/?s3cret") == "(not a URL)"


def test_a_store_that_cannot_be_written_ends_the_run(server: Server, store: PictureStore) -> None:
    server.answers["/1.jpg"] = lambda handler: handler.reply(body=RED)
    with store._access() as connection:
        connection.execute("PRAGMA query_only = 1")
    store.settle = lambda _name, value: value  # type: ignore[method-assign]
    with pytest.raises(OSError, match=r"pictures\.sqlite: attempt to write a readonly database"):
        run([server.url()], store)
