"""One text is no list: nothing takes it for its letters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opengcl
from opengcl import compat, encode, evaluation, metrics, sbert
from opengcl.clicks.files import open_catalogue
from opengcl.compare import compare
from opengcl.fetch import fetch_pictures
from opengcl.given_lists import listed, not_one_text
from opengcl.index.build import kept_fields
from opengcl.model import FieldMix
from opengcl.run_metrics import metrics_of_files
from opengcl.sources.mapping import TableMapping
from tests.builders import clip, ranked

NOBODY: Any = None
ROWS = np.ones((1, 1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> opengcl.RankedDataset:
    return ranked(tmp_path_factory.mktemp("shop") / "data", documents=10)


@pytest.fixture(scope="module")
def client() -> Iterator[opengcl.Client]:
    with opengcl.Client("http://127.0.0.1:9", retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        ("texts", lambda client: client.embed("red")),
        ("texts", lambda client: client.embed(b"red")),
        ("fields", lambda client: client.search("red", fields="title")),
        ("negatives", lambda client: client.search("red", negatives="red")),
    ],
)
def test_the_client_refuses_one_text(name: str, ask: Callable[[Any], Any], client: opengcl.Client) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: found the text .*; allowed: a list, such as \["):
        ask(client)


@pytest.mark.parametrize("method", ["document", "delete"])
@pytest.mark.parametrize("given", [["d1", "d2"], b"d1", 5, None])
def test_a_list_is_not_one_id(method: str, given: Any, client: opengcl.Client) -> None:
    with pytest.raises(ValueError, match=r"doc_id: found .*; allowed: one id"):
        getattr(client, method)(given)


ASKED: list[tuple[str, Callable[[opengcl.RankedDataset], Any]]] = [
    ("metrics", lambda _: metrics.compute("ndcg@10", ROWS, ROWS)),
    ("metrics", lambda _: metrics.check_names("mrr")),
    ("metrics", lambda _: compat.gcl_ties("ndcg@10")),
    ("paths", lambda _: compare("runs/a")),
    ("urls", lambda _: fetch_pictures("https://example.com/a.jpg", NOBODY)),
    ("documents", lambda _: sbert.column_prompts(NOBODY, "query", "title")),
    ("metrics", lambda _: opengcl.GradedRetrievalEvaluator({"q": "x"}, {"d": "y"}, {"q": {"d": 1.0}}, metrics="mrr")),
    ("keep", lambda _: TableMapping(keep="brand")),  # type: ignore[arg-type]
    ("fields", lambda _: open_catalogue(NOBODY, NOBODY, id_column="id", fields="title")),
    ("splits", lambda data: evaluation.evaluate(NOBODY, data, splits="zero_shot")),
    ("metrics", lambda data: evaluation.evaluate(NOBODY, data, metrics="ndcg@10")),
    ("ids", lambda data: data.documents.find("d1")),
    ("keep", lambda data: kept_fields(data.documents, "title")),
    ("as_text", lambda data: kept_fields(data.documents, ["title"], "title")),
]


@pytest.mark.parametrize(("name", "ask"), ASKED)
def test_functions_refuse_one_text(name: str, ask: Callable[[Any], Any], dataset: opengcl.RankedDataset) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: found the text .*; allowed: a list, such as \["):
        ask(dataset)


def test_one_text_is_not_encoded_by_letters(dataset: opengcl.RankedDataset) -> None:
    encoder = clip()
    model = opengcl.BiEncoder(encoder, FieldMix.choose(encoder, dataset.schema))
    with pytest.raises(ValueError, match=r"texts: found the text 'red'; allowed: a list, such as \['red'\]"):
        encode.encode_texts(model, "red")
    assert len(encode.encode_texts(model, ["red", "blue"])) == 2


def test_metrics_of_files(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q 0 d 1\n")
    (tmp_path / "run").write_text("q Q0 d 1 1.0 x\n")
    with pytest.raises(ValueError, match="metrics: found the text 'ndcg@10'"):
        metrics_of_files(tmp_path / "qrels", tmp_path / "run", "ndcg@10")


def test_lists_stay_as_they_are() -> None:
    assert listed("x", ("a", "b")) == ["a", "b"]
    given = iter("ab")
    assert not_one_text("x", given) is given
    with pytest.raises(ValueError, match="found the text b'a'"):
        listed("x", b"a")
