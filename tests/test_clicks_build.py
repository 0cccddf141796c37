"""From a log on disk to a data set's folder: what a user gives, gets, and is told."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
from datetime import datetime
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from opengcl import cli, progress
from opengcl.clicks import LogOptions, ScoreOptions, SupportOptions, from_logs, read_propensities
from opengcl.clicks.counts import LONGEST_QUERY, query_id
from opengcl.clicks.simulate import Simulation, event_table, sample_events
from opengcl.data import DataSetError, RankedDataset, Schema, write_dataset
from opengcl.data.engine import connect
from opengcl.query_text import normalised

QUERIES, CANDIDATES = 25, 20
SHOP = Simulation(sessions=1, depth=6, ranker_noise=0.5)


def relevance_of(query: int) -> np.ndarray:
    return np.random.default_rng([1, query]).random(CANDIDATES)


def simulated(settings: Simulation = SHOP, sessions: int = 400) -> pa.Table:
    parts = []
    for query in range(QUERIES):
        events = sample_events(relevance_of(query), sessions, settings, np.random.default_rng([2, query]))
        documents = [f"{query * CANDIDATES + one:04d}" for one in range(CANDIDATES)]
        parts.append(event_table(events, f"Query  No. {query}", documents, query * sessions))
    return pa.concat_tables(parts)


@pytest.fixture(scope="module")
def log() -> pa.Table:
    return simulated()


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalogue") / "documents.csv"
    rows = [f'{one:04d},"A title, {one}",{one / 10}' for one in range(QUERIES * CANDIDATES)]
    path.write_text("\n".join(["doc_id,title,price", *rows]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(log: pa.Table, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set from the log as Parquet, with default options."""
    folder = tmp_path_factory.mktemp("made")
    pq.write_table(log, folder / "log.parquet")
    from_logs(folder / "log.parquet", documents, folder / "out", progress=False)
    return folder / "out"


def qrels(folder: Path) -> pa.Table:
    return pq.read_table(folder / "qrels.parquet")


def test_the_folder_opens_strictly(made: Path, tmp_path: Path) -> None:
    data = RankedDataset.open(made, cache_dir=tmp_path, progress=False)
    assert data.problems == []
    assert (len(data.queries), len(data.documents)) == (QUERIES, QUERIES * CANDIDATES)
    assert data.documents.ids([7]) == ["0007"]
    assert data.documents.texts("title", [7]) == ["A title, 7"]
    assert set(data.queries.texts("query", range(QUERIES))) == {f"query no. {one}" for one in range(QUERIES)}
    assert data.schema.queries == {"query": "text"}
    assert data.schema.documents == {"title": "text"}
    assert sorted(one.name for one in made.parent.iterdir()) == ["log.parquet", "out"], "something was left"


def test_counts_in_the_qrels_are_those_of_the_log(made: Path, log: pa.Table) -> None:
    found = qrels(made)
    assert found.column_names == [
        "query_id", "doc_id", "score", "expected_rate", "worth", "worth_sd", "examinations", "impressions", "clicks",
        "carts", "purchases",
    ]  # fmt: skip
    of_event = dict(zip(("impression", "click", "purchase"), ("impressions", "clicks", "purchases"), strict=True))
    keys = list(zip(found["query_id"].to_pylist(), found["doc_id"].to_pylist(), strict=True))
    for event, column in of_event.items():
        rows = (
            log.filter(pa.compute.equal(log["event"], event))
            .group_by(["query", "doc_id"])
            .aggregate([([], "count_all")])
        )
        expected = {(query_id(normalised(row["query"])), row["doc_id"]): row["count_all"] for row in rows.to_pylist()}
        assert [expected.get(key, 0) for key in keys] == found[column].to_pylist()
    assert found["carts"].to_pylist() == [0] * len(keys)


def correlation(table: pa.Table, values: list[float]) -> float:
    """Of values with the truth, mean over queries."""
    numbers = {query_id(f"query no. {one}"): one for one in range(QUERIES)}
    of_query: dict[int, list[tuple[float, float]]] = {}
    for query, document, value in zip(table["query_id"].to_pylist(), table["doc_id"].to_pylist(), values, strict=True):
        number = numbers[query]
        truth = float(relevance_of(number)[int(document) % CANDIDATES])
        of_query.setdefault(number, []).append((value, truth))
    assert len(of_query) == QUERIES
    return float(np.mean([np.corrcoef(np.array(one).T)[0, 1] for one in of_query.values()]))


def test_the_true_order_and_examination_are_found(made: Path) -> None:
    table = qrels(made)
    found = correlation(table, table["score"].to_pylist())
    clicks, impressions = (np.array(table[one].to_pylist()) for one in ("clicks", "impressions"))
    assert found > correlation(table, (clicks / impressions).tolist()) + 0.1
    provenance = Schema.read(made).provenance
    np.testing.assert_allclose(provenance["propensities"]["by_position"], 1 / np.arange(1, 7), atol=0.04)


def test_provenance_says_what_was_done(made: Path, documents: Path, log: pa.Table) -> None:
    found = Schema.read(made).provenance
    content = documents.read_bytes()
    whole = hashlib.sha256(f"{len(content)}\0".encode() + content).hexdigest()
    assert found["inputs"]["documents"] == {"files": 1, "sha256": whole}
    assert found["rows"] == len(log)
    assert found["options"]["values"] == {"click": 1.0, "cart": 1.0, "purchase": 2.0}
    assert found["propensities"]["source"] == "model"
    assert found["versions"]["duckdb"]
    assert str(made.parent) not in (made / "dataset.yaml").read_text(encoding="utf-8")


def as_files(log: pa.Table, folder: Path, kind: str) -> str:
    """The same log in another form."""
    half = len(log) // 2
    if kind == "folder":
        (folder / "log/2026").mkdir(parents=True)
        pq.write_table(log.slice(0, half), folder / "log/a.parquet")
        pq.write_table(log.slice(half), folder / "log/2026/b.parquet")
        (folder / "log/_temporary").mkdir()
        pq.write_table(log, folder / "log/_temporary/b.parquet")  # a copy that Spark has not finished
        return str(folder / "log")
    if kind == "pattern":
        for number, part in enumerate((log.slice(0, half), log.slice(half))):
            with gzip.open(folder / f"log-{number}.csv.gz", "wb") as file:
                pa.csv.write_csv(part, file)
        return str(folder / "log-*.csv.gz")
    if kind == "tsv":
        pa.csv.write_csv(log, folder / "log.tsv", pa.csv.WriteOptions(delimiter="\t"))
        return str(folder / "log.tsv")
    rows = log.to_pylist()
    for row in rows:  # some sessions are numbers, so that DuckDB takes the column for JSON
        number = int(row["session"][1:])
        row["session"] = number if number % 2 else row["session"]
    lines = "\n".join(map(json.dumps, rows))
    (folder / "log.jsonl").write_text(lines, encoding="utf-8")
    return str(folder / "log.jsonl")


@pytest.mark.parametrize("kind", ["folder", "pattern", "tsv", "jsonl"])
def test_every_format_gives_the_same_scores(
    made: Path, log: pa.Table, documents: Path, tmp_path: Path, kind: str
) -> None:
    from_logs(as_files(log, tmp_path, kind), documents, tmp_path / "out", progress=False)
    assert qrels(tmp_path / "out").equals(qrels(made))


@pytest.mark.filterwarnings("ignore:fetch_:DeprecationWarning")  # Ibis calls what DuckDB has renamed
def test_an_ibis_table_gives_the_same_scores(made: Path, log: pa.Table, documents: Path, tmp_path: Path) -> None:
    pq.write_table(log, tmp_path / "log.parquet")
    table = ibis.duckdb.connect().read_parquet(tmp_path / "log.parquet")
    from_logs(table, documents, tmp_path / "out", progress=False)
    assert qrels(tmp_path / "out").equals(qrels(made))
    assert "log" not in Schema.read(tmp_path / "out").provenance["inputs"]


def test_the_same_log_gives_the_same_bytes(made: Path, documents: Path, tmp_path: Path) -> None:
    from_logs(made.parent / "log.parquet", documents, tmp_path / "out", threads=1, progress=False)
    for table in ("queries", "documents", "qrels"):
        assert pq.read_table(tmp_path / f"out/{table}.parquet").equals(pq.read_table(made / f"{table}.parquet"))
    assert (tmp_path / "out/dataset.yaml").read_text() == (made / "dataset.yaml").read_text()


def extra(log: pa.Table, rows: list[tuple[str | None, ...]]) -> pa.Table:
    names = ("session", "query", "doc_id", "event", "position")
    table = pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)})
    return pa.concat_tables([log, table.cast(log.schema)])


def test_everything_dropped_is_counted(log: pa.Table, documents: Path, tmp_path: Path) -> None:
    bad = [
        ("x1", "query no. 1", "0020", "click", None),  # no impression
        ("x1", "\u3000", "0020", "impression", 1),
        ("x1", "q" * (LONGEST_QUERY + 1), "0020", "impression", 1),
        ("x2", "query no. 1", "9999", "impression", 1),
        ("x2", "query no. 1", "9999", "click", 1),
        ("x3", "query no. 1", "0020", "impression", 0),
        ("x3", None, "0020", "impression", 1),
        ("x3", "query no. 1", "0020", "hover", 1),
        ("x4", "query no. 1", "0020", "impression", 7),
        ("x5", "rare query", "0020", "impression", 1),  # nobody clicked
        ("x6", "QUERY NO.\t1", "0021", "impression", 1),
        ("x6", "QUERY NO.\t1", "0021", "impression", 1),
        ("x6", "QUERY NO.\t1", "0021", "purchase", None),  # implies a click
    ]
    pq.write_table(extra(log, bad), tmp_path / "log.parquet")
    report = from_logs(
        tmp_path / "log.parquet", documents, tmp_path / "out", support=SupportOptions(max_position=6), progress=False
    )
    assert report.rows == len(log) + len(bad)
    assert {reason: count for reason, count in report.dropped.items() if count} == {
        "without impression": 1,
        "query empty or too long": 2,
        "document not in catalogue": 2,
        "impossible position": 1,
        "no query": 1,
        "unknown event": 1,
        "position beyond the limit": 1,
        "repeats within a showing": 1,
    }
    assert report.dropped_pairs["too little support"] == 1
    assert report.implied_clicks == 1
    found = Schema.read(tmp_path / "out").provenance
    assert found["dropped"]["document not in catalogue"] == 2
    told = report.summary()
    assert "dropped: document not in catalogue" in told
    assert f"{report.pairs:,}" in told
    assert "examination by position (model):\n  1: 1.000" in told


def test_support_leaves_out_what_is_rare(log: pa.Table, documents: Path, tmp_path: Path) -> None:
    pq.write_table(log, tmp_path / "log.parquet")
    support = SupportOptions(pair_impressions=100)
    report = from_logs(tmp_path / "log.parquet", documents, tmp_path / "out", support=support, progress=False)
    assert min(qrels(tmp_path / "out")["impressions"].to_pylist()) >= 100
    assert report.dropped_pairs["too little support"] > 0


def test_a_log_that_never_varies_is_refused(documents: Path, tmp_path: Path) -> None:
    pq.write_table(simulated(Simulation(sessions=1, depth=6, session_noise=0), 100), tmp_path / "log.parquet")
    with pytest.raises(DataSetError, match=r"positions 2-6 cannot be compared with position 1.*at one position only"):
        from_logs(tmp_path / "log.parquet", documents, tmp_path / "out", progress=False)
    assert [one.name for one in tmp_path.iterdir()] == ["log.parquet"], "something was left"
    known = ScoreOptions(position_bias=tuple(1 / np.arange(1, 7)))
    report = from_logs(tmp_path / "log.parquet", documents, tmp_path / "out", scoring=known, progress=False)
    assert report.propensities is not None
    assert report.propensities.source == "given"
    none = ScoreOptions(position_bias="none")
    from_logs(tmp_path / "log.parquet", documents, tmp_path / "flat", scoring=none, progress=False)
    assert qrels(tmp_path / "flat")["score"] != qrels(tmp_path / "out")["score"]


def test_positions_from_zero_are_told(log: pa.Table, documents: Path, tmp_path: Path) -> None:
    moved = log.set_column(4, "position", pa.compute.subtract(log["position"], 1).cast(pa.int32()))
    pq.write_table(moved, tmp_path / "log.parquet")
    with pytest.raises(
        DataSetError, match=r"found 10,000 of 60,000 impressions with an impossible position.*--first-position 0"
    ):
        from_logs(tmp_path / "log.parquet", documents, tmp_path / "out", progress=False)


def test_events_under_other_names_are_told(log: pa.Table, documents: Path, tmp_path: Path) -> None:
    pq.write_table(log, tmp_path / "log.parquet")
    options = LogOptions(kinds={"impression": "view", "click": "click", "cart": "cart", "purchase": "purchase"})
    with pytest.raises(DataSetError, match=r"no event 'view' in [\d,]+ rows; its events: impression \(60,000\), click"):
        from_logs(tmp_path / "log.parquet", documents, tmp_path / "out", columns=options, progress=False)


def test_values_need_their_kind(log: pa.Table, documents: Path, tmp_path: Path) -> None:
    pq.write_table(log, tmp_path / "log.parquet")
    scoring = ScoreOptions(values={"click": 1, "like": 3})
    with pytest.raises(DataSetError, match="value for 'like'; allowed: impression, click, cart, purchase"):
        from_logs(tmp_path / "log.parquet", documents, tmp_path / "out", scoring=scoring, progress=False)
    columns = LogOptions(kinds={"impression": "impression", "click": "click", "like": "liked"})
    with pytest.raises(DataSetError, match="values: found none for 'like'; needed"):
        from_logs(tmp_path / "log.parquet", documents, tmp_path / "out", columns=columns, progress=False)


def test_the_bar_names_the_steps(
    log: pa.Table,
    documents: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_on_terminal", lambda _: True)
    pq.write_table(log, tmp_path / "log.parquet")
    monkeypatch.setattr(progress, "_on_terminal", lambda _: True)
    report = from_logs(tmp_path / "log.parquet", documents, tmp_path / "out")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert [one for one in report.seconds if one not in printed.err] == []
    assert "done: 100%" in printed.err
    assert set(report.seconds) == {
        "catalogue", "rows of the log", "cells", "pairs", "position bias", "scores", "pictures", "data set",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("doc_id,title\n1,a\n1,b\n", r"documents.csv: found the id '1' in 2 rows; allowed: each id once"),
        ("doc_id,title\n1,a\n,b\n", r"documents.csv: found 1 row with a null or empty id"),
        ("sku,title\n1,a\n", r"documents.csv: no column 'doc_id'; it has sku, title \(--doc-id"),
        ("doc_id,name\n1,a\n", r"documents.csv: no column 'title'; it has doc_id, name"),
    ],
)
def test_a_wrong_catalogue_is_told(log: pa.Table, tmp_path: Path, content: str, message: str) -> None:
    pq.write_table(log, tmp_path / "log.parquet")
    (tmp_path / "documents.csv").write_text(content)
    with pytest.raises(DataSetError, match=message):
        from_logs(tmp_path / "log.parquet", tmp_path / "documents.csv", tmp_path / "out", progress=False)


def test_wrong_files_are_told(documents: Path, tmp_path: Path) -> None:
    (tmp_path / "log.xlsx").write_text("x")
    (tmp_path / "log.parquet").write_text("x")
    for name, message in (
        ("none.parquet", "no such file; allowed: a file, folder or pattern"),
        ("log.xlsx", "found the ending '.xlsx'; allowed: .parquet"),
        ("log.parquet", "cannot be read"),
    ):
        with pytest.raises(DataSetError, match=message):
            from_logs(tmp_path / name, documents, tmp_path / "out", progress=False)
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataSetError, match="found files of csv and parquet; allowed: of one format"):
        from_logs(tmp_path, documents, tmp_path / "out", progress=False)


def test_an_existing_folder_is_left_alone(log: pa.Table, documents: Path, tmp_path: Path) -> None:
    pq.write_table(log, tmp_path / "log.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(DataSetError, match="exists already"):
        from_logs(tmp_path / "log.parquet", documents, tmp_path / "out", progress=False)


def shop_of(folder: Path, image: pa.Array) -> Path:
    """A catalogue as a data set with pictures, and splits that the new queries would not share."""
    rows = len(image)
    return write_dataset(
        folder,
        Schema("shop", {"query": "text"}, {"title": "text", "image": "image"}, 0, 1),
        pa.table({"query_id": ["q"], "query": ["q"], "split": ["seen"]}),
        pa.table(
            {
                "doc_id": [f"{one:04d}" for one in range(rows)],
                "title": ["t"] * rows,
                "image": image,
                "split": ["seen"] * rows,
            }
        ),
        pa.table({"query_id": ["q"], "doc_id": ["0000"], "score": [1.0]}),
    )


def test_a_data_set_is_a_catalogue(log: pa.Table, tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")
    shop = shop_of(tmp_path / "shop", pa.array([out.getvalue()] * QUERIES * CANDIDATES))
    pq.write_table(log, tmp_path / "log.parquet")
    from_logs(tmp_path / "log.parquet", shop, tmp_path / "out", progress=False)
    data = RankedDataset.open(tmp_path / "out", cache_dir=tmp_path / "cache", progress=False)
    assert data.schema.documents == {"title": "text", "image": "image"}
    (picture,) = data.documents.images("image", [3])
    assert picture is not None
    assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_queries_are_compared_normalised() -> None:
    assert normalised("  \uff32ed\u00a0\tSHOES ") == "red shoes"
    assert normalised("Straße") == normalised("STRASSE")
    assert normalised("cafe\u0301") == normalised("CAFÉ")
    assert query_id("red shoes") == query_id("red shoes") != query_id("red shoe")
    assert len(query_id("")) == 20


def test_wrong_memory_and_threads_are_told(tmp_path: Path) -> None:
    for options in ({"memory": "bogus"}, {"threads": -1}):
        with pytest.raises(DataSetError, match=r"DuckDB cannot start: found memory .* allowed: a size such as 1GB"):
            connect(tmp_path, **options)


def test_propensities_from_files(tmp_path: Path) -> None:
    for name, text in (
        ("a.yaml", "1: 1\n2: 0.5\n3: 0.25\n"),
        ("b.json", "[1, 0.5, 0.25]"),
        ("c.yaml", "[1, 5e-1, .25]"),
    ):
        (tmp_path / name).write_text(text)
        assert read_propensities(tmp_path / name) == (1.0, 0.5, 0.25)
    for text, message in (
        ("1: 1\n3: 0.5\n", "positions 1, 3; allowed: 1, 2"),
        ("some text", "found 'some text'; allowed: a list of numbers"),
        ("[1, a]", "line 1: found 'a' at position 2; allowed: above 0, up to 1"),
        ("1: 1\n2: 1_0\n", "line 2: found '1_0' at position 2; allowed: above 0, up to 1 .*underscores"),
        ("yes: 1\n2: 0.5\n", "positions yes, 2; allowed: 1, 2"),
        ("1: 1\n2: -1e-3\n", "line 2: found -0.001 at position 2"),
        ("", "found nothing; allowed: a list"),
    ):
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(DataSetError, match=message):
            read_propensities(tmp_path / "wrong.yaml")
    with pytest.raises(DataSetError, match="cannot be read"):
        read_propensities(tmp_path / "none.yaml")


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["opengcl", "data", "from-logs", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_takes_everything(
    log: pa.Table, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"session": "visit", "query": "q", "doc_id": "sku", "event": "action", "position": "rank"}
    table = log.rename_columns([names[one] for one in log.column_names])
    days = pa.array([datetime(2026, 1, 1 + row % 28) for row in range(len(log))])
    pq.write_table(table.append_column("at", days), tmp_path / "log.parquet")
    (tmp_path / "theta.yaml").write_text("[1, 0.5, 0.34, 0.25, 0.2, 0.17]")
    code, printed, told = command(
        monkeypatch, capsys,
        str(tmp_path / "log.parquet"), "--documents", str(documents), "--out", str(tmp_path / "out"),
        "--session", "visit", "--query", "q", "--document", "sku", "--event-column", "action", "--position", "rank",
        "--time", "at", "--half-life", "10", "--until", "2026-02-01", "--most-events", "1000", "--value", "purchase=5",
        "--value", "cart=0", "--event", "like=liked", "--value", "like=1", "--method", "ips", "--clip", "0.1",
        "--position-bias", str(tmp_path / "theta.yaml"), "--fields", "title,price", "--scale", "linear",
        "--name", "mine",
    )  # fmt: skip
    assert code == 0, told
    assert "rows of the log" in printed
    schema = Schema.read(tmp_path / "out")
    assert schema.name == "mine"
    assert schema.documents == {"title": "text", "price": "text"}
    options = schema.provenance["options"]
    assert options["values"] == {"click": 1.0, "cart": 0.0, "purchase": 5.0, "like": 1.0}
    assert options["until"] == "2026-02-01T00:00:00"
    assert schema.provenance["propensities"]["source"] == "given"
    assert yaml.safe_load((tmp_path / "out/dataset.yaml").read_text())["score"] == {"min": 1, "max": 100}
    assert "likes" in qrels(tmp_path / "out").column_names


def test_the_command_tells_mistakes_in_one_line(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("log.parquet", "--documents", str(documents), "--out", str(tmp_path / "out"))
    for words, message in (
        (("--value", "click"), "error: --value 'click': write KIND=..."),
        (("--value", "click=much"), "error: --value: found 'much'; allowed: a number"),
        (("--method", "magic"), "error: method: found 'magic'; allowed: posterior, ips, ctr"),
        ((), "error: log.parquet: no such file"),
    ):
        code, _, told = command(monkeypatch, capsys, *base, *words)
        assert code == 2
        assert message in told
