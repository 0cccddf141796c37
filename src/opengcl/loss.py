"""Generalized contrastive loss on tensors: weighted pairs or a whole ground-truth matrix, in bounded memory.

Source: Generalized Contrastive Learning, arXiv 2404.08535, section 3; the targets beyond ``diagonal`` are ours.
Notation: ``Q`` (m, d) queries and ``D`` (n, d) documents with unit rows, ``S = logit_scale * Q D^T``, and ``W`` the
weights of the judged (query, document) pairs. A direction of any target is a sum of terms, one for each pair that is
a target, with shares ``R_ij`` that sum to 1:

    L = sum_ij R_ij (log Z_ij - S_ij)        Z_ij: what document j competes with for query i, itself included

Most of ``Z_ij`` is the same for a whole row and comes from `opengcl.log_normalisers`; targets differ in what they add.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from opengcl.log_normalisers import LogCounts, Pairs, Wanted, log_normalisers

Target = Literal["diagonal", "masked", "full", "full_row", "ranked"]
Direction = Literal["both", "query", "document"]
TARGETS: tuple[str, ...] = get_args(Target)
DIRECTIONS: tuple[str, ...] = get_args(Direction)
UNIT_TOLERANCE = 0.01
"""How far from 1 the length of a row may be; rounding to bfloat16 moves it by less than half of this."""


class Terms(NamedTuple):
    """The sparse side of the loss: a term for each pair that is a target, and which logits never compete."""

    pairs: Pairs
    weight: Float[Tensor, " terms"]
    left_out: Pairs
    log_counts: LogCounts | None = None  # of rows that stand for several equal ones


class Lists(NamedTuple):
    """One direction: the terms, list by list. In the direction of queries a list is a row, else a column."""

    group: Int64[Tensor, " terms"]  # the list's number, ascending
    place: Int64[Tensor, " terms"]  # where the term's logit stands
    weight: Float[Tensor, " terms"]
    share: Float[Tensor, " terms"]  # of the loss


def gcl_loss(
    queries: Float[Tensor, "m d"],
    documents: Float[Tensor, "n d"],
    weights: Tensor,
    logit_scale: Tensor | float,
    *,
    target: Target = "diagonal",
    direction: Direction = "both",
    block_rows: int | None = None,
) -> Float[Tensor, ""]:
    r"""Weighted contrastive loss between queries and documents.

    With ``S = logit_scale * queries @ documents.T`` and one direction written out (``both`` is the mean of the two):

    - ``diagonal`` (the paper's): ``- sum_i w_i log softmax_row(S)_ii / sum_i w_i``. Pair i is row i of both inputs.
      It is the default here, as the only one that needs no more than a weight a pair. `opengcl.train`, which knows
      every judged pair of a batch, has ``target="ranked", direction="query"``, which orders better.
    - ``masked``: the same, but judged pairs off the diagonal leave the denominators.
    - ``full``: ``- sum_ij W_ij log softmax_row(S)_ij / sum_ij W_ij``.
    - ``full_row``: ``- mean_i sum_j (W_ij / sum_k W_ik) log softmax_row(S)_ij``, the mean over rows with weight;
      the document direction does the same with columns. Every query counts the same, however its documents score.
    - ``ranked``: ``full_row`` in which a document does not compete with those of higher weight: the denominator of
      document j holds the documents of row i that are not judged or whose weight is at most ``W_ij``. A weighted
      Plackett-Luce likelihood of the row's order, as ListMLE (Xia et al. 2008), with everything that is not judged at
      the end; the masks are those of FlagEmbedding's ``m3_kd_loss`` (Chen et al. 2024, arXiv 2402.03216).

    Logits are made and used a tile at a time, in the forward and again in the backward pass, so memory does not grow
    with ``m * n``; up to 2^25 of them are kept between the two. Half-precision inputs are raised to float32 before
    the product.

    Args:
        queries: Unit rows (to within `UNIT_TOLERANCE`), shape (m, d); float16, bfloat16, float32 or float64.
        documents: Unit rows, shape (n, d), same dtype and device.
        weights: Non-negative and finite, not all zero; a constant factor changes nothing. Shape (m,) with m = n for
            ``diagonal``; else a matrix (m, n), dense or sparse COO, whose entries are the judged pairs. In a sparse
            matrix an explicit zero is a judged pair of weight 0, which only leaves the denominators of ``masked``; in a
            dense one a zero is a pair that was not judged. A pair judged *not relevant* is a negative like the latter:
            leave it out of a sparse matrix.
            ``masked`` needs m = n and takes its pairs from the diagonal. No gradient flows to the weights.
        logit_scale: ``1 / temperature``, a positive number or 0-d tensor (then it gets a gradient).
        target: One of ``diagonal``, ``masked``, ``full``, ``full_row``, ``ranked``.
        direction: ``query`` (softmax over documents), ``document`` (softmax over queries) or ``both``.
        block_rows: Rows of a tile, at least 1; its columns are as many as keep it small. The result does not depend on
            it beyond rounding.

    Returns:
        The loss in nats, 0-d, float32 (float64 for float64 inputs). Equal weights on the diagonal give CLIP's loss;
        equal embeddings give ``log(n)``, for one direction, and ``(log(n) + log(m)) / 2`` for both.

    Raises:
        ValueError: Shapes that do not fit, rows that are not unit rows, an unknown target or direction, weights that
            are negative, not finite, or sum to zero, or ``block_rows`` below 1.
    """
    _check_embeddings(queries, documents)
    for name, rows in (("queries", queries), ("documents", documents)):
        _check_unit_rows(name, rows)
    return contrastive_loss(
        queries, documents, weights, logit_scale, target=target, direction=direction, block_rows=block_rows
    )


def contrastive_loss(
    queries: Float[Tensor, "m d"],
    documents: Float[Tensor, "n d"],
    weights: Tensor,
    logit_scale: Tensor | float,
    *,
    target: Target,
    direction: Direction,
    block_rows: int | None = None,
) -> Float[Tensor, ""]:
    """`gcl_loss` of rows of any length."""
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; use one of {', '.join(TARGETS)}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r} is unknown; use one of {', '.join(DIRECTIONS)}")
    if block_rows is not None and block_rows < 1:
        raise ValueError(f"block_rows is {block_rows}; it must be at least 1")
    with torch.autocast(queries.device.type, enabled=False):
        dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
        terms = _terms(weights.detach(), len(queries), len(documents), target)
        scale = torch.as_tensor(logit_scale, dtype=dtype, device=queries.device)
        return loss_of_terms(
            queries.to(dtype), documents.to(dtype), scale, terms, target, direction, block_rows=block_rows
        )


def loss_of_terms(
    queries: Float[Tensor, "m d"],
    documents: Float[Tensor, "n d"],
    scale: Float[Tensor, ""],
    terms: Terms,
    target: Target,
    direction: Direction,
    *,
    block_rows: int | None = None,
) -> Float[Tensor, ""]:
    """The loss of checked float32 or float64 rows; arguments as for `gcl_loss`."""
    wanted = wanted_normalisers(direction)
    terms = terms_like(terms, queries)
    rows, columns, logits = log_normalisers(
        queries,
        documents,
        scale,
        terms.pairs,
        terms.left_out,
        wanted=wanted,
        log_counts=terms.log_counts,
        block_rows=block_rows,
    )
    losses = []
    if wanted.rows:
        losses.append(loss_of_lists(rows, logits, lists_of(terms.pairs.row, terms.weight, len(rows), target), target))
    if wanted.columns:
        lists = lists_of(terms.pairs.column, terms.weight, len(columns), target)
        losses.append(loss_of_lists(columns, logits, lists, target))
    return torch.stack(losses).mean()


def wanted_normalisers(direction: Direction) -> Wanted:
    """Those that a direction needs: rows are queries."""
    return Wanted(direction != "document", direction != "query")


def terms_like(terms: Terms, vectors: Tensor) -> Terms:
    """The terms on the device of some vectors, numbers in their dtype."""
    counts = terms.log_counts
    return Terms(
        Pairs(*(index.to(vectors.device) for index in terms.pairs)),
        terms.weight.to(vectors),
        Pairs(*(index.to(vectors.device) for index in terms.left_out)),
        counts and LogCounts(*(side.to(vectors) for side in counts)),
    )


def lists_of(group: Int64[Tensor, " terms"], weight: Float[Tensor, " terms"], groups: int, target: Target) -> Lists:
    """The terms by ascending row or column, each with its share of the loss."""
    share = _normalise_groups(weight, group, groups) if target in ("full_row", "ranked") else weight / weight.sum()
    group, place = group.sort(stable=True)
    return Lists(group, place, weight[place], share[place])


def loss_of_lists(
    normalisers: Float[Tensor, " groups"], logits: Float[Tensor, " chosen"], lists: Lists, target: Target
) -> Float[Tensor, ""]:
    """One direction's loss.

    Args:
        normalisers: Of each row (or column), without the pairs that were left out.
        logits: Of the pairs that were chosen.
        lists: Terms that are among both.
        target: Says what a term's denominator holds beside its normaliser.
    """
    logits = logits.index_select(0, lists.place)
    if target == "ranked":
        denominators = _ranked_denominators(normalisers, logits, lists)
    else:
        denominators = normalisers.index_select(0, lists.group)
        if target == "masked":
            denominators = torch.logaddexp(denominators, logits)
    return (lists.share * (denominators - logits)).sum()


def _check_embeddings(queries: Tensor, documents: Tensor) -> None:
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(
            f"queries and documents must be (m, d) and (n, d) with one d; got {tuple(queries.shape)} and "
            f"{tuple(documents.shape)}"
        )
    if not queries.is_floating_point() or queries.dtype != documents.dtype:
        raise ValueError(
            f"queries and documents must share one floating dtype; got {queries.dtype} and {documents.dtype}"
        )
    if len(queries) == 0 or len(documents) == 0:
        raise ValueError(f"an empty batch has no loss: {len(queries)} queries, {len(documents)} documents")


def _check_unit_rows(name: str, rows: Float[Tensor, "rows d"]) -> None:
    norms = torch.linalg.vector_norm(rows.detach(), dim=1, dtype=torch.promote_types(rows.dtype, torch.float32))
    wrong = ~((norms - 1).abs() <= UNIT_TOLERANCE)  # NaN too
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name} must have unit rows: found row {row} of length {norms[row]:.4g}; allowed: 1 to within "
            f"{UNIT_TOLERANCE:g}. torch.nn.functional.normalize({name}, dim=-1) makes them"
        )


def _terms(weights: Tensor, m: int, n: int, target: str) -> Terms:
    row, column, weight = _judged_pairs(weights, m, n, target)
    judged, nothing = Pairs(row, column), Pairs(row[:0], column[:0])
    on_diagonal = row == column
    if target in ("diagonal", "masked"):
        row, column, weight = row[on_diagonal], column[on_diagonal], weight[on_diagonal]
    _check_weights(weight)
    return Terms(Pairs(row, column), weight, judged if target in ("masked", "ranked") else nothing)


def _check_weights(value: Tensor) -> None:
    total = value.sum()
    if not bool(torch.isfinite(total)) or bool((value < 0).any()):
        raise ValueError("weights must be finite and not negative")
    if not bool(total > 0):
        raise ValueError("weights sum to zero: at least one judged pair must have a positive weight")


def _judged_pairs(weights: Tensor, m: int, n: int, target: str) -> tuple[Tensor, Tensor, Tensor]:
    if weights.ndim == 1 and target == "diagonal":
        if not len(weights) == m == n:
            raise ValueError(
                f"target 'diagonal' needs one weight a pair: got {len(weights)} weights, {m} queries, {n} documents"
            )
        index = torch.arange(m, device=weights.device)
        return index, index, weights
    if weights.shape != (m, n):
        allowed = f"({m},) or ({m}, {n})" if target == "diagonal" else f"({m}, {n})"
        raise ValueError(f"target {target!r} needs weights of shape {allowed}; got {tuple(weights.shape)}")
    if target in ("diagonal", "masked") and m != n:
        raise ValueError(f"target {target!r} needs as many queries as documents; got {m} and {n}")
    matrix = weights if weights.layout == torch.sparse_coo else weights.to_sparse_coo()
    matrix = matrix.coalesce()
    return matrix.indices()[0], matrix.indices()[1], matrix.values()


def _normalise_groups(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """Divide each value by its group's sum and by the number of groups that have any weight."""
    total = value.new_zeros(groups).index_add_(0, group, value)
    weighted = total > 0
    return value / total.masked_fill(~weighted, 1.0)[group] / weighted.sum()


def _ranked_denominators(normalisers: Tensor, logits: Tensor, lists: Lists) -> Tensor:
    """``log`` of what each term competes with: what is not judged, and the terms of its list of at most its weight."""
    if len(logits) == 0:  # still a function of the normalisers, whose gradient other ranks may wait for
        return normalisers.index_select(0, lists.group)
    counts = torch.bincount(lists.group, minlength=len(normalisers))
    starts = counts.cumsum(0) - counts
    within = torch.arange(len(lists.group), device=counts.device) - starts[lists.group]
    # Lists of like length are padded together, so that one long list does not make all of them long.
    size_class = (counts - 1).clamp_min(0).float().add_(1).log2().ceil()[lists.group]
    found, order = [], []
    for size in size_class.unique():
        terms = (size_class == size).nonzero()[:, 0]
        group, row = lists.group[terms].unique_consecutive(return_inverse=True)
        place = (row, within[terms])
        shape = (len(group), int(counts[group].max()))
        weight = lists.weight.new_full(shape, -1.0).index_put(place, lists.weight[terms])
        # The least number instead of minus infinity, whose log-sum-exp has no gradient.
        padded = logits.new_full(shape, torch.finfo(logits.dtype).min).index_put(place, logits[terms])
        found.append(_competing(normalisers[group], padded, weight)[place])
        order.append(terms)
    return torch.zeros_like(logits).index_copy(0, torch.cat(order), torch.cat(found))


def _competing(
    outside: Float[Tensor, " lists"], logits: Float[Tensor, "lists terms"], weight: Float[Tensor, "lists terms"]
) -> Float[Tensor, "lists terms"]:
    """Log-sum-exp of what is outside a list and of its logits of at most each term's weight."""
    weight, order = weight.sort(dim=1, descending=True, stable=True)
    later = logits.gather(1, order).flip(1).logcumsumexp(1).flip(1)
    # Documents of equal weight stand in each other's denominators: all begin where the first of them does.
    begins = torch.ones_like(weight, dtype=torch.bool)
    begins[:, 1:] = weight[:, 1:] != weight[:, :-1]
    first = (torch.arange(weight.shape[1], device=weight.device) * begins).cummax(1).values
    return torch.logaddexp(outside[:, None], later.gather(1, first)).gather(1, order.argsort(1))
