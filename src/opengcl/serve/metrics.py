"""What the server counts and times, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One registry for one server, so that two in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "route", "method", "status")
        self.seconds = self._histogram("request_seconds", "From the header to the end of the reply.", _SECONDS, "route")
        self.under_way = Gauge("opengcl_requests_under_way", "Requests not yet answered.", registry=self.registry)
        self.body_bytes = Gauge("opengcl_body_bytes", "Bytes of bodies in memory.", registry=self.registry)
        self.refused = self._counter("refused", "Requests refused by a limit, by status.", "status")
        self.batch_size = self._histogram("encoder_batch_size", "Texts and pictures encoded together.", _SIZES, "model")
        self.encode_seconds = self._histogram("encoder_batch_seconds", "Time to encode a batch.", _SECONDS, "model")
        self.wait_seconds = self._histogram(
            "encoder_wait_seconds", "How long a batch's first waited.", _SECONDS, "model"
        )
        self.waiting = Gauge(
            "opengcl_encoder_waiting", "Texts and pictures that wait.", ["model"], registry=self.registry
        )
        self.cache_hits = self._counter("query_cache_hits", "Query vectors found in the cache.", "model")
        self.cache_misses = self._counter("query_cache_misses", "Query vectors that had to be made.", "model")
        self.search_seconds = self._histogram("search_seconds", "Time in the vector index.", _SECONDS, "model")
        self.upserted = self._counter("documents_upserted", "Documents written and acknowledged.", "model")
        self.deleted = self._counter("documents_deleted", "Documents deleted.", "model")
        self.swaps = self._counter("index_swaps", "Times that another index went live and was taken.", "model")
        self.swap_refused = Gauge(
            "opengcl_index_swap_refused",
            "1 while the store's live index was made by another model, so that the last one is kept.",
            ["model"],
            registry=self.registry,
        )
        self.index = Info("opengcl_index", "The index that is searched.", ["model"], registry=self.registry)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"opengcl_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"opengcl_{name}", what, labels, buckets=buckets, registry=self.registry)
