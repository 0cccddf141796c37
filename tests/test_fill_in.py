"""Missing fields: maps against a solver of least squares, what is filled in against a loop, and hostile files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from opengcl.fields import fuse
from opengcl.fill_in import MIN_ROWS, FieldMap, FillIn, FillInError, Moments

WEIGHTS = {"image": 0.9, "title": 0.1}


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def fitted(fields: int, rows: int, d: int, *, seed: int = 0, ridge: float = 0.01) -> tuple[FillIn, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors, present = unit(generator, fields, rows, d), torch.rand(fields, rows, generator=generator) < 0.8
    moments = Moments([f"f{number}" for number in range(fields)])
    for part in torch.arange(rows).split(17):
        moments.add(vectors[:, part], present[:, part])
    return moments.fit(ridge), vectors, present


@given(fields=st.integers(2, 4), d=st.integers(1, 6), seed=st.integers(0, 99), ridge=st.floats(0.001, 1.0))
@settings(max_examples=25, deadline=None)
def test_a_map_is_ridge_regression_over_the_rows_that_have_both(fields: int, d: int, seed: int, ridge: float) -> None:
    fill_in, vectors, present = fitted(fields, 120, d, seed=seed, ridge=ridge)
    assert len(fill_in.maps) == fields * (fields - 1)
    for (source, target), one in fill_in.maps.items():
        p, m = int(source[1:]), int(target[1:])
        both = (present[p] & present[m]).numpy()
        x, y = vectors[p].numpy()[both].astype(float), vectors[m].numpy()[both].astype(float)
        x, y = x - x.mean(0), y - y.mean(0)
        added = ridge * np.trace(x.T @ x) / d  # the same, in sums and not in means
        # Ridge regression is least squares with d more rows: sqrt(added) times the unit matrix, to be mapped to 0.
        rows = np.vstack([x, np.sqrt(added) * np.eye(d)])
        expected = np.linalg.lstsq(rows, np.vstack([y, np.zeros((d, d))]), rcond=None)[0]
        np.testing.assert_allclose(one.matrix.numpy(), expected, atol=2e-5)
        np.testing.assert_allclose(one.source_mean.numpy(), vectors[p].numpy()[both].mean(0), atol=1e-6)


def test_a_field_that_another_one_tells_is_filled_in_with_what_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    image = unit(generator, 200, 8)
    turned = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    vectors = torch.stack([image, image @ turned])
    moments = Moments(list(WEIGHTS))
    moments.add(vectors[:, :150], torch.ones(2, 150, dtype=torch.bool))
    present = torch.ones(2, 50, dtype=torch.bool)
    present[0, :20], present[1, 30:40] = False, False
    hidden = torch.where(present[:, :, None], vectors[:, 150:], torch.nan)
    filled, there = moments.fit(1e-6)(hidden, present, WEIGHTS)
    assert there.all()
    torch.testing.assert_close(filled, vectors[:, 150:], atol=1e-3, rtol=0)
    assert torch.equal(filled[present], vectors[:, 150:][present])  # what is there stays to the bit


@given(fields=st.integers(2, 4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_filled_in_fields_against_a_loop(fields: int, seed: int) -> None:
    fill_in, vectors, present = fitted(fields, 90, 5, seed=seed)
    weights = {f"f{number}": 1.0 + number for number in range(fields)}
    hidden = torch.where(present[:, :, None], vectors, torch.nan)
    filled, there = fill_in(hidden, present, weights)
    for row in range(90):
        known = [number for number in range(fields) if present[number, row]]
        for number in range(fields):
            assert bool(there[number, row]) == bool(known)
            if number in known:
                assert torch.equal(filled[number, row], vectors[number, row])
            elif known:
                total = sum(
                    weights[f"f{p}"] * fill_in.maps[f"f{p}", f"f{number}"](vectors[p, row : row + 1])[0] for p in known
                )
                assert isinstance(total, Tensor)
                torch.testing.assert_close(filled[number, row], total / total.norm(), atol=1e-5, rtol=0)


def test_nothing_missing_is_nothing_changed() -> None:
    fill_in, vectors, _ = fitted(2, 90, 5)
    present = torch.ones(2, 90, dtype=torch.bool)
    present[:, 4] = False  # a row without any field has nothing to be filled in from
    filled, there = fill_in(vectors, present, {"f0": 0.5, "f1": 0.5})
    assert filled is vectors
    assert there is present


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_documents_without_a_picture_take_the_first_places_that_are_theirs(share: float) -> None:
    """Topics in 64 dimensions: titles lie near their topic, as queries do, and pictures lie apart from both."""
    generator = torch.Generator().manual_seed(0)
    topic, apart = unit(generator, 2000, 64), unit(generator, 1, 64)
    near = torch.nn.functional.normalize
    title = near(topic + 0.05 * torch.randn(2000, 64, generator=generator), dim=-1)
    image = near(0.5 * topic + apart + 0.05 * torch.randn(2000, 64, generator=generator), dim=-1)
    queries = near(topic + topic.roll(1, 0) + 0.05 * torch.randn(2000, 64, generator=generator), dim=-1)
    assert (queries * title).sum(1).mean() > 0.6 > 0.4 > (queries * image).sum(1).mean()
    vectors = torch.stack([image, title])
    present = torch.ones(2, 2000, dtype=torch.bool)
    present[0] = torch.rand(2000, generator=generator) >= share
    moments = Moments(["image", "title"])
    moments.add(vectors, present)

    def first_places(rows: Tensor, there: Tensor) -> float:
        first = (queries @ fuse(rows, there, torch.tensor([0.5, 0.5])).T).argmax(1)
        return float((~present[0][first]).float().mean())

    weights = {"image": 0.5, "title": 0.5}
    assert first_places(vectors, present) > 1.3 * share
    # A little less than their share: a prediction is never as lucky as the best of many pictures.
    assert 0.6 * share < first_places(*moments.fit()(vectors, present, weights)) < 1.1 * share


def test_too_few_rows_make_no_map() -> None:
    fill_in, vectors, _ = fitted(2, MIN_ROWS - 1, 5)
    assert not fill_in.maps
    present = torch.ones(2, len(vectors[0]), dtype=torch.bool)
    present[0, 3] = False
    filled, there = fill_in(vectors, present, {"f0": 0.5, "f1": 0.5})
    assert filled is vectors
    assert there is present


def test_equal_vectors_predict_themselves() -> None:
    vectors = torch.zeros(2, 40, 3)
    vectors[0, :, 0], vectors[1, :, 1] = 1.0, 1.0
    moments = Moments(["a", "b"])
    moments.add(vectors, torch.ones(2, 40, dtype=torch.bool))
    filled, _ = moments.fit()(vectors[:, :1], torch.tensor([[True], [False]]), {"a": 0.5, "b": 0.5})
    torch.testing.assert_close(filled[1, 0], torch.tensor([0.0, 1.0, 0.0]))


def test_saved_maps_come_back_to_the_bit(tmp_path: Path) -> None:
    fill_in, _, _ = fitted(3, 90, 5)
    file = tmp_path / "fill_in.safetensors"
    fill_in.save(file)
    read = FillIn.load(file, ["f0", "f1", "f2"], 5)
    assert read.maps.keys() == fill_in.maps.keys()
    for pair, one in fill_in.maps.items():
        assert all(torch.equal(getattr(one, part), getattr(read.maps[pair], part)) for part in vars(one))
    with pytest.raises(FillInError, match=r"allowed: \('F32', \[6"):
        FillIn.load(file, ["f0", "f1", "f2"], 6)
    with pytest.raises(FillInError, match="the model's fields: f0, f1"):
        FillIn.load(file, ["f0", "f1"], 5)


def key(source: str, target: str, part: str) -> str:
    return json.dumps([source, target, part])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": torch.ones(2)}, "not maps between fields"),
        ({key("a", "b", "matrix"): torch.ones(2, 2)}, "not maps between fields"),  # the means are missing
        ({key("a", "b", "other"): torch.ones(2)}, "not maps between fields"),
        ({key("a", "b", "matrix"): torch.ones(2, 2).double()}, r"\('F64', \[2, 2\]\); allowed: \('F32', \[2, 2\]\)"),
        ({key("a", "b", "source_mean"): torch.ones(3)}, r"\('F32', \[3\]\); allowed: \('F32', \[2\]\)"),
        (FillIn({("a", "a"): FieldMap(torch.ones(2), torch.ones(2), torch.ones(2, 2))}), "a map from 'a' to 'a'"),
        (FillIn({("a", "b"): FieldMap(torch.ones(2), torch.ones(2), torch.full((2, 2), torch.nan))}), "not finite"),
        (b"\x80\x04 no safetensors", "not maps between fields"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path: Path, tensors: dict[str, Tensor] | FillIn | bytes, message: str) -> None:
    file = tmp_path / "fill_in.safetensors"
    if isinstance(tensors, FillIn):
        tensors.save(file)
    elif isinstance(tensors, bytes):
        file.write_bytes(tensors)
    else:
        save_file(tensors, str(file))
    with pytest.raises(FillInError, match=message):
        FillIn.load(file, ["a", "b"], 2)
