"""Kept pictures: whole or not there, by one writer and many readers, within the limit, and right after any damage."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sentence_transformers import SentenceTransformer

from opengcl.config import TrainConfig
from opengcl.cores import usable_cores
from opengcl.data import DataSetError, RankedDataset, Schema, write_dataset
from opengcl.encode import encode, inputs_for
from opengcl.evaluation import evaluate
from opengcl.inputs import Inputs
from opengcl.model import BiEncoder, FieldMix
from opengcl.picture_cache import META, PictureCache, find_entry, open_entry
from opengcl.picture_pixels import PixelForm
from opengcl.training import TrainError, train

from .builders import clip, picture

SHAPE = (20, 3, 4, 5)
SIZE = 20 * (60 + 16)
STAMPS = np.arange(20, dtype=np.uint64)
EVERY = np.arange(20)


def content(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def entry(parent: Path, name: str = "a", limit: float = 1e9) -> PictureCache | None:
    return open_entry(parent, name, SHAPE, limit_bytes=limit, about={})


def filled(parent: Path, name: str = "a", limit: float = 1e9) -> PictureCache:
    found = entry(parent, name, limit)
    assert found is not None
    found.write(EVERY, content(), STAMPS)
    return found


def test_what_is_written_is_read_by_every_opening(tmp_path: Path) -> None:
    first = entry(tmp_path / "kept")
    assert first is not None
    np.testing.assert_array_equal(first.missing(STAMPS), EVERY)
    some = np.array([7, 2])
    first.write(some, content()[some], STAMPS[some])
    second = find_entry(tmp_path / "kept", "a", SHAPE)
    assert second is not None
    np.testing.assert_array_equal(second.missing(STAMPS), np.setdiff1d(EVERY, some))
    np.testing.assert_array_equal(second.missing(STAMPS + (EVERY == 7)), np.setdiff1d(EVERY, [2]))  # 7's file changed
    pixels, right = pickle.loads(pickle.dumps(second)).read(np.array([2, 3, 7, 2]))  # noqa: S301
    assert right.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(pixels[right], content()[[2, 7, 2]])
    assert find_entry(tmp_path / "kept", "b", SHAPE) is None


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 20 * 60 - 1), bit=st.integers(0, 7))
def test_any_bit_that_turns_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    kept = filled(tmp_path_factory.mktemp("bits"))
    with (kept.folder / "pixels.bin").open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))
    assert np.flatnonzero(~kept.read(EVERY)[1]).tolist() == [place // 60]


@settings(max_examples=40, deadline=None)
@given(junk=st.binary(max_size=400), file=st.sampled_from([META, "pixels.bin", "rows.bin"]), cut=st.booleans())
def test_files_of_any_content_are_never_taken_for_pictures(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, file: str, cut: bool
) -> None:
    parent = tmp_path_factory.mktemp("junk")
    path = filled(parent).folder / file
    kept = b"" if cut else path.read_bytes()[len(junk) :]
    path.write_bytes(junk + kept)
    found = entry(parent)
    assert found is not None
    pixels, right = found.read(EVERY)
    np.testing.assert_array_equal(pixels[right], content()[right])


def test_entries_used_longest_ago_make_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for age, name in enumerate("abc"):
        filled(tmp_path, name)
        os.utime(tmp_path / name / META, (1000 - age, 1000 - age))  # c is the oldest
    limit = 3.5 * SIZE + 3 * 200
    caplog.set_level(logging.INFO)
    with_d = filled(tmp_path, "d", limit)
    assert sorted(path.parent.name for path in tmp_path.glob(f"*/{META}")) == ["a", "b", "d"]
    assert "to make room" in caplog.text
    del with_d
    opened = find_entry(tmp_path, "b", SHAPE)  # used now
    filled(tmp_path, "e", limit)
    assert sorted(path.parent.name for path in tmp_path.glob(f"*/{META}")) == ["b", "d", "e"]
    assert opened is not None


def test_what_is_open_is_not_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = filled(tmp_path, "a")
    assert entry(tmp_path, "b", 1.5 * SIZE) is None
    assert "in use" in caplog.text
    assert kept.read(EVERY)[1].all()
    del kept
    assert entry(tmp_path, "b", 1.5 * SIZE) is not None
    assert not (tmp_path / "a").exists()


def test_too_large_for_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert entry(tmp_path, "a", SIZE - 1) is None
    assert "over the limit" in caplog.text
    assert entry(tmp_path, "a", SIZE) is not None


def test_a_disk_that_is_full_or_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        assert entry(tmp_path / "full") is None
    assert "No space left" in caplog.text
    assert list((tmp_path / "full").glob("*/")) == []
    (tmp_path / "file").write_text("no folder")
    assert entry(tmp_path / "file") is None
    assert entry(tmp_path / "full") is not None


# With a data set and an encoder


def shop(folder: Path, documents: int = 40, *, titles: bool = True, files: bool = True) -> RankedDataset:
    """Documents with a picture each, half of them in files beside the tables."""
    generator = np.random.default_rng(3)
    pictures = [picture(generator) for _ in range(documents)]
    in_files = [files and row % 2 == 0 for row in range(documents)]
    (folder / "made").mkdir(parents=True)
    for row in np.flatnonzero(in_files):
        (folder / "made" / f"{row}.png").write_bytes(pictures[row])
    cells = [
        {"bytes": None, "path": f"made/{row}.png"} if outside else {"bytes": one, "path": None}
        for row, (one, outside) in enumerate(zip(pictures, in_files, strict=True))
    ]
    fields = {"title": "text", "image": "image"} if titles else {"image": "image"}
    columns = {"title": [f"redshoe {row}" for row in range(documents)]} if titles else {}
    ids = [f"d{row}" for row in range(documents)]
    write_dataset(
        folder / "data",
        Schema("shop", {"query": "text"}, fields, 1.0, 100.0),  # type: ignore[arg-type]
        pa.table(
            {
                "query_id": ["q0", "q1", "q2", "q3"],
                "query": ["red", "shoe", "red shoe", "hat"],
                "split": ["seen", "seen", "novel", "novel"],
                "part": ["dev", "test", "dev", "test"],
            }
        ),
        pa.table(
            {
                "doc_id": ids,
                **columns,
                "image": pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                "split": ["novel" if row % 4 == 3 else "seen" for row in range(documents)],
            }
        ),
        pa.table(
            {
                "query_id": ["q0", "q1", "q2", "q3"] * documents,
                "doc_id": np.repeat(ids, 4),
                "score": [5.0] * 4 * documents,
            }
        ),
    )
    (folder / "made").rename(folder / "data" / "made")
    return RankedDataset.open(folder / "data", cache_dir=folder / "cache", progress=False)


@pytest.fixture(scope="module")
def tiny() -> SentenceTransformer:
    return clip().eval()


def cached(encoder: SentenceTransformer, data: RankedDataset, kept: Path, **settings_: Any) -> Inputs:
    inputs = Inputs(encoder, data.documents, ["image"], **settings_)
    inputs.cache(kept / "texts", image_cache_bytes=1e9, pictures=kept, progress=False)
    return inputs


def values(inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
    found = inputs.of(rows)["image"]
    made = torch.cat([chunk["pixel_values"] for chunk in found["chunks"]])
    return torch.empty_like(made).index_copy_(0, found["order"], made)


def test_the_second_run_decodes_nothing(
    tmp_path: Path, tiny: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shop(tmp_path)
    rows = np.arange(40)
    expected = values(Inputs(tiny, data.documents, ["image"]), rows)
    torch.testing.assert_close(values(cached(tiny, data, tmp_path / "kept"), rows), expected, rtol=0, atol=0)
    decoded: list[int] = []
    monkeypatch.setattr(type(data.documents), "picture", lambda _, __, row: decoded.append(row))
    torch.testing.assert_close(values(cached(clip(), data, tmp_path / "kept"), rows), expected, rtol=0, atol=0)
    found = Inputs(clip(), data.documents, ["image"])
    found.use_kept_pictures(tmp_path / "kept")
    torch.testing.assert_close(values(found, rows), expected, rtol=0, atol=0)
    assert decoded == []


def test_damaged_rows_are_decoded_again(
    tmp_path: Path, tiny: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    data = shop(tmp_path)
    rows = np.arange(40)
    inputs = cached(tiny, data, tmp_path / "kept")
    expected = values(inputs, rows)
    (file,) = (tmp_path / "kept").glob("*/pixels.bin")
    with file.open("r+b") as pixels:
        pixels.seek(5 * 3072 + 100)
        pixels.write(b"\0" * 4000)  # in rows 5 and 6
    torch.testing.assert_close(values(inputs, rows), expected, rtol=0, atol=0)
    assert "2 pictures" in caplog.text
    caplog.clear()
    torch.testing.assert_close(values(inputs, rows), expected, rtol=0, atol=0)
    assert caplog.text == ""


def test_a_file_that_changed_is_decoded_again(tmp_path: Path, tiny: SentenceTransformer) -> None:
    data = shop(tmp_path)
    before = values(cached(tiny, data, tmp_path / "kept"), np.arange(40))
    other = picture(np.random.default_rng(99))
    (data.path / "made" / "4.png").write_bytes(other)
    os.utime(data.path / "made" / "4.png", (5, 5))
    after = values(cached(tiny, data, tmp_path / "kept"), np.arange(40))
    changed = (before != after).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [4]
    expected = tiny.preprocess([Image.open(io.BytesIO(other)).convert("RGB")])["pixel_values"][0]
    torch.testing.assert_close(after[4], expected, rtol=0, atol=0)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "per batch"])
def test_unreadable_pictures_are_left_out_and_told(
    tmp_path: Path, tiny: SentenceTransformer, caplog: pytest.LogCaptureFixture, kept: bool
) -> None:
    data = shop(tmp_path)
    (data.path / "made" / "4.png").unlink()
    (data.path / "made" / "8.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    if kept:
        inputs = cached(tiny, data, tmp_path / "kept", max_unreadable=0.05)
    else:
        inputs = Inputs(tiny, data.documents, ["image"], max_unreadable=0.05)
    found = inputs.of(np.array([3, 4, 8, 9]))["image"]
    assert found["present"].tolist() == [True, False, False, True]
    assert sum(len(chunk["pixel_values"]) for chunk in found["chunks"]) == 2
    assert set(inputs.unreadable["image"]) == {4, 8}
    assert "2 of 40 pictures" in caplog.text
    assert "'d4': no file" in caplog.text
    assert "'d8': " in caplog.text
    assert inputs.usable(np.array([3, 4, 8])).tolist() == [True, False, False]
    (data.path / "made" / "12.png").unlink()
    with pytest.raises(DataSetError, match=r"3 of 40 pictures .*'d12'.*allowed: a share of 0.05 \(max_unreadable\)"):
        _ = cached(tiny, data, tmp_path / "kept", max_unreadable=0.05) if kept else inputs.of(np.array([12]))


def bi_encoder(tiny: SentenceTransformer, data: RankedDataset) -> BiEncoder:
    return BiEncoder(tiny, FieldMix.choose(tiny, data.schema, None, {"image": 1.0}))


def test_documents_without_a_readable_picture_are_out_of_the_corpus(tmp_path: Path, tiny: SentenceTransformer) -> None:
    data = shop(tmp_path, titles=False)
    model = bi_encoder(tiny, data)
    (data.path / "made" / "4.png").unlink()
    inputs = inputs_for(model, data.queries, "query"), inputs_for(model, data.documents, "document", max_unreadable=0.1)
    listed = evaluate(model, data, inputs=inputs, part="all", depth=40).results
    assert "d4" not in listed["doc_id"].to_pylist()
    assert len(listed) > 0
    assert np.isfinite(listed["score"].to_numpy()).all()
    with pytest.raises(ValueError, match=r"document 'd4' has nothing to be encoded by: no file .*4.png"):
        encode(model, data.documents, "document", np.arange(6), inputs=inputs[1])
    vectors = encode(model, data.documents, "document", np.arange(6), inputs=inputs[1], zero_unreadable=True)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 1, 0, 1], atol=1e-6)


def config(data: RankedDataset, out: Path, **settings_: Any) -> TrainConfig:
    chosen = {"fields": {"image": 1.0}, "epochs": 2, "batch_size": 8, "evaluations": 1, "device": "cpu", **settings_}
    return TrainConfig(data=str(data.path), model="tiny", dim=16, out=str(out), **chosen)


@pytest.mark.parametrize("gigabytes", [1.0, 0.0], ids=["kept", "per batch"])
def test_training_goes_on_without_what_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gigabytes: float
) -> None:
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    data = shop(tmp_path)
    (data.path / "made" / "4.png").unlink()
    settings_ = {"image_cache_gb": gigabytes}
    out = train(config(data, tmp_path / "run", max_unreadable=0.03, **settings_), progress=False)
    assert "'d4': no file" in caplog.text
    assert ("2 of 60 training pairs are left out" in caplog.text) == (gigabytes > 0)
    history = json.loads((out / "history.json").read_text())
    assert all(np.isfinite(step["loss"]) for step in history if "loss" in step)
    assert "d4" not in pq.read_table(out / "results.parquet")["doc_id"].to_pylist()
    with pytest.raises(DataSetError, match=r"1 of 40 pictures .*'d4'.* allowed: a share of 0.02 \(max_unreadable\)"):
        train(config(data, tmp_path / "strict", max_unreadable=0.02, **settings_), progress=False)


def test_too_many_rows_skipped_in_opening_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    data = shop(tmp_path)
    for row in (0, 2, 4):
        (data.path / "made" / f"{row}.png").write_bytes(b"spoilt")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(TrainError, match=r"unreadable image in 3 rows: .*d0.*allowed: 0.01 \(max_unreadable\)"):
        train(config(data, tmp_path / "run", strict=False), progress=False)


def _fill(data: RankedDataset, kept: Path, gate: Any) -> None:
    encoder = clip()
    gate.wait()
    cached(encoder, data, kept)


def test_several_processes_fill_one_entry(tmp_path: Path, tiny: SentenceTransformer) -> None:
    data = shop(tmp_path, 200, files=False)
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)
    workers = [context.Process(target=_fill, args=(data, tmp_path / "kept", gate)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list((tmp_path / "kept").glob("*/pixels.bin"))) == 1
    rows = np.arange(200)
    expected = values(Inputs(tiny, data.documents, ["image"]), rows)
    torch.testing.assert_close(values(cached(tiny, data, tmp_path / "kept"), rows), expected, rtol=0, atol=0)


@pytest.mark.parametrize("after", [0.0, 0.05, 0.2])
def test_a_fill_that_is_killed_goes_on(tmp_path: Path, tiny: SentenceTransformer, after: float) -> None:
    data = shop(tmp_path, 600, files=False)
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(2)
    worker = context.Process(target=_fill, args=(data, tmp_path / "kept", gate))
    worker.start()
    gate.wait(60)
    time.sleep(after)
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join()
    rows = np.arange(600)
    expected = values(Inputs(tiny, data.documents, ["image"]), rows)
    torch.testing.assert_close(values(cached(tiny, data, tmp_path / "kept"), rows), expected, rtol=0, atol=0)


def test_other_data_fields_and_processors_have_entries_of_their_own(tmp_path: Path, tiny: SentenceTransformer) -> None:
    kept = tmp_path / "kept"
    cached(tiny, shop(tmp_path / "one"), kept)
    cached(tiny, shop(tmp_path / "one_again"), kept)  # the same content elsewhere
    assert len(list(kept.glob("*/"))) == 1
    cached(tiny, shop(tmp_path / "two", 41), kept)
    other = clip()
    processor = next(module.processor for module in other.modules() if hasattr(module, "processor")).image_processor
    processor.resample = Image.Resampling.BOX
    assert PixelForm(other).identity != PixelForm(tiny).identity
    cached(other, shop(tmp_path / "three"), kept)
    assert len(list(kept.glob("*/"))) == 3
    assert {json.loads(file.read_text())["field"] for file in kept.glob(f"*/{META}")} == {"image"}


def test_room_is_taken_where_the_system_has_no_call_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.delattr(os, "sched_getaffinity")
    shape = (500, 3, 31, 33)
    entry = open_entry(tmp_path, "entry", shape, limit_bytes=1e9, about={})
    assert entry is not None
    assert (entry.folder / "pixels.bin").stat().st_size == np.prod(shape)
    assert len(entry.missing(np.zeros(500, dtype=np.uint64))) == 500
    assert usable_cores() >= 1
