"""The rows of a source, checked and made unique as they stream by, into the tables of a data set."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from opengcl.data import tables
from opengcl.data.problems import ProblemLog, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID, SPLIT
from opengcl.data.splits import choose
from opengcl.sources.source import SIDES, Batch, Description, Side

BadRows = Literal["error", "skip"]
_ID_COLUMNS: dict[Side, tuple[str, ...]] = {
    "queries": (QUERY_ID,),
    "documents": (DOCUMENT_ID,),
    "qrels": (QUERY_ID, DOCUMENT_ID),
}


class Stage:
    """Writes the three tables into a folder while a source is read.

    A row without an id, a query or document without any field, and a score that is no finite number are problems. Of
    the rows with one id the first is kept; those that say something else count as ``differing``.

    Memory holds two 64-bit numbers for each distinct id (about 130 bytes in Python), and one batch.

    Args:
        folder: Where the tables go.
        description: Of the source.
        seen_documents: Share of the documents that are seen, where the source divides its queries but not these.
        seed: Of that division.
        log: Where problems go.
    """

    def __init__(
        self, folder: Path, description: Description, *, seen_documents: float, seed: int, log: ProblemLog
    ) -> None:
        self._folder, self._description, self._log = folder, description, log
        self._share, self._seed = seen_documents, seed
        self._fields = {"queries": list(description.queries), "documents": list(description.documents)}
        self._texts = {
            "queries": list(description.queries),
            "documents": [name for name, kind in description.documents.items() if kind == "text"],
        }
        self._contents: dict[Side, dict[int, int]] = {"queries": {}, "documents": {}}
        self._writers: dict[Side, pq.ParquetWriter] = {}
        self._open = ExitStack()
        self.counts: dict[str, int] = dict.fromkeys([*SIDES, "repeated", "differing", "skipped"], 0)
        self.scores = (np.inf, -np.inf)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._contents.clear()  # its memory is wanted for what comes next

    def add(self, batch: Batch) -> None:
        """Checks some rows and writes those that are new."""
        rows = batch.rows
        keep = self._with_ids(batch)
        if batch.side == "qrels":
            keep &= self._with_scores(batch, keep)
        else:
            keep &= self._with_fields(batch, keep)
            self.counts["skipped"] += int((~keep).sum())
            keep &= self._new(batch, keep)
            rows = self._divided(batch.side, rows)
        kept = rows.filter(pa.array(keep))
        self.counts[batch.side] += len(kept)
        if batch.side == "qrels":
            self.counts["skipped"] += int((~keep).sum())
            if len(kept):
                low, high = pc.min_max(kept.column("score")).as_py().values()
                self.scores = min(self.scores[0], low), max(self.scores[1], high)
        if len(kept):
            self._writer(batch.side, kept.schema).write_batch(kept.cast(self._writers[batch.side].schema))

    def _with_ids(self, batch: Batch) -> np.ndarray:
        keep = np.ones(len(batch.rows), bool)
        for column in _ID_COLUMNS[batch.side]:
            empty = np.flatnonzero(~np.asarray(tables.present(batch.rows.column(column))))
            examples = (f"{batch.place(row)}" for row in empty.tolist())
            self._report(batch, column, "null or empty id", "a text that is not empty", empty, examples)
            keep[empty] = False
        return keep

    def _with_scores(self, batch: Batch, keep: np.ndarray) -> np.ndarray:
        score = batch.rows.column("score")
        fine = np.asarray(pc.fill_null(pc.is_finite(score), False))
        wrong = np.flatnonzero(keep & ~fine)
        raw = batch.raw_score if batch.raw_score is not None else score
        examples = (f"{batch.place(row)} holds {shown(raw[row].as_py())}" for row in wrong.tolist())
        self._report(batch, batch.score_column, "unusable score", batch.allowed_score, wrong, examples)
        return fine

    def _with_fields(self, batch: Batch, keep: np.ndarray) -> np.ndarray:
        names = self._fields[batch.side]
        there = np.logical_or.reduce([np.asarray(tables.present(batch.rows.column(name))) for name in names])
        empty = np.flatnonzero(keep & ~there)
        ids = batch.rows.column(_ID_COLUMNS[batch.side][0])
        examples = (f"{batch.place(row)} (id {shown(ids[row].as_py())})" for row in empty.tolist())
        allowed = "at least one field that is not empty"
        self._report(batch, ", ".join(names), "no field present", allowed, empty, examples)
        return there

    def _new(self, batch: Batch, keep: np.ndarray) -> np.ndarray:
        """Which rows have an id that did not come before. Hashes of ids and of contents are compared, 64 bits each."""
        known = self._contents[batch.side]
        texts = [batch.rows.column(name).to_pylist() for name in self._texts[batch.side]]
        contents = zip(*texts, strict=True) if texts else iter([()] * len(batch.rows))
        ids = batch.rows.column(_ID_COLUMNS[batch.side][0]).to_pylist()
        fresh = np.zeros(len(batch.rows), bool)
        for row, (one, content, kept) in enumerate(zip(ids, contents, keep.tolist(), strict=True)):
            if not kept:
                continue
            size, found = len(known), hash(content)
            before = known.setdefault(hash(one), found)
            if len(known) > size:
                fresh[row] = True
            elif before == found:
                self.counts["repeated"] += 1
            else:
                self.counts["differing"] += 1
        return fresh

    def _divided(self, side: Side, rows: pa.RecordBatch) -> pa.RecordBatch:
        """With a column ``split``, where the source divides its queries only."""
        if side != "documents" or not self._description.split_queries:
            return rows
        ids = rows.column(DOCUMENT_ID).to_pylist()
        seen = choose((one or "" for one in ids), seed=self._seed, side="document", share=self._share)
        return rows.append_column(SPLIT, pa.array(np.where(seen, "seen", "novel")))

    def _writer(self, side: Side, schema: pa.Schema) -> pq.ParquetWriter:
        if side not in self._writers:
            path = self._folder / f"{side}.parquet"
            self._writers[side] = self._open.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
        return self._writers[side]

    def _report(self, batch: Batch, column: str, kind: str, allowed: str, rows: np.ndarray, examples: Any) -> None:
        self._log.add(batch.file, column, kind, allowed, len(rows), examples)
