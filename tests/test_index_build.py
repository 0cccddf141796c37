"""From documents to an index and back to the same documents; stopped, gone on, checked, swapped."""

from __future__ import annotations

import datetime
import decimal
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from opengcl.data import DataSetError, RankedDataset, Schema, write_dataset
from opengcl.encode import encode
from opengcl.index import Index, VectorIndexError, model_fingerprint, open_store, parse_filter, shorten
from opengcl.index.build import build_index, encoded, fill, kept_fields, kept_values, open_or_create
from opengcl.index.check import Reference, check_index, sample_queries
from opengcl.model import BiEncoder, FieldMix, ModelError
from opengcl.vector_shards import EncodeJob, ShardError, encode_table
from tests.builders import WORDS, static
from tests.test_cli import run_cli

DOCUMENTS = 60
SCHEMA = Schema("shop", {"query": "text"}, {"title": "text", "note": "text"}, 1.0, 100.0)
PRICES = [None if row % 9 == 4 else float("nan") if row % 9 == 5 else row / 2 for row in range(DOCUMENTS)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    """Documents with a column of every type."""
    folder = tmp_path_factory.mktemp("shop")
    generator = np.random.default_rng(0)
    rows = range(DOCUMENTS)
    write_dataset(
        folder / "data",
        SCHEMA,
        pa.table({"query_id": [f"q{row}" for row in range(8)], "query": [WORDS[row] for row in range(8)]}),
        pa.table(
            {
                "doc_id": [f"d{row}" for row in rows],
                "title": [" ".join(generator.choice(WORDS, 3)) for _ in rows],
                "note": pa.array([None] * DOCUMENTS, pa.string()),
                "price": pa.array(PRICES, pa.float32()),
                "cents": pa.array([row * 100 for row in rows], pa.int32()),
                "tax": pa.array([decimal.Decimal("0.19")] * DOCUMENTS, pa.decimal128(5, 2)),
                "brand": pa.array(["it's" if row % 2 else None for row in rows]).dictionary_encode(),
                "stock": [row % 3 == 0 for row in rows],
                "nothing": pa.nulls(DOCUMENTS),
                "sizes": [[1, 2]] * DOCUMENTS,
            }
        ),
        pa.table({"query_id": ["q0", "q1"], "doc_id": ["d0", "d1"], "score": [5.0, 6.0]}),
    )
    return RankedDataset.open(folder / "data", cache_dir=folder / "cache", progress=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    encoder = static()
    mix = FieldMix({"query": 1.0}, {"title": 1.0}, {"query": "text"}, {"title": "text"})
    BiEncoder(encoder, mix).save(folder / "model")
    return folder


def whole(run: Path, shop: RankedDataset) -> np.ndarray:
    return encode(BiEncoder.load(run), shop.documents, "document", np.arange(DOCUMENTS))


def content(index: Index) -> list[tuple[str, bytes, dict[str, Any]]]:
    rows = index.get([f"d{row}" for row in range(DOCUMENTS)])
    return [(row.doc_id, row.vector.tobytes(), row.fields) for row in rows if row is not None]


@pytest.mark.parametrize("kind", ["exact:", ""])
def test_documents_travel_with_what_is_kept(kind: str, run: Path, shop: RankedDataset, tmp_path: Path) -> None:
    store = open_store(f"{kind}{tmp_path}/store")
    keep = ["title", "price", "cents", "tax", "brand", "stock", "nothing"]
    index = build_index(store, run, shop, keep=keep, chunk_rows=16, progress=False)
    assert store.live() == index.name
    assert index.spec.fields == {
        "title": "text",
        "price": "number",
        "cents": "integer",
        "tax": "number",
        "brand": "text",
        "stock": "boolean",
        "nothing": "text",
    }
    assert (index.spec.model, index.spec.data) == (model_fingerprint(run), shop.fingerprint)
    assert index.count() == DOCUMENTS
    rows = index.get(shop.documents.ids())
    titles = shop.documents.texts("title", np.arange(DOCUMENTS))
    for number, (row, vector) in enumerate(zip(rows, whole(run, shop), strict=True)):
        assert row is not None
        np.testing.assert_array_equal(row.vector, vector)
        price = PRICES[number]
        assert row.fields == {
            "title": titles[number],
            "price": None if price is None or np.isnan(price) else price,
            "cents": number * 100,
            "tax": 0.19,
            "brand": "it's" if number % 2 else None,
            "stock": number % 3 == 0,
            "nothing": None,
        }
    assert index.count(parse_filter("price is null", index.spec.fields)) == sum(
        price is None or np.isnan(price) for price in PRICES
    )
    again = build_index(store, run, shop, keep=keep, progress=False)
    assert (again.name, store.names()) == (index.name, [index.name])
    store.close()


@pytest.mark.parametrize("stopped_at", [0, 1, 3])
@pytest.mark.parametrize("kind", ["exact:", ""])
def test_a_stopped_build_goes_on_and_ends_the_same(
    kind: str, stopped_at: int, run: Path, shop: RankedDataset, tmp_path: Path
) -> None:
    straight = open_store(f"exact:{tmp_path}/straight")
    wanted = build_index(straight, run, shop, progress=False)
    store = open_store(f"{kind}{tmp_path}/store")
    index = open_or_create(store, wanted.name, wanted.spec)
    _, source = encoded(BiEncoder.load(run), shop.documents)
    asked: list[int] = []

    def fails_at(rows: np.ndarray) -> np.ndarray:
        if len(asked) == stopped_at:
            raise KeyboardInterrupt
        asked.append(int(rows[0]))
        return source(rows)

    with pytest.raises(KeyboardInterrupt):
        fill(index, shop.documents, fails_at, chunk_rows=16, progress=False)
    assert (index.count(), store.live()) == (16 * stopped_at, None)

    def counted(rows: np.ndarray) -> np.ndarray:
        asked.append(int(rows[0]))
        return source(rows)

    fill(index, shop.documents, counted, chunk_rows=16, progress=False)
    assert asked == [0, 16, 32, 48]  # each chunk once, over both calls
    assert content(index) == content(wanted)
    whole_now = build_index(store, run, shop, progress=False)
    assert (whole_now.name, store.live()) == (wanted.name, wanted.name)
    assert content(whole_now) == content(wanted)
    store.close()


def test_fewer_components_and_int8(run: Path, shop: RankedDataset, tmp_path: Path) -> None:
    store = open_store(f"exact:{tmp_path}")
    first = build_index(store, run, shop, dimension=4, progress=False)
    short = whole(run, shop)[:, :4]
    short = short / np.linalg.norm(short, axis=1, keepdims=True)
    rows = first.get(shop.documents.ids())
    np.testing.assert_array_equal([row.vector for row in rows if row is not None], short)
    second = build_index(store, run, shop, dimension=4, dtype="int8", swap=False, progress=False)
    assert store.live() == first.name
    assert len(store.names()) == 2
    assert second.spec.dtype == "int8"
    with pytest.raises(VectorIndexError, match="dimension: found 9; allowed: 1 to 8"):
        build_index(store, run, shop, dimension=9, progress=False)
    with pytest.raises(VectorIndexError, match=rf"{first.name}' is there with another dtype"):
        build_index(store, run, shop, dimension=4, dtype="int8", name=first.name, progress=False)
    assert len(store.names()) == 2


def test_shorten_says_what_it_cannot() -> None:
    vectors = np.array([[0.6, 0.8, 0], [0, 0, 1]], np.float32)
    np.testing.assert_array_equal(shorten(vectors, 3), vectors)
    np.testing.assert_allclose(shorten(vectors[:1], 1), [[1]])
    with pytest.raises(VectorIndexError, match="row 1: the first 2 components are all 0"):
        shorten(vectors, 2)
    for wrong in (0, 4):
        with pytest.raises(VectorIndexError, match="allowed: 1 to 3"):
            shorten(vectors, wrong)


def test_columns_that_cannot_be_kept(shop: RankedDataset) -> None:
    assert kept_fields(shop.documents, None) == {"title": "text"}
    assert kept_fields(shop.documents, []) == {}
    with pytest.raises(DataSetError, match=r"'sizes': found list<.*; an index keeps text, integers, numbers"):
        kept_fields(shop.documents, ["sizes"])
    with pytest.raises(DataSetError, match="no column 'size'"):
        kept_fields(shop.documents, ["size"])
    assert kept_values(shop.documents, "price", np.array([4, 5, 6]), "number") == [None, None, 3.0]


def test_integers_dates_and_decimals_are_kept_as_they_are_or_as_text(run: Path, tmp_path: Path) -> None:
    rows = range(128)
    skus = [9_007_199_254_740_993 + row for row in rows]
    days = [None if row == 1 else datetime.date(2024, 5, 1) for row in rows]
    documents = {
        "doc_id": [f"d{row}" for row in rows],
        "title": ["redshoe"] * 128,
        "sku": pa.array(skus, pa.int64()),
        "gtin": pa.array(skus, pa.decimal128(30, 0)),
        "year": pa.array([None if row == 1 else 2024 for row in rows], pa.uint16()),
        "huge": pa.array([2**64 - 1] * 128, pa.uint64()),
        "day": pa.array(days, pa.date32()),
        "at": pa.array([datetime.datetime(2024, 5, 1, 12)] * 128, pa.timestamp("us")),
        "exact": pa.array([decimal.Decimal("12345678901234567.89")] * 128, pa.decimal128(30, 2)),
    }
    write_dataset(
        tmp_path / "data",
        Schema("toy", {"query": "text"}, {"title": "text"}, 1.0, 100.0),
        pa.table({"query_id": ["q"], "query": ["redshoe"]}),
        pa.table(documents),
        pa.table({"query_id": ["q"], "doc_id": ["d0"], "score": [5.0]}),
    )
    dataset = RankedDataset.open(tmp_path / "data", cache_dir=tmp_path / "cache", progress=False)
    store = open_store(f"exact:{tmp_path}/store")
    texts = ["huge", "day", "at", "exact"]
    index = build_index(
        store, run, dataset, keep=["sku", "gtin", "year", *texts], as_text=texts, chunk_rows=64, progress=False
    )
    assert index.spec.fields == {"sku": "integer", "gtin": "integer", "year": "integer"} | dict.fromkeys(texts, "text")
    kept = [row.fields for row in index.get(["d7", "d1"]) if row]
    assert kept[0] == {
        "sku": skus[7],
        "gtin": skus[7],
        "year": 2024,
        "huge": "18446744073709551615",
        "day": "2024-05-01",
        "at": "2024-05-01 12:00:00",
        "exact": "12345678901234567.89",
    }
    assert type(kept[0]["year"]) is int
    assert (kept[1]["year"], kept[1]["day"]) == (None, None)
    assert index.count(parse_filter(f"sku = {skus[7]}", index.spec.fields)) == 1
    with pytest.raises(DataSetError, match=r"'day': found date32.*keep it as text \(--as-text day\)"):
        kept_fields(dataset.documents, ["day"])
    with pytest.raises(DataSetError, match="as_text: found 'day'; allowed: columns to keep, sku"):
        kept_fields(dataset.documents, ["sku"], ["day"])
    for name, message in (("huge", "found 18446744073709551615; allowed: integers"), ("exact", "float64 would round")):
        with pytest.raises(VectorIndexError, match=f"row 0, field '{name}': {message}|row 0.*{message}.*--as-text"):
            build_index(store, run, dataset, keep=[name], progress=False)


def test_a_value_that_no_index_holds_is_told_with_its_row(run: Path, tmp_path: Path) -> None:
    rows = range(5)
    write_dataset(
        tmp_path / "data",
        Schema("toy", {"query": "text"}, {"title": "text"}, 1.0, 100.0),
        pa.table({"query_id": ["q"], "query": ["redshoe"]}),
        pa.table(
            {"doc_id": [f"d{row}" for row in rows], "title": ["redshoe"] * 5, "size": [1.0, 2, 3, 4, float("inf")]}
        ),
        pa.table({"query_id": ["q"], "doc_id": ["d0"], "score": [5.0]}),
    )
    dataset = RankedDataset.open(tmp_path / "data", cache_dir=tmp_path / "cache", progress=False)
    store = open_store(f"exact:{tmp_path}/store")
    with pytest.raises(
        VectorIndexError, match=r"documents.parquet, counted from row 3: row 1, field 'size': found inf"
    ):
        build_index(store, run, dataset, keep=["size"], chunk_rows=3, progress=False)
    assert store.live() is None


def test_a_fingerprint_is_of_the_files_wherever_they_lie(run: Path, tmp_path: Path) -> None:
    before = model_fingerprint(run)
    assert model_fingerprint(run / "model") == before
    copy = tmp_path / "copy"
    for file in (run / "model").rglob("*"):
        if file.is_file():
            place = copy / file.relative_to(run / "model")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    assert model_fingerprint(copy) == before
    (copy / "vectors").mkdir()
    (copy / "vectors" / "x.npy").write_bytes(b"kept by opengcl search")
    assert model_fingerprint(copy) == before
    card = copy / "opengcl.json"
    card.write_text(card.read_text().replace("1.0", "0.5", 1))
    assert model_fingerprint(copy) != before
    with pytest.raises(ModelError, match="holds no trained model"):
        model_fingerprint(tmp_path)


def test_vectors_of_files_make_the_same_index(run: Path, shop: RankedDataset, tmp_path: Path) -> None:
    job = EncodeJob(str(run), str(shop.path), str(tmp_path / "vectors"), shard_rows=25)
    encode_table(job, progress=False)
    one, other = open_store(f"exact:{tmp_path}/one"), open_store(f"exact:{tmp_path}/other")
    made = build_index(one, run, shop, chunk_rows=16, progress=False)
    taken = build_index(other, run, shop, vectors=tmp_path / "vectors", chunk_rows=16, progress=False)
    assert (made.name, content(made)) == (taken.name, content(taken))
    encode_table(EncodeJob(str(run), str(shop.path), str(tmp_path / "queries"), side="query"), progress=False)
    with pytest.raises(ShardError, match="side: found query; required: document"):
        build_index(other, run, shop, vectors=tmp_path / "queries", progress=False)
    (tmp_path / "vectors" / "part-00001.parquet").unlink()
    with pytest.raises(ShardError, match=r"1 of 3 shards are not there yet, the first is part-00001.parquet"):
        build_index(other, run, shop, vectors=tmp_path / "vectors", progress=False)
    with pytest.raises(ShardError, match=r"holds no vectors\.json"):
        build_index(other, run, shop, vectors=tmp_path, progress=False)


def test_a_check_tells_what_is_lost(run: Path, shop: RankedDataset, tmp_path: Path) -> None:
    store = open_store(f"exact:{tmp_path}")
    queries = sample_queries(BiEncoder.load(run), shop, 5)
    assert queries.shape == (5, 8)
    reference = Reference(whole(run, shop), shop.documents.find)
    full = check_index(build_index(store, run, shop, progress=False), queries, reference=reference, progress=False)
    assert [(one.k, one.recall, one.kept_recall) for one in full.depths] == [(10, 1.0, 1.0), (100, 1.0, 1.0)]
    assert (full.documents, full.queries, full.dimension) == (DOCUMENTS, 5, 8)
    assert all(0 < one.p50_ms <= one.p99_ms for one in full.depths)
    assert full.size_bytes is not None
    assert full.size_bytes > DOCUMENTS * 8 * 4
    index = build_index(store, run, shop, dimension=2, progress=False)
    short = check_index(index, queries, depths=[10], reference=reference, progress=False).depths[0]
    # By hand: the best 10 by two components, counted by whole cosines
    exact = queries @ reference.vectors.T
    kept = shorten(queries, 2) @ shorten(reference.vectors, 2).T
    shares = []
    for whole_scores, short_scores in zip(exact, kept, strict=True):
        level = np.sort(whole_scores)[-10]
        shares.append(
            min(10, int((whole_scores[np.argsort(-short_scores, kind="stable")[:10]] >= level - 1e-4).sum())) / 10
        )
    assert short.recall == 1.0
    assert short.kept_recall == short.exact_kept_recall == pytest.approx(np.mean(shares))
    assert short.kept_recall < 1


def test_the_commands(
    run: Path, shop: RankedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENGCL_STORE", f"exact:{tmp_path}/store")
    data = ["--data", str(shop.path)]

    def opengcl(*words: str) -> tuple[int, str, str]:
        return run_cli(capsys, monkeypatch, *words)

    code, _, err = opengcl("index", "build", str(run), *data, "--keep", "title, price", "--name", "one")
    assert code == 0, err
    assert "index one, 60 documents, live" in err
    code, _, err = opengcl("index", "build", str(run), *data, "--dtype", "int8", "--dimension", "4", "--no-swap")
    assert code == 0, err
    second = re.findall(r"index swap (\w+)", err)[0]
    code, out, err = opengcl("index", "list")
    assert code == 0, err
    assert [line.split()[:3] for line in out.splitlines()] == [["*", "one", "60"], [second, "60", "documents"]]
    code, out, err = opengcl("encode", str(run), *data, "--out", str(tmp_path / "vectors"))
    assert code == 0, err
    checked = ["index", "check", str(run), *data, "--queries", "4", "--name", second]
    code, out, err = opengcl(*checked, "--vectors", str(tmp_path / "vectors"), "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["index"], report["queries"], report["depths"][0]["recall"]) == (second, 4, 1.0)
    assert 0 < report["depths"][0]["kept_recall"] < 1
    code, out, err = opengcl(*checked)
    assert code == 0, err
    assert "recall@10  1.0000" in out
    code, _, err = opengcl("index", "swap", second)
    assert code == 0, err
    assert f"{second} is live; before: one" in err
    code, _, err = opengcl("index", "drop", "one")
    assert code == 0, err
    for words, message in (
        (["index", "drop", second], "is live; swap to another one first"),
        (["index", "swap", "one"], f"no index 'one'; there: {second}"),
        (["index", "list", "--store", "mysql://x"], "found the address mysql://"),
        (["index", "build", str(run), *data, "--keep", "sizes"], "an index keeps text, integers, numbers and booleans"),
        (["index", "build", str(run), *data, "--dtype", "int4"], "allowed: float32, int8"),
        (["index", "build", str(tmp_path), *data], "holds no trained model"),
        (["encode", str(run), *data, "--out", str(tmp_path / "v"), "--format", "csv"], "allowed: parquet, npy"),
        (["encode", str(run), *data, "--out", str(tmp_path / "vectors"), "--dimension", "4"], "another dimension"),
        (["encode", str(run), *data, "--out", str(tmp_path / "v"), "--dimension", "9"], "allowed: 1 to 8"),
    ):
        code, _, err = opengcl(*words)
        assert code == 2, words
        assert message in err
        assert "Traceback" not in err
    assert not (tmp_path / "v").exists()


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other settings, which is another model."""
    folder = tmp_path_factory.mktemp("other")
    mix = FieldMix({"query": 1.0}, {"title": 1.0}, {"query": "text"}, {"title": "text"})
    BiEncoder(static(), mix, missing_fields="leave_out").save(folder / "model")
    return folder


def test_another_model_takes_no_live_index_unasked(
    run: Path, other_run: Path, shop: RankedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(f"exact:{tmp_path}/store")
    first = build_index(store, run, shop, progress=False).name
    with pytest.raises(
        VectorIndexError, match=f"live index '{first}' was made by the model .*--no-swap, or set --replace"
    ):
        build_index(store, other_run, shop, progress=False)
    assert (store.live(), store.names()) == (first, [first])  # told before anything is encoded
    assert not caplog.text
    beside = build_index(store, other_run, shop, swap=False, progress=False).name
    assert store.live() == first
    assert build_index(store, other_run, shop, replace_model=True, progress=False).name == beside
    assert store.live() == beside
    assert f"opengcl index swap {first} --replace-model goes back" in caplog.text
    caplog.clear()
    build_index(store, other_run, shop, dtype="int8", progress=False)
    assert not caplog.text  # the same model again
    store.close()


def test_swapping_to_another_model_asks_too(
    run: Path,
    other_run: Path,
    shop: RankedDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = f"exact:{tmp_path}/store"
    data = ["--data", str(shop.path), "--store", address]
    store = open_store(address)
    build_index(store, run, shop, name="one", progress=False)
    code, _, err = run_cli(capsys, monkeypatch, "index", "build", str(other_run), *data)
    assert code == 2
    assert "--replace-model" in err
    assert run_cli(capsys, monkeypatch, "index", "build", str(other_run), *data, "--no-swap", "--name", "two")[0] == 0
    code, _, err = run_cli(capsys, monkeypatch, "index", "swap", "two", "--store", address)
    assert (code, store.live()) == (2, "one")
    assert "servers of the other model keep their index" in err
    assert run_cli(capsys, monkeypatch, "index", "swap", "two", "--store", address, "--replace-model")[0] == 0
    assert store.live() == "two"
    store.close()


def test_an_index_of_another_model_is_not_checked(
    run: Path, shop: RankedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"exact:{tmp_path}/store")
    build_index(store, run, shop, progress=False)
    mix = FieldMix({"query": 1.0}, {"note": 1.0}, {"query": "text"}, {"note": "text"})
    BiEncoder(static(), mix).save(tmp_path / "other" / "model")
    words = ["index", "check", str(tmp_path / "other"), "--data", str(shop.path), "--store", f"exact:{tmp_path}/store"]
    code, _, err = run_cli(capsys, monkeypatch, *words)
    assert code == 2
    assert "build an index with this model and swap to it" in err
