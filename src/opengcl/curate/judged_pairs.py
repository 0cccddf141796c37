"""What was found for which query, and the scores of each pair from every source."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from opengcl.curate.products import Product
from opengcl.curate.queries import Query
from opengcl.curate.scores import Values
from opengcl.curate.search_source import SearchResult


@dataclass
class JudgedPairs:
    """Queries, products and their pairs; pairs stand in the order of queries and places.

    Attributes:
        queries: Those with a result.
        documents: Id -> product, in the order in which they were first found.
        query: Row of each pair's query.
        document: Id of each pair's product.
        position: Place of each pair, from 1.
        scores: Source -> score of each pair, NaN where it gives none.
        labels: The judge's label of each pair, None where it gives none.
    """

    queries: list[Query] = field(default_factory=list)
    documents: dict[str, Product] = field(default_factory=dict)
    query: list[int] = field(default_factory=list)
    document: list[str] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    scores: dict[str, Values] = field(default_factory=dict)
    labels: list[str | None] = field(default_factory=list)

    def add(self, query: Query, result: SearchResult) -> None:
        """Takes in a query and what was found for it; one that nothing was found for is left out."""
        if not result.hits:
            return
        for hit in result.hits:
            name = hit.product.identity
            known = self.documents.get(name)
            self.documents[name] = hit.product if known is None else known.filled(hit.product)
            self.query.append(len(self.queries))
            self.document.append(name)
            self.position.append(hit.position)
            self.labels.append(None)
        self.queries.append(query)

    def rows_of(self) -> list[range]:
        """For each query the rows of its pairs."""
        bounds = np.searchsorted(np.array(self.query, np.int64), np.arange(len(self.queries) + 1))
        return [range(int(start), int(end)) for start, end in itertools.pairwise(bounds)]

    def unscored(self) -> Values:
        """A place for a source's scores: (pairs,), all NaN."""
        return np.full(len(self.query), np.nan)
