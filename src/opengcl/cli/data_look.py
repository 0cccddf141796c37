"""``opengcl data check``, ``show``, ``split`` and ``sample``: looking at data sets, and making others of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from opengcl.cli import arguments

Folder = Annotated[Path, typer.Argument(help="Folder of the data set: dataset.yaml and three Parquet tables.")]

_EVERY = 10_000


def check(
    folder: Folder,
    every: Annotated[
        bool, typer.Option("--all", help=f"Name up to {_EVERY:,} rows of each kind of problem, not five.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read every row, decode every picture, and tell all that is wrong.

    Queries on both sides of a division are a problem too; near duplicates there, and scores that use little of their
    range, are notes.

    Exit code: 0 without problems, 1 with some, 2 if the data set cannot be used at all.

    Example: opengcl data check shop
    """
    from opengcl.data.check import check_dataset
    from opengcl.data.problems import EXAMPLES, number_of

    found = check_dataset(folder, examples=_EVERY if every else EXAMPLES)
    if as_json:
        problems = [asdict(one) for one in found.problems]
        arguments.tell(json.dumps({**found.counts, "problems": problems, "remarks": found.remarks}, indent=2))
    else:
        _print_counts(found.counts)
        for problem in found.problems:
            arguments.tell(str(problem))
        for remark in found.remarks:
            arguments.tell(f"note: {remark}")
        arguments.tell(
            _number_of(found.problems) + (f", {number_of(len(found.remarks), 'note')}" if found.remarks else "")
        )
    if found.problems:
        raise typer.Exit(1)


def show(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    queries: Annotated[int, typer.Option(help="Queries shown with their ranked documents.", min=0, max=500)] = 20,
    seed: Annotated[int, typer.Option(help="Of what is drawn: queries, and titles and pictures compared.")] = 0,
) -> None:
    """Write one HTML page to look at: counts, distributions, near duplicates, queries with their ranked documents.

    The page needs nothing else: it loads nothing and runs no script.

    Example: opengcl data show shop --out shop.html
    """
    from opengcl.data_page import write_data_page

    arguments.say(f"{write_data_page(folder, out, queries=queries, seed=seed)}: written")


def split(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Folder of the new data set.")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Change the data set itself.")] = False,
    by_hash: Annotated[
        bool,
        typer.Option(
            "--by-hash", help="No split columns: only dataset.yaml says how ids are divided, later rows included."
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Another seed, another division.")] = None,
    seen_queries: Annotated[float | None, typer.Option(help="Share of queries that training may see.")] = None,
    seen_documents: Annotated[float | None, typer.Option(help="Share of documents that training may see.")] = None,
    dev: Annotated[
        float | None,
        typer.Option(help="Share of each split's queries for choosing settings; a part column of the queries goes."),
    ] = None,
) -> None:
    """Make the splits, or make them anew; everything else stays as it is.

    What is not given is as dataset.yaml says.

    Example: opengcl data split shop --out shop-7 --seed 7 --seen-queries 0.9
    """
    from opengcl.data.resplit import resplit
    from opengcl.data.schema import Schema

    if (out is None) != in_place:
        raise ValueError("--out and --in-place: give one of the two")
    given: dict[str, Any] = {"seed": seed, "seen_queries": seen_queries, "seen_documents": seen_documents, "dev": dev}
    before = Schema.read(folder).splits
    options = replace(before, **{name: value for name, value in given.items() if value is not None})
    counts = resplit(folder, out, options, by_hash=by_hash, keep_parts=dev is None)
    arguments.say(f"{out or folder}: written")
    for side, rows in counts.items():
        arguments.tell(f"{side:<16}{rows['seen']:>12,} seen{rows['novel']:>12,} novel")


def sample(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="Folder of the new data set.")],
    queries: Annotated[int, typer.Option(help="How many queries.")],
    documents: Annotated[
        int | None,
        typer.Option(help="How many documents, with those judged; by default the share that no query judges stays."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Write a small data set that is built like this one: splits, documents a query, scores.

    The drawn queries keep all their judged documents; the other documents are drawn evenly.

    Example: opengcl data sample shop --out shop-small --queries 200
    """
    from opengcl.data.sample import sample as run

    counts = run(folder, out, queries=queries, documents=documents, seed=seed)
    arguments.say(f"{out}: written")
    for name, count in counts.items():
        arguments.tell(f"{name:<16}{count:>12,}")


def _print_counts(counts: dict[str, Any]) -> None:
    for name in ("queries", "documents", "pairs"):
        missing = counts["missing"].get(name, {})
        without = ", ".join(f"{rows:,} without {field}" for field, rows in missing.items() if rows)
        if name == "pairs" and counts["not_relevant"]:
            without = f"{counts['not_relevant']:,} judged not relevant: a score of 0 or below"
        arguments.tell(f"{name:<16}{counts[name]:>12,}{f'  ({without})' if without else ''}")
    for split, row in counts["splits"].items():
        arguments.tell(
            f"{split:<16}{row['pairs']:>12,} pairs, {row['queries']:,} queries "
            f"({row['dev_queries']:,} dev, {row['test_queries']:,} test), {row['documents']:,} documents"
        )


def _number_of(problems: Sequence[object]) -> str:
    if not problems:
        return "no problems"
    return "1 kind of problem" if len(problems) == 1 else f"{len(problems)} kinds of problems"
