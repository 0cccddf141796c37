"""Pictures fetched by URL: many at once, within limits, from public addresses alone, into a `PictureStore`.

Whatever answers is taken for hostile: its words about length and type are not believed, and nothing is stored that
`opengcl.data.images` does not decode.
"""

from __future__ import annotations

import asyncio
import email.utils
import io
import itertools
import logging
import math
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpcore2
import httpx2
from PIL import Image

from opengcl.data import images
from opengcl.given_lists import not_one_text
from opengcl.picture_store import Failure, PictureStore
from opengcl.progress import Progress, progress_bar
from opengcl.public_network import MAX_URL, RefusedError, connection_pool, parse_url

log = logging.getLogger(__name__)

QUALITY = 95
"""Of the JPEG files that `FetchOptions.image_size` makes."""

SILENT = 20
"""After so many requests in a row without an answer, a host is not asked again in this run."""

LONGEST_WAIT = 60.0
"""Seconds; a Retry-After of more is shortened to it."""

_FIRST_WAIT, _LONGEST_BACK_OFF = 0.5, 30.0
_WAITING = 16  # URLs taken from the input for each request that may run: some of them wait for a busy host
_MOST_HOSTS = 10_000
_REDIRECTS = (301, 302, 303, 307, 308)
_TEMPORARY = (408, 425, 429)
_DECODERS = min(4, os.cpu_count() or 1)  # a picture at the limit takes 200 MB while it is decoded


@dataclass(frozen=True)
class FetchOptions:
    """How pictures are fetched.

    Attributes:
        concurrency: Requests at a time, over all hosts; from 1 to 1024.
        per_host: Requests at a time to one host; from 1 up.
        timeout: Seconds that one attempt may take, redirects included, waiting for a turn not; more than 0.
        retries: Further attempts after a failure that may pass: no connection, no complete answer, the HTTP statuses
            408, 425, 429 and 5xx; from 0 up. The waits between them double from half a second to half a minute, or are
            what Retry-After asks, up to a minute.
        max_bytes: Bytes of one picture's file; from 1 to `images.MAX_BYTES`.
        max_redirects: Redirects followed for one picture; from 0 up.
        allow_private: Whether addresses that are not public may be asked. Only for URLs of one's own making.
        image_size: None to store files as they came. A number of pixels, from 1 up, to store JPEG files of quality 95
            whose longer side has at most so many: upright, RGB, and a fraction of the bytes.
        retry_failed: Whether URLs are asked again whose failure was permanent: a 404, or a file that is no picture.
        user_agent: What requests say they come from. Some hosts want an address to write to.
    """

    concurrency: int = 16
    per_host: int = 6
    timeout: float = 20.0
    retries: int = 3
    max_bytes: int = images.MAX_BYTES
    max_redirects: int = 5
    allow_private: bool = False
    image_size: int | None = None
    retry_failed: bool = False
    user_agent: str = "opengcl"

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: Naming the option, what was found and what is allowed.
        """
        bounds: tuple[tuple[str, int, float], ...] = (
            ("concurrency", 1, 1024),
            ("per_host", 1, math.inf),
            ("retries", 0, math.inf),
            ("max_bytes", 1, images.MAX_BYTES),
            ("max_redirects", 0, math.inf),
            ("image_size", 1, math.inf),
        )
        for name, low, high in bounds:
            value = getattr(self, name)
            if not (value is None and name == "image_size") and not (type(value) is int and low <= value <= high):
                allowed = f"{low} or more" if high == math.inf else f"{low} to {high}"
                raise ValueError(f"{name}: found {value!r}; allowed: an integer, {allowed}")
        if not (isinstance(self.timeout, int | float) and 0 < self.timeout < math.inf):
            raise ValueError(f"timeout: found {self.timeout!r}; allowed: a number of seconds, more than 0")
        if not (self.user_agent.isascii() and self.user_agent.isprintable() and self.user_agent.strip()):
            raise ValueError(f"user_agent: found {self.user_agent!r}; allowed: printable ASCII")


@dataclass(frozen=True)
class FetchCounts:
    """What became of the URLs; the three add up to their number.

    Attributes:
        fetched: Pictures that this run stored.
        already_there: URLs whose picture was stored before, by an earlier run or for the same URL earlier in the input.
        failed: URLs without a picture, now or already known; `PictureStore.failures` lists them.
    """

    fetched: int
    already_there: int
    failed: int


def fetch_pictures(
    urls: Iterable[str], store: PictureStore, options: FetchOptions | None = None, *, progress: bool = True
) -> FetchCounts:
    """Fetches pictures that are not in the store yet.

    Stopped at any moment, even by a kill, it goes on from there when it is called again. A failure that may pass is
    tried again by the next run, a permanent one is not.

    Args:
        urls: Any number; read as they are needed, a few hundred ahead.
        store: Where the pictures go, and the reasons of failures.
        options: Limits; the defaults if None.
        progress: Whether a progress bar is shown on stderr.

    Raises:
        ValueError: If one URL is given in place of a list, or the store's pictures were made with another `image_size`.
        OSError: If the store cannot be written.
        RuntimeError: If called from a running event loop; use a thread there.
    """
    not_one_text("urls", urls)
    options = options or FetchOptions()
    size = str(options.image_size)
    if (before := store.settle("image_size", size)) != size:
        raise ValueError(
            f"{store.file}: its pictures were stored with image_size {before}, found {size}; allowed: the same"
        )
    total = len(urls) if isinstance(urls, Sized) else None
    with progress_bar(total=total, desc="fetching pictures", unit=" pictures", show=progress) as bar:
        try:
            return asyncio.run(_fetch_all(urls, store, options, bar))
        except ExceptionGroup as group:  # what ended one request in an unforeseen way, such as a full disk
            raise group.exceptions[0] from group


async def _fetch_all(urls: Iterable[str], store: PictureStore, options: FetchOptions, bar: Progress) -> FetchCounts:
    # As many look-ups of names at a time as there are requests: a silent name server blocks a thread for seconds.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(options.concurrency))
    with ThreadPoolExecutor(_DECODERS) as decoders:
        async with connection_pool(connections=options.concurrency, allow_private=options.allow_private) as pool:
            requests = asyncio.Semaphore(options.concurrency)
            return await _Fetcher(store, options, pool, decoders, bar, requests).run(urls)


class _FailedError(Exception):
    """An attempt that failed: why, when another is of use, and the seconds that the host asks to wait until then."""

    def __init__(self, reason: str, again: Literal["soon", "next run", "never"], wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again
        self.wait = wait


@dataclass
class _Host:
    """Turns at one host.

    Attributes:
        slots: Requests that may still start.
        users: Requests that run or wait.
        rests_until: Time of the event loop before which it wants no request.
        silent: Requests in a row that it left without an answer.
    """

    slots: asyncio.Semaphore
    users: int = 0
    rests_until: float = 0.0
    silent: int = 0


@dataclass
class _Fetcher:
    """One run. Memory is bounded by the tasks that wait and the pictures that are read or decoded at a time."""

    store: PictureStore
    options: FetchOptions
    pool: httpcore2.AsyncConnectionPool
    decoders: ThreadPoolExecutor
    bar: Progress
    requests: asyncio.Semaphore
    started: float = field(default_factory=time.time)
    hosts: dict[str, _Host] = field(default_factory=dict)
    busy: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    fetched: int = 0
    already_there: int = 0
    failed: int = 0

    async def run(self, urls: Iterable[str]) -> FetchCounts:
        window = asyncio.Semaphore(self.options.concurrency * _WAITING)
        async with asyncio.TaskGroup() as tasks:
            for url in urls:
                await window.acquire()
                await asyncio.sleep(0)  # lets requests run while URLs are skipped
                if url in self.busy:
                    await asyncio.wait({self.busy[url]})
                if self._known(url):
                    window.release()
                    continue
                self.busy[url] = tasks.create_task(self._fetch(url, window))
        return FetchCounts(self.fetched, self.already_there, self.failed)

    def _known(self, url: str) -> bool:
        """Counts a URL that needs no request."""
        if url in self.store:
            self.already_there += 1
        elif (failure := self.store.failure(url)) and self._is_final(failure):
            self.failed += 1
        else:
            return False
        self.bar.update()
        return True

    def _is_final(self, failure: Failure) -> bool:
        """Whether a failure stands for this run: one of this run does, however it came about."""
        return failure.at >= self.started or (failure.permanent and not self.options.retry_failed)

    async def _fetch(self, url: str, window: asyncio.Semaphore) -> None:
        """Stores one picture, or the reason why there is none, and makes room for another URL."""
        try:
            await self._attempt(url)
        finally:
            del self.busy[url]
            window.release()
            self.bar.update()

    async def _attempt(self, url: str) -> None:
        for attempt in itertools.count(1):
            try:
                self.store.put(url, await self._download(url))
                self.fetched += 1
                return
            except _FailedError as failure:
                if failure.again != "soon" or attempt > self.options.retries:
                    self._give_up(url, failure, attempt)
                    return
                await asyncio.sleep(_back_off(attempt) if failure.wait is None else failure.wait)

    def _give_up(self, url: str, failure: _FailedError, attempts: int) -> None:
        log.debug("%s: %s", without_query(url), failure.reason)
        self.store.fail(url, failure.reason, permanent=failure.again == "never", attempts=attempts)
        self.failed += 1

    async def _download(self, url: str) -> bytes:
        """One attempt: follows redirects to a picture that decodes."""
        seconds = self.options.timeout
        for _ in range(self.options.max_redirects + 1):
            try:
                target = parse_url(url)
            except RefusedError as error:
                raise _FailedError(f"refused: {error}", "never") from error
            async with self._turn(target.raw_host.decode("ascii")) as host:
                start = time.monotonic()
                found = await self._answer(target, host, seconds)
                seconds -= time.monotonic() - start
                if isinstance(
                    found, bytes
                ):  # decoded within the turn, so that no more files wait than are read at a time
                    return await self._checked(found)
            url = found
        raise _FailedError(f"more than {self.options.max_redirects} redirects", "never")

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[_Host]:
        """Waits until a host may be asked, and then until any may."""
        if len(self.hosts) >= _MOST_HOSTS:
            self.hosts = {name: host for name, host in self.hosts.items() if host.users}
        host = self.hosts.setdefault(name, _Host(asyncio.Semaphore(self.options.per_host)))
        host.users += 1
        try:
            async with host.slots:
                if (rest := host.rests_until - asyncio.get_running_loop().time()) > 0:
                    await asyncio.sleep(rest)
                async with self.requests:
                    if host.silent >= SILENT:
                        raise _FailedError(f"its host left {SILENT} requests in a row without an answer", "next run")
                    yield host
        finally:
            host.users -= 1

    async def _answer(self, url: httpx2.URL, host: _Host, seconds: float) -> bytes | str:
        """One request: a picture's file, or the URL that it redirects to."""
        try:
            async with asyncio.timeout(seconds):
                found = await self._request(url)
        except RefusedError as error:
            raise _FailedError(f"refused: {error}", "never") from error
        except (TimeoutError, httpcore2.TimeoutException) as error:
            host.silent += 1
            raise _FailedError(f"no complete answer within {self.options.timeout:g} s", "soon") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            host.silent += 1
            untrusted = any(isinstance(one, ssl.SSLCertVerificationError) for one in error.args)
            raise _FailedError(f"no connection: {str(error)[:200]}", "next run" if untrusted else "soon") from error
        except _FailedError as failure:
            host.silent = 0
            if failure.wait is not None:
                host.rests_until = asyncio.get_running_loop().time() + failure.wait
            raise
        host.silent = 0
        return found

    async def _request(self, url: httpx2.URL) -> bytes | str:
        headers = [
            (b"Host", url.netloc),
            (b"User-Agent", self.options.user_agent.encode()),
            (b"Accept", b"image/*"),
            (b"Accept-Encoding", b"identity"),
        ]
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        waits = {"connect": self.options.timeout, "read": self.options.timeout}
        async with self.pool.stream("GET", target, headers=headers, extensions={"timeout": waits}) as response:
            if response.status in _REDIRECTS:
                return _redirected(url, response)
            _check_status(response)
            return await self._body(response)

    async def _body(self, response: httpcore2.Response) -> bytes:
        """The file, which is not read further than it may be long."""
        if (encoding := _header(response, b"content-encoding")) not in ("", "identity"):
            raise _FailedError(f"content encoding {encoding[:20]!r}; allowed: none", "never")
        most = self.options.max_bytes
        found = bytearray()
        async for part in response.aiter_stream():
            found += part
            if len(found) > most:
                raise _FailedError(f"over {most:,} bytes, the limit", "never")
        return bytes(found)

    async def _checked(self, data: bytes) -> bytes:
        """The file as it is stored, once it is sure to be a picture."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.decoders, stored_form, data, self.options.image_size)
        except images.PictureError as error:
            raise _FailedError(f"not a usable picture: {error}", "never") from error


def without_query(url: str) -> str:
    """A URL as messages show it: no query string, which may hold a key, and no user name or password."""
    try:
        found = httpx2.URL(url[:MAX_URL])
    except (httpx2.InvalidURL, ValueError):
        return "(not a URL)"
    return f"{found.scheme}://{found.raw_host.decode('ascii')}{found.path}"


def stored_form(data: bytes, image_size: int | None) -> bytes:
    """The file itself where it decodes, or a JPEG of at most `image_size` pixels a side.

    Raises:
        PictureError: If it does not decode, or is over the limits.
    """
    if image_size is None:
        if (fault := images.fault(data, Path())) is not None:
            raise images.PictureError(fault)
        return data
    picture = images.load(data, Path())
    picture.thumbnail((image_size, image_size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _check_status(response: httpcore2.Response) -> None:
    status = response.status
    if status in _TEMPORARY or status >= 500:
        raise _FailedError(f"HTTP status {status}", "soon", _retry_after(_header(response, b"retry-after")))
    if status != 200:
        raise _FailedError(f"HTTP status {status}", "never")


def _redirected(url: httpx2.URL, response: httpcore2.Response) -> str:
    """Where a redirect leads; checked when it is asked."""
    try:
        if place := _header(response, b"location"):
            return str(url.join(place))
    except (httpx2.InvalidURL, ValueError):
        pass
    raise _FailedError(f"HTTP status {response.status} without a place to go to", "never")


def _header(response: httpcore2.Response, name: bytes) -> str:
    """A header's first value, empty where there is none."""
    return next((value.decode("latin-1").strip() for key, value in response.headers if key.lower() == name), "")


def _retry_after(value: str) -> float | None:
    """Seconds to wait by a Retry-After of seconds or of a date (RFC 9110, 10.2.3), at most `LONGEST_WAIT`."""
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST_WAIT)
    try:
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT)


def _back_off(attempt: int) -> float:
    """Seconds to wait after so many attempts: doubled each time, and spread so that not all come back together."""
    return min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_BACK_OFF) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
