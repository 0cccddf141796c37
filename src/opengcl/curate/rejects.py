"""What came and was not used, with the reason, as a table."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_LONGEST = 10_000
_SCHEMA = pa.schema([("stage", pa.string()), ("reason", pa.string()), ("text", pa.string()), ("request", pa.string())])


class Rejects:
    """Collects them from all threads."""

    def __init__(self) -> None:
        self._rows: set[tuple[str, str, str, str]] = set()
        self._lock = threading.Lock()

    def add(self, stage: str, reason: str, text: str, request: str) -> None:
        """Adds one.

        Args:
            stage: Which service or step.
            reason: Why it was not used.
            text: The reply, query or product; cut where it is long, as the journal has it whole.
            request: The journal's key of its request.
        """
        clean = text[:_LONGEST].encode("utf-8", "replace").decode()
        with self._lock:
            self._rows.add((stage, reason.encode("utf-8", "replace").decode(), clean, request))

    def count(self, stage: str) -> int:
        """How many a stage has."""
        return sum(row[0] == stage for row in self._rows)

    def write(self, path: Path) -> None:
        """Writes the table, in an order that does not depend on threads."""
        rows = [dict(zip(_SCHEMA.names, row, strict=True)) for row in sorted(self._rows)]
        temporary = path.with_name(f".{path.name}")
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), temporary)
        temporary.replace(path)
