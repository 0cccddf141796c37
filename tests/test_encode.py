"""Rows that a model cannot read: an error that names them, or left out, counted and told on every path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from opengcl import RankedDataset, TrainConfig, train
from opengcl.cli.main import main
from opengcl.data import Schema, write_dataset
from opengcl.encode import encode, inputs_for, rows_with_fields
from opengcl.evaluation import evaluate
from opengcl.index import model_fingerprint, open_store
from opengcl.index.build import build_index
from opengcl.index.check import read_reference, sample_queries
from opengcl.inputs import Inputs
from opengcl.model import BiEncoder, FieldMix
from opengcl.product_search import ProductSearch
from opengcl.prompts import Side
from opengcl.vector_shards import EncodeJob, ShardError, encode_table, read_left_out, read_shard

from .builders import WORDS, picture, static

BLANK = [3, 8, 17, 24, 33, 41]  # of 60 documents: a tenth
BLANK_QUERY = 5


def shop(folder: Path, *, images: bool = True, strict: bool = False) -> RankedDataset:
    """Some titles are blank in one way or another, and so is a query; these have images, where there are any."""
    generator = np.random.default_rng(0)
    titles: list[str | None] = [" ".join(generator.choice(WORDS, 3)) for _ in range(60)]
    for row, blank in zip(BLANK, ["", " ", None, "\t", "\n ", ""], strict=True):
        titles[row] = blank
    queries: list[str | None] = [" ".join(generator.choice(WORDS, 2)) for _ in range(12)]
    queries[BLANK_QUERY] = "  "
    pairs = [(query, document) for query in range(12) for document in generator.permutation(60)[:20]]
    asked = {"query_id": [f"q{row}" for row in range(12)], "query": queries}
    sold = {"doc_id": [f"d{row}" for row in range(60)], "title": titles}
    if images:
        asked["drawing"] = [picture(generator) for _ in range(12)]
        sold["image"] = [picture(generator) for _ in range(60)]
    write_dataset(
        folder,
        Schema(
            "blanks",
            {"query": "text"} | ({"drawing": "image"} if images else {}),
            {"title": "text"} | ({"image": "image"} if images else {}),
            1.0,
            100.0,
        ),
        pa.table({**asked, "split": ["novel" if row % 3 == 2 else "seen" for row in range(12)]}),
        pa.table({**sold, "split": ["novel" if row % 2 else "seen" for row in range(60)]}),
        pa.table(
            {
                "query_id": [f"q{query}" for query, _ in pairs],
                "doc_id": [f"d{document}" for _, document in pairs],
                "score": generator.integers(1, 101, len(pairs)).astype(float),
            }
        ),
    )
    return RankedDataset.open(folder, strict=strict, cache_dir=folder.parent / "cache", progress=False)


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    return shop(tmp_path_factory.mktemp("blanks") / "data")


@pytest.fixture(scope="module")
def run(lenient: RankedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of texts alone."""
    folder = tmp_path_factory.mktemp("run") / "model"
    encoder = static().eval()
    BiEncoder(encoder, FieldMix.choose(encoder, lenient.schema)).save(folder)
    return folder


@pytest.fixture
def model(run: Path) -> BiEncoder:
    return BiEncoder.load(run, device="cpu")


def test_strictly_they_are_named_with_the_way_out(lenient: RankedDataset, model: BiEncoder) -> None:
    strict = RankedDataset.open(lenient.path, cache_dir=lenient.path.parent / "cache", progress=False)
    assert strict.strict
    assert not lenient.strict
    told = (
        r"6 of 60 documents.parquet rows have none of the fields title \(document 'd3', .*'d33', \.\.\.\); name a field"
    )
    with pytest.raises(ValueError, match=told + " .*--no-strict, strict: false in a config, strict=False"):
        inputs_for(model, strict.documents, "document")
    with pytest.raises(ValueError, match=r"1 of 12 queries.parquet rows have none of the fields query \(query 'q5'\)"):
        evaluate(model, strict)


def test_they_are_left_out_of_an_evaluation_and_counted(
    lenient: RankedDataset, model: BiEncoder, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    found = evaluate(model, lenient, part="all", runs=tmp_path / "runs")
    assert found.left_out == {"queries": 1, "documents": 6}
    assert "(document 'd3', 'd8', 'd17', 'd24', 'd33', ...); they are left out" in caplog.text
    assert "(query 'q5'); they are left out" in caplog.text
    assert "q5" not in found.per_query["query_id"].to_pylist()
    assert not {f"d{row}" for row in BLANK} & set(found.results["doc_id"].to_pylist())
    # The same as a plain loop in which these documents do not exist, but are judged.
    rows, candidates = lenient.splits.query_rows("zero_shot"), lenient.splits.document_rows("zero_shot")
    kept = rows_with_fields(model, lenient.documents, "document")
    vectors = encode(model, lenient.documents, "document", kept, inputs=inputs(model, lenient, "document"))
    for query in rows.tolist():
        if query == BLANK_QUERY:
            continue
        asked = encode(model, lenient.queries, "query", np.array([query]), inputs=inputs(model, lenient, "query"))[0]
        judged, scores = lenient.qrels.judged(query)
        gain = dict(zip(judged.tolist(), scores.tolist(), strict=True))
        here = [row for row in candidates.tolist() if row in kept]
        best = sorted(here, key=lambda row: -float(vectors[np.searchsorted(kept, row)] @ asked))[:10]
        ideal = sorted((gain[row] for row in gain if row in candidates), reverse=True)[:10]
        discount = 1 / np.log2(np.arange(2, 12))
        expected = sum(gain.get(row, 0) * discount[at] for at, row in enumerate(best)) / sum(
            one * discount[at] for at, one in enumerate(ideal)
        )
        table = found.per_query.to_pylist()
        value = next(r["ndcg@10"] for r in table if r["split"] == "zero_shot" and r["query_id"] == f"q{query}")
        assert value == pytest.approx(expected, abs=1e-6)


def inputs(model: BiEncoder, data: RankedDataset, side: Side) -> Inputs:
    return inputs_for(model, data.queries if side == "query" else data.documents, side, strict=False)


def test_all_are_an_error_in_any_case(model: BiEncoder, tmp_path: Path) -> None:
    write_dataset(
        tmp_path / "data",
        Schema("none", {"query": "text"}, {"title": "text", "image": "image"}, 0.0, 1.0),
        pa.table({"query_id": ["q"], "query": ["redshoe"]}),
        pa.table({"doc_id": ["d"], "title": [""], "image": [picture(np.random.default_rng(0))]}),
        pa.table({"query_id": ["q"], "doc_id": ["d"], "score": [1.0]}),
    )
    data = RankedDataset.open(tmp_path / "data", strict=False, cache_dir=tmp_path / "cache", progress=False)
    with pytest.raises(ValueError, match=r"1 of 1 documents.parquet rows .* the model needs a field that they have"):
        inputs_for(model, data.documents, "document", strict=False)


@pytest.mark.parametrize("images", [True, False])
def test_training_goes_on_without_them(images: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A tenth of the titles is blank: a model of texts trains, whether the data set has images or not."""
    data = shop(tmp_path / "data", images=images)
    config = TrainConfig(
        data=str(data.path),
        model="static",
        out=str(tmp_path / "run"),
        strict=False,
        dim=8,
        batch_size=32,
        epochs=1,
        evaluations=1,
        device="cpu",
    )
    run = train(config, progress=False)
    assert json.loads((run / "metrics.json").read_text())["splits"]["zero_shot"]["ndcg@10"] > 0
    if images:
        assert "6 of 60 documents.parquet rows have none of the fields title" in caplog.text
        assert "training pairs are left out" in caplog.text
    else:
        assert "no field present in 6 rows" in caplog.text


def test_files_of_vectors_and_indexes_go_without_them(
    lenient: RankedDataset, run: Path, model: BiEncoder, tmp_path: Path
) -> None:
    kept = [row for row in range(60) if row not in BLANK]
    expected = encode(model, lenient.documents, "document", np.array(kept), inputs=inputs(model, lenient, "document"))  # type: ignore[arg-type]
    ids = [f"d{row}" for row in kept]
    for form, shard_rows in (("parquet", 16_384), ("npy", 7)):
        out = tmp_path / form
        job = EncodeJob(str(run), str(lenient.path), str(out), format=form, shard_rows=shard_rows, strict=False)  # type: ignore[arg-type]
        manifest = encode_table(job, progress=False)
        assert (manifest.rows, manifest.left_out) == (54, 6)
        assert read_left_out(out, manifest) == [f"d{row}" for row in BLANK]
        shards = [read_shard(out, manifest, shard) for shard in range(manifest.shards())]
        assert [one for part, _ in shards for one in part] == ids
        np.testing.assert_allclose(np.concatenate([part for _, part in shards]), expected, atol=1e-6)
        assert encode_table(job, progress=False) == manifest
        store = open_store(f"exact:{tmp_path / f'store-{form}'}")
        index = build_index(store, run, lenient, vectors=out, chunk_rows=10, progress=False)
        assert index.count() == 54
        found = index.search(expected[[20]], 1)[0][0]
        assert found.score == pytest.approx(1.0, abs=1e-5)
        store.close()
        reference = read_reference(out, lenient, model_fingerprint(run))
        np.testing.assert_allclose(reference.vectors[kept], expected, atol=1e-6)
        assert not reference.vectors[BLANK].any()
    (out / "left_out.json").write_text("[]")
    with pytest.raises(ShardError, match="required: a list of 6 ids"):
        read_left_out(out, manifest)

    store = open_store(f"exact:{tmp_path / 'store'}")
    index = build_index(store, run, lenient, chunk_rows=10, progress=False, device="cpu")
    assert [row is None for row in index.get([f"d{row}" for row in range(60)])] == [row in BLANK for row in range(60)]
    store.close()
    strict, other = RankedDataset.open(lenient.path, progress=False), open_store(f"exact:{tmp_path / 'other'}")
    with pytest.raises(ValueError, match="none of the fields title"):
        build_index(other, run, strict, progress=False, device="cpu")
    assert len(sample_queries(model, lenient, 12)) == 11
    hits = ProductSearch(run, lenient, progress=False)("redshoe", k=60)
    assert sorted(hit.doc_id for hit in hits) == sorted(ids)


def test_the_commands_say_it(
    lenient: RankedDataset,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def by_command(*words: str) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["opengcl", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    code, err = by_command("encode", str(run), "--data", str(lenient.path), "--out", str(tmp_path / "a"))
    assert code == 2
    assert "none of the fields title (document 'd3'" in err
    assert "--no-strict" in err
    words = ("encode", str(run), "--data", str(lenient.path), "--out", str(tmp_path / "a"), "--no-strict")
    code, err = by_command(*words)
    assert not code
    assert "54 vectors, 8 x float32; left out: 6 rows (left_out.json)" in err
    out = tmp_path / "found.json"
    code, err = by_command(
        "evaluate", str(run), "--data", str(lenient.path), "--no-strict", "--out", str(out), "--queries", "all"
    )
    assert not code, err
    assert json.loads(out.read_text())["left_out"] == {"queries": 1, "documents": 6}
