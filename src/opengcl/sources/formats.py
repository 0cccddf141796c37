"""Sources by the name of their format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from opengcl.data.problems import DataSetError
from opengcl.sources.beir import BeirSource
from opengcl.sources.esci import GAINS as ESCI_GAINS
from opengcl.sources.esci import LOCALES, EsciSource
from opengcl.sources.hub import HubTable
from opengcl.sources.mapping import TableMapping
from opengcl.sources.marqo import SCORES, MarqoFolder, MarqoHub, unpacked
from opengcl.sources.source import Source
from opengcl.sources.table_files import FileKind, Table, TableFile
from opengcl.sources.tables import TableSource
from opengcl.sources.trec_topics import TopicsFile
from opengcl.sources.wands import GAINS as WANDS_GAINS
from opengcl.sources.wands import wands_source
from opengcl.text_files import TextFile


@dataclass(frozen=True)
class SourceOptions:
    """What the formats can be told; each reads what concerns it.

    Attributes:
        mapping: Of tables' columns.
        queries: A table with the queries, apart from the one with scores.
        documents: A table with the documents.
        encoding: Of text files.
        delimiter: Of CSV and TSV files; found when not given, as are the next three.
        quotes: Whether fields of CSV and TSV files may be in double quotes.
        decimal: Their decimal sign, ``.`` or ``,``.
        skip_lines: Lines before their header.
        nulls: Texts in any table that mean a missing value, beside the empty one.
        pictures: Folder that picture paths are relative to; by default that of the documents' table.
        locales: Of ESCI.
        small: Whether ESCI's small version is meant.
        score: Score column of Marqo-GS-10M.
        config: Configuration on the hub.
        split: Split on the hub.
        revision: Commit or branch on the hub.
        work: Folder for what has to be unpacked; each archive gets a new folder inside it.
    """

    mapping: TableMapping = field(default_factory=TableMapping)
    queries: Path | None = None
    documents: Path | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    quotes: bool | None = None
    decimal: str | None = None
    skip_lines: int | None = None
    nulls: tuple[str, ...] = ()
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


def _file(path: Path, options: SourceOptions, kind: FileKind | None = None) -> TableFile:
    return TableFile(
        path,
        kind,
        encoding=options.encoding,
        quoted=options.quotes,
        delimiter=options.delimiter,
        decimal=options.decimal,
        skip_lines=options.skip_lines,
        nulls=options.nulls,
    )


def _tables(kind: FileKind | None, location: str, options: SourceOptions) -> TableSource:
    qrels = _file(Path(location), options, kind)
    queries, documents = (_file(path, options) if path else None for path in (options.queries, options.documents))
    return _table_source(qrels, queries, documents, options)


def _table_source(
    qrels: TableFile, queries: Table | None, documents: Table | None, options: SourceOptions
) -> TableSource:
    paths = (qrels.path, options.queries, options.documents)
    told: dict[str, Any] = {"encoding": options.encoding} if options.encoding != "utf-8" else {}
    if options.nulls:
        told["nulls"] = list(options.nulls)
    return TableSource(
        qrels.format,
        qrels,
        options.mapping,
        queries=queries,
        documents=documents,
        name=qrels.path.name.partition(".")[0],
        files=tuple(path for path in paths if path is not None),
        picture_root=options.pictures or (options.documents or qrels.path).parent,
        options=told,
    )


def _trec(location: str, options: SourceOptions) -> TableSource:
    if options.queries is None or options.documents is None:
        raise DataSetError("trec: judgments hold ids only; required: a table of queries and one of documents")
    queries = _trec_table(options.queries, options, _TOPIC_NAMES)
    documents = _trec_table(options.documents, options, _DOCUMENT_NAMES)
    given, columns = options.mapping, documents.columns
    mapping = replace(
        given,
        query_id=given.query_id or "query_id",
        doc_id=given.doc_id or "doc_id",
        score=given.score or "relevance",
    )
    if given.documents is None and given.images is None:
        texts: dict[str, str] = {name: name for name in ("title", "text", "body") if name in columns}
        mapping = replace(mapping, documents=texts or None)
    qrels = _file(Path(location), options, "trec")
    return _table_source(qrels, queries, documents, replace(options, mapping=mapping))


_TOPIC_NAMES = {2: ("query_id", "query")}
_DOCUMENT_NAMES = {2: ("doc_id", "text"), 4: ("doc_id", "url", "title", "body")}
"""Columns of tab-separated files without a header, by their number: those of MS MARCO and of most tracks."""
_HEADERS = frozenset(
    [
        "query_id",
        "query-id",
        "qid",
        "id",
        "_id",
        "doc_id",
        "doc-id",
        "docid",
        "docno",
        "document_id",
        "corpus-id",
        "product_id",
        "item_id",
        "pid",
        "query",
        "text",
        "title",
        "topic",
        "number",
        "num",
        "url",
        "body",
    ]
)


def _trec_table(path: Path, options: SourceOptions, names: Mapping[int, tuple[str, ...]]) -> Table:
    """Queries or documents beside TREC qrels: topics between tags, a table, or TSV as the tracks have it.

    That has no quoting, and often no header.
    """
    kind = next((kind for suffix, kind in _KINDS.items() if path.name.removesuffix(".gz").endswith(suffix)), None)
    if kind is not None or not path.is_file():
        return _file(path, options)
    with TextFile(path, options.encoding).opened() as stream:
        head = stream.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"<"):
        if names is not _TOPIC_NAMES:
            raise DataSetError(f"{path}: found tags; allowed: a table of documents, as CSV, TSV, JSON or Parquet")
        return TopicsFile(TextFile(path, options.encoding))
    standard = replace(
        options,
        delimiter=options.delimiter or "tab",
        quotes=bool(options.quotes),
        decimal=options.decimal or ".",
        skip_lines=options.skip_lines or 0,
    )
    file = _file(path, standard, "tsv")
    mapped = {options.mapping.query_id, options.mapping.doc_id}
    if any(one.lower() in _HEADERS or one in mapped for one in file.columns):
        return file
    if (width := len(file.delimited.dialect.header)) not in names:
        allowed = " or ".join(f"{len(one)} ({', '.join(one)})" for one in names.values())
        raise DataSetError(
            f"{path}, line 1: found {width} columns and no header; allowed: a header, or columns: {allowed}"
        )
    return replace(file, names=names[width])


_KINDS: dict[str, FileKind] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


def _hub(location: str, options: SourceOptions) -> TableSource:
    table = HubTable(location, options.split, options.config, options.revision, options.nulls)
    told = {name: getattr(options, name) for name in ("split", "config", "revision") if getattr(options, name)}
    if options.nulls:
        told["nulls"] = list(options.nulls)
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
        path, left_out = unpacked(path, options.work)
        return MarqoFolder(path, options.score, left_out)
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
