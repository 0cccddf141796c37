"""Prompts as files: what the model is told, with places for what changes, and a hash that says which it was."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from opengcl.curate.errors import CurateError
from opengcl.plain_files import read_plain

_LARGEST = 100_000
_DIVIDER = re.compile(r"^-{3,}$", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """A prompt file: the system's part, a line ``---``, and the user's part, with ``$names`` to fill in.

    Attributes:
        system: What the model is.
        user: What it is to do.
        hash: Of the file's text.
    """

    system: Template
    user: Template
    hash: str

    @classmethod
    def read(cls, file: str | None, own: str, names: frozenset[str]) -> Prompt:
        """Reads a prompt.

        Args:
            file: The user's; None for our own.
            own: Name of our own among the package's prompts.
            names: Every name that a prompt may use.

        Raises:
            CurateError: If it cannot be read, has not two parts, or uses another name.
        """
        where = file or f"{own}.md"
        text = _text(Path(file)) if file else resources.files(__package__).joinpath("prompts", where).read_text("utf-8")
        parts = _DIVIDER.split(text)
        if len(parts) != 2:
            raise CurateError(f"{where}: found {len(parts)} parts; allowed: two, divided by a line of ---")
        system, user = (Template(part.strip()) for part in parts)
        for template in (system, user):
            if not template.is_valid():
                raise CurateError(f"{where}: a $ that names nothing; write $$ for a plain one")
            if unknown := sorted(set(template.get_identifiers()) - names):
                raise CurateError(f"{where}: found ${unknown[0]}; allowed: {', '.join('$' + n for n in sorted(names))}")
        return cls(system, user, hashlib.blake2b(text.encode(), digest_size=8).hexdigest())

    def messages(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """The chat: a message of the system and one of the user."""
        return [
            {"role": "system", "content": self.system.substitute(values)},
            {"role": "user", "content": self.user.substitute(values)},
        ]


def _text(path: Path) -> str:
    try:
        text = read_plain(path).decode("utf-8")
    except (OSError, ValueError) as error:
        raise CurateError(f"{path}: cannot be read: {error}") from error
    if len(text) > _LARGEST:
        raise CurateError(f"{path}: found {len(text):,} characters; allowed: up to {_LARGEST:,}")
    return text
