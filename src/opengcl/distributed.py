"""Rows gathered from every rank, with the gradient flowing back to the rank that made them."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from jaxtyping import Float
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


def gather_rows(rows: Float[Tensor, "local d"], total: int) -> Float[Tensor, "total d"]:
    """Every rank's rows, in rank order, where rank r holds ``slice_of_rank(total, r, ranks)``.

    When each rank computes the same loss over the gathered rows and gradients are averaged over ranks (as
    DistributedDataParallel does), parameters get the gradient of one process that holds the whole batch: the backward
    pass keeps a rank's own rows and multiplies them by the number of ranks.

    Args:
        rows: This rank's rows; any floating dtype.
        total: Rows over all ranks.

    Returns:
        All rows on every rank; ``rows`` itself with one rank.

    Raises:
        ValueError: This rank's number of rows is not what ``slice_of_rank`` gives it.
    """
    if world_size() == 1:
        return rows
    own = slice_of_rank(total, rank(), world_size())
    if len(rows) != own.stop - own.start:
        raise ValueError(f"rank {rank()} holds {len(rows)} rows; of {total} it should hold {own.stop - own.start}")
    gathered: Tensor = _GatherRows.apply(rows, total)  # type: ignore[no-untyped-call]
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, total: int) -> Tensor:
        ranks = world_size()
        slices = [slice_of_rank(total, r, ranks) for r in range(ranks)]
        longest = max(s.stop - s.start for s in slices)
        padded = rows.new_zeros(longest, rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(parts, padded)
        ctx.own = slices[rank()]
        return torch.cat([part[: s.stop - s.start] for part, s in zip(parts, slices, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.own] * world_size(), None
