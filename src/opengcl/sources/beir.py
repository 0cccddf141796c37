"""BEIR and MTEB folders: a corpus, queries, and judgments of one or more splits.

Both layouts are read: ``corpus.jsonl``, ``queries.jsonl`` (or ``.jsonl.gz``) and ``qrels/SPLIT.tsv`` as BEIR has them,
and the same three as folders of Parquet files, as MTEB's copies on the hub do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from opengcl.data.problems import DataSetError, listed
from opengcl.data.schema import DOCUMENT_ID, PART, QUERY_ID, SPLIT
from opengcl.sources.columns import ids, numbers, texts
from opengcl.sources.source import Batch, Description
from opengcl.sources.table_files import TableFile

_ID_NAMES = ("_id", "id")
_QRELS = {
    "query": ("query-id", "query_id"),
    "document": ("corpus-id", "corpus_id", "doc_id"),
    "score": ("score", "relevance"),
}
_QRELS_FOLDERS = ("qrels", "default", "data")


@dataclass(frozen=True)
class BeirSource:
    """One BEIR or MTEB data set.

    Queries of the split ``train`` are seen; those of ``dev`` (or ``validation``) and ``test`` are novel, and dev and
    test parts. A query of several splits counts for the first of train, dev and test. With a single split the queries
    are divided by our formula. Documents are always divided by it, as these sets do not divide them.

    Attributes:
        folder: The data set.
    """

    folder: Path

    def describe(self) -> Description:
        """See `Source`."""
        corpus, queries, qrels = self._corpus(), self._queries(), self._qrels()
        names = {one for file in corpus for one in file.columns}
        if "text" not in names:
            raise DataSetError(f"{corpus[0].path}: no column 'text'; it has {listed(sorted(names))}")
        documents = [name for name in ("title", "text") if name in names]
        return Description(
            source="beir",
            name=self.folder.resolve().name,
            queries={"query": "text"},
            documents=dict.fromkeys(documents, "text"),
            options={"splits": list(qrels)},
            files=tuple(file.path for file in [*corpus, *queries, *(one for part in qrels.values() for one in part)]),
            split_queries=len(qrels) > 1,
        )

    def batches(self, *, progress: bool) -> Iterator[Batch]:
        """See `Source`."""
        described, qrels = self.describe(), self._qrels()
        split_of = self._split_of(qrels, progress=progress) if described.split_queries else None
        for file in self._queries():
            name, text = _one(file, _ID_NAMES), _one(file, ("text", "query"))
            for rows in file.read([name, text], progress=progress):
                columns = {QUERY_ID: ids(rows.batch.column(name), file.name, name)}
                columns["query"] = texts(rows.batch.column(text), file.name, text)
                if split_of is not None:
                    found = [split_of.get(one) for one in columns[QUERY_ID].to_pylist()]
                    columns[SPLIT] = pa.array(
                        ["seen" if one == "train" else "novel" for one in found], pa.large_string()
                    )
                    columns[PART] = pa.array([_PARTS.get(str(one)) for one in found], pa.large_string())
                yield Batch("queries", pa.RecordBatch.from_pydict(columns), file.name, rows.first, lines=rows.lines)
        for file in self._corpus():
            name = _one(file, _ID_NAMES)
            fields = [one for one in described.documents if one in file.columns]
            for rows in file.read([name, *fields], progress=progress):
                columns = {DOCUMENT_ID: ids(rows.batch.column(name), file.name, name)}
                for one in described.documents:
                    there = one in fields
                    columns[one] = (
                        texts(rows.batch.column(one), file.name, one)
                        if there
                        else pa.nulls(len(rows.batch), pa.large_string())
                    )
                yield Batch("documents", pa.RecordBatch.from_pydict(columns), file.name, rows.first, lines=rows.lines)
        for split, files in qrels.items():
            for file in files:
                yield from self._pairs(file, split, progress)

    def _pairs(self, file: TableFile, split: str, progress: bool) -> Iterator[Batch]:
        query, document, score = (_one(file, _QRELS[name]) for name in ("query", "document", "score"))
        for rows in file.read([query, document, score], progress=progress):
            raw = rows.batch.column(score)
            columns = {
                QUERY_ID: ids(rows.batch.column(query), file.name, query),
                DOCUMENT_ID: ids(rows.batch.column(document), file.name, document),
                "score": numbers(raw, file.name, score),
                "source_split": pa.array([split] * len(rows.batch), pa.large_string()),
            }
            yield Batch(
                "qrels", pa.RecordBatch.from_pydict(columns), file.name, rows.first, raw_score=raw, lines=rows.lines
            )

    def _split_of(self, qrels: dict[str, list[TableFile]], *, progress: bool) -> dict[str, str]:
        """The split of each judged query."""
        found: dict[str, str] = {}
        for split in sorted(qrels, key=lambda one: _ORDER.get(one, 1)):
            for file in qrels[split]:
                name = _one(file, _QRELS["query"])
                for rows in file.read([name], progress=progress):
                    for one in pc.unique(ids(rows.batch.column(name), file.name, name)).to_pylist():
                        found.setdefault(one, split)
        return found

    def _corpus(self) -> list[TableFile]:
        return self._table("corpus")

    def _queries(self) -> list[TableFile]:
        return self._table("queries")

    def _table(self, name: str) -> list[TableFile]:
        for suffix in (".jsonl", ".jsonl.gz"):
            if (path := self.folder / f"{name}{suffix}").is_file():
                return [TableFile(path)]
        if files := sorted((self.folder / name).glob("*.parquet")):
            return [TableFile(path) for path in files]
        raise DataSetError(f"{self.folder}: no {name}.jsonl and no folder {name} with Parquet files")

    def _qrels(self) -> dict[str, list[TableFile]]:
        """Split -> its files."""
        for folder in (self.folder / name for name in _QRELS_FOLDERS):
            found: dict[str, list[TableFile]] = {}
            for path in sorted([*folder.glob("*.tsv"), *folder.glob("*.parquet"), *folder.glob("*.jsonl")]):
                split = path.name.partition(".")[0].partition("-")[0]
                found.setdefault(_SPLIT_NAMES.get(split, split), []).append(_judgments(path))
            if found:
                return found
        raise DataSetError(
            f"{self.folder}: no judgments; required: qrels/SPLIT.tsv, or Parquet files in qrels or default"
        )


_SPLIT_NAMES = {"validation": "dev", "val": "dev"}
_PARTS = {"dev": "dev", "test": "test"}
_ORDER = {"train": 0, "dev": 1, "test": 2}


def _judgments(path: Path) -> TableFile:
    """A file of judgments. BEIR's TSV has no quoting."""
    if path.suffix == ".tsv":
        return TableFile(path, quoted=False, delimiter="tab", decimal=".")
    return TableFile(path)


def _one(file: TableFile, names: tuple[str, ...]) -> str:
    """The first of these columns that the file has."""
    columns = file.columns
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise DataSetError(f"{file.name}: none of the columns {', '.join(names)}; it has {listed(columns)}")
    return found
