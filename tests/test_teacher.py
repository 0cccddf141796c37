"""The second ranking: its phrases, its teacher's formula and its lists against loops, and the same bytes every time."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.ranking import teacher
from benchmarks.ranking.teacher import (
    build,
    describe,
    draw_queries,
    encode,
    find_phrases,
    judge,
    main,
    ndcg_by_cosine,
    popularity,
    product_text,
    title_words,
)

from opengcl.data import DataSetError, RankedDataset, Schema, write_dataset

from .builders import picture

Product = dict[str, Any]


def bag_of_words(texts: Sequence[str]) -> np.ndarray:
    """A teacher without a model: every word is a fixed random vector."""
    words = [text.lower().replace(",", " ").replace(".", " ").split() for text in texts]
    return np.array([sum(np.random.default_rng(zlib.crc32(w.encode())).normal(size=32) for w in row) for row in words])


def shop(size: int = 150, seed: int = 0) -> list[Product]:
    draw = random.Random(seed)
    products = []
    for number in range(size):
        brand = draw.choice(["Acme", "Zed", "Nova", "Odd"])
        gender, colour, kind = draw.choice(["Men", "Women"]), draw.choice(["Red", "Navy Blue"]), draw.choice("TUV")
        words = [gender, draw.choice(["Printed", "Striped", "Pack of 2"]), colour, kind + "-shirt"]
        products.append(
            {
                "doc_id": f"d{number:03d}",
                "title": " ".join([brand, *words]),
                "brand": brand,
                "gender": gender,
                "article_type": "Tshirts",
                "base_colour": colour,
                "usage": draw.choice(["Casual", "Sports"]),
                "season": draw.choice(["Summer", "Winter", None]),
                "year": draw.choice([2011, 2012, 2016, None]),
                "split": draw.choice(["seen", "novel"]),
            }
        )
    return products


def write_shop(folder: Path, products: list[Product]) -> Path:
    image = [picture(np.random.default_rng(number)) for number in range(len(products))]
    documents = pa.Table.from_pylist(products).append_column("image", pa.array(image, pa.binary()))
    write_dataset(
        folder,
        Schema("shop", {"query": "text"}, {"title": "text", "image": "image"}, 1, 100),
        pa.table({"query_id": ["q0"], "query": ["men printed"], "split": ["seen"]}),
        documents,
        pa.table({"query_id": ["q0"], "doc_id": ["d000"], "score": [1.0]}),
    )
    return folder


def test_the_teacher_reads_title_and_attributes() -> None:
    product = {
        "title": "Acme Tee",
        "gender": "Men",
        "article_type": "Tshirts",
        "base_colour": "Navy Blue",
        "usage": "Smart Casual",
        "season": "Fall",
    }
    assert product_text(product) == "Acme Tee. Men tshirts in navy blue, smart casual, fall."
    lacking = {**product, "gender": None, "base_colour": None, "season": None}
    assert product_text(lacking) == "Acme Tee. tshirts, smart casual."


@pytest.mark.parametrize(
    ("title", "brand", "words"),
    [
        ("Nike Men's T-Shirt", "Nike", ["men's", "t-shirt"]),
        ("Blue Blue  Hat (Pack of 2)", "Blue", ["blue", "hat", "pack", "of", "2"]),
        ("Acme - 50/50 Mix & Match -", "Acme", ["50/50", "mix", "match"]),
        (None, None, []),
    ],
)
def test_title_words(title: str | None, brand: str | None, words: list[str]) -> None:
    assert title_words({"title": title, "brand": brand}) == words


def test_phrases_are_those_of_loops() -> None:
    products = shop(60)
    found = find_phrases(products)
    expected: dict[str, list[int]] = {}
    for length in (2, 3, 4, 5):
        for product in products:
            words = product["title"].lower().split()[1:]
            for start in range(len(words) - length + 1):
                run = words[start : start + length]
                having = [
                    row
                    for row, other in enumerate(products)
                    if f" {' '.join(run)} " in f" {' '.join(other['title'].lower().split()[1:])} "
                ]
                brands = {products[row]["brand"] for row in having}
                if len(having) >= 8 and len(brands) >= 3 and run[0] != "of" and run[-1] != "of":
                    expected[" ".join(run)] = having
    assert found == dict(sorted(expected.items()))
    assert {len(phrase.split()) for phrase in found} >= {2, 3}
    assert any("of" in phrase.split() for phrase in found)


def test_a_phrase_of_two_brands_is_left_out() -> None:
    products = [{"title": f"{brand} fine hat", "brand": brand} for brand in ["A", "B"] * 8]
    assert find_phrases(products) == {}
    products[0] = {"title": "C fine hat", "brand": "C"}
    assert find_phrases(products) == {"fine hat": list(range(16))}
    assert find_phrases(products[:7]) == {}


def test_queries_are_phrases_then_phrases_with_an_attribute() -> None:
    products = shop()
    phrases = find_phrases(products)
    taken = frozenset([next(iter(phrases)), "men printed for winter"])
    queries = draw_queries(products, np.random.default_rng(1), plain=12, mixed=10, taken=taken)
    assert len(set(queries)) == 22
    assert set(queries[:12]) <= set(phrases) - taken
    for query in queries[12:]:
        added = [
            (query.removesuffix(f" {link} {value}") if link else query.removeprefix(f"{value} "), name)
            for name, link in (("base_colour", "in"), ("gender", "for"), ("season", "for"), ("usage", ""))
            for value in {str(product[name]).lower() for product in products}
        ]
        (whole,) = [(phrase, name) for phrase, name in added if phrase in phrases]
        phrase, name = whole
        words = set(phrase.split())
        assert not (name == "base_colour" and words & {"red", "navy", "blue"})
        assert not (name == "gender" and words & {"men", "women"})
    assert taken.isdisjoint(queries)
    assert queries == draw_queries(products, np.random.default_rng(1), plain=12, mixed=10, taken=taken)
    assert queries != draw_queries(products, np.random.default_rng(2), plain=12, mixed=10, taken=taken)


def test_there_are_fewer_queries_where_there_are_too_few_phrases() -> None:
    products = shop()
    phrases = find_phrases(products)
    queries = draw_queries(products, np.random.default_rng(0), plain=10**6, mixed=10**6)
    assert set(queries[: len(phrases)]) == set(phrases)
    assert len(phrases) < len(queries) <= 2 * len(phrases)
    assert draw_queries(products[:5], np.random.default_rng(0), plain=9, mixed=9) == []


def test_popularity_is_rare_and_half_predictable() -> None:
    draw = random.Random(0)
    products = [{"brand": f"b{draw.randrange(300)}", "year": draw.choice([2010, 2018])} for _ in range(20_000)]
    found = popularity(products, np.random.default_rng(0))
    assert 0 < found.min() <= found.max() == 1
    assert np.median(found) < 0.1 < np.quantile(found, 0.95)
    below = found < 1
    year = np.array([product["year"] for product in products])
    logs = np.log(found)
    assert logs[year == 2018].mean() - logs[year == 2010].mean() == pytest.approx(8 * 0.25, abs=0.15)
    _, brand = np.unique([product["brand"] for product in products], return_inverse=True)
    rest = logs - 0.25 * (year - 2010)
    within = np.concatenate([rest[(brand == b) & below] - rest[(brand == b) & below].mean() for b in range(300)])
    assert within.var() == pytest.approx(1, abs=0.15)
    assert rest.var() == pytest.approx(2, abs=0.35)


def test_popularity_without_years() -> None:
    found = popularity([{"brand": None, "year": None}] * 50, np.random.default_rng(0))
    assert np.isfinite(found).all()


def test_vectors_are_unit_in_order_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "_CHUNK", 4)
    calls: list[list[str]] = []

    def encoder(texts: Sequence[str]) -> np.ndarray:
        calls.append(list(texts))
        return bag_of_words(texts)

    texts = [" ".join("abcdefghij"[: 1 + 7 * i % 10]) for i in range(10)]
    found = encode(texts, encoder, tmp_path / "new" / "fake")
    plain = bag_of_words(texts)
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-3)
    assert found.dtype == np.float16
    assert [len(call) for call in calls] == [4, 4, 2]
    np.testing.assert_array_equal(encode(texts, encoder, tmp_path / "new" / "fake"), found)
    assert len(calls) == 3
    encode(texts[::-1], encoder, tmp_path / "new" / "fake")
    assert len(calls) == 6
    assert len(list((tmp_path / "new").iterdir())) == 2


def unit(generator: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    vectors = generator.normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize(("documents", "dim"), [(5, 6), (20, 6), (60, 6), (2500, 3)])
def test_lists_and_scores_are_those_of_loops(documents: int, dim: int) -> None:
    generator = np.random.default_rng(0)
    queries, vectors = unit(generator, 60, dim), unit(generator, documents, dim)
    popular = generator.random(documents).round(6)
    found = judge(queries, vectors, popular)
    lengths = set()
    for query in range(60):
        dots = [sum(float(a) * float(b) for a, b in zip(queries[query], row, strict=True)) for row in vectors]
        s = [round(dot, 4) + 0.15 * pop for dot, pop in zip(dots, popular, strict=True)]
        order = sorted(range(documents), key=lambda row: (-s[row], row))
        near = sum(value >= s[order[0]] - 0.15 for value in s)
        length = min(max(near, 20), 100, documents)
        lengths.add(length)
        rows = found.query == query
        assert found.document[rows].tolist() == order[:length]
        assert found.position[rows].tolist() == list(range(1, length + 1))
        best, cut = s[order[0]], s[order[min(length, documents - 1)]]
        expected = [1 + 99 * (s[row] - cut) / (best - cut) for row in order[:length]]
        np.testing.assert_allclose(found.score[rows], expected, rtol=1e-6)
    assert min(lengths) >= min(20, documents)
    if documents == 2500:
        assert max(lengths) == 100
        assert len(lengths) > 5


def test_equal_documents_score_alike_in_their_order() -> None:
    found = judge(np.ones((1, 1)), np.ones((30, 1)), np.zeros(30))
    assert found.document.tolist() == list(range(30))
    assert found.score.tolist() == [100.0] * 30


def test_the_order_of_adding_up_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    queries, vectors = unit(generator, 40, 384), unit(generator, 500, 384)
    popular = generator.random(500).round(6)
    plain = judge(queries, vectors, popular)
    for _ in range(3):
        order = generator.permutation(384)
        other = judge(queries[:, order], vectors[:, order], popular)
        for name in ("query", "document", "position", "score"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))


def test_what_texts_alone_reach() -> None:
    generator = np.random.default_rng(0)
    queries, vectors = unit(generator, 30, 6), unit(generator, 300, 6)
    assert ndcg_by_cosine(queries, vectors, judge(queries, vectors, np.zeros(300))) == pytest.approx(1)
    judged = judge(queries, vectors, generator.random(300).round(6))
    reached = []
    for query in range(30):
        rows = judged.query == query
        score = dict(zip(judged.document[rows].tolist(), judged.score[rows].tolist(), strict=True))
        cosine = [round(float(queries[query].astype(float) @ row.astype(float)), 4) for row in vectors]
        order = sorted(range(300), key=lambda row: (-cosine[row], row))[:10]
        best = sorted(score.values(), reverse=True)[:10]
        got, ideal = (
            sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains))
            for gains in ([score.get(row, 0) for row in order], best)
        )
        reached.append(got / ideal)
    assert 0.3 < np.mean(reached) < 0.95
    assert ndcg_by_cosine(queries, vectors, judged) == pytest.approx(np.mean(reached))


def built(folder: Path, source: Path, out: str) -> Path:
    build(source, folder / out, bag_of_words, encoder_name="fake", plain=20, mixed=15)
    return folder / out


def test_the_data_set_is_the_same_every_time(tmp_path: Path) -> None:
    source = write_shop(tmp_path / "shop", shop())
    first, second = built(tmp_path, source, "a"), built(tmp_path, source, "b")
    again = built(tmp_path / "elsewhere", source, "a")
    for name in ("queries.parquet", "documents.parquet", "qrels.parquet", "dataset.yaml"):
        assert (first / name).read_bytes() == (second / name).read_bytes() == (again / name).read_bytes()
    cached = sorted(path.name for path in tmp_path.glob("a-fake-*.npy"))
    assert len(cached) == 2
    assert cached == sorted(path.name.replace("b-fake", "a-fake") for path in tmp_path.glob("b-fake-*.npy"))


def test_the_data_set_is_valid_and_has_the_source_s_documents(tmp_path: Path) -> None:
    source = write_shop(tmp_path / "shop", shop())
    out = built(tmp_path, source, "out")
    assert pq.read_table(out / "documents.parquet").equals(pq.read_table(source / "documents.parquet"))
    data = RankedDataset.open(out, cache_dir=tmp_path / "cache", progress=False)
    assert data.problems == []
    assert (data.schema.score_min, data.schema.score_max) == (1, 100)
    queries = pq.read_table(out / "queries.parquet")
    assert "men printed" not in queries["query"].to_pylist()
    assert set(queries["split"].to_pylist()) == {"seen", "novel"}
    qrels = pq.read_table(out / "qrels.parquet").to_pylist()
    lists: dict[str, list[dict[str, Any]]] = {}
    for pair in qrels:
        lists.setdefault(pair["query_id"], []).append(pair)
    assert len(lists) == len(queries)
    for pairs in lists.values():
        scores = [pair["score"] for pair in pairs]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == 100
        assert scores[-1] >= 1
        assert 20 <= len(pairs) <= 100
        assert [pair["position"] for pair in pairs] == list(range(1, len(pairs) + 1))


def test_the_description_shows_lists_and_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENGCL_CACHE", str(tmp_path / "cache"))
    out = built(tmp_path, write_shop(tmp_path / "shop", shop()), "out")
    said = describe(out, examples=1)
    assert "in_domain: " in said
    assert "list lengths" in said
    best = {line.split(":")[0]: float(line.split(":")[1]) for line in said.splitlines() if line.startswith("NDCG")}
    reverse, shuffled = (best[f"NDCG@10 of the judged documents in {name} order"] for name in ("reversed", "random"))
    assert 0 < reverse < shuffled < 1
    assert said.splitlines()[-5].startswith("  100.00  ")


def test_what_is_wrong_with_the_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"documents.parquet: no such file; required: fashion-small"):
        built(tmp_path, tmp_path, "out")
    lacking = [{name: value for name, value in row.items() if name != "usage"} for row in shop(10)]
    with pytest.raises(DataSetError, match="column 'usage' is missing; found doc_id, title"):
        built(tmp_path, write_shop(tmp_path / "lacking", lacking), "out")
    few = write_shop(tmp_path / "few", shop(5))
    with pytest.raises(DataSetError, match="no phrase is in 8 titles of 3 brands"):
        built(tmp_path, few, "out")
    with pytest.raises(DataSetError, match="exists already"):
        built(tmp_path, write_shop(tmp_path / "shop", shop()), "shop")


def test_the_command_ends_with_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*no such file"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
