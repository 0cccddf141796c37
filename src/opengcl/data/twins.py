"""Queries and documents on both sides of a split that are the same, or nearly: what was held back was seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from opengcl.data.dataset import RankedDataset
from opengcl.data.problems import Problem, shown
from opengcl.data.records import Records
from opengcl.near_duplicates import NearDuplicates
from opengcl.query_text import normalised

SIMILAR = 0.8
"""Jaccard similarity of runs of three characters from which on two texts are near duplicates."""

COMPARED = 2_000
"""Texts of each side that are compared for near duplicates."""

_LONGEST = 300
_BLOCK = 256  # texts may have a megabyte each
_EXAMPLES = 3


def query_twins(data: RankedDataset, *, examples: int) -> list[Problem]:
    """Novel queries that are seen ones, and test queries that are dev ones, but for their spelling.

    Two queries are the same where `opengcl.query_text.normalised` makes their texts equal. Queries with pictures
    are left out.

    Args:
        data: The data set.
        examples: How many are named of each kind.

    Returns:
        A problem for each of the two divisions in which there are such.
    """
    keys, there = _keys(data.queries)
    divisions = (
        ("novel", "seen", ~data.splits.query_seen & there, data.splits.query_seen & there),
        ("test", "dev", ~data.splits.query_dev & there, data.splits.query_dev & there),
    )
    found = []
    for held, known, here, others in divisions:
        rows = np.flatnonzero(here & np.isin(keys, keys[others]))
        if len(rows):
            kind = f"of {int(here.sum()):,} {held} queries, a {known} one has the same text but for its spelling"
            allowed = (
                "a query on one side only (give both one id: import without ids of queries makes one of them)"
                if held == "novel"
                else "a query in one part only"
            )
            named = tuple(_twin(data.queries, row, keys, others) for row in rows[:examples].tolist())
            column = ", ".join(_text_fields(data.queries))
            found.append(Problem(data.queries.file, column, kind, allowed, len(rows), named))
    return found


def near_twins(data: RankedDataset, *, seed: int = 0) -> list[str]:
    """Sentences about queries and documents that are near duplicates of some on the other side of a division.

    At most `COMPARED` of each side are compared, drawn evenly; texts that are the same are not counted.
    """
    queries, documents = data.queries, data.documents
    seen, dev, known = (
        np.asarray(one) for one in (data.splits.query_seen, data.splits.query_dev, data.splits.document_seen)
    )
    compared = [
        _nearest(queries, "queries", "novel", "seen", ~seen, seen, seed),
        _nearest(queries, "queries", "test", "dev", ~dev, dev, seed),
        _nearest(documents, "documents", "novel", "seen", ~known, known, seed, same_too=True),
    ]
    return [one for one in compared if one is not None]


def same_queries(records: Records) -> int:
    """How many queries have the text of an earlier one but for its spelling."""
    keys, there = _keys(records)
    return int(there.sum()) - len(np.unique(keys[there]))


def _text_fields(records: Records) -> list[str]:
    return [name for name, kind in records.fields.items() if kind == "text"]


def _keys(records: Records) -> tuple[Int[np.ndarray, rows], Bool[np.ndarray, rows]]:
    """A hash of each row's normalised texts, and which rows have texts and no pictures."""
    fields = _text_fields(records)
    keys = np.zeros(len(records), np.uint64)
    there = np.zeros(len(records), bool)
    for rows in _blocks(len(records)):
        texts = [records.texts(name, rows) for name in fields]
        for name in fields:
            there[rows] |= records.present(name, rows)
        for name in set(records.fields) - set(fields):
            there[rows] &= ~records.present(name, rows)
        if fields:
            digests = b"".join(_digest(row) for row in zip(*texts, strict=True))
            keys[rows] = np.frombuffer(digests, np.uint64)
    return keys, there


def _digest(texts: tuple[str | None, ...]) -> bytes:
    """64 bits of the normalised texts of a row."""
    joined = "\0".join(normalised(one or "") for one in texts)
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _blocks(rows: int) -> Iterator[Int[np.ndarray, block]]:
    for start in range(0, rows, _BLOCK):
        yield np.arange(start, min(rows, start + _BLOCK))


def _twin(queries: Records, row: int, keys: np.ndarray, others: np.ndarray) -> str:
    twin = int(np.flatnonzero(others & (keys == keys[row]))[0])
    return " and ".join(f"{shown(_text(queries, one))} (id {shown(queries.ids([one])[0])})" for one in (row, twin))


def _text(records: Records, row: int) -> str:
    found = (records.texts(name, [row])[0] for name in _text_fields(records))
    return ", ".join(one for one in found if one)


@dataclass(frozen=True)
class _Side:
    """Some rows and their texts."""

    rows: list[int]
    texts: list[str]


def _drawn(records: Records, field: str, chosen: np.ndarray, seed: int) -> _Side:
    rows = np.flatnonzero(chosen & np.asarray(records.present(field, np.arange(len(records)))))
    if len(rows) > COMPARED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, COMPARED, replace=False))
    blocks = (records.texts(field, rows[block]) for block in _blocks(len(rows)))
    return _Side(rows.tolist(), [(one or "")[:_LONGEST] for texts in blocks for one in texts])


def _nearest(
    records: Records,
    side: str,
    held: str,
    known: str,
    here: np.ndarray,
    others: np.ndarray,
    seed: int,
    *,
    same_too: bool = False,
) -> str | None:
    """A sentence about texts of ``here`` that are near duplicates of ``others``; None where there are none."""
    field = next(iter(_text_fields(records)), None)
    if field is None:
        return None
    ours, theirs = _drawn(records, field, here, seed), _drawn(records, field, others, seed)
    remembered = NearDuplicates(SIMILAR)
    for text in theirs.texts:
        remembered.add(text)
    pairs = [(text, near) for text in ours.texts if (near := remembered.find(text)) is not None]
    if not same_too:
        pairs = [(text, near) for text, near in pairs if normalised(text) != normalised(near)]
    if not pairs:
        return None
    listed = "; ".join(f"{shown(text)} and {shown(near)}" for text, near in pairs[:_EXAMPLES])
    return (
        f"{side}: of {len(ours.rows):,} {held} ones compared, {len(pairs):,} nearly repeat one of "
        f"{len(theirs.rows):,} {known} ones ({field}, similarity of at least {SIMILAR}), such as {listed}"
    )
