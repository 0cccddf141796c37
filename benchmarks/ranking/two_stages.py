"""The classic two stages: a bi-encoder's top 100, re-ranked by a cross-encoder trained on the same pairs.

    python -m benchmarks.ranking.two_stages --first RUN_OR_MODEL_FOLDER [--seed 0] [--out runs/ranking/two-stages-0]
        [--recipe bce-mined ...]
    python -m benchmarks.ranking.two_stages --first FOLDER --choose

The cross-encoder reads query and title together, as two layers of BERT 384 wide: the first two of the pretrained
all-MiniLM-L6-v2, with its tokenizer and new output layers. ``--choose`` trains every recipe of `RECIPES` on the first
`PILOT_SHARE` of the training lists and writes NDCG@10 on dev queries to the side's ``tuning.json``; the default recipe
is the one that won.

OUT keeps checkpoints and the trained model, so that training resumes and re-ranking can be repeated. The cell holds
quality on test queries, where ranks 101 to 1000 are the first stage's, and the latency of a query alone, on one thread,
with the second stage and without, measured in turn in this process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from benchmarks.ranking.cell_file import METRICS, Place, write_json
from benchmarks.ranking.data import DATA, ROOT, dataset_folder
from benchmarks.ranking.untrained import DEPTH, QUERY, TITLE, Result, minilm_folder
from datasets import Dataset
from jaxtyping import Float, Int
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, LambdaLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers.utils import logging as transformers_logging

from opengcl.data import SPLITS, RankedDataset
from opengcl.data.splits import Part
from opengcl.encode import encode, encode_texts
from opengcl.evaluation import score_lists, split_means
from opengcl.metrics import relevance
from opengcl.model import BiEncoder
from opengcl.search import exact_top_k

SIDE = "cross-encoder"
CANDIDATES = 100
LAYERS = 2
MAX_TOKENS = 32
POSITIVES, NEGATIVES = 10, 5  # of a training list
PILOT_SHARE = 0.1
PILOT_QUERIES = 50  # dev queries a split
PREDICTED_AT_ONCE = 64
WARM_UP, TIMED = 20, 250  # queries


@dataclass(frozen=True)
class Recipe:
    """How the cross-encoder is trained."""

    loss: Literal["bce", "lambda"]
    """``bce``: cross-entropy of each pair against score / 100; ``lambda``: LambdaLoss, NDCGLoss2++, of each list."""
    negatives: Literal["random", "mined"]
    """Where unjudged documents with label 0 come from: all seen ones, or the first stage's top 100."""
    learning_rate: float = 2e-4
    pairs_a_step: int = 60
    """Query-document pairs in a batch; whole lists for ``lambda``."""


RECIPES = {
    "bce-mined": Recipe("bce", "mined"),
    "bce-mined-fast": Recipe("bce", "mined", learning_rate=5e-4),
    "bce-random": Recipe("bce", "random"),
    "bce-random-fast": Recipe("bce", "random", learning_rate=5e-4),
    "lambda-mined": Recipe("lambda", "mined"),
    "lambda-mined-fast": Recipe("lambda", "mined", learning_rate=5e-4),
}
"""All that was tried."""
CHOSEN = "bce-mined-fast"


class FirstStage:
    """A bi-encoder and its vectors of a data set, all made once.

    Args:
        model: As `opengcl train` saves it.
        dataset: What is searched.
        name: What it is called in results.
    """

    def __init__(self, model: BiEncoder, dataset: RankedDataset, name: str) -> None:
        self.model, self.dataset, self.name = model, dataset, name
        self._queries = encode(model, dataset.queries, "query", np.arange(len(dataset.queries)))
        self._documents = encode(model, dataset.documents, "document", np.arange(len(dataset.documents)))

    def lists(self, split: str, queries: Int[np.ndarray, " q"], depth: int) -> Int[np.ndarray, "q depth"]:
        """Document rows of the split's half, best first."""
        rows = self.dataset.splits.document_rows(split)
        return exact_top_k(self._queries[queries], self._documents, depth, rows=rows)[1]

    def vectors(self, split: str) -> Float[np.ndarray, "documents d"]:
        """Vectors of the split's half."""
        return self._documents[self.dataset.splits.document_rows(split)]


@dataclass(frozen=True)
class TrainingList:
    """A query with some documents and their labels in [0, 1]."""

    query: int
    documents: Int[np.ndarray, " documents"]
    labels: Float[np.ndarray, " documents"]


def training_lists(
    dataset: RankedDataset,
    mined: Int[np.ndarray, "queries candidates"] | None,
    *,
    seed: int,
    positives: int = POSITIVES,
    negatives: int = NEGATIVES,
) -> list[TrainingList]:
    """Every training pair once, in lists of one query, with unjudged documents beside them; in random order.

    Args:
        dataset: Its training pairs have labels score / highest possible score; unjudged documents have 0.
        mined: For each query row documents that negatives are drawn from, -1 where there is none; without it, and where
            a query has too few, they are drawn from all seen documents.
        seed: Of all draws.
        positives: Judged documents of a list at most.
        negatives: Unjudged seen documents of a list.
    """
    generator = np.random.default_rng(seed)
    seen = dataset.splits.document_rows("in_domain")
    lists = []
    for query in dataset.splits.query_rows("in_domain"):
        judged, scores = dataset.qrels.judged(int(query))
        inside = np.flatnonzero(dataset.splits.document_seen[judged])
        inside = generator.permutation(inside)
        for start in range(0, len(inside), positives):
            part = inside[start : start + positives]
            pool = seen if mined is None else mined[query]
            drawn = _unjudged(generator, pool, judged, seen, negatives)
            labels = np.concatenate([relevance(scores[part]) / dataset.schema.score_max, np.zeros(len(drawn))])
            lists.append(TrainingList(int(query), np.concatenate([judged[part], drawn]).astype(np.int64), labels))
    return [lists[place] for place in generator.permutation(len(lists))]


def _unjudged(
    generator: np.random.Generator,
    pool: Int[np.ndarray, " pool"],
    judged: Int[np.ndarray, " judged"],
    seen: Int[np.ndarray, " seen"],
    count: int,
) -> Int[np.ndarray, " drawn"]:
    """Documents of the pool that nobody judged for the query, filled up from all seen ones."""
    found = np.setdiff1d(pool[pool >= 0], judged)
    if len(found) < count:
        found = np.union1d(
            found, np.setdiff1d(generator.choice(seen, min(len(seen), 4 * count), replace=False), judged)
        )
    return generator.choice(found, min(count, len(found)), replace=False)


def mined_candidates(first: FirstStage) -> Int[np.ndarray, "queries candidates"]:
    """The first stage's top of the seen documents for each seen query; -1 for the novel queries."""
    queries = first.dataset.splits.query_rows("in_domain")
    found = first.lists("in_domain", queries, CANDIDATES)
    mined = np.full((len(first.dataset.queries), found.shape[1]), -1, dtype=np.int64)
    mined[queries] = found
    return mined


def new_cross_encoder(*, seed: int) -> CrossEncoder:
    """The first layers of all-MiniLM-L6-v2, the mean over all tokens, and two new dense layers.

    The mean, since these layers never learned to gather a pair in its first token: with BERT's usual head on that one,
    NDCG@10 on dev queries was .41 at best after 49,000 pairs (four recipes), with the mean it was .69 after 24,000.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # or it lists the layers that are left out on purpose
    try:
        bert = Transformer(str(minilm_folder()), max_seq_length=MAX_TOKENS, config_kwargs={"num_hidden_layers": LAYERS})
    finally:
        transformers_logging.set_verbosity(level)
    width = bert.get_embedding_dimension()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = Dense(width, width, activation_function=nn.GELU())
        score = Dense(width, 1, activation_function=nn.Identity(), module_output_name="scores")
    return CrossEncoder(modules=[bert, Pooling(width, "mean"), hidden, score], num_labels=1, device="cpu")


def train_cross_encoder(
    model: CrossEncoder,
    dataset: RankedDataset,
    lists: Sequence[TrainingList],
    recipe: Recipe,
    folder: Path,
    *,
    seed: int,
    save_steps: int = 500,
) -> int:
    """One pass over the lists with the library's own trainer; goes on from the newest checkpoint in ``folder``.

    Returns:
        Steps of the whole training.
    """
    pointwise = recipe.loss == "bce"
    length = POSITIVES + NEGATIVES
    loss = BinaryCrossEntropyLoss(model) if pointwise else LambdaLoss(model, mini_batch_size=recipe.pairs_a_step)
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=recipe.pairs_a_step if pointwise else max(1, recipe.pairs_a_step // length),
        learning_rate=recipe.learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=True,
        use_cpu=True,
        seed=seed,
        batch_sampler=LikeLengthBatches,
        save_steps=save_steps,
        save_total_limit=1,
        logging_steps=100,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    data = _pairs(dataset, lists) if pointwise else _lists(dataset, lists)
    trainer = CrossEncoderTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
    trainer.train(resume_from_checkpoint=_newest_checkpoint(folder))
    return int(trainer.state.global_step)


def _newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint: the trainer writes its state last."""
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda one: int(one.name.rpartition("-")[2]))) if whole else None


class LikeLengthBatches(DefaultBatchSampler):  # type: ignore[misc]
    """Batches of texts of like length, which need little padding; drawn anew each epoch, in random order."""

    sorted_together = 50  # batches

    def __iter__(self) -> Iterator[list[int]]:
        """Places in the data set, a batch at a time."""
        data: Dataset = self.sampler
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(data))
        lengths = np.array([len(text) if isinstance(text, str) else sum(map(len, text)) for text in data["document"]])
        batches: list[list[int]] = []
        block = self.batch_size * self.sorted_together
        for start in range(0, len(order), block):
            places = order[start : start + block]
            places = places[np.argsort(lengths[places], kind="stable")]
            batches += [places[at : at + self.batch_size].tolist() for at in range(0, len(places), self.batch_size)]
        return iter([batches[number] for number in generator.permutation(len(batches))])


def _pairs(dataset: RankedDataset, lists: Sequence[TrainingList]) -> Dataset:
    queries = np.repeat([one.query for one in lists], [len(one.documents) for one in lists])
    documents = np.concatenate([one.documents for one in lists])
    labels = np.concatenate([one.labels for one in lists])
    texts = {"query": _texts(dataset, QUERY, queries), "document": _texts(dataset, TITLE, documents)}
    return Dataset.from_dict({**texts, "label": labels.tolist()})


def _lists(dataset: RankedDataset, lists: Sequence[TrainingList]) -> Dataset:
    return Dataset.from_dict(
        {
            "query": _texts(dataset, QUERY, np.array([one.query for one in lists])),
            "document": [_texts(dataset, TITLE, one.documents) for one in lists],
            "label": [one.labels.tolist() for one in lists],
        }
    )


def _texts(dataset: RankedDataset, field: str, rows: Int[np.ndarray, " rows"]) -> list[str]:
    """Queries or titles; a missing one is empty."""
    records = dataset.queries if field == QUERY else dataset.documents
    return [text or "" for text in records.texts(field, rows)]


def rerank(
    model: CrossEncoder,
    dataset: RankedDataset,
    queries: Int[np.ndarray, " q"],
    rows: Int[np.ndarray, "q depth"],
    *,
    candidates: int = CANDIDATES,
) -> Int[np.ndarray, "q depth"]:
    """Lists with their first documents in the cross-encoder's order; those of equal score stay in the list's order.

    A title that a list holds several times is scored once.

    Args:
        model: The cross-encoder.
        dataset: Whose queries and titles it reads.
        queries: Rows of the queries.
        rows: Each query's document rows, best first.
        candidates: How many of a list are re-ranked; the rest stays as it is.
    """
    top = rows[:, :candidates]
    texts = _texts(dataset, QUERY, queries)
    titles = [_texts(dataset, TITLE, row) for row in top]
    distinct = [sorted(set(names)) for names in titles]
    pairs = [(text, name) for text, names in zip(texts, distinct, strict=True) for name in names]
    scores = iter(np.split(_score(model, pairs), np.cumsum([len(names) for names in distinct])[:-1]))
    ranked = rows.copy()
    for number, names in enumerate(distinct):
        of = dict(zip(names, next(scores).tolist(), strict=True))
        order = np.argsort([-of[name] for name in titles[number]], kind="stable")
        ranked[number, : len(order)] = top[number, order]
    return ranked


def _score(model: CrossEncoder, pairs: Sequence[tuple[str, str]]) -> Float[np.ndarray, " pairs"]:
    """Logits: a sigmoid would round the highest to equal scores."""
    return np.asarray(
        model.predict(list(pairs), batch_size=PREDICTED_AT_ONCE, activation_fn=nn.Identity(), show_progress_bar=False),
        dtype=np.float32,
    )


def two_stage_table(
    first: FirstStage,
    model: CrossEncoder | None,
    part: Part,
    *,
    limit: int | None = None,
    metrics: tuple[str, ...] = METRICS,
    block: int = 64,
) -> pa.Table:
    """The per-query table over all splits; without a cross-encoder that of the first stage alone.

    Args:
        first: The first stage.
        model: The second.
        part: Of the queries.
        limit: So many queries a split at most, drawn with a fixed seed.
        metrics: Names as in `opengcl.metrics`.
        block: Queries re-ranked at a time.
    """
    tables = []
    for split in SPLITS:
        queries = first.dataset.splits.query_rows(split, part)
        if limit is not None and len(queries) > limit:
            queries = np.sort(np.random.default_rng(0).choice(queries, limit, replace=False))
        if not len(queries):
            continue
        rows = first.lists(split, queries, DEPTH)
        for start in range(0, len(queries) if model else 0, block):
            some = slice(start, start + block)
            rows[some] = rerank(model, first.dataset, queries[some], rows[some])
        tables.append(score_lists(first.dataset, split, queries, rows, metrics))
    return pa.concat_tables(tables)


def dev_quality(first: FirstStage, model: CrossEncoder | None, *, limit: int | None = PILOT_QUERIES) -> float:
    """NDCG@10 on dev queries, the mean over the splits."""
    means = split_means(two_stage_table(first, model, "dev", limit=limit, metrics=("ndcg@10",)))
    return float(np.mean([row["ndcg@10"] for row in means.values()]))


def latency(
    first: FirstStage, model: CrossEncoder, split: str, queries: Int[np.ndarray, " q"], *, warm_up: int
) -> dict[str, Any]:
    """Milliseconds from a query's text to its ranked documents, one query at a time.

    Single stage: encode the query, exact search over the split's vectors. Two stages: the same, then score the top 100
    titles, which lie in memory. Each query is timed both ways in turn, the first to go alternating, so that what else
    the machine does burdens both alike.

    Args:
        first: The first stage.
        model: The second.
        split: Whose documents are searched.
        queries: Rows of the queries; the first ``warm_up`` are not counted.
        warm_up: Fewer than there are queries.

    Raises:
        ValueError: No query is left to count.
    """
    if warm_up >= len(queries):
        raise ValueError(f"{len(queries)} queries to time, {warm_up} of them to warm up; at least one more is needed")
    vectors = first.vectors(split)
    titles = _texts(first.dataset, TITLE, first.dataset.splits.document_rows(split))

    def single(text: str) -> Int[np.ndarray, " found"]:
        return exact_top_k(encode_texts(first.model, [text]), vectors, CANDIDATES)[1][0]

    def both(text: str) -> Int[np.ndarray, " found"]:
        found = single(text)
        return found[np.argsort(-_score(model, [(text, titles[row]) for row in found]), kind="stable")]

    times: dict[Any, list[float]] = {single: [], both: []}
    for number, text in enumerate(_texts(first.dataset, QUERY, queries)):
        for search in (single, both) if number % 2 else (both, single):
            started = time.perf_counter()
            search(text)
            times[search].append(1000 * (time.perf_counter() - started))
    kept = {search: np.array(values[warm_up:]) for search, values in times.items()}
    medians = {search: float(np.median(values)) for search, values in kept.items()}
    return {
        "single_ms": {"p50": medians[single], "p99": float(np.percentile(kept[single], 99))},
        "two_stage_ms": {"p50": medians[both], "p99": float(np.percentile(kept[both], 99))},
        "ratio": medians[both] / medians[single],
        "queries": len(queries) - warm_up,
        "documents": len(vectors),
    }


def trained_model(
    first: FirstStage, recipe: Recipe, folder: Path, *, seed: int, share: float = 1.0
) -> tuple[CrossEncoder, dict[str, Any]]:
    """The cross-encoder in ``folder/model``, trained first where it is not there yet.

    Returns:
        The model, and of its training ``steps``, ``pairs``, ``seconds`` (wall) and ``cpu_seconds``; a training that was
        cut off counts its last part only.

    Raises:
        ValueError: The folder holds a model that was trained otherwise.
    """
    asked = {"first": first.name, "data": first.dataset.fingerprint, "seed": seed, "share": share, **asdict(recipe)}
    saved, told, begun = folder / "model", folder / "training.json", folder / "asked.json"
    if begun.is_file() and (found := json.loads(begun.read_text(encoding="utf-8"))) != asked:
        raise ValueError(f"{folder} was begun with {found}; asked for now: {asked}; choose another folder")
    if not told.is_file():
        write_json(begun, asked)
        model = new_cross_encoder(seed=seed)
        mined = mined_candidates(first) if recipe.negatives == "mined" else None
        lists = training_lists(first.dataset, mined, seed=seed)
        lists = lists[: round(share * len(lists))]
        started, cpu = time.perf_counter(), time.process_time()
        steps = train_cross_encoder(model, first.dataset, lists, recipe, folder / "checkpoints", seed=seed)
        measured = {
            "steps": steps,
            "pairs": sum(len(one.documents) for one in lists),
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        model.save_pretrained(str(saved), create_model_card=False)
        write_json(told, measured)
    return CrossEncoder(str(saved), device="cpu"), json.loads(told.read_text(encoding="utf-8"))


def choose(first: FirstStage, out: Path, *, seed: int) -> dict[str, Any]:
    """NDCG@10 of every recipe on some dev queries after a pilot training, and of the first stage alone.

    Returns:
        ``chosen``, ``criterion``, ``share`` of the training lists, ``first_stage`` and the ``grid``.
    """
    tried = []
    for name, recipe in RECIPES.items():
        model, measured = trained_model(first, recipe, out / f"pilot-{name}", seed=seed, share=PILOT_SHARE)
        tried.append({"recipe": name, **asdict(recipe), "ndcg@10": dev_quality(first, model), **measured})
        print(tried[-1], flush=True)
    return {
        "chosen": {"recipe": max(tried, key=lambda row: row["ndcg@10"])["recipe"]},
        "criterion": f"mean dev ndcg@10, {PILOT_QUERIES} queries a split",
        "share": PILOT_SHARE,
        "first": first.name,
        "first_stage": dev_quality(first, None),
        "grid": tried,
    }


def two_stages(first: FirstStage, recipe: str, out: Path, *, seed: int) -> Result:
    """Train or open the cross-encoder, time both ways, re-rank all test queries.

    Args:
        first: The first stage.
        recipe: Of `RECIPES`.
        out: Folder of checkpoints and model.
        seed: Of the training and of the queries that are timed.
    """
    model, training = trained_model(first, RECIPES[recipe], out, seed=seed)
    dev = {"first_stage": dev_quality(first, None), "two_stages": dev_quality(first, model)}
    print(training, dev, flush=True)
    queries = first.dataset.splits.query_rows("in_domain", "test")
    timed = latency(
        first, model, "in_domain", np.random.default_rng(seed).permutation(queries)[: WARM_UP + TIMED], warm_up=WARM_UP
    )
    print(timed, flush=True)
    started, cpu = time.perf_counter(), time.process_time()
    table = two_stage_table(first, model, "test")
    settings = {
        "first": first.name,
        "candidates": CANDIDATES,
        "recipe": recipe,
        **asdict(RECIPES[recipe]),
        "layers": LAYERS,
        "max_tokens": MAX_TOKENS,
        "list": {"positives": POSITIVES, "negatives": NEGATIVES},
        "training": training,
        "reranking_seconds": round(time.perf_counter() - started, 1),
        "reranking_cpu_seconds": round(time.process_time() - cpu, 1),
        f"dev ndcg@10, {PILOT_QUERIES} queries a split": dev,
    }
    measured = {"steps": training["steps"], "training_seconds": training["seconds"], "latency": timed}
    return Result(SIDE, "CLIP's top 100 re-ranked by a cross-encoder", seed, settings, table, measured)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=Path, required=True, help="run or model folder of the first stage")
    parser.add_argument("--data", choices=DATA, default="fashion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", choices=RECIPES, default=CHOSEN)
    parser.add_argument("--choose", action="store_true", help="train every recipe a little and compare them on dev")
    parser.add_argument("--out", type=Path, help="checkpoints and model; default runs/ranking/two-stages-SEED")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = asked.out or ROOT / "runs" / "ranking" / f"two-stages-{asked.seed}"
    folder = asked.first.resolve()
    name = str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else folder.name
    first = FirstStage(BiEncoder.load(folder, device="cpu"), RankedDataset.open(dataset_folder(asked.data)), name)
    if asked.choose:
        write_json(Place(asked.data, TITLE, SIDE).tuning, choose(first, out, seed=asked.seed))
        return
    result = two_stages(first, asked.recipe, out, seed=asked.seed)
    result.write(asked.data)
    print(result)


if __name__ == "__main__":
    main()
