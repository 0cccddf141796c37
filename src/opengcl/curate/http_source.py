"""Any search that answers with JSON over HTTP, described by a template and paths."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from opengcl.curate.calls import Calls, Request
from opengcl.curate.config import VARIABLE, HttpOptions
from opengcl.curate.errors import ReplyError
from opengcl.curate.http_client import Answer, BoundedClient, ask
from opengcl.curate.keys import Keys
from opengcl.curate.products import Product
from opengcl.curate.search_source import SearchResult, ranked_hits
from opengcl.curate.texts import parse_json
from opengcl.data.problems import shown

_PLACE = re.compile(r"\{(query|count)\}|\$\{(\w+)\}")
_NOTHING = object()


class JsonSearch:
    """A shop's own search, Elasticsearch, Vespa.

    Args:
        options: Where, how, and what of the reply is what.
        calls: The way to the service.
        keys: Where ``${NAME}`` is looked up; None if nothing is sent.

    Raises:
        CurateError: If an environment variable that the options name is not set.
    """

    def __init__(self, options: HttpOptions, calls: Calls, keys: Keys | None) -> None:
        self._options = options
        self._calls = calls
        names = VARIABLE.findall(json.dumps([options.url, options.body, options.headers]))
        self._secrets = {name: keys.read(name) for name in dict.fromkeys(names)} if keys else {}
        self._client = BoundedClient(options.timeout)

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def search(self, query: str, count: int) -> SearchResult:
        """The products for a query; see `SearchSource`."""
        request = functools.partial(self._request, query, count)
        send = functools.partial(self._send, query, count)
        (entries, body), _ = self._calls.ask_for(request, send, self._read)
        return SearchResult(ranked_hits(map(self._product, entries), count), [body])

    def _request(self, query: str, count: int, number: int) -> Request:
        """With the secrets' names in place of the secrets."""
        filled = self._filled(query, count, {name: f"${{{name}}}" for name in self._names()})
        return Request({"service": "http", "try": number, **filled}, self._options.price or 0.0)

    def _send(self, query: str, count: int, request: Request) -> Answer:
        filled = self._filled(query, count, self._secrets)
        options = {"headers": filled["headers"], **({} if filled["body"] is None else {"json": filled["body"]})}
        return ask(self._client, self._options.method, filled["url"], **options)

    def _names(self) -> list[str]:
        return VARIABLE.findall(json.dumps([self._options.url, self._options.body, self._options.headers]))

    def _filled(self, query: str, count: int, secrets: dict[str, str]) -> dict[str, Any]:
        values = {"query": query, "count": count, **{f"${name}": value for name, value in secrets.items()}}
        plain = functools.partial(fill, values=values)
        return {
            "method": self._options.method,
            "url": fill(self._options.url, values, _for_address),
            "headers": {name: str(plain(value)) for name, value in self._options.headers.items()},
            "body": plain(self._options.body),
        }

    def _read(self, body: str) -> tuple[list[Any], str]:
        found = at(parse_json(body), self._options.path)
        if not isinstance(found, list):
            raise ReplyError(f"{self._options.path or 'the reply'}: found {shown(found)}; allowed: a list of results")
        return found, body

    def _product(self, entry: Any) -> Product | None:
        paths = self._options.fields.model_dump(exclude_none=True)
        return Product.read({name: at(entry, path) for name, path in paths.items()}, self._options.url.split("{")[0])


def _for_address(value: str) -> str:
    """A value that can stand anywhere in an address: ``..`` between two slashes would climb to another page."""
    return quote(value, safe="").replace(".", "%2E")


def fill(template: Any, values: dict[str, Any], encode: Callable[[str], str] = str) -> Any:
    """A template's texts with ``{query}``, ``{count}`` and ``${NAME}`` replaced, all at once.

    What was put in is not looked at again, so a query that reads ``${HOME}`` or ``{count}`` stays what it is; and since
    the template is a tree whose texts are filled before it is written as JSON, no query can end a text early.

    Args:
        template: A text, or lists and mappings of texts; other values stay.
        values: ``query``, ``count``, and secrets by ``$NAME``.
        encode: Applied to each value that is put into a text.
    """
    if isinstance(template, dict):
        return {name: fill(value, values, encode) for name, value in template.items()}
    if isinstance(template, list):
        return [fill(value, values, encode) for value in template]
    if not isinstance(template, str):
        return template
    if template == "{count}":
        return values["count"]
    return _PLACE.sub(lambda found: encode(str(values[found[1] or f"${found[2]}"])), template)


def at(tree: Any, path: str) -> Any:
    """What stands at a dotted path of a JSON tree, numbers being places in lists; None if nothing does.

    ``hits.hits.0._source.title`` is the title of Elasticsearch's first hit; the empty path is the whole tree.
    """
    for name in path.split(".") if path else ():
        if isinstance(tree, dict):
            tree = tree.get(name)
        elif isinstance(tree, list) and name.isascii() and name.isdigit() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return None
    return tree
