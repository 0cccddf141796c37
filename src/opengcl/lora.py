"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through PEFT: put in before training, merged before saving."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel


def backbones(encoder: SentenceTransformer) -> list[PreTrainedModel]:
    """The Hugging Face models inside an encoder: one, or one a tower."""
    return [module for module in _topmost(encoder) if isinstance(module, PreTrainedModel)]


def add_adapters(encoder: SentenceTransformer, rank: int, *, seed: int = 0) -> None:
    """Freeze the backbones and put a trainable adapter beside each of their linear layers.

    Args:
        encoder: Changed in place.
        rank: Of the adapters; their scale alpha is twice that.
        seed: Of their random halves; the other halves start at 0, so that at first no vector changes.

    Raises:
        ValueError: PEFT is not installed, or the encoder has no Hugging Face model in it.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora_rank needs PEFT: pip install 'opengcl[lora]'") from error
    models = backbones(encoder)
    if not models:
        raise ValueError("lora_rank: the encoder has no Hugging Face model to put adapters in")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for model in models:
            linear = sorted({name for name, module in model.named_modules() if isinstance(module, nn.Linear)})
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), model)


def merge_adapters(encoder: SentenceTransformer) -> None:
    """Add the adapters into the weights and take them out, leaving the plain model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for model in backbones(encoder):
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.get_base_layer())


def _topmost(module: nn.Module) -> list[nn.Module]:
    """The outermost Hugging Face models, not the parts they are made of."""
    if isinstance(module, PreTrainedModel):
        return [module]
    return [found for child in module.children() for found in _topmost(child)]
