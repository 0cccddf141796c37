"""The sides of the loss's benchmark do the same work."""

from __future__ import annotations

import torch
from benchmarks.speed.loss import JUDGED_A_QUERY, Sides
from torch import Tensor


def along_the_sphere(gradient: Tensor, rows: Tensor) -> Tensor:
    """Without the part along the vector: sentence-transformers' cosine divides by its length once more."""
    return gradient - (gradient * rows).sum(1, keepdim=True) * rows


def test_all_sides_have_one_loss_and_one_gradient() -> None:
    sides = Sides(40, 14.0)
    sides.weights.fill_(0.3)
    inputs = sides.queries, sides.documents
    expected = sides.open_clip()
    gradients = torch.autograd.grad(expected, inputs)
    for side in (sides.ours, sides.sentence_transformers):
        loss = side()
        torch.testing.assert_close(loss, expected)
        for found, gradient, rows in zip(torch.autograd.grad(loss, inputs), gradients, inputs, strict=True):
            torch.testing.assert_close(along_the_sphere(found, rows), along_the_sphere(gradient, rows))


def test_every_query_has_its_own_document_and_more() -> None:
    judged = Sides(40, 14.0).judged.to_dense()
    assert (judged.diagonal() > 0).all()
    assert 0.5 * JUDGED_A_QUERY < (judged > 0).sum(1).float().mean() <= JUDGED_A_QUERY
