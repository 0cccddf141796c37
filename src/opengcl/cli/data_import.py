"""``opengcl data import``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opengcl.cli import arguments

if TYPE_CHECKING:
    from opengcl.sources.mapping import TableMapping

_TABLES = "Columns of tables"
_PICTURES = "Pictures"
_ROWS = "Rows and splits"
_FORMATS = "Of one format"


def import_data(
    source: Annotated[str, typer.Argument(help="A file, a folder, an archive, or a name on the hub.")],
    out: Annotated[Path, typer.Option(help="Folder of the data set to make.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="csv, tsv, jsonl, parquet (by the suffix when not given), trec, beir (MTEB's folders too), "
            "huggingface, marqo, marqo-hub, esci, wands.",
        ),
    ] = "auto",
    queries: Annotated[
        Path | None,
        typer.Option(help="Table with the queries, if they are not in SOURCE.", rich_help_panel=_TABLES),
    ] = None,
    documents: Annotated[
        Path | None,
        typer.Option(help="Table with the documents, if they are not in SOURCE.", rich_help_panel=_TABLES),
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="YAML file with the columns; options win over it.", rich_help_panel=_TABLES)
    ] = None,
    query_id: Annotated[
        str | None,
        typer.Option(help="Column of query ids; without one the text makes the id.", rich_help_panel=_TABLES),
    ] = None,
    queries_id: Annotated[
        str | None,
        typer.Option(help="That column in the table of --queries, if it differs there.", rich_help_panel=_TABLES),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(help="Query fields, as query=search_term or query=q,category=cat.", rich_help_panel=_TABLES),
    ] = None,
    doc_id: Annotated[
        str | None,
        typer.Option(help="Column of document ids, or several: locale+product_id.", rich_help_panel=_TABLES),
    ] = None,
    documents_id: Annotated[
        str | None,
        typer.Option(help="That column in the table of --documents, if it differs there.", rich_help_panel=_TABLES),
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(help="Text fields of documents, as title=name,brand=brand, or none.", rich_help_panel=_TABLES),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Picture fields: bytes, paths, URLs or lists of them, as image=picture_url, or none.",
            rich_help_panel=_TABLES,
        ),
    ] = None,
    join_lists: Annotated[
        str | None,
        typer.Option(help="Make one text of a list of texts, with this between them.", rich_help_panel=_TABLES),
    ] = None,
    score: Annotated[str | None, typer.Option(help="Column of scores.", rich_help_panel=_TABLES)] = None,
    position: Annotated[
        str | None,
        typer.Option(
            help="Column of result positions: the top scores 100, the end of a usual list 1.", rich_help_panel=_TABLES
        ),
    ] = None,
    first_position: Annotated[
        int | None, typer.Option(help="Position at the top, 0 or 1.", rich_help_panel=_TABLES)
    ] = None,
    list_length: Annotated[
        int | None,
        typer.Option(help="Position that scores 1; by default as long as usual lists are.", rich_help_panel=_TABLES),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of labels, with --gains.", rich_help_panel=_TABLES)] = None,
    gains: Annotated[
        str | None, typer.Option(help="Score of each label, as Exact=1,Partial=0.5.", rich_help_panel=_TABLES)
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="More columns of documents to keep, with commas.", rich_help_panel=_TABLES)
    ] = None,
    encoding: Annotated[str, typer.Option(help="Of text files: utf-8, cp1252, ...", rich_help_panel=_TABLES)] = "utf-8",
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="Of CSV and TSV: one character, or comma, tab, semicolon, pipe; found when not given.",
            rich_help_panel=_TABLES,
        ),
    ] = None,
    quotes: Annotated[
        bool | None,
        typer.Option(
            "--quotes/--no-quotes",
            help="Whether double quotes enclose fields of CSV and TSV, or are part of the texts, as inch marks are. By "
            "default they enclose, and quotes that seem to join rows are refused.",
            rich_help_panel=_TABLES,
        ),
    ] = None,
    decimal: Annotated[
        str | None,
        typer.Option(
            help="Decimal sign of scores that are text: . or , (found in CSV and TSV).", rich_help_panel=_TABLES
        ),
    ] = None,
    null: Annotated[
        str | None,
        typer.Option(help="Texts that mean a missing value, as NULL,N/A; only empty ones do.", rich_help_panel=_TABLES),
    ] = None,
    skip_lines: Annotated[
        int | None,
        typer.Option(help="Lines of CSV and TSV before the header; found when not given.", rich_help_panel=_TABLES),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder that picture paths are relative to.", rich_help_panel=_PICTURES),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Store pictures as JPEG, longer side at most so many pixels.", rich_help_panel=_PICTURES),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Pictures fetched at once.", rich_help_panel=_PICTURES)] = 16,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Fetch from private addresses too.", rich_help_panel=_PICTURES),
    ] = False,
    bad_rows: Annotated[
        str, typer.Option(help="error: tell them all and stop; skip: leave out and count.", rich_help_panel=_ROWS)
    ] = "error",
    repeated_pairs: Annotated[
        str | None,
        typer.Option(help="A pair with several scores: error, max, mean or first.", rich_help_panel=_ROWS),
    ] = None,
    spelling: Annotated[
        str | None,
        typer.Option(
            help="normalised: queries without ids are one if they differ in case, white space or compatibility forms, "
            "and ids are trimmed; verbatim: all as they are.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    max_unmatched: Annotated[
        float,
        typer.Option(help="Share of pairs that may name unknown ids, with --bad-rows skip.", rich_help_panel=_ROWS),
    ] = 0.5,
    score_range: Annotated[
        str | None,
        typer.Option(
            help="Smallest and largest score possible, as 0,5. Default: what labels' gains or positions say, else from "
            "0 (the smallest score, where that is below 0) to the largest score.",
            rich_help_panel=_ROWS,
        ),
    ] = None,
    score_zero: Annotated[
        float,
        typer.Option(
            help="The score that means judged not relevant, taken off every score: 1 for grades 1 to 5 whose 1 is bad, "
            "or a number below all of a cross-encoder's logits.",
            rich_help_panel=_ROWS,
        ),
    ] = 0.0,
    name: Annotated[str | None, typer.Option(help="Name of the data set.", rich_help_panel=_ROWS)] = None,
    seed: Annotated[int, typer.Option(help="Of the splits.", rich_help_panel=_ROWS)] = 0,
    seen_queries: Annotated[float, typer.Option(help="Share that training sees.", rich_help_panel=_ROWS)] = 0.8,
    seen_documents: Annotated[float, typer.Option(help="Share that training sees.", rich_help_panel=_ROWS)] = 0.5,
    dev: Annotated[float, typer.Option(help="Dev share of the queries.", rich_help_panel=_ROWS)] = 0.5,
    locales: Annotated[
        str, typer.Option(help="esci: us, es and jp, with commas.", rich_help_panel=_FORMATS)
    ] = "us,es,jp",
    small: Annotated[bool, typer.Option("--small", help="esci: the small version.", rich_help_panel=_FORMATS)] = False,
    marqo_score: Annotated[
        str, typer.Option(help="marqo: score_linear or score_reciprocal.", rich_help_panel=_FORMATS)
    ] = "score_linear",
    config: Annotated[str | None, typer.Option(help="huggingface: configuration.", rich_help_panel=_FORMATS)] = None,
    split: Annotated[str, typer.Option(help="huggingface: split to read.", rich_help_panel=_FORMATS)] = "train",
    revision: Annotated[
        str | None, typer.Option(help="huggingface: commit or branch.", rich_help_panel=_FORMATS)
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Open the data set afterwards: every row is checked, and training starts at once.")
    ] = True,
) -> None:
    """Make a ranked data set of tables, a public benchmark, or a data set on the hub.

    Columns that are not named are guessed from the usual names (query, product_id, title, image, score, position), and
    what was guessed or decided is printed.

    Examples:
    opengcl data import results.csv --query query=search_term --doc-id sku --position rank --out shop

    opengcl data import judged.jsonl.gz --documents products.parquet --images image=picture_url --out shop

    opengcl data import esci/ --format esci --locales us --out esci-us
    """
    from opengcl.data import RankedDataset, SplitOptions
    from opengcl.data.problems import number_of
    from opengcl.data.twins import same_queries
    from opengcl.fetch import FetchOptions
    from opengcl.sources.formats import SourceOptions, open_source
    from opengcl.sources.importing import ImportOptions, import_dataset

    columns = _mapping(
        mapping,
        query_id=query_id,
        queries_id=queries_id,
        queries=arguments.columns("--query", query),
        doc_id=doc_id,
        documents_id=documents_id,
        documents=_fields("--fields", fields),
        images=_fields("--images", images),
        join_lists=join_lists,
        spelling=spelling,
        score=score,
        position=position,
        first_position=first_position,
        list_length=list_length,
        label=label,
        gains=_numbers("--gains", gains),
        keep=tuple(arguments.names(keep)) if keep else None,
    )
    asked = SourceOptions(
        mapping=columns,
        queries=queries,
        documents=documents,
        encoding=encoding,
        delimiter=delimiter,
        quotes=quotes,
        decimal=decimal,
        skip_lines=skip_lines,
        nulls=tuple(arguments.names(null)) if null else (),
        pictures=pictures,
        locales=tuple(arguments.names(locales)),
        small=small,
        score=marqo_score,
        config=config,
        split=split,
        revision=revision,
        work=out.parent / f".{out.name}.import" / "unpacked",
    )
    merged = repeated_pairs or ("first" if format_.startswith("marqo") else "error")
    options = ImportOptions(
        name=name,
        bad_rows=bad_rows,  # type: ignore[arg-type] # checked there
        repeated_pairs=merged,  # type: ignore[arg-type] # checked there
        max_unmatched=max_unmatched,
        score_range=_range(score_range),
        score_zero=score_zero,
        image_size=image_size,
        fetch=FetchOptions(concurrency=concurrency, allow_private=allow_private),
        splits=SplitOptions(seed, seen_queries, seen_documents, dev),
    )
    imported = import_dataset(open_source(format_, source, asked), out, options)
    for note in imported.notes:
        typer.echo(f"note: {note}", err=True)
    for what, count in imported.counts.items():
        if count:
            typer.echo(f"{what.replace('_', ' '):<28}{count:>12,}")
    if imported.counts.get("picture_failures"):
        typer.echo(f"pictures that could not be read: {out / 'picture_failures.parquet'}", err=True)
    if check and (same := same_queries(RankedDataset.open(out).queries)):
        arguments.say(
            "note: the text of an earlier query, but for its spelling, has another id in "
            f"{number_of(same, 'query', 'queries')} (opengcl data check names those on both sides of a split)"
        )
    typer.echo(f"{out}: made. Next: opengcl data show {out} --out {out.name}.html", err=True)


def _mapping(path: Path | None, **given: Any) -> TableMapping:
    from opengcl.sources.mapping import TableMapping

    read = TableMapping.read(path) if path is not None else TableMapping()
    return replace(read, **{name: value for name, value in given.items() if value is not None})


def _fields(option: str, written: str | None) -> dict[str, str] | None:
    """Fields and their columns; ``none`` for none at all, so that none is guessed."""
    return {} if written is not None and written.strip() == "none" else arguments.columns(option, written)


def _numbers(option: str, written: str | None) -> dict[str, float] | None:
    found = arguments.columns(option, written)
    try:
        return None if found is None else {name: float(value) for name, value in found.items()}
    except ValueError as error:
        raise ValueError(f"{option} {written!r}: write label=number, with commas between them") from error


def _range(written: str | None) -> tuple[float, float] | None:
    if written is None:
        return None
    try:
        low, high = (float(part) for part in written.split(","))
    except ValueError as error:
        raise ValueError(f"--score-range {written!r}: write two numbers, as 0,5") from error
    return low, high
