"""Bytes and a table give the processors' own features bit for bit, or it is said that they cannot."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import (
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from opengcl.picture_pixels import NotPixelsError, PixelForm

from .builders import clip


class Asked:
    """Stands where an encoder does: it has a processor and makes features with it, and counts how often."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.times = processor, 0

    def modules(self) -> list[Any]:
        return [self]

    def preprocess(self, pictures: list[Image.Image]) -> dict[str, Any]:
        self.times += 1
        return {**self.processor(pictures, return_tensors="pt"), "modality": "image"}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PROCESSORS = {
    "clip": lambda: CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
    "clip, cropped": lambda: CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 30, "width": 40}),
    "clip, padded": lambda: CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 48, "width": 48}),
    "siglip": lambda: SiglipImageProcessorPil(size={"height": 48, "width": 32}),
    "vit": lambda: ViTImageProcessorPil(size={"height": 48, "width": 48}),
    "vit, not normalised": lambda: ViTImageProcessorPil(size={"height": 48, "width": 48}, do_normalize=False),
    "vit, lanczos": lambda: ViTImageProcessorPil(size={"height": 48, "width": 48}, resample=Image.Resampling.LANCZOS),
    "convnext": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 48}),
}
QUICK = {name: name != "convnext" for name in PROCESSORS}
SIZES = st.tuples(st.integers(1, 150), st.integers(1, 150))


@functools.cache
def learnt(name: str) -> tuple[Asked, PixelForm]:
    encoder = Asked(PROCESSORS[name]())
    return encoder, PixelForm(encoder)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=15, deadline=None)
@given(size=SIZES, seed=st.integers(0, 99))
def test_floats_are_the_processors_own(name: str, size: tuple[int, int], seed: int) -> None:
    encoder, form = learnt(name)
    picture = noise(*size, seed)
    asked = encoder.times
    pixels = form.pixels(picture)
    assert (encoder.times == asked) == QUICK[name]
    expected = encoder.preprocess([picture])["pixel_values"]
    torch.testing.assert_close(form.floats(pixels[None]), expected, rtol=0, atol=0)
    assert form.rest == {"modality": "image"}


def siglip(folder: Path) -> SentenceTransformer:
    tokenizer = clip().tokenizer
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    config = SiglipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 16})
    SiglipModel(config).save_pretrained(folder)
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu")


def vit(folder: Path) -> SentenceTransformer:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("make", [lambda _: clip(), siglip, vit], ids=["clip", "siglip", "vit"])
def test_encoders_as_they_are_opened(tmp_path: Path, make: Any) -> None:
    encoder = make(tmp_path)
    form = PixelForm(encoder)
    assert form._quick is not None
    pictures = [noise(90, 40), noise(40, 90), noise(32, 32), noise(1, 1), noise(300, 7)]
    made = dict(encoder.preprocess(pictures))
    floats = form.floats(np.stack([form.pixels(picture) for picture in pictures]))
    torch.testing.assert_close(floats, made.pop("pixel_values"), rtol=0, atol=0)
    assert form.rest == made


def test_identity_is_what_the_processor_does() -> None:
    size = {"height": 48, "width": 48}
    settings_ = [
        {},
        {"resample": Image.Resampling.BICUBIC},
        {"image_mean": [0.4, 0.5, 0.5]},
        {"size": {"height": 48, "width": 32}},
        {"do_normalize": False},
    ]
    found = [PixelForm(Asked(ViTImageProcessorPil(**{"size": size, **one}))).identity for one in settings_]  # type: ignore[arg-type]
    assert len(set(found)) == len(found)
    assert PixelForm(Asked(ViTImageProcessorPil(size=size))).identity == found[0]  # type: ignore[arg-type]


class PerPicture(ViTImageProcessorPil):
    """Normalises each picture by its own brightness, so that no table holds its values."""

    size, do_normalize = {"height": 16, "width": 16}, False

    def rescale(self, image: np.ndarray, scale: float, **_: Any) -> np.ndarray:
        return (image / (1 + image.mean())).astype(np.float32)


class Shaded(ViTImageProcessorPil):
    """Darker towards one side."""

    size, do_normalize = {"height": 16, "width": 16}, False

    def rescale(self, image: np.ndarray, scale: float, **_: Any) -> np.ndarray:
        return (image * np.linspace(0.1, 1, 16)).astype(np.float32)


class Coarse(ViTImageProcessorPil):
    """Sixteen levels."""

    size, do_normalize = {"height": 16, "width": 16}, False

    def rescale(self, image: np.ndarray, scale: float, **_: Any) -> np.ndarray:
        return (image // 16).astype(np.float32)


@pytest.mark.parametrize(
    ("processor", "why"),
    [
        (lambda: PerPicture(), "two of the 256 levels|not among"),
        (lambda: Shaded(), "not among"),
        (lambda: Coarse(), "two of the 256 levels"),
        (lambda: CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False), "one for all"),
    ],
    ids=["per picture", "shaded", "coarse", "any shape"],
)
def test_other_processors_are_told_apart(processor: Any, why: str) -> None:
    with pytest.raises(NotPixelsError, match=why):
        PixelForm(Asked(processor()))  # type: ignore[arg-type]


def test_text_encoders_have_no_pixels() -> None:
    class Words:
        def preprocess(self, _: list[Any]) -> dict[str, Any]:
            return {"input_ids": torch.zeros(1, 4), "attention_mask": torch.ones(1, 4)}

    with pytest.raises(NotPixelsError, match=r"input_ids \(1, 4\), attention_mask \(1, 4\)"):
        PixelForm(Words())  # type: ignore[arg-type]


def test_it_travels_to_a_worker() -> None:
    form = PixelForm(clip())
    again = pickle.loads(pickle.dumps(form))  # noqa: S301
    np.testing.assert_array_equal(again.pixels(noise(50, 40)), form.pixels(noise(50, 40)))
