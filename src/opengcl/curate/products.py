"""Products as searches return them, and when two results are the same product."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from opengcl.curate.texts import one_line
from opengcl.query_text import normalised

_LONGEST_TITLE = 500
_LONGEST_ID = 200
_LONGEST_URL = 4096
_TRACKING = ("utm_", "gclid", "fbclid", "msclkid", "srsltid", "dclid", "gbraid", "wbraid", "mc_cid", "mc_eid")


@dataclass(frozen=True, slots=True)
class Product:
    """One product.

    Attributes:
        title: Never empty.
        product_id: The search's own id.
        url: Its page.
        source: The shop that sells it.
        price: As a number, in the search's currency.
        rating: Mean of its ratings.
        reviews: Number of its ratings.
        image: Address of its picture.
    """

    title: str
    product_id: str | None = None
    url: str | None = None
    source: str | None = None
    price: float | None = None
    rating: float | None = None
    reviews: int | None = None
    image: str | None = None

    @property
    def identity(self) -> str:
        """The document's id: the product's own id, else a hash of its address, else of title and shop.

        Addresses are the same if they differ in nothing but case of the host, order of parameters, fragment and
        parameters for tracking.
        """
        if self.product_id:
            return f"id:{self.product_id}"
        if self.url:
            return f"url:{_hash(normal_url(self.url))}"
        return f"title:{_hash(f'{normalised(self.title)}|{normalised(self.source or str())}')}"

    def filled(self, other: Product) -> Product:
        """This product, with what it lacks taken from another result of the same."""
        lacks = [one.name for one in fields(self) if getattr(self, one.name) is None]
        return replace(self, **{name: getattr(other, name) for name in lacks}) if lacks else self

    @classmethod
    def read(cls, found: Mapping[str, Any], base: str) -> Product | None:
        """A product from a reply's values, each checked; None if it has no title.

        Args:
            found: Field -> value of any type; values that make no sense are left out.
            base: Address that relative addresses belong to.
        """
        title = one_line(found["title"], _LONGEST_TITLE) if isinstance(found.get("title"), str) else ""
        if not title:
            return None
        reviews = _number(found.get("reviews"))
        return cls(
            title=title,
            product_id=_identifier(found.get("product_id")),
            url=_link(found.get("url"), base),
            source=_text(found.get("source")),
            price=_number(found.get("price")),
            rating=_number(found.get("rating")),
            reviews=int(reviews) if reviews is not None and 0 <= reviews < 2**53 else None,
            image=_link(found.get("image"), base),
        )


def normal_url(url: str) -> str:
    """An address in the form in which addresses of one page are equal."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower().removeprefix("www.") + (f":{parts.port}" if parts.port else "")
    every = parse_qsl(parts.query, keep_blank_values=True)
    pairs = [pair for pair in every if not pair[0].lower().startswith(_TRACKING)]
    return urlunsplit(("", host, parts.path.rstrip("/"), urlencode(sorted(pairs)), ""))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _text(value: Any) -> str | None:
    return (one_line(value, _LONGEST_TITLE) or None) if isinstance(value, str) else None


def _identifier(value: Any) -> str | None:
    """An id written as a text or a whole number; one that is too long is none, as cutting it could join two."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = one_line(str(value), _LONGEST_ID + 1)
    return text if 0 < len(text) <= _LONGEST_ID else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _link(value: Any, base: str) -> str | None:
    """An http or https address, or None."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_URL:
        return None
    if not value.isprintable() or any(one.isspace() for one in value):
        return None
    try:
        url = urljoin(base, value)
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return url if usable else None
