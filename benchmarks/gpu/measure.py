"""Seconds and memory of work on a device: events around it on a GPU, the clock on a CPU; the first runs not counted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch
from benchmarks.gpu import Setting
from benchmarks.gpu.record import Record, Row, shortened, tidy_memory

Work = Callable[[], Any]


def synchronise(device: str) -> None:
    """Wait until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_once(work: Work, device: str) -> float:
    """Seconds of one run: on a GPU from the event before it to the event after it."""
    if device != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def peak_bytes(work: Work, device: str) -> int | None:
    """The most GPU memory that is allocated during some work, beside what is allocated before; None on a CPU."""
    if device != "cuda":
        work()
        return None
    tidy_memory()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(row: Row, work: Work, setting: Setting, *, repeats: int, warm_up: int = 2, inner: int = 1) -> None:
    """Fill a row with ``peak_bytes`` and ``seconds``, one for each repetition.

    Args:
        row: What is filled.
        work: What is timed.
        setting: The device, and the deadline, after which no further repetition begins.
        repeats: Repetitions that are counted.
        warm_up: Runs before them; the first of them is the one whose memory is measured.
        inner: Runs of one repetition, for work that is short beside a launch; ``seconds`` are of one run.

    In a check each of the three counts is 1.
    """
    if not setting.full:
        repeats, warm_up, inner = 1, 1, 1
    row["peak_bytes"] = peak_bytes(work, setting.device)
    for _ in range(warm_up - 1):
        work()
    taken: list[float] = row.setdefault("seconds", [])
    for _ in range(repeats):
        if taken and setting.left() < 2 * inner * taken[-1]:
            break
        taken.append(seconds_once(lambda: [work() for _ in range(inner)], setting.device) / inner)


def in_turn(
    record: Record, setting: Setting, sides: Mapping[str, Work], *, repeats: int, **about: Any
) -> dict[str, Row]:
    """Rows of several sides of one comparison, which run in turn, so that whatever else happens happens to all.

    A side that fails in its first run is left out of the rest.
    """
    rows: dict[str, Row] = {}
    repeats = repeats if setting.full else 1
    for name, work in sides.items():
        row = record.piece(name, lambda row, work=work: _first(row, work, setting), **about)  # type: ignore[misc]
        if row is not None:
            rows[name] = row
    for _ in range(repeats):
        slowest = max((row["first_seconds"] for row in rows.values()), default=0.0)
        if setting.left() < 2 * slowest * len(rows):
            break
        for name, row in list(rows.items()):
            try:
                row["seconds"].append(seconds_once(sides[name], setting.device))
            except Exception as error:
                row["error"] = shortened(error)
                del rows[name]
                tidy_memory()
        record.write()
    return rows


def _first(row: Row, work: Work, setting: Setting) -> None:
    started = time.perf_counter()
    row["peak_bytes"] = peak_bytes(work, setting.device)
    row["first_seconds"] = time.perf_counter() - started
    if setting.full:
        work()
    row["seconds"] = []


def middle(row: Mapping[str, Any] | None) -> float | None:
    """The median of a row's seconds; None where there are none."""
    return median(row["seconds"]) if row is not None and row.get("seconds") else None


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """float32 products by the tensor cores' TF32, or not; it is off by default, in PyTorch and here."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
