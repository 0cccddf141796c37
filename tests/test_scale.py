"""What must not grow with the tables: the memory of a run on a data set larger than its bound."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opengcl.data import RankedDataset, Schema, write_dataset

DOCUMENTS, QUERIES, JUDGED = 400_000, 500, 2_000
TEXT_BYTES = 1_500

SCRIPT = textwrap.dedent(
    """
    import sys, threading, time
    import opengcl.training
    from opengcl import TrainConfig, train

    def anonymous():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

    before, peak = anonymous(), [0]

    def watch():
        while True:
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    train(
        TrainConfig(
            data=sys.argv[1], model="tiny", out=sys.argv[2], dim=16, epochs=0.01, batch_size=512, evaluations=1,
            dev_queries=50, dev_documents=5000, device="cpu",
        ),
        progress=False,
    )
    print(peak[0] - before)
    """
)


def long_texts(rows: int, seed: int) -> pa.Array:
    """Texts of `TEXT_BYTES` from a vocabulary of 2,000 words, made by cutting one long text at random places."""
    generator = np.random.default_rng(seed)
    words = np.array([f"w{number:04d}" for number in range(2_000)])
    pool = " ".join(generator.choice(words, 200_000))
    starts = generator.integers(0, len(pool) - TEXT_BYTES, rows)
    return pa.array([pool[start : start + TEXT_BYTES] for start in starts], pa.large_string())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_needs_less_memory_than_its_tables(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ids = np.array([f"d{row}" for row in range(DOCUMENTS)], dtype=object)
    judged = np.concatenate([generator.choice(DOCUMENTS, JUDGED, replace=False) for _ in range(QUERIES)])
    query = np.repeat(np.arange(QUERIES), JUDGED)
    write_dataset(
        tmp_path / "large",
        Schema("large", {"query": "text"}, {"title": "text"}, 1.0, 100.0),
        pa.table({"query_id": [f"q{row}" for row in range(QUERIES)], "query": long_texts(QUERIES, 1)}),
        pa.table({"doc_id": ids, "title": long_texts(DOCUMENTS, 2)}),
        pa.table(
            {
                "query_id": pa.array(np.char.add("q", query.astype(str)).astype(object)),
                "doc_id": ids[judged],
                "score": generator.uniform(1, 100, len(judged)),
            }
        ),
    )
    tables = DOCUMENTS * TEXT_BYTES
    assert pq.read_metadata(tmp_path / "large" / "documents.parquet").num_rows == DOCUMENTS
    assert len(RankedDataset.open(tmp_path / "large", progress=False).qrels) == len(judged)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "large"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < tables
