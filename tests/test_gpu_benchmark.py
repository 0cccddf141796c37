"""The GPU's benchmark on a CPU: the whole run, what it keeps when something breaks, and that its sides do the same."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.gpu import SECTIONS, Section, Setting, loss, runner, search, tables
from benchmarks.gpu.apart import apart
from benchmarks.gpu.record import Record, Row, put_json
from benchmarks.speed import cost_model
from torch import Tensor

from opengcl.loss import gcl_loss

ROOT = Path(__file__).parents[1]
ON_THE_GPU_ALONE = {
    "copy from the host, pageable",
    "copy from the host, pinned",
    "pinned memory",
    "killed and resumed, fp16",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Section -> its file, of one run of everything."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--size", "check", "--minutes", "12"]
    done = subprocess.run(
        [*command, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    files = sorted(path.name for path in out.iterdir())
    assert files == sorted(f"{section.name}.json" for section in SECTIONS)
    assert len(files) <= 8
    found = {section.name: json.loads((out / f"{section.name}.json").read_text()) for section in SECTIONS}
    assert all(content["rows"][0]["name"] in done.stdout for content in found.values())
    return found


@pytest.mark.timeout(600)
def test_the_whole_run_measures_everything_on_a_cpu(whole: dict[str, dict[str, Any]]) -> None:
    for name, content in whole.items():
        assert content["ended"] == "complete", (name, content.get("log"))
        failed = [row for row in content["rows"] if "error" in row or "out_of_memory" in row]
        assert failed == [], name
        names = [row["name"] for row in content["rows"]]
        assert len(set(names)) == len(names), name
        assert {one["name"] for one in content["skipped"]} <= ON_THE_GPU_ALONE, name
        assert content["machine"]["versions"]["torch"] == torch.__version__
    loss_rows = {row["name"] for row in whole["loss"]["rows"]}
    for side in ("ours", "ours, ranked", "open_clip", "sentence-transformers", "sentence-transformers, cached"):
        assert f"{side}, float32, 512 pairs" in loss_rows


def test_the_same_numbers_are_found_to_be_the_same(whole: dict[str, dict[str, Any]]) -> None:
    rows = {row["name"]: row for row in whole["truth"]["rows"]}
    assert rows["killed and resumed, float32"]["equal_to_the_bit"]
    assert rows["killed and resumed, float32"]["killed_after"] < rows["killed and resumed, float32"]["steps"]
    assert rows["loss, CPU against GPU"]["met"]
    assert rows["evaluation, CPU against GPU"]["met"]
    assert rows["fp16's scaler, saved and read"]["met"]
    first = next(row for row in whole["text"]["rows"] if "losses" in row)["losses"]
    assert first["ours"] == pytest.approx(first["sentence-transformers"], rel=1e-5)


def test_bfloat16_is_further_from_the_truth_than_float32(whole: dict[str, dict[str, Any]]) -> None:
    for row in (row for row in whole["loss"]["rows"] if "errors" in row):
        for part in ("queries", "documents"):
            assert row["errors"]["ours, float32"][part] < 1e-5
            assert 1e-4 < row["errors"]["ours, bf16"][part] < 0.1


def test_what_was_measured_becomes_tables(whole: dict[str, dict[str, Any]]) -> None:
    text = tables.performance(whole)
    for name, content in whole.items():
        timed = [row for row in content["rows"] if "seconds" in row]
        assert [row["name"] for row in timed if tables._cell(row["name"]) not in text and name != "fashion"] == []
    assert "| ours | 0 | 2 |" in text
    assert "equal to the bit" in text
    assert all(line.count("|") == text_line.count("|") for line, text_line in table_rows(text))
    assert tables.scale(whole) == tables.NOTHING  # a check has no batch of the size that the model takes


def table_rows(text: str) -> list[tuple[str, str]]:
    """Neighbouring lines of every table; escaped bars are not counted."""
    lines = [line.replace("\\|", "") for line in text.splitlines()]
    return [(one, other) for one, other in itertools.pairwise(lines) if one[:1] == other[:1] == "|"]


def made_results() -> dict[str, dict[str, Any]]:
    """Files of a card whose rates are known."""
    machine = {"gpu": {"name": "Card", "bytes": 80e9}, "cores": 16, "cpu": "C", "python": "3", "cuda": "13"}
    rows = {
        "ceilings": [{"name": "product, bf16", "flop": 6e12, "seconds": [0.01, 0.02, 0.01]}],
        "loss": [{"name": "ours, float32, 16,384 pairs", "pairs": 16_384, "flop": 4e12, "seconds": [0.1]}],
        "steps": [
            {"name": "bare loop, x", "precision": "bf16", "kept": "all kept", "flop": 3e12, "seconds": [0.01]},
            {"name": "AdamW, fused", "parameters": 1e9, "seconds": [0.014]},
        ],
        "pictures": [
            {"name": "decoding, 1 workers", "workers": 1, "documents": 100, "seconds": [0.5]},
            {"name": "decoding, 16 workers", "workers": 16, "documents": 1_600, "seconds": [0.6]},
            {"name": "reading the cache, 0 workers", "workers": 0, "documents": 1_000, "seconds": [0.2]},
        ],
    }
    about: dict[str, Any] = {"size": "full", "started": "2026-01-01T00", "ended": "complete"}
    about["machine"] = {**machine, "versions": {"torch": "2"}}
    return {name: {**about, "rows": found} for name, found in rows.items()}


def test_the_cost_model_takes_what_was_measured() -> None:
    found = made_results()
    card = tables.machine(found)
    assert card is not None
    assert card.matrix_flops == pytest.approx(600e12)
    assert card.used == pytest.approx(0.5)
    assert card.plain_flops == pytest.approx(40e12)
    assert card.memory_bytes == pytest.approx(2e12)
    assert card.cores == 16
    fitted = tables.host(found)
    assert fitted.decode_seconds == pytest.approx(0.6 / 1_600 * 16)
    assert fitted.gather_seconds == pytest.approx(0.2e-3)
    text = tables.scale(found)
    assert "| share that the encoder reaches | 35% | 50% |  |" in text
    step = cost_model.predict(cost_model.VIT_B32, cost_model.MARQO, card, 8, fitted)
    assert f"| ViT-B/32 | 8 | {cost_model.figure(step.encoder * 1e3)} |" in text


def test_files_of_a_check_are_no_figures(tmp_path: Path) -> None:
    (tmp_path / "loss.json").write_text('{"size": "check"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"loss\.json: size is 'check'; allowed: full"):
        tables.read(tmp_path)


def test_the_pages_show_what_the_files_hold() -> None:
    for page, text in tables.generated().items():
        assert page.read_text(encoding="utf-8") == text, f"{page}: run python -m benchmarks.gpu.tables"


def told(work: Any, *words: Any, seconds: float = 30.0, log: Path) -> Any:
    return apart(work, *words, deadline=time.monotonic() + seconds, log=log)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(message: str) -> None:
    print("something before")
    raise KeyError(message)


def outlive(file: str) -> None:
    """Start a process and wait longer than there is time."""
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(file).write_text(str(started.pid), encoding="utf-8")
    time.sleep(60)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_apart_returns_or_says_how_it_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert told(max, 3, 4, log=log).returned == 4
    failed = told(fail, "no such thing", log=log)
    assert failed.error == "KeyError: 'no such thing'"
    assert "something before" in failed.log
    killed = told(kill_myself, log=log)
    assert (killed.error, killed.in_time) == ("ended by SIGKILL", True)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_when_time_is_up_a_process_ends_with_all_that_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    late = told(outlive, str(tmp_path / "pid"), seconds=1.0, log=tmp_path / "log")
    assert (late.error, late.in_time) == ("its time was up", False)
    assert time.monotonic() - began < 15
    inner = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not alive(inner):
            break
        time.sleep(0.1)
    assert not alive(inner)


def alive(process: int) -> bool:
    """Whether it runs; one that nobody has buried yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_fresh_process_does_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENGCL_BENCHMARK_FRESH_PROCESSES", "1")
    assert told(os.path.basename, "/a/b", log=tmp_path / "log").returned == "b"


def setting(folder: Path, seconds: float = 60.0) -> Setting:
    return Setting("cpu", "check", time.monotonic() + seconds, folder)


def test_a_row_that_fails_costs_no_other(tmp_path: Path) -> None:
    file = tmp_path / "loss.json"
    record = Record(file, "loss", setting(tmp_path))

    def out_of_memory(_: Row) -> None:
        raise torch.OutOfMemoryError("tried to allocate 17 GiB")

    def wrong(row: Row) -> None:
        row["seconds"] = [1.0]
        raise ValueError("x" * 5_000)

    assert record.piece("good", lambda row: row.update(seconds=[2.0]), pairs=3) is not None
    assert record.piece("large", out_of_memory) is None
    assert record.piece("wrong", wrong) is None
    assert record.piece("long", lambda row: row.update(seconds=[2.0]), needs=100.0) is None
    found = json.loads(file.read_text())
    assert found["ended"] == "running"
    good, large, broken = found["rows"]
    assert good == {"name": "good", "pairs": 3, "seconds": [2.0]}
    assert large["out_of_memory"] == "OutOfMemoryError: tried to allocate 17 GiB"
    assert broken["seconds"] == [1.0]
    assert len(broken["error"]) < 2_100
    assert found["skipped"][0]["name"] == "long"
    assert [path.name for path in tmp_path.iterdir()] == ["loss.json"]


def test_a_file_is_as_it_was_or_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    put_json(file, {"rows": [1]})

    def full(*_: Any, **__: Any) -> int:
        raise OSError("no space")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        put_json(file, {"rows": [1, 2]})
    assert json.loads(file.read_bytes()) == {"rows": [1]}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_section_that_dies_or_hangs_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_row(record: Record, _: Setting) -> None:
        record.piece("a row", lambda row: row.update(seconds=[1.0]))

    def dies(record: Record, given: Setting) -> None:
        one_row(record, given)
        record.piece("a second row", lambda _: kill_myself())

    def hangs(record: Record, given: Setting) -> None:
        one_row(record, given)
        time.sleep(60)

    for name, run in (("dies", dies), ("hangs", hangs), ("works", one_row)):
        module: Any = ModuleType(f"benchmarks.gpu.{name}")
        module.run = run
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(runner, "_load", lambda: None)
    monkeypatch.setattr(runner, "_SPARE", 0.0)
    monkeypatch.setattr("benchmarks.gpu.record.tidy_memory", lambda: None)  # takes seconds beside a test suite
    sections = [Section(name, 1, name.title()) for name in ("dies", "hangs", "works")]
    out = tmp_path / "out"
    for chosen, seconds in ((sections[:1], 60), (sections[1:2], 8), (sections[2:], 60)):
        began = time.monotonic()
        end = began + runner._RESERVE + seconds
        runner.run(out, device="cpu", size="check", end=end, sections=chosen)
        assert time.monotonic() - began < 40
    found = {path.stem: json.loads(path.read_text()) for path in out.iterdir()}
    assert {name: content["ended"] for name, content in found.items()} == {
        "dies": "failed",
        "hangs": "out of time",
        "works": "complete",
    }
    assert found["dies"]["error"] == "ended by SIGKILL, in 'a second row'"
    assert all(content["rows"] == [{"name": "a row", "seconds": [1.0]}] for content in found.values())
    assert "a row: 1000 ms" in runner.summary(out, sections)


def test_without_a_gpu_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = SimpleNamespace(error="RuntimeError: no driver", returned=None)
    fresh: list[bool] = []
    monkeypatch.setattr(runner, "apart", lambda *_, **__: ended)
    monkeypatch.setattr(runner, "use_fresh", lambda: fresh.append(True))
    monkeypatch.setattr(runner, "_load", lambda: None)
    with pytest.raises(runner.NoGpuError, match="no driver"):
        runner.run(tmp_path, device="cuda", size="full", end=time.monotonic() + 60, sections=SECTIONS)
    assert fresh == [True]


@pytest.mark.parametrize("scale", loss.SCALES)
def test_losses_of_all_sides_are_one_loss(scale: float) -> None:
    vectors = loss.Vectors.made(48, 16, scale, "cpu", torch.float64)
    plain, cached = loss.sentence_transformers_losses(scale)
    found, gradients = [], []

    def ours(given: loss.Vectors) -> Tensor:
        return gcl_loss(given.queries, given.documents, torch.ones_like(given.weights), given.scale)

    for side in (loss.open_clip, ours, plain, cached):
        found.append(vectors.step(side).item())
        assert vectors.queries.grad is not None
        gradients.append(vectors.queries.grad.clone())
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)  # sentence-transformers' makes unit rows again
    for one, other in ((0, 1), (2, 3)):
        torch.testing.assert_close(gradients[one], gradients[other], rtol=1e-7, atol=1e-9)


def test_our_loss_in_bfloat16_rounds_the_factors_and_nothing_else() -> None:
    vectors = loss.Vectors.made(40, 16, 14.0, "cpu")
    found = vectors.step(loss.in_format("bf16", lambda given: gcl_loss(*given_with_even_weights(given))))
    with torch.no_grad():
        queries = (vectors.queries * vectors.scale).bfloat16().double()
        logits = queries @ vectors.documents.bfloat16().double().T
        picks = torch.arange(40)
        expected = (
            torch.nn.functional.cross_entropy(logits, picks) + torch.nn.functional.cross_entropy(logits.T, picks)
        ) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    exact = vectors.step(lambda given: gcl_loss(*given_with_even_weights(given)))
    assert abs(exact.item() - expected.item()) > 1e-5  # outside the block products are float32 again


def given_with_even_weights(given: loss.Vectors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return given.queries, given.documents, torch.ones_like(given.weights), given.scale


@pytest.mark.parametrize("near", [0.0, 1e-4, 1e-2])
def test_scoring_in_bfloat16_first_finds_the_lists_of_float32(near: float) -> None:
    """Also where documents lie nearer to each other than bfloat16 can tell."""
    generator = torch.Generator().manual_seed(1)
    queries, documents = (
        torch.nn.functional.normalize(torch.randn(rows, 24, generator=generator)) for rows in (9, 1_500)
    )
    if near:
        documents[100:300] = torch.nn.functional.normalize(
            documents[:1] + near * torch.randn(200, 24, generator=generator)
        )
        queries[0] = documents[0]
    scores, rows, again = search.halves_first(queries, documents, 10)
    expected, places = search.plain(queries, documents, 10)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    alone = (expected.diff(dim=1).abs() > 1e-6).all(1)  # lists without ties have one order
    assert torch.equal(rows[alone], places[alone])
    assert again > 0 or near != 1e-4
    assert again == 0 or near


@pytest.mark.timeout(600)
def test_training_loss_and_evaluation_need_no_engine_no_datasets_and_no_server(tmp_path: Path) -> None:
    code = """
    import importlib.metadata, importlib.util, sys
    from pathlib import Path

    hidden = {"duckdb", "ibis", "datasets", "fastapi", "uvicorn", "lancedb", "pyspark", "openai", "ijson"}

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in hidden:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def without(ask, missing):
        return lambda name, *more: missing(name) if name.partition(".")[0] in hidden else ask(name, *more)

    def no_package(name):
        raise importlib.metadata.PackageNotFoundError(name)

    sys.meta_path.insert(0, Hidden())
    importlib.util.find_spec = without(importlib.util.find_spec, lambda name: None)
    importlib.metadata.metadata = without(importlib.metadata.metadata, no_package)
    importlib.metadata.version = without(importlib.metadata.version, no_package)

    import torch
    from opengcl import BiEncoder, RankedDataset, TrainConfig, evaluate, gcl_loss, make_shop, train

    folder = Path(sys.argv[1])
    make_shop(folder / "shop", products=30, queries=10, image_size=16)
    config = TrainConfig(
        data=str(folder / "shop"), model="tiny", out=str(folder / "run"), epochs=1, batch_size=64, evaluations=1,
        device="cpu",
    )
    run = train(config, progress=False)
    dataset = RankedDataset.open(folder / "shop", progress=False)
    print(evaluate(BiEncoder.load(run), dataset).splits()["in_domain"]["ndcg@10"])
    rows = torch.nn.functional.normalize(torch.randn(4, 8))
    print(gcl_loss(rows, rows, torch.ones(4), 10.0).item())
    print(sorted(hidden & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env={**os.environ, "OPENGCL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    quality, value, loaded = done.stdout.split("\n")[:3]
    assert 0 < float(quality) <= 1
    assert float(value) > 0
    assert loaded == "[]"
