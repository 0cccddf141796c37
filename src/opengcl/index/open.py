"""Stores by their address."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from opengcl.index.protocol import Store, VectorIndexError

_OBJECT_STORAGE = ("s3", "gs", "az")
_ADDRESSES = (
    "FOLDER, lancedb:FOLDER, s3://, gs:// or az:// (LanceDB); postgresql:// (pgvector); http:// or https:// or "
    "FILE.db (Milvus); exact:FOLDER"
)


def open_store(uri: str) -> Store:
    """Opens a store of indexes; a folder is made if it is not there.

    Args:
        uri: Where it is:

            ==============================  ==========================================
            ``FOLDER``, ``lancedb:FOLDER``  LanceDB in a folder
            ``s3://``, ``gs://``, ``az://`` LanceDB in object storage
            ``postgresql://``               PostgreSQL with pgvector
            ``http://``, ``https://``       a Milvus server
            ``FILE.db``                     Milvus Lite in a file
            ``exact:FOLDER``                every vector compared, from an SQLite file
            ==============================  ==========================================

    Raises:
        VectorIndexError: Another kind of address.
        StoreError: It cannot be opened, or the extra that it needs is not installed.
    """
    scheme, colon, rest = uri.partition(":")
    if not uri.strip():
        raise VectorIndexError(f"store: found {uri!r}; allowed: {_ADDRESSES}")
    if scheme == "exact" and colon:
        from opengcl.index.exact import ExactStore

        return ExactStore(_folder(rest))
    if ("://" not in uri and uri.endswith(".db")) or scheme in ("http", "https"):
        from opengcl.index.milvus import MilvusStore

        return MilvusStore(uri)
    if scheme in ("postgresql", "postgres"):
        from opengcl.index.postgres import PostgresStore

        return PostgresStore(uri)
    if "://" in uri and scheme not in (*_OBJECT_STORAGE, "lancedb"):
        raise VectorIndexError(f"store: found the address {urlsplit(uri).scheme}://; allowed: {_ADDRESSES}")
    from opengcl.index.lance import LanceStore

    if scheme == "lancedb" and colon:
        return LanceStore(str(_folder(rest)))
    return LanceStore(uri if "://" in uri else str(_folder(uri)))


def _folder(written: str) -> Path:
    """The folder of ``lancedb:FOLDER`` or ``lancedb://FOLDER``."""
    return Path(written.removeprefix("//")).expanduser()
