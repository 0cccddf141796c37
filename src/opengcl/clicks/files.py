"""Logs and catalogues as files: Parquet, CSV, TSV or JSON Lines, one file, a folder, or a pattern."""

# ruff: noqa: S608 - names in SQL are constants of ours, or quoted

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import ibis
import pyarrow as pa
import pyarrow.types as pt
from ibis.expr import types as ir

from opengcl.data.problems import DataSetError, listed, number_of, shown
from opengcl.data.schema import DOCUMENT_ID, SCHEMA_FILE, SPLIT, FieldType, Schema, SplitOptions
from opengcl.delimited_text import COMMA, TAB, DelimitedFile, TextOptions
from opengcl.given_lists import not_one_text
from opengcl.progress import progress_bar
from opengcl.text_files import TextFile, refuse_foreign

LOG, LISTS, DOCUMENTS = "log", "lists", "documents"
"""Names of the views in DuckDB."""

_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".ndjson": "json",
    ".ndjson.gz": "json",
    ".json": "json",
    ".json.gz": "json",
}
_TEXTS = ("VARCHAR", "JSON", '"NULL"', "NULL")
_NUMBERS = ("BIGINT", "UBIGINT", "HUGEINT", "DOUBLE", "FLOAT", "BOOLEAN")
_CHUNK = 1 << 20
_LONGEST = 600  # characters of an error of DuckDB


@dataclass(frozen=True)
class Catalogue:
    """The documents, as the view `DOCUMENTS` with a column ``doc_id`` of text.

    Attributes:
        fields: Model fields and their types.
        splits: How the source says that splits are made.
        files: What was read.
        root: What picture paths are relative to.
        read_as: How it is read, where that had to be found out.
    """

    fields: dict[str, FieldType]
    splits: SplitOptions
    files: list[Path]
    root: Path
    read_as: str | None = None


class OpenedLog(NamedTuple):
    """A log, or its lists.

    Attributes:
        table: Its rows.
        files: What was read.
        read_as: How, where that had to be found out.
    """

    table: ir.Table
    files: list[Path]
    read_as: str | None = None


@dataclass(frozen=True)
class _Columns:
    """What of a file's columns is known before it is read.

    Attributes:
        used: Those that are read by their name, which may not be there twice.
        texts: Those whose numbers are wanted as they are written; None for all.
    """

    used: Collection[str]
    texts: Collection[str] | None


def find_files(source: Path | str) -> list[Path]:
    """The files that a name stands for, sorted: itself, those in a folder (and below), or those of a pattern.

    Raises:
        DataSetError: If there are none, or their formats differ or are unknown.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.is_file() and _format(one) and not _unfinished(path, one))
        # Beside tables of another kind, JSON says what they are.
        found = [one for one in found if not _any_json(one)] or found
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(one) for one in glob.glob(str(source), recursive=True) if Path(one).is_file())  # noqa: PTH207 - a pattern may be absolute
    if not found:
        raise DataSetError(f"{source}: no such file; allowed: a file, folder or pattern of {', '.join(_FORMATS)}")
    formats = {_format(one): one for one in found}
    if None in formats:
        raise DataSetError(
            f"{formats[None]}: found the ending {formats[None].suffix!r}; allowed: {', '.join(_FORMATS)}"
        )
    if len(formats) > 1:
        raise DataSetError(
            f"{source}: found files of {' and '.join(sorted(map(str, formats)))}; allowed: of one format"
        )
    return found


def open_log(
    connection: duckdb.DuckDBPyConnection,
    source: Path | str,
    *,
    view: str = LOG,
    encoding: str = "utf-8",
    text: TextOptions | None = None,
    used: Collection[str] = (),
    spill: Path | None = None,
) -> OpenedLog:
    """A log's files as a view, and as an Ibis table of its name, which is compiled for DuckDB and run there.

    Scalars of JSON are texts, as those of CSV are, but for dates and times that DuckDB knows by their form.

    Args:
        connection: Where the view is made.
        source: As for `find_files`.
        view: Its name.
        encoding: Of text, as Python names it; others than UTF-8 are copied to ``spill`` in UTF-8 first.
        text: Dialect of CSV and TSV; what it leaves open is found.
        used: Columns that are read, or paths that begin with one: none of them may be in a header twice.
        spill: A folder that stays as long as the view.

    Raises:
        DataSetError: If it cannot be read.
    """
    files = find_files(source)
    read = files
    if _format(files[0]) != "parquet" and not _is_utf8(encoding):
        folder = (spill or files[0].parent) / f"{view}-utf-8"
        folder.mkdir(parents=True)
        read = [_in_utf8(one, encoding, folder / f"{number}-{one.name}") for number, one in enumerate(files)]
    relation, read_as = _read(connection, read, text, _Columns(_beginnings(used), None))
    with reading(source):
        relation.create_view(view)
    if read_as and read != files:
        read_as += f", {encoding}"
    table = ibis.table(ibis.Schema.from_pyarrow(_arrow_schema(connection, view)), name=view)
    return OpenedLog(table, files, read_as)


def _beginnings(paths: Collection[str]) -> set[str]:
    """Every name that a path may begin with: of ``a.b+c`` itself, ``a``, ``a.b`` and ``c``."""
    found = set(paths)
    for path in paths:
        for one in path.split("+"):
            parts = one.strip().split(".")
            found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return found


def _is_utf8(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        raise DataSetError(
            f"encoding: found {shown(encoding)}; allowed: a name such as utf-8, cp1252 or utf-16"
        ) from None


def _in_utf8(path: Path, encoding: str, copy: Path) -> Path:
    """A copy in UTF-8 of a file of text, compressed as it is."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding=encoding, newline="") as file, opened(copy, "wt", encoding="utf-8") as out:
            while text := file.read(_CHUNK):
                out.write(text)
    except UnicodeDecodeError as error:
        raise DataSetError(
            f"{path}: found bytes that are not {encoding} ({error.reason}); allowed: text in that encoding "
            "(--encoding names another)"
        ) from None
    except (OSError, EOFError) as error:
        raise DataSetError(f"{path}: cannot be read: {error}") from error
    return copy


def open_catalogue(
    connection: duckdb.DuckDBPyConnection,
    source: Path | str,
    *,
    id_column: str | None,
    fields: Sequence[str] | None,
    images: Mapping[str, str] | None = None,
    text: TextOptions | None = None,
) -> Catalogue:
    """The documents of a data set's folder, or of a table.

    Args:
        connection: Where the view is made.
        source: A data set's folder, or files as for `find_files`.
        id_column: Column of the ids; ``doc_id`` by default.
        fields: Columns that are model fields: texts and numbers as text, bytes and ``{bytes, path}`` as pictures. By
            default a data set's own, and of a table ``title``, which may be missing where there are ``images``.
        images: More fields -> the columns with their pictures: bytes, paths or URLs.
        text: Dialect of CSV and TSV; what it leaves open is found.

    Raises:
        DataSetError: If it cannot be read, a column is missing, or an id is null, empty or there twice.
    """
    not_one_text("fields", fields or ())
    folder = Path(source)
    schema = Schema.read(folder) if (folder / SCHEMA_FILE).is_file() else None
    files = [folder / "documents.parquet"] if schema else find_files(source)
    images, identifier = images or {}, id_column or DOCUMENT_ID
    wanted = {identifier, *(fields or (schema.documents if schema else ["title"])), *images.values()}
    relation, read_as = _read(connection, files, text, _Columns(wanted, wanted))
    usual = schema.documents if schema else ["title"] if not images or "title" in relation.columns else []
    texts = [name for name in fields or usual if name not in images]
    _require_columns(source, relation.columns, [identifier, *texts, *images.values()], [*texts, *images])
    with reading(source):
        relation = relation.select(", ".join(_renamed(relation.columns, images)))
    types = {one.name: one.type for one in _relation_schema(relation)}
    declared = dict(schema.documents if schema else {}) | dict.fromkeys(images, "image")
    kinds = {name: _kind(source, name, types[name], declared.get(name)) for name in [*texts, *images]}
    columns = [f"CAST({quoted(identifier)} AS VARCHAR) AS {DOCUMENT_ID}"]
    for name in relation.columns:
        if name in (identifier, DOCUMENT_ID, SPLIT):
            continue
        whole = f"CAST({quoted(name)} AS VARCHAR) AS {quoted(name)}"
        columns.append(whole if kinds.get(name) == "text" else quoted(name))
    with reading(source):
        relation.select(", ".join(columns)).create_view(DOCUMENTS)
        _check_ids(connection, source)
    root = Path(source) if Path(source).is_dir() else files[0].parent
    return Catalogue(kinds, schema.splits if schema else SplitOptions(), files, root, read_as)


def hashes(files: Sequence[Path], *, progress: bool) -> str:
    """SHA-256 over the sizes and contents of files, in order."""
    total = sum(one.stat().st_size for one in files)
    whole = hashlib.sha256()
    with progress_bar(total=total, desc="hashing", unit="B", unit_scale=True, show=progress, delay=1.0) as bar:
        for path in files:
            whole.update(f"{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    whole.update(chunk)
                    bar.update(len(chunk))
    return whole.hexdigest()


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def reading(source: Path | str) -> Iterator[None]:
    """Errors of DuckDB, while it reads or computes, as errors about a source."""
    try:
        yield
    except duckdb.Error as error:
        told = str(error)
        if "unicode" in told.lower() or "utf-8" in told.lower():
            told = f"{told[:_LONGEST]} (--encoding names the encoding of a log, such as cp1252 or utf-16)"
        raise DataSetError(f"{source}: cannot be read: {told[: 2 * _LONGEST]}") from error


def _format(path: Path) -> str | None:
    return next((kind for ending, kind in _FORMATS.items() if path.name.lower().endswith(ending)), None)


def _read(
    connection: duckdb.DuckDBPyConnection, files: list[Path], text: TextOptions | None, columns: _Columns
) -> tuple[duckdb.DuckDBPyRelation, str | None]:
    """The rows of files, and how they are read, where that had to be found out."""
    names, kind = [str(one) for one in files], _format(files[0])
    for path in files:
        _refuse_foreign(path, kind)
    if kind == "csv":
        return _read_csv(connection, files, text or TextOptions(), columns.used)
    with reading(files[0]):
        if kind == "parquet":
            return connection.read_parquet(names), None
        return _read_json(connection, names, columns.texts), None


def _refuse_foreign(path: Path, kind: str | None) -> None:
    """Refuses a file whose first bytes are those of another kind."""
    if kind != "parquet":
        with TextFile(path).opened():
            return
    with path.open("rb") as file:
        head = file.read(1024)
    if not head.startswith(b"PAR1"):
        refuse_foreign(str(path), head)


def _read_csv(
    connection: duckdb.DuckDBPyConnection, files: list[Path], text: TextOptions, used: Collection[str]
) -> tuple[duckdb.DuckDBPyRelation, str]:
    """CSV in a dialect that was found and checked; all of it as text, so that an id such as 007 stays one.

    Raises:
        DataSetError: Quotes seem to join rows, files are of several dialects, or a column that is used is there twice.
    """
    found = [DelimitedFile(TextFile(one), text, TAB if ".tsv" in one.name.lower() else COMMA) for one in files]
    first = found[0].dialect
    for path, one in zip(files, found, strict=True):
        dialect = one.dialect
        if dialect.encoding != "utf-8":
            raise DataSetError(f"{path}: found {dialect.encoding} by its first bytes; say so: --encoding utf-16")
        if (dialect.delimiter, dialect.header_line) != (first.delimiter, first.header_line):
            raise DataSetError(
                f"{path}: found {dialect}, and in {files[0].name} {first}; allowed: files of one dialect (--delimiter, "
                "--skip-lines)"
            )
        one.check(used)
    quote = '"' if first.quotes else ""
    with reading(files[0]):
        relation = connection.read_csv(
            [str(one) for one in files],
            header=True,
            all_varchar=True,
            delimiter=first.delimiter,
            quotechar=quote,
            escapechar=quote,
            skiprows=first.header_line - 1,
            na_values=["", *text.nulls],
        )
    return relation, str(first)


def _read_json(
    connection: duckdb.DuckDBPyConnection, names: list[str], texts: Collection[str] | None
) -> duckdb.DuckDBPyRelation:
    """JSON with its texts, and the numbers of some columns, as they are written.

    DuckDB finds the types of columns in the first rows. Where these are texts, or null, it would take a later NaN for
    a text and drop later values without a word; and with a NaN among the first rows it would round whole numbers. So
    these columns are read as JSON. NaN and infinities, which are no JSON but written by Python, are missing.
    """
    found = connection.read_json(names, format="auto")
    kinds = dict(zip(found.columns, found.types, strict=True))
    written = {name: texts is None or name in texts for name in kinds}
    read: dict[str, str] = {name: _as_json(kind, written[name]) for name, kind in kinds.items()}
    plain = (f"{_without_nan(quoted(name), kind, written[name])} AS {quoted(name)}" for name, kind in kinds.items())
    return connection.read_json(names, format="auto", columns=read).select(", ".join(plain))


def _is_text(kind: Any, written: bool) -> bool:
    """Whether a type that was found is read as JSON and made text."""
    return str(kind) in _TEXTS or (written and str(kind) in _NUMBERS)


def _as_json(kind: Any, written: bool = False) -> str:
    """A type that was found as it is read."""
    if _is_text(kind, written):
        return "JSON"
    if kind.id == "list":
        return f"{_as_json(kind.children[0][1])}[]"
    if kind.id == "struct":
        return f"STRUCT({', '.join(f'{quoted(name)} {_as_json(child)}' for name, child in kind.children)})"
    return str(kind)


def _without_nan(value: str, kind: Any, written: bool = False, depth: int = 0) -> str:
    """A value of a type that was found, in SQL: texts without the quotes of JSON, and null for NaN and infinities."""
    if _is_text(kind, written):
        literal = f"CAST({value} AS VARCHAR) IN ('NaN', 'Infinity', '-Infinity')"
        return f"CASE WHEN NOT ({literal}) THEN {value} ->> '$' END"
    if str(kind) in ("DOUBLE", "FLOAT"):
        return f"CASE WHEN isfinite({value}) THEN {value} END"
    if not any(leaf in str(kind) for leaf in (*_TEXTS, "DOUBLE", "FLOAT")):
        return value
    if kind.id == "list":
        one = f"x{depth}"
        return f"list_transform({value}, lambda {one}: {_without_nan(one, kind.children[0][1], depth=depth + 1)})"
    if kind.id == "struct":
        parts = (
            f"{quoted(name)} := {_without_nan(f'{value}.{quoted(name)}', child, depth=depth)}"
            for name, child in kind.children
        )
        return f"CASE WHEN {value} IS NOT NULL THEN struct_pack({', '.join(parts)}) END"
    return value


def _any_json(path: Path) -> bool:
    return path.name.lower().endswith((".json", ".json.gz"))


def _unfinished(folder: Path, path: Path) -> bool:
    """Whether a writer hides it, as Spark does with what it has not finished."""
    return any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)


def _relation_schema(relation: duckdb.DuckDBPyRelation) -> pa.Schema:
    return relation.limit(0).to_arrow_table().schema


def _arrow_schema(connection: duckdb.DuckDBPyConnection, view: str) -> pa.Schema:
    return _relation_schema(connection.sql(f"FROM {view}"))


def _require_columns(source: Path | str, found: list[str], needed: list[str], fields: list[str]) -> None:
    for name in needed:
        if name not in found:
            raise DataSetError(
                f"{source}: no column {shown(name)}; it has {listed(found)} "
                "(--doc-id, --fields and --images name others)"
            )
    for name in (DOCUMENT_ID, SPLIT):
        if name in fields:
            raise DataSetError(f"{source}: found the field {shown(name)}; allowed: any other column")


def _renamed(columns: list[str], images: Mapping[str, str]) -> list[str]:
    """The columns in SQL, those with pictures under their fields' names."""
    others = (one for one in columns if one not in images and one not in images.values())
    pictures = (f"{quoted(column)} AS {quoted(name)}" for name, column in images.items())
    return [*map(quoted, others), *pictures]


def _kind(source: Path | str, name: str, found: pa.DataType, declared: FieldType | None) -> FieldType:
    text = pt.is_string(found) or pt.is_large_string(found)
    if pt.is_binary(found) or pt.is_large_binary(found) or pt.is_struct(found) or (text and declared == "image"):
        return "image"
    if declared == "image":
        raise DataSetError(f"{source}, column '{name}': found type {found}; allowed: bytes, paths or URLs")
    if text or pt.is_integer(found) or pt.is_floating(found):
        return "text"
    raise DataSetError(f"{source}, column '{name}': found type {found}; allowed: text, numbers, or pictures as bytes")


def _check_ids(connection: duckdb.DuckDBPyConnection, source: Path | str) -> None:
    empty = connection.sql(f"SELECT count(*) FROM {DOCUMENTS} WHERE coalesce({DOCUMENT_ID}, '') = ''").fetchall()
    if empty[0][0]:
        raise DataSetError(f"{source}: found {number_of(empty[0][0], 'row')} with a null or empty id; allowed: none")
    twice = connection.sql(
        f"SELECT {DOCUMENT_ID}, count(*) FROM {DOCUMENTS} GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1"
    ).fetchall()
    for identifier, rows in twice:
        raise DataSetError(f"{source}: found the id {shown(identifier)} in {rows:,} rows; allowed: each id once")
