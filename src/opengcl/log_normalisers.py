"""Log-normalisers of a matrix of logits, and some of its entries, from tiles of it; both ways in bounded memory.

With ``S = scale * Q D^T`` (m, n), some entries left out, and ``x_i`` and ``y_j`` how often each row and column counts:

    row_i = log sum_j y_j exp(S_ij)        column_j = log sum_i x_i exp(S_ij)

The gradient needs the tiles again: ``dL/dS_ij = exp(S_ij) (dL/drow_i y_j exp(-row_i) + dL/dcolumn_j x_i
exp(-column_j))``, and the entry's own gradient where it was chosen. Small matrices are kept for that. In the code
``x_i y_j exp(S_ij)`` serves both, with ``x_i`` in the row's normaliser and ``y_j`` in the column's until the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Logits of a tile. On a CPU a tile and what is made of it stay in the caches; elsewhere larger products are faster.
CPU_TILE = 1 << 21
TILE = 1 << 24
TILE_ROWS = 512
# Matrices up to this many logits are kept between the passes, 128 MiB in float32; larger ones are made twice.
KEPT_LOGITS = 1 << 25


class Pairs(NamedTuple):
    """Entries of a matrix; none comes twice."""

    row: Int64[Tensor, " pairs"]
    column: Int64[Tensor, " pairs"]


class LogCounts(NamedTuple):
    """Logarithms of how often rows and columns count in normalisers; minus infinity for those that do not."""

    row: Float[Tensor, " m"]
    column: Float[Tensor, " n"]


class Holders(Protocol):
    """Who holds which documents: consecutive parts, this process one of them."""

    @property
    def sizes(self) -> Sequence[int]:
        """Documents of each."""
        ...

    def parts(self, documents: Tensor) -> Iterator[Tensor]:
        """Each holder's documents in turn."""
        ...

    def hand_back(self, part: int, gradient: Tensor) -> Tensor | None:
        """The gradient of a part from everyone who saw it, to its holder; None to the others."""
        ...

    def largest(self, own: Tensor) -> Tensor:
        """The largest of a number that each holder has."""
        ...


class OneHolder:
    """All documents are in this process."""

    def __init__(self, documents: int) -> None:
        self.sizes: Sequence[int] = [documents]

    def parts(self, documents: Tensor) -> Iterator[Tensor]:
        """The documents."""
        yield documents

    def hand_back(self, part: int, gradient: Tensor) -> Tensor | None:
        """Their gradient."""
        return gradient

    def largest(self, own: Tensor) -> Tensor:
        """The only one."""
        return own


class Wanted(NamedTuple):
    """Which normalisers a loss uses; those of the other direction cost nothing and are empty."""

    rows: bool
    columns: bool


def log_normalisers(
    queries: Float[Tensor, "m d"],
    documents: Float[Tensor, "held d"],
    scale: Float[Tensor, ""],
    chosen: Pairs,
    left_out: Pairs,
    *,
    wanted: Wanted,
    log_counts: LogCounts | None = None,
    holders: Holders | None = None,
    block_rows: int | None = None,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " n"], Float[Tensor, " chosen"]]:
    """Normalisers of the rows and of the columns, and the chosen logits, differentiable.

    Args:
        queries: float32 or float64.
        documents: What this process holds of the documents, same dtype.
        scale: What the products are multiplied by.
        chosen: Entries whose logits are asked for.
        left_out: Entries that leave both normalisers; a normaliser that nothing is left of is minus infinity.
        wanted: Which of the two normalisers are computed.
        log_counts: None where each row and column counts once.
        holders: Who holds the documents; by default this process has all n.
        block_rows: Rows of a tile.

    Returns:
        Row and column normalisers (those of all n documents, over this process's queries) and the chosen logits.
    """
    held: Holders = holders or OneHolder(len(documents))
    grid = _Grid(len(queries), held.sizes, block_rows, queries.device.type)
    differentiable = any(part.requires_grad for part in (queries, documents, scale))
    kept = torch.is_grad_enabled() and differentiable and grid.rows * grid.columns <= KEPT_LOGITS
    places = _Places(chosen, grid), _Places(left_out, grid)
    rows, columns, logits = _LogNormalisers.apply(  # type: ignore[no-untyped-call]
        queries, documents, scale, *places, wanted, log_counts, held, grid, kept
    )
    if log_counts is not None:
        rows = rows - _finite(log_counts.row) if wanted.rows else rows
        columns = columns - _finite(log_counts.column) if wanted.columns else columns
    return rows, columns, logits


class _Tile(NamedTuple):
    number: int
    rows: slice
    columns: slice  # of all documents
    held: slice  # of the part that is at hand
    shape: tuple[int, int]


class _Grid:
    """The tiles of the logits: no tile crosses from one part of the documents into the next."""

    def __init__(self, rows: int, parts: Sequence[int], block_rows: int | None, device: str) -> None:
        self.rows, self.columns = rows, sum(parts)
        self.block_rows = block_rows or min(TILE_ROWS, max(1, rows))
        block_columns = max(1, (CPU_TILE if device == "cpu" else TILE) // self.block_rows)
        firsts = [sum(parts[:part]) for part in range(len(parts))]
        self._columns = [
            [(first, range(size)[at : at + block_columns]) for at in range(0, size, block_columns)]
            for first, size in zip(firsts, parts, strict=True)
        ]
        self.column_starts = [first + held.start for part in self._columns for first, held in part]
        self.row_blocks = -(-rows // self.block_rows)
        self.widest = max((len(held) for part in self._columns for _, held in part), default=0)
        self.largest = self.block_rows * self.widest

    def tiles(self, part: int) -> Iterator[_Tile]:
        """A part's tiles, column by column."""
        before = sum(len(columns) for columns in self._columns[:part])
        for number, (first, held) in enumerate(self._columns[part], before):
            columns = slice(first + held.start, first + held.stop)
            for block in range(self.row_blocks):
                rows = slice(block * self.block_rows, min((block + 1) * self.block_rows, self.rows))
                shape = (rows.stop - rows.start, len(held))
                yield _Tile(number * self.row_blocks + block, rows, columns, slice(held.start, held.stop), shape)


class _Places:
    """Pairs by the tile that they lie in."""

    def __init__(self, pairs: Pairs, grid: _Grid) -> None:
        self.count = len(pairs.row)
        starts = torch.tensor([*grid.column_starts, grid.columns], device=pairs.row.device)
        column_block = torch.searchsorted(starts, pairs.column.contiguous(), right=True) - 1
        row_block = pairs.row // grid.block_rows
        tile, self._order = (column_block * grid.row_blocks + row_block).sort(stable=True)
        tiles = torch.arange(len(grid.column_starts) * grid.row_blocks + 1, device=tile.device)
        self._ends = torch.searchsorted(tile, tiles).tolist()
        width = starts.diff()[column_block] if self.count else column_block
        within = (pairs.row - row_block * grid.block_rows) * width + (pairs.column - starts[column_block])
        self._within = within[self._order]

    def of(self, tile: _Tile) -> tuple[Tensor, Tensor]:
        """Which pairs lie in a tile, and where in it."""
        inside = slice(self._ends[tile.number], self._ends[tile.number + 1])
        return self._order[inside], self._within[inside]


class _LogNormalisers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        scale: Tensor,
        chosen: _Places,
        left_out: _Places,
        wanted: Wanted,
        log_counts: LogCounts | None,
        holders: Holders,
        grid: _Grid,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        exponentials = _exponentials(queries, documents, scale, log_counts, holders, grid, wanted)
        scaled, logits_chosen = queries * scale, queries.new_empty(chosen.count)
        buffer, kept = queries.new_empty(0 if keep else grid.largest), []
        for part, held in enumerate(holders.parts(documents)):
            for tile in grid.tiles(part):
                logits = queries.new_empty(tile.shape) if keep else _view(buffer, tile)
                _product(scaled[tile.rows], held[tile.held].T, logits)
                which, where = chosen.of(tile)
                logits_chosen[which] = logits.view(-1)[where]
                exponentials.prepare(logits, tile, left_out.of(tile)[1])
                exponentials.add(logits, tile)
                if keep:
                    kept.append(logits)
        rows, columns = exponentials.normalisers()
        ctx.save_for_backward(queries, documents, scale, rows, columns, *kept)
        ctx.chosen, ctx.left_out, ctx.holders, ctx.grid = chosen, left_out, holders, grid
        ctx.exponentials, ctx.keep = exponentials, keep
        return rows, columns, logits_chosen

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(  # type: ignore[override,unused-ignore]
        ctx: Any, grad_rows: Tensor, grad_columns: Tensor, grad_chosen: Tensor
    ) -> tuple[Tensor | None, ...]:
        queries, documents, scale, rows, columns, *kept = ctx.saved_tensors
        grid, holders, exponentials = ctx.grid, ctx.holders, ctx.exponentials
        by_query, by_document, by_scale = ctx.needs_input_grad[:3]
        slopes = _Slopes(rows, columns, grad_rows, grad_columns)
        scaled, moved, grad_documents = queries * scale, torch.zeros_like(queries), None
        logits_buffer, slope_buffer = (
            queries.new_empty(0 if ctx.keep else grid.largest),
            queries.new_empty(grid.largest),
        )
        for part, held in enumerate(holders.parts(documents)):
            grad_held = torch.zeros_like(held)
            for tile in grid.tiles(part):
                if ctx.keep:
                    logits = kept[tile.number]
                else:
                    logits = _product(scaled[tile.rows], held[tile.held].T, _view(logits_buffer, tile))
                    exponentials.prepare(logits, tile, ctx.left_out.of(tile)[1])
                slope = exponentials.slope(logits, tile, slopes, _view(slope_buffer, tile))
                which, where = ctx.chosen.of(tile)
                slope.view(-1).index_add_(0, where, grad_chosen[which])
                if by_query or by_scale:
                    _add_product(moved[tile.rows], slope, held[tile.held])
                if by_document:
                    _add_product(grad_held[tile.held], slope.T, scaled[tile.rows])
            if by_document:
                own = holders.hand_back(part, grad_held)
                grad_documents = own if own is not None else grad_documents
        grad_scale = (moved * queries).sum() if by_scale else None
        return (moved.mul_(scale) if by_query else None, grad_documents, grad_scale, *[None] * 7)


# All products of the loss are these two, so that other number formats can be measured in their place.
def _product(one: Tensor, other: Tensor, out: Tensor) -> Tensor:
    return torch.mm(one, other, out=out)


def _add_product(into: Tensor, one: Tensor, other: Tensor) -> None:
    into.addmm_(one, other)


class _Slopes(NamedTuple):
    """The normalisers, and the loss's derivatives by them."""

    rows: Tensor
    columns: Tensor
    by_rows: Tensor
    by_columns: Tensor


class _OneExponential:
    """``exp(S)`` as it is serves rows and columns; for logits that are within the dtype's range."""

    def __init__(self, queries: Tensor, grid: _Grid, wanted: Wanted, log_counts: LogCounts | None) -> None:
        self._wanted, self._log_counts = wanted, log_counts
        self._rows = queries.new_zeros(grid.rows if wanted.rows else 0)
        self._columns = queries.new_zeros(grid.columns if wanted.columns else 0)
        self._ones = queries.new_ones(max(grid.block_rows, grid.widest))

    def prepare(self, logits: Tensor, tile: _Tile, left_out: Tensor) -> None:
        """Turn the logits, in place, into what the other methods use."""
        _add_log_counts(logits, tile, self._log_counts)
        logits.exp_().view(-1).index_fill_(0, left_out, 0.0)

    def add(self, exponentials: Tensor, tile: _Tile) -> None:
        """Add a tile to the normalisers."""
        height, width = tile.shape
        if self._wanted.rows:
            self._rows[tile.rows] += exponentials.mv(self._ones[:width])
        if self._wanted.columns:
            self._columns[tile.columns] += exponentials.T.mv(self._ones[:height])

    def normalisers(self) -> tuple[Tensor, Tensor]:
        """Log-normalisers of the rows and columns."""
        return self._rows.log(), self._columns.log()

    def slope(self, exponentials: Tensor, tile: _Tile, slopes: _Slopes, into: Tensor) -> Tensor:
        """The gradient by a tile's logits; the exponentials stay as they are."""
        row, column = _factors(slopes, tile)
        if not self._wanted.columns:
            return torch.mul(exponentials, row[:, None], out=into)
        if not self._wanted.rows:
            return torch.mul(exponentials, column, out=into)
        return torch.add(row[:, None], column, out=into).mul_(exponentials)


class _OneForEachDirection:
    """Rows and columns each with a maximum of their own, so logits may be as large as the dtype holds."""

    def __init__(self, queries: Tensor, grid: _Grid, wanted: Wanted, log_counts: LogCounts | None) -> None:
        self._wanted, self._log_counts = wanted, log_counts
        self._rows = queries.new_full((grid.rows if wanted.rows else 0,), -torch.inf)
        self._columns = queries.new_full((grid.columns if wanted.columns else 0,), -torch.inf)

    def prepare(self, logits: Tensor, tile: _Tile, left_out: Tensor) -> None:
        """Turn the logits, in place, into what the other methods use."""
        _add_log_counts(logits, tile, self._log_counts)
        logits.view(-1).index_fill_(0, left_out, -torch.inf)

    def add(self, logits: Tensor, tile: _Tile) -> None:
        """Add a tile to the normalisers."""
        if self._wanted.rows:
            self._rows[tile.rows] = torch.logaddexp(self._rows[tile.rows], _log_sum_exp(logits, 1))
        if self._wanted.columns:
            self._columns[tile.columns] = torch.logaddexp(self._columns[tile.columns], _log_sum_exp(logits, 0))

    def normalisers(self) -> tuple[Tensor, Tensor]:
        """Log-normalisers of the rows and columns."""
        return self._rows, self._columns

    def slope(self, logits: Tensor, tile: _Tile, slopes: _Slopes, into: Tensor) -> Tensor:
        """The gradient by a tile's logits; the logits stay as they are."""
        into.zero_()
        if self._wanted.rows:
            rows = _finite(slopes.rows[tile.rows])[:, None]
            torch.sub(logits, rows, out=into).exp_().mul_(slopes.by_rows[tile.rows, None])
        if self._wanted.columns:
            columns = _finite(slopes.columns[tile.columns])
            into += (logits - columns).exp_().mul_(slopes.by_columns[tile.columns])
        return into


def _exponentials(
    queries: Tensor,
    documents: Tensor,
    scale: Tensor,
    log_counts: LogCounts | None,
    holders: Holders,
    grid: _Grid,
    wanted: Wanted,
) -> _OneExponential | _OneForEachDirection:
    """One exponential for both directions where no logit can leave its range, else one for each."""
    bound = scale.abs() * _largest(queries.norm(dim=1)) * holders.largest(_largest(documents.norm(dim=1)))
    for side in log_counts or ():
        bound = bound + _largest(side[side.isfinite()].abs())
    # Within it exp(+-bound), sums of millions of them, and small weights divided by these sums are normal numbers.
    safe = 0.62 * math.log(torch.finfo(queries.dtype).max)
    made = _OneExponential if float(bound) <= safe else _OneForEachDirection
    return made(queries, grid, wanted, log_counts)


def _largest(values: Tensor) -> Tensor:
    return values.max() if len(values) else values.new_zeros(())


def _factors(slopes: _Slopes, tile: _Tile) -> tuple[Tensor, Tensor]:
    """What the exponentials of a tile's rows and columns are multiplied by."""
    row = slopes.by_rows[tile.rows] * (-_finite(slopes.rows[tile.rows])).exp()
    return row, slopes.by_columns[tile.columns] * (-_finite(slopes.columns[tile.columns])).exp()


def _finite(normaliser: Tensor) -> Tensor:
    """Zero for the normaliser of nothing, whose exponentials are zero anyway."""
    return normaliser.masked_fill(normaliser == -torch.inf, 0.0)


def _add_log_counts(logits: Tensor, tile: _Tile, log_counts: LogCounts | None) -> None:
    if log_counts is not None:
        logits.add_(log_counts.row[tile.rows, None]).add_(log_counts.column[tile.columns])


def _log_sum_exp(logits: Tensor, dim: int) -> Tensor:
    """As `torch.logsumexp`, which takes twice the time on a CPU."""
    largest = _finite(logits.amax(dim, keepdim=True))
    return (logits - largest).exp_().sum(dim).log_().add_(largest.squeeze(dim))


def _view(buffer: Tensor, tile: _Tile) -> Tensor:
    return buffer[: tile.shape[0] * tile.shape[1]].view(tile.shape)
