"""Whom each objective pulls and pushes: its gradient at one model, on one batch, by the score of the pair.

    python -m benchmarks.ranking.gradients runs/ranking/fashion/title/clip/seed-0

The gradient with respect to the logit of each (query, document) of a batch, summed over the rows and columns in which
the pair stands. Its positive and negative parts have equal sums; the figures are shares of that sum a judged pair,
times the number of judged pairs, so that 1 is what a pair would get if all of the pull were spread evenly.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opengcl import BiEncoder, RankedDataset
from opengcl.batches import Batches, DocumentBatches, Relations, ShuffledBatches
from opengcl.encode import inputs_for
from opengcl.loss import Direction, Target, contrastive_loss
from opengcl.objective import Known
from opengcl.training import TrainingBatches
from opengcl.weights import pair_weights, weight_function

from .data import DATA, dataset_folder
from .sides import DOCUMENTS

SCORES = ((91, 100), (71, 90), (51, 70), (31, 50), (1, 30))


@dataclass(frozen=True)
class Form:
    """An objective, and how its batch is drawn: ``pairs`` or ``documents``."""

    name: str
    weights: str
    target: Target
    direction: Direction
    batch: str

    def loss(self, logits: Tensor, known: Known) -> Tensor:
        """The loss of a batch from its (queries, documents) logits; ``known`` has linear weights."""
        function = weight_function(self.weights)

        def weights(linear: Tensor) -> Tensor:
            scores = 100 * linear.double().numpy()  # 0 where the pair is judged not relevant
            given = pair_weights(scores, np.zeros(len(scores), dtype=np.int64), function, low=1.0, high=100.0)
            return torch.from_numpy(given).to(logits)

        if self.target == "diagonal":
            logits = logits[known.pair_query][:, known.pair_document]
            given = weights(known.pair_weight)
        else:
            index = torch.stack([known.judged_query, known.judged_document])
            given = torch.sparse_coo_tensor(index, weights(known.judged_weight), logits.shape, check_invariants=True)
        # With the identity for documents the "queries" are the logits themselves.
        one = torch.eye(logits.shape[1], dtype=logits.dtype)
        return contrastive_loss(logits, one, given, 1.0, target=self.target, direction=self.direction)


STEEP = "exponential:decay=10"
FORMS = (
    Form("diagonal, constant (CLIP)", "constant", "diagonal", "both", "pairs"),
    Form("diagonal, exponential, decay 20 (paper)", "exponential", "diagonal", "both", "pairs"),
    Form("full_row, decay 20, both directions", "exponential", "full_row", "both", "pairs"),
    Form("full_row, decay 20, documents alone", "exponential", "full_row", "document", "pairs"),
    Form("full_row, decay 20, queries alone", "exponential", "full_row", "query", "pairs"),
    Form("full_row, decay 10, queries alone", STEEP, "full_row", "query", "documents"),
    Form("the same with a floor of .005", f"{STEEP},floor=0.005", "full_row", "query", "documents"),
    Form("ranked, decay 20, queries alone (default)", "exponential", "ranked", "query", "documents"),
)


def logits_of(model: BiEncoder, dataset: RankedDataset, batches: Batches) -> tuple[Tensor, Known]:
    """The first batch's logits at the model's own temperature, (queries, documents), and what is known about it."""
    inputs = (inputs_for(model, dataset.queries, "query"), inputs_for(model, dataset.documents, "document"))
    batch = TrainingBatches(batches, Relations(dataset, weight_function("linear"), "dataset"), inputs)[0, 0]
    with torch.inference_mode():
        queries = model.fuse(model.encode_fields(batch["queries"], "query"), "query")
        documents = model.fuse(model.encode_fields(batch["documents"], "document"), "document")
        logits = (model.logit_scale or 1.0) * queries @ documents.T
    return logits.clone(), Known(len(queries), len(documents), batch["relation"])


def pulls(form: Form, logits: Tensor, known: Known) -> tuple[list[float], list[float]]:
    """For each range of scores the mean pull of its judged pairs, and the share of them that is pushed away."""
    leaf = logits.clone().requires_grad_()
    form.loss(leaf, known).backward()
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
    documents = DocumentBatches(pairs, dataset.qrels.document[pairs], **DOCUMENTS, seed=0)
    batches: dict[str, Batches] = {"pairs": ShuffledBatches(pairs, 1024, 0), "documents": documents}
    made = {kind: logits_of(model, dataset, batch) for kind, batch in batches.items()}
    print(f"| objective | batch | {' | '.join(f'{low} to {high}' for low, high in SCORES)} |")
    print(f"| --- | --- |{' ---: |' * len(SCORES)}")
    for form in FORMS:
        shown = (f"{pull:+.2f}, {pushed:.0%}" for pull, pushed in zip(*pulls(form, *made[form.batch]), strict=True))
        print(f"| {form.name} | {form.batch} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
