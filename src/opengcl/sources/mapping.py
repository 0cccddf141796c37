"""Which column of a shop's tables is what: the mapping, its defaults, and values read through it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from opengcl.data import tables as typed
from opengcl.data.problems import DataSetError, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID, SPLIT
from opengcl.plain_yaml import YamlError, advice, read_yaml

TOP_POSITION_SCORE = 100
"""Score of position 1; position p has 101 - p, and never less than 1."""

_GUESSES: dict[str, tuple[str, ...]] = {
    "query_id": ("query_id", "query-id", "qid"),
    "query": ("query", "query_text", "search_term", "search_query", "keyword"),
    "doc_id": ("doc_id", "product_id", "document_id", "item_id", "corpus-id", "sku", "asin", "_id", "id"),
    "title": ("title", "product_title", "product_name", "name"),
    "image": ("image", "image_url", "image_link", "picture", "thumbnail"),
    "score": ("score", "relevance"),
    "position": ("position", "rank"),
}
_SCORES = ("score", "position", "label")


@dataclass(frozen=True)
class TableMapping:
    """Columns of a table, or of three.

    Attributes:
        query_id: Ids of queries. Without one, a query's id is a hash of its fields.
        doc_id: Ids of documents.
        queries: Query field -> column with its text.
        documents: Document field -> column with its text.
        images: Document field -> column with pictures: bytes, paths, or URLs.
        score: Column of scores, numbers.
        position: Column of result positions, from 1 at the top; the score is 101 - position, and 1 at least.
        label: Column of labels, with a score each in ``gains``.
        gains: Label -> score.
        keep: Other columns of documents to keep (prices, brands), never shown to the model.
        split: Column of the queries' own split, with ``seen`` and ``novel`` by ``splits``.
        splits: Value in ``split`` -> ``seen`` or ``novel``.
    """

    query_id: str | None = None
    doc_id: str | None = None
    queries: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    score: str | None = None
    position: str | None = None
    label: str | None = None
    gains: Mapping[str, float] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    split: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in _SCORES if getattr(self, name) is not None]
        if len(given) > 1:
            raise DataSetError(f"found {' and '.join(given)} columns; allowed: one of {', '.join(_SCORES)}")
        if (self.label is None) != (not self.gains):
            raise DataSetError("found a label column without gains, or gains without one; required: both")
        for label, gain in self.gains.items():
            if isinstance(gain, bool) or not isinstance(gain, int | float) or not math.isfinite(gain):
                message = f"gains, {str(label)[:60]}: found {shown(gain)}; allowed: a number{advice(gain)}"
                raise DataSetError(message, key=("gains", str(label)))
        for value, split in self.splits.items():
            if split not in ("seen", "novel"):
                message = f"splits, {str(value)[:60]}: found {shown(split)}; allowed: seen or novel"
                raise DataSetError(message, key=("splits", str(value)))
        if both := sorted({*self.documents} & {*self.images}):
            raise DataSetError(f"the document field {both[0]!r} is a text and a picture; allowed: one of them")

    @classmethod
    def read(cls, path: Path) -> TableMapping:
        """Reads a mapping from a YAML file with these attributes as keys.

        Raises:
            DataSetError: The file is not YAML, or has unknown keys or wrong values.
        """
        try:
            read = read_yaml(path, texts=_COLUMNS)
            found = read.mapping("a mapping")
        except YamlError as error:
            raise DataSetError(str(error)) from error
        try:
            return cls(**_checked(found))
        except DataSetError as error:
            raise DataSetError(f"{read.place(error.key)}: {error}") from error

    def completed(self, queries: Sequence[str], documents: Sequence[str], qrels: Sequence[str]) -> TableMapping:
        """The mapping with what it leaves open guessed from the usual column names.

        Args:
            queries: Columns of the table with queries.
            documents: Columns of the table with documents.
            qrels: Columns of the table with scores.

        Raises:
            DataSetError: Something needed is neither given nor found.
        """
        found = self
        if found.query_id is None and (name := _guess("query_id", qrels)) and name in queries:
            found = replace(found, query_id=name)
        if not found.queries and (name := _guess("query", queries)):
            found = replace(found, queries={"query": name})
        if found.doc_id is None and (name := _guess("doc_id", [one for one in documents if one in qrels])):
            found = replace(found, doc_id=name)
        if not found.documents and not found.images:
            texts, pictures = _guess("title", documents), _guess("image", documents)
            found = replace(
                found,
                documents={"title": texts} if texts else {},
                images={"image": pictures} if pictures else {},
            )
        if all(getattr(found, name) is None for name in _SCORES):
            for name in ("score", "position"):
                if column := _guess(name, qrels):
                    found = replace(found, score=column) if name == "score" else replace(found, position=column)
                    break
        found._require(queries, documents, qrels)
        return found

    def _require(self, queries: Sequence[str], documents: Sequence[str], qrels: Sequence[str]) -> None:
        if not self.queries:
            raise DataSetError(f"no column holds the queries; name it (query): the columns are {', '.join(queries)}")
        if self.doc_id is None:
            raise DataSetError(f"no column holds document ids; name it (doc_id): {', '.join(documents)}")
        if not self.documents and not self.images:
            raise DataSetError(f"no column is a document field; name some: the columns are {', '.join(documents)}")
        if self.score_column is None:
            raise DataSetError(f"no column holds scores; name one as score, position or label: {', '.join(qrels)}")

    @property
    def score_column(self) -> str | None:
        """The column that scores come from."""
        return next((getattr(self, name) for name in _SCORES if getattr(self, name) is not None), None)

    @property
    def score_range(self) -> tuple[float, float] | None:
        """Smallest and largest score, where the mapping tells."""
        if self.position is not None:
            return 1.0, float(TOP_POSITION_SCORE)
        if self.gains:
            return float(min(*self.gains.values(), 0.0)), float(max(self.gains.values()))
        return None

    def query_rows(self, rows: pa.RecordBatch, file: str) -> pa.RecordBatch:
        """``query_id``, the query fields, and ``split`` where it is mapped."""
        columns = {name: texts(rows.column(column), file, column) for name, column in self.queries.items()}
        result = {QUERY_ID: self.query_ids(rows, file), **columns}
        if self.split is not None:
            result[SPLIT] = _translated(texts(rows.column(self.split), file, self.split), self.splits)
        return pa.RecordBatch.from_pydict(result)

    def document_rows(self, rows: pa.RecordBatch, file: str) -> pa.RecordBatch:
        """``doc_id``, the document fields, and what is kept beside them."""
        result = {DOCUMENT_ID: ids(rows.column(self.doc_id), file, str(self.doc_id))}
        result |= {name: texts(rows.column(column), file, column) for name, column in self.documents.items()}
        for name, column in self.images.items():
            result[name] = typed.pictures(rows.column(column), file=file, column=column, first_row=0)
        others = {column: typed.plain(rows.column(column)) for column in self.keep}
        return pa.RecordBatch.from_pydict({**others, **result})

    def qrels_rows(self, rows: pa.RecordBatch, file: str) -> tuple[pa.RecordBatch, pa.Array]:
        """``query_id``, ``doc_id`` and ``score`` (float64, null where it cannot be read), and what it was read from."""
        column = str(self.score_column)
        raw = typed.plain(rows.column(column))
        score = self._scores(raw)
        pairs = {
            QUERY_ID: self.query_ids(rows, file),
            DOCUMENT_ID: ids(rows.column(self.doc_id), file, str(self.doc_id)),
            "score": score,
        }
        if self.position is not None:
            pairs["position"] = pc.cast(numbers(raw), pa.int32(), safe=False)
        if self.label is not None:
            pairs["label"] = raw.cast(pa.large_string())
        return pa.RecordBatch.from_pydict(pairs), raw

    def query_ids(self, rows: pa.RecordBatch, file: str) -> pa.Array:
        """The ids of the rows' queries: a column, or 16 hexadecimal digits of a hash of their fields."""
        if self.query_id is not None:
            return ids(rows.column(self.query_id), file, self.query_id)
        columns = [texts(rows.column(column), file, column).to_pylist() for column in self.queries.values()]
        return pa.array([hashed(values) for values in zip(*columns, strict=True)], pa.large_string())

    def _scores(self, raw: pa.Array) -> pa.Array:
        if self.label is not None:
            labels = raw.cast(pa.large_string())
            known = pa.array(list(self.gains), pa.large_string())
            gains = pa.array([float(gain) for gain in self.gains.values()])
            return gains.take(pc.index_in(labels, known))
        found = numbers(raw)
        if self.position is None:
            return found
        whole = pc.and_(pc.greater_equal(found, 1), pc.equal(found, pc.floor(found)))
        score = pc.max_element_wise(pc.subtract(pa.scalar(TOP_POSITION_SCORE + 1.0), found), pa.scalar(1.0))
        return pc.if_else(whole, score, pa.scalar(None, pa.float64()))

    @property
    def allowed_score(self) -> str:
        """What the score column may hold, for messages."""
        if self.label is not None:
            return " or ".join(map(str, self.gains))
        return "a whole number from 1" if self.position is not None else "a finite number"


_MAPPINGS = ("queries", "documents", "images", "gains", "splits")
_NAMES = ("query_id", "doc_id", *_SCORES, "split")
_COLUMNS = (
    *_NAMES,
    "queries.*",
    "documents.*",
    "images.*",
    "keep.*",
)  # names of columns: texts, whatever they look like


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """A mapping file's content, as arguments of `TableMapping`; what is null counts as not given."""
    known = [one.name for one in fields(TableMapping)]
    for key in found:
        if key not in known:
            message = f"unknown key {shown(key)}; allowed: {', '.join(known)}"
            raise DataSetError(message, key=(key,))
    given = {key: value for key, value in found.items() if value is not None}
    for key, value in given.items():
        if key in _MAPPINGS:
            _check_kind(value, dict, "a mapping", (key,))
            if key in ("queries", "documents", "images"):
                for name, column in value.items():
                    _check_kind(column, str, "a column's name", (key, name))
        elif key == "keep":
            _check_kind(value, list, "a list of columns", (key,))
            for at, column in enumerate(value):
                _check_kind(column, str, "a column's name", (key, str(at)))
        else:
            _check_kind(value, str, "a column's name", (key,))
    return {**given, "keep": tuple(given.get("keep", ()))}


def _check_kind(value: object, kind: type, allowed: str, key: tuple[str, ...]) -> None:
    if not isinstance(value, kind) or value == "":
        raise DataSetError(f"{', '.join(key)}: found {shown(value)}; allowed: {allowed}", key=key)


def hashed(values: Sequence[str | None]) -> str | None:
    """16 hexadecimal digits of blake2b over texts; None where all are missing."""
    if not any(value and value.strip() for value in values):
        return None
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        text = (value or "").encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def ids(column: pa.Array, file: str, name: str) -> pa.Array:
    """A column of ids as text; whole numbers are written out.

    Raises:
        DataSetError: It holds something else.
    """
    column = typed.plain(column)
    if pt.is_integer(column.type):
        return column.cast(pa.large_string())
    return texts(column, file, name)


def texts(column: pa.Array, file: str, name: str) -> pa.Array:
    """A column as text.

    Raises:
        DataSetError: It holds neither text nor whole numbers, or text that is not UTF-8.
    """
    column = typed.plain(column)
    if pt.is_null(column.type) or pt.is_integer(column.type) or pt.is_boolean(column.type):
        return column.cast(pa.large_string())
    if not (pt.is_string(column.type) or pt.is_large_string(column.type) or pt.is_string_view(column.type)):
        raise DataSetError(f"{file}, column '{name}': found type {column.type}; allowed: text or whole numbers")
    return typed.text(column, file=file, column=name, first_row=0)


def numbers(column: pa.Array) -> pa.Array:
    """A column as float64; null where a value is no number."""
    if pt.is_integer(column.type) or pt.is_floating(column.type) or pt.is_decimal(column.type):
        return column.cast(pa.float64())
    trimmed = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    try:
        return trimmed.cast(pa.float64())
    except pa.ArrowInvalid:
        return pa.array([_number(value) for value in trimmed.to_pylist()], pa.float64())


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _translated(values: pa.Array, table: Mapping[str, str]) -> pa.Array:
    known, meant = (pa.array(list(part), pa.large_string()) for part in (table, table.values()))
    return meant.take(pc.index_in(values, known))


def _guess(what: str, columns: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in _GUESSES[what] if name in lower), None)
