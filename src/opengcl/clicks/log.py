"""An interaction log cleaned and added up, as Ibis expressions: the same code for files, DuckDB, Spark and warehouses.

A *showing* is the unit: a session's query and document. It counts once, however often the log repeats it, at the
highest position it was shown at; a click, cart or purchase belongs to the showing of the same session, query and
document. Sessions are best the ids of single result lists; longer visits can be cut with `LogOptions.repeat_after`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import ibis
from ibis.expr import types as ir

from opengcl.clicks.columns import PLACE, one_row_a_result, text_at, value_at
from opengcl.data.problems import DataSetError, shown
from opengcl.delimited_text import DECIMAL_COMMA

IMPRESSION, CLICK = "impression", "click"
KINDS = {IMPRESSION: "impression", CLICK: "click", "cart": "cart", "purchase": "purchase"}
"""Kinds of events and their names in a log, where nothing else is said."""

LARGEST = 2**63 - 1
"""The largest number of a setting: what SQL can compare with."""

MOST_POSITIONS = 1000
"""Positions beyond are taken for broken ones."""

_LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_DAY = 86_400
_UNITS = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
_RESERVED = ("event", "examination", "repeat", "showing")


@dataclass(frozen=True)
class LogOptions:
    """Where a log keeps what, and what of it counts.

    Columns are names, or paths with dots into structs, maps, JSON and lists of keys and values
    (`opengcl.clicks.columns.value_at`).

    Attributes:
        query: Column of the query's text.
        document: Column of the document's id.
        position: Column of the position in the list; read for impressions, and for other events with
            `imply_impressions`. None: the place in the list of `results`.
        event: Column of the event's name; not read if there are `flags`.
        session: Column of the result list's or visit's id; several with + between them are one id, as
            ``user+visit``. None: each row is a result list of its own, which needs `flags`.
        time: Column of the time: a timestamp, a text that reads as one, or a number since 1970. Needed for
            `repeat_after`, `half_life`, `since` and `until` only.
        user: Column of the user's id; bots are then told by user, and by session where it is null.
        randomised: Column that says whether the list's order was random: boolean, number (not 0) or text (true, yes).
        kinds: Kind of event -> its name in the log. `impression` and `click` must be among them; the others are what
            follows a click.
        flags: Kind of event -> the column that says whether it came: boolean, number or text as `randomised`. A row is
            then a result that was shown, and what became of it.
        results: Columns of lists, as a row a result list: a row is made for each of their elements, in step.
        query_text: The query of rows without one, as in a feed; the log need have no column of queries then.
        query_from_impressions: Whether an event without query takes that of the last impression of its session and
            document before it or, without `time`, the only one there is.
        propensity: Column of the logging policy's probability of showing this result, in (0, 1]; showings then count by
            its inverse.
        propensity_clip: Smallest probability that is divided by.
        imply_impressions: Whether an event with a position but without an impression implies one at that position.
        first_position: Position of the top result as the log counts it, 0 or 1.
        most_lost: Share of the events of a kind that may be without impression, session or the like; with more, the
            log is refused.
        most_events: Users (or sessions) with more events are taken for bots.
        most_click_rate: So are those with more clicks an impression, in (0, 1], from 20 impressions on.
        repeat_after: Seconds without an impression of the same session, query and document after which the next one is
            a new showing; None: all are one.
        half_life: Days after which a showing counts half; None: all count alike.
        since: Earlier events are dropped.
        until: Later events are dropped; ages are counted from here, or else from the log's last event.
        time_unit: Of times that are numbers: s, ms, us or ns.
    """

    query: str = "query"
    document: str = "doc_id"
    position: str | None = "position"
    event: str = "event"
    session: str | None = "session"
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
    since: datetime | None = None
    time_unit: str = "s"
    flags: Mapping[str, str] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    query_text: str | None = None
    query_from_impressions: bool = False
    propensity: str | None = None
    propensity_clip: float = 0.001
    imply_impressions: bool = False
    most_lost: float = 0.05

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
            if value is not None and not 0 < value <= LARGEST:
                raise DataSetError(f"{name}: found {value}; allowed: above 0, up to {LARGEST:,}")
        for name in ("repeat_after", "half_life", "since", "until"):
            if getattr(self, name) is not None and self.time is None:
                raise DataSetError(f"{name}: found without a column of times; required: time")
        self._check_layout()

    def _check_layout(self) -> None:
        if unknown := [kind for kind in self.flags if kind not in self.kinds or kind == IMPRESSION]:
            allowed = ", ".join(one for one in self.kinds if one != IMPRESSION)
            raise DataSetError(f"flags: found the kind {shown(unknown[0])}; allowed: {allowed}")
        if self.flags and CLICK not in self.flags:
            raise DataSetError(f"flags: found {', '.join(self.flags)}; required: {CLICK} (--flag click=COLUMN)")
        if self.session is None and not self.flags:
            raise DataSetError(
                "session: found none; needed to tell which impression a click belongs to, unless each row says whether "
                "it was clicked (--flag click=COLUMN)"
            )
        for name in ("repeat_after", "most_events", "most_click_rate"):
            if self.session is None and self.user is None and getattr(self, name) is not None:
                raise DataSetError(f"{name}: found without a session; required: session or user")
        if self.session is None and self.repeat_after is not None:
            raise DataSetError("repeat_after: found without a session; required: session")
        if self.position is None and not self.results:
            raise DataSetError("position: found none; needed, unless results are lists (--results) in their order")
        if self.time_unit not in _UNITS:
            raise DataSetError(f"time_unit: found {shown(self.time_unit)}; allowed: {', '.join(_UNITS)}")
        if self.query_text is not None and not self.query_text.strip():
            raise DataSetError("query_text: found an empty text; allowed: the text of a query")
        for name in ("propensity_clip", "most_lost"):
            if not 0 < getattr(self, name) <= 1:
                raise DataSetError(f"{name}: found {getattr(self, name)}; allowed: above 0, up to 1")

    @property
    def follow_ups(self) -> list[str]:
        """The kinds of events after a click."""
        return [kind for kind in self.kinds if kind not in (IMPRESSION, CLICK)]

    @property
    def paths(self) -> list[str]:
        """The columns, and paths into columns, that are read."""
        single = (self.query, self.document, self.position, self.session, self.time, self.user, self.randomised)
        events = self.flags.values() if self.flags else (self.event,)
        return [one for one in (*single, self.propensity, *events, *self.results) if one is not None]

    @property
    def tells_bots(self) -> bool:
        """Whether any limit for bots is set."""
        return self.most_events is not None or self.most_click_rate is not None


def counted(kind: str) -> str:
    """Name of the column that counts a kind of event."""
    return f"{kind}s"


def aggregate(table: ir.Table, options: LogOptions, lists: ir.Table | None = None) -> ir.Table:
    """Adds a log up to cells.

    Args:
        table: One row an event, on any of Ibis' backends; or a row a result or a list, as the options say.
        options: Columns, kinds and limits.
        lists: What was shown, if the log does not say so: a row a result list, on the same backend. The session, query,
            time, user, randomised and propensity of the options are its columns, `results` the lists; an event finds
            its query in the list of its session.

    Returns:
        An expression, not run yet, with one row for each query, document, position and ``randomised``. Position is null
        where events had no impression. ``impressions`` and each kind's count (``clicks``, ...) are showings, weighted
        by age if there is a half-life and by inverse propensity if there is one, and ``squares`` is then the sum of
        squared inverse propensities, weighted by age; ``lost_clicks`` and so on are showings without impression.
        ``events`` (rows of the log), ``repeats`` (rows that said nothing new), ``implied`` (showings with a later event
        but no click, counted as clicked) and ``implied_impressions`` (with an event but no impression, counted as
        shown) are plain counts.

    Raises:
        DataSetError: If a column is missing.
    """
    events = _kept(_events(table, options, lists), options)
    return _cells(_without_bots(events, options), events, options)


def _cells(counting: ir.Table, kept: ir.Table, options: LogOptions) -> ir.Table:
    showings = _showings(counting, options)
    seen = showings.position.notnull()
    later = [showings[_came(kind)] for kind in options.follow_ups]
    clicked = functools.reduce(operator.or_, later, showings[_came(CLICK)])
    reached = {IMPRESSION: seen, CLICK: seen & clicked} | {
        kind: seen & one for kind, one in zip(options.follow_ups, later, strict=True)
    }
    lost = {CLICK: ~seen & clicked} | {kind: ~seen & one for kind, one in zip(options.follow_ups, later, strict=True)}
    kinds: Any = ibis.literal(1)
    if not options.flags:
        came = (showings[_came(kind)].cast("int32") for kind in (CLICK, *options.follow_ups))
        kinds = sum(came, showings[_came(IMPRESSION)].cast("int32"))
    keys = ["query", "document", "position", *(["randomised"] if options.randomised else [])]
    cells = showings.group_by(keys).agg(
        **_weighted(showings, reached, lost, kept, options),
        # Summed as floats, exact to 2^53: DuckDB would sum integers in 128 bits.
        events=showings.events.cast("float64").sum().cast("int64"),
        repeats=(showings.events - kinds).cast("float64").sum().cast("int64"),
        implied=showings.count(where=seen & clicked & ~showings[_came(CLICK)]),
        implied_impressions=showings.count(where=seen & ~showings[_came(IMPRESSION)]),
    )
    # A key that is always false would be hashed and compared for each showing.
    return cells if options.randomised else cells.mutate(randomised=ibis.literal(False))


def _came(kind: str) -> str:
    """Name of the column that says of a showing whether a kind of event came."""
    return f"had_{kind}"


def count_rows(table: ir.Table, options: LogOptions, lists: ir.Table | None = None) -> ir.Table:
    """Rows by the reason why they are dropped.

    Columns: ``reason`` (null: kept), ``rows``, the rows of each kind (``impressions``, ``clicks``, ...), and
    ``clipped``: impressions with a smaller propensity than is divided by.
    """
    events = _events(table, options, lists)
    reasons = [(fault, reason) for reason, fault in _faults(events, options).items()]
    nothing: Any = ibis.null("string")
    events = events.mutate(reason=ibis.cases(*reasons, else_=nothing))
    few = events[_came(IMPRESSION)] & (events.propensity < options.propensity_clip).fill_null(False)
    return events.group_by("reason").agg(
        rows=events.count(),
        **{counted(kind): events.count(where=events[_came(kind)]) for kind in options.kinds},
        **({"clipped": events.count(where=few)} if options.propensity else {}),
    )


def count_bots(table: ir.Table, options: LogOptions, lists: ir.Table | None = None) -> ir.Table:
    """One row: how many ``visitors`` are over the limits for bots, and their ``rows``."""
    bots = _bots(_kept(_events(table, options, lists), options), options)
    return bots.agg(visitors=bots.count(), rows=bots.rows.sum().cast("int64"))


def event_names(table: ir.Table, options: LogOptions, limit: int = 10) -> ir.Table:
    """The log's most frequent names of events, for messages: columns ``name`` and ``rows``."""
    named = table.select(name=text_at(table, options.event, "event"))
    counts = named.group_by("name").agg(rows=named.count())
    return counts.order_by(counts.rows.desc(), counts.name).limit(limit)


def _events(table: ir.Table, options: LogOptions, lists: ir.Table | None) -> ir.Table:
    """The log under our own names and types: a row an event, or a result and what became of it."""
    if lists is None:
        events = _read(table, options)
        return _with_queries(events, options) if options.query_from_impressions else events
    if not options.results or options.flags:
        found = "flags" if options.flags else "no results"
        raise DataSetError(f"lists: found {found}; needed: the column of lists (--results), and no flags")
    clicked = replace(options, results=(), randomised=None, propensity=None, position=options.position or "position")
    events = _read(table, clicked, queries=_has(table, options.query, "query"))
    of_lists = _read(lists, replace(options, position=None, document=_document(lists, options)), impressions=True)
    return _with_queries(ibis.union(of_lists, events), options)


def _document(lists: ir.Table, options: LogOptions) -> str:
    """Where lists have their documents: the elements themselves, or a part of them."""
    first = options.results[0]
    elements = getattr(lists[first].type(), "value_type", None) if first in lists.columns else None
    return options.document if elements is None or elements.is_struct() else first


def _has(table: ir.Table, path: str, role: str) -> bool:
    try:
        value_at(table, path, role)
    except DataSetError:
        return False
    return True


def _read(table: ir.Table, options: LogOptions, *, impressions: bool = False, queries: bool = True) -> ir.Table:
    """A table under our own names; ``impressions``: all of its rows are; ``queries``: it has them."""
    if options.results:
        table = one_row_a_result(table, options.results)

    def value(role: str, path: str) -> Any:
        return value_at(table, path, role, options.results)

    def text(role: str, path: str) -> Any:
        return text_at(table, path, role, options.results)

    nothing: Any = ibis.null("string")
    session = text("session", options.session) if options.session else nothing
    named = not (options.flags or impressions)
    event = text("event", options.event) if named else ibis.literal(options.kinds[IMPRESSION])
    if named:
        came = {kind: (event == name).fill_null(False) for kind, name in options.kinds.items()}
    else:
        flags = {kind: _flag(value(f"flag {kind}", column)) for kind, column in options.flags.items()}
        came = {kind: flags.get(kind, ibis.literal(kind == IMPRESSION)) for kind in options.kinds}
    position = table[PLACE] + 1.0 if options.position is None else _number(value("position", options.position))
    if options.position is not None:
        position = position + (1 - options.first_position)
    return table.select(
        query=_query(table, options) if queries else nothing,
        document=text("document", options.document),
        session=session,
        visitor=ibis.coalesce(text("user", options.user), session) if options.user else session,
        event=event,
        # Out of range is 0: infinity could not become an integer.
        position=ibis.ifelse(position.between(1, MOST_POSITIONS), position, 0),
        time=_seconds(value("time", options.time), options.time_unit) if options.time else ibis.null("float64"),
        randomised=_flag(value("randomised", options.randomised)) if options.randomised else ibis.literal(False),
        propensity=_number(value("propensity", options.propensity)) if options.propensity else ibis.null("float64"),
        **{_came(kind): one for kind, one in came.items()},
    )


def _query(table: ir.Table, options: LogOptions) -> Any:
    """The query's text, or what is said for rows without one."""
    if options.query_text is not None and not _has(table, options.query, "query"):
        return ibis.literal(options.query_text)
    query = value_at(table, options.query, "query", options.results).cast("string").lower().strip()
    return query if options.query_text is None else ibis.coalesce(query.nullif(""), options.query_text)


def _with_queries(events: ir.Table, options: LogOptions) -> ir.Table:
    """Gives events without a query that of an impression of their session."""
    impression = events[_came(IMPRESSION)]
    events = events.mutate(known=ibis.ifelse(impression & (events.query != ""), events.query, ibis.null()))
    found = [events.query.nullif("")]
    if options.time:
        order: dict[str, Any] = {"group_by": ["session", "document"], "order_by": ["time", "after"]}
        events = events.mutate(after=ibis.ifelse(impression, 0, 1))
        shown_before = events.known.count().over(ibis.window(**order, preceding=(None, 0)))
        events = events.mutate(number=shown_before)
        found.append(events.known.max().over(ibis.window(group_by=["session", "document", "number"])))
    for keys in (["session", "document"], ["session"]):
        window = ibis.window(group_by=keys)
        least, most = events.known.min().over(window), events.known.max().over(window)
        found.append(ibis.ifelse(least == most, most, ibis.null()))
    kept = [name for name in events.columns if name not in ("query", "known", "after", "number")]
    return events.select(query=ibis.coalesce(*found), **{name: events[name] for name in kept})


def _faults(events: ir.Table, options: LogOptions) -> dict[str, Any]:
    """Why a row cannot count -> whether; never null. The first that holds is told."""
    impression = events[_came(IMPRESSION)]
    needed = ["query", "document", *(["session"] if options.session else [])]
    faults = {f"no {name}": events[name].isnull() | (events[name] == "") for name in needed}
    faults["unknown event"] = events.event.isnull() | ~events.event.isin(list(options.kinds.values()))
    faults["impossible position"] = impression & ~_usable(events.position)
    if options.time:
        faults["impossible time"] = events.time.isnull() | ~events.time.between(0, _LATEST)
    if options.propensity:
        broken = events.propensity.isnull() | ~((events.propensity > 0) & (events.propensity <= 1))
        faults["impossible propensity"] = impression & broken
    if options.since is not None:
        faults["before since"] = events.time < _instant(options.since)
    if options.until is not None:
        faults["after until"] = events.time > _instant(options.until)
    return faults


def _usable(position: Any) -> Any:
    return (position.notnull() & (position != 0) & (position == position.floor())).fill_null(False)


def _kept(events: ir.Table, options: LogOptions) -> ir.Table:
    # One CASE, not a filter for each fault: from those DuckDB expects few rows, and then groups all of them at once.
    return events.filter(ibis.cases(*((fault, False) for fault in _faults(events, options).values()), else_=True))


def _bots(events: ir.Table, options: LogOptions) -> ir.Table:
    """Visitors over a limit, with their ``rows``."""
    visitors = events.group_by("visitor").agg(
        rows=events.count(),
        impressions=events.count(where=events[_came(IMPRESSION)]),
        clicks=events.count(where=events[_came(CLICK)]),
    )
    over = ibis.literal(False)
    if options.most_events is not None:
        over = over | (visitors.rows > options.most_events)
    if options.most_click_rate is not None:
        rate = visitors.clicks > visitors.impressions * options.most_click_rate
        over = over | ((visitors.impressions >= 20) & rate)
    return visitors.filter(over & visitors.visitor.notnull()).select("visitor", "rows")


def _without_bots(events: ir.Table, options: LogOptions) -> ir.Table:
    return events.anti_join(_bots(events, options), "visitor") if options.tells_bots else events


def _showings(events: ir.Table, options: LogOptions) -> ir.Table:
    """One row a session, query and document (and stretch of time): which kinds came, its rows, place and time.

    The position is null where no impression came, unless the events imply one.
    """
    if options.session is None:
        return events.mutate(position=events.position.cast("int64"), events=ibis.literal(1).cast("int32"))
    keys = ["session", "query", "document"]
    if options.repeat_after is not None:
        events = _numbered(events, keys, options)
        keys.append("number")
    impression = events[_came(IMPRESSION)]
    found = {_came(kind): events[_came(kind)].any() for kind in (CLICK, *options.follow_ups)}
    # What is computed for each showing decides what the whole costs, so only what is asked for.
    if options.imply_impressions:
        found[_came(IMPRESSION)] = impression.any()
        found["elsewhere"] = events.position.min(where=~impression & _usable(events.position)).cast("int64")
    if options.randomised:
        found["randomised"] = events.randomised.any(where=impression).fill_null(False)
    if options.half_life is not None:
        found["time"] = events.time.min()
    if options.propensity:
        found["propensity"] = events.propensity.max()
    showings = events.group_by(*keys).agg(
        position=events.position.min(where=impression).cast("int64"), events=events.count().cast("int32"), **found
    )
    if options.imply_impressions:
        return showings.mutate(position=ibis.coalesce(showings.position, showings.elsewhere))
    return showings.mutate(**{_came(IMPRESSION): showings.position.notnull()})


def _numbered(events: ir.Table, keys: list[str], options: LogOptions) -> ir.Table:
    """Adds the number of the showing that an event belongs to: the last that began before it; 0: none did."""
    impression = events[_came(IMPRESSION)]
    events = events.mutate(after=ibis.ifelse(impression, 0, 1), seen=ibis.ifelse(impression, events.time, ibis.null()))
    order: dict[str, Any] = {"group_by": keys, "order_by": ["time", "after"]}
    before = events.seen.max().over(ibis.window(**order, preceding=(None, 1)))
    events = events.mutate(before=before)
    begins = (events.after == 0) & (events.before.isnull() | (events.time - events.before > options.repeat_after))
    events = events.mutate(begins=ibis.ifelse(begins, 1, 0))
    return events.mutate(number=events.begins.sum().over(ibis.window(**order, preceding=(None, 0))))


def _weighted(
    showings: ir.Table, reached: dict[str, Any], lost: dict[str, Any], kept: ir.Table, options: LogOptions
) -> dict[str, Any]:
    """The count of each kind: showings that reached it, each 2^(-age / half-life) and by inverse propensity."""
    named = {counted(kind): one for kind, one in reached.items()}
    named |= {f"lost_{counted(kind)}": one for kind, one in lost.items()}
    if options.half_life is None and options.propensity is None:
        return {name: showings.count(where=one).cast("float64") for name, one in named.items()}
    weight: Any = ibis.literal(1.0)
    if options.half_life is not None:
        latest: Any
        latest = ibis.literal(_instant(options.until)) if options.until else kept.time.max().as_scalar()
        weight = ibis.literal(0.5).pow((latest - showings.time) / (_DAY * options.half_life))
    found = {}
    if options.propensity:
        inverse = 1 / ibis.greatest(showings.propensity, options.propensity_clip).fill_null(1.0)
        found["squares"] = ibis.ifelse(reached[IMPRESSION], weight * inverse * inverse, 0).sum().cast("float64")
        weight = weight * inverse
    return found | {name: ibis.ifelse(one, weight, 0).sum().cast("float64") for name, one in named.items()}


def _number(column: Any) -> Any:
    """A column as float64. In texts a comma that can only be a decimal comma is read as one."""
    if not column.type().is_string():
        return column.cast("float64")
    comma = column.re_search(DECIMAL_COMMA).ifelse(column.replace(",", "."), ibis.null("string"))
    return ibis.coalesce(column.try_cast("float64"), comma.try_cast("float64"))


def _seconds(column: Any, unit: str) -> Any:
    """Seconds since 1970 from timestamps, dates, texts and numbers."""
    kind = column.type()
    if kind.is_numeric():
        return column.cast("float64") / _UNITS[unit]
    if kind.is_string():
        number = column.try_cast("float64") / _UNITS[unit]
        return ibis.coalesce(number, column.try_cast("timestamp").epoch_seconds().cast("float64"))
    if kind.is_date():
        column = column.cast("timestamp")
    return column.epoch_seconds().cast("float64")


def _flag(column: Any) -> Any:
    kind = column.type()
    if kind.is_boolean():
        return column.fill_null(False)
    if kind.is_numeric():
        return (column != 0).fill_null(False)
    text = column.cast("string").lower()
    return (text.isin(["true", "t", "yes", "y"]) | (text.try_cast("float64") != 0)).fill_null(False)


def _instant(moment: datetime) -> float:
    """Seconds since 1970; a time without zone is in UTC, as in the log."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
