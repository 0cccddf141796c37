"""Curating from start to end against a server on loopback: faults, kills, budgets, rescoring, the command line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from opengcl.curate import (
    BudgetReachedError,
    CurateError,
    Hit,
    Product,
    RefusedError,
    SearchResult,
    curate,
    load_config,
)
from opengcl.data import RankedDataset

from .paid_services import KEY, THINGS, Fault, Services, completion, running
from .test_cli import run_cli
from .tiny_teacher import tiny_cross_encoder

TABLES = ("queries.parquet", "documents.parquet", "qrels.parquet")
FAST = {"requests_per_minute": 60_000.0, "longest_wait": 0.1, "timeout": 5.0}


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("SERPAPI_API_KEY", KEY)
    with running() as found:
        yield found


@pytest.fixture
def settings(services: Services, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a run with a judge: 12 queries, 10 results each."""
    (tmp_path / "categories.txt").write_text("\n".join(THINGS), encoding="utf-8")

    def make(out: str = "shop", **changes: Any) -> dict[str, Any]:
        return {
            "out": str(tmp_path / out),
            "queries": {"categories": str(tmp_path / "categories.txt"), "count": 12, "per_request": 4},
            "llm": {**FAST, "model": "m", "base_url": f"{services.url}/v1", "price_input": 1.0, "price_output": 4.0},
            "search": {**FAST, "source": "serpapi", "base_url": f"{services.url}/search", "price": 0.01, "results": 10},
            "scores": {"judge": {"per_request": 10, "weight": 3.0}},
            "pictures": {"allow_private": True},
            **changes,
        }

    return make


def run(settings: dict[str, Any], **options: Any) -> Any:
    return curate(load_config(None, settings), progress=False, **options)


def same_tables(one: Path, two: Path) -> bool:
    return all(pq.read_table(one / name).equals(pq.read_table(two / name)) for name in TABLES)


def faults_of_every_kind(kind: str, request: str, before: int) -> Fault | None:
    """Two of three requests fail at first, in one of six ways, and are answered when asked again."""
    way = zlib.crc32(request.encode()) % 9
    writing = kind == "chat" and "You write" in request  # another reply would be other queries
    if before or way >= (4 if writing else 6):
        return None
    wrong = (
        Fault(429, headers={"retry-after": "0.05"}),
        Fault(500, body="<html>oops</html>"),
        Fault(503, delay=0.05),
        Fault(drop=True),
        Fault(body='{"choices": [{"message"'),
        Fault(body=json.dumps({"choices": [{"message": {"refusal": "no"}}], "error": "no"})),
    )
    return wrong[way]


def test_a_run_makes_a_data_set_that_opens_and_says_where_it_comes_from(
    services: Services, settings: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        made = run(settings())
    assert "HTTP Request" in caplog.text
    assert KEY not in caplog.text
    assert KEY.encode() not in everything_in(tmp_path)
    data = RankedDataset.open(made.path, progress=False)
    assert (len(data.queries), len(data.qrels)) == (12, 120) == (made.counts["queries"], made.counts["pairs"])
    assert data.schema.documents == {"title": "text", "image": "image"}
    assert made.counts["documents without a picture"] == 0
    assert data.documents.images("image", [0])[0].size == (16, 12)  # type: ignore[union-attr]
    assert data.queries.column("model").to_pylist() == ["m"] * 12

    qrels = pq.read_table(made.path / "qrels.parquet").to_pylist()
    labels = {"exact": 100, "substitute": 60, "irrelevant": 0}
    for row in qrels:
        assert row["score_positions"] == 101 - row["position"]
        assert row["score_judge"] == labels[row["label"]]
        assert row["score"] == pytest.approx((row["score_positions"] + 3 * row["score_judge"]) / 4)
    assert {"exact", "substitute"} <= {row["label"] for row in qrels}

    told = data.schema.provenance
    assert told["counts"] == made.counts
    assert told["models"]["queries"]["model"] == "m"
    assert told["models"]["judge"]["temperature"] == 0
    assert set(told["prompts"]) == {"queries", "judge"}
    paid = sum(services.paid().values())
    assert (told["replies"], made.spent.requests) == (paid, len(services.log))
    assert told["cost"] == pytest.approx(12 * 0.01 + (paid - 12) * (100 * 1 + 50 * 4) / 1e6)
    assert made.spent.cost == pytest.approx(told["cost"])
    assert str(tmp_path) not in (made.path / "dataset.yaml").read_text()


def test_faults_of_every_kind_change_nothing(services: Services, settings: Any) -> None:
    smooth = run(settings("smooth"))
    services.log.clear()
    services.faults = faults_of_every_kind
    rough = run(settings("rough"))
    assert same_tables(smooth.path, rough.path)
    assert len({one.status for one in services.log}) == 4
    # Every reply that came in full is used: only those that were no replies of the form are paid for in vain.
    assert max(services.paid().values()) == 1 or faulty_bodies_alone_repeat(services)
    rejects = pq.read_table(f"{rough.path}.work/rejects.parquet").to_pylist()
    assert {"queries", "search", "judge"} <= {row["stage"] for row in rejects}


def faulty_bodies_alone_repeat(services: Services) -> bool:
    """A search has no seed, so its second try looks the same to the server."""
    return all(
        count == 1 or (kind == "search" and zlib.crc32(request.encode()) % 9 in (4, 5))
        for (kind, request), count in services.paid().items()
    )


def test_a_second_run_pays_for_nothing(services: Services, settings: Any) -> None:
    first = run(settings("one"))
    asked = len(services.log)
    again = run(settings("two", work=f"{first.path}.work"))
    assert len(services.log) == asked
    assert same_tables(first.path, again.path)
    more = run(settings("three", work=f"{first.path}.work", queries={**settings()["queries"], "count": 16}))
    assert more.counts["queries"] == 16
    assert max(services.paid().values()) == 1, "only what is new was asked"
    one, three = (pq.read_table(path / "queries.parquet")["query"].to_pylist() for path in (first.path, more.path))
    assert set(one[:8]) <= set(three)


def test_rescoring_asks_nobody(services: Services, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(settings("one"))
    asked = len(services.log)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("SERPAPI_API_KEY")
    scores = {"positions": {"form": "reciprocal"}, "judge": {"weight": 0.0}}
    again = run(settings("two", work=f"{first.path}.work", scores=scores), rescore=True)
    assert len(services.log) == asked
    rows = pq.read_table(again.path / "qrels.parquet").to_pylist()
    assert all(row["score"] == pytest.approx(100 / row["position"]) for row in rows)
    assert pq.read_table(again.path / "documents.parquet").equals(pq.read_table(first.path / "documents.parquet"))


def test_a_budget_ends_a_run_that_goes_on_when_it_is_raised(services: Services, settings: Any) -> None:
    whole = run(settings("whole"))
    services.log.clear()
    needed = whole.spent.requests
    for requests in (2, 9, 20):
        with pytest.raises(BudgetReachedError, match=f"the budget of {requests} requests is used up"):
            run(settings("parts", budget={"requests": requests}))
        assert len(services.log) == requests
        assert not Path(settings("parts")["out"]).exists()
    part = run(settings("some", work=f"{settings('parts')['out']}.work", budget={"requests": 20}), rescore=True)
    labels = pq.read_table(part.path / "qrels.parquet")["label"].to_pylist()
    assert 0 < sum(label is None for label in labels) < 120
    parts = run(settings("parts", budget={"requests": needed}))
    assert len(services.log) == needed
    assert same_tables(whole.path, parts.path)


def test_a_cost_is_never_passed(services: Services, settings: Any) -> None:
    services.delay = 0.005
    with pytest.raises(BudgetReachedError, match=r"of the budget of 0\.05 is spent"):
        run(settings(budget={"cost": 0.05}, search={**settings()["search"], "concurrency": 16}))
    paid = services.paid()
    cost = sum(0.01 if kind == "search" else 300e-6 for kind, _ in paid)
    assert 0.03 < cost <= 0.05


def test_a_wrong_key_is_told_at_once_and_quoted_nowhere(services: Services, settings: Any, tmp_path: Path) -> None:
    services.key = "sk-another-key"
    with pytest.raises(RefusedError, match=r"queries: HTTP 401: .*\$\{OPENAI_API_KEY\}") as caught:
        run(settings())
    assert KEY not in str(caught.value)
    assert len(services.log) <= 4
    assert KEY.encode() not in everything_in(tmp_path)


def everything_in(folder: Path) -> bytes:
    """All bytes of all files, unpacked where they are packed."""
    parts = []
    for file in folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            parts.append(gzip.decompress(data) if file.suffix == ".gz" else data)
            if file.suffix == ".parquet":
                table = pq.read_table(file)
                parts.append(str(table.select(sorted({*table.column_names} - {"image"})).to_pylist()).encode())
    return b"".join(parts)


def test_fewer_queries_than_wanted_are_told(
    services: Services, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps(completion(json.dumps({"queries": ["red shoe", "Red Shoe"]})))
    services.faults = lambda kind, *_: Fault(body=body) if kind == "chat" else None
    made = run(settings(scores={}, pictures={"fetch": False}))
    assert made.counts["queries"] == 1
    assert "Only 1 of 12 queries after 5 rounds" in caplog.text


def test_too_many_failures_end_a_run_and_few_are_left_out(services: Services, settings: Any) -> None:
    def refuse(kind: str, request: str, _before: int) -> Fault | None:
        some = kind == "search" and zlib.crc32(request.encode()) % 4 == 0
        return Fault(400, body="no such thing") if some else None

    services.faults = refuse
    with pytest.raises(CurateError, match=r"Searches: \d+ of 12 requests failed for good.*HTTP 400: no such thing"):
        run(settings("one"))
    made = run(settings("two", work=settings("one")["out"] + ".work", failures=0.9))
    assert 0 < made.counts["queries without results or scores"] < 12
    assert made.counts["queries"] + made.counts["queries without results or scores"] == 12


def test_queries_of_ones_own_a_search_of_ones_own_and_no_pictures(tmp_path: Path) -> None:
    class Mine:
        def search(self, query: str, count: int) -> SearchResult:
            products = [Product(f"{query} {place}", product_id=f"{place}") for place in range(1, count + 1)]
            return SearchResult([Hit(place, product) for place, product in enumerate(products, 1)], [])

    (tmp_path / "q.txt").write_text("red shoe\nblue bag\n")
    own = {
        "out": str(tmp_path / "own"),
        "queries": {"file": str(tmp_path / "q.txt")},
        "search": {"source": "serpapi", "results": 10},
        "pictures": {"fetch": False},
    }
    made = run(own, source=Mine())
    data = RankedDataset.open(made.path, progress=False)
    assert (len(data.queries), len(data.documents), len(data.qrels)) == (2, 10, 20)
    assert (data.schema.documents, data.schema.score_min) == ({"title": "text"}, 1.0)
    with pytest.raises(CurateError, match="exists already; allowed: a new or empty folder"):
        run(own, source=Mine())


def test_a_shops_own_search_with_a_teacher(services: Services, settings: Any, tmp_path: Path) -> None:
    search = {
        **FAST,
        "source": "http",
        "url": f"{services.url}/products/_search",
        "method": "POST",
        "headers": {"Authorization": "Bearer ${SERPAPI_API_KEY}"},
        "body": {"query": {"match": {"title": "{query}"}}, "size": "{count}"},
        "path": "hits.hits",
        "fields": {"title": "_source.title", "product_id": "_id", "image": "_source.thumbnail"},
        "results": 8,
    }
    teacher = {"model": str(tiny_cross_encoder(tmp_path / "ce")), "top": 5, "device": "cpu", "scale": "query"}
    scores = {"positions": {"weight": 0.0}, "teacher": teacher}
    made = run(settings(search=search, scores=scores))
    rows = pq.read_table(made.path / "qrels.parquet").to_pylist()
    assert made.counts["pairs"] == 12 * 5
    assert made.counts["pairs without a score"] == 12 * 3
    assert all(row["score"] == pytest.approx(row["score_teacher"]) for row in rows)
    assert (
        RankedDataset.open(made.path, progress=False).schema.provenance["scores"]["teacher"]["model"].startswith("ce@")
    )


# Kills


def kept_requests(work: Path) -> set[str]:
    """What the journal holds replies to, as the server writes requests down."""
    reader, data = zlib.decompressobj(wbits=31), (work / "replies.jsonl.gz").read_bytes()
    lines, rest = [], data
    while rest:
        line = reader.decompress(rest)
        if not reader.eof:
            break  # the line that the kill cut short
        lines.append(json.loads(line))
        rest, reader = reader.unused_data, zlib.decompressobj(wbits=31)
    requests = [line["request"] for line in lines if line["kind"] == "reply"]
    return {json.dumps(one.get("body") or {**one["parameters"], "output": "json"}, sort_keys=True) for one in requests}


def killed_run(services: Services, file: Path, out: Path, answers: int) -> None:
    """Starts the command, and kills it when the server has given so many answers."""
    command = [sys.executable, "-m", "opengcl.cli", "data", "curate", "--config", str(file), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while sum(one.answered for one in services.log) < answers and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while services.under_way:
        time.sleep(0.01)


def test_nothing_that_came_is_paid_for_again_after_kills(services: Services, settings: Any, tmp_path: Path) -> None:
    smooth = run(settings("smooth"))
    services.log.clear()
    services.delay = 0.02
    file, out = tmp_path / "curate.yaml", tmp_path / "killed"
    file.write_text(yaml.safe_dump(settings()))
    kept_before: list[tuple[set[str], int]] = []
    for answers in (2, 10, 20):  # among the queries, the searches, the judgements
        killed_run(services, file, out, answers)
        assert not out.exists()
        kept_before.append((kept_requests(tmp_path / "killed.work"), len(services.log)))
    made = run(settings("killed"))
    assert same_tables(smooth.path, made.path)
    assert len(kept_before[-1][0]) >= 10
    for kept, seen in kept_before:
        assert not kept & {one.request for one in services.log[seen:]}, "a kept reply was asked for again"
    repeated = sum(count - 1 for count in services.paid().values())
    assert repeated <= 3 * 4, "at most what was under way at each kill"
    assert len(services.log) <= made.spent.requests, "every request that the server saw was counted before it was sent"
    stories = [yaml.safe_load((path / "dataset.yaml").read_text()) for path in (smooth.path, made.path)]
    assert stories[0] == stories[1], "nor does the provenance tell of the kills"


# The command line


def test_the_command_line(
    services: Services,
    settings: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "curate.yaml"
    file.write_text(yaml.safe_dump(settings()))
    words = ["data", "curate", "--config", str(file), "--out", str(tmp_path / "cli"), "--count", "8"]
    code, out, err = run_cli(capsys, monkeypatch, *words, "--dry-run")
    assert (code, services.log) == (0, []), err
    assert out.split()[:10] == [
        "stage",
        "requests",
        "cost,",
        "about",
        "queries",
        "2",
        "0.0011",
        "search",
        "8",
        "0.0800",
    ]
    assert "Nobody was asked" in err
    code, out, err = run_cli(capsys, monkeypatch, *words, "--dry-run", "--json", "--set", "scores.judge=null")
    assert code == 0
    assert json.loads(out)["total"]["requests"] == 10
    code, out, err = run_cli(capsys, monkeypatch, *words, "--results", "5", "--max-requests", "100", "--json")
    assert code == 0, err
    assert json.loads(out)["counts"]["pairs"] == 40
    code, out, err = run_cli(capsys, monkeypatch, *words)
    assert code == 2
    assert "exists already" in err
    shutil.rmtree(tmp_path / "cli")
    asked = len(services.log)
    code, out, err = run_cli(capsys, monkeypatch, *words, "--results", "5", "--rescore")
    assert code == 0, err
    assert "requests so far, all runs" in out
    assert len(services.log) == asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "none.yaml"], "none.yaml: "),
        (["--config", "c.yaml", "--set", "x"], "write section.name=value"),
        (["--config", "c.yaml", "--set", "search.size=5"], "search.serpapi.size: Extra inputs are not permitted"),
        (["--config", "c.yaml", "--categories", "no.txt"], "no.txt: cannot be read"),
        (["--config", "c.yaml", "--count", "0"], "queries.count: Input should be greater than or equal to 1"),
        (["--config", "c.yaml"], "the environment variable NO_SUCH_KEY is not set"),
    ],
)
def test_mistakes_are_one_line(
    settings: Any,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = settings()
    chosen["llm"]["key_env"] = "NO_SUCH_KEY"
    Path("c.yaml").write_text(yaml.safe_dump(chosen))
    code, out, err = run_cli(capsys, monkeypatch, "data", "curate", *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err + out


# All of it


@pytest.mark.slow
def test_200_queries_with_pictures_train_and_evaluate(services: Services, settings: Any, tmp_path: Path) -> None:
    from opengcl.config import TrainConfig
    from opengcl.training import train

    chosen = settings("large", queries={**settings()["queries"], "count": 200, "per_request": 10})
    chosen["search"]["results"] = 20
    chosen["budget"] = {"requests": 3000}
    chosen["scores"]["teacher"] = {"model": str(tiny_cross_encoder(tmp_path / "ce")), "device": "cpu"}
    services.faults = faults_of_every_kind
    started = time.monotonic()
    made = run(chosen)
    print(f"curated in {time.monotonic() - started:.1f} s: {made.counts}, {made.spent}")
    assert (made.counts["queries"], made.counts["pairs"]) == (200, 4000)
    assert made.counts["documents without a picture"] == 0
    out = train(TrainConfig(data=str(made.path), model="tiny", out=str(tmp_path / "run"), epochs=2, device="cpu"))
    splits = json.loads((out / "metrics.json").read_text())["splits"]
    assert all(0 <= row["ndcg@10"] <= 1 and row["queries"] > 0 for row in splits.values())
