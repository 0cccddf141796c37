"""Whether too much of a log would be lost for the rest to be counted right; the ways out."""

# ruff: noqa: S608 - names in SQL are constants of ours, or quoted

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb

from opengcl.clicks.files import quoted
from opengcl.clicks.log import CLICK, IMPRESSION, LogOptions, counted
from opengcl.data.problems import DataSetError

CELLS = "cells"
"""Table of what `opengcl.clicks.log.aggregate` gives."""

_MOST_CLIPPED = 0.5
_WAYS_OUT = {
    "no query": "--query-from-impressions to take that of the impression, --query-text TEXT for what has none",
    "no document": "--document names the column of ids",
    "no session": "--session names another column, or several as user+visit",
    "impossible time": "numbers are seconds since 1970; --time-unit ms, us or ns",
    "impossible propensity": "above 0, up to 1; --propensity names another column",
}


def require_rows(found: Mapping[str | None, Mapping[str, Any]], options: LogOptions) -> None:
    """Refuses a log many of whose rows of a kind cannot count.

    Impressions without a query are counted, not refused: they may be lists that nobody searched for. Other kinds are
    held against the impressions, as clicks that are lost while their impressions stay bend every rate.

    Args:
        found: Reason -> the row of `opengcl.clicks.log.count_rows`.
        options: What they were counted with.

    Raises:
        DataSetError: Naming the kind, the reason, how many, and the way out.
    """
    totals = {kind: sum(row[counted(kind)] for row in found.values()) for kind in options.kinds}
    for reason in ("impossible position", *_WAYS_OUT):
        lost = found.get(reason, {})
        of_impressions = lost.get(counted(IMPRESSION), 0) / totals[IMPRESSION]
        for kind, total in totals.items():
            count = lost.get(counted(kind), 0)
            usual = of_impressions if kind != IMPRESSION else of_impressions * (reason == "no query")
            if count > total * (options.most_lost + usual):
                raise DataSetError(
                    f"the log: found {count:,} of {total:,} {counted(kind)} with {_told(reason)}; allowed: up to "
                    f"{options.most_lost:.0%} ({_way_out(reason, options)}; --most-lost SHARE to leave them out)"
                )
    clipped = sum(row.get("clipped", 0) for row in found.values())
    if clipped > _MOST_CLIPPED * totals[IMPRESSION]:
        raise DataSetError(
            f"the log: found {clipped:,} of {totals[IMPRESSION]:,} propensities below {options.propensity_clip:g}, so "
            "that they would be corrected for in part only; allowed: up to half (--propensity-clip for a smaller one)"
        )


def require_shown(connection: duckdb.DuckDBPyConnection, options: LogOptions) -> dict[str, int]:
    """Counts showings of `CELLS` that have events but no impression, by kind, and refuses too many.

    Raises:
        DataSetError: Naming the kind, how many, and the ways out.
    """
    lost = {}
    for kind in (CLICK, *options.follow_ups):
        column = counted(kind)
        sums = f"coalesce(sum({quoted('lost_' + column)}), 0), coalesce(sum({quoted(column)}), 0)"
        ((gone, kept),) = connection.sql(f"SELECT {sums} FROM {CELLS}").fetchall()
        lost[kind] = round(gone)
        if gone > options.most_lost * (gone + kept):
            raise DataSetError(
                f"the log: found {gone:,.0f} of {gone + kept:,.0f} {column} without an impression of the same session, "
                f"query and document; allowed: up to {options.most_lost:.0%}, as without it rates are wrong "
                f"({_ways_out_unshown(options)})"
            )
    return lost


def _ways_out_unshown(options: LogOptions) -> str:
    implied = "" if options.imply_impressions else "--imply-impressions if events carry the position they came from; "
    asked = "" if options.query_from_impressions else "--query-from-impressions if their query is another or missing; "
    return f"{implied}{asked}--session if another column links them; --most-lost SHARE to leave them out"


def _told(reason: str) -> str:
    return f"an {reason}" if reason.startswith("impossible") else reason


def _way_out(reason: str, options: LogOptions) -> str:
    if reason != "impossible position":
        return _WAYS_OUT[reason]
    return f"whole numbers from {options.first_position}; --first-position 0 if 0 is the top"
