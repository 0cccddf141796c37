"""Prompts by side: every path gives the vectors of sentence-transformers' ``encode_query`` and ``encode_document``."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from opengcl import RankedDataset, TrainConfig, metrics, run_identity, train
from opengcl.cli.main import app, main
from opengcl.data import Schema, write_dataset
from opengcl.encode import encode, encode_texts, inputs_for
from opengcl.encoders import two_towers
from opengcl.evaluation import evaluate
from opengcl.index import model_fingerprint, open_store, require_model
from opengcl.index.build import build_index
from opengcl.model import BiEncoder, FieldMix
from opengcl.product_search import ProductSearch
from opengcl.prompts import PromptError, described, prompts_of, settle_prompts
from opengcl.run_identity import TrainError
from opengcl.sbert import GCLLoss, GradedRetrievalEvaluator, column_prompts
from opengcl.vector_shards import EncodeJob, encode_table, read_shard

from .builders import TEXTS, WORDS, clip, picture, ranked, static
from .serving import Shop, running

PROMPTS = {"query": "winecup redhat ", "document": "tealbag "}


def bert(seed: int, *, include_prompt: bool = True) -> list[torch.nn.Module]:
    """The modules of a BERT of a few thousand random weights."""
    torch.manual_seed(seed)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    words = Tokenizer(WordLevel({name: row for row, name in enumerate(names)}, unk_token="[UNK]"))  # noqa: S106
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **special)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with tempfile.TemporaryDirectory() as folder:
        BertModel(BertConfig(vocab_size=len(names), max_position_embeddings=64, **sizes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        module = Transformer(folder)
    return [module, Pooling(16, "mean", include_prompt=include_prompt)]


def bert_model(seed: int = 0, *, include_prompt: bool = True) -> SentenceTransformer:
    modules = bert(seed, include_prompt=include_prompt)
    return SentenceTransformer(modules=modules, prompts=dict(PROMPTS), device="cpu").eval()


def routed() -> SentenceTransformer:
    """A route for queries and one for documents, each with its own weights."""
    router = Router.for_query_document(bert(1), [*bert(2), Dense(16, 16)], default_route="document")
    return SentenceTransformer(modules=[router], prompts=dict(PROMPTS), device="cpu").eval()


def prompted_clip() -> SentenceTransformer:
    encoder = clip().eval()
    encoder.prompts = dict(PROMPTS)
    return encoder


def prompted_static() -> SentenceTransformer:
    encoder = static().eval()
    encoder.prompts = dict(PROMPTS)
    return encoder


MODELS = {
    "clip": prompted_clip,
    "bert": bert_model,
    "prompt left out of the pooling": lambda: bert_model(include_prompt=False),
    "router": routed,
    "static": prompted_static,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RankedDataset:
    """Titles for everything, so that a model of texts reads all of it."""
    folder = tmp_path_factory.mktemp("prompts") / "data"
    generator = np.random.default_rng(0)
    titles = [" ".join(generator.choice(WORDS, length)) for length in generator.integers(1, 7, 60)]
    queries = [" ".join(generator.choice(WORDS, 2)) for _ in range(16)]
    pairs = [(query, document) for query in range(16) for document in generator.permutation(60)[:12]]
    write_dataset(
        folder,
        Schema("texts", {"query": "text"}, {"title": "text"}, 1.0, 100.0),
        pa.table(
            {
                "query_id": [f"q{row}" for row in range(16)],
                "query": queries,
                "split": ["novel" if row % 3 == 2 else "seen" for row in range(16)],
                "part": ["dev" if row % 2 else "test" for row in range(16)],
            }
        ),
        pa.table(
            {
                "doc_id": [f"d{row}" for row in range(60)],
                "title": titles,
                "split": ["novel" if row % 2 else "seen" for row in range(60)],
            }
        ),
        pa.table(
            {
                "query_id": [f"q{query}" for query, _ in pairs],
                "doc_id": [f"d{document}" for _, document in pairs],
                "score": generator.integers(1, 101, len(pairs)).astype(float),
            }
        ),
    )
    return RankedDataset.open(folder, cache_dir=folder.parent / "cache", progress=False)


def texts(dataset: RankedDataset, side: str) -> list[str]:
    records, field = (dataset.queries, "query") if side == "query" else (dataset.documents, "title")
    return [text or "" for text in records.texts(field, np.arange(len(records)))]


def theirs(encoder: SentenceTransformer, dataset: RankedDataset) -> tuple[np.ndarray, np.ndarray]:
    """What sentence-transformers makes of the queries and documents."""
    return (
        encoder.encode_query(texts(dataset, "query"), normalize_embeddings=True),
        encoder.encode_document(texts(dataset, "document"), normalize_embeddings=True),
    )


def bi(encoder: SentenceTransformer, dataset: RankedDataset) -> BiEncoder:
    return BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema, document={"title": 1.0}))


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_sentence_transformers(name: str, dataset: RankedDataset, tmp_path: Path) -> None:
    encoder = MODELS[name]()
    model = bi(encoder, dataset)
    for records, side, expected in zip(
        (dataset.queries, dataset.documents), ("query", "document"), theirs(encoder, dataset), strict=True
    ):
        rows = np.arange(len(records))
        found = encode(model, records, side, rows)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
        cached = inputs_for(model, records, side)  # type: ignore[arg-type]
        cached.cache(tmp_path / side, image_cache_bytes=0, progress=False)
        found = encode(model, records, side, rows[::-1].copy(), inputs=cached)[::-1]  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
        assert list((tmp_path / side).rglob("input_ids.bin"))
        plain = encoder.encode(texts(dataset, side), prompt="", task=side, normalize_embeddings=True)
        assert np.abs(expected - plain).max() > 1e-3
    typed = encode_texts(model, texts(dataset, "query"))
    np.testing.assert_allclose(typed, theirs(encoder, dataset)[0], rtol=0, atol=2e-6)


def graded(dataset: RankedDataset, split: str) -> GradedRetrievalEvaluator:
    """The evaluator on the test queries and documents of a split."""
    queries, documents = dataset.splits.query_rows(split, "test"), dataset.splits.document_rows(split)
    corpus = dict(zip(dataset.documents.ids(documents), np.array(texts(dataset, "document"))[documents], strict=True))
    asked = dict(zip(dataset.queries.ids(queries), np.array(texts(dataset, "query"))[queries], strict=True))
    qrels = {}
    for row, query in zip(queries, asked, strict=True):
        judged, scores = dataset.qrels.judged(int(row))
        found = zip(dataset.documents.ids(judged), scores.tolist(), strict=True)
        qrels[query] = {document: score for document, score in found if document in corpus}
    asked, corpus = ({key: str(value) for key, value in side.items()} for side in (asked, corpus))
    return GradedRetrievalEvaluator(asked, corpus, qrels, metrics=["ndcg@10"], k=30)


def test_one_number_from_every_path(
    dataset: RankedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate`, the evaluator, encode_query with encode_document, and the command agree."""
    encoder = bert_model()
    encoder.save(str(tmp_path / "model"), create_model_card=False)
    expected = {}
    queries, documents = theirs(encoder, dataset)
    for split in ("in_domain", "zero_shot"):
        rows, candidates = dataset.splits.query_rows(split, "test"), dataset.splits.document_rows(split)
        values = []
        for row in rows:
            judged, scores = dataset.qrels.judged(int(row))
            gain = np.zeros(len(dataset.documents))
            gain[judged] = scores
            gain[np.setdiff1d(np.arange(len(gain)), candidates)] = 0
            order = candidates[np.argsort(-(documents[candidates] @ queries[row]), kind="stable")]
            values.append(metrics.compute(["ndcg@10"], gain[order][None], gain[gain > 0][None])["ndcg@10"][0])
        expected[split] = float(np.mean(values))
    evaluation = evaluate(bi(encoder, dataset), dataset, metrics=["ndcg@10"]).splits()
    for split, value in expected.items():
        assert evaluation[split]["ndcg@10"] == pytest.approx(value, abs=1e-6)
        assert graded(dataset, split)(encoder)["ndcg@10"] == pytest.approx(value, abs=1e-6)

    def by_command(*more: str) -> tuple[dict[str, float], str]:
        words = ["evaluate", str(tmp_path / "model"), "--data", str(dataset.path), "--metrics", "ndcg@10"]
        monkeypatch.setattr("sys.argv", ["opengcl", *words, "--out", str(tmp_path / "out.json"), *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        content = json.loads((tmp_path / "out.json").read_text())
        return {split: content["splits"][split]["ndcg@10"] for split in expected}, capsys.readouterr().err

    found, told = by_command()
    assert found == pytest.approx(expected, abs=1e-6)
    assert "prompts: query texts with 'winecup redhat ', document texts with 'tealbag '" in told
    without, told = by_command("--query-prompt", "", "--document-prompt", "")
    assert "prompts" not in told
    encoder.prompts = {}
    plain = evaluate(bi(encoder, dataset), dataset, metrics=["ndcg@10"]).splits()
    assert without == pytest.approx({split: plain[split]["ndcg@10"] for split in expected}, abs=1e-6)
    assert without != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("given", [{}, {"query_prompt": "bluebag ", "document_prompt": ""}])
def test_a_run_trains_saves_encodes_and_is_searched_with_its_prompts(
    given: dict[str, str], dataset: RankedDataset, tmp_path: Path
) -> None:
    bert_model().save(str(tmp_path / "base"), create_model_card=False)
    config = TrainConfig(
        data=str(dataset.path),
        model=str(tmp_path / "base"),
        out=str(tmp_path / "run"),
        batch_size=32,
        epochs=1,
        evaluations=1,
        learning_rate=1e-3,
        device="cpu",
        **given,  # type: ignore[arg-type]
    )
    run = train(config, progress=False)
    plain = SentenceTransformer(str(run / "model"), device="cpu").eval()
    wanted = PROMPTS | {name.removesuffix("_prompt"): prompt for name, prompt in given.items()}
    assert prompts_of(plain) == wanted
    assert json.loads((run / "metrics.json").read_text())["provenance"]["prompts"] == wanted
    queries, documents = theirs(plain, dataset)
    expected = plain.encode(texts(dataset, "query"), prompt=wanted["query"], normalize_embeddings=True)
    np.testing.assert_allclose(queries, expected, rtol=0, atol=1e-6)

    loaded = json.loads((run / "metrics.json").read_text())["splits"]
    again = evaluate(BiEncoder.load(run, device="cpu"), dataset).splits()
    assert again["zero_shot"]["ndcg@10"] == pytest.approx(loaded["zero_shot"]["ndcg@10"], abs=1e-6)
    assert graded(dataset, "zero_shot")(plain)["ndcg@10"] == pytest.approx(loaded["zero_shot"]["ndcg@10"], abs=1e-6)

    for side, vectors in (("query", queries), ("document", documents)):
        out = tmp_path / side
        job = EncodeJob(run=str(run), data=str(dataset.path), out=str(out), side=side, device="cpu")  # type: ignore[arg-type]
        _, found = read_shard(out, encode_table(job, progress=False), 0)
        np.testing.assert_allclose(found, vectors, rtol=0, atol=2e-6)

    store = open_store(f"exact:{tmp_path / 'store'}")
    index = build_index(store, run, dataset, progress=False, device="cpu")
    best = documents @ queries[0]
    hits = index.search(queries[:1], 5)[0]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(best)[:-6:-1], atol=2e-6)
    store.close()
    text = texts(dataset, "query")[0]
    found = ProductSearch(run, dataset, progress=False)(text, 5)
    np.testing.assert_allclose([hit.score for hit in found], np.sort(best)[:-6:-1], atol=2e-6)

    with running([Shop(run, dataset, f"exact:{tmp_path / 'store'}")], data=False) as server:
        hits = server.post("/search", {"query": {"text": text}, "k": 5}).json()["hits"]
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(best)[:-6:-1], atol=2e-6)
        title = texts(dataset, "document")[3]
        for body, vector in (
            ({"input": text}, queries[0]),
            ({"input": text, "input_type": "query"}, queries[0]),
            ({"input": [title], "input_type": "document"}, documents[3]),
        ):
            reply = server.post("/v1/embeddings", body).json()
            np.testing.assert_allclose(reply["data"][0]["embedding"], vector, atol=2e-6)
        refused = server.post("/v1/embeddings", {"input": text, "input_type": "passage"})
        assert refused.status_code == 422
        assert "'query' or 'document'" in refused.json()["error"]["message"]
        server.post("/documents", {"documents": [{"doc_id": "new", "fields": {"title": title}}]})
        hits = server.post("/search", {"query": {"text": text}, "k": 200}).json()["hits"]
        scores = {hit["doc_id"]: hit["score"] for hit in hits}
        assert scores["new"] == pytest.approx(scores["d3"], abs=2e-6)


def test_training_reads_texts_with_their_prompts(dataset: RankedDataset, tmp_path: Path) -> None:
    """Prompts in the model and the same words in the data give the same weights."""
    bert_model().save(str(tmp_path / "base"), create_model_card=False)
    tables = {name: dataset.path / f"{name}.parquet" for name in ("queries", "documents", "qrels")}
    rows = {name: pq.read_table(file) for name, file in tables.items()}
    for name, field, side in (("queries", "query", "query"), ("documents", "title", "document")):
        at = rows[name].column_names.index(field)
        prompted = [PROMPTS[side] + text for text in rows[name][field].to_pylist()]
        rows[name] = rows[name].set_column(at, field, pa.array(prompted))
    write_dataset(tmp_path / "prompted", dataset.schema, rows["queries"], rows["documents"], rows["qrels"])
    config = TrainConfig(
        data=str(dataset.path),
        model=str(tmp_path / "base"),
        out=str(tmp_path / "run"),
        batch_size=32,
        epochs=1,
        evaluations=0,
        learning_rate=1e-3,
        device="cpu",
    )
    one = train(config, progress=False)
    other = train(
        replace(
            config,
            data=str(tmp_path / "prompted"),
            out=str(tmp_path / "other"),
            query_prompt="",
            document_prompt="",
        ),
        progress=False,
    )
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]


def test_images_have_no_prompt_and_a_routes_own_weights(tmp_path: Path) -> None:
    data = ranked(tmp_path / "data")
    encoder = prompted_clip()
    model = BiEncoder(encoder, FieldMix.choose(encoder, data.schema, document={"image": 1.0}))
    rows = np.flatnonzero(data.documents.present("image", np.arange(40)))
    found = model.fuse(model.encode_fields(inputs_all(model, data, rows), "document"), "document").detach().numpy()
    images = [image for image in data.documents.images("image", rows) if image]
    np.testing.assert_allclose(found, encoder.encode(images, prompt="", normalize_embeddings=True), atol=2e-6)


def inputs_all(model: BiEncoder, data: RankedDataset, rows: np.ndarray) -> dict[str, object]:
    from opengcl.inputs import Inputs

    return Inputs(model.encoder, data.documents, ["image"]).of(rows)  # type: ignore[return-value]


def test_the_evaluator_puts_no_prompt_before_images() -> None:
    encoder = prompted_clip()
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    corpus = {f"d{row}": {"image": one, "title": TEXTS[row]} for row, one in enumerate(pictures)}
    corpus["d0"].pop("image")
    one = GradedRetrievalEvaluator({"q": "redshoe"}, corpus, {"q": {"d1": 1.0}}, metrics=["mrr"], k=3)  # type: ignore[arg-type]
    vectors = one._encode_corpus(encoder).numpy()
    image = encoder.encode(pictures[1:2], normalize_embeddings=True)[0]
    title = encoder.encode([TEXTS[1]], prompt=PROMPTS["document"], normalize_embeddings=True)[0]
    both = image + title
    np.testing.assert_allclose(vectors[1], both / np.linalg.norm(both), atol=2e-6)


def test_the_evaluator_opens_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.png").write_bytes(picture(np.random.default_rng(0)))
    path = str(tmp_path / "secret.png")

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(Image, "open", opened)
    found = GradedRetrievalEvaluator({"q": path}, {"d": path, "e": "redshoe"}, {"q": {"d": 1.0}}, metrics=["mrr"], k=2)
    assert found(clip().eval())["mrr"] == pytest.approx(1.0)


def test_the_evaluator_agrees_with_information_retrieval() -> None:
    encoder = bert_model()
    generator = np.random.default_rng(1)  # no two texts are equal, as ties are ordered in other ways
    drawn = list(dict.fromkeys(" ".join(generator.choice(WORDS, 5)) for _ in range(40)))[:36]
    queries = {f"q{row}": drawn[row] for row in range(6)}
    corpus = {f"d{row}": drawn[row + 6] for row in range(30)}
    relevant = {f"q{row}": {f"d{row * 3}", f"d{row + 7}"} for row in range(6)}
    qrels = {query: dict.fromkeys(documents, 1.0) for query, documents in relevant.items()}
    ours = GradedRetrievalEvaluator(queries, corpus, qrels, metrics=["ndcg@10"], k=30)(encoder)["ndcg@10"]
    reference = InformationRetrievalEvaluator(queries, corpus, relevant, ndcg_at_k=[10], write_csv=False)(encoder)
    assert ours == pytest.approx(reference["cosine_ndcg@10"], abs=1e-6)


def test_the_loss_says_when_the_trainer_leaves_prompts_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = {"query": TEXTS[:8], "title": TEXTS[8:16], "score": [100.0, 50.0] * 4}
    encoder = bert_model()
    assert column_prompts(encoder, "query", ["title"]) == {"query": PROMPTS["query"], "title": PROMPTS["document"]}
    with pytest.raises(ValueError, match="each column once"):
        column_prompts(encoder, "query", ["query"])
    for prompts, warned in (({}, True), (column_prompts(encoder, "query", ["title"]), False)):
        caplog.clear()
        loss = GCLLoss(encoder)
        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=8,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            prompts=prompts,
        )
        SentenceTransformerTrainer(encoder, arguments, Dataset.from_dict(rows), loss=loss).train()
        assert ("the model has the query prompt" in caplog.text) == warned


def test_two_towers_keep_the_text_towers_prompts(tmp_path: Path) -> None:
    bert_model(include_prompt=False).save(str(tmp_path / "text"), create_model_card=False)
    clip().save(str(tmp_path / "image"), create_model_card=False)
    towers = two_towers(str(tmp_path / "text"), str(tmp_path / "image"), dim=8).eval()
    assert prompts_of(towers) == PROMPTS
    data = ranked(tmp_path / "data")
    model = BiEncoder(towers, FieldMix.choose(towers, data.schema))
    found = encode(model, data.queries, "query", np.arange(12))
    expected = towers.encode_query(data.queries.texts("query", np.arange(12)), normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_the_first_of_document_passage_and_corpus() -> None:
    encoder = clip()
    for prompts, expected in (
        ({"query": "a ", "document": "b ", "passage": "c "}, ("a ", "b ")),
        ({"passage": "c ", "corpus": "d "}, ("", "c ")),
        ({"corpus": "d "}, ("", "d ")),
        ({"document": "", "passage": "c "}, ("", "")),
        ({"other": "e "}, ("e ", "e ")),
        ({}, ("", "")),
    ):
        encoder.prompts, encoder.default_prompt_name = prompts, "other" if "other" in prompts else None
        assert tuple(prompts_of(encoder).values()) == expected
        for side, encoded in (("query", encoder.encode_query), ("document", encoder.encode_document)):
            same = encoder.encode(["redshoe"], prompt=prompts_of(encoder)[side])  # type: ignore[index]
            np.testing.assert_allclose(encoded(["redshoe"]), same, atol=1e-6)


def test_a_passage_prompt_that_is_not_used_is_told(caplog: pytest.LogCaptureFixture) -> None:
    encoder = clip()
    encoder.prompts |= {"query": "query: ", "passage": "passage: "}
    settle_prompts(encoder)
    assert "the model has a prompt 'passage', 'passage: ', but its prompt 'document' is empty" in caplog.text
    caplog.clear()
    settle_prompts(encoder, document="passage: ")
    assert caplog.text == ""
    assert prompts_of(encoder) == {"query": "query: ", "document": "passage: "}
    assert described({"query": "", "document": ""}) is None


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(PromptError, match=r"query_prompt: .* fills all 32 tokens .*allowed: a shorter prompt"):
        settle_prompts(clip(), query="redshoe " * 40)
    with pytest.raises(PromptError, match=r"document_prompt: found 20,000 characters; allowed: 10,000"):
        settle_prompts(static(), document="x" * 20_000)
    settle_prompts(clip(), query="redshoe " * 20)


def test_resuming_with_other_prompts_is_refused(dataset: RankedDataset, tmp_path: Path) -> None:
    config = TrainConfig(data=str(dataset.path), model="tiny", out=str(tmp_path))
    data = {"data": dataset}
    run_identity.begin(tmp_path, config, data, {"query": "a ", "document": ""})
    run_identity.check(tmp_path, config, data, {"query": "a ", "document": ""})
    with pytest.raises(TrainError, match=r"query_prompt was None, now 'b '"):
        run_identity.check(tmp_path, replace(config, query_prompt="b "), data, {"query": "b ", "document": ""})
    with pytest.raises(TrainError, match=r"other prompts: query_prompt was 'a ', now 'b '"):
        run_identity.check(tmp_path, config, data, {"query": "b ", "document": ""})
    content = json.loads((tmp_path / run_identity.DATA).read_text())
    del content["prompts"]  # as a version wrote it that trained without prompts
    (tmp_path / run_identity.DATA).write_text(json.dumps(content))
    run_identity.check(tmp_path, config, data, {"query": "", "document": ""})
    with pytest.raises(TrainError, match=r"query_prompt was '', now 'a '"):
        run_identity.check(tmp_path, config, data, {"query": "a ", "document": ""})


def test_a_run_of_a_version_without_prompts_is_told(
    dataset: RankedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = bi(bert_model(), dataset)
    model.provenance = {"settings": {}}
    model.save(tmp_path)
    BiEncoder.load(tmp_path, device="cpu")
    assert "trained by a version that left the model's prompts out" in caplog.text


def test_an_index_of_other_prompts_is_noticed(dataset: RankedDataset, tmp_path: Path) -> None:
    model = bi(bert_model(), dataset)
    model.save(tmp_path / "model")
    before = model_fingerprint(tmp_path / "model")
    search = ProductSearch(tmp_path / "model", dataset, progress=False)
    store = open_store(f"exact:{tmp_path / 'store'}")
    index = build_index(store, tmp_path / "model", dataset, progress=False, device="cpu")
    file = tmp_path / "model" / "config_sentence_transformers.json"
    content = json.loads(file.read_text())
    content["prompts"]["document"] = "bluehat "
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="model"):
        require_model(index, model_fingerprint(tmp_path / "model"))
    store.close()
    assert model_fingerprint(tmp_path / "model") != before
    changed = ProductSearch(tmp_path / "model", dataset, progress=False)
    assert len(list((tmp_path / "model" / "vectors").iterdir())) == 2
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu").eval()
    queries, documents = theirs(plain, dataset)
    text = texts(dataset, "query")[0]
    np.testing.assert_allclose(changed(text, 1)[0].score, (documents @ queries[0]).max(), atol=2e-6)
    assert abs(search(text, 1)[0].score - changed(text, 1)[0].score) > 1e-6


def test_the_options_are_named_alike() -> None:
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for command in ("train", "evaluate"):
        names = {option for parameter in commands[command].params for option in parameter.opts}
        assert {"--query-prompt", "--document-prompt"} <= names
