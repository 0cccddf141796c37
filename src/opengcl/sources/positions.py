"""Positions of results as scores: 100 at the top, 1 at the end of a usual list."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from opengcl.data import engine, tables
from opengcl.data.problems import DataSetError

SCORE_RANGE = (1.0, 100.0)
_MANY = 20
_LEAST_SHARE = 0.05
_OUTLIER = 4


@dataclass(frozen=True)
class Positions:
    """How positions become scores.

    Attributes:
        place: Where they come from, for messages.
        first: Position at the top, 0 or 1; None: 1, and zeros are refused.
        length: Position (from 1) with score 1; None: the longest usual list. That is, of 20 lists or more, the last
            position that 5% of them reach, and two at least; of fewer, the longest that has at most 4 times the median.
    """

    place: str
    first: int | None = None
    length: int | None = None


def score_positions(folder: Path, spill: Path, positions: Positions, *, threads: int | None) -> tuple[int, str]:
    """Fills ``score`` in ``qrels.parquet`` by ``position``: 100 - 99 (p - 1) / (length - 1), and 1 at least.

    ``position`` counts from 1 afterwards.

    Args:
        folder: With the table.
        spill: Where DuckDB puts what does not fit into memory.
        positions: How.
        threads: Of DuckDB; all by default.

    Returns:
        The length, and a sentence about it.

    Raises:
        DataSetError: Positions from 0 where nothing says that they are.
    """
    path = folder / "qrels.parquet"
    with engine.connect(spill, threads=threads) as database:
        lists = "SELECT min(position) AS least, max(position) AS last FROM pairs GROUP BY query_id"
        database.read_parquet(str(path)).create_view("pairs")
        database.execute(f"CREATE TABLE lists AS {lists}")
        least, zeros, count = database.sql(
            "SELECT min(least), count(*) FILTER (least = 0), count(*) FROM lists"
        ).fetchall()[0]
        if least == 0 and positions.first is None:
            raise DataSetError(
                f"{positions.place}: found the position 0 in {zeros:,} of {count:,} lists; say whether it is the top "
                "(--first-position 0), or no position at all (--first-position 1 with --bad-rows skip)"
            )
        shift = 1 - (1 if positions.first is None else positions.first)
        length = positions.length or _usual_length(database, count) + shift
    _rewrite(path, shift, length)
    whose = "as asked for" if positions.length else f"the longest usual one of {count:,} lists"
    return length, (
        f"position 1 scores 100, and position {length:,} and those after it score 1 ({whose}; "
        "--list-length sets another)"
    )


def _usual_length(database: duckdb.DuckDBPyConnection, lists: int) -> int:
    """The longest usual list, so that one very long one does not squash all others."""
    ordered = "SELECT last FROM lists ORDER BY last DESC LIMIT 1 OFFSET ?"
    if lists >= _MANY:
        enough = max(2, math.ceil(_LEAST_SHARE * lists))
        return int(database.execute(ordered, [enough - 1]).fetchall()[0][0])
    (median,) = database.execute(ordered, [(lists - 1) // 2]).fetchall()[0]
    usual = database.execute("SELECT max(last) FROM lists WHERE last <= ?", [_OUTLIER * max(1, median)])
    return int(usual.fetchall()[0][0])


def _rewrite(path: Path, shift: int, length: int) -> None:
    new = path.with_suffix(".new")
    with tables.Table.open(path) as table, pq.ParquetWriter(new, pq.read_schema(path), compression="zstd") as writer:
        for batch in table.batches(task=f"{path.name}: scoring positions", progress=False):
            place = pc.add(batch.column("position"), pa.scalar(shift, pa.int32()))
            step = 99.0 / (length - 1) if length > 1 else 99.0
            score = pc.subtract(100.0, pc.multiply(pc.subtract(place.cast(pa.float64()), 1.0), step))
            score = pc.max_element_wise(score, pa.scalar(1.0))
            columns = {name: batch.column(name) for name in batch.schema.names} | {"score": score, "position": place}
            writer.write_batch(pa.RecordBatch.from_pydict(columns, batch.schema))
    new.replace(path)
