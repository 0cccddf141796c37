"""Encoders of known sizes with random weights, and batches for them that are there beforehand."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.gpu import Setting
from benchmarks.speed.cost_model import TINY, VIT_B32, Clip
from benchmarks.speed.steps import vit_b32
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from opengcl.batches import Relation
from opengcl.encoders import tiny_clip
from opengcl.inputs import CHUNK_ROWS, Features, FieldInput, text_features
from opengcl.lora import backbones
from opengcl.model import BiEncoder, FieldMix
from opengcl.objective import RankingObjective, relation_tensors

WORDS = [f"{kind}{number}" for kind in ("red", "wool", "large", "shoe", "summer") for number in range(200)]
"""A thousand made-up words; titles and queries are drawn from them."""


def sentences(rows: int, words: int, seed: int) -> list[str]:
    """Rows of so many words."""
    drawn = np.random.default_rng(seed).integers(0, len(WORDS), (rows, words))
    return [" ".join(WORDS[word] for word in row) for row in drawn]


def clip_folder(setting: Setting, folder: Path) -> tuple[Path, Clip, int]:
    """A CLIP of ViT-B/32's size (``tiny`` in a check): its folder, the sizes of its towers, pixels of a side."""
    if setting.full:
        return vit_b32(sentences(2_000, 12, 0), folder), VIT_B32, 224
    tiny_clip(sentences(200, 6, 0), image_size=32).save(str(folder))
    return folder, TINY, 32


def text_encoder(setting: Setting, folder: Path, texts: list[str]) -> SentenceTransformer:
    """A BERT of MiniLM's size, six layers of 384, without dropout; two small layers in a check."""
    clips = tiny_clip(texts, image_size=32, vocabulary=30_522).tokenizer
    # Without the name of CLIP's processor, which would look for pictures' settings.
    special = clips.special_tokens_map
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=clips.backend_tokenizer, model_max_length=32, **special)
    size = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1_536}
    if not setting.full:
        size = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=max(30_522, len(tokenizer)), pad_token_id=tokenizer.pad_token_id, **size, **none)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SentenceTransformer(
        modules=[Transformer(str(folder)), Pooling(size["hidden_size"], pooling_mode="mean")], device="cpu"
    )


@dataclass(frozen=True)
class Prepared:
    """A batch of queries and one picture each, on a device, and what a step of it costs."""

    batch: dict[str, Any]
    documents: int
    tokens: float

    def flop(self, clip: Clip) -> float:
        """Operations of forward and backward of a step's encoding."""
        forward = clip.image.forward() + clip.text.forward(self.tokens)
        return 3 * self.documents * forward


def prepared(
    encoder: SentenceTransformer, documents: int, pixels: int, device: str, *, chunk_rows: int = CHUNK_ROWS
) -> Prepared:
    """Random pixels and made-up queries as `opengcl.inputs.Inputs` gives them."""
    rest = {
        name: value
        for name, value in dict(encoder.preprocess([Image.new("RGB", (pixels, pixels))])).items()
        if not isinstance(value, torch.Tensor)
    }
    starts = range(0, documents, chunk_rows)
    texts = sentences(documents, 4, documents)
    chunks = [dict(text_features(encoder, texts[start : start + chunk_rows], "query")) for start in starts]
    pictures = []
    for start in starts:
        rows = min(chunk_rows, documents - start)
        pictures.append({**rest, "pixel_values": torch.randn(rows, 3, pixels, pixels, device=device)})
    every = np.arange(documents)
    ones = np.ones(documents, dtype=np.float32)
    relation = Relation(every, every, every, every, ones, every, every, ones)
    batch = {
        "queries": {"query": _field(chunks, documents, device)},
        "documents": {"image": _field(pictures, documents, device)},
        "relation": {name: value.to(device) for name, value in relation_tensors(relation).items()},
    }
    tokens = sum(chunk["input_ids"].numel() for chunk in chunks) / documents
    return Prepared(batch, documents, tokens)


def _field(chunks: list[Features], rows: int, device: str) -> FieldInput:
    moved = [
        {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in chunk.items()}
        for chunk in chunks
    ]
    present = torch.ones(rows, dtype=torch.bool, device=device)
    return {"chunks": moved, "order": torch.arange(rows, device=device), "present": present}


def objective(
    encoder: SentenceTransformer, device: str, *, recompute: bool = False, checkpointing: bool = False
) -> RankingObjective:
    """CLIP's own loss around a copy of an encoder: queries of text, documents of a picture."""
    encoder = copy.deepcopy(encoder)
    if checkpointing:
        for backbone in backbones(encoder):
            # The second is the name of transformers 5.17 and before, which the newer ones warn of.
            enable = (
                getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
    mix = FieldMix({"query": 1.0}, {"image": 1.0}, {"query": "text"}, {"image": "image"})
    made = RankingObjective(BiEncoder(encoder, mix), target="diagonal", direction="both", recompute=recompute)
    return made.to(device)


def moved(value: Any, device: str, *, non_blocking: bool = False) -> Any:
    """Every tensor of nested dicts and lists on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, dict):
        return {name: moved(part, device, non_blocking=non_blocking) for name, part in value.items()}
    if isinstance(value, list):
        return [moved(part, device, non_blocking=non_blocking) for part in value]
    return value


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(part.numel() for part in module.parameters())
