"""Models from outside, made here: pickles that would write a file, modules that would load them, kernels, adapters."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from opengcl.model import ModelError, open_encoder
from opengcl.model_files import MODULES, check_model_files
from tests.builders import clip


class Writes:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    clip().save(str(folder), create_model_card=False)
    return folder


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A model of links to files that no test changes."""
    made = tmp_path / "model"
    for file in model.rglob("*"):
        if file.is_file():
            place = made / file.relative_to(model)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return made


PLACES = (
    "pytorch_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "adapter_model.bin",
    "vocab.pkl",
    "1_Dense/pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("alone", [True, False])
def test_no_pickle_is_ever_loaded(folder: Path, tmp_path: Path, name: str, alone: bool) -> None:
    marker = tmp_path / "ran"
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(pickle.dumps(Writes(marker)))
    if alone:
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
    if alone or "/" in name:
        told = "weights as a pickle" if "model" in name or ".pkl" in name else "cannot be opened"
        with pytest.raises(ModelError, match=told):
            open_encoder(str(folder), device="cpu")
    else:
        open_encoder(str(folder), device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize(
    "kind",
    [
        "os.system",
        "sentence_transformers.util.misc.import_from_string",
        "sentence_transformers.base.model.torch.load",
        "sentence_transformers.SentenceTransformer",
        "sentence_transformers.models.WordEmbeddings",
        "sentence_transformers.sentence_transformer.modules.word_weights.WordWeights",
        "sentence_transformers.sparse_encoder.modules.SparseStaticEmbedding",
        "sentence_transformers.models.Dense\n",
        "sentence_transformers.models.",
        7,
        None,
    ],
)
def test_other_modules_are_refused_also_inside_routers(folder: Path, kind: object) -> None:
    file = folder / "modules.json"
    modules = json.loads(file.read_text())
    file.write_text(json.dumps([*modules, {"idx": 9, "name": "9", "path": "", "type": kind}]))
    with pytest.raises(
        ModelError, match=r"modules\.json: module type .*; allowed: those of sentence_transformers: BoW"
    ):
        open_encoder(str(folder), device="cpu")
    file.write_text(json.dumps(modules))
    inner = folder / "1_Router" / "deep"
    for name in ("router_config.json", "config.json"):
        inner.mkdir(parents=True, exist_ok=True)
        (inner / name).write_text(json.dumps({"types": {"x": kind}, "structure": {"a": ["x"]}, "parameters": {}}))
        with pytest.raises(ValueError, match=rf"{name}: module type"):
            check_model_files(folder)
        (inner / name).unlink()


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "a\\b", 3])
def test_paths_of_modules_stay_inside(folder: Path, path: object) -> None:
    kind = "sentence_transformers.models.Normalize"
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": path, "type": kind}]))
    with pytest.raises(ValueError, match=r"module path .*; allowed: a folder inside the model's"):
        check_model_files(folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"attn_implementation": "someone/kernel"}, "'attn_implementation': found 'someone/kernel'; allowed: eager"),
        ({"_attn_implementation": "someone/kernel@main"}, "found 'someone/kernel@main'"),
        ({"text_config": {"_attn_implementation": "a/b:c"}}, "found 'a/b:c'"),
        ({"attn_implementation": {"text_config": "a/b", "": "sdpa"}}, "found 'a/b'"),
        ({"model_args": {"trust_remote_code": True}}, "'trust_remote_code': found True; allowed: False"),
        ({"model_kwargs": {"use_safetensors": False}}, "'use_safetensors': found False; allowed: True"),
        ({"use_kernels": True}, "'use_kernels': found True"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "sentence_bert_config.json", "tokenizer_config.json"])
def test_configurations_cannot_ask_for_code(folder: Path, entry: dict[str, Any], message: str, name: str) -> None:
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **entry}))
    with pytest.raises(ModelError, match=message):
        open_encoder(str(folder), device="cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_auto_map_runs_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    code = f"import os; os.mkdir({str(marker)!r})\nclass Own: ...\n"
    (folder / "evil.py").write_text(code)
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    keys = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
    file.write_text(json.dumps({**content, "auto_map": dict.fromkeys(keys, "evil.Own")}))
    with contextlib.suppress(ModelError):
        open_encoder(str(folder), device="cpu")
    assert not marker.exists()


def test_adapters_and_what_is_no_plain_file_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}')
    with pytest.raises(ModelError, match="an adapter, which names another model"):
        open_encoder(str(folder), device="cpu")
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "generation_config.json")
    with pytest.raises(ModelError, match="allowed: a plain file of at most"):
        open_encoder(str(folder), device="cpu")


def test_other_formats_beside_are_left_alone(folder: Path) -> None:
    (folder / "openvino").mkdir()
    (folder / "openvino" / "openvino_model.bin").write_bytes(b"weights")
    open_encoder(str(folder), device="cpu")


def test_what_this_project_saves_is_allowed(model: Path) -> None:
    check_model_files(model)
    assert {"Transformer", "Router", "Dense", "StaticEmbedding"} <= set(MODULES)
