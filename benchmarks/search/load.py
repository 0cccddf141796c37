"""A load generator of its own process: clients that each ask again as soon as they are answered, or after a pause.

    python -m benchmarks.search.load < plan.json

It reads a line of JSON a run from standard input, as `Plan` has it, and answers each with a line: milliseconds of every
request, and seconds of all. HTTP is spoken by hand on kept connections, so that a client costs a tenth of what the
server does.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        host: Of the server.
        port: Of the server.
        bodies: What is posted to ``/search``, in turn.
        clients: How many ask at a time.
        requests: Of all clients together; the bodies start again when they are through.
        pause: Seconds from an answer to the client's next request, on average; exponential, the same in every run.
    """

    host: str
    port: int
    bodies: Sequence[str]
    clients: int
    requests: int
    pause: float = 0

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class Run:
    """What came out.

    Attributes:
        milliseconds: From sending a request to the last byte of its answer.
        seconds: From the first request to the last answer.
    """

    milliseconds: list[float]
    seconds: float


async def run(plan: Plan) -> Run:
    """Ask as planned.

    Raises:
        ConnectionError: The server ended a connection.
        ValueError: An answer other than 200.
    """
    requests = [_request(plan, body) for body in plan.bodies]
    waiting = iter(range(plan.requests))
    pauses = pauses_of(plan.requests, plan.pause)
    took: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(plan.host, plan.port)
        try:
            for number in waiting:
                await asyncio.sleep(pauses[number])
                started = time.perf_counter()
                writer.write(requests[number % len(requests)])
                await _answer(reader)
                took.append(1000 * (time.perf_counter() - started))
        finally:
            writer.transport.abort()

    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(plan.clients):
                group.create_task(client())
    except* (ConnectionError, ValueError) as failed:
        raise failed.exceptions[0] from None
    return Run(took, time.perf_counter() - started)


def pauses_of(requests: int, mean: float) -> list[float]:
    """Seconds before each request."""
    chance = random.Random(0)
    return [chance.expovariate(1 / mean) if mean else 0.0 for _ in range(requests)]


def _request(plan: Plan, body: str) -> bytes:
    content = body.encode()
    head = f"POST /search HTTP/1.1\r\nHost: {plan.host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode("ascii") + content


async def _answer(reader: asyncio.StreamReader) -> bytes:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        content = await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the server ended the connection") from error
    if b" 200 " not in head[:16]:
        raise ValueError(f"found {head[:40]!r} {content[:200]!r}; expected 200")
    return content


def main() -> None:
    """See the module's text."""
    for line in sys.stdin:
        fields: dict[str, Any] = json.loads(line)
        print(json.dumps(asdict(asyncio.run(run(Plan(**fields))))), flush=True)


if __name__ == "__main__":
    main()
