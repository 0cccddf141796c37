"""Which column of a shop's tables is what: the mapping, its defaults, and values read through it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opengcl.data import tables as typed
from opengcl.data.problems import DataSetError, listed, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID, SPLIT
from opengcl.given_lists import not_one_text
from opengcl.plain_yaml import YamlError, advice, read_yaml
from opengcl.query_text import normalised
from opengcl.sources.columns import ids, joined_ids, labels, numbers, padded, pictures, texts, truths

Spelling = Literal["normalised", "verbatim"]

_GUESSES: dict[str, tuple[str, ...]] = {
    "query_id": ("query_id", "qid", "topic_id", "search_id"),
    "queries_id": ("query_id", "qid", "topic_id", "topic", "number", "num", "_id", "id"),
    "query": (
        *("query", "query_text", "search_term", "search_query", "search_phrase", "search_terms", "keyword", "keywords"),
        *("user_query", "raw_query", "search_text", "term", "q"),
    ),
    "queries_query": ("text", "title"),
    "doc_id": (
        *("doc_id", "product_id", "document_id", "item_id", "corpus-id", "docno", "passage_id", "pid", "offer_id"),
        *("objectID", "article_id", "listing_id", "handle", "sku", "product_sku", "item_sku", "variant_sku", "asin"),
        *("gtin", "ean"),
    ),
    "documents_id": ("_id", "id", "key", "uid"),
    "title": (
        *("title", "product_title", "product_name", "name", "item_name", "item_title", "post_title", "doc_title"),
        *("product", "headline"),
    ),
    "text": ("text", "passage", "contents", "content", "body"),
    "image": (
        *("image", "image_url", "image_link", "picture", "thumbnail", "image_src", "picture_url", "img_url", "imgUrl"),
        *("images", "image_urls", "featured_image", "main_image", "primary_image", "product_image", "photo", "photos"),
        *("photo_url", "pictures", "thumbnail_url", "img", "image_path", "variant_image"),
    ),
    "score": ("score", "relevance", "relevance_score", "rel", "grade", "relevance_grade", "judgment", "judgement"),
    "position": ("position", "rank", "result_position", "item_position", "product_position", "pos"),
}
"""Usual names, the best first; letters' case and what stands between words does not matter."""
_SCORES = ("score", "position", "label")
_LARGEST_POSITION = 1_000_000


@dataclass(frozen=True)
class TableMapping:
    """Columns of a table, or of three.

    An id may be made of several columns, ``locale+product_id``: it is ``us:B00`` then. A column whose own name has a
    plus sign is found first.

    Attributes:
        query_id: Ids of queries. Without one, a query's id is a hash of its fields.
        doc_id: Ids of documents.
        queries_id: Ids in the table of queries, where the column has another name there.
        documents_id: Ids in the table of documents, where the column has another name there.
        queries: Query field -> column with its text.
        documents: Document field -> column with its text; None: guessed from the usual names, {}: none.
        images: Document field -> column with pictures: bytes, paths, URLs or data URIs, or lists of them, of which the
            first is taken; None: guessed from the usual names, {}: none.
        score: Column of scores: numbers, or truth values, which are 1 and 0.
        position: Column of result positions; see `opengcl.sources.positions`.
        first_position: Position at the top of a list as the column counts, 0 or 1; None: 1, and a column with zeros is
            refused.
        list_length: Position whose score is 1 (the top has 100); None: the length of the lists.
        label: Column of labels, with a score each in ``gains``.
        gains: Label -> score.
        keep: Other columns of documents to keep (prices, brands), never shown to the model.
        split: Column of the queries' own split, with ``seen`` and ``novel`` by ``splits``.
        splits: Value in ``split`` -> ``seen`` or ``novel``; a column with these two values needs none.
        join_lists: What stands between the texts of a list; None refuses lists in text fields.
        spelling: ``normalised``: queries without ids of their own are one where `opengcl.query_text.normalised` finds
            no difference, and white space around ids and queries is removed; ``verbatim``: nothing of that.
    """

    query_id: str | None = None
    doc_id: str | None = None
    queries: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] | None = None
    images: Mapping[str, str] | None = None
    score: str | None = None
    position: str | None = None
    label: str | None = None
    gains: Mapping[str, float] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    split: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    queries_id: str | None = None
    documents_id: str | None = None
    first_position: int | None = None
    list_length: int | None = None
    join_lists: str | None = None
    spelling: Spelling = "normalised"

    def __post_init__(self) -> None:
        given = [name for name in _SCORES if getattr(self, name) is not None]
        not_one_text("keep", self.keep)
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
        if both := sorted({*(self.documents or ())} & {*(self.images or ())}):
            raise DataSetError(f"the document field {both[0]!r} is a text and a picture; allowed: one of them")
        fields_of = {**(self.documents or {}), **(self.images or {})}
        if clash := next((one for one in self.keep if fields_of.get(one, one) != one), None):
            raise DataSetError(
                f"keep: the column {clash!r} has the name of a field that is read from {fields_of[clash]!r}; allowed: "
                "fields of other names"
            )
        if reserved := next((one for one in self.keep if one in (DOCUMENT_ID, SPLIT)), None):
            raise DataSetError(f"keep: found {reserved!r}, which has a meaning of its own; allowed: other columns")
        if self.spelling not in get_args(Spelling):
            raise DataSetError(f"spelling: found {shown(self.spelling)}; allowed: {', '.join(get_args(Spelling))}")
        if self.first_position not in (None, 0, 1):
            raise DataSetError(f"first_position: found {shown(self.first_position)}; allowed: 0 or 1")
        if self.list_length is not None and not 1 <= self.list_length <= _LARGEST_POSITION:
            raise DataSetError(
                f"list_length: found {shown(self.list_length)}; allowed: a position from 1 to {_LARGEST_POSITION:,}"
            )

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

    def completed(
        self, queries: Sequence[str] | None, documents: Sequence[str] | None, qrels: Sequence[str]
    ) -> TableMapping:
        """The mapping with what it leaves open guessed from the usual column names.

        Args:
            queries: Columns of the table with queries; None where they are in the table with scores.
            documents: Columns of the table with documents; None where they are in the table with scores.
            qrels: Columns of the table with scores.

        Raises:
            DataSetError: Something needed is neither given nor found.
        """
        found = self
        for side, columns in (("queries", queries), ("documents", documents)):
            if columns is None and getattr(self, f"{side}_id") is not None:
                raise DataSetError(
                    f"{side}_id: found without a table of {side}; name its column with {_SIDE_IDS[side]}"
                )
        found = found._with_query_ids(queries, qrels)
        asked = qrels if queries is None else queries
        if not found.queries:
            name = _guess("query", asked) or (_guess("queries_query", asked) if queries is not None else None)
            found = replace(found, queries={"query": name} if name else {})
        found = found._with_document_ids(documents, qrels)
        held = qrels if documents is None else documents
        taken = [found.doc_id, found.documents_id, *(found.queries.values() if documents is None else ())]
        found = found._with_fields(held, taken)
        if all(getattr(found, name) is None for name in _SCORES):
            for name in ("score", "position"):
                if column := _guess(name, qrels):
                    found = replace(found, score=column) if name == "score" else replace(found, position=column)
                    break
        found._require(asked, held, qrels)
        return found

    def _with_query_ids(self, queries: Sequence[str] | None, qrels: Sequence[str]) -> TableMapping:
        if queries is None:
            return self if self.query_id is not None else replace(self, query_id=_guess("query_id", qrels))
        here, there = _guessed_ids("query_id", "queries_id", self.query_id, self.queries_id, qrels, queries)
        if here is None:
            return self  # the fields make the ids
        if there is None:
            raise DataSetError(
                f"no column of the queries' table holds the ids that {here!r} of the judgments names; name it "
                f"(queries_id, --queries-id): the columns are {listed(queries)}"
            )
        return replace(self, query_id=here, queries_id=there if there != here else None)

    def _with_document_ids(self, documents: Sequence[str] | None, qrels: Sequence[str]) -> TableMapping:
        if documents is None:
            found = self.doc_id or _guess("doc_id", qrels) or _guess("documents_id", qrels)
            return replace(self, doc_id=found)
        here, there = _guessed_ids("doc_id", "documents_id", self.doc_id, self.documents_id, qrels, documents)
        if here is None:
            raise DataSetError(
                f"no column of the judgments holds document ids; name it (doc_id, --doc-id): {listed(qrels)}"
            )
        if there is None:
            raise DataSetError(
                f"no column of the documents' table holds the ids that {here!r} of the judgments names; name it "
                f"(documents_id, --documents-id): the columns are {listed(documents)}"
            )
        return replace(self, doc_id=here, documents_id=there if there != here else None)

    def _with_fields(self, columns: Sequence[str], taken: Sequence[str | None]) -> TableMapping:
        """With title and picture guessed, each where it is not named."""
        used = {*taken, *(self.documents or {}).values(), *(self.images or {}).values()}
        free = [one for one in columns if one not in used]
        pictured, written = self.images, self.documents
        if pictured is None:
            name = _guess("image", free)
            pictured = {"image": name} if name and "image" not in (written or {}) else {}
        if written is None:
            free = [one for one in free if one not in pictured.values()]
            found = {kind: name for kind in ("title", "text") if (name := _guess(kind, free)) and kind not in pictured}
            written = dict(list(found.items())[:1])
        return replace(self, documents=written, images=pictured)

    def _require(self, queries: Sequence[str], documents: Sequence[str], qrels: Sequence[str]) -> None:
        if not self.queries:
            raise DataSetError(
                f"no column holds the queries; name it (query): the columns are {listed(queries)} "
                "(--query query=COLUMN)"
            )
        if self.doc_id is None:
            raise DataSetError(f"no column holds document ids; name it (doc_id, --doc-id): {listed(documents)}")
        if not self.documents and not self.images:
            raise DataSetError(
                "no column is a document field; name some (--fields title=COLUMN, --images image=COLUMN): the columns "
                f"are {listed(documents)}"
            )
        if self.score_column is None:
            raise DataSetError(
                "no column holds scores; name one as score, position or label (--score, --position, or --label with "
                f"--gains): {listed(qrels)}"
            )

    @property
    def texts_of_documents(self) -> Mapping[str, str]:
        """``documents`` of a completed mapping."""
        return self.documents or {}

    @property
    def pictures_of_documents(self) -> Mapping[str, str]:
        """``images`` of a completed mapping."""
        return self.images or {}

    @property
    def score_column(self) -> str | None:
        """The column that scores come from."""
        return next((getattr(self, name) for name in _SCORES if getattr(self, name) is not None), None)

    @property
    def score_range(self) -> tuple[float, float] | None:
        """Smallest and largest score, where the mapping tells."""
        if self.gains:
            return float(min(*self.gains.values(), 0.0)), float(max(self.gains.values()))
        return None

    @property
    def merges_spellings(self) -> bool:
        """Whether queries that differ in their spelling only are one: those without ids of their own."""
        return self.query_id is None and self.spelling == "normalised"

    def columns_of(self, side: str, columns: Sequence[str]) -> list[str]:
        """Columns that a side needs of a table.

        Args:
            side: ``queries``, ``documents`` or ``qrels``.
            columns: Those that the table has.
        """
        query = [] if self.query_id is None else id_columns(self.queries_id or self.query_id, columns)
        if side == "queries":
            return [*query, *self.queries.values(), *([self.split] if self.split else [])]
        if side == "documents":
            fields = [*self.texts_of_documents.values(), *self.pictures_of_documents.values()]
            return [*id_columns(str(self.documents_id or self.doc_id), columns), *fields, *self.keep]
        query = list(self.queries.values()) if self.query_id is None else id_columns(self.query_id, columns)
        return [*query, *id_columns(str(self.doc_id), columns), str(self.score_column)]

    def query_rows(self, rows: pa.RecordBatch, file: str, first: int = 0) -> pa.RecordBatch:
        """``query_id``, the query fields, and ``split`` where it is mapped."""
        columns = self._query_texts(rows, file, first)
        if self.spelling == "normalised":
            columns = {name: pc.utf8_trim_whitespace(column) for name, column in columns.items()}
        result = {QUERY_ID: self.query_ids(rows, file, first, self.queries_id or self.query_id), **columns}
        if self.split is not None:
            result[SPLIT] = self._splits(rows, file, first)
        return pa.RecordBatch.from_pydict(result)

    def document_rows(self, rows: pa.RecordBatch, file: str, first: int = 0) -> tuple[pa.RecordBatch, dict[str, int]]:
        """``doc_id``, the document fields, and what is kept beside them; and column -> rows with several pictures."""
        result = {DOCUMENT_ID: self._ids(rows, str(self.documents_id or self.doc_id), file, first)}
        result |= {
            name: texts(rows.column(column), file, column, first=first, join=self.join_lists)
            for name, column in self.texts_of_documents.items()
        }
        several = {}
        for name, column in self.pictures_of_documents.items():
            result[name], several[column] = pictures(rows.column(column), file, column, first=first)
        others = {column: typed.plain(rows.column(column)) for column in self.keep}
        return pa.RecordBatch.from_pydict({**others, **result}), {name: many for name, many in several.items() if many}

    def qrels_rows(self, rows: pa.RecordBatch, file: str, first: int = 0) -> tuple[pa.RecordBatch, pa.Array]:
        """``query_id``, ``doc_id`` and ``score`` (float64, null where it cannot be read), and what it was read from.

        Of positions the score is -position, until the lengths of all lists are known.
        """
        column = str(self.score_column)
        raw = typed.plain(rows.column(column))
        pairs = {
            QUERY_ID: self.query_ids(rows, file, first, self.query_id),
            DOCUMENT_ID: self._ids(rows, str(self.doc_id), file, first),
        }
        if self.position is not None:
            place = self._positions(raw, file)
            pairs |= {"score": pc.negate(place), "position": place.cast(pa.int32())}
        elif self.label is not None:
            found = labels(raw, file, column, first=first)
            known = pa.array([str(one).strip() for one in self.gains], pa.large_string())
            gains = pa.array([float(gain) for gain in self.gains.values()], pa.float64())
            pairs |= {"score": gains.take(pc.index_in(found, known)), "label": found}
        else:
            pairs["score"] = numbers(raw, file, column)
        return pa.RecordBatch.from_pydict(pairs), raw

    def query_ids(self, rows: pa.RecordBatch, file: str, first: int, column: str | None) -> pa.Array:
        """The ids of the rows' queries: a column, or 16 hexadecimal digits of a hash of their fields."""
        if column is not None:
            return self._ids(rows, column, file, first)
        plain = self.spelling == "normalised"
        return self._of_distinct(rows, file, first, lambda texts: hashed(_normalised(texts) if plain else texts))

    def padded_ids(self, side: str, rows: pa.RecordBatch) -> dict[str, int]:
        """Id column of a side -> rows in which white space around the id is removed."""
        if self.spelling != "normalised":
            return {}
        query, document = (self.queries_id or self.query_id, self.documents_id or self.doc_id)
        names = {"queries": [query], "documents": [document], "qrels": [self.query_id, self.doc_id]}[side]
        parts = [part for name in names if name is not None for part in id_columns(name, rows.schema.names)]
        counts = {part: padded(rows.column(part)) for part in parts}
        return {part: count for part, count in counts.items() if count}

    def spellings(self, rows: pa.RecordBatch, file: str, first: int = 0) -> pa.Array | None:
        """A 64-bit hash of how each row's query is spelled, where `merges_spellings`."""
        if not self.merges_spellings:
            return None
        digests = self._of_distinct(rows, file, first, lambda texts: hashed(texts) or "0" * 16)
        return pa.array(np.array([int(one, 16) for one in digests.to_pylist()], np.uint64).view(np.int64))

    def _of_distinct(
        self, rows: pa.RecordBatch, file: str, first: int, make: Callable[[Sequence[str | None]], str | None]
    ) -> pa.Array:
        """A text made of each row's query fields. Many rows have the same query, so each is looked at once."""
        columns = list(self._query_texts(rows, file, first).values())
        if len(columns) == 1:
            coded = columns[0].dictionary_encode(null_encoding="encode")
            made = pa.array([make([text]) for text in coded.dictionary.to_pylist()], pa.large_string())
            return made.take(coded.indices)
        known: dict[tuple[str | None, ...], str | None] = {}
        for row in (rows_of := list(zip(*(one.to_pylist() for one in columns), strict=True))):
            if row not in known:
                known[row] = make(row)
        return pa.array([known[row] for row in rows_of], pa.large_string())

    def _query_texts(self, rows: pa.RecordBatch, file: str, first: int) -> dict[str, pa.Array]:
        return {
            name: texts(rows.column(column), file, column, first=first, join=self.join_lists)
            for name, column in self.queries.items()
        }

    def _ids(self, rows: pa.RecordBatch, name: str, file: str, first: int) -> pa.Array:
        trimmed = self.spelling == "normalised"
        parts = id_columns(name, rows.schema.names)
        return joined_ids([ids(rows.column(one), file, one, first=first, trimmed=trimmed) for one in parts])

    def _positions(self, raw: pa.Array, file: str) -> pa.Array:
        """Positions from 0 or 1 as float64; null where a value is none."""
        if pa.types.is_boolean(raw.type):
            raise DataSetError(f"{file}, column '{self.position}': found type bool; allowed: positions, whole numbers")
        found = numbers(raw, file, str(self.position))
        least = 1 if self.first_position == 1 else 0
        in_range = pc.and_(pc.greater_equal(found, least), pc.less_equal(found, _LARGEST_POSITION))
        whole = pc.and_(in_range, pc.equal(found, pc.floor(found)))
        whole = pc.and_(whole, pa.array(~truths(raw)))
        return pc.if_else(pc.fill_null(whole, False), found, pa.scalar(None, pa.float64()))

    def _splits(self, rows: pa.RecordBatch, file: str, first: int) -> pa.Array:
        found = labels(rows.column(self.split), file, str(self.split), first=first)
        splits = self.splits or {"seen": "seen", "novel": "novel"}
        known, meant = (pa.array([str(one) for one in part], pa.large_string()) for part in (splits, splits.values()))
        places = pc.index_in(found, known)
        if places.null_count:
            row = int(np.flatnonzero(np.asarray(pc.is_null(places)))[0])
            raise DataSetError(
                f"{file}, row {first + row}, column '{self.split}': found {shown(found[row].as_py())}; allowed: "
                f"{listed([str(one) for one in splits])} (splits in the mapping says which is seen and which novel)"
            )
        return meant.take(places)

    @property
    def allowed_score(self) -> str:
        """What the score column may hold, for messages."""
        if self.label is not None:
            return " or ".join(map(str, self.gains))
        if self.position is not None:
            least = 1 if self.first_position is None else self.first_position
            return f"a whole number from {least} to {_LARGEST_POSITION:,}"
        return "a finite number (--label with --gains where these are names)"


_MAPPINGS = ("queries", "documents", "images", "gains", "splits")
_SIDE_IDS = {"queries": "query_id", "documents": "doc_id"}
_NAMES = ("query_id", "doc_id", "queries_id", "documents_id", *_SCORES, "split")
_WHOLE = ("first_position", "list_length")
_TEXTS = ("join_lists", "spelling")
_COLUMNS = (
    *_NAMES,
    "join_lists",
    "queries.*",
    "documents.*",
    "images.*",
    "keep.*",
)  # names of columns: texts, whatever they look like


def id_columns(name: str, columns: Sequence[str]) -> list[str]:
    """The columns that an id is made of: one, or several with plus signs between them."""
    if name in columns or "+" not in name:
        return [name]
    return [part.strip() for part in name.split("+") if part.strip()]


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
        elif key in _WHOLE:
            _check_kind(value, int, "a whole number", (key,))
        elif key in _TEXTS:
            _check_kind(value, str, "a text", (key,), empty=key == "join_lists")
        else:
            _check_kind(value, str, "a column's name", (key,))
    return {**given, "keep": tuple(given.get("keep", ()))}


def _check_kind(value: object, kind: type, allowed: str, key: tuple[str, ...], *, empty: bool = False) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or (value == "" and not empty):
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


def _normalised(texts: Sequence[str | None]) -> list[str | None]:
    return [None if one is None else normalised(one) for one in texts]


def _guessed_ids(
    ours: str, theirs: str, here: str | None, there: str | None, qrels: Sequence[str], table: Sequence[str]
) -> tuple[str | None, str | None]:
    """The id columns of the judgments and of another table, where they are not given.

    A usual name that both have comes first. One that says nothing (``id``) may be a row's own number, so it is taken
    for the other table alone.
    """

    def is_in(name: str, columns: Sequence[str]) -> bool:
        return all(one in columns for one in id_columns(name, columns))

    if here is None and there is None:
        both = [one for one in table if _squashed(one) in {_squashed(name) for name in qrels}]
        if shared := _guess(ours, both):
            there = shared
            here = next(one for one in qrels if _squashed(one) == _squashed(shared))
            return here, there
    if here is not None and there is None and not is_in(here, qrels) and is_in(here, table):
        here, there = None, here
    if here is None:
        here = _guess(ours, qrels) or (_guess(theirs, qrels) if ours == "doc_id" else None)
    if there is None and here is not None:
        there = here if is_in(here, table) else _guessed_partner(here, ours, theirs, table)
    return here, there


def _guessed_partner(name: str, ours: str, theirs: str, table: Sequence[str]) -> str | None:
    """The column of a table that most likely holds what another table calls ``name``: of SKUs one of SKUs."""
    if "sku" in _squashed(name):
        return next((one for one in table if "sku" in _squashed(one)), None)
    plain = [one for one in table if _squashed(one).endswith("id")]
    return _guess(ours, plain) or _guess(theirs, table) or _guess(ours, table)


def _guess(what: str, columns: Sequence[str]) -> str | None:
    """The column with the best of the usual names: as it is written there, or else but for case and separators."""
    lower = {column.lower(): column for column in reversed(columns)}
    squashed = {_squashed(column): column for column in reversed(columns)}
    return next((lower[one.lower()] for one in _GUESSES[what] if one.lower() in lower), None) or next(
        (squashed[_squashed(one)] for one in _GUESSES[what] if _squashed(one) in squashed), None
    )


def _squashed(name: str) -> str:
    """A column's name without case and separators; Google's ``g:`` in front is none of it."""
    return re.sub(r"[\W_]+", "", name.lower().removeprefix("g:"))
