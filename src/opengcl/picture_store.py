"""Fetched pictures on disk, and why the others are not there: one SQLite file that survives a kill at any moment.

Every picture is one transaction, so what `PictureStore.put` returned from is there for the next run. Equal pictures,
such as a shop's placeholder under a thousand URLs, are kept once.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

FILE = "pictures.sqlite"
_BUSY_SECONDS = 60.0
_LONGEST_NAME = 8192

# The tables by URL have no rowid, so that the URL is stored once.
_TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS picture (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS stored (url TEXT PRIMARY KEY, picture INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failure (
    url TEXT PRIMARY KEY, reason TEXT NOT NULL, permanent INTEGER NOT NULL, attempts INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_FAILURES = pa.schema([("url", pa.string()), ("reason", pa.string()), ("attempts", pa.int64())])


@dataclass(frozen=True)
class Failure:
    """Why a URL's picture is not there.

    Attributes:
        reason: In words.
        permanent: Whether asking again is of no use.
        attempts: Requests so far, over all runs; 0 for a URL that was never asked.
        at: When the last one ended, in seconds since 1970.
    """

    reason: str
    permanent: bool
    attempts: int
    at: float


class PictureStore:
    """URL -> bytes of a picture, as a context manager. Threads may share one; each process opens its own."""

    def __init__(self, folder: Path) -> None:
        """Opens a store, or makes one.

        Args:
            folder: Where ``pictures.sqlite`` lies; made if it is not there.

        Raises:
            OSError: If it cannot be opened, or is not a store.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / FILE
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(self.file, timeout=_BUSY_SECONDS, check_same_thread=False)
        try:
            with self._access() as connection:
                connection.executescript(_TABLES)
        except OSError:
            self._connection.close()
            raise

    def __enter__(self) -> PictureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; a store that was not closed is whole all the same."""
        self._connection.close()

    def __len__(self) -> int:
        """Number of URLs whose picture is there."""
        return int(self._one("SELECT count(*) FROM stored")[0])

    def __contains__(self, url: str) -> bool:
        return self._one("SELECT 1 FROM stored WHERE url = ?", _name(url)) is not None

    def get(self, url: str) -> bytes | None:
        """The picture's file, or None where it was not fetched."""
        query = "SELECT data FROM stored JOIN picture ON picture.id = stored.picture WHERE url = ?"
        found = self._one(query, _name(url))
        return None if found is None else bytes(found[0])

    def put(self, url: str, data: bytes) -> None:
        """Stores a picture for a URL, and forgets that it ever failed.

        Raises:
            OSError: If the disk is full or the file cannot be written.
        """
        digest = hashlib.blake2b(data, digest_size=16).digest()
        with self._access() as connection:
            connection.execute("INSERT OR IGNORE INTO picture (digest, data) VALUES (?, ?)", (digest, data))
            connection.execute(
                "INSERT OR REPLACE INTO stored SELECT ?, id FROM picture WHERE digest = ?", (_name(url), digest)
            )
            connection.execute("DELETE FROM failure WHERE url = ?", (_name(url),))

    def fail(self, url: str, reason: str, *, permanent: bool, attempts: int) -> None:
        """Notes why a picture could not be read.

        Args:
            url: Whose picture.
            reason: In words.
            permanent: Whether asking again is of no use.
            attempts: Requests since the last note.
        """
        with self._access() as connection:
            connection.execute(
                "INSERT INTO failure VALUES (?, ?, ?, ?, ?) ON CONFLICT (url) DO UPDATE SET reason = excluded.reason, "
                "permanent = excluded.permanent, attempts = attempts + excluded.attempts, at = excluded.at",
                (_name(url), reason, permanent, attempts, time.time()),
            )

    def failure(self, url: str) -> Failure | None:
        """Why a picture is not there, as far as it was asked for."""
        found = self._one("SELECT reason, permanent, attempts, at FROM failure WHERE url = ?", _name(url))
        return None if found is None else Failure(found[0], bool(found[1]), found[2], found[3])

    def failures(self) -> pa.Table:
        """All failures, by URL: ``url``, ``reason``, ``attempts`` (requests so far)."""
        with self._access() as connection:
            rows = connection.execute("SELECT url, reason, attempts FROM failure ORDER BY url").fetchall()
        return pa.table(
            dict(zip(_FAILURES.names, zip(*rows, strict=True), strict=True)) if rows else [[], [], []], _FAILURES
        )

    def settle(self, name: str, value: str) -> str:
        """Keeps a setting that all pictures share, if none is kept yet.

        Returns:
            The value that is kept: this one, or that of an earlier run.
        """
        with self._access() as connection:
            connection.execute("INSERT OR IGNORE INTO setting VALUES (?, ?)", (name, value))
        return str(self._one("SELECT value FROM setting WHERE name = ?", name)[0])

    def _one(self, query: str, *values: str) -> Any:
        with self._access() as connection:
            return connection.execute(query, values).fetchone()

    @contextmanager
    def _access(self) -> Iterator[sqlite3.Connection]:
        """One transaction of one thread, with SQLite's errors as those of a file."""
        try:
            with self._lock, self._connection:
                yield self._connection
        except sqlite3.Error as error:
            raise OSError(f"{self.file}: {error}") from error


def _name(url: str) -> str:
    """The URL as it is stored. What no database takes, or a megabyte of it, becomes a short text of its own."""
    text = url.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
    if len(text) <= _LONGEST_NAME:
        return text
    return f"{text[:100]}... ({len(text)} characters, {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()})"
