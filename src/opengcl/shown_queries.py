"""Ranked lists of one query to look at: judged scores, the ideal order, and which queries to show."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from opengcl.data.dataset import RankedDataset


@dataclass(frozen=True)
class Pick:
    """A query chosen for display: its split, its id and why."""

    key: tuple[str, str]
    reason: str


def judged_scores(dataset: RankedDataset, query_row: int) -> dict[int, float]:
    """Document row -> judged score of one query, in the order of the qrels."""
    start, stop = (int(dataset.qrels.offsets[query_row + i]) for i in (0, 1))
    documents, scores = dataset.qrels.document[start:stop], dataset.qrels.score[start:stop]
    return {int(document): float(score) for document, score in zip(documents, scores, strict=True)}


def ideal_rows(judged: Mapping[int, float], allowed: Int[np.ndarray, " rows"], *, k: int) -> list[int]:
    """The k best relevant documents (score above 0) among the allowed rows, ties in the order of `judged`."""
    inside = set(np.intersect1d(np.fromiter(judged, np.int64, len(judged)), allowed).tolist())
    return sorted((row for row in judged if row in inside and judged[row] > 0), key=lambda row: -judged[row])[:k]


def pick_queries(
    gains: Mapping[tuple[str, str], float], *, what: str, best: int = 3, middle: int = 2, worst: int = 3
) -> list[Pick]:
    """Chooses queries from the top, the middle and the bottom of an order.

    Args:
        gains: (split, query id) -> the value to order by; ties in the order of the keys.
        what: The value in words, for the reasons.
        best: How many from the top.
        middle: How many around the median.
        worst: How many from the bottom.

    Returns:
        Best first; a query id is shown once, and there are fewer where there are fewer queries.
    """
    order = sorted(gains, key=lambda key: (-gains[key], key))
    half = len(order) // 2
    around = sorted(range(len(order)), key=lambda i: (abs(i - half), i))
    chosen: dict[tuple[str, str], str] = {}
    shown: set[str] = set()
    for name, count, rows in (
        ("largest", best, range(len(order))),
        ("smallest", worst, reversed(range(len(order)))),
        ("median", middle, around),
    ):
        fresh = (order[i] for i in rows)
        for _ in range(count):
            key = next((key for key in fresh if key[1] not in shown), None)
            if key is not None:
                chosen[key] = f"{name} {what}"
                shown.add(key[1])
    return [Pick(key, chosen[key]) for key in order if key in chosen]
