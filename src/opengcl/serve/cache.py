"""What was asked lately and need not be made again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LeastRecentlyUsed(Generic[Key, Value]):
    """Keeps the values used last, as long as their sizes together stay within a limit; for several threads.

    Args:
        limit: Sum of sizes; 0 keeps nothing.
        size: Of a value; 1 by default, so that the limit is a count.
    """

    def __init__(self, limit: int, size: Callable[[Value], int] = lambda _: 1) -> None:
        self._limit, self._size, self._held = limit, size, 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The value, which becomes the one used last; None where there is none."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keeps a value, and forgets those used longest ago; one over the limit alone is not kept."""
        with self._lock:
            if (before := self._values.pop(key, None)) is not None:
                self._held -= self._size(before)
            if self._size(value) > self._limit:
                return
            self._values[key] = value
            self._held += self._size(value)
            while self._held > self._limit:
                self._held -= self._size(self._values.popitem(last=False)[1])
