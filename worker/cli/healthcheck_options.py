"""The options of `healthcheck`, for its help and for whoever mistypes them."""

from typing import Annotated

import typer

from worker.cli import healthcheck as light
from worker.cli.app import app


# With no option but --ready, this file is not even imported (cli/__init__.py).
@app.command()
def healthcheck(
    *,
    is_ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether it projects, not only whether it lives.")
    ] = False,
) -> None:
    """Ask the worker of these settings for its health: exit 0 if it is well, 1 if not."""
    raise typer.Exit(light.report(is_ready=is_ready))
