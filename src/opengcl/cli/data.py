"""``opengcl data``: from what a shop has to a ranked data set."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Make, check and look at ranked data sets.",
    no_args_is_help=True,
)
