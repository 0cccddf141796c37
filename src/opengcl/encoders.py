"""Where an encoder comes from: a name, two towers put together, or a small CLIP built from a config."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from opengcl.data import RankedDataset
from opengcl.model import ModelError, open_encoder

TINY, STATIC = "tiny", "static"
_TOKENIZER_TEXTS = 1_000_000


def make_encoder(name: str, dataset: RankedDataset, *, seed: int, dim: int | None = None) -> SentenceTransformer:
    """The encoder that ``--model`` names.

    - ``tiny``: a small CLIP with random weights, its tokenizer trained on the data set's seen texts. No download.
    - ``static``: a bag of subwords with random weights, its tokenizer trained likewise. Reads text only; the fastest.
    - ``text=MODEL,image=MODEL``: two towers, each with a projection to ``dim`` (default 256).
    - anything else: a sentence-transformers model, as a folder or a name on the hub.

    Args:
        name: As above.
        dataset: Whose texts train the tokenizer of ``tiny`` and ``static``.
        seed: Of the random weights.
        dim: Width of the vectors, for ``tiny`` (default 128), ``static`` (128) and two towers.

    Raises:
        ModelError: The model cannot be opened.
    """
    if name == TINY:
        return tiny_clip(training_texts(dataset), seed=seed, dim=dim or 128)
    if name == STATIC:
        return static_text(training_texts(dataset), seed=seed, dim=dim or 128)
    if name.startswith(("text=", "image=")):
        return two_towers(**_towers(name), seed=seed, dim=dim or 256)
    if dim is not None:
        raise ModelError(f"dim is for 'tiny', 'static' and two towers; {name!r} has its own width")
    return open_encoder(name, device="cpu")


def training_texts(dataset: RankedDataset) -> Iterator[str]:
    """Texts of seen queries and documents, a million at most: what a tokenizer may learn from."""
    left = _TOKENIZER_TEXTS
    sides = (
        (dataset.queries, dataset.splits.query_seen.nonzero()[0]),
        (dataset.documents, dataset.splits.document_seen.nonzero()[0]),
    )
    for records, seen in sides:
        for field in (name for name, kind in records.fields.items() if kind == "text"):
            for start in range(0, min(len(seen), left), 1024):
                yield from (text for text in records.texts(field, seen[start : start + 1024]) if text)
            left = max(0, left - len(seen))


def tiny_clip(
    texts: Iterable[str],
    *,
    seed: int = 0,
    dim: int = 128,
    image_size: int = 64,
    vocabulary: int = 8192,
    text_layers: int = 1,
    image_layers: int = 2,
) -> SentenceTransformer:
    """A CLIP of about a million parameters with random weights, for two cores and for tests.

    Args:
        texts: What its lower-casing WordPiece tokenizer is trained on.
        seed: Of the weights.
        dim: Width of both towers and of the vectors.
        image_size: Pixels of a side; pictures are resized and centre-cropped to it. Patches are 16 pixels.
        vocabulary: Size of the vocabulary at most.
        text_layers: Transformer layers of the text tower.
        image_layers: Transformer layers of the image tower.

    Raises:
        ModelError: There is no text to train the tokenizer on.
    """
    tokenizer = _train_tokenizer(texts, vocabulary, TINY)
    tower = {"hidden_size": dim, "intermediate_size": 2 * dim, "num_attention_heads": max(1, dim // 64)}
    config = CLIPConfig(
        text_config={
            **tower,
            "num_hidden_layers": text_layers,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**tower, "num_hidden_layers": image_layers, "image_size": image_size, "patch_size": 16},
        projection_dim=dim,
        architectures=["CLIPModel"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    # sentence-transformers opens encoders from folders only; a model's save_pretrained writes on the first rank only.
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_file(model.state_dict(), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
        return SentenceTransformer(folder, device="cpu")


def static_text(
    texts: Iterable[str], *, seed: int = 0, dim: int = 128, hidden: int = 256, vocabulary: int = 8192
) -> SentenceTransformer:
    """A bag of subwords with random weights: their mean vector through two dense layers; some two million parameters.

    It knows no word order, trains some five times as fast as ``tiny`` on a CPU, and reads text only.

    Args:
        texts: What its lower-casing WordPiece tokenizer is trained on.
        seed: Of the weights.
        dim: Width of the vectors.
        hidden: Width of the subwords' vectors and of the layer between.
        vocabulary: Size of the vocabulary at most.

    Raises:
        ModelError: There is no text to train the tokenizer on.
    """
    tokenizer = _train_tokenizer(texts, vocabulary, STATIC)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bag = StaticEmbedding(tokenizer, embedding_dim=hidden)
        layers = [
            Dense(hidden, hidden, activation_function=torch.nn.GELU()),
            Dense(hidden, dim, bias=False, activation_function=torch.nn.Identity()),
        ]
    return SentenceTransformer(modules=[bag, *layers], device="cpu")


def _train_tokenizer(texts: Iterable[str], vocabulary: int, encoder: str) -> PreTrainedTokenizerFast:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    names = list(special.values())
    known = list(texts)
    # The trainer numbers the letters inside words as a randomly seeded hash map yields them, and breaks ties by number.
    # With every letter numbered beforehand, each process (a resumed run, another rank) gets the same vocabulary.
    letters = sorted(set(_train_pieces(known, 0, names)) - set(names))
    pieces = _train_pieces(known, vocabulary, [*names, *letters])
    if len(pieces) <= len(names):
        raise ModelError(f"the data set has no text to train the tokenizer of {encoder!r} on")
    tokenizer = _word_pieces(pieces)
    tokenizer.add_special_tokens(names)
    end = (special["eos_token"], pieces[special["eos_token"]])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    # Split, or a title that contains "[EOS]" would end its own encoding.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, split_special_tokens=True, **special
    )


def _train_pieces(texts: list[str], vocabulary: int, first: list[str]) -> dict[str, int]:
    """Pieces of words and their numbers: ``first``, every letter, then frequent pieces up to ``vocabulary``."""
    tokenizer = _word_pieces({})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=first, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def _word_pieces(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def two_towers(text: str, image: str, *, dim: int, seed: int = 0) -> SentenceTransformer:
    """A text encoder and an image encoder behind one router, each projected to ``dim`` by a new linear layer.

    Args:
        text: A sentence-transformers text model; its own pooling and prompts are kept.
        image: A Hugging Face image model (ViT, DINOv2, ...), mean-pooled over its patches.
        dim: Width of the common vectors.
        seed: Of the two projections, and of weights that a tower's files lack.

    Raises:
        ModelError: A tower cannot be opened, or reads the wrong thing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # also of weights that a tower's files lack, such as a pooling layer's
        text_encoder = _tower(text, "text")
        text_tower, image_tower = _modules(text_encoder), _modules(_tower(image, "image"))
        for tower in (text_tower, image_tower):
            tower.append(Dense(_width(tower), dim, bias=False, activation_function=torch.nn.Identity()))
    router = Router(
        {"text": text_tower, "image": image_tower}, route_mappings={(None, "text"): "text", (None, "image"): "image"}
    )
    return SentenceTransformer(
        modules=[router],
        prompts=dict(text_encoder.prompts),
        default_prompt_name=text_encoder.default_prompt_name,
        device="cpu",
    )


def _tower(name: str, modality: str) -> SentenceTransformer:
    encoder = open_encoder(name, device="cpu")
    if not encoder.supports(modality):
        raise ModelError(f"the {modality} tower {name!r} reads {', '.join(map(str, encoder.modalities))}")
    return encoder


def _modules(encoder: SentenceTransformer) -> list[torch.nn.Module]:
    return [module for module in encoder if not isinstance(module, Normalize)]


def _width(modules: list[torch.nn.Module]) -> int:
    widths = [getattr(module, "get_embedding_dimension", None) for module in modules]
    return int([width() for width in widths if callable(width)][-1])


def _towers(name: str) -> dict[str, str]:
    towers = [part.partition("=")[::2] for part in name.split(",")]
    if sorted(tower for tower, _ in towers) != ["image", "text"] or not all(model for _, model in towers):
        raise ModelError(f"two towers are written text=MODEL,image=MODEL; found {name!r}")
    return dict(towers)
