"""Google Shopping through SerpApi (https://serpapi.com/google-shopping-api)."""

from __future__ import annotations

import functools
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from opengcl.curate.calls import Calls, Request
from opengcl.curate.config import SerpApiOptions
from opengcl.curate.errors import ReplyError
from opengcl.curate.http_client import Answer, BoundedClient, ask
from opengcl.curate.products import Product
from opengcl.curate.search_source import SearchResult, ranked_hits
from opengcl.curate.texts import one_line, parse_json
from opengcl.data.problems import shown

_NOTHING_FOUND = "hasn't returned any results"
_OURS = ("api_key", "engine", "output", "q")
_LONGEST_LINK = 8192


class SerpApi:
    """Searches Google Shopping, page after page.

    Args:
        options: Which engine, country, language and how many pages.
        calls: The way to the service.
        key: The service's key; None if nothing is sent.
    """

    def __init__(self, options: SerpApiOptions, calls: Calls, key: str | None) -> None:
        self._options = options
        self._calls = calls
        self._key = key
        self._client = BoundedClient(options.timeout)

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def search(self, query: str, count: int) -> SearchResult:
        """The products for a query, from as many pages as are needed and allowed; see `SearchSource`."""
        products: list[Product | None] = []
        raw: list[str] = []
        further: dict[str, str] = {}
        for _ in range(self._options.pages):
            request = functools.partial(self._request, query, further)
            (reply, body), _ = self._calls.ask_for(request, self._send, _read)
            raw.append(body)
            found = _in_order(reply.get("shopping_results", []))
            products += [_product(one, self._options.base_url) for one in found]
            further = _next_page(reply)
            if len(products) >= count or not found or not further:
                break
        return SearchResult(ranked_hits(products, count), raw)

    def _request(self, query: str, further: dict[str, str], number: int) -> Request:
        parameters = {**self._options.parameters, **further, "engine": self._options.engine, "q": query}
        content = {"service": "serpapi", "url": self._options.base_url, "parameters": parameters, "try": number}
        return Request(content, self._options.price or 0.0)

    def _send(self, request: Request) -> Answer:
        parameters = {**request.content["parameters"], "output": "json", "api_key": self._key or ""}
        return ask(self._client, "GET", self._options.base_url, params=parameters)


def _read(body: str) -> tuple[dict[str, Any], str]:
    reply = parse_json(body)
    if not isinstance(reply, dict):
        raise ReplyError(f"not a search result: {shown(reply)}")
    error = reply.get("error")
    if error is not None and _NOTHING_FOUND not in str(error):
        raise ReplyError(f"an error: {one_line(str(error), 300)}")
    if not isinstance(reply.get("shopping_results", []), list):
        raise ReplyError(f"shopping_results: found {shown(reply['shopping_results'])}; allowed: a list")
    if error is None and "shopping_results" not in reply and "search_metadata" not in reply:
        raise ReplyError(f"neither shopping_results nor search_metadata in the reply: {shown(reply)}")
    return reply, body


def _in_order(results: list[Any]) -> list[dict[str, Any]]:
    """A page's results by their positions; those without stay where they are in the list."""
    entries = [one for one in results if isinstance(one, dict)]
    places = [one.get("position") for one in entries]
    if all(type(place) is int for place in places):
        entries.sort(key=lambda one: one["position"])
    return entries


def _product(found: dict[str, Any], base: str) -> Product | None:
    named = {
        "url": found.get("product_link") or found.get("link"),
        "price": found.get("extracted_price"),
        "image": found.get("thumbnail"),
    }
    return Product.read({**found, **named}, base)


def _next_page(reply: dict[str, Any]) -> dict[str, str]:
    """The parameters of the next page. Its address is the service's own word, so only its parameters are taken."""
    links = reply.get("serpapi_pagination")
    link = links.get("next") if isinstance(links, dict) else None
    if not isinstance(link, str) or len(link) > _LONGEST_LINK:
        return {}
    try:
        pairs = parse_qsl(urlsplit(link).query)
    except ValueError:
        return {}
    return {name: value for name, value in pairs if name not in _OURS}
