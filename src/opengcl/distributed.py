"""Ranks: meeting and parting, who holds which rows, and sums and rows over all of them, with gradients."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from jaxtyping import Float, Shaped
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 outside ``torchrun``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 outside ``torchrun``."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def join_ranks(*, cpu: bool) -> None:
    """Meet the other processes that ``torchrun`` started; nothing to do without it.

    Args:
        cpu: Whether they compute on the CPU (gloo) even where there is a GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=cpu)


def wait_for_ranks() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def leave_ranks() -> None:
    """Part from the other processes, once all of them are done."""
    if world_size() > 1:
        dist.barrier()
        dist.destroy_process_group()


def slice_of_rank(rows: int, this_rank: int, ranks: int) -> slice:
    """The consecutive rows that a rank owns; sizes differ by one at most."""
    return slice(rows * this_rank // ranks, rows * (this_rank + 1) // ranks)


def sizes_of_ranks(rows: int) -> list[int]:
    """How many rows each rank owns."""
    slices = [slice_of_rank(rows, r, world_size()) for r in range(world_size())]
    return [part.stop - part.start for part in slices]


def gather_rows(rows: Shaped[Tensor, "local ..."], total: int | Sequence[int]) -> Shaped[Tensor, "total ..."]:
    """Every rank's rows, in rank order, for what every rank computes alike.

    When each rank computes the same loss over the gathered rows and gradients are averaged over ranks (as
    DistributedDataParallel does), parameters get the gradient of one process that holds the whole batch: the backward
    pass keeps a rank's own rows and multiplies them by the number of ranks.

    Args:
        rows: This rank's rows; any dtype.
        total: Rows of each rank; or over all ranks, where rank r holds ``slice_of_rank(total, r, ranks)``.

    Returns:
        All rows on every rank; ``rows`` itself with one rank.

    Raises:
        ValueError: This rank's number of rows is not what it should be.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows, _checked_sizes(rows, total))  # type: ignore[no-untyped-call]
    return gathered


def gather_parts(rows: Shaped[Tensor, "local ..."], total: int | Sequence[int]) -> Shaped[Tensor, "total ..."]:
    """As `gather_rows`, for what each rank uses in its own way: gradients of a row are summed over the ranks."""
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherParts.apply(rows, _checked_sizes(rows, total))  # type: ignore[no-untyped-call]
    return gathered


def sum_over_ranks(part: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The ranks' parts of a loss, added up: the same number on each.

    When gradients are averaged over ranks, they are those of the sum: each rank's part counts as often as there are
    ranks.
    """
    if world_size() == 1:
        return part
    whole: Tensor = _SumOverRanks.apply(part)  # type: ignore[no-untyped-call]
    return whole


def log_sum_exp_over_ranks(parts: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``log sum_r exp(parts_r)`` over the ranks r; gradients are summed over what each rank does with it."""
    if world_size() == 1:
        return parts
    whole: Tensor = _LogSumExpOverRanks.apply(parts)  # type: ignore[no-untyped-call]
    return whole


def _checked_sizes(rows: Tensor, total: int | Sequence[int]) -> list[int]:
    sizes = sizes_of_ranks(total) if isinstance(total, int) else list(total)
    if len(rows) != sizes[rank()]:
        raise ValueError(f"rank {rank()} holds {len(rows)} rows; of {sum(sizes)} it should hold {sizes[rank()]}")
    return sizes


def _gathered(rows: Tensor, sizes: list[int]) -> Tensor:
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _own_part(rows: Tensor, sizes: list[int]) -> Tensor:
    start = sum(sizes[: rank()])
    return rows[start : start + sizes[rank()]]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gathered(rows, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _own_part(grad, ctx.sizes) * world_size(), None


class _GatherParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gathered(rows, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        whole = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return _own_part(whole, ctx.sizes), None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return grad * world_size()


class _LogSumExpOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor) -> Tensor:
        largest = parts.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        largest.masked_fill_(largest == -torch.inf, 0.0)  # nothing on any rank
        whole = (parts - largest).exp()
        dist.all_reduce(whole)
        whole = whole.log_().add_(largest)
        ctx.save_for_backward(parts, whole)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        parts, whole = ctx.saved_tensors
        summed = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed * (parts - whole.masked_fill(whole == -torch.inf, 0.0)).exp()
