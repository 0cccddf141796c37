"""A bi-encoder with fields around a sentence-transformers model: build, encode, save, load."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from opengcl.data.schema import FieldType, Schema
from opengcl.devices import check_device
from opengcl.fields import MISSING, Missing, check_fields, choose_fields, fuse
from opengcl.fill_in import FillIn, FillInError
from opengcl.hub_models import NoSuchModelError, find_on_hub
from opengcl.inputs import Features, FieldInput
from opengcl.model_files import check_model_files
from opengcl.named_folders import no_such_folder
from opengcl.plain_files import read_plain
from opengcl.prompts import SIDES, Side, prompts_of, settle_prompts

CARD, FILL_IN = "opengcl.json", "fill_in.safetensors"
CARD_FORMAT = 2
_READ_FORMATS = (1, 2)  # 1: from before missing fields were filled in
_FIXED_WIDTH = ("siglip", "siglip2")
logger = logging.getLogger(__name__)


class ModelError(ValueError):
    """A model that cannot be opened or does not fit the data set."""


@dataclass(frozen=True)
class FieldEmbeddings:
    """Unit vectors of every field of a batch, and which of them count."""

    embeddings: Float[Tensor, "fields rows d"]  # zeros where the field is missing
    present: Bool[Tensor, "fields rows"]


@dataclass(frozen=True)
class FieldMix:
    """Which fields each side has, in order, with their types and weights; weights sum to 1."""

    query: dict[str, float]
    document: dict[str, float]
    query_types: dict[str, FieldType]
    document_types: dict[str, FieldType]

    def weights(self, side: Side) -> dict[str, float]:
        """Field -> weight of a side."""
        return self.query if side == "query" else self.document

    def types(self, side: Side) -> dict[str, FieldType]:
        """Field -> type of a side."""
        return self.query_types if side == "query" else self.document_types

    @classmethod
    def choose(
        cls,
        encoder: SentenceTransformer,
        schema: Schema,
        query: Mapping[str, float] | None = None,
        document: Mapping[str, float] | None = None,
    ) -> FieldMix:
        """The asked fields, or all that the data set has and the encoder can read, with equal weights.

        Raises:
            ValueError: A field that the data set does not have.
            ModelError: A field, or a whole side, that the encoder cannot read.
        """
        sides: dict[str, dict[str, float]] = {}
        for side, asked, available in (("query", query, schema.queries), ("document", document, schema.documents)):
            readable = {name: kind for name, kind in available.items() if encoder.supports(kind)}
            if asked is None and readable != dict(available):
                left_out = ", ".join(f"{name} ({kind})" for name, kind in available.items() if name not in readable)
                logger.warning("the encoder does not read these %s fields, left out: %s", side, left_out)
            if asked is None and not readable:
                raise ModelError(
                    f"the encoder reads {', '.join(map(str, encoder.modalities))}, and no {side} field is that"
                )
            sides[side] = choose_fields(asked, available if asked is not None else readable, side)
            for name in sides[side]:
                if not encoder.supports(available[name]):
                    raise ModelError(
                        f"{side} field {name!r} is {available[name]}, but the encoder reads only "
                        f"{', '.join(map(str, encoder.modalities))}"
                    )
        return cls(
            sides["query"],
            sides["document"],
            {name: schema.queries[name] for name in sides["query"]},
            {name: schema.documents[name] for name in sides["document"]},
        )


class BiEncoder(nn.Module):
    """One encoder for both sides; a row's vector is the normalised weighted mean of its fields' unit vectors.

    A document's missing fields are filled in (`opengcl.fill_in`). A query's are left out of the mean: the documents of
    one list are compared for one query, so that no query competes with another one that has more fields.

    Args:
        encoder: A sentence-transformers model that gives ``sentence_embedding``.
        mix: The fields of each side.
        logit_scale: ``1 / temperature`` it was trained with; kept for the record, not used to encode.
        provenance: What it was trained on and how; anything that JSON holds.
        missing_fields: ``fill_in``, or ``leave_out`` for documents to be the mean of the fields that they have.
        fill_in: Maps between the document fields, of `opengcl.encode.fit_fill_in`. Without them nothing is filled in,
            but `opengcl.evaluate` fits them for itself where ``missing_fields`` is ``fill_in``.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        mix: FieldMix,
        *,
        logit_scale: float | None = None,
        provenance: Mapping[str, Any] | None = None,
        missing_fields: Missing = "fill_in",
        fill_in: FillIn | None = None,
    ) -> None:
        super().__init__()
        if missing_fields not in MISSING:
            raise ValueError(f"missing_fields is {missing_fields!r}; use one of {', '.join(MISSING)}")
        self.encoder = encoder
        self.mix = mix
        self.logit_scale = logit_scale
        self.provenance = dict(provenance or {})
        self.missing_fields: Missing = missing_fields
        self.fill_in = fill_in if missing_fields == "fill_in" else None

    @property
    def prompts(self) -> dict[Side, str]:
        """What goes before each text of a side; empty for nothing."""
        return prompts_of(self.encoder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    def encode_fields(
        self, inputs: Mapping[str, FieldInput], side: Side, *, recompute: bool = False
    ) -> FieldEmbeddings:
        """Every field's unit vectors of a batch.

        Args:
            inputs: Features by field, from `opengcl.inputs.Inputs`.
            side: Whose fields they are.
            recompute: Keep no activations and make them again in the backward pass, a chunk at a time: the gradients of
                the whole batch at the memory of one chunk, as GradCache (arXiv 2101.06983) does.

        Returns:
            float32 vectors in the order of the side's fields.
        """
        names = list(self.mix.weights(side))
        vectors = [self._encode_field(inputs[name], recompute=recompute) for name in names]
        return FieldEmbeddings(torch.stack(vectors), torch.stack([inputs[name]["present"] for name in names]))

    def fuse(self, fields: FieldEmbeddings, side: Side) -> Float[Tensor, "rows d"]:
        """One unit vector a row from its fields, those that a document lacks filled in."""
        embeddings, present = fields.embeddings, fields.present
        weights = self.mix.weights(side)
        if side == "document" and self.fill_in is not None:
            embeddings, present = self.fill_in(embeddings, present, weights)
        return fuse(embeddings, present, torch.tensor(list(weights.values()), device=embeddings.device))

    def with_fill_in(self, fill_in: FillIn) -> BiEncoder:
        """The same model (the encoder is shared) with other maps between its document fields."""
        view = BiEncoder(self.encoder, self.mix, logit_scale=self.logit_scale, provenance=self.provenance)
        view.fill_in = fill_in
        return view.train(self.training)

    def _encode_field(self, inputs: FieldInput, *, recompute: bool) -> Float[Tensor, "rows d"]:
        rows = len(inputs["present"])
        if not inputs["chunks"]:
            width = self.encoder.get_embedding_dimension()
            return torch.zeros(rows, width or 0, device=inputs["present"].device)
        pieces = [
            checkpoint(self.encode_chunk, chunk, use_reentrant=False) if recompute else self.encode_chunk(chunk)
            for chunk in inputs["chunks"]
        ]
        encoded = torch.cat(pieces)
        return encoded.new_zeros(rows, encoded.shape[1]).index_copy(0, inputs["order"], encoded)

    def encode_chunk(self, features: Features) -> Float[Tensor, "chunk d"]:
        """Unit vectors, float32, of what the encoder's ``preprocess`` made."""
        # A copy, since sentence-transformers writes its results into the dict it is given.
        return F.normalize(self.encoder(dict(features))["sentence_embedding"].float(), dim=-1)

    def save(self, path: Path) -> None:
        """Write the encoder, which plain ``SentenceTransformer(path)`` opens, and its card beside it."""
        path.mkdir(parents=True, exist_ok=True)
        self.encoder.save(str(path), create_model_card=False, safe_serialization=True)
        card = {
            "format": CARD_FORMAT,
            "query_fields": _described(self.mix, "query"),
            "document_fields": _described(self.mix, "document"),
            "missing_fields": self.missing_fields,
            "fill_in_sha256": None,
            "logit_scale": self.logit_scale,
            "provenance": self.provenance,
        }
        (path / FILL_IN).unlink(missing_ok=True)
        if self.fill_in is not None:
            self.fill_in.save(path / FILL_IN)
            card["fill_in_sha256"] = _sha256(path / FILL_IN)
        (path / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def open(
        cls,
        name: str,
        schema: Schema,
        *,
        query: Mapping[str, float] | None = None,
        document: Mapping[str, float] | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        missing_fields: Missing | None = None,
        device: str | None = None,
    ) -> BiEncoder:
        """A trained model, or any sentence-transformers model with fields chosen for a data set.

        Args:
            name: A model folder or run folder of ours, whose own fields then apply, or else a sentence-transformers
                model as a folder or a name on the hub.
            schema: Whose fields there are.
            query: Query field -> weight, for a model that has no card.
            document: Document field -> weight, likewise.
            query_prompt: What goes before each query; None for the model's own prompt, empty for none.
            document_prompt: What goes before each text of a document, likewise.
            missing_fields: What becomes of fields that a document lacks: ``fill_in`` or ``leave_out``; when not given,
                as the model was saved, and ``fill_in`` for one that has no card.
            device: Where to put it; the best there is when not given.

        Raises:
            ModelError: It cannot be opened, or fields were given for a model that brings its own.
            PromptError: A prompt leaves no room for texts.
            ValueError: A field that the data set does not have.
        """
        if missing_fields not in (None, *MISSING):
            raise ValueError(f"missing_fields is {missing_fields!r}; use one of {', '.join(MISSING)}")
        if model_folder(name) is None:
            encoder = open_encoder(name, device=device)
            mix = FieldMix.choose(encoder, schema, query, document)
            model = cls(encoder, mix, missing_fields=missing_fields or "fill_in")
        elif query is not None or document is not None:
            raise ModelError(f"{name} was trained with its own fields; leave fields out")
        else:
            model = cls.load(name, device=device)
            if missing_fields is not None and missing_fields != model.missing_fields:
                model.missing_fields, model.fill_in = missing_fields, None
        settle_prompts(model.encoder, query=query_prompt, document=document_prompt)
        return model

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None) -> BiEncoder:
        """Open a trained model: its folder, or the run folder that holds it.

        Raises:
            ModelError: No such folder, no card in it, or a card that cannot be read.
            PromptError: A prompt leaves no room for texts.
        """
        folder = trained_folder(path)
        card = _read_card(folder / CARD)
        maps = _checked_fill_in(folder / FILL_IN, card)
        encoder = open_encoder(str(folder), device=device)
        settle_prompts(encoder)
        if "settings" in card.provenance and "prompts" not in card.provenance and any(prompts_of(encoder).values()):
            logger.warning(
                "%s was trained by a version that left the model's prompts out, and is now used with them: train it "
                "again, or evaluate it with empty prompts (query_prompt and document_prompt '')",
                folder,
            )
        return cls(
            encoder,
            card.mix,
            logit_scale=card.logit_scale,
            provenance=card.provenance,
            missing_fields=card.missing_fields,
            fill_in=_read_fill_in(maps, card.mix, encoder) if maps else None,
        )


def model_folder(path: str | Path) -> Path | None:
    """The folder with the card: ``path`` or ``path/model``; None where neither has one."""
    return next((folder for folder in (Path(path), Path(path) / "model") if (folder / CARD).is_file()), None)


def trained_folder(path: str | Path) -> Path:
    """The folder with the card, as `model_folder`.

    Raises:
        ModelError: There is none; folders with a name alike are named.
    """
    folder = model_folder(path)
    if folder is not None:
        return folder
    if not Path(path).is_dir():
        raise ModelError(f"{path} holds no trained model: {no_such_folder(path)}")
    if (Path(path) / "config.yaml").is_file():
        raise ModelError(f"{path} holds a run that has not ended, so there is no model yet: train with --resume first")
    raise ModelError(
        f"{path} holds no trained model (it holds no {CARD}: it is neither a trained model nor a run folder)"
    )


def open_encoder(name: str, *, device: str | None = None) -> SentenceTransformer:
    """A sentence-transformers model from a folder or the hub, safetensors only, no code of its own run.

    A name that looks like a path is not asked of the hub, and any other is asked once.

    Raises:
        ModelError: It cannot be opened; the message says why.
        DeviceError: There is no such device.
    """
    check_device(device)
    try:
        kept = False if _is_model_folder(name) else find_on_hub(name)
    except NoSuchModelError as error:
        raise ModelError(f"model {name[:200]!r} cannot be opened: {error}") from None
    try:
        if Path(name).is_dir():
            check_model_files(Path(name))
        encoder = SentenceTransformer(
            name, device=device, local_files_only=kept, model_kwargs={"use_safetensors": True}
        )
        _pad_as_trained(encoder)
        return encoder
    except Exception as error:  # the libraries raise nearly anything on a damaged or hostile file
        raise ModelError(f"model {name!r} cannot be opened: {type(error).__name__}: {error}") from error


def _is_model_folder(name: str) -> bool:
    """Whether a name is a folder here.

    Raises:
        NoSuchModelError: It is one, but without a model.
    """
    folder = Path(name)
    if not folder.is_dir():
        return False
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        unfinished = (folder / "config.yaml").is_file()
        raise NoSuchModelError(
            "the run in this folder has not ended; train with --resume first"
            if unfinished
            else "the folder has neither modules.json nor config.json"
        )
    return True


def _pad_as_trained(encoder: SentenceTransformer) -> None:
    """Pad SigLIP's texts to their full width.

    It pools the last position, so that with texts padded to the longest of their batch, as sentence-transformers does,
    a text's vector would depend on its neighbours (Zhai et al. 2023, arXiv 2303.15343; trained on 64 tokens always).
    The setting is saved with the model.
    """
    for module in encoder.modules():
        if isinstance(module, Transformer) and module.config.model_type in _FIXED_WIDTH:
            width = module.config.text_config.max_position_embeddings
            text = {"padding": "max_length", "max_length": width, **module.processing_kwargs.get("text", {})}
            module.processing_kwargs = {**module.processing_kwargs, "text": text}


def _described(mix: FieldMix, side: Side) -> dict[str, dict[str, Any]]:
    types = mix.types(side)
    return {name: {"type": types[name], "weight": weight} for name, weight in mix.weights(side).items()}


@dataclass(frozen=True)
class _Card:
    mix: FieldMix
    logit_scale: float | None
    provenance: dict[str, Any]
    missing_fields: Missing
    fill_in_sha256: str | None


def _read_card(file: Path) -> _Card:
    try:
        card = json.loads(read_plain(file))
        if card["format"] not in _READ_FORMATS:
            allowed = " and ".join(map(str, _READ_FORMATS))
            raise ModelError(f"{file}: format {card['format']!r}; this version reads {allowed}")
        sides = [card[f"{side}_fields"] for side in SIDES]
        weights = [check_fields({name: float(f["weight"]) for name, f in side.items()}) for side in sides]
        types = [{name: described["type"] for name, described in side.items()} for side in sides]
        unknown = [kind for side in types for kind in side.values() if kind not in get_args(FieldType)]
        if unknown:
            raise ModelError(f"{file}: field type {unknown[0]!r}; allowed: {', '.join(get_args(FieldType))}")
        scale = card["logit_scale"]
        if scale is not None and type(scale) not in (int, float):
            raise ModelError(f"{file}: logit_scale {scale!r}; allowed: a number or null")
        missing = card.get("missing_fields", "leave_out")
        if missing not in MISSING:
            raise ModelError(f"{file}: missing_fields {missing!r}; allowed: {', '.join(MISSING)}")
        mix = FieldMix(weights[0], weights[1], types[0], types[1])
        return _Card(mix, scale, dict(card["provenance"]), missing, card.get("fill_in_sha256"))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file}: not a model card of this project ({type(error).__name__}: {error})") from error


def _checked_fill_in(file: Path, card: _Card) -> Path | None:
    """The file of maps that the card names by its hash; None where the model has none."""
    if card.fill_in_sha256 is None:
        return None
    if not file.is_file():
        raise ModelError(f"{file}: missing, but {CARD} names it; copy the model's folder whole")
    found = _sha256(file)
    if found != card.fill_in_sha256:
        raise ModelError(f"{file}: SHA-256 is {found}; {CARD} says {str(card.fill_in_sha256)[:64]!r}")
    return file


def _read_fill_in(file: Path, mix: FieldMix, encoder: SentenceTransformer) -> FillIn:
    try:
        return FillIn.load(file, list(mix.document), encoder.get_embedding_dimension() or 0)
    except FillInError as error:
        raise ModelError(str(error)) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
