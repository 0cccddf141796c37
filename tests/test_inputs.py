"""Cached features give the vectors that features made per batch give: texts, pictures, gaps, any order of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers import SentenceTransformer

from opengcl.data import RankedDataset, Records, Schema, write_dataset
from opengcl.inputs import Inputs, preprocess, temporary_cache, to_device

from .builders import clip, minilm, ranked, static

ROWS = np.array([5, 39, 4, 0, 13, 22, 4, 31, 17, 2, 1, 36])  # not sorted, one twice; 4, 13, 22, 31 are long titles


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    return ranked(tmp_path_factory.mktemp("inputs") / "data")


@pytest.fixture(scope="module")
def tiny() -> SentenceTransformer:
    return clip().eval()


def vectors(encoder: SentenceTransformer, inputs: Inputs, field: str, rows: np.ndarray) -> np.ndarray:
    """One vector a row, NaN where the field is missing."""
    given = inputs.of(rows)[field]
    found = np.full((len(rows), encoder.get_embedding_dimension()), np.nan, dtype=np.float32)
    with torch.inference_mode():
        encoded = [encoder(dict(chunk))["sentence_embedding"] for chunk in given["chunks"]]
    if encoded:
        found[given["order"].numpy()] = torch.cat(encoded).numpy()
    return found


def alone(encoder: SentenceTransformer, records: Records, field: str, rows: np.ndarray) -> np.ndarray:
    """The same from sentence-transformers itself, one row at a time, so without any padding."""
    is_text = records.fields[field] == "text"
    values = records.texts(field, rows) if is_text else records.images(field, rows)
    nothing = np.full(encoder.get_embedding_dimension(), np.nan, dtype=np.float32)
    return np.stack([nothing if value is None else encoder.encode(value) for value in values])


ENCODERS = {"tiny": clip, "minilm": minilm, "static": static}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("name", "field"), [("tiny", "title"), ("tiny", "image"), ("minilm", "title"), ("static", "title")]
)
def test_vectors_are_those_of_each_row_alone(
    dataset: RankedDataset, tmp_path: Path, name: str, field: str, cached: bool
) -> None:
    encoder, records = ENCODERS[name]().eval(), dataset.documents
    inputs = Inputs(encoder, records, [field], chunk_rows=5)
    if cached:
        inputs.cache(tmp_path / "cache", image_cache_bytes=1e9, pictures=tmp_path / "cache/kept", progress=False)
        assert {path.stem for path in tmp_path.glob("cache/**/*.bin")} == {
            ("tiny", "title"): {"input_ids", "attention_mask"},
            ("minilm", "title"): {"input_ids", "attention_mask", "token_type_ids"},
            ("tiny", "image"): {"pixels", "rows"},
            ("static", "title"): {"input_ids"},
        }[name, field]
    found = vectors(encoder, inputs, field, ROWS)
    present = records.present(field, ROWS)
    assert 0 < present.sum() < len(ROWS)
    np.testing.assert_array_equal(inputs.of(ROWS)[field]["present"].numpy(), present)
    np.testing.assert_allclose(found, alone(encoder, records, field, ROWS), rtol=0, atol=2e-6)
    assert len(np.unique(found[present], axis=0)) == present.sum() - present[ROWS == 4].sum() // 2


@pytest.mark.parametrize("name", ["tiny", "minilm", "static"])
def test_cached_features_are_the_encoders_own(dataset: RankedDataset, tmp_path: Path, name: str) -> None:
    encoder, records = ENCODERS[name](), dataset.documents
    inputs = Inputs(encoder, records, ["title", "image"] if name == "tiny" else ["title"])
    inputs.cache(tmp_path, image_cache_bytes=1e9, progress=False)
    for field, given in inputs.of(ROWS).items():
        (chunk,) = given["chunks"]
        expected = preprocess(encoder, records, field, ROWS[given["order"].numpy()], "document")
        assert set(chunk) == set(expected)
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert chunk[key].dtype == value.dtype
                torch.testing.assert_close(chunk[key], value, rtol=0, atol=0)
            else:
                assert chunk[key] == value


def test_long_texts_are_cut_as_the_encoder_cuts_them(
    dataset: RankedDataset, tmp_path: Path, tiny: SentenceTransformer
) -> None:
    inputs = Inputs(tiny, dataset.documents, ["title"])
    inputs.cache(tmp_path, image_cache_bytes=0, progress=False)
    (chunk,) = inputs.of(np.array([4, 0]))["title"]["chunks"]
    limit = tiny.tokenizer.model_max_length
    assert chunk["input_ids"].shape[1] == limit == int(chunk["attention_mask"].sum(1).max())
    assert int(chunk["attention_mask"].sum(1).min()) < limit
    assert chunk["input_ids"][chunk["attention_mask"] == 0].unique().tolist() == [tiny.tokenizer.pad_token_id]


def test_rows_of_a_chunk_have_like_lengths(dataset: RankedDataset, tmp_path: Path, tiny: SentenceTransformer) -> None:
    inputs = Inputs(tiny, dataset.documents, ["title"], chunk_rows=3)
    inputs.cache(tmp_path, image_cache_bytes=0, progress=False)
    chunks = inputs.of(ROWS)["title"]["chunks"]
    lengths = [chunk["attention_mask"].sum(1).tolist() for chunk in chunks]
    flat = [length for chunk in lengths for length in chunk]
    assert flat == sorted(flat)
    assert [len(chunk) for chunk in lengths[:-1]] == [3] * (len(lengths) - 1)
    assert [chunk["input_ids"].shape[1] for chunk in chunks] == [max(chunk) for chunk in lengths]


@pytest.mark.parametrize("spare", [-1, 0])
def test_pictures_beyond_the_limit_are_decoded_per_batch(
    dataset: RankedDataset,
    tmp_path: Path,
    tiny: SentenceTransformer,
    spare: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = dataset.documents
    inputs = Inputs(tiny, records, ["image", "title"])
    pictures = int(records.present("image", np.arange(len(records))).sum())
    size = pictures * (3 * 32 * 32 + 16)
    inputs.cache(tmp_path, image_cache_bytes=size + spare, pictures=tmp_path / "kept", progress=False)
    assert [path.stat().st_size for path in tmp_path.rglob("pixels.bin")] == ([] if spare < 0 else [pictures * 3072])
    assert ("over the limit" in caplog.text) == (spare < 0)
    assert len(list(tmp_path.rglob("input_ids.bin"))) == 1
    expected = alone(tiny, records, "image", ROWS)
    np.testing.assert_allclose(vectors(tiny, inputs, "image", ROWS), expected, rtol=0, atol=2e-6)


def test_the_default_prompt_goes_before_every_text(dataset: RankedDataset, tmp_path: Path) -> None:
    encoder = clip().eval()
    encoder.prompts, encoder.default_prompt_name = {"shop": "redshoe winebag "}, "shop"
    inputs = Inputs(encoder, dataset.documents, ["title"])
    inputs.cache(tmp_path, image_cache_bytes=0, progress=False)
    found, rows = vectors(encoder, inputs, "title", ROWS), ROWS[dataset.documents.present("title", ROWS)]
    prompted = encoder.encode(dataset.documents.texts("title", rows), prompt_name="shop")
    np.testing.assert_allclose(found[~np.isnan(found[:, 0])], prompted, rtol=0, atol=2e-6)
    plain = encoder.encode(dataset.documents.texts("title", rows), prompt="")
    assert np.abs(prompted - plain).max() > 1e-3


def odd_dataset(folder: Path) -> RankedDataset:
    """A field that nobody has, and a field whose name is a path."""
    schema = Schema("odd", {"query": "text"}, {"../up/title": "text", "none": "text", "picture": "image"}, 0.0, 1.0)
    write_dataset(
        folder,
        schema,
        pa.table({"query_id": ["q"], "query": ["red"]}),
        pa.table(
            {
                "doc_id": ["d0", "d1"],
                "../up/title": ["redshoe", "bluehat redbag"],
                "none": pa.array([None, None], pa.string()),
                "picture": pa.array([None, None], pa.binary()),
            }
        ),
        pa.table({"query_id": ["q"], "doc_id": ["d0"], "score": [1.0]}),
    )
    return RankedDataset.open(folder, cache_dir=folder.parent / "cache", progress=False)


def test_a_field_that_nobody_has_and_one_with_a_strange_name(tmp_path: Path, tiny: SentenceTransformer) -> None:
    records = odd_dataset(tmp_path / "data").documents
    inputs = Inputs(tiny, records, list(records.fields))
    inputs.cache(tmp_path / "features" / "here", image_cache_bytes=1e9, progress=False)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["here"]
    found = inputs.of(np.array([1, 0]))
    for field in ("none", "picture"):
        assert found[field]["chunks"] == []
        assert not found[field]["present"].any()
    rows = np.array([1, 0])
    expected = alone(tiny, records, "../up/title", rows)
    np.testing.assert_allclose(vectors(tiny, inputs, "../up/title", rows), expected, rtol=0, atol=2e-6)


def test_no_rows_are_fine(dataset: RankedDataset, tmp_path: Path, tiny: SentenceTransformer) -> None:
    inputs = Inputs(tiny, dataset.documents, ["title", "image"])
    none = np.array([], dtype=np.int64)
    for _ in range(2):
        assert all(field["chunks"] == [] and len(field["present"]) == 0 for field in inputs.of(none).values())
        inputs.cache(tmp_path, image_cache_bytes=1e9, progress=False)


def test_to_device_moves_every_tensor(dataset: RankedDataset, tiny: SentenceTransformer) -> None:
    moved = to_device(Inputs(tiny, dataset.documents, ["title"]).of(ROWS), torch.device("meta"))["title"]
    tensors = [moved["order"], moved["present"], *(v for v in moved["chunks"][0].values() if torch.is_tensor(v))]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(tensors) == 4


def test_the_cache_folder_vanishes(tmp_path: Path) -> None:
    with temporary_cache(tmp_path / "run" / "cache") as folder:
        (Path(folder) / "x").write_text("x")
        assert Path(folder).parent == tmp_path / "run" / "cache"
    assert list((tmp_path / "run" / "cache").iterdir()) == []
