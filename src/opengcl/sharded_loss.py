"""The loss of a batch whose rows lie with several ranks: each makes the logits of its own queries, and no others.

Rank r holds the queries ``Q_r`` and the documents ``D_r``. It makes ``S_r = scale * Q_r D^T`` while the others'
documents come by, one rank's at a time, so that it never holds more than one other part. Row normalisers are whole
then; column normalisers are put together over the ranks, ``column_j = log sum_r exp(column_jr)``. In the backward pass
the parts come by once more, and each part's gradient is summed on the rank that holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from opengcl.distributed import gather_parts, log_sum_exp_over_ranks, rank, sum_over_ranks
from opengcl.log_normalisers import LogCounts, Pairs, log_normalisers
from opengcl.loss import Direction, Lists, Target, Terms, lists_of, loss_of_lists, terms_like, wanted_normalisers


class RankParts:
    """Each rank's documents, sent to the others one rank after the other."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes

    def parts(self, documents: Float[Tensor, "held d"]) -> Iterator[Tensor]:
        """Each rank's documents in turn; every rank must take all of them."""
        for source, size in enumerate(self.sizes):
            part = (
                documents.detach().contiguous() if source == rank() else documents.new_empty(size, documents.shape[1])
            )
            if size:
                dist.broadcast(part, source)
            yield part

    def hand_back(self, part: int, gradient: Float[Tensor, "part d"]) -> Tensor | None:
        """A part's gradient summed over ranks, on the rank that holds it."""
        if self.sizes[part]:
            dist.reduce(gradient, part)
        return gradient if part == rank() else None

    def largest(self, own: Float[Tensor, ""]) -> Tensor:
        """The largest of the ranks' numbers."""
        largest = own.detach().clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest


def sharded_loss(
    queries: Float[Tensor, "own d"],
    documents: Float[Tensor, "held d"],
    scale: Float[Tensor, ""],
    terms: Terms,
    target: Target,
    direction: Direction,
    *,
    query_sizes: Sequence[int],
    document_sizes: Sequence[int],
) -> Float[Tensor, ""]:
    """`opengcl.loss.loss_of_terms` of all ranks' rows; the same number on each.

    When gradients are averaged over ranks (as DistributedDataParallel does), parameters get the gradient of one
    process that holds the whole batch. All ranks must call it, in the same order, forward and backward.

    Args:
        queries: This rank's rows, float32 or float64; may be none.
        documents: This rank's rows, same dtype; may be none.
        scale: The same on every rank.
        terms: Of the whole batch, rows and columns counted over all ranks in rank order.
        target: As for `opengcl.gcl_loss`.
        direction: As for `opengcl.gcl_loss`.
        query_sizes: Queries of each rank.
        document_sizes: Documents of each rank.
    """
    if torch.is_grad_enabled():  # a rank without rows still has its part in the others' backward pass
        queries = queries if queries.requires_grad else queries.detach().requires_grad_()
        documents = documents if documents.requires_grad else documents.detach().requires_grad_()
    wanted = wanted_normalisers(direction)
    terms = _by_row(terms_like(terms, queries))
    own_rows, own_columns = _own(query_sizes), _own(document_sizes)
    edges = torch.tensor([0, *accumulate(query_sizes)], device=queries.device)
    ends = torch.searchsorted(terms.pairs.row, edges).tolist()
    own = _of_rows(terms, own_rows)
    rows, columns, logits = log_normalisers(
        queries,
        documents,
        scale,
        own.pairs,
        own.left_out,
        wanted=wanted,
        log_counts=own.log_counts,
        holders=RankParts(document_sizes),
    )
    losses = []
    if wanted.rows:
        lists = lists_of(terms.pairs.row, terms.weight, sum(query_sizes), target)
        losses.append(loss_of_lists(rows, logits, _of_groups(lists, own_rows, ends[rank()]), target))
    if wanted.columns:
        lists = lists_of(terms.pairs.column, terms.weight, sum(document_sizes), target)
        everyones = gather_parts(logits, [stop - start for start, stop in pairwise(ends)])
        normalisers = log_sum_exp_over_ranks(columns)[own_columns]
        losses.append(loss_of_lists(normalisers, everyones, _of_groups(lists, own_columns, 0), target))
    return sum_over_ranks(torch.stack(losses).mean())


def _own(sizes: Sequence[int]) -> slice:
    """This rank's rows among all."""
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def _by_row(terms: Terms) -> Terms:
    order = terms.pairs.row.argsort(stable=True)
    return terms._replace(pairs=_taken(terms.pairs, order), weight=terms.weight[order])


def _taken(pairs: Pairs, which: Tensor) -> Pairs:
    return Pairs(pairs.row[which], pairs.column[which])


def _of_rows(terms: Terms, own: slice) -> Terms:
    """What concerns some rows, which are counted from 0."""
    pairs, left_out = (
        Pairs(row[inside] - own.start, column[inside])
        for row, column in (terms.pairs, terms.left_out)
        for inside in [(row >= own.start) & (row < own.stop)]
    )
    weight = terms.weight[(terms.pairs.row >= own.start) & (terms.pairs.row < own.stop)]
    counts = terms.log_counts
    return Terms(pairs, weight, left_out, counts and LogCounts(counts.row[own], counts.column))


def _of_groups(lists: Lists, own: slice, first: int) -> Lists:
    """Some rows' or columns' lists, counted from 0, and places from ``first``."""
    inside = (lists.group >= own.start) & (lists.group < own.stop)
    group, place, weight, share = (part[inside] for part in lists)
    return Lists(group - own.start, place - first, weight, share)
