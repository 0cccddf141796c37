"""The loss as the formulas read, one pair at a time: slow, and nothing in common with the implementation."""

from __future__ import annotations

import torch
from torch import Tensor


def gcl_loss(
    queries: Tensor, documents: Tensor, weights: Tensor, scale: Tensor, judged: Tensor, target: str, direction: str
) -> Tensor:
    """``weights`` and ``judged`` are dense (m, n); a pair counts as judged where ``judged`` is true."""
    logits = scale * queries @ documents.T
    by_query = _one_direction(logits, weights, judged, target)
    by_document = _one_direction(logits.T, weights.T, judged.T, target)
    return {"both": (by_query + by_document) / 2, "query": by_query, "document": by_document}[direction]


def _one_direction(logits: Tensor, weights: Tensor, judged: Tensor, target: str) -> Tensor:
    rows, columns = logits.shape
    total, mass, weighted_rows = logits.new_zeros(()), 0.0, 0
    for i in range(rows):
        pairs = [i] if target in ("diagonal", "masked") else [j for j in range(columns) if judged[i, j]]
        row_weight = float(sum(weights[i, j] for j in pairs))
        row = sum(weights[i, j] * (_normaliser(logits, weights, judged, target, i, j) - logits[i, j]) for j in pairs)
        if target in ("full_row", "ranked"):
            if row_weight > 0:
                total, weighted_rows = total + row / row_weight, weighted_rows + 1
        else:
            total, mass = total + row, mass + row_weight
    return total / (weighted_rows if target in ("full_row", "ranked") else mass)


def _normaliser(logits: Tensor, weights: Tensor, judged: Tensor, target: str, i: int, j: int) -> Tensor:
    """What document j competes with for query i."""
    kept = range(logits.shape[1])
    if target == "masked":
        kept = [k for k in kept if not (judged[i, k] and i != k)]
    if target == "ranked":
        kept = [k for k in kept if not (judged[i, k] and weights[i, k] > weights[i, j])]
    return torch.log(sum(torch.exp(logits[i, k]) for k in kept))
