"""``opengcl data curate``: from categories, or a catalogue, to a ranked data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengcl.cli import arguments

if TYPE_CHECKING:
    from opengcl.curate import CurateConfig, Curated, Estimate


def curate(
    config: Annotated[Path, typer.Option(help="YAML file: queries, llm, search, scores, pictures, budget.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the data set to make.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder that keeps paid replies and pictures; OUT.work by default.")
    ] = None,
    categories: Annotated[Path | None, typer.Option(help="Text file with a category a line, or a table.")] = None,
    catalogue: Annotated[Path | None, typer.Option(help="Table of products: .parquet, .csv or .jsonl.")] = None,
    queries: Annotated[Path | None, typer.Option(help="Queries that you have: a line each, or a table.")] = None,
    count: Annotated[int | None, typer.Option(help="How many queries.")] = None,
    language: Annotated[str | None, typer.Option(help="Of the queries that a model writes.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the language model.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Of a server with OpenAI's protocol.")] = None,
    results: Annotated[int | None, typer.Option(help="Results of a query that count.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="Paid requests over all runs; never exceeded.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Cost over all runs, by the config's prices.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, as section.name=value; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print how many requests, and what they cost; ask nobody.")
    ] = False,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Ask nobody: make a data set of the replies in --work.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a ranked data set: queries by a language model, results of a shopping search, scores.

    Scores come from positions, a language model as judge, a cross-encoder, or a mixture. Keys come from environment
    variables alone: OPENAI_API_KEY and SERPAPI_API_KEY, or as the config names them. Every reply is kept on disk before
    it counts: stopped or killed, the same command goes on and pays for nothing twice. Needs the extra "curate".

    Example: opengcl data curate --config curate.yaml --categories categories.txt --out shop --dry-run
    """
    from opengcl.curate import curate as run
    from opengcl.curate import estimate, load_config

    options = {
        "out": arguments.text(out),
        "work": arguments.text(work),
        "queries.categories": arguments.text(categories),
        "queries.catalogue": arguments.text(catalogue),
        "queries.file": arguments.text(queries),
        "queries.count": count,
        "queries.language": language,
        "llm.model": model,
        "llm.base_url": base_url,
        "search.results": results,
        "budget.requests": max_requests,
        "budget.cost": max_cost,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    settings = load_config(config, {**given, **arguments.settings(changes or [], "section.name=value")})
    if dry_run:
        _tell_estimate(estimate(settings), settings, as_json=as_json)
    else:
        _tell(run(settings, rescore=rescore), settings, as_json=as_json)


def _tell_estimate(found: Estimate, settings: CurateConfig, *, as_json: bool) -> None:
    if as_json:
        from opengcl.curate.estimate import as_json as written

        arguments.tell(written(found))
        return
    arguments.tell(f"{'stage':<10}{'requests':>12}{'cost, about':>14}")
    for stage in found.stages:
        arguments.tell(f"{stage.name:<10}{stage.requests:>12,}{_cost(stage.cost):>14}")
    arguments.tell(f"{'all':<10}{found.requests:>12,}{_cost(found.cost):>14}")
    limit = "no limit" if settings.budget.cost is None else f"{settings.budget.cost:g}"
    arguments.tell(f"{'budget':<10}{settings.budget.requests:>12,}{limit:>14}")
    for note in found.notes:
        arguments.say(f"note: {note}")
    arguments.say("Nobody was asked.")


def _tell(made: Curated, settings: CurateConfig, *, as_json: bool) -> None:
    if as_json:
        spent = {"requests": made.spent.requests, "cost": made.spent.cost}
        arguments.tell(json.dumps({"path": str(made.path), "counts": made.counts, "spent": spent}, indent=2))
        return
    for name, count in made.counts.items():
        arguments.tell(f"{name:<36}{count:>10,}")
    arguments.tell(f"{'requests so far, all runs':<36}{made.spent.requests:>10,}")
    arguments.tell(f"{'cost so far, by the given prices':<36}{made.spent.cost:>10.4f}")
    arguments.say(f"{made.path}: written. Replies, pictures and rejects are kept in {settings.work_folder}")


def _cost(cost: float | None) -> str:
    return "no price" if cost is None else f"{cost:.4f}"
