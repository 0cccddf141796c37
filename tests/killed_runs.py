"""Training in a process of its own that is killed, by itself at a chosen point or from outside, and goes on again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import TrainerCallback

from opengcl import TrainConfig, train
from opengcl.training import RankingTrainer

MOMENTS = ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_evaluate", "on_save")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# Children come from a process that has loaded what they need, so that a run takes seconds and kills spread over it.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class AtStep:
    """SIGKILL in a callback of a step."""

    step: int
    moment: str

    def arm(self, _: Path) -> None:
        started = RankingTrainer.__init__
        callback = TrainerCallback()
        setattr(callback, self.moment, self._called)

        def with_the_callback(trainer: RankingTrainer, *words: Any) -> None:
            started(trainer, *words)
            trainer.add_callback(callback)

        RankingTrainer.__init__ = with_the_callback  # type: ignore[method-assign]

    def _called(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        number = state.global_step + (self.moment not in ("on_step_end", "on_evaluate", "on_save"))
        if number >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class BeforeChange:
    """SIGKILL before the process's n-th change to files of the run folder, counted from 0."""

    number: int

    def arm(self, out: Path) -> None:
        left = iter(range(self.number))

        def watch(event: str, words: tuple[Any, ...]) -> None:
            if _changes(event, words, str(out)) and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)


@dataclass(frozen=True)
class Counted:
    """No kill; the changes to files of the run folder are written down, one a line."""

    into: Path

    def arm(self, out: Path) -> None:
        lines = self.into.open("a", buffering=1)
        inside = []

        def watch(event: str, words: tuple[Any, ...]) -> None:
            if not inside and _changes(event, words, str(out)):
                inside.append(True)
                lines.write(f"{event} {words[0]}\n")
                inside.clear()

        sys.addaudithook(watch)


Strike = AtStep | BeforeChange | Counted


def _changes(event: str, words: tuple[Any, ...], out: str) -> bool:
    if event == "open":
        return isinstance(words[0], str) and words[0].startswith(out) and bool((words[2] or 0) & _WRITES)
    if event in ("os.rename", "os.mkdir"):
        return str(words[0]).startswith(out)
    # What is removed with its folder is named inside it.
    return event in ("os.remove", "os.rmdir") and (str(words[0]).startswith(out) or words[1] != -1)


def go_on(config: TrainConfig, strike: Strike | None = None) -> None:
    """Begins a run or resumes it, as a loop around the command would."""
    if strike is not None:
        strike.arm(Path(config.out))
    multiprocessing.set_start_method("fork", force=True)  # for the workers, as outside this process
    train(config, resume=(Path(config.out) / "config.yaml").is_file(), progress=False)


def _told(started: Event, config: TrainConfig, strike: Strike | None) -> None:
    started.set()
    go_on(config, strike)


def in_child(config: TrainConfig, strike: Strike | None = None, *, kill_after: float | None = None) -> bool:
    """Whether a process that begins or resumes a run came to its end; killed from outside after so many seconds."""
    started = _processes.Event()
    child = _processes.Process(target=_told, args=(started, config, strike))
    child.start()
    assert started.wait(60)
    child.join(kill_after)
    child.kill()  # nothing, where it has ended
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode == 0


def assert_same_run(one: Path, two: Path) -> None:
    """Weights, temperature, metrics, lists and history are equal to the bit; only times may differ."""
    for name in ("model.safetensors", "tokenizer.json"):
        files = [sorted((run / "model").rglob(name)) for run in (one, two)]
        assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]], name
        assert files[0]
    read = [[json.loads((run / name).read_text()) for run in (one, two)] for name in ("metrics.json", "history.json")]
    assert read[0][0]["splits"] == read[0][1]["splits"]
    assert read[0][0]["provenance"]["best_step"] == read[0][1]["provenance"]["best_step"]
    steps = [[entry for entry in history if "train_runtime" not in entry] for history in read[1]]
    assert steps[0] == steps[1]
    cards = [json.loads((run / "model" / "opengcl.json").read_text()) for run in (one, two)]
    assert cards[0]["logit_scale"] == cards[1]["logit_scale"]
    for name in ("per_query.parquet", "results.parquet"):
        assert pq.read_table(one / name).equals(pq.read_table(two / name)), name
