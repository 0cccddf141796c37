"""Connections to public addresses alone: what keeps a URL in someone's data out of the network it is read in.

A name is resolved here, every address it has is checked, and the connection goes to an address that was checked. There
is no second look-up in which the name could point elsewhere (DNS rebinding), and a redirect is checked like a first
request, since it needs a connection too.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import anyio
import httpcore2
import httpx2

SCHEMES = ("http", "https")
MAX_URL = 8192
"""Characters of a URL; longer ones are refused. A `data:` URI in a feed may have megabytes."""

_CONNECT_SECONDS = 5.0
_IPV6_UNICAST = ipaddress.ip_network("2000::/3")
_TRANSLATED = (
    ipaddress.ip_network("2002::/16"),  # 6to4: an IPv4 address inside, which may be private
    ipaddress.ip_network("192.88.99.0/24"),  # its relays
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments
)


class RefusedError(ValueError):
    """A URL or address that is not asked, with the reason. Its query string is never part of the message."""


def parse_url(text: str) -> httpx2.URL:
    """A URL that may be asked, as far as its text shows.

    Raises:
        RefusedError: If it is not http or https, has no host, no possible port, a user name or password,
            or is malformed or too long.
    """
    if len(text) > MAX_URL:
        raise RefusedError(f"a URL of {len(text):,} characters; allowed: up to {MAX_URL:,}")
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise RefusedError("not a URL") from error
    if url.scheme not in SCHEMES:
        raise RefusedError(f"the scheme {url.scheme[:20]!r}; allowed: {', '.join(SCHEMES)}")
    if url.userinfo:
        raise RefusedError("a user name or password in the URL; allowed: neither")
    if not url.raw_host:
        raise RefusedError("no host in the URL")
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise RefusedError(f"the port {url.port}; allowed: 1 to 65535")
    return url


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    Not public: private, loopback, link-local, multicast, reserved, unspecified and documentation addresses, those of
    carrier-grade NAT, and every form of IPv4 inside IPv6 (mapped, compatible, 6to4, Teredo, NAT64). The registries are
    those of RFC 6890 as the standard library has them.

    Args:
        address: IPv4 or IPv6, with or without a zone (``fe80::1%eth0``).
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found not in _IPV6_UNICAST:
        return False
    return (
        found.is_global and not (found.is_multicast or found.is_reserved) and not any(found in n for n in _TRANSLATED)
    )


async def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """The addresses of a host, each once.

    Args:
        host: A name or an address.
        port: Where the connection goes.
        allow_private: Whether addresses that are not public are allowed.

    Raises:
        RefusedError: If one of the addresses is not public, whatever the others are.
        httpcore2.ConnectError: If there is no such name now.
    """
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore2.ConnectError(f"no address found: {error.strerror}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and (private := [one for one in addresses if not is_public(one)]):
        raise RefusedError(f"the address {private[0]}; allowed: public addresses")
    return addresses


class PublicNetwork(httpcore2.AsyncNetworkBackend):
    """What a connection pool opens its connections with. The pool keeps the name for the Host header and for TLS."""

    def __init__(self, *, allow_private: bool = False) -> None:
        """Keeps the choice.

        Args:
            allow_private: Whether addresses that are not public are allowed, such as those of a shop's own network.
        """
        self._allow_private = allow_private
        self._plain = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connects to the first address of a host that answers, in the order of the resolver.

        Raises:
            RefusedError: If an address of the host is not allowed.
            httpcore2.ConnectError: If none answers.
        """
        seconds = _CONNECT_SECONDS if timeout is None else min(timeout, _CONNECT_SECONDS)
        failed: Exception = httpcore2.ConnectError("no address found")
        for address in await resolve(host, port, allow_private=self._allow_private):
            try:
                return await self._plain.connect_tcp(address, port, seconds, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Refused.

        Raises:
            RefusedError: Always.
        """
        raise RefusedError("a local socket; allowed: public addresses")

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await anyio.sleep(seconds)


def connection_pool(*, connections: int, allow_private: bool) -> httpcore2.AsyncConnectionPool:
    """HTTP connections to public addresses: certificates checked, no proxy or other setting from the environment.

    Args:
        connections: At most so many at a time; a quarter of them are kept open for the next request.
        allow_private: Whether addresses that are not public are allowed.
    """
    return httpcore2.AsyncConnectionPool(
        ssl_context=httpx2.create_ssl_context(trust_env=False),
        max_connections=connections,
        max_keepalive_connections=max(1, connections // 4),
        keepalive_expiry=10.0,
        network_backend=PublicNetwork(allow_private=allow_private),
    )
