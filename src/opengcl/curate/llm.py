"""A language model behind the chat completions protocol, asked through the official client."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from opengcl.curate.calls import Calls, Request
from opengcl.curate.config import LLMOptions, explained
from opengcl.curate.errors import CurateError, ReplyError
from opengcl.curate.http_client import Answer, BoundedClient, answer, unanswered
from opengcl.curate.texts import parse_json
from opengcl.data.problems import shown

Form = TypeVar("Form", bound=BaseModel)
Messages = list[dict[str, str]]
_FRAME = 200
"""Tokens of a chat beside its texts, at the most: roles, separators, the reply's form."""


class ChatModel:
    """Asks for replies of a given form, until one is right or there were enough.

    Args:
        options: Which model, where, and how.
        calls: The way to its service.
        key: The service's key; None where it has none, or nothing is sent.

    Raises:
        CurateError: If the ``openai`` package is not installed.
    """

    def __init__(self, options: LLMOptions, calls: Calls, key: str | None) -> None:
        try:
            import openai
        except ImportError as error:  # pragma: no cover - in an environment without the extra
            raise CurateError("asking a model needs the openai client: pip install 'opengcl[curate]'") from error
        self._openai = openai
        self._client = openai.OpenAI(
            api_key=key or "none",
            base_url=options.base_url,
            timeout=options.timeout,
            max_retries=0,  # retries are ours, so that each is counted and paid for
            http_client=BoundedClient(options.timeout),
        )
        self.options = options
        self.calls = calls

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def ask(
        self,
        messages: Messages,
        form: type[Form],
        *,
        seed: int,
        check: Callable[[Form], None] | None = None,
    ) -> tuple[Form, str]:
        """A reply that is right.

        Args:
            messages: The chat.
            form: What the reply must be, strictly.
            seed: Sent with the request, plus the number of the try; two requests of one seed and one text are one.
            check: Raises `ReplyError` if a reply of the right form is wrong all the same.

        Returns:
            The reply, and the journal's key of the request.

        Raises:
            CallError: If no reply of ``options.tries`` was right, or none came.
        """

        def read(body: str) -> Form:
            found = _read(body, form)
            if check is not None:
                check(found)
            return found

        return self.calls.ask_for(functools.partial(self._request, messages, form, seed), self._send, read)

    def _request(self, messages: Messages, form: type[BaseModel], seed: int, attempt: int) -> Request:
        options = self.options
        body: dict[str, Any] = {"model": options.model, "messages": messages, options.limit_field: options.max_tokens}
        if options.temperature is not None:
            body["temperature"] = options.temperature
        if options.send_seed:
            body["seed"] = (seed + attempt * 1_000_003) % 2**31
        if options.reply_format != "none":
            body["response_format"] = _told_form(form, options.reply_format)
        content = {"service": "chat", "url": options.base_url, "body": {**body, **options.extra}}
        sent = len(json.dumps(content["body"], ensure_ascii=False).encode()) + _FRAME  # a token is at least a byte
        most = self.price(sent, options.max_tokens)
        return Request({**content, "seed": seed, "try": attempt}, most, lambda reply: self._cost(reply, most))

    def _send(self, request: Request) -> Answer:
        """One HTTP request. Chat completions of any form are read as text, and judged later."""
        try:
            body = dict(request.content["body"])
            create = self._client.chat.completions.with_raw_response.create
            raw = create(model=body.pop("model"), messages=body.pop("messages"), extra_body=body)
        except self._openai.APIStatusError as error:
            return answer(error.response)
        except self._openai.APIConnectionError as error:
            raise unanswered(error.__cause__) from None
        return answer(raw.http_response)

    def price(self, sent: float, received: float) -> float:
        """Cost of so many tokens; prices that are not given count as 0."""
        return (sent * (self.options.price_input or 0) + received * (self.options.price_output or 0)) / 1e6

    def _cost(self, body: str, most: float) -> float:
        """As billed, where the reply says how many tokens; else the most it can be."""
        try:
            usage = parse_json(body)["usage"]
            sent, received = (int(usage[name]) for name in ("prompt_tokens", "completion_tokens"))
        except (ReplyError, KeyError, TypeError, ValueError):
            return most
        return self.price(sent, received) if min(sent, received) >= 0 else most


def _told_form(form: type[BaseModel], reply_format: str) -> dict[str, Any]:
    if reply_format == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": form.__name__.lower(), "schema": form.model_json_schema()}}


def _read(body: str, form: type[Form]) -> Form:
    """The content of a chat completion, as the form asks.

    Raises:
        ReplyError: If it is not a chat completion, a refusal, cut short, or not of the form.
    """
    completion = parse_json(body)
    try:
        choice = completion["choices"][0]
        message = choice["message"]
        refusal, content = message.get("refusal"), message.get("content")
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ReplyError(f"not a chat completion: {shown(body)}") from error
    if refusal:
        raise ReplyError(f"the model refused: {shown(refusal)}")
    if finish == "length":
        raise ReplyError("cut short at llm.max_tokens")
    if not isinstance(content, str):
        raise ReplyError(f"no text in the reply (finished by {shown(finish)})")
    try:
        return form.model_validate(parse_json(_without_fence(content)), strict=True)
    except ValidationError as error:
        raise ReplyError(explained(error)) from None


def _without_fence(content: str) -> str:
    """JSON that a model put into a Markdown block."""
    content = content.strip()
    if content.startswith("```") and content.endswith("```"):
        return content.removeprefix("```").removeprefix("json").removesuffix("```")
    return content
