"""A synthetic shop: a small ranked data set drawn by code, for a first run without any download.

Everything in it is made up: products, pictures (`shop_pictures`), titles, queries and the ranking. It shows that
training works and what the files look like; results on it say nothing about real shops, and it is called synthetic
wherever shown.

A document's points for a query with the attributes A are

    points(q, d) = sum_{a in A} weight_a * [d matches a] + 1.2 * (0.6 * popularity_brand(d) + 0.4 * newness_d)

with the weights of `ATTRIBUTE_POINTS`, the brand's popularity log(1 + its products) and the year both scaled to 0..1.
A query for a product type also asks for the type's category. The best `DEPTH` documents, ties in document order, are
judged, with scores linear in the position from 100 down to 1.

Titles leave things out on purpose (a pattern or a brand that only the picture shows); 2% of the products have no
title, another 2% no picture.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opengcl.data.dataset import write_dataset
from opengcl.data.schema import Schema
from opengcl.data.shop_pictures import COLOURS, MARKS, PATTERNS, draw_product
from opengcl.only_writer import only_writer
from opengcl.plain_yaml import YamlError, read_yaml

NAME = "synthetic-shop"
DEPTH = 50
SCORE_MIN, SCORE_MAX = 1.0, 100.0
DEFAULT_QUERIES = 400
MIN_PRODUCTS = 30
MISSING_SHARE = 0.02
FILES = ("dataset.yaml", "documents.parquet", "qrels.parquet", "queries.parquet")

CATEGORIES = {
    "backpack": "bag",
    "handbag": "bag",
    "tote bag": "bag",
    "t-shirt": "clothing",
    "hoodie": "clothing",
    "dress": "clothing",
    "trousers": "clothing",
    "sneakers": "shoes",
    "boots": "shoes",
    "cap": "accessory",
    "beanie": "accessory",
    "scarf": "accessory",
    "umbrella": "accessory",
    "watch": "accessory",
    "mug": "homeware",
    "cushion": "homeware",
}
BRANDS = (
    "Norvik",
    "Altena",
    "Corvane",
    "Dunmar",
    "Elowen",
    "Fjella",
    "Haldric",
    "Ivara",
    "Marenko",
    "Sorrelby",
)
YEARS = (2018, 2025)

ATTRIBUTE_POINTS: dict[str, float] = {
    "product_type": 4.0,
    "brand": 2.5,
    "colour": 2.0,
    "pattern": 1.5,
    "gender": 1.0,
    "category": 1.0,
}
PRIOR_POINTS, POPULARITY_SHARE, NEWNESS_SHARE = 1.2, 0.6, 0.4

QUERY_PATTERNS = (
    "{colour} {product_type}",
    "{brand} {product_type}",
    "{colour} {pattern} {product_type}",
    "{colour} {category} for {gender}",
    "{brand} {category}",
    "{pattern} {product_type} for {gender}",
    "{brand} {colour} {product_type}",
)
MIN_MATCHES = 2
UNASKED = {"plain", "unisex"}
"""Values that no query names: nobody searches for a plain bag."""


@dataclass(frozen=True)
class _Query:
    text: str
    attributes: Mapping[str, str]


def make_shop(
    out: Path | str, *, products: int = 800, queries: int | None = None, seed: int = 0, image_size: int = 64
) -> Path:
    """Writes the synthetic shop as a ranked data-set folder.

    The same arguments give the same files to the byte (with the same versions of NumPy, Pillow and PyArrow).

    Args:
        out: The folder to make. An earlier synthetic shop there is replaced; anything else is left alone.
        products: How many products, at least 30.
        queries: How many queries, drawn from the phrases that fit at least 2 products; default 400, or all of them
            where there are fewer.
        seed: Seed of everything left to chance, at least 0.
        image_size: Width and height of the pictures in pixels, 16 to 512.

    Returns:
        `out`.

    Raises:
        ValueError: An argument is out of range, or `out` holds something that this function did not make.
    """
    out = Path(out)
    _check_range("products", products, MIN_PRODUCTS, 1_000_000)
    _check_range("image_size", image_size, 16, 512)
    _check_range("seed", seed, 0, 2**63)
    _check_replaceable(out)
    attributes = _draw_attributes(products, seed)
    chosen = _choose_queries(_phrases(attributes), queries, seed)
    with (
        only_writer(out),
        tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch,
    ):
        fresh = Path(scratch) / "fresh"
        _write_tables(fresh, attributes, chosen, seed=seed, image_size=image_size)
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        fresh.rename(out)
    return out


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; allowed are {low} to {high}")


def _check_replaceable(out: Path) -> None:
    """Refuses a file, and a folder that holds anything but an earlier synthetic shop."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out} is not a folder; give the synthetic shop a folder of its own")
    if not out.exists():
        return
    found = sorted(path.name for path in out.iterdir())
    if not found:
        return
    strange = [name for name in found if name not in FILES]
    if strange or not _is_ours(out / "dataset.yaml"):
        culprit = strange[0] if strange else "dataset.yaml"
        raise ValueError(
            f"{out} is not empty and holds {culprit!r}, which is not part of a synthetic shop; "
            "give an empty or a new folder (an earlier synthetic shop is replaced)"
        )


def _is_ours(config: Path) -> bool:
    try:
        content = read_yaml(config).content
    except YamlError:
        return False
    return isinstance(content, dict) and content.get("name") == NAME


def _draw_attributes(products: int, seed: int) -> dict[str, np.ndarray]:
    """Every product's attributes, one array a column; common brands and plain cloth come up more often."""
    rng = np.random.default_rng([seed, 0])
    types = np.array(list(CATEGORIES))
    brand_shares = 1 / np.arange(1, len(BRANDS) + 1) ** 0.8
    pattern_shares = np.where(np.array(PATTERNS) == "plain", 0.4, 0.6 / (len(PATTERNS) - 1))
    columns = {
        "product_type": rng.choice(types, products),
        "brand": rng.choice(np.array(BRANDS), products, p=brand_shares / brand_shares.sum()),
        "colour": rng.choice(np.array(list(COLOURS)), products),
        "pattern": rng.choice(np.array(PATTERNS), products, p=pattern_shares),
        "gender": rng.choice(np.array(["men", "women", "kids"]), products, p=[0.4, 0.4, 0.2]),
        "year": rng.integers(YEARS[0], YEARS[1] + 1, products),
    }
    columns["category"] = np.array([CATEGORIES[t] for t in columns["product_type"]])
    for_everyone = (columns["category"] == "homeware") | (columns["product_type"] == "umbrella")
    columns["gender"] = np.where(for_everyone, "unisex", columns["gender"])
    columns["gender"] = np.where(columns["product_type"] == "dress", "women", columns["gender"])
    return columns


def _phrases(attributes: Mapping[str, np.ndarray]) -> list[_Query]:
    """Every phrase of every pattern that fits at least `MIN_MATCHES` products, patterns in order, then sorted."""
    found: dict[str, _Query] = {}
    for pattern in QUERY_PATTERNS:
        fields = [name for name in ATTRIBUTE_POINTS if f"{{{name}}}" in pattern]
        rows, counts = np.unique(np.stack([attributes[f] for f in fields], axis=1), axis=0, return_counts=True)
        for row in rows[counts >= MIN_MATCHES]:
            named = dict(zip(fields, map(str, row), strict=True))
            if UNASKED.isdisjoint(named.values()):
                text = pattern.format(**named).lower()
                found.setdefault(text, _Query(text, _implied(named)))
    return list(found.values())


def _implied(named: dict[str, str]) -> dict[str, str]:
    """The attributes a phrase names, with the category of its product type."""
    return {"category": CATEGORIES[named["product_type"]], **named} if "product_type" in named else named


def _choose_queries(phrases: list[_Query], count: int | None, seed: int) -> list[_Query]:
    if count is None:
        count = min(DEFAULT_QUERIES, len(phrases))
    if not 1 <= count <= len(phrases):
        raise ValueError(f"queries is {count}; these products give 1 to {len(phrases)}")
    rows = np.random.default_rng([seed, 1]).choice(len(phrases), count, replace=False)
    return [phrases[row] for row in np.sort(rows)]


def _prior(attributes: Mapping[str, np.ndarray]) -> Float[np.ndarray, " documents"]:
    """The shop's own taste: common brands and new products first."""
    _, inverse, counts = np.unique(attributes["brand"], return_inverse=True, return_counts=True)
    popularity = np.log1p(counts)[inverse]
    popularity = popularity / popularity.max()
    newness = (attributes["year"] - YEARS[0]) / (YEARS[1] - YEARS[0])
    return PRIOR_POINTS * (POPULARITY_SHARE * popularity + NEWNESS_SHARE * newness)


def _points(
    wanted: Mapping[str, str], attributes: Mapping[str, np.ndarray], prior: Float[np.ndarray, " documents"]
) -> Float[np.ndarray, " documents"]:
    """The ranking rule of this module's docstring, for one query."""
    points = prior.copy()
    for name, weight in ATTRIBUTE_POINTS.items():
        if name in wanted:
            points += weight * (attributes[name] == wanted[name])
    return points


def _position_scores(depth: int) -> Float[np.ndarray, " depth"]:
    """100 down to 1 in equal steps."""
    return np.linspace(SCORE_MAX, SCORE_MIN, depth)


def _write_tables(
    folder: Path, attributes: Mapping[str, np.ndarray], queries: list[_Query], *, seed: int, image_size: int
) -> None:
    query_ids = [f"q{row:05d}" for row in range(len(queries))]
    document_ids = [f"p{row:06d}" for row in range(len(attributes["brand"]))]
    write_dataset(
        folder,
        Schema(NAME, {"query": "text"}, {"title": "text", "image": "image"}, SCORE_MIN, SCORE_MAX),
        pa.table({"query_id": query_ids, "query": [query.text for query in queries]}),
        _documents(document_ids, attributes, seed, image_size),
        _qrels(query_ids, document_ids, queries, attributes),
    )


def _qrels(
    query_ids: list[str], document_ids: list[str], queries: list[_Query], attributes: Mapping[str, np.ndarray]
) -> pa.Table:
    depth = min(DEPTH, len(document_ids))
    prior = _prior(attributes)
    best = [np.argsort(-_points(q.attributes, attributes, prior), kind="stable")[:depth] for q in queries]
    return pa.table(
        {
            "query_id": np.repeat(query_ids, depth),
            "doc_id": np.array(document_ids)[np.concatenate(best)],
            "position": np.tile(np.arange(1, depth + 1, dtype=np.int32), len(queries)),
            "score": np.tile(_position_scores(depth), len(queries)),
        }
    )


def _documents(ids: list[str], attributes: Mapping[str, np.ndarray], seed: int, image_size: int) -> pa.Table:
    rng = np.random.default_rng([seed, 2])
    titles: list[str | None] = [_title(_row(attributes, i), rng) for i in range(len(ids))]
    images: list[bytes | None] = [_picture(_row(attributes, i), i, seed, image_size) for i in range(len(ids))]
    missing = max(1, round(MISSING_SHARE * len(ids)))
    gaps = rng.permutation(len(ids))[: 2 * missing]
    for untitled, unseen in zip(gaps[:missing], gaps[missing:], strict=True):
        titles[untitled] = None
        images[unseen] = None
    columns = ("brand", "product_type", "category", "colour", "pattern", "gender", "year")
    return pa.table(
        {
            "doc_id": ids,
            "title": pa.array(titles, pa.string()),
            **{name: attributes[name] for name in columns},
            "image": pa.array(images, pa.binary()),
        }
    )


def _row(attributes: Mapping[str, np.ndarray], row: int) -> dict[str, str]:
    return {name: str(column[row]) for name, column in attributes.items()}


def _title(product: Mapping[str, str], rng: np.random.Generator) -> str:
    """Such as "Norvik Red Striped Backpack": the type always, everything else only most of the time."""
    told = rng.random(5) < [0.85, 0.8, 0.5, 0.35, 0.4]
    parts = [
        product["brand"] if told[0] else "",
        {"men": "Men's", "women": "Women's", "kids": "Kids'"}.get(product["gender"], "") if told[3] else "",
        product["colour"].title() if told[1] else "",
        product["pattern"].title() if told[2] and product["pattern"] != "plain" else "",
        product["product_type"].capitalize()
        if product["product_type"] == "t-shirt"
        else product["product_type"].title(),
        product["year"] if told[4] else "",
    ]
    return " ".join(part for part in parts if part)


def _picture(product: Mapping[str, str], row: int, seed: int, image_size: int) -> bytes:
    mark = BRANDS.index(product["brand"]) % len(MARKS)
    rng = np.random.default_rng([seed, 3, row])
    return draw_product(product["product_type"], product["colour"], product["pattern"], mark, size=image_size, rng=rng)
