"""A user's mistake is one sentence that names what is wrong, and exit code 2, for every command: no traceback."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opengcl import cli
from opengcl.data.problems import listed
from tests.test_cli import run_cli

Run = Callable[..., tuple[int, str]]

TABLE = "query,doc_id,title,score\n" + "".join(
    f"{color} {thing},{number % 12},{color} {thing} {number % 12},{1 + number % 5}\n"
    for number, (color, thing) in enumerate(
        (color, thing) for color in ("red", "blue", "green", "grey") for thing in ("shoe", "hat", "lamp", "sock") * 3
    )
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit code and standard error of a command."""

    def called(*words: object) -> tuple[int, str]:
        code, _, err = run_cli(capsys, monkeypatch, *map(str, words))
        assert "Traceback" not in err
        return code, err

    return called


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 16 queries and 12 documents."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "table.csv").write_text(TABLE)
    words = ["opengcl", "data", "import", folder / "table.csv", "--out", folder / "shop"]
    words += ["--repeated-pairs", "max"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(one) for one in words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    return folder / "shop"


@pytest.fixture(scope="module")
def trained(shop: Path) -> Path:
    """A run folder as training leaves it."""
    out = shop.parent / "run"
    words = ["train", "--data", shop, "--model", "static", "--out", out, "--fields", "title", "--epochs", "1"]
    words += ["--batch-size", "8", "--device", "cpu", "--set", "evaluations=1", "--set", "dim=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["opengcl", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    return out


def break_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def broken(file: Path) -> None:
        pq.write_table(change(pq.read_table(file)), file)

    return broken


def become_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def written(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content) and None  # type: ignore[func-returns-value]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


DATA_SETS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no judgments": ("qrels.parquet", break_table(lambda table: table.slice(0, 0)), "qrels.parquet: found no rows"),
    "no ids": (
        "queries.parquet",
        break_table(lambda table: table.drop_columns(["query_id"])),
        "queries.parquet, column 'query_id': missing; the file has query",
    ),
    "a list": ("dataset.yaml", written(b"- a\n- b\n"), "dataset.yaml: the file: found ['a', 'b']; allowed: a mapping"),
    "bytes": ("dataset.yaml", written(b"name: \xff\xfe"), "dataset.yaml, line 1: byte 6 is not UTF-8"),
    "nothing": ("dataset.yaml", written(b""), "dataset.yaml: the file: found nothing; allowed: a mapping"),
    "a folder": ("dataset.yaml", become_folder, "dataset.yaml: cannot be read: Is a directory"),
    "a folder for a table": ("qrels.parquet", become_folder, "qrels.parquet: no such file"),
    "cut": ("documents.parquet", cut, "documents.parquet: not readable as Parquet"),
    "lost": ("qrels.parquet", Path.unlink, "qrels.parquet: No such file or directory"),
}


@pytest.mark.parametrize(("file", "breaks", "told"), DATA_SETS.values(), ids=list(DATA_SETS))
def test_broken_data_sets(
    run: Run, shop: Path, tmp_path: Path, file: str, breaks: Callable[[Path], None], told: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(shop, broken)
    breaks(broken / file)
    for words in (
        ("data", "check", broken),
        ("data", "show", broken, "--out", tmp_path / "page.html"),
        ("data", "sample", broken, "--out", tmp_path / "small", "--queries", "2"),
        ("train", "--data", broken, "--model", "static", "--out", tmp_path / "run"),
    ):
        code, err = run(*words)
        assert code == 2
        assert told in err
    assert not (tmp_path / "small").exists()


def strings(table: pa.Table) -> pa.Table:
    return table.set_column(3, table.column_names[3], pa.array(["x"] * len(table)))


def without_ranks(table: pa.Table) -> pa.Table:
    place = table.column_names.index("rank")
    return table.set_column(place, "rank", pa.nulls(len(table), pa.int32()))


RUNS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "cut metrics": ("metrics.json", cut, "metrics.json: not JSON"),
    "bytes": ("metrics.json", written(b"\xff\xfe"), "metrics.json: not JSON"),
    "a list": ("metrics.json", written(b"[]"), "metrics.json: found no 'splits' table"),
    "no splits": ("metrics.json", written(b'{"splits": {}}'), "metrics.json: found no 'splits' table"),
    "a list a split": ("metrics.json", written(b'{"splits": {"x": [1]}}'), "the split 'x' holds [1]; expected metric"),
    "texts": ("metrics.json", written(b'{"splits": {"x": {"mrr": "a"}}}'), "holds {'mrr': 'a'}; expected metric"),
    "other metrics": ("metrics.json", written(b'{"splits": {"x": {"mrr": 1}, "y": {}}}'), "'y' has other metrics"),
    "deep": ("metrics.json", written(b"[" * 100_000), "metrics.json: not JSON"),
    "config": ("config.yaml", written(b"- a\n"), "config.yaml: found ['a']; allowed: a mapping of settings"),
    "history": ("history.json", written(b"[1"), "history.json: not JSON"),
    "a text for a step": ("history.json", written(b'[{"step": "x"}]'), "history.json: 'step' is 'x'; expected a num"),
    "no Parquet": ("per_query.parquet", written(b"hello"), "per_query.parquet: not readable as Parquet"),
    "a folder": ("per_query.parquet", become_folder, "per_query.parquet is missing"),
    "texts a query": ("per_query.parquet", break_table(strings), "found type string; allowed: float"),
    "no results": ("results.parquet", written(b"hello"), "results.parquet: not readable as Parquet"),
    "no ranks": ("results.parquet", break_table(without_ranks), "results.parquet, column 'rank': found empty values"),
}


@pytest.mark.parametrize(("file", "breaks", "told"), RUNS.values(), ids=list(RUNS))
def test_broken_run_folders(
    run: Run, trained: Path, tmp_path: Path, file: str, breaks: Callable[[Path], None], told: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    breaks(broken / file)
    commands: list[tuple[object, ...]] = [("report", broken, "--out", tmp_path / "report.html")]
    commands += [("train", "--out", broken, "--resume")] * (file in ("metrics.json", "config.yaml"))
    for words in commands:
        code, err = run(*words)
        assert code == 2
        assert told in err
        assert str(broken / file) in err
    assert not (tmp_path / "report.html").exists()


MODELS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no weights": ("model.safetensors", Path.unlink),
    "cut weights": ("model.safetensors", cut),
    "a card that is a list": ("opengcl.json", written(b"[]")),
    "a card that is no JSON": ("opengcl.json", written(b"{")),
    "a card of bytes": ("opengcl.json", written(b"\xff\xfe")),
    "no modules": ("modules.json", written(b"{")),
    "no tokenizer": ("tokenizer.json", written(b"{}")),
}


@pytest.mark.parametrize(("file", "breaks"), MODELS.values(), ids=list(MODELS))
def test_broken_models(
    run: Run, trained: Path, shop: Path, tmp_path: Path, file: str, breaks: Callable[[Path], None]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    breaks(broken / "model" / file)
    for words in (("evaluate", broken, "--data", shop), ("encode", broken, "--data", shop, "--out", tmp_path / "out")):
        code, err = run(*words)
        assert code == 2
        assert str(broken) in err


OUTS = {
    "a full folder": lambda folder: folder / "full",
    "a file": lambda folder: folder / "file",
    "below a file": lambda folder: folder / "file" / "out",
    "where nothing can be made": lambda _: Path("/proc/nothing/out"),
}


@pytest.mark.parametrize("place", OUTS.values(), ids=list(OUTS))
def test_places_that_cannot_be_written(run: Run, shop: Path, tmp_path: Path, place: Callable[[Path], Path]) -> None:
    (tmp_path / "full").mkdir()
    for name in ("full/x", "file"):
        (tmp_path / name).write_text("mine")
    out = place(tmp_path)
    for words in (
        ("data", "import", shop.parent / "table.csv", "--repeated-pairs", "max", "--out", out),
        ("data", "split", shop, "--out", out),
        ("data", "sample", shop, "--queries", "2", "--out", out),
    ):
        code, err = run(*words)
        assert code == 2
        assert str(out) in err or str(out.parent) in err
    assert (tmp_path / "full/x").read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "full"]


VECTORS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a list": ("vectors.json", written(b"[]"), "holds no vectors.json of this version"),
    "bytes": ("vectors.json", written(b"\xff"), "holds no vectors.json of this version"),
    "cut": ("part-00000.parquet", cut, "part-00000.parquet: cannot be read as vectors"),
    "others": (
        "part-00000.parquet",
        break_table(lambda table: table.drop_columns(["vector"])),
        "part-00000.parquet: cannot be read as vectors",
    ),
}


@pytest.mark.parametrize(("file", "breaks", "told"), VECTORS.values(), ids=list(VECTORS))
def test_broken_vectors(
    run: Run, trained: Path, shop: Path, tmp_path: Path, file: str, breaks: Callable[[Path], None], told: str
) -> None:
    vectors, store = tmp_path / "vectors", f"exact:{tmp_path / 'store'}"
    assert run("encode", trained, "--data", shop, "--out", vectors)[0] == 0
    breaks(vectors / file)
    code, err = run("index", "build", trained, "--data", shop, "--store", store, "--vectors", vectors)
    assert code == 2
    assert told in err
    if file == "vectors.json":
        code, err = run("encode", trained, "--data", shop, "--out", vectors)
        assert code == 2
        assert told in err


def test_files_that_cannot_be_written(run: Run, trained: Path, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place, told in ((tmp_path / "folder", "is a folder"), (tmp_path / "none/page.html", "no such folder")):
        for words in (("data", "show", shop), ("report", trained)):
            code, err = run(*words, "--out", place)
            assert code == 2
            assert told in err
    for name, told in (("folder", "found a folder"), ("means.parquet", "found the name of the per-query values")):
        code, err = run("evaluate", trained, "--data", shop, "--out", tmp_path / name)
        assert code == 2
        assert told in err
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_stores_that_are_none(run: Run, tmp_path: Path) -> None:
    for name in ("garbage", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "garbage/exact.sqlite").write_bytes(b"garbage" * 100)
    (tmp_path / "folder/exact.sqlite").mkdir()
    (tmp_path / "file").write_text("mine")
    for name, told in (("garbage", "file is not a database"), ("folder", "unable to open"), ("file", "found a file")):
        for words in (("list",), ("swap", "one"), ("drop", "one")):
            code, err = run("index", *words, "--store", f"exact:{tmp_path / name}")
            assert code == 2
            assert told in err
            assert str(tmp_path / name) in err


NUMBERS = [
    ("compare", "a.json", "b.json", "--seed", "-1"),
    ("data", "show", "shop", "--out", "page.html", "--seed", "-1"),
    ("data", "sample", "shop", "--out", "small", "--queries", "2", "--seed", "-1"),
    ("data", "sample", "shop", "--out", "small", "--queries", "1e400"),
    ("data", "split", "shop", "--out", "other", "--dev", "nan"),
    ("data", "split", "shop", "--out", "other", "--seen-queries", "1e400"),
    ("evaluate", "run", "--data", "shop", "--splits", ""),
    ("evaluate", "run", "--data", "shop", "--metrics", "ndcg@nan"),
    ("data", "from-logs", "table.csv", "--documents", "shop", "--out", "clicks", "--most-events", "9" * 23),
    ("data", "from-logs", "table.csv", "--documents", "shop", "--out", "clicks", "--max-position", "9" * 23),
    ("data", "from-logs", "table.csv", "--documents", "shop", "--out", "clicks", "--min-query-clicks", "1e400"),
]


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("words", NUMBERS, ids=[" ".join(words[-2:])[:30] for words in NUMBERS])
def test_numbers_and_names_that_are_not_allowed(
    run: Run, shop: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(shop.parent)
    code, err = run(*words)
    assert code == 2
    assert words[-2].lstrip("-").split("-")[-1].removesuffix("s") in err
    assert {one.name for one in shop.parent.iterdir()} == {"table.csv", "shop", "run"}


LIBRARIES = [
    pa.ArrowNotImplementedError("no such\ncast"),
    pa.ArrowKeyError("no such field"),
    duckdb.ConversionException("no such value"),
    MemoryError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    PermissionError(13, "Permission denied", "shop"),
]


@pytest.mark.parametrize("error", LIBRARIES, ids=lambda error: type(error).__name__)
def test_errors_of_libraries_are_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys.modules["opengcl.cli.main"], "app", fail)
    code, err = run("compare")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    monkeypatch.setenv("OPENGCL_DEBUG", "1")
    with pytest.raises(type(error)):
        run("compare")


def test_faults_of_ours_are_no_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["opengcl.cli.main"], "app", lambda: {}["key"])
    with pytest.raises(KeyError):
        run("compare")


def test_columns_are_listed_within_a_bound() -> None:
    assert listed(["a", "b"]) == "a, b"
    many = listed([f"{number}{'x' * 1000}" for number in range(10_000)])
    assert len(many) < 6000
    assert many.endswith(" and 9,950 more")
