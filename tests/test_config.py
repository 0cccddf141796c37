"""Settings: written and read back whole, and every wrong one refused by name."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from opengcl.cli import arguments
from opengcl.config import TEXT_SETTINGS, ConfigError, TrainConfig, load_config
from opengcl.devices import DeviceError
from opengcl.plain_yaml import write_yaml
from opengcl.training import train

BASE = {"data": "shop", "model": "tiny", "out": "run"}


def test_a_config_survives_yaml(tmp_path: Path) -> None:
    config = TrainConfig(**BASE, fields={"image": 0.9, "title": 0.1}, epochs=3, weights="exponential:decay=10")
    config.write(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", {}) == config


def test_options_win_over_the_file_and_none_does_not(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: shop\nmodel: tiny\nout: run\nseed: 3\nbatch_size: 8\n")
    config = load_config(tmp_path / "config.yaml", {"seed": 4, "batch_size": None, "fields": "image=3,title=1"})
    assert (config.seed, config.batch_size, config.fields) == (4, 8, {"image": 0.75, "title": 0.25})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"target": "list"}, "target: found 'list'; allowed: diagonal, masked, full, full_row, ranked"),
        ({"combine": "sum"}, "combine: found 'sum'; allowed: mean, pairwise, both"),
        ({"precision": "int8"}, "precision: found 'int8'; allowed: fp32, bf16, fp16"),
        ({"temperature": 0.001}, "temperature: found 0.001; allowed: from 0.01 to 1"),
        ({"epochs": 0}, "epochs: found 0; allowed: from 1e-09"),
        ({"batch_size": 1}, "batch_size: found 1; allowed: from 2"),
        ({"batch_size": 8, "docs_per_query": 9}, "docs_per_query: found 9; allowed: from 1 to 8"),
        ({"batch_size": 8, "queries_per_doc": 9}, "queries_per_doc: found 9; allowed: from 0 to 8"),
        ({"docs_per_query": 2, "queries_per_doc": 2}, "docs_per_query and queries_per_doc are two ways"),
        ({"sampling_exponent": 3}, "sampling_exponent: found 3; allowed: from 0 to 2"),
        ({"target": "diagonal", "sampling_exponent": 1}, "sampling_exponent is 1, but no documents are drawn; give"),
        ({"final_sampling_exponent": -1}, "final_sampling_exponent: found -1; allowed: from 0 to 2"),
        ({"queries_per_doc": 0, "final_sampling_exponent": 1}, "final_sampling_exponent is 1, but no documents are"),
        ({"batch_size": "many"}, "batch_size: found 'many'; allowed: a whole number"),
        ({"device": "cuda:1"}, "device: found 'cuda:1'; allowed: cpu, cuda"),
        ({"dim": 10**9}, "dim: found 1000000000; allowed: from 1 to 65536"),
        ({"batch_size": True}, "batch_size: found True; allowed: a whole number"),
        ({"learn_temperature": 1}, "learn_temperature: found 1; allowed: true or false"),
        ({"seed": -1}, "seed: found -1; allowed: from 0 to"),
        ({"weights": "steep"}, "weight function 'steep' is unknown"),
        ({"fields": {"title": 0}}, "field 'title' has weight 0"),
        ({"learning_rat": 1e-3}, "unknown setting 'learning_rat'; the settings are batch_size"),
    ],
)
def test_wrong_settings_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, {**BASE, **setting})


@pytest.mark.parametrize("content", ["- a list\n", "data: [\n", "!!python/object:os.system {}\n"])
def test_a_file_that_is_no_config_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(tmp_path / "config.yaml", {})


WRONG: dict[type, list[Any]] = {
    bool: ["yes", "off", 1, 0.5, None, [], {}],
    int: ["many", "1_000", "5", 1.5, True, math.nan, [1], {"a": 1}, 10**30],
    float: ["much", "1,5", "yes", True, math.nan, math.inf, -math.inf, [0.1], {"a": 1}, 10**30],
    str: [5, 0.5, True, [], ["tiny"], {"a": 1}],
    dict: [5, True, [], ["title"], {}, {"title": "1"}, {"title": True}, {"title": None}, {1: 0.5}],
}


def kinds(hint: Any) -> set[Any]:
    """The plain types in a setting's hint."""
    if get_origin(hint) is Literal:
        return {str}
    return {get_origin(hint) or hint} if get_origin(hint) in (None, dict) else set().union(*map(kinds, get_args(hint)))


EVERY_WRONG = [
    pytest.param(name, value, id=f"{name}={value}")
    for name, hint in get_type_hints(TrainConfig).items()
    for kind in kinds(hint) - {type(None)}
    for value in WRONG[kind]
    if value is not None or type(None) not in kinds(hint)
]


@pytest.mark.parametrize(("name", "value"), EVERY_WRONG)
def test_every_setting_refuses_other_types(name: str, value: Any, tmp_path: Path) -> None:
    """From Python, and from a file, where the message names the line; nothing but a ConfigError comes out."""
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{**BASE, name: value})
    assert str(caught.value).startswith(f"{name}: ")
    if name in TEXT_SETTINGS and not isinstance(value, list | dict):
        return  # a file wants a text there, and has one
    lines = write_yaml({**BASE, name: {str(key): one for key, one in value.items()} if value == {1: 0.5} else value})
    at = next(number for number, line in enumerate(lines.splitlines(), start=1) if line.startswith(f"{name}:"))
    (tmp_path / "c.yaml").write_text(lines)
    if value == {1: 0.5} and kinds(get_type_hints(TrainConfig)[name]) == {dict, type(None)}:
        assert getattr(load_config(tmp_path / "c.yaml", {}), name) == {"1": 0.5}
        return
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", {})
    assert str(caught.value).startswith(f"{tmp_path / 'c.yaml'}, line {at}: {name}: ")


def test_every_setting_is_tried() -> None:
    assert {parameter.values[0] for parameter in EVERY_WRONG} == {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("strict: yes", "line 4: strict: found 'yes'; allowed: true or false (yes is a text by YAML 1.2"),
        ("batch_size: 1_000", "line 4: batch_size: found '1_000'; allowed: a whole number (a number is written"),
        ("fields: {title: '1'}", "line 4: fields: field 'title' has weight '1'; a weight is a finite number above 0"),
        ("fields:\n  title: {a: b}", "line 4: fields: field 'title' has weight {'a': 'b'}"),
        ("fields: [title]", "line 4: fields: found ['title']; allowed: a mapping of fields to numbers or null"),
        ("fields: title=1=2", "line 4: fields: field 'title=1=2': '1=2' is not a number"),
        ("seed:", "line 4: seed: found None; allowed: a whole number"),
        ("learning_rat: 1", "line 4: unknown setting 'learning_rat'"),
        ("1: 2", "line 4: unknown setting '1'"),
        ("seed: 1\nseed: 2", "line 5: found the key 'seed' twice"),
        ("device: &x cpu", "line 4: found the anchor '&x'"),
        ("learning_rate: 1:30", "line 4: learning_rate: found '1:30'; allowed: a number or null"),
        ("weights: steep", "line 4: weights: weight function 'steep' is unknown"),
        ("temperature: 5e0", "line 4: temperature: found 5.0; allowed: from 0.01 to 1"),
    ],
)
def test_errors_of_a_file_name_the_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"data: shop\nmodel: tiny\nout: run\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", {})
    assert f"c.yaml, {told}" in str(caught.value)


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "data: 2024\nmodel: no\nout: 1e3\nlearning_rate: 1e-5\nepochs: 2E0\nwarmup: .1\nseed: 010\n"
        "fields: {no: 1, 1: 3}\n"
    )
    config = load_config(tmp_path / "c.yaml", {})
    assert (config.data, config.model, config.out) == ("2024", "no", "1e3")
    assert (config.learning_rate, config.epochs, config.warmup, config.seed) == (1e-5, 2.0, 0.1, 10)
    assert config.fields == {"no": 1, "1": 3}
    config.write(tmp_path / "d.yaml")
    assert load_config(tmp_path / "d.yaml", {}) == config


def test_a_change_to_null_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: shop\nmodel: tiny\nout: run\nlearning_rate: 0.1\n")
    assert load_config(tmp_path / "c.yaml", {}, {"learning_rate": None}).learning_rate is None
    assert load_config(tmp_path / "c.yaml", {"learning_rate": None}).learning_rate == 0.1
    with pytest.raises(ConfigError, match=r"^learning_rate: found 'x'"):  # not the file's fault
        load_config(tmp_path / "c.yaml", {"learning_rate": "x"})


def test_values_of_set_are_yaml() -> None:
    written = ["learning-rate=1e-5", "data=a #b", "out='007'", "device=null", "model=2024", "fields={no: 1}"]
    assert arguments.settings(written, texts=TEXT_SETTINGS) == {
        "learning_rate": 1e-5,
        "data": "a #b",
        "out": "007",
        "device": None,
        "model": "2024",
        "fields": {"no": 1},
    }
    assert arguments.settings(["search.headers.X-Shop=a"]) == {"search.headers.X-Shop": "a"}


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("warmup", "--set 'warmup': write name=value"),
        ("=1", "--set '=1': write name=value"),
        ("warmup=", "--set 'warmup=': found no value; write null for none"),
        ("warmup=[1", "--set 'warmup=[1', line 1: not readable as YAML"),
        ("fields=*x", "--set 'fields=*x', line 1: found the alias '*x'"),
        ("fields={a: 1, a: 2}", "found the key 'a' twice"),
    ],
)
def test_what_set_refuses(written: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        arguments.settings([written], texts=TEXT_SETTINGS)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "direction", "queries_per_doc"),
    [
        ({}, "query", 4),
        ({"target": "full_row"}, "query", 4),
        ({"batch_size": 2}, "query", 2),
        ({"docs_per_query": 8}, "query", 0),
        ({"queries_per_doc": 0, "direction": "both"}, "both", 0),
        ({"queries_per_doc": 2}, "query", 2),
        ({"target": "diagonal"}, "both", 0),
        ({"target": "diagonal", "queries_per_doc": 2, "direction": "document"}, "document", 2),
        ({"target": "my_shop.losses:Pairwise"}, "both", 0),
    ],
)
def test_direction_and_batches_follow_the_target(
    settings: dict[str, Any], direction: str, queries_per_doc: int
) -> None:
    config = TrainConfig(**{**BASE, **settings})
    assert (config.used_direction, config.used_queries_per_doc) == (direction, queries_per_doc)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="setting 'model' is missing"):
        load_config(None, {"data": "shop", "out": "run"})


def test_the_learning_rate_follows_the_model() -> None:
    assert TrainConfig(**BASE).peak_learning_rate == 1e-3
    assert TrainConfig(**{**BASE, "model": "some/encoder"}).peak_learning_rate == 2e-5
    assert TrainConfig(**BASE, learning_rate=0.5).peak_learning_rate == 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu() -> None:
    with pytest.raises(DeviceError, match=r"device is 'cuda', but .*use --device cpu, or leave the device out"):
        train(TrainConfig(**BASE, device="cuda"))
