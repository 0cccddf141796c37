"""Every limit and choice of the server, in one place, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from opengcl.cores import usable_cores
from opengcl.data.images import MAX_BYTES, MAX_PIXELS
from opengcl.data.problems import shown
from opengcl.plain_yaml import advice


class ServeError(ValueError):
    """A server that cannot be started as asked: what was found, and what is allowed."""


@dataclass(frozen=True)
class Settings:
    """How the server behaves; memory is bounded by these numbers together.

    Attributes:
        max_batch: Texts or pictures that the encoder takes at a time.
        max_wait_ms: How long a batch waits at most for as many as the one before it had, in milliseconds.
        max_waiting: Texts and pictures that may wait for the encoder; beyond it requests get 429.
        cached_queries: Query vectors kept.
        max_requests: Requests under way; beyond it 503.
        max_connections: Open connections; beyond it 503.
        max_query_bytes: Body of a search or embedding request.
        max_upload_bytes: Body of `POST /documents`.
        max_bodies_bytes: All bodies that are in memory at once; beyond it 503.
        max_picture_bytes: One picture's file.
        max_pixels: Of one picture; decoding takes up to 24 bytes a pixel for a moment.
        max_documents: Documents of one `POST /documents`.
        max_inputs: Texts of one `POST /v1/embeddings`.
        max_negatives: Negatives of one query.
        max_text: Characters of one text.
        max_k: Hits of one reply.
        max_depth: Largest `offset + k`.
        request_seconds: From the whole header to the end of the reply; then 503.
        upload_seconds: The same for `POST /documents`.
        body_seconds: Until the whole body has come; then 408.
        header_seconds: Until a connection has sent a whole header; then it is cut.
        drain_seconds: How long `/readyz` says 503 before new connections are refused, after SIGTERM.
        stop_seconds: How long running requests may take after that.
        swap_seconds: How often the store is asked which index is live; how long a count of documents is kept.
        picture_threads: Threads that decode pictures.
        search_threads: Threads that search; by default one more than there are cores, as one may wait for the store.
        thumbnail_bytes: Thumbnails kept in memory.
        cors: Origins whose pages may call the server; none by default.
        hosts: Values of the Host header that are answered; empty: any. On a loopback address, by default that address
            and localhost, so that no foreign page reaches the server through a name of its own (DNS rebinding).
        allow_writes: Whether documents may be changed without a write key.
    """

    max_batch: int = 32
    max_wait_ms: float = 2.0
    max_waiting: int = 512
    cached_queries: int = 4096
    max_requests: int = 64
    max_connections: int = 512
    max_query_bytes: int = 16 << 20
    max_upload_bytes: int = 64 << 20
    max_bodies_bytes: int = 256 << 20
    max_picture_bytes: int = 8 << 20
    max_pixels: int = 25_000_000
    max_documents: int = 1000
    max_inputs: int = 256
    max_negatives: int = 8
    max_text: int = 10_000
    max_k: int = 200
    max_depth: int = 10_000
    request_seconds: float = 30.0
    upload_seconds: float = 300.0
    body_seconds: float = 20.0
    header_seconds: float = 15.0
    drain_seconds: float = 2.0
    stop_seconds: float = 30.0
    swap_seconds: float = 1.0
    picture_threads: int = 2
    search_threads: int = field(default_factory=lambda: usable_cores() + 1)
    thumbnail_bytes: int = 64 << 20
    cors: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    allow_writes: bool = True

    def __post_init__(self) -> None:
        """Checks types and ranges.

        Raises:
            ServeError: Naming the setting, what was found and what is allowed.
        """
        for name, kind in _kinds().items():
            _check(name, kind, getattr(self, name))
        if "*" in self.cors:
            raise ServeError("cors: found '*'; allowed: origins by name, such as https://shop.example")
        if self.max_picture_bytes > MAX_BYTES:
            raise ServeError(f"max_picture_bytes: found {self.max_picture_bytes:,}; allowed: up to {MAX_BYTES:,}")
        if self.max_pixels > MAX_PIXELS:
            raise ServeError(f"max_pixels: found {self.max_pixels:,}; allowed: up to {MAX_PIXELS:,}")

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """A copy with some settings changed.

        Raises:
            ServeError: For a name that is not a setting, listing those there are, or a value that is not allowed.
        """
        if unknown := [name for name in changes if name not in _kinds()]:
            raise ServeError(f"setting {shown(unknown[0])} is not known; allowed: {', '.join(_kinds())}")
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()
        }
        return replace(self, **found)


_MAY_BE_ZERO = ("max_wait_ms", "cached_queries", "max_negatives", "drain_seconds", "thumbnail_bytes")


def _kinds() -> dict[str, str]:
    return {field.name: str(field.type) for field in fields(Settings)}


def _check(name: str, kind: str, value: object) -> None:
    if kind == "bool":
        allowed, good = "true or false", isinstance(value, bool)
    elif kind.startswith("tuple"):
        allowed, good = "a list of texts", isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    else:
        least = 0 if name in _MAY_BE_ZERO else 1 if kind == "int" else 0.01
        types = (int,) if kind == "int" else (int, float)
        allowed = f"{'an integer' if kind == 'int' else 'a number'}, at least {least}, below 2^40"
        good = isinstance(value, types) and not isinstance(value, bool) and least <= value < 1 << 40
    if not good:
        raise ServeError(f"{name}: found {shown(value)}; allowed: {allowed}{advice(value)}")
