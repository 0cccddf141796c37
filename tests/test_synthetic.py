import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from opengcl.data import synthetic
from opengcl.data.shop_pictures import BACKGROUNDS, COLOURS, MARKS, PATTERNS, SHAPES, draw_product
from opengcl.data.synthetic import make_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("shop") / "s", products=150, queries=40, seed=3, image_size=24)


def table(shop: Path, name: str) -> list[dict]:
    return pq.read_table(shop / f"{name}.parquet").to_pylist()


def test_the_folder_has_the_documented_files_and_columns(shop: Path) -> None:
    assert sorted(path.name for path in shop.iterdir()) == sorted(synthetic.FILES)
    assert yaml.safe_load((shop / "dataset.yaml").read_text()) == {
        "name": "synthetic-shop",
        "queries": {"query": "text"},
        "documents": {"title": "text", "image": "image"},
        "score": {"min": 1, "max": 100},
    }
    documents, queries, qrels = (table(shop, name) for name in ("documents", "queries", "qrels"))
    assert len(documents) == 150
    assert len({d["doc_id"] for d in documents}) == 150
    assert len(queries) == 40
    assert len({q["query"] for q in queries}) == 40
    assert len(qrels) == 40 * 50
    assert "split" not in documents[0]
    assert "split" not in queries[0]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_shop(shop: Path, tmp_path: Path) -> None:
    again = make_shop(tmp_path / "again", products=150, queries=40, seed=3, image_size=24)
    other = make_shop(tmp_path / "other", products=150, queries=40, seed=4, image_size=24)
    for name in synthetic.FILES:
        assert (again / name).read_bytes() == (shop / name).read_bytes()
    for name in ("documents.parquet", "queries.parquet", "qrels.parquet"):
        assert (other / name).read_bytes() != (shop / name).read_bytes()


def test_the_ranking_follows_the_rule(shop: Path) -> None:
    """An oracle in plain loops, from the written files and the phrase alone."""
    documents = table(shop, "documents")
    brands = [d["brand"] for d in documents]
    top = max(np.log1p(brands.count(b)) for b in set(brands))
    vocabulary = {
        name: sorted({d[name] for d in documents}, key=len, reverse=True)
        for name in ("product_type", "brand", "colour", "pattern", "gender", "category")
    }
    weights = {"product_type": 4.0, "brand": 2.5, "colour": 2.0, "pattern": 1.5, "gender": 1.0, "category": 1.0}
    ranked: dict[str, list[tuple[str, float]]] = {}
    for row in table(shop, "qrels"):
        ranked.setdefault(row["query_id"], []).append((row["doc_id"], row["score"]))
    for query in table(shop, "queries"):
        words = f" {query['query']} "
        wanted = {n: next((v for v in vs if f" {v.lower()} " in words), None) for n, vs in vocabulary.items()}
        if wanted["product_type"]:
            wanted["category"] = synthetic.CATEGORIES[wanted["product_type"]]
        points = []
        for d in documents:
            total = 1.2 * (0.6 * np.log1p(brands.count(d["brand"])) / top + 0.4 * (d["year"] - 2018) / 7)
            total += sum(weights[n] for n, v in wanted.items() if v is not None and d[n] == v)
            points.append(round(total, 9))
        order = sorted(range(len(documents)), key=lambda i: (-points[i], i))[:50]
        found = ranked[query["query_id"]]
        assert [doc for doc, _ in found] == [documents[i]["doc_id"] for i in order]
        assert [score for _, score in found] == pytest.approx([100 - 99 * i / 49 for i in range(50)])


def test_a_small_shop_judges_every_product(tmp_path: Path) -> None:
    rows = table(make_shop(tmp_path / "s", products=30, queries=2, image_size=16), "qrels")
    assert [row["position"] for row in rows] == [*range(1, 31)] * 2
    assert (rows[0]["score"], rows[29]["score"]) == (100.0, 1.0)


def test_every_query_fits_at_least_two_products() -> None:
    attributes = synthetic._draw_attributes(300, 0)
    phrases = synthetic._phrases(attributes)
    assert len({query.text for query in phrases}) == len(phrases)
    for query in phrases:
        fits = np.logical_and.reduce([attributes[name] == value for name, value in query.attributes.items()])
        assert fits.sum() >= 2
        assert "plain" not in query.text
        assert "unisex" not in query.text


def test_missing_fields_are_there_and_never_both(shop: Path) -> None:
    documents = table(shop, "documents")
    assert sum(d["title"] is None for d in documents) == 3
    assert sum(d["image"] is None for d in documents) == 3
    assert not any(d["title"] is None and d["image"] is None for d in documents)


def test_titles_leave_out_what_the_picture_shows(shop: Path) -> None:
    titled = [d for d in table(shop, "documents") if d["title"]]
    assert all(d["product_type"] in d["title"].lower() for d in titled)
    for name in ("brand", "colour"):
        told = np.mean([d[name].lower() in d["title"].lower() for d in titled])
        assert 0.6 < told < 0.95
    patterned = [d for d in titled if d["pattern"] != "plain"]
    assert 0.3 < np.mean([d["pattern"] in d["title"].lower() for d in patterned]) < 0.7


def test_pictures_are_jpegs_of_the_wanted_size(shop: Path) -> None:
    pictures = [d["image"] for d in table(shop, "documents") if d["image"]]
    for data in pictures:
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (24, 24))
    assert len(set(pictures)) == len(pictures)


def pixels(product_type: str = "tote bag", colour: str = "red", pattern: str = "plain", mark: int = 0) -> np.ndarray:
    data = draw_product(product_type, colour, pattern, mark, size=64, rng=np.random.default_rng(5))
    return np.asarray(Image.open(io.BytesIO(data))).astype(float)


def test_pictures_show_each_attribute() -> None:
    plain = pixels()
    assert np.abs(pixels(product_type="mug") - plain).max() > 60
    assert np.abs(pixels(pattern="striped") - plain).max() > 60
    assert np.abs(pixels(mark=1) - plain).max() > 60
    cloth = plain[46:52, 24:28].mean(axis=(0, 1))
    assert np.abs(cloth - COLOURS["red"]).max() < 45
    assert np.abs(plain[:4, :4].mean(axis=(0, 1)) - np.mean(BACKGROUNDS, axis=0)).max() < 45


@pytest.mark.parametrize("product_type", list(SHAPES))
def test_every_product_type_can_be_drawn_in_every_pattern(product_type: str) -> None:
    drawn = {draw_product(product_type, "white", p, 2, size=24, rng=np.random.default_rng(0)) for p in PATTERNS}
    assert len(drawn) == len(PATTERNS)


def test_tables_of_the_shop_fit_those_of_the_pictures() -> None:
    assert set(synthetic.CATEGORIES) == set(SHAPES)
    assert len(synthetic.BRANDS) == len(MARKS) == len(set(synthetic.BRANDS))


def test_an_earlier_shop_is_replaced(tmp_path: Path) -> None:
    out = make_shop(tmp_path / "s", products=30, queries=2, image_size=16)
    make_shop(out, products=35, queries=2, image_size=16)
    assert len(table(out, "documents")) == 35
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_an_empty_folder_is_used_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for out in (tmp_path / "a" / "b", tmp_path / "c" / "d"):
        assert len(table(make_shop(out, products=30, queries=2, image_size=16), "documents")) == 30


def test_foreign_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.txt").write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "dataset.yaml").write_text("name: fashion-small\n")
    extended = make_shop(tmp_path / "extended", products=30, queries=2, image_size=16)
    (extended / "diary.txt").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    for out, named in ((notes, "diary.txt"), (foreign, "dataset.yaml"), (extended, "diary.txt"), (file, "file")):
        with pytest.raises(ValueError, match=named):
            make_shop(out, products=30, queries=2, image_size=16)
    assert (notes / "diary.txt").read_text() == file.read_text() == "mine"
    assert (foreign / "dataset.yaml").read_text() == "name: fashion-small\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"products": 29}, "products is 29; allowed are 30"),
        ({"image_size": 8}, "image_size is 8; allowed are 16 to 512"),
        ({"seed": -1}, "seed is -1"),
        ({"products": 30, "queries": 5000}, "queries is 5000; these products give 1 to"),
        ({"products": 30, "queries": 0}, "queries is 0"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_shop(tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()
