"""Low-rank adapters: they alone learn in the backbones, and merge into a plain model that gives equal vectors."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from opengcl.encoders import two_towers
from opengcl.lora import add_adapters, backbones, merge_adapters

from .builders import MINILM, TEXTS, clip, static

PICTURES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def forward(encoder: SentenceTransformer, texts: list[str]) -> torch.Tensor:
    vectors: torch.Tensor = encoder(dict(encoder.preprocess(texts)))["sentence_embedding"]
    return vectors


def step(encoder: SentenceTransformer) -> None:
    """One large step of plain gradient descent on a loss that reaches both towers."""
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.5)
    images = encoder({"pixel_values": PICTURES, "modality": "image"})["sentence_embedding"]
    (forward(encoder, TEXTS[:6]).pow(3).sum() + images.pow(3).sum()).backward()
    optimizer.step()


def vectors(encoder: SentenceTransformer) -> list[np.ndarray]:
    with torch.inference_mode():
        images = encoder.eval()({"pixel_values": PICTURES, "modality": "image"})["sentence_embedding"].numpy()
        return [forward(encoder, TEXTS[:6]).numpy(), images]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_new_adapters_change_no_vector_and_are_all_that_learns() -> None:
    encoder = clip()
    before = vectors(encoder)
    add_adapters(encoder, 2)
    for one, other in zip(vectors(encoder), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)
    learning = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in encoder.named_parameters() if is_adapter(name)}
    linear = [module for module in clip().modules() if isinstance(module, nn.Linear)]
    assert len(learning) == 2 * len(linear)  # one adapter, two matrices, beside each linear layer
    ranks = {p.shape[0] for name, p in encoder.named_parameters() if ".lora_A." in name}
    assert ranks == {2}


def test_training_changes_adapters_alone() -> None:
    encoder = clip()
    add_adapters(encoder, 2)
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    step(encoder)
    changed = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(is_adapter(name) for name in changed)
    # B starts at zero, so the first step moves B only; both towers are reached.
    assert any("text_model" in name for name in changed)
    assert any("vision_model" in name for name in changed)


def test_merged_model_is_plain_and_gives_equal_vectors(tmp_path: Path) -> None:
    encoder, untouched = clip(), clip()
    names = set(encoder.state_dict())
    add_adapters(encoder, 2)
    step(encoder.train())
    expected = vectors(encoder)
    assert np.abs(expected[0] - vectors(untouched)[0]).max() > 1e-3
    assert np.abs(expected[1] - vectors(untouched)[1]).max() > 1e-3
    merge_adapters(encoder)
    assert set(encoder.state_dict()) == names
    encoder.save(str(tmp_path), create_model_card=False, safe_serialization=True)
    assert not [path for path in tmp_path.rglob("*") if "adapter" in path.name]
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    for found in (vectors(encoder), vectors(plain)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_both_towers_get_adapters_and_their_projections_learn(vit: str, tmp_path: Path) -> None:
    encoder = two_towers(MINILM, vit, dim=8)
    assert len(backbones(encoder)) == 2
    names = set(encoder.state_dict())
    add_adapters(encoder, 2)
    learning = {name for name, p in encoder.named_parameters() if p.requires_grad}
    plain = {name for name in learning if not is_adapter(name)}
    assert {encoder.get_parameter(name).shape for name in plain} == {(8, 384), (8, 16)}
    assert any("text" in name for name in learning - plain)
    assert any("image" in name for name in learning - plain)
    step(encoder)
    expected = vectors(encoder)
    merge_adapters(encoder)
    assert set(encoder.state_dict()) == names
    encoder.save(str(tmp_path), create_model_card=False, safe_serialization=True)
    for one, other in zip(vectors(SentenceTransformer(str(tmp_path), device="cpu")), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_adapters_repeat_by_seed() -> None:
    states = []
    for seed, noise in ((1, 10), (1, 11), (2, 12)):
        encoder = clip()
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        add_adapters(encoder, 2, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append({name: p for name, p in encoder.named_parameters() if ".lora_A." in name})
    assert all(torch.equal(states[1][name], p) for name, p in states[0].items())
    assert not any(torch.equal(states[2][name], p) for name, p in states[0].items())


def test_encoders_without_a_transformer_are_refused() -> None:
    with pytest.raises(ValueError, match="lora_rank: the encoder has no Hugging Face model to put adapters in"):
        add_adapters(static(), 2)


def test_without_peft_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_peft(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "peft":
            raise ImportError("no peft")
        return real(name, *rest)

    encoder = clip()
    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ValueError, match=r"pip install 'opengcl\[lora\]'"):
        add_adapters(encoder, 2)
