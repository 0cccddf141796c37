"""How fast the parts are, each against a named peer on the same work: ``python -m benchmarks.speed``.

A module of this package is one subject: its ``measure(repeats)`` yields a `Row` for each comparison. Sides run in turn,
so that whatever else happens on the machine happens to both; threads are pinned; the ratio is that of the medians.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: What is done.
        ours: Seconds of each run of ours.
        peer: Seconds of each run of the peer's.
        peer_name: What it is compared with.
        aim: The ratio that is aimed at; None where there is no aim.
        about: Sizes and settings.
    """

    name: str
    ours: list[float]
    peer: list[float]
    peer_name: str
    aim: float | None = None
    about: Mapping[str, object] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes."""
        return median(self.peer) / median(self.ours)


def in_turn(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int, *, before: Callable[[], object] = lambda: None
) -> tuple[list[float], list[float]]:
    """Seconds of both, one after the other, ``repeats`` times.

    Args:
        ours: One side.
        peer: The other.
        repeats: How often each runs.
        before: What is done, untimed, before each run of ours.
    """
    taken = all_in_turn({"ours": ours, "peer": peer}, repeats, before=before)
    return taken["ours"], taken["peer"]


def all_in_turn(
    sides: Mapping[str, Callable[[], object]], repeats: int, *, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every side, one after the other, ``repeats`` times; ``before`` is done, untimed, before each round."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        before()
        for name, side in sides.items():
            gc.collect()
            started = time.perf_counter()
            side()
            taken[name].append(time.perf_counter() - started)
    return taken


def resident(name: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def extra_bytes(work: Callable[[], Result]) -> tuple[Result, int]:
    """What some work returns, and the most memory that the process holds during it beside what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps for later would be taken for what is held
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    before = resident("VmRSS")
    result = work()
    return result, resident("VmHWM") - before
