"""The loss, forward and backward, on vectors that are there: against open_clip's and sentence-transformers'.

Both peers hold the whole matrix of logits. open_clip's is written out here as it stands in its ``ClipLoss`` (the local
form, without ranks), as the package itself is not among the dependencies; the other is called as it is.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator

import torch
from benchmarks.speed import Row
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn

from opengcl.loss import gcl_loss

PAIRS, WIDTH, SCALES = (4_096, 16_384), 512, (1 / 0.07, 100.0)  # where CLIP's temperature begins, and where it is held
JUDGED_A_QUERY = 12


def measure(repeats: int) -> Iterator[Row]:
    """Yield both peers at two sizes and temperatures, and a matrix of judged pairs against one weight a pair."""
    for pairs in PAIRS:
        for scale in SCALES if pairs == PAIRS[0] else SCALES[:1]:
            sides = Sides(pairs, scale)
            names = ["ours", "open_clip", "sentence_transformers"]
            if pairs == PAIRS[-1]:
                names.append("judged")
            taken = sides.in_turn(names, repeats)
            about = {"pairs": pairs, "width": WIDTH, "logit_scale": scale, "repeats": repeats}
            at = f"{pairs:,} pairs, 1 / temperature {scale:.4g}"
            for peer, shown in (("open_clip", "open_clip"), ("sentence_transformers", "sentence-transformers")):
                yield Row(f"loss, {at}", taken["ours"], taken[peer], shown, 1.25, about)
            if "judged" in names:
                about = {**about, "judged": sides.judged._nnz()}
                yield Row(
                    f"judged pairs as a matrix, {at}", taken["judged"], taken["ours"], "diagonal", 1 / 1.15, about
                )


class Sides:
    """The same vectors for every side, and a step of each."""

    def __init__(self, pairs: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.queries, self.documents = (
            nn.functional.normalize(torch.randn(pairs, WIDTH, generator=generator)).requires_grad_() for _ in range(2)
        )
        self.scale, self.weights = torch.tensor(scale, requires_grad=True), torch.rand(pairs, generator=generator) + 0.1
        self.judged = judged_pairs(pairs, generator)
        identity = SentenceTransformer(modules=[nn.Identity()], device="cpu")
        self.symmetric = MultipleNegativesRankingLoss(
            identity, scale, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        )

    def ours(self) -> Tensor:
        """One weight a pair."""
        return gcl_loss(self.queries, self.documents, self.weights, self.scale)

    def judged_matrix(self) -> Tensor:
        """Every judged pair of the batch."""
        return gcl_loss(self.queries, self.documents, self.judged, self.scale, target="full")

    def open_clip(self) -> Tensor:
        """``ClipLoss`` of one process."""
        logits = self.scale * self.queries @ self.documents.T
        labels = torch.arange(len(logits))
        return (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2

    def sentence_transformers(self) -> Tensor:
        """``MultipleNegativesSymmetricRankingLoss``, which is this loss by its newer name."""
        return self.symmetric.compute_loss_from_embeddings([self.queries, self.documents], None)

    def in_turn(self, names: list[str], repeats: int) -> dict[str, list[float]]:
        """Seconds of forward and backward of each side, one after the other; a first round is not counted."""
        steps: dict[str, Callable[[], Tensor]] = {
            "ours": self.ours,
            "open_clip": self.open_clip,
            "sentence_transformers": self.sentence_transformers,
            "judged": self.judged_matrix,
        }
        taken: dict[str, list[float]] = {name: [] for name in names}
        for counted in [False] * (len(self.queries) <= PAIRS[0]) + [True] * repeats:
            for name in names:
                seconds = self._seconds(steps[name])
                if counted:
                    taken[name].append(seconds)
        return taken

    def _seconds(self, step: Callable[[], Tensor]) -> float:
        for part in (self.queries, self.documents, self.scale):
            part.grad = None
        gc.collect()
        started = time.perf_counter()
        step().backward()
        return time.perf_counter() - started


def judged_pairs(pairs: int, generator: torch.Generator) -> Tensor:
    """Sparse (pairs, pairs): each pair's own document and eleven more, with weights."""
    rows = torch.arange(pairs).repeat_interleave(JUDGED_A_QUERY)
    columns = torch.randint(pairs, (len(rows),), generator=generator)
    columns[::JUDGED_A_QUERY] = torch.arange(pairs)
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows, columns]), torch.rand(len(rows), generator=generator), (pairs, pairs), check_invariants=True
    )
    return matrix.coalesce()
