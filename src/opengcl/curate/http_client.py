"""One HTTP client for models and shops, for which every reply is bounded in size and time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx2

LARGEST_REPLY = 16 << 20
"""Bytes of a reply, unpacked."""

_CODED = ("content-encoding", "content-length", "transfer-encoding")


@dataclass(frozen=True)
class Answer:
    """A complete HTTP reply.

    Attributes:
        status: HTTP status.
        body: Its text.
        retry_after: The header of that name.
    """

    status: int
    body: str
    retry_after: str | None


class UnansweredError(Exception):
    """No complete reply came; whether the request was billed is not known."""


class NotSentError(UnansweredError):
    """No connection came about, so nothing can have been billed."""


class BoundedClient(httpx2.Client):
    """Reads every reply whole, up to `LARGEST_REPLY` bytes and within ``timeout`` seconds in all.

    Redirects are not followed: a key is sent where the user said, and nowhere else.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout=timeout, follow_redirects=False)
        self._seconds = timeout

    def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Sends a request and returns its reply, read whole."""
        started = time.monotonic()
        response = super().send(request, stream=True, **{**options, "follow_redirects": False})
        try:
            parts, size = [], 0
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > LARGEST_REPLY:
                    raise httpx2.ReadError(f"a reply over {LARGEST_REPLY:,} bytes, the limit", request=request)
                if time.monotonic() - started > self._seconds:
                    raise httpx2.ReadTimeout(f"a reply that took over {self._seconds:g} s", request=request)
        finally:
            response.close()
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _CODED]
        return httpx2.Response(response.status_code, headers=headers, content=b"".join(parts), request=request)


def ask(client: BoundedClient, method: str, url: str, **options: Any) -> Answer:
    """One request over HTTP.

    Raises:
        UnansweredError: If no complete reply came.
    """
    try:
        return answer(client.request(method, url, **options))
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise unanswered(error) from None  # the original quotes the address, which may hold a key


def answer(response: httpx2.Response) -> Answer:
    """A reply as we keep it."""
    return Answer(
        response.status_code, response.content.decode("utf-8", "replace"), response.headers.get("retry-after")
    )


def unanswered(error: BaseException | None) -> UnansweredError:
    """An error of the HTTP library, told without the address."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return NotSentError(f"no connection ({type(error).__name__})")
    if isinstance(error, httpx2.ReadError) and "limit" in str(error):
        return UnansweredError(str(error))
    return UnansweredError(f"no complete reply ({type(error).__name__})")
