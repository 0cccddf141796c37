"""The live index of a store, followed while it is swapped."""

from __future__ import annotations

import logging
import threading

from opengcl.index import Index, Store, require_model
from opengcl.serve.metrics import Metrics

log = logging.getLogger(__name__)


class LiveIndex:
    """The index that new requests search; a request that has one keeps it to its end.

    Args:
        name: Of the model, for messages.
        store: The store.
        fingerprint: Of the model, which the index must have been made by.
        metrics: Where swaps are counted.

    Raises:
        ValueError: No index is live, or it was made by another model.
    """

    def __init__(self, name: str, store: Store, fingerprint: str, metrics: Metrics) -> None:
        self._name, self._store, self._fingerprint, self._metrics = name, store, fingerprint, metrics
        self._lock = threading.Lock()
        self.warning: str | None = None
        self.current = store.open()
        require_model(self.current, fingerprint)
        self._tell(self.current)

    def refresh(self) -> Index:
        """Takes the store's live index if it is another one and fits; else keeps the last, and says why.

        A store that cannot be reached is no reason to stop: the last index is kept, and its errors show in requests.
        """
        with self._lock:
            try:
                self._follow()
            except (ValueError, OSError) as error:
                self._warn(f"the store does not tell which index is live: {error}")
            return self.current

    def _follow(self) -> None:
        live = self._store.live()
        if live == self.current.name:
            self._clear()
            return
        index = self._store.open(live)
        try:
            require_model(index, self._fingerprint)
        except ValueError as error:
            self._metrics.swap_refused.labels(self._name).set(1)
            self._warn(
                f"still searching {self.current.name!r}, and this model cannot be served again once the server has "
                f"stopped: {error}"
            )
            return
        log.warning("model %s: index %r is live now, was %r", self._name, index.name, self.current.name)
        self.current = index
        self._metrics.swaps.labels(self._name).inc()
        self._tell(index)
        self._clear()

    def _tell(self, index: Index) -> None:
        spec = index.spec
        self._metrics.index.labels(self._name).info(
            {"index": index.name, "fingerprint": spec.model, "dtype": spec.dtype, "created": spec.created}
        )

    def _clear(self) -> None:
        self._metrics.swap_refused.labels(self._name).set(0)
        self.warning = None

    def _warn(self, message: str) -> None:
        if message != self.warning:
            log.error("model %s: %s", self._name, message)
        self.warning = message
