"""fashion-small rebuilt: the published tables to the last row, and each clause of the rule."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.ranking import catalogue
from benchmarks.ranking.catalogue import (
    COLUMNS,
    CSV_HEADER,
    PUBLISHED,
    Catalogue,
    build,
    digest,
    main,
    make_tables,
    products,
    read_catalogue,
    unlike_published,
)

from opengcl.data import DataSetError, RankedDataset, Schema

from .builders import picture

NAMES = CSV_HEADER.split(",")
Product = dict[str, Any]


def product(number: int, **changes: Any) -> Product:
    """A product as the catalogue has it; keys are the data set's column names."""
    row = {
        "doc_id": number,
        "gender": "Men",
        "master_category": "Apparel",
        "sub_category": "Topwear",
        "article_type": "Shirts",
        "base_colour": "Blue",
        "season": "Summer",
        "year": 2012,
        "usage": "Casual",
        "title": "Acme Men Blue Shirt",
    }
    return {**row, **changes}


def write_kaggle(folder: Path, rows: list[Product], image: Callable[[int], bytes] | None = None) -> Path:
    """styles.csv and images/; without `image` the pictures are empty files, enough for all but a build."""
    (folder / "images").mkdir(parents=True)
    lines = [CSV_HEADER]
    for row in rows:
        cells = ["" if row[COLUMNS[name]] is None else str(row[COLUMNS[name]]) for name in NAMES]
        lines.append(",".join(cells))
        if row.get("picture", True):
            data = image(row["doc_id"]) if image else b""
            (folder / "images" / f"{row['doc_id']}.jpg").write_bytes(data)
    (folder / "styles.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_hub(folder: Path, rows: list[Product], image: Callable[[int], bytes], files: int = 2) -> Path:
    """Parquet files as the hub has them: years as floats, pictures as bytes and path."""
    (folder / "data").mkdir(parents=True)
    table = pa.table(
        {
            **{name: pa.array([row[COLUMNS[name]] for row in rows]) for name in NAMES if name != "year"},
            "year": pa.array([row["year"] for row in rows], pa.float64()),
            "image": pa.array(
                [{"bytes": image(row["doc_id"]), "path": None} if row.get("picture", True) else None for row in rows],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
        }
    )
    size = -(-len(rows) // files)
    for part in range(files):
        pq.write_table(table.slice(part * size, size), folder / "data" / f"train-{part:05d}.parquet")
    return folder


def opened(rows: list[Product]) -> Catalogue:
    """A catalogue in memory."""
    kinds = {"doc_id": pa.int64(), "year": pa.int16()}
    columns = {
        name: pa.array([row[name] for row in rows], kinds.get(name, pa.large_string())) for name in COLUMNS.values()
    }
    present = np.array([row.get("picture", True) for row in rows])
    return Catalogue(pa.table(columns), present, {}.__getitem__, "here")


def published(fashion: Path, name: str) -> pa.Table:
    columns = [column for column in pq.read_schema(fashion / f"{name}.parquet").names if column != "image"]
    return pq.read_table(fashion / f"{name}.parquet", columns=columns)


def with_quirks(rows: list[Product]) -> list[Product]:
    """The same products out of order, quoted and padded here and there, among rows that the rule drops."""
    generator = random.Random(0)
    rows = [dict(row) for row in rows]
    for row in generator.sample(rows, 400):
        row["title"] = generator.choice(['"{}"', " {} ", '" {}" ']).format(row["title"])
    used = {row["doc_id"] for row in rows}
    free = iter(number for number in range(1, 10**6) if number not in used)
    drops: list[Product] = [
        {"picture": False},
        {"master_category": "Free Items"},
        {"master_category": "Home"},
        *({name: missing} for name in ("gender", "article_type", "base_colour") for missing in ("", "NA", None)),
        *({name: "NA"} for name in ("season", "year", "usage", "sub_category")),
        {"title": None},
        {"title": '""'},
        {"title": "Acme Blue Shirt, Pack of 2"},
        {"title": '"Acme Blue Shirt, Pack of 2, Large"'},
    ]
    rows += [product(next(free), **drop) for drop in drops for _ in range(3)]
    generator.shuffle(rows)
    return rows


@pytest.mark.slow
def test_the_published_tables_come_out_of_a_kaggle_folder(fashion: Path, tmp_path: Path) -> None:
    documents = published(fashion, "documents")
    rows = with_quirks(documents.select([*COLUMNS.values()]).to_pylist())
    found = make_tables(read_catalogue(write_kaggle(tmp_path, rows)))
    for name in PUBLISHED:
        table, expected = getattr(found, name), published(fashion, name)
        assert table.schema.equals(expected.schema.remove_metadata())
        assert table.equals(expected.replace_schema_metadata())
    assert len(found.qrels) == 480_300
    assert unlike_published(found) == []
    generated = [int(rows[row]["doc_id"]) for row in found.rows]
    assert generated == list(map(int, documents["doc_id"].to_pylist()))


def test_the_digests_tell_any_difference(fashion: Path) -> None:
    queries = published(fashion, "queries")
    assert digest(queries) == PUBLISHED["queries"]
    assert digest(queries.slice(0, 4802)) != PUBLISHED["queries"]
    assert digest(queries.set_column(2, "split", queries["query_id"])) != PUBLISHED["queries"]


def shop(size: int = 300, seed: int = 0) -> list[Product]:
    """Products of few attributes, so that there are many queries and many ties; some values are missing."""
    draw = random.Random(seed)
    kinds = {"Shirts": "Topwear", "Jeans": "Bottomwear", "Casual Shoes": "Shoes"}
    rows = []
    for number in draw.sample(range(1, 10_000), size):
        kind = draw.choice(list(kinds))
        changes = {
            "gender": draw.choice(["Men", "Women"]),
            "article_type": kind,
            "sub_category": draw.choice([kinds[kind], kinds[kind], "Odd", None]),
            "master_category": draw.choice(["Apparel", "Apparel", "Footwear"]),
            "base_colour": draw.choice(["Blue", "Navy Blue", "Red"]),
            "season": draw.choice(["Summer", "Winter", None]),
            "year": draw.choice([2007, 2010, 2013, 2018, 2019, None]),
            "usage": draw.choice(["Casual", "Sports", None]),
            "title": draw.choice(["Acme", "acme", "Blue", "Zed"]) + f" Thing {number}",
        }
        rows.append(product(number, **changes))
    return rows


def rule_by_loops(rows: list[Product]) -> tuple[list[str], list[list[tuple[str, float]]]]:
    """The rule as RULE.md tells it, one document after the other."""
    documents = sorted(rows, key=lambda row: row["doc_id"])
    for row in documents:
        row["brand"] = row["title"].split()[0]
    patterns = [
        (["gender", "base_colour", "article_type"], "{gender} {base_colour} {article_type}"),
        (["base_colour", "article_type"], "{base_colour} {article_type}"),
        (["gender", "article_type", "usage"], "{usage} {article_type} for {gender}"),
        (["brand", "article_type"], "{brand} {article_type}"),
        (["gender", "base_colour", "article_type", "season"], "{season} {base_colour} {article_type} for {gender}"),
        (["brand", "base_colour", "article_type"], "{brand} {base_colour} {article_type}"),
    ]
    queries: dict[str, dict[str, str]] = {}
    for columns, pattern in patterns:
        keys = Counter(tuple(row[name] for name in columns) for row in documents)
        for key in sorted(key for key, count in keys.items() if count >= 8 and None not in key):
            wanted = dict(zip(columns, key, strict=True))
            queries.setdefault(pattern.format(**wanted).lower(), wanted)
    points = {"article_type": 4, "gender": 1.5, "base_colour": 1.5, "usage": 0.7, "season": 0.7, "brand": 2}
    points |= {"sub_category": 1, "master_category": 0.5}
    brands = Counter(row["brand"] for row in documents)
    low, high = np.log(1 + min(brands.values())), np.log(1 + max(brands.values()))
    ranking = []
    for wanted in queries.values():
        for name in ("sub_category", "master_category"):
            values = [row[name] for row in documents if row["article_type"] == wanted["article_type"] and row[name]]
            wanted[name] = statistics.mode(sorted(values))
        scored = []
        for row in documents:
            p = (np.log(1 + brands[row["brand"]]) - low) / (high - low)
            y = 0 if row["year"] is None else min(1, max(0, (row["year"] - 2010) / 8))
            matched = sum(points[name] for name, value in wanted.items() if row[name] == value)
            scored.append((-round(matched + 1.2 * (0.6 * p + 0.4 * y), 9), row["doc_id"]))
        best = sorted(scored)[:100]
        ranking.append([(str(number), 100.0 - place) for place, (_, number) in enumerate(best)])
    return list(queries), ranking


@pytest.mark.parametrize(("size", "seed"), [(300, 0), (300, 1), (90, 2)])
def test_queries_and_ranking_are_those_of_loops(size: int, seed: int) -> None:
    rows = shop(size, seed)
    found = make_tables(opened(rows), every=True)
    texts, ranking = rule_by_loops(rows)
    assert found.queries["query"].to_pylist() == texts
    depth = min(100, size)
    assert len(found.qrels) == len(texts) * depth
    pairs = list(zip(found.qrels["doc_id"].to_pylist(), found.qrels["score"].to_pylist(), strict=True))
    for query, expected in enumerate(ranking):
        assert pairs[query * depth : (query + 1) * depth] == expected
    assert found.qrels["position"].to_pylist() == [*range(1, depth + 1)] * len(texts)


def test_splits_are_drawn_queries_first() -> None:
    found = make_tables(opened(shop()), every=True)
    generator = np.random.default_rng(2404)
    drawn = ["seen" if generator.random() < 0.8 else "novel" for _ in range(len(found.queries))]
    assert found.queries["split"].to_pylist() == drawn
    drawn = ["seen" if generator.random() < 0.5 else "novel" for _ in range(len(found.documents))]
    assert found.documents["split"].to_pylist() == drawn


@pytest.mark.parametrize(
    "change",
    [
        {"picture": False},
        {"title": None},
        {"title": '" "'},
        {"article_type": None},
        {"base_colour": None},
        {"gender": None},
        {"master_category": "Free Items"},
        {"master_category": "Home"},
    ],
    ids=str,
)
def test_rows_that_are_no_documents(change: Product) -> None:
    table, rows = products(opened([product(3), product(2, **change), product(1)]), every=True)
    assert table["doc_id"].to_pylist() == ["1", "3"]
    assert rows.tolist() == [2, 0]


@pytest.mark.parametrize(
    "change",
    [*({name: None} for name in ("season", "year", "usage", "sub_category", "master_category")), {"title": "A, b"}],
    ids=str,
)
def test_rows_that_only_another_data_set_has(change: Product) -> None:
    rows = opened([product(2, **change), product(1)])
    assert products(rows)[0]["doc_id"].to_pylist() == ["1"]
    assert products(rows, every=True)[0]["doc_id"].to_pylist() == ["1", "2"]


def test_ids_are_sorted_as_numbers_and_brands_are_first_words() -> None:
    rows = [product(10, title='"Acme  Shirt"'), product(9, title=' "Zed\tHat" '), product(100, title='X 3.5"" Short')]
    table, _ = products(opened(rows))
    assert table["doc_id"].to_pylist() == ["9", "10", "100"]
    assert table["brand"].to_pylist() == ["Zed", "Acme", "X"]
    assert table["title"].to_pylist() == ["Zed\tHat", "Acme  Shirt", 'X 3.5"" Short']


def test_a_phrase_of_two_patterns_is_one_query() -> None:
    """Brand Blue: `{base_colour} {article_type}` and `{brand} {article_type}` both give 'blue shirts'."""
    rows = [product(number, title="Blue Shirt", base_colour="Blue" if number < 8 else "Red") for number in range(16)]
    found = make_tables(opened(rows))
    texts = found.queries["query"].to_pylist()
    assert texts.count("blue shirts") == 1
    first = found.qrels["doc_id"].to_pylist()[texts.index("blue shirts") * 16 :][:16]
    assert first == [str(number) for number in range(16)]  # by colour, as the earlier pattern has it


def test_both_sources_give_one_data_set(tmp_path: Path) -> None:
    images = {number: picture(np.random.default_rng(number)) for number in range(10_000, 10_040)}
    rows = [product(number, year=2007 + number % 12) for number in images]
    rows[7]["picture"] = False
    kaggle = build(write_kaggle(tmp_path / "kaggle", rows, images.__getitem__), tmp_path / "a")
    hub = build(write_hub(tmp_path / "hub", rows[::-1], images.__getitem__), tmp_path / "b")
    for name in ("queries.parquet", "documents.parquet", "qrels.parquet", "dataset.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert kaggle.rows.tolist() != hub.rows.tolist()
    read = pq.read_table(tmp_path / "a" / "documents.parquet")
    assert dict(zip(map(int, read["doc_id"].to_pylist()), read["image"].to_pylist(), strict=True)) == {
        number: data for number, data in images.items() if number != 10_007
    }
    data = RankedDataset.open(tmp_path / "a", cache_dir=tmp_path / "cache", progress=False)
    assert (len(data.documents), data.problems) == (39, [])


def test_columns_are_the_published_ones(fashion: Path, tmp_path: Path) -> None:
    rows = [product(number) for number in range(8)]
    build(write_kaggle(tmp_path / "in", rows, lambda number: picture(np.random.default_rng(number))), tmp_path / "out")
    for name in PUBLISHED:
        expected = pq.read_schema(fashion / f"{name}.parquet").remove_metadata()
        assert pq.read_schema(tmp_path / "out" / f"{name}.parquet").equals(expected)
    assert Schema.read(tmp_path / "out") == Schema.read(fashion)


def test_the_command_says_that_it_is_another_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [product(number) for number in range(8)]
    folder = write_kaggle(tmp_path / "in", rows, lambda number: picture(np.random.default_rng(number)))
    main([str(folder), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "8 documents" in said
    assert "NOT fashion-small: other documents, queries, qrels" in said


def test_a_broken_picture_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    rows = [product(number) for number in range(8)]
    folder = write_kaggle(
        tmp_path / "in", rows, lambda number: b"no picture" if number == 5 else picture(np.random.default_rng(0))
    )
    with pytest.raises(DataSetError, match="picture of id 5 cannot be used: not a picture"):
        build(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (folder / "images" / "5.jpg").unlink()
    (folder / "images" / "5.jpg").mkdir()
    with pytest.raises(SystemExit, match="picture of id 5 cannot be read: Is a directory"):
        main([str(folder), "--out", str(tmp_path / "out")])


def rewrite(folder: Path, change: Callable[[str], str]) -> Path:
    path = folder / "styles.csv"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("season,", "", 1), r"styles.csv: column 'season' is missing; found id, gender"),
        (lambda text: text.replace("id,gender", "gender,id", 1), "the columns are in another order"),
        (lambda text: text + "12,Men\n", "line 4: found 2 cells; required: 10"),
        (lambda text: text.replace("\n1,", "\none,", 1), "column 'id': .*'one'.*allowed: integers"),
        (lambda text: text.replace("\n1,", "\n,", 1), r"column 'id': row 0 \(from 0\) has none"),
        (lambda text: text.replace("2012", "2012.5", 1), "column 'year': .*2012.5.*allowed: integers"),
        (lambda text: text.replace("\n2,", "\n1,", 1), "id 1 is there twice; allowed: once"),
        (lambda text: text.replace("Blue,", "NA,"), "found no row with title, article_type"),
        (lambda text: text, "no combination of attributes has 8 of 2 products"),
    ],
)
def test_what_is_wrong_with_styles_csv_is_told(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    folder = rewrite(write_kaggle(tmp_path, [product(1), product(2)]), change)
    with pytest.raises(DataSetError, match=message):
        make_tables(read_catalogue(folder))


def test_what_is_wrong_with_other_sources_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"found neither styles.csv nor Parquet files"):
        read_catalogue(tmp_path)
    folder = write_hub(tmp_path / "hub", [product(1)], {1: b""}.__getitem__, files=1)
    path = folder / "data" / "train-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("usage"), path)
    with pytest.raises(DataSetError, match=r"00000.parquet: column 'usage' is missing; found id, gender"):
        read_catalogue(folder)
    pq.write_table(table.set_column(table.column_names.index("image"), "image", table["usage"]), path)
    with pytest.raises(DataSetError, match="column 'image': found type string; allowed: struct"):
        read_catalogue(folder)
    (tmp_path / "styles.csv").write_text(CSV_HEADER)
    with pytest.raises(DataSetError, match="there is no folder 'images'"):
        read_catalogue(tmp_path)
    (tmp_path / "styles.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataSetError, match=r"styles.csv: byte 0 is not UTF-8"):
        read_catalogue(tmp_path)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    folder = write_kaggle(tmp_path, [product(1), product(2)])
    text = (folder / "styles.csv").read_text(encoding="utf-8")
    plain = read_catalogue(folder)
    (folder / "styles.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_catalogue(folder).rows.equals(plain.rows)


def test_more_batches_of_pictures_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [product(number) for number in range(8)]
    image = {number: picture(np.random.default_rng(number)) for number in range(8)}
    monkeypatch.setattr(catalogue, "_BATCH", 3)
    build(write_kaggle(tmp_path / "in", rows, image.__getitem__), tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "documents.parquet")["image"].to_pylist() == list(image.values())
