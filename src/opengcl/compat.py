"""The numbers of Marqo's GCL evaluation script, from the same run and judgments.

What that script does, and this module with it:

* The weight column is min-max scaled over the whole file to 1..100 and truncated to a whole number; a column with only
  one value becomes 1.
* Optionally 2,000 queries are drawn without replacement, with probability proportional to the query's summed (scaled)
  relevance, as pandas' ``sample(weights=..., random_state=1)`` draws them from the sorted query ids.
* Of the top 1,000 results, NDCG (and recall, precision, MAP) are trec_eval's: linear gain, scores rounded to 32 bits,
  ties by descending document id. ERR, RBP and MRR leave ties in the order of the run.

What it does not copy: exceptions that end with exit code 0; an index that returns its last document when asked for more
than it holds; rounding to five digits; judgments beyond a query's best 1,000 that are dropped.
"""

from collections.abc import Sequence

import numpy as np

from opengcl.given_lists import listed
from opengcl.ranking_blocks import Ties
from opengcl.ranking_files import ScoredPairs

GCL_METRICS = ("ndcg@10", "err", "rbp@0.7", "rbp@0.8", "rbp@0.9")
GCL_DEPTH = 1000
GCL_SAMPLE = 2000

_INPUT_ORDER = ("err", "rbp", "mrr")


def gcl_relevance(qrels: ScoredPairs) -> ScoredPairs:
    """The judgments with relevance scaled to 1..100 and truncated.

    rel' = floor(99 (rel - min) / (max - min) + 1) with min and max over all judged pairs; 1 where min = max.

    Args:
        qrels: the judgments in the data set's units.

    Returns:
        The same pairs with whole relevances from 1 to 100.
    """
    low, high = qrels.value.min(), qrels.value.max()
    if low == high:
        return qrels.with_values(np.ones_like(qrels.value))
    return qrels.with_values(np.floor((qrels.value - low) / (high - low) * 99 + 1))


def gcl_sample(qrels: ScoredPairs, queries: int = GCL_SAMPLE, *, seed: int = 1) -> ScoredPairs:
    """Draws queries as the script does.

    The queries are put in ascending order (as numbers when all ids are whole numbers, else as strings, as a CSV
    column read by pandas sorts) and drawn without replacement, with probability proportional to their summed
    relevance.

    Args:
        qrels: the judgments after ``gcl_relevance``.
        queries: how many to draw.
        seed: of NumPy's legacy generator.

    Returns:
        The judgments of the drawn queries, in drawing order.

    Raises:
        ValueError: for more queries than there are with a positive sum.
    """
    sums = np.add.reduceat(qrels.value, qrels.offsets[:-1])
    drawable = int((sums > 0).sum())
    if not 1 <= queries <= drawable:
        raise ValueError(
            f"cannot draw {queries} queries: {qrels.source} has {drawable} with a relevance above 0; "
            f"ask for 1 to {drawable}"
        )
    order = _ascending(qrels.query_ids.to_pylist())
    weights = sums[order]
    legacy = np.random.RandomState(seed)  # the only generator that repeats pandas' draw
    drawn = legacy.choice(len(order), size=queries, replace=False, p=weights / weights.sum())
    return qrels.select(order[drawn])


def gcl_ties(names: Sequence[str]) -> dict[Ties, list[str]]:
    """Which tie rule each metric has in the script.

    Args:
        names: metric names as of ``opengcl.metrics.compute``.

    Returns:
        For each rule in use its metrics.
    """
    groups: dict[Ties, list[str]] = {}
    for name in listed("metrics", names):
        rule: Ties = "input" if name.partition("@")[0] in _INPUT_ORDER else "trec"
        groups.setdefault(rule, []).append(name)
    return groups


def _ascending(ids: list[str]) -> np.ndarray:
    if all(i.removeprefix("-").isdecimal() and i.isascii() for i in ids):
        return np.array(sorted(range(len(ids)), key=lambda row: int(ids[row])))
    return np.array(sorted(range(len(ids)), key=lambda row: ids[row]))
