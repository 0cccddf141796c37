"""``opengcl data from-logs``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengcl.cli import arguments

if TYPE_CHECKING:
    from opengcl.clicks.scores import ScoreOptions

_BIAS_NAMES = ("auto", "model", "randomised", "none")


def from_logs(
    log: Annotated[
        str,
        typer.Argument(help="Parquet, CSV, TSV or JSON, a row an event, a result or a list: file, folder or pattern."),
    ],
    documents: Annotated[
        Path, typer.Option(help="The catalogue: a ranked data set's folder, or a table as for the log.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the data set to make.")],
    query: Annotated[
        str, typer.Option(help="Log column of the query's text, or a path into one, as a.b.c; so for all columns.")
    ] = "query",
    document: Annotated[str, typer.Option(help="Log column of the document's id.")] = "doc_id",
    position: Annotated[
        str, typer.Option(help="Log column of the position; of impressions, and of others with --imply-impressions.")
    ] = "position",
    event: Annotated[str, typer.Option("--event-column", help="Log column of the event's name.")] = "event",
    session: Annotated[
        str,
        typer.Option(
            help="Log column of the result list's id, or else the visit's: what a click belongs to; or user+visit."
        ),
    ] = "session",
    no_session: Annotated[
        bool, typer.Option("--no-session", help="Each row of the log is a result list of its own (with --flag).")
    ] = False,
    flag: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND=COLUMN, as click=clicked: a row is a result that was shown, and the column says (0 or 1) "
            "whether it was clicked. May be repeated."
        ),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(help="Log column of lists, a row a result list; several that go in step, with commas."),
    ] = None,
    list_order: Annotated[
        bool, typer.Option("--list-order", help="Positions are the places in the lists of --results.")
    ] = False,
    lists: Annotated[
        str | None,
        typer.Option(
            help="What was shown, where the log does not say so: a file, a row a result list with --session, --query "
            "and --results."
        ),
    ] = None,
    query_text: Annotated[
        str | None, typer.Option(help="The query of rows without one, or of all where there is no column: a feed.")
    ] = None,
    query_from_impressions: Annotated[
        bool,
        typer.Option(
            "--query-from-impressions",
            help="An event without query has that of the impression of its session and document.",
        ),
    ] = False,
    propensity: Annotated[
        str | None,
        typer.Option(
            help="Log column of the logging policy's probability of showing the result; weighs by its inverse."
        ),
    ] = None,
    propensity_clip: Annotated[float, typer.Option(help="Smallest --propensity that is divided by.")] = 0.001,
    imply_impressions: Annotated[
        bool,
        typer.Option("--imply-impressions", help="An event with a position but no impression implies one there."),
    ] = False,
    most_lost: Annotated[
        float,
        typer.Option(help="Share of a kind's events that may lack impression, session or the like; more is an error."),
    ] = 0.05,
    encoding: Annotated[str, typer.Option(help="Of a log that is text, as cp1252 or utf-16.")] = "utf-8",
    delimiter: Annotated[
        str | None,
        typer.Option(help="Of CSV and TSV: one character, or comma, tab, semicolon, pipe; found when not given."),
    ] = None,
    quotes: Annotated[
        bool | None,
        typer.Option(
            "--quotes/--no-quotes",
            help="Whether double quotes enclose fields of CSV and TSV, or are part of the texts, as inch marks are. By "
            "default they enclose, and quotes that seem to join rows are refused.",
        ),
    ] = None,
    null: Annotated[
        str | None,
        typer.Option(help="Texts of CSV and TSV that mean a missing value, as NULL,N/A; only empty ones do."),
    ] = None,
    skip_lines: Annotated[
        int | None, typer.Option(help="Lines of CSV and TSV before the header; found when not given.")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Log column of the time; needed for --half-life, --repeat-after, --since and --until."),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Log column of the user, to tell bots by.")] = None,
    randomised: Annotated[
        str | None, typer.Option(help="Log column that says whether the list was in random order.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--event", help="KIND=NAME, as purchase=order_paid: what the log calls a kind of event. May be repeated."
        ),
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND=NUMBER: what an event is worth. Default: click=1, cart=1, purchase=2. May be repeated."
        ),
    ] = None,
    first_position: Annotated[int, typer.Option(help="The top position in the log: 0 or 1.")] = 1,
    max_position: Annotated[int | None, typer.Option(help="Leave out what was shown below.")] = None,
    most_events: Annotated[
        int | None, typer.Option(help="Users (or sessions) with more events are bots; off by default.")
    ] = None,
    most_click_rate: Annotated[
        float | None, typer.Option(help="So are those with more clicks an impression; off by default.")
    ] = None,
    repeat_after: Annotated[
        float | None,
        typer.Option(help="Seconds after which the same result in the same session counts again; never by default."),
    ] = None,
    time_unit: Annotated[str, typer.Option(help="Of times that are numbers since 1970: s, ms, us or ns.")] = "s",
    half_life: Annotated[float | None, typer.Option(help="Days after which an event counts half.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Leave out what came earlier.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Leave out what came later; ages count from here.")] = None,
    min_query_impressions: Annotated[float, typer.Option(help="Queries with fewer are left out.")] = 1,
    min_query_clicks: Annotated[float, typer.Option(help="Queries with fewer are left out.")] = 1,
    min_pair_impressions: Annotated[float, typer.Option(help="Pairs with fewer are left out.")] = 1,
    min_examinations: Annotated[float, typer.Option(help="Pairs looked at less, as expected, have no score.")] = 0.2,
    method: Annotated[
        str, typer.Option(help="posterior (expected rates), ips (inverse propensities) or ctr (with position bias).")
    ] = "posterior",
    scale: Annotated[str, typer.Option(help="Worth to scores from 1 to 100: percentile or linear.")] = "percentile",
    position_bias: Annotated[
        str,
        typer.Option(
            help="auto, model (from all lists), randomised (from lists in random order), none, or a YAML or JSON file "
            "of propensities by position."
        ),
    ] = "auto",
    clip: Annotated[float, typer.Option(help="Smallest propensity that ips divides by.")] = 0.05,
    fit_impressions: Annotated[float, typer.Option(help="The position model is fitted on pairs shown so often.")] = 50,
    link_clicks: Annotated[
        float, typer.Option(help="Clicks that must link each position with higher ones to tell its bias.")
    ] = 20,
    no_exposure_prior: Annotated[
        bool,
        typer.Option(
            "--no-exposure-prior",
            help="Do not expect more of what was shown more, though the log's clicks may bear it out (posterior).",
        ),
    ] = False,
    doc_id: Annotated[str | None, typer.Option(help="Catalogue column of the ids; doc_id by default.")] = None,
    fields: Annotated[
        str | None,
        typer.Option(help="Catalogue columns that are model fields, with commas; title, or a data set's own."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="Catalogue columns of pictures: bytes, paths or URLs, as image=picture_url, with commas."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder that picture paths are relative to; the catalogue's by default.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Store pictures as JPEG, longer side at most so many pixels.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Pictures fetched at once.")] = 16,
    allow_private: Annotated[bool, typer.Option("--allow-private", help="Fetch from private addresses too.")] = False,
    name: Annotated[str | None, typer.Option(help="The data set's name; the folder's by default.")] = None,
    memory: Annotated[str, typer.Option(help="What DuckDB may hold before it uses the disk.")] = "1GB",
    threads: Annotated[int | None, typer.Option(help="That DuckDB uses; all by default.")] = None,
) -> None:
    """Score (query, document) pairs from clicks, carts and purchases, corrected for position bias.

    The log is cleaned and added up, the chance that each position is looked at is estimated, and each pair gets a score
    from 1 to 100 that says how good it is where it is looked at. A log that cannot tell position from quality is
    refused, with the reason.

    Example: opengcl data from-logs 'logs/*.parquet' --documents shop --out clicks --event click=select_item
    """
    from opengcl.clicks import LogOptions, PictureOptions, SupportOptions
    from opengcl.clicks import from_logs as run
    from opengcl.clicks.log import KINDS
    from opengcl.clicks.scores import VALUES
    from opengcl.delimited_text import TextOptions
    from opengcl.fetch import FetchOptions

    names = KINDS | _assignments("--event", kind or [])
    values = VALUES | {one: _number(text) for one, text in _assignments("--value", value or []).items()}
    report = run(
        log,
        documents,
        out,
        columns=LogOptions(
            query=query,
            document=document,
            position=None if list_order else position,
            event=event,
            session=None if no_session else session,
            time=time,
            user=user,
            randomised=randomised,
            kinds=names,
            first_position=first_position,
            most_events=most_events,
            most_click_rate=most_click_rate,
            repeat_after=repeat_after,
            half_life=half_life,
            since=since,
            until=until,
            time_unit=time_unit,
            flags=_assignments("--flag", flag or []),
            results=tuple(arguments.names(results or "")),
            query_text=query_text,
            query_from_impressions=query_from_impressions,
            propensity=propensity,
            propensity_clip=propensity_clip,
            imply_impressions=imply_impressions,
            most_lost=most_lost,
        ),
        support=SupportOptions(
            max_position=max_position,
            query_impressions=min_query_impressions,
            query_clicks=min_query_clicks,
            pair_impressions=min_pair_impressions,
        ),
        scoring=_scoring(
            position_bias,
            method=method,
            scale=scale,
            values=values,
            clip=clip,
            fit_impressions=fit_impressions,
            link_clicks=link_clicks,
            minimum_examinations=min_examinations,
            exposure_prior=not no_exposure_prior,
        ),
        doc_id=doc_id,
        fields=arguments.names(fields) if fields else None,
        images=arguments.columns("--images", images),
        pictures=PictureOptions(pictures, image_size, FetchOptions(concurrency, allow_private=allow_private)),
        name=name,
        lists=lists,
        encoding=encoding,
        text=TextOptions(delimiter, quotes, skip_lines=skip_lines, nulls=tuple(arguments.names(null)) if null else ()),
        memory=memory,
        threads=threads,
    )
    for what, how in report.read_as.items():
        arguments.say(f"note: {what}: {how}")
    arguments.tell(report.summary())
    if report.pictures.get("picture_failures"):
        arguments.say(f"images that failed to download or decode: {out / 'picture_failures.parquet'}")
    arguments.say(f"{out}: written")


def _scoring(position_bias: str, **options: object) -> ScoreOptions:
    from opengcl.clicks import ScoreOptions, read_propensities

    bias = position_bias if position_bias in _BIAS_NAMES else read_propensities(position_bias)
    return ScoreOptions(position_bias=bias, **options)  # type: ignore[arg-type] # checked there


def _assignments(option: str, written: list[str]) -> dict[str, str]:
    """``KIND=TEXT`` as a mapping."""
    found = {}
    for one in written:
        kind, equals, text = one.partition("=")
        if not equals or not kind.strip() or not text.strip():
            raise ValueError(f"{option} {one!r}: write KIND=..., as {option} purchase=...")
        found[kind.strip()] = text.strip()
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--value: found {text!r}; allowed: a number, as purchase=2") from None
