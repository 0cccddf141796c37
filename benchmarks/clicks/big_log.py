"""A large log of made-up events, written by DuckDB alone, for measuring time and memory."""

# ruff: noqa: S608 - the names in SQL are ours

from __future__ import annotations

import tempfile
from pathlib import Path

from opengcl.data.engine import connect

QUERIES, DOCUMENTS, DEPTH = 20_000, 200_000, 18
EVENTS_A_LIST = 20.1  # impressions and what follows them, as the rates below make them

# Lists of 18 whose order differs from session to session; hash() is DuckDB's own, so a log is the same on each run.
_EVENTS = """
WITH shown AS (
    SELECT list, position, floor({queries} * pow(hash(list) % 1000003 / 1000003, 3))::INT AS query,
        position + list % 8 AS place, hash(list, position) AS draw
    FROM range({lists}) AS one(list), range(1, {depth} + 1) AS other(position)
), clicked AS (
    SELECT *, (hash(query, place) % 997 / 997.0) AS good, draw % 100003 / 100003.0 AS click_draw,
        draw // 100003 % 10007 / 10007.0 AS buy_draw FROM shown
)
SELECT 's' || list AS session, 'query number ' || query AS query, 'd' || hash(query, place) % {documents} AS doc_id,
    unnest(CASE WHEN click_draw >= 0.8 * good / position THEN ['impression']
        WHEN buy_draw >= 0.2 * good THEN ['impression', 'click'] ELSE ['impression', 'click', 'purchase'] END) AS event,
    position, TIMESTAMP '2026-01-01' + INTERVAL (list % 7776000) SECOND AS time
FROM clicked
"""


def write_big_log(out: Path, events: int) -> int:
    """Writes about so many events to OUT/log.parquet and the catalogue to OUT/documents.parquet.

    Returns:
        The number of events written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as temporary, connect(Path(temporary), threads=1) as database:
        sql = _EVENTS.format(queries=QUERIES, documents=DOCUMENTS, depth=DEPTH, lists=round(events / EVENTS_A_LIST))
        database.execute(f"COPY ({sql}) TO '{out / 'log.parquet'}' (FORMAT parquet, COMPRESSION zstd)")
        documents = f"SELECT 'd' || range AS doc_id, 'document ' || range AS title FROM range({DOCUMENTS})"
        database.execute(f"COPY ({documents}) TO '{out / 'documents.parquet'}' (FORMAT parquet)")
        ((count,),) = database.sql(f"SELECT count(*) FROM '{out / 'log.parquet'}'").fetchall()
    return int(count)
