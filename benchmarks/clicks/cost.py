"""What adding up a large log costs, beside SQL written by hand; and a whole run's time and memory."""

# ruff: noqa: S608 - the names in SQL are ours

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import ibis

from opengcl.clicks.files import open_log
from opengcl.clicks.log import LogOptions, aggregate, count_rows
from opengcl.data.engine import connect

from .big_log import write_big_log

# What someone would write who wants the same sums, and has looked: nothing in this log needs cleaning.
BY_HAND = """
SELECT query, doc_id, position, count(*) AS impressions, count(*) FILTER (clicked) AS clicks,
    count(*) FILTER (bought) AS purchases
FROM (
    SELECT session, query, doc_id, min(position) FILTER (event = 'impression') AS position,
        bool_or(event = 'click') AS clicked, bool_or(event = 'purchase') AS bought
    FROM log GROUP BY session, query, doc_id
) WHERE position IS NOT NULL GROUP BY query, doc_id, position
"""

# The same without sessions: a click counts as often as it was logged, and at the position that it was logged with.
ROWS_ONLY = """
SELECT query, doc_id, position, count(*) FILTER (event = 'impression') AS impressions,
    count(*) FILTER (event = 'click') AS clicks, count(*) FILTER (event = 'purchase') AS purchases
FROM log GROUP BY query, doc_id, position
"""


def measure(events: int, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds of each form, in turn, and of whole runs in processes of their own, with their peak of memory."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        written = write_big_log(work, events)
        with connect(work / "spill", threads=threads) as connection:
            log, *_ = open_log(connection, work / "log.parquet")
            forms = {
                "ours": [str(ibis.to_sql(one(log, LogOptions()), dialect="duckdb")) for one in (count_rows, aggregate)],
                "by hand": [BY_HAND],
                "rows only": [ROWS_ONLY],
            }
            seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
            for _ in range(repeats):
                sums = set()
                for name, statements in forms.items():
                    seconds[name].append(_seconds(connection, statements))
                    if name != "rows only":
                        sums.add(_sums(connection))
                if len(sums) > 1:
                    raise ValueError(f"the forms differ: {sums}")
        whole = _whole_runs(work, threads, repeats)
    return {"events": written, "threads": threads, "seconds": seconds, **whole}


def _seconds(connection: duckdb.DuckDBPyConnection, statements: list[str]) -> tuple[float, float]:
    """Wall time, and the processor's, which other work on the machine does not lengthen."""
    started = time.perf_counter(), time.process_time()
    for statement in statements:
        connection.execute(f"CREATE OR REPLACE TABLE result AS {statement}")
    return time.perf_counter() - started[0], time.process_time() - started[1]


def _sums(connection: duckdb.DuckDBPyConnection) -> tuple[int, ...]:
    """What tells that two forms did the same work; not clicks, as ours adds those that purchases imply."""
    columns = ("impressions", "purchases", "position * impressions")
    sums = ", ".join(f"sum({one})::BIGINT" for one in columns)
    (found,) = connection.sql(f"SELECT count(*), {sums} FROM result").fetchall()
    return found


# What the command does, and then the wall time of its steps.
_RUN = """
import json, sys
from pathlib import Path
from opengcl.clicks import from_logs
log, documents, out, threads, told = sys.argv[1:]
report = from_logs(log, documents, out, threads=int(threads), progress=False)
Path(told).write_text(json.dumps(report.seconds))
"""


def _whole_runs(work: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Wall and processor time of whole runs, each in a process of its own; seconds by step; and the peak of memory."""
    runs, steps = [], []
    for number in range(repeats):
        files = [work / "log.parquet", work / "documents.parquet", work / f"out-{number}"]
        command = [sys.executable, "-c", _RUN, *map(str, files), str(threads), str(work / "seconds.json")]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True)
        wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        runs.append((wall, used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime))
        steps.append(json.loads((work / "seconds.json").read_text(encoding="utf-8")))
    return {"whole_runs": runs, "steps": steps, "peak_gigabytes": round(used.ru_maxrss / 1024**2, 2)}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    medians = {
        name: [statistics.median(one) for one in zip(*runs, strict=True)] for name, runs in found["seconds"].items()
    }
    hand = medians["by hand"]
    lines = [
        f"{found['events']:,} events, {found['threads']} thread(s)\n",
        "| | wall seconds | over by hand | processor seconds | over by hand |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (wall, cpu) in medians.items():
        lines.append(f"| {name} | {wall:.1f} | {wall / hand[0]:.2f} | {cpu:.1f} | {cpu / hand[1]:.2f} |")
    wall, cpu = (statistics.median(one) for one in zip(*found["whole_runs"], strict=True))
    lines.append(f"| a whole run | {wall:.1f} | {wall / hand[0]:.2f} | {cpu:.1f} | {cpu / hand[1]:.2f} |")
    steps = {name: statistics.median(run[name] for run in found["steps"]) for name in found["steps"][0]}
    estimate = steps["position bias"] + steps["scores"]
    lines.append(f"\nSteps of a whole run: {', '.join(f'{name} {value:.1f} s' for name, value in steps.items())}")
    lines.append(
        f"SQL by hand and the estimation: {hand[0] + estimate:.1f} s; a whole run takes "
        f"{wall / (hand[0] + estimate):.2f} times as long"
    )
    lines.append(f"Peak of resident memory of a whole run: {found['peak_gigabytes']:.2f} GiB")
    return "\n".join(lines)
