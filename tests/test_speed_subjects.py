"""Every subject of the speed benchmark at a small size: both sides do the same work, rows say what they should."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.speed import Row, extra_bytes, metrics, opening, options, search, steps
from benchmarks.speed.__main__ import subjects


def test_searches_find_the_same_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("QUERIES", 30), ("DOCUMENTS", 900), ("WIDTH", 16), ("DEPTH", 20)):
        monkeypatch.setattr(search, name, size)
    monkeypatch.setattr(search, "LIMITS", ((300, 32, 2, 4),))
    monkeypatch.setattr("opengcl.search._multiplies_bfloat16", lambda _: True)
    row, alone = search.measure(2)
    assert alone.peer_name == "float32 alone"
    assert len(alone.ours) == len(alone.peer) == 2
    assert len(row.ours) == len(row.peer) == 2
    assert row.about["same_place"] == 1.0


def test_searches_that_differ_are_an_error() -> None:
    places = np.zeros((1, 2), np.int64)
    with pytest.raises(ValueError, match=r"differ by 0\.1"):
        search.same_lists((np.array([[1.0, 0.5]]), places), (np.array([[1.0, 0.4]]), places))


def test_memory_is_what_the_work_takes() -> None:
    for _ in range(2):  # the second time glibc still has what the first freed
        made, extra = extra_bytes(lambda: sum(map(len, [np.ones(10_000).tobytes() for _ in range(4_000)])))
        assert made == 320_000_000
        assert 300_000_000 < extra < 400_000_000


def test_the_ratio_is_of_the_medians() -> None:
    assert Row("", [1.0, 2.0, 9.0], [4.0, 4.0, 100.0], "").ratio == 2.0


def test_metrics_are_the_numbers_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("QUERIES", 12), ("FILE_QUERIES", 6), ("DOCUMENTS", 3_000)):
        monkeypatch.setattr(metrics, name, size)
    rows = list(metrics.measure(1))
    assert [row.name.partition(", ")[2] for row in rows] == ["arrays", "ids in memory", "Parquet files"]
    with pytest.raises(ValueError, match=r"ndcg@1 is 0\.50000000 here and 0\.40000000 there"):
        metrics.agree({"ndcg@1": 0.5}, {"ndcg@1": 0.4})


@pytest.mark.slow
def test_opening_and_first_batch_of_a_small_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, size in (("DOCUMENTS", 900), ("QUERIES", 50), ("PAIRS", 500), ("BLOCK", 200), ("BATCH", 64)):
        monkeypatch.setattr(opening, name, size)
    with monkeypatch.context() as here:
        here.setattr(opening, "in_own_process", opening.work)
        opened, batch = opening.measure(1)
    assert opened.about["pairs"] == batch.about["pairs"] == 500
    assert opened.ours[0] < batch.ours[0]
    opening.write(tmp_path)
    alone = opening.in_own_process(tmp_path, "pandas")
    assert alone["seconds"] > 0
    assert alone["extra_bytes"] > 0


def test_trainer_and_bare_loop_take_the_same_steps(tmp_path: Path) -> None:
    training = steps.Training(steps.Size("tiny", 32, 60, 64, 3, 0.9), tmp_path)
    before = copy.deepcopy(training.objective.state_dict())
    assert training.trainer_seconds() > 0
    after = copy.deepcopy(training.objective.state_dict())
    training.objective.load_state_dict(before)
    assert training.loop_seconds() > 0
    for name, value in training.objective.state_dict().items():
        if "k_proj.bias" in name:
            continue  # a softmax does not see it: its gradient is rounding, which AdamW blows up
        # Where a gradient is all but 0, AdamW turns its rounding, which differs between processors, into part of a
        # step: a hundredth of the learning rate at most. A step that is not the same differs by whole ones.
        far = ~torch.isclose(value, after[name], rtol=1e-4, atol=1e-6)
        assert far.double().mean() <= 1e-4, name
        atol = 0.01 * training.config.peak_learning_rate
        torch.testing.assert_close(
            value, after[name], rtol=1e-4, atol=atol, msg=lambda told, name=name: f"{name}: {told}"
        )
        if value.is_floating_point() and value.ndim > 1:
            assert not torch.equal(value, before[name]), name


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of what torch.compile imports
def test_options_change_how_a_step_is_made_and_not_what_it_sees(tmp_path: Path) -> None:
    training = steps.Training(steps.Size("tiny", 32, 60, 64, 1, 0.9), tmp_path)
    batch = training.made[0]
    turned = options.with_channels_last(batch)
    (before,), (after,) = (made["documents"]["image"]["chunks"] for made in (batch, turned))
    assert after["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    assert not before["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(training.objective(**turned), training.objective(**batch))
    made = {name: run for name, run in options.sides(training).items() if name != "torch.compile"}
    assert list(made) == ["off", "bf16", "channels_last"]
    rows = list(options._rows("a step", made, 1, 1)) + list(options._rows("AdamW", options.optimisers(training), 1, 1))
    assert [row.name for row in rows] == ["a step, bf16", "a step, channels_last", "AdamW, fused"]


def test_every_subject_measures_something() -> None:
    found = subjects()
    assert {"loss", "search", "steps"} <= set(found)
    for name in found:
        assert callable(importlib.import_module(f"benchmarks.speed.{name}").measure), name
