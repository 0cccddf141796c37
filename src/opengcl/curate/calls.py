"""Paid requests to one service: looked up first, within the budget, at the service's pace, retried, and kept."""

from __future__ import annotations

import functools
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from opengcl.curate.budget import Budget
from opengcl.curate.config import ServiceOptions
from opengcl.curate.errors import CallError, NotKeptError, RefusedError, ReplyError, StoppedError
from opengcl.curate.http_client import Answer, NotSentError, UnansweredError
from opengcl.curate.journal import Journal, request_key
from opengcl.curate.keys import Keys
from opengcl.curate.pace import Pace, asked_to_wait, backoff
from opengcl.curate.rejects import Rejects
from opengcl.curate.texts import one_line

Read = TypeVar("Read")

_OK = range(200, 300)
_QUOTED = 300
"""Characters of a service's own words in a message."""
_HOPELESS = (401, 402, 403, 404, 405)
"""Statuses that every other request would get too."""
_LATER = (408, 409, 425, 429, *range(500, 600))
"""Statuses that may pass."""


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        content: All that decides the reply, without secrets: what the journal knows the request by.
        most: The most that it can cost.
        cost: What a reply cost, from its body; None if every reply costs ``most``.
    """

    content: Mapping[str, Any]
    most: float
    cost: Callable[[str], float] | None = None

    @property
    def key(self) -> str:
        """The journal's key."""
        return request_key(self.content)


class Calls:
    """The way to one service.

    Args:
        name: What messages call the service.
        options: Its pace, retries and waits.
        journal: Where requests and replies are kept.
        budget: What may be spent, shared with other services.
        keys: What must not be kept.
        rejects: Where replies go that cannot be used.
        offline: If True, nothing is sent, and only kept replies are found.
        stop: Set when the work ends early.
    """

    def __init__(
        self,
        name: str,
        options: ServiceOptions,
        journal: Journal,
        budget: Budget,
        keys: Keys,
        rejects: Rejects,
        *,
        offline: bool = False,
        stop: threading.Event,
    ) -> None:
        self.name = name
        self.used: dict[str, float] = {}
        self._options = options
        self._journal = journal
        self._budget = budget
        self._keys = keys
        self._rejects = rejects
        self._offline = offline
        self._stop = stop
        self._pace = Pace(options.requests_per_minute, stop)
        self._asking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def ask_for(
        self, request: Callable[[int], Request], send: Callable[[Request], Answer], read: Callable[[str], Read]
    ) -> tuple[Read, str]:
        """Asks until a reply can be used, or there were ``tries`` of them.

        Args:
            request: What is asked, for each number of a try from 0; all of them must differ.
            send: Sends a request, once.
            read: What a body says; raises `ReplyError` if it cannot be used.

        Returns:
            What was read, and the key of its request.

        Raises:
            BudgetReachedError, RefusedError, CallError: As `ask`; and `CallError` if no reply could be used.
        """
        reason = ""
        for number in range(self._options.tries):
            asked = request(number)
            body = self.ask(asked, functools.partial(send, asked))
            try:
                return read(body), asked.key
            except ReplyError as error:
                reason = str(error)
                self._rejects.add(self.name, reason, body, asked.key)
        raise CallError(f"{self.name}: none of {self._options.tries} replies could be used; the last: {reason}")

    def ask(self, request: Request, send: Callable[[], Answer]) -> str:
        """The body of the reply: from the journal, or else from the service.

        Args:
            request: What is asked.
            send: Sends it, once.

        Raises:
            BudgetReachedError: If the budget does not allow it.
            RefusedError: If the service would refuse every other request too.
            CallError: If it failed for good.
        """
        with self._asking[request.key]:
            body = self._journal.find(request.key)
            if body is None:
                body = self._ask_until_answered(request, send)
            self.used[request.key] = self._journal.cost_of(request.key)
            return body

    def _ask_until_answered(self, request: Request, send: Callable[[], Answer]) -> str:
        if self._offline:
            raise NotKeptError(f"{self.name}: no reply is kept for this request")
        reason = ""
        for attempt in range(self._options.retries + 1):
            if attempt:
                self._stop.wait(backoff(attempt - 1, self._options.longest_wait))
            self._pace.wait()
            if self._stop.is_set():
                raise StoppedError(f"{self.name}: stopped")
            body, reason = self._ask_once(request, send)
            if body is not None:
                return body
        raise CallError(f"{self.name}: gave up after {self._options.retries + 1} attempts; the last: {reason}")

    def _ask_once(self, request: Request, send: Callable[[], Answer]) -> tuple[str | None, str]:
        """(body, ""), or (None, why) where another attempt may help."""
        self._budget.reserve(request.most)
        self._journal.sent(request.key, request.most)
        try:
            answer = send()
        except UnansweredError as error:
            # It may have been billed all the same, so it counts in full.
            self._settle_failure(request, str(error), 0.0 if isinstance(error, NotSentError) else request.most)
            return None, str(error)
        if answer.status in _OK:
            body = self._keys.scrub(answer.body)
            cost = request.most if request.cost is None else request.cost(body)
            self._journal.reply(request.key, request.content, body, cost)
            self._budget.settle(request.most, cost)
            return body, ""
        reason = f"HTTP {answer.status}: {one_line(self._keys.scrub(answer.body), _QUOTED)}"
        self._settle_failure(request, reason, 0.0)
        if answer.status in _HOPELESS:
            raise RefusedError(f"{self.name}: {reason}. Check its key, address and model")
        if answer.status not in _LATER:
            raise CallError(f"{self.name}: {reason}")
        wait = asked_to_wait(answer.retry_after, self._options.longest_wait)
        if wait is not None:
            self._pace.hold(wait)
        return None, reason

    def _settle_failure(self, request: Request, reason: str, cost: float) -> None:
        self._journal.failed(request.key, reason, cost)
        self._budget.settle(request.most, cost)
