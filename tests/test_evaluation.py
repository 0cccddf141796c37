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
from opengcl.encode import encode, encode_texts, fit_fill_in
from opengcl.evaluation import LISTED, Evaluation, Limit, evaluate
from opengcl.fill_in import RIDGE
from opengcl.inputs import Inputs
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


# --- documents that lack a field --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    return ranked(tmp_path_factory.mktemp("lacking") / "toy", queries=24, documents=200, judged=40)


def test_missing_fields_are_filled_in_as_the_seen_documents_tell(
    lacking: RankedDataset, model: BiEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    seen = np.flatnonzero(lacking.splits.document_seen)
    filling = model.with_fill_in(fit_fill_in(model, lacking.documents, seen))
    assert filling.fill_in is not None
    assert set(filling.fill_in.maps) == {("title", "image"), ("image", "title")}
    found = evaluate(model, lacking, part="all")
    assert found.per_query.equals(evaluate(filling, lacking, part="all").per_query)
    assert model.fill_in is None  # the model given is left as it was
    assert found.results["score"].to_pylist() != evaluate(leaving_out(model), lacking, part="all").results["score"]
    rows = np.arange(len(lacking.documents))
    with caplog.at_level("WARNING"):
        left_out = encode(BiEncoder(model.encoder, model.mix), lacking.documents, "document", rows)
    whole = lacking.documents.present("title", rows) & lacking.documents.present("image", rows)
    assert f"{(~whole).sum()} of 200 documents lack a field" in caplog.text
    filled = encode(filling, lacking.documents, "document", rows)
    assert np.array_equal(filled[whole], left_out[whole])  # nothing missing, nothing changed
    assert not np.isclose(filled[~whole], left_out[~whole], atol=1e-4).all(1).any()
    # One document at a time, as a server gets them, is where it is among the others.
    one = int(np.flatnonzero(~whole)[0])
    alone = encode(filling, lacking.documents, "document", np.array([one]))
    np.testing.assert_allclose(alone[0], filled[one], atol=1e-6)


def leaving_out(model: BiEncoder) -> BiEncoder:
    return BiEncoder(model.encoder, model.mix, missing_fields="leave_out")


def test_filled_in_documents_against_a_loop(lacking: RankedDataset, model: BiEncoder) -> None:
    """Titles and pictures encoded apart, least squares by NumPy, and the weighted mean by hand."""
    rows = np.arange(len(lacking.documents))
    there = {name: lacking.documents.present(name, rows) for name in ("title", "image")}
    vectors = {}
    for name in there:
        alone = BiEncoder(model.encoder, FieldMix.choose(model.encoder, lacking.schema, None, {name: 1.0}))
        vectors[name] = np.zeros((len(rows), 16))
        own = np.flatnonzero(there[name])
        vectors[name][own] = [f for part in own for f in alone_vectors(alone, lacking, name, np.array([part]))]
    learned = np.flatnonzero(lacking.splits.document_seen & there["title"] & there["image"])
    seen = np.flatnonzero(lacking.splits.document_seen)
    filling = model.with_fill_in(fit_fill_in(model, lacking.documents, seen))
    found = encode(filling, lacking.documents, "document", rows)
    for row in np.flatnonzero(~there["image"])[:10]:
        x, y = vectors["title"][learned], vectors["image"][learned]
        mean = x.mean(0), y.mean(0)
        within = (x - mean[0]).T @ (x - mean[0])
        added = RIDGE * np.trace(within) / 16 * np.eye(16)
        matrix = np.linalg.solve(within + added, (x - mean[0]).T @ (y - mean[1]))
        guess = mean[1] + (vectors["title"][row] - mean[0]) @ matrix
        expected = 0.25 * vectors["title"][row] + 0.75 * guess / np.linalg.norm(guess)
        np.testing.assert_allclose(found[row], expected / np.linalg.norm(expected), atol=1e-4)


def alone_vectors(model: BiEncoder, dataset: RankedDataset, field: str, rows: np.ndarray) -> np.ndarray:
    inputs = Inputs(model.encoder, dataset.documents, [field])
    with torch.inference_mode():
        return model.encode_fields(inputs.of(rows), "document").embeddings[0].numpy()


def test_results_by_field_set_are_written_beside_the_others(
    lacking: RankedDataset, model: BiEncoder, tmp_path: Path
) -> None:
    found = evaluate(model, lacking)
    found.write(tmp_path / "a.json", per_query=tmp_path / "a.parquet")
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content["fields"]["zero_shot"]) == ["title+image", "title", "image"]
    table = pq.read_table(tmp_path / "a.by_fields.parquet")
    assert table.equals(found.by_fields)
    first = found.results.filter((found.results["rank"].to_numpy() == 1) & (split_of(found) == "zero_shot"))
    rows = lacking.documents.find(first["doc_id"].to_pylist())
    share = np.mean(~lacking.documents.present("image", rows))
    assert content["fields"]["zero_shot"]["title"]["first"] == pytest.approx(share)


def test_documents_with_the_same_fields_make_no_table(tmp_path: Path) -> None:
    dataset = ranked(tmp_path / "toy", queries=12, documents=4, judged=4)
    assert all(dataset.documents.present(name, np.arange(4)).all() for name in ("title", "image"))
    model = BiEncoder(clip(), FieldMix.choose(clip(), dataset.schema))
    found = evaluate(model, dataset, part="all")
    assert found.by_fields is None
    (tmp_path / "a.by_fields.parquet").write_bytes(b"of an earlier evaluation")
    found.write(tmp_path / "a.json", per_query=tmp_path / "a.parquet")
    assert "fields" not in json.loads((tmp_path / "a.json").read_text())
    assert not (tmp_path / "a.by_fields.parquet").exists()


def split_of(found: Evaluation) -> np.ndarray:
    return found.results["split"].to_numpy(zero_copy_only=False)
