"""How long metrics take: on arrays, and from a Parquet run of 20,000 queries x 1,000 results.

OMP_NUM_THREADS=1 python benchmarks/metrics_speed.py [--queries 20000]
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opengcl.metrics import DEFAULT_METRICS, compute
from opengcl.run_metrics import metrics_of_files

DEPTH, JUDGED, DOCUMENTS = 1000, 100, 500_000


def seconds_on_arrays(queries: int) -> float:
    """The default metrics on arrays where one result in ten is judged."""
    rng = np.random.default_rng(0)
    retrieved = rng.integers(1, JUDGED + 1, (queries, DEPTH)) * (rng.random((queries, DEPTH)) < 0.1)
    judged = np.tile(np.arange(1.0, JUDGED + 1), (queries, 1))
    start = time.perf_counter()
    compute(DEFAULT_METRICS, retrieved.astype(float), judged)
    return time.perf_counter() - start


def write_files(folder: Path, queries: int) -> tuple[Path, Path]:
    """Judgments 100 to 1 of 100 neighbouring documents, and a run that finds 50 of them among neighbours."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, DOCUMENTS - DEPTH, queries)[:, None]
    found = first + np.argsort(rng.random((queries, DEPTH)), axis=1) + JUDGED // 2
    score = np.tile(np.linspace(1, 0, DEPTH, dtype=np.float32), queries)
    paths = folder / "qrels.parquet", folder / "run.parquet"
    write(paths[0], first + np.arange(JUDGED), np.tile(np.arange(JUDGED, 0, -1.0), queries))
    write(paths[1], found, score)
    return paths


def write(path: Path, documents: np.ndarray, score: np.ndarray) -> None:
    """One row of documents a query."""
    names = pa.array([f"d{i}" for i in range(DOCUMENTS + DEPTH)])
    queries = pa.array([f"q{i}" for i in range(len(documents))])
    rows = pa.array(np.repeat(np.arange(len(documents)), documents.shape[1]))
    columns = {"query_id": queries.take(rows), "doc_id": names.take(pa.array(documents.ravel())), "score": score}
    pq.write_table(pa.table(columns), path)


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=20_000)
    queries = parser.parse_args().queries
    report = {"queries": queries, "depth": DEPTH, "machine": platform.platform(), "numpy": np.__version__}
    report["arrays_seconds"] = round(seconds_on_arrays(queries), 2)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), queries)
        start = time.perf_counter()
        metrics_of_files(*paths)
        report["files_seconds"] = round(time.perf_counter() - start, 2)
    report["peak_mb_with_making_the_files"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
