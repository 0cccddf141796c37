"""Vectors of length 1: made shorter, and kept in a byte a component."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int8

from opengcl.index.protocol import VectorIndexError, VectorType

_LENGTH_TOLERANCE = 1e-3


def shorten(vectors: Float[np.ndarray, "rows width"], dimension: int) -> Float32[np.ndarray, "rows dimension"]:
    """The first components of each vector, brought back to length 1.

    What models trained with Matryoshka losses allow (Kusupati et al. 2022, arXiv 2205.13147, section 3); with others it
    costs more of the ranking, which `opengcl index check` cannot see and an evaluation can.

    Args:
        vectors: Of length 1.
        dimension: How many components to keep, from 1 to their width; at their width they stay as they are.

    Raises:
        VectorIndexError: More components than there are, or a vector of which nothing is left.
    """
    width = vectors.shape[1]
    if not 1 <= dimension <= width:
        raise VectorIndexError(f"dimension: found {dimension}; allowed: 1 to {width}, the width of the model's vectors")
    kept = np.asarray(vectors[:, :dimension], dtype=np.float32)
    if dimension == width:
        return kept
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    if not (lengths > 0).all():
        row = int(np.flatnonzero(~(lengths[:, 0] > 0))[0])
        raise VectorIndexError(f"row {row}: the first {dimension} components are all 0, so there is no direction left")
    return kept / lengths


def to_int8(vectors: Float[np.ndarray, "rows dimension"]) -> Int8[np.ndarray, "rows dimension"]:
    """Each vector times 127 over its largest component in size, rounded to whole numbers.

    The scale is each vector's own and isn't kept: a cosine doesn't depend on it.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    return np.rint(vectors * (127 / largest)).astype(np.int8)


def from_kept(vectors: np.ndarray, dtype: VectorType) -> Float32[np.ndarray, "rows dimension"]:
    """What a store kept of vectors, at length 1."""
    plain = np.asarray(vectors, dtype=np.float32)
    return plain / np.linalg.norm(plain, axis=1, keepdims=True) if dtype == "int8" else plain


def check_unit(vectors: np.ndarray, dimension: int, what: str) -> Float32[np.ndarray, "rows dimension"]:
    """The vectors as float32, once it is sure that they are of this width and of length 1.

    Raises:
        VectorIndexError: Naming the row.
    """
    found = np.asarray(vectors)
    if found.ndim != 2 or found.shape[1] != dimension or found.dtype.kind != "f":
        raise VectorIndexError(
            f"{what}: found {found.dtype} of shape {found.shape}; allowed: floats, (rows, {dimension})"
        )
    found = np.ascontiguousarray(found, dtype=np.float32)
    lengths = np.linalg.norm(found, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE))  # true of NaN as well
    if len(wrong):
        raise VectorIndexError(f"{what}, row {wrong[0]}: found length {lengths[wrong[0]]:g}; allowed: 1")
    return found
