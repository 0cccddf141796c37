"""Functions by import path: installed packages first, then the current folder; errors of the user's code are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from opengcl.cli import app
from opengcl.config import ConfigError, TrainConfig
from opengcl.data import Schema, write_dataset
from opengcl.objective import read_target
from opengcl.own_functions import imported
from opengcl.training import train
from opengcl.weights import weight_function

COLOURS = ("red", "blue", "teal")
LOSSES = """
def mine(queries, documents, known, logit_scale):
    picked = (queries[known.pair_query] * documents[known.pair_document]).sum(1)
    return (known.pair_weight * (1 - picked)).mean()
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a package, current, and not on the import path, as for a console script."""
    package = tmp_path / "folder" / "my_own_shop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "losses.py").write_text(LOSSES)
    (package / "weights.py").write_text("def halved(scores):\n    return scores / 200\n")
    (package / "broken.py").write_text("def f(:\n")
    (package / "lacking.py").write_text("import no_such_package_here\n")
    monkeypatch.chdir(package.parent)
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    here = str(Path(__file__).resolve().parents[1])
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", ".", here)])
    yield package.parent
    for name in [name for name in sys.modules if name.split(".")[0] == "my_own_shop"]:
        del sys.modules[name]


def test_targets_and_weights_are_found_in_the_current_folder(shop: Path) -> None:
    target = read_target("my_own_shop.losses:mine")
    assert callable(target)
    assert weight_function("my_own_shop.weights:halved")(np.array([100.0, 50.0])).tolist() == [0.5, 0.25]
    assert sys.path[-1] == str(shop)  # last, so that nothing installed is hidden by a file there


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_shop.losses:mine", r"No module named 'no_such_shop' \(installed packages and the current folder"),
        ("my_own_shop.other:mine", "No module named 'my_own_shop.other'"),
        ("my_own_shop.losses:yours", r"losses\.py has no 'yours'"),
        ("my_own_shop.broken:f", "SyntaxError"),
        ("my_own_shop.lacking:f", "No module named 'no_such_package_here'"),
    ],
)
def test_what_cannot_be_imported_is_told(shop: Path, path: str, message: str) -> None:
    module, _, name = path.partition(":")
    with pytest.raises(ValueError, match=f"target {path} cannot be imported: .*{message}"):
        imported("target", module, name)
    assert (str(shop) in sys.path) == path.startswith("my_own_shop")


def test_an_installed_package_comes_first(shop: Path) -> None:
    (shop / "torch").mkdir()
    (shop / "torch" / "__init__.py").write_text("raise AssertionError('the wrong one')")
    assert imported("target", "torch", "Tensor") is torch.Tensor


def test_the_command_finds_both_in_the_current_folder(shop: Path, tmp_path: Path) -> None:
    data = judged_shop(tmp_path / "data")
    words = ["train", "--data", str(data), "--model", "static", "--out", "run", "--epochs", "1", "--batch-size", "8"]
    words += ["--target", "my_own_shop.losses:mine", "--weights", "my_own_shop.weights:halved"]
    words += ["--device", "cpu", "--set", "dim=8", "--set", "evaluations=0"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert (shop / "run" / "metrics.json").is_file()


def judged_shop(folder: Path) -> Path:
    queries = pa.table({"query_id": [f"q{n}" for n in range(9)], "query": [f"{COLOURS[n % 3]} shoe" for n in range(9)]})
    documents = pa.table({"doc_id": [f"d{n}" for n in range(9)], "title": [f"{COLOURS[n % 3]} hat" for n in range(9)]})
    judged = [(f"q{q}", f"d{d}", (q + d) % 3) for q in range(9) for d in range(9)]
    qrels = pa.table(dict(zip(("query_id", "doc_id", "score"), map(list, zip(*judged, strict=True)), strict=True)))
    return write_dataset(folder, Schema("own", {"query": "text"}, {"title": "text"}, 0, 2), queries, documents, qrels)


@pytest.mark.parametrize("setting", ["weights", "target"])
@pytest.mark.parametrize("module", ["my_own_shop.loud", "no_such_shop.loud"])
def test_a_run_from_elsewhere_is_read_without_running_what_it_names(
    shop: Path, tmp_path: Path, setting: str, module: str
) -> None:
    """Searching, reporting and evaluating import nothing, whether the module is there or not."""
    marker = shop / "ran"
    loud = f"open({str(marker)!r}, 'w').close()\ndef mine(*given):\n    return given[0]\n"
    (shop / "my_own_shop" / "loud.py").write_text(loud)
    data = judged_shop(tmp_path / "data")
    words = ["train", "--data", str(data), "--model", "static", "--out", "run", "--epochs", "1", "--batch-size", "8"]
    words += ["--device", "cpu", "--set", "dim=8", "--set", "evaluations=0"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    config = shop / "run" / "config.yaml"
    lines = config.read_text().splitlines()
    own = [f"{setting}: {module}:mine" if line.startswith(f"{setting}:") else line for line in lines]
    config.write_text("\n".join(own) + "\n")
    assert own != lines
    (shop / "run" / "report.html").unlink()
    for command in (
        ["search", "run", "red shoe"],
        ["report", "run"],
        ["evaluate", "run", "--data", str(data), "--queries", "all", "--splits", "in_domain"],
    ):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 0, (command, found.output, found.exception)
    found = CliRunner().invoke(app, ["train", "--out", "run", "--resume"])
    told = f"{setting} names code, '{module}:mine', which training would run; if you trust it, say so: --{setting}"
    assert told in str(found.exception)
    assert not marker.exists()


def test_own_code_is_told_by_the_settings() -> None:
    base = {"data": "d", "model": "static", "out": "o"}
    assert TrainConfig(**base).own_code == {}
    own = TrainConfig(**base, weights="no_such.module:f", target="other.module:Loss:margin=1")
    assert own.own_code == {"weights": "no_such.module:f", "target": "other.module:Loss:margin=1"}
    for wrong in ("os:system('x')", "..:f", "a b:c", ":f", "os:", "os.:f"):
        with pytest.raises(ConfigError, match="is unknown"):
            TrainConfig(**base, weights=wrong)


def test_training_itself_tells_a_function_that_is_not_there_before_it_reads_the_data(tmp_path: Path) -> None:
    config = TrainConfig(data="no such data", model="static", out=str(tmp_path / "run"), weights="no_such_shop.w:f")
    with pytest.raises(ValueError, match="No module named 'no_such_shop'"):
        train(config, progress=False)
    assert not (tmp_path / "run").exists()
