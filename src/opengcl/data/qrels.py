"""Judged pairs as three arrays and the offsets of each query: compressed sparse rows (CSR)."""

from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float32, Int, Int32, Int64

from opengcl.data.problems import DataSetError

_ARRAYS = ("query", "document", "score", "offsets")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Qrels:
    """All judged pairs, sorted by query row, a query's pairs in the file's order.

    The pairs of query row q are at the positions ``offsets[q]`` to ``offsets[q + 1]``.

    Attributes:
        query: (pairs,) int32 row of the query.
        document: (pairs,) int32 row of the document.
        score: (pairs,) float32 in the data set's own units.
        offsets: (queries + 1,) int64.
    """

    query: Int32[np.ndarray, "pairs"]
    document: Int32[np.ndarray, "pairs"]
    score: Float32[np.ndarray, "pairs"]
    offsets: Int64[np.ndarray, "queries_plus_1"]

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def sort(
        cls,
        query: Int[np.ndarray, "pairs"],
        document: Int[np.ndarray, "pairs"],
        score: Float32[np.ndarray, "pairs"],
        queries: int,
    ) -> "Qrels":
        """Brings pairs in any order into CSR order.

        Args:
            query: Query row of each pair.
            document: Document row of each pair.
            score: Score of each pair.
            queries: Number of queries, judged or not.
        """
        order = np.argsort(query, kind="stable")
        offsets = np.zeros(queries + 1, np.int64)
        np.cumsum(np.bincount(query, minlength=queries), out=offsets[1:])
        return cls(
            query[order].astype(np.int32, copy=False),
            document[order].astype(np.int32, copy=False),
            score[order].astype(np.float32, copy=False),
            offsets,
        )

    def not_relevant(self) -> tuple[int, int]:
        """How many pairs are judged not relevant, with a score of 0 or below, and how many of them have one below 0."""
        found = np.zeros(2, np.int64)
        for start in range(0, len(self), _BLOCK):
            block = np.asarray(self.score[start : start + _BLOCK])
            found += [np.count_nonzero(block <= 0), np.count_nonzero(block < 0)]
        return int(found[0]), int(found[1])

    def save(self, folder: Path) -> None:
        """Writes the four arrays as ``.npy`` files."""
        folder.mkdir(parents=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "Qrels":
        """Memory-maps what `save` wrote."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))

    def judged(self, query: SupportsIndex) -> tuple[Int32[np.ndarray, "judged"], Float32[np.ndarray, "judged"]]:
        """Document rows and scores of one query row.

        Args:
            query: Row of the query.

        Returns:
            (judged,) int32 rows and (judged,) float32 scores, in the file's order.

        Raises:
            DataSetError: If there is no such query row.
        """
        row = query.__index__()
        if not 0 <= row < len(self.offsets) - 1:
            raise DataSetError(f"query row {row}; allowed: 0 to {len(self.offsets) - 2}")
        start, end = self.offsets[row], self.offsets[row + 1]
        return np.asarray(self.document[start:end]), np.asarray(self.score[start:end])
