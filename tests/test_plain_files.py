"""A pipe or a device in place of a file is refused at once, whatever reads it; score bounds no float holds, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opengcl.cli import app
from opengcl.data import DataSetError, RankedDataset, Schema
from opengcl.data.problems import shown
from opengcl.data.synthetic import make_shop
from opengcl.plain_files import open_plain, read_plain
from opengcl.plain_yaml import YamlError, parse_yaml, read_yaml
from opengcl.sources.formats import SourceOptions, open_source
from opengcl.sources.importing import ImportOptions, import_dataset
from opengcl.sources.mapping import TableMapping

SOURCES = Path(__file__).resolve().parents[1] / "src" / "opengcl"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)
)


def in_place_of(path: Path, kind: str) -> Path:
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "terminal": "/dev/tty", "nowhere": "none"}[kind])
    return path


KINDS = ("fifo", "device", "folder", "nowhere")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = in_place_of(tmp_path / "x", kind)
    for read in (open_plain, read_plain):
        with pytest.raises(OSError, match=r"not a plain file|No such file|Is a directory"):
            read(path)
    with pytest.raises(YamlError, match=r"x: cannot be read: (not a plain file|No such file|Is a directory)"):
        read_yaml(path)


def test_links_to_plain_files_are_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to("a")
    assert read_plain(tmp_path / "b") == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_plain(tmp_path / "b", most=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dataset.yaml", "queries.parquet", "documents.parquet", "qrels.parquet"])
def test_a_data_set_with_something_else_in_it_does_not_hang(tmp_path: Path, kind: str, name: str) -> None:
    shop = make_shop(tmp_path / "shop", products=60, queries=20)
    in_place_of(shop / name, kind)
    with pytest.raises((DataSetError, OSError), match=name):
        RankedDataset.open(shop, cache_dir=tmp_path / "cache", progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_commands_end_at_once(tmp_path: Path, kind: str) -> None:
    path = str(in_place_of(tmp_path / "x", kind))
    run = tmp_path / "run"
    run.mkdir()
    in_place_of(run / "config.yaml", kind)
    table = tmp_path / "t.csv"
    table.write_text("query,product_id,title,score\na,1,x,1\n")
    for words in (
        ["train", "--config", path],
        ["search", str(run), "red"],
        ["report", str(run)],
        ["data", "import", str(table), "--mapping", path, "--out", str(tmp_path / "out")],
        ["data", "import", path, "--format", "csv", "--out", str(tmp_path / "out")],
        ["data", "import", path, "--format", "parquet", "--out", str(tmp_path / "out")],
        ["data", "import", path, "--format", "marqo", "--out", str(tmp_path / "out")],
        ["data", "curate", "--config", path],
        ["compare", path, str(run)],
        ["metrics", path, path],
    ):
        found = CliRunner().invoke(app, words)
        assert isinstance(found.exception, ValueError | OSError), (words, found.output, found.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "bound", [10**401, -(10**401), 10**5000, float("inf"), float("nan"), 1.7e308], ids=lambda _: "bound"
)
def test_score_bounds_that_no_sum_holds_are_refused(tmp_path: Path, bound: float) -> None:
    with pytest.raises(DataSetError, match=r"score\.max: found .*; allowed: a finite number, up to 1e\+300"):
        Schema("x", {"q": "text"}, {"t": "text"}, 0, bound)
    table = tmp_path / "t.csv"
    table.write_text("query,product_id,title,score\na,1,x,1\n")
    source = open_source("csv", str(table), SourceOptions())
    for options in (ImportOptions(score_range=(0, bound)), ImportOptions(score_zero=bound)):
        with pytest.raises(DataSetError, match="allowed"):
            import_dataset(source, tmp_path / "out", options, progress=False)
    assert len(shown(bound)) < 100


@pytest.mark.parametrize("written", ["1e400", "9" * 401, "1" * 5000, ".inf", "-.inf", ".nan"])
def test_score_bounds_in_yaml_and_options(tmp_path: Path, written: str) -> None:
    text = f"name: x\nqueries: {{q: text}}\ndocuments: {{t: text}}\nscore: {{min: 0, max: {written}}}\n"
    with pytest.raises(DataSetError, match="allowed"):
        Schema.parse(text)
    table = tmp_path / "t.csv"
    table.write_text("query,product_id,title,score\na,1,x,1\n")
    for option in (f"--score-range=0,{written}", f"--score-zero={written}"):
        found = CliRunner().invoke(app, ["data", "import", str(table), "--out", str(tmp_path / "out"), option])
        assert found.exit_code, found.output
        assert found.exception is None or isinstance(found.exception, ValueError | SystemExit), found.exception


def test_yaml_bombs_are_refused_by_everything_that_reads_yaml(tmp_path: Path) -> None:
    with pytest.raises(YamlError, match="anchor"):
        parse_yaml(BOMB)
    path = tmp_path / "x.yaml"
    path.write_text(BOMB)
    (tmp_path / "dataset.yaml").write_text(BOMB)
    (tmp_path / "config.yaml").write_text(BOMB)
    for read in (lambda: TableMapping.read(path), lambda: Schema.read(tmp_path), lambda: read_yaml(path)):
        with pytest.raises(ValueError, match="anchor"):
            read()
    for words in (
        ["train", "--config", str(path)],
        ["search", str(tmp_path), "x"],
        ["data", "curate", "--config", str(path)],
    ):
        found = CliRunner().invoke(app, words)
        assert "anchor" in str(found.exception), (words, found.exception)


def test_one_loader_reads_all_yaml() -> None:
    """`plain_yaml`, and cards of Hugging Face, whose aliases and depth are checked first."""
    files = {str(file.relative_to(SOURCES)): file.read_text(encoding="utf-8") for file in SOURCES.rglob("*.py")}
    assert sorted(name for name, text in files.items() if "import yaml" in text) == [
        "plain_yaml.py",
        "sources/hub_folders.py",
    ]
