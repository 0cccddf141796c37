"""A progress bar over steps, which moves within a step by what DuckDB has done of its query."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

import duckdb

from opengcl.progress import progress_bar

_EVERY = 0.5  # seconds
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"  # steps differ in length, so no time left is told


class Steps:
    """Names, times and shows steps on stderr.

    Attributes:
        seconds: Wall time of each step that is done.
    """

    def __init__(self, names: Sequence[str], connection: duckdb.DuckDBPyConnection, *, show: bool) -> None:
        """Begins the first step.

        Args:
            names: Of all steps, in order.
            connection: What runs the queries.
            show: Whether there is a bar.
        """
        self.seconds: dict[str, float] = {}
        self._names, self._connection, self._show = list(names), connection, show
        self._began = time.perf_counter()
        self._bar = progress_bar(total=len(names), desc=self._names[0], unit="step", show=show, bar_format=_FORMAT)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Steps:
        """Starts to follow the queries."""
        if self._show:
            self._connection.execute("SET enable_progress_bar = true")
            self._connection.execute("SET enable_progress_bar_print = false")  # it is asked for, not written to stdout
            self._thread.start()
        self._draw(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the bar, and waits until nothing asks the connection any more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._bar.close()

    def done(self) -> None:
        """Ends the step and begins the next."""
        now = time.perf_counter()
        self.seconds[self._names[len(self.seconds)]] = round(now - self._began, 2)
        self._began = now
        self._draw(0)

    def _follow(self) -> None:
        while not self._over.wait(_EVERY):
            self._draw(max(self._connection.query_progress(), 0) / 100)

    def _draw(self, share: float) -> None:
        step = len(self.seconds)
        self._bar.move_to(round(step + share, 2), self._names[step] if step < len(self._names) else "done")
