"""The loss, forward and backward, on vectors that are there, against open_clip's and sentence-transformers'.

Vectors are unit rows in matching pairs, as a model in training gives them: the cosine of a pair is about 0.6, that of
others about 0. Each side runs in float32, with TF32, and with bfloat16 factors whose products are summed in float32;
beside the time stands how far loss and gradients are from float64's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.gpu import Setting
from benchmarks.gpu.measure import in_turn, tf32
from benchmarks.gpu.record import Record, Row
from benchmarks.speed.loss import judged_pairs
from torch import Tensor, nn

import opengcl.log_normalisers
from opengcl.loss import gcl_loss

REPEATS = 5
SCALES = (1 / 0.07, 100.0)
"""1 / temperature: where CLIP begins, and where it is held."""
CACHED_ROWS = 4_096
MANY = 50_000
"""Pairs from which fewer repetitions are enough: a step takes half a second."""
PEERS_PRODUCTS = 6
"""Two matrices of logits in the forward pass, and two products for each in the backward pass."""
COSINE = 0.6
FORMATS = ("float32", "TF32", "bf16")


@dataclass(frozen=True)
class Vectors:
    """The same vectors for every side; each has gradients of its own."""

    queries: Tensor
    documents: Tensor
    weights: Tensor
    scale: Tensor

    @classmethod
    def made(cls, pairs: int, width: int, scale: float, device: str, dtype: torch.dtype = torch.float32) -> Vectors:
        """From a seed, the same for every dtype."""
        generator = torch.Generator(device).manual_seed(pairs)
        drawn = [torch.randn(pairs, width, device=device, generator=generator) for _ in range(2)]
        queries, noise = (nn.functional.normalize(part) for part in drawn)
        documents = nn.functional.normalize(COSINE * queries + (1 - COSINE**2) ** 0.5 * noise)
        weights = torch.rand(pairs, device=device, generator=generator) + 0.1
        return cls(
            queries.to(dtype).requires_grad_(),
            documents.to(dtype).requires_grad_(),
            weights.to(dtype),
            torch.tensor(scale, device=device, dtype=dtype, requires_grad=True),
        )

    def step(self, loss: Callable[[Vectors], Tensor]) -> Tensor:
        """Forward and backward, gradients new."""
        for part in (self.queries, self.documents, self.scale):
            part.grad = None
        value = loss(self)
        if value.requires_grad:  # the cached loss has done its own backward pass
            value.backward()
        return value.detach()


def run(record: Record, setting: Setting) -> None:
    """How exact each form is, then time and memory by batch size, the smallest first."""
    sizes = (4_096, 16_384, 65_536) if setting.full else (256, 512)
    width = 512 if setting.full else 32
    for scale in SCALES:
        exact(record, setting, sizes[0], width, scale)
    for pairs in sizes:
        timed(record, setting, pairs, width)


def timed(record: Record, setting: Setting, pairs: int, width: int) -> None:
    """Every side at one size, in turn."""
    if setting.left() < 3:
        record.skip(f"{pairs:,} pairs", "no time was left")
        return
    vectors = Vectors.made(pairs, width, SCALES[0], setting.device)
    products = 3 if pairs**2 <= opengcl.log_normalisers.KEPT_LOGITS else 4
    sides = {
        f"{name}, {pairs:,} pairs": lambda loss=loss: vectors.step(loss)
        for name, loss in {**ours(), **with_judged_pairs(pairs, setting), **peers(setting)}.items()
    }
    about = {"pairs": pairs, "width": width, "flop": 2 * products * width * pairs**2}
    rows = in_turn(record, setting, sides, repeats=REPEATS if pairs < MANY else 3, **about)
    for name, row in rows.items():
        if not name.startswith("ours"):
            row["flop"] = 2 * PEERS_PRODUCTS * width * pairs**2
    record.write()


def ours() -> dict[str, Callable[[Vectors], Tensor]]:
    """`opengcl.gcl_loss`, a weight a pair, in each number format."""

    def loss(vectors: Vectors) -> Tensor:
        return gcl_loss(vectors.queries, vectors.documents, vectors.weights, vectors.scale)

    return {f"ours, {name}": in_format(name, loss) for name in FORMATS}


def with_judged_pairs(pairs: int, setting: Setting) -> dict[str, Callable[[Vectors], Tensor]]:
    """The ``ranked`` target, the default, with twelve judged pairs a query."""
    judged = judged_pairs(pairs, torch.Generator().manual_seed(0)).to(setting.device)

    def loss(vectors: Vectors) -> Tensor:
        return gcl_loss(vectors.queries, vectors.documents, judged, vectors.scale, target="ranked", direction="query")

    return {f"ours, ranked, {name}": in_format(name, loss) for name in ("float32", "TF32")}


def peers(setting: Setting) -> dict[str, Callable[[Vectors], Tensor]]:
    """open_clip's loss in each format, and sentence-transformers', as it is and cached."""
    sides = {f"open_clip, {name}": autocast_format(name, open_clip, setting) for name in FORMATS}
    plain, cached = sentence_transformers_losses(SCALES[0])
    for name in ("float32", "TF32"):
        sides[f"sentence-transformers, {name}"] = in_format(name, plain)
    sides["sentence-transformers, cached, float32"] = in_format("float32", cached)
    return sides


def open_clip(vectors: Vectors) -> Tensor:
    """open_clip's loss of these vectors, documents in the place of images."""
    return clip_loss(vectors.documents, vectors.queries, vectors.scale)


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """``ClipLoss`` as open_clip has it (src/open_clip/loss.py): both matrices of logits, own rows against all.

    Several processes with ``local_loss`` do the same with the others' rows as columns; here there is one.
    """
    logits_per_image = scale * images @ texts.T
    logits_per_text = scale * texts @ images.T
    labels = torch.arange(len(logits_per_image), device=logits_per_image.device)
    by_image, by_text = (nn.functional.cross_entropy(logits, labels) for logits in (logits_per_image, logits_per_text))
    return (by_image + by_text) / 2


def sentence_transformers_losses(scale: float) -> tuple[Callable[[Vectors], Tensor], Callable[[Vectors], Tensor]]:
    """Its symmetric in-batch loss as it is, and the one that works through the batch in parts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    identity = SentenceTransformer(modules=[nn.Identity()], device="cpu")
    both: dict[str, Any] = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    whole = MultipleNegativesRankingLoss(identity, scale, **both)
    parts = CachedMultipleNegativesRankingLoss(identity, scale, mini_batch_size=CACHED_ROWS, **both)

    def cached(vectors: Vectors) -> Tensor:
        # As in its training step: the loss of parts, each with its backward pass, down to the vectors.
        return parts.calculate_loss([[vectors.queries], [vectors.documents]], with_backward=True)

    return lambda vectors: whole.compute_loss_from_embeddings([vectors.queries, vectors.documents], None), cached


def in_format(name: str, loss: Callable[[Vectors], Tensor]) -> Callable[[Vectors], Tensor]:
    """Ours in a number format: forward and backward, so that `Vectors.step` has nothing left to do."""

    def step(vectors: Vectors) -> Tensor:
        with tf32(name == "TF32"), products_in_bf16() if name == "bf16" else contextlib.nullcontext():
            value = loss(vectors)
            if value.requires_grad:
                value.backward()
            return value.detach()

    return step


def autocast_format(name: str, loss: Callable[[Vectors], Tensor], setting: Setting) -> Callable[[Vectors], Tensor]:
    """A peer's loss in a number format: bf16 by autocast, as its own training has it."""

    def step(vectors: Vectors) -> Tensor:
        with tf32(name == "TF32"):
            with torch.autocast(setting.device, torch.bfloat16, enabled=name == "bf16"):
                value = loss(vectors)
            value.backward()
            return value.detach()

    return step


@contextlib.contextmanager
def products_in_bf16() -> Iterator[None]:
    """Our loss, in one step, with factors rounded to bfloat16 and products summed in float32.

    Vectors are rounded once a step, as a loss made for it would; slopes in every tile, as they are made there.
    """
    rounded: dict[tuple[int, torch.Size], Tensor] = {}

    def once(vectors: Tensor) -> Tensor:
        place = vectors.data_ptr(), vectors.shape
        if place not in rounded:
            rounded[place] = vectors.bfloat16()
        return rounded[place]

    def product(one: Tensor, other: Tensor, out: Tensor) -> Tensor:
        return bf16_product(once(one), once(other.T).T, out)

    def add_product(into: Tensor, one: Tensor, other: Tensor) -> None:
        into.add_(bf16_product(one.bfloat16(), once(other)))

    with patch.multiple(opengcl.log_normalisers, _product=product, _add_product=add_product):
        yield


def bf16_product(one: Tensor, other: Tensor, out: Tensor | None = None) -> Tensor:
    """The product of two bfloat16 matrices, summed in float32 and given as float32."""
    if one.is_cuda:
        return torch.mm(one, other, out_dtype=torch.float32, out=out)
    found = one.float() @ other.float()  # products of bfloat16 numbers are exact in float32
    return found if out is None else out.copy_(found)


def exact(record: Record, setting: Setting, pairs: int, width: int, scale: float) -> None:
    """Each form's loss and gradients against float64 of the same numbers."""

    def work(row: Row) -> None:
        truth = Vectors.made(pairs, width, scale, setting.device, torch.float64)
        expected = truth.step(open_clip)
        vectors = Vectors.made(pairs, width, scale, setting.device)
        even = torch.ones_like(vectors.weights)

        def clip(given: Vectors) -> Tensor:
            return gcl_loss(given.queries, given.documents, even, given.scale)

        sides = {f"ours, {name}": in_format(name, clip) for name in FORMATS}
        sides |= {f"open_clip, {name}": autocast_format(name, open_clip, setting) for name in FORMATS}
        row["loss"] = expected.item()
        row["errors"] = {}
        for name, loss in sides.items():
            found = vectors.step(loss)
            row["errors"][name] = {
                "loss": abs(found.item() - expected.item()) / expected.item(),
                "queries": far(vectors.queries, truth.queries),
                "documents": far(vectors.documents, truth.documents),
                "scale": far(vectors.scale, truth.scale),
            }

    record.piece(f"exactness, 1 / temperature {scale:.4g}", work, needs=2, pairs=pairs, width=width)


def far(found: Tensor, truth: Tensor) -> float:
    """How far a gradient is from float64's, relative to its length."""
    if found.grad is None or truth.grad is None:
        raise ValueError("a side made no gradient")
    return ((found.grad.double() - truth.grad).norm() / truth.grad.norm()).item()
