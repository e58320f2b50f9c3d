"""The application that the commands register with, and what they share."""

from importlib.metadata import version
from typing import Annotated

import typer

from worker.cli.output import say

app = typer.Typer(
    name="projection-worker",
    help="Keeps one row per chat event in SQLite from the messages of RabbitMQ.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # Its tracebacks show locals, and those may hold a password.
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
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
