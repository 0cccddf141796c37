"""What is compared: every side is one set of training settings on the same model, data and budget.

A side's learning rate and temperature come from one grid (`GRID`, on `LADDER`) on dev queries, the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RIVALS = "benchmarks.ranking.rivals"
LENT = "published, our batches"
TOP = "InfoNCETopPositives:positions={}"
GROUPED: dict[str, Any] = {"docs_per_query": 16}  # 64 queries a batch
PAIRS: dict[str, Any] = {"queries_per_doc": 0}  # drawn one by one
PLAIN = {**PAIRS, "batch_size": 1024}
STEEPER = ({"weights": "exponential:decay=10"},)
STEEPEST = ({"weights": "exponential:decay=5"}, {"weights": "exponential:decay=2.5"})
PAIRWISE: dict[str, Any] = {"family": "paper", "combine": "pairwise"}
BOTH: dict[str, Any] = {"family": "paper", "combine": "both"}
# Documents drawn evenly. A step encodes 960 of them; 1,024 pairs drawn at random hold some 970 distinct ones.
EVENLY: dict[str, Any] = {"batch_size": 960, "queries_per_doc": 1, "sampling_exponent": 0.0}
DOCUMENTS: dict[str, Any] = {"batch_size": 3840, "queries_per_doc": 4, "sampling_exponent": 0.0}


@dataclass(frozen=True)
class Side:
    """One way to train."""

    label: str
    family: str
    settings: dict[str, Any]
    others: tuple[dict[str, Any], ...] = ()  # other values of the side's own constant, tried at the best grid point
    data: str | None = None  # a variant of the training data, see `benchmarks.ranking.data`
    share: float = 1.0  # of a cell's steps


def _gcl(
    label: str, weights: str, target: str, *, family: str = "ours", data: str | None = None, **settings: Any
) -> Side:
    """A form of `opengcl.gcl_loss` in both directions; the steepness of exponential weights is its own constant."""
    others = STEEPER if weights == "exponential" else ()
    plain = {"weights": weights, "target": target, "direction": "both"}
    return Side(label, family, {**plain, **PAIRS, **settings}, others, data)


def _rival(
    label: str, name: str, other: str = "", *, family: str = "published", batches: dict[str, Any] = PAIRS
) -> Side:
    """A published loss gets the scores over 100 and, where its paper leaves a constant open, two values of it."""
    target = f"{RIVALS}:{name}"
    others = ({"target": f"{target}:{other}"},) if other else ()
    return Side(label, family, {"weights": "linear", "target": target, **batches}, others)


CLIP = {"weights": "constant", "target": "diagonal", "direction": "both", **PAIRS}
OURS = {"weights": "exponential", "target": "ranked", "direction": "query", **DOCUMENTS}
# Documents that many queries ask for come first, then ever more evenly.
ANNEALED = {**OURS, "sampling_exponent": 1.0, "final_sampling_exponent": 0.0}
FLOOR = {**OURS, "weights": "exponential:decay=10,floor=0.005", "target": "full_row"}

SIDES: dict[str, Side] = {
    "clip": _gcl("CLIP: every judged pair counts the same", "constant", "diagonal", family="CLIP"),
    "clip-evenly": _gcl("CLIP, documents drawn evenly", "constant", "diagonal", family="CLIP", **EVENLY),
    "paper-shuffled": _gcl(
        "diagonal, exponential, scores shuffled in each query (control)",
        "exponential",
        "diagonal",
        family="CLIP",
        data="shuffled",
    ),
    "infonce-top10": _rival("InfoNCE, positives are the top 10", TOP.format(10), family="CLIP"),
    "infonce-top30": _rival("InfoNCE, positives are the top 30", TOP.format(30), family="CLIP"),
    "paper-linear": _gcl("diagonal, linear", "linear", "diagonal", family="paper"),
    "paper-reciprocal": _gcl("diagonal, reciprocal", "reciprocal", "diagonal", family="paper"),
    "paper": _gcl("diagonal, exponential", "exponential", "diagonal", family="paper"),
    "paper-evenly": _gcl(
        "diagonal, exponential, documents drawn evenly", "exponential", "diagonal", family="paper", **EVENLY
    ),
    "paper-pairwise": _gcl("diagonal, exponential, field by field", "exponential", "diagonal", **PAIRWISE),
    "paper-both": _gcl("diagonal, exponential, fused and field by field", "exponential", "diagonal", **BOTH),
    "masked": _gcl("masked, exponential", "exponential", "masked"),
    "full": _gcl("full, exponential", "exponential", "full"),
    "full-row": _gcl("full_row, exponential", "exponential", "full_row"),
    "masked-grouped": _gcl("masked, exponential, 64 x 16", "exponential", "masked", **GROUPED),
    "full-grouped": _gcl("full, exponential, 64 x 16", "exponential", "full", **GROUPED),
    "full-row-grouped": _gcl("full_row, exponential, 64 x 16", "exponential", "full_row", **GROUPED),
    "full-row-documents": _gcl("full_row, exponential, 960 documents x 4", "exponential", "full_row", **DOCUMENTS),
    "full-row-queries": Side("full_row towards queries, steep weights with a floor, 960 documents x 4", "ours", FLOOR),
    "ours": Side("ranked towards queries, exponential, 960 documents x 4", "ours", OURS, STEEPER),
    "ours-drawn": Side("ours, documents drawn as often as judged", "ours", {**OURS, "sampling_exponent": 1.0}, STEEPER),
    "ours-annealed": Side(
        "ours, much-judged documents first, ever more evenly",
        "ours",
        {**ANNEALED, "sampling_exponent": 1.5},
    ),
    "ours-fifth": Side(
        "ours, drawn as often as judged, a fifth of the documents a batch",
        "ours",
        {**OURS, "sampling_exponent": 1.0, "batch_size": 768},
        STEEPER,
    ),
    "ours-pairs": Side("ranked towards queries, exponential, pairs", "ours", {**OURS, **PLAIN}, STEEPER),
    "ours-constant": Side("ours without scores (control)", "ours", {**OURS, "weights": "constant"}),
    "ours-shuffled": Side("ours, scores shuffled in each query (control)", "ours", OURS, STEEPER, data="shuffled"),
    # More steps than these learn the log's noise: on dev queries both are best at a quarter.
    "clicks-clip": Side("CLIP on clicked pairs", "clicks", CLIP, data="clicked", share=0.25),
    "clicks-ours": Side(
        "ours on scores from the log, much-judged documents first",
        "clicks",
        ANNEALED,
        (*STEEPER, *STEEPEST),
        data="scored",
        share=0.25,
    ),
    "cosent": _rival("CoSENT", "CoSENT"),
    "group-kl": _rival("group KL, 64 x 16", "GroupKL", "label_temperature=0.1", batches=GROUPED),
    "m3-kd": _rival("m3_kd, 64 x 16", "M3KD", "label_temperature=0.1", batches=GROUPED),
    "listnet": _rival("ListNet, 64 x 16", "ListNet", "label_temperature=1", batches=GROUPED),
    "lambda": _rival("LambdaLoss, 64 x 16", "LambdaRankLoss", "top_grade=4", batches=GROUPED),
    "approx-ndcg": _rival("ApproxNDCG, 64 x 16", "ApproxNDCG", "alpha=10", batches=GROUPED),
    "rince": _rival("RINCE, 64 x 16", "RINCE", "temperature_ratio=2", batches=GROUPED),
    "margin-mse": _rival("MarginMSE, 64 x 16", "MarginMSE", "margin=5", batches=GROUPED),
    "x-clr": _rival("soft targets (X-CLR)", "SoftTargetCLIP", "label_temperature=0.05"),
    "x-clr-documents": _rival(
        "soft targets (X-CLR), 960 documents x 4",
        "SoftTargetCLIP",
        "label_temperature=0.05",
        family=LENT,
        batches=DOCUMENTS,
    ),
    "bixse": _rival("BiXSE", "BiXSE"),
    "bixse-documents": _rival("BiXSE, 960 documents x 4", "BiXSE", family=LENT, batches=DOCUMENTS),
    "sycl": _rival("SyCL, list-wise Wasserstein, 64 x 16", "SyCLWasserstein", "label_temperature=0.1", batches=GROUPED),
}

# One grid for all sides, by encoder: a transformer wants a tenth of what a bag of subwords does. Neighbours of the best
# point on the ladder are tried until it is better than all of them: no side's best stands at an edge of the grid.
TEMPERATURES = (0.03, 0.1)
GRID = {
    "static": {"learning_rate": (1e-2, 3e-2, 1e-1), "temperature": TEMPERATURES},
    "tiny": {"learning_rate": (1e-3, 2e-3, 4e-3), "temperature": TEMPERATURES},
}
_TEMPERATURES = (0.01, *TEMPERATURES, 0.3, 1.0)  # all that `opengcl train` allows
LADDER = {
    "static": {"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), "temperature": _TEMPERATURES},
    "tiny": {"learning_rate": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), "temperature": _TEMPERATURES},
}
TUNING_SHARE = 0.25  # of a cell's steps; dev queries only, seed 0
SEEDS = (0, 1, 2)
