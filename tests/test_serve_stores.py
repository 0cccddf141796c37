"""The server on every store: the same searches, filters, uploads and deletes, against what NumPy finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from opengcl.encode import encode_texts
from tests.index_stores import KINDS, postgres_server, store_uri  # noqa: F401 - a fixture
from tests.serving import Running, Shop, build, make_shop, running, score_of_its_title, vectors_of

AWKWARD_IDS = ["it's", "a b/c", "日本", "100%", "x\\y", '"q"']


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("stores"))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, shop: Shop, tmp_path: Path) -> Shop:
    place = Shop(shop.run, shop.dataset, store_uri(request.param, tmp_path, request))
    build(place, "one")
    build(place, "two", swap=False, price=[1000.0 + row for row in range(40)])
    return place


def found(server: Running, text: str, **more: Any) -> dict[str, Any]:
    reply = server.post("/search", {"query": {"text": text}, "k": 50, **more})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def test_the_server_does_the_same_on_every_store(place: Shop) -> None:
    vectors, query = vectors_of(place), encode_texts(place.model, ["redshoe"])[0]
    with running([place], swap_seconds=0.05) as server:
        hits = found(server, "redshoe")["hits"]
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(vectors @ query)[::-1], atol=1e-5)
        for hit in hits:
            assert hit["score"] == pytest.approx(float(vectors[int(hit["doc_id"][1:])] @ query), abs=1e-5)
        page = found(server, "redshoe", k=7, offset=30)
        assert [hit["doc_id"] for hit in page["hits"]] == [hit["doc_id"] for hit in hits[30:37]]

        some = found(server, "redshoe", where="price < 10 and stock = true")
        assert (some["total"], {hit["doc_id"] for hit in some["hits"]}) == (4, {"d0", "d3", "d6", "d9"})
        assert found(server, "redshoe", where="price > 1000")["hits"] == []
        assert server.post("/search", {"query": {"text": "x"}, "where": "prise < 1"}).status_code == 422

        given = [("d1", 500.0), *((one, 501.0 + row) for row, one in enumerate(AWKWARD_IDS))]
        documents = [{"doc_id": one, "fields": {"title": f"bluehat {one}", "price": price}} for one, price in given]
        reply = server.post("/documents", {"documents": documents})
        assert reply.json()["upserted"] == len(given)
        assert found(server, "redshoe")["total"] == 40 + len(AWKWARD_IDS)
        for one, price in given:
            (hit,) = found(server, f"bluehat {one}", where=f"price = {price}")["hits"]
            assert (hit["doc_id"], hit["fields"]["stock"]) == (one, None)
            assert hit["score"] == pytest.approx(score_of_its_title(place, f"bluehat {one}"), abs=1e-3)
        assert found(server, "redshoe", where="price = 1")["hits"] == []  # what d1 was before

        with httpx2.Client(base_url=server.url, timeout=30) as client:
            for one, price in given:
                path = httpx2.URL("/documents/").join(httpx2.URL(path=f"/documents/{one}"))
                assert client.get(path).json()["fields"]["price"] == price
                assert client.delete(path).status_code == 200
                assert client.delete(path).status_code == client.get(path).status_code == 404
        assert found(server, "redshoe")["total"] == 39
        check_swap(server)


def check_swap(server: Running) -> None:
    store = server.state.stores[0]
    store.swap("two")
    server.state.models["a"].live.refresh()
    after = found(server, "redshoe")
    assert after["total"] == 40
    assert min(hit["fields"]["price"] for hit in after["hits"]) == 1000
    assert server.get("/readyz").json()["models"] == {"a": "two"}
    store.drop("one")
    assert found(server, "redshoe")["total"] == 40
