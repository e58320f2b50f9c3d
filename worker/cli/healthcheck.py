"""`healthcheck`: what the worker beside says of its health, as an exit code for a container.

Imports next to nothing, because a container's runtime asks every few seconds.
"""

import http.client
import json

from worker import sources
from worker.addresses import (
    DEFAULT_HEALTH_HOST,
    DEFAULT_HEALTH_PORT,
    health_port,
    health_url,
)
from worker.cli.sentences import complain, say
from worker.errors import HealthUnavailable
from worker.sources import SettingsError, value_shown

# The server closes a request after five seconds, and Docker is told ten.
ANSWER_SECONDS = 6
MAX_ANSWER_BYTES = 64 * 1024
# What listens on every address is asked on the one that never leaves the machine.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here


def report(*, is_ready: bool) -> int:
    """Print what the worker says; return the exit code, which is 0 if it is well.

    Raises `HealthUnavailable` if no worker answers, and `SettingsError`.
    """
    status, reason = ask(*_address(), "/readyz" if is_ready else "/livez")
    if status != http.client.OK:
        complain(reason)
        return 1
    say(reason)
    return 0


def ask(host: str, port: int, path: str) -> tuple[int, str]:
    """Return the status and the reason that a worker answers; raises `HealthUnavailable`."""
    host = LOOPBACK.get(host, host)
    # No proxy of the environment, and no redirect.
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        # UnicodeError is what a host that is no name raises.
        raise HealthUnavailable(
            f"No worker answers at {health_url(host, port)}{path} ({error}).",
            "see that it runs, with the same WORKER_HEALTH_HOST and WORKER_HEALTH_PORT.",
        ) from error
    finally:
        connection.close()
    try:
        return response.status, str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError) as error:
        raise HealthUnavailable(
            f"Something else than a worker answers at {health_url(host, port)}{path}.",
            "set WORKER_HEALTH_PORT to the worker's port.",
        ) from error


def _address() -> tuple[str, int]:
    """Return where the worker of these settings serves its health."""
    found = sources.read({"health_host", "health_port"})
    text = found.get("health_port", str(DEFAULT_HEALTH_PORT))
    try:
        port = health_port(text)
    except ValueError as error:
        raise SettingsError(
            f"Settings cannot be used: WORKER_HEALTH_PORT: {error} (it is {value_shown(text)}).",
            "mend them in the environment, in .env, or in the secret files.",
        ) from None
    if port == 0:
        raise SettingsError(
            "WORKER_HEALTH_PORT is 0: only the worker's log tells which port it took.",
            "set WORKER_HEALTH_PORT to a fixed port for the worker and for this command.",
        )
    return found.get("health_host", DEFAULT_HEALTH_HOST), port
