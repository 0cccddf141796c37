"""Text from outside on its way to a terminal or a log: signs that would steer either are shown, not obeyed."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from types import TracebackType
from typing import TextIO

_STEERING = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_STEERING}]")
_UNSAFE_IN_LINE = re.compile(f"[\t\n{_STEERING}]")
_PLAIN_WARNING = warnings.formatwarning


def safe(text: str) -> str:
    r"""A text with its control characters written out, as ``\x1b``; newlines and tabs stay.

    These are the C0 and C1 controls and DEL, which move cursors and change titles; those that turn the direction of
    text, and line ends that only some programs know; and halves of surrogate pairs, which cannot be written.
    """
    return _UNSAFE.sub(_written, text)


def one_line(text: str) -> str:
    r"""The same, with newlines and tabs written out too: for an id, a name or a title inside a line."""
    return _UNSAFE_IN_LINE.sub(_written, text)


def _written(found: re.Match[str]) -> str:
    return ascii(found.group())[1:-1]


class SafeFormatter(logging.Formatter):
    """Log lines, and the tracebacks below them, as `safe` makes them."""

    def format(self, record: logging.LogRecord) -> str:
        """The whole entry."""
        return safe(super().format(record))


def guard_streams() -> None:
    """Warnings and uncaught errors of this process are written as `safe` makes them."""
    warnings.formatwarning = _warning
    sys.excepthook = _uncaught


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return safe(_PLAIN_WARNING(message, category, filename, lineno, line))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    stream: TextIO = sys.stderr
    stream.write(safe("".join(traceback.format_exception(kind, error, trace))))
