"""Progress of long work on stderr: a bar on a terminal, and a line every half minute where the output is kept.

A bar is drawn again with every step, which in a log file is a line, or some hundred bytes, a step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import IO, Protocol, TypeVar

from tqdm.auto import tqdm

from opengcl.terminal import one_line

Item = TypeVar("Item")
_IN_NOTEBOOK = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
FIRST_LINE, EVERY_LINE = 5.0, 30.0
"""Seconds until the first line of a piece of work that is not on a terminal, and between the lines after it."""


class Progress(Protocol):
    """What has been done of some work; closed at its end, as by a ``with`` block."""

    def update(self, n: float = 1) -> object:
        """Notes that so much more is done."""
        ...

    def move_to(self, n: float, desc: str | None = None) -> None:
        """Notes how much is done in all, and what is under way."""
        ...

    def note(self, values: dict[str, str]) -> None:
        """Shows some values beside the numbers."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress_bar(
    *,
    desc: str,
    unit: str,
    show: bool,
    total: float | None = None,
    done: float = 0,
    unit_scale: bool = False,
    delay: float = 0.0,
    leave: bool = True,
    bar_format: str | None = None,
) -> Progress:
    """Shows how far some work is, on stderr.

    On a terminal that is a bar. Elsewhere, as in a file or a pipe, it is a line after `FIRST_LINE` seconds, one every
    `EVERY_LINE` seconds from then on, and one at the end; work that ends before the first line is silent.

    Args:
        desc: What the work is.
        unit: What is counted.
        show: Whether anything is shown.
        total: How much there is to do; None where nobody knows.
        done: How much of it was done before.
        unit_scale: Whether numbers are shortened, as 1.5M.
        delay: Seconds after which the bar appears on a terminal.
        leave: Whether the bar stays on a terminal at the end.
        bar_format: How the bar looks on a terminal, as tqdm reads it.
    """
    desc = one_line(desc)
    if show and not _IN_NOTEBOOK and not _on_terminal(sys.stderr):
        return _Lines(desc, unit, total, done, unit_scale, sys.stderr)
    return _Bar(
        total=total,
        initial=done,
        desc=desc,
        unit=unit,
        unit_scale=unit_scale,
        delay=delay,
        leave=leave,
        bar_format=bar_format,
        disable=not show,
    )


def tracked(
    items: Iterable[Item],
    *,
    desc: str,
    unit: str,
    show: bool,
    total: float | None = None,
    delay: float = 0.0,
    leave: bool = True,
) -> Iterator[Item]:
    """Yields the items, and shows as in `progress_bar` how many of them are done."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(desc=desc, unit=unit, show=show, total=total, delay=delay, leave=leave) as bar:
        for item in items:
            yield item
            bar.update()


def _on_terminal(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


class _Bar(tqdm):  # type: ignore[misc] # tqdm.auto is untyped
    """tqdm's bar."""

    def move_to(self, n: float, desc: str | None = None) -> None:
        self.n = n
        if desc is not None:
            self.set_description_str(one_line(desc), refresh=False)
        self.refresh()

    def note(self, values: dict[str, str]) -> None:
        self.set_postfix({one_line(name): one_line(value) for name, value in values.items()})


class _Lines:
    """The same in lines, each written when the work moves on."""

    def __init__(
        self, desc: str, unit: str, total: float | None, done: float, unit_scale: bool, stream: IO[str]
    ) -> None:
        self._desc, self._unit, self._total, self._unit_scale = desc, unit, total, unit_scale
        self._initial, self._n, self._values, self._stream = done, done, "", stream
        self._began = time.monotonic()
        self._next = self._began + FIRST_LINE
        self._told: float | None = None  # what the last line said to be done

    def update(self, n: float = 1) -> None:
        self._n += n
        self._write_if_due()

    def move_to(self, n: float, desc: str | None = None) -> None:
        self._n, self._desc = n, self._desc if desc is None else one_line(desc)
        self._write_if_due()

    def note(self, values: dict[str, str]) -> None:
        self._values = one_line(", ".join(f"{name}={value}" for name, value in values.items()))

    def close(self) -> None:
        if self._told not in (None, self._n) and self._next != float("inf"):
            self._write()
        self._next = float("inf")

    def __enter__(self) -> _Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_if_due(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY_LINE
            self._write()

    def _write(self) -> None:
        self._told = self._n
        line = tqdm.format_meter(
            self._n,
            self._total,
            time.monotonic() - self._began,
            ncols=0,
            prefix=self._desc,
            unit=self._unit,
            unit_scale=self._unit_scale,
            initial=self._initial,
            postfix=self._values,
        )
        print(line.strip(), file=self._stream, flush=True)
