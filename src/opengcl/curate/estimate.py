"""What a run would ask and cost, before anybody is asked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from opengcl.curate.config import CurateConfig, LLMOptions, SerpApiOptions
from opengcl.curate.queries import given_queries
from opengcl.curate.topics import read_topics

_CHARACTERS = 4
"""Of a token of English, on average."""
_PROMPT = 350
"""Tokens of a prompt without its topic or products."""
_QUERY = 12
"""Tokens of a query in a reply."""
_PRODUCT = 40
"""Tokens of a product that is judged."""
_LABEL = 15
"""Tokens of a label in a reply."""


@dataclass(frozen=True)
class Stage:
    """What one stage asks, if nothing is asked twice.

    Attributes:
        name: Which.
        requests: How many.
        cost: In the currency of the prices; None if a price is not given.
    """

    name: str
    requests: int
    cost: float | None


@dataclass(frozen=True)
class Estimate:
    """What a run asks, about.

    Attributes:
        stages: In order.
        notes: What a reader should know.
    """

    stages: list[Stage]
    notes: list[str]

    @property
    def requests(self) -> int:
        """Of all stages."""
        return sum(stage.requests for stage in self.stages)

    @property
    def cost(self) -> float | None:
        """Of all stages; None if a price is not given."""
        costs = [stage.cost for stage in self.stages]
        return None if None in costs else math.fsum(cost for cost in costs if cost is not None)


def estimate(config: CurateConfig) -> Estimate:
    """Counts requests and guesses tokens.

    Queries that are dropped are asked for again, replies that cannot be used are paid for and asked for again, and so
    are requests that fail: a run asks for some more than this. The budget bounds it in any case.

    Raises:
        CurateError: If a file that the config names cannot be read.
    """
    stages, notes = [], []
    count = config.queries.count
    if config.writer_llm:
        stage, note = _queries(config, config.writer_llm)
        stages.append(stage)
        notes += note
    else:
        count = len(given_queries(config.queries))
    pages = config.search.pages if isinstance(config.search, SerpApiOptions) else 1
    searches = count * pages
    price = config.search.price
    stages.append(Stage("search", searches, None if price is None else searches * price))
    if config.scores.judge and config.judge_llm:
        products = min(config.search.results, config.scores.judge.top or config.search.results)
        stages.append(_judge(config.judge_llm, count, products, config.scores.judge.per_request))
    found = Estimate(stages, notes)
    if found.requests > config.budget.requests:
        notes.append(f"the budget of {config.budget.requests:,} requests ends the run before it is done")
    if found.cost is not None and config.budget.cost is not None and found.cost > config.budget.cost:
        notes.append(f"the budget of {config.budget.cost:g} ends the run before it is done")
    return found


def _queries(config: CurateConfig, model: LLMOptions) -> tuple[Stage, list[str]]:
    options = config.queries
    topics = read_topics(options, config.seed)
    requests = math.ceil(options.count / options.per_request)
    told = sum(len(topic.text) for topic in topics) / len(topics) / _CHARACTERS + _PROMPT
    cost = _cost(model, requests * told, requests * options.per_request * _QUERY)
    notes = []
    if requests < len(topics):
        notes.append(
            f"{requests:,} requests reach {requests:,} of {len(topics):,} topics; for more of them raise queries.count "
            "or lower queries.per_request"
        )
    return Stage("queries", requests, cost), notes


def _judge(model: LLMOptions, count: int, products: int, together: int) -> Stage:
    requests = count * math.ceil(products / together)
    cost = _cost(model, requests * _PROMPT + count * products * _PRODUCT, count * products * _LABEL)
    return Stage("judge", requests, cost)


def _cost(model: LLMOptions, sent: float, received: float) -> float | None:
    if model.price_input is None or model.price_output is None:
        return None
    return (sent * model.price_input + received * model.price_output) / 1e6


def as_json(found: Estimate) -> str:
    """The estimate for other programs."""
    stages = [{"name": one.name, "requests": one.requests, "cost": one.cost} for one in found.stages]
    total = {"requests": found.requests, "cost": found.cost}
    return json.dumps({"stages": stages, "total": total, "notes": found.notes}, indent=2)
