"""Which URLs and addresses may be asked."""

from __future__ import annotations

import asyncio
import socket

import httpcore2
import pytest

from opengcl.public_network import MAX_URL, PublicNetwork, RefusedError, is_public, parse_url, resolve


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",  # noqa: S104
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.127.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "fc00::1",
        "fdff::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::5"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "the scheme 'file'; allowed: http, https"),
        ("ftp://shop.example/1.jpg", "the scheme 'ftp'"),
        ("data:image/png;base64,AAAA", "the scheme 'data'"),
        ("/1.jpg", "the scheme ''"),
        ("//shop.example/1.jpg", "the scheme ''"),
        ("", "the scheme ''"),
        ("http:///1.jpg", "no host"),
        ("http://user:s3cret@shop.example/1.jpg", "a user name or password"),
        ("http://user@shop.example/1.jpg", "a user name or password"),
        ("http://shop.example:port/", "not a URL"),
        ("http://shop.example:65536/", "the port 65536; allowed: 1 to 65535"),
        ("http://shop.example:0/", "the port 0"),
        ("http://shop.example/\0", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://shop.example/" + "x" * MAX_URL, "characters; allowed: up to"),
    ],
)
def test_urls_that_are_not_asked(url: str, reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_url(url)
    assert reason in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_urls_that_are_asked() -> None:
    assert parse_url("HTTPS://Bücher.example:8443/a b?key=1#part").netloc == b"xn--bcher-kva.example:8443"


# Names that a resolver reads as 127.0.0.1, whatever they look like.
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "::1", "0"])
def test_the_address_behind_a_name_is_what_counts(host: str) -> None:
    with pytest.raises(RefusedError, match=r"the address .*; allowed: public addresses"):
        asyncio.run(resolve(host, 80, allow_private=False))
    assert asyncio.run(resolve(host, 80, allow_private=True))


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(RefusedError, match=r"the address 10\.0\.0\.1"):
        asyncio.run(resolve("mixed.example", 80, allow_private=False))


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when checked and would be private when asked again: it is not asked again."""
    asked: list[str] = []

    def rebinding(host: str | bytes, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host if isinstance(host, str) else host.decode())
        address = "198.51.100.1" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        monkeypatch.setattr("opengcl.public_network.is_public", lambda address: address == "198.51.100.1")

        async def connect() -> None:
            await PublicNetwork().connect_tcp("rebinding.example", server.getsockname()[1], timeout=0.3)

        with pytest.raises((httpcore2.ConnectError, httpcore2.ConnectTimeout)):
            asyncio.run(connect())
        with pytest.raises(TimeoutError):
            server.accept()
    assert asked.count("rebinding.example") == 1


def test_a_local_socket_is_refused() -> None:
    with pytest.raises(RefusedError, match="a local socket"):
        asyncio.run(PublicNetwork(allow_private=True).connect_unix_socket("/run/some.socket"))
