"""The application that the commands register with, and the options that they share."""

from importlib.metadata import version
from typing import Annotated

import typer

from worker.cli.output import say

app = typer.Typer(
    name="projection-worker",
    help="Project RabbitMQ messages into SQLite, one row for each chat event.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # Its tracebacks show local variables, perhaps a password.
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer passes it by position
    if wanted:
        say(version("projection-worker"))
        raise typer.Exit


@app.callback()
def _common(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass
