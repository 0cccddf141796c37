"""Queries from a language model: many topics and styles, checked, and no two nearly the same."""

from __future__ import annotations

import functools
import hashlib
import math
import random
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from opengcl.curate.config import QueryOptions, Style
from opengcl.curate.errors import CallError, NotKeptError
from opengcl.curate.llm import ChatModel, Messages
from opengcl.curate.prompts import Prompt
from opengcl.curate.rejects import Rejects
from opengcl.curate.texts import one_line
from opengcl.curate.topics import Topic, read_column
from opengcl.curate.workers import together
from opengcl.near_duplicates import NearDuplicates
from opengcl.query_text import normalised

PROMPT_NAMES = frozenset({"count", "language", "style", "topic", "examples", "avoid"})
_AVOIDED = 30
"""Queries that a topic has already, shown so that they are not written again, at most."""
_QUOTES = "\"'`“”„«» "


class QueryReply(BaseModel):
    """What the model must reply."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queries: Annotated[list[Annotated[str, Field(min_length=1, max_length=2000)]], Field(min_length=1, max_length=200)]


@dataclass(frozen=True)
class Query:
    """A query and where it comes from; all but ``id`` and ``text`` are None for one from a file.

    Attributes:
        id: Hash of the normalised text, so that the same query is in the same split of every data set.
        text: What a shopper would type.
        category: The topic's name.
        style: The style's name.
        prompt: Hash of the prompt file.
        model: The model's name.
        temperature: As sent.
        seed: As sent with the first try; None where none is sent.
        request: The journal's key of the request that brought it.
    """

    id: str
    text: str
    category: str | None = None
    style: str | None = None
    prompt: str | None = None
    model: str | None = None
    temperature: float | None = None
    seed: int | None = None
    request: str | None = None


@dataclass(frozen=True)
class Ask:
    """One request for queries."""

    number: int
    topic: Topic
    style: Style
    messages: Messages
    seed: int


def query_id(text: str) -> str:
    """The id of a query."""
    return "q" + hashlib.blake2b(normalised(text).encode(), digest_size=8).hexdigest()


def given_queries(options: QueryOptions) -> list[Query]:
    """The queries of a file, in its order, each once.

    Raises:
        CurateError: If the file cannot be read.
    """
    texts = (one_line(text, options.longest) for text in read_column(str(options.file), options.column))
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(query_id(text), text)
    return [Query(id=name, text=text) for name, text in first.items()][: options.count]


class QueryWriter:
    """Asks a model for queries until there are enough.

    Args:
        options: How many, in which styles and language.
        topics: What they are about, taken in turn.
        model: Who writes them.
        prompt: What it is told.
        rejects: Where queries go that are not used.
        seed: Of examples, and of the model's draws.
    """

    def __init__(
        self,
        options: QueryOptions,
        topics: Sequence[Topic],
        model: ChatModel,
        prompt: Prompt,
        rejects: Rejects,
        seed: int,
    ) -> None:
        self.options = options
        self.topics = topics
        self.model = model
        self.prompt = prompt
        self.rejects = rejects
        self.seed = seed
        self._seen = NearDuplicates(options.near_duplicates)
        self._of_topic: defaultdict[str, list[str]] = defaultdict(list)

    def write(self, *, failures: float, stop: threading.Event, progress: bool) -> list[Query]:
        """All queries, in an order that does not depend on threads.

        Each round asks for what is missing, and knows what the rounds before it brought.

        Raises:
            CurateError: If too many requests fail, or the budget does not allow one.
        """
        kept: list[Query] = []
        asked = 0
        for turn in range(self.options.rounds):
            missing = self.options.count - len(kept)
            if missing <= 0:
                break
            asks = [self.ask(asked + one) for one in range(math.ceil(missing / self.options.per_request))]
            asked += len(asks)
            replies = together(
                self._answer,
                asks,
                workers=self.model.options.concurrency,
                failures=failures,
                stop=stop,
                task="Queries" if turn == 0 else f"Queries, round {turn + 1}",
                progress=progress,
            )
            for ask, reply in zip(asks, replies, strict=True):
                kept += self._keep(ask, reply)
            if all(isinstance(reply, NotKeptError) for reply in replies):
                break
        return kept[: self.options.count]

    def ask(self, number: int) -> Ask:
        """The request of this number: topics in turn, and for each topic the styles in turn."""
        turn, place = divmod(number, len(self.topics))
        topic = self.topics[place]
        style = self.options.styles[(turn + place) % len(self.options.styles)]
        draw = random.Random(f"{self.seed}:{number}")  # noqa: S311 - no secret hangs on it
        examples = draw.sample(
            self.options.examples, min(self.options.examples_per_request, len(self.options.examples))
        )
        values = {
            "count": str(self.options.per_request),
            "language": self.options.language,
            "style": style.instruction,
            "topic": topic.text,
            "examples": _listed("Queries of real shoppers, for the tone:", examples),
            "avoid": _listed("Not these again, nor slight changes of them:", self._of_topic[topic.name][-_AVOIDED:]),
        }
        return Ask(number, topic, style, self.prompt.messages(values), self.seed + number)

    def _answer(self, ask: Ask) -> tuple[QueryReply, str]:
        return self.model.ask(ask.messages, QueryReply, seed=ask.seed)

    def _keep(self, ask: Ask, reply: tuple[QueryReply, str] | CallError) -> list[Query]:
        """The queries of a reply that are good and new."""
        if isinstance(reply, CallError):
            self.rejects.add("queries", str(reply), ask.topic.name, "")
            return []
        content, request = reply
        kept = []
        reject = functools.partial(self.rejects.add, "queries")
        for written in content.queries:
            text = one_line(written.strip(_QUOTES), 2 * self.options.longest)
            if not text or len(text) > self.options.longest:
                reject(f"empty or over {self.options.longest} characters", written, request)
            elif (other := self._seen.add(text)) is not None:
                reject(f"nearly the same as {other!r}", text, request)
            else:
                kept.append(self._query(text, ask, request))
                self._of_topic[ask.topic.name].append(text)
        return kept

    def _query(self, text: str, ask: Ask, request: str) -> Query:
        options = self.model.options
        return Query(
            id=query_id(text),
            text=text,
            category=ask.topic.name,
            style=ask.style.name,
            prompt=self.prompt.hash,
            model=options.model,
            temperature=options.temperature,
            seed=ask.seed if options.send_seed else None,
            request=request,
        )


def _listed(heading: str, texts: Sequence[str]) -> str:
    return "\n".join([heading, *(f"- {text}" for text in texts)]) if texts else ""
