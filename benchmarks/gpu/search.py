"""Exact search: the best of a million documents, ours against ``torch.topk`` of the plain product.

And a search that scores in bfloat16 first: on the card, with the bound of `opengcl.search` on what rounding can change,
so that its lists are those of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from benchmarks.gpu import Setting
from benchmarks.gpu.measure import measure
from benchmarks.gpu.record import Record, Row
from torch import Tensor

import opengcl.search
from opengcl.search import exact_top_k

REPEATS = 3
ROOM = 4
"""Times k: candidates that the rounded scores leave."""
BLOCKS = (21, 24, 27)
"""Logarithms to base 2 of the scores of a block; the first is what `opengcl.search` takes."""
ROUNDING = 1e-5


def run(record: Record, setting: Setting) -> None:
    """Every side at both depths."""
    queries, documents, width = (2_000, 1_000_000, 512) if setting.full else (16, 4_000, 32)
    generator = torch.Generator(setting.device).manual_seed(0)
    corpus, asked = (
        torch.nn.functional.normalize(torch.randn(rows, width, device=setting.device, generator=generator))
        for rows in (documents, queries)
    )
    on_host = asked.cpu().numpy(), corpus.cpu().numpy()
    for depth in (100, 1_000) if setting.full else (5, 20):
        about: dict[str, Any] = {"queries": queries, "corpus": documents, "width": width, "depth": depth}
        about["flop"] = 2 * queries * documents * width
        truth = plain(asked, corpus, depth)

        def piece(name: str, work: Callable[[Row], None], about: dict[str, Any] = about) -> None:
            record.piece(f"{name}, top {about['depth']:,}", work, needs=4 if setting.full else 0.2, **about)

        piece("torch.topk of the product", _timed(lambda depth=depth: plain(asked, corpus, depth), truth, setting))  # type: ignore[misc]
        piece("bfloat16 first, on the card", _halves(asked, corpus, depth, truth, setting))
        for block in BLOCKS:
            piece(f"exact_top_k, blocks of 2^{block}", _ours(on_host, depth, block, truth, setting))


def _timed(work: Callable[[], tuple[Tensor, Tensor]], truth: tuple[Tensor, Tensor], setting: Setting) -> Any:
    def filled(row: Row) -> None:
        agree(row, work(), truth)
        measure(row, work, setting, repeats=REPEATS, warm_up=1)

    return filled


def _halves(asked: Tensor, corpus: Tensor, depth: int, truth: tuple[Tensor, Tensor], setting: Setting) -> Any:
    def filled(row: Row) -> None:
        scores, rows, again = halves_first(asked, corpus, depth)
        row["again_in_float32"] = again
        agree(row, (scores, rows), truth)
        measure(row, lambda: halves_first(asked, corpus, depth), setting, repeats=REPEATS, warm_up=1)

    return filled


def _ours(
    on_host: tuple[np.ndarray, np.ndarray], depth: int, block: int, truth: tuple[Tensor, Tensor], setting: Setting
) -> Any:
    def search() -> tuple[np.ndarray, np.ndarray]:
        sizes: dict[str, Any] = {"BLOCK_ELEMENTS": 1 << block, "BLOCK_DOCUMENTS": max(1 << 14, 1 << (block - 11))}
        with patch.multiple(opengcl.search, **sizes):
            return exact_top_k(*on_host, depth, device=setting.device)

    def filled(row: Row) -> None:
        scores, rows = search()
        agree(row, (torch.from_numpy(scores), torch.from_numpy(rows)), truth)
        measure(row, search, setting, repeats=REPEATS, warm_up=1)

    return filled


def agree(row: Row, found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> None:
    """The share of places with the same document, and by how much scores differ at most.

    Raises:
        ValueError: They differ by more than rounding.
    """
    scores, places = (part.cpu() for part in found)
    expected, rows = (part.cpu() for part in truth)
    row["scores_differ_by"] = float((scores - expected).abs().max())
    row["same_place"] = float((places == rows).float().mean())
    if not row["scores_differ_by"] <= ROUNDING:
        raise ValueError(f"scores differ by {row['scores_differ_by']:.3g}; allowed: {ROUNDING:g}")


def plain(queries: Tensor, documents: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The whole matrix of scores, and its best."""
    best = (queries @ documents.T).topk(depth, dim=1)
    return best.values, best.indices


def halves_first(queries: Tensor, documents: Tensor, depth: int) -> tuple[Tensor, Tensor, int]:
    """The best by float32 scores of those that rounded scores leave, and how many queries were scored again as a whole.

    Rounded to ``q'`` and ``d'``: ``|q d - q' d'| <= |q - q'| |d| + |q'| |d - d'|``, and sums in float32 add at most
    ``n 2^-24`` of the lengths' product to each; a score rounded to bfloat16 adds 2^-8 of itself. A document among the
    best has a rounded score of at least the k-th rounded one less twice that. Where more of them than there is room
    for are as high, the query is scored in float32 throughout.
    """
    rounded, corpus = queries.bfloat16(), documents.bfloat16()
    length, off = queries.norm(dim=1), (queries - rounded).norm(dim=1)
    longest, documents_off = documents.norm(dim=1).max(), (documents - corpus).norm(dim=1).max()
    sums = 3 * queries.shape[1] * 2.0**-24 * length * longest
    bound = off * longest + (length + off) * documents_off + sums
    kept = min(ROOM * depth + 1, len(documents))
    scores, rows = (rounded @ corpus.T).topk(kept, dim=1)
    scores = scores.float()
    exact = scores[:, depth - 1] * (1 - 0.004 * scores[:, depth - 1].sign()) - 2 * bound
    least = exact - 0.004 * exact.abs()
    short = scores[:, -1] >= least if kept < len(documents) else torch.zeros_like(least, dtype=torch.bool)
    found = torch.empty(len(queries), depth, device=queries.device)
    places = torch.empty(len(queries), depth, dtype=torch.int64, device=queries.device)
    step = max(1, (1 << 28) // (kept * queries.shape[1]))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        near = documents[rows[block]]
        again = torch.bmm(near, queries[block, :, None]).squeeze(2).topk(depth, dim=1)
        found[block], places[block] = again.values, rows[block].gather(1, again.indices)
    if bool(short.any()):
        found[short], places[short] = plain(queries[short], documents, depth)
    return found, places, int(short.sum())
