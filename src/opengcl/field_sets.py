"""Results by which fields documents have: whether those without a picture, say, stand where they should.

For every query, and every set of fields that documents of its split have (``image+title``, ``title``):

- ``documents``: share of the searched documents that have exactly these fields.
- ``first`` and ``ideal_first``: share of the first place that they take, and that they would take in an ideal list.
- ``top10`` and ``ideal_top10``: the same of the first ten places. An ideal list holds relevant documents only, best
  first; equally relevant ones share their places evenly.
- ``ndcg@10``: of the list with all other documents taken out. It judges the order among documents of one kind.
- ``recall@100``: of the relevant documents of this kind, the share among the first 100 of the whole list.

The last two are null where no document of the kind is relevant, and the ideal ones where none is at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from opengcl.metrics import compute

TOP = 10
KEY_COLUMNS = ("split", "query_id", "fields")
MEASURES = ("documents", "first", "ideal_first", "top10", "ideal_top10", "ndcg@10", "recall@100")
SCHEMA = pa.schema([(name, pa.string()) for name in KEY_COLUMNS] + [(name, pa.float64()) for name in MEASURES])
_METRICS = ("ndcg@10", "recall@100")
Judged = tuple[Int[np.ndarray, " judged"], Float[np.ndarray, " judged"]]
"""A query's judged documents and their relevance, at least 0."""


@dataclass(frozen=True)
class FieldSets:
    """Which fields each document has."""

    names: list[str]  # of the sets: ``image+title``; the whole set first, then in the order of the fields
    of: Int[np.ndarray, " documents"]  # place in ``names``

    @classmethod
    def read(cls, present: Mapping[str, Bool[np.ndarray, " documents"]]) -> FieldSets:
        """From field -> which documents have it. Documents without any field make a set of their own, ``none``."""
        fields = list(present)
        # The first field counts most, so that falling numbers put the whole set first and an empty one last.
        code = sum(present[field].astype(np.int64) << (len(fields) - place) for place, field in enumerate(fields, 1))
        found, of = np.unique(-np.asarray(code), return_inverse=True)
        names = [
            "+".join(field for place, field in enumerate(fields, 1) if -one >> (len(fields) - place) & 1) or "none"
            for one in found.tolist()
        ]
        return cls(names, of.reshape(-1))

    def among(self, rows: Int[np.ndarray, " rows"]) -> list[int]:
        """The sets that some of the documents have."""
        return np.unique(self.of[rows]).tolist()


def by_field_set(
    sets: FieldSets,
    split: str,
    candidates: Int[np.ndarray, " documents"],
    query_ids: Sequence[str],
    rows: Int[np.ndarray, "q depth"],
    relevance: Float[np.ndarray, "q depth"],
    judged: Sequence[Judged],
) -> pa.Table:
    """One row a query and field set, as the module says.

    Args:
        sets: Which fields documents have.
        split: The split's name.
        candidates: Rows of the documents that were searched.
        query_ids: Of the queries.
        rows: Each query's list of documents, best first.
        relevance: Of the documents in the lists; 0 where they are not judged.
        judged: Of each query.
    """
    listed = sets.of[rows]
    tables = []
    for place in sets.among(candidates):
        inside = listed == place
        own = [score * (sets.of[documents] == place) for documents, score in judged]
        columns = {
            "documents": np.full(len(rows), (sets.of[candidates] == place).mean()),
            "first": inside[:, 0].astype(float),
            "top10": inside[:, :TOP].mean(1),
            **_ideal(own, [score for _, score in judged]),
            **_within(inside, relevance, own),
        }
        keys = {"split": [split] * len(rows), "query_id": list(query_ids), "fields": [sets.names[place]] * len(rows)}
        values = {name: pa.array(columns[name], pa.float64(), from_pandas=True) for name in MEASURES}  # NaN is null
        tables.append(pa.table({**keys, **values}, schema=SCHEMA))
    return pa.concat_tables(tables)


def field_set_means(table: pa.Table) -> dict[str, dict[str, dict[str, float | None]]]:
    """Split -> field set -> measure -> mean over the queries that have it; None where no query does.

    Splits where all documents have the same fields are left out.
    """
    split, fields = (table[name].to_numpy(zero_copy_only=False) for name in ("split", "fields"))
    means: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in dict.fromkeys(split.tolist()):
        kinds = dict.fromkeys(fields[split == name].tolist())
        if len(kinds) > 1:
            means[name] = {kind: _means(table.filter((split == name) & (fields == kind))) for kind in kinds}
    return means


def _means(rows: pa.Table) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in MEASURES:
        values = rows[name].to_numpy()
        means[name] = None if np.isnan(values).all() else float(np.nanmean(values))
    return means


def _within(
    inside: Bool[np.ndarray, "q depth"], relevance: Float[np.ndarray, "q depth"], own: Sequence[np.ndarray]
) -> dict[str, Float[np.ndarray, " q"]]:
    """Metrics of one kind of documents; NaN where none of them is relevant."""
    judged = np.zeros((len(own), max(map(len, own))))
    for number, score in enumerate(own):
        judged[number, : len(score)] = score
    kept = np.where(inside, relevance, 0.0)
    alone = np.take_along_axis(kept, np.argsort(~inside, axis=1, kind="stable"), axis=1)
    found = {**compute(_METRICS[:1], alone, judged), **compute(_METRICS[1:], kept, judged)}
    return {name: np.where(judged.any(1), values, np.nan) for name, values in found.items()}


def _ideal(own: Sequence[np.ndarray], every: Sequence[np.ndarray]) -> dict[str, Float[np.ndarray, " q"]]:
    """Share of the first place and of the first ten that one kind has in ideal lists."""
    shares = np.full((2, len(own)), np.nan)
    for number, (mine, score) in enumerate(zip(own, every, strict=True)):
        for row, places in enumerate((1, TOP)):
            places = min(places, int((score > 0).sum()))
            if places:
                shares[row, number] = _share_of_places(mine, score, places)
    return dict(zip(("ideal_first", "ideal_top10"), shares, strict=True))


def _share_of_places(mine: np.ndarray, score: np.ndarray, places: int) -> float:
    last = np.partition(score, -places)[-places]
    above, level = score > last, score == last
    sharing = (places - above.sum()) / level.sum()
    return float(((mine > last).sum() + sharing * (mine == last).sum()) / places)
