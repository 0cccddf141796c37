"""Two stages: the first alone equals `evaluate`, re-ranking equals a loop, training resumes to the same weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.ranking import cell_file, two_stages
from benchmarks.ranking.two_stages import (
    FirstStage,
    LikeLengthBatches,
    Recipe,
    TrainingList,
    choose,
    dev_quality,
    latency,
    mined_candidates,
    new_cross_encoder,
    rerank,
    train_cross_encoder,
    training_lists,
    two_stage_table,
)
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer
from torch.nn import functional
from transformers import AutoModel, BertConfig, BertForSequenceClassification, BertTokenizerFast

from opengcl.data import SPLITS, RankedDataset
from opengcl.evaluation import evaluate
from opengcl.model import BiEncoder, FieldMix

from .builders import MINILM, WORDS, clip, ranked

BCE = Recipe("bce", "mined", learning_rate=5e-3, pairs_a_step=24)
LAMBDA = Recipe("lambda", "mined", learning_rate=5e-3, pairs_a_step=45)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    return ranked(tmp_path_factory.mktemp("two-stages") / "toy", queries=40, documents=60, judged=20)


@pytest.fixture(scope="module")
def first(dataset: RankedDataset) -> FirstStage:
    encoder = clip()
    return FirstStage(BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema)), dataset, "first")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], CrossEncoder]:
    """Makes the same random BERT of one layer each time."""
    folder = tmp_path_factory.mktemp("cross-encoder") / "model"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizerFast(vocab={word: row for row, word in enumerate(words)}, model_max_length=32)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=1,
        initializer_range=0.2,  # scores far apart, so that their order does not hang on rounding
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return lambda: CrossEncoder(str(folder), max_length=32, device="cpu")


def weights(model: CrossEncoder) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("part", ["dev", "test"])
def test_the_first_stage_alone_equals_evaluate(first: FirstStage, part: str) -> None:
    expected = evaluate(first.model, first.dataset, part=part, metrics=cell_file.METRICS)
    assert two_stage_table(first, None, part).equals(expected.per_query)
    means = [row["ndcg@10"] for row in expected.splits().values()]
    if part == "dev":
        assert dev_quality(first, None) == pytest.approx(np.mean(means), abs=1e-12)


def test_reranking_equals_a_loop(first: FirstStage, tiny: Callable[[], CrossEncoder]) -> None:
    model, dataset = tiny(), first.dataset
    queries = dataset.splits.query_rows("novel_query")
    rows = first.lists("novel_query", queries, 25)
    before = rows.copy()
    found = rerank(model, dataset, queries, rows, candidates=15)
    assert (rows == before).all()
    changed = 0
    for query, row, ranked_row in zip(queries, rows, found, strict=True):
        text = dataset.queries.texts("query", [query])[0]
        scores = {}
        for document in row[:15]:
            title = dataset.documents.texts("title", [document])[0] or ""
            features = model.tokenizer(text, title, truncation=True, max_length=32, return_tensors="pt")
            with torch.inference_mode():
                scores[int(document)] = float(model.model.eval()(**features).logits)
        # Of documents without a title, which score alike, the first stage's order stays.
        order = sorted(range(15), key=lambda place: (-round(scores[int(row[place])], 5), place))
        assert ranked_row[:15].tolist() == row[:15][order].tolist()
        assert ranked_row[15:].tolist() == row[15:].tolist()
        changed += ranked_row.tolist() != row.tolist()
    assert changed > len(queries) / 2


def test_two_stages_keep_the_recall_of_their_candidates(first: FirstStage, tiny: Callable[[], CrossEncoder]) -> None:
    one, two = (two_stage_table(first, model, "test") for model in (None, tiny()))
    assert one["recall@100"].equals(two["recall@100"])
    assert not one["ndcg@10"].equals(two["ndcg@10"])
    in_blocks = two_stage_table(first, tiny(), "test", block=3)
    assert in_blocks.equals(two)


def test_training_lists_hold_every_training_pair_once(first: FirstStage) -> None:
    dataset, mined = first.dataset, mined_candidates(first)
    lists = training_lists(dataset, mined, seed=0, positives=4, negatives=3)
    positive = Counter()
    for one in lists:
        judged = dict(zip(*(part.tolist() for part in dataset.qrels.judged(one.query)), strict=True))
        assert 1 <= (one.labels > 0).sum() <= 4
        assert len(set(one.documents.tolist())) == len(one.documents)
        for document, label in zip(one.documents.tolist(), one.labels.tolist(), strict=True):
            assert dataset.splits.document_seen[document]
            assert label == pytest.approx(judged.get(document, 0.0) / 100)
            if label > 0:
                positive[one.query, document] += 1
        assert (one.labels == 0).sum() == 3
    pairs = dataset.splits.training_pairs()
    expected = zip(dataset.qrels.query[pairs].tolist(), dataset.qrels.document[pairs].tolist(), strict=True)
    assert positive == Counter(expected)
    again = training_lists(dataset, mined, seed=0, positives=4, negatives=3)
    assert all((a.documents == b.documents).all() and a.query == b.query for a, b in zip(lists, again, strict=True))
    other = training_lists(dataset, mined, seed=1, positives=4, negatives=3)
    assert [one.query for one in other] != [one.query for one in lists]


def test_negatives_come_from_the_candidates_where_these_suffice(dataset: RankedDataset) -> None:
    query = int(dataset.splits.query_rows("in_domain")[0])
    seen = dataset.splits.document_rows("in_domain")
    unjudged = np.setdiff1d(seen, dataset.qrels.judged(query)[0])
    mined = np.full((len(dataset.queries), 5), -1)
    mined[query, :4] = [*unjudged[:3], dataset.qrels.judged(query)[0][0]]
    few = [one for one in training_lists(dataset, mined, seed=0, positives=100, negatives=3) if one.query == query]
    assert sorted(few[0].documents[few[0].labels == 0].tolist()) == unjudged[:3].tolist()
    without = [one for one in training_lists(dataset, None, seed=0, positives=100, negatives=3) if one.query == query]
    assert set(without[0].documents[without[0].labels == 0].tolist()) <= set(unjudged.tolist())
    drawn = {
        row
        for seed in range(20)
        for one in training_lists(dataset, None, seed=seed, positives=100, negatives=3)
        if one.query == query
        for row in one.documents[one.labels == 0].tolist()
    }
    assert len(drawn) > 6  # from all over, not the mined three


def test_candidates_are_mined_for_seen_queries_among_seen_documents(first: FirstStage) -> None:
    mined = mined_candidates(first)
    seen = first.dataset.splits.query_seen
    assert (mined[~seen] == -1).all()
    judged = first.dataset.splits.query_rows("in_domain")
    assert first.dataset.splits.document_seen[mined[judged]].all()
    expected = first.lists("in_domain", judged[:1], two_stages.CANDIDATES)[0]
    assert mined[judged[0]].tolist() == expected.tolist()


def test_batches_of_like_length_cover_an_epoch_once() -> None:
    generator = np.random.default_rng(0)
    data = Dataset.from_dict({"document": ["x" * int(length) for length in generator.integers(1, 60, 1003)]})
    sampler = LikeLengthBatches(data, batch_size=10, drop_last=False, seed=1)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(place for batch in batches for place in batch) == list(range(1003))
        assert len(batches) == len(sampler) == 101
        spread = np.mean(
            [max(lengths) - min(lengths) for lengths in ([len(data[i]["document"]) for i in b] for b in batches)]
        )
        assert spread < 5  # about 48 in random batches
        epochs.append(batches)
    assert epochs[0] != epochs[1]
    sampler.set_epoch(0)
    assert list(sampler) == epochs[0]


def scores_of(
    model: CrossEncoder, dataset: RankedDataset, lists: list[TrainingList]
) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [
        (dataset.queries.texts("query", [one.query])[0], dataset.documents.texts("title", [row])[0] or "")
        for one in lists
        for row in one.documents
    ]
    labels = torch.from_numpy(np.concatenate([one.labels for one in lists])).float()
    return torch.from_numpy(model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)), labels


def learnable(dataset: RankedDataset) -> list[TrainingList]:
    """Lists whose labels say whether the title has a shoe."""
    lists = []
    for one in 3 * training_lists(dataset, None, seed=0, negatives=5):
        titles = [title or "" for title in dataset.documents.texts("title", one.documents)]
        lists.append(replace(one, labels=np.array([0.1 + 0.8 * ("shoe" in title) for title in titles])))
    return lists


@pytest.mark.parametrize("recipe", [BCE, LAMBDA], ids=["bce", "lambda"])
def test_training_learns_and_resumes_to_the_same_weights(
    first: FirstStage,
    tiny: Callable[[], CrossEncoder],
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, lists, model = first.dataset, learnable(first.dataset), tiny()
    before, labels = scores_of(model, dataset, lists)
    steps = train_cross_encoder(model, dataset, lists, recipe, tmp_path / "whole", seed=3)
    after, _ = scores_of(model, dataset, lists)
    correlation = [float(torch.corrcoef(torch.stack([scores, labels]))[0, 1]) for scores in (before, after)]
    assert correlation[1] > 0.7 > correlation[0] + 0.3
    pairs = sum(len(one.documents) for one in lists)
    assert steps == (-(-pairs // recipe.pairs_a_step) if recipe.loss == "bce" else -(-len(lists) // 3))

    taken, step = [], CrossEncoderTrainer.training_step

    def cut_off(trainer: CrossEncoderTrainer, *arguments: Any, **settings: Any) -> torch.Tensor:
        taken.append(1)
        if len(taken) == 10:
            raise InterruptedError
        return step(trainer, *arguments, **settings)

    monkeypatch.setattr(CrossEncoderTrainer, "training_step", cut_off)
    with pytest.raises(InterruptedError):
        train_cross_encoder(tiny(), dataset, lists, recipe, tmp_path / "cut", seed=3, save_steps=7)
    resumed = tiny()
    assert train_cross_encoder(resumed, dataset, lists, recipe, tmp_path / "cut", seed=3, save_steps=7) == steps
    assert len(taken) == 10 + steps - 7
    torch.testing.assert_close(weights(resumed), weights(model), rtol=0, atol=0)


def test_latency_is_measured_both_ways(first: FirstStage, tiny: Callable[[], CrossEncoder]) -> None:
    queries = first.dataset.splits.query_rows("in_domain", "all")[:12]
    found = latency(first, tiny(), "in_domain", queries, warm_up=2)
    assert found["ratio"] == pytest.approx(found["two_stage_ms"]["p50"] / found["single_ms"]["p50"])
    assert found["ratio"] > 1
    assert found["queries"] == 10
    assert found["documents"] == len(first.dataset.splits.document_rows("in_domain"))
    for times in (found["single_ms"], found["two_stage_ms"]):
        assert 0 < times["p50"] <= times["p99"]
    with pytest.raises(ValueError, match="at least one more"):
        latency(first, tiny(), "in_domain", queries, warm_up=12)


def test_the_cross_encoder_begins_as_the_first_layers_of_minilm() -> None:
    model, again, other = (new_cross_encoder(seed=seed) for seed in (0, 0, 1))
    whole = AutoModel.from_pretrained(MINILM).state_dict()
    own = model.model.state_dict()
    assert {name for name in own if name.startswith("encoder.")} == {
        name for name in whole if name.startswith(("encoder.layer.0.", "encoder.layer.1."))
    }
    for name, value in own.items():
        torch.testing.assert_close(value, whole[name])
    assert model.max_seq_length == two_stages.MAX_TOKENS
    heads = [
        torch.cat([p.flatten() for part in (one[2], one[3]) for p in part.parameters()])
        for one in (model, again, other)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_cross_encoder_scores_the_mean_of_its_tokens_and_reopens(tmp_path: Path) -> None:
    model = new_cross_encoder(seed=0).eval()
    pairs = [("red shoes", "Acme Red Shoe"), ("blue cap", "Bolt Cap " * 40)]
    expected = []
    for query, title in pairs:
        features = model.tokenizer(query, title, truncation=True, max_length=32, return_tensors="pt")
        with torch.inference_mode():
            mean = model.model(**features).last_hidden_state.mean(1)
            expected.append(model[3].linear(functional.gelu(model[2].linear(mean))).item())
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    for one in (model, CrossEncoder(str(tmp_path / "model"), device="cpu")):
        found = one.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_cell_is_trained_once_and_written(
    first: FirstStage, tiny: Callable[[], CrossEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_stages, "new_cross_encoder", lambda seed: tiny())  # noqa: ARG005
    monkeypatch.setattr(two_stages, "RECIPES", {"one": BCE, "two": Recipe("bce", "random", pairs_a_step=24)})
    monkeypatch.setattr(two_stages, "WARM_UP", 3)
    monkeypatch.setattr(cell_file, "RESULTS", tmp_path / "results")
    tuning = choose(first, tmp_path / "run", seed=0)
    best = max(tuning["grid"], key=lambda row: row["ndcg@10"])
    assert tuning["chosen"] == {"recipe": best["recipe"]}
    assert [row["recipe"] for row in tuning["grid"]] == ["one", "two"]
    result = two_stages.two_stages(first, "one", tmp_path / "run", seed=0)
    monkeypatch.setattr(two_stages, "train_cross_encoder", None)  # a second training would fail
    again = two_stages.two_stages(first, "one", tmp_path / "run", seed=0)
    assert result.per_query.equals(again.per_query)
    trained = CrossEncoder(str(tmp_path / "run" / "model"), device="cpu")
    assert result.per_query.equals(two_stage_table(first, trained, "test"))
    with pytest.raises(ValueError, match="choose another folder"):
        two_stages.two_stages(first, "two", tmp_path / "run", seed=0)
    result.write("toy")
    content = json.loads((tmp_path / "results/toy/title/cross-encoder/seed-0.json").read_text())
    assert content["steps"] == content["settings"]["training"]["steps"] > 0
    assert set(content["latency"]) >= {"single_ms", "two_stage_ms", "ratio"}
    assert list(content["splits"]) == list(SPLITS)
