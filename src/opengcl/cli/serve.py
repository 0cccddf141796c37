"""``opengcl serve``: search over HTTP, and the search page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opengcl.cli import arguments


def serve(
    run: Annotated[Path, typer.Argument(help="Run folder or model folder.")],
    store: Annotated[
        str,
        typer.Option(
            envvar="OPENGCL_STORE",
            help="Where its index is: a folder, s3://, postgresql://, exact:FOLDER, ... An address with a password "
            "belongs into the variable.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="Its data set, for pictures, suggestions, filters and judged relevance.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine reaches it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    compare: Annotated[Path | None, typer.Option(help="A second run, to compare with on the page.")] = None,
    compare_store: Annotated[
        str | None, typer.Option(envvar="OPENGCL_COMPARE_STORE", help="Where the second run's index is.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="What the page calls the run; its folder's name by default.")
    ] = None,
    compare_label: Annotated[str | None, typer.Option(help="What it calls the second run.")] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File of API keys, 'read KEY' or 'write KEY' a line; or set OPENGCL_API_KEYS, OPENGCL_WRITE_KEYS."
        ),
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may call the server; may be repeated.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A limit, as max_batch=64; may be repeated.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Whether bad rows of the data set are an error, or skipped.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the best there is by default.")] = None,
) -> None:
    """Serve search by text and picture, with a page, a JSON API and OpenAI's /v1/embeddings.

    The store's live index must have been built by the run's model; a new index is taken while requests run. SIGTERM
    finishes what runs and ends. Needs the extra "serve".

    Example: opengcl serve runs/gcl --store index --data shop
    """
    from opengcl.data.problems import number_of

    try:
        from opengcl.serve.keys import ApiKeys
        from opengcl.serve.run import ModelPlace, log_accesses, make_server, open_state
        from opengcl.serve.settings import Settings
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; run: pip install 'opengcl[serve]'") from None

    if (compare is None) != (compare_store is None):
        raise ValueError("--compare and --compare-store go together: give both, or neither")
    places = [ModelPlace(run, store, label)]
    if compare is not None and compare_store is not None:
        places.append(ModelPlace(compare, compare_store, compare_label))
    settings = Settings().changed({**arguments.settings(setting or []), **({"cors": cors} if cors else {})})
    state = open_state(places, data=data, keys=ApiKeys.load(keys), settings=settings, device=device, strict=strict)
    server = make_server(state, host, port)
    log_accesses()
    for name, model in state.models.items():
        index = model.live.current
        arguments.say(f"{name}: {model.label}, index {index.name}, {number_of(index.count(), 'document')}")
    arguments.say(f"http://{host}:{port}/ (Ctrl+C to stop)")
    server.run()
