"""Public data sets in the very layout that they are published in, written here by hand."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opengcl.data import DataSetError, RankedDataset
from opengcl.data.splits import choose
from opengcl.data.twins import query_twins
from opengcl.sources.formats import FORMATS, SourceOptions, open_source
from opengcl.sources.importing import ImportOptions, import_dataset
from opengcl.sources.mapping import TableMapping, hashed
from opengcl.sources.marqo import MarqoHub


def brought(folder: Path, name: str, location: Path | str, options: SourceOptions | None = None, **given: Any) -> Any:
    source = open_source(name, str(location), options or SourceOptions())
    import_dataset(source, folder / "out", ImportOptions(**given), progress=False)
    return RankedDataset.open(folder / "out", cache_dir=folder / "cache", progress=False)


def scores(data: RankedDataset) -> dict[tuple[str, str], float]:
    queries, documents = data.queries.ids(data.qrels.query), data.documents.ids(data.qrels.document)
    rounded = [round(score, 6) for score in data.qrels.score.tolist()]
    return dict(zip(zip(queries, documents, strict=True), rounded, strict=True))


def seen(data: RankedDataset, side: str) -> dict[str, bool]:
    records, flags = (
        (data.queries, data.splits.query_seen) if side == "queries" else (data.documents, data.splits.document_seen)
    )
    return dict(zip(records.ids(), flags.tolist(), strict=True))


def by_formula(ids: list[str]) -> dict[str, bool]:
    return dict(zip(ids, choose(ids, seed=0, side="document", share=0.5).tolist(), strict=True))


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (12, 9), "red").save(out, "JPEG")
    return out.getvalue()


# ESCI


@pytest.fixture
def esci(tmp_path: Path) -> Path:
    """Two locales that share a product id; the columns, types and names are those of the release."""
    examples = [
        (0, "shoes", 10, "B1", "us", "E", 1, 1, "train"),
        (1, "shoes", 10, "B2", "us", "S", 1, 1, "train"),
        (2, "shoes", 10, "B3", "us", "C", 1, 1, "train"),
        (3, "hat", 11, "B1", "us", "I", 0, 1, "test"),
        (4, "zapatos", 12, "B1", "es", "E", 1, 1, "train"),
    ]
    names = ["example_id", "query", "query_id", "product_id", "product_locale", "esci_label"]
    names += ["small_version", "large_version", "split"]
    columns = dict(zip(names, map(list, zip(*examples, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "shopping_queries_dataset_examples.parquet")
    products = {
        "product_id": ["B1", "B2", "B3", "B1"],
        "product_title": ["red shoe", "blue shoe", "laces", "zapato"],
        "product_description": [None, "soft", None, ""],
        "product_bullet_point": [None] * 4,
        "product_brand": ["x", None, "y", "z"],
        "product_color": ["red", "blue", None, None],
        "product_locale": ["us", "us", "us", "es"],
    }
    schema = pa.schema([(name, pa.string()) for name in products])
    pq.write_table(pa.table(products, schema), tmp_path / "shopping_queries_dataset_products.parquet")
    return tmp_path


def test_esci(esci: Path) -> None:
    data = brought(esci, "esci", esci)
    assert scores(data) == {
        ("10", "us:B1"): 1.0,
        ("10", "us:B2"): 0.1,
        ("10", "us:B3"): 0.01,
        ("11", "us:B1"): 0.0,
        ("12", "es:B1"): 1.0,
    }
    assert seen(data, "queries") == {"10": True, "11": False, "12": True}
    assert seen(data, "documents") == by_formula(["us:B1", "us:B2", "us:B3", "es:B1"])
    assert data.documents.texts("title", [0, 3]) == ["red shoe", "zapato"]
    assert data.documents.texts("description", [0, 1]) == [None, "soft"]
    assert (data.schema.score_min, data.schema.score_max) == (0, 1)


def test_esci_of_one_locale_small_with_other_gains(esci: Path) -> None:
    gains = {"E": 3.0, "S": 2.0, "C": 1.0, "I": 0.0}
    options = SourceOptions(TableMapping(label="esci_label", gains=gains), locales=("us",), small=True)
    data = brought(esci, "esci", esci, options)
    assert scores(data) == {("10", "us:B1"): 3, ("10", "us:B2"): 2, ("10", "us:B3"): 1}
    assert data.schema.provenance["options"]["gains"] == gains
    assert data.schema.name == "esci-us-small"


def test_an_unknown_esci_label_is_named(esci: Path) -> None:
    path = esci / "shopping_queries_dataset_examples.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("esci_label")
    pq.write_table(table.set_column(place, "esci_label", pa.array(["E", "S", "X", "I", "E"])), path)
    with pytest.raises(DataSetError, match=r"column 'esci_label': unusable score .* row 2 holds 'X'.*E or S or C or I"):
        brought(esci, "esci", esci)
    with pytest.raises(DataSetError, match="locale: found 'fr'; allowed: us, es, jp"):
        open_source("esci", str(esci), SourceOptions(locales=("fr",)))


# WANDS


def test_wands(tmp_path: Path) -> None:
    folder = tmp_path / "wands"
    written(folder / "query.csv", 'query_id\tquery\tquery_class\n0\tsalon chair\tMassage Chairs\n1\t"5\'" rug\t\n')
    written(
        folder / "product.csv",
        "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features\t"
        "rating_count\taverage_rating\treview_count\n"
        '7\tbig chair\tChairs\tFurniture / Chairs\tsoft, "with" a rest\tcolor:red|legs:4\t15.0\t4.5\t12.0\n'
        "8\trug\t\t\t\t\t\t\t\n",
    )
    written(
        folder / "label.csv",
        "id\tquery_id\tproduct_id\tlabel\n0\t0\t7\tExact\n1\t0\t8\tIrrelevant\n2\t1\t8\tPartial\n",
    )
    data = brought(tmp_path, "wands", folder)
    assert scores(data) == {("0", "7"): 1.0, ("0", "8"): 0.0, ("1", "8"): 0.5}
    assert data.documents.texts("description", [0, 1]) == ['soft, "with" a rest', None]
    assert data.queries.texts("query", [1]) == ['"5\'" rug']
    assert data.documents.values("rating_count", [0]) == ["15.0"]
    assert len(data.schema.provenance["files"]) == 3


# BEIR, MTEB, TREC


def beir(folder: Path, packed: bool = False) -> Path:
    corpus = [{"_id": "d1", "title": "one", "text": "text one", "metadata": {"url": "x"}}]
    corpus += [{"_id": f"d{n}", "title": "", "text": f"text {n}", "metadata": {}} for n in range(2, 5)]
    queries = [{"_id": f"q{n}", "text": f"query {n}", "metadata": {}} for n in range(1, 5)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if packed:
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        else:
            written(folder / f"{name}.jsonl", text)
    return folder


def qrels(folder: Path, **splits: str) -> None:
    for name, rows in splits.items():
        lines = ["query-id\tcorpus-id\tscore", *(row.replace(" ", "\t") for row in rows.split("; "))]
        written(folder / f"qrels/{name}.tsv", "\n".join(lines) + "\n")


@pytest.mark.parametrize("packed", [False, True])
def test_beir(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "scifact"
    folder.mkdir()
    beir(folder, packed)
    qrels(folder, train="q1 d1 2; q1 d2 1", dev="q2 d2 1", test="q3 d3 1; q3 d1 0; q1 d3 1")
    data = brought(tmp_path, "beir", folder)
    assert data.schema.name == "scifact"
    assert scores(data) == {
        ("q1", "d1"): 2,
        ("q1", "d2"): 1,
        ("q2", "d2"): 1,
        ("q3", "d3"): 1,
        ("q3", "d1"): 0,
        ("q1", "d3"): 1,
    }
    assert seen(data, "queries") == {"q1": True, "q2": False, "q3": False, "q4": False}
    dev = dict(zip(data.queries.ids(), data.splits.query_dev.tolist(), strict=True))
    assert (dev["q2"], dev["q3"]) == (True, False)
    assert seen(data, "documents") == by_formula(["d1", "d2", "d3", "d4"])
    assert data.documents.texts("title", [0, 1]) == ["one", None]
    splits = pq.read_table(tmp_path / "out/qrels.parquet")["source_split"].to_pylist()
    assert sorted(splits) == ["dev", "test", "test", "test", "train", "train"]


def test_beir_with_one_split_is_divided_by_the_formula(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    qrels(beir(folder), test="q1 d1 1; q2 d2 1")
    data = brought(tmp_path, "beir", folder, bad_rows="skip")
    assert (data.schema.score_min, data.schema.score_max) == (0, 1)
    assert "split" not in pq.read_schema(tmp_path / "out/queries.parquet").names


def test_mteb_folders(tmp_path: Path) -> None:
    folder = tmp_path / "mteb"
    for name in ("corpus", "queries", "default"):
        (folder / name).mkdir(parents=True)
    pq.write_table(
        pa.table({"_id": ["d1", "d2"], "title": ["a", ""], "text": ["x", "y"]}),
        folder / "corpus/corpus-00000-of-00001.parquet",
    )
    pq.write_table(
        pa.table({"_id": ["q1", "q2"], "text": ["u", "v"]}), folder / "queries/queries-00000-of-00001.parquet"
    )
    for split, rows in {"train": [("q1", "d1", 1)], "test": [("q2", "d2", 2)]}.items():
        columns = dict(zip(("query-id", "corpus-id", "score"), map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), folder / f"default/{split}-00000-of-00001.parquet")
    data = brought(tmp_path, "beir", folder)
    assert scores(data) == {("q1", "d1"): 1, ("q2", "d2"): 2}
    assert seen(data, "queries") == {"q1": True, "q2": False}


def test_trec(tmp_path: Path) -> None:
    written(tmp_path / "qrels.txt", "301 0 D-1 2\n301 0 D-2 0\n302 0 D-2 1\n")
    queries = written(tmp_path / "topics.tsv", "query_id\tquery\n301\tcrime\n302\tpoliomyelitis\n")
    documents = written(tmp_path / "docs.jsonl", '{"doc_id": "D-1", "title": "a"}\n{"doc_id": "D-2", "title": "b"}\n')
    data = brought(tmp_path, "trec", tmp_path / "qrels.txt", SourceOptions(queries=queries, documents=documents))
    assert scores(data) == {("301", "D-1"): 2, ("301", "D-2"): 0, ("302", "D-2"): 1}
    with pytest.raises(DataSetError, match="required: a table of queries and one of documents"):
        open_source("trec", str(tmp_path / "qrels.txt"), SourceOptions())


TOPICS: dict[str, str] = {
    "topics.301-302": '<top>\n\n<num> Number: 301 \n<title> "Organized\n crime\n\n<desc> Description: \nIdentify it\n'
    "\n<narr> Narrative: \nA &amp; B.\n\n</top>\n\n<top>\n<num> Number: 302\n<title> Polio &lt; 5\n</top>\n",
    "topics.xml": '<?xml version="1.0"?>\n<topics task="x">\n<topic number="301">"Organized crime</topic>\n'
    '<topic number="302"><query>Polio &lt; 5</query><question>Why?</question></topic></topics>\n',
    "queries.tsv": '301\t"Organized crime\n302\tPolio < 5\n',
    "queries.named.tsv": 'query_id\tquery\n301\t"Organized crime\n302\tPolio < 5\n',
    "queries.csv": 'query_id,query\n301,"""Organized crime"\n302,Polio < 5\n',
}
COLLECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "collection.tsv": ('D-1\tthe "first\nD-2\tthe second" one\n', ("text",)),
    "msmarco-docs.tsv": ('D-1\thttp://x\tT\tthe "first\nD-2\thttp://y\tU\tthe second\n', ("title", "body")),
    "docs.jsonl": ('{"doc_id": "D-1", "title": "a"}\n{"doc_id": "D-2", "title": "b"}\n', ("title",)),
}


@pytest.mark.parametrize("collection", COLLECTIONS)
@pytest.mark.parametrize("topics", TOPICS)
def test_trec_topics_and_collections(tmp_path: Path, topics: str, collection: str) -> None:
    written(tmp_path / "qrels.txt", "301\t0\tD-1\t2\n302 0 D-2 1\n")
    queries = written(tmp_path / topics, TOPICS[topics])
    documents = written(tmp_path / collection, COLLECTIONS[collection][0])
    data = brought(tmp_path, "trec", tmp_path / "qrels.txt", SourceOptions(queries=queries, documents=documents))
    assert scores(data) == {("301", "D-1"): 2, ("302", "D-2"): 1}
    assert data.queries.texts("query", [0, 1]) == ['"Organized crime', "Polio < 5"]
    assert tuple(data.schema.documents) == COLLECTIONS[collection][1]
    if collection == "collection.tsv":
        assert data.documents.texts("text", [0, 1]) == ['the "first', 'the second" one']


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.txt", "<top>\n<num> 1\n<title> a\n", "t.txt, line 1: found a topic without an end"),
        ("t.txt", "\n<top>\n<title> a\n</top>\n", "t.txt, line 2: found a topic without <num>"),
        ("t.txt", "<x>\n", "t.txt: found no topics"),
        ("t.tsv", "1\ta\tb\n", "t.tsv, line 1: found 3 columns and no header; allowed: a header, or columns: 2"),
        ("t.tsv", "1\ta\n2\n", "t.tsv, line 2: found 1 columns; allowed: 2"),
    ],
)
def test_wrong_topics_say_where(tmp_path: Path, name: str, content: str, told: str) -> None:
    written(tmp_path / "qrels.txt", "1 0 D-1 2\n")
    documents = written(tmp_path / "docs.jsonl", '{"doc_id": "D-1", "title": "a"}\n')
    options = SourceOptions(queries=written(tmp_path / name, content), documents=documents)
    with pytest.raises(DataSetError) as caught:
        brought(tmp_path, "trec", tmp_path / "qrels.txt", options)
    assert told in str(caught.value)


def test_quotes_in_beir_judgments_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    beir(folder)
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "\\"d5", "title": "", "text": "x"}\n{"_id": "d6\\"", "title": "", "text": "y"}\n')
    qrels(folder, test='q1 "d5 1; q2 d2 1; q3 d6" 2')
    data = brought(tmp_path, "beir", folder, bad_rows="skip")
    assert scores(data) == {("q1", '"d5'): 1, ("q2", "d2"): 1, ("q3", 'd6"'): 2}


# Marqo-GS-10M


def marqo(folder: Path) -> Path:
    """Four files of pairs, two corpora, ground truth for some."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, names in ((1, ("p1", "p2")), (2, ("p3", "p4"))):
        content = {one: {"title": f"product {one}", "image_local": f"images/{one}.jpg"} for one in names}
        written(folder / f"corpus_{number}.json", json.dumps(content))
    (folder / "images").mkdir(exist_ok=True)
    for one in ("p1", "p2", "p3"):
        (folder / f"images/{one}.jpg").write_bytes(jpeg())
    columns = [
        "query",
        "product_id",
        "title",
        "image_local",
        "position",
        "score_linear",
        "score_reciprocal",
        "no_score",
    ]
    for x, query in (("0", "red shoes"), ("1", "new hats")):
        for y, names in (("0", ("p1", "p2")), ("1", ("p3", "p4"))):
            with (folder / f"query_{x}_product_id_{y}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow([*columns, "pair_id", "query_id"])
                for position, one in enumerate(names, 1):
                    linear, reciprocal = 101 - position, 100 / position
                    row = [query, one, f"product {one}", f"images/{one}.jpg", position, linear, reciprocal, 1]
                    writer.writerow([*row, f"{query}-{one}", 5])
    written(folder / "query_0_product_id_0_gt_dev.json", json.dumps({"red shoes": {"p1": 100, "p2": 99}}))
    written(folder / "query_0_product_id_1_gt_test.json", json.dumps({"blue shoes": {"p3": 100.0, "p4": 7}}))
    written(folder / "query_1_product_id_1_gt_test.json", json.dumps({"new hats": {"p3": 100}}))
    return folder


def check_marqo(data: RankedDataset) -> None:
    red, new, blue = (hashed([text]) or "" for text in ("red shoes", "new hats", "blue shoes"))
    pairs = {(query, one): 101 - place for query in (red, new) for one, place in zip(("p1", "p2"), (1, 2), strict=True)}
    pairs |= {
        (query, one): 101 - place for query in (red, new) for one, place in zip(("p3", "p4"), (1, 2), strict=True)
    }
    assert scores(data) == {**pairs, (blue, "p3"): 100, (blue, "p4"): 7}
    assert seen(data, "queries") == {red: True, new: False, blue: True}
    assert seen(data, "documents") == {"p1": True, "p2": True, "p3": False, "p4": False}
    dev = dict(zip(data.queries.ids(), data.splits.query_dev.tolist(), strict=True))
    assert dev == {red: True, new: False, blue: False}
    present = dict(zip(data.documents.ids(), data.documents.present("image", range(4)).tolist(), strict=True))
    assert present == {"p1": True, "p2": True, "p3": True, "p4": False}  # p4's file is missing
    assert data.documents.texts("title", [data.documents.row("p1")]) == ["product p1"]


def test_marqo_folder(tmp_path: Path) -> None:
    data = brought(tmp_path, "marqo", marqo(tmp_path / "marqo_gs_small"), repeated_pairs="first")
    check_marqo(data)
    counts = data.schema.provenance["counts"]
    assert (counts["picture_failures"], counts["pairs_with_several_scores"]) == (1, 0)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_marqo_archive(tmp_path: Path, mode: Any) -> None:
    folder = marqo(tmp_path / "x/marqo_gs_small")
    archive = tmp_path / "marqo.tar"
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, "marqo_gs_small")
    check_marqo(brought(tmp_path, "marqo", archive, SourceOptions(work=tmp_path / "w"), repeated_pairs="first"))


def test_a_hostile_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        entry = tarfile.TarInfo("../escaped.txt")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"bad"))
    with pytest.raises(DataSetError, match="cannot be unpacked"):
        open_source("marqo", str(archive), SourceOptions(work=tmp_path / "deep/w"))
    assert not (tmp_path / "deep/escaped.txt").exists()


def test_marqo_with_reciprocal_scores(tmp_path: Path) -> None:
    folder = marqo(tmp_path / "m")
    for truth in folder.glob("*_gt_*"):
        truth.unlink()
    data = brought(tmp_path, "marqo", folder, SourceOptions(score="score_reciprocal"))
    assert sorted(set(scores(data).values())) == [50, 100]
    with pytest.raises(DataSetError, match="score: found 'rank'; allowed: score_linear, score_reciprocal"):
        open_source("marqo", str(folder), SourceOptions(score="rank"))


def test_a_broken_corpus_is_named(tmp_path: Path) -> None:
    folder = marqo(tmp_path / "m")
    written(folder / "corpus_2.json", '{"p3": {"title": "a"}, "p4": ')
    with pytest.raises(DataSetError, match=r"corpus_2\.json: not one JSON object"):
        brought(tmp_path, "marqo", folder, repeated_pairs="first")


def test_marqo_on_the_hub(tmp_path: Path) -> None:
    """The hub's layout as a local folder: one Parquet file a split, pictures inside."""
    (tmp_path / "hub/data").mkdir(parents=True)
    for split, query, names in (
        ("in_domain", "red shoes", ("p1", "p2")),
        ("novel_document", "red shoes", ("p3", "p4")),
        ("novel_query", "new hats", ("p1", "p2")),
        ("zero_shot", "new hats", ("p3", "p4")),
    ):
        rows: dict[str, Any] = {
            "image": [{"bytes": jpeg(), "path": f"{one}.jpg"} for one in names],
            "query": [query] * 2,
            "product_id": list(names),
            "position": [1, 2],
            "title": [f"product {one}" for one in names],
            "pair_id": [f"{query}-{one}" for one in names],
            "score_linear": [100, 99],
            "score_reciprocal": [1.0, 0.5],
            "no_score": [1, 1],
            "query_id": ["5", "5"],
        }
        features = datasets.Features({"image": datasets.Image(), **{k: datasets.Value("string") for k in ("query",)}})
        table = datasets.Dataset.from_dict({"image": rows.pop("image"), "query": rows.pop("query")}, features)
        for name, values in rows.items():
            table = table.add_column(name, values)
        table.to_parquet(str(tmp_path / f"hub/data/{split}-00000-of-00001.parquet"))
    source = MarqoHub(str(tmp_path / "hub"))
    import_dataset(source, tmp_path / "out", progress=False)
    data = RankedDataset.open(tmp_path / "out", cache_dir=tmp_path / "cache", progress=False)
    red, new = (hashed([text]) or "" for text in ("red shoes", "new hats"))
    assert scores(data) == {(q, p): 100 - n % 2 for q in (red, new) for n, p in enumerate(("p1", "p2", "p3", "p4"))}
    assert seen(data, "queries") == {red: True, new: False}
    assert seen(data, "documents") == {"p1": True, "p2": True, "p3": False, "p4": False}
    assert [one.size for one in data.documents.images("image", range(4)) if one] == [(12, 9)] * 4


# Hugging Face


def test_hugging_face_folders(tmp_path: Path) -> None:
    rows = {"query": ["a", "a", "b"], "product_id": ["1", "2", "1"], "title": ["x", "y", "x"], "score": [2.0, 1.0, 3.0]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "disk"))
    (tmp_path / "plain").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "plain/train.parquet"))
    expected = {(hashed(["a"]), "1"): 2.0, (hashed(["a"]), "2"): 1.0, (hashed(["b"]), "1"): 3.0}
    for name in ("disk", "plain"):
        (tmp_path / f"for-{name}").mkdir()
        data = brought(tmp_path / f"for-{name}", "huggingface", tmp_path / name)
        assert scores(data) == expected
    with pytest.raises(DataSetError, match="cannot be opened"):
        open_source("huggingface", str(tmp_path / "plain"), SourceOptions(split="none")).describe()


# Columns as they come


def test_lists_in_json_lines(tmp_path: Path) -> None:
    """Pictures and tags as lists, and what is inside an object by its path."""
    (tmp_path / "pics").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"pics/{name}.jpg").write_bytes(jpeg())
    rows = [
        {"query": "x", "id": 1, "title": "one", "images": ["pics/a.jpg", "pics/b.jpg"], "tags": ["red", "shoe"]},
        {"query": "x", "id": 2, "title": "two", "images": "pics/b.jpg", "tags": []},
        {"query": "y", "id": 3, "title": "three", "images": [], "tags": None},
    ]
    lines = [json.dumps({**row, "judged": {"grade": n + 1}}) for n, row in enumerate(rows)]
    path = written(tmp_path / "t.jsonl", "\n".join(lines))
    mapping = TableMapping(documents={"title": "title", "tags": "tags"}, score="judged.grade", join_lists=" / ")
    data = brought(tmp_path, "jsonl", path, SourceOptions(mapping))
    assert data.documents.texts("tags", range(3)) == ["red / shoe", None, None]
    assert data.documents.present("image", range(3)).tolist() == [True, True, False]
    assert data.qrels.score.tolist() == [1, 2, 3]
    told = "t.jsonl, column 'images': the first of several pictures is taken in 1 row"
    assert told in data.schema.provenance["notes"]
    with pytest.raises(
        DataSetError, match=r"t\.jsonl, column 'tags': found type list<item: large_string>.*--join-lists"
    ):
        brought(tmp_path / "x", "jsonl", path, SourceOptions(replace(mapping, join_lists=None)))
    with pytest.raises(DataSetError, match="column 'tags': found type list"):
        brought(tmp_path / "y", "jsonl", path, SourceOptions(TableMapping(score="tags")))


def test_columns_of_hugging_face(tmp_path: Path) -> None:
    """Names of labels, and the first of a sequence of pictures, streamed as from the hub."""
    features = datasets.Features(
        {
            "query": datasets.Value("string"),
            "product_id": datasets.Value("int32"),
            "title": datasets.Value("large_string"),
            "images": datasets.Sequence(datasets.Image()),
            "grade": datasets.ClassLabel(names=["irrelevant", "partial", "exact"]),
        }
    )
    shots = [Image.new("RGB", (size, 3)) for size in (4, 5)]
    rows = {"query": ["a", "a", "b"], "product_id": [1, 2, 1], "title": ["x", "y", "x"], "grade": [2, 0, 1]}
    table = datasets.Dataset.from_dict({**rows, "images": [shots, shots[1:], []]}, features)
    (tmp_path / "hub").mkdir()
    table.to_parquet(str(tmp_path / "hub/train.parquet"))
    table.save_to_disk(str(tmp_path / "disk"))
    mapping = TableMapping(label="grade", gains={"exact": 1.0, "partial": 0.5, "irrelevant": 0.0})
    for name in ("hub", "disk"):
        (tmp_path / f"for-{name}").mkdir()
        data = brought(tmp_path / f"for-{name}", "huggingface", tmp_path / name, SourceOptions(mapping))
        assert scores(data) == {(hashed(["a"]), "1"): 1.0, (hashed(["a"]), "2"): 0.0, (hashed(["b"]), "1"): 0.5}
        assert [one.size for one in data.documents.images("image", [0, 1]) if one] == [(4, 3), (5, 3)]
        labels = pq.read_table(tmp_path / f"for-{name}/out/qrels.parquet")["label"].to_pylist()
        assert labels == ["exact", "irrelevant", "partial"]


def test_queries_of_benchmarks_with_the_same_text_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    qrels(beir(folder), train="q1 d1 1", test="q2 d2 1")
    written(folder / "queries.jsonl", '{"_id": "q1", "text": "red shoe"}\n{"_id": "q2", "text": "RED SHOE "}\n')
    data = brought(tmp_path, "beir", folder)
    assert scores(data) == {("q1", "d1"): 1, ("q2", "d2"): 1}
    assert query_twins(data, examples=5)[0].count == 1


SHOPIFY = """Handle,Title,Body (HTML),Vendor,Option1 Value,Variant SKU,Variant Price,Image Src
linen-shirt,Linen shirt,<p>Light</p>,Acme,S,LS-S,29.00,{0}
linen-shirt,,,,M,LS-M,29.00,{1}
linen-shirt,,,,L,LS-L,31.00,
felt-hat,Felt hat,<p>Warm</p>,Acme,,FH,19.00,
felt-hat,,,,,,,{1}
"""


def test_a_shopify_export(tmp_path: Path) -> None:
    uris = [f"data:image/jpeg;base64,{base64.b64encode(jpeg()).decode()}" for _ in range(2)]
    text = SHOPIFY.format(*(f'"{uri}"' for uri in uris))
    documents = written(tmp_path / "products_export.csv", text)
    path = written(tmp_path / "r.csv", "search_term,handle,rating\nshirt,linen-shirt,5\nhat,felt-hat,4\n")
    mapping = TableMapping(score="rating", keep=("Variant Price",))
    data = brought(tmp_path, "csv", path, SourceOptions(mapping, documents=documents))
    assert data.documents.ids() == ["linen-shirt", "felt-hat"]
    assert data.documents.texts("title", [0, 1]) == ["Linen shirt", "Felt hat"]
    assert data.documents.present("image", [0, 1]).tolist() == [True, True]
    counts = data.schema.provenance["counts"]
    assert (counts["filled_from_later_rows"], counts["differing"]) == (1, 1)  # the hat's picture; the price of L
    assert any(
        "'Variant Price'" in one and "'29.00' and then '31.00'" in one for one in data.schema.provenance["notes"]
    )


def test_a_woocommerce_export(tmp_path: Path) -> None:
    documents = written(
        tmp_path / "wc-product-export.csv",
        'ID,Type,SKU,Name,Images\n7,simple,A-7,Mug,"https://x.example/a.jpg, https://x.example/b.jpg"\n',
    )
    path = written(tmp_path / "r.csv", "query,product_id,score\nmug,7,5\n")
    source = open_source("csv", str(path), SourceOptions(documents=documents))
    (batch,) = [one for one in source.batches(progress=False) if one.side == "documents"]
    assert batch.rows.to_pylist() == [{"doc_id": "7", "title": "Mug", "image": "https://x.example/a.jpg"}]
    assert batch.told == {"wc-product-export.csv, column 'Images': the first of several pictures is taken": 1}


def test_formats_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="format: found 'excel'; allowed: csv, tsv"):
        open_source("excel", "x", SourceOptions())
    with pytest.raises(DataSetError, match="not a file; for a folder or the hub name a format"):
        open_source("auto", str(tmp_path), SourceOptions())
    assert {"beir", "esci", "wands", "marqo", "marqo-hub", "trec", "huggingface"} <= set(FORMATS)
