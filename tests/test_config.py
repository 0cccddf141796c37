"""Settings: written and read back whole, and every wrong one refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opengcl.config import ConfigError, TrainConfig, load_config

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
        ({"target": "list"}, "target is 'list'; use one of diagonal, masked, full, full_row, ranked"),
        ({"combine": "sum"}, "use one of mean, pairwise, both"),
        ({"precision": "int8"}, "use one of fp32, bf16, fp16"),
        ({"temperature": 0.001}, "temperature is 0.001; it must lie between 0.01 and 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 1}, "batch_size is 1; it must lie between 2"),
        ({"batch_size": 8, "docs_per_query": 9}, "docs_per_query is 9; it must lie between 1 and 8"),
        ({"batch_size": 8, "queries_per_doc": 9}, "queries_per_doc is 9; it must lie between 0 and 8"),
        ({"docs_per_query": 2, "queries_per_doc": 2}, "docs_per_query and queries_per_doc are two ways"),
        ({"sampling_exponent": 3}, "sampling_exponent is 3; it must lie between 0 and 2"),
        ({"target": "diagonal", "sampling_exponent": 1}, "sampling_exponent is 1, but no documents are drawn; give"),
        ({"final_sampling_exponent": -1}, "final_sampling_exponent is -1; it must lie between 0 and 2"),
        ({"queries_per_doc": 0, "final_sampling_exponent": 1}, "final_sampling_exponent is 1, but no documents are"),
        ({"batch_size": "many"}, "batch_size is 'many', a str; allowed: int"),
        ({"batch_size": True}, "batch_size is True, a bool; allowed: int"),
        ({"learn_temperature": 1}, "learn_temperature is 1, a int; allowed: bool"),
        ({"seed": -1}, "seed is -1"),
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
