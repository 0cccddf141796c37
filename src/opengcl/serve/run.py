"""From a run's folder and a store's address to a server that answers, and stops well."""

from __future__ import annotations

import ipaddress
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from opengcl.data import RankedDataset
from opengcl.index import Store, model_fingerprint, open_store
from opengcl.model import BiEncoder
from opengcl.serve.app import State, create_app
from opengcl.serve.catalogue import Catalogue
from opengcl.serve.counts import Counts
from opengcl.serve.encoder import Encoder
from opengcl.serve.keys import READ_VARIABLE, ApiKeys
from opengcl.serve.limits import patient
from opengcl.serve.live import LiveIndex
from opengcl.serve.metrics import Metrics
from opengcl.serve.observe import access_log
from opengcl.serve.pictures import PictureThreads
from opengcl.serve.served import Served, Threads
from opengcl.serve.settings import ServeError, Settings

log = logging.getLogger(__name__)

NAMES = ("a", "b")
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ModelPlace:
    """A model to serve.

    Attributes:
        run: Its run folder or model folder.
        store: Address of the store whose live index it made.
        label: What people call it; the folder's name by default.
    """

    run: Path
    store: str
    label: str | None = None


def open_state(
    models: Sequence[ModelPlace],
    *,
    data: Path | None = None,
    keys: ApiKeys | None = None,
    settings: Settings | None = None,
    device: str | None = None,
    strict: bool = True,
) -> State:
    """Opens models, stores and data set.

    Args:
        models: One or two; they are named a and b.
        data: Folder of the data set, for pictures, suggestions and judged relevance.
        keys: API keys; none by default.
        settings: Limits.
        device: Where the models compute; the best there is by default.
        strict: Whether bad rows of the data set are an error, or skipped.

    Raises:
        ValueError: No such model or data set, no live index, or one that another model made.
        OSError: A store that cannot be reached.
    """
    if not 1 <= len(models) <= len(NAMES):
        raise ServeError(f"found {len(models)} models; allowed: one, or two to compare")
    settings = settings or Settings()
    metrics, pictures = Metrics(), PictureThreads(settings.picture_threads, settings.max_pixels)
    threads, counts = Threads(settings.search_threads), Counts(settings.swap_seconds)
    catalogue = Catalogue(RankedDataset.open(data, strict=strict)) if data else None
    served: dict[str, Served] = {}
    stores: list[Store] = []
    with ExitStack() as opened:
        for name, place in zip(NAMES, models, strict=False):
            fingerprint = model_fingerprint(place.run)
            stores.append(open_store(place.store))
            opened.callback(stores[-1].close)
            live = LiveIndex(name, stores[-1], fingerprint, metrics)
            model = BiEncoder.load(place.run, device=device)
            encoder = Encoder(name, model, fingerprint, pictures, settings, metrics, hold=lambda: threads.busy)
            label = place.label or place.run.resolve().name
            served[name] = Served(
                name, label, fingerprint, encoder, live, catalogue, threads, counts, settings, metrics
            )
        opened.pop_all()  # from here on they are the server's to close
    return State(served, keys or ApiKeys(), settings, metrics, pictures, threads, stores)


class Server(uvicorn.Server):
    """uvicorn, except that SIGTERM first turns ``/readyz`` and the process then ends with 0.

    The first signal begins the stop: for `drain_seconds` requests are still taken, so that a load balancer can look
    away; then running requests finish. A second signal skips the wait.
    """

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self.state = state
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What a signal does; not kept, so that uvicorn does not raise it again at the end."""
        self.state.draining = True
        if self._stop_at is not None:
            self.should_exit = True
        self._stop_at = time.monotonic() + self.state.settings.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second: whether to end."""
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)


def make_server(state: State, host: str, port: int) -> Server:
    """A server for some models.

    Args:
        state: From `open_state`.
        host: Address to listen on.
        port: Its port; 0 for any free one.
    """
    local = is_local(host)
    if not local and not state.keys:
        log.warning(
            "listening on %s without API keys: whoever reaches it can search; documents cannot be changed. "
            "Set %s or give --keys",
            host,
            READ_VARIABLE,
        )
        state = replace(state, settings=replace(state.settings, allow_writes=False))
    hosts = state.settings.hosts or (*_LOCAL, host) if local else state.settings.hosts
    return Server(
        _config(create_app(state, frozenset(name.lower() for name in hosts)), state.settings, host, port), state
    )


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def log_accesses() -> None:
    """One line of JSON a request on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    access_log.propagate = False


def _config(app: ASGIApp, settings: Settings, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=patient(settings.header_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # it would log query strings
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=int(settings.stop_seconds) + 1,
    )
