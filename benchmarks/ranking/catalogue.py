"""fashion-small, built from the public "Fashion Product Images (Small)" catalogue.

    python -m benchmarks.ranking.catalogue SOURCE --out DIR

SOURCE is either of

- the Kaggle folder: ``styles.csv`` and ``images/<id>.jpg``,
- a local copy of the hub data set ``ashraq/fashion-product-images-small``: a folder with its Parquet files.

DIR becomes a data set (docs/data-format.md) of real products with made queries and a made ranking.

The rule:

- Documents have a picture, a title, an article type, a base colour and a gender, and are neither ``Free Items`` nor
  ``Home``. In fashion-small they also have a season, a year, a usage and both categories, and no comma in the title:
  the published tables hold 43,966 products without one exception, while the Kaggle table is known to have rows of
  either kind. ``every=True`` leaves these two clauses out and makes another data set.
- Queries are the combinations of attributes in `PATTERNS` that at least `LEAST` documents have.
- score(q, d) = sum_a `WEIGHTS`[a] [d has q's a] + 1.2 (0.6 p_d + 0.4 y_d). The attributes of q are those in its phrase,
  and the most common sub- and master category of its article type. p is log(1 + documents of d's brand), scaled to
  [0, 1] over all documents; y is (year - 2010) / 8, clipped to [0, 1], and 0 for a missing year.
- The `TOP` best documents, ties in document order, get the scores 100, 99, ...
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from opengcl.data import DataSetError, Schema, write_dataset
from opengcl.data.images import fault

COLUMNS = {
    "id": "doc_id",
    "productDisplayName": "title",
    "gender": "gender",
    "masterCategory": "master_category",
    "subCategory": "sub_category",
    "articleType": "article_type",
    "baseColour": "base_colour",
    "season": "season",
    "year": "year",
    "usage": "usage",
}
"""Columns of the catalogue, and what they are called in the data set."""

CSV_HEADER = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"
REQUIRED = ("title", "article_type", "base_colour", "gender")
LEFT_OUT = ("Free Items", "Home")

PATTERNS = (
    ("{gender} {base_colour} {article_type}", ("gender", "base_colour", "article_type")),
    ("{base_colour} {article_type}", ("base_colour", "article_type")),
    ("{usage} {article_type} for {gender}", ("gender", "article_type", "usage")),
    ("{brand} {article_type}", ("brand", "article_type")),
    ("{season} {base_colour} {article_type} for {gender}", ("gender", "base_colour", "article_type", "season")),
    ("{brand} {base_colour} {article_type}", ("brand", "base_colour", "article_type")),
)
"""How a query reads, and the columns that sort the queries of a pattern, first to last."""

LEAST = 8
TOP = 100
WEIGHTS = {
    "article_type": 4.0,
    "sub_category": 1.0,
    "master_category": 0.5,
    "gender": 1.5,
    "base_colour": 1.5,
    "usage": 0.7,
    "season": 0.7,
    "brand": 2.0,
}
PRIOR, PRIOR_BRAND, PRIOR_YEAR = 1.2, 0.6, 0.4
FIRST_YEAR, YEARS = 2010, 8
SPLIT_SEED, SEEN_QUERIES, SEEN_DOCUMENTS = 2404, 0.8, 0.5

PUBLISHED = {
    "documents": "896911c6915716d70ab8e5f9ac88efd71e9977375ae0199816ad7cd20353b433",
    "queries": "0dce288738afa1b969564a9af99de30ff4c041b55a9382ec38a50ff0522eaf33",
    "qrels": "0b51b752a4a0a0de7075c032e18d42a4b3b7b68c5f82d475308888eb60b833a5",
}
"""`digest` of each table of fashion-small, pictures left out."""

_MISSING = pa.array(["", "NA", "NaN", "nan"], pa.large_string())
_BATCH = 2048
_DECIMALS, _EQUAL = 9, 1e-9


@dataclass(frozen=True)
class Catalogue:
    """The catalogue as it was found.

    Attributes:
        rows: One row a product, in the source's order, with the columns that `COLUMNS` gives: ``doc_id`` as int64,
            ``year`` as int16, texts stripped of blanks; missing values are null.
        pictures: Whether each row has a picture; it is not opened yet.
        picture: The bytes of a row's picture.
        place: Where the rows come from, for errors.
    """

    rows: pa.Table
    pictures: np.ndarray[Any, np.dtype[np.bool_]]
    picture: Callable[[int], bytes]
    place: str


def read_catalogue(source: Path) -> Catalogue:
    """Reads the Kaggle folder, or the Parquet files of the hub data set.

    Raises:
        DataSetError: If the folder is neither, a column is missing, or a value is not of its column's type.
    """
    if (source / "styles.csv").is_file():
        return _read_kaggle(source)
    if files := sorted(source.rglob("*.parquet")):
        return _read_hub(source, files)
    raise DataSetError(f"{source}: found neither styles.csv nor Parquet files; allowed: a folder with one of them")


def _read_kaggle(folder: Path) -> Catalogue:
    """``styles.csv`` by its lines: titles have unquoted commas and stray quotes, so that no CSV dialect fits."""
    path = folder / "styles.csv"
    try:
        header, *lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataSetError(f"{path}: byte {error.start} is not UTF-8") from error
    if not (folder / "images").is_dir():
        raise DataSetError(f"{folder}: there is no folder 'images'; required: images/<id>.jpg beside styles.csv")
    names = CSV_HEADER.split(",")
    found = [name.strip().strip('"') for name in header.split(",")]
    if found != names:
        lacking = [name for name in names if name not in found]
        what = f"column '{lacking[0]}' is missing; found" if lacking else "the columns are in another order; found"
        raise DataSetError(f"{path}: {what} {', '.join(found)}; required: {', '.join(names)}")
    cells = []
    for number, line in enumerate(lines, start=2):
        row = line.split(",", len(names) - 1)
        if len(row) == len(names):
            cells.append(row)
        elif line.strip():
            raise DataSetError(f"{path}, line {number}: found {len(row)} cells; required: {len(names)}")
    columns = [pa.array([row[i] for row in cells], pa.string()) for i in range(len(names))]
    rows = _rows(pa.table(columns, names), str(path))
    there = {file.name for file in (folder / "images").glob("*.jpg")}
    files = [f"{number}.jpg" for number in rows["doc_id"].to_pylist()]
    return Catalogue(
        rows,
        np.array([file in there for file in files], bool),
        lambda row: (folder / "images" / files[row]).read_bytes(),
        str(path),
    )


def _read_hub(folder: Path, files: list[Path]) -> Catalogue:
    """The hub's Parquet files; their pictures (about 150 MB) stay in memory, as they are not in order of the ids."""
    tables = []
    for path in files:
        names = pq.read_schema(path).names
        if lacking := [name for name in [*COLUMNS, "image"] if name not in names]:
            raise DataSetError(f"{path}: column '{lacking[0]}' is missing; found {', '.join(names)}")
        tables.append(pq.read_table(path, columns=[*COLUMNS, "image"]))
    table = pa.concat_tables(tables, promote_options="permissive")
    kind = table.schema.field("image").type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataSetError(f"{folder}, column 'image': found type {kind}; allowed: struct<bytes: binary, path: string>")
    images = pc.struct_field(table["image"].combine_chunks(), "bytes").cast(pa.large_binary())
    present = pc.fill_null(pc.greater(pc.binary_length(images), 0), False).to_numpy(zero_copy_only=False)
    return Catalogue(_rows(table, str(folder)), present, lambda row: images[row].as_py(), str(folder))


def _rows(table: pa.Table, place: str) -> pa.Table:
    """The columns of `COLUMNS`, cleaned."""
    columns = {}
    for source, name in COLUMNS.items():
        column = table[source]
        if name not in ("doc_id", "year"):
            columns[name] = _text(column)
            continue
        try:
            columns[name] = _integer(column, pa.int64() if name == "doc_id" else pa.int16())
        except pa.ArrowInvalid as error:
            raise DataSetError(f"{place}, column '{source}': {error}; allowed: integers") from error
    if columns["doc_id"].null_count:
        row = pc.index(pc.is_null(columns["doc_id"]), True).as_py()
        raise DataSetError(f"{place}, column 'id': row {row} (from 0) has none; required: an id in every row")
    return pa.table(columns)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    return pc.if_else(pc.is_in(text, value_set=_MISSING), pa.scalar(None, pa.large_string()), text)


def _integer(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Integers, also from their texts and from the floats that pandas makes of a column with gaps."""
    if pa.types.is_integer(column.type):
        return column.cast(kind)
    return _text(column).cast(pa.float64()).cast(kind)


def products(catalogue: Catalogue, *, every: bool = False) -> tuple[pa.Table, np.ndarray[Any, np.dtype[np.int64]]]:
    """The documents that the rule keeps, sorted by id, without ``split`` and ``image``.

    Args:
        catalogue: What `read_catalogue` gave.
        every: Also those with a missing season, year, usage or category, or a comma in the title.

    Returns:
        The table, and each document's row in the catalogue.

    Raises:
        DataSetError: If no row is left, or two of them have one id.
    """
    rows = catalogue.rows
    title = _text(pc.utf8_trim(rows["title"], ' \t"'))
    rows = rows.set_column(rows.column_names.index("title"), "title", title)
    keep = catalogue.pictures & ~_numpy(pc.is_in(rows["master_category"], value_set=pa.array(LEFT_OUT)))
    for name in REQUIRED if every else COLUMNS.values():
        keep &= _numpy(pc.is_valid(rows[name]))
    if not every:
        keep &= ~_numpy(pc.fill_null(pc.match_substring(rows["title"], ","), False))
    kept = np.flatnonzero(keep)
    if not len(kept):
        raise DataSetError(f"{catalogue.place}: found no row with {', '.join(REQUIRED)} and a picture")
    ids = rows["doc_id"].to_numpy()
    kept = kept[np.argsort(ids[kept], kind="stable")]
    if len(twice := np.flatnonzero(np.diff(ids[kept]) == 0)):
        raise DataSetError(f"{catalogue.place}: id {ids[kept[twice[0]]]} is there twice; allowed: once")
    rows = rows.take(pa.array(kept))
    brand = pa.array([title.split()[0] for title in rows["title"].to_pylist()], pa.string())
    rows = rows.add_column(2, "brand", brand)
    return rows.set_column(0, "doc_id", rows["doc_id"].cast(pa.large_string())), kept


def _numpy(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return column.to_numpy().astype(bool)


@dataclass(frozen=True)
class Attributes:
    """The documents' attributes as numbers.

    Attributes:
        values: For each key of `WEIGHTS` the values there are, sorted.
        codes: Shape (attributes, documents): which value, -1 for none.
    """

    values: dict[str, list[str]]
    codes: np.ndarray[Any, np.dtype[np.int32]]

    @classmethod
    def of(cls, documents: pa.Table) -> Attributes:
        """Numbers the attributes of a table of documents."""
        values, codes = {}, []
        for name in WEIGHTS:
            column = documents[name].to_pylist()
            values[name] = sorted(set(column) - {None})
            number = {value: code for code, value in enumerate(values[name])}
            codes.append([number.get(value, -1) for value in column])
        return cls(values, np.array(codes, np.int32))

    def __getitem__(self, name: str) -> np.ndarray[Any, np.dtype[np.int32]]:
        return self.codes[list(WEIGHTS).index(name)]


def find_queries(attributes: Attributes) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int32]]]:
    """Every phrase that `PATTERNS` make of combinations with at least `LEAST` documents.

    Returns:
        The phrases, and the codes of their attributes, shape (queries, attributes), -1 where a query has none.
    """
    names = list(WEIGHTS)
    found: dict[str, np.ndarray[Any, np.dtype[np.int32]]] = {}
    for pattern, columns in PATTERNS:
        keys = np.stack([attributes[name] for name in columns], axis=1)
        combinations, counts = np.unique(keys[(keys >= 0).all(1)], axis=0, return_counts=True)
        for codes in combinations[counts >= LEAST]:
            words = {name: attributes.values[name][code] for name, code in zip(columns, codes, strict=True)}
            wanted = np.full(len(names), -1, np.int32)
            wanted[[names.index(name) for name in columns]] = codes
            found.setdefault(pattern.format(**words).lower(), wanted)
    table = np.array(list(found.values()), np.int32).reshape(len(found), len(names))
    for name in ("sub_category", "master_category"):
        usual = _most_common(attributes[name], attributes["article_type"])
        table[:, names.index(name)] = usual[table[:, names.index("article_type")]]
    return list(found), table


def _most_common(
    codes: np.ndarray[Any, np.dtype[np.int32]], groups: np.ndarray[Any, np.dtype[np.int32]]
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Each group's most common code: of several the first, -1 where it has none."""
    counts = np.zeros((groups.max() + 1, codes.max() + 1), np.int64)
    there = codes >= 0
    np.add.at(counts, (groups[there], codes[there]), 1)
    return np.where(counts.any(1), counts.argmax(1), -1).astype(np.int32)


def prior(documents: pa.Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the shop favours: common brands and recent years. One value a document, in [0, 1.2]."""
    _, brand, count = np.unique(documents["brand"].to_pylist(), return_inverse=True, return_counts=True)
    common = np.log1p(count[brand])
    common -= common.min()
    if common.max() > 0:
        common /= common.max()
    year = pc.fill_null(documents["year"], FIRST_YEAR).to_numpy().astype(np.float64)
    recent = np.clip((year - FIRST_YEAR) / YEARS, 0, 1)
    return PRIOR * (PRIOR_BRAND * common + PRIOR_YEAR * recent)


def rank(
    attributes: Attributes,
    wanted: np.ndarray[Any, np.dtype[np.int32]],
    prior: np.ndarray[Any, np.dtype[np.float64]],
    *,
    progress: bool = False,
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The best documents of every query: shape (queries, `TOP` or all documents), best first, ties in order."""
    top = min(TOP, len(prior))
    ranking = np.empty((len(wanted), top), np.int32)
    weights = list(WEIGHTS.values())
    for query, codes in enumerate(tqdm(wanted, desc="ranking", unit=" queries", disable=not progress)):
        score = np.zeros(len(prior))
        for attribute in np.flatnonzero(codes >= 0):
            score += weights[attribute] * (attributes.codes[attribute] == codes[attribute])
        score += prior
        # Points that add up to the same sum tie, in whatever order they were added.
        candidates = np.flatnonzero(score >= np.partition(score, -top)[-top] - _EQUAL)
        ranking[query] = candidates[np.argsort(-score[candidates].round(_DECIMALS), kind="stable")[:top]]
    return ranking


@dataclass(frozen=True)
class Tables:
    """The data set but for its pictures.

    Attributes:
        queries: ``query_id``, ``query``, ``split``.
        documents: All columns but ``image``.
        qrels: ``query_id``, ``doc_id``, ``position``, ``score``.
        rows: Each document's row in the catalogue.
    """

    queries: pa.Table
    documents: pa.Table
    qrels: pa.Table
    rows: np.ndarray[Any, np.dtype[np.int64]]


def make_tables(catalogue: Catalogue, *, every: bool = False, progress: bool = False) -> Tables:
    """The documents, the queries and the ranking that the rule makes of a catalogue.

    Raises:
        DataSetError: If the catalogue has no usable row, an id twice, or too few products for any query.
    """
    documents, rows = products(catalogue, every=every)
    attributes = Attributes.of(documents)
    phrases, wanted = find_queries(attributes)
    if not phrases:
        raise DataSetError(f"{catalogue.place}: no combination of attributes has {LEAST} of {len(rows)} products")
    ranking = rank(attributes, wanted, prior(documents), progress=progress)
    generator = np.random.default_rng(SPLIT_SEED)
    query_split, document_split = (
        pa.array(np.where(generator.random(size) < share, "seen", "novel"), pa.large_string())
        for size, share in ((len(phrases), SEEN_QUERIES), (len(rows), SEEN_DOCUMENTS))
    )
    ids = pa.array([f"q{number:05d}" for number in range(len(phrases))], pa.large_string())
    text = pa.array(phrases, pa.large_string())
    queries = pa.table({"query_id": ids, "query": text, "split": query_split})
    depth = ranking.shape[1]
    position = np.tile(np.arange(1, depth + 1, dtype=np.int16), len(phrases))
    qrels = pa.table(
        {
            "query_id": ids.take(pa.array(np.repeat(np.arange(len(phrases)), depth))),
            "doc_id": documents["doc_id"].combine_chunks().take(pa.array(ranking.ravel())),
            "position": position,
            "score": (TOP + 1 - position).astype(np.float32),
        }
    )
    return Tables(queries, documents.append_column("split", document_split), qrels, rows)


def with_pictures(tables: Tables, catalogue: Catalogue, *, progress: bool = False) -> pa.RecordBatchReader:
    """The documents with their pictures, a few thousand at a time.

    Raises:
        DataSetError: While reading, for a picture that cannot be decoded; it names the id.
    """
    schema = tables.documents.schema.append(pa.field("image", pa.binary()))
    ids = tables.documents["doc_id"].to_pylist()

    def batches() -> Iterator[pa.RecordBatch]:
        with tqdm(total=len(ids), desc="pictures", unit=" pictures", disable=not progress) as bar:
            for start in range(0, len(ids), _BATCH):
                stop = min(start + _BATCH, len(ids))
                images = [_picture(catalogue, tables.rows[row], ids[row]) for row in range(start, stop)]
                part = tables.documents.slice(start, _BATCH)
                part = part.append_column("image", pa.array(images, pa.binary())).combine_chunks()
                bar.update(len(images))
                yield from part.to_batches()

    return pa.RecordBatchReader.from_batches(schema, batches())


def _picture(catalogue: Catalogue, row: int, name: str) -> bytes:
    try:
        data = catalogue.picture(int(row))
    except OSError as error:
        raise DataSetError(f"{catalogue.place}: the picture of id {name} cannot be read: {error.strerror}") from error
    if reason := fault(data, Path()):
        raise DataSetError(f"{catalogue.place}: the picture of id {name} cannot be used: {reason}")
    return data


def digest(table: pa.Table) -> str:
    """SHA-256 over the values of a table's columns, in order, whatever the Arrow types and chunks."""
    total = hashlib.sha256()
    for name in table.column_names:
        if name != "image":
            total.update(f"{name}\n".encode())
            total.update("\n".join(map(str, table[name].to_pylist())).encode())
    return total.hexdigest()


def unlike_published(tables: Tables) -> list[str]:
    """Names of the tables that differ from fashion-small's."""
    return [name for name, published in PUBLISHED.items() if digest(getattr(tables, name)) != published]


def build(source: Path, out: Path, *, every: bool = False, progress: bool = False) -> Tables:
    """Writes the data set, whole or not at all.

    Args:
        source: See `read_catalogue`.
        out: A folder that is not there yet, or empty.
        every: See `products`.
        progress: Whether long work shows a bar on stderr.

    Raises:
        DataSetError: If the source cannot be used, or `out` is not empty.
    """
    catalogue = read_catalogue(source)
    tables = make_tables(catalogue, every=every, progress=progress)
    name = "fashion-every" if every else "fashion-small"
    schema = Schema(name, {"query": "text"}, {"title": "text", "image": "image"}, score_min=1, score_max=100)
    write_dataset(out, schema, tables.queries, with_pictures(tables, catalogue, progress=progress), tables.qrels)
    return tables


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the data set and says whether it is the published one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking.catalogue", description="Build fashion-small.")
    parser.add_argument("source", type=Path, help="folder with styles.csv and images/, or with the hub's Parquet files")
    parser.add_argument("--out", type=Path, required=True, help="the new data set's folder")
    parser.add_argument("--every", action="store_true", help="also products that fashion-small leaves out")
    options = parser.parse_args(arguments)
    try:
        tables = build(options.source, options.out, every=options.every, progress=True)
    except DataSetError as error:
        raise SystemExit(f"error: {error}") from error
    counts = f"{len(tables.documents):,} documents, {len(tables.queries):,} queries, {len(tables.qrels):,} pairs"
    differ = unlike_published(tables)
    verdict = f"NOT fashion-small: other {', '.join(differ)}" if differ else "the same as fashion-small"
    print(f"{options.out}: {counts}; {verdict}")


if __name__ == "__main__":
    main()
