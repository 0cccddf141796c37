"""``dataset.yaml``: which columns are model fields, and the range of the scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from opengcl.data.problems import DataSetError, shown
from opengcl.plain_yaml import Key, YamlError, YamlFile, advice, parse_yaml, read_yaml, write_yaml

FieldType = Literal["text", "image"]
FIELD_TYPES: tuple[FieldType, ...] = get_args(FieldType)

SCHEMA_FILE = "dataset.yaml"
QUERY_ID = "query_id"
DOCUMENT_ID = "doc_id"
SPLIT = "split"
PART = "part"
_OPTIONAL = ("splits", "provenance")
_TEXTS = ("name",)  # where dataset.yaml wants a text, whatever it looks like


MOST_SCORE = 1e300
"""The largest score, above or below 0, so that sums and products of a few are finite too."""


@dataclass(frozen=True)
class SplitOptions:
    """How the splits are made where the tables have no ``split`` column.

    Attributes:
        seed: Any integer; another seed, another division.
        seen_queries: Share of the queries that training may see, in [0, 1].
        seen_documents: Share of the documents that training may see, in [0, 1].
        dev: Share of each split's queries that is for choosing settings, in [0, 1]; the rest is the test
            part. Used with and without ``split`` columns.
    """

    seed: int = 0
    seen_queries: float = 0.8
    seen_documents: float = 0.5
    dev: float = 0.5

    def __post_init__(self) -> None:
        """Checks types and ranges.

        Raises:
            DataSetError: If a share is not a number in [0, 1], or the seed not an integer.
        """
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            found = f"{shown(self.seed)}; allowed: an integer{advice(self.seed)}"
            raise DataSetError(f"splits.seed: found {found}", key=("splits", "seed"))
        for name in ("seen_queries", "seen_documents", "dev"):
            share = getattr(self, name)
            if not _is_number(share) or not 0 <= share <= 1:
                found = f"{shown(share)}; allowed: a number from 0 to 1{advice(share)}"
                raise DataSetError(f"splits.{name}: found {found}", key=("splits", name))


@dataclass(frozen=True)
class Schema:
    """What ``dataset.yaml`` says.

    Attributes:
        name: The data set's name, for reports.
        queries: Field (a column of queries.parquet) -> type, in the order given.
        documents: Field (a column of documents.parquet) -> type, in the order given.
        score_min: Smallest score allowed in qrels.parquet.
        score_max: Largest score allowed.
        splits: How splits are made.
        provenance: Where the data come from: source, versions, options, counts, hashes. Told, never read by training.
    """

    name: str
    queries: dict[str, FieldType]
    documents: dict[str, FieldType]
    score_min: float
    score_max: float
    splits: SplitOptions = field(default_factory=SplitOptions)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks every part.

        Raises:
            DataSetError: Naming the part, what was found and what is allowed.
        """
        if not isinstance(self.name, str) or not self.name.strip():
            raise DataSetError(f"name: found {shown(self.name)}; allowed: a text that is not empty", key=("name",))
        _check_fields("queries", self.queries, (QUERY_ID, SPLIT, PART))
        _check_fields("documents", self.documents, (DOCUMENT_ID, SPLIT))
        for bound in ("min", "max"):
            value = getattr(self, f"score_{bound}")
            if not _is_number(value) or not abs(value) <= MOST_SCORE:
                limit = f", up to {MOST_SCORE:g} either way" if _is_number(value) else advice(value)
                found = f"{shown(value)}; allowed: a finite number{limit}"
                raise DataSetError(f"score.{bound}: found {found}", key=("score", bound))
        if self.score_min >= self.score_max:
            found = f"found min {self.score_min} and max {self.score_max}"
            raise DataSetError(f"score: {found}; allowed: min < max", key=("score",))

    @property
    def relevance_range(self) -> tuple[float, float]:
        """The range of relevance: scores below 0 count as 0 (`opengcl.metrics.relevance`)."""
        return max(0.0, self.score_min), max(0.0, self.score_max)

    def share(self, score: float) -> float:
        """Where a score's relevance lies in its range, in [0, 1], to be shown as a colour or in per cent."""
        low, high = self.relevance_range
        return min(1.0, max(0.0, (max(0.0, score) - low) / (high - low))) if low < high else 0.0

    @classmethod
    def parse(cls, text: str) -> Schema:
        """Reads the YAML text of a ``dataset.yaml``.

        Raises:
            DataSetError: If it is not YAML, has unknown or missing keys, or values that are not allowed.
        """
        try:
            return cls._of(parse_yaml(text, texts=_TEXTS))
        except YamlError as error:
            raise DataSetError(str(error)) from error

    @classmethod
    def _of(cls, read: YamlFile) -> Schema:
        try:
            return cls._from(read.content)
        except DataSetError as error:
            raise DataSetError(f"{read.place(error.key)}: {error}".removeprefix(": ")) from error

    @classmethod
    def _from(cls, content: object) -> Schema:
        top = _mapping((), content, required=("name", "queries", "documents", "score"), optional=_OPTIONAL)
        score = _mapping(("score",), top["score"], required=("min", "max"))
        splits = _mapping(("splits",), top.get("splits", {}), optional=tuple(asdict(SplitOptions())))
        return cls(
            name=cast(str, top["name"]),
            queries=cast(dict[str, FieldType], top["queries"]),
            documents=cast(dict[str, FieldType], top["documents"]),
            score_min=cast(float, score["min"]),
            score_max=cast(float, score["max"]),
            splits=SplitOptions(**cast(dict[str, Any], splits)),
            provenance=dict(_mapping(("provenance",), top.get("provenance", {}), any_key=True)),
        )

    @classmethod
    def read(cls, folder: Path) -> Schema:
        """Reads ``dataset.yaml`` in a data set's folder.

        Raises:
            DataSetError: If the file is missing, unreadable or wrong; the message names it.
        """
        try:
            return cls._of(read_yaml(folder / SCHEMA_FILE, texts=_TEXTS))
        except YamlError as error:
            raise DataSetError(str(error)) from error

    def to_yaml(self) -> str:
        """The text of a ``dataset.yaml`` that reads back as this schema."""
        content: dict[str, object] = {
            "name": self.name,
            "queries": self.queries,
            "documents": self.documents,
            "score": {"min": self.score_min, "max": self.score_max},
        }
        if self.splits != SplitOptions():
            content["splits"] = asdict(self.splits)
        if self.provenance:
            content["provenance"] = self.provenance
        return write_yaml(content)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mapping(
    key: Key, found: object, *, required: Iterable[str] = (), optional: Iterable[str] = (), any_key: bool = False
) -> Mapping[str, object]:
    """A YAML mapping with exactly these keys, or an error that lists the valid ones; ``any_key`` allows all."""
    where = ".".join(key) or "the file"
    if not isinstance(found, dict):
        told = "nothing" if found is None else shown(found)
        raise DataSetError(f"{where}: found {told}; allowed: a mapping", key=key)
    valid = [*required, *optional]
    if unknown := [] if any_key else [name for name in found if name not in valid]:
        message = f"{where}: unknown key {shown(unknown[0])}; allowed: {', '.join(valid)}"
        raise DataSetError(message, key=(*key, str(unknown[0])))
    if missing := [name for name in required if name not in found]:
        message = f"{where}: the key '{missing[0]}' is missing; required: {', '.join(required)}"
        raise DataSetError(message, key=key)
    return found


def _check_fields(side: str, fields: object, reserved: tuple[str, ...]) -> None:
    """Raises unless `fields` maps column names to field types and has at least one."""
    if not isinstance(fields, dict) or not fields:
        message = f"{side}: found {shown(fields)}; allowed: a mapping of columns to text or image"
        raise DataSetError(message, key=(side,))
    for name, kind in fields.items():
        key = (side, str(name))
        if not isinstance(name, str) or not name.strip():
            raise DataSetError(f"{side}: found the field {shown(name)}; allowed: a column's name (a text)", key=key)
        if name in reserved:
            message = f"{side}: the column '{name}' cannot be a model field; allowed: any other column"
            raise DataSetError(message, key=key)
        if kind not in FIELD_TYPES:
            message = f"{side}.{name}: found {shown(kind)}; allowed: {', '.join(FIELD_TYPES)}"
            raise DataSetError(message, key=key)
