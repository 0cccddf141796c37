"""What a data set adds to a served index: judged relevance, suggestions, values to filter by, pictures."""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opengcl.data import RankedDataset
from opengcl.data.images import Cell
from opengcl.data.schema import Schema
from opengcl.index.filters import FieldType
from opengcl.metrics import ndcg
from opengcl.serve.api import FilterInfo

MOST_VALUES = 50
SUGGESTIONS = 8
_SCANNED = 200_000  # queries that a suggestion looks into, beyond those that begin with the text
JUDGED_DEPTH = 10


class Judgements:
    """What one query's documents were judged.

    Attributes:
        scores: Document id -> score, in the data set's units.
    """

    def __init__(self, scores: Mapping[str, float], schema: Schema) -> None:
        self.scores, self._schema = scores, schema

    def relevance(self, doc_id: str) -> float | None:
        """The score over its range, 0 to 1, and 0 below 0; None where not judged."""
        score = self.scores.get(doc_id)
        return None if score is None else self._schema.share(score)

    def ndcg(self, doc_ids: Sequence[str]) -> float:
        """NDCG@10 of a ranked list, the score as gain, as `opengcl evaluate` counts it; over all documents."""
        found = np.array([[self.scores.get(one, 0.0) for one in doc_ids[:JUDGED_DEPTH]] or [0.0]])
        return float(ndcg(found, np.array([list(self.scores.values())]), k=JUDGED_DEPTH)[0])


class Catalogue:
    """A data set as the server needs it.

    Args:
        dataset: The data set that the index was built from.
    """

    def __init__(self, dataset: RankedDataset) -> None:
        self._dataset = dataset
        self.fingerprint = dataset.fingerprint
        self.images = [name for name, kind in dataset.documents.fields.items() if kind == "image"]
        self._rows, self._most_judged = _texts(dataset)
        self._sorted = sorted(self._rows)
        self._filters: dict[tuple[str, str], FilterInfo] = {}
        self._lock = threading.Lock()

    def judgements(self, text: str) -> Judgements | None:
        """What the data set says about a query with this text; None where it has none."""
        row = self._rows.get(_folded(text), (-1, ""))[0]
        if row < 0:
            return None
        documents, scores = self._dataset.qrels.judged(row)
        if len(documents) == 0:
            return None
        ids = self._dataset.documents.ids(documents)
        return Judgements(dict(zip(ids, scores.tolist(), strict=True)), self._dataset.schema)

    def suggest(self, text: str) -> list[str]:
        """Up to 8 queries: those that begin with the text, then those that contain it; most judged ones for no text."""
        wanted = _folded(text)
        if not wanted:
            return self._most_judged
        first = bisect.bisect_left(self._sorted, wanted)
        found = [one for one in self._sorted[first : first + SUGGESTIONS] if one.startswith(wanted)]
        for one in self._sorted[:_SCANNED]:
            if len(found) == SUGGESTIONS:
                break
            if wanted in one and not one.startswith(wanted):
                found.append(one)
        return [self._rows[one][1] for one in found]

    def cell(self, doc_id: str, field: str) -> Cell | None:
        """What an image column holds for a document; None where there is no such document, field or picture."""
        records = self._dataset.documents
        row = int(records.find([doc_id])[0])
        if field not in self.images or row < 0 or not records.present(field, [row])[0]:
            return None
        cell: Cell = records.values(field, [row])[0]
        return cell

    @property
    def root(self) -> Any:
        """The folder that picture paths are relative to."""
        return self._dataset.path

    def etag(self, doc_id: str, field: str, size: int) -> str:
        """Names a thumbnail's content: another data set, another tag."""
        key = "\0".join([self.fingerprint, doc_id, field, str(size)])
        return f'"{hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]}"'

    def filter_info(self, field: str, kind: FieldType) -> FilterInfo:
        """What a filter on a field can ask for; looked up once."""
        with self._lock:
            if (field, kind) not in self._filters:
                known = field in self._dataset.documents.columns
                column = self._dataset.documents.column(field) if known else pa.chunked_array([], pa.null())
                self._filters[field, kind] = _filter_info(kind, column)
            return self._filters[field, kind]


def no_filter_info(kind: FieldType) -> FilterInfo:
    """A field of which only the type is known."""
    return FilterInfo(type=kind, values=None, min=None, max=None)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _texts(dataset: RankedDataset) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """Folded text -> row and text of the judged queries with one; and the texts that were judged most."""
    names = [name for name, kind in dataset.queries.fields.items() if kind == "text"]
    if not names:
        return {}, []
    rows = np.flatnonzero(np.diff(dataset.qrels.offsets))
    texts = dataset.queries.texts(names[0], rows)
    found: dict[str, tuple[int, str]] = {}
    for row, text in zip(rows.tolist(), texts, strict=True):
        if text is not None:
            found.setdefault(_folded(text), (row, text.strip()))
    judged = np.diff(dataset.qrels.offsets)
    most = sorted(found.values(), key=lambda entry: -int(judged[entry[0]]))[:SUGGESTIONS]
    return found, [text for _, text in most]


def _filter_info(kind: FieldType, column: pa.ChunkedArray) -> FilterInfo:
    column = column.drop_null()
    info = no_filter_info(kind)
    if len(column) == 0:
        return info
    if kind == "integer":
        if not (pa.types.is_integer(column.type) or pa.types.is_decimal(column.type)):
            return info
        ends = pc.min_max(column).as_py()
        return info.model_copy(update={name: int(value) for name, value in ends.items() if value is not None})
    if kind == "number":
        ends = pc.min_max(column.cast(pa.float64(), safe=False)).as_py()
        finite = {name: value for name, value in ends.items() if value is not None and np.isfinite(value)}
        return info.model_copy(update=finite)
    if kind == "boolean":
        return info.model_copy(update={"values": [True, False]})
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return info
    counts = column.value_counts()
    if 2 * len(counts) > len(column):
        return info  # titles and the like: nobody chooses among them
    top = pc.sort_indices(counts.field("counts"), sort_keys=[("", "descending")])[:MOST_VALUES]
    return info.model_copy(update={"values": counts.field("values").take(top).to_pylist()})
