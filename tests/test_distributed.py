"""Several processes are one with the whole batch: gathered rows, losses and every gradient, over gloo."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from opengcl.batches import Relation, Relations
from opengcl.data import RankedDataset
from opengcl.distributed import (
    gather_parts,
    gather_rows,
    log_sum_exp_over_ranks,
    rank,
    slice_of_rank,
    sum_over_ranks,
    world_size,
)
from opengcl.encode import encode, inputs_for
from opengcl.loss import DIRECTIONS, TARGETS
from opengcl.model import BiEncoder, FieldEmbeddings, FieldMix
from opengcl.objective import RankingObjective, relation_tensors
from opengcl.weights import weight_function

from .builders import clip, ranked
from .test_objective import MIX, Scaled, random_present, random_relation

TOTALS = (7, 4, 1)  # over 2 and 4 ranks: uneven, and fewer rows than ranks
CASES = [(target, "mean", False) for target in TARGETS] + [("masked", "both", True), ("full_row", "pairwise", False)]


@pytest.mark.parametrize("rows", [0, 1, 5, 12, 1001])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_slices_are_consecutive_even_and_whole(rows: int, ranks: int) -> None:
    slices = [slice_of_rank(rows, r, ranks) for r in range(ranks)]
    assert [i for part in slices for i in range(rows)[part]] == list(range(rows))
    sizes = [part.stop - part.start for part in slices]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_keeps_its_rows() -> None:
    rows = torch.rand(3, 2)
    assert (world_size(), rank()) == (1, 0)
    assert gather_rows(rows, 3) is rows


class Shares(BiEncoder):
    """A bi-encoder of one matrix a side; each rank makes the embeddings of its own rows of made features."""

    def __init__(self, relation: Relation, dtype: torch.dtype) -> None:
        super().__init__(torch.nn.Identity(), MIX)
        generator = torch.Generator().manual_seed(0)
        rows = {"query": len(relation.queries), "document": len(relation.documents)}
        self.features = {side: torch.randn(2, rows[side], 4, generator=generator, dtype=torch.float64) for side in rows}
        self.present = {side: random_present(rows[side], seed) for seed, side in enumerate(rows)}
        self.makers = torch.nn.ParameterDict(
            {side: torch.randn(4, 5, generator=generator, dtype=torch.float64).to(dtype) for side in rows}
        )

    def encode_fields(self, inputs: Any, side: Any, *, recompute: bool = False) -> FieldEmbeddings:
        own = slice_of_rank(self.features[side].shape[1], rank(), world_size())
        maker, present = self.makers[side], self.present[side][:, own]
        rows = torch.nn.functional.normalize(self.features[side][:, own].to(maker) @ maker, dim=-1)
        return FieldEmbeddings(rows * present[:, :, None], present)


SIZES = ((5, 7, 9), (3, 2, 2))  # queries, documents and pairs: uneven, and ranks without a row


def steps(
    dtype: torch.dtype, sizes: Sequence[tuple[int, int, int]], directions: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """Loss and gradients of every form of the loss, in one process or as one of several."""
    found = {}
    for size in sizes:
        relation = random_relation(*size, seed=1)
        objective, module = wrapped(relation, "full", dtype)
        for target, direction, combine in product(TARGETS, directions, ("mean", "pairwise", "both")):
            objective.target, objective.direction, objective.combine = target, direction, combine
            found[f"{size} {target} {direction} {combine}"] = step(module, objective, relation)
        objective, module = wrapped(relation, Scaled(), dtype)
        for objective.combine in ("mean", "pairwise"):
            found[f"{size} own loss {objective.combine}"] = step(module, objective, relation)
    return found


def exact_steps() -> dict[str, dict[str, Tensor]]:
    return steps(torch.float64, SIZES, DIRECTIONS)


def single_steps() -> dict[str, dict[str, Tensor]]:
    return steps(torch.float32, [(40, 70, 60)], ["both"])


def wrapped(relation: Relation, target: Any, dtype: torch.dtype) -> tuple[RankingObjective, torch.nn.Module]:
    objective = RankingObjective(Shares(relation, dtype), target=target, temperature=0.1).to(dtype)
    return objective, DistributedDataParallel(objective) if world_size() > 1 else objective


def step(module: torch.nn.Module, objective: RankingObjective, relation: Relation) -> dict[str, Tensor]:
    """The loss, and the gradients that an optimizer would get."""
    module.zero_grad()
    loss = module({}, {}, relation_tensors(relation))["loss"]
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in objective.named_parameters()}}


def collectives(this_rank: int, ranks: int) -> list[Tensor]:
    """What each rank uses in its own way: `parts_alone` with all of them in one process."""
    rows = torch.arange(1.0, 4.0 + this_rank, dtype=torch.float64).requires_grad_()
    gathered = gather_parts(rows, [3 + r for r in range(ranks)])
    numbers = torch.tensor([this_rank, -torch.inf, 2.0 * this_rank], dtype=torch.float64, requires_grad=True)
    normalised = log_sum_exp_over_ranks(numbers)
    loss = sum_over_ranks(((this_rank + 1) * gathered**2).sum() + (this_rank + 1) * normalised[[0, 2]].sum())
    loss.backward()
    return [gathered.detach(), normalised.detach(), loss.detach(), rows.grad / ranks, numbers.grad / ranks]


def collectives_alone(ranks: int) -> list[list[Tensor]]:
    rows = [torch.arange(1.0, 4.0 + r, dtype=torch.float64).requires_grad_() for r in range(ranks)]
    numbers = torch.tensor([[r, -torch.inf, 2.0 * r] for r in range(ranks)], dtype=torch.float64, requires_grad=True)
    gathered, normalised = torch.cat(rows), numbers[:, [0, 2]].logsumexp(0)
    loss = sum((r + 1) * ((gathered**2).sum() + normalised.sum()) for r in range(ranks))
    loss.backward()
    whole = torch.stack([normalised[0], torch.tensor(-torch.inf, dtype=torch.float64), normalised[1]]).detach()
    return [[gathered.detach(), whole, loss.detach(), rows[r].grad, numbers.grad[r]] for r in range(ranks)]


def mixed(rows: Tensor, scale: Tensor) -> Tensor:
    """A loss in which every row meets every other one."""
    return (torch.tanh(rows @ rows.T) * scale).sum()


def linear_case(total: int, part: slice) -> tuple[Tensor, Tensor]:
    """Rows of this part made by a weight that all ranks share, and that weight."""
    generator = torch.Generator().manual_seed(total)
    features = torch.randn(total, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    return features[part] @ weight, weight


def opened(folder: Path) -> tuple[RankedDataset, RankingObjective, Relation]:
    dataset = RankedDataset.open(folder / "data", cache_dir=folder / "cache", progress=False)
    encoder = clip()
    model = BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema, None, {"title": 0.25, "image": 0.75}))
    relation = Relations(dataset, weight_function("linear"), "dataset").of(dataset.splits.training_pairs()[:17])
    return dataset, RankingObjective(model, target="full", temperature=0.1), relation


def loss_and_gradients(
    module: torch.nn.Module, objective: RankingObjective, dataset: RankedDataset, relation: Relation, case: tuple
) -> dict[str, Tensor]:
    """One step of this rank's share; the gradients are what an optimizer would get."""
    objective.target, objective.combine, objective.recompute = case
    module.zero_grad()
    batch: dict[str, Any] = {"relation": relation_tensors(relation)}
    for name, side, rows in (("queries", "query", relation.queries), ("documents", "document", relation.documents)):
        inputs = inputs_for(objective.model, getattr(dataset, name), side)  # type: ignore[arg-type]
        inputs.chunk_rows = 3
        batch[name] = inputs.of(rows[slice_of_rank(len(rows), rank(), world_size())])
    loss = module(**batch)["loss"]
    loss.backward()
    found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def alone(dataset: RankedDataset) -> Relation:
    """The relation of one pair: fewer queries and documents than ranks."""
    pair = dataset.splits.training_pairs()[:1]
    return Relations(dataset, weight_function("linear"), "dataset").of(pair)


def work(this_rank: int, ranks: int, folder: str) -> None:
    """What one rank does; its findings go to a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    place = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet{ranks}", rank=this_rank, world_size=ranks)
    try:
        found: dict[str, Any] = {}
        for total in TOTALS:
            part = slice_of_rank(total, this_rank, ranks)
            rows, weight = linear_case(total, part)
            scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
            gathered = gather_rows(rows, total)
            loss = mixed(gathered, scale)
            loss.backward()
            for gradient in (weight.grad, scale.grad):
                dist.all_reduce(gradient)
            found[f"rows{total}"] = [gathered.detach(), loss.detach(), weight.grad / ranks, scale.grad / ranks]
        with pytest.raises(ValueError, match=f"rank {this_rank} holds 9 rows; of 7 it should hold"):
            gather_rows(torch.zeros(9, 2), 7)
        found["collectives"] = collectives(this_rank, ranks)
        found["exact"], found["single"] = exact_steps(), single_steps()
        dataset, objective, relation = opened(place)
        module = DistributedDataParallel(objective, find_unused_parameters=True)
        for case in CASES:
            found[str(case)] = loss_and_gradients(module, objective, dataset, relation, case)
        found["one pair"] = loss_and_gradients(module, objective, dataset, alone(dataset), CASES[2])
        order = np.random.default_rng(0).permutation(len(dataset.documents))[:13]
        found["encoded"] = torch.from_numpy(encode(objective.model, dataset.documents, "document", order, batch_size=4))
        torch.save(found, place / f"ranks{ranks}-{this_rank}.pt")
    finally:
        dist.destroy_process_group()


def assert_same_steps(results: list[dict[str, Any]], name: str, expected: dict, tolerance: float) -> None:
    for result in results:
        assert result[name].keys() == expected.keys()
        for case, single in expected.items():
            assert result[name][case].keys() == single.keys()
            for part, value in single.items():
                torch.testing.assert_close(
                    result[name][case][part],
                    value,
                    rtol=tolerance,
                    atol=tolerance * max(1.0, float(value.abs().max())),
                    msg=lambda text, where=(case, part): f"{where}: {text}",
                )


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_are_one_process_with_the_whole_batch(ranks: int, tmp_path: Path) -> None:
    ranked(tmp_path / "data")
    multiprocessing.set_forkserver_preload([__name__])  # imported once for all processes
    torch.multiprocessing.start_processes(work, (ranks, str(tmp_path)), nprocs=ranks, start_method="forkserver")
    results = [torch.load(tmp_path / f"ranks{ranks}-{r}.pt", weights_only=True) for r in range(ranks)]
    for total in TOTALS:
        rows, weight = linear_case(total, slice(None))
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        loss = mixed(rows, scale)
        loss.backward()
        for result in results:
            expected = [rows.detach(), loss.detach(), weight.grad, scale.grad]
            for one, other in zip(result[f"rows{total}"], expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for result, expected in zip(results, collectives_alone(ranks), strict=True):
        for one, other in zip(result["collectives"], expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert_same_steps(results, "exact", exact_steps(), 1e-10)
    assert_same_steps(results, "single", single_steps(), 1e-5)
    dataset, objective, relation = opened(tmp_path)
    expected = {str(case): loss_and_gradients(objective, objective, dataset, relation, case) for case in CASES}
    expected["one pair"] = loss_and_gradients(objective, objective, dataset, alone(dataset), CASES[2])
    for name, single in expected.items():
        assert len(single) > 30
        assert single["log_logit_scale"].abs() > 1e-7 or name == "one pair"
        for result in results:
            assert set(result[name]) >= set(single)
            for parameter, value in single.items():
                torch.testing.assert_close(
                    result[name][parameter], value, rtol=1e-4, atol=1e-6, msg=lambda t, p=(name, parameter): f"{p}: {t}"
                )
    order = np.random.default_rng(0).permutation(len(dataset.documents))[:13]
    vectors = torch.from_numpy(encode(objective.model, dataset.documents, "document", order))
    for result in results:
        torch.testing.assert_close(result["encoded"], vectors, rtol=0, atol=2e-6)


STEPS_UNTIL_DEATH = textwrap.dedent(
    """
    import os, signal, sys, time
    import torch
    from opengcl.distributed import join_ranks, rank, sizes_of_ranks
    from opengcl.log_normalisers import Pairs
    from opengcl.loss import Terms
    from opengcl.sharded_loss import sharded_loss

    torch.set_num_threads(1)
    join_ranks(cpu=True)
    rows, sizes, diagonal = torch.eye(8)[sizes_of_ranks(8)[0] * rank() :][:4], [4, 4], torch.arange(8)
    terms = Terms(Pairs(diagonal, diagonal), torch.ones(8), Pairs(diagonal[:0], diagonal[:0]))
    for step in range(1_000_000):
        if step == 3 and rank() == 1:
            open(sys.argv[1], "w").write(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        scale = torch.tensor(5.0, requires_grad=True)
        sharded_loss(
            rows, rows, scale, terms, "diagonal", "both", query_sizes=sizes, document_sizes=sizes
        ).backward()
    """
)


@pytest.mark.parametrize("torchrun", [True, False])
def test_a_dead_rank_ends_the_others_with_a_message(torchrun: bool, tmp_path: Path) -> None:
    script, died = tmp_path / "steps.py", tmp_path / "died"
    script.write_text(STEPS_UNTIL_DEATH, encoding="utf-8")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    if torchrun:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        commands = [([sys.executable, *launcher, str(script), str(died)], environment)]
        message = r"Signal 9 \(SIGKILL\) received by PID"
    else:  # as on two machines, where no one process watches all ranks
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        commands = [
            ([sys.executable, str(script), str(died)], {**environment, **meeting, "RANK": r, "LOCAL_RANK": r})
            for r in "01"
        ]
        message = "Connection (closed by peer|reset by peer)|Broken pipe"
    started = [
        subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for command, variables in commands
    ]
    _, told = started[0].communicate(timeout=240)
    seconds = time.time() - float(died.read_text(encoding="utf-8"))
    assert started[0].returncode > 0
    assert re.search(message, told), told
    assert seconds < 60
    for process in started[1:]:
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
