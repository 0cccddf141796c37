"""The exact best thousand of a million documents for two thousand queries, against faiss' ``IndexFlatIP``.

Vectors are random, of unit length, and in memory for both; both use as many threads. The lists are compared: scores
must be equal up to rounding, and so must the documents but where two scores are as near as that.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import torch
from benchmarks.speed import Row, extra_bytes, in_turn

from opengcl.search import exact_top_k

QUERIES, DOCUMENTS, WIDTH, DEPTH = 2_000, 1_000_000, 512, 1_000
ROUNDING = 1e-5


def measure(repeats: int) -> Iterator[Row]:
    """Yield the one comparison, with the memory that each takes beside the vectors and the lists."""
    generator = np.random.default_rng(0)
    documents, queries = (unit_rows(generator, rows) for rows in (DOCUMENTS, QUERIES))
    index = faiss.IndexFlatIP(WIDTH)
    index.add(documents)
    faiss.omp_set_num_threads(torch.get_num_threads())
    ours, peer = in_turn(lambda: exact_top_k(queries, documents, DEPTH), lambda: index.search(queries, DEPTH), repeats)
    (found, extra), (expected, peer_extra) = (
        extra_bytes(search)
        for search in (lambda: exact_top_k(queries, documents, DEPTH), lambda: index.search(queries, DEPTH))
    )
    about = {
        "queries": QUERIES,
        "documents": DOCUMENTS,
        "width": WIDTH,
        "depth": DEPTH,
        "extra_bytes": extra,
        "peer_extra_bytes": peer_extra,
        "same_place": same_lists(found, expected),
    }
    yield Row(f"exact top {DEPTH:,} of {DOCUMENTS:,}", ours, peer, "faiss IndexFlatIP", 1.0, about)


def unit_rows(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Random unit vectors."""
    vectors = generator.standard_normal((rows, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def same_lists(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> float:
    """The share of places with the same document.

    Raises:
        ValueError: Scores differ by more than rounding.
    """
    difference = float(np.abs(found[0] - expected[0]).max())
    if not difference <= ROUNDING:
        raise ValueError(f"the two searches' scores differ by {difference:.2g}; allowed: {ROUNDING:g}")
    return float((found[1] == expected[1]).mean())
