"""Which judged pairs make a batch, and what the data set knows about the batch's queries and documents.

A batch is a pure function of (seed, epoch, number), so a resumed run, and every rank, sees the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from opengcl.data import RankedDataset
from opengcl.weights import Scaling, WeightFunction, pair_weights

_NO_PAIR = (
    "there is no training pair: no seen query is judged for a seen document with a score above 0 (0 or below means "
    "judged not relevant)"
)
Pairs = Int[np.ndarray, " pairs"]
Shuffle = Callable[[np.random.Generator], Pairs]


class Batches(Protocol):
    """An epoch's batches of judged pairs."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def pairs(self, epoch: int, number: int) -> Pairs:
        """Positions in the qrels of batch ``number`` of ``epoch``."""
        ...


class ShuffledBatches:
    """Every training pair once an epoch, in a new random order; the rest that fills no batch is left for the next."""

    def __init__(self, pairs: Pairs, batch_size: int, seed: int) -> None:
        self._order = _EpochOrder(pairs, batch_size, seed)

    def __len__(self) -> int:
        return len(self._order)

    def pairs(self, epoch: int, number: int) -> Pairs:
        """Positions in the qrels of batch ``number`` of ``epoch``."""
        return self._order.batch(epoch, number)


class GroupedBatches:
    """``docs_per_query`` judged documents of each query come together, as list objectives want.

    Each epoch a query's pairs are shuffled and cut into groups, and the groups are shuffled; a query's last group may
    be smaller, so a batch may begin or end inside a group.
    """

    def __init__(
        self, pairs: Pairs, queries: Int[np.ndarray, " pairs"], batch_size: int, group: int, seed: int
    ) -> None:
        if not 1 <= group <= batch_size:
            raise ValueError(f"docs_per_query is {group}; it must lie between 1 and the batch size, {batch_size}")
        self._queries, self._group = queries, group
        self._order = _EpochOrder(pairs, batch_size, seed, self._shuffle)

    def __len__(self) -> int:
        return len(self._order)

    def pairs(self, epoch: int, number: int) -> Pairs:
        """Positions in the qrels of batch ``number`` of ``epoch``."""
        return self._order.batch(epoch, number)

    def _shuffle(self, generator: np.random.Generator) -> Pairs:
        order = np.lexsort((generator.random(len(self._queries)), self._queries))
        query = self._queries[order]
        starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
        within = np.arange(len(query)) - np.repeat(starts, np.diff(np.r_[starts, len(query)]))
        group = np.cumsum((within % self._group) == 0) - 1
        return order[np.argsort(generator.permutation(group[-1] + 1)[group], kind="stable")]


class DocumentBatches:
    """Documents are drawn, and each comes with ``queries_per_doc`` of the queries it is judged for.

    Drawn pair by pair, a document that is judged for a hundred queries comes a hundred times as often as one that is
    judged for one. Here it comes as often as the other, or n^exponent times as often with n times as many judgements;
    it is encoded once a batch, and serves several queries. The exponent goes straight from ``exponents[0]`` at the
    start to ``exponents[1]`` after ``epochs``, and stays there.

    A batch has ``batch_size // queries_per_doc`` documents, and fewer pairs where documents have fewer judgements. An
    epoch has as many batches as pairs would fill; drawn evenly, every document comes once before any comes again.
    """

    def __init__(
        self,
        pairs: Pairs,
        documents: Int[np.ndarray, " pairs"],
        batch_size: int,
        queries_per_doc: int,
        seed: int,
        exponents: tuple[float, float] = (0.0, 0.0),
        epochs: float = 1.0,
    ) -> None:
        if not 1 <= queries_per_doc <= batch_size:
            raise ValueError(
                f"queries_per_doc is {queries_per_doc}; it must lie between 1 and the batch size, {batch_size}"
            )
        if len(pairs) == 0:
            raise ValueError(_NO_PAIR)
        by_document = np.argsort(documents, kind="stable")
        self._pairs = pairs[by_document]
        _, self._starts, self._counts = np.unique(documents[by_document], return_index=True, return_counts=True)
        self._drawn = min(max(1, batch_size // queries_per_doc), len(self._starts))
        self._batches = max(1, len(pairs) // batch_size)
        self._queries_per_doc, self._seed, self._exponents, self._epochs = queries_per_doc, seed, exponents, epochs
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._batches

    def pairs(self, epoch: int, number: int) -> Pairs:
        """Positions in the qrels of batch ``number`` of ``epoch``."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of an epoch of {len(self)}")
        if epoch != self._epoch:
            self._order, self._epoch = self._shuffled(epoch), epoch
        # A document may come twice: where one order ends and the next begins, or by the exponent. It counts once.
        drawn = np.unique(self._order[number * self._drawn : (number + 1) * self._drawn])
        places = _ranges(self._starts[drawn], self._starts[drawn] + self._counts[drawn])
        owner = np.repeat(np.arange(len(drawn)), self._counts[drawn])
        chance = np.random.default_rng([self._seed, epoch, number]).random(len(places))
        shuffled = np.argsort(owner + chance)
        first = np.cumsum(self._counts[drawn]) - self._counts[drawn]
        kept = np.arange(len(places)) - first[owner] < self._queries_per_doc
        return self._pairs[places[shuffled[kept]]]

    def _shuffled(self, epoch: int) -> Int[np.ndarray, " drawn"]:
        """Documents in the order in which the epoch draws them."""
        generator, documents = np.random.default_rng([self._seed, epoch]), len(self._starts)
        draws = len(self) * self._drawn
        if not any(self._exponents):  # whole random orders, one after the other
            return np.concatenate([generator.permutation(documents) for _ in range(-(-draws // documents))])
        counts, kind, kinds = np.unique(self._counts, return_inverse=True, return_counts=True)
        time = (epoch + (np.arange(_PARTS) + 0.5) / _PARTS) / self._epochs
        exponent = np.interp(time, (0, 1), self._exponents)
        share = counts.astype(np.float64) ** exponent[:, None]  # (parts of the epoch, different counts)
        share /= (share @ kinds)[:, None]
        # Right in the mean, and no further from it than to the next whole number.
        times = np.floor(draws * share.mean(axis=0)[kind] + generator.random(documents)).astype(np.int64)
        order = np.repeat(np.arange(documents), times)
        order = order[np.argsort(_moments(share, kind[order], generator))]
        missing = generator.choice(documents, max(0, draws - len(order)), p=share[-1, kind])
        return np.concatenate([order[:draws], missing])


_PARTS = 16
"""Of an epoch, each with one exponent."""


def _moments(
    share: Float[np.ndarray, "parts kinds"], kind: Int[np.ndarray, " draws"], generator: np.random.Generator
) -> Float[np.ndarray, " draws"]:
    """When each draw comes, in [0, parts]: the more often its kind comes in a part, the likelier there."""
    until = np.cumsum(share, axis=0) / share.sum(axis=0)
    # One search for all kinds: the steps of kind k lie in (k, k + 1].
    steps = (until.T + np.arange(share.shape[1])[:, None]).ravel()
    part = np.searchsorted(steps, kind + generator.random(len(kind)), side="right") - kind * len(share)
    return np.clip(part, 0, len(share) - 1) + generator.random(len(kind))


class _EpochOrder:
    """Cuts an epoch's order into batches and keeps the last order it made."""

    def __init__(self, pairs: Pairs, batch_size: int, seed: int, shuffle: Shuffle | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if len(pairs) == 0:
            raise ValueError(_NO_PAIR)
        self._pairs, self._batch_size, self._seed = pairs, min(batch_size, len(pairs)), seed
        self._shuffle: Shuffle = shuffle or (lambda generator: generator.permutation(len(pairs)))
        self._epoch, self._order = -1, pairs

    def __len__(self) -> int:
        return len(self._pairs) // self._batch_size

    def batch(self, epoch: int, number: int) -> Pairs:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of an epoch of {len(self)}")
        if epoch != self._epoch:
            self._order = self._pairs[self._shuffle(np.random.default_rng([self._seed, epoch]))]
            self._epoch = epoch
        return self._order[number * self._batch_size : (number + 1) * self._batch_size]


@dataclass(frozen=True)
class Relation:
    """What is known about a batch: its distinct queries and documents, its pairs, and every judged pair among them.

    A pair judged with a score of 0 or below is among the judged ones, with weight 0 and not relevant. A relevant one
    may have weight 0 too, where the weight function says so.
    """

    queries: Int[np.ndarray, " m"]  # rows of the data set's queries, ascending
    documents: Int[np.ndarray, " n"]  # rows of the data set's documents, ascending
    pair_query: Int[np.ndarray, " pairs"]  # index into ``queries``
    pair_document: Int[np.ndarray, " pairs"]  # index into ``documents``
    pair_weight: Float[np.ndarray, " pairs"]
    judged_query: Int[np.ndarray, " judged"]  # index into ``queries``, ascending
    judged_document: Int[np.ndarray, " judged"]
    judged_weight: Float[np.ndarray, " judged"]
    judged_relevant: Bool[np.ndarray, " judged"] | None = None  # None: all of them


class Relations:
    """Looks up what the training half of the qrels says about a batch, and weighs it."""

    def __init__(self, dataset: RankedDataset, weights: WeightFunction, scaling: Scaling) -> None:
        self._qrels, self._seen = dataset.qrels, dataset.splits.document_seen
        self._weights, self._scaling = weights, scaling
        self._range = (dataset.schema.score_min, dataset.schema.score_max)
        self._place = np.full(len(dataset.documents), -1, dtype=np.int32)

    def of(self, pairs: Pairs) -> Relation:
        """The relation of a batch of training pairs (positions in the qrels)."""
        qrels = self._qrels
        queries, pair_query = np.unique(qrels.query[pairs], return_inverse=True)
        documents, pair_document = np.unique(qrels.document[pairs], return_inverse=True)
        positions = _ranges(qrels.offsets[queries], qrels.offsets[queries + 1])
        positions = positions[self._seen[qrels.document[positions]]]  # novel documents are not ours to know
        owner = qrels.query[positions]
        low, high = self._range
        score = qrels.score[positions]
        weight = pair_weights(score, owner, self._weights, by=self._scaling, low=low, high=high).astype(np.float32)
        place = self._places(documents, qrels.document[positions])
        inside = place >= 0
        return Relation(
            queries=queries,
            documents=documents,
            pair_query=pair_query,
            pair_document=pair_document,
            pair_weight=weight[np.searchsorted(positions, pairs)],
            judged_query=np.searchsorted(queries, owner[inside]),
            judged_document=place[inside].astype(np.int64),
            judged_weight=weight[inside],
            judged_relevant=score[inside] > 0,
        )

    def _places(self, documents: Int[np.ndarray, " n"], asked: Int[np.ndarray, " asked"]) -> Int[np.ndarray, " asked"]:
        """Index of each asked document in ``documents``, or -1."""
        self._place[documents] = np.arange(len(documents))
        places = self._place[asked]
        self._place[documents] = -1
        return places


def _ranges(starts: Int[np.ndarray, " m"], stops: Int[np.ndarray, " m"]) -> Int[np.ndarray, " total"]:
    """``concatenate([arange(a, b) for a, b in zip(starts, stops)])`` without the loop."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
