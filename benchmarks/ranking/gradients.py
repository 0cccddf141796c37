"""Whom each objective pulls and pushes: its gradient at one model, on one batch, by the score of the pair.

    python -m benchmarks.ranking.gradients runs/ranking/fashion/title/clip/seed-0

The gradient with respect to the logit of each (query, document) of a batch, summed over the rows and columns in which
the pair stands. Its positive and negative parts have equal sums; the figures are shares of that sum a judged pair,
times the number of judged pairs, so that 1 is what a pair would get if all of the pull were spread evenly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from opengcl import BiEncoder, RankedDataset
from opengcl.batches import Batches, DocumentBatches, Relations, ShuffledBatches
from opengcl.encode import inputs_for
from opengcl.objective import Known
from opengcl.training import TrainingBatches
from opengcl.weights import weight_function

from .data import DATA, dataset_folder
from .sides import DOCUMENTS

SCORES = ((91, 100), (71, 90), (51, 70), (31, 50), (1, 30))
Weights = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Known], Tensor]


def exponential(decay: float, floor: float = 0.0) -> Weights:
    """``exp((s - 100) / decay) + floor`` on tensors."""
    return lambda score: torch.exp((score - 100) / decay) + floor


def diagonal(weights: Weights) -> Loss:
    """The paper's form: one row and one column a drawn pair, everything off the diagonal a negative."""

    def loss(logits: Tensor, known: Known) -> Tensor:
        pairs = logits[known.pair_query][:, known.pair_document]
        weight = weights(100 * known.pair_weight)
        own = F.log_softmax(pairs, 1).diagonal() + F.log_softmax(pairs, 0).diagonal()
        return -0.5 * (weight * own).sum() / weight.sum()

    return loss


def full_row(weights: Weights, *, queries: float) -> Loss:
    """The whole matrix, normalised by row; ``queries`` is the share of the direction of queries in the loss."""

    def loss(logits: Tensor, known: Known) -> Tensor:
        matrix = torch.zeros_like(logits)
        matrix[known.judged_query, known.judged_document] = weights(100 * known.judged_weight)
        row = (matrix / matrix.sum(1, keepdim=True) * F.log_softmax(logits, 1)).sum(1).mean()
        column = (matrix / matrix.sum(0, keepdim=True) * F.log_softmax(logits, 0)).sum(0).mean()
        return -(queries * row + (1 - queries) * column)

    return loss


FORMS: dict[str, tuple[Loss, str]] = {
    "diagonal, constant (CLIP)": (diagonal(torch.ones_like), "pairs"),
    "diagonal, exponential, decay 20 (paper)": (diagonal(exponential(20)), "pairs"),
    "full_row, decay 20, both directions": (full_row(exponential(20), queries=0.5), "pairs"),
    "full_row, decay 20, documents alone": (full_row(exponential(20), queries=0.0), "pairs"),
    "full_row, decay 20, queries alone": (full_row(exponential(20), queries=1.0), "pairs"),
    "full_row, decay 10, queries alone": (full_row(exponential(10), queries=1.0), "documents"),
    "the same with a floor of .005": (full_row(exponential(10, 0.005), queries=1.0), "documents"),
}


def logits_of(model: BiEncoder, dataset: RankedDataset, batches: Batches) -> tuple[Tensor, Known]:
    """The first batch's logits at the model's own temperature, (queries, documents), and what is known about it."""
    inputs = (inputs_for(model, dataset.queries, "query"), inputs_for(model, dataset.documents, "document"))
    batch = TrainingBatches(batches, Relations(dataset, weight_function("linear"), "dataset"), inputs)[0, 0]
    with torch.inference_mode():
        queries = model.fuse(model.encode_fields(batch["queries"], "query"), "query")
        documents = model.fuse(model.encode_fields(batch["documents"], "document"), "document")
        logits = (model.logit_scale or 1.0) * queries @ documents.T
    return logits.clone(), Known(len(queries), len(documents), batch["relation"])


def pulls(loss: Loss, logits: Tensor, known: Known) -> tuple[list[float], list[float]]:
    """For each range of scores the mean pull of its judged pairs, and the share of them that is pushed away."""
    leaf = logits.clone().requires_grad_()
    loss(leaf, known).backward()
    assert leaf.grad is not None  # noqa: S101 - just made
    pull = -leaf.grad[known.judged_query, known.judged_document] / (leaf.grad.abs().sum() / 2) * len(known.judged_query)
    score = (100 * known.judged_weight).round()
    inside = [(score >= low) & (score <= high) for low, high in SCORES]
    return [pull[rows].mean().item() for rows in inside], [(pull[rows] < 0).float().mean().item() for rows in inside]


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of the model at which gradients are taken")
    parser.add_argument("--data", choices=DATA, default="fashion")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    dataset, model = RankedDataset.open(dataset_folder(asked.data), progress=False), BiEncoder.load(asked.run)
    pairs = dataset.splits.training_pairs()
    documents = DocumentBatches(pairs, dataset.qrels.document[pairs], *DOCUMENTS.values(), seed=0)
    batches = {"pairs": ShuffledBatches(pairs, 1024, 0), "documents": documents}
    made = {kind: logits_of(model, dataset, batch) for kind, batch in batches.items()}
    print(f"| objective | batch | {' | '.join(f'{low} to {high}' for low, high in SCORES)} |")
    print(f"| --- | --- |{' ---: |' * len(SCORES)}")
    for name, (loss, kind) in FORMS.items():
        shown = (f"{pull:+.2f}, {pushed:.0%}" for pull, pushed in zip(*pulls(loss, *made[kind]), strict=True))
        print(f"| {name} | {kind} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
