"""A model that is not there: told at once, with what may have been meant, after one question to the hub at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from sentence_transformers import SentenceTransformer

from opengcl import hub_models
from opengcl.cli.main import main
from opengcl.hub_models import looks_like_a_path
from opengcl.model import BiEncoder, FieldMix, ModelError, open_encoder
from opengcl.named_folders import near_folders, no_such_folder

from .builders import clip, ranked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The hub is on but nobody answers, in an empty folder; what is asked of it."""
    questions: list[str] = []

    def ask(_: HfApi, repository: str, **__: Any) -> None:
        questions.append(repository)
        raise ConnectionError("nobody answers")

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("sentence-transformers asks the hub for every file")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", ask)
    monkeypatch.setattr(SentenceTransformer, "__init__", opened)
    monkeypatch.chdir(tmp_path)
    return questions


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("runs/gcl", True),
        ("out/x", True),
        ("Runs/x", True),
        ("clip/model", True),
        ("./gcl", True),
        ("../gcl", True),
        ("/srv/gcl", True),
        ("~/gcl", True),
        ("gcl/", True),
        ("a/b/c", True),
        (r"runs\gcl", True),
        ("there/gcl", True),
        ("intfloat/e5-base-v2", False),
        ("all-MiniLM-L6-v2", False),
        ("missing-folder", False),
    ],
)
def test_what_looks_like_a_path(name: str, is_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert looks_like_a_path(name) == is_path


@pytest.mark.parametrize("name", ["runs/gc", "./gcl", "/nowhere/gcl", "~nobody/x", "a/b/c", "gcl/", "two words", ""])
def test_a_path_is_never_asked_of_the_hub(name: str, asked: list[str]) -> None:
    with pytest.raises(
        ModelError, match=r"cannot be opened: .*no such folder|cannot be opened: the folder has neither"
    ):
        open_encoder(name)
    assert asked == []


def test_a_name_is_asked_once(asked: list[str]) -> None:
    told = (
        r"missing-folder: no such folder; and the hub, https://\S+, cannot be asked \(ConnectionError: nobody answers\)"
    )
    with pytest.raises(ModelError, match=told):
        open_encoder("missing-folder")
    with pytest.raises(ModelError, match="org/name: no such folder; and the hub"):
        open_encoder("org/name")
    assert asked == ["sentence-transformers/missing-folder", "org/name"]


def test_a_hub_that_is_off_is_not_asked(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no such folder, nor a downloaded model; the hub is off \(HF_HUB_OFFLINE\)"):
        open_encoder("org/name")
    assert asked == []


def test_a_downloaded_model_is_used_where_the_hub_does_not_answer(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(hub_models, "_is_kept", lambda _: True)

    def opened(_: object, name: str, **options: Any) -> None:
        given.update(options, name=name)
        raise OSError("enough")

    monkeypatch.setattr(SentenceTransformer, "__init__", opened)
    with pytest.raises(ModelError, match="enough"):
        open_encoder("org/name")
    assert given["local_files_only"] is True
    assert asked == ["org/name"]


@pytest.mark.usefixtures("asked")
def test_folders_with_names_alike_are_told(tmp_path: Path) -> None:
    for name in ("gcl", "gcl-2", "clip", ".gcl"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert near_folders("runs/gc")[0] == "runs/gcl"
    near = [str(tmp_path / "runs" / name) for name in ("gcl", "gcl-2")]
    assert near_folders(tmp_path / "runs" / "gclx")[:2] == near
    assert near_folders("run/gcl")[0] == "runs/gcl"
    assert near_folders("something/else") == []
    assert no_such_folder("runs/gc").startswith("runs/gc: no such folder; there is runs/gcl")
    (tmp_path / "file").write_text("")
    assert no_such_folder("file") == "file is a file, not a folder"
    with pytest.raises(ModelError, match="there is runs/gcl"):
        open_encoder("runs/gc")
    with pytest.raises(ModelError, match="there is runs/gcl"):
        BiEncoder.load("runs/gc")


@pytest.mark.usefixtures("asked")
def test_a_folder_without_a_model_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("seed: 0\n")
    for opened in (open_encoder, BiEncoder.load):
        with pytest.raises(ModelError, match=r"has not ended.*--resume"):
            opened("begun")
        with pytest.raises(ModelError, match=r"neither modules.json nor config.json|holds no opengcl.json"):
            opened("empty")


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "runs/gc", "--data", "data"),
        ("encode", "runs/gc", "--data", "data", "--out", "vectors"),
        ("index", "build", "runs/gc", "--data", "data", "--store", "exact:store"),
        ("serve", "runs/gc", "--store", "exact:store"),
        ("search", "runs/gc", "shoe"),
        ("report", "runs/gc"),
        ("compare", "runs/gcl", "runs/gc"),
        ("train", "--model", "runs/gc", "--data", "data", "--out", "new"),
        ("evaluate", "runs/gcl", "--data", "dat"),
    ],
)
def test_every_command_tells_a_mistyped_run(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ranked(tmp_path / "data")
    encoder = clip()
    BiEncoder(encoder, FieldMix.choose(encoder, data.schema)).save(tmp_path / "runs" / "gcl" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["opengcl", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert "no such folder; there is " + ("data" if "dat" in words else "runs/gcl") in err
    assert len(err.splitlines()) == 1
