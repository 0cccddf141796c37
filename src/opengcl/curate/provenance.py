"""What a curated data set says about where it comes from: enough to make it again, and no secret."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opengcl.curate.config import CurateConfig, HttpOptions, LLMOptions, SearchOptions

_LIBRARIES = ("opengcl", "openai", "pydantic", "httpx2", "sentence-transformers")
_SERVICE = {"timeout", "requests_per_minute", "concurrency", "retries", "longest_wait", "key_env", "price"}
_PRICES = {"price_input", "price_output"}


def provenance(
    config: CurateConfig,
    prompts: dict[str, str],
    teacher: str | None,
    counts: dict[str, int],
    replies: int,
    cost: float,
) -> dict[str, Any]:
    """What `Schema.provenance` takes.

    The same replies give the same words: neither dates nor attempts that failed are in it.

    Args:
        config: The settings.
        prompts: Name of a prompt -> hash of its file.
        teacher: Name and hash of the cross-encoder.
        counts: What became of how many.
        replies: Paid replies that the data set is made of.
        cost: Of those replies.
    """
    queries = config.queries.model_dump(exclude={"prompt", "examples", "styles"}, exclude_none=True)
    for name in {"categories", "catalogue", "file"} & set(queries):
        queries[name] = Path(queries[name]).name
    if config.queries.generated:
        queries["styles"] = {style.name: style.instruction for style in config.queries.styles}
        queries["examples"] = len(config.queries.examples)
    scores = config.scores.model_dump(exclude={"judge": {"llm", "prompt"}, "teacher": {"device"}}, exclude_none=True)
    if teacher:
        scores["teacher"]["model"] = teacher
    models = {"queries": config.writer_llm, "judge": config.judge_llm}
    return {
        "source": "queries, a shopping search, and scores",
        "seed": config.seed,
        "queries": queries,
        "search": _search(config.search),
        "models": {name: _model(one) for name, one in models.items() if one},
        "prompts": prompts,
        "scores": scores,
        "counts": counts,
        "replies": replies,
        "cost": round(cost, 6),
        "versions": _versions(),
    }


def _search(options: SearchOptions) -> dict[str, Any]:
    told = options.model_dump(exclude={*_SERVICE, "headers", "body", "url", "base_url"}, exclude_none=True)
    told["address"] = _place(options.url if isinstance(options, HttpOptions) else str(getattr(options, "base_url", "")))
    return told


def _model(options: LLMOptions) -> dict[str, Any]:
    told = options.model_dump(exclude={*_SERVICE, *_PRICES, "extra", "base_url"}, exclude_none=True)
    return {**told, "address": _place(options.base_url), "extra": sorted(options.extra)}


def _place(url: str) -> str:
    """An address without what may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
