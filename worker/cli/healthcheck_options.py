"""The options of `healthcheck`, for its help and for error messages about mistyped ones."""

from typing import Annotated

import typer

from worker.cli import healthcheck as light
from worker.cli.app import app


# Without options, or with --ready alone, this file is not imported (cli/__init__.py).
@app.command()
def healthcheck(
    *,
    is_ready: Annotated[
        bool,
        typer.Option(
            "--ready", help="Ask whether the worker is ready, not only whether it is live."
        ),
    ] = False,
) -> None:
    """Ask the worker with these settings for its health: exit 0 if it is healthy, 1 if not."""
    raise typer.Exit(light.report(is_ready=is_ready))
