"""Opening a data set of ten million judged pairs and five million documents, against pandas reading the same Parquet.

The first opening checks every row and writes the cache; it is done once, untimed but told. Timed is every later one,
and from it to a first batch: which pairs are for training, in which order they come, the batch's relation, and its
features from a model that is there. (`opengcl train` also tokenises all texts once a run before that; this makes the
first batch's alone.) Every run is a process of its own, that has imported what it needs before the clock starts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from benchmarks.speed import Row, extra_bytes

from opengcl.batches import Relations
from opengcl.config import TrainConfig
from opengcl.data import RankedDataset, Schema, cache, write_dataset
from opengcl.encode import inputs_for
from opengcl.encoders import static_text
from opengcl.model import BiEncoder, FieldMix
from opengcl.training import TrainingBatches, make_batches
from opengcl.weights import weight_function

DOCUMENTS, QUERIES, PAIRS, BATCH = 5_000_000, 100_000, 10_000_000, 1024
BLOCK = 250_000
PEER = "pandas.read_parquet"
WORDS = pa.array([f"{kind}{number}" for kind in ("red", "wool", "large", "shoe") for number in range(250)])


def measure(repeats: int) -> Iterator[Row]:
    """Yield the opening and the first batch beside pandas."""
    with tempfile.TemporaryDirectory(prefix="opengcl-speed-") as name:
        folder = Path(name)
        write(folder)
        started = time.perf_counter()
        RankedDataset.open(folder / "data", cache_dir=folder / "cache", progress=False)
        about = {"documents": DOCUMENTS, "pairs": PAIRS, "first_opening_seconds": time.perf_counter() - started}
        taken: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(repeats):
            for side, found in taken.items():
                found.append(in_own_process(folder, side))
    seconds = {side: [one["seconds"] for one in found] for side, found in taken.items()}
    extra = {side: median(one["extra_bytes"] for one in found) for side, found in taken.items()}
    for side, what, aim_seconds in (("open", "opening", 1.0), ("batch", "opening and a first batch", 5.0)):
        sizes = {"extra_bytes": extra[side], "peer_extra_bytes": extra["pandas"]}
        aims = {"aim_seconds": aim_seconds, **({"aim_bytes": 300_000_000} if side == "open" else {})}
        yield Row(f"{what}, {PAIRS:,} pairs", seconds[side], seconds["pandas"], PEER, None, {**about, **sizes, **aims})


def write(folder: Path) -> None:
    """The data set, and a model that reads its titles."""
    generator = np.random.default_rng(0)
    schema = Schema("opening", {"query": "text"}, {"title": "text"}, 1.0, 100.0)
    write_dataset(
        folder / "data",
        schema,
        in_blocks(QUERIES, lambda rows: {"query_id": named("q", rows), "query": titles(generator, len(rows), 3)}),
        in_blocks(DOCUMENTS, lambda rows: {"doc_id": named("d", rows), "title": titles(generator, len(rows), 7)}),
        in_blocks(PAIRS, lambda rows: judged(generator, rows)),
    )
    encoder = static_text(titles(generator, 10_000, 7).to_pylist())
    BiEncoder(encoder, FieldMix.choose(encoder, schema)).save(folder / "model")


def in_blocks(rows: int, columns: Callable[[np.ndarray], dict[str, Any]]) -> pa.RecordBatchReader:
    """A table a block of rows at a time."""
    starts = range(0, rows, BLOCK)
    batches = (pa.RecordBatch.from_pydict(columns(np.arange(start, min(rows, start + BLOCK)))) for start in starts)
    first = next(batches)
    return pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches))


def named(letter: str, rows: np.ndarray) -> pa.Array:
    """Ids of these rows."""
    return pc.binary_join_element_wise(letter, pa.array(rows).cast(pa.string()), "")


def titles(generator: np.random.Generator, rows: int, words: int) -> pa.Array:
    """So many words a row."""
    drawn = [WORDS.take(pa.array(generator.integers(0, len(WORDS), rows))) for _ in range(words)]
    return pc.binary_join_element_wise(*drawn, " ")


def judged(generator: np.random.Generator, rows: np.ndarray) -> dict[str, Any]:
    """As many documents for each query, none twice."""
    each = PAIRS // QUERIES
    query, place = rows // each, rows % each
    document = (query * 7_919 + place * 49_999) % DOCUMENTS
    score = generator.uniform(1, 100, len(rows)).astype(np.float32)
    return {"query_id": named("q", query), "doc_id": named("d", document), "score": score}


def open_only(folder: Path) -> object:
    """Ours."""
    return RankedDataset.open(folder / "data", cache_dir=folder / "cache", progress=False)


def first_batch(folder: Path) -> object:
    """Ours, and the first batch of `opengcl train`."""
    dataset = RankedDataset.open(folder / "data", cache_dir=folder / "cache", progress=False)
    model = BiEncoder.load(folder / "model", device="cpu")
    config = TrainConfig(data=str(folder / "data"), model=str(folder / "model"), out="", batch_size=BATCH)
    relations = Relations(dataset, weight_function(config.weights), config.scaling)
    inputs = inputs_for(model, dataset.queries, "query"), inputs_for(model, dataset.documents, "document")
    return TrainingBatches(make_batches(config, dataset), relations, inputs)[(0, 0)]


def read_with_pandas(folder: Path) -> object:
    """The peer."""
    return [pd.read_parquet(folder / "data" / table) for table in cache.TABLES]


SIDES: dict[str, Callable[[Path], object]] = {
    "open": open_only,
    "batch": first_batch,
    "pandas": read_with_pandas,
}


def in_own_process(folder: Path, side: str) -> dict[str, float]:
    """Seconds and extra bytes of one side, measured by a new process."""
    command = [sys.executable, "-m", __name__, str(folder), side]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout)


def work(folder: Path, side: str) -> dict[str, float]:
    """One side in this process."""

    def timed() -> float:
        started = time.perf_counter()
        made = SIDES[side](folder)
        seconds = time.perf_counter() - started
        del made
        return seconds

    seconds, extra = extra_bytes(timed)
    return {"seconds": seconds, "extra_bytes": extra}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One side of the measurement.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("side", choices=SIDES)
    given = parser.parse_args()
    print(json.dumps(work(given.folder, given.side)))
