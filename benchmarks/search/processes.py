"""What processes took, from /proc: processor time and memory, of a process with all its children."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_KEPT = ("Pss_Anon:", "Pss_Shmem:")
_GONE = (FileNotFoundError, ProcessLookupError)


def family(roots: Sequence[int]) -> list[int]:
    """Processes and what they started, as far as it runs."""
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        process = waiting.pop()
        if process in found:
            continue
        found.append(process)
        for file in Path(f"/proc/{process}/task").glob("*/children"):
            with suppress(*_GONE):
                waiting += map(int, file.read_text().split())
    return found


def processor_seconds(roots: Sequence[int]) -> float:
    """User and system time of processes and of what they started, ended children included."""
    total = 0
    for process in family(roots):
        with suppress(*_GONE):
            after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, after_name[11:15]))
    return total / _TICKS


def memory_bytes(roots: Sequence[int]) -> int:
    """Memory of processes and of what they started; a page that several share counts once in all.

    Pages of files, which the system can drop and read again, are left out: code, and vectors that are mapped.
    """
    total = 0
    for process in family(roots):
        with suppress(*_GONE):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith(_KEPT))
    return total


@dataclass
class Peak:
    """The most memory that was seen."""

    bytes: int = 0


@contextmanager
def watched(roots: Sequence[int], every: float = 0.5) -> Iterator[Peak]:
    """Looks at the memory of processes every so many seconds, and remembers the most."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while True:
            peak.bytes = max(peak.bytes, memory_bytes(roots))
            if ended.wait(every):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
