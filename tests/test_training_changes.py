"""Resuming with other data, other pictures or other settings is refused, and what differs is told."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from opengcl import RankedDataset, TrainConfig, make_shop, run_identity, train
from opengcl.checkpoints import Checkpoints
from opengcl.data.changes import changes, described
from opengcl.training import TrainError
from tests.killed_runs import assert_same_run


class CutError(Exception):
    pass


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run that was cut off at its second checkpoint, on a shop whose pictures are files."""
    folder = tmp_path_factory.mktemp("begun")
    shop = make_shop(folder / "shop", products=60, queries=40, image_size=32)
    rows = pq.read_table(shop / "documents.parquet")
    (shop / "images").mkdir()
    paths = []
    for doc_id, cell in zip(rows["doc_id"].to_pylist(), rows["image"].to_pylist(), strict=True):
        content = cell["bytes"] if isinstance(cell, dict) else cell
        paths.append(f"images/{doc_id}.png" if content else None)
        if content:
            (shop / f"images/{doc_id}.png").write_bytes(content)
    at = rows.column_names.index("image")
    pq.write_table(rows.set_column(at, "image", pa.array(paths)), shop / "documents.parquet")
    settings = {"dim": 16, "batch_size": 32, "epochs": 1, "evaluations": 3, "device": "cpu"}
    config = TrainConfig(data=str(shop), model="tiny", out=str(folder / "run"), **settings)  # type: ignore[arg-type]
    finish = Checkpoints.finish

    def cut(kept: Checkpoints, step: int) -> None:
        finish(kept, step)
        if len(kept.steps()) == 2:
            raise CutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "finish", cut)
        with pytest.raises(CutError):
            train(config, progress=False)
    return config


@pytest.fixture
def config(begun: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The same, in a copy of the run folder and of the data set, which may be changed."""
    shutil.copytree(begun.out, tmp_path / "run")
    shutil.copytree(begun.data, tmp_path / "shop")
    moved = replace(begun, data=str(tmp_path / "shop"), out=str(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").write_text(moved.to_yaml())
    return moved


def change(table: str, column: str, row: int, value: object) -> Callable[[Path], None]:
    def act(shop: Path) -> None:
        rows = pq.read_table(shop / table)
        values = rows[column].to_pylist()
        values[row] = value
        at = rows.column_names.index(column)
        pq.write_table(rows.set_column(at, column, pa.array(values, rows.schema.field(at).type)), shop / table)

    return act


def without(table: str, row: int) -> Callable[[Path], None]:
    def act(shop: Path) -> None:
        rows = pq.read_table(shop / table)
        pq.write_table(rows.take([at for at in range(len(rows)) if at != row]), shop / table)

    return act


def reversed_rows(shop: Path) -> None:
    rows = pq.read_table(shop / "queries.parquet")
    pq.write_table(rows.take(list(range(len(rows)))[::-1]), shop / "queries.parquet")


def other_range(shop: Path) -> None:
    content = yaml.safe_load((shop / "dataset.yaml").read_text())
    content["score"]["max"] = 200
    (shop / "dataset.yaml").write_text(yaml.safe_dump(content))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a score": (
        change("qrels.parquet", "score", 5, 33.0),
        r"qrels\.parquet: the score of \('q.*', 'p.*'\) was [\d.]+, now 33$",
    ),
    "a pair less": (without("qrels.parquet", 5), r"qrels\.parquet had 2,000 rows, now 1,999; .*is no longer judged$"),
    "a title": (
        change("documents.parquet", "title", 7, "another thing"),
        r"documents\.parquet, doc_id 'p000007', column 'title': was ['\"].*['\"], now 'another thing'$",
    ),
    "a title gone": (
        change("documents.parquet", "title", 7, None),
        r"documents\.parquet, doc_id 'p000007', column 'title': was ['\"].*['\"], now None$",
    ),
    "a query's text": (
        change("queries.parquet", "query", 3, "what else"),
        r"queries\.parquet, query_id '.*', column 'query': was '.*', now 'what else'$",
    ),
    "the order of rows": (reversed_rows, r"queries\.parquet: the same rows, in another order$"),
    "the range of scores": (other_range, r"dataset\.yaml: score\.max was 100(\.0)?, now 200$"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_data_are_refused_with_what_differs(what: str, config: TrainConfig) -> None:
    act, expected = CHANGES[what]
    act(Path(config.data))
    with pytest.raises(TrainError) as caught:
        train(config, resume=True, progress=False)
    said = str(caught.value)
    assert "the data set has changed since this run began (data): fingerprint was " in said
    assert re.search(expected, said), said
    assert not list(Path(config.out).glob("metrics.json"))


def test_new_rows_other_splits_and_pictures_in_the_table(tmp_path: Path) -> None:
    """What `changes` finds where a data set was written anew, at another place, its cache kept."""
    shop = make_shop(tmp_path / "shop", products=30, queries=10, image_size=16)
    before = RankedDataset.open(shop, cache_dir=tmp_path / "cache", progress=False)
    said = json.loads(json.dumps(described(before)))
    assert changes(said, before, cache_dir=tmp_path / "cache") == []
    other = shutil.copytree(shop, tmp_path / "other")
    rows = pq.read_table(other / "documents.parquet")
    picture = rows["image"][3].as_py()
    content = picture["bytes"] if isinstance(picture, dict) else picture
    changed = {"bytes": content + b" ", "path": None} if isinstance(picture, dict) else content + b" "
    change("documents.parquet", "image", 3, changed)(other)
    change("documents.parquet", "doc_id", 29, "new")(other)
    (other / "qrels.parquet").unlink()
    pairs = pq.read_table(shop / "qrels.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([one for one in pairs if one["doc_id"] != "p000029"]), other / "qrels.parquet")
    yaml_file = other / "dataset.yaml"
    yaml_file.write_text(yaml.safe_dump(yaml.safe_load(yaml_file.read_text()) | {"splits": {"seed": 5}}))
    now = RankedDataset.open(other, cache_dir=tmp_path / "cache", progress=False)
    told = changes(said, now, cache_dir=tmp_path / "cache")
    text = "\n".join(told)
    assert "documents.parquet: the row of 'p000029' is gone" in told
    assert "documents.parquet: the row of 'new' is new" in told
    assert re.search(r"doc_id 'p000003', column 'image': was [\d,]+ bytes \(SHA-256 .*\), now [\d,]+ bytes", text)
    assert "dataset.yaml: splits.seed was None, now 5" in told
    assert re.search(r"queries\.parquet, query_id '.*': was (seen, now novel|novel, now seen)", text)
    shutil.rmtree(tmp_path / "cache")
    again = RankedDataset.open(other, cache_dir=tmp_path / "cache", progress=False)
    told = changes(said, again, cache_dir=tmp_path / "cache")
    assert "the cache no longer holds a copy" in told[-1]
    assert len(told) > 1


def picture_of(config: TrainConfig, row: int) -> tuple[str, Path]:
    rows = pq.read_table(Path(config.data) / "documents.parquet")
    return rows["doc_id"][row].as_py(), Path(config.data) / rows["image"][row].as_py()


@pytest.mark.parametrize("kept_gb", [4.0, 0.0])
def test_a_changed_picture_is_refused_by_id(kept_gb: float, begun: TrainConfig, config: TrainConfig) -> None:
    """Whether its pixels are kept or not."""
    config = replace(config, image_cache_gb=kept_gb)
    for file in Path(begun.data).glob("images/*"):  # so that times are equal
        os.utime(Path(config.data) / "images" / file.name, ns=(file.stat().st_mtime_ns,) * 2)
    name, file = picture_of(config, 4)
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(file)
    with pytest.raises(TrainError) as caught:
        train(config, resume=True, progress=False)
    assert f"documents.parquet, column 'image': 1 pictures have changed since this run began: doc_id '{name}' (" in str(
        caught.value
    )


def test_pictures_that_were_only_copied_are_the_same(begun: TrainConfig, config: TrainConfig, tmp_path: Path) -> None:
    """Other times, same pixels."""
    for file in (Path(config.data) / "images").iterdir():
        os.utime(file, ns=(1, 1))
    whole = replace(begun, out=str(tmp_path / "whole"))
    assert_same_run(train(whole, progress=False), train(config, resume=True, progress=False))


def test_settings_that_may_differ_and_those_that_may_not(config: TrainConfig, tmp_path: Path) -> None:
    other = replace(config, learning_rate=0.5, epochs=2, weights="linear")
    with pytest.raises(TrainError) as caught:
        train(other, resume=True, progress=False)
    for part in ("learning_rate was None, now 0.5", "epochs was 1, now 2", "weights was 'exponential', now 'linear'"):
        assert part in str(caught.value)
    moved = tmp_path / "moved"
    shutil.move(config.out, moved)
    train(replace(config, out=str(moved), max_unreadable=0.5, image_cache_gb=1.0), resume=True, progress=False)


def test_other_versions_are_told(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    file = Path(config.out) / "data.json"
    content: dict[str, Any] = json.loads(file.read_text())
    content["begun"]["torch"] = "1.0"
    file.write_text(json.dumps(content))
    train(config, resume=True, progress=False)
    assert "torch was 1.0, now" in caplog.text


@pytest.mark.parametrize("towers", [False, True])
def test_changed_files_of_a_model_in_a_folder_are_refused(towers: bool, begun: TrainConfig, tmp_path: Path) -> None:
    texts, images = tmp_path / "texts", tmp_path / "images"
    for folder in (texts, images):
        (folder / "0_Transformer").mkdir(parents=True)
        (folder / "0_Transformer" / "tokenizer.json").write_text("{}")
        (folder / "modules.json").write_text("[]")
    config = replace(begun, model=f"text={texts},image={images}" if towers else str(texts), out=str(tmp_path / "run"))
    data = {"data": RankedDataset.open(begun.data, progress=False)}
    Path(config.out).mkdir()
    run_identity.begin(Path(config.out), config, data)
    run_identity.check(Path(config.out), config, data)
    folder = images if towers else texts
    (folder / "0_Transformer" / "tokenizer.json").write_text('{"model": 1}')
    (folder / "modules.json").unlink()
    (folder / "new.json").write_text("1")
    with pytest.raises(TrainError) as caught:
        run_identity.check(Path(config.out), config, data)
    for told in (
        r"tokenizer\.json \(SHA-256 44136fa355b3678a\.\.\. then, SHA-256 \w+\.\.\. now\)",
        r"modules\.json \(.* then, no file now\)",
    ):
        assert re.search(told, str(caught.value))
    assert "new.json (no file then, SHA-256 6b86b273ff34fce1... now)" in str(caught.value)
