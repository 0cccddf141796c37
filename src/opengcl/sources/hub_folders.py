"""Folders of Hugging Face's `datasets` from outside: nothing that they name may lie outside them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from opengcl.data.problems import DataSetError, shown

BUILDERS = ("parquet", "csv", "json", "arrow")
"""Kinds of files that are read; the others open files that their rows name, or unpack archives."""

_CARDS = ("README.md", ".huggingface.yaml")
_MAX_CARD = 1 << 20
_MAX_CARD_EVENTS = 100_000
_MAX_CARD_DEPTH = 50


def check_folder(folder: Path) -> None:
    """Checks a folder before `datasets` reads it; nothing but its cards and its lists of files is opened.

    Raises:
        DataSetError: Something in it is a device or a link that leads out, or its README, ``state.json`` or
            ``dataset_dict.json`` names what is not inside.
    """
    _check_tree(folder)
    for name in _CARDS:
        if (card := folder / name).is_file():
            _check_card(card)
    for part in (folder, *(folder / name for name in _splits(folder))):
        if (state := part / "state.json").is_file():
            _check_names(state, [one.get("filename") for one in _listed(state, "_data_files")])


def check_files(name: str, root: str, found: Mapping[str, Any], builder: str) -> None:
    """Checks what `datasets` is about to read: known kinds of files, all of them below ``root``.

    Args:
        name: What messages call the data set.
        root: A folder's path, or the address of a data set on the hub.
        found: Split -> paths.
        builder: The kind of the files.

    Raises:
        DataSetError: Naming the first one that is not allowed.
    """
    if builder not in BUILDERS:
        raise DataSetError(f"{name}: found files of the kind {shown(builder)}; allowed: {', '.join(BUILDERS)}")
    for path in (str(path) for paths in found.values() for path in paths):
        local = "://" not in path
        inside = _is_inside(Path(path), Path(root)) if local else path.startswith(root) and ".." not in path.split("/")
        if not inside or "::" in path:
            raise DataSetError(f"{name}: names the file {shown(path)}; allowed: files inside it")


def _check_tree(folder: Path) -> None:
    root = folder.resolve()
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(place, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                if not _is_inside(path, root):
                    raise DataSetError(
                        f"{folder}: {shown(str(path.relative_to(root)))} is a link that leads out of the folder; copy "
                        "the folder with its links followed (cp -rL)"
                    )
                mode = path.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                where = shown(str(path.relative_to(root)))
                raise DataSetError(f"{folder}: {where} is no plain file; allowed: plain files and folders")


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a link that leads nowhere, or in a circle
        return False


def _check_card(card: Path) -> None:
    """The paths and patterns in a card's YAML, before anything looks for them."""
    with card.open("rb") as file:
        head = file.read(_MAX_CARD + 1)
    lines = head.decode("utf-8", "replace").splitlines(keepends=True)
    if card.suffix == ".md":
        if not lines or lines[0].strip() != "---":
            return
        end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
        if end is None:
            return
        lines = lines[1:end]
    text = "".join(lines)
    if len(text) > _MAX_CARD // 2:
        raise DataSetError(f"{card}: its YAML is too long; allowed: {_MAX_CARD // 2:,} characters")
    try:
        _check_yaml(card, text)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, DataSetError):
            raise
        raise DataSetError(f"{card}: its head is not YAML ({type(error).__name__})") from error
    configs = content.get("configs") if isinstance(content, dict) else None
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict):
            for key in ("data_files", "data_dir"):
                _check_names(card, list(_texts(config.get(key))), patterns=True)


def _check_yaml(card: Path, text: str) -> None:
    """No aliases, few levels and values: `yaml` takes long for many levels, and aliases grow without end."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if number > _MAX_CARD_EVENTS or depth > _MAX_CARD_DEPTH or isinstance(event, yaml.AliasEvent):
            raise DataSetError(
                f"{card}: its YAML has aliases or is too large; allowed: plain YAML of {_MAX_CARD_DEPTH} levels and "
                f"{_MAX_CARD_EVENTS:,} values"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key != "split":
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _splits(folder: Path) -> list[str]:
    file = folder / "dataset_dict.json"
    names = _listed(file, "splits") if file.is_file() else []
    _check_names(file, names)
    return [str(name) for name in names]


def _listed(file: Path, key: str) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content[key]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataSetError(f"{file}: cannot be read ({type(error).__name__}); required: {key!r}") from error
    if not isinstance(found, list) or (key == "_data_files" and not all(isinstance(one, dict) for one in found)):
        raise DataSetError(f"{file}, {key!r}: found {shown(found)}; allowed: a list")
    return found


def _check_names(file: Path, names: list[Any], *, patterns: bool = False) -> None:
    for name in names:
        allowed = "paths inside the folder" if patterns else "names of files in the folder"
        bad = not isinstance(name, str) or "://" in name or "::" in name or "\0" in name or name.startswith("~")
        if not bad:
            path = PurePosixPath(name)
            bad = path.is_absolute() or ".." in path.parts or not (patterns or len(path.parts) == 1)
        if bad:
            raise DataSetError(f"{file}: names {shown(name)}; allowed: {allowed}")
