"""Exact nearest neighbours by blocks: the search that evaluation reports and every index is checked against."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64

# A block of scores holds at most this many numbers: 32 MiB in float32, and its temporaries some five times that.
BLOCK_ELEMENTS = 1 << 23


def exact_top_k(
    queries: Float[np.ndarray, "queries d"],
    documents: Float[np.ndarray, "documents d"],
    k: int,
    *,
    rows: Int64[np.ndarray, " searched"] | None = None,
    block_queries: int = 512,
    device: str | torch.device = "cpu",
) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """The ``k`` documents with the highest inner product with each query, best first.

    Documents with equal scores come in the order of ``rows``, or of their own rows where all are searched.
    ``documents`` may be memory-mapped: it is read a block at a time. With fewer than ``k``
    documents all of them are returned, so the result has ``min(k, n)`` columns.

    Args:
        queries: float32 rows; unit rows make the score a cosine.
        documents: float32 rows of the same width.
        k: How many, at least 1.
        rows: Search these rows of ``documents`` only.
        block_queries: Queries scored at a time.
        device: Where the products are made.

    Returns:
        Scores (float32) and rows of ``documents`` (int64).

    Raises:
        ValueError: Widths differ, ``k`` is below 1, or there is no document.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(f"queries {queries.shape} and documents {documents.shape} must be 2-d and equally wide")
    searched = len(documents) if rows is None else len(rows)
    if k < 1 or searched == 0:
        raise ValueError(f"k is {k} and there are {searched} documents; both must be at least 1")
    k = min(k, searched)
    scores = np.empty((len(queries), k), dtype=np.float32)
    places = np.empty((len(queries), k), dtype=np.int64)
    block_documents = max(k, BLOCK_ELEMENTS // max(1, block_queries))
    for start in range(0, len(queries), block_queries):
        block = torch.from_numpy(np.ascontiguousarray(queries[start : start + block_queries], dtype=np.float32))
        best, found = _top_k_of_block(block.to(device), documents, rows, k, block_documents)
        scores[start : start + len(block)] = best.cpu().numpy()
        places[start : start + len(block)] = found.cpu().numpy()
    return scores, places if rows is None else rows[places]


def _top_k_of_block(
    block: torch.Tensor,
    documents: Float[np.ndarray, "documents d"],
    rows: Int64[np.ndarray, " searched"] | None,
    k: int,
    block_documents: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    best = block.new_empty(len(block), 0)
    found = torch.empty(len(block), 0, dtype=torch.int64, device=block.device)
    for start in range(0, len(documents) if rows is None else len(rows), block_documents):
        chosen = slice(start, start + block_documents)
        part = torch.from_numpy(np.array(documents[chosen if rows is None else rows[chosen]], dtype=np.float32))
        scores = block @ part.to(block.device).T
        score, row = _top_k(scores, min(k, scores.shape[1]))
        best, found = torch.cat([best, score], 1), torch.cat([found, row + start], 1)
        # Kept rows precede new ones and a stable sort keeps that order, so ties stay in row order.
        best, order = best.sort(dim=1, descending=True, stable=True)
        best, found = best[:, :k], found.gather(1, order)[:, :k]
    return best, found


def _top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top k of each row, ties in column order: torch.topk alone leaves the order and choice among ties open."""
    kept = scores.topk(k, dim=1).values[:, -1:]
    above, level = scores > kept, scores == kept
    room = k - above.sum(1, keepdim=True)
    chosen = above | (level & (level.cumsum(1) <= room))
    columns = chosen.nonzero()[:, 1].view(len(scores), k)
    score, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return score, columns.gather(1, order)
