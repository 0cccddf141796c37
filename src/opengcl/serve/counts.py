"""How many documents match, kept for a moment: a store may count for far longer than it searches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from opengcl.serve.cache import LeastRecentlyUsed

_KEPT = 1024
_Asked = tuple[str, str, str]


class Counts:
    """Counts of the last moment, for several threads.

    What this server writes is counted at once; what another process writes, after the given time at most.

    Args:
        seconds: How long a count is kept.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._kept: LeastRecentlyUsed[_Asked, tuple[int, float, int]] = LeastRecentlyUsed(_KEPT)
        self._lock = threading.Lock()
        self._writes = 0

    def __call__(self, asked: _Asked, count: Callable[[], int]) -> int:
        """A count.

        Args:
            asked: Names of the model and its index, and the filter as it was written.
            count: Counts, where it is not known.
        """
        writes, now = self._writes, time.monotonic()  # read before counting: a write meanwhile makes the count stale
        kept = self._kept.get(asked)
        if kept is not None and kept[0] == writes and now - kept[1] < self._seconds:
            return kept[2]
        found = count()
        self._kept.put(asked, (writes, now, found))
        return found

    def forget(self) -> None:
        """Has everything counted anew; to be called after a write, before it is acknowledged."""
        with self._lock:
            self._writes += 1
