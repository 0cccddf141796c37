"""Progress: a bar on a terminal, few lines anywhere else, from every part of the product through one module."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest

from opengcl import TrainConfig, progress, train
from opengcl.progress import progress_bar, tracked

from .builders import ranked

_OURS = ("training", "encoding", "tokenising", "decoding", "checking")
SOURCE = Path(progress.__file__).parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Written:
    """All that was written to stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._so_far = capsys, ""

    def getvalue(self) -> str:
        self._so_far += self._capsys.readouterr().err
        return self._so_far


@pytest.fixture
def stream(capsys: pytest.CaptureFixture[str]) -> Written:
    return Written(capsys)


def test_lines_come_after_five_seconds_and_every_thirty(clock: Clock, stream: Written) -> None:
    for step in tracked(range(1000), desc="working", unit="step", show=True):
        clock.now += 0.125
        if step == 500:
            assert stream.getvalue().count("\n") == 2  # after 5 and 35 seconds, of 62
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5  # after 5, 35, 65, 95 and 125 seconds, which is the end
    assert lines[0].startswith("working:   4% 40/1000 [00:05<02:00")
    assert lines[-1].startswith("working: 100% 1000/1000 [02:05<00:00")
    assert "\r" not in stream.getvalue()


def test_short_work_is_silent(clock: Clock, stream: Written) -> None:
    with progress_bar(desc="working", unit="row", show=True, total=10) as bar:
        for _ in range(10):
            clock.now += 0.4
            bar.update()
    assert stream.getvalue() == ""


def test_a_line_has_the_values_and_what_was_done_before(clock: Clock, stream: Written) -> None:
    bar = progress_bar(desc="training", unit="step", show=True, total=40, done=10)
    bar.note({"loss": "0.5"})
    clock.now += 6
    bar.update(6)
    assert stream.getvalue() == "training:  40% 16/40 [00:06<00:24,  1.00step/s, loss=0.5]\n"
    clock.now += 31
    bar.move_to(25.0, "evaluating")
    assert stream.getvalue().splitlines()[1].startswith("evaluating:  62% 25.0/40")
    bar.update()
    bar.close()
    bar.close()
    assert len(stream.getvalue().splitlines()) == 3


def test_nothing_is_shown_unless_asked(clock: Clock, stream: Written) -> None:
    for _ in tracked(range(100), desc="working", unit="step", show=False):
        clock.now += 10
    with progress_bar(desc="working", unit="row", show=False) as bar:
        bar.move_to(3, "other")
        bar.note({"a": "b"})
    assert stream.getvalue() == ""


def test_an_end_by_an_error_is_not_a_line_of_its_own(clock: Clock, stream: Written) -> None:
    def work() -> None:
        with progress_bar(desc="working", unit="row", show=True, total=10) as bar:
            clock.now += 1
            bar.update()
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in tracked(range(3), desc="working", unit="step", show=True):
        pass
    with progress_bar(desc="steps", unit="step", show=True, total=2) as bar:
        bar.move_to(1, "second")
        bar.note({"loss": "0.5"})
    assert "working: 100%|" in stream.getvalue()
    assert "second:  50%|" in stream.getvalue()


@pytest.mark.parametrize("broken", [None, "closed"])
def test_a_stream_that_is_gone_is_no_terminal(broken: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", None if broken is None else stream)
    for _ in tracked(range(3), desc="working", unit="step", show=True):
        pass


def test_no_module_draws_a_bar_of_its_own() -> None:
    for file in SOURCE.rglob("*.py"):
        if file.name == "progress.py" and file.parent == SOURCE:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "tqdm" for name in names), file
            for keyword in node.keywords if isinstance(node, ast.Call) else []:
                if keyword.arg == "show_progress_bar":  # sentence-transformers' own
                    assert isinstance(keyword.value, ast.Constant), file
                    assert keyword.value.value is False, file


def test_a_training_run_writes_no_bar_into_a_pipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = ranked(tmp_path / "data")
    config = TrainConfig(
        data=str(data.path), model="tiny", out=str(tmp_path / "run"), dim=16, batch_size=8, epochs=2, device="cpu"
    )
    train(config)
    written = capfd.readouterr().err
    ours = [line for line in written.replace("\r", "\n").splitlines() if any(word in line for word in _OURS)]
    assert len(ours) <= 2, ours  # on a machine so slow that it takes more than five seconds
