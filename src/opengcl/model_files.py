"""What a model's folder may hold before a library opens it: known modules, safetensors, and no way to code."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opengcl.plain_files import read_plain

MODULES = (
    "BoW",
    "CLIPModel",
    "CNN",
    "Dense",
    "Dropout",
    "LSTM",
    "LayerNorm",
    "LogitScore",
    "Normalize",
    "Pooling",
    "Router",
    "StaticEmbedding",
    "Transformer",
    "WeightedLayerPooling",
)
"""Classes of sentence-transformers that ``modules.json`` and a router's configuration may name."""

_TYPE = re.compile(
    r"sentence_transformers\.(?:models|(?:base|sentence_transformer|cross_encoder)\.modules)(?:\.\w+)?\.(\w+)", re.ASCII
)
_ATTENTION = (None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
_CODE_SWITCHES = {"trust_remote_code": True, "use_kernels": True, "use_safetensors": False, "weights_only": False}
_PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "*.pkl", "*.pickle")  # what a library might still open
_CONFIGS = ("*config*.json", "modules.json", "opengcl.json")
_MAX_BYTES = 16 << 20


def check_model_files(folder: Path) -> None:
    """Checks the files of a model's folder, of whatever library, before one opens them.

    Pickled weights beside safetensors stay where they are: only safetensors are read.

    Raises:
        ValueError: A file that names a module outside `MODULES`, a path outside the folder, code to be downloaded, or
            an adapter; a folder with pickled weights alone; or a configuration that is no plain file. The message names
            the file, what was found and what is allowed.
    """
    for place in (folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir() and not path.is_symlink())):
        _check_weights(place)
    for pattern in _CONFIGS:
        for file in sorted(folder.rglob(pattern)):
            _check_config(file)


def _check_weights(place: Path) -> None:
    pickled = sorted(file.name for pattern in _PICKLED for file in place.glob(pattern))
    if pickled and not any(place.glob("*.safetensors")):
        raise ValueError(
            f"{place / pickled[0]}: weights as a pickle, which can run code; allowed: safetensors (where you "
            "trust it, save the model again)"
        )


def _check_config(file: Path) -> None:
    if file.name == "adapter_config.json":
        raise ValueError(f"{file}: an adapter, which names another model; allowed: models with their adapters merged")
    content = _read(file)
    if file.name == "modules.json":
        _check_modules(file, content)
    for key, value in _entries(content):
        if key == "types" and isinstance(value, dict) and "structure" in content:
            for name, kind in value.items():
                _check_type(file, kind)
                _check_path(file, name)
        if key.endswith("attn_implementation"):
            wrong = [one for one in (value.values() if isinstance(value, dict) else [value]) if one not in _ATTENTION]
            if wrong:
                allowed = ", ".join(map(str, _ATTENTION[1:]))
                raise ValueError(f"{file}, {key!r}: found {_shown(wrong[0])}; allowed: {allowed}")
        if key in _CODE_SWITCHES and value == _CODE_SWITCHES[key]:
            raise ValueError(f"{file}, {key!r}: found {value}; allowed: {not value}")


def _check_modules(file: Path, content: Any) -> None:
    if not isinstance(content, list) or not all(isinstance(one, dict) and "type" in one for one in content):
        raise ValueError(f"{file}: not a list of modules")
    for module in content:
        _check_type(file, module["type"])
        _check_path(file, module.get("path", ""))


def _check_type(file: Path, kind: object) -> None:
    found = _TYPE.fullmatch(kind) if isinstance(kind, str) else None
    if found is None or found.group(1) not in MODULES:
        allowed = f"those of sentence_transformers: {', '.join(MODULES)}"
        raise ValueError(f"{file}: module type {_shown(kind)}; allowed: {allowed}")


def _check_path(file: Path, path: object) -> None:
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts or "\\" in path:
        raise ValueError(f"{file}: module path {_shown(path)}; allowed: a folder inside the model's")


def _read(file: Path) -> Any:
    found = file.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
        raise ValueError(f"{file}: allowed: a plain file of at most {_MAX_BYTES >> 20} MB")
    try:
        return json.loads(read_plain(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({type(error).__name__}: {str(error)[:200]})") from error


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value, at any depth; JSON that could be read is not too deep."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _shown(value: object) -> str:
    return repr(value)[:120]
