"""A server on loopback that speaks as a model, a search and a picture host do, with faults to order."""

from __future__ import annotations

import io
import json
import random
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from PIL import Image

COLOURS = ("red", "blue", "green", "black", "white", "wine", "teal", "sand")
THINGS = ("shoe", "bag", "coat", "lamp", "chair", "cup", "watch", "tent")
PRODUCTS = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
EXTRAS = ("for the beach", "with a zip", "in size ten", "for my father", "under twenty", "that lasts", "of wool")
KEY = "sk-loopback-1234567890"


@dataclass
class Fault:
    """What goes wrong with one request."""

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: bool = False
    """A byte at a time, without end."""
    drop: bool = False
    """Close the connection in the middle of the reply."""


@dataclass
class Seen:
    """One request as the server saw it."""

    kind: str
    request: str
    status: int
    answered: bool
    authorization: str


Faults = Callable[[str, str, int], Fault | None]
"""(kind, request, how often it was seen before) -> what goes wrong."""


@dataclass
class Services:
    """The running server."""

    url: str = ""
    faults: Faults | None = None
    delay: float = 0.0
    key: str = KEY
    log: list[Seen] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def always(self, fault: Fault) -> None:
        """This goes wrong with every request."""
        self.faults = lambda *_: fault

    def asked(self, kind: str) -> int:
        return sum(one.kind == kind for one in self.log)

    def paid(self) -> Counter[tuple[str, str]]:
        """Requests answered in full and with 200, how often each."""
        return Counter((one.kind, one.request) for one in self.log if one.answered and one.status == 200)

    # What the services say

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        system, user = (message["content"] for message in body["messages"])
        content = judged(user) if "You judge" in system else written(user, body)
        return completion(json.dumps(content))

    def shopping(self, query: str, start: int) -> dict[str, Any]:
        results = [self.product(number, place) for place, number in enumerate(ranking(query)[start : start + 20], 1)]
        reply: dict[str, Any] = {"search_metadata": {"status": "Success"}, "shopping_results": results}
        if start == 0:
            reply["serpapi_pagination"] = {"next": f"{self.url}/evil?engine=x&api_key=stolen&q=other&start=20"}
        return reply

    def product(self, number: int, place: int) -> dict[str, Any]:
        shop = f"shop {number % 3}"
        return {
            "position": place,
            "title": f"{PRODUCTS[number].title()} No. {number}",
            "product_id": f"{1000 + number}",
            "product_link": f"https://example.com/p/{number}?utm_source=x",
            "source": shop,
            "price": f"${number}.50",
            "extracted_price": number + 0.5,
            "rating": 4.5,
            "reviews": 10 * number,
            "thumbnail": f"{self.url}/picture/{number}.png",
        }


def ranking(query: str) -> list[int]:
    """All products, those that share words with the query first."""
    words = set(query.lower().split())
    shuffled = list(range(len(PRODUCTS)))
    random.Random(query).shuffle(shuffled)
    return sorted(shuffled, key=lambda number: -len(words & set(PRODUCTS[number].split())))


def written(user: str, body: dict[str, Any]) -> dict[str, Any]:
    """Queries, the last of them nearly the same as the first."""
    count = int(re.search(r"Write (\d+)", user)[1])  # type: ignore[index]
    draw = random.Random(f"{user}{body.get('seed')}")
    topic = re.search(r"The category: (\w+)", user)
    thing = topic[1] if topic else draw.choice(THINGS)
    queries = [f"{draw.choice(COLOURS)} {thing} {draw.choice(EXTRAS)} {draw.randrange(100)}" for _ in range(count - 1)]
    return {"queries": [*queries, queries[0].upper() + " "] if queries else [thing]}


def judged(user: str) -> dict[str, Any]:
    """Labels by the words that query and title share."""
    query = re.search(r"^Query: (.*)$", user, re.MULTILINE)[1].lower()  # type: ignore[index]
    lines = re.findall(r"^(\d+)\. (\{.*\})$", user, re.MULTILINE)
    judgements = []
    for number, product in lines:
        shared = len(set(query.split()) & set(json.loads(product)["title"].lower().split()))
        judgements.append({"number": int(number), "label": ["irrelevant", "substitute", "exact"][min(shared, 2)]})
    return {"judgements": judgements}


def completion(content: str | None, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def picture(number: int) -> bytes:
    out = io.BytesIO()
    colour = zlib.crc32(PRODUCTS[number].split()[0].encode())
    Image.new("RGB", (16, 12), (colour & 255, colour >> 8 & 255, colour >> 16 & 255)).save(out, "PNG")
    return out.getvalue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    services: Services

    def log_message(self, *words: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        if parts.path.startswith("/picture/"):
            return self.send(200, picture(int(parts.path.split("/")[-1].split(".")[0])), "image/png")
        key = query.pop("api_key", "")
        request = json.dumps(query, sort_keys=True)
        reply = self.services.shopping(query.get("q", ""), int(query.get("start", "0")))
        return self.answer("search", request, reply, key)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        request = json.dumps(body, sort_keys=True)
        if self.path == "/v1/chat/completions":
            return self.answer("chat", request, self.services.chat(body), key)
        hits = [
            {"_id": f"e{n}", "_source": self.services.product(n, place)}
            for place, n in enumerate(ranking(body["query"]["match"]["title"])[: body["size"]], 1)
        ]
        return self.answer("http", request, {"hits": {"hits": hits}}, key)

    def answer(self, kind: str, request: str, reply: Any, key: str) -> None:
        services = self.services
        with services.lock:
            before = sum((one.kind, one.request) == (kind, request) for one in services.log)
            seen = Seen(kind, request, 0, False, key)
            services.log.append(seen)
            services.under_way += 1
            services.most_under_way = max(services.most_under_way, services.under_way)
        try:
            self.answer_one(seen, reply, self.fault(kind, request, before))
        finally:
            with services.lock:
                services.under_way -= 1

    def fault(self, kind: str, request: str, before: int) -> Fault:
        ordered = self.services.faults(kind, request, before) if self.services.faults else None
        return ordered or Fault(delay=self.services.delay)

    def answer_one(self, seen: Seen, reply: Any, fault: Fault) -> None:
        time.sleep(fault.delay)
        seen.status = fault.status
        if seen.authorization != self.services.key:
            seen.status, reply = 401, {"error": f"Incorrect API key provided: {seen.authorization}"}
        data = (fault.body if fault.body is not None else json.dumps(reply)).encode()
        if fault.drip:
            self.send_response(200)
            self.send_header("content-length", "1000000")
            self.end_headers()
            while True:
                self.wfile.write(b".")
                time.sleep(0.02)
        if fault.drop:
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.send(seen.status, data, "application/json", fault.headers)
        seen.answered = True

    def send(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed breaks its connections; that is what some tests do."""


@contextmanager
def running() -> Iterator[Services]:
    """The server, for the length of a ``with`` block."""
    services = Services()
    handler = type("Handler", (_Handler,), {"services": services})
    server = _Server(("127.0.0.1", 0), handler)
    services.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield services
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
