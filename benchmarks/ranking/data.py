"""The data sets of the matrix by name, and variants of their training pairs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opengcl import RankedDataset

from . import clicks

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / "runs" / "data"
DATA = {"fashion": ROOT.parent / "shared" / "fashion", "teacher": MADE / "teacher"}
CLICKS = ("scored", "clicked")  # see `benchmarks.ranking.clicks`
VARIANTS = ("shuffled", *CLICKS)


def dataset_folder(name: str, variant: str | None = None) -> Path:
    """Folder of a data set, or of a variant of its training pairs, which is made when it is not there.

    Raises:
        FileNotFoundError: The data set is not there; the message says how to get it.
        KeyError: No data set or variant of that name.
    """
    folder = DATA[name]
    if not (folder / "dataset.yaml").is_file():
        raise FileNotFoundError(f"{folder}: no data set there; docs/benchmark-data.md says how to build {name!r}")
    if variant is None:
        return folder
    if variant not in VARIANTS:
        raise KeyError(variant)
    kind = "clicks" if variant in CLICKS else variant
    made = MADE / f"{name}-{kind}"
    if not made.is_dir():
        partial = made.with_name(f"{made.name}.{os.getpid()}.partial")
        if kind == "clicks":
            clicks.main(["--data", str(folder), "--out", str(partial)])
        else:
            shuffle_scores(folder, partial)
        partial.rename(made)
    return made / variant if kind == "clicks" else made


def shuffle_scores(source: Path, out: Path, *, seed: int = 0) -> None:
    """The same data set with the scores of each query's training documents in random order among themselves.

    Which documents are judged, and each query's scores as a set, stay; only the order that they tell is gone.
    """
    dataset = RankedDataset.open(source, progress=False)
    pairs = dataset.splits.training_pairs()
    query, score = dataset.qrels.query[pairs], dataset.qrels.score[pairs]
    by_query = np.lexsort((pairs, query))
    at_random = np.lexsort((np.random.default_rng(seed).random(len(pairs)), query))
    shuffled = {}
    for to, of in zip(by_query, at_random, strict=True):
        shuffled[int(pairs[to])] = float(score[of])
    out.mkdir(parents=True)
    for name in ("dataset.yaml", "queries.parquet", "documents.parquet"):
        shutil.copyfile(source / name, out / name)
    table = pq.read_table(source / "qrels.parquet")
    values = _in_file_order(dataset, table, shuffled)
    place = table.column_names.index("score")
    pq.write_table(
        table.set_column(place, "score", pa.array(values, table.schema.field("score").type)), out / "qrels.parquet"
    )


def _in_file_order(dataset: RankedDataset, table: pa.Table, shuffled: dict[int, float]) -> np.ndarray:
    """Scores in the order of the file's rows; the qrels of a data set are sorted by query."""
    query = dataset.queries.find(table["query_id"].to_pylist())
    document = dataset.documents.find(table["doc_id"].to_pylist())
    of_file = np.lexsort((document, query))
    of_qrels = np.lexsort((dataset.qrels.document, dataset.qrels.query))
    values = np.array(dataset.qrels.score, dtype=np.float64)
    values[list(shuffled)] = list(shuffled.values())
    result = np.empty(len(values))
    result[of_file] = values[of_qrels]
    return result
