"""Logs cleaned and added up: against plain loops, on DuckDB and on Spark."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.clicks.big_log import write_big_log

from opengcl.clicks.files import open_log
from opengcl.clicks.log import LogOptions, aggregate, count_bots, count_rows, event_names
from opengcl.data import DataSetError
from opengcl.data.engine import connect

START = datetime(2026, 3, 1, tzinfo=UTC)
KINDS = {"impression": "view", "click": "tap", "cart": "cart", "purchase": "order"}
OPTIONS = LogOptions(kinds=KINDS)
Rows = list[dict[str, Any]]


def made_log(seed: int, lists: int = 60) -> Rows:
    """Lists of few queries and documents with everything wrong that a log can have."""
    rng = np.random.default_rng(seed)
    rows: Rows = []

    def add(**columns: Any) -> None:
        rows.append({"randomised": bool(columns["session"].endswith("7")), **columns})

    for number in range(lists):
        session, query, user = f"s{number // 2}", f"Query {rng.integers(4)}", f"u{number % 9}"
        began = START + timedelta(hours=int(rng.integers(0, 2000)))
        for position in range(1, 6):
            base = {"session": session, "query": query, "doc_id": f"d{rng.integers(7)}", "user": user}
            seconds = timedelta(seconds=int(rng.integers(0, 300)))
            add(**base, event="view", position=position, time=began + seconds)
            for event in ("view", "tap", "tap", "cart", "order", "scroll"):
                if rng.random() < 0.15:
                    later = began + timedelta(seconds=int(rng.integers(0, 5000)))
                    add(**base, event=event, position=int(rng.integers(-1, 6)), time=later)
    for row in rows:
        for column in ("query", "doc_id", "session", "event"):
            if rng.random() < 0.01:
                row[column] = ("", None)[rng.integers(2)]
        if row["query"] and rng.random() < 0.2:
            row["query"] = f" {row['query'].upper()} "
    return rows


def table_of(rows: Rows) -> pa.Table:
    return pa.table(
        {
            "session": pa.array([row["session"] for row in rows], pa.string()),
            "query": pa.array([row["query"] for row in rows], pa.string()),
            "doc_id": pa.array([row["doc_id"] for row in rows], pa.string()),
            "event": pa.array([row["event"] for row in rows], pa.string()),
            "position": pa.array([row["position"] for row in rows], pa.int64()),
            "time": pa.array([row["time"] for row in rows], pa.timestamp("us", "UTC")),
            "user": pa.array([row["user"] for row in rows], pa.string()),
            "randomised": pa.array([row["randomised"] for row in rows], pa.bool_()),
        }
    )


Run = Callable[[pa.Table, Callable[[ibis.Table], ibis.Table]], Rows]


@pytest.fixture
def duck(tmp_path: Path) -> Iterator[Run]:
    """Runs an expression of a log on DuckDB."""
    with connect(tmp_path / "spill", threads=1) as connection:

        def run(table: pa.Table, expression: Callable[[ibis.Table], ibis.Table]) -> Rows:
            connection.register("log", table)
            unbound = ibis.table(ibis.Schema.from_pyarrow(table.schema), name="log")
            found = connection.sql(str(ibis.to_sql(expression(unbound), dialect="duckdb"))).to_arrow_table()
            return list(found.to_pylist())

        yield run


def fault(row: dict[str, Any]) -> str | None:
    """Why a row cannot count, told plainly."""
    for column, name in (("query", "query"), ("doc_id", "document"), ("session", "session")):
        if not row[column]:
            return f"no {name}"
    if row["event"] not in KINDS.values():
        return "unknown event"
    if row["event"] == "view" and row["position"] < 1:
        return "impossible position"
    return None


def cells_of(rows: Rows, options: LogOptions) -> dict[tuple[Any, ...], list[float]]:
    """The cells by loops: showings first, then what each says."""
    kept = sorted((row for row in rows if fault(row) is None), key=lambda row: (row["time"], row["event"] != "view"))
    latest = max(row["time"] for row in kept)
    busy = Counter(row["user"] for row in kept) if options.most_events else Counter()
    showings: dict[tuple[Any, ...], Rows] = {}
    last: dict[tuple[Any, ...], datetime] = {}
    number: Counter[tuple[Any, ...]] = Counter()
    for row in kept:
        if options.most_events and busy[row["user"]] > options.most_events:
            continue
        key = (row["session"], row["query"].strip().lower(), row["doc_id"])
        if options.repeat_after is not None and row["event"] == "view":
            gap = (row["time"] - last[key]).total_seconds() if key in last else math.inf
            number[key] += gap > options.repeat_after
            last[key] = row["time"]
        showings.setdefault((*key, number[key]), []).append(row)
    cells: dict[tuple[Any, ...], list[float]] = {}
    for (_, query, document, _), events in showings.items():
        views = [row for row in events if row["event"] == "view"]
        place = min((row["position"] for row in views), default=None)
        random = any(row["randomised"] for row in views) if options.randomised else False
        names = Counter(row["event"] for row in events)
        weight = 1.0
        if options.half_life:
            age = latest - min(row["time"] for row in events)
            weight = 0.5 ** (age.total_seconds() / 86_400 / options.half_life)
        done = bool(names["tap"] or names["cart"] or names["order"])
        weight *= bool(views)
        said = [weight, weight * done, weight * (names["cart"] > 0), weight * (names["order"] > 0)]
        said += [len(events), len(events) - len(names), bool(views and done and not names["tap"])]
        cell = cells.setdefault((query, document, place, random), [0.0] * len(said))
        cells[(query, document, place, random)] = [a + b for a, b in zip(cell, said, strict=True)]
    return cells


COLUMNS = ("impressions", "clicks", "carts", "purchases", "events", "repeats", "implied")
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "randomised": {"randomised": "randomised"},
    "repeats": {"time": "time", "repeat_after": 600},
    "half-life": {"time": "time", "half_life": 20},
    "bots": {"user": "user", "most_events": 55},
    "everything": {
        "time": "time", "repeat_after": 600, "half_life": 20, "user": "user", "most_events": 55,
        "randomised": "randomised",
    },
}  # fmt: skip


def by_cell(rows: Rows) -> dict[tuple[Any, ...], list[float]]:
    keys = ("query", "document", "position", "randomised")
    return {tuple(row[key] for key in keys): [float(row[one]) for one in COLUMNS] for row in rows}


def assert_same_cells(found: dict[tuple[Any, ...], list[float]], expected: dict[tuple[Any, ...], list[float]]) -> None:
    assert found.keys() == expected.keys()
    for cell, values in expected.items():
        assert found[cell] == pytest.approx(values, rel=1e-9), cell


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
@pytest.mark.parametrize("seed", range(3))
def test_cells_are_those_of_loops(duck: Run, settings: dict[str, Any], seed: int) -> None:
    rows, options = made_log(seed), LogOptions(kinds=KINDS, **settings)
    found = by_cell(duck(table_of(rows), lambda log: aggregate(log, options)))
    assert_same_cells(found, cells_of(rows, options))
    plain = cells_of(rows, OPTIONS)
    assert settings == {} or found != plain, "the setting changed nothing"


def test_every_row_is_kept_or_dropped_with_a_reason(duck: Run) -> None:
    rows = made_log(0)
    found = {row["reason"]: row["rows"] for row in duck(table_of(rows), lambda log: count_rows(log, OPTIONS))}
    assert found == Counter(map(fault, rows))
    assert {"no query", "no document", "no session", "unknown event", "impossible position", None} == set(found)


def test_bots_are_counted(duck: Run) -> None:
    rows = made_log(0)
    busy = Counter(row["user"] for row in rows if fault(row) is None)
    options = LogOptions(kinds=KINDS, user="user", most_events=55)
    over = [count for count in busy.values() if count > 55]
    assert 0 < len(over) < len(busy)
    assert duck(table_of(rows), lambda log: count_bots(log, options)) == [{"visitors": len(over), "rows": sum(over)}]


def test_who_clicks_on_everything_is_a_bot(duck: Run) -> None:
    base = {"query": "q", "time": START, "randomised": False}
    rows = [
        {**base, "session": user, "user": user, "doc_id": f"d{at}", "event": event, "position": at + 1}
        for user, share in (("eager", 30), ("picky", 5), ("new", 30))
        for at in range(19 if user == "new" else 30)  # 19 impressions say too little
        for event in (("view", "tap") if at < share else ("view",))
    ]
    options = LogOptions(kinds=KINDS, user="user", most_click_rate=0.9)
    assert duck(table_of(rows), lambda log: count_bots(log, options)) == [{"visitors": 1, "rows": 60}]
    shown = sum(row["impressions"] for row in duck(table_of(rows), lambda log: aggregate(log, options)))
    assert shown == 49


def test_without_a_user_the_session_is_the_visitor(duck: Run) -> None:
    rows = made_log(0)
    for row in rows:
        row["user"] = None
    sessions = Counter(row["session"] for row in rows if fault(row) is None)
    options = LogOptions(kinds=KINDS, user="user", most_events=15)
    over = [count for count in sessions.values() if count > 15]
    assert 0 < len(over) < len(sessions)
    assert duck(table_of(rows), lambda log: count_bots(log, options)) == [{"visitors": len(over), "rows": sum(over)}]


def test_later_events_are_left_out_and_ages_count_from_there(duck: Run) -> None:
    rows = made_log(1)
    until = START + timedelta(hours=1000)
    options = LogOptions(kinds=KINDS, time="time", until=until, half_life=10)
    found = duck(table_of(rows), lambda log: aggregate(log, options))
    early = [row for row in rows if row["time"] <= until]
    shift = 0.5 ** ((until - max(row["time"] for row in early if not fault(row))).total_seconds() / 86_400 / 10)
    expected = cells_of(early, options)
    for row in found:
        key = (row["query"], row["document"], row["position"], False)
        assert row["impressions"] == pytest.approx(expected[key][0] * shift)
    counts = {row["reason"]: row["rows"] for row in duck(table_of(rows), lambda log: count_rows(log, options))}
    assert counts["after until"] == sum(fault(row) is None and row["time"] > until for row in rows)


def test_columns_of_text_count_like_others(duck: Run) -> None:
    """As a CSV file gives them: every column is text, and positions may be anything."""
    rows = made_log(2)
    table = table_of(rows)
    texts = {name: table[name].cast(pa.string()) for name in table.column_names if name not in ("time", "randomised")}
    texts["time"] = pa.array([row["time"].strftime("%Y-%m-%d %H:%M:%S") for row in rows])
    texts["randomised"] = pa.array(["True" if row["randomised"] else "no" for row in rows])
    options = LogOptions(kinds=KINDS, **SETTINGS["everything"])
    found = by_cell(duck(pa.table(texts), lambda log: aggregate(log, options)))
    assert_same_cells(found, cells_of(rows, options))


def test_seconds_are_times_too(duck: Run) -> None:
    rows = made_log(2)
    table = table_of(rows)
    seconds = pa.array([row["time"].timestamp() for row in rows])
    options = LogOptions(kinds=KINDS, **SETTINGS["half-life"])
    numbered = table.set_column(table.column_names.index("time"), "time", seconds)
    assert_same_cells(by_cell(duck(numbered, lambda log: aggregate(log, options))), cells_of(rows, options))
    milliseconds = table.set_column(table.column_names.index("time"), "time", pa.array(np.array(seconds) * 1000))
    (row,) = [one for one in duck(milliseconds, lambda log: count_rows(log, options)) if one["reason"] is not None
              and "time" in one["reason"]]  # fmt: skip
    assert row["rows"] == sum(fault(one) is None for one in rows)


@pytest.mark.parametrize("position", ["inf", "nan", "-1", "1.5", "1e300", "first", "", None, "1001"])
def test_impossible_positions_are_counted(duck: Run, position: str | None) -> None:
    texts = {"session": "s", "query": "q", "doc_id": "d", "event": "view", "position": position}
    table = pa.table({name: pa.array([text], pa.string()) for name, text in texts.items()})
    (row,) = duck(table, lambda log: count_rows(log, OPTIONS))
    assert (row["reason"], row["rows"], row["impressions"]) == ("impossible position", 1, 1)
    assert duck(table, lambda log: aggregate(log, OPTIONS)) == []


def test_positions_may_begin_at_zero(duck: Run) -> None:
    rows = made_log(0)
    moved = [{**row, "position": row["position"] - 1} for row in rows]
    options = LogOptions(kinds=KINDS, first_position=0)
    found = by_cell(duck(table_of(moved), lambda log: aggregate(log, options)))
    assert_same_cells(found, cells_of(rows, OPTIONS))


def test_names_of_events_by_frequency(duck: Run) -> None:
    rows = made_log(0)
    found = duck(table_of(rows), lambda log: event_names(log, OPTIONS, 2))
    assert [(row["name"], row["rows"]) for row in found] == Counter(row["event"] for row in rows).most_common(2)


def test_a_missing_column_is_named(duck: Run) -> None:
    with pytest.raises(DataSetError, match=r"no column 'rank' for the position; it has session, query, .*--position"):
        duck(table_of(made_log(0)), lambda log: aggregate(log, LogOptions(position="rank")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": {"impression": "view"}}, "kinds: found impression; required: click"),
        ({"kinds": {**KINDS, "a b": "c"}}, "kinds: found 'a b'; allowed: letters"),
        ({"kinds": {**KINDS, "like": "tap"}}, "found 'tap' as the name of two kinds"),
        ({"half_life": 3}, "half_life: found without a column of times; required: time"),
        ({"half_life": 0, "time": "time"}, "half_life: found 0; allowed: above 0"),
        ({"most_click_rate": 1.5}, "most_click_rate: found 1.5; allowed: above 0, up to 1"),
        ({"first_position": 2}, "first_position: found 2; allowed: 0 or 1"),
    ],
)
def test_wrong_options_say_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataSetError, match=message):
        LogOptions(**settings)


def without_some_views(seed: int) -> Rows:
    rng = np.random.default_rng([4, seed])
    lost: dict[tuple[Any, ...], bool] = {}
    return [
        row
        for row in made_log(seed)
        if row["event"] != "view" or not lost.setdefault((row["session"], row["doc_id"]), rng.random() < 0.4)
    ]


def implied_cells(rows: Rows) -> Counter[tuple[Any, ...]]:
    """Impressions and clicks by cell where events with a position imply their impression, by loops."""
    showings: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        if fault(row) is None:
            showings.setdefault((row["session"], row["query"].strip().lower(), row["doc_id"]), []).append(row)
    found: Counter[tuple[Any, ...]] = Counter()
    for (_, query, document), events in showings.items():
        views = [row["position"] for row in events if row["event"] == "view"]
        others = [row["position"] for row in events if row["position"] >= 1]
        place = min(views or others, default=None)
        if place is not None:
            found[query, document, place, "impressions"] += 1
            found[query, document, place, "clicks"] += any(row["event"] != "view" for row in events)
            found[query, document, place, "implied_impressions"] += not views
    return +found


@pytest.mark.parametrize("seed", range(2))
def test_events_imply_impressions_where_they_have_none(duck: Run, seed: int) -> None:
    rows = without_some_views(seed)
    options = LogOptions(kinds=KINDS, imply_impressions=True)
    found: Counter[tuple[Any, ...]] = Counter()
    for row in duck(table_of(rows), lambda log: aggregate(log, options)):
        for name in ("impressions", "clicks", "implied_impressions") if row["position"] else ():
            found[row["query"], row["document"], row["position"], name] += round(row[name])
    assert +found == implied_cells(rows)
    assert sum(count for (*_, name), count in found.items() if name == "implied_impressions") > 10


def test_what_is_without_impression_is_counted_by_kind(duck: Run) -> None:
    rows = [row for row in without_some_views(0) if fault(row) is None]
    keys: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        keys.setdefault((row["session"], row["query"].strip().lower(), row["doc_id"]), set()).add(row["event"])
    unseen = [names for names in keys.values() if "view" not in names]
    cells = duck(table_of(rows), lambda log: aggregate(log, OPTIONS))
    assert sum(row["lost_clicks"] for row in cells) == len(unseen) > 10
    assert sum(row["lost_carts"] for row in cells) == sum("cart" in names for names in unseen)
    assert sum(row["lost_purchases"] for row in cells) == sum("order" in names for names in unseen)


def test_earlier_events_are_left_out(duck: Run) -> None:
    rows = [row for row in made_log(1) if fault(row) is None]
    since = START + timedelta(hours=700)
    options = LogOptions(kinds=KINDS, time="time", since=since)
    found = by_cell(duck(table_of(rows), lambda log: aggregate(log, options)))
    assert_same_cells(found, cells_of([row for row in rows if row["time"] >= since], OPTIONS))
    counts = {row["reason"]: row["rows"] for row in duck(table_of(rows), lambda log: count_rows(log, options))}
    assert counts["before since"] == sum(row["time"] < since for row in rows) > 0


@pytest.mark.parametrize("time", ["time", None], ids=["by time", "where it is the only one"])
def test_events_without_a_query_have_that_of_their_impression(duck: Run, time: str | None) -> None:
    """Two queries show one document in a session; a third shows another."""
    shown = [("s", "lamp", "d1", 0), ("s", "shade", "d1", 20), ("s", "shade", "d2", 20), ("t", "bulb", "d1", 5)]
    clicks = [("s", "d1", 10), ("s", "d1", 30), ("s", "d2", 30), ("t", "d1", 9), ("t", "d9", 9)]
    rows = [
        {"session": s, "query": q, "doc_id": d, "event": "view", "position": 1, "time": at} for s, q, d, at in shown
    ] + [{"session": s, "query": None, "doc_id": d, "event": "tap", "position": 1, "time": at} for s, d, at in clicks]
    options = LogOptions(kinds=KINDS, time=time, query_from_impressions=True)
    found = duck(pa.Table.from_pylist(rows), lambda log: aggregate(log, options))
    clicked = {(row["query"], row["document"]): row["clicks"] for row in found if row["position"]}
    first = 1 if time else 0  # without times it is unknown which of the two was clicked
    assert clicked == {("lamp", "d1"): first, ("shade", "d1"): first, ("shade", "d2"): 1, ("bulb", "d1"): 1}
    assert sum(row["lost_clicks"] for row in found) == 1
    reasons = {
        row["reason"]: row["clicks"] for row in duck(pa.Table.from_pylist(rows), lambda log: count_rows(log, options))
    }
    assert reasons.get("no query", 0) == (0 if time else 2)


def test_inverse_propensities_weigh_showings_and_are_clipped(duck: Run) -> None:
    rows = [
        {"query": "q", "doc_id": "d", "position": 1, "tapped": str(number % 3 == 0), "chance": chance}
        for number, chance in enumerate((0.5, 0.25, 0.001, 1.0, 0.25, 0.1))
    ]
    options = LogOptions(
        session=None, flags={"click": "tapped"}, propensity="chance", propensity_clip=0.1, kinds=LogOptions().kinds
    )
    (cell,) = duck(pa.Table.from_pylist(rows), lambda log: aggregate(log, options))
    weights = np.array([2, 4, 10, 1, 4, 10])
    assert cell["impressions"] == pytest.approx(weights.sum())
    assert cell["squares"] == pytest.approx((weights**2).sum())
    assert cell["clicks"] == pytest.approx(2 + 1)
    (counted,) = duck(pa.Table.from_pylist(rows), lambda log: count_rows(log, options))
    assert (counted["clipped"], counted["impressions"], counted["clicks"]) == (1, 6, 2)


NESTED: dict[str, Any] = {
    "results": ("items",), "document": "items.id", "position": "items.place", "session": "user+visit",
    "query": "params.term", "query_from_impressions": True, "kinds": KINDS, "imply_impressions": True,
    "propensity": "items.chance",
}  # fmt: skip


def nested_table() -> pa.Table:
    rows = []
    for number in range(40):
        items = [{"id": f"d{(number * 3 + at) % 7}", "place": at + 1, "chance": 0.5} for at in range(4)]
        params = [{"key": "term", "value": f"query {number % 3}"}]
        base = {"user": f"u{number % 5}", "visit": number}
        rows.append({**base, "event": "view", "items": items, "params": params})
        rows.append({**base, "event": "tap", "items": items[number % 4 :][:1], "params": []})
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize("dialect", ["bigquery", "snowflake"])
def test_nested_logs_compile_for_warehouses(dialect: str) -> None:
    log = ibis.table(ibis.Schema.from_pyarrow(nested_table().schema), name="log")
    for expression in (aggregate(log, LogOptions(**NESTED)), count_rows(log, LogOptions(**NESTED))):
        assert "GROUP BY" in str(ibis.to_sql(expression, dialect=dialect))


@pytest.mark.parametrize("dialect", ["bigquery", "snowflake"])
def test_expressions_compile_for_warehouses(dialect: str) -> None:
    """What we cannot run here at least has SQL there."""
    log = ibis.table(ibis.Schema.from_pyarrow(table_of(made_log(0)).schema), name="log")
    options = LogOptions(kinds=KINDS, **SETTINGS["everything"])
    for expression in (aggregate(log, options), count_rows(log, options), count_bots(log, options)):
        assert "GROUP BY" in str(ibis.to_sql(expression, dialect=dialect))


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """A local Spark of one thread."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.mark.filterwarnings("ignore")  # of pyspark and ibis about each other
@pytest.mark.parametrize(
    "settings",
    [pytest.param(SETTINGS["plain"], marks=pytest.mark.slow), SETTINGS["everything"]],
    ids=["plain", "everything"],
)
def test_spark_has_the_same_cells(spark: Any, duck: Run, tmp_path: Path, settings: dict[str, Any]) -> None:
    rows, options = made_log(5), LogOptions(kinds=KINDS, **settings)
    pq.write_table(table_of(rows), tmp_path / "log.parquet")
    table = ibis.pyspark.connect(spark).read_parquet(str(tmp_path / "log.parquet"))
    found = by_cell(aggregate(table, options).to_pyarrow().to_pylist())
    assert_same_cells(found, by_cell(duck(table_of(rows), lambda log: aggregate(log, options))))
    counts = {row["reason"]: row["rows"] for row in count_rows(table, options).to_pyarrow().to_pylist()}
    assert counts == Counter(map(fault, rows))


@pytest.mark.filterwarnings("ignore")  # of pyspark and ibis about each other
def test_spark_has_the_same_cells_of_nested_lists(spark: Any, duck: Run, tmp_path: Path) -> None:
    pq.write_table(nested_table(), tmp_path / "log.parquet")
    table = ibis.pyspark.connect(spark).read_parquet(str(tmp_path / "log.parquet"))
    options = LogOptions(**NESTED)
    found = by_cell(aggregate(table, options).to_pyarrow().to_pylist())
    expected = by_cell(duck(nested_table(), lambda log: aggregate(log, options)))
    assert_same_cells(found, expected)
    assert sum(values[1] for values in expected.values()) == 80  # 40 clicks, each of weight 2


# Of a large log without faults: users, marks of random order, repeats and broken rows, in places by hash.
DIRTY = """
SELECT CASE WHEN draw % 997 = 0 THEN NULL ELSE session END AS session,
    CASE WHEN draw % 991 = 0 THEN '' WHEN draw % 5 = 0 THEN upper(query) || '  ' ELSE query END AS query, doc_id,
    CASE WHEN draw % 983 = 0 THEN 'hover' ELSE event END AS event,
    CASE WHEN draw % 977 = 0 THEN 0 ELSE position END AS position,
    time + to_seconds((draw // 7 % 2000)::DOUBLE) AS time, 'u' || hash(session) % 4000 AS user,
    hash(session) % 7 = 0 AS randomised
FROM (SELECT *, hash(session, doc_id, event, twice) AS draw
    FROM '{log}', range(2) AS copies(twice)) WHERE twice = 0 OR draw % 50 = 0
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # of pyspark and ibis about each other
def test_spark_has_the_same_sums_of_a_large_log(spark: Any, tmp_path: Path) -> None:
    write_big_log(tmp_path, 1_500_000)
    everything = SETTINGS["everything"] | {"most_events": 500}
    with connect(tmp_path / "spill", threads=1) as connection:
        dirty = DIRTY.format(log=tmp_path / "log.parquet")
        connection.execute(f"COPY ({dirty}) TO '{tmp_path / 'dirty.parquet'}' (FORMAT parquet)")
        log, *_ = open_log(connection, tmp_path / "dirty.parquet")
        table = ibis.pyspark.connect(spark).read_parquet(str(tmp_path / "dirty.parquet"))
        for options in (LogOptions(), LogOptions(**everything | {"kinds": LogOptions().kinds})):
            keys = ["query", "document", "position", "randomised"]
            columns = [*keys, *COLUMNS]
            expected, found = (
                one.select(columns).sort_by([(key, "ascending") for key in keys])
                for one in (
                    connection.sql(str(ibis.to_sql(aggregate(log, options), dialect="duckdb"))).to_arrow_table(),
                    aggregate(table, options).to_pyarrow(),
                )
            )
            assert len(expected) > 300_000
            assert found.select(keys).to_pydict() == expected.select(keys).to_pydict()
            for name in COLUMNS:
                sums, wanted = (one[name].cast(pa.float64()).to_numpy() for one in (found, expected))
                np.testing.assert_allclose(sums, wanted, rtol=1e-9, err_msg=name)
            assert sum(expected["repeats"].to_pylist()) > 10_000
            counts = connection.sql(str(ibis.to_sql(count_rows(log, options), dialect="duckdb"))).fetchall()
            assert len(counts) == 5
            assert sorted(map(str, counts)) == sorted(
                str(tuple(row.values())) for row in count_rows(table, options).to_pyarrow().to_pylist()
            )
        bots = count_bots(log, options), count_bots(table, options)
        ((visitors, rows),) = connection.sql(str(ibis.to_sql(bots[0], dialect="duckdb"))).fetchall()
        assert bots[1].to_pyarrow().to_pylist() == [{"visitors": visitors, "rows": rows}]
        assert 0 < visitors < 4000
