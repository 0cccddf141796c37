"""``opengcl data``: from what a shop has to a ranked data set."""

from __future__ import annotations

import typer

from opengcl.cli.data_curate import curate
from opengcl.cli.data_import import import_data
from opengcl.cli.data_logs import from_logs
from opengcl.cli.data_look import check, sample, show, split

app = typer.Typer(
    no_args_is_help=True,
)


@app.callback()
def data() -> None:
    """Make, check and look at ranked data sets."""


app.command("import")(import_data)
app.command("curate")(curate)
app.command("from-logs")(from_logs)
app.command("check")(check)
app.command("show")(show)
app.command("split")(split)
app.command("sample")(sample)
