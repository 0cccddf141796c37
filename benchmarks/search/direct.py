"""The same encoder and store without a server: a process of its own that loops over them when told to.

    python -m benchmarks.search.direct MODEL STORE

It reads a line of JSON a run from standard input, as `Loop` has it, and answers each with a line of JSON like the load
generator's.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from opengcl.encode import encode_texts
from opengcl.index import Index, open_store
from opengcl.model import BiEncoder

from .load import Run, pauses_of


@dataclass(frozen=True)
class Loop:
    """One run.

    Attributes:
        texts: The queries, in turn.
        k: Hits of each.
        requests: How many queries in all; the texts start again when they are through.
        batch: Texts encoded together, whose vectors are then searched one after the other; 0 takes vectors that were
            made before, so that the store works alone.
        threads: How many do this at a time, sharing the requests; 1 with a batch.
        pause: Seconds that a thread waits before each request, as in `benchmarks.search.load.Plan`; without a batch.
    """

    texts: Sequence[str]
    k: int
    requests: int
    batch: int
    threads: int = 1
    pause: float = 0

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def run(loop: Loop, model: BiEncoder, index: Index) -> Run:
    """Loop as told."""
    return _both(loop, model, index) if loop.batch else _store_alone(loop, _vectors(loop, model), index)


def _vectors(loop: Loop, model: BiEncoder) -> Float32[np.ndarray, "texts d"]:
    return np.concatenate([encode_texts(model, loop.texts[at : at + 32]) for at in range(0, len(loop.texts), 32)])


def _both(loop: Loop, model: BiEncoder, index: Index) -> Run:
    """A query's time is that of its batch's encoding and of its own search."""
    took: list[float] = []
    begun = time.perf_counter()
    for start in range(0, loop.requests, loop.batch):
        texts = [loop.texts[at % len(loop.texts)] for at in range(start, min(start + loop.batch, loop.requests))]
        started = time.perf_counter()
        vectors = encode_texts(model, texts)
        encoded = time.perf_counter() - started
        for vector in vectors:
            started = time.perf_counter()
            index.search(vector[None], loop.k)
            took.append(1000 * (encoded + time.perf_counter() - started))
    return Run(took, time.perf_counter() - begun)


def _store_alone(loop: Loop, vectors: Float32[np.ndarray, "texts d"], index: Index) -> Run:
    waiting, lock = iter(range(loop.requests)), threading.Lock()
    pauses = pauses_of(loop.requests, loop.pause)
    took: list[float] = []

    def work() -> None:
        while True:
            with lock:
                number = next(waiting, None)
            if number is None:
                return
            time.sleep(pauses[number])
            started = time.perf_counter()
            index.search(vectors[number % len(vectors)][None], loop.k)
            took.append(1000 * (time.perf_counter() - started))

    begun = time.perf_counter()
    with ThreadPoolExecutor(loop.threads) as threads:
        for done in [threads.submit(work) for _ in range(loop.threads)]:
            done.result()
    return Run(took, time.perf_counter() - begun)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("store")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, index = BiEncoder.load(asked.model, device="cpu"), open_store(asked.store).open()
    for line in sys.stdin:
        print(json.dumps(asdict(run(Loop(**json.loads(line)), model, index))), flush=True)


if __name__ == "__main__":
    main()
