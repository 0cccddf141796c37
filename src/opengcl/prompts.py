"""What a model puts before a text: its prompt for queries and its prompt for documents.

The rules are those of sentence-transformers' ``encode_query`` and ``encode_document``, so that a saved model gives the
same vectors there: queries take ``prompts["query"]``, documents the first of ``"document"``, ``"passage"`` and
``"corpus"`` that the model has, and only a model that has none of these falls back on ``default_prompt_name``. A prompt
goes before texts alone, never before images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from sentence_transformers import SentenceTransformer
from torch import Tensor

from opengcl.data.problems import shown
from opengcl.plain_files import read_plain

Side = Literal["query", "document"]
SIDES: tuple[Side, ...] = get_args(Side)
LONGEST = 10_000
"""Characters of a prompt at most."""
_NAMES: dict[Side, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_FILE = "config_sentence_transformers.json"
logger = logging.getLogger(__name__)


class PromptError(ValueError):
    """A prompt that a model cannot be used with."""


def prompt_of(encoder: SentenceTransformer, side: Side) -> str:
    """What goes before a text of one side; empty for nothing."""
    prompts: Mapping[str, str | None] = encoder.prompts
    for name in (*_NAMES[side], encoder.default_prompt_name):
        if name in prompts:
            return prompts[name] or ""
    return ""


def prompts_of(encoder: SentenceTransformer) -> dict[Side, str]:
    """The prompt of each side."""
    return {side: prompt_of(encoder, side) for side in SIDES}


def settle_prompts(encoder: SentenceTransformer, *, query: str | None = None, document: str | None = None) -> None:
    """Gives a model other prompts, which are saved with it, and makes sure that those it has leave room for texts.

    Args:
        encoder: The model; it is changed.
        query: Before each query; None for the model's own prompt, empty for none.
        document: Before each text of a document, likewise.

    Raises:
        PromptError: A prompt fills all tokens that the model reads, or is longer than `LONGEST`.
    """
    given: dict[Side, str | None] = {"query": query, "document": document}
    for side, prompt in given.items():
        if prompt is not None:
            encoder.prompts[_NAMES[side][0]] = prompt
    if document is None:
        _warn_of_a_prompt_left_aside(encoder)
    for side, prompt in prompts_of(encoder).items():
        if prompt:
            _check_room(encoder, side, prompt)


def described(prompts: Mapping[Side, str]) -> str | None:
    """A sentence about the prompts for whoever runs a model; None where it has none."""
    if not any(prompts.values()):
        return None
    told = [f"{side} texts with {shown(prompt) if prompt else 'none'}" for side, prompt in prompts.items()]
    return f"prompts: {', '.join(told)} (query_prompt and document_prompt change them)"


def saved_prompts(folder: Path) -> dict[str, Any]:
    """The prompts that are not empty in a model's folder, by name, without opening the model; nothing if unreadable."""
    try:
        config = json.loads(read_plain(folder / _FILE))
        return {str(name): prompt for name, prompt in config["prompts"].items() if prompt}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _warn_of_a_prompt_left_aside(encoder: SentenceTransformer) -> None:
    """sentence-transformers has an empty ``document`` prompt by default, which goes before ``passage``."""
    if prompt_of(encoder, "document"):
        return
    for name in _NAMES["document"][1:]:
        if prompt := encoder.prompts.get(name):
            logger.warning(
                "the model has a prompt %r, %s, but its prompt 'document' is empty, and that is what "
                "encode_document uses; to put the other before documents, set document_prompt to it",
                name,
                shown(prompt),
            )


def _check_room(encoder: SentenceTransformer, side: Side, prompt: str) -> None:
    """A text that is cut off behind its prompt has the vector of any other text."""
    if len(prompt) > LONGEST:
        raise PromptError(f"{side}_prompt: found {len(prompt):,} characters; allowed: {LONGEST:,}")
    if not encoder.supports("text"):
        return
    width, same = _two_texts(encoder, side, prompt)
    if same and not _two_texts(encoder, side, "")[1]:
        raise PromptError(
            f"{side}_prompt: {shown(prompt)} fills all {width} tokens that the model reads, so nothing of the "
            f"text is left; allowed: a shorter prompt ({side}_prompt), or none ('')"
        )


def _two_texts(encoder: SentenceTransformer, side: Side, prompt: str) -> tuple[int, bool]:
    """How many tokens two different texts have behind a prompt, and whether these are the same; (0, False): unknown."""
    ids = encoder.preprocess(["a", "a a a"], prompt=prompt, task=side).get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != 2:
        return 0, False
    return ids.shape[1], bool((ids[0] == ids[1]).all())
