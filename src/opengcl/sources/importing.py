"""From a source to a data set's folder: staged, its pictures brought in, its pairs settled, then renamed into place."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pyarrow.compute as pc

from opengcl.data.new_folder import require_free
from opengcl.data.problems import DataSetError, ProblemLog, number_of, shown
from opengcl.data.schema import SCHEMA_FILE, FieldType, Schema, SplitOptions
from opengcl.fetch import FetchOptions
from opengcl.only_writer import only_writer
from opengcl.progress import progress_bar
from opengcl.sources.bring_pictures import bring_pictures
from opengcl.sources.pairs import RepeatedPairs, settle_pairs
from opengcl.sources.positions import SCORE_RANGE, score_positions
from opengcl.sources.repeated_pairs import SeveralScoresError
from opengcl.sources.repeated_rows import settle_rows
from opengcl.sources.score_range import Scores, check_zero, settled_scores
from opengcl.sources.source import SIDES, Batch, Description, Side, Source
from opengcl.sources.stage import BadRows, Stage


@dataclass(frozen=True)
class ImportOptions:
    """How a source becomes a data set.

    Attributes:
        name: Of the data set; the source's own by default.
        bad_rows: ``error``: rows that cannot be used stop the import, all of them told; ``skip``: they are left out and
            counted.
        repeated_pairs: What to do with a pair that has several different scores: ``error``, or take their ``max``,
            ``mean`` or ``first``. Equal scores are merged in any case.
        max_unmatched: Share of the judged pairs that may name a query, or a document, that is not there; above it the
            import stops, whatever ``bad_rows`` says.
        score_range: Smallest and largest score possible, in the source's units. By default what the source says, or
            else from 0 (from the smallest score where that is below) to the largest; see `opengcl.sources.score_range`.
        score_zero: The score that means judged not relevant, in the source's units; it is taken off every score.
        image_size: Pictures are stored as JPEG with at most so many pixels on the longer side; as they are by default.
        fetch: Limits for pictures that are URLs.
        splits: Shares and seed, where the source has no splits of its own.
        threads: Of DuckDB; all by default.
    """

    name: str | None = None
    bad_rows: BadRows = "error"
    repeated_pairs: RepeatedPairs = "error"
    max_unmatched: float = 0.5
    score_range: tuple[float, float] | None = None
    score_zero: float = 0.0
    image_size: int | None = None
    fetch: FetchOptions = field(default_factory=FetchOptions)
    splits: SplitOptions = field(default_factory=SplitOptions)
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, kinds in (("bad_rows", get_args(BadRows)), ("repeated_pairs", get_args(RepeatedPairs))):
            if getattr(self, name) not in kinds:
                raise DataSetError(f"{name}: found {shown(getattr(self, name))}; allowed: {', '.join(kinds)}")
        if self.image_size is not None and not 1 <= self.image_size <= 8192:
            raise DataSetError(f"image_size: found {self.image_size}; allowed: 1 to 8192 pixels")
        if not 0 <= self.max_unmatched <= 1:
            raise DataSetError(f"max_unmatched: found {self.max_unmatched}; allowed: a share from 0 to 1")


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Attributes:
        folder: The data set.
        counts: Rows of each table, and what was merged, skipped or dropped.
        notes: Sentences for the user.
    """

    folder: Path
    counts: dict[str, int]
    notes: tuple[str, ...]


def import_dataset(
    source: Source, out: Path, options: ImportOptions | None = None, *, progress: bool = True
) -> Imported:
    """Makes a data set's folder of a source, whole or not at all.

    Work goes on in a hidden folder beside ``out``. After a kill the tables are read again; pictures that were fetched
    before are not fetched again.

    Args:
        source: What is read.
        out: The folder; it must not exist yet, or be empty.
        options: How.
        progress: Whether long work shows bars on stderr.

    Raises:
        DataSetError: ``out`` is there already, or the source cannot be used, or no score is above 0; the message tells
            up to five examples of each kind of problem.
        FolderBusyError: Another process or thread writes into ``out``.
    """
    options = options or ImportOptions()
    with only_writer(out):
        return _imported(source, out, options, progress=progress)


@contextmanager
def unpacking_beside(out: Path) -> Iterator[Path]:
    """A folder for what an import unpacks: new, and removed at the end of the ``with`` block, whatever happens there.

    No other import into ``out`` can run meanwhile.

    Args:
        out: The data set's folder that the import is to make.

    Raises:
        DataSetError: ``out`` is there already.
        FolderBusyError: Another process writes into ``out``.
    """
    with only_writer(out):
        require_free(out)
        folder = _work_folder(out) / "unpacked"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()  # unless images are kept there for the next try


def _work_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.import"


def _imported(source: Source, out: Path, options: ImportOptions, *, progress: bool) -> Imported:
    require_free(out)
    described = source.describe()
    check_zero(options.score_zero, described)
    work = _work_folder(out)
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        counts, notes = _fill(made, work, source, described, options, progress)
        if out.exists():
            out.rmdir()
        made.rename(out)
    except DataSetError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)
    return Imported(out, counts, notes)


def _fill(
    made: Path, work: Path, source: Source, described: Description, options: ImportOptions, progress: bool
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Writes the four files, and tells what was counted and what was decided."""
    log, skip = ProblemLog(), options.bad_rows == "skip"
    shares = options.splits
    with Stage(made, described, seen_documents=shares.seen_documents, seed=shares.seed, log=log) as stage:
        for batch in source.batches(progress=progress):
            stage.add(_from_zero(batch, options.score_zero))
        counts = dict(stage.counts) | {"query_spellings_merged": stage.merged_spellings}
    if missing := [side for side in SIDES if not counts[side]]:
        raise DataSetError("\n".join([f"{described.source}: no {missing[0]} found", *map(str, log.problems())]))
    spill, repeated, threads = work / "spill", options.repeated_pairs, options.threads
    notes = [*described.notes, *(f"{what} in {number_of(count, 'row')}" for what, count in stage.told.items())]
    rows, about_rows = _settle_sides(made, spill, described, stage, log, threads)
    counts |= rows
    notes += about_rows
    if not skip:
        log.stop()

    seen, more = stage.scores, dict[str, Any]()
    if described.positions is not None:
        length, sentence = score_positions(made, spill, described.positions, threads=threads)
        notes.append(sentence)
        more["list_length"] = length
        seen = SCORE_RANGE

    def settle(*, skip_unknown: bool, max_unmatched: float = 1.0) -> dict[str, int]:
        return settle_pairs(
            made,
            spill,
            log,
            repeated=repeated,
            skip_unknown=skip_unknown,
            threads=threads,
            max_unmatched=max_unmatched,
        )

    try:
        counts |= settle(skip_unknown=skip, max_unmatched=options.max_unmatched)
    except SeveralScoresError as error:
        texts = [name for name, kind in described.queries.items() if kind == "text"]
        raise error.placed(source, made / "queries.parquet", texts, options.score_zero) from error
    notes += _about_spellings(counts, repeated)
    if "image" in described.documents.values():
        store, root, fields = work / "pictures", described.picture_root, dict(described.documents)
        size = options.image_size
        counts |= bring_pictures(made, fields, store, root, options.fetch, image_size=size, progress=progress)
        counts["documents"] -= counts["documents_dropped"]
        if counts["documents_dropped"]:
            after = settle(skip_unknown=True)
            counts |= {"qrels": after["qrels"], "pairs_of_dropped_documents": after["pairs_without_documents"]}
    given, zero = options.score_range, options.score_zero
    scores = settled_scores(made / "qrels.parquet", described, seen=seen, given=given, zero=zero)
    counts |= scores.counts
    notes += scores.notes
    _write_schema(made, described, options, counts, scores, log, notes, more, progress)
    return counts, tuple(notes)


def _settle_sides(
    made: Path, spill: Path, described: Description, stage: Stage, log: ProblemLog, threads: int | None
) -> tuple[dict[str, int], list[str]]:
    """Makes one row of those that share an id, on both sides; what was counted, and sentences about what differed."""
    counts = {"differing": 0, "filled_from_later_rows": 0, "skipped": stage.counts["skipped"]}
    notes: list[str] = []
    sides: tuple[tuple[Side, Mapping[str, FieldType]], ...] = (
        ("queries", described.queries),
        ("documents", described.documents),
    )
    for side, fields in sides:
        found = settle_rows(made, spill, side, list(fields), stage.empty[side], log, threads=threads)
        counts["skipped"] += stage.counts[side] - found.rows
        counts[side] = found.rows
        counts["differing"] += found.differing
        counts["filled_from_later_rows"] += found.filled
        notes += found.notes
    return counts, notes


def _about_spellings(counts: dict[str, int], repeated: RepeatedPairs) -> list[str]:
    if not counts["query_spellings_merged"]:
        return []
    found = [
        f"{number_of(counts['query_spellings_merged'], 'spelling')} of queries that differ from an earlier one only in "
        "case, white space or compatibility forms count as the same query, spelled as it came first "
        "(--spelling verbatim keeps them apart)"
    ]
    if pairs := counts["pairs_of_merged_queries"]:
        choice = "max" if repeated == "error" else repeated
        found.append(
            f"{number_of(pairs, 'pair')} of such queries with several scores: their {choice} is taken "
            "(--repeated-pairs sets another choice)"
        )
    return found


def _from_zero(batch: Batch, zero: float) -> Batch:
    """A batch in whose scores 0 means not relevant."""
    if batch.side != "qrels" or not zero:
        return batch
    place = batch.rows.schema.get_field_index("score")
    return replace(batch, rows=batch.rows.set_column(place, "score", pc.subtract(batch.rows.column("score"), zero)))


def _write_schema(
    made: Path,
    described: Description,
    options: ImportOptions,
    counts: dict[str, int],
    scores: Scores,
    log: ProblemLog,
    notes: Sequence[str],
    more: Mapping[str, Any],
    progress: bool,
) -> None:
    told: dict[str, Any] = {
        "source": described.source,
        "opengcl": version("opengcl"),
        "options": {**described.options, **_given(options)},
        "counts": {name: int(count) for name, count in counts.items()},
        "scores": scores.told,
        **more,
    }
    if described.files:
        told["files"] = [_file(path, progress) for path in described.files]
    if notes:
        told["notes"] = list(notes)
    if problems := log.problems():
        told["skipped"] = [str(problem) for problem in problems]
    name = options.name or described.name
    fields = dict(described.queries), dict(described.documents)
    schema = Schema(name, *fields, float(scores.low), float(scores.high), options.splits, told)
    (made / SCHEMA_FILE).write_text(schema.to_yaml(), encoding="utf-8")


def _file(path: Path, progress: bool) -> dict[str, Any]:
    """Name, size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), path.stat().st_size
    task = f"{path.name}: hashing"
    with (
        path.open("rb") as file,
        progress_bar(total=size, desc=task, unit="B", unit_scale=True, show=progress, delay=1.0) as bar,
    ):
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}


def _given(options: ImportOptions) -> dict[str, Any]:
    """Options that differ from their defaults, as YAML can hold them."""
    plain, given = asdict(ImportOptions()), asdict(options)
    found = {name: value for name, value in given.items() if value != plain[name]}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in found.items()
        if name not in ("name", "splits", "threads")
    }
