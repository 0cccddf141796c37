"""Logs in the layouts that other systems export, each by the command that the documentation gives for it."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opengcl import cli
from opengcl.clicks import LogOptions, from_logs
from opengcl.clicks.files import open_catalogue, open_log
from opengcl.clicks.simulate import Simulation, event_table, sample_events
from opengcl.data import DataSetError, Schema

QUERIES, CANDIDATES, LISTS = 6, 10, 200
SHOP = Simulation(sessions=1, depth=5, ranker_noise=0.5, session_noise=0.5)
Rows = list[dict[str, Any]]
DOCS = Path(__file__).parents[1] / "docs" / "clicks.md"


@pytest.fixture(scope="module")
def events() -> Rows:
    """A log of sessions of one list each, a row an event."""
    tables = []
    for query in range(QUERIES):
        rng = np.random.default_rng([3, query])
        found = sample_events(rng.random(CANDIDATES), LISTS, SHOP, rng)
        names = [f"p{query * CANDIDATES + one}" for one in range(CANDIDATES)]
        tables.append(event_table(found, f"lampe nº {query}", names, query * LISTS))
    return list(pa.concat_tables(tables).to_pylist())


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "products.csv"
    rows = [f"p{one},Lamp {one}" for one in range(QUERIES * CANDIDATES)]
    path.write_text("\n".join(["doc_id,title", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(events: Rows, products: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The pairs that the log as events gives."""
    folder = tmp_path_factory.mktemp("plain")
    write_lines(folder / "log.jsonl", events)
    from_logs(folder / "log.jsonl", products, folder / "out", progress=False)
    return pq.read_table(folder / "out/qrels.parquet")


def write_lines(path: Path, rows: Rows) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")


def lists_of(events: Rows) -> dict[str, list[Rows]]:
    """Session -> its events by kind, in order of position: impressions, clicks, purchases."""
    found: dict[str, list[Rows]] = defaultdict(lambda: [[], [], []])
    for row in events:
        found[row["session"]][("impression", "click", "purchase").index(row["event"])].append(row)
    for kinds in found.values():
        for rows in kinds:
            rows.sort(key=lambda row: row["position"])
    return found


def flagged(rows: list[Rows]) -> Rows:
    """A list's results with what became of them."""
    clicked, bought = ({row["doc_id"] for row in kind} for kind in rows[1:])
    return [
        {**{name: row[name] for name in ("session", "query", "doc_id", "position")},
         "clicked": int(row["doc_id"] in clicked), "bought": int(row["doc_id"] in bought)}
        for row in rows[0]
    ]  # fmt: skip


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `opengcl data from-logs` in a folder of its own: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["opengcl", "data", "from-logs", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def recipe(title: str) -> list[str]:
    """The words of the command under a heading of the documentation."""
    text = DOCS.read_text(encoding="utf-8").split(f"### {title}\n")[1].split("\n### ")[0]
    block = text.split("```bash\n")[1].split("```")[0]
    words = shlex.split(block.replace("\\\n", " "))
    assert words[:3] == ["opengcl", "data", "from-logs"]
    return words[3:]


def qrels(folder: Path) -> pa.Table:
    return pq.read_table(folder / "qrels.parquet")


# A row a result


@pytest.mark.parametrize("words", [(), ("--no-session",)], ids=["sessions", "no sessions"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_a_result_with_columns_that_say_what_became_of_it(
    events: Rows, products: Path, plain: pa.Table, command: Command, tmp_path: Path, kind: str, words: tuple[str, ...]
) -> None:
    rows = [row for rows in lists_of(events).values() for row in flagged(rows)]
    if kind == "csv":
        with (tmp_path / "log.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_lines(tmp_path / "log.jsonl", rows)
    code, printed, told = command(
        f"log.{kind}", "--documents", str(products), "--out", "out", "--flag", "click=clicked",
        "--flag", "purchase=bought", *words,
    )  # fmt: skip
    assert code == 0, told
    assert qrels(tmp_path / "out").equals(plain)
    assert "dropped: clicks without impression" in printed


def test_events_need_a_session(events: Rows, products: Path, command: Command, tmp_path: Path) -> None:
    write_lines(tmp_path / "log.jsonl", [{name: row[name] for name in row if name != "session"} for row in events])
    base = ("log.jsonl", "--documents", str(products), "--out", "out")
    code, _, told = command(*base)
    assert code == 2
    assert "no column 'session' for the session" in told
    assert "--no-session where a row says" in told
    code, _, told = command(*base, "--no-session")
    assert code == 2
    assert "needed to tell which impression a click belongs to" in told


# A row a list


@pytest.mark.parametrize("form", ["structs", "triples", "parallel parquet", "json text"])
def test_a_row_a_list(
    events: Rows, products: Path, plain: pa.Table, command: Command, tmp_path: Path, form: str
) -> None:
    """As Baidu-ULTR has them: a query and its results with position and click."""
    rows = []
    for kinds in lists_of(events).values():
        results, query = flagged(kinds), kinds[0][0]["query"]
        names = ("doc_id", "position", "clicked", "bought")
        columns = {name: [row[name] for row in results] for name in names}
        if form == "structs":
            rows.append({"query": query, "results": [{name: row[name] for name in names} for row in results]})
        elif form == "triples":
            rows.append({"query": query, "results": [[row[name] for name in names] for row in results]})
        elif form == "json text":
            rows.append({"query": query, "results": json.dumps([{n: row[n] for n in names} for row in results])})
        else:
            rows.append({"query": query, **columns})
    words = {
        "structs": ("--results", "results", "--document", "results.doc_id"),
        "triples": ("--results", "results", "--document", "results.0", "--position", "results.1"),
        "json text": ("--results", "results", "--document", "results.doc_id", "--position", "results.position"),
    }.get(form, ("--results", "doc_id,position,clicked,bought"))
    flags = {"triples": ("results.2", "results.3"), "json text": ("results.clicked", "results.bought")}
    clicked, bought = flags.get(form, ("clicked", "bought"))
    path = tmp_path / ("log.parquet" if form == "parallel parquet" else "log.jsonl")
    if form == "parallel parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_lines(path, rows)
    code, _, told = command(
        path.name, "--documents", str(products), "--out", "out", "--no-session", *words,
        "--flag", f"click={clicked}", "--flag", f"purchase={bought}",
    )  # fmt: skip
    assert code == 0, told
    assert qrels(tmp_path / "out").equals(plain)


def test_positions_may_be_the_order_of_the_list(
    events: Rows, products: Path, plain: pa.Table, command: Command, tmp_path: Path
) -> None:
    rows = []
    for kinds in lists_of(events).values():
        results = flagged(kinds)
        rows.append({name: [row[name] for row in results] for name in ("doc_id", "clicked", "bought")})
        rows[-1]["query"] = results[0]["query"]
    write_lines(tmp_path / "log.jsonl", rows)
    code, _, told = command(
        "log.jsonl", "--documents", str(products), "--out", "out", "--no-session", "--results",
        "doc_id,clicked,bought", "--list-order", "--flag", "click=clicked", "--flag", "purchase=bought",
    )  # fmt: skip
    assert code == 0, told
    assert qrels(tmp_path / "out").equals(plain)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--results", "items"), "no column 'items' of lists; it has query, results"),
        (("--results", "number"), "column 'number': found type int64; allowed for --results: lists"),
        (("--results", "results", "--document", "results"), "found a struct of doc_id, position; allowed: one value"),
        (("--results", "results", "--document", "results.sku"), "found no 'sku'; it has doc_id, position"),
        (("--results", "results", "--document", "number.a"), "found type int64 where 'a' is looked for"),
    ],
)
def test_paths_that_lead_nowhere_say_what_is_there(
    products: Path, command: Command, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    row = {"query": "q", "results": [{"doc_id": "p1", "position": 1}], "number": 3}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "log.parquet")
    code, _, told = command(
        "log.parquet", "--documents", str(products), "--out", "out", "--no-session", "--flag", "click=results.position",
        *words,
    )  # fmt: skip
    assert code == 2
    assert message in told


# Google Analytics 4


def ga4_rows(events: Rows, *, tagged: bool) -> Rows:
    """The BigQuery export's rows; ``tagged``: clicks and purchases carry the search term too."""
    rows = []
    for number, (session, kinds) in enumerate(lists_of(events).items()):
        query, micros = kinds[0][0]["query"], 1_772_000_000_000_000 + number * 60_000_000

        def row(
            name: str, items: Rows, later: int, term: bool, session: str = session, query: str = query,
            micros: int = micros,
        ) -> dict[str, Any]:  # fmt: skip
            params = [
                {"key": "ga_session_id", "value": {"int_value": str(micros // 1_000_000 + int(session[1:]) % 3)}},
                {"key": "page_title", "value": {"string_value": "Search"}},
            ]
            if term:
                params.append({"key": "search_term", "value": {"string_value": query}})
            return {
                "event_date": "20260225",
                "event_timestamp": str(micros + later),
                "event_name": name,
                "event_params": params,
                "user_pseudo_id": f"{session}.17",
                "items": [
                    {"item_id": one["doc_id"], "item_name": "Lamp", "item_list_name": "Search results",
                     "item_list_index": str(one["position"] - 1) if name != "purchase" else "(not set)"}
                    for one in items
                ],
            }  # fmt: skip

        rows.append(row("page_view", [], 0, False))
        rows.append(row("view_item_list", kinds[0], 1, True))
        rows += [row("select_item", [one], 2 + at, tagged) for at, one in enumerate(kinds[1])]
        if kinds[2]:
            rows.append(row("purchase", kinds[2], 900_000, tagged))
    return rows


def test_google_analytics(events: Rows, products: Path, plain: pa.Table, command: Command, tmp_path: Path) -> None:
    (tmp_path / "ga4").mkdir()
    rows = ga4_rows(events, tagged=False)
    write_lines(tmp_path / "ga4/events-000000000000.json", rows[: len(rows) // 2])
    write_lines(tmp_path / "ga4/events-000000000001.json", rows[len(rows) // 2 :])
    (tmp_path / "products.csv").write_bytes(products.read_bytes())
    code, _, told = command(*recipe("Google Analytics 4"))
    assert code == 0, told
    assert qrels(tmp_path / "clicks").equals(plain)


def test_google_analytics_from_parquet(
    events: Rows, products: Path, plain: pa.Table, command: Command, tmp_path: Path
) -> None:
    """With the types that BigQuery has, and search terms on every event."""
    rows = ga4_rows(events, tagged=True)
    for row in rows:
        row["event_timestamp"] = int(row["event_timestamp"])
        for param in row["event_params"]:
            given = param["value"]
            param["value"] = {
                "string_value": given.get("string_value"),
                "int_value": int(given["int_value"]) if "int_value" in given else None,
                "float_value": None,
                "double_value": None,
            }
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "events.parquet")
    words = [one for one in recipe("Google Analytics 4") if one != "--query-from-impressions"]
    code, _, told = command("events.parquet", *words[1:-4], "--documents", str(products), "--out", "clicks")
    assert code == 0, told
    assert qrels(tmp_path / "clicks").equals(plain)


def test_clicks_that_lack_the_query_are_refused_with_the_way_out(
    events: Rows, products: Path, command: Command, tmp_path: Path
) -> None:
    write_lines(tmp_path / "events.jsonl", ga4_rows(events, tagged=False))
    words = [one for one in recipe("Google Analytics 4") if one != "--query-from-impressions"]
    code, _, told = command("events.jsonl", *words[1:-4], "--documents", str(products), "--out", "clicks")
    assert code == 2
    assert "clicks with no query; allowed: up to 5% (--query-from-impressions" in told


# User Behavior Insights


def test_user_behavior_insights(
    events: Rows, products: Path, plain: pa.Table, command: Command, tmp_path: Path
) -> None:
    """Queries with the ids of their hits, and events that name the query's id."""
    queries, actions = [], []
    for session, kinds in lists_of(events).items():
        queries.append(
            {"application": "shop", "query_id": session, "client_id": "c1", "user_query": kinds[0][0]["query"],
             "query_attributes": {}, "query_response_id": f"r{session}", "timestamp": "2026-02-25T10:00:00.000Z",
             "query_response_hit_ids": [one["doc_id"] for one in kinds[0]]}
        )  # fmt: skip
        for name, rows in (("click", kinds[1]), ("purchase", kinds[2])):
            actions += [
                {"application": "shop", "action_name": name, "query_id": session, "client_id": "c1",
                 "session_id": "visit", "timestamp": "2026-02-25T10:00:05.000Z", "message_type": "INFO",
                 "event_attributes": {
                     "object": {"object_id": one["doc_id"], "object_id_field": "sku"},
                     "position": {"ordinal": one["position"]}}}
                for one in rows
            ]  # fmt: skip
    write_lines(tmp_path / "ubi_queries.ndjson", queries)
    write_lines(tmp_path / "ubi_events.ndjson", actions)
    (tmp_path / "products.csv").write_bytes(products.read_bytes())
    code, printed, told = command(*recipe("User Behavior Insights"))
    assert code == 0, told
    assert qrels(tmp_path / "clicks").equals(plain)
    assert "dropped: clicks without impression" in printed
    found = Schema.read(tmp_path / "clicks").provenance
    assert found["inputs"]["lists"]["files"] == 1
    assert found["unshown"] == {"click": 0, "cart": 0, "purchase": 0}


# Open Bandit


def bandit_rows(seed: int, rounds: int, policy: str) -> tuple[Rows, np.ndarray]:
    """`obp`'s columns: two kinds of users, of whom the first click five times as much; and each item's true rate.

    The ``tilted`` policy shows the worse items mostly to those who click much, so that plain click rates are wrong.
    """
    rng = np.random.default_rng(seed)
    items, looks = 8, np.array([1, 0.7, 0.5])
    rates = np.linspace(0.02, 0.09, items)
    rows = []
    tilt = {"random": np.ones((2, items)), "tilted": np.stack([np.linspace(8, 1, items), np.linspace(1, 8, items)])}
    chances = tilt[policy] / tilt[policy].sum(axis=1, keepdims=True)
    for number in range(rounds):
        user = int(rng.integers(2))
        item, slot = int(rng.choice(items, p=chances[user])), int(rng.integers(3))
        click = rng.random() < looks[slot] * rates[item] * (5 if user == 0 else 1)
        rows.append(
            {"": number, "timestamp": f"2019-11-24 {number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}"
             ".762830+00:00", "item_id": item, "position": slot + 1, "click": int(click),
             "propensity_score": chances[user][item]}
            | {f"user_feature_{one}": f"{user}{one}ce123cbb5bd8" for one in range(4)}
            | {f"user-item_affinity_{one}": 0.0 for one in range(items)}
        )  # fmt: skip
    return rows, 3 * rates


def write_bandit(folder: Path, rows: Rows) -> None:
    with (folder / "all.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with (folder / "item_context.csv").open("w", encoding="utf-8", newline="") as file:
        lines = [[one, one, 0.5 - one, f"f{one}a", f"f{one}b", f"f{one}c"] for one in range(8)]
        writer = csv.writer(file)
        writer.writerow(["", "item_id", *(f"item_feature_{one}" for one in range(4))])
        writer.writerows(lines)


@pytest.mark.parametrize("policy", ["random", "tilted"])
def test_open_bandit(command: Command, tmp_path: Path, policy: str) -> None:
    rows, truth = bandit_rows(0, 24_000, policy)
    write_bandit(tmp_path, rows)
    code, _, told = command(*recipe("Open Bandit"))
    assert code == 0, told
    table = qrels(tmp_path / "clicks").sort_by("doc_id")
    assert table["doc_id"].to_pylist() == [str(one) for one in range(8)]
    found = np.array(table["expected_rate"])
    np.testing.assert_allclose(found, truth, rtol=0.2)
    assert np.corrcoef(found, truth)[0, 1] > 0.93
    assert pq.read_table(tmp_path / "clicks/queries.parquet")["query"].to_pylist() == ["home page"]
    theta = Schema.read(tmp_path / "clicks").provenance["propensities"]["by_position"]
    np.testing.assert_allclose(theta, [1, 0.7, 0.5], atol=0.12)
    shown = np.bincount([row["item_id"] for row in rows])
    weights = np.zeros((2, 8))
    for row in rows:
        weights[:, row["item_id"]] += [1 / row["propensity_score"], 1 / row["propensity_score"] ** 2]
    np.testing.assert_allclose(np.array(table["impressions"]), weights[0] ** 2 / weights[1])  # Kish's sample
    assert (np.array(table["impressions"]) <= shown + 1e-6).all()
    if policy == "tilted":
        without = [one for one in recipe("Open Bandit") if one not in ("--propensity", "propensity_score")]
        code, _, told = command(*without[:-1], "wrong")
        assert code == 0, told
        wrong = np.array(qrels(tmp_path / "wrong").sort_by("doc_id")["expected_rate"])
        assert np.corrcoef(wrong, truth)[0, 1] < 0.7, "the policy's choice misled nobody"


def test_propensities_are_checked_and_clipped(command: Command, tmp_path: Path) -> None:
    rows, _ = bandit_rows(0, 3000, "random")
    base = [*recipe("Open Bandit"), "--position-bias", "none"]
    for number, row in enumerate(rows):
        row["propensity_score"] = 0 if number % 10 == 0 else 0.125
    write_bandit(tmp_path, rows)
    code, _, told = command(*base)
    assert code == 2
    assert "found 300 of 3,000 impressions with an impossible propensity" in told
    assert "above 0, up to 1" in told
    for number, row in enumerate(rows):
        row["propensity_score"] = 0.0005 if number % 10 == 0 else 0.125
    write_bandit(tmp_path, rows)
    code, printed, told = command(*base)
    assert code == 0, told
    assert "propensities below the clip" in printed
    assert Schema.read(tmp_path / "clicks").provenance["clipped"] == 300
    code, _, told = command(*base[:-4], "--out", "other", "--propensity-clip", "0.2")
    assert code == 2
    assert "found 3,000 of 3,000 propensities below 0.2" in told


def test_european_spreadsheets(command: Command, tmp_path: Path) -> None:
    """Semicolons and decimal commas give what commas and points give."""
    rows, _ = bandit_rows(0, 3000, "random")
    write_bandit(tmp_path, rows)
    words = [*recipe("Open Bandit"), "--position-bias", "none"]
    assert command(*words)[0] == 0
    expected = qrels(tmp_path / "clicks")
    text = (tmp_path / "all.csv").read_text()
    assert ";" not in text
    (tmp_path / "all.csv").write_text("sep=;\n" + text.replace(",", ";").replace(".", ","))
    shutil.rmtree(tmp_path / "clicks")
    code, _, told = command(*words)
    assert code == 0, told
    assert qrels(tmp_path / "clicks").equals(expected)
    read_as = "semicolon between fields, decimal comma, header in line 2"
    assert f"note: log: {read_as}" in told
    assert Schema.read(tmp_path / "clicks").provenance["read_as"]["log"] == read_as


# Feeds, encodings, quotes


def test_nan_in_json_logs_is_missing(tmp_path: Path) -> None:
    rows = ['{"doc_id": NaN, "position": 1.5}', '{"doc_id": "NaN", "position": NaN}', '{"doc_id": 7, "position": 2}']
    (tmp_path / "log.jsonl").write_text("\n".join(rows) + "\n")
    connection = duckdb.connect()
    open_log(connection, tmp_path / "log.jsonl")
    found = connection.sql("SELECT doc_id, position FROM log").fetchall()
    assert found == [(None, "1.5"), ("NaN", None), ("7", "2")]


LATE = [
    ('"x"', "NaN", None),
    ('"x"', '"NaN"', "NaN"),
    ("1", "NaN", None),
    ("9007199254740993", "-Infinity", None),
    ("true", "NaN", None),
    ("null", '"late"', "late"),
    ("null", "2", "2"),
    ('["x"]', '["y", NaN]', ["y", None]),
    ('{"b": "x"}', '{"b": NaN}', {"b": None}),
    ('[{"b": "x"}]', '[{"b": NaN}, {"b": "NaN"}]', [{"b": None}, {"b": "NaN"}]),
    ('{"b": [1.5]}', '{"b": [NaN]}', {"b": [None]}),
]


@pytest.mark.parametrize(("usual", "late", "expected"), LATE)
def test_values_that_come_after_the_first_rows_of_json(tmp_path: Path, usual: str, late: str, expected: Any) -> None:
    # DuckDB looks at 20,480 rows to find the types of columns.
    rows = [*[f'{{"a": {usual}, "n": 0}}\n'] * 21_000, f'{{"a": {late}, "n": 1}}\n']
    (tmp_path / "log.jsonl").write_text("".join(rows))
    connection = duckdb.connect()
    open_log(connection, tmp_path / "log.jsonl")
    assert connection.sql("SELECT a FROM log WHERE n = '1'").fetchall() == [(expected,)]


def test_whole_numbers_beside_nan_in_json_are_not_rounded(tmp_path: Path) -> None:
    ids = ["9007199254740993", "NaN", "7"]
    (tmp_path / "log.jsonl").write_text("".join(f'{{"doc_id": {one}, "title": "x"}}\n' for one in ids))
    connection = duckdb.connect()
    open_log(connection, tmp_path / "log.jsonl")
    assert connection.sql("SELECT doc_id FROM log").fetchall() == [("9007199254740993",), (None,), ("7",)]
    (tmp_path / "shop.jsonl").write_text('{"doc_id": 9007199254740993, "title": 1.5, "price": 1.5}\n')
    open_catalogue(connection, tmp_path / "shop.jsonl", id_column=None, fields=None)
    found = connection.sql("SELECT doc_id, title, price FROM documents").fetchall()
    assert found == [("9007199254740993", "1.5", 1.5)]


def test_a_used_column_that_is_twice_in_the_header(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("doc_id,query,x,doc_id,x\n1,a,,2,\n")
    open_log(duckdb.connect(), tmp_path / "log.csv", used=["query"])
    for path in ("doc_id", "query+doc_id", "doc_id.part"):
        with pytest.raises(DataSetError, match=r"log.csv, column 'doc_id': found more than once.*columns 1, 4"):
            open_log(duckdb.connect(), tmp_path / "log.csv", used=[path])
    (tmp_path / "shop.csv").write_text("doc_id,title,title\n1,a,b\n")
    with pytest.raises(DataSetError, match=r"shop.csv, column 'title': found more than once"):
        open_catalogue(duckdb.connect(), tmp_path / "shop.csv", id_column=None, fields=None)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("log.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("log.csv", b"PK\x03\x04\x14", "an Excel workbook"),
        ("log.jsonl", b"<!DOCTYPE html>", "an HTML page"),
    ],
)
def test_logs_of_another_kind_are_told_by_their_first_bytes(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataSetError, match=told):
        open_log(duckdb.connect(), tmp_path / name)


def test_stray_quotes_in_logs_and_catalogues(events: Rows, command: Command, tmp_path: Path) -> None:
    header = list(events[0])
    lines = ["\t".join("" if row[name] is None else str(row[name]) for name in header) for row in events]
    titles = [f'p{one}\t"Lamp {one}' if one % 2 else f'p{one}\tLamp {one} 12"' for one in range(QUERIES * CANDIDATES)]
    (tmp_path / "products.tsv").write_text("\n".join(["doc_id\ttitle", *titles]) + "\n")
    (tmp_path / "log.tsv").write_text("\n".join(["\t".join(header), *lines]) + "\n", encoding="utf-8")
    code, _, told = command("log.tsv", "--documents", "products.tsv", "--out", "out")
    assert code == 2
    assert "products.tsv, line " in told
    assert ": a double quote opens a field" in told
    assert "--no-quotes" in told
    code, _, told = command("log.tsv", "--documents", "products.tsv", "--out", "out", "--no-quotes")
    assert code == 0, told
    found = pq.read_table(tmp_path / "out/documents.parquet").to_pylist()
    for row in found:
        number = int(row["doc_id"][1:])
        assert row["title"] == (f'"Lamp {number}' if number % 2 else f'Lamp {number} 12"')


def test_rows_without_a_query_have_the_one_that_is_given(
    events: Rows, products: Path, plain: pa.Table, command: Command, tmp_path: Path
) -> None:
    rows = [dict(row) for row in events]
    for row in rows:
        if row["query"].endswith("0"):
            row["query"] = (None, "", " ")[len(row["doc_id"]) % 3]
    write_lines(tmp_path / "log.jsonl", rows)
    code, _, told = command("log.jsonl", "--documents", str(products), "--out", "out", "--query-text", "Lampe nº 0")
    assert code == 0, told
    assert qrels(tmp_path / "out").equals(plain)


@pytest.mark.parametrize(
    ("encoding", "kind"),
    [("cp1252", "csv"), ("utf-16", "jsonl"), pytest.param("mac-roman", "csv", marks=pytest.mark.slow)],
)
def test_logs_in_other_encodings(
    events: Rows, products: Path, plain: pa.Table, command: Command, tmp_path: Path, encoding: str, kind: str
) -> None:
    path = tmp_path / f"log.{kind}"
    lines = [",".join(events[0]), *(",".join(map(str, row.values())) for row in events)]
    if kind == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in events]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    base = (path.name, "--documents", str(products), "--out", "out")
    if encoding == "cp1252":
        code, _, told = command(*base)
        assert code == 2
        assert "--encoding" in told
        assert len(told) < 2000
    code, _, told = command(*base, "--encoding", encoding)
    assert code == 0, told
    assert qrels(tmp_path / "out").equals(plain)
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name, "out"]


def test_wrong_encodings_are_told(events: Rows, products: Path, command: Command, tmp_path: Path) -> None:
    write_lines(tmp_path / "log.jsonl", events)
    base = ("log.jsonl", "--documents", str(products), "--out", "out", "--encoding")
    for encoding, message in (("klingon", "allowed: a name such as"), ("ascii", "bytes that are not ascii")):
        code, _, told = command(*base, encoding)
        assert code == 2
        assert message in told


# What is lost


def broken(events: Rows, seed: int, change: Callable[[dict[str, Any]], dict[str, Any] | None], kind: str) -> Rows:
    """Half of the clicks' rows of one kind, by (session, document), changed; None leaves a row out."""
    rng = np.random.default_rng(seed)
    clicked = {(row["session"], row["doc_id"]) for row in events if row["event"] == "click"}
    chosen = {one for one in sorted(clicked) if rng.random() < 0.5}
    changed = (
        change(dict(row)) if row["event"] == kind and (row["session"], row["doc_id"]) in chosen else row
        for row in events
    )
    return [row for row in changed if row is not None]


def test_clicks_without_impressions_are_refused_or_imply_them(
    events: Rows, products: Path, plain: pa.Table, command: Command, tmp_path: Path
) -> None:
    rows = broken(events, 0, lambda _: None, "impression")
    write_lines(tmp_path / "log.jsonl", rows)
    clicks = sum(row["event"] == "click" for row in rows)
    lost = clicks - len(
        {(row["session"], row["doc_id"]) for row in rows if row["event"] == "click"}
        & {(row["session"], row["doc_id"]) for row in rows if row["event"] == "impression"}
    )
    base = ("log.jsonl", "--documents", str(products), "--out")
    code, _, told = command(*base, "out")
    assert code == 2
    assert f"found {lost:,} of {clicks:,} clicks without an impression" in told
    assert "--imply-impressions" in told
    code, printed, told = command(*base, "out", "--imply-impressions")
    assert code == 0, told
    assert qrels(tmp_path / "out").equals(plain)
    assert f"{'impressions implied by other events':<36}{lost:>14,}" in printed
    code, printed, told = command(*base, "less", "--most-lost", "1")
    assert code == 0, told
    assert f"{'dropped: clicks without impression':<36}{lost:>14,}" in printed
    theta = [Schema.read(tmp_path / one).provenance["propensities"]["by_position"] for one in ("out", "less")]
    np.testing.assert_allclose(theta[0][:3], [1, 1 / 2, 1 / 3], atol=0.06)
    assert theta[1][2] < theta[0][2] - 0.03


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda row: row | {"session": None}, "click", "clicks with no session; allowed: up to 5%"),
        (lambda row: row | {"query": ""}, "click", "clicks with no query; allowed: up to 5%"),
        (lambda row: row | {"doc_id": None}, "click", "clicks with no document; allowed: up to 5%"),
        (lambda row: row | {"session": row["session"] + "b"}, "click", "clicks without an impression of the same"),
        (lambda row: row | {"query": "another"}, "click", "clicks without an impression of the same"),
        (lambda row: row | {"session": "cart"}, "purchase", "purchases without an impression of the same"),
        (lambda row: row | {"position": None}, "impression", "impressions with an impossible position"),
        (lambda row: row | {"session": None}, "impression", "impressions with no session"),
    ],
)
def test_what_bends_rates_is_refused(
    events: Rows, products: Path, tmp_path: Path, change: Callable[[Any], Any], kind: str, message: str
) -> None:
    write_lines(tmp_path / "log.jsonl", broken(events, 1, change, kind))
    with pytest.raises(DataSetError, match=message):
        from_logs(tmp_path / "log.jsonl", products, tmp_path / "out", progress=False)
    assert [one.name for one in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("change", [{"position": None}, {"position": 99}], ids=["none", "another"])
def test_positions_of_clicks_do_not_matter_where_there_are_impressions(
    events: Rows, products: Path, plain: pa.Table, tmp_path: Path, change: dict[str, Any]
) -> None:
    write_lines(tmp_path / "log.jsonl", broken(events, 2, lambda row: row | change, "click"))
    options = LogOptions(imply_impressions=change["position"] is None)
    from_logs(tmp_path / "log.jsonl", products, tmp_path / "out", columns=options, progress=False)
    assert qrels(tmp_path / "out").equals(plain)


def test_positions_from_zero_are_implied_too(events: Rows, products: Path, plain: pa.Table, tmp_path: Path) -> None:
    rows = [row | {"position": row["position"] - 1} for row in broken(events, 3, lambda _: None, "impression")]
    write_lines(tmp_path / "log.jsonl", rows)
    options = LogOptions(imply_impressions=True, first_position=0)
    from_logs(tmp_path / "log.jsonl", products, tmp_path / "out", columns=options, progress=False)
    assert qrels(tmp_path / "out").equals(plain)


def test_repeated_impressions_and_purchases_without_clicks_change_nothing(
    events: Rows, products: Path, plain: pa.Table, tmp_path: Path
) -> None:
    bought = {(row["session"], row["doc_id"]) for row in events if row["event"] == "purchase"}
    rows = [row for row in events if row["event"] != "click" or (row["session"], row["doc_id"]) not in bought]
    write_lines(tmp_path / "log.jsonl", rows + [row for row in events if row["event"] == "impression"][::3])
    report = from_logs(tmp_path / "log.jsonl", products, tmp_path / "out", progress=False)
    assert qrels(tmp_path / "out").equals(plain)
    assert report.implied_clicks == len(bought)
    assert report.dropped["repeats within a showing"] == len(range(0, QUERIES * LISTS * SHOP.depth, 3))


def test_times_in_other_units_are_told(events: Rows, products: Path, plain: pa.Table, tmp_path: Path) -> None:
    rows = [row | {"at": 1_772_000_000_000 + number} for number, row in enumerate(events)]
    write_lines(tmp_path / "log.jsonl", rows)
    with pytest.raises(DataSetError, match=r"impressions with an impossible time; .*--time-unit ms, us or ns"):
        from_logs(tmp_path / "log.jsonl", products, tmp_path / "a", columns=LogOptions(time="at"), progress=False)
    options = LogOptions(time="at", time_unit="ms")
    from_logs(tmp_path / "log.jsonl", products, tmp_path / "out", columns=options, progress=False)
    assert qrels(tmp_path / "out").equals(plain)
