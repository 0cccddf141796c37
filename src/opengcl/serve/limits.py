"""What a request may take: a place, a body, time. Everything beyond is refused before it costs memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from opengcl.serve.errors import ApiError
from opengcl.serve.metrics import Metrics
from opengcl.serve.settings import Settings

UNLIMITED = ("/healthz", "/readyz", "/metrics")
"""Answered however busy the server is, so that whoever watches it sees that it is busy and not dead."""

LARGEST_HEAD = 1 << 16
"""Bytes of a request's head; and of what stands between two pieces of a body, and after the last."""

_UPLOAD = ("POST", "/documents")
_AGAIN = 1.0  # seconds after which a refused client may try again


class Limits:
    """Wraps the app: counts requests and bytes, ends what is too large or too slow or no longer wanted.

    Args:
        app: The app.
        settings: The limits.
        metrics: Where refusals are counted.
        hosts: Host names that are answered, lower case; empty: any.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, hosts: frozenset[str]) -> None:
        self._app, self._settings, self._metrics, self._hosts = app, settings, metrics, hosts
        self._requests = self._body_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _Reply(send)
        try:
            self._check_host(scope)
            if scope["path"] in UNLIMITED:
                await self._app(scope, receive, send)
                return
            with self._place():
                await self._answer(scope, receive, reply)
        except ApiError as error:
            self._metrics.refused.labels(str(error.status)).inc()
            if not reply.begun:
                await error.response()(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        upload = (scope["method"], scope["path"]) == _UPLOAD
        settings = self._settings
        # A search that nobody waits for is dropped; a write is finished.
        drop = None if upload else asyncio.current_task()
        body = _Body(scope, receive, settings.max_upload_bytes if upload else settings.max_query_bytes, self, drop)
        seconds = settings.upload_seconds if upload else settings.request_seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._app(scope, body.receive, reply.send)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ApiError(503, f"the request took over {seconds:g} s, the limit", retry_after=_AGAIN) from None
        except asyncio.CancelledError:
            if drop is None or not body.gone.is_set() or drop.uncancel():
                raise
        finally:
            body.close()

    @contextmanager
    def _place(self) -> Iterator[None]:
        most = self._settings.max_requests
        if self._requests >= most:
            raise ApiError(503, f"{most} requests are under way, the limit", retry_after=_AGAIN)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def _check_host(self, scope: Scope) -> None:
        if not self._hosts:
            return
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.strip("[]").lower() not in self._hosts:
            raise ApiError(400, f"Host: found {host[:200]!r}; allowed: {', '.join(sorted(self._hosts))}", "Host")

    def take(self, size: int) -> None:
        """Counts bytes of a body.

        Raises:
            ApiError: 503 if all bodies together are over the limit.
        """
        if self._body_bytes + size > self._settings.max_bodies_bytes:
            raise ApiError(503, "too many bytes are being uploaded at once", retry_after=_AGAIN)
        self._body_bytes += size
        self._metrics.body_bytes.set(self._body_bytes)

    def give_back(self, size: int) -> None:
        """Counts bytes as gone."""
        self._body_bytes -= size
        self._metrics.body_bytes.set(self._body_bytes)

    @property
    def body_seconds(self) -> float:
        """Until a whole body has come."""
        return self._settings.body_seconds


class _Reply:
    """Remembers whether an answer has begun: after that, no other can be given."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun = send, False

    async def send(self, message: Message) -> None:
        self.begun = True
        await self._send(message)


class _Body:
    """A request's body as it comes: counted, timed, and watched for the client's going away, which cancels a task."""

    def __init__(
        self, scope: Scope, receive: Receive, limit: int, limits: Limits, drop: asyncio.Task[Any] | None
    ) -> None:
        self._receive, self._limit, self._limits, self._drop = receive, limit, limits, drop
        headers = dict(scope["headers"])
        self._announced = int(headers.get(b"content-length", b"0"))
        self._deadline = asyncio.get_running_loop().time() + limits.body_seconds
        self._taken, self._whole = 0, False
        self.gone = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        if not self._announced and b"transfer-encoding" not in headers:
            self._end()

    async def receive(self) -> Message:
        """The next piece.

        Raises:
            ApiError: 413 if it is over the limit, 408 if it took too long, 503 if there is no room.
        """
        if self._announced > self._limit:
            raise self._too_large()
        if self._whole:
            if self._taken == 0:
                self._taken = -1
                return {"type": "http.request", "body": b"", "more_body": False}
            await self.gone.wait()
            return {"type": "http.disconnect"}
        message = await self._next()
        if message["type"] == "http.disconnect":
            self._go()
            await asyncio.sleep(0)  # where the task is cancelled, it ends here
            return message
        size = len(message.get("body", b""))
        if self._taken + size > self._limit:
            raise self._too_large()
        self._limits.take(size)
        self._taken += size
        if not message.get("more_body", False):
            self._end()
        return message

    def close(self) -> None:
        """Gives back what was counted."""
        self._limits.give_back(max(0, self._taken))
        self._taken = 0
        if self._watch is not None:
            self._watch.cancel()

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body took over {self._limits.body_seconds:g} s, the limit") from None

    def _end(self) -> None:
        self._whole = True
        self._watch = asyncio.ensure_future(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._go()

    def _go(self) -> None:
        self.gone.set()
        if self._drop is not None:
            self._drop.cancel()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is over {self._limit:,} bytes, the limit")


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, except that a connection without a whole request is cut after a while, or too many bytes.

    uvicorn has a time limit between requests, but none for a header that comes a byte at a time; and its parser takes a
    head of any size.
    """

    seconds = 15.0
    _cut: asyncio.TimerHandle | None = None
    _pending = 0  # bytes since something whole was there

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops it."""
        super().connection_lost(exc)
        if self._cut is not None:
            self._cut.cancel()

    def data_received(self, data: bytes) -> None:
        """Refuses a head that is too large, and cuts a connection with too much of anything else that is no body."""
        self._pending += len(data)
        super().data_received(data)
        if self._pending <= LARGEST_HEAD or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(f"the head of the request is over {LARGEST_HEAD:,} bytes, the limit")
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Says so in the form of all errors, and ends the connection."""
        content = bytes(ApiError(400, msg).response().body)
        head = f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[400] + head.encode("ascii") + content)
        self.transport.close()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._pending = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body, whose size is counted elsewhere."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._pending = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Starts it again."""
        super().on_response_complete()
        self._arm()

    def _arm(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
        self._cut = self.loop.call_later(self.seconds, self._cut_if_idle)

    def _cut_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def patient(seconds: float) -> type[PatientProtocol]:
    """The protocol with its time limit."""
    return type("Patient", (PatientProtocol,), {"seconds": seconds})
