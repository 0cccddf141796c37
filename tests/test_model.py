"""The bi-encoder: its fields, its card, hostile cards, and vectors of records with gaps."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers import SentenceTransformer

from opengcl.data import RankedDataset, Schema, write_dataset
from opengcl.encode import encode, encode_texts, inputs_for
from opengcl.inputs import Inputs
from opengcl.model import CARD, BiEncoder, FieldMix, ModelError, open_encoder

from .builders import MINILM, SCHEMA, clip, minilm, ranked, static

MIX = FieldMix({"query": 1.0}, {"title": 0.25, "image": 0.75}, {"query": "text"}, {"title": "text", "image": "image"})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    return ranked(tmp_path_factory.mktemp("model") / "data")


@pytest.fixture(scope="module")
def model() -> BiEncoder:
    return BiEncoder(clip(), MIX, logit_scale=14.25, provenance={"seed": 3, "data": {"name": "toy"}})


@pytest.fixture(scope="module")
def saved(model: BiEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run" / "model"
    model.save(folder)
    return folder


# --- fields of a model ------------------------------------------------------------------------------------------------


def test_fields_are_chosen_by_what_the_encoder_reads(caplog: pytest.LogCaptureFixture) -> None:
    everything = FieldMix.choose(clip(), SCHEMA)
    assert everything.document == {"title": 0.5, "image": 0.5}
    assert everything.query_types == {"query": "text"}
    assert everything.document_types == {"title": "text", "image": "image"}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        readable = FieldMix.choose(minilm(), SCHEMA)
    assert (readable.document, readable.document_types) == ({"title": 1.0}, {"title": "text"})
    assert "the encoder does not read these document fields, left out: image (image)" in caplog.text
    asked = FieldMix.choose(clip(), SCHEMA, None, {"image": 9.0, "title": 1.0})
    assert list(asked.document.items()) == [("image", 0.9), ("title", 0.1)]


def test_fields_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="document field 'image' is image, but the encoder reads only text"):
        FieldMix.choose(minilm(), SCHEMA, None, {"image": 1.0})
    with pytest.raises(ValueError, match="query field 'title' is not in the data set; its query fields: query"):
        FieldMix.choose(clip(), SCHEMA, {"title": 1.0})
    pictures = Schema("pictures", {"query": "text"}, {"image": "image"}, 0.0, 1.0)
    with pytest.raises(ModelError, match="the encoder reads text, and no document field is that"):
        FieldMix.choose(minilm(), pictures)


# --- card -------------------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back(model: BiEncoder, saved: Path, dataset: RankedDataset) -> None:
    assert json.loads((saved / CARD).read_text()) == {
        "format": 2,
        "query_fields": {"query": {"type": "text", "weight": 1.0}},
        "document_fields": {"title": {"type": "text", "weight": 0.25}, "image": {"type": "image", "weight": 0.75}},
        "missing_fields": "fill_in",
        "fill_in_sha256": None,
        "logit_scale": 14.25,
        "provenance": {"seed": 3, "data": {"name": "toy"}},
    }
    rows = np.arange(len(dataset.documents))
    expected = encode(model, dataset.documents, "document", rows)
    for place in (saved, saved.parent, str(saved)):  # the model's folder or the run's
        loaded = BiEncoder.load(place, device="cpu")
        assert loaded.mix == MIX
        assert list(loaded.mix.document) == ["title", "image"]
        assert (loaded.logit_scale, loaded.provenance) == (14.25, model.provenance)
        np.testing.assert_allclose(encode(loaded, dataset.documents, "document", rows), expected, rtol=0, atol=1e-6)


def test_the_saved_encoder_is_plain_sentence_transformers(
    model: BiEncoder, saved: Path, dataset: RankedDataset
) -> None:
    plain = SentenceTransformer(str(saved), device="cpu")
    rows = np.arange(len(dataset.queries))
    expected = plain.encode(dataset.queries.texts("query", rows), normalize_embeddings=True)
    np.testing.assert_allclose(encode(model, dataset.queries, "query", rows), expected, rtol=0, atol=1e-6)


GOOD: dict[str, Any] = {
    "format": 1,
    "query_fields": {"query": {"type": "text", "weight": 1.0}},
    "document_fields": {"title": {"type": "text", "weight": 1.0}},
    "logit_scale": None,
    "provenance": {},
}


def changed(**parts: Any) -> str:
    return json.dumps({**GOOD, **parts})


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{", "not a model card"),
        ("\x00\x01", "not a model card"),
        ("[]", "not a model card"),
        ("null", "not a model card"),
        ("[" * 100_000, "not a model card"),
        ("{}", "not a model card of this project .*format"),
        (changed(format=3), "format 3; this version reads 1 and 2"),
        (changed(format="1"), "format '1'; this version reads 1 and 2"),
        (changed(missing_fields="guess"), "missing_fields 'guess'; allowed: fill_in, leave_out"),
        (changed(missing_fields="fill_in", fill_in_sha256="0" * 64), "missing, but opengcl.json names it"),
        (changed(document_fields={}), "no field is named"),
        (changed(document_fields=["title"]), "not a model card"),
        (changed(document_fields={"title": 1}), "not a model card"),
        (
            changed(document_fields={"title": {"type": "audio", "weight": 1}}),
            "field type 'audio'; allowed: text, image",
        ),
        (changed(document_fields={"title": {"type": ["text"], "weight": 1}}), "field type"),
        (changed(document_fields={"title": {"weight": 1}}), "not a model card .*type"),
        (changed(document_fields={"title": {"type": "text", "weight": -1}}), "'title' has weight -1"),
        (changed(document_fields={"title": {"type": "text", "weight": float("nan")}}), "'title' has weight nan"),
        (changed(document_fields={"title": {"type": "text", "weight": "much"}}), "not a model card .*much"),
        (changed(document_fields={"title": {"type": "text", "weight": None}}), "not a model card"),
        (changed(query_fields=None), "not a model card"),
        (changed(logit_scale="high"), "logit_scale"),
        (changed(logit_scale=[1]), "logit_scale"),
        (changed(provenance=3), "not a model card"),
    ],
)
def test_hostile_cards_are_refused(tmp_path: Path, card: str, message: str) -> None:
    (tmp_path / CARD).write_text(card)
    with pytest.raises(ModelError, match=message) as refused:
        BiEncoder.load(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_a_folder_without_a_card_or_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no opengcl\.json: it is neither a trained model nor a run folder"):
        BiEncoder.load(tmp_path)
    (tmp_path / CARD).write_text(changed())
    with pytest.raises(ModelError, match="cannot be opened"):
        BiEncoder.load(tmp_path)


def test_open_takes_cards_and_plain_models(saved: Path) -> None:
    assert BiEncoder.open(str(saved), SCHEMA, device="cpu").mix == MIX
    with pytest.raises(ModelError, match="was trained with its own fields; leave fields out"):
        BiEncoder.open(str(saved), SCHEMA, document={"title": 1.0})
    plain = BiEncoder.open(MINILM, SCHEMA, document={"title": 1.0}, device="cpu")
    assert (plain.mix.query, plain.mix.document) == ({"query": 1.0}, {"title": 1.0})


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_are_mixed_by_the_weights_of_what_is_there(model: BiEncoder, dataset: RankedDataset) -> None:
    records, encoder = dataset.documents, model.encoder
    rows = np.array([7, 0, 3, 39, 12, 5, 21, 7, 30, 18])
    found = encode(model, records, "document", rows, batch_size=3)
    assert found.dtype == np.float32
    lacking = {"title": 0, "image": 0}
    for vector, title, image in zip(found, records.texts("title", rows), records.images("image", rows), strict=True):
        there = [(0.25, title), (0.75, image)]
        parts = [w * encoder.encode(value, normalize_embeddings=True) for w, value in there if value is not None]
        mixed = sum(parts)
        np.testing.assert_allclose(vector, mixed / np.linalg.norm(mixed), rtol=0, atol=2e-6)
        lacking["title"] += title is None
        lacking["image"] += image is None
    assert min(lacking.values()) > 0


def test_a_document_with_only_a_title_is_its_title(model: BiEncoder, dataset: RankedDataset) -> None:
    records = dataset.documents
    rows = np.flatnonzero(~records.present("image", np.arange(len(records))))
    expected = model.encoder.encode(records.texts("title", rows), normalize_embeddings=True)
    np.testing.assert_allclose(encode(model, records, "document", rows), expected, rtol=0, atol=1e-6)
    assert len(rows) > 2


def titles_only(dataset: RankedDataset) -> BiEncoder:
    return BiEncoder(minilm(), FieldMix.choose(minilm(), dataset.schema, None, {"title": 1.0}))


def test_documents_without_any_field_are_named(dataset: RankedDataset) -> None:
    model, records = titles_only(dataset), dataset.documents
    rows = np.arange(len(records))
    titled = records.present("title", rows)
    untitled = records.ids(rows[~titled])
    assert len(untitled) > 5
    named = ", ".join(map(repr, untitled[:5]))
    message = (
        rf"{len(untitled)} of 40 documents\.parquet rows have none of the fields title \(document {named}, \.\.\.\)"
    )
    with pytest.raises(ValueError, match=message):
        encode(model, records, "document", rows)
    inputs = Inputs(model.encoder, records, ["title"])  # not looked through before, so that titled rows can be encoded
    with pytest.raises(ValueError, match=f"document '{untitled[0]}' has nothing to be encoded by: no title"):
        encode(model, records, "document", rows, inputs=inputs)
    assert encode(model, records, "document", rows[titled], inputs=inputs).shape == (titled.sum(), 384)


def test_encoding_leaves_the_training_mode_alone(dataset: RankedDataset) -> None:
    model = BiEncoder(clip(dropout=0.5), MIX)
    rows = np.arange(6)
    first = encode(model.train(), dataset.documents, "document", rows)
    assert model.training
    assert model.encoder[0].training
    np.testing.assert_array_equal(encode(model.eval(), dataset.documents, "document", rows), first)
    assert not model.training
    model.train()
    titles = BiEncoder(model.encoder, titles_only(dataset).mix)
    inputs = Inputs(model.encoder, dataset.documents, ["title"])
    with pytest.raises(ValueError, match="has nothing to be encoded by"):
        encode(titles, dataset.documents, "document", np.arange(40), inputs=inputs)
    assert model.encoder[0].training


def test_a_vector_that_is_not_finite_is_named(dataset: RankedDataset) -> None:
    encoder = static()
    word = dataset.queries.texts("query", [4])[0].split()[0]
    row = encoder.tokenizer.token_to_id(word)
    with torch.no_grad():
        encoder[0].embedding.weight[row] = torch.inf
    first = next(q for q in range(12) if word in dataset.queries.texts("query", [q])[0].split())
    model = BiEncoder(encoder, FieldMix({"query": 1.0}, {"title": 1.0}, {"query": "text"}, {"title": "text"}))
    with pytest.raises(ValueError, match=f"the model's vector of query 'q{first}' is not finite"):
        encode(model, dataset.queries, "query", np.arange(12))


def test_encoding_nothing_and_cached_inputs(model: BiEncoder, dataset: RankedDataset, tmp_path: Path) -> None:
    assert encode(model, dataset.documents, "document", np.array([], dtype=np.int64)).shape == (0, 16)
    inputs = inputs_for(model, dataset.documents, "document")
    inputs.cache(tmp_path, image_cache_bytes=1e9, progress=False)
    rows = np.arange(40)
    cached = encode(model, dataset.documents, "document", rows, inputs=inputs, batch_size=7)
    np.testing.assert_allclose(cached, encode(model, dataset.documents, "document", rows), rtol=0, atol=2e-6)


def test_texts_are_encoded_as_queries_are(model: BiEncoder, dataset: RankedDataset) -> None:
    rows = np.arange(5)
    texts = dataset.queries.texts("query", rows)
    expected = encode(model, dataset.queries, "query", rows)
    np.testing.assert_allclose(encode_texts(model, texts), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="a query is blank"):
        encode_texts(model, ["red", " "])


def test_a_table_without_the_models_fields_is_refused(model: BiEncoder, tmp_path: Path) -> None:
    schema = Schema("other", {"query": "text"}, {"image": "text"}, 0.0, 1.0)
    write_dataset(
        tmp_path / "data",
        schema,
        pa.table({"query_id": ["q"], "query": ["red"]}),
        pa.table({"doc_id": ["d"], "image": ["a name"]}),
        pa.table({"query_id": ["q"], "doc_id": ["d"], "score": [1.0]}),
    )
    records = RankedDataset.open(tmp_path / "data", cache_dir=tmp_path / "cache", progress=False).documents
    with pytest.raises(ValueError, match="the document field 'title' as text, which the data set lacks"):
        inputs_for(model, records, "document")
    pictures = BiEncoder(model.encoder, FieldMix({"query": 1.0}, {"image": 1.0}, {"query": "text"}, {"image": "image"}))
    with pytest.raises(ValueError, match="the document field 'image' as image, which is text"):
        inputs_for(pictures, records, "document")


@pytest.mark.parametrize("content", ['[{"type": "os.system"}]', '[{"type": "builtins.eval"}]', "{", "[1]"])
def test_only_modules_of_sentence_transformers_are_imported(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    clip().save(str(folder), create_model_card=False)
    (folder / "modules.json").write_text(content)
    with pytest.raises(ModelError, match=r"modules\.json"):
        open_encoder(str(folder))
