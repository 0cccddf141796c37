"""Metrics of 20,000 queries with 1,000 results each (from files 5,000), against what Marqo's GCL script calls for them.

That script hands dictionaries to BEIR's ``EvaluateRetrieval`` (which is trec_eval by ``pytrec_eval``, summed in Python,
and loops for MRR) and to loops of its own for ERR and RBP. Neither package is among the dependencies, so what they do
is written out here. Compared are all numbers that both sides have: four measures of trec_eval and MRR at 21 depths,
ERR, and RBP at three persistences. They must agree.

Ours in three forms: relevances in an array, as `opengcl.evaluate` has them; ids and scores in memory, as the peer's
dictionaries are; and two Parquet files, which the peer's side reads with pandas.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytrec_eval
from benchmarks.speed import Row, all_in_turn, in_turn

from opengcl.metrics import compute
from opengcl.ranking_blocks import blocks
from opengcl.ranking_files import read_qrels, read_run
from opengcl.run_metrics import metrics_of_files, run_metrics

QUERIES, FILE_QUERIES, DEPTH, JUDGED, DOCUMENTS = 20_000, 5_000, 1000, 100, 500_000
CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 500, 1000)
PERSISTENCES = (0.7, 0.8, 0.9)
TREC = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P"}  # our name -> trec_eval's
NAMES = (*(f"{name}@{k}" for name in (*TREC, "mrr") for k in CUTS), "err", *(f"rbp@{p}" for p in PERSISTENCES))
PEER = "the GCL script's functions"
AGREEMENT = 1e-6  # trec_eval's scores and NDCG's gains are float32 in places

Judged = dict[str, dict[str, int]]
Found = dict[str, dict[str, float]]


def measure(repeats: int) -> Iterator[Row]:
    """Yield arrays, ids in memory and files against the same numbers from dictionaries."""
    about: dict[str, object] = {"queries": QUERIES, "depth": DEPTH, "judged": JUDGED, "numbers": len(NAMES)}
    with tempfile.TemporaryDirectory(prefix="opengcl-speed-") as folder:
        files = write_files(Path(folder), QUERIES)
        qrels, run = read_qrels(files[0]), read_run(files[1])
        found = list(blocks(qrels, run))
        retrieved, judged = (
            np.concatenate(part) for part in zip(*((b.retrieved, b.judged) for b in found), strict=True)
        )
        given = dictionaries(*files)
        agree(metrics_of_files(*files, NAMES)["metrics"], script_means(*given))
        taken = all_in_turn(
            {
                "arrays": lambda: compute(NAMES, retrieved, judged),
                "ids in memory": lambda: run_metrics(qrels, run, NAMES),
                PEER: lambda: script_means(*given),
            },
            repeats,
        )
        for name in ("arrays", "ids in memory"):
            yield Row(f"{len(NAMES)} metrics, {name}", taken[name], taken[PEER], PEER, 50.0, about)
        del given, retrieved, judged, found
        files = write_files(Path(folder), FILE_QUERIES)
        ours, peer = in_turn(
            lambda: metrics_of_files(*files, NAMES), lambda: script_means(*dictionaries(*files)), repeats
        )
        about = {**about, "queries": FILE_QUERIES}
        yield Row(f"{len(NAMES)} metrics, Parquet files", ours, peer, PEER, 50.0, about)


def write_files(folder: Path, queries: int) -> tuple[Path, Path]:
    """Judgments 100 to 1 of 100 neighbouring documents, and a run that finds half of them among their neighbours."""
    generator = np.random.default_rng(0)
    first = generator.integers(0, DOCUMENTS - DEPTH, queries)[:, None]
    found = first + np.argsort(generator.random((queries, DEPTH)), axis=1) + JUDGED // 2
    paths = folder / "qrels.parquet", folder / "run.parquet"
    grades = np.tile(np.arange(JUDGED, 0, -1), queries)
    _write(paths[0], first + np.arange(JUDGED), grades)
    _write(paths[1], found, np.tile(np.linspace(1, 0, DEPTH, dtype=np.float32), queries))
    return paths


def _write(path: Path, documents: np.ndarray, score: np.ndarray) -> None:
    """One row of documents a query."""
    names = pa.array([f"d{i}" for i in range(DOCUMENTS + DEPTH)])
    queries = pa.array([f"q{i}" for i in range(len(documents))])
    rows = pa.array(np.repeat(np.arange(len(documents)), documents.shape[1]))
    columns = {"query_id": queries.take(rows), "doc_id": names.take(pa.array(documents.ravel())), "score": score}
    pq.write_table(pa.table(columns), path)


def dictionaries(qrels_file: Path, run_file: Path) -> tuple[Judged, Found]:
    """Both files as the script has them."""
    return _dictionary(pd.read_parquet(qrels_file)), _dictionary(pd.read_parquet(run_file))


def _dictionary(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {
        str(query): dict(zip(of["doc_id"], of["score"], strict=True))
        for query, of in rows.groupby("query_id", sort=False)
    }


def script_means(judged: Judged, found: Found) -> dict[str, float]:
    """The numbers that the script writes down, by our names."""
    means = _trec_means(judged, found)
    means |= {f"mrr@{k}": value for k, value in _reciprocal_ranks(judged, found).items()}
    means["err"] = sum(_err(judged[query], found[query]) for query in judged) / len(judged)
    for p in PERSISTENCES:
        means[f"rbp@{p}"] = sum(_rbp(judged[query], found[query], p) for query in judged) / len(judged)
    return means


def _trec_means(judged: Judged, found: Found) -> dict[str, float]:
    cuts = ",".join(map(str, CUTS))
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {f"{measure}.{cuts}" for measure in TREC.values()})
    sums = {f"{name}@{k}": 0.0 for name in TREC for k in CUTS}
    values = evaluator.evaluate(found)
    for query in values.values():
        for k in CUTS:
            for name, measure in TREC.items():
                sums[f"{name}@{k}"] += query[f"{measure}_{k}"]
    return {name: total / len(values) for name, total in sums.items()}


def _reciprocal_ranks(judged: Judged, found: Found) -> dict[int, float]:
    sums = dict.fromkeys(CUTS, 0.0)
    for query, results in found.items():
        ranked = sorted(results.items(), key=lambda one: one[1], reverse=True)[: CUTS[-1]]
        relevant = {document for document, grade in judged[query].items() if grade > 0}
        for k in CUTS:
            for rank, (document, _) in enumerate(ranked[:k], start=1):
                if document in relevant:
                    sums[k] += 1 / rank
                    break
    return {k: total / len(found) for k, total in sums.items()}


def _err(judged: dict[str, int], found: dict[str, float]) -> float:
    top, total, go_on = max(judged.values()), 0.0, 1.0
    for rank, (document, _) in enumerate(sorted(found.items(), key=lambda one: one[1], reverse=True), start=1):
        stop = (2 ** judged.get(document, 0) - 1) / 2**top
        total += go_on * stop / rank
        go_on *= 1 - stop
    return total


def _rbp(judged: dict[str, int], found: dict[str, float], p: float) -> float:
    top, total = max(judged.values()), 0.0
    for rank, (document, _) in enumerate(sorted(found.items(), key=lambda one: one[1], reverse=True), start=1):
        total += judged.get(document, 0) / top * p ** (rank - 1)
    return total * (1 - p)


def agree(ours: dict[str, float], peer: dict[str, float]) -> None:
    """Both sides have the same numbers.

    Raises:
        ValueError: One differs.
    """
    for name in NAMES:
        if not abs(ours[name] - peer[name]) <= AGREEMENT:
            raise ValueError(
                f"{name} is {ours[name]:.8f} here and {peer[name]:.8f} there; allowed: {AGREEMENT:g} apart"
            )
