"""`healthcheck`: what the worker beside says of its health, as an exit code for a container."""

import http.client
import json
from typing import Annotated

import typer

from worker.cli.app import app
from worker.cli.output import complain, say
from worker.errors import HealthUnavailable
from worker.settings import Settings, SettingsError, load_settings
from worker.telemetry.http import url

# The server closes a request after five seconds, and Docker is told ten.
ANSWER_SECONDS = 6
# What listens on every address is asked on the one that never leaves the machine.
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here


@app.command()
def healthcheck(
    *,
    is_ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether it projects, not only whether it lives.")
    ] = False,
) -> None:
    """Ask the worker of these settings for its health: exit 0 if it is well, 1 if not."""
    status, reason = _ask(load_settings(), "/readyz" if is_ready else "/livez")
    if status != http.client.OK:
        complain(reason)
        raise typer.Exit(1)
    say(reason)


def _ask(settings: Settings, path: str) -> tuple[int, str]:
    host = LOOPBACK.get(settings.health_host, settings.health_host)
    port = settings.health_port
    if port == 0:
        raise SettingsError(
            "WORKER_HEALTH_PORT is 0: only the worker's log tells which port it took.",
            "set WORKER_HEALTH_PORT to a fixed port for the worker and for this command.",
        )
    # No proxy of the environment, and no redirect.
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, str(json.loads(response.read())["reason"])
    except (OSError, http.client.HTTPException) as error:
        raise HealthUnavailable(
            f"No worker answers at {url(host, port)}{path} ({error}).",
            "see that it runs, with the same WORKER_HEALTH_HOST and WORKER_HEALTH_PORT.",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise HealthUnavailable(
            f"Something else than a worker answers at {url(host, port)}{path}.",
            "set WORKER_HEALTH_PORT to the worker's port.",
        ) from error
    finally:
        connection.close()
