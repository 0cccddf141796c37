"""The API attacked by its own description, and by good requests spoilt: no answer is 500, each has its form."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import re
import subprocess
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from opengcl.serve import api
from tests.index_stores import AWKWARD, postgres_server, store_uri  # noqa: F401 - a fixture
from tests.serving import Running, Shop, build, make_shop, running

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("fuzz"))


def attack(shop: Shop, folder: Path, *words: str) -> int:
    """Runs schemathesis; how many requests it sent."""
    with running([shop]) as server:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json"]
        found = subprocess.run(
            [*command, "--checks", CHECKS, "--no-color", "--suppress-health-check=all", "--seed=1", *words],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
        registry = server.state.metrics.registry
        samples = [
            one for metric in registry.collect() for one in metric.samples if one.name == "opengcl_requests_total"
        ]
        assert not [one for one in samples if re.fullmatch("50[^3]", one.labels["status"])]
        assert server.get("/search?q=redshoe").status_code == 200
        return int(sum(one.value for one in samples))


def test_a_few_hundred_requests_by_the_description(shop: Shop, tmp_path: Path) -> None:
    assert attack(shop, tmp_path, "--phases=examples,fuzzing", "--max-examples=25") > 200


@pytest.mark.slow
@pytest.mark.timeout(10_800)
def test_ten_thousand_requests_by_the_description(shop: Shop, tmp_path: Path) -> None:
    assert attack(shop, tmp_path, "--max-examples=900") > 10_000


# Good requests spoilt: most get far into the server before it sees that something is wrong with them

WORKERS = 4
# Starlette leaves the file of an upload that was cut off to the garbage collector, at once in CPython
cut_off_uploads = pytest.mark.filterwarnings("ignore:Unclosed file .*SpooledTemporaryFile:ResourceWarning")
ODD: tuple[Any, ...] = (
    *AWKWARD,
    *(None, True, False, 0, -1, 1, 1e-300, 2**31, 2**63, -(2**63) - 1, 10**400, 0.1, float("nan"), float("inf")),
    *(
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"text": {}},
        "x" * 20_000,
        "\0",
        "a\0b",
        "\ud800",
        "\udfff\ud800",
        "\u202e",
        "\ufeff",
    ),
    *("d1", "../../etc/passwd", "..%2f..", "file:///etc/passwd", "data:image/png;base64,", "AAAA", "=" * 9, "redshoe"),
)
FILTER_WORDS = (
    *("price", "title", "stock", "`price`", "prise", "<", "<=", "=", "!=", ">", "in", "not", "and", "or", "is", "null"),
    *("(", ")", ",", "1", "-3e5", "1e999", '"x"', "'it''s'", '"\\', "true", "false", "`", "\0", "--", ";", "%", "😀"),
)
FORMS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "PPM")
REPLIES = {
    "/search": api.SearchReply,
    "/documents": api.DocumentsReply,
    "/v1/embeddings": api.EmbeddingsReply,
}


class Spoiler:
    """Requests that were good once; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self.chosen = random.Random(seed)
        self._files = [self._drawn(form) for form in FORMS]

    def request(self) -> tuple[str, str, dict[str, Any]]:
        """Method, path and what else httpx takes."""
        kind = self.chosen.randrange(10)
        if kind < 6:
            return self._json()
        if kind < 8:
            return self._form()
        return self._address()

    def _json(self) -> tuple[str, str, dict[str, Any]]:
        path, body = self.chosen.choice(self._good())
        for _ in range(self.chosen.choice((0, 1, 1, 1, 2, 5))):
            body = self._changed(body)
        content = json.dumps(body, ensure_ascii=self.chosen.random() < 0.5).encode("utf-8", "surrogatepass")
        if self.chosen.random() < 0.2:
            content = self._bitten(content)
        kind = (
            "application/json" if self.chosen.random() < 0.97 else str(self.chosen.choice(("text/plain", "", "x/y;z")))
        )
        return "POST", path, {"content": content, "headers": {"Content-Type": kind}}

    def _good(self) -> list[tuple[str, Any]]:
        picture = base64.b64encode(self._picture()).decode()
        words = self.chosen.choice(("redshoe", "bluehat winecup", "tealbag"))
        query = {"text": words, "image": picture, "negatives": [{"text": "redhat", "weight": 0.3}, {"image": picture}]}
        plain = {"text": words, "text_weight": 0.5, "image_weight": 2.0}
        document = {"doc_id": f"x{self.chosen.randrange(50)}", "fields": {"title": words, "price": 3, "stock": True}}
        pictured = {"doc_id": "y", "fields": {"image": picture}}
        return [
            ("/search", {"query": query, "k": 5, "offset": 2, "where": "price < 30 and stock = true", "model": "a"}),
            ("/search", {"query": plain, "k": 3, "where": self._filter(), "fields": ["title"]}),
            ("/documents", {"documents": [document, pictured], "model": "a"}),
            ("/v1/embeddings", {"input": [words, "x"], "dimensions": 8, "encoding_format": "base64", "model": "a"}),
        ]

    def _form(self) -> tuple[str, str, dict[str, Any]]:
        body = json.dumps({"query": {"text": "redshoe", "text_weight": 0.5}, "k": 3})
        files: dict[str, Any] = {"image": self._picture()}
        if self.chosen.random() < 0.1:
            files["other"] = b"x"
        if self.chosen.random() < 0.5:
            return "POST", "/search", {"files": files, "data": {"query": body}}
        boundary = self.chosen.choice(("xyz", "x" * 80, "", "\t"))
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        head = f'--xyz\r\nContent-Disposition: form-data; name="image"; filename="{self._odd_text()}"\r\n\r\n'
        content = head.encode("utf-8", "surrogatepass") + self._picture() + b"\r\n--xyz--\r\n"
        return "POST", "/search", {"content": self._bitten(content), "headers": kind}

    def _address(self) -> tuple[str, str, dict[str, Any]]:
        odd = urllib.parse.quote(self._odd_text().encode("utf-8", "surrogatepass"), safe=self.chosen.choice(("", "/.")))
        values = {"q": self.chosen.choice(("redshoe", odd)), "where": urllib.parse.quote(self._filter()), "model": odd}
        asked = "&".join(
            f"{name}={self.chosen.choice((value, odd))}" for name, value in values.items() if self.chosen.random() < 0.6
        )
        path = self.chosen.choice(
            (
                f"/search?q=x&{asked}",
                f"/search?{asked}&k={self.chosen.choice((5, 0, odd))}&offset={self.chosen.choice((0, 9_999, 10**30))}",
                f"/suggest?{asked}",
                f"/documents/{odd}",
                f"/documents/d3/image/image?size={self.chosen.choice((64, 9, odd))}",
                f"/documents/d3/image/{self.chosen.choice(('title', odd))}",
                f"/documents/{odd}/image/image",
                f"/{odd}?{asked}",
            )
        )
        method = "DELETE" if path.startswith("/documents/") and odd not in ("d1", "d3") else "GET"
        return self.chosen.choice((method, method, "GET", "HEAD")), path, {}

    def _changed(self, body: Any) -> Any:
        """A copy in which one place is another value, gone, doubled, or deep."""
        body = copy.deepcopy(body)
        places = list(_places(body))
        if not places:
            return self.chosen.choice(ODD)
        inside, key = self.chosen.choice(places)
        change = self.chosen.randrange(6)
        if change == 0:
            del inside[key]
        elif change == 1 and isinstance(inside, dict):
            inside[self._odd_text()] = self.chosen.choice(ODD)
        elif change == 2 and len(places) < 1000:
            inside[key] = [inside[key]] * self.chosen.choice((1, 2, 70, 1100))
        elif change == 3:
            deep: Any = "x"
            for _ in range(self.chosen.choice((3, 100))):
                deep = [deep]
            inside[key] = deep
        else:
            inside[key] = self.chosen.choice(ODD)
        return body

    def _bitten(self, content: bytes) -> bytes:
        """Some bytes changed, cut out or put in."""
        found = bytearray(content)
        for _ in range(self.chosen.choice((1, 1, 3, 20))):
            place = self.chosen.randrange(len(found) + 1)
            change = self.chosen.randrange(4)
            if change == 0:
                found[place : place + 1] = bytes([self.chosen.randrange(256)])
            elif change == 1:
                del found[place : place + self.chosen.choice((1, 4, 100))]
            elif change == 2:
                found[place:place] = self.chosen.choice(
                    (b"\0", b"\xff\xfe", b"{", b'"', b"1" * 500, b"[" * 9000, b"\r\n--xyz")
                )
            else:
                found[place : place + 4] = self.chosen.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        return bytes(found)

    def _picture(self) -> bytes:
        data = self.chosen.choice(self._files)
        return self._bitten(data) if self.chosen.random() < 0.6 else data

    def _drawn(self, form: str) -> bytes:
        out = io.BytesIO()
        mode = self.chosen.choice(("RGB", "L", "1")) if form != "JPEG" else "RGB"
        pixels = self.chosen.randbytes(24 * 20 * 3)
        Image.frombytes("RGB", (24, 20), pixels).convert(mode).save(out, form)
        return out.getvalue()

    def _filter(self) -> str:
        if self.chosen.random() < 0.3:
            return "price >= 2 or title is null"
        return " ".join(self.chosen.choice(FILTER_WORDS) for _ in range(self.chosen.randrange(12)))

    def _odd_text(self) -> str:
        return str(self.chosen.choice([one for one in ODD if isinstance(one, str)]))


def _places(body: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or number) within."""
    inner = list(body.items()) if isinstance(body, dict) else list(enumerate(body)) if isinstance(body, list) else []
    for key, value in inner:
        yield body, key
        yield from _places(value)


def spoilt(server: Running, seed: int, requests: int) -> Counter[tuple[str, int]]:
    """Sends so many; what came back, by path and status."""
    spoiler, seen = Spoiler(seed), Counter[tuple[str, int]]()
    with httpx2.Client(base_url=server.url, timeout=120) as client:
        for number in range(requests):
            method, path, more = spoiler.request()
            try:
                reply = client.request(method, path, **more)
            except (httpx2.InvalidURL, httpx2.LocalProtocolError, ValueError):
                continue  # the client itself refuses to send that
            said = f"seed {seed}, request {number}: {method} {path[:300]!r} {str(more)[:2000]}: {reply.text[:300]}"
            assert reply.status_code < 500, said
            place = path.partition("?")[0]
            if method == "POST" and reply.status_code == 200:
                REPLIES[place].model_validate_json(reply.content)
            elif reply.status_code >= 400 and method != "HEAD":
                api.ErrorReply.model_validate_json(reply.content)
            seen["/documents/..." if place.startswith("/documents/") else place[:20], reply.status_code] += 1
    return seen


def attack_with_spoilt(place: Shop, requests: int) -> None:
    build(place, "v1")
    with running([place], request_seconds=600.0) as server, ThreadPoolExecutor(WORKERS) as pool:
        before = server.post("/search", {"query": {"text": "redshoe"}, "where": "title is not null", "k": 5}).json()
        seen = sum(pool.map(lambda seed: spoilt(server, seed, requests // WORKERS), range(WORKERS)), Counter())
        for route in REPLIES:  # it is no test of the front door alone
            assert seen[route, 200] > requests / 200, seen
            assert seen[route, 422] > requests / 200, seen
        server.post("/documents", {"documents": [{"doc_id": "last", "fields": {"title": "redshoe", "price": -7}}]})
        after = server.post("/search", {"query": {"text": "redshoe"}, "where": "price = -7", "k": 5}).json()
        assert [hit["doc_id"] for hit in after["hits"]] == ["last"]
        assert before["hits"][0]["score"] <= 1
        samples = server.state.metrics.registry.collect()
        failed = [
            one
            for metric in samples
            for one in metric.samples
            if one.name == "opengcl_requests_total" and one.labels["status"].startswith("5")
        ]
        assert failed == []
    assert seen.total() > 0.9 * requests


@cut_off_uploads
def test_good_requests_spoilt(shop: Shop, tmp_path: Path) -> None:
    attack_with_spoilt(Shop(shop.run, shop.dataset, f"lancedb:{tmp_path / 'store'}"), 600)


@cut_off_uploads
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["exact", "lancedb", "postgres"])
def test_ten_thousand_good_requests_spoilt(
    kind: str, shop: Shop, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    attack_with_spoilt(Shop(shop.run, shop.dataset, store_uri(kind, tmp_path, request)), 10_000)
