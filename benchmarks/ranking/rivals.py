"""Graded and list-wise losses that others published, each as a module with one signature.

    forward(queries, documents, known, scale) -> 0-d tensor

- ``queries`` (m, d) and ``documents`` (n, d): unit rows, the batch's distinct queries and documents.
- ``known``: the batch's relation, ``opengcl.objective.Known``. Weights are ``score / 100`` in (0, 1], as the weight
  function ``linear`` makes them, and 0 where a pair is judged not relevant; below, "score" means this number s.
  ``grade`` is s times a constant, where a paper's labels are grades.
- ``scale``: ``1 / temperature`` of the similarities, 0-d, learnable. Logits are ``z_ij = scale * q_i . d_j``.

"Group of a query" means its judged documents in the batch: those sampled for it and those sampled for another query but
judged for it as well. Temperatures of labels are in units of s: ``label_temperature=0.2`` is 20 points of a score
of 1 to 100. A batch that holds nothing for a loss to learn from gives 0 with zero gradients.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from torch import Tensor, nn
from torch.nn import functional

from opengcl.loss import gcl_loss
from opengcl.objective import Known

TOP_SCORE = 100  # of position 1; position p has score 101 - p
_ROUNDING = 1e-3  # of a score in float32, in points


class InfoNCETopPositives(nn.Module):
    r"""InfoNCE in both directions where only the top of each result list is positive.

    With P the sampled pairs at positions 1 to ``positions``:

        L = - 1/(2|P|) sum_{(i,j) in P} [log exp(z_ij) / sum_k exp(z_ik) + log exp(z_ij) / sum_k exp(z_kj)]

    The usual way to train on graded data: a threshold makes it binary (van den Oord et al. 2018, arXiv 1807.03748;
    both directions as in CLIP, Radford et al. 2021, arXiv 2103.00020). Sampled pairs below the threshold are no
    anchors, but their queries and documents stay in the denominators. So do the other positives of the same query, as
    in plain InfoNCE. Unlike CLIP's batch of pairs, a document that two pairs share is in a denominator once.

    Args:
        positions: The last position that counts as positive, 1 to 100.
    """

    def __init__(self, positions: int = 10) -> None:
        super().__init__()
        if not 1 <= positions <= TOP_SCORE:
            raise ValueError(f"positions is {positions}; it must lie between 1 and {TOP_SCORE}")
        self.positions = positions

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in nats; 0 if no sampled pair is at the top."""
        positive = _position(known.pair_weight) <= self.positions + _ROUNDING
        if not bool(positive.any()):
            return _nothing(queries, documents, scale)
        index = torch.stack([known.pair_query[positive], known.pair_document[positive]])
        ones = torch.ones(index.shape[1], dtype=queries.dtype, device=queries.device)
        shape = (len(queries), len(documents))
        weights = torch.sparse_coo_tensor(index, ones, shape, check_invariants=False)
        return gcl_loss(queries, documents, weights, scale, target="full")


class CoSENT(nn.Module):
    r"""CoSENT over the sampled pairs, computed by sentence-transformers.

        L = log(1 + sum_{s_a > s_b} exp(z_b - z_a)),  a and b any two sampled pairs

    Source: Huang et al. 2024, IEEE/ACM TASLP (doi 10.1109/TASLP.2024.3402087). It compares pairs of different
    queries too: every score means the same for all queries. The library's scale is a constant (20); here it learns.
    """

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in nats; 0 if all sampled pairs have one score."""
        if len(known.pair_weight) == 0 or bool((known.pair_weight == known.pair_weight[0]).all()):
            return _nothing(queries, documents, scale)
        embeddings = [queries[known.pair_query], documents[known.pair_document]]
        return CoSENTLoss(None, scale=scale).compute_loss_from_embeddings(embeddings, known.pair_weight)


class GroupKL(nn.Module):
    r"""Distillation of the scores within each query's group.

        L = mean_i KL( softmax_{j in G_i}(s_ij / T) || softmax_{j in G_i}(z_ij) )

    G_i is the group of query i and T the ``label_temperature``; queries with fewer than two documents leave the mean.
    Source: Lin et al. 2020, arXiv 2010.11386, as sentence-transformers' ``DistillKLDivLoss``, whose factor
    ``(1 / scale)^2`` we leave out: with a learnable scale it would reward a large one. Nothing outside the group is a
    negative. It differs from `ListNet` by the labels' entropy alone: at one temperature the gradients are equal.

    Args:
        label_temperature: T, in units of s.
    """

    def __init__(self, label_temperature: float = 0.2) -> None:
        super().__init__()
        self.label_temperature = _positive("label_temperature", label_temperature)

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in nats; 0 if no query has two documents."""
        lists = _lists(_judged_logits(queries, documents, known, scale), known, least=2)
        if len(lists.logits) == 0:
            return _nothing(queries, documents, scale)
        target = _label_log_softmax(lists, self.label_temperature)
        student = _log_softmax(lists.logits, lists.present)
        return (target.exp() * lists.present * (target - student)).sum(1).mean()


class M3KD(nn.Module):
    r"""The ``m3_kd_loss`` of FlagEmbedding: distillation in the group with all documents of the batch as negatives.

        L = mean_i sum_k t_ik * ( log sum_{j not in {g_i1, ..., g_i,k-1}} exp(z_ij) - z_i,g_ik )

    g_i1, g_i2, ... is the group of query i in its order, and t_i the softmax of s_i / T over it. The k-th term leaves
    the group's *earlier* documents out of its denominator; the later ones and all other documents stay in.
    Source: FlagEmbedding's ``AbsEmbedderModel.distill_loss`` (the trainer of BGE-M3, Chen et al. 2024,
    arXiv 2402.03216). There a group is one positive and then negatives as drawn; here the order is by descending
    score. Groups differ in size; one of a single document makes an InfoNCE term whatever its score, since its softmax
    is 1. One direction only, as published.

    Args:
        label_temperature: T, in units of s. Published: 1 on a cross-encoder's logits, which span about 10.
    """

    def __init__(self, label_temperature: float = 0.2) -> None:
        super().__init__()
        self.label_temperature = _positive("label_temperature", label_temperature)

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in nats; 0 if nothing is judged."""
        logits = scale * queries @ documents.T
        lists = _by_score(_lists(logits[known.judged_query, known.judged_document], known, least=1))
        if len(lists.logits) == 0:
            return _nothing(queries, documents, scale)
        lowest = torch.finfo(logits.dtype).min  # and not -inf, whose log-sum-exp has no gradient
        outside = _outside_log_sum_exp(logits, known, [1.0])[0][lists.query]
        later = lists.logits.masked_fill(~lists.present, lowest).flip(1).logcumsumexp(1).flip(1)
        surprise = torch.logaddexp(outside[:, None], later) - lists.logits
        target = _label_log_softmax(lists, self.label_temperature).exp()
        return (target * surprise.masked_fill(~lists.present, 0.0)).sum(1).mean()


class ListNet(nn.Module):
    r"""ListNet's top-one cross-entropy within each query's group.

        L = - mean_i sum_{j in G_i} softmax_{G_i}(s_i / T)_j log softmax_{G_i}(z_i)_j

    Source: Cao et al. 2007, ICML (section 4.2, top-one probabilities with exp). Its labels are grades without a
    temperature; T = 1/4 makes grades of 0 to 4 of the scores. sentence-transformers' cross-encoder ``ListNetLoss``
    is the same at T = 1, except that queries with one document, whose loss is 0, stay in its mean.

    Args:
        label_temperature: T, in units of s; ``1 / T`` is the grade of the best score.
    """

    def __init__(self, label_temperature: float = 0.25) -> None:
        super().__init__()
        self.label_temperature = _positive("label_temperature", label_temperature)

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in nats; 0 if no query has two documents."""
        lists = _lists(_judged_logits(queries, documents, known, scale), known, least=2)
        if len(lists.logits) == 0:
            return _nothing(queries, documents, scale)
        target = _label_log_softmax(lists, self.label_temperature).exp() * lists.present
        return -(target * _log_softmax(lists.logits, lists.present)).sum(1).mean()


class LambdaRankLoss(nn.Module):
    r"""LambdaLoss with the weights NDCG-Loss2++ within each query's group.

        L = - mean_{(a,b): s_a > s_b} (mu * delta_ab + rho_ab) |G_a - G_b| log2 sigmoid(z_a - z_b)
        G = (2^grade - 1) / maxDCG,  D(r) = log2(1 + r)
        rho_ab = |1/D(r_a) - 1/D(r_b)|,  delta_ab = 1/D(|r_a - r_b|) - 1/D(|r_a - r_b| + 1)

    r is the rank by the present logits within the group; no gradient flows through it. The mean is over all pairs of
    all queries. Source: Wang et al. 2018, CIKM, equations 16 to 18, with the constants of sentence-transformers'
    cross-encoder ``LambdaLoss``, which takes texts and not logits; ours agrees with it on the same logits. Its sigma
    is ``scale`` here.

    Args:
        mu: Weight of NDCG-Loss2 against LambdaRank.
        top_grade: Grade of the best score. 1 takes s as the label, whose gain is almost linear; 4 the grades of
            learning to rank.
    """

    def __init__(self, mu: float = 10.0, top_grade: float = 1.0) -> None:
        super().__init__()
        self.mu, self.top_grade = mu, _positive("top_grade", top_grade)

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in bits; 0 if no query has two documents of different scores."""
        lists = _lists(_judged_logits(queries, documents, known, scale), known, least=2)
        lists = _sorted(lists, lists.logits.detach())
        better = _better(lists)
        if not bool(better.any()):
            return _nothing(queries, documents, scale)
        gain = _normalised_gain(lists, self.top_grade)
        inverse = _inverse_discount(gain.shape[1] + 1, gain)
        rank = torch.arange(gain.shape[1], device=gain.device)
        apart = (rank[:, None] - rank).abs()
        delta = (inverse[apart - 1] - inverse[apart]).abs()  # the diagonal, where apart is 0, has no pair
        weight = self.mu * delta + (inverse[rank][:, None] - inverse[rank]).abs()
        change = weight * (gain[:, :, None] - gain[:, None, :]).abs()
        margins = lists.logits[:, :, None] - lists.logits[:, None, :]
        return -(change * functional.logsigmoid(margins))[better].mean() / math.log(2)


class ApproxNDCG(nn.Module):
    r"""One minus NDCG with smooth ranks within each query's group.

        L = mean_i [ 1 - (1 / maxDCG_i) sum_{j in G_i} (2^grade_ij - 1) / log2(1 + pi_ij) ]
        pi_ij = 1 + sum_{k in G_i, k != j} sigmoid(alpha * (z_ik - z_ij))

    Source: Qin, Liu and Li 2010, Information Retrieval 13, equations 11 and 27 (the cut-off at k left out). Its alpha
    sharpens the ranks of scores of any range; with unit vectors the product ``alpha * scale`` does.

    Args:
        alpha: Sharpness of the ranks on top of ``scale``.
        top_grade: Grade of the best score, see `LambdaRankLoss`.
    """

    def __init__(self, alpha: float = 1.0, top_grade: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.top_grade = _positive("alpha", alpha), _positive("top_grade", top_grade)

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss, in [0, 1]; 0 if no query has two documents of different scores."""
        lists = _lists(_judged_logits(queries, documents, known, scale), known, least=2)
        if not bool(_better(lists).any()):
            return _nothing(queries, documents, scale)
        above = torch.sigmoid(self.alpha * (lists.logits[:, None, :] - lists.logits[:, :, None]))
        others = lists.present[:, None, :] & ~torch.eye(above.shape[1], dtype=torch.bool, device=above.device)
        rank = 1 + (above * others).sum(2)
        return (1 - (_normalised_gain(lists, self.top_grade) / torch.log2(1 + rank)).sum(1)).mean()


class RINCE(nn.Module):
    r"""Ranking InfoNCE: one InfoNCE per level of relevance, against everything below the level.

    With P_r the documents of level r = 1 ... R of a query, N the documents of the batch that are not judged for it,
    below_r = P_{r+1} + ... + P_R + N, and c_r = tau_1 / tau_r:

        out: l_r = mean_{p in P_r}  log( 1 + sum_{j in below_r} exp(c_r z_j) / exp(c_r z_p) )
        in:  l_r = mean_queries     log( 1 + sum_{j in below_r} exp(c_r z_j) / sum_{p in P_r} exp(c_r z_p) )
        L = mean_r l_r

    ``out`` draws up every document of a level, ``in`` the level as a set; ``out_in`` is ``out`` for the first level
    and ``in`` for the others. Source: Hoffmann et al. 2022, AAAI, arXiv 2201.11736, with the means of their code.
    RINCE-uni is the case of one positive a level, where all forms agree. Temperatures grow linearly from tau_1 =
    ``1 / scale`` to ``temperature_ratio * tau_1``; theirs do with the dissimilarity of a class, from 0.1 to 0.6. The
    negatives are the batch and not a memory bank; an anchor is a query, never a document. Their code drops terms whose
    probability is below 1e-7; we do not. Levels without a document in the batch leave the mean.

    Args:
        last_positions: The last position of each level, ascending; documents beyond the last level are negatives.
        temperature_ratio: tau_R / tau_1, at least 1.
        form: ``out``, ``in`` or ``out_in``.
    """

    def __init__(
        self,
        last_positions: tuple[int, ...] = (10, 30, 60, 100),
        temperature_ratio: float = 6.0,
        form: Literal["out", "in", "out_in"] = "out",
    ) -> None:
        super().__init__()
        if not last_positions or list(last_positions) != sorted(set(last_positions)):
            raise ValueError(f"last_positions is {last_positions}; it must be ascending and not empty")
        if temperature_ratio < 1:
            raise ValueError(f"temperature_ratio is {temperature_ratio}; it must be at least 1")
        if form not in ("out", "in", "out_in"):
            raise ValueError(f"form {form!r} is unknown; use one of out, in, out_in")
        self.last_positions, self.form = last_positions, form
        steps = max(1, len(last_positions) - 1)
        self.sharpness = [1 / (1 + (temperature_ratio - 1) * level / steps) for level in range(len(last_positions))]

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in nats; 0 if nothing is judged within the levels."""
        logits = scale * queries @ documents.T
        lists = _lists(logits[known.judged_query, known.judged_document], known, least=1)
        level = self._levels(lists)
        used = [number for number in range(len(self.last_positions)) if bool((level == number).any())]
        if not used:
            return _nothing(queries, documents, scale)
        outside = _outside_log_sum_exp(logits, known, [self.sharpness[number] for number in used])
        losses = [self._level_loss(lists, level, number, lse) for number, lse in zip(used, outside, strict=True)]
        return torch.stack(losses).mean()

    def _levels(self, lists: _Lists) -> Int64[Tensor, "lists width"]:
        edges = torch.tensor(self.last_positions, device=lists.scores.device) + _ROUNDING
        level = torch.bucketize(_position(lists.scores).to(edges.dtype), edges)
        return level.masked_fill(~lists.present, -1)

    def _level_loss(self, lists: _Lists, level: Tensor, number: int, outside: Tensor) -> Tensor:
        lowest = torch.finfo(lists.logits.dtype).min
        sharp, member = self.sharpness[number] * lists.logits, level == number
        lower = sharp.masked_fill(level <= number, lowest).logsumexp(1)
        below = torch.logaddexp(outside[lists.query], lower)
        if self.form == "out" or (self.form == "out_in" and number == 0):
            return functional.softplus(below[:, None] - sharp)[member].mean()
        together = sharp.masked_fill(~member, lowest).logsumexp(1)
        return functional.softplus(below - together)[member.any(1)].mean()


class MarginMSE(nn.Module):
    r"""Regression of the differences of logits on the differences of scores within each query's group.

        L = mean_{(i; a, b): s_ia > s_ib} ( (z_ia - z_ib) - margin * (s_ia - s_ib) )^2

    The mean is over all such pairs of all queries. Source: Hofstätter et al. 2020, arXiv 2010.02666; the arithmetic of
    sentence-transformers' ``MarginMSELoss`` on the same triples. The paper's student is an unbounded dot product and
    its teacher a cross-encoder whose margins span about 10. Cosines cannot span that, so the student here is ``scale``
    times the cosine: ``margin / scale`` is the difference of cosines between the scores 1 and 0, which can be reached
    while it is at most 2. A learnable scale then fits the unit of the teacher; it cannot shrink the loss by itself.

    Args:
        margin: The teacher's margin between s = 1 and s = 0, in logits.
    """

    def __init__(self, margin: float = 10.0) -> None:
        super().__init__()
        self.margin = _positive("margin", margin)

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in squared logits; 0 if no query has two documents of different scores."""
        lists = _lists(_judged_logits(queries, documents, known, scale), known, least=2)
        better = _better(lists)
        if not bool(better.any()):
            return _nothing(queries, documents, scale)
        residual = lists.logits - self.margin * lists.scores
        return (residual[:, :, None] - residual[:, None, :])[better].square().mean()


class SoftTargetCLIP(nn.Module):
    r"""Cross-entropy with soft targets over the whole batch, in both directions.

        L = - 1/2 [ mean_i sum_j softmax_row(W / T)_ij log softmax_row(z)_ij + the same on columns ]

    W is the matrix of scores, 0 where a pair is not judged, so such pairs keep a target of exp(0). Source: X-CLR, Sobal
    et al. 2024, arXiv 2407.18134, where W are similarities of captions and T is 0.1. The paper has one kind of row
    (images); the second direction is ours, as in CLIP. Queries and documents without a judged pair leave the mean.

    Args:
        label_temperature: T, in units of s.
    """

    def __init__(self, label_temperature: float = 0.1) -> None:
        super().__init__()
        self.label_temperature = _positive("label_temperature", label_temperature)

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in nats; 0 if nothing is judged."""
        if len(known.judged_weight) == 0:
            return _nothing(queries, documents, scale)
        logits = scale * queries @ documents.T
        labels = _score_matrix(known, logits) / self.label_temperature
        row = _share(known.judged_query, known.queries, logits)
        column = _share(known.judged_document, known.documents, logits)
        target = labels.softmax(1).mul_(row[:, None]).add_(labels.softmax(0).mul_(column))
        return (row @ logits.logsumexp(1) + column @ logits.logsumexp(0) - (target * logits).sum()) / 2


class BiXSE(nn.Module):
    r"""Binary cross-entropy with graded targets over every query and document of the batch.

        L = - mean_ij [ s_ij log sigmoid(z_ij + b) + (1 - s_ij) log sigmoid(-z_ij - b) ],  s_ij = 0 if not judged

    Source: Tsirigotis et al. 2025, arXiv 2508.06781: scores as probabilities, other documents of the batch as
    negatives, a learned scale and bias. We could not read how the paper starts b and whether it sums or averages. b
    starts at the log odds of a judged pair among ``documents`` documents, ``-log(documents - 1)``, where the first
    gradients of judged and other pairs balance (the reason for SigLIP's -10, Zhai et al. 2023, arXiv 2303.15343);
    the mean is over all m n pairs. ``bias`` moves in logits, not in weights: give it a learning rate of its own.

    Args:
        documents: Documents of a batch, for the bias to start with; at least 2.

    Attributes:
        bias: b, 0-d, learnable.
    """

    def __init__(self, documents: int = 1000) -> None:
        super().__init__()
        if documents < 2:
            raise ValueError(f"documents is {documents}; it must be at least 2")
        self.bias = nn.Parameter(torch.tensor(-math.log(documents - 1)))

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss in nats; 0 if nothing is judged."""
        if len(known.judged_weight) == 0:
            return _nothing(queries, documents, scale) + 0.0 * self.bias
        logits = scale * queries @ documents.T + self.bias
        chosen = logits[known.judged_query, known.judged_document] @ known.judged_weight.to(logits.dtype)
        # BCE(z, s) = softplus(z) - s z, and s is 0 almost everywhere
        return (functional.softplus(logits).sum() - chosen) / logits.numel()


class SyCLWasserstein(nn.Module):
    r"""Squared 2-Wasserstein distance between the Gaussians of predicted and wanted rows of a batch.

    Rows x_i = softmax_j(z_ij) and y_i = softmax_j(s_ij / T) over the batch's documents, s_ij = 0 where not judged.
    Queries are the sample and documents the dimensions; with means mu and covariances C (unbiased) of the rows

        L = |mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2)

    Source: SyCL, Esfandiarpoor et al. 2025, arXiv 2503.23239, and its code. The last trace is the nuclear norm of
    X Y^T / (m - 1), X and Y the centred rows, so no covariance is ever made. Theirs take 16 queries of 4 documents a
    process; here blocks of at most ``block_queries``, every k-th query, share the batch's documents, and the
    loss is the mean over blocks. Published labels are grades 0 to 3 without a temperature: T = 1/3. Over 1,000
    documents that target is almost flat; 0.1 is as sharp as theirs over 64. Their temperature cannot be learned.
    The distance is between sets of rows: exchanging the predictions of two queries of a block changes nothing. Which
    query a row belongs to comes from the start alone, so the loss wants a model that already matches queries and
    documents roughly, as the pretrained retrievers of the paper do. Whether the paper discusses this we could not
    verify.

    Args:
        label_temperature: T, in units of s.
        block_queries: The most queries of one distribution, at least 2.
    """

    def __init__(self, label_temperature: float = 1 / 3, block_queries: int = 64) -> None:
        super().__init__()
        if block_queries < 2:
            raise ValueError(f"block_queries is {block_queries}; it must be at least 2")
        self.label_temperature = _positive("label_temperature", label_temperature)
        self.block_queries = block_queries

    def forward(
        self, queries: Float[Tensor, "m d"], documents: Float[Tensor, "n d"], known: Known, scale: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The squared distance, in [0, 4]; 0 if nothing is judged."""
        rows = known.judged_query.unique()
        if len(rows) == 0:
            return _nothing(queries, documents, scale)
        predicted = (scale * queries[rows] @ documents.T).softmax(1)
        wanted = (_score_matrix(known, predicted)[rows] / self.label_temperature).softmax(1)
        blocks = math.ceil(len(rows) / self.block_queries)
        losses = [_squared_wasserstein(predicted[block::blocks], wanted[block::blocks]) for block in range(blocks)]
        return torch.stack(losses).mean()


class _Lists(NamedTuple):
    """Queries' groups, padded with zeros to one width."""

    query: Int64[Tensor, " lists"]
    logits: Float[Tensor, "lists width"]
    scores: Float[Tensor, "lists width"]
    present: Bool[Tensor, "lists width"]


def _lists(judged_logits: Tensor, known: Known, *, least: int) -> _Lists:
    """The groups of ``least`` documents and more; ``judged_logits`` are in the order of ``known.judged_query``."""
    size = torch.bincount(known.judged_query, minlength=known.queries)
    query = (size >= least).nonzero()[:, 0]
    place = torch.arange(len(known.judged_query), device=size.device) - (size.cumsum(0) - size)[known.judged_query]
    width = int(size.max()) if len(query) else 0
    index = (known.judged_query, place)

    def padded(values: Tensor) -> Tensor:
        return values.new_zeros(known.queries, int(size.max())).index_put(index, values)[query][:, :width]

    present = torch.arange(width, device=size.device) < size[query, None]
    return _Lists(query, padded(judged_logits), padded(known.judged_weight.to(judged_logits.dtype)), present)


def _sorted(lists: _Lists, key: Tensor) -> _Lists:
    """Each list by descending key, padding last."""
    order = key.masked_fill(~lists.present, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return _Lists(lists.query, lists.logits.gather(1, order), lists.scores.gather(1, order), lists.present)


def _by_score(lists: _Lists) -> _Lists:
    return _sorted(lists, lists.scores)


def _better(lists: _Lists) -> Bool[Tensor, "lists width width"]:
    """Entry (i, a, b): both are documents of list i, and a scores higher than b."""
    both = lists.present[:, :, None] & lists.present[:, None, :]
    return both & (lists.scores[:, :, None] > lists.scores[:, None, :])


def _judged_logits(queries: Tensor, documents: Tensor, known: Known, scale: Tensor) -> Float[Tensor, " judged"]:
    return scale * (queries[known.judged_query] * documents[known.judged_document]).sum(1)


def _log_softmax(values: Tensor, present: Tensor) -> Float[Tensor, "lists width"]:
    """Over what is present, and 0 elsewhere."""
    return values.masked_fill(~present, -torch.inf).log_softmax(1).masked_fill(~present, 0.0)


def _label_log_softmax(lists: _Lists, temperature: float) -> Float[Tensor, "lists width"]:
    return _log_softmax(lists.scores / temperature, lists.present)


def _inverse_discount(ranks: int, like: Tensor) -> Float[Tensor, " ranks"]:
    """``1 / log2(1 + r)`` for r = 1 ... ranks."""
    return 1 / torch.log2(torch.arange(2, ranks + 2, dtype=like.dtype, device=like.device))


def _normalised_gain(lists: _Lists, top_grade: float) -> Float[Tensor, "lists width"]:
    """``(2^grade - 1) / maxDCG``; padding gains nothing."""
    gain = torch.exp2(top_grade * lists.scores) - 1
    best = gain.sort(1, descending=True).values @ _inverse_discount(gain.shape[1], gain)
    return gain / best.clamp_min(torch.finfo(gain.dtype).tiny)[:, None]


def _outside_log_sum_exp(logits: Tensor, known: Known, factors: list[float]) -> list[Float[Tensor, " m"]]:
    """``log sum_j exp(factor * z_ij)`` over the documents that are not judged for query i, for every factor."""
    lowest = logits.new_tensor(torch.finfo(logits.dtype).min)
    outside = logits.index_put((known.judged_query, known.judged_document), lowest)
    return [(factor * outside if factor != 1 else outside).logsumexp(1) for factor in factors]


def _score_matrix(known: Known, like: Tensor) -> Float[Tensor, "m n"]:
    """Dense scores, 0 where a pair is not judged."""
    index = (known.judged_query, known.judged_document)
    matrix = torch.zeros(known.queries, known.documents, dtype=like.dtype, device=like.device)
    return matrix.index_put_(index, known.judged_weight.to(like.dtype))


def _share(index: Tensor, total: int, like: Tensor) -> Float[Tensor, " total"]:
    """``1 / k`` at each of the k numbers below ``total`` that occur in ``index``, 0 at the others."""
    occurs = torch.bincount(index, minlength=total) > 0
    return occurs.to(like.dtype) / occurs.sum()


def _squared_wasserstein(x: Float[Tensor, "b n"], y: Float[Tensor, "b n"]) -> Float[Tensor, ""]:
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred_x, centred_y = x - mean_x, y - mean_y
    cross = (centred_x @ centred_y.T).double()  # its small singular values carry the gradient of rare rows
    overlap = torch.linalg.svdvals(cross).sum().to(x.dtype)
    spread = (centred_x.square().sum() + centred_y.square().sum() - 2 * overlap) / max(1, len(x) - 1)
    return (mean_x - mean_y).square().sum() + spread


def _position(score: Tensor) -> Tensor:
    """Position in the result list, 1 to 100 for whole scores, of ``s = score / 100``."""
    return 1 + TOP_SCORE * (1 - score)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be positive and finite")
    return value


def _nothing(queries: Tensor, documents: Tensor, scale: Tensor) -> Float[Tensor, ""]:
    """0 with zero gradients, so that an optimizer's step finds them."""
    return 0.0 * (queries.sum() + documents.sum() + scale)
