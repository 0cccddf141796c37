"""Pairs with several scores: which rows of a source hold them, for the message that refuses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from opengcl.data.problems import DataSetError, number_of, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID
from opengcl.sources.source import Source

_ROWS = 5  # of each pair


class Repeated(NamedTuple):
    """A pair with several scores; with the hash of its query's spelling, where these are kept apart."""

    query: str
    document: str
    scores: list[float]
    spelling: int | None


_Key = tuple[str, str, int | None]


class SeveralScoresError(DataSetError):
    """Pairs have several scores, and nothing says which of them counts.

    Attributes:
        count: How many pairs.
        pairs: The first few.
    """

    def __init__(self, count: int, pairs: Sequence[Repeated]) -> None:
        self.count, self.pairs = count, pairs
        super().__init__(_told(count, pairs, {}, {}))

    def placed(self, source: Source, queries: Path, fields: Iterable[str], zero: float) -> DataSetError:
        """The same error with the queries' texts and the rows that hold the scores; the source is read once more.

        Args:
            source: Where the pairs come from.
            queries: The staged table of queries.
            fields: Its text fields.
            zero: What was taken off the scores.
        """
        pairs = [pair._replace(scores=[score + zero for score in pair.scores]) for pair in self.pairs]
        return DataSetError(_told(self.count, pairs, _texts(queries, fields, pairs), _rows(source, pairs)))


def _told(count: int, pairs: Sequence[Repeated], texts: Mapping[str, str], rows: Mapping[_Key, Sequence[str]]) -> str:
    listed = []
    for pair in pairs:
        name = f"{shown(texts[pair.query])} (id {shown(pair.query)})" if pair.query in texts else shown(pair.query)
        places = rows.get((pair.query, pair.document, pair.spelling), ())
        more = f", and {len(places) - _ROWS:,} more rows" if len(places) > _ROWS else ""
        where = f": {', '.join(places[:_ROWS])}{more}" if places else ""
        listed.append(f"query {name} and document {shown(pair.document)} has {shown(pair.scores)}{where}")
    return (
        f"{number_of(count, 'pair')} {'has' if count == 1 else 'have'} several scores: the pair of "
        f"{'; that of '.join(listed)}. Allowed: one score a pair; "
        "--repeated-pairs max, mean or first takes one of them (repeated_pairs)"
    )


def _texts(queries: Path, fields: Iterable[str], pairs: Sequence[Repeated]) -> dict[str, str]:
    """Query id -> what its fields say."""
    wanted = [("query_id", "in", [pair.query for pair in pairs])]
    found = pq.read_table(queries, columns=[QUERY_ID, *fields], filters=wanted).to_pylist()
    return {row.pop(QUERY_ID): " | ".join(str(text) for text in row.values() if text) for row in found}


def _rows(source: Source, pairs: Sequence[Repeated]) -> dict[_Key, list[str]]:
    """Which rows hold each pair, and what they hold."""
    queries, documents = (pa.array([pair[side] for pair in pairs], pa.large_string()) for side in (0, 1))
    found: dict[_Key, list[str]] = {(pair.query, pair.document, pair.spelling): [] for pair in pairs}
    for batch in source.batches(progress=False):
        if batch.side != "qrels":
            continue
        ids = [batch.rows.column(name).cast(pa.large_string()) for name in (QUERY_ID, DOCUMENT_ID)]
        inside = pc.and_(pc.is_in(ids[0], queries), pc.is_in(ids[1], documents))
        raw = batch.rows.column("score") if batch.raw_score is None else batch.raw_score
        for row in np.flatnonzero(np.asarray(inside)).tolist():
            spelling = None if batch.spelling is None else batch.spelling[row].as_py()
            held = found.get((ids[0][row].as_py(), ids[1][row].as_py(), spelling))
            if held is not None:
                held.append(f"{batch.place(row)} holds {shown(raw[row].as_py())}")
    return found
