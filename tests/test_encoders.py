"""Encoders: random ones repeat by seed, all save to what plain sentence-transformers opens, towers are checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import (
    BertConfig,
    BertModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from opengcl.data import RankedDataset
from opengcl.encode import encode, inputs_for
from opengcl.encoders import make_encoder, static_text, tiny_clip, training_texts, two_towers
from opengcl.inputs import Inputs
from opengcl.model import BiEncoder, FieldMix, ModelError, open_encoder

from .builders import MINILM, TEXTS, WORDS, clip, minilm, ranked

PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)) for seed in range(3)
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    return ranked(tmp_path_factory.mktemp("encoders") / "data")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def towers(vit: str) -> SentenceTransformer:
    return two_towers(MINILM, vit, dim=12, seed=3).eval()


def many_words(words: int = 400) -> list[str]:
    """Texts with enough words that a tokenizer has ties to break."""
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrst"))
    vocabulary = ["".join(generator.choice(letters, generator.integers(2, 8))) for _ in range(words)]
    return [" ".join(generator.choice(vocabulary, 5)) for _ in range(2 * words)]


def test_tiny_repeats_by_seed() -> None:
    one, same, other = (tiny_clip(many_words(), seed=seed, dim=16, vocabulary=400) for seed in (4, 4, 5))
    assert one.tokenizer.get_vocab() == same.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert len(one.tokenizer) == 400
    for name, value in one.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, rtol=0, atol=0)
    assert any(not torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())


def test_tiny_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    clip(seed=9)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_tiny_knows_its_words_and_ends_every_text() -> None:
    tokenizer = tiny_clip(TEXTS, dim=16, vocabulary=500).tokenizer
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("RedShoe winebag")["input_ids"])
    assert tokens == ["redshoe", "winebag", "[EOS]"]
    assert len(tokenizer("red " * 100, truncation=True)["input_ids"]) == 32
    unknown = tokenizer.convert_ids_to_tokens(tokenizer("鞋")["input_ids"])
    assert unknown == ["[UNK]", "[EOS]"]
    with pytest.raises(ModelError, match="no text"):
        tiny_clip([])


def test_tiny_reads_the_last_word() -> None:
    """The vector is pooled at the end mark, so with causal attention every word counts."""
    vectors = clip().encode(["redshoe bluehat", "redshoe winebag", "tealcup winebag"])
    assert min(np.abs(vectors[0] - vectors[1]).max(), np.abs(vectors[1] - vectors[2]).max()) > 1e-3


def assert_plain_and_equal(encoder: SentenceTransformer, folder: Path, values: list[list[object]]) -> None:
    """The saved folder holds no code and no pickle, and plain sentence-transformers gives the same vectors."""
    encoder.save(str(folder), create_model_card=False, safe_serialization=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".txt", ".safetensors", ".md", ".jinja"}
    assert any(path.suffix == ".safetensors" for path in files)
    assert not any("auto_map" in path.read_text() for path in files if path.suffix == ".json")
    plain = SentenceTransformer(str(folder), device="cpu")
    for batch in values:
        expected = encoder.encode(batch)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(plain.encode(batch), expected, rtol=0, atol=1e-6)


def test_tiny_opens_with_plain_sentence_transformers(tmp_path: Path) -> None:
    assert_plain_and_equal(clip(seed=1), tmp_path, [TEXTS[:5], PICTURES])


def test_static_opens_with_plain_sentence_transformers(tmp_path: Path) -> None:
    assert_plain_and_equal(static_text(TEXTS, seed=1, dim=16, hidden=24), tmp_path, [TEXTS[:5]])


def test_static_is_a_bag_that_repeats_by_seed() -> None:
    one, same, other = (static_text(many_words(), seed=seed, dim=16, hidden=24) for seed in (4, 4, 5))
    words = many_words()[0].split()
    vectors = one.encode([" ".join(words), " ".join(reversed(words)), words[0].upper()])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3
    for name, value in one.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, rtol=0, atol=0)
    assert any(not torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())
    with pytest.raises(ModelError, match="no text to train the tokenizer of 'static'"):
        static_text([])


def test_two_towers_open_with_plain_sentence_transformers(towers: SentenceTransformer, tmp_path: Path) -> None:
    assert towers.get_embedding_dimension() == 12
    assert towers.encode(TEXTS[:2]).shape == (2, 12)
    assert towers.encode(PICTURES).shape == (3, 12)
    assert_plain_and_equal(towers, tmp_path, [TEXTS[:5], PICTURES])


def test_two_towers_are_projections_of_their_encoders(towers: SentenceTransformer, vit: str, tmp_path: Path) -> None:
    towers.save(str(tmp_path), create_model_card=False)
    projections = [load_file(file) for file in sorted(tmp_path.rglob("*Dense*/model.safetensors"))]
    weights = {tensor.shape: tensor.numpy() for state in projections for tensor in state.values()}
    assert set(weights) == {(12, 384), (12, 16)}  # and no bias
    minilm_vectors = minilm().encode(TEXTS[:3], normalize_embeddings=False)
    found = towers.encode(TEXTS[:3])
    # MiniLM ends with a normalisation that the tower leaves out: only the length may differ.
    expected = minilm_vectors @ weights[12, 384].T
    np.testing.assert_allclose(*(v / np.linalg.norm(v, axis=1, keepdims=True) for v in (found, expected)), atol=1e-5)
    pooled = SentenceTransformer(vit, device="cpu").encode(PICTURES)
    np.testing.assert_allclose(towers.encode(PICTURES), pooled @ weights[12, 16].T, atol=1e-5)


def test_two_towers_repeat_by_seed(vit: str, towers: SentenceTransformer) -> None:
    state = towers.state_dict()
    for seed, equal in ((3, True), (4, False)):
        torch.manual_seed(100 + seed)
        other = two_towers(MINILM, vit, dim=12, seed=seed).state_dict()
        assert all(torch.equal(other[name], value) for name, value in state.items()) == equal


def test_two_towers_with_cached_inputs(towers: SentenceTransformer, dataset: RankedDataset, tmp_path: Path) -> None:
    records, rows = dataset.documents, np.arange(12)
    inputs = Inputs(towers, records, ["title", "image"], chunk_rows=4)
    inputs.cache(tmp_path, image_cache_bytes=1e9, pictures=tmp_path / "kept", progress=False)
    assert {path.stem for path in tmp_path.rglob("*.bin")} >= {"input_ids", "pixels"}
    read = {"title": records.texts, "image": records.images}
    for field, given in inputs.of(rows).items():
        with torch.inference_mode():
            found = torch.cat([towers(dict(chunk))["sentence_embedding"] for chunk in given["chunks"]])
        expected = towers.encode(read[field](field, rows[given["order"].numpy()]))
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_wrong_towers_are_refused(vit: str) -> None:
    with pytest.raises(ModelError, match=r"the text tower .* reads image"):
        two_towers(vit, vit, dim=8)
    with pytest.raises(ModelError, match=r"the image tower .* reads text"):
        two_towers(MINILM, MINILM, dim=8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text=a", "two towers are written text=MODEL,image=MODEL; found 'text=a'"),
        ("text=a,image=b,video=c", "two towers are written"),
        ("text=a,text=b,image=c", "two towers are written"),
        ("text=,image=b", "two towers are written"),
        ("nobody/no-such-model", "model 'nobody/no-such-model' cannot be opened"),
        ("text=nobody/nothing,image=nobody/nothing", "model 'nobody/nothing' cannot be opened"),
    ],
)
def test_wrong_names_are_refused(dataset: RankedDataset, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_encoder(name, dataset, seed=0)


def test_named_encoders(dataset: RankedDataset, vit: str) -> None:
    tiny = make_encoder("tiny", dataset, seed=0, dim=32)
    assert tiny.get_embedding_dimension() == 32
    assert make_encoder("static", dataset, seed=0, dim=24).get_embedding_dimension() == 24
    assert make_encoder(f"text={MINILM},image={vit}", dataset, seed=0, dim=9).get_embedding_dimension() == 9
    np.testing.assert_allclose(
        make_encoder(MINILM, dataset, seed=0).encode(TEXTS[:2]), minilm().encode(TEXTS[:2]), rtol=0, atol=1e-6
    )
    with pytest.raises(ModelError, match=r"dim is for 'tiny', 'static' and two towers; .* has its own width"):
        make_encoder(MINILM, dataset, seed=0, dim=9)


def test_a_folder_whose_name_has_an_equals_sign(dataset: RankedDataset, tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    clip().save(str(folder), create_model_card=False)
    assert make_encoder(str(folder), dataset, seed=0).get_embedding_dimension() == 16


def test_the_tokenizer_learns_from_seen_texts_only(dataset: RankedDataset) -> None:
    queries = dataset.queries.texts("query", np.flatnonzero(dataset.splits.query_seen))
    titles = dataset.documents.texts("title", np.flatnonzero(dataset.splits.document_seen))
    assert None in titles
    assert list(training_texts(dataset)) == [text for text in [*queries, *titles] if text]


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=len(WORDS), **sizes))
    model.config.save_pretrained(tmp_path)
    minilm().tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be opened"):
        open_encoder(str(tmp_path), device="cpu")


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    clip().save(str(tmp_path), create_model_card=False)
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: ...\n")
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"idx": len(modules), "name": "evil", "path": "", "type": "evil.Evil"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="cannot be opened"):
        open_encoder(str(tmp_path), device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("left", [0, 5, 1000])
def test_cut_off_weights_are_refused(tmp_path: Path, left: int) -> None:
    clip().save(str(tmp_path), create_model_card=False)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(ModelError, match="cannot be opened"):
        open_encoder(str(tmp_path), device="cpu")


@pytest.mark.parametrize("file", ["modules.json", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "[]", "3", '{"a": 1}'])
def test_broken_files_are_refused(tmp_path: Path, file: str, content: str) -> None:
    clip().save(str(tmp_path), create_model_card=False)
    (tmp_path / file).write_text(content)
    with pytest.raises(ModelError, match="cannot be opened"):
        open_encoder(str(tmp_path), device="cpu")


def test_special_tokens_in_a_text_are_only_text() -> None:
    encoder = clip()
    ids = encoder.preprocess(["red shoe [EOS] hat [PAD]"])["input_ids"][0].tolist()
    assert ids.count(encoder.tokenizer.eos_token_id) == 1
    assert ids[-1] == encoder.tokenizer.eos_token_id
    assert encoder.tokenizer.pad_token_id not in ids


def test_siglips_vectors_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    """SigLIP pools the last position; padded to the longest of the batch, its vectors change with their neighbours."""
    tokenizer = clip().tokenizer
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    text = {**tower, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    config = SiglipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 16}, **special)
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(tmp_path / "siglip")

    dataset = ranked(tmp_path / "toy")
    encoder = open_encoder(str(tmp_path / "siglip"), device="cpu")
    model = BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema))
    rows = np.arange(len(dataset.documents))
    together = encode(model, dataset.documents, "document", rows)
    alone = np.concatenate([encode(model, dataset.documents, "document", rows[[row]]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    cached = inputs_for(model, dataset.documents, "document")
    cached.cache(tmp_path / "cache", image_cache_bytes=1e9, progress=False)
    np.testing.assert_allclose(encode(model, dataset.documents, "document", rows, inputs=cached), together, atol=1e-5)
    model.save(tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    beside_a_longer_one = encoder.encode(["red shoe", "blue hat " * 9])[:1]
    np.testing.assert_allclose(plain.encode(["red shoe"]), beside_a_longer_one, atol=1e-5)
