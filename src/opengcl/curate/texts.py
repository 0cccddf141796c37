"""Texts and JSON from outside, made safe to keep."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from opengcl.curate.errors import ReplyError
from opengcl.data.problems import shown

_UNWANTED = {"Cc", "Cs", "Co", "Cn"}
"""Unicode categories that no title needs: control characters, lone surrogates, private use, unassigned."""


def one_line(text: str, longest: int) -> str:
    """A text in NFC on one line without control characters, cut to ``longest`` characters."""
    kept = (" " if one.isspace() else one for one in unicodedata.normalize("NFC", text[: 4 * longest]))
    shown_characters = (one for one in kept if unicodedata.category(one) not in _UNWANTED)
    return " ".join("".join(shown_characters).split())[:longest].strip()


def parse_json(text: str) -> Any:
    """JSON, and nothing but JSON.

    Raises:
        ReplyError: If it is not: NaN, numbers without end and nests too deep included.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ReplyError(f"not JSON ({type(error).__name__}): {shown(text)}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
