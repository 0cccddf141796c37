"""The sentence-transformers drop-ins: against its own loss and evaluator, in its own trainer, over two processes."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from datasets import Dataset
from PIL import Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizerFast

import opengcl.weights
from opengcl import BiEncoder, RankedDataset, evaluate, metrics
from opengcl.data import Schema, write_dataset
from opengcl.loss import gcl_loss
from opengcl.model import FieldMix
from opengcl.sbert import GCLLoss, GradedRetrievalEvaluator, RankedPairs
from opengcl.weights import weight_function

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 230), "white": (240, 240, 240)}
THINGS = ("shirt", "shoe", "hat")


def save_clip(folder: Path, dropout: float = 0.0) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=tower | ends | {"vocab_size": len(tokens), "attention_dropout": dropout},
        vision_config=tower | {"image_size": 16, "patch_size": 8, "attention_dropout": dropout},
        projection_dim=16,
    )
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(image_processor=images, tokenizer=CLIPTokenizerFast(vocab=vocabulary, merges=[])).save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture
def clip(clip_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(clip_folder), device="cpu")


@pytest.fixture(scope="module")
def dropout_clip(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tmp_path_factory.mktemp("dropout")
    save_clip(folder, dropout=0.5)
    return SentenceTransformer(str(folder), device="cpu").double().train()


def bag_of_words(dimensions: int = 16, seed: int = 0) -> SentenceTransformer:
    words = [*COLOURS, *THINGS, *(f"w{number}" for number in range(60)), "[UNK]"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(seed)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=dimensions)], device="cpu")


def picture(colour: str) -> Image.Image:
    return Image.fromarray(np.full((16, 16, 3), COLOURS[colour], dtype=np.uint8))


def shop_rows() -> dict[str, list[Any]]:
    """Every colour searched for; documents of that colour score 100, 70, 40, the next colour's first one 10."""
    rows: dict[str, list[Any]] = {"query": [], "title": [], "image": [], "score": []}
    colours = list(COLOURS)
    for place, colour in enumerate(colours):
        found = [(colour, thing, 100.0 - 30 * rank) for rank, thing in enumerate(THINGS)]
        for shown, thing, score in [*found, (colours[place - 1], THINGS[0], 10.0)]:
            rows["query"].append(colour)
            rows["title"].append(f"{shown} {thing}")
            rows["image"].append(picture(shown))
            rows["score"].append(score)
    return rows


def features(model: SentenceTransformer, *columns: list[Any]) -> list[dict[str, torch.Tensor]]:
    """What the trainer's collator makes of columns; float64 where the model is."""
    kind = next(model.parameters()).dtype
    made = [model.preprocess(column) for column in columns]
    return [{k: v.to(kind) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in m.items()} for m in made]


def gradients(model: torch.nn.Module) -> torch.Tensor:
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return flat


QUERIES = ["red shoe", "blue hat", "white shirt", "red shoe", "green hat"]
TITLES = ["red shoe w1", "blue hat w2", "white shirt", "red hat w3 w4", "green hat"]
SCORES = torch.tensor([100.0, 35.0, 70.0, 1.0, 55.0])


# --- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_constant_weights_are_the_symmetric_ranking_loss(temperature: float) -> None:
    model = bag_of_words()
    with pytest.warns(DeprecationWarning, match="MultipleNegativesSymmetricRankingLoss"):
        peer = MultipleNegativesSymmetricRankingLoss(model, scale=1 / temperature)
    expected = peer(features(model, QUERIES, TITLES), None)
    loss = GCLLoss(model, weights="constant", temperature=temperature)
    found = loss(features(model, QUERIES, TITLES), SCORES)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    one_way = GCLLoss(model, weights="constant", temperature=temperature, direction="query")
    peer = MultipleNegativesRankingLoss(model, scale=1 / temperature)
    expected = peer(features(model, QUERIES, TITLES), None)
    torch.testing.assert_close(one_way(features(model, QUERIES, TITLES), SCORES), expected, rtol=1e-6, atol=0)


def test_fields_scores_and_weights_follow_the_formula() -> None:
    model = bag_of_words().double()
    shares = {"title": 3.0, "brand": 1.0}
    brands = ["w9", "w8", "w7", "w6", "w5"]
    loss = GCLLoss(model, weights="linear", score_range=(0.0, 200.0), temperature=0.2, fields=shares)
    found = loss(features(model, QUERIES, TITLES, brands), SCORES)
    query, title, brand = (
        F.normalize(torch.from_numpy(model.encode(column, convert_to_tensor=False)), dim=1)
        for column in (QUERIES, TITLES, brands)
    )
    similar = query @ F.normalize(0.75 * title + 0.25 * brand, dim=1).T / 0.2
    weight = [(1 + 99 * score / 200) / 100 for score in SCORES.tolist()]
    by_query = sum(w * (similar[i].logsumexp(0) - similar[i, i]) for i, w in enumerate(weight)) / sum(weight)
    by_document = sum(w * (similar[:, i].logsumexp(0) - similar[i, i]) for i, w in enumerate(weight)) / sum(weight)
    torch.testing.assert_close(found, (by_query + by_document) / 2)


# Row 1 and row 3 are one query, rows 0 and 2 one document; (q0, d1) is judged but is no row of the batch.
KNOWN = RankedPairs(
    ["a", "b", "c", "b", "d", "a", "e"], ["x", "y", "x", "z", "w", "y", "v"], [100.0, 35, 70, 1, 55, 20, 99]
)
MATRIX = torch.tensor(  # scores of rows 0..4, by hand; nan = not judged
    [
        [100.0, 20.0, 100.0, torch.nan, torch.nan],
        [torch.nan, 35.0, torch.nan, 1.0, torch.nan],
        [70.0, torch.nan, 70.0, torch.nan, torch.nan],
        [torch.nan, 35.0, torch.nan, 1.0, torch.nan],
        [torch.nan, torch.nan, torch.nan, torch.nan, 55.0],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("target", ["masked", "full", "full_row"])
def test_targets_use_every_judged_pair_of_the_batch(target: Any) -> None:
    model = bag_of_words().double()
    loss = GCLLoss(model, weights="exponential", target=target, judged=KNOWN)
    found = loss(features(model, QUERIES, TITLES), torch.from_numpy(KNOWN.labels[:5]))
    judged = ~MATRIX.isnan()
    weight = torch.from_numpy(weight_function("exponential")(MATRIX[judged].numpy()))
    matrix = torch.sparse_coo_tensor(judged.nonzero().T, weight, (5, 5), check_invariants=True)
    query, title = (
        F.normalize(torch.from_numpy(model.encode(column, convert_to_tensor=False)), dim=1)
        for column in (QUERIES, TITLES)
    )
    torch.testing.assert_close(found, gcl_loss(query, title, matrix, 1 / 0.07, target=target))
    diagonal = GCLLoss(model)(features(model, QUERIES, TITLES), SCORES)
    assert not torch.isclose(found, diagonal, rtol=1e-3)
    labelled = GCLLoss(model, judged=KNOWN)(features(model, QUERIES, TITLES), torch.from_numpy(KNOWN.labels[:5]))
    torch.testing.assert_close(labelled, diagonal)


def test_ranked_pairs_find_what_loops_find() -> None:
    generator = np.random.default_rng(0)
    judged = {(int(q), int(d)): float(s) for q, d, s in generator.integers(0, 12, (60, 3))}
    pairs = RankedPairs([q for q, _ in judged], [f"d{d}" for _, d in judged], list(judged.values()))
    number = {key: pairs.labels[i, 1:].astype(int) for i, key in enumerate(judged)}
    rows = generator.choice(len(judged), 30)  # with repetition
    batch = [list(judged)[row] for row in rows]
    queries, documents = (np.array([number[key][side] for key in batch]) for side in (0, 1))
    found = {
        (i, j): pairs.scores[p]
        for i, j, p in zip(*map(np.ndarray.tolist, pairs.between(queries, documents)), strict=True)
    }
    expected = {
        (i, j): judged[q, d] for i, (q, _) in enumerate(batch) for j, (_, d) in enumerate(batch) if (q, d) in judged
    }
    assert found == expected
    assert len(pairs.between(queries, documents)[0]) == len(expected)


def test_ranked_pairs_refuse_two_scores_and_keep_repeats() -> None:
    with pytest.raises(ValueError, match=r"'q' and document 'd' have two scores, 3.0 and 4.0 \(pairs 0 and 2\)"):
        RankedPairs(["q", "q", "q"], ["d", "e", "d"], [3, 1, 4])
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        RankedPairs(["q"], ["d", "e"], [3])
    assert RankedPairs(["q", "q"], ["d", "d"], [3, 3]).scores.tolist() == [3.0]


@pytest.mark.parametrize("target", ["diagonal", "full_row"])
def test_cached_gradients_are_the_plain_ones(clip: SentenceTransformer, target: Any) -> None:
    model = clip.double().eval()
    rows = shop_rows()
    pairs = RankedPairs(rows["query"], rows["title"], rows["score"])
    shares = {"title": 0.1, "image": 0.9}
    plain = GCLLoss(model, target=target, judged=pairs, fields=shares)
    cached = GCLLoss(model, target=target, judged=pairs, fields=shares, mini_batch_size=3)
    labels, columns = torch.from_numpy(pairs.labels), [rows[name] for name in ("query", "title", "image")]
    first = plain(features(model, *columns), labels)
    (2.0 * first).backward()  # a factor, as gradient accumulation has
    expected = gradients(model)
    second = cached(features(model, *columns), labels)
    (2.0 * second).backward()
    torch.testing.assert_close(second, first)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(gradients(model), expected, rtol=1e-6, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(cached(features(model, *columns), labels), first)


def test_cached_gradients_see_the_dropout_of_the_forward_pass(dropout_clip: SentenceTransformer) -> None:
    model = dropout_clip
    images = [picture(colour) for colour in COLOURS]
    scores = torch.tensor([100.0, 20, 60, 80])
    loss = GCLLoss(model, mini_batch_size=2)
    torch.manual_seed(1)
    # The same mini-batches in the same order, with their graphs alive.
    columns = [
        torch.cat([model(features(model, part[:2])[0])["sentence_embedding"] for part in (column[:2], column[2:])])
        for column in (list(COLOURS), images)
    ]
    query, document = (F.normalize(column, dim=1) for column in columns)
    weight = torch.from_numpy(weight_function("exponential")(scores.double().numpy()))
    expected_loss = gcl_loss(query, document, weight, 1 / 0.07)
    expected_loss.backward()
    expected = gradients(model)
    torch.manual_seed(1)
    found = loss(features(model, list(COLOURS), images), scores)
    torch.rand(5)  # whatever happens between forward and backward
    found.backward()
    torch.testing.assert_close(found.detach(), expected_loss.detach())
    torch.testing.assert_close(gradients(model), expected, rtol=1e-6, atol=1e-10)
    torch.manual_seed(2)
    other = loss(features(model, list(COLOURS), images), scores)
    assert not torch.isclose(found.detach(), other.detach(), rtol=1e-6)  # dropout is on


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_inside_matryoshka_loss(clip: SentenceTransformer, mini_batch_size: int | None) -> None:
    model = clip.double().eval()
    inner = GCLLoss(model, mini_batch_size=mini_batch_size)
    loss = MatryoshkaLoss(model, inner, [16, 4])
    found = loss(features(model, QUERIES, TITLES), SCORES)
    with torch.no_grad():
        whole = [model(column)["sentence_embedding"] for column in features(model, QUERIES, TITLES)]
        expected = sum(
            GCLLoss(model).calculate_loss([[column[:, :width]] for column in whole], SCORES) for width in (16, 4)
        )
    torch.testing.assert_close(found.detach(), expected)
    found.backward()
    assert gradients(model).abs().max() > 0


def gathering_loss(model: SentenceTransformer, mini_batch_size: int | None) -> GCLLoss:
    return GCLLoss(model, target="full_row", judged=KNOWN, mini_batch_size=mini_batch_size, gather_across_devices=True)


def run_rank(rank: int, folder: str) -> None:
    """Two rows of the batch of four on each rank, plain and cached; then a batch that does not divide."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    labels = torch.from_numpy(KNOWN.labels)
    for mini_batch_size in (None, 1):
        model = SentenceTransformer(f"{folder}/clip", device="cpu").double().eval()
        loss = gathering_loss(model, mini_batch_size)
        # As the trainer does: the wrapped model goes into the loss. The image tower has no part in this batch.
        loss.model = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        own = slice(2 * rank, 2 * rank + 2)
        value = loss(features(model, QUERIES[own], TITLES[own]), labels[own])
        value.backward()
        torch.save((value.detach(), gradients(model)), f"{folder}/rank{rank}-{mini_batch_size}.pt")
    own = slice(0, 3) if rank == 0 else slice(3, 5)
    model = bag_of_words()
    with pytest.raises(ValueError, match="the ranks hold 3, 2 rows"):
        gathering_loss(model, None)(features(model, QUERIES[own], TITLES[own]), labels[own])
    dist.barrier()
    # No teardown: torch 2.13 may deadlock when the last owner of a gloo group goes, because it joins, with the
    # interpreter's lock held, a thread that needs this lock to free a finished gather's tensors.
    os._exit(0)


def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path, clip: SentenceTransformer) -> None:
    clip.save(str(tmp_path / "clip"))
    torch.multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    model = clip.double().eval()
    expected = gathering_loss(model, None)(features(model, QUERIES[:4], TITLES[:4]), torch.from_numpy(KNOWN.labels[:4]))
    expected.backward()
    gradient = gradients(model)
    for rank in range(2):
        for mini_batch_size in (None, 1):
            value, found = torch.load(tmp_path / f"rank{rank}-{mini_batch_size}.pt", weights_only=True)
            torch.testing.assert_close(value, expected.detach())
            torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-10)


def test_wrong_options_are_refused() -> None:
    model = bag_of_words()
    with pytest.raises(ValueError, match=r"needs the judged pairs off the diagonal.*RankedPairs"):
        GCLLoss(model, target="full_row")
    with pytest.raises(ValueError, match=r"target 'row' is unknown; use one of diagonal, masked"):
        GCLLoss(model, target="row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"direction 'left' is unknown"):
        GCLLoss(model, direction="left")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"temperature is 0"):
        GCLLoss(model, temperature=0)
    with pytest.raises(ValueError, match=r"score_range is \(5, 5\)"):
        GCLLoss(model, score_range=(5, 5))
    with pytest.raises(ValueError, match=r"'linea' is unknown"):
        GCLLoss(model, weights="linea")
    with pytest.raises(ValueError, match=r"StaticEmbedding"):
        GCLLoss(model, mini_batch_size=4)
    with pytest.raises(ValueError, match=r"mini_batch_size is 0"):
        GCLLoss(model, mini_batch_size=0)
    with pytest.raises(ValueError, match=r"judged pair 1 has score 7.0; score_range is \[1, 5\]"):
        GCLLoss(model, score_range=(1, 5), judged=RankedPairs(["q", "q"], ["d", "e"], [5.0, 7.0]))


def test_wrong_batches_are_refused() -> None:
    model = bag_of_words()
    loss = GCLLoss(model)
    two = features(model, QUERIES, TITLES)
    with pytest.raises(ValueError, match=r"needs a ranking score a row"):
        loss(two, None)
    with pytest.raises(ValueError, match=r"row 2 has score nan"):
        loss(two, torch.tensor([1.0, 2, torch.nan, 4, 5]))
    with pytest.raises(ValueError, match=r"row 4 has score 101"):
        loss(two, torch.tensor([1, 2, 3, 4, 101]))
    with pytest.raises(ValueError, match=r"shape \(5, 2\); allowed for 5 rows: \(5,\) or \(5, 3\)"):
        loss(two, torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"query column and at least one document column.*got 1 column"):
        loss(two[:1], SCORES)
    with pytest.raises(ValueError, match=r"2 \(title, image\) document column"):
        GCLLoss(model, fields={"title": 1, "image": 9})(two, SCORES)
    full = GCLLoss(model, target="full", judged=KNOWN)
    with pytest.raises(ValueError, match=r"'full' needs RankedPairs.labels as the score"):
        full(two, SCORES)
    wrong = torch.from_numpy(KNOWN.labels[:5].copy())
    wrong[3, 2] = 0  # query b is not judged for document x
    with pytest.raises(ValueError, match=r"row 3 of the batch is .*\[1.0, 0.0\], which is no pair"):
        full(two, wrong)
    wrong[3, 2] = 40
    with pytest.raises(ValueError, match=r"row 3 of the batch is .*\[1.0, 40.0\], which is no pair"):
        full(two, wrong)


def test_scores_at_the_ends_of_a_range_survive_float32() -> None:
    model = bag_of_words()
    loss = GCLLoss(model, score_range=(0.7, 0.9))  # float32 0.7 is below 0.7, float32 0.9 may be above 0.9
    loss(features(model, QUERIES, TITLES), torch.tensor([0.7, 0.9, 0.8, 0.7, 0.9]))


# --- in the trainer -------------------------------------------------------------------------------------------------


def arguments(folder: Path, **options: Any) -> SentenceTransformerTrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return SentenceTransformerTrainingArguments(**settings | options)


@pytest.mark.parametrize("target", ["diagonal", "full_row"])
def test_a_training_run_with_titles_and_images(clip: SentenceTransformer, tmp_path: Path, target: Any) -> None:
    rows = shop_rows()
    pairs = RankedPairs(rows["query"], rows["title"], rows["score"])
    data = Dataset.from_dict(rows)
    if target != "diagonal":
        data = data.remove_columns("score").add_column("score", list(pairs.labels))
    qrels: dict[str, dict[str, float]] = {}
    for query, title, score in zip(rows["query"], rows["title"], rows["score"], strict=True):
        qrels.setdefault(query, {})[title] = score
    evaluator = GradedRetrievalEvaluator(
        {query: query for query in qrels},
        {title: {"title": title, "image": image} for title, image in zip(rows["title"], rows["image"], strict=True)},
        qrels,
        name="shop",
        metrics=("ndcg@10", "mrr"),
    )
    loss = GCLLoss(
        clip,
        target=target,
        judged=pairs,
        fields={"title": 0.5, "image": 0.5},
        mini_batch_size=3 if target == "full_row" else None,
    )
    before = evaluator(clip)
    trainer = SentenceTransformerTrainer(
        model=clip,
        args=arguments(
            tmp_path,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="eval_shop_ndcg@10",
            save_total_limit=1,
        ),
        train_dataset=data,
        eval_dataset=data,
        loss=loss,
        evaluator=evaluator,
    )
    start = trainer.evaluate()
    trainer.train()
    end = trainer.evaluate()
    assert end["eval_loss"] < 0.8 * start["eval_loss"]
    assert start["eval_shop_ndcg@10"] == before["shop_ndcg@10"]
    assert end["eval_shop_ndcg@10"] > before["shop_ndcg@10"] + 0.05
    with (tmp_path / "eval" / "Graded-Retrieval_evaluation_shop_results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 14
    assert float(lines[-1]["ndcg@10"]) == end["eval_shop_ndcg@10"]
    clip.save(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "GCLLoss" in card
    assert "zhu2024generalized" in card
    assert re.search(r"Graded Retrieval\n\n\* Dataset: `shop`", card)
    assert f'"target": "{target}"' in card


# --- the evaluator --------------------------------------------------------------------------------------------------


@pytest.fixture
def texts() -> tuple[dict[str, str], dict[str, str]]:
    generator = np.random.default_rng(3)
    documents = {f"d{i:03}": " ".join(f"w{w}" for w in generator.integers(0, 60, 6)) for i in range(150)}
    queries = {f"q{i}": " ".join(f"w{w}" for w in generator.integers(0, 60, 3)) for i in range(20)}
    return queries, documents


def test_binary_relevance_gives_the_numbers_of_the_peer(texts: tuple[dict[str, str], dict[str, str]]) -> None:
    queries, documents = texts
    model = bag_of_words()
    generator = np.random.default_rng(4)
    names = np.array(list(documents))
    relevant = {q: set(generator.choice(names, generator.integers(1, 15), replace=False).tolist()) for q in queries}
    peer = InformationRetrievalEvaluator(queries, documents, relevant, precision_recall_at_k=[10, 100], write_csv=False)
    expected = peer(model)
    qrels = {query: dict.fromkeys(found, 1.0) for query, found in relevant.items()}
    wanted = ("ndcg@10", "mrr@10", "recall@10", "recall@100", "precision@10")
    found = GradedRetrievalEvaluator(queries, documents, qrels, metrics=wanted)(model)
    assert 0.01 < found["ndcg@10"] < 0.9
    for metric in wanted:
        assert found[metric] == pytest.approx(expected[f"cosine_{metric}"], abs=1e-12), metric


def test_graded_relevance_against_a_loop(texts: tuple[dict[str, str], dict[str, str]]) -> None:
    queries, documents = texts
    model = bag_of_words()
    generator = np.random.default_rng(5)
    names = list(documents)
    qrels = {q: {names[d]: float(generator.uniform(0, 9)) for d in generator.choice(150, 12)} for q in queries}
    qrels["q3"] = {"d001": 0.0}  # judged, nothing relevant: counts as 0
    del qrels["q4"]  # not judged: leaves the mean
    qrels["q5"] = {}
    evaluator = GradedRetrievalEvaluator(queries, documents, qrels, k=100)
    found = evaluator(model)
    per_query = []
    for query in (query for query, judged in qrels.items() if judged):
        score = model.similarity(model.encode([queries[query]]), model.encode(list(documents.values())))[0]
        order = sorted(range(150), key=lambda d, score=score: -float(score[d]))[:100]
        retrieved = np.array([[qrels[query].get(names[d], 0.0) for d in order]])
        judged = np.array([list(qrels[query].values())])
        values = metrics.compute(metrics.DEFAULT_METRICS, retrieved, judged)
        per_query.append([float(value[0]) for value in values.values()])
    expected = dict(zip(metrics.DEFAULT_METRICS, np.mean(per_query, axis=0), strict=True))
    assert len(evaluator.query_ids) == 18
    assert found == pytest.approx(expected, abs=1e-12)
    assert evaluator.primary_metric == "ndcg@10"


def test_fields_fuse_over_what_a_document_has() -> None:
    model = bag_of_words()
    corpus: dict[str, Any] = {
        "both": {"title": "red shirt", "brand": "w1"},
        "title": {"title": "w2", "brand": None},
        "brand": {"title": " ", "brand": "w1"},
    }
    evaluator = GradedRetrievalEvaluator({"q": "w1"}, corpus, {"q": {"both": 1.0}}, fields={"brand": 3, "title": 1})
    unit = {
        text: F.normalize(model.encode([text], convert_to_tensor=True), dim=1)[0] for text in ("red shirt", "w1", "w2")
    }
    expected = torch.stack([F.normalize(0.25 * unit["red shirt"] + 0.75 * unit["w1"], dim=0), unit["w2"], unit["w1"]])
    torch.testing.assert_close(evaluator._encode_corpus(model), expected)
    assert evaluator(model)["mrr"] == 0.5  # "brand" is the query's very words, "both" comes second


def test_missing_fields_are_filled_in_as_evaluate_does(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = ["red", "shirt", "w1", "w2"]
    documents: dict[str, Any] = {
        f"d{row}": {
            "title": " ".join(generator.choice(words, 3)),
            "brand": None if row % 5 == 0 else str(generator.choice(words)),
        }
        for row in range(80)
    }
    queries = {f"q{row}": " ".join(generator.choice(words, 2)) for row in range(6)}
    qrels = {
        query: {str(one): float(generator.integers(1, 4)) for one in generator.choice(list(documents), 20, False)}
        for query in queries
    }
    seen = {"split": ["seen"] * len(documents)}
    write_dataset(
        tmp_path / "data",
        Schema("words", {"query": "text"}, {"title": "text", "brand": "text"}, 0.0, 3.0),
        pa.table({"query_id": list(queries), "query": list(queries.values()), "split": ["seen"] * 6}),
        pa.table(
            {"doc_id": list(documents), **{f: [d[f] for d in documents.values()] for f in ("title", "brand")}, **seen}
        ),
        pa.table(
            {
                name: [
                    pair[place] for query, judged in qrels.items() for pair in ((query, *one) for one in judged.items())
                ]
                for place, name in enumerate(("query_id", "doc_id", "score"))
            }
        ),
    )
    dataset = RankedDataset.open(tmp_path / "data", cache_dir=tmp_path / "cache", progress=False)
    encoder = bag_of_words()
    found = {}
    for missing in ("fill_in", "leave_out"):
        mix = FieldMix.choose(encoder, dataset.schema)
        model = BiEncoder(encoder, mix, missing_fields=missing)  # type: ignore[arg-type]
        expected = evaluate(model, dataset, part="all", metrics=["ndcg@10"], depth=80).splits()["in_domain"]["ndcg@10"]
        one = GradedRetrievalEvaluator(queries, documents, qrels, metrics=["ndcg@10"], k=80, missing_fields=missing)  # type: ignore[arg-type]
        found[missing] = one(encoder)["ndcg@10"]
        assert found[missing] == pytest.approx(expected, abs=1e-9)
    assert abs(found["fill_in"] - found["leave_out"]) > 1e-3
    with pytest.raises(ValueError, match="missing_fields: found 'drop'; allowed: fill_in, leave_out"):
        GradedRetrievalEvaluator(queries, documents, qrels, missing_fields="drop")  # type: ignore[arg-type]


def test_images_on_both_sides(clip: SentenceTransformer) -> None:
    queries = {colour: picture(colour) for colour in COLOURS}
    corpus = {f"{colour} picture": picture(colour) for colour in reversed(COLOURS)}
    qrels = {colour: {f"{colour} picture": 2.5} for colour in COLOURS}
    found = GradedRetrievalEvaluator(queries, corpus, qrels, metrics=["mrr"], name="pictures")(clip)
    assert found == {"pictures_mrr": 1.0}


def test_prompts_reach_the_texts() -> None:
    model = bag_of_words()
    queries, corpus = {"q": "w1"}, {"a": "w1", "b": "w1 w2 w2 w2"}
    plain = GradedRetrievalEvaluator(queries, corpus, {"q": {"b": 1.0}}, metrics=["mrr"])
    prompted = GradedRetrievalEvaluator(queries, corpus, {"q": {"b": 1.0}}, metrics=["mrr"], query_prompt="w2 w2 w2 ")
    assert plain(model) == {"mrr": 0.5}
    assert prompted(model) == {"mrr": 1.0}


def test_wrong_judgments_are_refused() -> None:
    queries, corpus = {"q": "w1"}, {"d": "w1", "e": "w2"}
    with pytest.raises(ValueError, match=r"2 id\(s\) that queries lacks: 'r', 's'"):
        GradedRetrievalEvaluator(queries, corpus, {"s": {"d": 1.0}, "r": {"d": 1.0}})
    with pytest.raises(ValueError, match=r"7 id\(s\) that corpus lacks: 'x0', 'x1', 'x2', 'x3', 'x4', \.\.\."):
        GradedRetrievalEvaluator(queries, corpus, {"q": {f"x{i}": 1.0 for i in range(7)}})
    for wrong in (float("nan"), float("inf"), "high", None):
        with pytest.raises(ValueError, match=r"document 'e' for query 'q' is"):
            GradedRetrievalEvaluator(queries, corpus, {"q": {"d": 1.0, "e": wrong}})
    with pytest.raises(ValueError, match=r"no judgment"):
        GradedRetrievalEvaluator(queries, corpus, {"q": {}})
    with pytest.raises(ValueError, match=r"recall@100 looks at 100 ranks, but k is 50"):
        GradedRetrievalEvaluator(queries, corpus, {"q": {"d": 1.0}}, k=50)
    with pytest.raises(ValueError, match=r"unknown metric 'accuracy'"):
        GradedRetrievalEvaluator(queries, corpus, {"q": {"d": 1.0}}, metrics=["accuracy"])
    with pytest.raises(ValueError, match=r"document 'e' has no field with a value"):
        GradedRetrievalEvaluator(queries, {"d": "w1", "e": ""}, {"q": {"d": 1.0}})
    with pytest.raises(ValueError, match=r"document 'd' has field 'titel'; fields names title"):
        GradedRetrievalEvaluator(queries, {"d": {"titel": "w1"}}, {"q": {"d": 1.0}}, fields={"title": 1.0})


def test_sets_and_the_arguments_of_the_binary_evaluator_are_understood() -> None:
    """The same arguments go to both, and where they mean the same they give the same."""
    words = [f"w{i} w{i + 1}" for i in range(12)]
    given = {
        "queries": {f"q{i}": f"w{i}" for i in range(6)},
        "corpus": {f"d{i}": text for i, text in enumerate(words)},
        "relevant_docs": {**{f"q{i}": {f"d{i}", f"d{(3 * i) % 12}"} for i in range(5)}, "q5": set()},
        "ndcg_at_k": [3, 10],
        "mrr_at_k": [10],
        "accuracy_at_k": [1, 3],
        "precision_recall_at_k": [3],
        "map_at_k": [12],
        "name": "x",
        "batch_size": 4,
        "corpus_chunk_size": 5,
        "write_csv": False,
    }
    model = bag_of_words()
    ours = GradedRetrievalEvaluator(**given)
    found, theirs = ours(model), InformationRetrievalEvaluator(**given)(model)
    assert ours.query_ids == [f"q{i}" for i in range(5)]
    assert ours.primary_metric == "x_ndcg@10"
    pairs = {name: name for name in ("ndcg@3", "ndcg@10", "mrr@10", "precision@3", "recall@3", "map@12")}
    for name, theirs_name in {**pairs, "success@1": "accuracy@1", "success@3": "accuracy@3"}.items():
        assert found[f"x_{name}"] == pytest.approx(theirs[f"x_cosine_{theirs_name}"], abs=1e-9), name
    lists = GradedRetrievalEvaluator(given["queries"], given["corpus"], {"q1": ["d1", "d3"], "q2": ("d2",)}, k=100)
    graded = {"q1": {"d1": 1.0, "d3": 1.0}, "q2": {"d2": 1}}
    assert lists(model) == GradedRetrievalEvaluator(given["queries"], given["corpus"], graded, k=100)(model)


def test_relevance_below_0_counts_as_0() -> None:
    queries, corpus = {"q": "w1", "r": "w2"}, {f"d{i}": f"w{i}" for i in range(4)}
    qrels = {"q": {"d1": -1, "d0": 1, "d2": 0}, "r": {"d2": -2.0}}
    found = GradedRetrievalEvaluator(queries, corpus, qrels, metrics=["mrr", "precision@4", "map"])(bag_of_words())
    other = GradedRetrievalEvaluator(
        queries, corpus, {"q": {"d0"}, "r": {"d2": 0}}, metrics=["mrr", "precision@4", "map"]
    )
    assert found == other(bag_of_words())
    assert found["precision@4"] == 1 / 8
    assert found["mrr"] < 1 / 2  # d1, which is judged -1, is the first


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"relevant_docs": {"q": {"d"}}}, "give the judgments once, as qrels or as relevant_docs"),
        ({"qrels": None}, "give the judgments once, as qrels or as relevant_docs"),
        ({"qrels": {"q": "d"}}, "the judgments of query 'q' are 'd'; allowed: .* a set or list of the ids"),
        ({"qrels": {"q": {"d": "high"}}}, "the relevance of document 'd' for query 'q' is 'high'; allowed: a finite"),
        ({"qrels": {"q": {"x"}}}, r"1 id\(s\) that corpus lacks: 'x' \(the first is judged for query 'q'\)"),
        ({"queries": {"q": 7}}, "query 'q' is 7; allowed: a text or an image"),
        ({"corpus": {"d": 7}}, "document 'd', field 'document': found 7; allowed: a text or an image"),
        ({"metrics": ["mrr"], "ndcg_at_k": [5]}, "found metrics mrr and cutoffs for ndcg@5; allowed: one of the two"),
    ],
)
def test_wrong_arguments_are_told_by_id(changed: dict[str, Any], message: str) -> None:
    given = {"queries": {"q": "w1"}, "corpus": {"d": "w1"}, "qrels": {"q": {"d"}}}
    with pytest.raises(ValueError, match=message):
        GradedRetrievalEvaluator(**{**given, **changed})


def test_a_prompt_goes_by_its_name() -> None:
    queries, corpus = {"q": "w1"}, {"a": "w1", "b": "w2"}
    model = bag_of_words()
    model.prompts = {"query": "", "two": "w2 w2 w2 "}
    named = GradedRetrievalEvaluator(queries, corpus, {"q": {"b"}}, metrics=["mrr"], query_prompt_name="two")
    assert named(model) == {"mrr": 1.0}
    wrong = GradedRetrievalEvaluator(queries, corpus, {"q": {"b"}}, metrics=["mrr"], corpus_prompt_name="three")
    with pytest.raises(ValueError, match="the model has no prompt 'three'; it has: query, two"):
        wrong(model)


# --- judged not relevant --------------------------------------------------------------------------------------------


def graded_loss(
    target: Any, weights: Any, scores: list[float], direction: Any = "both"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of five rows, of six judged pairs: (a, y) is judged, too. And the logits."""
    model = bag_of_words().double()
    pairs = RankedPairs(["a", "b", "c", "b", "d", "a"], ["x", "y", "x", "z", "w", "y"], scores)
    loss = GCLLoss(
        model, weights=weights, target=target, judged=pairs, score_range=(-1, 2), temperature=0.1, direction=direction
    )
    query, title = (
        F.normalize(torch.from_numpy(model.encode(column, convert_to_tensor=False)), dim=1)
        for column in (QUERIES, TITLES)
    )
    return loss(features(model, QUERIES, TITLES), torch.from_numpy(pairs.labels[:5])), 10 * query @ title.T


@pytest.mark.parametrize("weights", ["constant", "exponential:floor=1", "log", lambda scores: 0 * scores + 1.0])
def test_a_row_judged_0_or_below_has_no_weight_and_stays_a_negative(weights: Any) -> None:
    """Rows 1 and 3 are judged not relevant: the others are averaged over whole denominators."""
    found, logits = graded_loss("diagonal", weights, [2, 0, 2, -1, 2, 2])
    terms = [logits.logsumexp(dim) - logits.diagonal() for dim in (1, 0)]
    expected = sum(term[[0, 2, 4]].mean() for term in terms) / 2
    torch.testing.assert_close(found, expected)


def test_masked_leaves_out_what_is_judged_relevant_alone() -> None:
    """Pairs off the diagonal: (0, 2) and (2, 0) by document x, (0, 1) judged -1, (1, 3) and (3, 1) of query b."""
    found, logits = graded_loss("masked", "constant", [1, 2, 2, 0, 1, -1], "query")
    left_out = torch.zeros(5, 5, dtype=torch.bool)
    left_out[0, 2] = left_out[2, 0] = left_out[3, 1] = True  # (1, 3) is judged 0
    kept = logits.masked_fill(left_out, -torch.inf)
    expected = (kept.logsumexp(1) - logits.diagonal())[[0, 1, 2, 4]].mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("target", ["diagonal", "masked", "full", "full_row", "ranked"])
def test_a_batch_of_zeros_teaches_nothing(target: Any) -> None:
    found, _ = graded_loss(target, "constant", [0, -1, 0, 0, 0, -1])
    assert found.item() == 0
    found.backward()


def test_weights_may_be_a_function() -> None:
    model = bag_of_words()
    named, given = GCLLoss(model, weights="linear"), GCLLoss(model, weights=opengcl.weights.linear)
    torch.testing.assert_close(
        given(features(model, QUERIES, TITLES), SCORES), named(features(model, QUERIES, TITLES), SCORES)
    )
    assert given.get_config_dict()["weights"] == "opengcl.weights:linear"
    with pytest.raises(ValueError, match=r"gave -1.0 for score 1.0; weights must be >= 0"):
        GCLLoss(model, weights=lambda scores: -scores)
    with pytest.raises(ValueError, match=r"fails on the scores .*TypeError.* returns one weight >= 0 a score"):
        GCLLoss(model, weights=lambda: 1.0)


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1] / "docs" / "sentence-transformers.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, page.name, "exec"), scope)  # noqa: S102
    assert scope["after"]["shop_ndcg@10"] > scope["before"]["shop_ndcg@10"]
