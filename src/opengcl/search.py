"""Exact nearest neighbours by blocks: the search that evaluation reports and every index is checked against."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64

# Scores of a block: 8 MiB in float32. Its documents: enough for a fast product, few enough to be copied from a file.
BLOCK_ELEMENTS, BLOCK_DOCUMENTS = 1 << 21, 1 << 14


def exact_top_k(
    queries: Float[np.ndarray, "queries d"],
    documents: Float[np.ndarray, "documents d"],
    k: int,
    *,
    rows: Int64[np.ndarray, " searched"] | None = None,
    block_queries: int = 1024,
    device: str | torch.device = "cpu",
) -> tuple[Float[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """The ``k`` documents with the highest inner product with each query, best first.

    Documents with equal scores come in the order of ``rows``, or of their own rows where all are searched.
    ``documents`` may be memory-mapped: it is read a block at a time. With fewer than ``k``
    documents all of them are returned, so the result has ``min(k, n)`` columns. Memory does not grow with them.

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
        ValueError: Widths differ, ``k`` is below 1, or there is no document, or a query has fewer finite
            scores than that.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(f"queries {queries.shape} and documents {documents.shape} must be 2-d and equally wide")
    searched = len(documents) if rows is None else len(rows)
    if k < 1 or searched == 0:
        raise ValueError(f"k is {k} and there are {searched} documents; both must be at least 1")
    k = min(k, searched)
    scores = np.empty((len(queries), k), dtype=np.float32)
    places = np.empty((len(queries), k), dtype=np.int64)
    width = min(BLOCK_DOCUMENTS, searched, max(1, BLOCK_ELEMENTS // max(1, min(block_queries, len(queries)))))
    for start in range(0, len(queries), block_queries):
        block = torch.from_numpy(np.array(queries[start : start + block_queries], dtype=np.float32)).to(device)
        best, product = _Best(len(block), k, width, block.device), block.new_empty(len(block) * width)
        for first in range(0, searched, width):
            chosen = slice(first, first + width)
            part = _tensor(documents[chosen if rows is None else rows[chosen]]).to(device)
            into = product[: len(block) * len(part)].view(len(block), len(part))
            best.add(torch.mm(block, part.T, out=into), first)
        score, place = best.sorted()
        scores[start : start + len(block)] = score.cpu().numpy()
        places[start : start + len(block)] = place.cpu().numpy()
    return scores, places if rows is None else rows[places]


class _Best:
    """The best ``k`` of each query so far, and behind them candidates that beat the k-th.

    Documents come in their order, so one that only equals the k-th ranks after it and is passed over. Nearly all are,
    by one comparison; when the candidates have become many they are thinned to ``k`` again.
    """

    def __init__(self, queries: int, k: int, width: int, device: torch.device) -> None:
        self._k, self._many = k, k + width // 2
        self._score = torch.full((queries, self._many + width), -torch.inf, device=device)
        self._place = torch.zeros(self._score.shape, dtype=torch.int64, device=device)
        self._count = torch.zeros(queries, dtype=torch.int64, device=device)
        self._least = torch.full((queries, 1), -torch.inf, device=device)

    def add(self, scores: torch.Tensor, first: int) -> None:
        """Scores (queries, documents) of neighbouring documents, of which ``first`` is the first."""
        columns = scores.shape[1]
        found = _flat_places(_above(scores, self._least))
        new = torch.bincount(found // columns, minlength=len(scores))
        # Row q's candidates go behind those it has: its j-th to column count[q] + j.
        shift = torch.arange(len(scores), device=scores.device) * self._score.shape[1] + self._count
        into = torch.arange(len(found), device=scores.device)
        into += torch.repeat_interleave(shift - torch.cumsum(new, 0) + new, new)
        self._score.view(-1)[into] = scores.view(-1)[found]
        self._place.view(-1)[into] = found % columns + first
        self._count += new
        if int(self._count.max()) > self._many:
            self._thin()

    def sorted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and places of the best ``k``, best first and equal ones in the order of the documents."""
        if int(self._count.min()) < self._k:
            raise ValueError(f"query row {int(self._count.argmin())} has fewer than {self._k} finite scores")
        if int(self._count.max()) > self._k:
            self._thin()
        score, order = self._score[:, : self._k].sort(dim=1, descending=True, stable=True)
        return score, self._place.gather(1, order)

    def _thin(self) -> None:
        k, score = self._k, self._score[:, : int(self._count.max())]
        least = _kth(score, k)
        chosen = score >= least
        if int(chosen.sum()) > k * len(score):
            above, level = score > least, score == least
            chosen = above | (level & (level.cumsum(1) <= k - above.sum(1, keepdim=True)))
        kept = _flat_places(chosen).view(len(score), k) % score.shape[1]
        best, place = score.gather(1, kept), self._place.gather(1, kept)
        score.fill_(-torch.inf)
        self._score[:, :k], self._place[:, :k], self._least = best, place, least
        self._count.clamp_(max=k)


# On a CPU NumPy compares and selects twice as fast as PyTorch, and finds what is rarely true eight times as fast.
def _above(scores: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    if scores.device.type == "cpu":
        return torch.from_numpy(np.greater(scores.numpy(), least.numpy()))
    return scores > least


def _kth(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th highest score of each row, (rows, 1)."""
    if scores.device.type == "cpu":
        place = scores.shape[1] - k
        return torch.from_numpy(np.partition(scores.numpy(), place, axis=1)[:, place : place + 1].copy())
    return scores.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)


def _flat_places(chosen: torch.Tensor) -> torch.Tensor:
    """Flat indices of what is true, ascending."""
    if chosen.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(chosen.numpy()))
    return chosen.view(-1).nonzero()[:, 0]


def _tensor(rows: Float[np.ndarray, "rows d"]) -> torch.Tensor:
    """The rows as float32; copied where they cannot be written to, which PyTorch warns of."""
    right = rows.dtype == np.float32 and rows.flags.writeable and rows.flags.c_contiguous
    return torch.from_numpy(rows if right else np.array(rows, dtype=np.float32))
