"""Paid requests: the journal after every kind of crash, the budget under concurrency, retries, waits, secrets."""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from opengcl.curate.budget import Budget
from opengcl.curate.calls import Calls, Request
from opengcl.curate.config import ServiceOptions
from opengcl.curate.errors import BudgetReachedError, CallError, CurateError, NotKeptError, RefusedError, ReplyError
from opengcl.curate.http_client import Answer, BoundedClient, NotSentError, UnansweredError, ask
from opengcl.curate.journal import Journal, Spent, request_key
from opengcl.curate.keys import Keys
from opengcl.curate.pace import Pace, asked_to_wait, backoff
from opengcl.curate.rejects import Rejects
from opengcl.curate.texts import one_line, parse_json
from opengcl.curate.workers import together

from .paid_services import KEY, Fault, Services, running

FAST: dict[str, Any] = {"requests_per_minute": 60_000.0, "longest_wait": 0.2, "timeout": 5.0}


@pytest.fixture
def services() -> Iterator[Services]:
    with running() as found:
        yield found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "work" / "replies.jsonl.gz") as found:
        yield found


def lines_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def calls(journal: Journal, *, requests: int = 100, cost: float | None = None, **options: Any) -> Calls:
    offline = options.pop("offline", False)
    return Calls(
        "shop",
        ServiceOptions(**{**FAST, **options}),
        journal,
        Budget(requests, cost, journal.spent),
        options.pop("keys", Keys()),
        Rejects(),
        offline=offline,
        stop=threading.Event(),
    )


# The journal


def test_what_was_written_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "j.gz"
    with Journal(path) as journal:
        journal.sent("a", 2.0)
        journal.reply("a", {"q": "é"}, '{"r": "ü"}', 0.5)
        journal.sent("b", 3.0)
        journal.failed("b", "HTTP 500", 0.0)
        journal.sent("c", 4.0)
        assert (len(journal), journal.find("a"), journal.find("b")) == (1, '{"r": "ü"}', None)
    with Journal(path) as journal:
        assert journal.find("a") == '{"r": "ü"}'
        assert journal.cost_of("a") == 0.5
        assert journal.find("c") is None
        assert journal.spent == Spent(3, 4.5), "what was under way counts at its most"
    assert [line["kind"] for line in lines_of(path)] == ["sent", "reply", "sent", "failed", "sent"]


def test_a_file_cut_anywhere_keeps_all_whole_lines(tmp_path: Path) -> None:
    path, cut = tmp_path / "j.gz", tmp_path / "cut.gz"
    ends = []
    with Journal(path) as journal:
        for number in range(3):
            journal.sent(f"k{number}", 1.0)
            journal.reply(f"k{number}", {"n": number}, f"body {number}", 1.0)
            ends.append(path.stat().st_size)
    data = path.read_bytes()
    for size in sorted(
        {*range(0, len(data) + 1, 11), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}
    ):
        cut.write_bytes(data[:size])
        with Journal(cut) as journal:
            whole = sum(end <= size for end in ends)
            assert len(journal) == whole
            assert cut.stat().st_size <= size
            journal.reply("new", {}, "after the crash", 0.0)
        with Journal(cut) as journal:
            assert journal.find("new") == "after the crash"
            assert [journal.find(f"k{number}") for number in range(whole)] == [f"body {n}" for n in range(whole)]


@pytest.mark.parametrize(
    "data",
    [b"not gzip at all", gzip.compress(b"{}\n"), gzip.compress(b'{"kind": "odd", "key": "k"}\n'), gzip.compress(b"[]")],
    ids=["no gzip", "empty", "odd", "list"],
)
def test_another_file_is_left_as_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "j.gz"
    path.write_bytes(data)
    with pytest.raises(CurateError, match="move it away"):
        Journal(path)
    assert path.read_bytes() == data


def test_one_process_a_work_folder(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.gz"), pytest.raises(CurateError, match="another run works here"):
        Journal(tmp_path / "j.gz")
    Journal(tmp_path / "j.gz").close()


def test_many_threads_write_whole_lines(journal: Journal) -> None:
    def write(number: int) -> None:
        journal.sent(str(number), 1.0)
        journal.reply(str(number), {}, f"body {number}" * 50, 0.25)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(100)))
    assert [journal.find(str(number)) for number in range(100)] == [f"body {number}" * 50 for number in range(100)]
    assert journal.spent == Spent(100, 25.0)
    assert len(lines_of(journal.path)) == 200


FULL_DISK = """
import pathlib, resource, signal, sys
from opengcl.curate.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal(pathlib.Path(sys.argv[1])) as journal:
    journal.reply("one", {}, "before", 0.0)
    size = journal.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
    try:
        journal.reply("two", {}, "too much", 0.0)
    except OSError:
        assert journal.path.stat().st_size == size, "half a line is left"
        assert journal.find("two") is None
    else:
        raise SystemExit("no error")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.reply("three", {}, "after", 0.0)
"""


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "j.gz"
    subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], check=True, timeout=60)
    with Journal(path) as journal:
        assert [journal.find(key) for key in ("one", "two", "three")] == ["before", None, "after"]


def test_keys_of_requests_differ_where_the_requests_do() -> None:
    base = {"url": "u", "body": {"a": 1, "b": [1, 2]}}
    assert request_key(base) == request_key({"body": {"b": [1, 2], "a": 1}, "url": "u"})
    assert (
        len({request_key(one) for one in (base, {**base, "try": 1}, {"url": "u", "body": {"a": 1, "b": [2, 1]}})}) == 3
    )


# The budget


def test_a_budget_is_not_passed_by_many_threads() -> None:
    budget = Budget(1000, 10.0, Spent())
    peak, allowed, lock = [0.0], [0], threading.Lock()

    def spend(_: int) -> None:
        try:
            budget.reserve(0.7)
        except BudgetReachedError:
            return
        with lock:
            allowed[0] += 1
            peak[0] = max(peak[0], budget.spent.cost)
        time.sleep(0.001)
        budget.settle(0.7, 0.1)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(spend, range(300)))
    assert peak[0] <= 10.0
    assert budget.spent.cost == pytest.approx(allowed[0] * 0.1)
    # It ends when 0.7 no longer fits beside what is spent, not when the reserved most would have.
    assert allowed[0] >= (10 - 32 * 0.7) / 0.1
    assert budget.spent.cost <= 10.0


def test_requests_are_counted_over_restarts() -> None:
    budget = Budget(3, None, Spent(2, 5.0))
    budget.reserve(1e9)
    with pytest.raises(BudgetReachedError, match=r"the budget of 3 requests is used up.*--rescore"):
        budget.reserve(0.0)


def test_the_server_sees_no_request_beyond_the_budget(services: Services, journal: Journal) -> None:
    services.delay = 0.02
    budgeted = calls(journal, requests=7)
    client = BoundedClient(5)

    def one(number: int) -> str:
        request = Request({"q": number}, 0.0)
        return budgeted.ask(request, lambda: ask(client, "GET", f"{services.url}/s?q={number}&api_key={KEY}"))

    with pytest.raises(BudgetReachedError):
        together(one, range(50), workers=8, failures=0.0, stop=budgeted._stop, task="Searches", progress=False)
    client.close()
    assert services.asked("search") == 7
    assert journal.spent.requests == 7
    assert len(journal) == 7


# Calls


class Script:
    """Answers as told, one after the other."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.times: list[float] = []

    def __call__(self) -> Answer:
        self.times.append(time.monotonic())
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def ok(body: str = "{}") -> Answer:
    return Answer(200, body, None)


def test_a_reply_is_asked_for_once(journal: Journal) -> None:
    script = Script(ok("one"))
    one = calls(journal)
    assert [one.ask(Request({"a": 1}, 0.5), script) for _ in range(3)] == ["one"] * 3
    assert len(script.times) == 1
    assert one.used == {request_key({"a": 1}): 0.5}


def test_equal_requests_at_the_same_time_are_one(journal: Journal) -> None:
    one = calls(journal)
    count: list[int] = []

    def send() -> Answer:
        count.append(1)
        time.sleep(0.05)
        return ok("body")

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda _: one.ask(Request({"a": 1}, 0.0), send), range(6))) == {"body"}
    assert len(count) == 1


def test_what_may_pass_is_tried_again(journal: Journal) -> None:
    script = Script(Answer(500, "oops", None), UnansweredError("slow"), NotSentError("down"), ok("body"))
    assert calls(journal, retries=3).ask(Request({}, 2.0, cost=lambda _: 0.5), script) == "body"
    # 500: nothing. No reply: it may have been billed. No connection: nothing. The reply: as it says.
    assert journal.spent == Spent(4, 2.5)
    kinds = [line["kind"] for line in lines_of(journal.path)]
    assert kinds == ["sent", "failed", "sent", "failed", "sent", "failed", "sent", "reply"]


def test_retries_end(journal: Journal) -> None:
    script = Script(*[Answer(503, "busy", None)] * 3)
    with pytest.raises(CallError, match="shop: gave up after 3 attempts; the last: HTTP 503: busy"):
        calls(journal, retries=2).ask(Request({}, 1.0), script)
    assert script.answers == []


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refusal_of_all_ends_all(journal: Journal, status: int) -> None:
    with pytest.raises(RefusedError, match=f"HTTP {status}.*Check its key"):
        calls(journal).ask(Request({}, 1.0), Script(Answer(status, "no", None)))


@pytest.mark.parametrize("status", [301, 400, 422])
def test_a_refusal_of_one_is_final_for_it(journal: Journal, status: int) -> None:
    with pytest.raises(CallError, match=f"HTTP {status}"):
        calls(journal).ask(Request({}, 1.0), Script(Answer(status, "no", None)))


def test_retry_after_is_waited_for_by_all_threads_and_bounded(journal: Journal) -> None:
    one = calls(journal, longest_wait=0.3, retries=1)
    script = Script(Answer(429, "", "0.25"), ok())
    one.ask(Request({"a": 1}, 0.0), script)
    assert script.times[1] - script.times[0] >= 0.25
    other = Script(Answer(429, "", "86400"), ok())
    one.ask(Request({"a": 2}, 0.0), other)
    assert 0.3 <= other.times[1] - other.times[0] < 2
    started, third = time.monotonic(), Script(ok())
    one._pace.hold(0.2)
    one.ask(Request({"a": 3}, 0.0), third)
    assert third.times[0] - started >= 0.19


def test_a_pace_is_kept_over_threads() -> None:
    pace = Pace(1200, threading.Event())
    started: list[float] = []

    def go(_: int) -> None:
        pace.wait()
        started.append(time.monotonic())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(go, range(9)))
    assert max(started) - min(started) >= 8 * 0.05 - 0.01


def test_waits() -> None:
    for attempt in range(40):
        assert 0.5 * min(10.0, 2.0**attempt) <= backoff(attempt, 10.0) <= 10.0
    assert asked_to_wait(None, 60) is None
    assert asked_to_wait("7", 60) == 7
    assert asked_to_wait("700", 60) == 60
    assert asked_to_wait("-5", 60) == 0
    assert asked_to_wait("nan", 60) is None
    assert asked_to_wait("inf", 60) == 60
    assert asked_to_wait("soon", 60) is None
    assert 25 <= (asked_to_wait(formatdate(time.time() + 30, usegmt=True), 60) or 0) <= 30
    assert asked_to_wait(formatdate(time.time() - 30, usegmt=True), 60) == 0


def test_replies_that_cannot_be_used_are_asked_for_again_and_kept(journal: Journal) -> None:
    bodies = {0: "bad", 1: "worse", 2: "good"}

    def read(body: str) -> str:
        if body != "good":
            raise ReplyError(f"{body} is not good")
        return body.upper()

    def send(request: Request) -> Answer:
        return ok(bodies[request.content["try"]])

    one = calls(journal, tries=3)
    found, key = one.ask_for(lambda number: Request({"try": number}, 1.0), send, read)
    assert (found, journal.find(key)) == ("GOOD", "good")
    assert one._rejects.count("shop") == 2
    assert journal.spent == Spent(3, 3.0)
    with pytest.raises(CallError, match="none of 2 replies could be used; the last: worse is not good"):
        calls(journal, tries=2).ask_for(lambda number: Request({"try": number}, 1.0), send, read)
    assert journal.spent == Spent(3, 3.0), "what is kept is not paid for again, good or not"


def test_offline_asks_nobody(journal: Journal) -> None:
    calls(journal).ask(Request({"a": 1}, 0.0), Script(ok("kept")))
    offline = calls(journal, offline=True)
    assert offline.ask(Request({"a": 1}, 0.0), Script()) == "kept"
    with pytest.raises(NotKeptError):
        offline.ask(Request({"a": 2}, 0.0), Script())


def test_failures_are_counted_against_the_share_allowed() -> None:
    def work(number: int) -> int:
        if number % 5 == 0:
            raise CallError(f"no {number}")
        return number

    def run(failures: float) -> list[Any]:
        stop = threading.Event()
        return together(work, range(20), workers=3, failures=failures, stop=stop, task="T", progress=False)

    found = run(0.2)
    assert [one for one in found if not isinstance(one, CallError)] == [n for n in range(20) if n % 5]
    with pytest.raises(CurateError, match="T: 4 of 20 requests failed for good"):
        run(0.19)


# Over HTTP


def test_a_connection_that_breaks_is_no_reply(services: Services) -> None:
    services.always(Fault(drop=True))
    with BoundedClient(5) as client, pytest.raises(UnansweredError, match="no complete reply"):
        ask(client, "GET", f"{services.url}/s?q=a&api_key={KEY}")


def test_no_server_is_not_billed() -> None:
    with BoundedClient(1) as client, pytest.raises(NotSentError, match="no connection"):
        ask(client, "GET", f"http://127.0.0.1:9/?api_key={KEY}")
    with BoundedClient(1) as client, pytest.raises(NotSentError) as caught:
        ask(client, "GET", f"gopher://127.0.0.1/{KEY}")
    assert KEY not in str(caught.value)


def test_replies_are_bounded_in_size_and_time(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opengcl.curate.http_client.LARGEST_REPLY", 1000)
    services.always(Fault(body="x" * 1001))
    with BoundedClient(5) as client, pytest.raises(UnansweredError, match="over 1,000 bytes"):
        ask(client, "GET", f"{services.url}/s?q=a&api_key={KEY}")
    services.always(Fault(delay=0.6))
    with BoundedClient(0.2) as client, pytest.raises(UnansweredError, match="ReadTimeout"):
        ask(client, "GET", f"{services.url}/s?q=b&api_key={KEY}")


def test_a_slow_drip_ends(services: Services) -> None:
    services.always(Fault(drip=True))
    started = time.monotonic()
    with BoundedClient(0.3) as client, pytest.raises(UnansweredError, match="ReadTimeout"):
        ask(client, "GET", f"{services.url}/s?q=a&api_key={KEY}")
    assert time.monotonic() - started < 3


def test_redirects_are_not_followed(services: Services) -> None:
    services.always(Fault(302, headers={"location": f"{services.url}/elsewhere"}))
    with BoundedClient(5) as client:
        assert ask(client, "GET", f"{services.url}/s?q=a&api_key={KEY}").status == 302
    assert len(services.log) == 1


# Secrets


def test_secrets_are_scrubbed_from_replies_and_logs(
    services: Services, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "s3cr/t +key"  # noqa: S105
    monkeypatch.setenv("SHOP_KEY", secret)
    keys = Keys()
    assert keys.read("SHOP_KEY") == secret
    services.key = secret
    services.always(Fault(body=json.dumps({"you sent": secret})))
    one = Calls(
        "shop", ServiceOptions(**FAST), journal, Budget(9, None, Spent()), keys, Rejects(), stop=threading.Event()
    )
    with BoundedClient(5) as client, caplog.at_level(logging.DEBUG), keys.out_of_logs():
        params = {"q": "a", "api_key": secret}
        body = one.ask(Request({"q": "a"}, 0.0), lambda: ask(client, "GET", f"{services.url}/s", params=params))
    assert json.loads(body) == {"you sent": "${SHOP_KEY}"}
    assert "HTTP Request: GET" in caplog.text
    for form in (secret, "s3cr%2Ft", "s3cr/t"):
        assert form not in caplog.text
        assert form.encode() not in gzip.decompress(journal.path.read_bytes())


def test_a_missing_key_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "  ")
    with pytest.raises(CurateError, match="the environment variable SHOP_KEY is not set"):
        Keys().read("SHOP_KEY")


# Texts from outside


def test_json_is_strict() -> None:
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for text in ("", "{", "NaN", '{"a": Infinity}', "[" * 100_000, "1" * 5000, "'a'"):
        with pytest.raises(ReplyError, match="not JSON"):
            parse_json(text)


def test_texts_are_one_clean_line() -> None:
    assert one_line("  a\tb\r\n c\u2028d ", 100) == "a b c d"
    assert one_line("a\x00b\x1b[31mc\ud800", 100) == "ab[31mc"
    assert one_line("é", 10) == "é"
    assert one_line("word " * 1000, 9) == "word word"
    assert one_line("\u200b", 5) == "\u200b"
