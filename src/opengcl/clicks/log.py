"""An interaction log cleaned and added up, as Ibis expressions: the same code for files, DuckDB, Spark and warehouses.

A *showing* is the unit: a session's query and document. It counts once, however often the log repeats it, at the
highest position it was shown at; a click, cart or purchase belongs to the showing of the same session, query and
document. Sessions are best the ids of single result lists; longer visits can be cut with `LogOptions.repeat_after`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import ibis
from ibis.expr import types as ir

from opengcl.data.problems import DataSetError, shown

IMPRESSION, CLICK = "impression", "click"
KINDS = {IMPRESSION: "impression", CLICK: "click", "cart": "cart", "purchase": "purchase"}
"""Kinds of events and their names in a log, where nothing else is said."""

MOST_POSITIONS = 1000
"""Positions beyond are taken for broken ones."""

_LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_DAY = 86_400
_RESERVED = ("event", "examination", "repeat", "showing")


@dataclass(frozen=True)
class LogOptions:
    """Where a log keeps what, and what of it counts.

    Attributes:
        query: Column of the query's text.
        document: Column of the document's id.
        position: Column of the position in the list; only read for impressions.
        event: Column of the event's name.
        session: Column of the result list's or visit's id.
        time: Column of the time: a timestamp, a text that reads as one, or seconds since 1970. Needed for
            `repeat_after`, `half_life` and `until` only.
        user: Column of the user's id; bots are then told by user, and by session where it is null.
        randomised: Column that says whether the list's order was random: boolean, number (not 0) or text (true, yes).
        kinds: Kind of event -> its name in the log. `impression` and `click` must be among them; the others are what
            follows a click.
        first_position: Position of the top result as the log counts it, 0 or 1.
        most_events: Users (or sessions) with more events are taken for bots.
        most_click_rate: So are those with more clicks an impression, in (0, 1], from 20 impressions on.
        repeat_after: Seconds without an impression of the same session, query and document after which the next one is
            a new showing; None: all are one.
        half_life: Days after which a showing counts half; None: all count alike.
        until: Later events are dropped; ages are counted from here, or else from the log's last event.
    """

    query: str = "query"
    document: str = "doc_id"
    position: str = "position"
    event: str = "event"
    session: str = "session"
    time: str | None = None
    user: str | None = None
    randomised: str | None = None
    kinds: Mapping[str, str] = field(default_factory=lambda: dict(KINDS))
    first_position: int = 1
    most_events: int | None = None
    most_click_rate: float | None = None
    repeat_after: float | None = None
    half_life: float | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        """Checks each setting and those that need another.

        Raises:
            DataSetError: Naming the setting, what was found and what is allowed.
        """
        for kind in (IMPRESSION, CLICK):
            if kind not in self.kinds:
                raise DataSetError(f"kinds: found {', '.join(self.kinds)}; required: {kind}")
        for kind in self.kinds:
            if not kind.isidentifier() or (kind in _RESERVED and kind != IMPRESSION):
                raise DataSetError(f"kinds: found {shown(kind)}; allowed: letters and underscores")
        if twice := [name for name in self.kinds.values() if list(self.kinds.values()).count(name) > 1]:
            raise DataSetError(f"kinds: found {shown(twice[0])} as the name of two kinds; allowed: of one")
        if self.first_position not in (0, 1):
            raise DataSetError(f"first_position: found {self.first_position}; allowed: 0 or 1")
        if self.most_click_rate is not None and not 0 < self.most_click_rate <= 1:
            raise DataSetError(f"most_click_rate: found {self.most_click_rate}; allowed: above 0, up to 1")
        for name in ("most_events", "repeat_after", "half_life"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DataSetError(f"{name}: found {value}; allowed: above 0")
        for name in ("repeat_after", "half_life", "until"):
            if getattr(self, name) is not None and self.time is None:
                raise DataSetError(f"{name}: found without a column of times; required: time")

    @property
    def follow_ups(self) -> list[str]:
        """The kinds of events after a click."""
        return [kind for kind in self.kinds if kind not in (IMPRESSION, CLICK)]

    @property
    def tells_bots(self) -> bool:
        """Whether any limit for bots is set."""
        return self.most_events is not None or self.most_click_rate is not None


def counted(kind: str) -> str:
    """Name of the column that counts a kind of event."""
    return f"{kind}s"


def aggregate(table: ir.Table, options: LogOptions) -> ir.Table:
    """Adds a log up to cells.

    Args:
        table: One row an event, on any of Ibis' backends.
        options: Columns, kinds and limits.

    Returns:
        An expression, not run yet, with one row for each query, document, position and ``randomised``. Position is null
        where events had no impression. ``impressions`` and each kind's count (``clicks``, ...) are showings, weighted
        by age if there is a half-life; ``events`` (rows of the log), ``repeats`` (rows that said nothing new) and
        ``implied`` (showings with a later event but no click, counted as clicked) are plain counts.

    Raises:
        DataSetError: If a column is missing.
    """
    showings = _showings(_without_bots(_kept(table, options), options), options)
    seen = showings.position.notnull()
    later = [showings[_came(kind)] for kind in options.follow_ups]
    clicked = functools.reduce(operator.or_, later, showings[_came(CLICK)])
    reached = {IMPRESSION: seen, CLICK: seen & clicked} | {
        kind: seen & one for kind, one in zip(options.follow_ups, later, strict=True)
    }
    kinds = sum((showings[_came(kind)].cast("int32") for kind in (CLICK, *options.follow_ups)), seen.cast("int32"))
    keys = ["query", "document", "position", *(["randomised"] if options.randomised else [])]
    cells = showings.group_by(keys).agg(
        **_weighted(showings, reached, table, options),
        # Summed as floats, exact to 2^53: DuckDB would sum integers in 128 bits.
        events=showings.events.cast("float64").sum().cast("int64"),
        repeats=(showings.events - kinds).cast("float64").sum().cast("int64"),
        implied=showings.count(where=seen & clicked & ~showings[_came(CLICK)]),
    )
    # A key that is always false would be hashed and compared for each showing.
    return cells if options.randomised else cells.mutate(randomised=ibis.literal(False))


def _came(kind: str) -> str:
    """Name of the column that says of a showing whether a kind of event came."""
    return f"had_{kind}"


def count_rows(table: ir.Table, options: LogOptions) -> ir.Table:
    """Rows by the reason why they are dropped: columns ``reason`` (null: kept), ``rows`` and ``impressions``."""
    events = _events(table, options)
    reasons = [(fault, reason) for reason, fault in _faults(events, options).items()]
    nothing: Any = ibis.null("string")
    events = events.mutate(reason=ibis.cases(*reasons, else_=nothing))
    return events.group_by("reason").agg(
        rows=events.count(), impressions=events.count(where=events.event == options.kinds[IMPRESSION])
    )


def count_bots(table: ir.Table, options: LogOptions) -> ir.Table:
    """One row: how many ``visitors`` are over the limits for bots, and their ``rows``."""
    bots = _bots(_kept(table, options), options)
    return bots.agg(visitors=bots.count(), rows=bots.rows.sum().cast("int64"))


def event_names(table: ir.Table, options: LogOptions, limit: int = 10) -> ir.Table:
    """The log's most frequent names of events, for messages: columns ``name`` and ``rows``."""
    named = table.select(name=table[options.event].cast("string"))
    counts = named.group_by("name").agg(rows=named.count())
    return counts.order_by(counts.rows.desc(), counts.name).limit(limit)


def _events(table: ir.Table, options: LogOptions) -> ir.Table:
    """The log under our own names and types."""
    _require_columns(table, options)
    session = table[options.session].cast("string")
    visitor = ibis.coalesce(table[options.user].cast("string"), session) if options.user else session
    position = _number(table[options.position]) + (1 - options.first_position)
    return table.select(
        query=table[options.query].cast("string").lower().strip(),
        document=table[options.document].cast("string"),
        session=session,
        visitor=visitor,
        event=table[options.event].cast("string"),
        # Out of range is 0: infinity could not become an integer.
        position=ibis.ifelse(position.between(1, MOST_POSITIONS), position, 0),
        time=_seconds(table[options.time]) if options.time else ibis.null("float64"),
        randomised=_flag(table[options.randomised]) if options.randomised else ibis.literal(False),
    )


def _faults(events: ir.Table, options: LogOptions) -> dict[str, Any]:
    """Why a row cannot count -> whether; never null. The first that holds is told."""
    impression = events.event == options.kinds[IMPRESSION]
    broken = events.position.isnull() | (events.position == 0) | (events.position != events.position.floor())
    faults = {f"no {name}": events[name].isnull() | (events[name] == "") for name in ("query", "document", "session")}
    faults["unknown event"] = events.event.isnull() | ~events.event.isin(list(options.kinds.values()))
    faults["impossible position"] = impression & broken
    if options.time:
        faults["impossible time"] = events.time.isnull() | ~events.time.between(0, _LATEST)
    if options.until is not None:
        faults["after until"] = events.time > _instant(options.until)
    return faults


def _kept(table: ir.Table, options: LogOptions) -> ir.Table:
    events = _events(table, options)
    # One CASE, not a filter for each fault: from those DuckDB expects few rows, and then groups all of them at once.
    return events.filter(ibis.cases(*((fault, False) for fault in _faults(events, options).values()), else_=True))


def _bots(events: ir.Table, options: LogOptions) -> ir.Table:
    """Visitors over a limit, with their ``rows``."""
    visitors = events.group_by("visitor").agg(
        rows=events.count(),
        impressions=events.count(where=events.event == options.kinds[IMPRESSION]),
        clicks=events.count(where=events.event == options.kinds[CLICK]),
    )
    over = ibis.literal(False)
    if options.most_events is not None:
        over = over | (visitors.rows > options.most_events)
    if options.most_click_rate is not None:
        rate = visitors.clicks > visitors.impressions * options.most_click_rate
        over = over | ((visitors.impressions >= 20) & rate)
    return visitors.filter(over).select("visitor", "rows")


def _without_bots(events: ir.Table, options: LogOptions) -> ir.Table:
    return events.anti_join(_bots(events, options), "visitor") if options.tells_bots else events


def _showings(events: ir.Table, options: LogOptions) -> ir.Table:
    """One row a session, query and document (and stretch of time): which kinds came, its rows, place and time.

    The position is null where no impression came.
    """
    keys = ["session", "query", "document"]
    if options.repeat_after is not None:
        events = _numbered(events, keys, options)
        keys.append("number")
    impression = events.event == options.kinds[IMPRESSION]
    later = {kind: name for kind, name in options.kinds.items() if kind != IMPRESSION}
    found = {_came(kind): (events.event == name).any() for kind, name in later.items()}
    # What is computed for each showing decides what the whole costs, so only what is asked for.
    if options.randomised:
        found["randomised"] = events.randomised.any(where=impression).fill_null(False)
    if options.half_life is not None:
        found["time"] = events.time.min()
    return events.group_by(*keys).agg(
        position=events.position.min(where=impression).cast("int64"), events=events.count().cast("int32"), **found
    )


def _numbered(events: ir.Table, keys: list[str], options: LogOptions) -> ir.Table:
    """Adds the number of the showing that an event belongs to: the last that began before it; 0: none did."""
    impression = events.event == options.kinds[IMPRESSION]
    events = events.mutate(after=ibis.ifelse(impression, 0, 1), seen=ibis.ifelse(impression, events.time, ibis.null()))
    order: dict[str, Any] = {"group_by": keys, "order_by": ["time", "after"]}
    before = events.seen.max().over(ibis.window(**order, preceding=(None, 1)))
    events = events.mutate(before=before)
    begins = (events.after == 0) & (events.before.isnull() | (events.time - events.before > options.repeat_after))
    events = events.mutate(begins=ibis.ifelse(begins, 1, 0))
    return events.mutate(number=events.begins.sum().over(ibis.window(**order, preceding=(None, 0))))


def _weighted(showings: ir.Table, reached: dict[str, Any], table: ir.Table, options: LogOptions) -> dict[str, Any]:
    """The count of each kind: showings that reached it, each 2^(-age / half-life)."""
    if options.half_life is None:
        return {counted(kind): showings.count(where=one).cast("float64") for kind, one in reached.items()}
    latest: Any
    if options.until is not None:
        latest = ibis.literal(_instant(options.until))
    else:
        latest = _kept(table, options).time.max().as_scalar()
    weight = ibis.literal(0.5).pow((latest - showings.time) / (_DAY * options.half_life))
    return {counted(kind): ibis.ifelse(one, weight, 0).sum().cast("float64") for kind, one in reached.items()}


def _require_columns(table: ir.Table, options: LogOptions) -> None:
    for role in ("query", "document", "position", "event", "session", "time", "user", "randomised"):
        column = getattr(options, role)
        if column is not None and column not in table.columns:
            raise DataSetError(
                f"the log has no column {shown(column)} for the {role}; it has {', '.join(table.columns)} "
                f"(--{role} names another)"
            )


def _number(column: Any) -> Any:
    return column.try_cast("float64") if column.type().is_string() else column.cast("float64")


def _seconds(column: Any) -> Any:
    """Seconds since 1970 from timestamps, dates, texts and numbers."""
    kind = column.type()
    if kind.is_numeric():
        return column.cast("float64")
    if kind.is_string():
        column = column.try_cast("timestamp")
    elif kind.is_date():
        column = column.cast("timestamp")
    return column.epoch_seconds().cast("float64")


def _flag(column: Any) -> Any:
    kind = column.type()
    if kind.is_boolean():
        return column.fill_null(False)
    if kind.is_numeric():
        return (column != 0).fill_null(False)
    return column.cast("string").lower().isin(["true", "t", "yes", "y", "1"]).fill_null(False)


def _instant(moment: datetime) -> float:
    """Seconds since 1970; a time without zone is in UTC, as in the log."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
