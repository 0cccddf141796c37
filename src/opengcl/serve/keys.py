"""API keys: kept as hashes, compared in constant time, never written anywhere."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from opengcl.serve.settings import ServeError

READ_VARIABLE, WRITE_VARIABLE = "OPENGCL_API_KEYS", "OPENGCL_WRITE_KEYS"
_SHORTEST = 16
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class ApiKeys:
    """SHA-256 hashes of the keys that may read, and of those that may also write.

    Keys are long and random, so that a plain hash of them cannot be turned back by guessing.
    """

    read: frozenset[bytes] = frozenset()
    write: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.read or self.write)

    def may_read(self, key: str | None) -> bool:
        """Whether a request with this key may search; any may where there are no keys at all."""
        return not self or (key is not None and (_among(key, self.read) | _among(key, self.write)))

    def may_write(self, key: str | None) -> bool:
        """Whether a request with this key may change documents."""
        return key is not None and _among(key, self.write)

    @classmethod
    def load(cls, file: Path | None = None, environment: Mapping[str, str] = os.environ) -> ApiKeys:
        """The keys in a file, and those in the environment.

        Args:
            file: One key a line, as ``read KEY`` or ``write KEY``, the key itself or ``sha256:`` and its hash in hex;
                empty lines and those that begin with ``#`` are skipped.
            environment: ``OPENGCL_API_KEYS`` and ``OPENGCL_WRITE_KEYS`` hold keys with commas between them.

        Raises:
            ServeError: The file cannot be read, or a line or key is not of that form; keys are not quoted.
        """
        read = _listed(environment, READ_VARIABLE)
        write = _listed(environment, WRITE_VARIABLE)
        for number, line in enumerate(_lines(file), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or words[0] not in ("read", "write"):
                raise ServeError(f"{file}, line {number}: found another form; allowed: 'read KEY' or 'write KEY'")
            (read if words[0] == "read" else write).append((f"{file}, line {number}", words[1]))
        return cls(_hashes(read), _hashes(write))


def key_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key that a request brings: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name == b"x-api-key":
            return text
        if name == b"authorization" and text[:7].lower() == "bearer ":
            return text[7:].strip()
    return None


def _among(key: str, hashes: frozenset[bytes]) -> bool:
    """Looks at every hash, so that the time taken tells nothing."""
    asked = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    found = False
    for one in hashes:
        found |= hmac.compare_digest(asked, one)
    return found


def _listed(environment: Mapping[str, str], name: str) -> list[tuple[str, str]]:
    return [(name, key.strip()) for key in environment.get(name, "").split(",") if key.strip()]


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        with file.open(encoding="utf-8") as stream:
            return stream.read(_LARGEST_FILE).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"{file}: cannot be read as a file of keys ({type(error).__name__})") from None


def _hashes(keys: Iterable[tuple[str, str]]) -> frozenset[bytes]:
    return frozenset(_hash(where, key) for where, key in keys)


def _hash(where: str, key: str) -> bytes:
    if key.startswith("sha256:"):
        if not _HASHED.fullmatch(key):
            raise ServeError(
                f"{where}: found 'sha256:' and something else; allowed: 64 hex digits, lower case, after it"
            )
        return bytes.fromhex(key[7:])
    if len(key) < _SHORTEST:
        raise ServeError(f"{where}: found a key of {len(key)} characters; allowed: at least {_SHORTEST}")
    return hashlib.sha256(key.encode()).digest()
