"""Pictures that look the same, and those that do not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from opengcl.near_pictures import LookAlikes, difference_hash


def blocks(seed: int, size: tuple[int, int] = (240, 320)) -> Image.Image:
    """Random colours in 6 x 8 blocks."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def on_white(colour: str, corner: tuple[int, int] = (60, 80)) -> Image.Image:
    image = Image.new("RGB", (240, 320), "white")
    ImageDraw.Draw(image).rectangle((*corner, 180, 260), fill=colour)
    return image


def again(image: Image.Image, size: tuple[int, int], quality: int) -> Image.Image:
    out = io.BytesIO()
    image.resize(size).save(out, "JPEG", quality=quality)
    return Image.open(out)


def test_the_hash_has_a_bit_for_each_place_that_gets_brighter() -> None:
    assert difference_hash(Image.new("L", (90, 80), 77)) == 0
    rising = Image.fromarray(np.repeat(np.repeat(np.arange(9, dtype=np.uint8)[None] * 20, 10, 1), 80, 0))
    assert difference_hash(rising) == 2**64 - 1
    assert difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    half = np.asarray(rising).copy()
    half[40:] = 0
    assert difference_hash(Image.fromarray(half)) == (2**32 - 1) << 32
    step = np.zeros((80, 90), np.uint8)
    step[:10, 10:] = 50
    assert difference_hash(Image.fromarray(step)) == 1 << 63


@pytest.mark.parametrize(("size", "quality"), [((240, 320), 50), ((120, 160), 80), ((480, 640), 70)])
def test_the_same_picture_in_another_size_and_quality_is_found(size: tuple[int, int], quality: int) -> None:
    found = LookAlikes()
    images = [*(blocks(seed) for seed in range(10)), on_white("darkred"), on_white("olive")]
    for image in images:
        found.add(image)
    for image in images:
        found.add(again(image, size, quality))
    pairs, shares = found.pairs()
    assert sorted(pairs.tolist()) == [[at, at + len(images)] for at in range(len(images))]
    assert (shares < 0.15).all()
    assert (np.diff(shares) >= 0).all()


def test_other_pictures_are_not_found() -> None:
    found = LookAlikes()
    for seed in range(200):
        found.add(blocks(seed))
    for colour in ("darkred", "olive", "navy", "black"):  # of one shape
        found.add(on_white(colour))
    found.add(on_white("navy", (90, 130)))
    for shade in (0, 60, 255):
        found.add(Image.new("RGB", (9, 9), (shade, 0, 0)))
    assert found.pairs()[0].tolist() == []


def test_all_pairs_of_equal_pictures_are_found_across_blocks() -> None:
    found = LookAlikes()
    for number in range(1200):
        found.add(blocks(number) if number % 400 else on_white("navy"))
    pairs, shares = found.pairs()
    assert sorted(pairs.tolist()) == [[0, 400], [0, 800], [400, 800]]
    assert shares.tolist() == [0, 0, 0]
    assert len(found) == 1200


def test_nothing_and_one_have_no_pairs() -> None:
    found = LookAlikes()
    assert found.pairs()[0].shape == (0, 2)
    found.add(blocks(0))
    assert found.pairs()[0].shape == (0, 2)
