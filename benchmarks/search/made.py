"""Vectors made for measuring: clustered like those of a catalogue, of length 1, the same on every machine.

A vector is a centre plus noise, brought back to length 1. The variance of centres and of noise falls as 1/i over 512
directions that a random rotation mixes, which leaves some 35 directions' worth of freedom (the participation ratio
of their covariance): embeddings of real texts have about that, and nobody's vectors are free in all 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int64

from opengcl.search import exact_top_k

DIMENSION = 512
CENTRES = 1000
SPREAD = 0.8  # length of the noise over the centre's
QUERIES = 1000
SEED = 17
_CHUNK = 10_000


@dataclass(frozen=True)
class Clusters:
    """Where vectors are drawn from.

    Attributes:
        centres: Before the rotation, of length 1.
        deviations: Of the noise along each direction before the rotation, of length `SPREAD` together.
        rotation: Orthogonal.
        seed: Of everything.
    """

    centres: Float32[np.ndarray, "centres d"]
    deviations: Float32[np.ndarray, " d"]
    rotation: Float32[np.ndarray, "d d"]
    seed: int

    @classmethod
    def of(cls, dimension: int = DIMENSION, centres: int = CENTRES, seed: int = SEED) -> Clusters:
        """Clusters of a seed."""
        rng = np.random.default_rng(seed)
        falling = (1 / np.sqrt(np.arange(1, dimension + 1))).astype(np.float32)
        falling /= np.linalg.norm(falling)
        middles = _unit(rng.standard_normal((centres, dimension), dtype=np.float32) * falling)
        rotation = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0].astype(np.float32)
        return cls(middles, SPREAD * falling, rotation, seed)

    def chunk(self, number: int, rows: int) -> Float32[np.ndarray, "rows d"]:
        """Vectors of a chunk by its number; negative ones are for queries."""
        rng = np.random.default_rng([self.seed, abs(number), number < 0])
        noise = rng.standard_normal((rows, len(self.deviations)), dtype=np.float32) * self.deviations
        return _unit((self.centres[rng.integers(len(self.centres), size=rows)] + noise) @ self.rotation)


def queries(clusters: Clusters, rows: int = QUERIES) -> Float32[np.ndarray, "rows d"]:
    """Vectors of the same clusters that are no document's."""
    return clusters.chunk(-1, rows)


def write_vectors(file: Path, clusters: Clusters, rows: int) -> Float32[np.ndarray, "rows d"]:
    """The first rows of all, memory-mapped; a file that is there is taken. Fewer rows are always a beginning of more.

    Raises:
        ValueError: The file has another number of rows.
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        made = np.lib.format.open_memmap(partial, "w+", np.float32, (rows, len(clusters.deviations)))
        for start in range(0, rows, _CHUNK):
            made[start : start + _CHUNK] = clusters.chunk(start // _CHUNK, _CHUNK)[: rows - start]
        made.flush()
        partial.rename(file)
    found = np.load(file, mmap_mode="r")
    if len(found) != rows:
        raise ValueError(f"{file}: found {len(found):,} vectors; asked for {rows:,}; remove it, or ask for as many")
    return found


def best_rows(
    asked: Float32[np.ndarray, "queries d"], vectors: Float32[np.ndarray, "documents d"], k: int
) -> Int64[np.ndarray, "queries k"]:
    """The rows of the nearest documents, every vector compared."""
    return exact_top_k(asked, vectors, k)[1]


class MadeDocuments:
    """Documents as `opengcl.index.build.fill` reads them: ids, a title and a price."""

    file = "made"
    fields = ("title", "price")

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def ids(self, rows: Int[np.ndarray, " rows"]) -> list[str]:
        """``d0000017`` of row 17."""
        return [f"d{row:07d}" for row in np.asarray(rows).tolist()]

    def values(self, name: str, rows: Int[np.ndarray, " rows"]) -> list[Any]:
        """A title of forty letters or a price, from the row's number."""
        numbers: Sequence[int] = np.asarray(rows).tolist()
        if name == "title":
            return [f"product {row} of brand {row % 977}".ljust(40, ".") for row in numbers]
        return [float(row * 7919 % 20_000) / 100 for row in numbers]


def row_of(doc_id: str) -> int:
    """The row of an id of `MadeDocuments`."""
    return int(doc_id[1:])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
