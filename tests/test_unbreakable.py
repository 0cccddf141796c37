"""Runs that are killed at any moment and resumed end as an undisturbed one does, to the bit."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from opengcl import TrainConfig, checkpoints, make_shop, train
from opengcl.checkpoints import CheckpointError, Checkpoints
from opengcl.training import TrainError
from tests.builders import clip
from tests.killed_runs import MOMENTS, AtStep, BeforeChange, Counted, assert_same_run, in_child

DROPOUT = 0.3


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shop whose products all have a title, so that an encoder of texts reads them too."""
    out = make_shop(tmp_path_factory.mktemp("shop") / "shop", products=60, queries=40, image_size=32)
    rows = pq.read_table(out / "documents.parquet")
    titles = pa.array([title or "a thing" for title in rows["title"].to_pylist()])
    pq.write_table(rows.set_column(rows.column_names.index("title"), "title", titles), out / "documents.parquet")
    return out


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small CLIP whose attention drops out."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    encoder = clip()
    for part in (encoder[0].model.config.text_config, encoder[0].model.config.vision_config):
        part.attention_dropout = DROPOUT
    encoder.save(str(folder))
    return str(folder)


Runs = Callable[[str, str], TrainConfig]
Whole = Callable[[str], tuple[Path, float]]


@pytest.fixture(scope="module")
def config(shop: Path, with_dropout: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Settings of a run of a kind, in a folder of its own."""
    folder = tmp_path_factory.mktemp("runs")
    kinds: dict[str, dict[str, Any]] = {
        "static": {"model": "static", "batch_size": 16, "epochs": 2, "evaluations": 5, "dim": 16},
        # A learning rate so high that the best evaluation is not the last
        "pictures": {
            "model": with_dropout,
            "batch_size": 32,
            "epochs": 2,
            "evaluations": 4,
            "learning_rate": 0.03,
            "seed": 2,
        },
        "workers": {"model": "static", "batch_size": 16, "epochs": 2, "evaluations": 5, "dim": 16, "workers": 1},
    }

    def make(kind: str, name: str) -> TrainConfig:
        return TrainConfig(data=str(shop), out=str(folder / f"{kind}-{name}"), device="cpu", **kinds[kind])

    return make


@pytest.fixture(scope="module")
def whole(config: Runs) -> Whole:
    """An uninterrupted run of a kind, and its seconds."""
    done: dict[str, tuple[Path, float]] = {}

    def run(kind: str) -> tuple[Path, float]:
        if kind not in done:
            settings, begun = config(kind, "whole"), time.monotonic()
            assert in_child(settings)
            done[kind] = Path(settings.out), time.monotonic() - begun
        return done[kind]

    return run


def test_dropout_is_drawn(whole: Whole) -> None:
    """So that weights are equal only where the generator's state is."""
    run, _ = whole("pictures")
    random_state = load_file(max((run / "checkpoints").glob("checkpoint-*/random-0.safetensors")))
    torch.manual_seed(0)
    assert not torch.equal(random_state["torch"], torch.get_rng_state())


def settle(settings: TrainConfig, strikes: Iterable[AtStep | BeforeChange | float]) -> int:
    """Runs that go on after each strike (a float: seconds until a kill from outside) to the end; kills that struck."""
    struck = 0
    for strike in strikes:
        kill_after = strike if isinstance(strike, float) else None
        if in_child(settings, None if isinstance(strike, float) else strike, kill_after=kill_after):
            return struck
        struck += 1
        assert not (Path(settings.out) / "metrics.json").exists()
    assert in_child(settings)
    return struck


def random_strikes(seed: str, steps: int, seconds: float) -> Iterator[AtStep | float]:
    """In turn: at a random step, in a random callback; and from outside, at a random moment."""
    chosen = random.Random(seed)
    while True:
        yield AtStep(chosen.randint(1, steps), chosen.choice(MOMENTS))
        yield chosen.uniform(0.2, 0.9) * seconds


def steps_of(run: Path) -> int:
    return int(json.loads((run / "metrics.json").read_text())["provenance"]["steps"])


@pytest.mark.parametrize("kind", ["static", "pictures"])
def test_killed_at_random_steps(kind: str, whole: Whole, config: Runs) -> None:
    run, _ = whole(kind)
    steps, chosen = steps_of(run), random.Random(kind)
    # Before the first checkpoint, in the middle, and near the end; the weights are right only if all state is.
    at = [chosen.randint(1, steps // 5), chosen.randint(steps // 4, steps // 2), chosen.randint(steps // 2, steps)]
    settings = config(kind, "killed")
    assert settle(settings, [AtStep(step, chosen.choice(MOMENTS)) for step in at]) == 3
    assert_same_run(run, Path(settings.out))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["static", "pictures", "workers"])
def test_killed_twenty_times(kind: str, whole: Whole, config: Runs) -> None:
    run, seconds = whole("static" if kind == "workers" else kind)
    strikes, struck = random_strikes(kind, steps_of(run), seconds), 0
    for number in range(60):
        settings = config(kind, f"killed-{number}")
        struck += settle(settings, itertools.islice(strikes, 4))
        assert_same_run(run, Path(settings.out))
        if struck >= 20:
            break
    assert struck >= 20


def changes(settings: TrainConfig, file: Path) -> list[str]:
    """What a run changes in its folder, in order."""
    assert in_child(settings, Counted(file))
    return file.read_text().splitlines()


def test_killed_while_a_checkpoint_is_written(whole: Whole, config: Runs, tmp_path: Path) -> None:
    """At points of the write: before the first file, between files, before the hashes, the rename and the removal."""
    run, _ = whole("static")
    made = changes(config("static", "counted"), tmp_path / "changes")
    second = [row for row, change in enumerate(made) if "unfinished-" in change and change.startswith("os.mkdir")][1]
    written = [row for row in range(second, len(made)) if "unfinished-" in made[row] or "checkpoint-" in made[row]]
    named = {
        "first file": second + 1,
        "hashes": next(row for row in written if "SHA256SUMS" in made[row]),
        "rename": next(row for row in written if made[row].startswith("os.rename")),
    }
    first = int(made[next(row for row in written if made[row].startswith("os.rename"))].rpartition("-")[2]) // 2
    for name, row in named.items():
        settings = config("static", name)
        assert not in_child(settings, BeforeChange(row))
        kept = Checkpoints(Path(settings.out) / "checkpoints")
        assert kept.steps() == [first]
        assert kept.unfinished(2 * first).is_dir()
        kept.check(first)
        assert in_child(settings)
        assert not list(kept.folder.glob("unfinished-*"))
        assert_same_run(run, Path(settings.out))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_before_every_change_of_the_run_folder(whole: Whole, config: Runs, tmp_path: Path) -> None:
    run, _ = whole("static")
    made = changes(config("static", "counted-again"), tmp_path / "changes")
    for row in range(len(made)):
        settings = config("static", f"change-{row}")
        assert not in_child(settings, BeforeChange(row)), made[row]
        assert in_child(settings), made[row]
        assert_same_run(run, Path(settings.out))
        shutil.rmtree(settings.out)


def spoiled(file: Path, how: str) -> None:
    if how == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()


@pytest.fixture(scope="module")
def cut_off(whole: Whole, config: Runs) -> tuple[TrainConfig, Path]:
    """A run that was killed after its third checkpoint, and what it should end as."""
    run, _ = whole("static")
    settings = config("static", "cut-off")
    assert not in_child(settings, AtStep(3 * steps_of(run) // 5 + 1, "on_step_begin"))
    return settings, run


def copied(settings: TrainConfig, out: Path) -> TrainConfig:
    shutil.copytree(settings.out, out)
    return replace(settings, out=str(out))


@pytest.mark.parametrize("how", ["flipped", "truncated", "removed"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_serves(
    how: str, cut_off: tuple[TrainConfig, Path], tmp_path: Path
) -> None:
    settings = copied(cut_off[0], tmp_path / "run")
    kept = Checkpoints(Path(settings.out) / "checkpoints")
    *_, before, newest = kept.steps()
    for file in sorted(kept.at(newest).iterdir()):
        whole_file = file.read_bytes()
        spoiled(file, how)
        with pytest.raises(CheckpointError) as caught:
            train(settings, resume=True, progress=False)
        said = str(caught.value)
        if file.name != "SHA256SUMS":
            assert said.startswith(f"{file}: ")
            assert how == "removed" or hashlib.sha256(whole_file).hexdigest() in said
            assert how == "removed" or hashlib.sha256(file.read_bytes()).hexdigest() in said
        assert f"Remove {kept.at(newest)}; resuming then goes on from checkpoint-{before}" in said
        file.write_bytes(whole_file)
    shutil.rmtree(kept.at(newest))
    assert_same_run(cut_off[1], train(settings, resume=True, progress=False))


def test_a_damaged_best_checkpoint_is_refused_though_the_newest_is_whole(whole: Whole, tmp_path: Path) -> None:
    kept = Checkpoints(whole("pictures")[0] / "checkpoints")
    newest = kept.steps()[-1]
    (best,) = kept.needed(newest) - {newest}
    shutil.copytree(kept.folder, tmp_path / "checkpoints")
    copy = Checkpoints(tmp_path / "checkpoints")
    copy.check(newest)
    spoiled(copy.at(best) / "model.safetensors", "flipped")
    with pytest.raises(CheckpointError, match=rf"checkpoint-{best}/model\.safetensors: SHA-256 was .*the best so far"):
        copy.check(newest)


def test_hashes_are_what_sha256sum_reads(whole: Whole) -> None:
    kept = Checkpoints(whole("static")[0] / "checkpoints")
    for step in kept.steps():
        command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        assert subprocess.run(command, cwd=kept.at(step), capture_output=True, check=False).returncode == 0


def test_a_file_without_a_hash_is_refused(cut_off: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    settings = copied(cut_off[0], tmp_path / "run")
    kept = Checkpoints(Path(settings.out) / "checkpoints")
    (kept.at(kept.steps()[-1]) / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match=r"SHA256SUMS: holds no hash of pytorch_model\.bin"):
        train(settings, resume=True, progress=False)


def test_two_processes_cannot_train_in_one_folder(cut_off: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    settings = copied(cut_off[0], tmp_path / "run")
    holding = "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX)"
    command = [sys.executable, "-c", f"{holding}; print('held', flush=True); time.sleep(60)", f"{settings.out}/.lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TrainError, match="another process is training here"):
            train(settings, resume=True, progress=False)
        other.kill()
    train(settings, resume=True, progress=False)


def test_a_run_folder_that_was_moved_ends_with_the_same_weights(
    cut_off: tuple[TrainConfig, Path], tmp_path: Path
) -> None:
    """The best checkpoint is found in the folder as it is now."""
    settings = copied(cut_off[0], tmp_path / "elsewhere")
    assert_same_run(cut_off[1], train(settings, resume=True, progress=False))


def test_nothing_is_left_of_killed_processes(whole: Whole, config: Runs) -> None:
    settings = config("static", "killed")
    out = Path(settings.out) if Path(settings.out).exists() else whole("static")[0]
    assert not (out / "cache").exists()
    assert not [file for file in out.rglob("*") if "partial" in file.name or "unfinished" in file.name]


def test_optimiser_and_random_state_come_back_as_they_were(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 / (1 + step))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    for _ in range(3):
        optimiser.zero_grad()
        scaler.scale(model(torch.randn(4, 3)).square().mean()).backward()
        scaler.step(optimiser)
        scaler.update()
        schedule.step()
    checkpoints.save_optimiser(tmp_path / "optimiser", optimiser, schedule, scaler)
    fresh = torch.optim.AdamW(model.parameters(), lr=0.1)
    again = torch.optim.lr_scheduler.LambdaLR(fresh, lambda step: 1 / (1 + step))
    other = torch.amp.GradScaler("cpu")
    checkpoints.load_optimiser(tmp_path / "optimiser", fresh, again, other)
    assert other.state_dict() == scaler.state_dict()
    assert again.state_dict() == schedule.state_dict()
    assert fresh.state_dict()["param_groups"] == optimiser.state_dict()["param_groups"]
    for row, entry in optimiser.state_dict()["state"].items():
        assert all(torch.equal(value, fresh.state_dict()["state"][row][name]) for name, value in entry.items())

    def draw() -> tuple[float, ...]:
        return random.gauss(), np.random.standard_normal(), torch.rand(1).item()  # noqa: NPY002 - as libraries draw

    draw()  # both keep one of two normal numbers for the next call
    checkpoints.save_random_state(tmp_path / "random", torch.device("cpu"))
    drawn = [draw() for _ in range(5)]
    checkpoints.load_random_state(tmp_path / "random", torch.device("cpu"))
    assert drawn == [draw() for _ in range(5)]
