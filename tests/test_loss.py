"""The loss against closed forms, a loop-written oracle, numeric gradients, CLIP's loss, and its memory bound."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from opengcl import log_normalisers
from opengcl.loss import DIRECTIONS, TARGETS, contrastive_loss, gcl_loss

from .reference import loss_loops


def unit(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(
        dtype
    )


def random_judgements(m: int, n: int, seed: int, share: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    judged = torch.rand(m, n, generator=generator) < share
    judged.fill_diagonal_(True)
    weights = torch.rand(m, n, generator=generator, dtype=torch.float64) * judged
    weights[0, min(1, n - 1)] = 0.0  # judged, yet worth nothing
    judged[0, min(1, n - 1)] = True
    return weights, judged


def sparse(weights: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
    index = judged.nonzero().T
    return torch.sparse_coo_tensor(index, weights[judged], weights.shape, check_invariants=True)


def clip_loss(queries: torch.Tensor, documents: torch.Tensor, scale: float) -> torch.Tensor:
    logits = scale * queries @ documents.T
    labels = torch.arange(len(queries))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("constant", [1.0, 0.37])
def test_equal_weights_are_clip(constant: float) -> None:
    queries, documents = unit(33, 8, 0), unit(33, 8, 1)
    loss = gcl_loss(queries, documents, torch.full((33,), constant), 14.0, block_rows=7)
    torch.testing.assert_close(loss, clip_loss(queries, documents, 14.0), rtol=1e-13, atol=0)


# What exp(S) holds in float64 decides which of two ways the normalisers are made, and 500 does not pass.
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("block_rows", "tile"), [(None, None), (1, 5), (4, 12), (100, 200)])
@pytest.mark.parametrize("size", [9.0, 500.0])
def test_matches_the_loops(
    target: str, direction: str, block_rows: int | None, tile: int | None, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tile is not None:  # small tiles, none of them kept
        monkeypatch.setattr(log_normalisers, "CPU_TILE", tile)
        monkeypatch.setattr(log_normalisers, "KEPT_LOGITS", 0)
    m, n = (9, 9) if target in ("diagonal", "masked") else (9, 13)
    weights, judged = random_judgements(m, n, seed=3)
    queries, documents = unit(m, 5, 4).requires_grad_(), unit(n, 5, 5).requires_grad_()
    scale = torch.tensor(size, dtype=torch.float64, requires_grad=True)
    loss = gcl_loss(
        queries, documents, sparse(weights, judged), scale, target=target, direction=direction, block_rows=block_rows
    )
    expected = loss_loops.gcl_loss(queries, documents, weights, scale, judged, target, direction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    inputs = (queries, documents, scale)
    for ours, oracle in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_in_float64(target: str, direction: str) -> None:
    weights, judged = random_judgements(6, 6, seed=8)
    matrix = sparse(weights, judged)
    queries, documents = unit(6, 4, 9).requires_grad_(), unit(6, 4, 10).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, d, s: gcl_loss(q, d, matrix, s, target=target, direction=direction, block_rows=4),
        (queries, documents, scale),
    )


@pytest.mark.parametrize("target", ["full", "full_row", "ranked"])
def test_a_diagonal_matrix_is_the_diagonal_form(target: str) -> None:
    queries, documents = unit(12, 6, 0), unit(12, 6, 1)
    weights = torch.rand(12, dtype=torch.float64) if target == "full" else torch.ones(12, dtype=torch.float64)
    loss = gcl_loss(queries, documents, torch.diag(weights), 20.0, target=target)
    torch.testing.assert_close(loss, gcl_loss(queries, documents, weights, 20.0), rtol=1e-13, atol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_equal_embeddings_give_log_batch(target: str) -> None:
    row = unit(1, 6, 2).expand(10, 6)
    loss = gcl_loss(row, row, torch.diag(torch.rand(10, dtype=torch.float64) + 0.1), 14.0, target=target)
    assert loss.item() == pytest.approx(math.log(10), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(TARGETS), st.floats(1e-6, 1e6), st.integers(2, 12), st.integers(1, 12), st.integers(0, 10_000))
def test_scale_of_weights_block_size_and_order_change_nothing(
    target: str, factor: float, batch: int, block_rows: int, seed: int
) -> None:
    weights, _ = random_judgements(batch, batch, seed)
    queries, documents = unit(batch, 4, seed), unit(batch, 4, seed + 1)
    loss = gcl_loss(queries, documents, weights, 10.0, target=target)
    scaled = gcl_loss(queries, documents, weights * factor, 10.0, target=target, block_rows=block_rows)
    torch.testing.assert_close(scaled, loss, rtol=1e-11, atol=1e-11)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    moved = gcl_loss(queries[order], documents[order], weights[order][:, order], 10.0, target=target)
    torch.testing.assert_close(moved, loss, rtol=1e-11, atol=1e-11)


def test_masked_pairs_do_not_repel() -> None:
    queries, documents = unit(3, 4, 0), unit(3, 4, 1).requires_grad_()
    weights = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    weights[0, 1] = 1.0  # document 1 is judged for query 0
    gcl_loss(queries, documents, weights, 10.0, target="masked", direction="query").backward()
    assert documents.grad[1].abs().max() == 0
    assert documents.grad[2].abs().max() > 0


def test_ranked_documents_do_not_compete_with_better_ones() -> None:
    queries, documents = unit(1, 4, 0), unit(4, 4, 1).requires_grad_()
    best_alone = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    order = sparse(torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([[True, True, True, False]]))

    def gradient(weights: torch.Tensor, target: str) -> torch.Tensor:
        loss = gcl_loss(queries, documents, weights, 10.0, target=target, direction="query")
        return torch.autograd.grad(loss, documents)[0] @ queries[0]

    # Of the three judged documents the best competes with all, the last with the unjudged one alone.
    logits = 10.0 * documents.detach() @ queries[0]
    expected = torch.zeros(4, dtype=torch.float64)
    for first, weight in enumerate((3 / 6, 2 / 6, 1 / 6)):
        expected[first:] += weight * 10.0 * logits[first:].softmax(0)
        expected[first] -= weight * 10.0
    torch.testing.assert_close(gradient(order, "ranked"), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(best_alone, "ranked"), gradient(best_alone, "full_row"), rtol=1e-12, atol=0)


def test_ranked_with_equal_weights_is_full_row() -> None:
    _, judged = random_judgements(7, 9, seed=2)
    queries, documents = unit(7, 5, 0), unit(9, 5, 1)
    weights = sparse(judged.double(), judged)
    losses = [gcl_loss(queries, documents, weights, 12.0, target=target) for target in ("ranked", "full_row")]
    torch.testing.assert_close(*losses, rtol=1e-13, atol=0)


def test_ranked_where_everything_is_judged() -> None:
    """Plackett and Luce's own likelihood: nothing is outside."""
    weights = torch.tensor([[3.0, 1.0, 2.0]])
    queries, documents = unit(1, 4, 0, torch.float32), unit(3, 4, 1, torch.float32).requires_grad_()
    loss = gcl_loss(queries, documents, weights, 10.0, target="ranked", direction="query")
    logits = 10.0 * (documents @ queries[0])[[0, 2, 1]]
    expected = -(torch.tensor([3.0, 2.0, 1.0]) / 6 * (logits - logits.flip(0).logcumsumexp(0).flip(0))).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert bool(documents.grad.isfinite().all())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [14.0, 50.0, 100.0, 300.0])
def test_float32_is_float64_to_its_precision(target: str, size: float) -> None:
    weights, judged = random_judgements(64, 64, seed=1)
    matrix = sparse(weights, judged)
    inputs = unit(64, 16, 0), unit(64, 16, 1), torch.tensor(size, dtype=torch.float64)
    found = []
    for dtype in (torch.float32, torch.float64):
        cast = [part.to(torch.float32).to(dtype).requires_grad_() for part in inputs]
        loss = gcl_loss(cast[0], cast[1], matrix, cast[2], target=target)
        found.append([loss.detach(), *torch.autograd.grad(loss, cast)])
    for single, double in zip(*found, strict=True):
        # A logit of size s is itself off by s * 2^-24.
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=6e-8 * size * float(double.abs().max()))


@pytest.mark.parametrize("size", [1.0, 3.0])
def test_columns_far_below_the_rows_keep_their_precision(size: float) -> None:
    """Logits from -200 to 200: what is nothing beside a row's largest may be all that a column has."""
    logits = 100.0 * torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 3] -= 150.0
    weights = torch.rand(6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    losses = [
        contrastive_loss(
            logits.to(dtype), torch.eye(7, dtype=dtype), weights, size, target="full", direction="both"
        ).double()
        for dtype in (torch.float32, torch.float64)
    ]
    shares = weights / weights.sum()
    by_row, by_column = (-(shares * (size * logits).log_softmax(dim)).sum() for dim in (1, 0))
    torch.testing.assert_close(losses[1], (by_row + by_column) / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kept", "trained", "products"),
    [(True, "qds", 3), (False, "qds", 4), (True, "d", 2), (True, "q", 2), (True, "s", 2), (True, "", 1)],
)
def test_no_product_is_made_for_a_gradient_that_nobody_wants(
    kept: bool, trained: str, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(log_normalisers, "KEPT_LOGITS", 0)
    queries, documents = unit(6, 4, 0), unit(6, 4, 1)
    inputs = dict(zip("qds", (queries, documents, torch.tensor(5.0, dtype=torch.float64)), strict=True))
    for name in trained:
        inputs[name].requires_grad_()
    with Products() as made:
        loss = gcl_loss(inputs["q"], inputs["d"], torch.ones(6), inputs["s"])
        if trained:
            loss.backward()
    assert made.count == products
    assert {name for name, part in inputs.items() if part.grad is not None} == set(trained)


def test_without_gradients_nothing_is_kept() -> None:
    queries, documents = unit(6, 4, 0).requires_grad_(), unit(6, 4, 1)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: saved.append(part.shape), lambda part: part):
        with torch.no_grad():
            gcl_loss(queries, documents, torch.ones(6), 5.0)
        assert not saved
        gcl_loss(queries, documents, torch.ones(6), 5.0)
    assert (6, 6) in saved


@pytest.mark.parametrize("target", TARGETS)
def test_a_second_backward_pass_gives_the_same(target: str) -> None:
    queries, documents = unit(6, 4, 0).requires_grad_(), unit(6, 4, 1).requires_grad_()
    loss = gcl_loss(queries, documents, random_judgements(6, 6, 2)[0], 5.0, target=target)
    first = torch.autograd.grad(3 * loss, (queries, documents), retain_graph=True)
    second = torch.autograd.grad(loss, (queries, documents))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, 3 * other, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    queries, documents = unit(512, 64, 0, dtype), unit(512, 64, 1, dtype)
    exact = gcl_loss(queries.double(), documents.double(), torch.ones(512), 100.0)
    loss = gcl_loss(queries, documents, torch.ones(512), 100.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = gcl_loss(queries.float(), documents.float(), torch.ones(512), 100.0)
    torch.testing.assert_close(under_autocast.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("weights", "target", "message"),
    [
        (torch.ones(3), "diagonal", "got 3 weights, 4 queries, 4 documents"),
        (torch.ones(4), "full", r"shape \(4, 4\); got \(4,\)"),
        (torch.zeros(4), "diagonal", "sum to zero"),
        (torch.tensor([1.0, -1, 1, 1]), "diagonal", "not negative"),
        (torch.tensor([1.0, torch.nan, 1, 1]), "diagonal", "finite"),
        (torch.ones(4), "listwise", "use one of diagonal, masked, full, full_row, ranked"),
    ],
)
def test_bad_input_is_refused(weights: torch.Tensor, target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gcl_loss(unit(4, 3, 0), unit(4, 3, 1), weights, 10.0, target=target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rows_that_are_not_unit_rows_are_refused(dtype: torch.dtype) -> None:
    """Rounding to half precision is no reason; a forgotten normalisation is."""
    for dim in (1, 2, 3, 64, 4096):
        gcl_loss(unit(50, dim, 0, dtype), unit(50, dim, 1, dtype), torch.ones(50), 10.0)
    rows = unit(4, 3, 0, dtype)
    for factor, found in ((5.0, "5"), (0.0, "0"), (torch.nan, "nan")):
        wrong = rows.clone()
        wrong[2] *= factor
        for sides, name in (((wrong, rows), "queries"), ((rows, wrong), "documents")):
            with pytest.raises(ValueError, match=rf"{name} must have unit rows: found row 2 of length {found}.*norm"):
                gcl_loss(*sides, torch.ones(4), 10.0)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(4, 5\)"):
        gcl_loss(unit(4, 3, 0), unit(4, 5, 1), torch.ones(4), 10.0)
    with pytest.raises(ValueError, match="as many queries as documents; got 4 and 5"):
        gcl_loss(unit(4, 3, 0), unit(5, 3, 1), torch.ones(4, 5), 10.0, target="masked")


MEMORY_SCRIPT = textwrap.dedent(
    """
    import resource, sys
    import torch
    from opengcl.loss import gcl_loss

    batch = int(sys.argv[1])
    torch.manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(batch, 512)).requires_grad_()
    documents = torch.nn.functional.normalize(torch.randn(batch, 512)).requires_grad_()
    scale = torch.tensor(14.0, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gcl_loss(queries, documents, torch.ones(batch), scale).backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
)


def extra_memory(batch: int) -> float:
    """Peak memory in bytes that forward and backward add in a fresh process."""
    done = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT, str(batch)], capture_output=True, text=True, check=True)
    return float(done.stdout) * 1024


def test_memory_stays_far_below_the_dense_matrix() -> None:
    batch = 12_288
    dense = 4 * batch * batch
    assert extra_memory(batch) < dense  # a dense implementation needs the matrix at least four times


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_batch_of_65536_trains_in_one_and_a_half_gigabytes() -> None:
    assert extra_memory(65_536) < 1.5e9
