"""Lists that callers give. In Python a text is a list of its letters, which nobody means."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def not_one_text(name: str, given: Iterable[Item]) -> Iterable[Item]:
    """What was given, unless it is a single text or a single run of bytes.

    Args:
        name: Of the argument, for the message.
        given: What should be a list, or anything else that gives its items one by one.

    Raises:
        ValueError: It is one text, with the list that was probably meant.
    """
    if isinstance(given, str | bytes):
        shown = reprlib.repr(given)
        raise ValueError(f"{name}: found the text {shown}; allowed: a list, such as [{shown}]")
    return given


def listed(name: str, given: Iterable[Item]) -> list[Item]:
    """What was given as a list.

    Raises:
        ValueError: As `not_one_text`.
    """
    return list(not_one_text(name, given))
