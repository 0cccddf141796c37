"""Real training runs on a small synthetic shop: what they write, and that nothing can be lost or mixed up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

import opengcl.training
from opengcl import BiEncoder, RankedDataset, TrainConfig, make_shop, train
from opengcl.data import DataSetError
from opengcl.encode import encode, fit_fill_in
from opengcl.evaluation import evaluate
from opengcl.model import ModelError
from opengcl.training import RankingTrainer, TrainError

SPLITS = {"in_domain", "novel_query", "novel_document", "zero_shot"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("shop") / "shop", products=60, queries=40, image_size=32)


def config(shop: Path, out: Path, **settings: object) -> TrainConfig:
    defaults: dict[str, object] = {"dim": 32, "batch_size": 64, "epochs": 2, "evaluations": 3, "device": "cpu"}
    return TrainConfig(data=str(shop), model="tiny", out=str(out), **{**defaults, **settings})  # type: ignore[arg-type]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same_run(one: Path, two: Path) -> None:
    for name, value in weights(one).items():
        assert torch.equal(value, weights(two)[name]), name
    contents = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    assert contents[0]["splits"] == contents[1]["splits"]
    cards = [json.loads((run / "model" / "opengcl.json").read_text()) for run in (one, two)]
    assert cards[0]["logit_scale"] == cards[1]["logit_scale"]


@pytest.fixture(scope="module")
def run(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return train(config(shop, tmp_path_factory.mktemp("runs") / "whole"), progress=False)


def test_the_run_folder_is_whole(run: Path, shop: Path) -> None:
    for name in ("config.yaml", "metrics.json", "per_query.parquet", "results.parquet", "history.json", "report.html"):
        assert (run / name).stat().st_size > 0
    assert list((run / "tensorboard").glob("events.*"))
    assert not (run / "cache").exists()
    content = json.loads((run / "metrics.json").read_text())
    assert set(content["splits"]) == SPLITS
    assert content["provenance"]["data"]["fingerprint"] == RankedDataset.open(shop).fingerprint
    history = json.loads((run / "history.json").read_text())
    evaluations = [entry for entry in history if "eval_ndcg@10" in entry]
    assert len(evaluations) == 3
    assert evaluations[-1]["step"] == content["provenance"]["steps"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_nothing_in_the_run_folder_is_pickled(run: Path) -> None:
    suffixes = {file.suffix for file in (run / "model").rglob("*") if file.is_file()}
    assert suffixes == {".json", ".safetensors"}
    kept = {file.suffix for file in (run / "checkpoints").rglob("*") if file.is_file()}
    assert kept == {".json", ".safetensors", ""}  # SHA256SUMS has none


def test_the_best_checkpoint_is_the_model(run: Path, shop: Path) -> None:
    history = json.loads((run / "history.json").read_text())
    best = max(entry["eval_ndcg@10"] for entry in history if "eval_ndcg@10" in entry)
    splits = evaluate(
        BiEncoder.load(run), RankedDataset.open(shop), part="dev", metrics=["ndcg@10"], depth=100
    ).splits()
    assert np.mean([row["ndcg@10"] for row in splits.values()]) == pytest.approx(best, abs=1e-9)


def test_the_model_knows_what_stands_for_missing_fields(tmp_path: Path) -> None:
    shop = make_shop(tmp_path / "shop", products=100, queries=20, image_size=32)
    run = train(config(shop, tmp_path / "run", epochs=1, evaluations=1), progress=False)
    model, dataset = BiEncoder.load(run), RankedDataset.open(shop)
    assert model.fill_in is not None
    assert set(model.fill_in.maps) == {("image", "title"), ("title", "image")}
    # What it learned is what the final weights say about the seen documents.
    again = fit_fill_in(model, dataset.documents, np.flatnonzero(dataset.splits.document_seen))
    for pair, one in again.maps.items():
        torch.testing.assert_close(model.fill_in.maps[pair].matrix, one.matrix, atol=1e-4, rtol=0)
    left_out = config(shop, tmp_path / "left", epochs=1, evaluations=1, missing_fields="leave_out")
    whole = train(left_out, progress=False)
    left = BiEncoder.load(whole)
    assert (left.missing_fields, left.fill_in) == ("leave_out", None)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(run).items())  # training is the same
    model.save(tmp_path / "again")
    assert not (whole / "model" / "fill_in.safetensors").exists()
    damaged = tmp_path / "again" / "fill_in.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"fill_in\.safetensors: SHA-256 is [0-9a-f]{64}; opengcl\.json says"):
        BiEncoder.load(tmp_path / "again")


def test_reloading_gives_the_reported_numbers(run: Path, shop: Path) -> None:
    content = json.loads((run / "metrics.json").read_text())
    again = evaluate(BiEncoder.load(run), RankedDataset.open(shop)).splits()
    for split, row in content["splits"].items():
        assert again[split] == pytest.approx(row, abs=1e-9)


def test_plain_sentence_transformers_opens_the_model(run: Path, shop: Path) -> None:
    dataset = RankedDataset.open(shop)
    rows = np.flatnonzero(dataset.queries.present("query", np.arange(10)))
    plain = SentenceTransformer(str(run / "model"), device="cpu")
    theirs = plain.encode(dataset.queries.texts("query", rows), normalize_embeddings=True)
    ours = encode(BiEncoder.load(run), dataset.queries, "query", rows)
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_the_same_seed_gives_the_same_bits(run: Path, shop: Path, tmp_path: Path) -> None:
    assert_same_run(run, train(config(shop, tmp_path / "again"), progress=False))


class StopAt(TrainerCallback):
    """Stands for a crash just after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("crash", [1, 5, 8])
def test_a_run_that_was_cut_off_ends_the_same(
    crash: int, run: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint, in the first epoch and in the second."""
    steps = json.loads((run / "metrics.json").read_text())["provenance"]["steps"]
    assert crash < steps
    started = RankingTrainer.__init__

    def with_a_crash(self: RankingTrainer, *args: object) -> None:
        started(self, *args)
        self.add_callback(StopAt(crash))

    settings = config(shop, tmp_path / "cut")
    monkeypatch.setattr(RankingTrainer, "__init__", with_a_crash)
    with pytest.raises(KeyboardInterrupt):
        train(settings, progress=False)
    monkeypatch.undo()
    assert_same_run(run, train(settings, resume=True, progress=False))


@pytest.mark.parametrize(("epochs", "evaluations"), [(2, 3), (1.5, 2), (1.5, 0)])
def test_a_run_that_was_cut_off_after_its_last_step_ends_the_same(
    epochs: float, evaluations: int, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (config(shop, tmp_path / name, epochs=epochs, evaluations=evaluations) for name in ("whole", "cut"))
    train(whole, progress=False)
    finished = opengcl.training._finished_model

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opengcl.training, "_finished_model", crash)
    with pytest.raises(KeyboardInterrupt):
        train(cut, progress=False)
    monkeypatch.setattr(opengcl.training, "_finished_model", finished)
    assert_same_run(Path(whole.out), train(cut, resume=True, progress=False))


def test_kill_minus_nine_and_resume_on_the_command_line(run: Path, shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    settings = config(shop, out)
    file = tmp_path / "settings.yaml"
    settings.write(file)
    command = [sys.executable, "-m", "opengcl.cli", "train", "--config", str(file), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=os.environ, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(run, out)


def test_resuming_something_else_is_refused(run: Path, shop: Path, tmp_path: Path) -> None:
    settings = config(shop, run)
    with pytest.raises(TrainError, match="not empty"):
        train(settings, progress=False)
    with pytest.raises(TrainError, match=r"batch_size was 64, now 32; seed was 0, now 1"):
        train(replace(settings, seed=1, batch_size=32), resume=True, progress=False)
    other = make_shop(tmp_path / "other", products=60, queries=40, image_size=32, seed=5)
    (run / "config.yaml").rename(tmp_path / "kept.yaml")
    try:
        config(other, run).write(run / "config.yaml")
        with pytest.raises(TrainError, match="the data set has changed"):
            train(config(other, run), resume=True, progress=False)
    finally:
        (tmp_path / "kept.yaml").rename(run / "config.yaml")
    with pytest.raises(TrainError, match="holds no run to resume"):
        train(config(shop, tmp_path / "nothing"), resume=True, progress=False)


def test_a_run_that_has_ended_is_left_alone(run: Path, shop: Path) -> None:
    before = (run / "metrics.json").stat().st_mtime_ns
    assert train(config(shop, run), resume=True, progress=False) == run
    assert (run / "metrics.json").stat().st_mtime_ns == before


def test_a_loss_that_is_not_finite_stops_with_the_batch(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = opengcl.training.RankingObjective.forward
    calls = iter(range(100))

    def broken(self: torch.nn.Module, *args: object, **inputs: object) -> dict[str, torch.Tensor]:
        out = forward(self, *args, **inputs)
        return {"loss": out["loss"] * float("nan")} if next(calls) == 2 else out

    monkeypatch.setattr(opengcl.training.RankingObjective, "forward", broken)
    with pytest.raises(TrainError, match=r"the loss of step 3 is nan; its batch of \d+ queries \(first: q"):
        train(config(shop, tmp_path / "broken"), progress=False)
    listed = json.loads((tmp_path / "broken" / "non_finite_batch.json").read_text())
    dataset = RankedDataset.open(shop)
    assert listed["step"] == 3
    assert dataset.splits.query_seen[dataset.queries.find(listed["queries"])].all()
    assert dataset.splits.document_seen[dataset.documents.find(listed["documents"])].all()


def test_training_reads_seen_pairs_only(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row that any batch of a run names is seen; all training pairs that fill batches are used."""
    batches: list[dict[str, torch.Tensor]] = []
    compute_loss = RankingTrainer.compute_loss

    def watched(self: RankingTrainer, model: torch.nn.Module, inputs: dict, **options: object) -> torch.Tensor:
        batches.append({**inputs["rows"], "pairs": inputs["relation"]["pair_weight"]})
        return compute_loss(self, model, inputs, **options)

    monkeypatch.setattr(RankingTrainer, "compute_loss", watched)
    train(config(shop, tmp_path / "watched", epochs=1, evaluations=0, docs_per_query=4), progress=False)
    splits = RankedDataset.open(shop).splits
    assert sum(len(batch["pairs"]) for batch in batches) == len(splits.training_pairs()) // 64 * 64
    assert splits.query_seen[torch.cat([batch["queries"] for batch in batches])].all()
    assert splits.document_seen[torch.cat([batch["documents"] for batch in batches])].all()


@pytest.mark.parametrize(
    "settings",
    [
        {"combine": "both", "target": "masked"},
        {"combine": "pairwise", "target": "full", "fields": {"title": 1.0, "image": 3.0}},
        {"mini_batch_size": 16, "gradient_checkpointing": True},
        {"lora_rank": 2},
        {"precision": "bf16", "learn_temperature": False},
        {"image_cache_gb": 0.0, "scaling": "query", "schedule": "linear"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_way_of_training_runs(settings: dict, shop: Path, tmp_path: Path) -> None:
    out = train(config(shop, tmp_path / "run", epochs=1, evaluations=1, **settings), progress=False)
    assert BiEncoder.load(out).logit_scale > 1
    names = weights(out)
    assert not any("lora" in name for name in names)


def test_workers_change_nothing(run: Path, shop: Path, tmp_path: Path) -> None:
    assert_same_run(run, train(config(shop, tmp_path / "workers", workers=2), progress=False))


def test_two_ranks_learn_what_one_process_learns(run: Path, shop: Path, tmp_path: Path) -> None:
    """Same batches, same losses: weights differ by rounding only."""
    out = tmp_path / "ranks"
    file = tmp_path / "settings.yaml"
    config(shop, out).write(file)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    done = subprocess.run(
        [*launch, "-m", "opengcl.cli", "train", "--config", str(file), "--out", str(out)],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "metrics.json").read_text())["provenance"]["ranks"] == 2
    losses = [
        [entry["loss"] for entry in json.loads((folder / "history.json").read_text()) if "loss" in entry]
        for folder in (run, out)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    for name, value in weights(run).items():
        torch.testing.assert_close(weights(out)[name], value, rtol=0, atol=2e-3)


def test_bad_rows_stop_a_run_unless_they_are_to_be_skipped(shop: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(shop, bad)
    qrels = pq.read_table(bad / "qrels.parquet")
    scores = qrels["score"].to_numpy().copy()
    scores[7] = np.nan
    at = qrels.column_names.index("score")
    pq.write_table(qrels.set_column(at, "score", pa.array(scores)), bad / "qrels.parquet")
    with pytest.raises(DataSetError, match=r"qrels\.parquet.*row 7"):
        train(config(bad, tmp_path / "strict"), progress=False)
    out = train(config(bad, tmp_path / "lenient", strict=False, epochs=1, evaluations=0), progress=False)
    assert (out / "metrics.json").is_file()


def halved_scores(shop: Path, out: Path, *, all_seen: bool = False) -> Path:
    """The same shop with scores in half the range, and, when asked, everything seen."""
    shutil.copytree(shop, out, ignore=shutil.ignore_patterns("*.partial"))
    table = pq.read_table(out / "qrels.parquet")
    column = table.column_names.index("score")
    halved = pa.array(table["score"].to_numpy() / 2 + 50)
    pq.write_table(table.set_column(column, "score", halved), out / "qrels.parquet")
    if all_seen:
        for name in ("queries.parquet", "documents.parquet"):
            rows = pq.read_table(out / name)
            pq.write_table(rows.append_column("split", pa.array(["seen"] * len(rows))), out / name)
    return out


def test_trained_on_one_data_set_and_evaluated_on_another(shop: Path, tmp_path: Path) -> None:
    """With constant weights both sets of scores teach the same; the figures are of the other set's dev queries."""
    clicks, judged = halved_scores(shop, tmp_path / "clicks"), halved_scores(shop, tmp_path / "judged")
    settings = {"weights": "constant", "epochs": 1, "evaluations": 1, "final_queries": "dev"}
    asked = config(clicks, tmp_path / "run", evaluation_data=str(judged), **settings)
    out = train(asked, progress=False)
    content = json.loads((out / "metrics.json").read_text())
    expected = evaluate(BiEncoder.load(out), RankedDataset.open(judged), part="dev").splits()
    assert content["queries"] == "dev"
    for split, row in content["splits"].items():
        assert expected[split] == pytest.approx(row, abs=1e-9)
    same = train(config(judged, tmp_path / "same", **settings), progress=False)
    assert_same_run(out, same)
    shutil.rmtree(judged)
    shutil.copytree(shop, judged)
    with pytest.raises(TrainError, match="the data set has changed"):
        train(asked, resume=True, progress=False)


def test_what_is_novel_to_the_evaluation_must_not_be_trained_on(shop: Path, tmp_path: Path) -> None:
    clicks = halved_scores(shop, tmp_path / "clicks", all_seen=True)
    with pytest.raises(TrainError, match=r"^query .* more are trained on, but novel in .*evaluation_data"):
        train(config(clicks, tmp_path / "run", evaluation_data=str(shop)), progress=False)
    assert not (tmp_path / "run").exists()
