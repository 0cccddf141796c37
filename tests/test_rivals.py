"""The losses that others published: against loops that read as their formulas, and against sentence-transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from benchmarks.ranking import rivals
from sentence_transformers.cross_encoder.losses import LambdaLoss, ListNetLoss
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss
from torch import Tensor, nn
from torch.nn import functional

from opengcl.objective import Known


class Case(NamedTuple):
    """A batch for a loss, and the same as plain numbers for its oracle."""

    queries: Tensor
    documents: Tensor
    known: Known
    scale: Tensor
    z: np.ndarray  # (m, n) logits
    groups: list[dict[int, float]]  # of each query: document -> score
    pairs: list[tuple[int, int, float]]


def relation(queries: int, documents: int, scores: dict[tuple[int, int], float], sampled: list[tuple[int, int]]) -> Any:
    judged = sorted(scores)

    def column(pairs: list[tuple[int, int]], side: int) -> Tensor:
        return torch.tensor([pair[side] for pair in pairs], dtype=torch.long)

    def weight(pairs: list[tuple[int, int]]) -> Tensor:
        return torch.tensor([scores[pair] for pair in pairs], dtype=torch.float32)

    return Known(
        queries,
        documents,
        {
            "pair_query": column(sampled, 0),
            "pair_document": column(sampled, 1),
            "pair_weight": weight(sampled),
            "judged_query": column(judged, 0),
            "judged_document": column(judged, 1),
            "judged_weight": weight(judged),
        },
    )


def case(
    queries: int, documents: int, scores: dict[tuple[int, int], float], sampled: list[tuple[int, int]], seed: int = 0
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    q, d = (
        functional.normalize(torch.randn(rows, 6, generator=generator, dtype=torch.float64), dim=1).requires_grad_()
        for rows in (queries, documents)
    )
    known = relation(queries, documents, scores, sampled)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    groups: list[dict[int, float]] = [{} for _ in range(queries)]
    for i, j, score in zip(known.judged_query, known.judged_document, known.judged_weight.double(), strict=True):
        groups[int(i)][int(j)] = float(score)
    pairs = [(i, j, groups[i][j]) for i, j in sampled]
    z = (scale * q @ d.T).detach().numpy()
    return Case(q, d, known, scale, z, groups, pairs)


def shuffled(seed: int) -> Case:
    """Random pairs: some groups of one, one query judged for every document, judged pairs that were not sampled."""
    generator = np.random.default_rng(seed)
    m, n = 6, 8
    sampled = {(i, int(generator.integers(n))) for i in range(m)} | {
        (int(generator.integers(1, m)), j) for j in range(n)
    }
    sampled -= {(0, j) for j in range(n)}
    sampled |= {(0, 3)}
    extra = {(int(i), int(j)) for i, j in zip(*np.nonzero(generator.random((m, n)) < 0.25), strict=True) if i > 0}
    judged = sampled | extra | {(5, j) for j in range(n)}
    scores = {pair: float(generator.integers(1, 101)) / 100 for pair in sorted(judged)}
    scores[0, 3], scores[sorted(sampled)[-1]] = 0.95, 0.91
    order = sorted(sampled)
    return case(m, n, scores, [order[k] for k in generator.permutation(len(order))], seed)


def grouped(seed: int) -> Case:
    """Three queries with four documents each, one query with one, and a document that two queries share."""
    generator = np.random.default_rng(seed)
    sampled = [(i, 4 * i + k) for i in range(3) for k in range(4)] + [(3, 12)]
    scores = {pair: float(s) / 100 for pair, s in zip(sampled, generator.permutation(100) + 1, strict=False)}
    scores[0, 0], scores[1, 5], scores[1, 0], scores[3, 12] = 1.0, 0.71, 0.33, 0.5
    return case(4, 13, scores, sampled, seed)


def with_zeros(seed: int) -> Case:
    """As `grouped`, and pairs that are judged not relevant: known to a group, never sampled."""
    plain = grouped(seed)
    scores = {(i, j): score for i, group in enumerate(plain.groups) for j, score in group.items()}
    sampled = [(i, j) for i, j, _ in plain.pairs]
    return case(4, 13, {**scores, (0, 6): 0.0, (1, 2): 0.0, (1, 12): 0.0, (2, 3): 0.0}, sampled, seed)


BATCHES = [lambda: shuffled(0), lambda: shuffled(1), lambda: grouped(2), lambda: grouped(3), lambda: with_zeros(4)]


# ---- the formulas as loops ----


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def several(c: Case) -> list[tuple[int, dict[int, float]]]:
    return [(i, group) for i, group in enumerate(c.groups) if len(group) >= 2]


def loop_top_positives(c: Case, positions: int) -> float:
    losses = []
    for i, j, score in c.pairs:
        if round(score * 100) >= 101 - positions:
            losses.append(math.log(sum(math.exp(v) for v in c.z[i])) - c.z[i, j])
            losses.append(math.log(sum(math.exp(v) for v in c.z[:, j])) - c.z[i, j])
    return mean(losses)


def loop_cosent(c: Case) -> float:
    total = 1.0
    for i, j, higher in c.pairs:
        for k, h, lower in c.pairs:
            if higher > lower:
                total += math.exp(c.z[k, h] - c.z[i, j])
    return math.log(total)


def loop_kl(c: Case, temperature: float) -> float:
    losses = []
    for i, group in several(c):
        wanted = softmax([s / temperature for s in group.values()])
        found = softmax([c.z[i, j] for j in group])
        losses.append(sum(w * math.log(w / f) for w, f in zip(wanted, found, strict=True)))
    return mean(losses)


def loop_list_net(c: Case, temperature: float) -> float:
    losses = []
    for i, group in several(c):
        wanted = softmax([s / temperature for s in group.values()])
        found = softmax([c.z[i, j] for j in group])
        losses.append(-sum(w * math.log(f) for w, f in zip(wanted, found, strict=True)))
    return mean(losses)


def loop_m3_kd(c: Case, temperature: float) -> float:
    losses = []
    for i, group in enumerate(c.groups):
        order = sorted(group, key=lambda j, group=group: (-group[j], j))
        wanted = softmax([group[j] / temperature for j in order])
        left, loss = set(range(c.z.shape[1])), 0.0
        for j, share in zip(order, wanted, strict=True):
            loss += share * (math.log(sum(math.exp(c.z[i, k]) for k in left)) - c.z[i, j])
            left.remove(j)
        losses.append(loss)
    return mean(losses)


def discount(rank: int) -> float:
    return math.log2(1 + rank)


def best_dcg(group: dict[int, float], top_grade: float) -> float:
    return sum((2 ** (top_grade * s) - 1) / discount(r) for r, s in enumerate(sorted(group.values(), reverse=True), 1))


def loop_lambda(c: Case, mu: float, top_grade: float) -> float:
    losses = []
    for i, group in several(c):
        rank = {j: r for r, j in enumerate(sorted(group, key=lambda j, i=i: -c.z[i, j]), 1)}
        gain = {j: (2 ** (top_grade * s) - 1) / best_dcg(group, top_grade) for j, s in group.items()}
        for a in group:
            for b in group:
                if group[a] > group[b]:
                    apart = abs(rank[a] - rank[b])
                    delta = abs(1 / discount(apart) - 1 / discount(apart + 1))
                    rho = abs(1 / discount(rank[a]) - 1 / discount(rank[b]))
                    weight = (mu * delta + rho) * abs(gain[a] - gain[b])
                    losses.append(weight * math.log2(1 + math.exp(c.z[i, b] - c.z[i, a])))
    return mean(losses)


def loop_approx_ndcg(c: Case, alpha: float, top_grade: float) -> float:
    losses = []
    for i, group in several(c):
        dcg = 0.0
        for j, s in group.items():
            rank = 1 + sum(1 / (1 + math.exp(alpha * (c.z[i, j] - c.z[i, k]))) for k in group if k != j)
            dcg += (2 ** (top_grade * s) - 1) / math.log2(1 + rank)
        losses.append(1 - dcg / best_dcg(group, top_grade))
    return mean(losses)


def loop_rince(c: Case, form: str, ratio: float) -> float:
    starts = [91, 71, 41, 1]  # the lowest score of the positions 1-10, 11-30, 31-60, 61-100
    losses = []
    for level, lowest in enumerate(starts):
        sharp = 1 / (1 + (ratio - 1) * level / 3)
        terms = []
        for i, group in enumerate(c.groups):
            points = {j: round(100 * s) for j, s in group.items()}
            above = [j for j in group if points[j] >= lowest]
            members = [j for j in above if level == 0 or points[j] < starts[level - 1]]
            below = sum(math.exp(sharp * c.z[i, j]) for j in range(c.z.shape[1]) if j not in above)
            own = [math.exp(sharp * c.z[i, j]) for j in members]
            if form == "out" or (form == "out_in" and level == 0):
                terms += [-math.log(e / (e + below)) for e in own]
            elif own:
                terms.append(-math.log(sum(own) / (sum(own) + below)))
        if terms:
            losses.append(mean(terms))
    return mean(losses)


def loop_margin_mse(c: Case, margin: float) -> float:
    errors = []
    for i, group in several(c):
        higher = [(a, b) for a in group for b in group if group[a] > group[b]]
        errors += [(c.z[i, a] - c.z[i, b] - margin * (group[a] - group[b])) ** 2 for a, b in higher]
    return mean(errors)


def loop_soft_targets(c: Case, temperature: float) -> float:
    m, n = c.z.shape
    label = [[c.groups[i].get(j, 0.0) / temperature for j in range(n)] for i in range(m)]
    by_row, by_column = [], []
    for i in range(m):
        wanted, found = softmax(label[i]), softmax(list(c.z[i]))
        by_row.append(-sum(w * math.log(f) for w, f in zip(wanted, found, strict=True)))
    for j in range(n):
        if any(j in group for group in c.groups):
            wanted, found = softmax([label[i][j] for i in range(m)]), softmax(list(c.z[:, j]))
            by_column.append(-sum(w * math.log(f) for w, f in zip(wanted, found, strict=True)))
    return (mean(by_row) + mean(by_column)) / 2


def loop_bixse(c: Case, documents: int) -> float:
    losses = []
    for i in range(c.z.shape[0]):
        for j in range(c.z.shape[1]):
            p, s = 1 / (1 + (documents - 1) * math.exp(-c.z[i, j])), c.groups[i].get(j, 0.0)
            losses.append(-s * math.log(p) - (1 - s) * math.log(1 - p))
    return mean(losses)


def square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def loop_wasserstein(c: Case, temperature: float, block: int) -> float:
    """With whole covariance matrices and their roots."""
    n = c.z.shape[1]
    x = np.array([softmax(list(row)) for row in c.z])
    y = np.array([softmax([group.get(j, 0.0) / temperature for j in range(n)]) for group in c.groups])
    blocks, distances = math.ceil(len(x) / block), []
    for k in range(blocks):
        one, other = x[k::blocks], y[k::blocks]
        cov_one, cov_other = np.cov(one.T), np.cov(other.T)
        root = square_root(cov_one)
        spread = np.trace(cov_one + cov_other - 2 * square_root(root @ cov_other @ root))
        distances.append(float(np.sum((one.mean(0) - other.mean(0)) ** 2) + spread))
    return mean(distances)


Oracle = Callable[[Case], float]
LOSSES: dict[str, tuple[Callable[[], nn.Module], Oracle]] = {
    "top 10": (lambda: rivals.InfoNCETopPositives(10), lambda c: loop_top_positives(c, 10)),
    "top 30": (lambda: rivals.InfoNCETopPositives(30), lambda c: loop_top_positives(c, 30)),
    "CoSENT": (rivals.CoSENT, loop_cosent),
    "GroupKL": (rivals.GroupKL, lambda c: loop_kl(c, 0.2)),
    "GroupKL 0.05": (lambda: rivals.GroupKL(0.05), lambda c: loop_kl(c, 0.05)),
    "M3KD": (rivals.M3KD, lambda c: loop_m3_kd(c, 0.2)),
    "ListNet": (rivals.ListNet, lambda c: loop_list_net(c, 0.25)),
    "LambdaRankLoss": (rivals.LambdaRankLoss, lambda c: loop_lambda(c, 10.0, 1.0)),
    "LambdaRankLoss 4": (lambda: rivals.LambdaRankLoss(2.0, 4.0), lambda c: loop_lambda(c, 2.0, 4.0)),
    "ApproxNDCG": (rivals.ApproxNDCG, lambda c: loop_approx_ndcg(c, 1.0, 1.0)),
    "ApproxNDCG 4": (lambda: rivals.ApproxNDCG(3.0, 4.0), lambda c: loop_approx_ndcg(c, 3.0, 4.0)),
    "RINCE out": (rivals.RINCE, lambda c: loop_rince(c, "out", 6.0)),
    "RINCE in": (lambda: rivals.RINCE(form="in"), lambda c: loop_rince(c, "in", 6.0)),
    "RINCE out_in": (
        lambda: rivals.RINCE(form="out_in", temperature_ratio=2.0),
        lambda c: loop_rince(c, "out_in", 2.0),
    ),
    "MarginMSE": (rivals.MarginMSE, lambda c: loop_margin_mse(c, 10.0)),
    "SoftTargetCLIP": (rivals.SoftTargetCLIP, lambda c: loop_soft_targets(c, 0.1)),
    "BiXSE": (lambda: rivals.BiXSE(13), lambda c: loop_bixse(c, 13)),
    "SyCLWasserstein": (rivals.SyCLWasserstein, lambda c: loop_wasserstein(c, 1 / 3, 64)),
    "SyCLWasserstein blocks": (lambda: rivals.SyCLWasserstein(0.1, 3), lambda c: loop_wasserstein(c, 0.1, 3)),
}


def gradients(module: nn.Module, c: Case) -> tuple[Tensor, list[Tensor]]:
    loss = module(c.queries, c.documents, c.known, c.scale)
    assert loss.shape == ()
    inputs = [c.queries, c.documents, c.scale, *module.parameters()]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    assert all(gradient is not None for gradient in found)
    return loss, list(found)


@pytest.mark.parametrize("batch", range(len(BATCHES)))
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_what_loops_give(name: str, batch: int) -> None:
    module, oracle = LOSSES[name]
    c = BATCHES[batch]()
    assert min(map(len, c.groups)) == 1  # a query with one judged document is in each
    loss, found = gradients(module().double(), c)
    # scores reach the loss through float32: 1e-7 of them
    assert loss.item() == pytest.approx(oracle(c), rel=2e-6, abs=1e-9)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    assert all(gradient.abs().max() > 0 for gradient in found)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_slope(name: str) -> None:
    c, module = grouped(4), LOSSES[name][0]().double()

    def loss(queries: Tensor, documents: Tensor, scale: Tensor) -> Tensor:
        # unit rows stay unit rows: CoSENT's cosine and the others' product then agree off the sphere too
        unit = (functional.normalize(side, dim=1) for side in (queries, documents))
        return module(*unit, c.known, scale)

    assert torch.autograd.gradcheck(loss, (c.queries, c.documents, c.scale), atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_gives_the_same_to_its_precision(name: str) -> None:
    c = shuffled(0)
    module = LOSSES[name][0]()
    exact = module.double()(c.queries, c.documents, c.known, c.scale)
    rough = module.float()(c.queries.float(), c.documents.float(), c.known, c.scale.float())
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_descent_ranks_documents_by_score(name: str) -> None:
    """Two queries, three documents each; all vectors are free."""
    scores = {(0, 0): 0.3, (0, 1): 0.95, (0, 2): 0.7, (1, 3): 0.65, (1, 4): 0.2, (1, 5): 1.0}
    c = case(2, 6, scores, sorted(scores), seed=11)
    module = LOSSES[name][0]().double()
    if isinstance(module, rivals.SyCLWasserstein):  # does not know which row is whose: start in the neighbourhood
        c.queries.data = torch.stack([c.documents[:3].sum(0), c.documents[3:].sum(0)]).detach()
    free = [c.queries, c.documents]
    optimizer = torch.optim.Adam([*free, *module.parameters()], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        module(*(functional.normalize(side, dim=1) for side in free), c.known, c.scale.detach()).backward()
        optimizer.step()
    similarity = functional.normalize(c.queries, dim=1) @ functional.normalize(c.documents, dim=1).T
    for i, group in enumerate(c.groups):
        wanted = sorted(group, key=lambda j, group=group: -group[j])
        found = sorted(group, key=lambda j, i=i: -similarity[i, j].item())
        if isinstance(module, rivals.InfoNCETopPositives):  # the others are negatives alike
            wanted, found = wanted[:1], found[:1]
        assert found == wanted


def test_the_wasserstein_distance_does_not_know_whose_row_is_whose() -> None:
    """Queries exchanged among themselves: the distance of the published loss is between sets of rows."""
    c, loss = grouped(2), rivals.SyCLWasserstein()
    exchanged = loss(c.queries.flip(0), c.documents, c.known, c.scale)
    torch.testing.assert_close(exchanged, loss(c.queries, c.documents, c.known, c.scale))


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_judged_pair_teaches_nothing(name: str) -> None:
    c = case(3, 4, {}, [])
    loss, found = gradients(LOSSES[name][0]().double(), c)
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in found)


@pytest.mark.parametrize(
    "name", ["top 10", "CoSENT", "GroupKL", "ListNet", "LambdaRankLoss", "ApproxNDCG", "MarginMSE"]
)
def test_single_low_documents_teach_nothing(name: str) -> None:
    """No pair at the top, no query with two documents, and all scores equal."""
    pairs = [(0, 0), (1, 1), (2, 2)]
    c = case(3, 4, dict.fromkeys(pairs, 0.05), pairs)
    loss, found = gradients(LOSSES[name][0]().double(), c)
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in found)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_scores_and_equal_vectors_have_finite_gradients(name: str) -> None:
    """Ties everywhere, as at the start of a collapsed encoder."""
    pairs = [(i, j) for i in range(2) for j in range(3)]
    c = case(2, 3, {pair: 0.5 + 0.1 * (pair[0] == 1) for pair in pairs}, pairs)
    same = c._replace(
        queries=torch.ones_like(c.queries).div(6**0.5).requires_grad_(),
        documents=torch.ones_like(c.documents).div(6**0.5).requires_grad_(),
    )
    loss, found = gradients(LOSSES[name][0]().double(), same)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("name", LOSSES)
def test_the_ends_of_the_scale_are_finite_in_float32(name: str, scale: float) -> None:
    c = shuffled(1)
    single = c._replace(
        queries=c.queries.detach().float().requires_grad_(),
        documents=c.documents.detach().float().requires_grad_(),
        scale=torch.tensor(scale, requires_grad=True),
    )
    loss, found = gradients(LOSSES[name][0](), single)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in found)


# ---- against sentence-transformers ----


class GivenLogits:
    """Stands where those losses want a cross-encoder: its 'texts' are the numbers of logits."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def preprocess(self, pairs: list[tuple[int, int]], **_: Any) -> dict[str, Tensor]:
        return {"pairs": torch.tensor(pairs)}

    def __call__(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": self.logits[tokens["pairs"][:, 0], tokens["pairs"][:, 1]]}


def list_input(c: Case) -> tuple[Tensor, list[list[Any]], list[Tensor]]:
    """Logits, and queries with several documents as a list loss of the library wants them."""
    logits = c.scale * c.queries @ c.documents.T
    kept = several(c)
    inputs = [[i for i, _ in kept], [list(group) for _, group in kept]]
    return logits, inputs, [torch.tensor(list(group.values()), dtype=torch.float64) for _, group in kept]


def assert_same_gradients(ours: Tensor, theirs: Tensor, c: Case, tolerance: float = 1e-5) -> None:
    """The library works in float32."""
    assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
    inputs = [c.queries, c.documents, c.scale]
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_list_net_is_the_librarys(batch: int) -> None:
    c = BATCHES[batch]()
    logits, inputs, labels = list_input(c)
    theirs = ListNetLoss(GivenLogits(logits))(inputs, labels)
    ours = rivals.ListNet(label_temperature=1.0)(c.queries, c.documents, c.known, c.scale)
    assert_same_gradients(ours, theirs, c)


@pytest.mark.parametrize("top_grade", [1.0, 4.0])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_lambda_loss_is_the_librarys(batch: int, top_grade: float) -> None:
    c = BATCHES[batch]()
    logits, inputs, labels = list_input(c)
    theirs = LambdaLoss(GivenLogits(logits))(inputs, [top_grade * label for label in labels])
    ours = rivals.LambdaRankLoss(top_grade=top_grade)(c.queries, c.documents, c.known, c.scale)
    assert_same_gradients(ours, theirs, c)


def test_margin_mse_is_the_librarys_on_the_same_triples() -> None:
    c = shuffled(0)
    triples = [(i, a, b) for i, g in several(c) for a in g for b in g if g[a] > g[b]]
    query, better, worse = (torch.tensor(column) for column in zip(*triples, strict=True))
    margins = torch.tensor([10 * (c.groups[i][a] - c.groups[i][b]) for i, a, b in triples], dtype=torch.float64)
    embeddings = [c.scale * c.queries[query], c.documents[better], c.documents[worse]]
    theirs = MarginMSELoss(None).compute_loss_from_embeddings(embeddings, margins)
    assert_same_gradients(rivals.MarginMSE(10.0)(c.queries, c.documents, c.known, c.scale), theirs, c)


def test_group_kl_is_the_librarys_without_its_factor() -> None:
    """On groups of one size, which the library needs."""
    scores = {(i, 3 * i + k): s for i, row in enumerate([(0.9, 0.2, 0.5), (0.1, 1.0, 0.7)]) for k, s in enumerate(row)}
    c = case(2, 6, scores, sorted(scores))
    columns = [c.documents[k::3] for k in range(3)]
    labels = torch.tensor([[scores[i, 3 * i + k] for k in range(3)] for i in range(2)], dtype=torch.float64)
    library = DistillKLDivLoss(None, student_temperature=1 / c.scale.item(), teacher_temperature=0.2)
    theirs = library.compute_loss_from_embeddings([c.queries, *columns], labels) * c.scale.item() ** 2
    ours = rivals.GroupKL(0.2)(c.queries, c.documents, c.known, c.scale)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for one, other in zip(
        torch.autograd.grad(ours, [c.queries, c.documents]),
        torch.autograd.grad(theirs, [c.queries, c.documents]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


# ---- closed forms and equalities between them ----


def test_list_net_and_group_kl_have_one_gradient() -> None:
    c = shuffled(1)
    found = [gradients(loss(0.15), c)[1] for loss in (rivals.GroupKL, rivals.ListNet)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_top_positives_on_a_diagonal_are_clip() -> None:
    pairs = [(i, i) for i in range(5)]
    c = case(5, 5, dict.fromkeys(pairs, 1.0), pairs)
    logits, target = c.scale * c.queries @ c.documents.T, torch.arange(5)
    clip = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    ours = rivals.InfoNCETopPositives(1)(c.queries, c.documents, c.known, c.scale)
    assert ours.item() == pytest.approx(clip.item(), rel=1e-12)


def test_positions_are_the_last_that_count() -> None:
    """Every whole score, as float32 makes it, is on its side of the threshold."""
    pairs = [(i, i) for i in range(100)]
    c = case(100, 100, {(i, i): (100 - i) / 100 for i in range(100)}, pairs)
    for positions in range(1, 101):
        ours = rivals.InfoNCETopPositives(positions)(c.queries, c.documents, c.known, c.scale)
        logits = c.scale * c.queries @ c.documents.T
        by_row, by_column = (matrix.log_softmax(1).diagonal()[:positions].mean() for matrix in (logits, logits.T))
        assert ours.item() == pytest.approx(-(by_row + by_column).item() / 2, rel=1e-10)


def test_m3_kd_of_single_documents_is_info_nce_of_the_query() -> None:
    pairs = [(i, i) for i in range(4)]
    c = case(4, 6, {(i, i): 0.1 + 0.2 * i for i in range(4)}, pairs)
    expected = functional.cross_entropy((c.scale * c.queries @ c.documents.T), torch.arange(4))
    ours = rivals.M3KD()(c.queries, c.documents, c.known, c.scale)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)


def test_forms_of_rince_agree_on_one_document_a_level() -> None:
    scores = {(0, 0): 1.0, (0, 1): 0.9, (0, 2): 0.7, (0, 3): 0.4, (1, 4): 0.91, (1, 5): 0.41}
    c = case(2, 8, scores, sorted(scores))
    found = {
        rivals.RINCE(form=form)(c.queries, c.documents, c.known, c.scale).item() for form in ("out", "in", "out_in")
    }
    assert max(found) == pytest.approx(min(found), rel=1e-12)


def test_rince_with_one_level_and_one_document_is_info_nce() -> None:
    pairs = [(i, i) for i in range(4)]
    c = case(4, 6, {(i, i): 0.1 + 0.2 * i for i in range(4)}, pairs)
    expected = functional.cross_entropy((c.scale * c.queries @ c.documents.T), torch.arange(4))
    ours = rivals.RINCE(last_positions=(100,))(c.queries, c.documents, c.known, c.scale)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)


def test_equal_vectors_have_the_entropy_of_the_batch() -> None:
    c = grouped(5)
    same = [torch.ones_like(side) / 6**0.5 for side in (c.queries, c.documents)]
    soft = rivals.SoftTargetCLIP()(*same, c.known, c.scale)
    assert soft.item() == pytest.approx((math.log(4) + math.log(13)) / 2, rel=1e-12)
    ranked = rivals.ListNet()(*same, c.known, c.scale)
    sizes = [len(group) for _, group in several(c)]
    assert ranked.item() == pytest.approx(mean([math.log(size) for size in sizes]), rel=1e-12)


def test_the_distance_of_equal_distributions_is_zero() -> None:
    """Orthogonal documents and queries that give the wanted logits exactly."""
    scores = {(0, 0): 0.9, (0, 1): 0.3, (1, 2): 0.6, (1, 3): 1.0}
    known = relation(2, 4, scores, sorted(scores))
    queries = torch.zeros(2, 4, dtype=torch.float64)
    queries[known.judged_query, known.judged_document] = known.judged_weight.double() / 0.5
    loss = rivals.SyCLWasserstein(0.5)(queries, torch.eye(4, dtype=torch.float64), known, torch.tensor(1.0))
    assert loss.item() == pytest.approx(0.0, abs=1e-12)


def test_the_bias_starts_at_the_odds_of_one_document() -> None:
    assert rivals.BiXSE(101).bias.item() == pytest.approx(-math.log(100))
    assert [name for name, _ in rivals.BiXSE().named_parameters()] == ["bias"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rivals.InfoNCETopPositives(0), "positions is 0"),
        (lambda: rivals.GroupKL(0.0), r"label_temperature is 0\.0"),
        (lambda: rivals.M3KD(-1.0), r"label_temperature is -1\.0"),
        (lambda: rivals.ListNet(math.inf), "label_temperature is inf"),
        (lambda: rivals.LambdaRankLoss(top_grade=0.0), "top_grade"),
        (lambda: rivals.ApproxNDCG(alpha=math.nan), "alpha is nan"),
        (lambda: rivals.RINCE((30, 10)), r"last_positions is \(30, 10\)"),
        (lambda: rivals.RINCE(()), "not empty"),
        (lambda: rivals.RINCE(temperature_ratio=0.5), "at least 1"),
        (lambda: rivals.RINCE(form="uni"), "out, in, out_in"),
        (lambda: rivals.MarginMSE(0.0), "margin"),
        (lambda: rivals.SoftTargetCLIP(0.0), "label_temperature"),
        (lambda: rivals.BiXSE(1), "documents is 1"),
        (lambda: rivals.SyCLWasserstein(block_queries=1), "block_queries is 1"),
    ],
)
def test_a_setting_out_of_range_is_named(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
