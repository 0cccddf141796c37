"""What stands for a field that a row lacks: its vector as the fields that are there predict it.

A document without a picture, left at the mean of what it has, is scored by its title alone, and titles lie nearer to
queries than pictures do: such documents would take first places that they do not deserve. So each pair of fields
(p, m) has a map, fitted by ridge regression over rows that have both,

    e_m ~ mu_m + (e_p - mu_p) A_pm,    A_pm = (C_pp + lambda I)^-1 C_pm,    lambda = RIDGE * trace(C_pp) / d

where mu and C are the means and covariances of the two fields' unit vectors over those rows. A missing field's
prediction is the mean of the maps from the present fields, weighted by the fields' weights, and brought to length 1.
The row is then fused as if the field were there. One row needs nothing but the maps, so an index that is built and a
single document that is added later get the same vector.

Conditional-mean imputation is textbook (Little & Rubin, Statistical Analysis with Missing Data, 2019, section 4.2); its
use on the fields of a bi-encoder is ours.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

RIDGE = 0.1
"""Share of the mean variance of a component that is added to every component's."""
MIN_ROWS = 32
"""A pair of fields that fewer rows have together gets no map."""
FIT_ROWS = 10_000
"""Rows that maps are learned from at most."""
PARTS = ("source_mean", "target_mean", "matrix")
_Pair = tuple[str, str]


class FillInError(ValueError):
    """A file of maps that does not fit the model beside it."""


@dataclass(frozen=True)
class FieldMap:
    """Predicts one field's vector from another's."""

    source_mean: Float[Tensor, " d"]
    target_mean: Float[Tensor, " d"]
    matrix: Float[Tensor, "d d"]

    def __call__(self, vectors: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """The predictions."""
        return (vectors - self.source_mean.to(vectors)) @ self.matrix.to(vectors) + self.target_mean.to(vectors)


@dataclass(frozen=True)
class FillIn:
    """Maps between the fields of a side.

    Attributes:
        maps: (present field, missing field) -> map. Pairs that too few rows had together are not there.
    """

    maps: Mapping[_Pair, FieldMap]

    def __call__(
        self,
        embeddings: Float[Tensor, "fields rows d"],
        present: Bool[Tensor, "fields rows"],
        weights: Mapping[str, float],
    ) -> tuple[Float[Tensor, "fields rows d"], Bool[Tensor, "fields rows"]]:
        """The vectors with missing fields filled in, and which fields there are then.

        Args:
            embeddings: Unit vectors a field; values of missing fields are ignored.
            present: Which rows have which field.
            weights: Field -> weight, in the order of ``embeddings``.

        Returns:
            Both arguments themselves where no row lacks a field that could be filled in. A row without any field stays
            without.
        """
        names = list(weights)
        filled, there = embeddings, present
        for number, name in enumerate(names):
            sources = [(names.index(p), weights[p], self.maps[p, name]) for p in names if (p, name) in self.maps]
            known = [place for place, _, _ in sources]
            rows = (~present[number] & present[known].any(0)).nonzero()[:, 0] if known else torch.empty(0).long()
            if not len(rows):
                continue
            if filled is embeddings:
                filled, there = embeddings.clone(), present.clone()
            filled[number, rows] = _predicted(embeddings[:, rows], present[:, rows], sources)
            there[number, rows] = True
        return filled, there

    def save(self, file: Path) -> None:
        """Write the maps as safetensors, float32."""
        tensors = {
            json.dumps([source, target, part]): getattr(one, part).float().cpu().contiguous()
            for (source, target), one in self.maps.items()
            for part in PARTS
        }
        save_file(tensors, str(file))

    @classmethod
    def load(cls, file: Path, fields: Collection[str], width: int) -> FillIn:
        """Read what `save` wrote.

        Args:
            file: The file.
            fields: The side's fields.
            width: Components of their vectors.

        Raises:
            FillInError: Not such a file, maps between other fields, or a tensor of another shape or type or one that
                is not finite.
        """
        found: dict[_Pair, dict[str, Tensor]] = {}
        try:
            with safe_open(str(file), framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    source, target, part = json.loads(key)
                    entry = opened.get_slice(key)
                    expected = "F32", [width, width] if part == "matrix" else [width]
                    is_so = entry.get_dtype(), entry.get_shape()
                    if is_so != expected:
                        raise FillInError(f"{file}: {key[:200]} is {is_so}; allowed: {expected}")
                    found.setdefault((source, target), {})[part] = opened.get_tensor(key)
            maps = {pair: FieldMap(**parts) for pair, parts in found.items()}
        except (OSError, SafetensorError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, FillInError):
                raise
            raise FillInError(f"{file}: not maps between fields ({type(error).__name__}: {error})") from error
        for (source, target), one in maps.items():
            if source not in fields or target not in fields or source == target:
                raise FillInError(
                    f"{file}: a map from {source!r} to {target!r}; the model's fields: {', '.join(fields)}"
                )
            if not all(bool(getattr(one, part).isfinite().all()) for part in PARTS):
                raise FillInError(f"{file}: the map from {source!r} to {target!r} holds a number that is not finite")
        return cls(maps)


class Moments:
    """Sums over rows, of which `fit` makes a `FillIn`; rows may come in any number of parts."""

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = list(fields)
        self._pairs = list(itertools.combinations(range(len(self.fields)), 2))
        self._sums: dict[tuple[int, int], tuple[Tensor, ...]] = {}  # rows, their sum, and the sum of their squares

    def add(self, embeddings: Float[Tensor, "fields rows d"], present: Bool[Tensor, "fields rows"]) -> None:
        """Take some rows' unit vectors, of the fields that are present, into the sums."""
        for pair in self._pairs:
            both = present[list(pair)].all(0)
            joined = torch.cat([embeddings[field, both] for field in pair], dim=1).double()
            sums = (torch.tensor(len(joined)), joined.sum(0), joined.T @ joined)
            before = self._sums.get(pair)
            self._sums[pair] = sums if before is None else tuple(map(torch.add, before, sums))

    def fit(self, ridge: float = RIDGE) -> FillIn:
        """The maps between every two fields that at least `MIN_ROWS` rows had together."""
        maps: dict[_Pair, FieldMap] = {}
        for pair, (rows, sums, squares) in self._sums.items():
            if rows < MIN_ROWS:
                continue
            mean = sums / rows
            covariance = squares / rows - torch.outer(mean, mean)
            d = len(mean) // 2
            first, second = slice(0, d), slice(d, 2 * d)
            for (p, m), (here, there) in ((pair, (first, second)), (pair[::-1], (second, first))):
                within = covariance[here, here]
                # The smallest number of float32 keeps it solvable where all vectors are equal.
                added = ridge * within.trace() / d + torch.finfo(torch.float32).tiny
                matrix = torch.linalg.solve(within + added * torch.eye(d).to(within), covariance[here, there])
                maps[self.fields[p], self.fields[m]] = FieldMap(mean[here].float(), mean[there].float(), matrix.float())
        return FillIn(maps)


def learned_fill_in(
    embeddings: Float[Tensor, "fields rows d"], present: Bool[Tensor, "fields rows"], fields: Sequence[str]
) -> FillIn:
    """The maps that rows teach which are all at hand; of more than `FIT_ROWS` with two fields, as many are drawn.

    Args:
        embeddings: Unit vectors a field.
        present: Which rows have which field.
        fields: Names of the fields, in order.
    """
    several = drawn((present.sum(0) > 1).nonzero()[:, 0].numpy())
    moments = Moments(fields)
    moments.add(embeddings[:, several], present[:, several])
    return moments.fit()


def drawn(rows: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " drawn"]:
    """The rows to learn from: all of them, or `FIT_ROWS` drawn by a fixed seed, ascending."""
    if len(rows) <= FIT_ROWS:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, FIT_ROWS, replace=False))


def _predicted(
    embeddings: Float[Tensor, "fields rows d"],
    present: Bool[Tensor, "fields rows"],
    sources: Sequence[tuple[int, float, FieldMap]],
) -> Float[Tensor, "rows d"]:
    """Unit vectors: the mean of the maps from the fields that each row has; one of them at least."""
    total = torch.zeros_like(embeddings[0])
    for place, weight, one in sources:
        # where, not a product with 0: a missing field's value may be anything, NaN included.
        total += torch.where(present[place][:, None], weight * one(embeddings[place]), torch.zeros_like(total))
    return F.normalize(total, dim=-1)
