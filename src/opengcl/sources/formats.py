"""Sources by the name of their format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from opengcl.data.problems import DataSetError
from opengcl.sources.beir import BeirSource
from opengcl.sources.esci import GAINS as ESCI_GAINS
from opengcl.sources.esci import LOCALES, EsciSource
from opengcl.sources.hub import HubTable
from opengcl.sources.mapping import TableMapping
from opengcl.sources.marqo import SCORES, MarqoFolder, MarqoHub, unpacked
from opengcl.sources.source import Source
from opengcl.sources.table_files import FileKind, TableFile
from opengcl.sources.tables import TableSource
from opengcl.sources.wands import GAINS as WANDS_GAINS
from opengcl.sources.wands import wands_source


@dataclass(frozen=True)
class SourceOptions:
    """What the formats can be told; each reads what concerns it.

    Attributes:
        mapping: Of tables' columns.
        queries: A table with the queries, apart from the one with scores.
        documents: A table with the documents.
        encoding: Of text files.
        delimiter: Of CSV files.
        pictures: Folder that picture paths are relative to; by default that of the documents' table.
        locales: Of ESCI.
        small: Whether ESCI's small version is meant.
        score: Score column of Marqo-GS-10M.
        config: Configuration on the hub.
        split: Split on the hub.
        revision: Commit or branch on the hub.
        work: Folder for what has to be unpacked.
    """

    mapping: TableMapping = field(default_factory=TableMapping)
    queries: Path | None = None
    documents: Path | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    pictures: Path | None = None
    locales: tuple[str, ...] = LOCALES
    small: bool = False
    score: str = SCORES[0]
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    work: Path | None = None


def open_source(name: str, location: str, options: SourceOptions) -> Source:
    """The source of a format.

    Args:
        name: One of `FORMATS`, or ``auto``: a table by its file's suffix.
        location: A file, a folder, or a name on the hub.
        options: See `SourceOptions`.

    Raises:
        DataSetError: An unknown format, or a location that is not of it.
    """
    if name == "auto":
        if not Path(location).is_file():
            raise DataSetError(f"{location}: not a file; for a folder or the hub name a format: {', '.join(FORMATS)}")
        return _tables(None, location, options)
    if name not in FORMATS:
        raise DataSetError(f"format: found {name!r}; allowed: {', '.join(FORMATS)}")
    return FORMATS[name](location, options)


def _tables(kind: FileKind | None, location: str, options: SourceOptions) -> TableSource:
    def file(path: Path, kind: FileKind | None = None) -> TableFile:
        return TableFile(path, kind, encoding=options.encoding, delimiter=options.delimiter)

    qrels = file(Path(location), kind)
    queries, documents = (file(path) if path else None for path in (options.queries, options.documents))
    found = [one for one in (qrels, queries, documents) if one is not None]
    return TableSource(
        qrels.format,
        qrels,
        options.mapping,
        queries=queries,
        documents=documents,
        name=qrels.path.name.partition(".")[0],
        files=tuple(one.path for one in found),
        picture_root=options.pictures or (documents or qrels).path.parent,
        options={"encoding": options.encoding} if options.encoding != "utf-8" else {},
    )


def _trec(location: str, options: SourceOptions) -> TableSource:
    if options.queries is None or options.documents is None:
        raise DataSetError("trec: judgments hold ids only; required: a table of queries and one of documents")
    given = options.mapping
    mapping = replace(
        given,
        query_id=given.query_id or "query_id",
        doc_id=given.doc_id or "doc_id",
        score=given.score or "relevance",
    )
    return _tables("trec", location, replace(options, mapping=mapping))


def _hub(location: str, options: SourceOptions) -> TableSource:
    table = HubTable(location, options.split, options.config, options.revision)
    told = {name: getattr(options, name) for name in ("split", "config", "revision") if getattr(options, name)}
    return TableSource(
        "huggingface",
        table,
        options.mapping,
        name=location.rstrip("/").rpartition("/")[2],
        picture_root=options.pictures,
        options={"location": location, **told},
    )


def _marqo(location: str, options: SourceOptions) -> MarqoFolder:
    path = Path(location)
    if path.is_file():
        if options.work is None:
            raise DataSetError(f"{location}: an archive; required: a folder to unpack it in")
        path = unpacked(path, options.work)
    return MarqoFolder(path, options.score)


def _esci(location: str, options: SourceOptions) -> EsciSource:
    gains = options.mapping.gains or ESCI_GAINS
    return EsciSource(Path(location), options.locales, "small" if options.small else "large", gains)


FORMATS: dict[str, Callable[[str, SourceOptions], Source]] = {
    "csv": lambda location, options: _tables("csv", location, options),
    "tsv": lambda location, options: _tables("tsv", location, options),
    "jsonl": lambda location, options: _tables("jsonl", location, options),
    "parquet": lambda location, options: _tables("parquet", location, options),
    "trec": _trec,
    "beir": lambda location, _: BeirSource(Path(location)),
    "huggingface": _hub,
    "marqo": _marqo,
    "marqo-hub": lambda location, options: MarqoHub(location, options.score),
    "esci": _esci,
    "wands": lambda location, options: wands_source(Path(location), gains=options.mapping.gains or WANDS_GAINS),
}
