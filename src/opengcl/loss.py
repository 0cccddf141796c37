"""Generalized contrastive loss on tensors: weighted pairs or a whole ground-truth matrix, in bounded memory.

Source: Generalized Contrastive Learning, arXiv 2404.08535, section 3; the targets beyond ``diagonal`` are ours.
Notation: ``Q`` (m, d) queries and ``D`` (n, d) documents with unit rows, ``S = logit_scale * Q D^T``, and ``W`` the
weights of the judged (query, document) pairs. Every target is one case of

    L = sum_ij R_ij * -log softmax_row(S)_ij + sum_ij C_ij * -log softmax_col(S)_ij

with sparse non-negative ``R`` and ``C``, and optionally some entries of ``S`` left out of the denominators; in
``ranked`` what is left out differs from document to document of a row.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Target = Literal["diagonal", "masked", "full", "full_row", "ranked"]
Direction = Literal["both", "query", "document"]
TARGETS: tuple[str, ...] = get_args(Target)
DIRECTIONS: tuple[str, ...] = get_args(Direction)

# A block of logits holds at most this many numbers: 64 MiB in float32, times the three temporaries of a step.
BLOCK_ELEMENTS = 1 << 24


class _Entries(NamedTuple):
    """The sparse side of the loss, rows ascending: what each logit is a target of, and which logits to leave out."""

    row: Int64[Tensor, " entries"]
    column: Int64[Tensor, " entries"]
    row_target: Float[Tensor, " entries"]
    column_target: Float[Tensor, " entries"]
    masked_row: Int64[Tensor, " masked"]
    masked_column: Int64[Tensor, " masked"]


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
    - ``masked``: the same, but judged pairs off the diagonal leave the denominators.
    - ``full``: ``- sum_ij W_ij log softmax_row(S)_ij / sum_ij W_ij``.
    - ``full_row``: ``- mean_i sum_j (W_ij / sum_k W_ik) log softmax_row(S)_ij``, the mean over rows with weight;
      the document direction does the same with columns. Every query counts the same, however its documents score.
    - ``ranked``: ``full_row`` in which a document does not compete with those of higher weight: the denominator of
      document j holds the documents of row i that are not judged or whose weight is at most ``W_ij``. A weighted
      Plackett-Luce likelihood of the row's order, as ListMLE (Xia et al. 2008), with everything that is not judged at
      the end; the masks are those of FlagEmbedding's ``m3_kd_loss`` (Chen et al. 2024, arXiv 2402.03216).

    Logits are made and used a block of rows at a time, in the forward and again in the backward pass, so memory grows
    with ``block_rows * n`` and not with ``m * n``. Half-precision inputs are raised to float32 before the product.

    Args:
        queries: Unit rows, shape (m, d); float16, bfloat16, float32 or float64.
        documents: Unit rows, shape (n, d), same dtype and device.
        weights: Non-negative and finite, not all zero; a constant factor changes nothing. Shape (m,) with m = n for
            ``diagonal``; else a matrix (m, n), dense or sparse COO, whose entries are the judged pairs. In a sparse
            matrix an explicit zero is a judged pair of weight 0, in a dense one a zero is a pair that was not judged.
            ``masked`` needs m = n and takes its pairs from the diagonal. No gradient flows to the weights.
        logit_scale: ``1 / temperature``, a positive number or 0-d tensor (then it gets a gradient).
        target: One of ``diagonal``, ``masked``, ``full``, ``full_row``, ``ranked``.
        direction: ``query`` (softmax over documents), ``document`` (softmax over queries) or ``both``.
        block_rows: Rows of logits held at a time; by default as many as fit in 64 MiB of float32.

    Returns:
        The loss in nats, 0-d, float32 (float64 for float64 inputs). Equal weights on the diagonal give CLIP's loss;
        equal embeddings give ``log(n)``, for one direction, and ``(log(n) + log(m)) / 2`` for both.

    Raises:
        ValueError: Shapes that do not fit, an unknown target or direction, weights that are negative, not finite, or
            sum to zero, or ``block_rows`` below 1.
    """
    _check_embeddings(queries, documents)
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; use one of {', '.join(TARGETS)}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r} is unknown; use one of {', '.join(DIRECTIONS)}")
    if block_rows is None:
        block_rows = max(1, BLOCK_ELEMENTS // max(1, len(documents)))
    if block_rows < 1:
        raise ValueError(f"block_rows is {block_rows}; it must be at least 1")
    dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
    with torch.autocast(queries.device.type, enabled=False):
        if target == "ranked":
            return _ranked_loss(queries.to(dtype), documents.to(dtype), weights, logit_scale, direction, block_rows)
        entries = _entries(weights.detach(), len(queries), len(documents), target, direction, dtype, queries.device)
        scale = torch.as_tensor(logit_scale, dtype=dtype, device=queries.device)
        loss: Tensor = _BlockedLoss.apply(  # type: ignore[no-untyped-call]
            queries.to(dtype), documents.to(dtype), scale, entries, block_rows
        )
        return loss


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


def _entries(
    weights: Tensor, m: int, n: int, target: str, direction: str, dtype: torch.dtype, device: torch.device
) -> _Entries:
    """Turn the weights into targets that sum to 1 over the asked directions."""
    row, column, value = _judged_pairs(weights, m, n, target)
    row, column, value = row.to(device), column.to(device), value.to(device, dtype)
    _check_weights(value if target != "diagonal" and target != "masked" else value[row == column])
    masked_row = masked_column = row.new_empty(0)
    if target in ("diagonal", "masked"):
        on_diagonal = row == column
        if target == "masked":
            masked_row, masked_column = row[~on_diagonal], column[~on_diagonal]
        row, column, value = row[on_diagonal], column[on_diagonal], value[on_diagonal]
    total = value.sum()
    if target == "full_row":
        row_target = _normalise_groups(value, row, m)
        column_target = _normalise_groups(value, column, n)
    else:
        row_target = column_target = value / total
    share = {"both": (0.5, 0.5), "query": (1.0, 0.0), "document": (0.0, 1.0)}[direction]
    return _Entries(row, column, row_target * share[0], column_target * share[1], masked_row, masked_column)


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
    matrix = weights if weights.layout == torch.sparse_coo else weights.to_sparse_coo()  # type: ignore[no-untyped-call]
    matrix = matrix.coalesce()
    return matrix.indices()[0], matrix.indices()[1], matrix.values()


def _normalise_groups(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """Divide each value by its group's sum and by the number of groups that have any weight."""
    total = value.new_zeros(groups).index_add_(0, group, value)
    weighted = total > 0
    return value / total.masked_fill(~weighted, 1.0)[group] / weighted.sum()


class _BlockedLoss(torch.autograd.Function):
    """The loss and its gradient from blocks of logits; nothing of size (m, n) lives beyond a block.

    With ``r_i = sum_j R_ij`` and ``c_j = sum_i C_ij``, ``dL/dS_ij = r_i p_ij + c_j q_ij - R_ij - C_ij`` where ``p`` and
    ``q`` are the softmax over rows and columns, made again from the log-normalisers that the forward pass keeps.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, documents: Tensor, scale: Tensor, entries: _Entries, block_rows: int
    ) -> Tensor:
        m, n = len(queries), len(documents)
        row_mass = queries.new_zeros(m).index_add_(0, entries.row, entries.row_target)
        column_mass = queries.new_zeros(n).index_add_(0, entries.column, entries.column_target)
        row_lse = queries.new_empty(m)
        column_max = queries.new_full((n,), -torch.inf)
        column_sum = queries.new_zeros(n)
        attracted = queries.new_zeros(())
        for start, stop, inside, masked in _blocks(entries, m, block_rows):
            logits = scale * (queries[start:stop] @ documents.T)
            chosen = logits[entries.row[inside] - start, entries.column[inside]]
            attracted += (chosen * (entries.row_target[inside] + entries.column_target[inside])).sum()
            logits[entries.masked_row[masked] - start, entries.masked_column[masked]] = -torch.inf
            row_lse[start:stop] = logits.logsumexp(1)
            new_max = torch.maximum(column_max, logits.amax(0))
            # A column that is masked in every row so far has no finite maximum yet; its sum stays 0.
            shift = new_max.masked_fill(new_max == -torch.inf, 0.0)
            column_sum = column_sum * (column_max - shift).exp_() + logits.sub_(shift).exp_().sum(0)
            column_max = new_max
        column_lse = column_max + column_sum.log()
        ctx.save_for_backward(queries, documents, scale, row_mass, column_mass, row_lse, column_lse)
        ctx.entries, ctx.block_rows = entries, block_rows
        return row_mass @ row_lse + column_mass @ column_lse - attracted

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override,unused-ignore]
        queries, documents, scale, row_mass, column_mass, row_lse, column_lse = ctx.saved_tensors
        entries: _Entries = ctx.entries
        grad_queries = torch.empty_like(queries)
        grad_documents = torch.zeros_like(documents)
        grad_scale = torch.zeros_like(scale)
        by_query, by_document = bool((row_mass > 0).any()), bool((column_mass > 0).any())
        for start, stop, inside, masked in _blocks(entries, len(queries), ctx.block_rows):
            logits = scale * (queries[start:stop] @ documents.T)
            logits[entries.masked_row[masked] - start, entries.masked_column[masked]] = -torch.inf
            slope = torch.zeros_like(logits)
            if by_query:
                slope.add_((logits - row_lse[start:stop, None]).exp_().mul_(row_mass[start:stop, None]))
            if by_document:
                slope.add_(logits.sub_(column_lse).exp_().mul_(column_mass))
            drawn = entries.row_target[inside] + entries.column_target[inside]
            slope[entries.row[inside] - start, entries.column[inside]] -= drawn
            moved = slope @ documents
            grad_scale += (moved * queries[start:stop]).sum()
            grad_queries[start:stop] = moved * scale
            grad_documents.addmm_(slope.T, queries[start:stop])
        return grad * grad_queries, grad * scale * grad_documents, grad * grad_scale, None, None


def _ranked_loss(
    queries: Tensor, documents: Tensor, weights: Tensor, logit_scale: Tensor | float, direction: str, block_rows: int
) -> Tensor:
    """``ranked`` in one direction, or the mean of the two."""
    row, column, value = _judged_pairs(weights.detach(), len(queries), len(documents), "ranked")
    row, column, value = row.to(queries.device), column.to(queries.device), value.to(queries.device, queries.dtype)
    _check_weights(value)
    scale = torch.as_tensor(logit_scale, dtype=queries.dtype, device=queries.device)
    losses = []
    if direction != "document":
        losses.append(_ranked_rows(queries, documents, scale, row, column, value, block_rows))
    if direction != "query":
        by_column = torch.argsort(column, stable=True)
        row, column, value = row[by_column], column[by_column], value[by_column]
        losses.append(_ranked_rows(documents, queries, scale, column, row, value, block_rows))
    return torch.stack(losses).mean()


def _ranked_rows(
    left: Tensor, right: Tensor, scale: Tensor, row: Tensor, column: Tensor, value: Tensor, block_rows: int
) -> Tensor:
    """The mean over weighted rows of ``sum_j t_ij (log denominator_ij - S_ij)``; entries come by ascending row."""
    nowhere = value.new_zeros(0)
    entries = _Entries(row, column, value, nowhere, row, column)
    outside, judged = _JudgedLogits.apply(left, right, scale, entries, block_rows)  # type: ignore[no-untyped-call]
    counts = torch.bincount(row, minlength=len(left))
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    shape = (len(left), int(counts.max()))
    weight = value.new_full(shape, -1.0).index_put((row, place), value)
    weight, order = weight.sort(dim=1, descending=True, stable=True)
    present = weight >= 0
    lowest = torch.finfo(judged.dtype).min  # not -inf, whose log-sum-exp has no gradient
    logits = judged.new_full(shape, lowest).index_put((row, place), judged).gather(1, order)
    later = logits.flip(1).logcumsumexp(1).flip(1)
    # Documents of equal weight stand in each other's denominators: all begin where the first of them does.
    begins = torch.ones_like(present)
    begins[:, 1:] = weight[:, 1:] != weight[:, :-1]
    first = (torch.arange(shape[1], device=row.device) * begins).cummax(1).values
    denominator = torch.logaddexp(outside[:, None].clamp_min(lowest), later.gather(1, first))
    weight = weight.clamp_min(0.0)
    total = weight.sum(1, keepdim=True)
    target = weight / total.masked_fill(total == 0, 1.0)
    return (target * (denominator - logits).masked_fill(~present, 0.0)).sum() / (total > 0).sum()


class _JudgedLogits(torch.autograd.Function):
    """Each row's log-sum-exp over the columns that are not judged for it, and the judged logits, in entry order.

    ``outside_i = log sum_(j not judged) exp(S_ij)``, minus infinity where everything is judged. Blocks of logits are
    made again in the backward pass: ``dL/dS_ij`` is ``dL/doutside_i exp(S_ij - outside_i)`` there, and the entry's own
    gradient where the pair is judged.
    """

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, scale: Tensor, entries: _Entries, block_rows: int
    ) -> tuple[Tensor, Tensor]:
        outside = left.new_empty(len(left))
        judged = left.new_empty(len(entries.row))
        for start, stop, inside, _ in _blocks(entries, len(left), block_rows):
            logits = scale * (left[start:stop] @ right.T)
            index = (entries.row[inside] - start, entries.column[inside])
            judged[inside] = logits[index]
            logits[index] = -torch.inf
            outside[start:stop] = logits.logsumexp(1)
        ctx.save_for_backward(left, right, scale, outside)
        ctx.entries, ctx.block_rows = entries, block_rows
        return outside, judged

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(  # type: ignore[override,unused-ignore]
        ctx: Any, grad_outside: Tensor, grad_judged: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        left, right, scale, outside = ctx.saved_tensors
        entries: _Entries = ctx.entries
        grad_left, grad_right, grad_scale = torch.empty_like(left), torch.zeros_like(right), torch.zeros_like(scale)
        shift = outside.masked_fill(outside == -torch.inf, 0.0)
        for start, stop, inside, _ in _blocks(entries, len(left), ctx.block_rows):
            slope = scale * (left[start:stop] @ right.T)
            index = (entries.row[inside] - start, entries.column[inside])
            slope[index] = -torch.inf
            slope.sub_(shift[start:stop, None]).exp_().mul_(grad_outside[start:stop, None])
            slope[index] = grad_judged[inside]
            moved = slope @ right
            grad_scale += (moved * left[start:stop]).sum()
            grad_left[start:stop] = moved * scale
            grad_right.addmm_(slope.T, left[start:stop])
        return grad_left, scale * grad_right, grad_scale, None, None


def _blocks(entries: _Entries, m: int, block_rows: int) -> list[tuple[int, int, slice, slice]]:
    """(start, stop, its slice of the targets, its slice of the masked logits) of every block of rows."""
    edges = torch.arange(0, m + block_rows, block_rows).clamp_(max=m)
    targets = torch.searchsorted(entries.row, edges.to(entries.row.device)).tolist()
    masked = torch.searchsorted(entries.masked_row, edges.to(entries.masked_row.device)).tolist()
    rows = edges.tolist()
    return [
        (rows[b], rows[b + 1], slice(targets[b], targets[b + 1]), slice(masked[b], masked[b + 1]))
        for b in range(len(rows) - 1)
    ]
