"""What a shopping search is: a query in, products in their order out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from opengcl.curate.products import Product


@dataclass(frozen=True)
class Hit:
    """A product at its place.

    Attributes:
        position: From 1.
        product: What stands there.
    """

    position: int
    product: Product


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        hits: In the order of their positions; a product that stands at several places is at the first.
        raw: The replies they come from, as they came.
    """

    hits: list[Hit]
    raw: list[str]


class SearchSource(Protocol):
    """Anything that ranks products for a query."""

    def search(self, query: str, count: int) -> SearchResult:
        """The products for a query.

        Args:
            query: What a shopper would type.
            count: Results wanted, at most.

        Raises:
            CallError: If this search failed for good.
        """
        ...


def ranked_hits(products: Iterable[Product | None], count: int) -> list[Hit]:
    """Products in order as hits: None keeps its place, and of equal products the first stays."""
    hits: dict[str, Hit] = {}
    for position, product in enumerate(products, start=1):
        if position > count:
            break
        if product is not None:
            hits.setdefault(product.identity, Hit(position, product))
    return list(hits.values())
