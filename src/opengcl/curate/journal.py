"""What was asked, what came back, and what it cost: on disk before it counts, and never paid for twice."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from opengcl.curate.errors import CurateError

_CHUNK = 1 << 14


@dataclass
class Spent:
    """What a journal has used of a budget.

    Attributes:
        requests: Requests sent, those without an answer included.
        cost: Their cost, in the currency of the prices: as billed where a reply says so, and at its most where no
            answer is known.
    """

    requests: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class _Place:
    """Where a reply lies in the file, and what it cost."""

    offset: int
    length: int
    cost: float


def request_key(request: Mapping[str, Any]) -> str:
    """Hash of a whole request; requests that differ anywhere have different ones."""
    written = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(written.encode(), digest_size=16).hexdigest()


class Journal:
    """An append-only file of JSON lines, each compressed by itself, so that ``zcat`` reads it whole.

    Every line is flushed to the disk before the call that wrote it returns. A line that a crash cut short is the last
    one, and is removed at the next opening. In memory there are only the places of the replies.

    Three kinds of lines: ``sent`` (with the most that the request can cost), then ``reply`` (request, body, cost) or
    ``failed`` (reason, cost). A request that was sent and has neither was under way when the process died: it counts
    at its most.

    Args:
        path: The file; made if it is not there.

    Raises:
        CurateError: If another process has it open, or it is not a journal.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.spent = Spent()
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}
        self._open_calls: dict[str, list[float]] = {}
        self._file: BinaryIO = path.open("a+b", buffering=0)
        try:
            self._claim()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Replies kept."""
        return len(self._places)

    def close(self) -> None:
        """Lets go of the file; another process can open it then."""
        self._file.close()

    def find(self, key: str) -> str | None:
        """The body of the reply to a request, if it is kept."""
        place = self._places.get(key)
        if place is None:
            return None
        line = gzip.decompress(os.pread(self._file.fileno(), place.length, place.offset))
        return str(json.loads(line)["body"])

    def cost_of(self, key: str) -> float:
        """What a kept reply cost."""
        return self._places[key].cost

    def sent(self, key: str, most: float) -> None:
        """Notes that a request is about to be sent that can cost ``most``."""
        self._write({"kind": "sent", "key": key, "most": most, "time": _now()})

    def reply(self, key: str, request: Mapping[str, Any], body: str, cost: float) -> None:
        """Keeps a reply."""
        line = {"kind": "reply", "key": key, "request": request, "body": body, "cost": cost, "time": _now()}
        self._write(line)

    def failed(self, key: str, reason: str, cost: float) -> None:
        """Notes that a request that was sent brought nothing."""
        self._write({"kind": "failed", "key": key, "reason": reason, "cost": cost, "time": _now()})

    def _write(self, line: dict[str, Any]) -> None:
        data = gzip.compress(json.dumps(line, ensure_ascii=True).encode() + b"\n", compresslevel=6, mtime=0)
        with self._lock:
            offset = self._file.seek(0, os.SEEK_END)
            self._append(data, offset)
            self._count(line, offset, len(data))

    def _append(self, data: bytes, offset: int) -> None:
        """All of it on the disk, or nothing: half a line would hide those behind it."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), offset)
            raise

    def _count(self, line: dict[str, Any], offset: int, length: int) -> None:
        """Takes a line into the index and the sums."""
        key = line["key"]
        if line["kind"] == "sent":
            self.spent.requests += 1
            self.spent.cost += line["most"]
            self._open_calls.setdefault(key, []).append(line["most"])
            return
        waiting = self._open_calls.get(key)
        self.spent.cost += line["cost"] - (waiting.pop() if waiting else 0.0)
        if line["kind"] == "reply":
            self._places[key] = _Place(offset, length, line["cost"])

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CurateError(
                f"{self.path}: another run works here; wait for it, or take another work folder"
            ) from error

    def _read(self) -> None:
        """Reads the lines there are, and cuts off one that was not finished."""
        end, size = 0, self.path.stat().st_size
        self._file.seek(0)
        while end < size:
            data, length = self._next_member(end)
            if data is None:
                break
            self._count(self._parsed(data, end), end, length)
            end += length
        if end < size:
            os.ftruncate(self._file.fileno(), end)

    def _next_member(self, offset: int) -> tuple[bytes | None, int]:
        """The line at an offset and its length in the file; None where the file ends before the line does."""
        reader, parts, position = zlib.decompressobj(wbits=31), [], offset
        while not reader.eof:
            chunk = os.pread(self._file.fileno(), _CHUNK, position)
            if not chunk:
                return None, 0
            try:
                parts.append(reader.decompress(chunk))
            except zlib.error as error:
                raise CurateError(f"{self.path}: damaged at byte {offset:,} ({error}); move it away") from error
            position += len(chunk)
        return b"".join(parts), position - len(reader.unused_data) - offset

    def _parsed(self, data: bytes, offset: int) -> dict[str, Any]:
        try:
            line: dict[str, Any] = json.loads(data)
            if line["kind"] not in ("sent", "reply", "failed") or not isinstance(line["key"], str):
                raise ValueError(line["kind"])
            float(line["most"] if line["kind"] == "sent" else line["cost"])
        except (ValueError, KeyError, TypeError) as error:
            raise CurateError(f"{self.path}: byte {offset:,} is not a line of a journal; move it away") from error
        return line


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
