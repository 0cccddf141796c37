"""The subcommands about models: they read their options, call the library, and print."""

from __future__ import annotations

import json
import logging
import os
import reprlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opengcl.cli import arguments, data, index
from opengcl.cli.serve import serve
from opengcl.terminal import SafeFormatter, guard_streams, one_line

if TYPE_CHECKING:
    from opengcl.config import TrainConfig
    from opengcl.data import RankedDataset

app = typer.Typer(
    name="opengcl",
    help="Train one embedding model that ranks: Generalized Contrastive Learning for search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data.app, name="data")
app.add_typer(index.app, name="index")
app.command("encode")(index.encode)
app.command()(serve)

_LIBRARIES = {"pyarrow", "duckdb", "sqlite3", "safetensors", "safetensors_rust", "lance", "lancedb", "psycopg"}
"""Libraries that read what users bring: what they cannot read is the user's to mend."""

_LONGEST_ERROR = 600

Data = Annotated[Path, typer.Option(help="Folder of the ranked data set: dataset.yaml and three Parquet tables.")]
Fields = Annotated[
    str | None, typer.Option(help="Document fields and their weights, as image=0.9,title=0.1. Default: all, equally.")
]
QueryFields = Annotated[str | None, typer.Option(help="Query fields and their weights.")]
QueryPrompt = Annotated[
    str | None, typer.Option(help="What goes before each query; the model's own prompt by default, '' for none.")
]
DocumentPrompt = Annotated[
    str | None, typer.Option(help="What goes before each text of a document; the model's own by default, '' for none.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the best there is by default.")]


@app.command()
def train(
    out: Annotated[Path | None, typer.Option(help="Run folder to make; needed here or in --config.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the ranked data set.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="static or tiny (built here), a sentence-transformers model, or text=MODEL,image=MODEL (two towers)."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options given here win.")] = None,
    fields: Fields = None,
    query_fields: QueryFields = None,
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Score to weight: constant, linear, reciprocal, reciprocal_sqrt, log, exponential[:decay=20], "
            "piecewise:SCORE=WEIGHT,..., or package.module:function (installed, or in the current folder). A score of "
            "0 or below has no weight. Default: exponential."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "--targets",
            help="Form of the loss: diagonal, masked, full, full_row, ranked, or package.module:name (installed, or in "
            "the current folder). Default: ranked, since training knows every judged pair of a batch.",
        ),
    ] = None,
    combine: Annotated[str | None, typer.Option(help="Fields in the loss: mean, pairwise or both.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training pairs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Judged pairs of a batch, over all ranks.")] = None,
    docs_per_query: Annotated[
        int | None, typer.Option(help="Documents of a query that come together; by default pairs are shuffled singly.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak; 5e-3 for static, 1e-3 for tiny, else 2e-5.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Where the temperature starts.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and dropout.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    mini_batch_size: Annotated[
        int | None, typer.Option(help="Rows encoded at a time, for batches beyond memory (GradCache).")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Train low-rank adapters of this rank only.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that prepare batches.")] = None,
    device: Device = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting of the config, as name=value; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    baseline: Annotated[Path | None, typer.Option(help="Another run to show beside this one in the report.")] = None,
) -> None:
    """Train a model from a ranked data set and write a run folder.

    The folder holds config.yaml, model/, metrics.json, per_query.parquet, results.parquet, TensorBoard events and
    report.html. With --resume, --out alone is enough: the settings are read from the folder.

    Example: opengcl train --data shop --model tiny --out runs/gcl --fields image=0.9,title=0.1
    """
    from opengcl.config import TEXT_SETTINGS, load_config
    from opengcl.distributed import leave_ranks, rank
    from opengcl.prompts import described
    from opengcl.run_folder import read_figures
    from opengcl.training import train as run

    given: dict[str, Any] = {
        "data": arguments.text(data),
        "model": model,
        "out": arguments.text(out),
        "fields": fields,
        "query_fields": query_fields,
        "query_prompt": query_prompt,
        "document_prompt": document_prompt,
        "weights": weights,
        "target": target,
        "combine": combine,
        "epochs": epochs,
        "batch_size": batch_size,
        "docs_per_query": docs_per_query,
        "learning_rate": learning_rate,
        "temperature": temperature,
        "seed": seed,
        "precision": precision,
        "mini_batch_size": mini_batch_size,
        "lora_rank": lora_rank,
        "workers": workers,
        "device": device,
    }
    changes = arguments.settings(setting or [], texts=TEXT_SETTINGS)
    found = config is None and resume and out is not None and (out / "config.yaml").is_file()
    if found and out is not None:
        config = out / "config.yaml"
    settings = load_config(config, given, changes)
    if found:
        _require_asked(settings, {name for name, value in {**given, **changes}.items() if value is not None})
    out = Path(settings.out)
    run(settings, resume=resume, baseline=baseline)
    first = rank() == 0
    leave_ranks()
    if not first:
        return
    figures = read_figures(out)
    if told := described(figures.provenance["provenance"].get("prompts", {})):
        arguments.say(told)
    arguments.say(f"{out}: trained. Open {out / 'report.html'}")
    _print_splits(figures.splits)
    _print_field_sets(figures.fields)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, or a sentence-transformers model.")],
    data: Data,
    splits: Annotated[
        str, typer.Option(help="Which of in_domain, novel_query, novel_document, zero_shot, with commas.")
    ] = "in_domain,novel_query,novel_document,zero_shot",
    queries: Annotated[str, typer.Option(help="dev, test or all.")] = "test",
    metrics: Annotated[
        str | None, typer.Option(help="With commas: ndcg@10, ndcg_exp@10, err, rbp@0.9, recall@100, mrr, map, ...")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="FILE.json for the means; per-query values go to FILE.parquet beside it.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder for each split's run and qrels as Parquet, for opengcl metrics.")
    ] = None,
    fields: Fields = None,
    query_fields: QueryFields = None,
    query_prompt: QueryPrompt = None,
    document_prompt: DocumentPrompt = None,
    missing_fields: Annotated[
        str | None,
        typer.Option(help="fill_in or leave_out what documents lack; default as the model was saved, else fill_in."),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Whether bad rows of the data set are an error, or skipped.")] = True,
    device: Device = None,
) -> None:
    """Rank each split's half of the corpus for its queries, and score the lists.

    Example: opengcl evaluate runs/gcl --data shop --queries dev --out gcl-dev.json
    """
    from opengcl.data import RankedDataset
    from opengcl.evaluation import evaluate as run
    from opengcl.field_sets import field_set_means
    from opengcl.fields import parse_fields
    from opengcl.metrics import DEFAULT_METRICS
    from opengcl.model import BiEncoder
    from opengcl.per_query import per_query_path
    from opengcl.prompts import described

    if out is not None and (out.is_dir() or out.suffix == ".parquet"):
        found = "a folder" if out.is_dir() else "the name of the per-query values"
        raise ValueError(f"--out {out}: found {found}; allowed: a file such as means.json")
    dataset = RankedDataset.open(data, strict=strict)
    opened = BiEncoder.open(
        model,
        dataset.schema,
        query=parse_fields(query_fields) if query_fields else None,
        document=parse_fields(fields) if fields else None,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        missing_fields=missing_fields,  # type: ignore[arg-type] # checked there
        device=device,
    )
    if told := described(opened.prompts):
        arguments.say(told)
    evaluation = run(
        opened,
        dataset,
        splits=arguments.names(splits),
        part=queries,  # type: ignore[arg-type] # checked there
        metrics=arguments.names(metrics) if metrics else DEFAULT_METRICS,
        runs=runs,
        progress=True,
    )
    if out is not None:
        evaluation.write(
            out, per_query=per_query_path(out), model=model, prompts=opened.prompts, provenance=opened.provenance
        )
        arguments.say(f"{out}: written")
    _print_splits(evaluation.splits())
    if evaluation.by_fields is not None:
        _print_field_sets(field_set_means(evaluation.by_fields))


@app.command()
def compare(
    evaluations: Annotated[
        list[Path], typer.Argument(help="Run folders or evaluation files; the first is the baseline.")
    ],
    splits: Annotated[str | None, typer.Option(help="Which splits, with commas; default all that they share.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Which metrics, with commas.")] = None,
    seed: Annotated[int, typer.Option(help="Of the resampling.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare evaluations query by query: differences, 95% intervals, p-values.

    Example: opengcl compare runs/clip runs/gcl --metrics ndcg@10,recall@100
    """
    from opengcl.compare import compare as run
    from opengcl.compare import format_table, to_json

    found = run(
        evaluations, arguments.names(metrics) if metrics else None, arguments.names(splits) if splits else None, seed
    )
    arguments.tell(to_json(found) if as_json else format_table(found))


@app.command()
def metrics(
    qrels: Annotated[
        Path, typer.Argument(help="Judgments: .parquet, .tsv, .csv, .json, .jsonl, or TREC; float scores allowed.")
    ],
    run: Annotated[Path, typer.Argument(help="Results: in the same formats.")],
    names: Annotated[str | None, typer.Option("--metrics", help="With commas; default the usual ones.")] = None,
    compat: Annotated[str | None, typer.Option(help="gcl: the numbers of Marqo's GCL script.")] = None,
    sample: Annotated[
        int | None, typer.Option(help="With --compat gcl: draw this many queries as the script does.")
    ] = None,
    ties: Annotated[
        str, typer.Option(help="Equal scores by document id: document (ascending), trec, input.")
    ] = "document",
    depth: Annotated[int, typer.Option(help="Ranks of the run that count.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score any run file against any qrels file, float scores included.

    Example: opengcl metrics qrels.trec run.trec --metrics ndcg@10,map
    """
    from opengcl.data.problems import number_of
    from opengcl.run_metrics import metrics_of_files

    report = metrics_of_files(
        qrels,
        run,
        arguments.names(names) if names else None,
        compat=compat,
        sample=sample,
        ties=ties,  # type: ignore[arg-type] # checked there
        depth=depth,
    )
    if as_json:
        arguments.tell(json.dumps(report, indent=2))
        return
    for name, value in report["metrics"].items():
        arguments.tell(f"{name:<16}{value:.4f}")
    arguments.tell(f"{'queries':<16}{report['queries']}")
    for key, label in (
        ("missing_queries", "judged but not in the run, counted as 0"),
        ("ignored_queries", "not judged"),
    ):
        if report[key]:
            arguments.say(f"{number_of(report[key], 'query', 'queries')}: {label}")


@app.command()
def search(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    query: Annotated[str, typer.Argument(help="What a shopper would type.")],
    k: Annotated[int, typer.Option("-k", help="How many results.", min=1)] = 10,
    data: Annotated[Path | None, typer.Option(help="Another data set than the run's own.")] = None,
) -> None:
    """Search all documents of the run's data set, exactly; vectors are made once and kept.

    Example: opengcl search runs/gcl "red running shoes" -k 5
    """
    from opengcl.product_search import ProductSearch

    for hit in ProductSearch(run, _dataset_of(run, data))(query, k):
        arguments.tell(f"{hit.rank:>4}  {hit.score:.4f}  {one_line(hit.doc_id):<12}  {one_line(hit.title)}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    baseline: Annotated[Path | None, typer.Option(help="Another run on the same data, shown beside it.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where the data set is now, if it moved.")] = None,
    note: Annotated[str, typer.Option(help="A sentence about the data, shown at the top.")] = "",
    out: Annotated[Path | None, typer.Option(help="HTML file; report.html in the run folder by default.")] = None,
) -> None:
    """Write a run's report again, for instance with a baseline beside it.

    Example: opengcl report runs/gcl --baseline runs/clip
    """
    from opengcl.report import write_report

    arguments.say(f"{write_report(run, _dataset_of(run, data), baseline=baseline, out=out, note=note)}: written")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the shop, both runs and the report.")] = Path("quickstart"),
    seed: Annotated[int, typer.Option(help="Of the shop and the models.")] = 0,
) -> None:
    """Draw a synthetic shop, train plain CLIP and GCL on it with the same budget, compare, report, search."""
    from opengcl.quickstart import quickstart as run

    run(out, seed=seed, say=arguments.tell)


def main() -> None:
    """Entry point: errors that a user can mend are one sentence; OPENGCL_DEBUG=1 shows where they came from."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    guard_streams()
    _quiet_libraries()
    try:
        app()
    except Exception as error:
        told = _told(error)
        if told is None or os.environ.get("OPENGCL_DEBUG"):
            raise
        arguments.say(f"error: {told}")
        sys.exit(2)


def _told(error: Exception) -> str | None:
    """The sentence that a user reads about an error; None for a fault of this program, which needs its traceback."""
    if isinstance(error, ValueError | OSError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}"
    library = type(error).__module__.partition(".")[0].lstrip("_")
    if library not in _LIBRARIES:
        return None
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{library}: {first[:_LONGEST_ERROR]} (OPENGCL_DEBUG=1 shows where)"


def _quiet_libraries() -> None:
    """Their bars about loading a file of some megabytes would bury ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _dataset_of(run: Path, moved: Path | None) -> RankedDataset:
    """The data set that a run was trained on, opened as it was then."""
    from opengcl.config import load_config
    from opengcl.data import RankedDataset
    from opengcl.named_folders import no_such_folder

    if not run.is_dir():
        raise ValueError(no_such_folder(run))
    config = load_config(run / "config.yaml", {})
    return RankedDataset.open(moved or config.data, strict=config.strict)


def _require_asked(settings: TrainConfig, asked: set[str]) -> None:
    """Code that only a run folder names is not run: the folder may be another's."""
    for name, path in settings.own_code.items():
        if name not in asked:
            raise ValueError(
                f"{Path(settings.out) / 'config.yaml'}: {name} names code, {reprlib.repr(path)}, which training would "
                f"run; if you trust it, say so: --{name} {reprlib.repr(path)}"
            )


def _print_splits(splits: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(splits.values())))
    arguments.tell("".join([f"{'split':<16}", *(f"{name:>14}" for name in names)]))
    for split, row in splits.items():
        cells = (f"{row[name]:>14.0f}" if name == "queries" else f"{row[name]:>14.4f}" for name in names)
        arguments.tell("".join([f"{split:<16}", *cells]))


def _print_field_sets(means: dict[str, dict[str, dict[str, float | None]]]) -> None:
    if not means:
        return
    names = list(next(iter(next(iter(means.values())).values())))
    width = max(len("fields"), *(len(kind) for kinds in means.values() for kind in kinds)) + 2
    arguments.tell(
        "\nBy the fields that documents have (first, top10: share of these places; ideal_: in an ideal list):"
    )
    arguments.tell("".join([f"{'split':<16}", f"{'fields':<{width}}", *(f"{name:>13}" for name in names)]))
    for split, kinds in means.items():
        for kind, row in kinds.items():
            values = ("-" if value is None else f"{value:.4f}" for value in row.values())
            arguments.tell("".join([f"{split:<16}", f"{kind:<{width}}", *(f"{value:>13}" for value in values)]))
