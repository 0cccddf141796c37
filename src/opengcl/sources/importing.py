"""From a source to a data set's folder: staged, its pictures brought in, its pairs settled, then renamed into place."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from opengcl.data.problems import DataSetError, ProblemLog, shown
from opengcl.data.schema import SCHEMA_FILE, Schema, SplitOptions
from opengcl.fetch import FetchOptions
from opengcl.progress import progress_bar
from opengcl.sources.bring_pictures import bring_pictures
from opengcl.sources.pairs import RepeatedPairs, settle_pairs
from opengcl.sources.source import SIDES, Description, Source
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
        score_range: Smallest and largest score possible; by default what the source says, or else what is found.
        image_size: Pictures are stored as JPEG with at most so many pixels on the longer side; as they are by default.
        fetch: Limits for pictures that are URLs.
        splits: Shares and seed, where the source has no splits of its own.
        threads: Of DuckDB; all by default.
    """

    name: str | None = None
    bad_rows: BadRows = "error"
    repeated_pairs: RepeatedPairs = "error"
    score_range: tuple[float, float] | None = None
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
        DataSetError: ``out`` is there already, or the source cannot be used; the message tells up to five examples of
            each kind of problem.
    """
    options = options or ImportOptions()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataSetError(f"{out}: exists already; allowed: a new or empty folder")
    described = source.describe()
    work = out.parent / f".{out.name}.import"
    made = work / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        counts = _fill(made, work, source, described, options, progress)
        if out.exists():
            out.rmdir()
        made.rename(out)
    except DataSetError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)
    return Imported(out, counts, described.notes)


def _fill(
    made: Path, work: Path, source: Source, described: Description, options: ImportOptions, progress: bool
) -> dict[str, int]:
    """Writes the four files, and tells what was counted."""
    log, skip = ProblemLog(), options.bad_rows == "skip"
    shares = options.splits
    with Stage(made, described, seen_documents=shares.seen_documents, seed=shares.seed, log=log) as stage:
        for batch in source.batches(progress=progress):
            stage.add(batch)
    if not skip:
        log.stop()
    if missing := [side for side in SIDES if not stage.counts[side]]:
        raise DataSetError("\n".join([f"{described.source}: no {missing[0]} found", *map(str, log.problems())]))
    counts = dict(stage.counts)
    repeated, threads = options.repeated_pairs, options.threads

    def settle(*, skip_unknown: bool) -> dict[str, int]:
        spill = work / "spill"
        return settle_pairs(made, spill, log, repeated=repeated, skip_unknown=skip_unknown, threads=threads)

    counts |= settle(skip_unknown=skip)
    if "image" in described.documents.values():
        store, root, fields = work / "pictures", described.picture_root, dict(described.documents)
        size = options.image_size
        counts |= bring_pictures(made, fields, store, root, options.fetch, image_size=size, progress=progress)
        counts["documents"] -= counts["documents_dropped"]
        if counts["documents_dropped"]:
            after = settle(skip_unknown=True)
            counts |= {"qrels": after["qrels"], "pairs_of_dropped_documents": after["pairs_without_documents"]}
    _write_schema(made, described, options, counts, stage.scores, log, progress)
    return counts


def _write_schema(
    made: Path,
    described: Description,
    options: ImportOptions,
    counts: dict[str, int],
    found: tuple[float, float],
    log: ProblemLog,
    progress: bool,
) -> None:
    low, high = options.score_range or described.score_range or found
    if low == high:  # the format wants a range: 0 to the only score, or below it
        low, high = min(0.0, low - 1) if low <= 0 else 0.0, high
    told: dict[str, Any] = {
        "source": described.source,
        "opengcl": version("opengcl"),
        "options": {**described.options, **_given(options)},
        "counts": {name: int(count) for name, count in counts.items()},
    }
    if described.files:
        told["files"] = [_file(path, progress) for path in described.files]
    if problems := log.problems():
        told["skipped"] = [str(problem) for problem in problems]
    name = options.name or described.name
    fields = dict(described.queries), dict(described.documents)
    schema = Schema(name, *fields, float(low), float(high), options.splits, told)
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
