"""A language model as judge: labels by a rubric, several products of a query at a time."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from opengcl.curate.config import JudgeOptions
from opengcl.curate.errors import ReplyError
from opengcl.curate.llm import ChatModel, Messages
from opengcl.curate.products import Product
from opengcl.curate.prompts import Prompt
from opengcl.data.problems import shown

PROMPT_NAMES = frozenset({"query", "products", "labels"})


class Judgement(BaseModel):
    """One product's label."""

    model_config = ConfigDict(extra="forbid", strict=True)

    number: int
    label: str


class JudgeReply(BaseModel):
    """What the model must reply."""

    model_config = ConfigDict(extra="forbid", strict=True)

    judgements: list[Judgement]


@dataclass(frozen=True)
class Batch:
    """Products of one query that are judged together.

    Attributes:
        query: The query's text.
        documents: Their ids, in the order in which they are shown.
        products: They themselves.
    """

    query: str
    documents: list[str]
    products: list[Product]


class Judge:
    """Labels products.

    Args:
        options: Labels, and how many products at a time.
        model: Who judges.
        prompt: The rubric.
        seed: Of the order in which products are shown, and of the model's draws.
    """

    def __init__(self, options: JudgeOptions, model: ChatModel, prompt: Prompt, seed: int) -> None:
        self.options = options
        self.model = model
        self.prompt = prompt
        self.seed = seed

    def batches(self, query: str, documents: Sequence[tuple[str, Product]]) -> list[Batch]:
        """A query's products in batches, in an order that says nothing about their places in the result list."""
        order = list(documents[: self.options.top])
        random.Random(f"{self.seed}:{query}").shuffle(order)  # noqa: S311 - no secret hangs on it
        size = self.options.per_request
        parts = (order[start : start + size] for start in range(0, len(order), size))
        return [Batch(query, [name for name, _ in part], [product for _, product in part]) for part in parts]

    def label(self, batch: Batch) -> dict[str, str]:
        """Document id -> label.

        Raises:
            CallError: If no reply could be used: each product must have exactly one of the labels.
        """

        def check(reply: JudgeReply) -> None:
            numbers = sorted(one.number for one in reply.judgements)
            if numbers != list(range(1, len(batch.documents) + 1)):
                raise ReplyError(f"judgements of {shown(numbers)}; allowed: each of 1 to {len(batch.documents)} once")
            if wrong := [one.label for one in reply.judgements if one.label not in self.options.labels]:
                raise ReplyError(f"label {shown(wrong[0])}; allowed: {', '.join(self.options.labels)}")

        reply, _ = self.model.ask(self.messages(batch), JudgeReply, seed=self.seed, check=check)
        return {batch.documents[one.number - 1]: one.label for one in reply.judgements}

    def messages(self, batch: Batch) -> Messages:
        """What the model is told; products are written as JSON, so that a title cannot look like another product."""
        lines = [f"{number}. {_told(product)}" for number, product in enumerate(batch.products, start=1)]
        values = {"query": batch.query, "products": "\n".join(lines), "labels": ", ".join(self.options.labels)}
        return self.prompt.messages(values)


def _told(product: Product) -> str:
    told = {"title": product.title, "shop": product.source, "price": product.price}
    return json.dumps({name: value for name, value in told.items() if value is not None}, ensure_ascii=False)
