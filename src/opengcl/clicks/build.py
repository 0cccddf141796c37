"""From an interaction log and a catalogue to a ranked data set's folder."""

# ruff: noqa: S608 - names in SQL are constants of ours, or quoted

from __future__ import annotations

import functools
import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import ibis
import numpy as np
import pyarrow as pa
from ibis.expr import types as ir

from opengcl.clicks.catalogue_pictures import PictureOptions, bring_catalogue_pictures
from opengcl.clicks.counts import PAIRS, SupportOptions, count_pairs, query_id
from opengcl.clicks.files import DOCUMENTS, LISTS, LOG, OpenedLog, hashes, open_catalogue, open_log, quoted, reading
from opengcl.clicks.log import CLICK, IMPRESSION, LogOptions, aggregate, count_bots, count_rows, counted, event_names
from opengcl.clicks.losses import CELLS, require_rows, require_shown
from opengcl.clicks.progress import Steps
from opengcl.clicks.scores import VALUES, Counted, Propensities, Scored, ScoreOptions, find_propensities, score
from opengcl.data.dataset import write_dataset
from opengcl.data.engine import MEMORY, connect
from opengcl.data.new_folder import new_folder, require_free
from opengcl.data.problems import DataSetError, number_of, shown
from opengcl.data.schema import DOCUMENT_ID, QUERY_ID, Schema
from opengcl.delimited_text import TextOptions
from opengcl.only_writer import only_writer
from opengcl.plain_yaml import YamlError, advice, read_yaml
from opengcl.sources.bring_pictures import FAILURES

_BATCH = 2048  # rows of documents at a time, which may hold pictures
_STEPS = ("catalogue", "rows of the log", "cells", "pairs", "position bias", "scores", "pictures", "data set")


@dataclass
class Report:
    """What became of a log.

    Attributes:
        out: The data set's folder.
        rows: Rows of the log.
        dropped: Reason -> rows of the log that did not count.
        dropped_pairs: Reason -> pairs that have no score.
        unshown: Kind of event -> showings with such an event but no impression, which do not count.
        implied_clicks: Showings with a later event but no click, which count as clicked.
        implied_impressions: Showings with an event but no impression, which count as shown.
        clipped: Impressions with a smaller propensity than is divided by.
        bots: Visitors taken for bots.
        queries: Queries in the data set.
        documents: Documents in the data set.
        pairs: Pairs with a score.
        pictures: ``pictures`` of the catalogue, ``picture_failures``, and ``documents_dropped`` as nothing was left of
            them; empty without fields of pictures.
        events: ``impressions``, ``clicks`` and so on -> showings that counted, by age if there is a half-life.
        propensities: How likely each position is looked at.
        reliability: Share of the differences in worth that the log tells, in [0, 1].
        exposure_slope: How the expected rate grows with exposure, in logarithms; 0 if it is not used.
        read_as: ``log``, ``lists`` and ``documents`` -> how they are read, where that had to be found out.
        seconds: Wall time by step.
    """

    out: Path
    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_pairs: dict[str, int] = field(default_factory=dict)
    unshown: dict[str, int] = field(default_factory=dict)
    implied_clicks: int = 0
    implied_impressions: int = 0
    clipped: int = 0
    bots: int = 0
    queries: int = 0
    documents: int = 0
    pairs: int = 0
    pictures: dict[str, int] = field(default_factory=dict)
    events: dict[str, float] = field(default_factory=dict)
    propensities: Propensities | None = None
    reliability: float = 0.0
    exposure_slope: float = 0.0
    read_as: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> str:
        """The report as text for a terminal."""
        lines = [f"{'rows of the log':<38}{self.rows:>14,}"]
        lines += [f"  {'dropped: ' + reason:<36}{count:>14,}" for reason, count in self.dropped.items() if count]
        lines += [f"{kind:<38}{count:>14,.0f}" for kind, count in self.events.items()]
        for kind, count in self.unshown.items():
            if count or kind == CLICK:
                lines.append(f"  {'dropped: ' + counted(kind) + ' without impression':<36}{count:>14,}")
        if self.implied_impressions:
            lines.append(f"  {'impressions implied by other events':<36}{self.implied_impressions:>14,}")
        if self.clipped:
            lines.append(f"  {'propensities below the clip':<36}{self.clipped:>14,}")
        if self.implied_clicks:
            lines.append(f"  {'of them clicks implied by later events':<36}{self.implied_clicks:>14,}")
        for name in ("queries", "documents", "pairs"):
            lines.append(f"{name:<38}{getattr(self, name):>14,}")
        lines += [f"  {'dropped: ' + reason:<36}{count:>14,}" for reason, count in self.dropped_pairs.items() if count]
        lines += [f"{what.replace('_', ' '):<38}{count:>14,}" for what, count in self.pictures.items() if count]
        lines.append(f"{'share of differences that is told':<38}{self.reliability:>14.2f}")
        if self.exposure_slope:
            lines.append(f"{'slope of rates by exposure':<38}{self.exposure_slope:>14.2f}")
        if self.propensities is not None:
            lines.append(f"examination by position ({self.propensities.source}):")
            theta = [f"{at}: {value:.3f}" for at, value in enumerate(self.propensities.theta.tolist(), 1)]
            lines += ["  " + "  ".join(theta[start : start + 8]) for start in range(0, len(theta), 8)]
        return "\n".join(lines)


def from_logs(
    log: Path | str | ir.Table,
    documents: Path | str,
    out: Path | str,
    *,
    lists: Path | str | ir.Table | None = None,
    columns: LogOptions | None = None,
    support: SupportOptions | None = None,
    scoring: ScoreOptions | None = None,
    doc_id: str | None = None,
    fields: Sequence[str] | None = None,
    images: Mapping[str, str] | None = None,
    pictures: PictureOptions | None = None,
    name: str | None = None,
    encoding: str = "utf-8",
    text: TextOptions | None = None,
    memory: str = MEMORY,
    threads: int | None = None,
    progress: bool = True,
) -> Report:
    """Scores the pairs of a log and writes them as a data set's folder, whole or not at all.

    Args:
        log: Files (Parquet, CSV, TSV, JSON Lines; a file, folder or pattern), read by DuckDB; or an Ibis table on any
            backend, which then does the adding up.
        documents: The catalogue: a data set's folder, or files.
        out: The folder to make; it must not exist yet, or be empty.
        lists: What was shown, if the log does not say so: files as for the log, or an Ibis table on its backend, a row
            a result list; see `opengcl.clicks.log.aggregate`.
        columns: Where the log keeps what, and cleaning.
        support: What is seen too little to count.
        scoring: How counts become scores.
        doc_id: Column of the catalogue's ids, ``doc_id`` by default.
        fields: Columns of the catalogue that are model fields; see `opengcl.clicks.files.open_catalogue`.
        images: More model fields -> the catalogue's columns with their pictures: bytes, paths or URLs.
        pictures: How pictures are brought in. Those that cannot be had are listed in ``picture_failures.parquet``.
        name: The data set's name; the folder's by default.
        encoding: Of the log's and lists' files that are text, as Python names it.
        text: Dialect of the log, lists and catalogue where they are CSV or TSV; what it leaves open is found.
        memory: What DuckDB may hold before it spills beside ``out``.
        threads: How many DuckDB uses; all by default.
        progress: Whether steps show a progress bar on stderr.

    Raises:
        FolderBusyError: Another process or thread writes into ``out``.
        DataSetError: If something cannot be read, the log cannot tell the position bias, or nothing is left.
    """
    out = Path(out)
    require_free(out)
    columns, support, scoring = columns or LogOptions(), support or SupportOptions(), scoring or ScoreOptions()
    pictures = pictures or PictureOptions()
    _require_values(columns, scoring)
    report = Report(out)
    with (
        only_writer(out),
        tempfile.TemporaryDirectory(prefix=f".{out.name}-spill-", dir=out.parent) as spill,
        _fetched(out) as fetched,
        connect(Path(spill), memory=memory, threads=threads) as connection,
        Steps(_STEPS, connection, show=progress) as steps,
    ):
        catalogue = open_catalogue(connection, documents, id_column=doc_id, fields=fields, images=images, text=text)
        opened = functools.partial(
            _opened, connection, encoding=encoding, text=text, used=columns.paths, spill=Path(spill)
        )
        table, files, log_as = opened(log, LOG)
        of_lists, list_files, lists_as = (None, [], None) if lists is None else opened(lists, LISTS)
        told = {"log": log_as, "lists": lists_as, "documents": catalogue.read_as}
        report.read_as = {what: how for what, how in told.items() if how}
        source = "the log" if isinstance(log, ir.Table) else str(log)
        steps.done()
        with reading(source):
            _count_rows(connection, table, of_lists, columns, report)
            steps.done()
            _fill_cells(connection, aggregate(table, columns, of_lists))
            report.unshown = require_shown(connection, columns)
            _count_repeats(connection, report)
            steps.done()
            counts, dropped, below = count_pairs(connection, columns, support)
            report.dropped |= dropped
            report.dropped_pairs["too little support"] = below
            steps.done()
        report.propensities = find_propensities(counts, scoring)
        steps.done()
        scored = score(counts, report.propensities.theta, scoring)
        report.reliability, report.exposure_slope = scored.reliability, scored.slope
        steps.done()
        report.events = {counted(kind): float(values.sum()) for kind, values in _counts_by_kind(counts).items()}
        report.dropped_pairs["hardly looked at"] = int((~scored.supported).sum())
        if "image" in catalogue.fields.values():
            report.pictures = bring_catalogue_pictures(
                connection, catalogue, Path(spill), fetched, pictures, progress=progress
            )
        steps.done()
        with reading(source):
            _fill_scored(connection, counts, scored)
            _count_results(connection, report)
            if gone := int(scored.supported.sum()) - report.pairs:
                report.dropped_pairs["nothing left of the document"] = gone
            inputs = {"log": files, "lists": list_files, "documents": catalogue.files}
            provenance = _provenance(report, columns, support, scoring) | {"inputs": _hashed(inputs, progress)}
            if report.pictures:
                provenance["pictures"] = {"image_size": pictures.image_size, **report.pictures}
            schema = Schema(name or out.name, {"query": "text"}, catalogue.fields, 1, 100, catalogue.splits, provenance)
            _write(out, schema, connection, Path(spill) / FAILURES)
        steps.done()
        report.seconds = steps.seconds
    return report


@contextmanager
def _fetched(out: Path) -> Iterator[Path]:
    """A folder for fetched pictures. It stays after a kill, so that none is fetched again, but not after an error."""
    folder = out.parent / f".{out.name}.pictures"
    try:
        yield folder
    except DataSetError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _write(out: Path, schema: Schema, connection: duckdb.DuckDBPyConnection, failures: Path) -> None:
    """The data set, and beside its tables the list of pictures that could not be read, if any."""
    with new_folder(out) as made:
        write_dataset(made, schema, *_tables(connection))
        if failures.exists():
            shutil.copyfile(failures, made / FAILURES)


def _require_values(columns: LogOptions, scoring: ScoreOptions) -> None:
    """Each kind of event after the impression has a value; the defaults may have values for kinds that are not used."""
    if unknown := [kind for kind in scoring.values if kind not in columns.kinds and kind not in VALUES]:
        raise DataSetError(f"values: found a value for {unknown[0]!r}; allowed: {', '.join(columns.kinds)}")
    if bare := [kind for kind in columns.follow_ups if kind not in scoring.values]:
        raise DataSetError(f"values: found none for {bare[0]!r}; needed: a number for each (--value {bare[0]}=NUMBER)")


def _rows(connection: duckdb.DuckDBPyConnection, expression: ir.Table) -> list[dict[str, Any]]:
    """A small result, from the log's own backend or, for files, from our DuckDB."""
    if expression.op().find(_unbound()):
        return list(connection.sql(_sql(expression)).to_arrow_table().to_pylist())
    return list(expression.to_pyarrow().to_pylist())


def _sql(expression: ir.Table) -> str:
    return str(ibis.to_sql(expression, dialect="duckdb"))


@functools.cache
def _unbound() -> Any:
    from ibis.expr.operations import UnboundTable

    return UnboundTable


def _opened(
    connection: duckdb.DuckDBPyConnection,
    source: Path | str | ir.Table,
    view: str,
    *,
    encoding: str,
    text: TextOptions | None,
    used: Collection[str],
    spill: Path,
) -> OpenedLog:
    """A log or its lists, and the files they are in."""
    if isinstance(source, ir.Table):
        return OpenedLog(source, [])
    return open_log(connection, source, view=view, encoding=encoding, text=text, used=used, spill=spill)


def _count_rows(
    connection: duckdb.DuckDBPyConnection,
    table: ir.Table,
    lists: ir.Table | None,
    columns: LogOptions,
    report: Report,
) -> None:
    """Adds up the rows and those that cannot count, and stops where the log is not what the options say."""
    found = {row["reason"]: row for row in _rows(connection, count_rows(table, columns, lists))}
    report.rows = sum(row["rows"] for row in found.values())
    report.clipped = sum(row.get("clipped", 0) for row in found.values())
    report.dropped |= {str(reason): found[reason]["rows"] for reason in sorted(filter(None, found))}
    if not any(row[counted(IMPRESSION)] for row in found.values()):
        names = [f"{row['name']} ({row['rows']:,})" for row in _rows(connection, event_names(table, columns))]
        raise DataSetError(
            f"the log: found no event {columns.kinds[IMPRESSION]!r} in {number_of(report.rows, 'row')}; its events: "
            f"{', '.join(names) or 'none'} (--event impression=NAME names it)"
        )
    require_rows(found, columns)
    if columns.tells_bots:
        (bots,) = _rows(connection, count_bots(table, columns, lists))
        report.bots, report.dropped["bots"] = bots["visitors"], int(bots["rows"] or 0)


def _fill_cells(connection: duckdb.DuckDBPyConnection, cells: ir.Table) -> None:
    if cells.op().find(_unbound()):
        connection.execute(f"CREATE TABLE {CELLS} AS {_sql(cells)}")
        return
    connection.register("incoming", _batches(cells))
    connection.execute(f"CREATE TABLE {CELLS} AS FROM incoming")
    connection.unregister("incoming")


def _batches(cells: ir.Table) -> Any:
    """A stream from the log's own backend; of DuckDB a table, as Ibis 12 streams by a method that DuckDB 2 has not."""
    return cells.to_pyarrow() if cells.get_backend().name == "duckdb" else cells.to_pyarrow_batches()


def _count_repeats(connection: duckdb.DuckDBPyConnection, report: Report) -> None:
    sums = ", ".join(f"sum({one})::BIGINT" for one in ("repeats", "implied", "implied_impressions"))
    ((repeats, implied, shown),) = connection.sql(f"SELECT {sums} FROM {CELLS}").fetchall()
    report.dropped["repeats within a showing"] = repeats or 0
    report.implied_clicks, report.implied_impressions = implied or 0, shown or 0


def _counts_by_kind(counts: Counted) -> dict[str, np.ndarray]:
    return {IMPRESSION: counts.impressions, CLICK: counts.clicks, **counts.later}


def _fill_scored(connection: duckdb.DuckDBPyConnection, counts: Counted, scored: Scored) -> None:
    """The table ``scored``: the pairs that are supported, with their scores and counts."""
    kept = np.flatnonzero(scored.supported)
    totals = {counted(kind): np.bincount(counts.pair, values)[kept] for kind, values in _counts_by_kind(counts).items()}
    figures = {
        "score": scored.score[kept].astype(np.float32),
        "expected_rate": scored.rate[kept],
        "worth": scored.worth[kept],
        "worth_sd": scored.deviation[kept],
        "examinations": scored.examinations[kept],
        **totals,
    }
    connection.register("incoming", pa.table({"pair": kept, **figures}))
    names = ", ".join(map(quoted, figures))
    connection.execute(
        f"CREATE TABLE scored AS SELECT text, {DOCUMENT_ID}, {names} FROM {PAIRS} JOIN incoming USING (pair) "
        f"SEMI JOIN {DOCUMENTS} USING ({DOCUMENT_ID})"
    )
    connection.unregister("incoming")
    texts = connection.sql("SELECT DISTINCT text FROM scored ORDER BY text").to_arrow_table()["text"]
    named = pa.table({QUERY_ID: pa.array([query_id(text) for text in texts.to_pylist()]), "query": texts})
    connection.register("incoming", named)
    connection.execute("CREATE TABLE queries AS FROM incoming")
    connection.unregister("incoming")


def _count_results(connection: duckdb.DuckDBPyConnection, report: Report) -> None:
    for table, attribute in (("queries", "queries"), (DOCUMENTS, "documents"), ("scored", "pairs")):
        ((count,),) = connection.sql(f"SELECT count(*) FROM {table}").fetchall()
        setattr(report, attribute, count)


def _tables(connection: duckdb.DuckDBPyConnection) -> list[pa.RecordBatchReader]:
    """Queries, documents and pairs, read as they are written."""
    pairs = f"SELECT {QUERY_ID}, scored.* EXCLUDE (text) FROM scored JOIN queries ON text = query"
    statements = (
        f"FROM queries ORDER BY {QUERY_ID}",
        f"FROM {DOCUMENTS}",
        f"{pairs} ORDER BY {QUERY_ID}, {DOCUMENT_ID}",
    )
    return [connection.cursor().sql(one).to_arrow_reader(_BATCH) for one in statements]


def _provenance(report: Report, columns: LogOptions, support: SupportOptions, scoring: ScoreOptions) -> dict[str, Any]:
    """What was done, found and dropped, as plain YAML."""
    bias = report.propensities
    assert bias is not None  # noqa: S101
    fitted: dict[str, Any] = {"source": bias.source, "by_position": bias.theta.round(6).tolist()}
    if bias.errors is not None:
        fitted["standard_errors"] = bias.errors.round(6).tolist()
    options = asdict(columns) | asdict(support) | asdict(scoring)
    packages = ("opengcl", "duckdb", "ibis-framework", "numpy")
    return {
        "made_by": "opengcl data from-logs",
        "options": {name: _plain(value) for name, value in options.items()},
        **({"read_as": report.read_as} if report.read_as else {}),
        "rows": report.rows,
        "dropped": {reason: count for reason, count in report.dropped.items() if count},
        "dropped_pairs": {reason: count for reason, count in report.dropped_pairs.items() if count},
        "unshown": report.unshown,
        "implied_clicks": report.implied_clicks,
        "implied_impressions": report.implied_impressions,
        "clipped": report.clipped,
        "bots": report.bots,
        "events": report.events,
        "propensities": fitted,
        "reliability": round(report.reliability, 4),
        "exposure_slope": round(report.exposure_slope, 4),
        "versions": {one: importlib.metadata.version(one) for one in packages},
    }


def _hashed(inputs: dict[str, list[Path]], progress: bool) -> dict[str, Any]:
    """Number and hash of the files of each input; their names and places may be nobody's business."""
    return {
        name: {"files": len(files), "sha256": hashes(files, progress=progress)}
        for name, files in inputs.items()
        if files
    }


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return [one if isinstance(one, str) else float(one) for one in value]
    return dict(value) if isinstance(value, dict) else value


def read_propensities(path: Path | str) -> tuple[float, ...]:
    """Propensities from a YAML or JSON file: a list from position 1 on, or a mapping of positions.

    Raises:
        DataSetError: If it cannot be read, holds anything else, or leaves a position out.
    """
    try:
        read = read_yaml(path)
    except YamlError as error:
        raise DataSetError(str(error)) from error
    found = read.content
    if isinstance(found, dict):
        positions = {int(key): value for key, value in found.items() if re.fullmatch("[0-9]{1,9}", key)}
        if len(positions) != len(found) or sorted(positions) != list(range(1, len(found) + 1)):
            told = ", ".join(key[:20] for key in list(found)[:10]) + (", ..." if len(found) > 10 else "")
            raise DataSetError(f"{path}: found the positions {told}; allowed: 1, 2, ... without gaps")
        found = [positions[at] for at in sorted(positions)]
    if not isinstance(found, list):
        told = "nothing" if found is None else shown(found)
        raise DataSetError(f"{path}: found {told}; allowed: a list of numbers, from position 1 on")
    for at, one in enumerate(found, start=1):
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one <= 1:
            where = read.place((str(at if isinstance(read.content, dict) else at - 1),))
            raise DataSetError(f"{where}: found {shown(one)} at position {at}; allowed: above 0, up to 1{advice(one)}")
    return tuple(map(float, found))
