"""Around every request: an id, security headers, a line in the access log, and what metrics count."""

from __future__ import annotations

import json
import logging
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opengcl.serve.errors import GONE
from opengcl.serve.metrics import Metrics

access_log = logging.getLogger("opengcl.access")

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "frame-ancestors 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked again by ETag, so that no browser mixes two versions of the page
}


class Observe:
    """Wraps the app. Query strings, bodies and headers are never logged: they hold what people search for, and keys."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Seen(uuid.uuid4().hex[:16])
        self._metrics.under_way.inc()
        try:
            await self._app(scope, receive, seen.watch(send))
        finally:
            self._metrics.under_way.dec()
            self._tell(scope, seen)

    def _tell(self, scope: Scope, seen: _Seen) -> None:
        seconds = time.perf_counter() - seen.started
        route = _route(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(seen.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": seen.identifier,
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": scope["path"][:500],
            "status": seen.status,
            "ms": round(1000 * seconds, 1),
            "bytes": seen.sent,
        }
        access_log.info("%s", json.dumps(line))


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class _Seen:
    """What went out."""

    def __init__(self, identifier: str) -> None:
        self.identifier, self.started = identifier, time.perf_counter()
        self.status, self.sent = GONE, 0

    def watch(self, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = self.identifier
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            self.sent += len(message.get("body", b""))
            await send(message)

        return watched


def _route(scope: Scope) -> str:
    """The route's template, so that ids do not become labels without end."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else "other"
