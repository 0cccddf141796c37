"""Queries from a model, the model behind its protocol, prompts, topics, and the settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from opengcl.curate import CurateError, estimate, load_config
from opengcl.curate.budget import Budget
from opengcl.curate.calls import Calls
from opengcl.curate.config import LLMOptions, QueryOptions
from opengcl.curate.errors import BudgetReachedError, CallError
from opengcl.curate.journal import Journal
from opengcl.curate.keys import Keys
from opengcl.curate.llm import ChatModel
from opengcl.curate.prompts import Prompt
from opengcl.curate.queries import PROMPT_NAMES, QueryReply, QueryWriter, given_queries, query_id
from opengcl.curate.rejects import Rejects
from opengcl.curate.topics import Topic, read_column, read_topics
from opengcl.near_duplicates import jaccard, shingles

from .paid_services import KEY, THINGS, Fault, Services, completion, running

FAST: dict[str, Any] = {"requests_per_minute": 60_000.0, "longest_wait": 0.05, "retries": 1, "tries": 2, "timeout": 5.0}
MESSAGES = [{"role": "system", "content": "You write"}, {"role": "user", "content": "Write 3 queries"}]
TOPICS = [Topic(thing, f"The category: {thing}") for thing in THINGS]


@pytest.fixture
def services() -> Iterator[Services]:
    with running() as found:
        yield found


@pytest.fixture
def rejects() -> Rejects:
    return Rejects()


@pytest.fixture
def model(services: Services, tmp_path: Path, rejects: Rejects) -> Iterator[Callable[..., ChatModel]]:
    opened: list[ChatModel] = []
    with Journal(tmp_path / "j.gz") as journal:

        def make(*, cost: float | None = None, **given: Any) -> ChatModel:
            options = LLMOptions(**{"model": "m", "base_url": f"{services.url}/v1", **FAST, **given})
            budget = Budget(1000, cost, journal.spent)
            calls = Calls("queries", options, journal, budget, Keys(), rejects, stop=threading.Event())
            opened.append(ChatModel(options, calls, KEY))
            return opened[-1]

        yield make
        for one in opened:
            one.close()


def says(services: Services, content: Any, **message: Any) -> None:
    text = content if content is None or isinstance(content, str) else json.dumps(content)
    services.always(Fault(body=json.dumps(completion(text, **message))))


# The model


def test_a_request_says_all_that_the_options_say(model: Any, services: Services) -> None:
    reply, _ = model(temperature=0.3, max_tokens=77, extra={"top_p": 0.5}).ask(MESSAGES, QueryReply, seed=5)
    assert len(reply.queries) == 3
    body = json.loads(services.log[0].request)
    assert body.pop("response_format") == {
        "type": "json_schema",
        "json_schema": {"name": "queryreply", "schema": QueryReply.model_json_schema()},
    }
    assert body == {
        "model": "m",
        "messages": MESSAGES,
        "temperature": 0.3,
        "max_completion_tokens": 77,
        "seed": 5,
        "top_p": 0.5,
    }
    assert services.log[0].authorization == KEY


def test_servers_that_know_less_are_sent_less(model: Any, services: Services) -> None:
    plain = model(temperature=None, limit_field="max_tokens", reply_format="none", send_seed=False)
    plain.ask(MESSAGES, QueryReply, seed=5)
    assert json.loads(services.log[0].request) == {"model": "m", "messages": MESSAGES, "max_tokens": 2000}
    model(reply_format="json_object").ask(MESSAGES, QueryReply, seed=5)
    assert json.loads(services.log[1].request)["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("content", "message", "reason"),
    [
        ("Sure! Here are queries: red shoe", {}, "not JSON"),
        ('{"queries": ["a"', {}, "not JSON"),
        ({"queries": []}, {}, "queries: .*at least 1 item"),
        ({"queries": [""]}, {}, "queries.0: .*at least 1 character"),
        ({"queries": ["a" * 2001]}, {}, "queries.0: .*at most 2000 characters"),
        ({"queries": ["a"] * 201}, {}, "at most 200 items"),
        ({"queries": ["a", 5]}, {}, "queries.1: .*valid string"),
        ({"queries": ["a"], "note": "x"}, {}, "note: Extra inputs"),
        (["a"], {}, "valid dictionary"),
        (None, {"refusal": "I cannot help with that"}, "the model refused: 'I cannot h"),
        (None, {}, "no text in the reply"),
    ],
)
def test_replies_are_checked_strictly(
    model: Any, services: Services, rejects: Rejects, content: Any, message: dict[str, Any], reason: str
) -> None:
    says(services, content, **message)
    with pytest.raises(CallError, match=f"none of 2 replies could be used; the last: .*{reason}"):
        model().ask(MESSAGES, QueryReply, seed=5)
    seeds = [json.loads(one.request)["seed"] for one in services.log]
    assert len(set(seeds)) == 2, "the second try draws anew"
    assert rejects.count("queries") == 2


@pytest.mark.parametrize("body", ["", "<html>", "[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}'])
def test_replies_that_are_no_completions(model: Any, services: Services, body: str) -> None:
    services.always(Fault(body=body))
    with pytest.raises(CallError, match=r"not JSON|not a chat completion"):
        model().ask(MESSAGES, QueryReply, seed=5)


def test_a_reply_cut_short_is_told_so(model: Any, services: Services) -> None:
    cut = completion('{"queries": ["a"]}')
    cut["choices"][0]["finish_reason"] = "length"
    services.always(Fault(body=json.dumps(cut)))
    with pytest.raises(CallError, match=r"cut short at llm.max_tokens"):
        model().ask(MESSAGES, QueryReply, seed=5)


def test_a_markdown_fence_is_no_fault(model: Any, services: Services) -> None:
    says(services, '```json\n{"queries": ["red shoe"]}\n```')
    assert model().ask(MESSAGES, QueryReply, seed=5)[0].queries == ["red shoe"]


def test_errors_and_rate_limits_pass(model: Any, services: Services) -> None:
    faults = [Fault(429, headers={"retry-after": "0.05"}), Fault(500), Fault(drop=True)]
    services.faults = lambda _kind, _request, before: faults[before] if before < 3 else None
    assert len(model(retries=3).ask(MESSAGES, QueryReply, seed=5)[0].queries) == 3
    assert [one.status for one in services.log] == [429, 500, 200, 200]


def test_the_cost_is_what_the_reply_says_and_the_reserve_is_above_it(model: Any, services: Services) -> None:
    dear = model(price_input=2.0, price_output=8.0, max_tokens=1000)
    most = dear._request(MESSAGES, QueryReply, 5, 0).most
    dear.ask(MESSAGES, QueryReply, seed=5)
    spent = dear.calls._budget.spent
    assert spent.cost == pytest.approx((100 * 2 + 50 * 8) / 1e6)
    sent = len(services.log[0].request.encode())
    assert (sent * 2 + 1000 * 8) / 1e6 <= most <= ((sent + 300) * 2 + 1000 * 8) / 1e6


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "x", "completion_tokens": 1}, {"prompt_tokens": -5}])
def test_without_token_counts_the_most_is_counted(model: Any, services: Services, usage: Any) -> None:
    reply = {**completion('{"queries": ["a"]}'), "usage": usage}
    services.always(Fault(body=json.dumps(reply)))
    dear = model(price_input=2.0, price_output=8.0)
    dear.ask(MESSAGES, QueryReply, seed=5)
    assert dear.calls._budget.spent.cost == dear._request(MESSAGES, QueryReply, 5, 0).most


def test_a_cost_beyond_the_budget_is_not_sent(model: Any, services: Services) -> None:
    dear = model(cost=0.0079, price_input=0.0, price_output=8.0, max_tokens=1000)
    with pytest.raises(
        BudgetReachedError, match=r"the budget of 0.0079 is spent, and the next request can cost 0.0080"
    ):
        dear.ask(MESSAGES, QueryReply, seed=5)
    assert services.log == []


# Queries


def writer(model: ChatModel, rejects: Rejects, **options: Any) -> QueryWriter:
    chosen = QueryOptions(categories="-", **{"count": 24, "per_request": 6, **options})
    return QueryWriter(chosen, TOPICS, model, Prompt.read(None, "queries", PROMPT_NAMES), rejects, seed=3)


def write(one: QueryWriter) -> list[Any]:
    return one.write(failures=0.5, stop=threading.Event(), progress=False)


def test_queries_are_enough_distinct_and_know_where_they_come_from(
    model: Any, services: Services, rejects: Rejects
) -> None:
    chat = model()
    one = writer(chat, rejects)
    found = write(one)
    assert len(found) == 24
    assert [query.id for query in found] == [query_id(query.text) for query in found]
    sets = [shingles(query.text) for query in found]
    assert max(jaccard(a, b) for number, a in enumerate(sets) for b in sets[:number]) < 0.8
    first = found[0]
    assert (first.category, first.style, first.model, first.temperature) == (THINGS[0], "kind", "m", 1.0)
    assert (first.seed, first.prompt) == (3, one.prompt.hash)
    assert (
        first.text
        in json.loads(json.loads(chat.calls._journal.find(first.request))["choices"][0]["message"]["content"])[
            "queries"
        ]
    )
    # Each reply's last query repeats its first, so a second round was needed, which said what to avoid.
    assert rejects.count("queries") >= 4
    assert services.asked("chat") > 4
    texts = [json.loads(entry.request)["messages"][1]["content"] for entry in services.log]
    assert "Not these again" not in "".join(texts[:4])
    assert len({json.loads(entry.request)["seed"] for entry in services.log}) == len(services.log)


def test_topics_and_styles_come_in_turn(model: Any, rejects: Rejects) -> None:
    one = writer(model(), rejects, examples=["a", "b", "c"], examples_per_request=2)
    asks = [one.ask(number) for number in range(len(TOPICS) * len(one.options.styles))]
    assert [ask.topic.name for ask in asks[:9]] == [*THINGS, THINGS[0]]
    for thing in THINGS:
        assert len({ask.style.name for ask in asks if ask.topic.name == thing}) == len(one.options.styles)
    user = asks[0].messages[1]["content"]
    assert "Write 6 different queries in English" in user
    assert sum(f"- {example}" in user for example in "abc") == 2
    assert len({json.dumps(ask.messages[1]["content"][-60:]) for ask in asks}) > 1, "examples differ"


def test_the_same_seed_writes_the_same_queries(model: Any, services: Services) -> None:
    def once() -> list[Any]:
        return write(writer(model(concurrency=8), Rejects()))

    first = once()
    asked = services.asked("chat")
    assert once() == first
    assert services.asked("chat") == asked, "all from the journal"


def test_bad_queries_are_rejected_with_reasons(
    model: Any, services: Services, rejects: Rejects, tmp_path: Path
) -> None:
    says(services, {"queries": ['"red shoe"', " ", "x" * 121, "Red  shoe", "blue\nbag\u0007"]})
    found = write(writer(model(), rejects, count=3, rounds=2))
    assert [query.text for query in found] == ["red shoe", "blue bag"]
    rejects.write(tmp_path / "rejects.parquet")
    rows = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    reasons = {row["reason"] for row in rows}
    assert {"empty or over 120 characters", "nearly the same as 'red shoe'"} <= reasons
    assert all(row["stage"] == "queries" and row["request"] for row in rows)


def test_a_topic_that_fails_is_counted_and_others_go_on(model: Any, services: Services, rejects: Rejects) -> None:
    services.faults = lambda _kind, request, _before: Fault(400) if f"category: {THINGS[0]}" in request else None
    found = write(writer(model(), rejects, count=20))
    assert len(found) == 20
    assert THINGS[0] not in {query.category for query in found}


def test_a_file_of_queries(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("red shoe\n\n  Blue bag\nRED  shoe\nlamp\n", encoding="utf-8")
    found = given_queries(QueryOptions(file=str(tmp_path / "q.txt"), count=2))
    assert [query.text for query in found] == ["red shoe", "Blue bag"]
    assert found[0].model is None


# Topics and prompts


def test_topics_from_files(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("Shoes\nBags\n\nShoes\n")
    pq.write_table(pa.table({"category": ["Shoes", None, "Bags"], "n": [1, 2, 3]}), tmp_path / "c.parquet")
    (tmp_path / "p.csv").write_text("title,price\nred shoe,3\nblue bag,4\nlamp,5\n")
    names = {topic.name for topic in read_topics(QueryOptions(categories=str(tmp_path / "c.txt")), 0)}
    assert names == {"Shoes", "Bags"}
    table = QueryOptions(categories=str(tmp_path / "c.parquet"), column="category")
    assert {topic.name for topic in read_topics(table, 0)} == names
    samples = read_topics(QueryOptions(catalogue=str(tmp_path / "p.csv"), products_per_request=2, columns=["title"]), 0)
    assert [topic.name for topic in samples] == ["sample 0", "sample 1"]
    told = "\n".join(topic.text for topic in samples)
    assert all(f'{{"title": "{title}"}}' in told for title in ("red shoe", "blue bag", "lamp"))
    assert "price" not in told


def test_a_catalogue_with_stray_quotes_is_refused_and_other_layouts_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('title,price\n"star lamp,3\nplain,2\n"moon lamp,1\n')
    with pytest.raises(CurateError, match=r"p\.csv, line 2: a double quote opens a field"):
        read_topics(QueryOptions(catalogue=str(tmp_path / "p.csv"), columns=["title"]), 0)
    (tmp_path / "p.json").write_text('{"items": [{"title": "lamp", "price": 3.5}, {"title": "moon", "price": NaN}]}')
    (sample,) = read_topics(QueryOptions(catalogue=str(tmp_path / "p.json")), 0)
    assert set(sample.text.splitlines()[1:]) == {'{"title": "lamp", "price": 3.5}', '{"title": "moon"}'}
    (tmp_path / "c.tsv").write_text("name;kind\nshoes;a\nlamps;b\n")
    assert read_column(str(tmp_path / "c.tsv"), "name") == ["shoes", "lamps"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": "none.txt"}, "none.txt: cannot be read"),
        ({"categories": "empty.txt"}, "empty.txt: found no text"),
        ({"categories": "c.parquet"}, "found the column None; allowed: a, b"),
        ({"categories": "c.parquet", "column": "x"}, "found the column 'x'; allowed: a, b"),
        ({"catalogue": "c.parquet", "columns": ["x"]}, "found no column 'x'; it has a, b"),
        ({"catalogue": "empty.txt"}, "found the ending '.txt'; allowed: .parquet, .csv, .tsv, .jsonl"),
        ({"catalogue": "broken.parquet"}, "broken.parquet: cannot be read"),
        ({"categories": "latin.txt"}, "latin.txt: cannot be read"),
    ],
)
def test_wrong_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("broken.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), "c.parquet")
    with pytest.raises(CurateError, match=message):
        read_topics(QueryOptions(**options), 0)


def test_prompts_can_be_replaced_and_are_checked(tmp_path: Path) -> None:
    own = tmp_path / "own.md"
    own.write_text('You are brief.\n---\nWrite $count about {"json": $topic} for $$5')
    prompt = Prompt.read(str(own), "queries", PROMPT_NAMES)
    values = dict.fromkeys(PROMPT_NAMES, "") | {"count": "3", "topic": "$style shoes"}
    assert [message["content"] for message in prompt.messages(values)] == [
        "You are brief.",
        'Write 3 about {"json": $style shoes} for $5',
    ]
    assert prompt.hash != Prompt.read(None, "queries", PROMPT_NAMES).hash
    for text, message in (
        ("no divider", "found 1 parts; allowed: two"),
        ("a\n---\nb\n---\nc", "found 3 parts"),
        ("a\n---\n$typo", r"found \$typo; allowed: \$avoid, \$count"),
        ("a\n---\n5 $ off", r"a \$ that names nothing"),
    ):
        own.write_text(text)
        with pytest.raises(CurateError, match=message):
            Prompt.read(str(own), "queries", PROMPT_NAMES)
    with pytest.raises(CurateError, match=r"nowhere.md: cannot be read"):
        Prompt.read("nowhere.md", "queries", PROMPT_NAMES)


# Settings


PAGES = ("curate", "score-sources")
BASE: dict[str, Any] = {
    "out": "shop",
    "queries": {"file": "q.txt"},
    "search": {"source": "serpapi"},
}


def config(**changes: Any) -> Any:
    return load_config(None, {**BASE, **changes})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "llm: {model: m, send_seed: yes}",
            "line 4: llm.send_seed: Input should be a valid boolean (found 'yes') (yes",
        ),
        ("seed: 1_000", "line 4: seed: Input should be a valid integer (found '1_000') (a number is written"),
        ("name: 2024", "line 4: name: Input should be a valid string (found 2024) (quotes make it a text)"),
        ("budget:\n  cost: 1,5", "line 5: budget.cost: Input should be a valid number (found '1,5') (a decimal point"),
        ("pictures:\n  fetch: true\n  retries: [1]", "line 6: pictures.retries: "),
        (
            "scores: {judge: {labels: {no: 0, yes: true}}}",
            "line 4: scores.judge.labels.yes: Input should be",
        ),
        ("budget: 5", "line 4: budget: Input should be "),
        ("llm:\n  model: m\n  model: n", "line 6: found the key 'model' twice"),
        ("llm: &m {model: m}", "line 4: found the anchor '&m'"),
        ("colour: red", "line 4: colour: Extra inputs are not permitted"),
    ],
)
def test_errors_of_a_file_name_the_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        f"out: shop\nqueries: {{file: q.txt}}\nsearch: {{source: serpapi, parameters: {{safe: off}}}}\n{text}\n"
    )
    with pytest.raises(CurateError) as caught:
        load_config(tmp_path / "c.yaml", {})
    assert f"c.yaml, {told}" in str(caught.value)


def test_errors_of_an_option_do_not_blame_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("out: shop\nqueries: {file: q.txt}\nsearch: {source: serpapi, pages: 2}\n")
    with pytest.raises(CurateError, match=r"^seed: Input should be a valid integer"):
        load_config(tmp_path / "c.yaml", {"seed": "x"})
    found = load_config(tmp_path / "c.yaml", {"search.parameters.no-cache": "off"})
    assert found.search.parameters == {"no-cache": "off"}


def test_a_file_and_what_wins_over_it(tmp_path: Path) -> None:
    file = tmp_path / "curate.yaml"
    file.write_text(yaml.safe_dump({**BASE, "seed": 4}))
    found = load_config(
        file, {"scores.judge": None, "search.pages": 2, "queries.categories": "c.txt", "llm.model": "m"}
    )
    assert (found.seed, found.search.pages, found.queries.categories, found.queries.file) == (4, 2, "c.txt", None)
    assert found.work_folder == Path("shop.work")
    assert found.llm is not None
    assert found.llm.model == "m"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queris": {}}, r"queris: Extra inputs"),
        ({"search": {"source": "bing"}}, "search: .*'serpapi', 'http'"),
        ({"search.pages": 0}, r"search.serpapi.pages: .*greater than or equal to 1 \(found 0\)"),
        ({"search.pages": "2"}, r"search.serpapi.pages: .*valid integer \(found '2'\)"),
        ({"queries": {}}, "queries: give exactly one of categories, catalogue, file; found none"),
        ({"queries": {"categories": "c.txt"}}, "llm is missing"),
        ({"scores": {"judge": {}}}, "llm is missing"),
        ({"scores": {"positions": None}}, "scores: no source has a weight"),
        ({"search.results": 200}, "search.results is 200; allowed: up to scores.positions.depth, 100"),
        ({"budget": {"cost": 3.0}}, "budget.cost needs search.price"),
        ({"search.parameters": {"api_key": "x"}}, "parameters: found api_key, which is set for you"),
        ({"search.base_url": "https://user:pw@host/"}, "without user and password"),
        ({"search.base_url": "ftp://host/"}, "starts with https:// or http://"),
        ({"llm": {"model": "m", "base_url": "localhost"}}, "llm.base_url: allowed: an address"),
        (
            {
                "search": {
                    "source": "http",
                    "url": "http://h/",
                    "path": "",
                    "fields": {"title": "t"},
                    "headers": {"X-Api-Key": "abc"},
                }
            },
            "the header X-Api-Key must take its secret from the environment",
        ),
        (
            {"search": {"source": "http", "url": "http://{query}/", "path": "", "fields": {"title": "t"}}},
            "behind the host only",
        ),
        ({"search": {"source": "http", "url": "http://h/", "path": ""}}, "search.http.fields: Field required"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CurateError, match=message) as caught:
        config(**changes)
    for secret in ("abc", "user:pw"):
        assert secret not in str(caught.value)


def yaml_blocks() -> list[dict[str, Any]]:
    pages = Path(__file__).resolve().parents[1] / "docs"
    found = [re.findall(r"```yaml\n(.*?)```", (pages / f"{name}.md").read_text(), re.DOTALL) for name in PAGES]
    return [yaml.safe_load(block) for blocks in found for block in blocks]


def test_the_configs_of_the_pages_are_configs_and_cost_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *parts = yaml_blocks()
    monkeypatch.chdir(tmp_path)
    Path("categories.txt").write_text("\n".join(THINGS))
    assert len(parts) == 3
    for part in parts:
        load_config(None, {**first, "budget": {}, **part})
    found = estimate(load_config(None, first))
    assert [(stage.name, stage.requests, round(stage.cost or 0, 2)) for stage in found.stages] == [
        ("queries", 20, 0.01),
        ("search", 200, 3.0),
    ]
    judge = estimate(load_config(None, {**first, "scores": {"judge": {}}})).stages[-1]
    assert (judge.requests, round(judge.cost or 0, 2)) == (400, 0.2)


def test_without_the_extra_the_way_to_get_it_is_told() -> None:
    for absent in ("pydantic", "openai"):
        script = f"import sys; sys.modules[{absent!r}] = None\n"
        script += "from opengcl.curate.config import LLMOptions\nfrom opengcl.curate.llm import ChatModel\n"
        script += "ChatModel(LLMOptions(model='m'), None, None)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "CurateError" in done.stderr
        assert "pip install 'opengcl[curate]'" in done.stderr


def test_a_config_that_is_no_mapping(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("- a")
    with pytest.raises(CurateError, match=r"c.yaml: found \['a'\]; allowed: a mapping"):
        load_config(tmp_path / "c.yaml", {})


def test_an_estimate_counts_every_stage(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("\n".join(f"category {number}" for number in range(40)))
    found = estimate(
        config(
            queries={"categories": str(tmp_path / "c.txt"), "count": 205},
            llm={"model": "m", "price_input": 1.0, "price_output": 4.0},
            search={"source": "serpapi", "price": 0.01, "pages": 2, "results": 45},
            scores={"judge": {"top": 25, "per_request": 10}},
            budget={"requests": 1000, "cost": 4.0},
        )
    )
    assert {stage.name: stage.requests for stage in found.stages} == {"queries": 21, "search": 410, "judge": 615}
    assert found.requests == 21 + 410 + 615
    assert found.stages[1].cost == pytest.approx(4.10)
    judged = (615 * 350 + 205 * 25 * 40) * 1e-6 + 205 * 25 * 15 * 4e-6
    assert found.stages[2].cost == pytest.approx(judged)
    assert found.cost == pytest.approx(sum(stage.cost for stage in found.stages))
    assert [note.split(" ends")[0] for note in found.notes] == [
        "21 requests reach 21 of 40 topics; for more of them raise queries.count or lower queries.per_request",
        "the budget of 1,000 requests",
        "the budget of 4",
    ]
    without = estimate(config(queries={"categories": str(tmp_path / "c.txt")}, llm={"model": "m"}))
    assert without.cost is None
