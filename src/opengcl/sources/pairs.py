"""Judged pairs of a staged data set: those that name nothing, and those that come more than once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow.parquet as pq

from opengcl.data import engine
from opengcl.data.problems import DataSetError, ProblemLog, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID
from opengcl.sources.source import SIDES

RepeatedPairs = Literal["error", "max", "mean", "first"]
_CHOICES: dict[RepeatedPairs, str] = {
    "error": "first(score ORDER BY file_row_number)",  # they are all equal then
    "max": "max(score)",
    "mean": "avg(score)",
    "first": "first(score ORDER BY file_row_number)",
}
_EXAMPLES = 5


def settle_pairs(
    folder: Path, spill: Path, log: ProblemLog, *, repeated: RepeatedPairs, skip_unknown: bool, threads: int | None
) -> dict[str, int]:
    """Leaves one row a pair in ``qrels.parquet``, and only pairs of queries and documents that are there.

    DuckDB joins and groups on disk, in the memory of `engine.MEMORY`. The order of the rows stays.

    Args:
        folder: With the three tables.
        spill: Where DuckDB puts what does not fit into memory.
        log: Where pairs of unknown ids are told.
        repeated: What becomes of a pair with several scores; those of one score are merged in any case.
        skip_unknown: Whether pairs of unknown ids are dropped, or an error.
        threads: Of DuckDB; all by default.

    Returns:
        ``qrels``: pairs left; ``pairs_merged``: rows that went into others; ``pairs_with_several_scores``;
        ``pairs_without_queries`` and ``pairs_without_documents``, where there were such.

    Raises:
        DataSetError: Pairs of unknown ids or with several scores, where they are not allowed, or no pair is left.
    """
    with engine.connect(spill, threads=threads) as database:
        for side in SIDES:
            database.read_parquet(str(folder / f"{side}.parquet"), file_row_number=True).create_view(side)
        lost = _pairs_of_nothing(database, log)
        if lost and not skip_unknown:
            log.stop()
        merged, several = _one_row(
            database,
            "SELECT coalesce(sum(n - 1), 0)::BIGINT, count(*) FILTER (low < high) FROM (SELECT count(*) n, "
            "min(score) low, max(score) high FROM qrels GROUP BY query_id, doc_id HAVING count(*) > 1)",
        )
        if several and repeated == "error":
            raise DataSetError(_several_scores(database, several))
        if lost or merged:
            _rewrite(database, folder / "qrels.parquet", _CHOICES[repeated])
        (pairs,) = _one_row(database, "SELECT count(*) FROM qrels")
    if not pairs:
        raise DataSetError("\n".join(["no judged pair is left", *map(str, log.problems())]))
    return {"qrels": pairs, "pairs_merged": merged, "pairs_with_several_scores": several, **lost}


def _pairs_of_nothing(database: duckdb.DuckDBPyConnection, log: ProblemLog) -> dict[str, int]:
    counts: dict[str, int] = {}
    for column, side in ((QUERY_ID, "queries"), (DOCUMENT_ID, "documents")):
        lost = f"FROM qrels ANTI JOIN {side} USING ({column})"
        (number,) = _one_row(database, f"SELECT count(*) {lost}")
        if number:
            found = database.sql(f"SELECT DISTINCT {column} {lost} ORDER BY 1 LIMIT {_EXAMPLES}").fetchall()
            log.add("qrels", column, "unknown id", f"an id of {side}", number, (f"id {shown(one)}" for (one,) in found))
            counts[f"pairs_without_{side}"] = number
    return counts


def _several_scores(database: duckdb.DuckDBPyConnection, count: int) -> str:
    found = database.sql(
        "SELECT query_id, doc_id, list(score ORDER BY score) FROM qrels GROUP BY ALL "
        "HAVING min(score) < max(score) ORDER BY 1, 2 LIMIT 5"
    ).fetchall()
    listed = "; ".join(f"{shown((query, document))} has {shown(scores)}" for query, document, scores in found)
    return (
        f"{count:,} pairs have several scores: {listed}. Allowed: one score a pair; or choose their max, mean or first "
        "(repeated pairs)"
    )


def _rewrite(database: duckdb.DuckDBPyConnection, path: Path, score: str) -> None:
    names = [name for name in pq.read_schema(path).names if name not in (QUERY_ID, DOCUMENT_ID, "score")]
    others = "".join(f', first("{_escaped(name)}" ORDER BY file_row_number) AS "{_escaped(name)}"' for name in names)
    new = path.with_suffix(".new")
    database.sql(
        f"SELECT query_id, doc_id, {score} AS score{others} FROM qrels "  # noqa: S608
        "SEMI JOIN queries USING (query_id) SEMI JOIN documents USING (doc_id) "
        "GROUP BY query_id, doc_id ORDER BY min(file_row_number)"
    ).write_parquet(str(new), compression="zstd")
    new.replace(path)


def _escaped(name: str) -> str:
    return name.replace('"', '""')


def _one_row(database: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The row of an aggregate, of which there is always one."""
    return database.sql(query).fetchall()[0]
