"""The exact best thousand of a million documents for two thousand queries, against faiss' ``IndexFlatIP``.

Vectors are random, of unit length, and in memory for both; both use as many threads. The lists are compared: scores
must be equal up to rounding, and so must the documents but where two scores are as near as that. Then our search with
bfloat16 first against all in float32, about the limits below which the latter is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np
import torch
from benchmarks.speed import Row, extra_bytes, in_turn

import opengcl.search
from opengcl.search import exact_top_k

QUERIES, DOCUMENTS, WIDTH, DEPTH = 2_000, 1_000_000, 512, 1_000
ROUNDING = 1e-5
# Documents, components, k, queries.
LIMITS = (
    (1_000_000, 512, 1_000, 1_024),
    (384_000, 384, 100, 256),
    (256_000, 384, 1_000, 1_024),
    (38_400, 384, 100, 1_024),
    (38_400, 128, 100, 1_024),
    (128_000, 384, 1_000, 1_024),
    (384_000, 384, 10, 64),
)


def measure(repeats: int) -> Iterator[Row]:
    """Yield the comparison with faiss, with each side's memory beside the vectors, and those with ourselves."""
    generator = np.random.default_rng(0)
    documents, queries = (unit_rows(generator, rows, WIDTH) for rows in (DOCUMENTS, QUERIES))
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
    del documents, queries, index
    if opengcl.search._multiplies_bfloat16("cpu"):
        for size in LIMITS:
            yield with_and_without_bfloat16(generator, *size, repeats)


def with_and_without_bfloat16(
    generator: np.random.Generator, rows: int, width: int, depth: int, asked: int, repeats: int
) -> Row:
    """bfloat16 first whatever the size against float32 alone."""
    documents, queries = unit_rows(generator, rows, width), unit_rows(generator, asked, width)

    def search(limit: int) -> None:
        limits: dict[str, Any] = dict.fromkeys(("HALVES_DOCUMENTS", "HALVES_QUERIES", "HALVES_WIDTH"), limit)
        with patch.multiple(opengcl.search, **limits):
            exact_top_k(queries, documents, depth)

    ours, peer = in_turn(lambda: search(1), lambda: search(1 << 40), repeats)
    about = {"queries": asked, "documents": rows, "width": width, "depth": depth}
    return Row(f"{asked:,} queries, top {depth:,} of {rows:,} x {width}", ours, peer, "float32 alone", None, about)


def unit_rows(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Random unit vectors."""
    vectors = generator.standard_normal((rows, width), dtype=np.float32)
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
