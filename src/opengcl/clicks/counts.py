"""Cells of a log joined with the catalogue and numbered: from the expressions of `log` to arrays, in DuckDB.

What comes here is the log added up, so it is small whatever engine did that.
"""

# ruff: noqa: S608 - names in SQL are constants of ours, or quoted

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from opengcl.clicks.files import DOCUMENTS, quoted
from opengcl.clicks.log import CLICK, LARGEST, LogOptions, counted
from opengcl.clicks.losses import CELLS
from opengcl.clicks.scores import Counted
from opengcl.data.problems import DataSetError
from opengcl.data.schema import DOCUMENT_ID
from opengcl.query_text import normalised

PAIRS = "pairs"
"""Table made here: the numbered pairs, with ``pair``, ``text`` and ``doc_id``."""

LONGEST_QUERY = 1000
"""Queries with more characters are dropped: they are pasted text or attacks."""

_BATCH = 100_000


@dataclass(frozen=True)
class SupportOptions:
    """How often something must be seen to count at all.

    Attributes:
        max_position: Showings further down are dropped; None keeps all.
        query_impressions: Impressions of a query, over all its documents.
        query_clicks: Clicks of a query.
        pair_impressions: Impressions of a pair.
    """

    max_position: int | None = None
    query_impressions: float = 1
    query_clicks: float = 1
    pair_impressions: float = 1

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            DataSetError: Naming the setting, what was found and what is allowed.
        """
        if self.max_position is not None and not 1 <= self.max_position <= LARGEST:
            raise DataSetError(f"max_position: found {self.max_position}; allowed: 1 to {LARGEST:,}")
        for name in ("query_impressions", "query_clicks", "pair_impressions"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise DataSetError(f"{name}: found {getattr(self, name)}; allowed: 0 to {LARGEST:,}")


def query_id(text: str) -> str:
    """The same for the same normalised text in every run: 80 bits of BLAKE2b, in hexadecimal."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def count_pairs(
    connection: duckdb.DuckDBPyConnection, log: LogOptions, support: SupportOptions
) -> tuple[Counted, dict[str, int], int]:
    """Joins `CELLS` with the catalogue, drops what has too little support, and numbers the pairs into `PAIRS`.

    Returns:
        The counts, by pair and position; how many events each reason dropped; and how many pairs too little support.

    Raises:
        DataSetError: If nothing is left.
    """
    _spell(connection)
    _name(connection)
    columns = [counted(kind) for kind in log.kinds]
    dropped = _place(connection, columns, support.max_position)
    if log.propensity is not None:
        _as_effective(connection, columns)
    before, after = _number(connection, support)
    if not after:
        raise DataSetError(
            f"the log: no pair is left of {before:,}; dropped events: {dropped or 'none'}; allowed: pairs of documents "
            "in the catalogue with enough impressions, and queries with clicks (--min-...)"
        )
    chosen = ", ".join(map(quoted, columns))
    found = connection.sql(
        f"SELECT pair, position, randomised, {chosen} FROM placed JOIN {PAIRS} USING (text_number, document_number) "
        "ORDER BY pair, position, randomised"
    ).fetchnumpy()
    connection.execute("DROP TABLE placed")
    # Weighted by inverse propensity, counts no longer say how often something was shown.
    numbered = connection.sql(f"SELECT text_number FROM {PAIRS} ORDER BY pair")
    query = numbered.fetchnumpy()["text_number"] if log.propensity is None else None
    later = {kind: found[counted(kind)] for kind in log.follow_ups}
    pair, position = (found[name].astype(np.int64) for name in ("pair", "position"))
    counts = Counted(
        pair, position, found["randomised"].astype(bool), found["impressions"], found[counted(CLICK)], later, query
    )
    return counts, dropped, before - after


def _name(connection: duckdb.DuckDBPyConnection) -> None:
    """The tables ``texts`` and ``known``: normalised queries, and documents of log and catalogue, numbered in order.

    Numbers are grouped, joined and sorted at a fraction of what texts cost.
    """
    connection.execute(
        """CREATE TABLE texts AS SELECT text, row_number() OVER (ORDER BY text) AS text_number
        FROM (SELECT DISTINCT text FROM spelling WHERE text IS NOT NULL)"""
    )
    connection.execute(
        f"""CREATE TABLE known AS SELECT {DOCUMENT_ID}, row_number() OVER (ORDER BY {DOCUMENT_ID}) AS document_number
        FROM (SELECT {DOCUMENT_ID} FROM {DOCUMENTS} SEMI JOIN {CELLS} ON {DOCUMENT_ID} = document)"""
    )


def _place(connection: duckdb.DuckDBPyConnection, columns: list[str], max_position: int | None) -> dict[str, int]:
    """The table ``placed``: cells by normalised query, without those that cannot count; their events by reason."""
    counts = ", ".join(map(quoted, columns))
    squares = "squares" if "squares" in connection.table(CELLS).columns else "impressions AS squares"
    connection.execute(
        f"""CREATE TABLE judged AS SELECT text_number, document_number, position, randomised, events, {squares},
            {counts},
            CASE WHEN position IS NULL THEN 'without impression'
            WHEN text_number IS NULL THEN 'query empty or too long'
            WHEN document_number IS NULL THEN 'document not in catalogue'
            WHEN position > {max_position or 1 << 30} THEN 'position beyond the limit' END AS reason
        FROM {CELLS} LEFT JOIN (SELECT query, text_number FROM spelling JOIN texts USING (text)) USING (query)
            LEFT JOIN known ON document = {DOCUMENT_ID}"""
    )
    connection.execute(f"DROP TABLE {CELLS}")
    reasons = "SELECT reason, sum(events)::BIGINT FROM judged WHERE reason IS NOT NULL GROUP BY ALL ORDER BY ALL"
    dropped = dict(connection.sql(reasons).fetchall())
    sums = ", ".join(f"sum({quoted(one)}) AS {quoted(one)}" for one in columns)
    connection.execute(
        f"""CREATE TABLE placed AS SELECT text_number, document_number, position, randomised,
            sum(squares) AS squares, {sums} FROM judged WHERE reason IS NULL GROUP BY ALL"""
    )
    connection.execute("DROP TABLE judged")
    return dropped


def _as_effective(connection: duckdb.DuckDBPyConnection, columns: list[str]) -> None:
    """Scales a pair's weighted counts so that its impressions are its effective sample, (sum w)^2 / sum w^2.

    That is Kish's (1965). Rates stay as they are; what is known of them is not overstated.
    """
    scaled = ", ".join(f"{quoted(one)} * scale AS {quoted(one)}" for one in columns)
    connection.execute(
        f"""CREATE OR REPLACE TABLE placed AS SELECT text_number, document_number, position, randomised, {scaled}
        FROM (SELECT *, sum(impressions) OVER of_pair / sum(squares) OVER of_pair AS scale FROM placed
            WINDOW of_pair AS (PARTITION BY text_number, document_number))"""
    )


def _number(connection: duckdb.DuckDBPyConnection, support: SupportOptions) -> tuple[int, int]:
    """The table `PAIRS`, of those with support; how many there are without the limits, and within."""
    connection.execute(
        f"""CREATE TABLE {PAIRS} AS SELECT row_number() OVER (ORDER BY text_number, document_number) - 1 AS pair,
            text, {DOCUMENT_ID}, text_number, document_number FROM (
                SELECT text_number, document_number, sum(impressions) AS shown,
                    sum(sum(impressions)) OVER of_query AS query_shown,
                    sum(sum({counted(CLICK)})) OVER of_query AS query_clicked
                FROM placed GROUP BY text_number, document_number WINDOW of_query AS (PARTITION BY text_number)
            ) JOIN texts USING (text_number) JOIN known USING (document_number)
        WHERE shown >= {support.pair_impressions} AND query_shown >= {support.query_impressions}
            AND query_clicked >= {support.query_clicks}"""
    )
    sources = ("(SELECT DISTINCT text_number, document_number FROM placed)", PAIRS)
    before, after = (connection.sql(f"SELECT count(*) FROM {one}").fetchall()[0][0] for one in sources)
    return before, after


def _spell(connection: duckdb.DuckDBPyConnection) -> None:
    """The table ``spelling``: each query of the log as it is compared, null if it cannot be used."""

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in connection.cursor().sql(f"SELECT DISTINCT query FROM {CELLS}").to_arrow_reader(_BATCH):
            texts = [normalised(one) for one in batch.column(0).to_pylist()]
            kept = [one if 0 < len(one) <= LONGEST_QUERY else None for one in texts]
            yield pa.record_batch({"query": batch.column(0).cast(pa.string()), "text": pa.array(kept, pa.string())})

    schema = pa.schema({"query": pa.string(), "text": pa.string()})
    connection.register("incoming", pa.RecordBatchReader.from_batches(schema, batches()))
    connection.execute("CREATE TABLE spelling AS FROM incoming")
    connection.unregister("incoming")
