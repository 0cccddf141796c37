"""Several processes are one with the whole batch: gathered rows, losses and every gradient, over gloo."""

from __future__ import annotations

import multiprocessing
import os
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
from opengcl.distributed import gather_rows, rank, slice_of_rank, world_size
from opengcl.encode import encode, inputs_for
from opengcl.loss import TARGETS
from opengcl.model import BiEncoder, FieldMix
from opengcl.objective import RankingObjective, relation_tensors
from opengcl.weights import weight_function

from .builders import clip, ranked

TOTALS = (7, 4, 1)  # over 2 and 3 ranks: uneven, and fewer rows than ranks
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
        dataset, objective, relation = opened(place)
        wrapped = DistributedDataParallel(objective, find_unused_parameters=True)
        for case in CASES:
            found[str(case)] = loss_and_gradients(wrapped, objective, dataset, relation, case)
        found["one pair"] = loss_and_gradients(wrapped, objective, dataset, alone(dataset), CASES[2])
        order = np.random.default_rng(0).permutation(len(dataset.documents))[:13]
        found["encoded"] = torch.from_numpy(encode(objective.model, dataset.documents, "document", order, batch_size=4))
        torch.save(found, place / f"ranks{ranks}-{this_rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
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
