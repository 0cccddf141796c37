"""What differs between a data set as it was and as it is, as far as the cache still holds what it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from opengcl.data import cache
from opengcl.data.dataset import RankedDataset, load_entry
from opengcl.data.problems import EXAMPLES, number_of, shown
from opengcl.data.records import Records
from opengcl.data.schema import SCHEMA_FILE, Schema
from opengcl.plain_yaml import parse_yaml

_BLOCK_ROWS = 1024


def described(dataset: RankedDataset) -> dict[str, Any]:
    """What `changes` compares with later, ready for JSON."""
    return {
        "name": dataset.schema.name,
        "fingerprint": dataset.fingerprint,
        "schema": dataset.schema.to_yaml(),
        "rows": {
            "queries.parquet": len(dataset.queries),
            "documents.parquet": len(dataset.documents),
            "qrels.parquet": len(dataset.qrels),
        },
    }


def changes(before: dict[str, Any], now: RankedDataset, *, cache_dir: Path | None = None) -> list[str]:
    """What differs, with values then and now; empty where nothing does.

    The first opening of a data set leaves a copy in the cache. While that is there, rows are compared one by one and up
    to five examples of each difference are given; else only ``dataset.yaml`` and the numbers of rows are.

    Args:
        before: What `described` said then.
        now: The data set as it is.
        cache_dir: The cache folder, as in `RankedDataset.open`.
    """
    if before["fingerprint"] == now.fingerprint:
        return []
    told = [f"fingerprint was {before['fingerprint']}, now {now.fingerprint}"]
    told += islice(_changed_settings(before["schema"], now.schema.to_yaml()), EXAMPLES)
    rows = described(now)["rows"]
    for file, was in before["rows"].items():
        if was != rows[file]:
            told.append(f"{file} had {number_of(was, 'row')}, now {rows[file]:,}")
    copy = _kept_copy(before, cache.root(cache_dir))
    if copy is None:
        return [*told, "which rows differ cannot be told, as the cache no longer holds a copy of what they were"]
    for old, new in ((copy.queries, now.queries), (copy.documents, now.documents)):
        told += _changed_rows(old, new)
    return told + _changed_splits(copy, now) + _changed_pairs(copy, now)


def _changed_settings(before: str, now: str) -> Iterator[str]:
    old, new = _flat(parse_yaml(before).mapping()), _flat(parse_yaml(now).mapping())
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key):
            yield f"{SCHEMA_FILE}: {key} was {shown(old.get(key))}, now {shown(new.get(key))}"


def _flat(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _kept_copy(before: dict[str, Any], parent: Path) -> RankedDataset | None:
    """The copy that an opening then has left in the cache."""
    schema = Schema.parse(before["schema"])
    for file in sorted(parent.glob(f"*/{cache.META}")):
        try:
            meta = json.loads(file.read_text(encoding="utf-8"))
            if meta.get("fingerprint") == before["fingerprint"]:
                return load_entry(Path(meta["path"]), schema, file.parent)
        except (OSError, ValueError, KeyError, AttributeError):  # a damaged entry, or one of another kind
            continue
    return None


def _changed_rows(before: Records, now: Records) -> list[str]:
    """Rows that came, went, moved, or hold something else in a model field."""
    old, new = before.ids(), now.ids()
    told = _examples(f"{now.file}: the row of {{}} is gone", sorted(set(old) - set(new)))
    told += _examples(f"{now.file}: the row of {{}} is new", sorted(set(new) - set(old)))
    if old != new and not told:
        told.append(f"{now.file}: the same rows, in another order")
    places = now.find(old)
    kept = np.flatnonzero(places >= 0)
    for field in [name for name in now.fields if name in before.fields]:
        if old == new and before.column(field).equals(now.column(field)):
            continue
        told += islice(_changed_cells(before, now, field, kept, places[kept]), EXAMPLES)
    return told


def _changed_cells(
    before: Records, now: Records, field: str, old: Int64[np.ndarray, " rows"], new: Int64[np.ndarray, " rows"]
) -> Iterator[str]:
    for start in range(0, len(old), _BLOCK_ROWS):
        rows, places = old[start : start + _BLOCK_ROWS], new[start : start + _BLOCK_ROWS]
        pairs = zip(before.values(field, rows), now.values(field, places), strict=True)
        for row, (was, found) in zip(rows, pairs, strict=True):
            if was != found:
                where = f"{now.file}, {now.id_column} {shown(before.ids([row])[0])}, column {field!r}"
                yield f"{where}: was {_cell(was)}, now {_cell(found)}"


def _cell(value: Any) -> str:
    if isinstance(value, dict) and value.get("bytes"):
        value = value["bytes"]
    if isinstance(value, bytes):
        return f"{len(value):,} bytes (SHA-256 {hashlib.sha256(value).hexdigest()[:16]}...)"
    return shown(value)


def _changed_splits(before: RankedDataset, now: RankedDataset) -> list[str]:
    told = []
    for old, new, was_seen, is_seen in (
        (before.queries, now.queries, before.splits.query_seen, now.splits.query_seen),
        (before.documents, now.documents, before.splits.document_seen, now.splits.document_seen),
    ):
        places = new.find(old.ids())
        kept = np.flatnonzero(places >= 0)
        moved = kept[np.asarray(was_seen)[kept] != np.asarray(is_seen)[places[kept]]]
        names = ("novel", "seen")
        for row in moved[:EXAMPLES].tolist():
            was = bool(was_seen[row])
            where = f"{new.file}, {new.id_column} {shown(old.ids([row])[0])}"
            told.append(f"{where}: was {names[was]}, now {names[not was]}")
    return told


def _changed_pairs(before: RankedDataset, now: RankedDataset) -> list[str]:
    old_keys, old_scores = _pairs(before, before)
    new_keys, new_scores = _pairs(now, before)
    both, at_old, at_new = np.intersect1d(old_keys, new_keys, return_indices=True)
    other = np.flatnonzero(old_scores[at_old] != new_scores[at_new])
    told = [
        f"qrels.parquet: the score of {_pair(before, both[at])} was {old_scores[at_old[at]]:g}, "
        f"now {new_scores[at_new[at]]:g}"
        for at in other[:EXAMPLES].tolist()
    ]
    for keys, what in ((old_keys, "is no longer judged"), (new_keys, "was not judged")):
        alone = np.setdiff1d(keys, both)[:EXAMPLES]
        told += [f"qrels.parquet: {_pair(before, key)} {what}" for key in alone.tolist()]
    return told


def _pairs(
    dataset: RankedDataset, named: RankedDataset
) -> tuple[Int64[np.ndarray, " pairs"], Float32[np.ndarray, " pairs"]]:
    """A number for each judged pair by the rows of another data set, -1 where one of its rows is not there; scores."""
    query = named.queries.find(dataset.queries.ids())[dataset.qrels.query]
    document = named.documents.find(dataset.documents.ids())[dataset.qrels.document]
    keys = np.where((query < 0) | (document < 0), -1, query * len(named.documents) + document)
    known = keys >= 0
    return keys[known], np.asarray(dataset.qrels.score)[known]


def _pair(named: RankedDataset, key: int) -> str:
    query, document = divmod(int(key), len(named.documents))
    return shown((named.queries.ids([query])[0], named.documents.ids([document])[0]))


def _examples(form: str, names: list[str]) -> list[str]:
    told = [form.format(shown(name)) for name in names[:EXAMPLES]]
    return told + ([f"and {len(names) - EXAMPLES:,} more"] if len(names) > EXAMPLES else [])
