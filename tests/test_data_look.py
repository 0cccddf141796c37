"""Checking, splitting and sampling data sets, as functions and as commands."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from opengcl import cli
from opengcl.data import DataSetError, RankedDataset, Schema, SplitOptions, write_dataset
from opengcl.data.check import check_dataset
from opengcl.data.resplit import resplit
from opengcl.data.sample import at_equal_distances, proportional, sample
from opengcl.data.schema import SCHEMA_FILE
from opengcl.data.splits import choose

SCHEMA = Schema(
    "shop", {"query": "text"}, {"title": "text", "image": "image"}, 0.0, 10.0, provenance={"source": "a shop"}
)
QUERIES, DOCUMENTS, JUDGED = 400, 1500, 1200


@pytest.fixture
def opengcl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Exit code, standard output and standard error of ``opengcl WORDS``."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["opengcl", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), shade).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Queries with 2 to 20 judged documents and scores that grow with them; one document in five is never judged."""
    generator = np.random.default_rng(0)
    counts = generator.integers(2, 21, QUERIES)
    rows = [(q, d) for q in range(QUERIES) for d in generator.choice(JUDGED, counts[q], replace=False)]
    never = [d for d in range(JUDGED) if d not in {document for _, document in rows}]
    rows += [(0, d) for d in never]
    scores = [min(10.0, counts[q] / 2 * generator.random()) for q, _ in rows]
    return write_dataset(
        tmp_path / "shop",
        SCHEMA,
        pa.table(
            {
                "query_id": [f"q{q}" for q in range(QUERIES)],
                "query": [f"query {q}" for q in range(QUERIES)],
                "n": range(QUERIES),
            }
        ),
        pa.table(
            {
                "doc_id": [f"d{d}" for d in range(DOCUMENTS)],
                "title": [f"title {d}" for d in range(DOCUMENTS)],
                "image": [picture(d % 256) if d % 3 else None for d in range(DOCUMENTS)],
                "brand": pa.array([f"brand {d % 7}" for d in range(DOCUMENTS)]).dictionary_encode(),
            }
        ),
        pa.table(
            {
                "query_id": [f"q{q}" for q, _ in rows],
                "doc_id": [f"d{d}" for _, d in rows],
                "score": scores,
                "click": range(len(rows)),
            }
        ),
    )


def table(folder: Path, name: str) -> pa.Table:
    return pq.read_table(folder / f"{name}.parquet")


def provenance(folder: Path) -> dict[str, Any]:
    return Schema.read(folder).provenance


# check


def test_a_good_data_set_has_no_problems(shop: Path, opengcl) -> None:
    code, out, _ = opengcl("data", "check", shop)
    assert code == 0
    assert "no problems" in out
    assert "1,500  (500 without image)" in out
    counts = RankedDataset.open(shop).describe()
    assert f"{counts['splits']['zero_shot']['pairs']:>12,} pairs" in out
    code, out, _ = opengcl("data", "check", shop, "--json")
    assert code == 0
    told = json.loads(out)
    assert {name: value for name, value in told.items() if name != "remarks"} == counts
    assert check_dataset(shop).problems == []


def scored(shop: Path, scores: Sequence[float]) -> Path:
    """The data set with these scores, over and over, in the range that they need."""
    qrels = table(shop, "qrels")
    cycled = np.resize(np.array(scores, dtype=float), qrels.num_rows)
    place = qrels.column_names.index("score")
    pq.write_table(qrels.set_column(place, "score", pa.array(cycled)), shop / "qrels.parquet")
    schema = replace(Schema.read(shop), score_min=-20.0, score_max=20.0)
    (shop / "dataset.yaml").write_text(schema.to_yaml(), encoding="utf-8")
    return shop


@pytest.mark.parametrize(("scores", "told"), [((-3, -2, -1, 4), "score below 0, "), ((0,), "score of 0, ")])
def test_scores_that_are_lost_are_told_with_the_way_out(
    shop: Path, opengcl, scores: tuple[float, ...], told: str
) -> None:
    code, out, _ = opengcl("data", "check", scored(shop, scores))
    assert code == 1
    assert f"qrels.parquet, column 'score': {told}which means judged not relevant, in " in out
    assert "import again with the score that means not relevant named (--score-zero)" in out


def test_pairs_judged_not_relevant_are_counted(shop: Path, opengcl) -> None:
    code, out, _ = opengcl("data", "check", scored(shop, (-1, 0, 1, 2)))
    pairs = table(shop, "qrels").num_rows
    below = sum(score <= 0 for score in table(shop, "qrels")["score"].to_pylist())
    assert code == 0
    assert f"{pairs:>12,}  ({below:,} judged not relevant: a score of 0 or below)" in out
    assert RankedDataset.open(shop).describe()["not_relevant"] == below


@pytest.fixture
def bad(shop: Path) -> Path:
    """Scores out of range in rows 20 to 39, and a picture that is none in row 4."""
    qrels, documents = table(shop, "qrels"), table(shop, "documents")
    scores = np.array(qrels["score"].to_pylist())
    scores[20:40] = 11.0
    images = documents["image"].to_pylist()
    images[4] = b"no picture"
    pq.write_table(qrels.set_column(2, "score", pa.array(scores)), shop / "qrels.parquet")
    pq.write_table(documents.set_column(2, "image", pa.array(images)), shop / "documents.parquet")
    return shop


def test_problems_are_named_by_file_column_and_row(bad: Path, opengcl) -> None:
    code, out, err = opengcl("data", "check", bad)
    assert code == 1
    assert "qrels.parquet, column 'score': score out of range in 20 rows: row 20 (ids " in out
    assert "and 15 more" in out
    assert "documents.parquet, column 'image': unreadable image in 1 row: row 4 (id 'd4'): not a picture" in out
    assert "2 kinds of problems" in out
    assert "Traceback" not in err
    code, out, _ = opengcl("data", "check", bad, "--all")
    assert code == 1
    assert "row 39 (ids " in out
    assert " more" not in out
    code, out, _ = opengcl("data", "check", bad, "--all", "--json")
    assert code == 1
    assert [(one["kind"], one["count"], len(one["examples"])) for one in json.loads(out)["problems"]] == [
        ("unreadable image", 1, 1),
        ("score out of range", 20, 20),
    ]


def test_check_looks_again_at_what_the_cache_has(shop: Path, opengcl) -> None:
    (shop / "pictures").mkdir()
    (shop / "pictures" / "1.png").write_bytes(picture(9))
    documents = table(shop, "documents")
    paths = pa.array(["pictures/1.png"] + [None] * (DOCUMENTS - 1), pa.string())
    pq.write_table(documents.set_column(2, "image", paths), shop / "documents.parquet")
    assert opengcl("data", "check", shop)[0] == 0
    (shop / "pictures" / "1.png").write_bytes(b"changed")
    assert opengcl("data", "check", shop)[0] == 1


def test_check_leaves_a_cache_entry_that_opens_with_five_examples(bad: Path, opengcl) -> None:
    opengcl("data", "check", bad, "--all")
    data = RankedDataset.open(bad, strict=False)
    assert [len(problem.examples) for problem in data.problems] == [1, 5]
    with pytest.raises(DataSetError, match="unreadable image"):
        RankedDataset.open(bad)


@pytest.mark.parametrize("missing", ["dataset.yaml", "qrels.parquet", ""])
def test_what_cannot_be_read_is_another_exit_code(missing: str, shop: Path, opengcl) -> None:
    if missing:
        (shop / missing).unlink()
    code, out, err = opengcl("data", "check", shop if missing else shop / "none")
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert missing in err


# split


def test_split_writes_columns_by_the_rule_of_the_format(shop: Path, tmp_path: Path, opengcl) -> None:
    out = tmp_path / "new"
    words = ["--seed", 7, "--seen-queries", 0.6, "--seen-documents", 0.3, "--dev", 0.25]
    code, printed, _ = opengcl("data", "split", shop, "--out", out, *words)
    assert code == 0
    new = RankedDataset.open(out)
    for name, key, side, share in (("queries", "query_id", "query", 0.6), ("documents", "doc_id", "document", 0.3)):
        before, after = table(shop, name), table(out, name)
        seen = choose(before[key].to_pylist(), seed=7, side=side, share=share)
        assert after["split"].to_pylist() == np.where(seen, "seen", "novel").tolist()
        assert after.drop_columns("split").equals(before)
        assert f"{int(seen.sum()):>12,} seen" in printed
    dev = choose(table(shop, "queries")["query_id"].to_pylist(), seed=7, side="dev", share=0.25)
    assert new.splits.query_dev.tolist() == dev.tolist()
    assert (out / "qrels.parquet").read_bytes() == (shop / "qrels.parquet").read_bytes()
    assert new.schema.splits == SplitOptions(7, 0.6, 0.3, 0.25)
    step = provenance(out)["steps"][0]
    assert provenance(out)["source"] == "a shop"
    assert (step["command"], step["from"], step["seed"]) == ("split", RankedDataset.open(shop).fingerprint, 7)


def test_by_hash_gives_the_same_splits_without_columns(shop: Path, tmp_path: Path) -> None:
    options = SplitOptions(seed=3, seen_queries=0.5)
    assert resplit(shop, tmp_path / "columns", options) == resplit(shop, tmp_path / "hash", options, by_hash=True)
    resplit(tmp_path / "columns", tmp_path / "again", options, by_hash=True)
    found = [RankedDataset.open(tmp_path / name) for name in ("columns", "hash", "again")]
    for one in found[1:]:
        assert "split" not in one.queries.columns + one.documents.columns
        assert one.splits.query_seen.tolist() == found[0].splits.query_seen.tolist()
        assert one.splits.document_seen.tolist() == found[0].splits.document_seen.tolist()
        assert one.splits.pair_counts() == found[0].splits.pair_counts()
    assert table(tmp_path / "again", "documents").equals(table(shop, "documents"))
    assert [step["written"] for step in provenance(tmp_path / "again")["steps"]] == ["columns", "dataset.yaml"]


def test_in_place_changes_what_it_must_and_leaves_the_rest(shop: Path, opengcl) -> None:
    (shop / "notes.txt").write_text("kept")

    def written() -> tuple[int, int, int]:  # not when it was read
        found = (shop / "qrels.parquet").stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    qrels = written()
    assert opengcl("data", "split", shop, "--in-place", "--seen-documents", 1)[0] == 0
    assert set(table(shop, "documents")["split"].to_pylist()) == {"seen"}
    assert opengcl("data", "split", shop, "--in-place", "--by-hash", "--seed", 1)[0] == 0
    assert Schema.read(shop).splits == SplitOptions(seed=1, seen_documents=1.0)
    assert written() == qrels
    names = {"dataset.yaml", "documents.parquet", "notes.txt", "qrels.parquet", "queries.parquet"}
    assert {path.name for path in shop.iterdir()} == names
    assert len(provenance(shop)["steps"]) == 2


def test_a_part_column_stays_unless_dev_is_given(shop: Path, tmp_path: Path, opengcl) -> None:
    queries = table(shop, "queries")
    pq.write_table(queries.append_column("part", pa.array(["dev"] * QUERIES)), shop / "queries.parquet")
    opengcl("data", "split", shop, "--out", tmp_path / "kept")
    assert RankedDataset.open(tmp_path / "kept").splits.query_dev.all()
    opengcl("data", "split", shop, "--out", tmp_path / "made", "--dev", 0)
    assert not RankedDataset.open(tmp_path / "made").splits.query_dev.any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--out and --in-place: give one of the two"),
        (["--out", "OUT", "--in-place"], "--out and --in-place: give one of the two"),
        (["--out", "OUT", "--dev", "1.5"], "splits.dev: found 1.5; allowed: a number from 0 to 1"),
        (["--out", "SHOP"], "exists already"),
    ],
)
def test_mistakes_of_split_leave_nothing(words: list[str], message: str, shop: Path, tmp_path: Path, opengcl) -> None:
    given = {"OUT": str(tmp_path / "out"), "SHOP": str(shop)}
    code, _, err = opengcl("data", "split", shop, *[given.get(word, word) for word in words])
    assert code == 2
    assert message in err
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["shop"]


def test_a_broken_table_leaves_nothing(shop: Path, tmp_path: Path) -> None:
    (shop / "documents.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    before = (shop / "queries.parquet").read_bytes()
    for out in (tmp_path / "out", None):
        with pytest.raises(DataSetError, match=r"documents\.parquet: not readable as Parquet"):
            resplit(shop, out, SplitOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]
    assert (shop / "queries.parquet").read_bytes() == before
    assert len(list(shop.iterdir())) == 4


# sample


def test_a_sample_keeps_the_structure(shop: Path, tmp_path: Path, opengcl) -> None:
    code, out, _ = opengcl("data", "sample", shop, "--out", tmp_path / "small", "--queries", 100)
    assert code == 0
    assert "100" in out
    large, small = RankedDataset.open(shop), RankedDataset.open(tmp_path / "small")
    assert len(small.queries) == 100
    assert small.schema.name == "shop-sample"
    counts, expected = small.describe()["splits"], large.describe()["splits"]
    for split in counts:
        for part in ("dev_queries", "test_queries"):
            assert abs(counts[split][part] / 100 - expected[split][part] / QUERIES) <= 0.02
        assert abs(counts[split]["documents"] / len(small.documents) - expected[split]["documents"] / DOCUMENTS) < 0.05
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        of = [float(np.quantile(np.diff(data.qrels.offsets), share)) for data in (large, small)]
        assert abs(of[0] - of[1]) <= 1
        scores = [float(np.quantile(data.qrels.score, share)) for data in (large, small)]
        assert abs(scores[0] - scores[1]) < 0.5
    judged = len(np.unique(small.qrels.document))
    assert 1 - judged / len(small.documents) == pytest.approx(1 - JUDGED / DOCUMENTS, abs=0.002)


def test_every_row_of_a_sample_is_one_of_the_original(shop: Path, tmp_path: Path) -> None:
    counts = sample(shop, tmp_path / "small", queries=30, documents=700, seed=1, progress=False)
    small = {name: table(tmp_path / "small", name) for name in ("queries", "documents", "qrels")}
    assert {name: len(one) for name, one in small.items()} == {
        "queries": 30,
        "documents": 700,
        "qrels": counts["pairs"],
    }
    for name, key in (("queries", "query_id"), ("documents", "doc_id")):
        rows = {row[key]: row for row in table(shop, name).to_pylist()}
        kept = [row[key] for row in small[name].to_pylist()]
        assert [rows[one] for one in kept] == small[name].to_pylist()
        assert kept == [one for one in rows if one in set(kept)]
    drawn = set(small["queries"]["query_id"].to_pylist())
    assert small["qrels"].to_pylist() == [row for row in table(shop, "qrels").to_pylist() if row["query_id"] in drawn]
    assert set(small["qrels"]["doc_id"].to_pylist()) <= set(small["documents"]["doc_id"].to_pylist())
    step = provenance(tmp_path / "small")["steps"][-1]
    assert step["command"] == "sample"
    assert step["from"] == RankedDataset.open(shop).fingerprint
    assert {name: step[name] for name in counts} == counts
    assert counts["judged"] == len(set(small["qrels"]["doc_id"].to_pylist()))


def test_a_seed_decides_the_draw(shop: Path, tmp_path: Path) -> None:
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        sample(shop, tmp_path / str(number), queries=50, seed=seed, progress=False)
        drawn.append(table(tmp_path / str(number), "queries")["query_id"].to_pylist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_all_queries_and_documents_are_the_whole(shop: Path, tmp_path: Path) -> None:
    sample(shop, tmp_path / "all", queries=QUERIES, documents=DOCUMENTS, progress=False)
    for name in ("queries", "documents", "qrels"):
        assert table(tmp_path / "all", name).equals(table(shop, name))


def test_split_columns_and_splits_stay_in_a_sample(shop: Path, tmp_path: Path) -> None:
    resplit(shop, tmp_path / "columns", SplitOptions(seed=5))
    sample(tmp_path / "columns", tmp_path / "small", queries=40, progress=False)
    before = dict(
        zip(*(table(tmp_path / "columns", "queries")[key].to_pylist() for key in ("query_id", "split")), strict=True)
    )
    after = table(tmp_path / "small", "queries")
    assert after["split"].to_pylist() == [before[one] for one in after["query_id"].to_pylist()]
    assert len(provenance(tmp_path / "small")["steps"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--queries", "0"], "queries: found 0; allowed: 1 to 400"),
        (["--queries", "401"], "queries: found 401; allowed: 1 to 400"),
        (["--queries", "40", "--documents", "10"], "documents: found 10; allowed: "),
        (["--queries", "40", "--documents", "1501"], "to 1,500"),
    ],
)
def test_impossible_samples_say_what_is_allowed(
    words: list[str], message: str, shop: Path, tmp_path: Path, opengcl
) -> None:
    code, _, err = opengcl("data", "sample", shop, "--out", tmp_path / "small", *words)
    assert code == 2
    assert message in err
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("count", [0, 1, 7, 99, 100])
def test_shares_of_strata(count: int) -> None:
    sizes = np.array([50, 30, 0, 20])
    shares = proportional(sizes, count)
    assert shares.sum() == count
    assert (np.abs(shares - sizes * count / 100) < 1).all()
    assert (shares <= sizes).all()


@pytest.mark.parametrize("start", [0.0, 0.5, 0.999999])
def test_positions_are_different_and_spread(start: float) -> None:
    for length in (1, 2, 10, 97):
        for count in range(length + 1):
            found = at_equal_distances(length, count, start)
            assert len(set(found.tolist())) == count
            if count:
                assert 0 <= found.min() <= found.max() < length
                assert np.diff(found).max(initial=0) <= np.ceil(length / count)


# Pictures in files of their own


@pytest.fixture
def with_files(tmp_path: Path) -> Path:
    folder = write_dataset(
        tmp_path / "files",
        Schema("files", {"query": "text"}, {"title": "text", "image": "image"}, 0, 1),
        pa.table({"query_id": ["q0", "q1"], "query": ["a", "b"]}),
        pa.table({"doc_id": ["d0", "d1", "d2"], "title": ["x", "y", "z"], "image": ["p/0.png", "p/q/1.png", None]}),
        pa.table({"query_id": ["q0", "q1"], "doc_id": ["d0", "d1"], "score": [1.0, 0.5]}),
    )
    for name in ("p/0.png", "p/q/1.png", "p/unused.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(len(name)))
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def test_picture_files_come_along(with_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resplit(with_files, tmp_path / "linked", SplitOptions())
    assert files(tmp_path / "linked") == {"p/0.png", "p/q/1.png"}
    assert (tmp_path / "linked" / "p/0.png").samefile(with_files / "p/0.png")
    RankedDataset.open(tmp_path / "linked")

    def no_links(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", no_links)
    sample(with_files, tmp_path / "copied", queries=1, documents=1, progress=False)
    assert len(files(tmp_path / "copied")) == 1
    RankedDataset.open(tmp_path / "copied")
    resplit(with_files, None, SplitOptions())
    assert files(with_files) == {"p/0.png", "p/q/1.png", "p/unused.png"}


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "p/none.png", "p"])
def test_paths_that_lead_away_bring_nothing(path: str, with_files: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(1))
    documents = table(with_files, "documents")
    pq.write_table(documents.set_column(2, "image", pa.array([path, None, None])), with_files / "documents.parquet")
    resplit(with_files, tmp_path / "out", SplitOptions())
    assert files(tmp_path / "out") == set()
    with pytest.raises(DataSetError, match="unreadable image in 1 row: row 0"):
        RankedDataset.open(tmp_path / "out")


def test_an_older_entry_in_steps_stays(shop: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((shop / SCHEMA_FILE).read_text())
    content["provenance"]["steps"] = "written by hand"
    (shop / SCHEMA_FILE).write_text(yaml.safe_dump(content))
    resplit(shop, tmp_path / "out", SplitOptions())
    assert [type(step) for step in provenance(tmp_path / "out")["steps"]] == [str, dict]
