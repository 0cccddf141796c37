"""The matrix of objectives on a small data set: equal budgets, the grid, controls, gradients of the written forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.ranking import cell as cells
from benchmarks.ranking import cell_file, cost, data, gradients
from benchmarks.ranking.cell import Cell, Fields
from benchmarks.ranking.cell_file import write_json
from benchmarks.ranking.matrix import FIRST, PICTURES, SECOND_RULE, TWO_FIELDS
from benchmarks.ranking.sides import GRID, LADDER, SEEDS, SIDES

from opengcl import RankedDataset, make_shop
from opengcl.batches import Relations, ShuffledBatches
from opengcl.loss import gcl_loss
from opengcl.objective import Known, read_target, relation_tensors
from opengcl.training import make_batches
from opengcl.weights import weight_function

from .builders import ranked


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The matrix on a synthetic shop, six steps a cell, results and runs in a temporary folder."""
    shop = make_shop(tmp_path_factory.mktemp("shop") / "shop", products=60, queries=40, image_size=32)
    documents = pq.read_table(shop / "documents.parquet")
    titles = pa.array([title or "untitled" for title in documents["title"].to_pylist()])
    pq.write_table(
        documents.set_column(documents.column_names.index("title"), "title", titles), shop / "documents.parquet"
    )
    monkeypatch.setitem(data.DATA, "fashion", shop)
    monkeypatch.setattr(data, "MADE", tmp_path / "made")
    monkeypatch.setattr(cell_file, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(cells, "RUNS", tmp_path / "runs")
    monkeypatch.setitem(cells.FIELDS, "title", Fields({"title": 1.0}, "static", 6, "ours"))
    monkeypatch.setattr(cells, "EVALUATIONS", 2)
    return tmp_path


def test_every_side_can_be_made() -> None:
    for name, side in SIDES.items():
        for settings in (side.settings, *({**side.settings, **other} for other in side.others)):
            assert read_target(settings["target"]), name
            assert weight_function(settings["weights"]), name
            assert settings.get("docs_per_query") or "queries_per_doc" in settings, f"{name}: batches left to a default"
            assert not settings.get("queries_per_doc") or "sampling_exponent" in settings, f"{name}: draws left to one"
    assert {*FIRST, *SECOND_RULE, *PICTURES, *TWO_FIELDS} <= set(SIDES)
    assert len(SEEDS) >= 3


@pytest.mark.parametrize("side", ["clip", "ours", "full-row-grouped", "bixse"])
def test_every_side_has_the_same_steps(small: Path, side: str) -> None:
    config = Cell("fashion", "title", side, 0).config(small / "run", 7)
    batches = make_batches(config, RankedDataset.open(config.data, progress=False))
    assert int(np.ceil(config.epochs * len(batches))) == 7
    counts = cells.encoded_rows(config)
    assert counts.shape == (7, 2)
    assert (np.diff(counts, axis=0) > 0).all()


@pytest.mark.usefixtures("small")
def test_a_cell_is_tuned_trained_and_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"learning_rate": (1e-5, 1e-2), "temperature": (0.1,)}
    for part in (GRID, LADDER):
        monkeypatch.setitem(part, "static", values)
    cell = Cell("fashion", "title", "paper", 1)
    cells.run(cell)
    tuning = json.loads(cell.place.tuning.read_text())
    tried = [(row["learning_rate"], row.get("weights"), row["ndcg@10"]) for row in tuning["tried"]]
    best = max(tried, key=lambda row: row[2])
    assert [row[:2] for row in tried[:2]] == [(1e-5, None), (1e-2, None)]
    assert tried[2][:2] == (max(tried[:2], key=lambda row: row[2])[0], "exponential:decay=10")
    assert tuning["chosen"]["learning_rate"] == best[0]
    content = json.loads(cell.place.cell(1).read_text())
    assert content["steps"] == 6
    assert content["settings"]["learning_rate"] == best[0]
    assert [row["step"] for row in content["dev"]] == [3, 6]
    assert content["dev"][-1]["documents_encoded"] == content["documents_encoded"]
    per_query = pq.read_table(cell.place.cell(1).with_suffix(".parquet"))
    for split, row in content["splits"].items():
        inside = np.array(per_query["split"].to_pylist()) == split
        assert inside.sum() == row["queries"]
        for name in cell_file.PAIRED:
            assert per_query[name].to_numpy()[inside].mean() == pytest.approx(row[name], abs=1e-5)
    assert cell_file.read_cells("fashion", "title") == {"paper": {1: content}}
    monkeypatch.setattr(cells, "train", lambda *_, **__: pytest.fail("trained again"))
    cells.run(cell)


@pytest.mark.usefixtures("small")
def test_steps_are_timed_in_turn_and_counted() -> None:
    for side in ("clip", "ours"):
        write_json(Cell("fashion", "title", side, 0).place.tuning, {"chosen": {"learning_rate": 1e-3}})
    file = cost.measure("fashion", "title", rounds=3, steps=2)
    content = json.loads(file.read_text())
    assert list(content["sides"]) == ["clip", "ours"]  # the main sides that are tuned
    assert file == cell_file.cost_file("fashion", "title")
    config = Cell("fashion", "title", "clip", 0).config(Path("unused"), cost.WARM_UP + 6)
    encoded = cells.encoded_rows(config)
    per_step = (encoded[-1] - encoded[cost.WARM_UP - 1]) / 6
    assert [content["sides"]["clip"][name] for name in ("queries", "documents")] == pytest.approx(per_step, abs=1e-5)
    for row in content["sides"].values():
        assert len(row["seconds"]) == 3
        assert min(row["seconds"]) > 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("at", [(1.0, 0.01), (3e-2, 0.1), (3e-2, 0.03), (1e-3, 0.3)])
def test_the_search_ends_where_all_neighbours_are_worse(
    monkeypatch: pytest.MonkeyPatch, at: tuple[float, float]
) -> None:
    """On a hill whose top is anywhere on the ladder, the grid's edges included."""

    def hill(_: Cell, steps: int, point: dict[str, Any]) -> dict[str, float]:
        far = [abs(np.log(point[name] / top)) for name, top in zip(("learning_rate", "temperature"), at, strict=True)]
        return {"ndcg@10": 1 - 0.01 * sum(far), "recall@100": 1.0, "training_seconds": float(steps)}

    monkeypatch.setattr(cells, "_dev_figures", hill)
    cell = Cell("fashion", "title", "clip", 2)
    assert cells.tune(cell) == {"learning_rate": at[0], "temperature": at[1]}
    rows = [(row["learning_rate"], row["temperature"]) for row in json.loads(cell.place.tuning.read_text())["tried"]]
    neighbours = [tuple(point.values()) for point in cells._neighbours(cells.tune(cell), LADDER["static"])]
    assert set(neighbours) < set(rows)
    assert len(neighbours) == 2 + (at[0] not in (1e-3, 1.0)) + (at[1] != 0.01)
    assert len(rows) == len(set(rows))
    for name, values in LADDER["static"].items():
        assert list(values) == sorted(values)
        assert set(GRID["static"][name]) <= set(values)


@pytest.mark.usefixtures("small")
def test_shuffled_scores_keep_everything_but_the_order() -> None:
    truth = RankedDataset.open(data.dataset_folder("fashion"), progress=False)
    shuffled = RankedDataset.open(data.dataset_folder("fashion", "shuffled"), progress=False)
    trained = np.zeros(len(truth.qrels.score), dtype=bool)
    trained[truth.splits.training_pairs()] = True
    np.testing.assert_array_equal(truth.qrels.query, shuffled.qrels.query)
    np.testing.assert_array_equal(truth.qrels.document, shuffled.qrels.document)
    np.testing.assert_array_equal(truth.qrels.score[~trained], shuffled.qrels.score[~trained])
    moved = 0
    for query in np.unique(truth.qrels.query[trained]):
        own = trained & (truth.qrels.query == query)
        before, after = truth.qrels.score[own], shuffled.qrels.score[own]
        np.testing.assert_array_equal(np.sort(before), np.sort(after))
        moved += int((before != after).sum())
    assert moved > 0.5 * trained.sum()
    with pytest.raises(KeyError):
        data.dataset_folder("fashion", "reversed")


def test_a_missing_data_set_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(data.DATA, "teacher", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no data set there; docs/benchmark-data\.md"):
        data.dataset_folder("teacher")


def test_per_query_rows_come_in_the_order_of_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cell_file, "RESULTS", tmp_path)
    columns: dict[str, Any] = {"split": ["zero_shot", "in_domain", "in_domain"], "query_id": ["q1", "q9", "q2"]}
    columns |= {"ndcg@10": [0.1, 0.2, 0.3], "recall@100": [1.0, 0.5, 0.0], "err": [0.0, 0.0, 0.0]}
    place = cell_file.Place("fashion", "title", "clip")
    cell_file.write_cell(place, 0, {"splits": {"in_domain": {"ndcg@10": 0.123456789}}}, pa.table(columns))
    rows = pq.read_table(place.cell(0).with_suffix(".parquet")).to_pylist()
    assert [(row["split"], row["query_id"]) for row in rows] == [
        ("in_domain", "q2"),
        ("in_domain", "q9"),
        ("zero_shot", "q1"),
    ]
    assert "err" not in rows[0]
    assert json.loads(place.cell(0).read_text())["splits"]["in_domain"]["ndcg@10"] == 0.123457


@pytest.mark.parametrize("form", gradients.FORMS, ids=lambda form: form.name)
def test_gradients_are_those_of_the_loss_on_vectors(tmp_path: Path, form: gradients.Form) -> None:
    dataset = ranked(tmp_path / "data", queries=30, documents=80, judged=20)
    pairs = ShuffledBatches(dataset.splits.training_pairs(), 24, 0).pairs(0, 0)
    known, weighted = (
        Known(len(relation.queries), len(relation.documents), relation_tensors(relation))
        for relation in (Relations(dataset, weight_function(w), "dataset").of(pairs) for w in ("linear", form.weights))
    )
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.nn.functional.normalize(torch.randn(rows, 8, generator=generator), dim=1)
        for rows in (known.queries, known.documents)
    )
    found = form.loss(5 * left @ right.T, known)
    matrix = weighted.matrix()
    pulled, pushed = gradients.pulls(form, 5 * left @ right.T, known)
    if form.target == "diagonal":
        left, right = left[known.pair_query], right[known.pair_document]
        matrix = weighted.pair_weight
    expected = gcl_loss(left, right, matrix, 5.0, target=form.target, direction=form.direction)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(pulled) == len(pushed) == len(gradients.SCORES)
    if "exponential" in form.weights:
        assert np.nanargmax(pulled) <= 1  # the best documents are pulled the most
