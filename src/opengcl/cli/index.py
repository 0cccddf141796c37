"""``opengcl index``: vectors in a store, checked and swapped; ``opengcl encode``: vectors as files."""

from __future__ import annotations

import json
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from opengcl.cli import arguments

app = typer.Typer(no_args_is_help=True)

Run = Annotated[str, typer.Argument(help="A run folder or model folder.")]
Data = Annotated[Path, typer.Option(help="Folder of the ranked data set.")]
StoreUri = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="OPENGCL_STORE",
        help="FOLDER or s3://, gs://, az:// (LanceDB); postgresql:// (pgvector); http:// or FILE.db (Milvus); "
        "exact:FOLDER. An address with a password belongs into the variable.",
    ),
]
Name = Annotated[str | None, typer.Option(help="Which index; the live one by default.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the best there is by default.")]
Strict = Annotated[bool, typer.Option(help="Whether bad rows of the data set are an error, or skipped.")]
Dimension = Annotated[
    int | None, typer.Option(help="Keep only so many components of each vector (Matryoshka); all by default.", min=1)
]
Dtype = Annotated[str, typer.Option(help="float32, or int8: each vector rounded to 255 steps of its own.")]
ReplaceModel = Annotated[
    bool,
    typer.Option(
        "--replace-model",
        help="Allow that the live index was made by another model; its servers cannot be started again on this store.",
    ),
]


@app.callback()
def index() -> None:
    """Put a model's vectors into a store that is searched; build beside the live index, check, and swap."""


@app.command()
def build(
    run: Run,
    data: Data,
    store: StoreUri,
    name: Annotated[
        str | None, typer.Option(help="Of the index; made from model, data and settings by default.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Columns of the documents to show and filter on, with commas; the first text by default."),
    ] = None,
    as_text: Annotated[
        str | None,
        typer.Option(help="Which columns of --keep to keep as text: dates, long decimals, integers beyond 64 bits."),
    ] = None,
    dimension: Dimension = None,
    dtype: Dtype = "float32",
    vectors: Annotated[
        Path | None, typer.Option(help="Folder of opengcl encode, instead of encoding the documents now.")
    ] = None,
    swap: Annotated[bool, typer.Option(help="Whether the index becomes the live one when it is whole.")] = True,
    replace_model: ReplaceModel = False,
    strict: Strict = True,
    device: Device = None,
) -> None:
    """Encode a data set's documents into a new index, and make it the live one.

    What was live is searched until then. Stopped at any moment, the same command goes on where it was.

    Example: opengcl index build runs/gcl --data shop --store index --keep title,price,brand
    """
    from opengcl.data import RankedDataset
    from opengcl.data.problems import number_of
    from opengcl.index import open_store
    from opengcl.index.build import build_index
    from opengcl.only_writer import only_writer

    dataset = RankedDataset.open(data, strict=strict)
    held = only_writer(Path(store.removeprefix("exact:"))) if store.startswith("exact:") else nullcontext()
    with held, closing(open_store(store)) as opened:
        made = build_index(
            opened,
            run,
            dataset,
            name=name,
            keep=None if keep is None else arguments.names(keep),
            as_text=() if as_text is None else arguments.names(as_text),
            dimension=dimension,
            dtype=dtype,  # type: ignore[arg-type] # checked there
            swap=swap,
            replace_model=replace_model,
            vectors=vectors,
            device=device,
        )
        state = "live" if opened.live() == made.name else f"whole; make it live with opengcl index swap {made.name}"
        arguments.say(f"{opened.uri}: index {made.name}, {number_of(made.count(), 'document')}, {state}")


@app.command()
def check(
    run: Run,
    data: Data,
    store: StoreUri,
    name: Name = None,
    queries: Annotated[int, typer.Option(help="How many of the data set's queries to search for.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Of which queries.", min=0)] = 0,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Folder of opengcl encode with whole float32 vectors, to tell what keeping less costs."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Strict = True,
    device: Device = None,
) -> None:
    """Recall at 10 and 100 against comparing every vector, latency, and size on disk.

    Example: opengcl index check runs/gcl --data shop --store index
    """
    from opengcl.data import RankedDataset
    from opengcl.index import model_fingerprint, open_store, require_model
    from opengcl.index.check import check_index, read_reference, sample_queries
    from opengcl.model import BiEncoder

    opened = open_store(store)
    try:
        chosen = opened.open(name)
        fingerprint = model_fingerprint(run)
        require_model(chosen, fingerprint)
        dataset = RankedDataset.open(data, strict=strict)
        found = check_index(
            chosen,
            sample_queries(BiEncoder.load(run, device=device), dataset, queries, seed),
            reference=None if vectors is None else read_reference(vectors, dataset, fingerprint),
        )
    finally:
        opened.close()
    arguments.tell(json.dumps(found.to_dict(), indent=2) if as_json else found.summary())


@app.command("list")
def list_indexes(store: StoreUri) -> None:
    """Every index of a store; the live one is marked.

    Example: opengcl index list --store index
    """
    from opengcl.index import open_store

    opened = open_store(store)
    try:
        live = opened.live()
        for name in opened.names():
            one = opened.open(name)
            kept = ", ".join(f"{field} ({kind})" for field, kind in one.spec.fields.items())
            arguments.tell(
                f"{'*' if name == live else ' '} {name:<16} {one.count():>12,} documents  "
                f"{one.spec.dimension} x {one.spec.dtype}  {one.spec.created}  model {one.spec.model[:12]}  {kept}"
            )
    finally:
        opened.close()


@app.command()
def swap(
    name: Annotated[str, typer.Argument(help="Which index is to be live.")],
    store: StoreUri,
    replace_model: ReplaceModel = False,
) -> None:
    """Make an index the live one, in one step: forward to a new one, or back to an old one.

    Example: opengcl index swap v2024_05 --store index
    """
    from opengcl.index import open_store, require_live_model

    opened = open_store(store)
    try:
        require_live_model(opened, opened.open(name).spec.model, replace_model=replace_model)
        before = opened.live()
        opened.swap(name)
        arguments.say(f"{opened.uri}: {name} is live" + (f"; before: {before}" if before else ""))
    finally:
        opened.close()


@app.command()
def drop(
    name: Annotated[str, typer.Argument(help="Which index to remove; not the live one.")],
    store: StoreUri,
) -> None:
    """Remove an index that isn't live.

    Example: opengcl index drop v2024_04 --store index
    """
    from opengcl.index import open_store

    opened = open_store(store)
    try:
        opened.drop(name)
        arguments.say(f"{opened.uri}: {name} removed")
    finally:
        opened.close()


def encode(
    run: Run,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the vectors.")],
    side: Annotated[str, typer.Option(help="document or query.")] = "document",
    dimension: Dimension = None,
    dtype: Dtype = "float32",
    file_format: Annotated[str, typer.Option("--format", help="parquet or npy.")] = "parquet",
    shard_rows: Annotated[int, typer.Option(help="Rows of a file.", min=1)] = 16_384,
    workers: Annotated[int, typer.Option(help="Processes on this machine, with one thread each.", min=1)] = 1,
    strict: Strict = True,
    device: Device = None,
) -> None:
    """Encode a whole data set into files, by one process or many, on one machine or many.

    Files that are there are kept, so the same command goes on where it was stopped. Under torchrun each rank makes its
    share; the folder must be one that all of them see.

    Example: opengcl encode runs/gcl --data shop --out vectors --workers 4
    """
    from opengcl.data.problems import number_of
    from opengcl.vector_shards import EncodeJob, encode_table

    job = EncodeJob(
        run=run,
        data=str(data),
        out=str(out),
        side=side,  # type: ignore[arg-type] # checked there
        dimension=dimension,
        dtype=dtype,  # type: ignore[arg-type]
        format=file_format,  # type: ignore[arg-type]
        shard_rows=shard_rows,
        device=device,
        strict=strict,
    )
    manifest = encode_table(job, workers=workers)
    left_out = f"; left out: {number_of(manifest.left_out, 'row')} (left_out.json)" if manifest.left_out else ""
    arguments.say(f"{out}: {number_of(manifest.rows, 'vector')}, {manifest.dimension} x {manifest.dtype}{left_out}")
