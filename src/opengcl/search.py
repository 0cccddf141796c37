"""Exact nearest neighbours by blocks: the search that evaluation reports and every index is checked against."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64

# Scores of a block: 8 MiB in float32. Its documents: enough for a fast product, few enough to be copied from a file.
BLOCK_ELEMENTS, BLOCK_DOCUMENTS = 1 << 21, 1 << 14
# Scores in bfloat16 that choose what to score in float32 pay with this many documents for each one wanted, queries in
# a block, and components. Of them ROOM times k candidates are kept.
HALVES_DOCUMENTS, HALVES_QUERIES, HALVES_WIDTH, ROOM = 256, 64, 128, 4
PAIRS = 1024  # scored one by one at a time: their vectors stay in the processor's cache


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

    On a processor that multiplies bfloat16, many documents are scored in it first, and those in float32 that may be
    among the best by the bound of its rounding (``_Halves``): the result is that of float32.

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
    halves = searched >= HALVES_DOCUMENTS * k and queries.shape[1] >= HALVES_WIDTH and _multiplies_bfloat16(device)
    for start in range(0, len(queries), block_queries):
        block = torch.from_numpy(np.array(queries[start : start + block_queries], dtype=np.float32)).to(device)
        found = _best_by_halves(block, documents, rows, k, width) if halves and len(block) >= HALVES_QUERIES else None
        halves = found is not None  # where scores of one block lie too near each other, so do the others'
        score, place = found or _best(block, documents, rows, k, width)
        scores[start : start + len(block)] = score.cpu().numpy()
        places[start : start + len(block)] = place.cpu().numpy()
    return scores, places if rows is None else rows[places]


def _best(
    block: torch.Tensor, documents: np.ndarray, rows: np.ndarray | None, k: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and places of the best ``k``, every score in float32."""
    best, product = _Best(len(block), k, k, width, block.device), block.new_empty(len(block) * width)
    for first, part in _parts(documents, rows, width):
        part = part.to(block.device)
        into = product[: len(block) * len(part)].view(len(block), len(part))
        best.add(torch.mm(block, part.T, out=into), first)
    return best.sorted()


def _best_by_halves(
    block: torch.Tensor, documents: np.ndarray, rows: np.ndarray | None, k: int, width: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The same by ``_Halves``; None where a vector's length forbids it or a query leaves too many to score again."""
    halves = _Halves(block, width)
    best = _Best(len(block), k, ROOM * k, width, block.device, halves.least)
    for first, part in _parts(documents, rows, width):
        scores = halves.scores(part)
        if scores is None or not best.add(scores, first):
            return None
    return best.sorted() if best.rescore(block, documents, rows) else None


def _parts(documents: np.ndarray, rows: np.ndarray | None, width: int) -> Iterator[tuple[int, torch.Tensor]]:
    """``width`` documents at a time, behind the number of the first."""
    for first in range(0, len(documents) if rows is None else len(rows), width):
        chosen = slice(first, first + width)
        yield first, _tensor(documents[chosen if rows is None else rows[chosen]])


class _Halves:
    """Scores from vectors rounded to bfloat16, whose product takes less than half the time, and how far off they are.

    With ``q`` and ``d`` rounded to ``q'`` and ``d'``, ``|q d - q' d'| <= |q - q'| |d| + |q'| |d - d'|`` (Cauchy and
    Schwarz). The differences' lengths are measured. To that come rounding in float32's sums, at most
    ``n 2^-24 |q| |d|`` each (Higham, Accuracy and Stability of Numerical Algorithms, 2002, equation 3.5), and that of
    the score to bfloat16, at most 2^-8 of it.
    """

    # 2^-8, and room for the rounding of what is worked out with it.
    _SCORE = 0.004
    # Between them no product of a component that counts is too small or too large for float32.
    _SHORTEST, _LONGEST = 1e-10, 1e10

    def __init__(self, queries: torch.Tensor, width: int) -> None:
        self._queries, self._rounded = queries, queries.bfloat16()
        self._length = queries.norm(dim=1, keepdim=True)
        self._off = (queries - self._rounded).norm(dim=1, keepdim=True)
        self._usable = bool(((self._length > self._SHORTEST) & (self._length < self._LONGEST)).all())
        self._bound = torch.zeros_like(self._length)
        dimensions = queries.shape[1]
        self._sums = 3 * dimensions * 2.0**-24
        self._difference = queries.new_empty(width, dimensions)
        self._scores = queries.new_empty(len(queries) * width)

    def scores(self, documents: torch.Tensor) -> torch.Tensor | None:
        """Rounded scores (queries, documents), valid until the next call; none where a vector's length forbids it."""
        rounded = documents.bfloat16()
        off = torch.sub(documents, rounded, out=self._difference[: len(documents)]).norm(dim=1).max()
        length = documents.norm(dim=1)
        if not self._usable or not self._SHORTEST < length.min() <= length.max() < self._LONGEST:
            return None
        # |q'| <= |q| + |q - q'|. The longest of all documents so far: what was passed over had a smaller bound.
        bound = self._off * length.max() + (self._length + self._off) * off + self._sums * self._length * length.max()
        torch.maximum(self._bound, bound, out=self._bound)
        into = self._scores[: len(self._queries) * len(documents)].view(len(self._queries), len(documents))
        return into.copy_(self._rounded @ rounded.T)

    def least(self, kth: torch.Tensor) -> torch.Tensor:
        """The least rounded score that can belong to the best, from the k-th highest rounded score."""
        exact = kth - self._SCORE * kth.abs() - 2 * self._bound
        return exact - self._SCORE * exact.abs()


class _Best:
    """The best ``k`` of each query so far, and behind them candidates that beat the k-th.

    Documents come in their order, so one that only equals the k-th ranks after it and is passed over. Nearly all are,
    by one comparison; when the candidates have become many they are thinned to ``k`` again. Of rounded scores
    ``least`` tells which can belong to the best: all of those are kept, and there is ``room`` for them or not.
    """

    def __init__(
        self,
        queries: int,
        k: int,
        room: int,
        width: int,
        device: torch.device,
        least: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._k, self._room, self._many, self._least = k, room, room + width // 2, least
        self._score = torch.full((queries, self._many + width), -torch.inf, device=device)
        self._place = torch.zeros(self._score.shape, dtype=torch.int64, device=device)
        self._count = torch.zeros(queries, dtype=torch.int64, device=device)
        self._kth = torch.full((queries, 1), -torch.inf, device=device)

    def add(self, scores: torch.Tensor, first: int) -> bool:
        """Scores (queries, documents) of neighbouring documents, ``first`` the first; False where room ran out."""
        columns = scores.shape[1]
        found = _flat_places(_above(scores, self._kth if self._least is None else self._least(self._kth)))
        self._append(found // columns, scores.view(-1)[found], found % columns + first)
        return int(self._count.max()) <= self._many or self._thin()

    def rescore(self, queries: torch.Tensor, documents: np.ndarray, rows: np.ndarray | None) -> bool:
        """Put the float32 score for the rounded one of all that are kept; False where room ran out."""
        if not self._thin():
            return False
        kept = (torch.arange(self._score.shape[1]) < self._count[:, None]).view(-1).nonzero()[:, 0]
        place = self._place.view(-1)[kept]
        exact = np.empty(len(kept), dtype=np.float32)
        order = place.argsort()  # a file is read from its beginning to its end
        for start in range(0, len(kept), PAIRS):
            pairs = order[start : start + PAIRS]
            found = place[pairs].numpy()
            against = queries[kept[pairs] // self._score.shape[1]].numpy()
            near = np.asarray(documents[found if rows is None else rows[found]], dtype=np.float32)
            exact[pairs] = np.einsum("pd,pd->p", against, near)
        self._score.view(-1)[kept] = torch.from_numpy(exact)
        self._least = None
        return True

    def sorted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and places of the best ``k``, best first and equal ones in the order of the documents."""
        if int(self._count.min()) < self._k:
            raise ValueError(f"query row {int(self._count.argmin())} has fewer than {self._k} finite scores")
        if int(self._count.max()) > self._k:
            self._thin()
        score, order = self._score[:, : self._k].sort(dim=1, descending=True, stable=True)
        return score, self._place.gather(1, order)

    def _append(self, query: torch.Tensor, score: torch.Tensor, place: torch.Tensor) -> None:
        """Put candidates, which come by query, behind those that their queries have."""
        new = torch.bincount(query, minlength=len(self._score))
        # Row q's j-th goes to column count[q] + j.
        shift = torch.arange(len(new), device=new.device) * self._score.shape[1] + self._count
        into = torch.arange(len(query), device=new.device)
        into += torch.repeat_interleave(shift - torch.cumsum(new, 0) + new, new)
        self._score.view(-1)[into], self._place.view(-1)[into] = score, place
        self._count += new

    def _thin(self) -> bool:
        columns = int(self._count.max())
        score, place = self._score[:, :columns], self._place[:, :columns]
        self._kth = _kth(score, self._k)
        chosen = score >= (self._kth if self._least is None else self._least(self._kth))
        if self._least is None and int(chosen.sum()) > self._k * len(score):
            above, level = score > self._kth, score == self._kth
            chosen = above | (level & (level.cumsum(1) <= self._k - above.sum(1, keepdim=True)))
        kept = _flat_places(chosen)
        query, column = kept // columns, kept % columns
        best, where = score[query, column], place[query, column]
        score.fill_(-torch.inf)
        self._count.zero_()
        self._append(query, best, where)
        return int(self._count.max()) <= self._room


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


def _multiplies_bfloat16(device: str | torch.device) -> bool:
    """Whether it is a processor with bfloat16 products, as far as this PyTorch tells."""
    tells = torch.device(device).type == "cpu" and hasattr(torch.cpu, "get_capabilities")
    return tells and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
