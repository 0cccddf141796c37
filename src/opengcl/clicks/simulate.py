"""Interaction logs where the truth is known: a mediocre ranker shows lists to a user with position bias.

For trying out settings before they meet a real log, and for benchmarks. By default the user follows the position-based
model (`opengcl.clicks.model`); another can be given, to see what a log of his does to the scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float
from numpy.random import Generator, default_rng

from opengcl.clicks.model import Cells
from opengcl.data import RankedDataset
from opengcl.metrics import relevance as relevance_of

Events = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(sessions, depth) each: place of the document shown among the candidates, whether clicked, whether bought."""


@dataclasses.dataclass(frozen=True)
class Simulation:
    """The shop, its ranker and its user. Relevance rel is the true score over the data set's highest, in [0, 1]."""

    sessions: int = 400_000
    """Result lists shown, over all queries; a list is ``depth`` impressions."""
    popularity: float = 1.2
    """Standard deviation of a query's log share of the sessions (log-normal); 0: all queries alike."""
    depth: int = 20
    """Positions shown in a list."""
    distractors: int = 60
    """Random unjudged documents, rel 0, that the ranker has for each query beside the judged ones."""
    ranker_noise: float = 0.7
    session_noise: float = 0.3
    """Standard deviations, in units of rel, of the ranker's error about a pair: the same in all sessions, and new in
    each, so that a document is seen at several positions."""
    eta: float = 1.0
    """Steepness of the position bias: theta_k = (1 / k)^eta."""
    click_floor: float = 0.05
    click_ceiling: float = 0.8
    click_gamma: float = 1.0
    """P(click | examined) = floor + (ceiling - floor) rel^gamma."""
    purchase_ceiling: float = 0.3
    purchase_gamma: float = 2.0
    """P(purchase | click) = ceiling rel^gamma."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: Naming the setting, what was found and what is allowed.
        """
        bounds = {"click_floor": (0, self.click_ceiling), "click_ceiling": (0, 1), "purchase_ceiling": (0, 1)}
        for name, value in dataclasses.asdict(self).items():
            low, high = bounds.get(name, (1 if name in ("sessions", "depth") else 0, np.inf))
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; allowed: {low} to {high}")

    def examination(self, depth: int) -> Float[np.ndarray, " depth"]:
        """Theta of the first positions."""
        return (1.0 / np.arange(1, depth + 1)) ** self.eta

    def attractiveness(self, relevance: np.ndarray) -> np.ndarray:
        """P(click | examined) of each relevance."""
        return self.click_floor + (self.click_ceiling - self.click_floor) * relevance**self.click_gamma


class Log(NamedTuple):
    """An aggregated log: a cell for each (query, document, position) that was shown, query by query."""

    query: Cells  # row in the data set's queries
    document: Cells  # row in its documents
    position: Cells  # 1 is the top
    impressions: Cells  # at least 1
    clicks: Cells
    purchases: Cells


User = Callable[[Float[np.ndarray, "sessions depth"], Simulation, Generator], Bool[np.ndarray, "sessions depth"]]
"""What is clicked, given the attractiveness of what each list shows."""


def position_based(attractiveness: np.ndarray, settings: Simulation, rng: Generator) -> np.ndarray:
    """A user who looks at position k with probability theta_k, whatever else is shown."""
    return rng.random(attractiveness.shape) < settings.examination(attractiveness.shape[1]) * attractiveness


def simulate(dataset: RankedDataset, settings: Simulation, seed: int) -> Log:
    """A log over the seen queries that have a judged seen document, and over seen documents only."""
    queries = dataset.splits.query_rows("in_domain")
    rng = default_rng([seed, 0])
    popularity = np.exp(settings.popularity * rng.standard_normal(len(queries)))
    sessions = rng.multinomial(settings.sessions, popularity / popularity.sum())
    parts = []
    for query, count in zip(queries.tolist(), sessions.tolist(), strict=True):
        rng = default_rng([seed, 1, query])
        documents, relevance = candidates(dataset, query, settings.distractors, rng)
        place, *counts = count_events(sample_events(relevance, count, settings, rng))
        parts.append(np.stack([np.full(len(place), query), documents[place], *counts]))
    return Log(*np.concatenate(parts, axis=1).astype(np.int32))


def candidates(dataset: RankedDataset, query: int, distractors: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and relevance in [0, 1] of the seen documents that the ranker has for a query, judged ones first."""
    judged, score = dataset.qrels.judged(query)
    seen = dataset.splits.document_seen[judged]
    judged, score = judged[seen], score[seen]
    half = dataset.splits.document_rows("in_domain")
    drawn = rng.choice(half, min(len(half), distractors + len(judged)), replace=False)
    others = drawn[~np.isin(drawn, judged)][:distractors]
    relevance = np.concatenate([relevance_of(score) / dataset.schema.score_max, np.zeros(len(others))])
    return np.concatenate([judged, others]), relevance


def sample_events(
    relevance: Float[np.ndarray, " candidates"],
    sessions: int,
    settings: Simulation,
    rng: Generator,
    user: User = position_based,
) -> Events:
    """Sessions of one query, event by event; its candidates have these relevances."""
    opinion = relevance + settings.ranker_noise * rng.standard_normal(len(relevance))
    moved = opinion + settings.session_noise * rng.standard_normal((sessions, len(opinion)))
    shown = np.argsort(-moved, axis=1)[:, : settings.depth]
    attractiveness = settings.attractiveness(relevance)
    purchase = settings.purchase_ceiling * relevance**settings.purchase_gamma
    clicked = user(attractiveness[shown], settings, rng)
    return shown, clicked, clicked & (rng.random(shown.shape) < purchase[shown])


def count_events(events: Events) -> tuple[Cells, Cells, Cells, Cells, Cells]:
    """Adds events up: document's place, position, impressions, clicks and purchases of each cell that was shown."""
    shown, clicked, bought = events
    depth = shown.shape[1]
    cell = shown * depth + np.arange(depth)
    size = cell.max(initial=0) + 1
    counts = [np.bincount(one, minlength=size) for one in (cell.ravel(), cell[clicked], cell[bought])]
    found = np.flatnonzero(counts[0])
    impressions, clicks, purchases = (count[found] for count in counts)
    return found // depth, found % depth + 1, impressions, clicks, purchases


def event_table(events: Events, query: str, documents: Sequence[str], first_session: int = 0) -> pa.Table:
    """One query's events as rows of a log: ``session``, ``query``, ``doc_id``, ``event`` and ``position``.

    Args:
        events: As `sample_events` gives them.
        query: The query's text.
        documents: Ids of the candidates.
        first_session: Number of the first list; each has a session of its own.
    """
    shown, clicked, bought = events
    ids = np.asarray(documents)
    parts = []
    for name, happened in (("impression", np.ones_like(clicked)), ("click", clicked), ("purchase", bought)):
        session, place = np.nonzero(happened)
        columns = {
            "session": pa.array(np.char.add("s", (session + first_session).astype(str))),
            "query": pa.repeat(query, len(session)),
            "doc_id": pa.array(ids[shown[session, place]]),
            "event": pa.repeat(name, len(session)),
            "position": pa.array(place + 1, pa.int32()),
        }
        parts.append(
            pa.table(
                {
                    column: values.cast(pa.string()) if column != "position" else values
                    for column, values in columns.items()
                }
            )
        )
    return pa.concat_tables(parts)
