"""Evaluation against a plain loop over queries, on hand-made vectors; and what it writes, read back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytrec_eval
import torch

import opengcl.evaluation
from opengcl.compare import compare
from opengcl.data import SPLITS, RankedDataset
from opengcl.encode import encode, encode_texts
from opengcl.evaluation import LISTED, Limit, evaluate
from opengcl.model import BiEncoder, FieldMix
from opengcl.run_metrics import metrics_of_files

from .builders import clip, ranked
from .small_disks import mounted


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    return ranked(tmp_path_factory.mktemp("evaluation") / "toy", queries=30, documents=60, judged=20)


@pytest.fixture(scope="module")
def model(dataset: RankedDataset) -> BiEncoder:
    encoder = clip()
    return BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema, None, {"title": 1.0, "image": 3.0}))


def ndcg_of_one(gains: list[float], judged: list[float], k: int) -> float:
    best = sum(g / np.log2(rank + 2) for rank, g in enumerate(sorted(judged, reverse=True)[:k]))
    return float(sum(g / np.log2(rank + 2) for rank, g in enumerate(gains[:k])) / best)


@pytest.mark.parametrize("part", ["dev", "test", "all"])
def test_equals_a_loop_over_queries(dataset: RankedDataset, model: BiEncoder, part: str) -> None:
    found = evaluate(model, dataset, part=part, metrics=("ndcg@10", "recall@5"))
    queries = encode(model, dataset.queries, "query", np.arange(len(dataset.queries)))
    documents = encode(model, dataset.documents, "document", np.arange(len(dataset.documents)))
    for row in found.per_query.to_pylist():
        query = dataset.queries.row(row["query_id"])
        half = dataset.splits.document_rows(row["split"])
        order = half[np.argsort(-(documents[half] @ queries[query]), kind="stable")]
        judged = dict(zip(*(part.tolist() for part in dataset.qrels.judged(query)), strict=True))
        gains = [judged.get(int(document), 0.0) for document in order]
        inside = [score for document, score in judged.items() if document in set(half.tolist())]
        assert row["ndcg@10"] == pytest.approx(ndcg_of_one(gains, inside, 10), abs=1e-9)
        assert row["recall@5"] == pytest.approx(sum(g > 0 for g in gains[:5]) / len(inside), abs=1e-9)
        seen = dataset.splits.query_seen[query]
        trained = sum(bool(dataset.splits.document_seen[document]) for document in judged) if seen else 0
        assert row["pairs"] == trained
    expected = sum(len(dataset.splits.query_rows(split, part)) for split in SPLITS)
    assert found.per_query.num_rows == expected == sum(row["queries"] for row in found.splits().values())


@pytest.mark.parametrize("grades", [(-1, 0, 1, 2), (0, 1, 2), (-1, -1, 0, 1)])
def test_grades_of_0_and_below_count_as_trec_eval_counts_them(
    grades: tuple[float, ...], model: BiEncoder, tmp_path: Path
) -> None:
    """Shifted up by the least of them, as they once were, -1 to 2 made a grade of 0 relevant.

    No grade is below -1 here: trec_eval itself crashes on a query whose grades all are.
    """
    graded = ranked(tmp_path / "data", queries=30, documents=60, judged=20, grades=grades)
    found = evaluate(model, graded, part="all", runs=tmp_path / "runs")
    measures = {"ndcg@10": "ndcg_cut_10", "mrr": "recip_rank", "precision@10": "P_10", "map": "map"}
    asked = {"ndcg_cut.10", "recip_rank", "P.10", "map", "recall.100"}
    for split, row in found.splits().items():
        tables = [pq.read_table(tmp_path / "runs" / f"{split}.{name}.parquet") for name in ("qrels", "run")]
        qrels, run = ({query: {} for query in table["query_id"].to_pylist()} for table in tables)
        for pair in tables[0].to_pylist():
            qrels[pair["query_id"]][pair["doc_id"]] = int(pair["score"])
        for place, pair in enumerate(tables[1].to_pylist()):
            run[pair["query_id"]][pair["doc_id"]] = -float(place)
        theirs = list(pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run).values())
        assert len(theirs) == row["queries"]
        for ours, measure in {**measures, "recall@100": "recall_100"}.items():
            assert row[ours] == pytest.approx(np.mean([one[measure] for one in theirs]), abs=1e-12)
        report = metrics_of_files(*(tmp_path / "runs" / f"{split}.{name}.parquet" for name in ("qrels", "run")))
        assert report["metrics"]["precision@10"] == pytest.approx(row["precision@10"], abs=1e-12)
    assert min(found.results["relevance"].to_pylist()) == 0


def test_a_split_is_searched_over_its_own_half(dataset: RankedDataset, model: BiEncoder) -> None:
    listed = evaluate(model, dataset, part="all", splits=["zero_shot"]).results
    rows = dataset.documents.find(listed["doc_id"].to_pylist())
    assert not dataset.splits.document_seen[rows].any()
    assert listed.num_rows == LISTED * len(dataset.splits.query_rows("zero_shot", "all"))


def test_run_files_give_the_same_numbers(dataset: RankedDataset, model: BiEncoder, tmp_path: Path) -> None:
    found = evaluate(model, dataset, part="all", runs=tmp_path)
    for split, row in found.splits().items():
        report = metrics_of_files(
            tmp_path / f"{split}.qrels.parquet", tmp_path / f"{split}.run.parquet", found.metrics, ties="input"
        )
        assert report["metrics"] == pytest.approx({name: row[name] for name in found.metrics}, abs=1e-9)


def test_written_files_hold_the_table_and_can_be_compared(
    dataset: RankedDataset, model: BiEncoder, tmp_path: Path
) -> None:
    found = evaluate(model, dataset)
    for name in ("a", "b"):
        found.write(tmp_path / f"{name}.json", per_query=tmp_path / f"{name}.parquet", model="toy")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["splits"] == found.splits()
    assert {"ndcg@10", "err", "rbp@0.9", "recall@100", "mrr", "queries"} <= set(content["splits"]["in_domain"])
    assert pq.read_table(tmp_path / "a.parquet").equals(found.per_query)
    rows = compare([tmp_path / "a.json", tmp_path / "b.json"], resamples=50).rows
    assert rows
    assert all(row.difference in (None, 0.0) for row in rows)


@pytest.mark.usefixtures("unchecked")
def test_bad_requests_are_refused(dataset: RankedDataset, model: BiEncoder) -> None:
    with pytest.raises(ValueError, match="unknown split 'cold'"):
        evaluate(model, dataset, splits=["cold"])
    with pytest.raises(ValueError, match="unknown part 'train'"):
        evaluate(model, dataset, part="train")
    with pytest.raises(ValueError, match="ndcg@K"):
        evaluate(model, dataset, metrics=["ndgc@10"])


def test_typed_queries_get_the_vectors_of_the_table(dataset: RankedDataset, model: BiEncoder) -> None:
    rows = np.arange(5)
    texts = [text or "" for text in dataset.queries.texts("query", rows)]
    typed = torch.from_numpy(encode_texts(model, texts))
    torch.testing.assert_close(typed, torch.from_numpy(encode(model, dataset.queries, "query", rows)))
    with pytest.raises(ValueError, match="blank"):
        encode_texts(model, ["shoe", "  "])


def test_a_limit_keeps_judged_documents_and_draws_the_rest(dataset: RankedDataset) -> None:
    queries, documents = dataset.splits.query_rows("in_domain"), dataset.splits.document_rows("in_domain")
    some, kept = Limit(3, 25, seed=1).apply(dataset, queries, documents)
    again = Limit(3, 25, seed=1).apply(dataset, queries, documents)
    np.testing.assert_array_equal(some, again[0])
    np.testing.assert_array_equal(kept, again[1])
    assert len(set(some.tolist())) == 3
    assert set(some.tolist()) <= set(queries.tolist())
    assert len(set(kept.tolist())) == 25
    assert set(kept.tolist()) <= set(documents.tolist())
    judged = np.concatenate([dataset.qrels.judged(int(query))[0] for query in some])
    assert set(judged[dataset.splits.document_seen[judged]].tolist()) <= set(kept.tolist())
    whole = Limit(1000, 1000).apply(dataset, queries, documents)
    np.testing.assert_array_equal(whole[0], queries)
    np.testing.assert_array_equal(whole[1], documents)


def test_a_limited_evaluation_ranks_the_drawn_documents(dataset: RankedDataset, model: BiEncoder) -> None:
    found = evaluate(model, dataset, part="all", splits=["in_domain"], limit=Limit(3, 25, seed=1))
    queries, documents = Limit(3, 25, seed=1).apply(
        dataset, dataset.splits.query_rows("in_domain"), dataset.splits.document_rows("in_domain")
    )
    assert found.per_query["query_id"].to_pylist() == dataset.queries.ids(queries)
    assert set(found.results["doc_id"].to_pylist()) <= set(dataset.documents.ids(documents))


def test_vectors_in_a_file_give_the_same_numbers(
    dataset: RankedDataset, model: BiEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = evaluate(model, dataset)
    monkeypatch.setattr(opengcl.evaluation, "_IN_MEMORY", 0)
    assert evaluate(model, dataset).per_query.equals(in_memory.per_query)


def test_no_room_for_vectors_in_a_file_is_told(
    dataset: RankedDataset, model: BiEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opengcl.evaluation, "_IN_MEMORY", 0)
    monkeypatch.setattr(opengcl.evaluation, "encode", None)  # found before anything is encoded
    with mounted(1) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        (disk / "ballast").write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match=rf"no room for \d+ vectors; TMPDIR names another folder: '{disk}"):
            evaluate(model, dataset)


def test_rows_without_a_vector_are_found_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(np.ndarray):
        """Notes how many rows are copied at a time."""

        copied: ClassVar[list[int]] = []

        def __getitem__(self, key: Any) -> Any:
            self.copied.append(len(key))
            return np.asarray(self)[key]

    matrix = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    rows = np.arange(50) * 3
    matrix[[0, 17, 49]] = 0
    monkeypatch.setattr(opengcl.evaluation, "_BLOCK_ROWS", 8)
    vectors = opengcl.evaluation.Vectors(rows, matrix.view(Counted))
    asked = rows[5:]
    assert vectors.readable(asked).tolist() == [row for row in asked.tolist() if row not in (17 * 3, 49 * 3)]
    assert sum(Counted.copied) == 45
    assert max(Counted.copied) == 8
    assert len(vectors.readable(rows[:0])) == 0
