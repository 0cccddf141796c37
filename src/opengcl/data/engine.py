"""DuckDB as the engine that joins, sorts and groups tables larger than memory."""

from __future__ import annotations

from pathlib import Path

import duckdb

MEMORY = "1GB"
"""What a connection may hold; beyond it DuckDB spills to its temporary folder."""


def connect(temporary: Path, *, memory: str = MEMORY, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """An embedded database of its own that spills to ``temporary`` and never reaches for the network.

    Args:
        temporary: Where it puts what does not fit; made when it is needed, and the caller's to remove.
        memory: Upper bound of its buffers, such as ``1GB``.
        threads: How many it uses; all by default.
    """
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory,
        "temp_directory": str(temporary),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "preserve_insertion_order": True,
    }
    if threads is not None:
        settings["threads"] = threads
    database = duckdb.connect(":memory:", config=settings)
    database.execute("SET enable_progress_bar = false")  # it would write to stdout
    return database
