"""`healthcheck`: asks the worker on this machine how it is, for a container's health check."""

import json
from http.client import HTTPException
from typing import Annotated
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import typer

from worker.cli.app import app
from worker.cli.output import complain, say
from worker.settings import load_settings

TIMEOUT_SECONDS = 5
# What serves on all addresses is asked on the nearest one.
ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - not bound here


@app.command()
def healthcheck(
    *,
    is_ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether it consumes, not only whether it lives.")
    ] = False,
) -> None:
    """Ask the worker on this machine whether it lives; exit 1 if not."""
    settings = load_settings()
    host = ANY_ADDRESS.get(settings.health_host, settings.health_host)
    url = f"http://{host}:{settings.health_port}/{'readyz' if is_ready else 'livez'}"
    try:
        with urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            say(_reason(answer.read()))
    except HTTPError as error:
        complain(_reason(error.read()))
        raise typer.Exit(1) from None
    except (URLError, HTTPException, OSError) as error:
        complain(
            f"The worker does not answer ({url}: {error}).",
            "see that it runs, and that WORKER_HEALTH_HOST and WORKER_HEALTH_PORT are its own.",
        )
        raise typer.Exit(1) from None


def _reason(content: bytes) -> str:
    document = json.loads(content)
    return f"{document['state']}: {document['reason']}"
