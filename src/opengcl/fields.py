"""Which fields a side has, their weights, and how their embeddings become one vector.

Source: arXiv 2404.08535, section 3.3 (mean-weighted fields); renormalising over the fields that are present is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor

from opengcl.data.problems import shown
from opengcl.data.schema import FieldType

Combine = Literal["mean", "pairwise", "both"]
COMBINES: tuple[str, ...] = get_args(Combine)
Missing = Literal["fill_in", "leave_out"]
MISSING: tuple[Missing, ...] = get_args(Missing)


def parse_fields(written: str) -> dict[str, float]:
    """Read ``"image=0.9,title=0.1"``, or ``"image,title"`` for equal weights, keeping the order.

    Raises:
        ValueError: A weight is not a number above 0, a name is empty or repeats, or nothing is named.
    """
    fields: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in written.split(","))):
        name, equals, number = part.partition("=")
        name = name.strip()
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            raise ValueError(f"field {part!r}: {number!r} is not a number; write name=weight") from None
        if not name:
            raise ValueError(f"field {part!r} has no name; write name=weight")
        if name in fields:
            raise ValueError(f"field {name!r} is named twice in {written!r}")
        fields[name] = weight
    return check_fields(fields)


def check_fields(fields: Mapping[str, Any]) -> dict[str, float]:
    """Weights divided by their sum.

    Raises:
        ValueError: No field, or a weight that is not a finite number above 0.
    """
    if not fields:
        raise ValueError("no field is named; write name=weight,name=weight")
    for name, weight in fields.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < float("inf"):
            raise ValueError(f"field {name!r} has weight {shown(weight)}; a weight is a finite number above 0")
    total = sum(fields.values())
    return {name: weight / total for name, weight in fields.items()}


def choose_fields(asked: Mapping[str, float] | None, available: Mapping[str, FieldType], side: str) -> dict[str, float]:
    """The asked fields, or every field of the data set with equal weights.

    Raises:
        ValueError: An asked field that the data set does not have; the message lists those it has.
    """
    if asked is None:
        return check_fields(dict.fromkeys(available, 1.0))
    unknown = [name for name in asked if name not in available]
    if unknown:
        raise ValueError(
            f"{side} field {unknown[0]!r} is not in the data set; its {side} fields: {', '.join(available)}"
        )
    return check_fields(asked)


def fuse(
    embeddings: Float[Tensor, "fields rows d"], present: Bool[Tensor, "fields rows"], weights: Float[Tensor, " fields"]
) -> Float[Tensor, "rows d"]:
    r"""``e = normalize(sum_f a_f e_f / sum_f a_f)`` over the fields f that a row has.

    Args:
        embeddings: Unit vectors a field; values of missing fields are ignored.
        present: Which rows have which field.
        weights: One number above 0 a field.

    Returns:
        Unit rows; zeros where a row has no field, as when its only picture cannot be read.
    """
    mix = weights[:, None] * present
    mix = mix / mix.sum(0, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    # where, not a product with 0: a missing field's value may be anything, NaN included.
    kept = torch.where(present[:, :, None], embeddings, torch.zeros_like(embeddings))
    return F.normalize((mix[:, :, None].to(embeddings.dtype) * kept).sum(0), dim=-1)
