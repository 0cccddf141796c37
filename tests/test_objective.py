"""The objective: combinations against loops, distinct rows against repeated ones, GradCache against plain backward."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from opengcl.batches import Relation, Relations, ShuffledBatches
from opengcl.data import RankedDataset
from opengcl.encode import inputs_for
from opengcl.loss import DIRECTIONS, TARGETS, gcl_loss
from opengcl.model import BiEncoder, FieldEmbeddings, FieldMix
from opengcl.objective import Known, RankingObjective, read_target, relation_tensors
from opengcl.weights import weight_function

from .builders import clip, ranked
from .reference import loss_loops

MIX = FieldMix(
    {"text": 0.75, "photo": 0.25},
    {"title": 0.25, "image": 0.75},
    {"text": "text", "photo": "image"},
    {"title": "text", "image": "image"},
)


class Table(BiEncoder):
    """A bi-encoder whose field embeddings are free parameters in float64, so that losses can be compared exactly."""

    def __init__(self, rows: Mapping[str, int], present: Mapping[str, Tensor], seed: int) -> None:
        super().__init__(nn.Identity(), MIX)
        generator = torch.Generator().manual_seed(seed)
        self.tables = nn.ParameterDict(
            {side: torch.randn(2, rows[side], 5, generator=generator, dtype=torch.float64) for side in rows}
        )
        self.present = present

    def encode_fields(self, inputs: Any, side: Any, *, recompute: bool = False) -> FieldEmbeddings:
        unit = nn.functional.normalize(self.tables[side], dim=-1)
        return FieldEmbeddings(unit * self.present[side][:, :, None], self.present[side])


def random_relation(m: int, n: int, pairs: int, seed: int) -> Relation:
    """A batch of distinct pairs with repeated queries and documents, and more judged pairs.

    Some have weight 0, and some others are judged not relevant.
    """
    generator = np.random.default_rng(seed)
    judged = generator.random((m, n)) < 0.35
    cells = generator.permutation(m * n)[:pairs]
    for row in range(m):
        cells = np.r_[cells, row * n + row % n]  # every query and every document is in some pair
    for column in range(n):
        cells = np.r_[cells, (column % m) * n + column]
    cells = generator.permutation(np.unique(cells))
    pair_query, pair_document = cells // n, cells % n
    judged[pair_query, pair_document] = True
    weight = np.where(generator.random((m, n)) < 0.2, 0.0, generator.random((m, n))).astype(np.float32)
    weight[pair_query[0], pair_document[0]] = 0.5
    irrelevant = judged & (generator.random((m, n)) < 0.3)
    irrelevant[pair_query, pair_document] = False
    weight[irrelevant] = 0.0
    judged_query, judged_document = judged.nonzero()
    return Relation(
        np.arange(m),
        np.arange(n),
        pair_query,
        pair_document,
        weight[pair_query, pair_document],
        judged_query,
        judged_document,
        weight[judged],
        ~irrelevant[judged],
    )


def random_present(rows: int, seed: int, share: float = 0.6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(2, rows, generator=generator) < share
    present[torch.randint(2, (rows,), generator=generator), torch.arange(rows)] = True
    return present


def loop_loss(
    queries: Mapping[int, Tensor],
    documents: Mapping[int, Tensor],
    relation: Relation,
    scale: Any,
    target: str,
    way: str,
) -> Tensor | None:
    """The loss among some queries and documents, by their numbers; None where no pair has weight.

    What is judged not relevant is left out of ``known``: nobody judged it, as far as a target is concerned.
    """
    relevant = relation.judged_relevant
    relevant = np.ones(len(relation.judged_query), bool) if relevant is None else relevant
    judgments = zip(relation.judged_query, relation.judged_document, relation.judged_weight, relevant, strict=True)
    known = {
        (int(i), int(j)): float(w) for i, j, w, kept in judgments if kept and int(i) in queries and int(j) in documents
    }
    pairs = [
        (int(i), int(j))
        for i, j in zip(relation.pair_query, relation.pair_document, strict=True)
        if int(i) in queries and int(j) in documents
    ]
    if target in ("diagonal", "masked"):
        left, right = [i for i, _ in pairs], [j for _, j in pairs]
        weights = torch.diag(torch.tensor([known[pair] for pair in pairs], dtype=torch.float64))
    else:
        left, right = sorted(queries), sorted(documents)
        weights = torch.tensor([[known.get((i, j), 0.0) for j in right] for i in left], dtype=torch.float64)
    if weights.sum() == 0:
        return None
    judged = torch.tensor([[(i, j) in known for j in right] for i in left])
    query, document = torch.stack([queries[i] for i in left]), torch.stack([documents[j] for j in right])
    return loss_loops.gcl_loss(query, document, weights, scale, judged, target, way)


def loop_fused(table: Table, side: str) -> dict[int, Tensor]:
    weights = list(table.mix.weights(side).values())  # type: ignore[arg-type]
    present = table.present[side]
    fused = {}
    for i in range(present.shape[1]):
        there = [f for f in range(2) if present[f, i]]
        mixed = sum(weights[f] * nn.functional.normalize(table.tables[side][f, i], dim=-1) for f in there)
        fused[i] = mixed / mixed.norm()
    return fused


def loop_field(table: Table, side: str, field: int) -> dict[int, Tensor]:
    present = table.present[side][field]
    return {
        i: table.tables[side][field, i] / table.tables[side][field, i].norm() for i in present.nonzero()[:, 0].tolist()
    }


def loop_objective(table: Table, relation: Relation, scale: Tensor, target: str, way: str, combine: str) -> Tensor:
    losses = []
    if combine != "pairwise":
        losses.append(
            loop_loss(loop_fused(table, "query"), loop_fused(table, "document"), relation, scale, target, way)
        )
    if combine != "mean":
        total, mass = torch.zeros(()), 0.0
        for f, query_weight in enumerate(MIX.query.values()):
            for g, document_weight in enumerate(MIX.document.values()):
                sides = loop_field(table, "query", f), loop_field(table, "document", g)
                loss = loop_loss(*sides, relation, scale, target, way)
                if loss is not None:
                    total = total + query_weight * document_weight * loss
                    mass += query_weight * document_weight
        losses.append(total / mass)
    return sum(losses) / len(losses)


def assert_same(found: Tensor, expected: Tensor, module: nn.Module, *, rtol: float, atol: float) -> None:
    """Equal losses, and equal gradients of every parameter."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    parameters = [module.get_parameter(name) for name in names]
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    ours = torch.autograd.grad(found, parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for name, one, other in zip(names, ours, theirs, strict=True):
        zero = torch.zeros_like(module.get_parameter(name))
        one, other = (zero if gradient is None else gradient for gradient in (one, other))
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def assert_is_the_loop(
    m: int, n: int, pairs: int, seed: int, target: str, way: str, combine: str, share: float = 0.6
) -> None:
    relation = random_relation(m, n, pairs, seed)
    present = {"query": random_present(m, seed, share), "document": random_present(n, seed + 1, share)}
    table = Table({"query": m, "document": n}, present, seed)
    objective = RankingObjective(table, target=target, direction=way, combine=combine, temperature=0.1).double()
    found = objective({}, {}, relation_tensors(relation))["loss"]
    expected = loop_objective(table, relation, objective.log_logit_scale.exp(), target, way, combine)
    assert_same(found, expected, objective, rtol=1e-7, atol=1e-9)  # weights are float32


@pytest.mark.parametrize("combine", ["mean", "pairwise", "both"])
@pytest.mark.parametrize("target", TARGETS)
def test_combinations_and_missing_fields_are_what_loops_give(target: str, combine: str) -> None:
    for direction in DIRECTIONS:
        assert_is_the_loop(5, 7, 9, 3, target, direction, combine)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(TARGETS),
    st.sampled_from(["pairwise", "both"]),
    st.integers(2, 5),
    st.integers(2, 5),
    st.floats(0.0, 1.0),
    st.integers(0, 10_000),
)
def test_any_gaps_are_what_loops_give(target: str, combine: str, m: int, n: int, share: float, seed: int) -> None:
    assert_is_the_loop(m, n, 3, seed, target, "both", combine, share)


def test_a_judged_pair_outside_the_batchs_pairs_counts_in_its_field() -> None:
    """Of the rows with a photo and a title, query 1 and document 0 fall out: what is left is judged, not sampled."""
    relation = Relation(
        np.arange(2),
        np.arange(2),
        np.array([0, 1]),
        np.array([0, 1]),
        np.array([0.5, 0.25], dtype=np.float32),
        np.array([0, 0, 1]),
        np.array([0, 1, 1]),
        np.array([0.5, 1.0, 0.25], dtype=np.float32),
    )
    present = {
        "query": torch.tensor([[True, False], [True, True]]),
        "document": torch.tensor([[False, True], [True, True]]),
    }
    table = Table({"query": 2, "document": 2}, present, 0)
    for target in ("full", "full_row"):
        objective = RankingObjective(table, target=target, combine="pairwise").double()
        found = objective({}, {}, relation_tensors(relation))["loss"]
        expected = loop_objective(table, relation, objective.log_logit_scale.exp(), target, "both", "pairwise")
        assert_same(found, expected, objective, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("target", ["full", "full_row"])
def test_full_targets_are_the_loss_on_the_dense_matrix(target: str) -> None:
    relation = random_relation(6, 9, 12, 1)
    present = {"query": random_present(6, 0, 1.0), "document": random_present(9, 0, 1.0)}
    table = Table({"query": 6, "document": 9}, present, 0)
    objective = RankingObjective(table, target=target, temperature=0.2).double()
    dense = torch.zeros(6, 9, dtype=torch.float64)
    dense[relation.judged_query, relation.judged_document] = torch.from_numpy(relation.judged_weight).double()
    sides = [torch.stack(list(loop_fused(table, side).values())) for side in ("query", "document")]
    expected = gcl_loss(*sides, dense, objective.log_logit_scale.exp(), target=target)
    found = objective({}, {}, relation_tensors(relation))["loss"]
    assert_same(found, expected, objective, rtol=1e-9, atol=1e-12)


def test_pairwise_without_any_common_field_is_refused() -> None:
    present = {"query": torch.tensor([[True], [False]]), "document": torch.tensor([[True], [False]])}
    relation = random_relation(1, 1, 1, 0)
    table = Table({"query": 1, "document": 1}, present, 0)
    table.present = {side: torch.zeros(2, 1, dtype=torch.bool) for side in present}
    objective = RankingObjective(table, target="diagonal", combine="pairwise").double()
    with pytest.raises(ValueError, match="no judged pair of the batch has both a query and a document field"):
        objective({}, {}, relation_tensors(relation))


# --- judged not relevant ----------------------------------------------------------------------------------------------


def two_by_three(relevant: bool) -> dict[str, Tensor]:
    """Pairs (0, 0) and (1, 1) are drawn; (0, 2) is judged too, without weight: with a score of 0, or above it."""
    relation = Relation(
        np.arange(2),
        np.arange(3),
        np.array([0, 1]),
        np.array([0, 1]),
        np.array([1.0, 1.0], dtype=np.float32),
        np.array([0, 0, 1]),
        np.array([0, 2, 1]),
        np.array([1.0, 0.0, 1.0], dtype=np.float32),
        np.array([True, relevant, True]),
    )
    return relation_tensors(relation)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_pair_judged_0_stays_in_the_denominators_and_pulls_nobody(target: str, direction: str) -> None:
    """By hand: query 0 has the positive 0 among 0, 1, 2, query 1 the positive 1; so column by column."""
    table = Table(
        {"query": 2, "document": 3}, {"query": torch.ones(2, 2).bool(), "document": torch.ones(2, 3).bool()}, 5
    )
    objective = RankingObjective(table, target=target, direction=direction, temperature=0.1).double()
    found = objective({}, {}, two_by_three(relevant=False))["loss"]
    sides = [torch.stack(list(loop_fused(table, side).values())) for side in ("query", "document")]
    logits = 10 * sides[0] @ sides[1].T
    by_query = (logits.logsumexp(1) - torch.stack([logits[0, 0], logits[1, 1]])).mean()
    if target in ("diagonal", "masked"):  # their batch of pairs has the documents of the drawn pairs alone
        by_query = torch.stack([logits[i, [0, 1]].logsumexp(0) - logits[i, i] for i in (0, 1)]).mean()
    by_document = (logits[:, :2].logsumexp(0) - torch.stack([logits[0, 0], logits[1, 1]])).mean()
    expected = {"query": by_query, "document": by_document, "both": (by_query + by_document) / 2}[direction]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_only_a_pair_judged_0_is_a_negative_where_it_has_no_weight() -> None:
    """`masked` with the pair (0, 1) beside the drawn (0, 0) and (1, 1)."""
    judged = {"query": torch.ones(2, 2).bool(), "document": torch.ones(2, 2).bool()}
    table = Table({"query": 2, "document": 2}, judged, 5)
    objective = RankingObjective(table, target="masked", direction="query", temperature=0.1).double()
    sides = [torch.stack(list(loop_fused(table, side).values())) for side in ("query", "document")]
    logits = 10 * sides[0] @ sides[1].T
    second = logits[1].logsumexp(0) - logits[1, 1]
    for relevant, first in ((False, logits[0].logsumexp(0) - logits[0, 0]), (True, torch.zeros(()))):
        relation = two_by_three(relevant)
        relation |= {"judged_document": torch.tensor([0, 1, 1]), "sizes": torch.tensor([2, 2])}
        expected = (first + second) / 2
        torch.testing.assert_close(objective({}, {}, relation)["loss"], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scaling", ["dataset", "query"])
@pytest.mark.parametrize("weights", ["constant", "exponential:floor=0.1", "piecewise:1=0.5,100=1"])
def test_a_data_set_with_its_zeros_trains_as_one_without_them(weights: str, scaling: str, tmp_path: Path) -> None:
    """Their queries and documents are in both; what is left of the judgments is drawn and weighed alike."""
    graded = ranked(tmp_path / "graded", queries=30, documents=60, judged=20, grades=(-1, 0, 0, 1, 2))
    without = shutil.copytree(graded.path, tmp_path / "without")
    qrels = pq.read_table(without / "qrels.parquet")
    pq.write_table(qrels.filter(pc.greater(qrels["score"], 0)), without / "qrels.parquet")
    other = RankedDataset.open(without, cache_dir=tmp_path / "cache", progress=False)
    batches = [ShuffledBatches(data.splits.training_pairs(), 16, 0) for data in (graded, other)]
    assert len(batches[0]) == len(batches[1]) > 2
    function = weight_function(weights)
    for number in range(2):
        with_zeros, plain = (
            Relations(data, function, scaling).of(drawn.pairs(0, number))  # type: ignore[arg-type]
            for data, drawn in zip((graded, other), batches, strict=True)
        )
        assert not with_zeros.judged_relevant.all()
        assert (with_zeros.judged_weight[~with_zeros.judged_relevant] == 0).all()
        np.testing.assert_array_equal(with_zeros.queries, plain.queries)
        np.testing.assert_array_equal(with_zeros.documents, plain.documents)
        if scaling == "query" and weights != "constant":
            continue  # a query's zeros are its lowest scores, so the others weigh more beside them
        np.testing.assert_array_equal(with_zeros.pair_weight, plain.pair_weight)
        sizes = {"query": len(plain.queries), "document": len(plain.documents)}
        table = Table(sizes, {side: random_present(rows, number) for side, rows in sizes.items()}, number)
        for target in TARGETS:
            objective = RankingObjective(table, target=target, temperature=0.1).double()
            ours, theirs = (objective({}, {}, relation_tensors(one))["loss"] for one in (with_zeros, plain))
            assert_same(ours, theirs, objective, rtol=1e-12, atol=1e-12)


# --- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "clamped"), [(math.log(1000), 100.0), (-1.0, 1.0), (math.log(30), 30.0)])
def test_the_temperature_is_clamped_before_it_is_used(start: float, clamped: float) -> None:
    relation = random_relation(3, 4, 5, 0)
    present = {"query": random_present(3, 0), "document": random_present(4, 0)}
    table = Table({"query": 3, "document": 4}, present, 0)
    objective = RankingObjective(table, target="full").double()
    with torch.no_grad():
        objective.log_logit_scale.fill_(start)
    found = objective({}, {}, relation_tensors(relation))["loss"]
    assert objective.logit_scale == pytest.approx(clamped, rel=1e-12)
    scale = torch.tensor(clamped, dtype=torch.float64)
    expected = loop_objective(table, relation, scale, "full", "both", "mean")
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_the_temperature_learns_only_when_asked() -> None:
    relation = relation_tensors(random_relation(3, 4, 5, 0))
    table = Table({"query": 3, "document": 4}, {"query": random_present(3, 0), "document": random_present(4, 0)}, 0)
    learnt = RankingObjective(table, target="masked", temperature=0.07)
    assert learnt.logit_scale == pytest.approx(1 / 0.07)
    learnt({}, {}, relation)["loss"].backward()
    assert abs(float(learnt.log_logit_scale.grad)) > 1e-6
    fixed = RankingObjective(table, target="masked", learn_temperature=False)
    fixed({}, {}, relation)["loss"].backward()
    assert fixed.log_logit_scale.grad is None


@pytest.mark.parametrize("temperature", [0.0, 0.0099, 1.01, -0.07, math.nan])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    table = Table({"query": 1, "document": 1}, {}, 0)
    with pytest.raises(ValueError, match=r"temperature is .*; it must lie in \[0.01, 1\]"):
        RankingObjective(table, target="full", temperature=temperature)
    with pytest.raises(ValueError, match="combine 'sum' is unknown; use one of mean, pairwise, both"):
        RankingObjective(table, target="full", combine="sum")


# --- with a real encoder ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    return ranked(tmp_path_factory.mktemp("objective") / "data")


def clip_model(dataset: RankedDataset, dropout: float = 0.0) -> BiEncoder:
    encoder = clip(dropout=dropout)
    return BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema, None, {"title": 0.25, "image": 0.75}))


def some_relation(dataset: RankedDataset, pairs: int = 14) -> Relation:
    batch = ShuffledBatches(dataset.splits.training_pairs(), pairs, 0).pairs(0, 0)
    relation = Relations(dataset, weight_function("linear"), "dataset").of(batch)
    assert len(relation.queries) < pairs
    assert len(relation.documents) < pairs  # rows repeat on both sides
    return relation


def batch_of(model: BiEncoder, dataset: RankedDataset, relation: Relation, chunk_rows: int = 256) -> dict[str, Any]:
    sides = {"queries": "query", "documents": "document"}
    rows = {"queries": relation.queries, "documents": relation.documents}
    batch: dict[str, Any] = {"relation": relation_tensors(relation)}
    for name, side in sides.items():
        inputs = inputs_for(model, getattr(dataset, name), side)  # type: ignore[arg-type]
        inputs.chunk_rows = chunk_rows
        batch[name] = inputs.of(rows[name])
    return batch


@pytest.mark.parametrize("target", ["diagonal", "masked"])
def test_distinct_rows_are_every_pair_encoded_by_itself(dataset: RankedDataset, target: str) -> None:
    model, relation = clip_model(dataset), some_relation(dataset)
    objective = RankingObjective(model, target=target, temperature=0.1)
    found = objective(**batch_of(model, dataset, relation))["loss"]
    queries, documents = relation.queries[relation.pair_query], relation.documents[relation.pair_document]
    query = model.fuse(model.encode_fields(inputs_for(model, dataset.queries, "query").of(queries), "query"), "query")
    document = model.fuse(
        model.encode_fields(inputs_for(model, dataset.documents, "document").of(documents), "document"), "document"
    )
    judged = set(zip(relation.judged_query.tolist(), relation.judged_document.tolist(), strict=True))
    matrix = torch.tensor(
        [[(i, j) in judged for j in relation.pair_document.tolist()] for i in relation.pair_query.tolist()]
    )
    assert matrix.sum() > len(matrix)  # something to mask
    weights = torch.diag(torch.from_numpy(relation.pair_weight))
    expected = loss_loops.gcl_loss(query, document, weights, objective.log_logit_scale.exp(), matrix, target, "both")
    assert_same(found, expected, objective, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("combine", ["mean", "both"])
def test_recomputing_changes_neither_loss_nor_gradients(dataset: RankedDataset, combine: str) -> None:
    model, relation = clip_model(dataset, dropout=0.4).train(), some_relation(dataset)
    batch = batch_of(model, dataset, relation, chunk_rows=3)
    assert len(batch["documents"]["image"]["chunks"]) > 2
    losses, states = [], []
    for recompute, seed in ((False, 0), (True, 0), (False, 1)):
        objective = RankingObjective(model, target="full_row", combine=combine, recompute=recompute)
        torch.manual_seed(seed)
        loss = objective(**batch)["loss"]
        loss.backward()
        losses.append(loss.item())
        states.append({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})
        objective.zero_grad()
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert abs(losses[2] - losses[0]) > 1e-4  # dropout was on
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) > 30
    for name, gradient in states[0].items():
        torch.testing.assert_close(states[1][name], gradient, rtol=1e-4, atol=1e-6)
    name = max(states[0], key=lambda key: float(states[0][key].abs().max()))
    assert (states[2][name] - states[0][name]).abs().max() > 1e-3


def saved_bytes(objective: RankingObjective, batch: dict[str, Any]) -> int:
    """Bytes of activations that are kept for the backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        objective(**batch)
    return kept


def test_recomputing_keeps_no_activations(dataset: RankedDataset) -> None:
    model, relation = clip_model(dataset), some_relation(dataset)
    batch = batch_of(model, dataset, relation, chunk_rows=3)
    kept = [
        saved_bytes(RankingObjective(model, target="full_row", recompute=recompute), batch)
        for recompute in (False, True)
    ]
    assert kept[1] < kept[0] / 20


def test_a_field_that_no_row_of_the_batch_has(dataset: RankedDataset) -> None:
    model = clip_model(dataset)
    pairs = dataset.splits.training_pairs()
    titled = dataset.documents.present("title", dataset.qrels.document[pairs])
    relation = Relations(dataset, weight_function("linear"), "dataset").of(pairs[titled][:14])
    batch = batch_of(model, dataset, relation)
    image = batch["documents"]["image"]
    batch["documents"]["image"] = {
        "chunks": [],
        "order": image["order"][:0],
        "present": torch.zeros_like(image["present"]),
    }
    losses = [
        RankingObjective(model, target="masked", combine=combine)(**batch)["loss"] for combine in ("mean", "pairwise")
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-7)  # only titles are left
    losses[0].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_relation_tensors_hold_the_whole_relation(dataset: RankedDataset) -> None:
    relation = some_relation(dataset)
    tensors = relation_tensors(relation)
    assert tensors["sizes"].tolist() == [len(relation.queries), len(relation.documents)]
    for name in ("pair_query", "pair_document", "judged_query", "judged_document"):
        assert tensors[name].dtype == torch.int64
        np.testing.assert_array_equal(tensors[name].numpy(), getattr(relation, name))
    assert tensors["pair_weight"].dtype == tensors["judged_weight"].dtype == torch.float32


@pytest.mark.parametrize("target", ["diagonal", "masked", "full", "full_row"])
@pytest.mark.parametrize("combine", ["mean", "both"])
def test_a_batch_without_weight_teaches_nothing(target: str, combine: str, tmp_path: Path) -> None:
    dataset = ranked(tmp_path / "toy")
    encoder = clip()
    objective = RankingObjective(
        BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema)), target=target, combine=combine
    )
    inputs = [
        inputs_for(objective.model, records, side)
        for records, side in ((dataset.queries, "query"), (dataset.documents, "document"))
    ]
    relation = Relations(dataset, lambda scores: np.zeros_like(scores), "dataset").of(
        dataset.splits.training_pairs()[:8]
    )
    batch = [made.of(rows) for made, rows in zip(inputs, (relation.queries, relation.documents), strict=True)]
    loss = objective(*batch, relation_tensors(relation))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in objective.parameters())


class Scaled(nn.Module):
    """A loss of one's own with a parameter."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.offset = nn.Parameter(torch.tensor(2.0 * factor, dtype=torch.float64))

    def forward(self, queries: Tensor, documents: Tensor, known: Known, logit_scale: Tensor) -> Tensor:
        cosine = queries[known.pair_query] * documents[known.pair_document]
        return self.offset * (known.pair_weight * cosine.sum(1)).sum() / logit_scale.double()


def test_a_loss_of_ones_own_takes_the_place_of_the_target() -> None:
    relation = random_relation(5, 6, 8, seed=0)
    present = {side: torch.ones(2, rows, dtype=torch.bool) for side, rows in (("query", 5), ("document", 6))}
    model = Table({"query": 5, "document": 6}, present, seed=0)
    objective = RankingObjective(model, target=read_target(f"{__name__}:Scaled"), temperature=0.25)
    loss = objective({}, {}, relation_tensors(relation))["loss"]
    query, document = (model.fuse(model.encode_fields({}, side), side).detach() for side in ("query", "document"))
    expected = sum(
        2.0 * float(w) * float(query[i] @ document[j]) * 0.25
        for i, j, w in zip(relation.pair_query, relation.pair_document, relation.pair_weight, strict=True)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    trained = {name for name, parameter in objective.named_parameters() if parameter.grad is not None}
    assert trained == {"target.offset", "log_logit_scale", "model.tables.query", "model.tables.document"}
    assert "target.offset" in objective.state_dict()  # so it is checkpointed


@pytest.mark.parametrize(("written", "factor"), [("", 1.0), (":factor=3", 3), (":factor=0.5", 0.5)])
def test_a_class_gets_the_numbers_after_its_name(written: str, factor: float) -> None:
    made = read_target(f"{__name__}:Scaled{written}")
    assert isinstance(made, Scaled)
    assert made.factor == factor
    assert type(made.factor) is type(factor)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("list", "target 'list' is unknown; use one of diagonal, masked, full, full_row, ranked"),
        ("no_such_module:Loss", "cannot be imported"),
        ("opengcl.loss:no_such_loss", "cannot be imported"),
        ("opengcl.loss:TARGETS", "is a tuple, not a function"),
        ("opengcl.loss:gcl_loss:factor=2", "gcl_loss is no class, so it has no options"),
        (f"{__name__}:Scaled:speed=2", "cannot be made: .*speed"),
        (f"{__name__}:Scaled:factor=fast", "cannot be made: .*fast"),
    ],
)
def test_a_target_that_cannot_be_is_refused(written: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_target(written)


def three(queries: Tensor, _documents: Tensor, _known: Known) -> Tensor:
    return queries.sum()


def keyword(queries: Tensor, _documents: Tensor, _known: Known, *, logit_scale: Tensor) -> Tensor:
    return logit_scale * queries.sum()


class Short(nn.Module):
    def forward(self, queries: Tensor, documents: Tensor) -> Tensor:
        return queries.sum()


class Listed(nn.Module):
    def forward(self, queries: Tensor, documents: Tensor, known: Known, logit_scale: Tensor) -> Tensor:
        return queries.sum(1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three", r"takes \(queries.*required: a call with 4 arguments, \(queries, documents, known, logit_scale\)"),
        ("keyword", "logit_scale.*required: a call with 4 arguments"),
        ("Short", r"takes \(queries.*required: a call with 4 arguments"),
    ],
)
def test_a_target_of_another_signature_is_told_so_when_it_is_made(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_target(f"{__name__}:{name}")
    found = globals()[name]
    table = Table({"query": 1, "document": 1}, {}, 0)
    with pytest.raises(ValueError, match=message):
        RankingObjective(table, target=found() if isinstance(found, type) else found)
    with pytest.raises(ValueError, match="target 'list' is unknown; use one of diagonal"):
        RankingObjective(table, target="list")  # type: ignore[arg-type]


def test_a_target_that_returns_no_number_is_told_so() -> None:
    relation = random_relation(3, 4, 5, 0)
    table = Table({"query": 3, "document": 4}, {"query": random_present(3, 0), "document": random_present(4, 0)}, 0)
    with pytest.raises(ValueError, match=r"the loss of the target returned shape \(3,\); allowed: a 0-d tensor"):
        RankingObjective(table, target=Listed())({}, {}, relation_tensors(relation))
