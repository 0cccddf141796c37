"""What every store of vectors does: versions of an index side by side, one of them live."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from jaxtyping import Float32

from opengcl.index.filters import FIELD_TYPES, FieldType, Filter

VectorType = Literal["float32", "int8"]
VECTOR_TYPES: tuple[VectorType, ...] = get_args(VectorType)

LONGEST_ID = 1024
"""Bytes of a document's id in UTF-8, at most."""

LONGEST_TEXT = 65_535
"""Bytes of a text that travels along, at most."""

log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class VectorIndexError(ValueError):
    """What was asked of an index or store cannot be: the message says what was found and what is allowed."""


class UnknownIndex(VectorIndexError):  # noqa: N818 - reads as what it is
    """No index of that name, or none that is live; also an index that was dropped while it was open."""


class StoreError(OSError):
    """A store that cannot be reached, read or written now. What was acknowledged before is not lost."""


@dataclass(frozen=True)
class IndexSpec:
    """What an index holds; settled when it is made. Vectors are of length 1, and the score is the cosine.

    Attributes:
        model: Fingerprint of the model that made the vectors, from `opengcl.index.model_fingerprint`.
        dimension: Components of a vector, at least 1.
        dtype: How components are kept: ``float32``, or ``int8``: each vector times 127 over its largest component in
            size, rounded. That scale falls out of the cosine, so it isn't kept.
        fields: What travels along with each document, to be shown and filtered on: name -> type.
        data: Fingerprint of the data set whose documents it was made of.
        created: When, ISO 8601 in UTC.
    """

    model: str
    dimension: int
    dtype: VectorType
    fields: dict[str, FieldType]
    data: str
    created: str

    def __post_init__(self) -> None:
        """Checks every part.

        Raises:
            VectorIndexError: Naming the part, what was found and what is allowed.
        """
        if isinstance(self.dimension, bool) or not isinstance(self.dimension, int) or self.dimension < 1:
            raise VectorIndexError(f"dimension: found {self.dimension!r}; allowed: a whole number from 1 on")
        if self.dtype not in VECTOR_TYPES:
            raise VectorIndexError(f"dtype: found {self.dtype!r}; allowed: {', '.join(VECTOR_TYPES)}")
        if not isinstance(self.fields, dict):
            raise VectorIndexError(f"fields: found {self.fields!r}; allowed: a mapping of names to types")
        for name, kind in self.fields.items():
            if not isinstance(name, str) or not name.strip():
                raise VectorIndexError(f"fields: found the name {name!r}; allowed: a text that is not blank")
            if kind not in FIELD_TYPES:
                raise VectorIndexError(f"field {name!r}: found type {kind!r}; allowed: {', '.join(FIELD_TYPES)}")
        for part in ("model", "data", "created"):
            if not isinstance(getattr(self, part), str):
                raise VectorIndexError(f"{part}: found {getattr(self, part)!r}; allowed: text")

    def to_json(self) -> str:
        """One line that `from_json` reads back."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> IndexSpec:
        """Reads what `to_json` wrote.

        Raises:
            VectorIndexError: It isn't that.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise VectorIndexError(f"not the description of an index: {error}") from error

    def same_content(self, other: IndexSpec) -> bool:
        """Whether both describe the same vectors and fields, whenever they were made."""
        return dataclasses.replace(self, created=other.created) == other


@dataclass(frozen=True)
class Hit:
    """A found document."""

    doc_id: str
    score: float  # cosine, -1 to 1
    fields: dict[str, Any]  # name -> text, int, float, bool, or None where the document lacks it


@dataclass(frozen=True, eq=False)
class Row:
    """A document as an index keeps it."""

    doc_id: str
    vector: Float32[np.ndarray, " dimension"]  # of length 1; rounded where the index is int8
    fields: dict[str, Any]


class Index(Protocol):
    """One version of an index. Threads may share one; each process opens its own.

    All methods raise `StoreError` when the store cannot be reached, and `UnknownIndex` when the index was dropped.
    """

    name: str
    spec: IndexSpec

    def upsert(
        self,
        ids: Sequence[str],
        vectors: Float32[np.ndarray, "rows dimension"],
        fields: Mapping[str, Sequence[Any]],
    ) -> None:
        """Adds documents, or replaces those whose ids are there: all of the call or none of it.

        They are durable when it returns, and found by every search that starts after.

        Args:
            ids: Of the documents, each once.
            vectors: Of length 1.
            fields: For every field of the spec a value a document; None where it lacks it.

        Raises:
            VectorIndexError: Naming what is wrong with which row.
        """
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Removes documents; ids that are not there are passed over.

        Returns:
            How many were there.
        """
        ...

    def search(
        self,
        vectors: Float32[np.ndarray, "queries dimension"],
        k: int,
        *,
        where: Filter | None = None,
        offset: int = 0,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """The documents nearest to each query, best first.

        Args:
            vectors: Of length 1.
            k: How many, at least 1. Fewer come only where fewer documents match.
            where: Which documents to look among.
            offset: How many of the best to leave out first, for further pages.
            exact: Compare with every vector instead of using the approximate index.

        Raises:
            VectorIndexError: Vectors of another width or length, or ``k`` or ``offset`` out of range.
            FilterError: A filter that doesn't fit the fields.
        """
        ...

    def count(self, where: Filter | None = None) -> int:
        """How many documents there are, or match."""
        ...

    def get(self, ids: Sequence[str]) -> list[Row | None]:
        """Documents by id, in the order asked; None where there is no such id."""
        ...

    def finish(self) -> None:
        """Builds the approximate index, or brings it up to date, after many upserts. Searches go on meanwhile."""
        ...

    def size(self) -> int | None:
        """Bytes on disk; None where the store doesn't tell."""
        ...


class Store(Protocol):
    """A place with versions of an index, at most one of them live. Threads may share one."""

    uri: str  # without a password

    def create(self, name: str, spec: IndexSpec) -> Index:
        """Makes an empty index.

        Raises:
            VectorIndexError: The name is taken or not allowed, or the store cannot hold such vectors.
        """
        ...

    def open(self, name: str | None = None) -> Index:
        """Opens an index; the live one by default.

        Raises:
            UnknownIndex: There is none; the message lists those that there are.
        """
        ...

    def names(self) -> list[str]:
        """All indexes, in the order of their names."""
        ...

    def live(self) -> str | None:
        """The name of the live index."""
        ...

    def swap(self, name: str) -> None:
        """Makes an index the live one, in one step: who opens the live index gets the old one or the new one.

        Raises:
            UnknownIndex: There is no such index.
        """
        ...

    def drop(self, name: str) -> None:
        """Removes an index with all that it holds.

        Raises:
            UnknownIndex: There is no such index.
            VectorIndexError: It is the live one.
        """
        ...

    def close(self) -> None:
        """Lets go of files and connections."""
        ...


def check_name(name: str) -> str:
    """The name, if every store can have it.

    Raises:
        VectorIndexError: It isn't a lower-case letter and up to 39 of ``a-z``, ``0-9`` and ``_``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise VectorIndexError(
            f"index name: found {name!r}; allowed: a lower-case letter, then up to 39 of a-z, 0-9 and underscores"
        )
    return name


def unknown(name: str | None, names: Sequence[str], uri: str) -> UnknownIndex:
    """The error for an index that isn't there."""
    there = ", ".join(names) or "none"
    what = "no index is live" if name is None else f"no index {name!r}"
    return UnknownIndex(f"{uri}: {what}; there: {there}")


def require_model(index: Index, model: str) -> None:
    """Makes sure that an index holds a model's own vectors: those of another cannot be compared with its queries.

    Args:
        index: Which is to be searched.
        model: Fingerprint of the model that encodes the queries.

    Raises:
        VectorIndexError: The index was made by another model.
    """
    if index.spec.model != model:
        raise VectorIndexError(
            f"index {index.name!r} holds vectors of the model {index.spec.model}, and the queries' model is {model}; "
            "build an index with this model and swap to it, or search with the index's own model"
        )


def require_live_model(store: Store, model: str, *, replace_model: bool = False) -> None:
    """Makes sure that a model's index may become the live one: servers cannot take one of another model than their own.

    Args:
        store: Where it is to be live.
        model: Fingerprint of the model that made the index.
        replace_model: Whether the live index may be of another model; that is then a warning.

    Raises:
        VectorIndexError: The live index was made by another model.
    """
    live = store.live()
    if live is None or (other := store.open(live).spec.model) == model:
        return
    found = (
        f"{store.uri}: the live index {live!r} was made by the model {other[:12]}, and this one by {model[:12]}; "
        "servers of the other model keep their index, say so in /readyz, and cannot be started again on this store"
    )
    if not replace_model:
        raise VectorIndexError(
            f"{found}; choose another store, build with --no-swap, or set --replace-model (replace_model=True) once no "
            "server of the other model needs it"
        )
    log.warning("%s; opengcl index swap %s --replace-model goes back", found, live)
