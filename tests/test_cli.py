"""Every command on a small shop, as a user types it; and what a user sees when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from opengcl import cli, make_shop
from opengcl.data import RankedDataset
from opengcl.product_search import ProductSearch
from opengcl.quickstart import quickstart


def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``opengcl WORDS``."""
    monkeypatch.setattr(sys, "argv", ["opengcl", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("cli") / "shop", products=60, queries=40, image_size=32)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A small quickstart: its folder and what it said."""
    out = tmp_path_factory.mktemp("quickstart")
    said: list[str] = []
    quickstart(out, products=60, epochs=1, say=said.append)
    return out, said


def test_quickstart_trains_both_compares_reports_and_searches(story: tuple[Path, list[str]]) -> None:
    out, said = story
    text = "\n".join(said)
    for split in ("in_domain", "novel_query", "novel_document", "zero_shot"):
        assert f"### {split}" in text
    assert "synthetic" in text.lower()
    for run in ("clip", "gcl"):
        content = json.loads((out / run / "metrics.json").read_text())
        assert f"{content['splits']['in_domain']['ndcg@10']:.4f}" in text
    page = (out / "gcl" / "report.html").read_text()
    assert "Synthetic" in page
    assert "baseline" in page.lower()


def test_quickstart_again_keeps_what_is_done(story: tuple[Path, list[str]]) -> None:
    out, _ = story
    before = (out / "clip" / "metrics.json").stat().st_mtime_ns
    said: list[str] = []
    quickstart(out, products=60, epochs=1, say=said.append)
    assert sum("already trained" in line for line in said) == 2
    assert (out / "clip" / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings"):
        quickstart(out, products=60, epochs=2, say=said.append)


def test_train_evaluate_compare_metrics_report_and_search(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = ["train", "--data", str(shop), "--model", "tiny", "--out", str(run), "--fields", "image=0.9,title=0.1"]
    words += ["--weights", "exponential", "--targets", "full_row", "--epochs", "1", "--batch-size", "64", "--seed", "3"]
    code, out, err = run_cli(capsys, monkeypatch, *words, "--device", "cpu", "--set", "evaluations=1")
    assert code == 0, err
    assert "zero_shot" in out
    card = json.loads((run / "model" / "opengcl.json").read_text())
    assert card["document_fields"]["image"] == {"type": "image", "weight": 0.9}

    file, folder = tmp_path / "dev.json", tmp_path / "files"
    asked = ["--data", str(shop), "--splits", "in_domain,zero_shot", "--queries", "dev"]
    code, out, err = run_cli(
        capsys, monkeypatch, "evaluate", str(run), *asked, "--out", str(file), "--runs", str(folder)
    )
    assert code == 0, err
    content = json.loads(file.read_text())
    assert list(content["splits"]) == ["in_domain", "zero_shot"]
    assert content["queries"] == "dev"
    assert f"{content['splits']['zero_shot']['recall@100']:.4f}" in out

    # 2% of the shop's products have no picture: all splits of 60 products hold both kinds only by luck, so any will do.
    for kinds in content.get("fields", {}).values():
        assert "image+title" in kinds
        assert f"{kinds['image+title']['documents']:.4f}" in out
    code, out, err = run_cli(capsys, monkeypatch, "evaluate", str(run), *asked, "--missing-fields", "guess")
    assert code == 2
    assert "missing_fields is 'guess'; use one of fill_in, leave_out" in err

    pair = [str(folder / f"in_domain.{name}.parquet") for name in ("qrels", "run")]
    code, out, err = run_cli(capsys, monkeypatch, "metrics", *pair, "--json", "--ties", "input")
    assert code == 0, err
    assert json.loads(out)["metrics"]["ndcg@10"] == pytest.approx(content["splits"]["in_domain"]["ndcg@10"], abs=1e-9)
    code, out, err = run_cli(capsys, monkeypatch, "metrics", *pair, "--compat", "gcl")
    assert code == 0, err
    assert "ndcg@10" in out

    other = tmp_path / "all.json"
    code, _, err = run_cli(capsys, monkeypatch, "evaluate", str(run), "--data", str(shop), "--out", str(other))
    assert code == 0, err
    code, out, err = run_cli(capsys, monkeypatch, "compare", str(run), str(other), "--metrics", "ndcg@10", "--json")
    assert code == 0, err
    assert [row["difference"] for row in json.loads(out)["rows"]].count(0.0) == 4

    for _ in range(2):  # the second time from the kept vectors
        code, out, err = run_cli(capsys, monkeypatch, "search", str(run), "red backpack", "-k", "4")
        assert code == 0, err
        assert [int(line.split()[0]) for line in out.splitlines()] == [1, 2, 3, 4]

    (run / "report.html").unlink()
    code, _, err = run_cli(capsys, monkeypatch, "report", str(run), "--note", "A note.")
    assert code == 0, err
    assert "A note." in (run / "report.html").read_text()

    code, _, err = run_cli(capsys, monkeypatch, "train", "--out", str(run), "--resume")
    assert code == 0, err


def test_a_config_file_is_enough(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings as people write them: the folder is called 2024, the numbers 1e-5 and 1e0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").symlink_to(shop)
    (tmp_path / "gcl.yaml").write_text(
        "data: shop\nmodel: tiny\nout: 2024\nfields: {title: 1, image: 2e0}\nepochs: 1e0\nlearning_rate: 1e-5\n"
        "evaluations: 0\nbatch_size: 64\ndevice: cpu\n"
    )
    code, out, err = run_cli(capsys, monkeypatch, "train", "--config", "gcl.yaml")
    assert code == 0, err
    assert "zero_shot" in out
    written = yaml.safe_load((tmp_path / "2024" / "config.yaml").read_text())
    assert (written["out"], written["learning_rate"]) == ("2024", 1e-5)
    code, _, err = run_cli(capsys, monkeypatch, "train", "--config", "gcl.yaml", "--resume")
    assert code == 0, err
    code, _, err = run_cli(capsys, monkeypatch, "report", "2024")
    assert code == 0, err


def test_search_finds_what_a_full_sort_finds(story: tuple[Path, list[str]]) -> None:
    out, _ = story
    dataset = RankedDataset.open(out / "shop")
    search = ProductSearch(out / "gcl", dataset, progress=False)
    every = search("blue bag", k=1000)
    assert [hit.rank for hit in every] == list(range(1, len(dataset.documents) + 1))
    assert [hit.score for hit in every] == sorted((hit.score for hit in every), reverse=True)
    assert search("blue bag", k=3) == every[:3]
    assert dataset.documents.texts("title", [dataset.documents.row(every[0].doc_id)])[0] in (every[0].title, None)


def test_vectors_follow_the_documents(story: tuple[Path, list[str]], shop: Path) -> None:
    out, _ = story
    other = RankedDataset.open(shop)
    hits = ProductSearch(out / "gcl", other, progress=False)("red backpack", k=1000)
    assert {hit.doc_id for hit in hits} == set(other.documents.ids())
    assert len(list((out / "gcl" / "model" / "vectors").glob("*.npy"))) >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--data", "nowhere", "--model", "tiny", "--out", "x"], "nowhere"),
        (["train", "--out", "x"], "setting 'data' is missing"),
        (["train", "--data", "SHOP", "--model", "tiny"], "setting 'out' is missing"),
        (["train", "--data", "SHOP", "--model", "tiny", "--out", "x", "--target", "list"], "allowed: diagonal, masked"),
        (["train", "--config", "none.yaml"], "none.yaml: cannot be read: No such file"),
        (
            ["train", "--data", "SHOP", "--model", "tiny", "--out", "x", "--set", "warmup="],
            "found no value; write null",
        ),
        (["train", "--data", "SHOP", "--model", "tiny", "--out", "x", "--set", "warmup=[1"], "not readable as YAML"),
        (["train", "--data", "SHOP", "--model", "tiny", "--out", "x", "--set", "strict=no"], "allowed: true or false"),
        (["train", "--data", "SHOP", "--model", "tiny", "--out", "x", "--set", "warmup"], "write name=value"),
        (["train", "--data", "SHOP", "--model", "tiny", "--out", "x", "--fields", "price=1"], "title, image"),
        (
            ["train", "--data", "SHOP", "--model", "tiny", "--out", "x", "--fields", "title=1"],
            "none of the fields title",
        ),
        (["evaluate", "no/such/model", "--data", "SHOP"], "'no/such/model' cannot be opened"),
        (["evaluate", "no/such/model", "--data", "SHOP", "--fields", "title=x"], "'x' is not a number"),
        (["compare", "SHOP"], "at least two"),
        (["metrics", "no.tsv", "no.tsv"], "no.tsv"),
        (["search", "SHOP", "red bag"], "config.yaml"),
        (["report", "SHOP"], "config.yaml"),
    ],
    ids=lambda value: "-".join(value[:1] + value[-2:]) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    shop: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(capsys, monkeypatch, *[str(shop) if word == "SHOP" else word for word in words])
    assert code == 2
    assert message in err
    assert "Traceback" not in err + out
    assert not (tmp_path / "x").exists()


def test_help_does_not_wait_for_torch() -> None:
    script = "import sys, opengcl.cli\nsys.argv = ['opengcl', '--help']\ntry: opengcl.cli.main()\n"
    script += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "quickstart" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config", "FILE"],
        ["data", "import", "t.csv", "--out", "x", "--mapping", "FILE"],
        ["data", "curate", "--dry-run", "--config", "FILE"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_wrong_yaml_files_are_one_sentence(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("query,product_id,title,score\na,1,x,1\n")
    wrong = {"empty": b"", "binary": bytes(range(256)), "latin": b"a: \xe9", "text": b"some words", "tab": b"a:\n\t- b"}
    wrong |= {
        "deep": b"[" * 10_000,
        "large": b"#" * (2 << 20),
        "alias": b"a: &x 1\nb: *x",
        "tag": b"!!python/name:os {}",
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in (*wrong, "none", "folder", "loop", "empty/inside", "x" * 300):
        code, _, err = run_cli(capsys, monkeypatch, *[name if word == "FILE" else word for word in words])
        assert (code, err.startswith(f"error: {name}"), err.count("\n")) == (2, True, 1), err
        assert len(err) < 800
