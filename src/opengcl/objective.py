"""Everything that learns, in one module: encoder, fields, temperature and loss, so that all of it is checkpointed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypedDict, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from opengcl.batches import Relation
from opengcl.distributed import gather_rows, sizes_of_ranks, world_size
from opengcl.fields import COMBINES, Combine
from opengcl.inputs import FieldInput
from opengcl.log_normalisers import LogCounts, Pairs
from opengcl.loss import TARGETS, Direction, Target, Terms, loss_of_terms
from opengcl.model import BiEncoder, FieldEmbeddings
from opengcl.own_functions import imported
from opengcl.sharded_loss import sharded_loss

MAX_LOGIT_SCALE = 100.0  # as CLIP clamps it (Radford et al. 2021, section 2.5)


class Batch(TypedDict):
    """What the collator hands to the module; every rank gets the whole relation and its own share of the inputs."""

    queries: dict[str, FieldInput]
    documents: dict[str, FieldInput]
    relation: dict[str, Tensor]
    rows: dict[str, Tensor]  # of the data set's queries and documents, to name them when something is wrong


class BatchLoss(Protocol):
    """A user's loss, in place of `opengcl.gcl_loss`; a `torch.nn.Module` may have parameters."""

    def __call__(self, queries: Tensor, documents: Tensor, known: Known, logit_scale: Tensor, /) -> Tensor:
        """The loss of a batch.

        Args:
            queries: (m, d) float32 unit rows, the batch's distinct queries.
            documents: (n, d) float32 unit rows, its distinct documents.
            known: Which pairs were drawn, and every judged pair among these queries and documents; those judged not
                relevant have weight 0 and are False in ``known.judged_relevant``.
            logit_scale: 0-d, ``1 / temperature``, learnable.

        Returns:
            A finite 0-d tensor.
        """
        ...


class RankingObjective(nn.Module):
    """The weighted contrastive loss of a batch of judged pairs.

    Args:
        model: The bi-encoder to train.
        target: Form of the loss, see `opengcl.gcl_loss`, or another loss altogether, see `BatchLoss`.
        direction: ``both``, ``query`` or ``document``.
        combine: ``mean``: one loss on the fused vectors. ``pairwise``: the mean of one loss per (query field, document
            field) pair, weighted by the product of the field weights; pairs of rows that lack a field leave its loss.
            ``both``: half of each.
        temperature: Where it starts; ``exp(-log_logit_scale)``.
        learn_temperature: Whether it is trained; it is clamped so that ``1 / temperature`` stays in [1, 100].
        recompute: See `BiEncoder.encode_fields`.
    """

    def __init__(
        self,
        model: BiEncoder,
        *,
        target: Target | BatchLoss,
        direction: Direction = "both",
        combine: Combine = "mean",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if combine not in COMBINES:
            raise ValueError(f"combine {combine!r} is unknown; use one of {', '.join(COMBINES)}")
        if not 1 / MAX_LOGIT_SCALE <= temperature <= 1:
            raise ValueError(f"temperature is {temperature}; it must lie in [{1 / MAX_LOGIT_SCALE}, 1]")
        if not isinstance(target, str):
            check_loss(type(target).__name__, target)
        elif target not in TARGETS:
            raise ValueError(f"target {target!r} is unknown; use one of {', '.join(TARGETS)}")
        self.model = model
        self.target, self.direction, self.combine, self.recompute = target, direction, combine, recompute
        self.log_logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn_temperature)

    @property
    def logit_scale(self) -> float:
        """``1 / temperature``."""
        return math.exp(self.log_logit_scale.item())

    def forward(
        self, queries: dict[str, FieldInput], documents: dict[str, FieldInput], relation: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        """``{"loss": loss}`` of the whole batch, over all ranks."""
        with torch.no_grad():
            self.log_logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))
        query_fields = self.model.encode_fields(queries, "query", recompute=self.recompute)
        document_fields = self.model.encode_fields(documents, "document", recompute=self.recompute)
        known = _known(relation)
        losses = []
        if not known.has_weight(self.target):  # weights may be 0 below some score; such a batch teaches nothing
            return {"loss": 0.0 * (query_fields.embeddings.sum() + document_fields.embeddings.sum())}
        if self.combine != "pairwise":
            losses.append(self._fused_loss(query_fields, document_fields, known))
        if self.combine != "mean":
            losses.append(self._pairwise_loss(query_fields, document_fields, known))
        return {"loss": torch.stack(losses).mean()}

    def _fused_loss(self, queries: FieldEmbeddings, documents: FieldEmbeddings, known: Known) -> Tensor:
        query = _Share(self.model.fuse(queries, "query"), sizes_of_ranks(known.queries))
        document = _Share(self.model.fuse(documents, "document"), sizes_of_ranks(known.documents))
        return self._loss(query, document, known)

    def _pairwise_loss(self, queries: FieldEmbeddings, documents: FieldEmbeddings, known: Known) -> Tensor:
        rows = list(zip(_field_shares(queries, known.queries), self.model.mix.query.values(), strict=True))
        columns = list(zip(_field_shares(documents, known.documents), self.model.mix.document.values(), strict=True))
        losses, shares = [], []
        for (query, query_present), query_weight in rows:
            for (document, document_present), document_weight in columns:
                left = known.restricted(query_present, document_present)
                if left.has_weight(self.target):
                    losses.append(self._loss(query, document, left))
                    shares.append(query_weight * document_weight)
        if not losses:
            raise ValueError("combine='pairwise': no judged pair of the batch has both a query and a document field")
        mix = torch.tensor(shares, device=losses[0].device)
        return (torch.stack(losses) * mix).sum() / mix.sum()

    def _loss(self, queries: _Share, documents: _Share, known: Known) -> Tensor:
        scale = self.log_logit_scale.exp()
        if not isinstance(self.target, str):
            query, document = gather_rows(queries.rows, queries.sizes), gather_rows(documents.rows, documents.sizes)
            return _checked_result(self.target(query, document, known, scale))
        with torch.autocast(queries.rows.device.type, enabled=False):
            dtype = torch.promote_types(queries.rows.dtype, torch.float32)
            query, document = queries.rows.to(dtype), documents.rows.to(dtype)
            given = (query, document, scale.to(dtype), known.terms(self.target), self.target, self.direction)
            if world_size() == 1:
                return loss_of_terms(*given)
            return sharded_loss(*given, query_sizes=queries.sizes, document_sizes=documents.sizes)


def _checked_result(loss: object) -> Tensor:
    """What a user's loss returned, which must be a number with a gradient."""
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss of the target returned {found}; allowed: a 0-d tensor")
    return loss


class Known:
    """A batch's relation as tensors; see `opengcl.batches.Relation` for the names.

    ``judged_relevant`` is False for the pairs that were judged with a score of 0 or below.
    """

    def __init__(self, queries: int, documents: int, relation: dict[str, Tensor]) -> None:
        self.queries, self.documents = queries, documents
        self.pair_query, self.pair_document = relation["pair_query"], relation["pair_document"]
        self.pair_weight = relation["pair_weight"]
        self.judged_query, self.judged_document = relation["judged_query"], relation["judged_document"]
        self.judged_weight = relation["judged_weight"]
        everything = torch.ones_like(self.judged_query, dtype=torch.bool)
        self.judged_relevant = relation.get("judged_relevant", everything)

    def matrix(self) -> Tensor:
        """Sparse (queries, documents): the weight of every judged pair."""
        index = torch.stack([self.judged_query, self.judged_document])
        return _sparse(index, self.judged_weight, (self.queries, self.documents))

    def terms(self, target: Target) -> Terms:
        """What a target makes of the relation.

        The paper's forms have a row and a column a pair. Pairs of one query have equal rows, so here each distinct
        query is one row that counts as often as it has pairs, and so with documents: the same sums of fewer terms.

        A pair judged not relevant is no term and leaves no denominator, as if nobody had judged it.
        """
        relevant = self.judged_relevant
        judged = Pairs(self.judged_query[relevant], self.judged_document[relevant])
        weight = self.judged_weight[relevant]
        nothing = Pairs(self.judged_query[:0], self.judged_document[:0])
        if target not in ("diagonal", "masked"):
            return Terms(judged, weight, judged if target == "ranked" else nothing)
        shape = (self.queries, self.documents)
        pairs = _sparse(torch.stack([self.pair_query, self.pair_document]), self.pair_weight, shape).coalesce()
        counts = LogCounts(
            torch.bincount(self.pair_query, minlength=self.queries).float().log(),
            torch.bincount(self.pair_document, minlength=self.documents).float().log(),
        )
        left_out = judged if target == "masked" else nothing
        return Terms(Pairs(*pairs.indices()), pairs.values(), left_out, counts)

    def has_weight(self, target: Target | BatchLoss) -> bool:
        """Whether any pair that the target uses has a weight above 0."""
        weight = self.pair_weight if target in ("diagonal", "masked") else self.judged_weight
        return bool((weight > 0).any())

    def restricted(self, query_present: Tensor, document_present: Tensor) -> Known:
        """The relation among the rows that have a field, renumbered."""
        query_place, document_place = query_present.cumsum(0) - 1, document_present.cumsum(0) - 1
        pair = query_present[self.pair_query] & document_present[self.pair_document]
        judged = query_present[self.judged_query] & document_present[self.judged_document]
        return Known(
            int(query_present.sum()),
            int(document_present.sum()),
            {
                "pair_query": query_place[self.pair_query[pair]],
                "pair_document": document_place[self.pair_document[pair]],
                "pair_weight": self.pair_weight[pair],
                "judged_query": query_place[self.judged_query[judged]],
                "judged_document": document_place[self.judged_document[judged]],
                "judged_weight": self.judged_weight[judged],
                "judged_relevant": self.judged_relevant[judged],
            },
        )


def read_target(written: str) -> Target | BatchLoss:
    """A form of `opengcl.gcl_loss` by its name, or a `BatchLoss` by its import path.

    The path, in an installed package or in the current folder, names a function, ``my_shop.losses:pairwise``, or a
    class (a `torch.nn.Module`, say), which is called with the numbers that follow,
    ``my_shop.losses:Pairwise:margin=0.2,levels=4``.

    Raises:
        ValueError: The name is unknown, the path cannot be imported, the class does not take these options, or what it
            names cannot be called as `BatchLoss` says.
    """
    if written in TARGETS:
        return cast(Target, written)
    module, _, rest = written.partition(":")
    name, _, options = rest.partition(":")
    if not name:
        raise ValueError(
            f"target {written!r} is unknown; use one of {', '.join(TARGETS)}, or an import path as package.module:name"
        )
    found = imported("target", module, name)
    if isinstance(found, type):
        try:
            found = found(**_numbers(options))
        except Exception as error:  # whatever the class's own code raises
            raise ValueError(f"target {written} cannot be made: {type(error).__name__}: {error}") from error
    elif options:
        raise ValueError(f"target {written}: {name} is no class, so it has no options")
    if not callable(found):
        raise ValueError(f"target {written} is a {type(found).__name__}, not a function or module")
    check_loss(written, found)
    return cast(BatchLoss, found)


def check_loss(name: str, loss: Callable[..., object]) -> None:
    """Checks that a user's loss can be called as `BatchLoss` says.

    Raises:
        ValueError: It cannot take these four arguments.
    """
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):  # some built-in callables do not tell
        return
    try:
        signature.bind(*_ARGUMENTS)
    except TypeError as error:
        raise ValueError(
            f"target {name} takes {signature}: {error}; required: a call with {len(_ARGUMENTS)} arguments, "
            f"({', '.join(_ARGUMENTS)})"
        ) from error


_ARGUMENTS = ("queries", "documents", "known", "logit_scale")


def _numbers(written: str) -> dict[str, float]:
    """``a=1,b=0.5`` as numbers; whole ones are integers."""
    pairs = [part.partition("=") for part in written.split(",") if part.strip()]
    return {name.strip(): int(value) if value.strip().isdigit() else float(value) for name, _, value in pairs}


def relation_tensors(relation: Relation) -> dict[str, Tensor]:
    """The relation as the collator sends it."""
    names = ["pair_query", "pair_document", "pair_weight", "judged_query", "judged_document", "judged_weight"]
    if relation.judged_relevant is not None:
        names.append("judged_relevant")
    tensors = {name: torch.from_numpy(np.asarray(getattr(relation, name))) for name in names}
    return {**tensors, "sizes": torch.tensor([len(relation.queries), len(relation.documents)])}


def _known(relation: dict[str, Tensor]) -> Known:
    queries, documents = relation["sizes"].tolist()
    return Known(queries, documents, relation)


class _Share(NamedTuple):
    """This rank's rows of a side, and how many each rank has."""

    rows: Float[Tensor, "own d"]
    sizes: list[int]


def _field_shares(fields: FieldEmbeddings, total: int) -> list[tuple[_Share, Tensor]]:
    """Of every field the rows that have it, and which rows of all ranks do."""
    shares = []
    for embedding, own in zip(fields.embeddings, fields.present, strict=True):
        present = gather_rows(own.to(torch.uint8), total).bool()
        sizes = [int(part.sum()) for part in torch.split(present, sizes_of_ranks(total))]
        shares.append((_Share(embedding[own], sizes), present))
    return shares


def _sparse(index: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(index, value, shape, check_invariants=False)
