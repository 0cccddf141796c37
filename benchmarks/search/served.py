"""The server over its own store and encoder: what HTTP, batching, limits and JSON add to a search.

Three comparisons. Two at 1, 8 and 32 clients that ask again as soon as they are answered:

- ``vectors``: every query's vector is in the server's cache, so that a request is one search of the store and all that
  is ours; against as many threads that search the same store for the same vectors.
- ``texts``: nothing is cached, so that a request is encoded too; against a loop that encodes as many texts together as
  the server did on average, and searches for each.

One core is always busy then from a few clients on, and a latency says no more than the throughput. So a third:

- ``paused``: as ``vectors``, but 8 and 32 clients pause after an answer, so that together they ask `PAUSED_SHARE` of
  what the store alone could answer; the threads beside them pause alike.

The server, the loop and PostgreSQL's processes are pinned to one core and the load generator to another, so that both
sides have the same processor and the generator takes none of it. A second cell lets them have both cores, which they
then share with the generator. The sides run in turn, the first to go alternating.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from benchmarks.ranking.data import dataset_folder
from benchmarks.ranking.untrained import TITLE, minilm_folder

from opengcl.data import RankedDataset
from opengcl.index import open_store
from opengcl.index.build import build_index
from opengcl.index.check import check_index, sample_queries
from opengcl.model import BiEncoder
from opengcl.vector_shards import EncodeJob, encode_table

from . import cells
from .direct import Loop
from .load import Plan, Run
from .stores import address_of

CLIENTS = {1: 150, 8: 320, 32: 480}
"""Clients -> requests of a run."""
PAUSED_SHARE = 0.4
ROUNDS = 5
K = 20
TEXTS = 400  # different queries
CHECKED = 300  # queries whose recall is told
LOAD_CORE = 1
CORES: dict[str, frozenset[int]] = {"": frozenset({0}), "-both-cores": frozenset({0, 1})}
"""End of a cell's name -> the cores that the server, the loop and PostgreSQL may use."""
_START_SECONDS = 120


def measure(kind: str, rounds: int = ROUNDS, clients: dict[int, int] | None = None, placed: str = "") -> dict[str, Any]:
    """Run all comparisons on a store and write the cell.

    Args:
        kind: One of `opengcl.search.stores.STORES`.
        rounds: How often each side runs.
        clients: As `CLIENTS`.
        placed: Of `CORES`.
    """
    cores = CORES[placed]
    model, dataset = prepared_model(), RankedDataset.open(dataset_folder("fashion"), progress=False)
    with ExitStack() as stack:
        address, helpers = stack.enter_context(address_of(kind, cells.WORK / f"served-{kind}"))
        documents = _build(address, model, dataset)
        recall = _recall(address, model, dataset)
        for process in helpers:
            os.sched_setaffinity(process, cores)
        servers = {
            "vectors": stack.enter_context(server(model, address, cores, cached=4096)),
            "texts": stack.enter_context(server(model, address, cores, cached=0)),
        }
        load = stack.enter_context(worker(["benchmarks.search.load"], {LOAD_CORE}))
        direct = stack.enter_context(worker(["benchmarks.search.direct", str(model), address], cores))
        bench = Bench(servers, load, direct, _texts(dataset))
        counts = clients or CLIENTS
        found = {
            mode: {str(count): _rounds(bench, mode, count, requests, rounds) for count, requests in counts.items()}
            for mode in servers
        }
        found["paused"] = {
            str(count): _rounds(bench, "vectors", count, requests, rounds, _pause(count, found["vectors"][str(count)]))
            for count, requests in counts.items()
            if count > 1
        }
    told = {"store": kind, "documents": documents, "recall@10": recall, "k": K, "rounds": rounds}
    content = {**told, "model": "all-MiniLM-L6-v2", **found}
    cells.write(f"served/{kind}{placed}", content)
    return content


def prepared_model() -> Path:
    """all-MiniLM-L6-v2 in our format."""
    folder = cells.WORK / "minilm"
    if not folder.is_dir():
        dataset = RankedDataset.open(dataset_folder("fashion"), progress=False)
        BiEncoder.open(str(minilm_folder()), dataset.schema, document={TITLE: 1.0}, device="cpu").save(folder)
    return folder


def figures(run: Run) -> dict[str, float]:
    """Percentiles and throughput of a run."""
    times = run.milliseconds
    return {
        "p50_ms": percentile(times, 50),
        "p99_ms": percentile(times, 99),
        "per_second": len(times) / run.seconds,
    }


def percentile(times: Sequence[float], share: float) -> float:
    """The smallest time that at least so many percent of all do not exceed."""
    return float(np.percentile(times, share, method="inverted_cdf"))


class Planned(Protocol):
    """What a worker is told."""

    def to_line(self) -> str:
        """One line of JSON."""
        ...


@dataclass(frozen=True)
class Worker:
    """A process that answers a line of JSON with another."""

    process: subprocess.Popen[str]

    def __call__(self, plan: Planned) -> Run:
        """Do what is planned.

        Raises:
            RuntimeError: It ended instead.
        """
        asked, answers = self.process.stdin, self.process.stdout
        if asked is None or answers is None:
            raise RuntimeError("a worker talks over pipes")
        asked.write(plan.to_line())
        asked.flush()
        if not (line := answers.readline()):
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")
        return Run(**json.loads(line))


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    pid: int
    port: int

    def batches(self) -> tuple[float, float]:
        """How many texts it has encoded, and in how many batches."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as reply:
            text = reply.read().decode()
        found = [re.search(rf"opengcl_encoder_batch_size_{what}{{[^}}]*}} (\S+)", text) for what in ("sum", "count")]
        values = [float(one.group(1)) if one else 0.0 for one in found]
        return values[0], values[1]


@dataclass(frozen=True)
class Bench:
    """Everything that runs during a comparison."""

    servers: dict[str, Server]
    load: Worker
    direct: Worker
    texts: list[str]
    bodies: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Requests are the same in every run."""
        bodies = [json.dumps({"query": {"text": text}, "k": K}) for text in self.texts]
        object.__setattr__(self, "bodies", bodies)

    def served(self, mode: str, clients: int, requests: int, pause: float = 0) -> tuple[Run, float]:
        """The server's side, and how many texts it encoded together on average; 0 where it encoded none."""
        server = self.servers[mode]
        texts, batches = server.batches()
        run = self.load(Plan("127.0.0.1", server.port, self.bodies, clients, requests, pause))
        texts_after, batches_after = server.batches()
        return run, (texts_after - texts) / max(1.0, batches_after - batches)

    def raw(self, mode: str, clients: int, requests: int, batch: float, pause: float = 0) -> Run:
        """The other side: with as many threads as clients, or with the batches that the server formed."""
        if mode == "vectors":
            return self.direct(Loop(self.texts, K, requests, batch=0, threads=clients, pause=pause))
        return self.direct(Loop(self.texts, K, requests, batch=max(1, round(batch))))


def _pause(clients: int, found: dict[str, Any]) -> float:
    """Seconds that so many clients pause on average to ask `PAUSED_SHARE` of what the store alone answers."""
    return float(clients / (PAUSED_SHARE * found["raw"]["per_second"]))


def _rounds(bench: Bench, mode: str, clients: int, requests: int, rounds: int, pause: float = 0) -> dict[str, Any]:
    """Both sides in turn, after a run of each that is not counted."""
    _, batch = bench.served(mode, clients, max(requests, len(bench.texts)))
    bench.raw(mode, clients, requests // 3, batch)
    told: dict[str, list[dict[str, float]]] = {"served": [], "raw": []}
    batches = [batch]
    for number in range(rounds):
        for name in ("served", "raw") if number % 2 else ("raw", "served"):
            if name == "served":
                run, batch = bench.served(mode, clients, requests, pause)
                batches.append(batch)
            else:
                run = bench.raw(mode, clients, requests, batch, pause)
            told[name].append(figures(run))
    return {**{name: medians(of) for name, of in told.items()}, "batch": float(np.median(batches[1:])), "runs": told}


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each figure's median over the runs."""
    return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}


@contextmanager
def worker(words: Sequence[str], cores: Set[int]) -> Iterator[Worker]:
    """A module of ours as a process pinned to some cores."""
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cells.ROOT,
        env=_one_thread(),
    )
    os.sched_setaffinity(process.pid, cores)  # before it has threads, which inherit it
    with process:
        try:
            yield Worker(process)
        finally:
            process.terminate()


@contextmanager
def server(model: Path, address: str, cores: Set[int], *, cached: int) -> Iterator[Server]:
    """`opengcl serve` pinned to some cores, once it answers.

    Raises:
        RuntimeError: It doesn't.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "opengcl.cli", "serve", str(model), "--port", str(port)]
    command += ["--set", f"cached_queries={cached}", "--set", "drain_seconds=0"]
    log = cells.WORK / f"server-{cached}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stderr=file,
            cwd=cells.ROOT,
            env={**_one_thread(), "OPENGCL_STORE": address},
        )
        os.sched_setaffinity(process.pid, cores)  # before it has threads, which inherit it
        try:
            _wait_until_ready(process, port, log)
            yield Server(process.pid, port)
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        select.select([], [], [], 0.2)
    raise RuntimeError(f"the server does not answer; see {log}")


def _build(address: str, model: Path, dataset: RankedDataset) -> int:
    vectors = cells.WORK / "minilm-vectors"
    encode_table(EncodeJob(str(model), str(dataset.path), str(vectors), device="cpu"))
    store = open_store(address)
    try:
        return build_index(store, model, dataset, vectors=vectors, progress=False).count()
    finally:
        store.close()


def _recall(address: str, model: Path, dataset: RankedDataset) -> float:
    """Of the best ten, against comparing all vectors, as `opengcl index check` tells it."""
    store = open_store(address)
    try:
        queries = sample_queries(BiEncoder.load(model, device="cpu"), dataset, CHECKED)
        return check_index(store.open(), queries, depths=(10,), progress=False).depths[0].recall
    finally:
        store.close()


def _texts(dataset: RankedDataset) -> list[str]:
    rows = np.random.default_rng(0).permutation(len(dataset.queries))[:TEXTS]
    return [text for text in dataset.queries.texts("query", rows) if text]


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
