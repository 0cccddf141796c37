"""Hugging Face folders from outside, made here: files, links and devices that lead out of them are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest

from opengcl.data import DataSetError
from opengcl.sources.hub import HubTable
from opengcl.sources.hub_folders import check_files

ROWS = {"query": ["a", "b"], "product_id": ["1", "2"], "title": ["x", "y"], "score": [2.0, 1.0]}
SECRET = {**ROWS, "query": ["secret", "secret"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder beside a file that it must not reach."""
    made = tmp_path / "given"
    (made / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(ROWS).to_parquet(str(made / "data" / "train-0.parquet"))
    datasets.Dataset.from_dict(SECRET).to_parquet(str(tmp_path / "outside.parquet"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "train.parquet").write_bytes((tmp_path / "outside.parquet").read_bytes())
    return made


def queries(folder: Path, split: str = "train", config: str | None = None) -> list[str]:
    return [
        one
        for rows in HubTable(str(folder), split, config).read(["query"], progress=False)
        for one in rows.batch[0].to_pylist()
    ]


def card(folder: Path, head: str, name: str = "README.md") -> None:
    (folder / name).write_text(f"---\n{head}\n---\n# A data set\n" if name.endswith(".md") else head)


def test_what_is_inside_is_read(folder: Path) -> None:
    assert queries(folder) == ["a", "b"]
    (folder / "link.parquet").symlink_to("data/train-0.parquet")  # a link that stays inside
    head = "configs:\n- config_name: small\n  data_files:\n  - split: train\n    path: [data/train-*, link.parquet]"
    card(folder, head)
    assert queries(folder, config="small") == ["a", "b"] * 2


@pytest.mark.parametrize(
    "named",
    [
        "../outside.parquet",
        "data/../../outside.parquet",
        "../*.parquet",
        "../**",
        "ROOT/outside.parquet",
        "file://ROOT/outside.parquet",
        "zip://x::ROOT/outside.parquet",
        "~/outside.parquet",
        "https://localhost/x.parquet",
    ],
)
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_a_card_that_names_files_outside_is_refused(folder: Path, named: str, name: str) -> None:
    named = named.replace("ROOT", str(folder.parent))
    for form in (
        f'  data_files: "{named}"',
        f'  data_files: ["data/*", "{named}"]',
        f'  data_files:\n  - split: train\n    path: "{named}"',
        f'  data_files:\n  - split: train\n    path: ["{named}"]',
        f'  data_dir: "{named}"',
    ):
        card(folder, f"configs:\n- config_name: default\n{form}", name)
        with pytest.raises(DataSetError, match=rf"{name}: names .*; allowed: paths inside the folder"):
            queries(folder)


@pytest.mark.parametrize("target", ["../outside.parquet", "ROOT/outside.parquet", "../outside", "/dev/zero", "nowhere"])
@pytest.mark.parametrize("name", ["data/train-1.parquet", "README.md", "more", "dataset_infos.json"])
def test_a_link_that_leads_out_is_refused(folder: Path, target: str, name: str) -> None:
    (folder / name).symlink_to(
        target.replace("ROOT", str(folder.parent)).replace("..", "../.." if "/" in name else "..")
    )
    with pytest.raises(DataSetError, match=r"a link that leads out of the folder; .*cp -rL"):
        queries(folder)


@pytest.mark.parametrize("name", ["README.md", "data/train-1.parquet", "state.json", "dataset_info.json"])
def test_a_fifo_does_not_hang(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)
    with pytest.raises(DataSetError, match="no plain file"):
        queries(folder)


@pytest.mark.parametrize("named", ["../../outside.arrow", "ROOT/outside.arrow", "x/y.arrow", 7, None, ".."])
def test_a_saved_data_set_that_names_files_outside_is_refused(folder: Path, named: object) -> None:
    saved = folder.parent / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(ROWS)}).save_to_disk(str(saved))
    assert queries(saved) == ["a", "b"]
    state = saved / "train" / "state.json"
    content = json.loads(state.read_text())
    if isinstance(named, str):
        named = named.replace("ROOT", str(folder.parent))
    content["_data_files"] = [{"filename": named}]
    state.write_text(json.dumps(content))
    with pytest.raises(DataSetError, match=r"state\.json: names .*; allowed: names of files in the folder"):
        queries(saved)
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["../saved/train"]}))
    with pytest.raises(DataSetError, match=r"dataset_dict\.json: names '\.\./saved/train'"):
        queries(saved)


def test_a_card_with_a_bomb_is_refused(folder: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    card(folder, "\n".join(["a0: &a0 [x]", *levels]))
    with pytest.raises(DataSetError, match="has aliases"):
        queries(folder)
    card(folder, "x: " + "[" * 50_000)
    with pytest.raises(DataSetError, match="too large"):
        queries(folder)


def test_kinds_of_files_that_open_others_are_refused(folder: Path) -> None:
    (folder / "data" / "train-0.parquet").unlink()
    (folder / "data" / "metadata.csv").write_text("file_name,query\n../../outside.parquet,a\n")
    (folder / "data" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataSetError, match="found files of the kind 'imagefolder'; allowed: parquet, csv, json, arrow"):
        queries(folder)


def test_what_a_card_on_the_hub_names_stays_there() -> None:
    root = "hf://datasets/a/b@"
    check_files("a/b", root, {"train": ["hf://datasets/a/b@abc/data/x.parquet"]}, "parquet")
    for path in (
        "/etc/passwd",
        "hf://datasets/other/c@x/y",
        "https://x/y",
        f"{root}abc/../../../c/d",
        f"zip://a::{root}x",
    ):
        with pytest.raises(DataSetError, match="allowed: files inside it"):
            check_files("a/b", root, {"train": [path]}, "parquet")
