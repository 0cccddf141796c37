"""What the documentation names exists: commands, options, settings, files, links, Python names."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
import yaml
from benchmarks.ranking import tables

import opengcl
from opengcl.cli import app
from opengcl.config import TrainConfig
from opengcl.loss import TARGETS
from opengcl.weights import WEIGHTS, weight_function

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GROUPS = {"data", "index"}
COMMANDS: dict[str, Any] = {
    f"{group} {name}".strip(): command
    for group, commands in {
        "": typer.main.get_command(app).commands,  # type: ignore[attr-defined]
        **{name: typer.main.get_command(app).commands[name].commands for name in GROUPS},  # type: ignore[attr-defined]
    }.items()
    for name, command in commands.items()
    if name not in GROUPS
}
# Options of other programs that the pages mention.
FOREIGN = {"--nproc-per-node", "--no-python"}
# Packages of other launchers, which the tests do not install; files whose names look like Python's.
NOT_INSTALLED = {"ray"}
OUR_FILES = {"opengcl.json"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    """(where, words) of every command in the pages' bash blocks."""
    for page in PAGES:
        for body in blocks(page, "bash"):
            for line in body.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield f"{name_of(page)}: {line.strip()}", words


LINES = list(shell_lines())
OURS = [(where, words[words.index("opengcl") + 1 :]) for where, words in LINES if "opengcl" in words]


def option_names(command: Any) -> set[str]:
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {name for name in names if name.startswith("-")}


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """A command's name, of two words in a group, and its arguments."""
    length = 2 if words[0] in GROUPS else 1
    return " ".join(words[:length]), words[length:]


@pytest.mark.parametrize("words", [words for _, words in OURS], ids=[where for where, _ in OURS])
def test_commands_in_bash_blocks_parse(words: list[str]) -> None:
    name, arguments = split_command(words)
    assert name in COMMANDS, f"opengcl {name}: the commands are {', '.join(COMMANDS)}"
    context = COMMANDS[name].make_context(name, arguments)  # raises on unknown options and missing arguments
    settings = {part.partition("=")[0] for part in context.params.get("setting") or ()}
    assert settings <= {field.name for field in dataclasses.fields(TrainConfig)}
    if context.params.get("weights"):
        weight_function(context.params["weights"])


def test_every_command_is_shown() -> None:
    assert {split_command(words)[0] for _, words in OURS} == set(COMMANDS)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {words[1] for _, words in LINES if words[0] == "make"}
    assert {"quickstart", "test"} <= named <= targets


@every_page
def test_options_in_prose_exist(page: Path) -> None:
    known = FOREIGN.union(*map(option_names, COMMANDS.values()))
    code = re.findall(r"`([^`\n]+)`", prose(page))
    named = {option for span in code for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)}
    assert named <= known


@every_page
def test_commands_in_prose_exist(page: Path) -> None:
    named = re.findall(r"`opengcl ((?:data )?[a-z-]+)", prose(page))
    assert set(named) <= {*COMMANDS, *GROUPS}


@every_page
def test_python_blocks_compile_and_import_what_exists(page: Path) -> None:
    for body in blocks(page, "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] not in NOT_INSTALLED:
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "opengcl":
                assert node.attr in opengcl.__all__


def found(path: str) -> Any:
    """What a dotted path names, imported as a reader would."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            value = getattr(value, name)
        return value
    raise ModuleNotFoundError(path)


REFERENCES = [(name_of(page), path) for page in PAGES for path in re.findall(r"^::: (\S+)$", prose(page), re.MULTILINE)]


@pytest.mark.parametrize("path", [path for _, path in REFERENCES], ids=[" ".join(one) for one in REFERENCES])
def test_what_the_api_pages_list_is_imported_under_that_name(path: str) -> None:
    """The page's heading is this path; in `opengcl` itself it is one of the names that load when they are used."""
    module, _, name = path.rpartition(".")
    assert inspect.getdoc(found(path))
    assert name in getattr(importlib.import_module(module), "__all__", [name])


def test_every_public_name_is_on_an_api_page() -> None:
    assert {f"opengcl.{name}" for name in opengcl.__all__} - {"opengcl.__version__"} <= {path for _, path in REFERENCES}


@every_page
def test_python_names_in_prose_exist(page: Path) -> None:
    for span in re.findall(r"`(opengcl\.[A-Za-z_.]+)[`(\[]", prose(page)):
        assert span in OUR_FILES or found(span) is not None


def test_public_names_are_lazy_and_known_to_type_checkers() -> None:
    tree = ast.parse((ROOT / "src/opengcl/__init__.py").read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.name: node.module for node in checked.body for alias in node.names}  # type: ignore[attr-defined]
    assert imported == opengcl._HOMES
    assert sorted([*imported, "__version__"]) == sorted(opengcl.__all__) == opengcl.__all__
    assert set(opengcl.__all__) <= set(dir(opengcl))
    assert [name for name, home in imported.items() if getattr(opengcl, name) is not found(f"{home}.{name}")] == []
    with pytest.raises(AttributeError, match="module 'opengcl' has no attribute 'nothing'"):
        _ = opengcl.nothing  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_else() -> None:
    told = "import sys; before = set(sys.modules); import opengcl; dir(opengcl); print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout.split()
    assert {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) == {"opengcl"}
    assert [name for name in loaded if name.startswith("opengcl.")] == []


@pytest.fixture(scope="module")
def small_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return opengcl.make_shop(tmp_path_factory.mktemp("blocks") / "shop", products=40, queries=30, image_size=16)


@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md", "docs/data-format.md", "docs/training.md"])
def test_python_blocks_run(page: str, small_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, in a folder with a small shop; but training takes a step or two."""
    train, make_shop = opengcl.train, opengcl.make_shop
    shorter = {"epochs": 0.1, "evaluations": 0, "batch_size": 32, "device": "cpu"}
    monkeypatch.setattr(
        opengcl, "train", lambda config: train(dataclasses.replace(config, **shorter), progress=False), raising=False
    )
    monkeypatch.setattr(
        opengcl, "make_shop", lambda out: make_shop(out, products=40, queries=30, image_size=16), raising=False
    )
    monkeypatch.chdir(tmp_path)
    if page != "docs/python-api.md":
        shutil.copytree(small_shop, "shop")
    scope: dict[str, Any] = {"__name__": "example"}
    if page == "docs/data-format.md":
        tables = ("queries", "documents", "qrels")
        scope |= {name: pq.read_table(small_shop / f"{name}.parquet") for name in tables}
    for body in blocks(ROOT / page, "python"):
        exec(compile(body.replace('write_dataset("shop"', 'write_dataset("new"'), page, "exec"), scope)  # noqa: S102


def test_the_readme_shows_the_public_names() -> None:
    shown = "\n".join(blocks(ROOT / "README.md", "python")) + prose(ROOT / "README.md")
    for name in ("TrainConfig", "train", "BiEncoder", "RankedDataset", "evaluate", "gcl_loss", "GCLLoss"):
        assert f"opengcl.{name}" in shown
        assert callable(getattr(opengcl, name))


def heading_anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@every_page
def test_internal_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in heading_anchors(linked), f"{name_of(page)} links to {target}"


def test_the_table_of_settings_is_whole_and_its_defaults_true() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", prose(ROOT / "docs/training.md"), re.MULTILINE)
    told = {name: default.strip().strip("`") for name, default in rows}
    actual: dict[str, str] = {}
    for field in dataclasses.fields(TrainConfig):
        if field.default is dataclasses.MISSING:
            actual[field.name] = "required"
        else:
            actual[field.name] = yaml.safe_dump(field.default).split("\n")[0].replace("null", "none")
    assert {name: told.get(name) for name in actual} == actual
    assert len(rows) == len(told)


def test_the_method_names_every_weight_function_and_target() -> None:
    text = prose(ROOT / "docs/method.md")
    assert [name for name in WEIGHTS if f"| `{name}` |" not in text] == []
    assert [name for name in TARGETS if f"    {name}: " not in text] == []


def test_the_architecture_names_every_module() -> None:
    text = prose(ROOT / "docs/architecture.md")
    source = ROOT / "src/opengcl"
    modules = [str(file.relative_to(source)) for file in source.rglob("*.py") if file.name != "__init__.py"]
    assert [module for module in modules if f"`{module}`" not in text] == []
    named = re.findall(r"`([\w/]+\.py)`", text)
    assert [name for name in named if name not in modules and not (ROOT / name).exists() and "test_x" not in name] == []


def test_every_dependency_is_justified() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in required}
    text = prose(ROOT / "docs/dependencies.md")
    assert [name for name in sorted(names) if f"| `{name}` |" not in text] == []


def test_pinned_versions_are_within_what_is_declared() -> None:
    pinned = (ROOT / "requirements/constraints.txt").read_text(encoding="utf-8")
    torch = re.search(r"^torch==(\S+)$", pinned, re.MULTILINE)
    assert torch
    for page in (ROOT / "README.md", ROOT / "docs/dependencies.md"):
        assert set(re.findall(r"torch==([\d.]+)", page.read_text(encoding="utf-8"))) == {torch[1]}


def test_the_pages_show_what_the_cells_hold() -> None:
    """No figure on the pages was typed by hand."""
    found = tables.all_results()
    assert found
    for page, text in tables.generated().items():
        assert page.read_text(encoding="utf-8") == text, f"{page}: run python -m benchmarks.ranking tables"
