"""The four splits of a ranked data set: seen or novel queries times seen or novel documents."""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from opengcl.data.problems import DataSetError

SPLITS = ("in_domain", "novel_query", "novel_document", "zero_shot")
"""Seen x seen, novel queries x seen documents, seen queries x novel documents, novel x novel."""

Part = Literal["dev", "test", "all"]
PARTS: tuple[Part, ...] = ("dev", "test", "all")

_SIDES = {
    "in_domain": (True, True),
    "novel_query": (False, True),
    "novel_document": (True, False),
    "zero_shot": (False, False),
}
_BLOCK = 1 << 20


def uniform(ids: Iterable[str], salt: str) -> Float[np.ndarray, "ids"]:
    """One number in [0, 1) for each id: u = floor(blake2b-64(salt + ":" + id) / 2^11) / 2^53.

    It depends on the id and the salt alone, so that adding, removing or reordering rows moves no other row
    to another split.

    Args:
        ids: The ids.
        salt: What the numbers are for, with the seed in it; another salt, independent numbers.

    Returns:
        float64, (ids,).
    """
    start = hashlib.blake2b(f"{salt}:".encode(), digest_size=8)
    digests = bytearray()
    for identifier in ids:
        digest = start.copy()
        digest.update(identifier.encode())
        digests += digest.digest()
    # The top 53 bits: all that float64 holds, so that no value rounds up to 1.
    return (np.frombuffer(digests, dtype=">u8") >> np.uint64(11)).astype(np.float64) / 2.0**53


def choose(ids: Iterable[str], *, seed: int, side: str, share: float) -> Bool[np.ndarray, "ids"]:
    """Which ids fall into a share of about `share`, by `uniform` with the salt ``seed:side``.

    Args:
        ids: The ids.
        seed: The data set's split seed.
        side: "query" or "document" for seen, "dev" for the dev part of the queries.
        share: In [0, 1].

    Returns:
        bool, (ids,).
    """
    return uniform(ids, f"{seed}:{side}") < share


class Splits:
    """Which queries and documents training may see, and what each split holds.

    A split is searched over its own half of the documents only: ``in_domain`` and ``novel_query`` over the
    seen ones, ``novel_document`` and ``zero_shot`` over the novel ones.

    Attributes:
        query_seen: (queries,) bool.
        document_seen: (documents,) bool.
        query_dev: (queries,) bool; the other queries are the test part.
    """

    def __init__(
        self,
        query_seen: Bool[np.ndarray, "queries"],
        document_seen: Bool[np.ndarray, "documents"],
        query_dev: Bool[np.ndarray, "queries"],
        pair_query: Int[np.ndarray, "pairs"],
        pair_document: Int[np.ndarray, "pairs"],
        pair_score: Float[np.ndarray, "pairs"] | None = None,
    ) -> None:
        """Keeps the arrays; none is copied.

        Args:
            query_seen: Which queries are seen.
            document_seen: Which documents are seen.
            query_dev: Which queries are of the dev part.
            pair_query: Query row of each judged pair.
            pair_document: Document row of each judged pair.
            pair_score: Score of each judged pair; None where every pair is relevant.

        Raises:
            DataSetError: If lengths do not fit each other.
        """
        scores = len(pair_query) if pair_score is None else len(pair_score)
        if len(query_seen) != len(query_dev) or not len(pair_query) == len(pair_document) == scores:
            raise DataSetError(
                f"splits: {len(query_seen)} queries with {len(query_dev)} dev marks, {len(pair_query)} pair queries "
                f"with {len(pair_document)} pair documents and {scores} scores; allowed: equal lengths"
            )
        self.query_seen = query_seen
        self.document_seen = document_seen
        self.query_dev = query_dev
        self._pair_query = pair_query
        self._pair_document = pair_document
        self._pair_score = pair_score

    def query_rows(self, split: str, part: Part = "all") -> Int[np.ndarray, "rows"]:
        """Queries of one part of a split that have a judged document in the split's half, ascending.

        Args:
            split: One of `SPLITS`.
            part: "dev", "test" or "all".

        Returns:
            int64 rows of the queries.

        Raises:
            DataSetError: If the split or part is unknown.
        """
        seen_query, seen_document = _sides(split)
        if part not in PARTS:
            raise DataSetError(f"unknown part {part!r}; allowed: {', '.join(PARTS)}")
        chosen = (self.query_seen == seen_query) & (self._judged[seen_document] > 0)
        if part != "all":
            chosen &= self.query_dev == (part == "dev")
        return np.flatnonzero(chosen).astype(np.int64)

    def document_rows(self, split: str) -> Int[np.ndarray, "rows"]:
        """The half of the documents that a split is searched over, ascending.

        Args:
            split: One of `SPLITS`.

        Returns:
            int64 rows of the documents.

        Raises:
            DataSetError: If the split is unknown.
        """
        return np.flatnonzero(self.document_seen == _sides(split)[1]).astype(np.int64)

    def pairs(self, split: str) -> Int[np.ndarray, "rows"]:
        """Positions of a split's judged pairs in the qrels, ascending.

        Args:
            split: One of `SPLITS`.

        Returns:
            int64 positions.

        Raises:
            DataSetError: If the split is unknown.
        """
        seen_query, seen_document = _sides(split)
        found = [np.empty(0, np.int64)]
        for start, query, document in self._blocks():
            inside = (self.query_seen[query] == seen_query) & (self.document_seen[document] == seen_document)
            found.append(np.flatnonzero(inside).astype(np.int64) + start)
        return np.concatenate(found)

    def training_pairs(self) -> Int[np.ndarray, "rows"]:
        """Positions of the pairs to train on: of `pairs("in_domain")` those with a score above 0.

        The others are judged not relevant: what training knows about a batch, but nothing to draw.
        """
        pairs = self.pairs("in_domain")
        return pairs if self._pair_score is None else pairs[self._pair_score[pairs] > 0]

    def pair_counts(self) -> dict[str, int]:
        """Judged pairs in each split; they add up to all pairs."""
        counts = {}
        for split in SPLITS:
            seen_query, seen_document = _sides(split)
            counts[split] = int(self._judged[seen_document][self.query_seen == seen_query].sum())
        return counts

    @functools.cached_property
    def _judged(self) -> dict[bool, Int[np.ndarray, "queries"]]:
        """Judged documents of each query among the seen (True) and the novel (False) documents."""
        queries = len(self.query_seen)
        counts = {True: np.zeros(queries, np.int64), False: np.zeros(queries, np.int64)}
        for _, query, document in self._blocks():
            seen = self.document_seen[document]
            for half, count in counts.items():
                count += np.bincount(query[seen == half], minlength=queries)
        return counts

    def _blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The pairs a million at a time: (position of the first, query rows, document rows)."""
        for start in range(0, len(self._pair_query), _BLOCK):
            end = start + _BLOCK
            yield start, np.asarray(self._pair_query[start:end]), np.asarray(self._pair_document[start:end])


def _sides(split: str) -> tuple[bool, bool]:
    """(seen queries?, seen documents?) of a split."""
    if split not in _SIDES:
        raise DataSetError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    return _SIDES[split]
