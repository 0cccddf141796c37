"""A ranked data set: opened lazily from its folder, checked once, memory-mapped after."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opengcl.data import cache
from opengcl.data.build import DEV, SEEN, Builder, sides
from opengcl.data.new_folder import new_folder
from opengcl.data.problems import EXAMPLES, DataSetError, Problem
from opengcl.data.qrels import Qrels
from opengcl.data.records import Records
from opengcl.data.schema import SCHEMA_FILE, Schema
from opengcl.data.splits import SPLITS, Splits
from opengcl.named_folders import no_such_folder

__all__ = ["DataSetError", "Problem", "Qrels", "RankedDataset", "Records", "write_dataset"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankedDataset:
    """Queries, documents and the scores of their judged pairs.

    Attributes:
        path: The data set's folder.
        schema: What its ``dataset.yaml`` says.
        fingerprint: Hash over ``dataset.yaml`` and the bytes of the three tables, the same wherever they lie.
            Pictures outside the tables are not part of it.
        problems: What was skipped; empty when opened strictly.
        queries: The rows of queries.parquet.
        documents: The rows of documents.parquet.
        qrels: The judged pairs.
        splits: Which rows and pairs belong to which split.
        strict: Whether it was opened strictly. If not, what a model cannot read is left out and told, and no error.
    """

    path: Path
    schema: Schema
    fingerprint: str
    problems: list[Problem]
    queries: Records
    documents: Records
    qrels: Qrels
    splits: Splits
    _entry: Path
    strict: bool = True

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        strict: bool = True,
        cache_dir: Path | str | None = None,
        check_images: bool = True,
        progress: bool = True,
    ) -> RankedDataset:
        """Opens a data set's folder.

        The first time every row is checked and a copy that can be memory-mapped is written to the cache; after
        that, while the files stay as they are, opening reads a few kilobytes. The folder is never written to.

        Args:
            path: The folder with ``dataset.yaml``, ``queries.parquet``, ``documents.parquet``, ``qrels.parquet``.
            strict: If False, rows with problems are skipped, counted in `problems` and told as warnings; a
                document or query with an unreadable picture stays, without the picture, if it has another field.
            cache_dir: Cache folder; None for ``OPENGCL_CACHE`` or else ``~/.cache/opengcl``.
            check_images: If False, pictures are not decoded now; a broken one is an error when it is read.
            progress: Whether long work shows a progress bar on stderr.

        Raises:
            DataSetError: If the data set is not as the format says: file, row, column, what was found, what is
                allowed; up to five examples of each kind of problem.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise DataSetError(f"{no_such_folder(folder)}; required: a folder with {SCHEMA_FILE} and three tables")
        schema = Schema.read(folder)
        parent = cache.root(cache_dir)
        names = _entries(cache.key(folder), strict=strict, check_images=check_images)
        entry = cache.find(parent, names)
        if entry is None:

            def build(into: Path) -> str:
                return build_entry(Builder(folder, schema, into, strict, check_images, progress))

            entry = cache.store(parent, build)
        try:
            found = load_entry(folder, schema, entry)
        except (OSError, EOFError, ValueError, KeyError, pa.ArrowException) as error:
            raise DataSetError(f"{entry}: this cache entry is damaged ({error}); remove it and open again") from error
        for problem in found.problems:
            log.warning("Skipped: %s", problem)
        return replace(found, strict=strict)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to a spawned worker as the places of its files, not as their content."""
        return load_entry, (self.path, self.schema, self._entry, self.strict)

    def describe(self) -> dict[str, Any]:
        """Counts, ready for JSON.

        Returns:
            ``name``, ``fingerprint``, ``queries``, ``documents``, ``pairs``; ``not_relevant``: pairs with a score of 0
            or below; ``splits``: for each split its ``queries`` (with a judged document there), ``dev_queries``,
            ``test_queries``, ``documents`` and ``pairs``; ``missing``: for both sides the rows that lack each field;
            ``problems``: rows skipped or changed for each kind of problem.
        """
        pairs = self.splits.pair_counts()
        counts = {
            split: {
                "queries": len(self.splits.query_rows(split)),
                "dev_queries": len(self.splits.query_rows(split, "dev")),
                "test_queries": len(self.splits.query_rows(split, "test")),
                "documents": len(self.splits.document_rows(split)),
                "pairs": pairs[split],
            }
            for split in SPLITS
        }
        return {
            "name": self.schema.name,
            "fingerprint": self.fingerprint,
            "queries": len(self.queries),
            "documents": len(self.documents),
            "pairs": len(self.qrels),
            "not_relevant": self.qrels.not_relevant()[0],
            "splits": counts,
            "missing": {"queries": self.queries.missing(), "documents": self.documents.missing()},
            "problems": [
                {"file": one.file, "column": one.column, "kind": one.kind, "count": one.count} for one in self.problems
            ],
        }


def write_dataset(
    out: Path | str,
    schema: Schema,
    queries: pa.Table | pa.RecordBatchReader,
    documents: pa.Table | pa.RecordBatchReader,
    qrels: pa.Table | pa.RecordBatchReader,
) -> Path:
    """Writes a data set's folder, whole or not at all.

    Args:
        out: The folder; it must not exist yet, or be empty.
        schema: Becomes ``dataset.yaml``.
        queries: Column ``query_id``, the schema's query fields, and any others.
        documents: Column ``doc_id``, the schema's document fields, and any others.
        qrels: Columns ``query_id``, ``doc_id``, ``score``, and any others.

    Returns:
        The folder. It is not checked: `RankedDataset.open` does that.

    Raises:
        DataSetError: If the folder exists and is not empty.
    """
    out = Path(out)
    with new_folder(out) as temporary:
        (temporary / SCHEMA_FILE).write_text(schema.to_yaml(), encoding="utf-8")
        for name, table in zip(cache.TABLES, (queries, documents, qrels), strict=True):
            _write_parquet(temporary / name, table)
    return out


def _write_parquet(path: Path, table: pa.Table | pa.RecordBatchReader) -> None:
    batches = table.to_batches() if isinstance(table, pa.Table) else table
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def _entries(key: str, *, strict: bool, check_images: bool) -> list[str]:
    """Names of the cache entries that serve such an opening, best first.

    An entry without problems serves a strict and a lenient opening alike; one with its pictures checked also
    serves an opening that does not ask for that.
    """
    names = [_entry_name(key, skipped=False, check_images=True)]
    if not check_images:
        names.append(_entry_name(key, skipped=False, check_images=False))
    if not strict:
        names.append(_entry_name(key, skipped=True, check_images=check_images))
    return names


def _entry_name(key: str, *, skipped: bool, check_images: bool) -> str:
    return f"{key}{'-skipped' if skipped else ''}{'' if check_images else '-unseen-images'}"


def build_entry(builder: Builder) -> str:
    """Fills a cache entry, all but its place, and returns its name.

    Raises:
        DataSetError: If the data set cannot be used, or changes meanwhile.
    """
    folder = builder.folder
    key = cache.key(folder)
    builder.run()
    problems = [replace(problem, examples=problem.examples[:EXAMPLES]) for problem in builder.log.problems()]
    meta = {
        "path": str(folder.resolve()),
        "fingerprint": cache.content_hash(folder),
        "problems": [asdict(problem) for problem in problems],
    }
    (builder.into / cache.META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
    if cache.key(folder) != key:
        raise DataSetError(f"{folder}: changed while it was read; open it again")
    return _entry_name(key, skipped=bool(problems), check_images=builder.check_images)


def load_entry(folder: Path, schema: Schema, entry: Path, strict: bool = True) -> RankedDataset:
    """Memory-maps a cache entry."""
    meta = json.loads((entry / cache.META).read_text(encoding="utf-8"))
    problems = [Problem(**{**one, "examples": tuple(one["examples"])}) for one in meta["problems"]]
    queries, documents = (
        Records(entry / side.name, folder.resolve(), side.file, side.id_column, side.fields) for side in sides(schema)
    )
    qrels = Qrels.load(entry / "qrels")
    query_seen, document_seen, query_dev = (
        np.load(entry / mark, mmap_mode="r") for mark in (f"queries/{SEEN}", f"documents/{SEEN}", f"queries/{DEV}")
    )
    splits = Splits(query_seen, document_seen, query_dev, qrels.query, qrels.document, qrels.score)
    return RankedDataset(
        folder, schema, meta["fingerprint"], problems, queries, documents, qrels, splits, entry, strict
    )
