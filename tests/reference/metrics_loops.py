"""The metrics as plain loops over lists, and a GCL-style evaluation over dictionaries, written from the papers.

They share no code with the package and use exact fractions or big integers where the package rescales.
"""

import math
from fractions import Fraction


def ndcg(retrieved, judged, k, exponential=False):
    def dcg(relevances):
        total = 0.0
        for rank, relevance in enumerate(relevances[:k], start=1):
            gain = math.expm1(relevance * math.log(2)) if exponential else relevance
            total += gain / math.log2(rank + 1)
        return total

    best = dcg(sorted(judged, reverse=True))
    return dcg(retrieved) / best if best > 0 else 0.0


def err(retrieved, judged, k=None, max_grade=None):
    """On whole grades in exact fractions, on others in floats."""
    whole = all(float(r).is_integer() for r in [*retrieved, *judged])
    top = max(judged, default=0) if max_grade is None else max_grade
    total, go_on = (Fraction(0), Fraction(1)) if whole else (0.0, 1.0)
    for rank, relevance in enumerate(retrieved[:k], start=1):
        gain = 2 ** int(relevance) - 1 if whole else math.expm1(relevance * math.log(2))
        stop = Fraction(gain, 2 ** int(top)) if whole else gain / 2.0**top
        total += go_on * stop / rank
        go_on *= 1 - stop
    return float(total)


def rbp(retrieved, judged, p, k=None):
    top = max(judged, default=0)
    total = 0.0
    for rank, relevance in enumerate(retrieved[:k], start=1):
        total += (relevance / top if top else 0.0) * p ** (rank - 1)
    return (1 - p) * total


def recall(retrieved, judged, k, threshold=0.0):
    relevant = sum(1 for r in judged if r > threshold)
    return sum(1 for r in retrieved[:k] if r > threshold) / relevant if relevant else 0.0


def precision(retrieved, _judged, k, threshold=0.0):
    return sum(1 for r in retrieved[:k] if r > threshold) / k


def success(retrieved, _judged, k, threshold=0.0):
    return float(any(relevance > threshold for relevance in retrieved[:k]))


def reciprocal_rank(retrieved, _judged, k=None, threshold=0.0):
    for rank, relevance in enumerate(retrieved[:k], start=1):
        if relevance > threshold:
            return 1 / rank
    return 0.0


def average_precision(retrieved, judged, k=None, threshold=0.0):
    relevant = sum(1 for r in judged if r > threshold)
    hits, total = 0, 0.0
    for rank, relevance in enumerate(retrieved[:k], start=1):
        if relevance > threshold:
            hits += 1
            total += hits / rank
    return total / relevant if relevant else 0.0


def rank(results, rule):
    """Document ids of {doc: score}, best first; the dictionary's order is the file's."""
    if rule == "input":
        return sorted(results, key=lambda d: -results[d])
    ordered = sorted(results)
    if rule == "trec":
        ordered.reverse()
    return sorted(ordered, key=lambda d: -results[d])


def gcl_evaluation(qrels, run):
    """{query: {doc: score}} twice -> means of NDCG@10, ERR and RBP over the 1..100 scaled judgments."""
    everything = [value for judged in qrels.values() for value in judged.values()]
    low, high = min(everything), max(everything)
    sums = {"ndcg@10": 0.0, "err": 0.0, "rbp@0.7": 0.0, "rbp@0.8": 0.0, "rbp@0.9": 0.0}
    for query, judged in qrels.items():
        scaled = {d: int((v - low) / (high - low) * 99 + 1) if high > low else 1 for d, v in judged.items()}
        results = run.get(query, {})
        grades = list(scaled.values())
        in_trec = [scaled.get(d, 0) for d in rank(results, "trec")][:1000]
        in_file = [scaled.get(d, 0) for d in rank(results, "input")][:1000]
        sums["ndcg@10"] += ndcg(in_trec, grades, 10)
        sums["err"] += err(in_file, grades)
        for p in (0.7, 0.8, 0.9):
            sums[f"rbp@{p}"] += rbp(in_file, grades, p)
    return {name: total / len(qrels) for name, total in sums.items()}
