"""The loss over ranks, forward and backward: time and peak memory of 1, 2 and 4 gloo ranks of one thread each.

Strong scaling: 16,384 pairs over more ranks. Weak scaling: as many logits a rank whatever the ranks, so pairs grow
with the root of the ranks. And one process alone with 65,536 pairs, of which the whole matrix of logits has 17 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from benchmarks.speed import Row, resident
from torch import nn

from opengcl.distributed import rank, sizes_of_ranks, world_size
from opengcl.log_normalisers import Pairs
from opengcl.loss import Terms
from opengcl.sharded_loss import sharded_loss

WIDTH, RANKS, STRONG, WEAK, LARGE = 512, (1, 2, 4), 16_384, 8_192, 65_536


def measure(repeats: int) -> Iterator[Row]:
    """Yield both scalings and the large batch; each compared with one rank, the batch with the small one."""
    strong = {ranks: steps_of_ranks(ranks, STRONG, repeats) for ranks in RANKS}
    weak = {ranks: steps_of_ranks(ranks, round(WEAK * math.sqrt(ranks)), repeats) for ranks in RANKS}
    for name, steps in (("strong", strong), ("weak", weak)):
        for ranks in RANKS[1:]:
            about = {"ranks": ranks, "a_rank": steps[ranks].about(), "one_rank": steps[1].about()}
            shown = f"loss, {name} scaling, {ranks} ranks"
            yield Row(shown, steps[ranks].seconds, steps[1].seconds, "one rank", None, about)
    large = steps_of_ranks(1, LARGE, 1)
    as_many = [seconds * (LARGE // STRONG) ** 2 for seconds in strong[1].seconds]
    yield Row(f"loss, {LARGE:,} pairs", large.seconds, as_many, f"{STRONG:,} pairs, pair for pair", 1.0, large.about())


@dataclass(frozen=True)
class Steps:
    """Each step's time until the last rank is done, and the most that a rank takes of processor and memory."""

    seconds: list[float]
    processor_seconds: list[float]
    extra_bytes: int

    def about(self) -> dict[str, object]:
        """What a row of figures tells beside the time."""
        return {"processor_seconds": median(self.processor_seconds), "extra_bytes": self.extra_bytes}


def steps_of_ranks(ranks: int, pairs: int, repeats: int) -> Steps:
    """Run them under torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--module", __name__]
        subprocess.run(
            [sys.executable, *launch, folder, str(pairs), str(repeats)],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            cwd=Path(__file__).parents[2],
        )
        found = [json.loads((Path(folder) / f"{r}.json").read_text(encoding="utf-8")) for r in range(ranks)]
    seconds, processor = (
        [max(step) for step in zip(*(each[name] for each in found), strict=True)]
        for name in ("seconds", "processor_seconds")
    )
    return Steps(seconds, processor, max(each["extra_bytes"] for each in found))


def work(folder: Path, pairs: int, repeats: int) -> None:
    """One rank's steps."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    sizes, generator = sizes_of_ranks(pairs), torch.Generator().manual_seed(rank())
    queries, documents = (
        nn.functional.normalize(torch.randn(sizes[rank()], WIDTH, generator=generator)).requires_grad_()
        for _ in range(2)
    )
    scale, diagonal = torch.tensor(1 / 0.07, requires_grad=True), torch.arange(pairs)
    nothing = Pairs(diagonal[:0], diagonal[:0])
    terms = Terms(Pairs(diagonal, diagonal), torch.ones(pairs), nothing)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    before, taken, busy = resident("VmRSS"), [], []
    for _ in range(repeats):
        queries.grad = documents.grad = scale.grad = None
        dist.barrier()
        started, worked = time.perf_counter(), time.process_time()
        loss = sharded_loss(
            queries, documents, scale, terms, "diagonal", "both", query_sizes=sizes, document_sizes=sizes
        )
        loss.backward()
        taken.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    found = {
        "seconds": taken,
        "processor_seconds": busy,
        "extra_bytes": resident("VmHWM") - before,
        "ranks": world_size(),
    }
    (folder / f"{rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One rank of the measurement; torchrun starts it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", type=int)
    parser.add_argument("repeats", type=int)
    given = parser.parse_args()
    work(given.folder, given.pairs, given.repeats)
