"""Searches: SerpApi and JSON over HTTP against a real server, hostile replies, and which products are the same."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengcl.curate.budget import Budget
from opengcl.curate.calls import Calls
from opengcl.curate.config import HttpOptions, SerpApiOptions, ServiceOptions
from opengcl.curate.errors import CallError, CurateError, RefusedError
from opengcl.curate.http_source import JsonSearch, at, fill
from opengcl.curate.journal import Journal
from opengcl.curate.keys import Keys
from opengcl.curate.products import Product, normal_url
from opengcl.curate.rejects import Rejects
from opengcl.curate.search_source import Hit, ranked_hits
from opengcl.curate.serpapi import SerpApi

from .paid_services import KEY, PRODUCTS, Fault, Services, ranking, running

FAST: dict[str, Any] = {"requests_per_minute": 60_000.0, "longest_wait": 0.05, "retries": 1, "tries": 2, "timeout": 5.0}


@pytest.fixture
def services() -> Iterator[Services]:
    with running() as found:
        yield found


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Callable[[ServiceOptions], Calls]]:
    with Journal(tmp_path / "j.gz") as journal:

        def make(options: ServiceOptions) -> Calls:
            budget = Budget(1000, None, journal.spent)
            return Calls("search", options, journal, budget, Keys(), Rejects(), stop=threading.Event())

        yield make


@pytest.fixture
def serpapi(services: Services, calls: Any) -> Iterator[Callable[..., SerpApi]]:
    opened: list[SerpApi] = []

    def make(**options: Any) -> SerpApi:
        chosen = SerpApiOptions(source="serpapi", base_url=f"{services.url}/search", **{**FAST, **options})
        opened.append(SerpApi(chosen, calls(chosen), KEY))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def faulty(services: Services, body: Any) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    services.always(Fault(body=text))


# SerpApi


def test_results_come_in_order_with_all_they_have(serpapi: Any, services: Services) -> None:
    result = serpapi(parameters={"gl": "de"}).search("red shoe", 5)
    numbers = ranking("red shoe")[:5]
    assert [hit.position for hit in result.hits] == [1, 2, 3, 4, 5]
    assert [hit.product.identity for hit in result.hits] == [f"id:{1000 + number}" for number in numbers]
    first = numbers[0]
    assert PRODUCTS[first] == "red shoe"
    assert result.hits[0].product == Product(
        title=f"Red Shoe No. {first}",
        product_id=f"{1000 + first}",
        url=f"https://example.com/p/{first}?utm_source=x",
        source=f"shop {first % 3}",
        price=first + 0.5,
        rating=4.5,
        reviews=10 * first,
        image=f"{services.url}/picture/{first}.png",
    )
    asked = json.loads(services.log[0].request)
    assert asked == {"engine": "google_shopping", "q": "red shoe", "gl": "de", "output": "json"}
    assert json.loads(result.raw[0])["shopping_results"][0]["position"] == 1


def test_further_pages_are_asked_where_the_user_said_and_nowhere_else(serpapi: Any, services: Services) -> None:
    result = serpapi(pages=3).search("blue bag", 30)
    assert [hit.position for hit in result.hits] == list(range(1, 31))
    assert [hit.product.identity for hit in result.hits] == [f"id:{1000 + n}" for n in ranking("blue bag")[:30]]
    pages = [json.loads(one.request) for one in services.log]
    # The server's word for the next page names another engine, query and key.
    assert [(page["engine"], page["q"], page.get("start")) for page in pages] == [
        ("google_shopping", "blue bag", None),
        ("google_shopping", "blue bag", "20"),
    ]
    assert {one.authorization for one in services.log} == {KEY}


def test_nothing_found_is_a_result(serpapi: Any, services: Services) -> None:
    faulty(services, {"search_metadata": {}, "error": "Google hasn't returned any results for this query."})
    assert serpapi().search("zzz", 10).hits == []
    assert len(services.log) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<html>busy</html>", "not JSON"),
        ("", "not JSON"),
        ('{"shopping_results": [', "not JSON"),
        ([], "not a search result"),
        ({"error": "We couldn't get valid results"}, "an error: We couldn't get valid results"),
        ({"shopping_results": {"title": "x"}}, "shopping_results: found .*allowed: a list"),
        ({}, "neither shopping_results nor search_metadata"),
    ],
)
def test_replies_that_are_no_results_are_asked_for_again_then_given_up(
    serpapi: Any, services: Services, body: Any, reason: str
) -> None:
    faulty(services, body)
    with pytest.raises(CallError, match=f"none of 2 replies could be used; the last: .*{reason}"):
        serpapi().search("red", 10)
    assert len(services.log) == 2


def test_hostile_entries_lose_what_makes_no_sense(serpapi: Any, services: Services) -> None:
    entries: list[Any] = [
        {"title": "A\u0000\u001b[31m lamp\n" + "x" * 2000, "product_id": "1", "thumbnail": "javascript:alert(1)"},
        {
            "title": "no picture",
            "product_id": True,
            "link": "file:///etc/passwd",
            "thumbnail": "data:image/png;base64,",
        },
        {"title": 5},
        "not an entry",
        {"title": "numbers", "product_id": 17, "extracted_price": float("1e308"), "reviews": -3, "rating": "4.5"},
        {"title": "long id", "product_id": "9" * 300, "link": "http://h/ok", "extracted_price": "12 EUR"},
        {"title": " \u0000 ", "product_id": "blank"},
    ]
    faulty(services, {"shopping_results": entries})
    hits = serpapi().search("red", 10).hits
    assert [(hit.position, hit.product.title[:8]) for hit in hits] == [
        (1, "A[31m la"),
        (2, "no pictu"),
        (4, "numbers"),
        (5, "long id"),
    ]
    lamp, bare, numbers, long = (hit.product for hit in hits)
    assert len(lamp.title) == 500
    assert (lamp.image, bare.image, bare.url, bare.product_id) == (None, None, None, None)
    assert (numbers.product_id, numbers.price, numbers.reviews, numbers.rating) == ("17", 1e308, None, 4.5)
    assert (long.product_id, long.url, long.price) == (None, "http://h/ok", None)


def test_given_positions_order_a_page(serpapi: Any, services: Services) -> None:
    entries = [{"title": name, "position": place} for name, place in (("c", 3), ("a", 1), ("b", 2))]
    faulty(services, {"shopping_results": entries})
    assert [hit.product.title for hit in serpapi().search("red", 10).hits] == ["a", "b", "c"]


def test_a_wrong_key_ends_all_and_is_not_quoted(services: Services, calls: Any) -> None:
    services.key = "another"
    options = SerpApiOptions(source="serpapi", base_url=f"{services.url}/search", **FAST)
    service = calls(options)
    service._keys._values["SERPAPI_API_KEY"] = KEY
    search = SerpApi(options, service, KEY)
    with pytest.raises(RefusedError, match=r"HTTP 401.*SERPAPI_API_KEY") as caught:
        search.search("red", 10)
    search.close()
    assert KEY not in str(caught.value)


def test_a_search_that_was_kept_is_not_asked_again(serpapi: Any, services: Services) -> None:
    search = serpapi()
    assert search.search("red shoe", 5).hits == search.search("red shoe", 5).hits
    assert len(services.log) == 1


# JSON over HTTP


ELASTIC: dict[str, Any] = {
    "source": "http",
    "method": "POST",
    "headers": {"Authorization": "Bearer ${SHOP_KEY}"},
    "body": {"query": {"match": {"title": "{query}"}}, "size": "{count}", "note": "top {count} of {query}"},
    "path": "hits.hits",
    "fields": {"title": "_source.title", "product_id": "_id", "image": "_source.thumbnail", "source": "_source.source"},
}


@pytest.fixture
def elastic(services: Services, calls: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[JsonSearch]:
    monkeypatch.setenv("SHOP_KEY", KEY)
    options = HttpOptions(**{**ELASTIC, **FAST, "url": f"{services.url}/products/_search"})
    search = JsonSearch(options, calls(options), Keys())
    yield search
    search.close()


def test_a_shops_own_search(elastic: JsonSearch, services: Services) -> None:
    hits = elastic.search("red shoe", 3).hits
    assert [hit.product.product_id for hit in hits] == [f"e{number}" for number in ranking("red shoe")[:3]]
    assert hits[0].product.title.startswith("Red Shoe")
    asked = json.loads(services.log[0].request)
    assert asked == {"query": {"match": {"title": "red shoe"}}, "size": 3, "note": "top 3 of red shoe"}
    assert services.log[0].authorization == KEY


NASTY = ['"}, "size": 0, {"', "${SHOP_KEY}", "{count}", "a\\", "x&api_key=1#/../?", "日本 é", "%00", "' OR 1=1"]


@pytest.mark.parametrize("query", NASTY)
def test_no_query_changes_the_request(elastic: JsonSearch, services: Services, query: str) -> None:
    elastic.search(query, 2)
    asked = json.loads(services.log[0].request)
    assert asked["query"] == {"match": {"title": query}}
    assert asked["size"] == 2
    assert set(asked) == {"query", "size", "note"}


@pytest.mark.parametrize("query", NASTY)
def test_no_query_changes_the_address(services: Services, calls: Any, query: str) -> None:
    options = HttpOptions(
        source="http",
        url=services.url + "/search?q={query}&n={count}&api_key=" + KEY,
        path="shopping_results",
        fields={"title": "title"},  # type: ignore[arg-type] # pydantic reads it
        **FAST,
    )
    search = JsonSearch(options, calls(options), Keys())
    search.search(query, 2)
    search.close()
    assert json.loads(services.log[0].request) == {"q": query, "n": "2"}


@pytest.mark.parametrize("query", ["..", ".", "a/../../b", "//evil.example/", "?q=1#"])
def test_no_query_leads_to_another_page(calls: Any, query: str) -> None:
    fields: Any = {"title": "title"}
    options = HttpOptions(source="http", url="http://shop.example/api/{query}/list", path="", fields=fields, **FAST)
    search = JsonSearch(options, calls(options), Keys())
    url = httpx2.URL(search._request(query, 5, 0).content["url"])
    search.close()
    assert url.host == "shop.example"
    assert url.raw_path.startswith(b"/api/")
    assert url.raw_path.endswith(b"/list")
    assert url.raw_path.count(b"/") == 3


def test_the_journal_names_secrets_and_does_not_hold_them(elastic: JsonSearch) -> None:
    request = elastic._request("red", 3, 0)
    assert request.content["headers"] == {"Authorization": "Bearer ${SHOP_KEY}"}
    assert KEY not in json.dumps(request.content)


def test_a_list_that_is_not_there_is_told(elastic: JsonSearch, services: Services) -> None:
    faulty(services, {"hits": {"total": 0}})
    with pytest.raises(CallError, match=r"hits\.hits: found None; allowed: a list of results"):
        elastic.search("red", 3)


def test_a_missing_variable_is_told_at_once(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)
    options = HttpOptions(**{**ELASTIC, **FAST, "url": "http://127.0.0.1:9/x"})
    with pytest.raises(CurateError, match="environment variable SHOP_KEY is not set"):
        JsonSearch(options, calls(options), Keys())


def test_paths() -> None:
    tree = {"a": [{"b": 1}, {"b": {"c": [2, 3]}}], "": 4}
    assert at(tree, "a.1.b.c.0") == 2
    assert at(tree, "") is tree
    for path in ("a.2.b", "a.-1", "a.b", "x.y", "a.0.b.c", "a.\u0661"):
        assert at(tree, path) is None


@given(st.text(max_size=30), st.integers(1, 100))
def test_what_is_filled_in_stays_what_it_is(query: str, count: int) -> None:
    values = {"query": query, "count": count, "$KEY": "secret"}
    template = {"q": "{query}", "n": "{count}", "deep": [{"x": "a {query} b"}, 5, None], "k": "${KEY}"}
    expected = {"q": query, "n": count, "deep": [{"x": f"a {query} b"}, 5, None], "k": "secret"}
    assert fill(template, values) == expected


# Which products are the same


def test_identity_is_id_then_address_then_title_and_shop() -> None:
    assert Product("a", product_id="7", url="http://x/1").identity == "id:7"
    by_url = Product("a", url="https://www.Shop.com/p/1/?b=2&a=1&utm_source=mail&gclid=9#top").identity
    assert by_url == Product("other", url="http://shop.com/p/1?a=1&b=2").identity
    assert by_url != Product("a", url="https://shop.com/p/1?a=1&b=3").identity
    assert Product("Red  Shoe", source="ACME").identity == Product("red shoe", source="acme").identity
    assert Product("Red Shoe", source="ACME").identity != Product("Red Shoe", source="Zed").identity
    assert Product("ab", source="c").identity != Product("a", source="bc").identity
    assert normal_url("http://h:8080/x") != normal_url("http://h:9090/x")


def test_a_list_keeps_places_and_the_first_of_equals() -> None:
    one, two, three = (Product(name, product_id=name) for name in "abc")
    assert ranked_hits([one, None, two, one, three], 4) == [Hit(1, one), Hit(3, two)]


def test_what_one_result_lacks_another_gives() -> None:
    poor, rich = Product("a", product_id="1", price=2.0), Product("b", product_id="1", price=3.0, image="http://h/i")
    assert poor.filled(rich) == Product("a", product_id="1", price=2.0, image="http://h/i")
