"""``opengcl data``: from what a shop has to a ranked data set."""

from __future__ import annotations

import typer

from opengcl.cli.data_curate import curate

app = typer.Typer(
    no_args_is_help=True,
)


@app.callback()
def data() -> None:
    """Make, check and look at ranked data sets."""


app.command("curate")(curate)
