"""Judged pairs of a staged data set: those that name nothing, and those that come more than once."""

# ruff: noqa: S608 - names in SQL are constants of ours

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow.parquet as pq

from opengcl.data import engine
from opengcl.data.problems import DataSetError, ProblemLog, number_of, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID
from opengcl.sources.repeated_pairs import Repeated, SeveralScoresError
from opengcl.sources.source import SIDES
from opengcl.sources.stage import SPELLING

RepeatedPairs = Literal["error", "max", "mean", "first"]
_CHOICES: dict[RepeatedPairs, str] = {
    "error": "first(score ORDER BY file_row_number)",  # they are all equal then
    "max": "max(score)",
    "mean": "avg(score)",
    "first": "first(score ORDER BY file_row_number)",
}
_NOT_OTHERS = (QUERY_ID, DOCUMENT_ID, "score", SPELLING)
_EXAMPLES = 5
_FORMS = {
    "without zeros in front": "coalesce(nullif(ltrim({0}, '0'), ''), '0')",
    "without .0 behind": "regexp_replace({0}, '[.]0+$', '')",
    "in lower case": "lower({0})",
    "without white space": "regexp_replace({0}, '\\s+', '', 'g')",
    "by their last part, after a colon, slash or hash": "regexp_replace({0}, '^.*[:/#]', '')",
}
"""Forms of an id in which two tables may agree that spell it differently, for messages."""


def settle_pairs(
    folder: Path,
    spill: Path,
    log: ProblemLog,
    *,
    repeated: RepeatedPairs,
    skip_unknown: bool,
    threads: int | None,
    max_unmatched: float = 1.0,
) -> dict[str, int]:
    """Leaves one row a pair in ``qrels.parquet``, and only pairs of queries and documents that are there.

    DuckDB joins and groups on disk, in the memory of `engine.MEMORY`. The order of the rows stays. Where the column
    `SPELLING` tells how a pair's query was spelled, a pair may have a score for each spelling: with ``error`` the
    highest is taken then, and several scores of one spelling are an error. The column goes.

    Args:
        folder: With the three tables.
        spill: Where DuckDB puts what does not fit into memory.
        log: Where pairs of unknown ids are told.
        repeated: What becomes of a pair with several scores; those of one score are merged in any case.
        skip_unknown: Whether pairs of unknown ids are dropped, or an error.
        threads: Of DuckDB; all by default.
        max_unmatched: Share of the pairs that may name unknown queries, or unknown documents; above it they are an
            error in any case.

    Returns:
        ``qrels``: pairs left; ``pairs_merged``: rows that went into others; ``pairs_with_several_scores``, and
        ``pairs_of_merged_queries``, of them those that have one score for each spelling of their query;
        ``pairs_without_queries`` and ``pairs_without_documents``, where there were such.

    Raises:
        SeveralScoresError: Pairs with several scores, where these are not allowed.
        DataSetError: Pairs of unknown ids, where these are not allowed, or no pair is left.
    """
    with engine.connect(spill, threads=threads) as database:
        for side in SIDES:
            database.read_parquet(str(folder / f"{side}.parquet"), file_row_number=True).create_view(side)
        lost = _pairs_of_nothing(database, log, max_unmatched)
        if lost and not skip_unknown:
            log.stop()
        spelled = SPELLING in pq.read_schema(folder / "qrels.parquet").names
        merged, several = _one_row(
            database,
            "SELECT coalesce(sum(n - 1), 0)::BIGINT, count(*) FILTER (low < high) FROM (SELECT count(*) n, "
            "min(score) low, max(score) high FROM qrels GROUP BY query_id, doc_id HAVING count(*) > 1)",
        )
        of_one = _several_of_one_spelling(database) if several and spelled else several
        if of_one and repeated == "error":
            raise SeveralScoresError(of_one, _several_scores(database, spelled))
        if lost or merged or spelled:
            choice: RepeatedPairs = "max" if spelled and repeated == "error" else repeated
            _rewrite(database, folder / "qrels.parquet", choice)
        (pairs,) = _one_row(database, "SELECT count(*) FROM qrels")
    if not pairs:
        raise DataSetError("\n".join(["no judged pair is left", *map(str, log.problems())]))
    counts = {"qrels": pairs, "pairs_merged": merged, "pairs_with_several_scores": several, **lost}
    return counts | {"pairs_of_merged_queries": several - of_one}


def _pairs_of_nothing(database: duckdb.DuckDBPyConnection, log: ProblemLog, max_unmatched: float) -> dict[str, int]:
    counts: dict[str, int] = {}
    (pairs,) = _one_row(database, "SELECT count(*) FROM qrels")
    for column, side in ((QUERY_ID, "queries"), (DOCUMENT_ID, "documents")):
        lost = f"FROM qrels ANTI JOIN {side} USING ({column})"
        (number,) = _one_row(database, f"SELECT count(*) {lost}")
        if number > max_unmatched * pairs:
            raise DataSetError(_unmatched(database, column, side, number, pairs))
        if number:
            found = database.sql(f"SELECT DISTINCT {column} {lost} ORDER BY 1 LIMIT {_EXAMPLES}").fetchall()
            log.add("qrels", column, "unknown id", f"an id of {side}", number, (f"id {shown(one)}" for (one,) in found))
            counts[f"pairs_without_{side}"] = number
    return counts


def _unmatched(database: duckdb.DuckDBPyConnection, column: str, side: str, number: int, pairs: int) -> str:
    """Ids of the judgments and of the other table side by side, and in which form they would agree."""
    judged = f"SELECT DISTINCT {column} AS one FROM qrels ANTI JOIN {side} USING ({column})"
    (ids,) = _one_row(database, f"SELECT count(*) FROM ({judged})")
    here, there = (
        ", ".join(shown(one) for (one,) in database.sql(f"{ids_of} ORDER BY 1 LIMIT {_EXAMPLES}").fetchall())
        for ids_of in (judged, f"SELECT {column} AS one FROM {side}")
    )
    hints = []
    for form, expression in _FORMS.items():
        (agree,) = _one_row(
            database,
            f"SELECT count(*) FROM ({judged}) WHERE {expression.format('one')} IN "
            f"(SELECT {expression.format(column)} FROM {side})",
        )
        if agree > 0.5 * ids:
            hints.append(f"{form} {agree:,} of {number_of(ids, 'such id')} {'is' if agree == 1 else 'are'} found")
    reason = f" Compared {'; '.join(hints)}: write the ids the same in both tables." if hints else ""
    name, option = ("query", "--query-id") if side == "queries" else ("document", "--doc-id")
    return (
        f"{number:,} of {pairs:,} judged pairs name a {name} that is not among the {side}: {here}, while the ids of "
        f"{side} are {there}.{reason} Allowed: ids of {side} ({option} and --{side}-id name the columns that hold "
        "them; --max-unmatched 1 with --bad-rows skip leaves such pairs out)"
    )


def _several_of_one_spelling(database: duckdb.DuckDBPyConnection) -> int:
    """Pairs with several scores where their query is spelled in one way."""
    within = (
        f'SELECT query_id, doc_id FROM qrels GROUP BY query_id, doc_id, "{SPELLING}" HAVING min(score) < max(score)'
    )
    return int(_one_row(database, f"SELECT count(*) FROM (SELECT DISTINCT * FROM ({within}))")[0])


def _several_scores(database: duckdb.DuckDBPyConnection, spelled: bool) -> list[Repeated]:
    spelling = f'"{SPELLING}"' if spelled else "NULL"
    found = database.sql(
        f"SELECT query_id, doc_id, list(score ORDER BY score), {spelling} FROM qrels GROUP BY query_id, doc_id, "
        f"{spelling} HAVING min(score) < max(score) ORDER BY 1, 2 LIMIT {_EXAMPLES}"
    ).fetchall()
    return [Repeated(*row) for row in found]


def _rewrite(database: duckdb.DuckDBPyConnection, path: Path, choice: RepeatedPairs) -> None:
    """One row a pair; what it has beside its score comes from the row with the highest for ``max``, else the first."""
    names = [name for name in pq.read_schema(path).names if name not in _NOT_OTHERS]
    order = "score DESC, file_row_number" if choice == "max" else "file_row_number"
    others = "".join(f', first("{_escaped(name)}" ORDER BY {order}) AS "{_escaped(name)}"' for name in names)
    score, new = _CHOICES[choice], path.with_suffix(".new")
    database.sql(
        f"SELECT query_id, doc_id, {score} AS score{others} FROM qrels "
        "SEMI JOIN queries USING (query_id) SEMI JOIN documents USING (doc_id) "
        "GROUP BY query_id, doc_id ORDER BY min(file_row_number)"
    ).write_parquet(str(new), compression="zstd")
    new.replace(path)


def _escaped(name: str) -> str:
    return name.replace('"', '""')


def _one_row(database: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The row of an aggregate, of which there is always one."""
    return database.sql(query).fetchall()[0]
