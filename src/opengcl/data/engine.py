"""DuckDB as the engine that joins, sorts and groups tables larger than memory."""

from __future__ import annotations

from pathlib import Path

import duckdb

from opengcl.data.problems import DataSetError, shown

MEMORY = "1GB"
"""What a connection may hold; beyond it DuckDB spills to its temporary folder."""


def connect(temporary: Path, *, memory: str = MEMORY, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """An embedded database of its own that spills to ``temporary`` and never reaches for the network.

    Args:
        temporary: Where it puts what does not fit; made when it is needed, and the caller's to remove.
        memory: Upper bound of its buffers, such as ``1GB``.
        threads: How many it uses; all by default.

    Raises:
        DataSetError: It cannot start with these.
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
    try:
        database = duckdb.connect(":memory:", config=settings)
    except (duckdb.Error, RuntimeError) as error:  # RuntimeError: a path that is no text
        found = f"memory {shown(memory)}, threads {threads}, temporary folder {shown(str(temporary))}"
        allowed = "a size such as 1GB, a whole number from 1, a path in UTF-8"
        raise DataSetError(f"DuckDB cannot start: found {found}; allowed: {allowed}") from error
    database.execute("SET enable_progress_bar = false")  # it would write to stdout
    return database
