"""How fast a service may be asked, and how long to wait before asking again."""

from __future__ import annotations

import email.utils
import math
import random
import threading
import time
from datetime import UTC, datetime


class Pace:
    """Spaces requests evenly over all threads, and holds all of them while a service asks for time.

    Args:
        per_minute: Requests a minute, > 0.
        stop: Once set, waiting ends.
    """

    def __init__(self, per_minute: float, stop: threading.Event) -> None:
        self._gap = 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()
        self._stop = stop

    def wait(self) -> None:
        """Returns when it is this request's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._gap
        self._stop.wait(max(0.0, turn - now))

    def hold(self, seconds: float) -> None:
        """No request starts for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def backoff(attempt: int, longest: float) -> float:
    """Seconds to wait after the attempt of this number, from 0: drawn from the upper half of 2^attempt, bounded.

    The draw keeps clients that failed together from coming back together.
    """
    return min(longest, 2.0 ** min(attempt, 30)) * (0.5 + random.random() / 2)  # noqa: S311 - no secret hangs on it


def asked_to_wait(header: str | None, longest: float) -> float | None:
    """Seconds that a Retry-After header asks for, at most ``longest``; None where it asks for nothing we can read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(header)
        except (ValueError, IndexError, OverflowError):
            return None
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else min(max(seconds, 0.0), longest)
