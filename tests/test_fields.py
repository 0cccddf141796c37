"""Fields: how they are written, chosen and checked; fusion against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opengcl.fields import check_fields, choose_fields, fuse, parse_fields


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("image=0.9,title=0.1", {"image": 0.9, "title": 0.1}),
        (" title = 3 , image=1 ", {"title": 0.75, "image": 0.25}),
        ("image,title", {"image": 0.5, "title": 0.5}),
        ("a=3,b", {"a": 0.75, "b": 0.25}),
        ("only=7,", {"only": 1.0}),
    ],
)
def test_written_fields_are_read_in_order_and_sum_to_one(written: str, expected: dict[str, float]) -> None:
    fields = parse_fields(written)
    assert list(fields) == list(expected)
    assert fields == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "no field is named"),
        (" , ", "no field is named"),
        ("a=much", "'much' is not a number"),
        ("a=", "'' is not a number"),
        ("a=1,a=2", "'a' is named twice"),
        ("a=0", "'a' has weight 0.0; a weight is a finite number above 0"),
        ("a=-1", "above 0"),
        ("a=nan", "above 0"),
        ("a=inf", "above 0"),
        ("=1", "has no name"),
    ],
)
def test_badly_written_fields_are_refused(written: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_fields(written)


def test_chosen_fields() -> None:
    available = {"title": "text", "image": "image"}
    assert choose_fields(None, available, "document") == {"title": 0.5, "image": 0.5}
    assert choose_fields({"image": 4.0}, available, "document") == {"image": 1.0}
    with pytest.raises(
        ValueError, match="document field 'titel' is not in the data set; its document fields: title, im"
    ):
        choose_fields({"titel": 1.0}, available, "document")
    with pytest.raises(ValueError, match="field 'title' has weight -1"):
        choose_fields({"title": -1.0}, available, "document")
    with pytest.raises(ValueError, match="no field"):
        check_fields({})


def loop_fuse(embeddings: Tensor, present: Tensor, weights: Tensor) -> list[list[float]]:
    """The formula, a row, a field and a number at a time."""
    fields, rows, width = embeddings.shape
    fused = []
    for i in range(rows):
        total = sum(float(weights[f]) for f in range(fields) if present[f, i])
        row = [
            sum(float(weights[f]) / total * float(embeddings[f, i, k]) for f in range(fields) if present[f, i])
            for k in range(width)
        ]
        length = math.sqrt(sum(value * value for value in row))
        fused.append([value / length for value in row])
    return fused


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 5), st.floats(1e-3, 1e3), st.integers(0, 10_000))
def test_fusion_is_the_formula_over_present_fields(
    fields: int, rows: int, width: int, factor: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(fields, rows, width, generator=generator, dtype=torch.float64)
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
    present = torch.rand(fields, rows, generator=generator) < 0.6
    present[torch.randint(fields, (rows,), generator=generator), torch.arange(rows)] = True
    weights = torch.rand(fields, generator=generator, dtype=torch.float64) + 0.05
    spoilt = embeddings.masked_fill(~present[:, :, None], torch.nan)
    expected = torch.tensor(loop_fuse(embeddings, present, weights), dtype=torch.float64)
    for values in (embeddings, spoilt):
        torch.testing.assert_close(fuse(values, present, weights), expected, rtol=1e-10, atol=1e-12)
    fused = fuse(spoilt, present, weights * factor)
    torch.testing.assert_close(fused, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fused.norm(dim=1), torch.ones(rows, dtype=torch.float64))


def test_missing_fields_get_no_gradient_and_spoil_none() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    embeddings[1, 0] = torch.nan
    embeddings.requires_grad_()
    present = torch.tensor([[True, True, True], [False, True, True]])
    fuse(embeddings, present, torch.tensor([0.25, 0.75]))[:, 0].sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad[1, 0].abs().max() == 0
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad[1, 1].abs().max() > 0
