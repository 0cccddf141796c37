"""Work in a process of its own, ended when time is up.

The process is forked, so that it need not load PyTorch again. A GPU cannot be used on both sides of a fork: whoever
calls this has not used it, and only the forked process does. Where even asking for it beforehand was too much,
`use_fresh` makes every process a fresh one.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_GRACE = 5.0
"""Seconds between asking a process to end and ending it."""
_LOOK = 0.2
"""Seconds between looks whether a process is still there."""
_DIES_WITH_PARENT = 1
_FRESH = "OPENGCL_BENCHMARK_FRESH_PROCESSES"


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        returned: What the work returned; None where it did not get there.
        error: What it raised, the signal that ended it, or that its time was up; None when all went well.
        in_time: Whether it ended by itself.
        log: The end of what it printed.
    """

    returned: Any
    error: str | None
    in_time: bool
    log: str


def use_fresh() -> None:
    """Start fresh processes from now on, here and in those that are started."""
    os.environ[_FRESH] = "1"


def apart(work: Callable[..., Any], *words: Any, deadline: float, log: Path) -> Ended:
    """Run ``work(*words)`` in a process of its own.

    Args:
        work: What to run; it, its arguments and what it returns can be pickled.
        words: Its arguments.
        deadline: When it is ended, on `time.monotonic`'s clock.
        log: Where what it prints goes.
    """
    context: Any = multiprocessing.get_context("spawn" if os.environ.get(_FRESH) else "fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, log, work, words))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads; none of ours holds a lock
        process.start()
    theirs.close()
    told = _told(ours, process, deadline)
    process.join(max(1.0 if told is not None else 0.0, min(_GRACE, deadline - time.monotonic())))
    in_time = not process.is_alive()
    _end(process)
    ours.close()
    written = log.read_text(encoding="utf-8", errors="replace")[-4_000:] if log.is_file() else ""
    if told is not None:
        returned, error = told
        return Ended(returned, error, True, written)
    if not in_time:
        return Ended(None, "its time was up", False, written)
    code = process.exitcode or 0
    error = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return Ended(None, error, True, written)


def _told(pipe: Connection, process: Any, deadline: float) -> Any:
    """What a process sends before it ends; None where it ends, or time is up, without a word."""
    while (left := deadline - time.monotonic()) > 0:
        alive = process.is_alive()  # asked first: what it sent before it ended is then read
        try:
            if pipe.poll(min(_LOOK, left)):
                return pipe.recv()
        except EOFError:
            return None
        if not alive:  # what it started may still hold the other end
            return None
    return None


def _work(pipe: Connection, log: Path, work: Callable[..., Any], words: tuple[Any, ...]) -> None:
    os.setpgid(0, 0)  # with everything that it starts, so that all of it can be ended
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False, errors="replace") for number in (1, 2))
    told: tuple[Any, str | None]
    try:
        told = work(*words), None
    except BaseException as error:
        traceback.print_exc()
        told = None, f"{type(error).__name__}: {error}"[:2_000]
    sys.stdout.flush()
    sys.stderr.flush()
    pipe.send(told)
    pipe.close()


def _end(process: Any) -> None:
    """Ask a process and what it started to end, then end it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except (ProcessLookupError, PermissionError):
            break
        process.join(_GRACE if process.is_alive() else 0.2)
    process.join(_GRACE)
