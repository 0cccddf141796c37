"""Distributions of a data set, counted a block at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Int, Shaped

from opengcl.data.dataset import RankedDataset
from opengcl.data.records import Records

_BLOCK = 1 << 20
_MOST_BARS = 20


@dataclass(frozen=True)
class Bin:
    """A range of values, both ends included where they are integers, and how many lie in it."""

    label: str
    count: int


@dataclass(frozen=True)
class TextLengths:
    """Lengths of the texts of a field, where it is there.

    Attributes:
        characters: 5%, 50%, 95% and 100% quantile, in characters; empty where no text is there.
        words: Texts by their number of words.
    """

    characters: tuple[int, ...]
    words: list[Bin]


def score_bins(data: RankedDataset) -> list[Bin]:
    """All judged pairs by score: a bar for each grade where there are few, else twenty equal ranges."""
    low, high = data.schema.score_min, data.schema.score_max
    if _grades(data):
        first = int(low)
        counts = np.zeros(int(high) - first + 1, np.int64)
        for block in _blocks(data.qrels.score):
            counts += np.bincount(block.astype(np.int64) - first, minlength=len(counts))
        return [Bin(str(first + at), int(count)) for at, count in enumerate(counts)]
    edges = np.linspace(low, high, _MOST_BARS + 1)
    counts = np.zeros(_MOST_BARS, np.int64)
    for block in _blocks(data.qrels.score):
        counts += np.histogram(np.clip(block, low, high), edges)[0]
    return [Bin(f"{start:.4g} to {end:.4g}", int(n)) for start, end, n in zip(edges, edges[1:], counts, strict=False)]


def _grades(data: RankedDataset) -> bool:
    low, high = data.schema.score_min, data.schema.score_max
    few = high - low < _MOST_BARS and float(low).is_integer() and float(high).is_integer()
    return few and all(bool((block == np.floor(block)).all()) for block in _blocks(data.qrels.score))


def judged_bins(data: RankedDataset) -> list[Bin]:
    """Queries by their number of judged documents."""
    return count_bins(np.diff(data.qrels.offsets))


def count_bins(counts: Int[np.ndarray, "rows"]) -> list[Bin]:
    """Rows by a number that is 0 or more: a bar for each where they span few, else 1, 2, 5, 10, 20, 50, ... as ends."""
    if not len(counts):
        return []
    low, high = int(counts.min()), int(counts.max())
    if high - low < _MOST_BARS:
        found = np.bincount(counts - low)
        return [Bin(f"{low + at:,}", int(count)) for at, count in enumerate(found)]
    ends = [0] + [step * 10**power for power in range(19) for step in (1, 2, 5)]
    last = next(at for at, end in enumerate(ends) if end >= high)
    edges = np.array(ends[: last + 1])
    found = np.bincount(np.searchsorted(edges, counts), minlength=len(edges))
    starts = [0, *(edges[:-1] + 1).tolist()]
    bins = [
        Bin(f"{start:,}" if start == end else f"{start:,} to {end:,}", int(n))
        for start, end, n in zip(starts, edges.tolist(), found, strict=True)
    ]
    first = next(at for at, one in enumerate(bins) if one.count)
    return bins[first:]


def text_lengths(records: Records, field: str) -> TextLengths:
    """Lengths of a text field over all rows."""
    characters, words = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for chunk in records.column(field).chunks:
        texts = chunk.filter(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(chunk)), 0)).drop_null()
        characters.append(np.asarray(pc.utf8_length(texts), np.int64))
        words.append(
            np.asarray(pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))), np.int64)
        )
    lengths = np.concatenate(characters)
    shares = (0.05, 0.5, 0.95, 1.0) if len(lengths) else ()
    quantiles = tuple(int(np.quantile(lengths, share, method="inverted_cdf")) for share in shares)
    return TextLengths(quantiles, count_bins(np.concatenate(words)))


def _blocks(array: Shaped[np.ndarray, "rows"]) -> Iterator[Shaped[np.ndarray, "rows"]]:
    for start in range(0, len(array), _BLOCK):
        yield np.asarray(array[start : start + _BLOCK])
