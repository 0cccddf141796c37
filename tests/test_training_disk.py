"""Runs on a disk that is full, or turns read-only: what is said, what is kept, and that they go on from there."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import opengcl.training
from opengcl import TrainConfig, make_shop, train
from opengcl.checkpoints import Checkpoints
from opengcl.training import TrainError
from tests.killed_runs import assert_same_run
from tests.small_disks import mounted


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 40 MB."""
    with mounted(40) as folder:
        yield folder


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)  # noqa: S607


def fill(disk: Path, leave: int) -> None:
    """Leaves so many bytes."""
    free = shutil.disk_usage(disk).free - leave
    with (disk / "ballast").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, free)


def on_call(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int, act: Callable[[], None]) -> None:
    """Acts before the n-th call (from 1) of a function."""
    called, calls = getattr(owner, name), iter(range(1, 1000))

    def watched(*words: Any, **options: Any) -> Any:
        if next(calls) == number:
            act()
        return called(*words, **options)

    patch.setattr(owner, name, watched)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("shop") / "shop", products=60, queries=40, image_size=32)


def config(shop: Path, out: Path) -> TrainConfig:
    settings: dict[str, Any] = {"dim": 16, "batch_size": 32, "epochs": 1, "evaluations": 3, "device": "cpu"}
    return TrainConfig(data=str(shop), model="tiny", out=str(out), image_cache_gb=0.0, **settings)


@pytest.fixture(scope="module")
def whole(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config(shop, tmp_path_factory.mktemp("runs") / "whole"), progress=False)


def checkpoint_bytes(whole: Path) -> int:
    kept = Checkpoints(whole / "checkpoints")
    return sum(file.stat().st_size for file in kept.at(kept.steps()[-1]).iterdir())


# What is called when the disk fills up, on which call, the share of a checkpoint that there is room for, and the
# checkpoints that are there then.
FULL = {
    "before a checkpoint": (Checkpoints, "begin", 2, 0.0, 1),
    "in the weights": (Checkpoints, "begin", 2, 0.1, 1),
    "in the optimiser": (Checkpoints, "begin", 3, 0.6, 2),
    "in the hashes": (Checkpoints, "finish", 2, 0.0, 1),
    "in the first checkpoint": (Checkpoints, "begin", 1, 0.5, 0),
    "in the features": (opengcl.training, "_fill_caches", 1, 0.0, 0),
    "in the model": (opengcl.training, "_write_results", 1, 0.1, 2),
    "in the metrics": (opengcl.training.Evaluation, "write", 1, 0.0, 2),
}


OFTEN = ("in the weights", "in the features", "in the model", "in the metrics")


@pytest.mark.parametrize("when", [pytest.param(one, marks=[] if one in OFTEN else pytest.mark.slow) for one in FULL])
def test_a_full_disk(when: str, shop: Path, whole: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, number, share, kept = FULL[when]
    settings = config(shop, small_disk / "run")
    on_call(monkeypatch, owner, name, number, lambda: fill(small_disk, int(share * checkpoint_bytes(whole))))
    with pytest.raises(TrainError) as caught:
        train(settings, progress=False)
    monkeypatch.undo()
    said, checkpoints = str(caught.value), Checkpoints(small_disk / "run" / "checkpoints")
    assert "No space left on device" in said
    assert said.startswith(f"{settings.out}: cannot be written")
    steps = checkpoints.steps()
    assert len(steps) == kept
    assert (f"checkpoint-{steps[-1]} is whole" if steps else "there is no checkpoint yet") in said
    assert not (small_disk / "run" / "metrics.json").exists()
    with pytest.raises(TrainError, match="No space left on device"):  # still full
        train(settings, resume=True, progress=False)
    (small_disk / "ballast").unlink()
    assert_same_run(whole, train(settings, resume=True, progress=False))


def test_a_read_only_run_folder(shop: Path, whole: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk turns with errors, or one that is mounted so."""
    settings = config(shop, small_disk / "run")
    remount(small_disk, "ro")
    with pytest.raises(TrainError, match=r"Read-only file system.*there is no checkpoint yet"):
        train(settings, progress=False)
    remount(small_disk, "rw")
    on_call(monkeypatch, Checkpoints, "begin", 3, lambda: fill(small_disk, 0))
    with pytest.raises(TrainError, match="No space left on device"):
        train(settings, progress=False)
    monkeypatch.undo()
    (small_disk / "ballast").unlink()
    gc.collect()  # a disk with files that are written cannot be made read-only
    remount(small_disk, "ro")
    with pytest.raises(TrainError, match=r"Read-only file system.*checkpoint-\d+ is whole"):
        train(settings, resume=True, progress=False)
    remount(small_disk, "rw")
    assert_same_run(whole, train(settings, resume=True, progress=False))
    gc.collect()
    remount(small_disk, "ro")
    train(settings, resume=True, progress=False)  # it has ended: nothing is written
