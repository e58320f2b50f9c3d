"""`healthcheck`: the health of the worker in the same container, as an exit code.

Imports very little, because the container's runtime runs it every few seconds.
"""

import http.client
import json
from collections.abc import Callable
from typing import TypeVar

from worker import sources
from worker.addresses import (
    DEFAULT_HEALTH_HOST,
    DEFAULT_HEALTH_PORT,
    health_host,
    health_port,
    health_url,
)
from worker.cli.sentences import complain, say
from worker.errors import HealthUnavailable
from worker.sources import CORRECT, SettingsError, value_shown, variable_of

# The server ends a request after five seconds; the image gives this command ten.
ANSWER_SECONDS = 6
MAX_ANSWER_BYTES = 64 * 1024
T = TypeVar("T")
# A server that listens on every address is asked on the loopback address.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here


def report(*, is_ready: bool) -> int:
    """Print the worker's answer; return the exit code, which is 0 if the worker is healthy.

    Raises `HealthUnavailable` if no worker answers, and `SettingsError`.
    """
    status, reason = ask(*_address(), "/readyz" if is_ready else "/livez")
    if status != http.client.OK:
        complain(reason)
        return 1
    say(reason)
    return 0


def ask(host: str, port: int, path: str) -> tuple[int, str]:
    """Return the status and the reason of a worker's answer; raises `HealthUnavailable`."""
    host = LOOPBACK.get(host, host)
    # This ignores proxies in the environment, and redirects.
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        # A host that is not a valid name raises UnicodeError.
        raise HealthUnavailable(
            f"No worker answers at {health_url(host, port)}{path} ({error}).",
            "check that it is running, with the same WORKER_HEALTH_HOST and WORKER_HEALTH_PORT.",
        ) from error
    finally:
        connection.close()
    try:
        return response.status, str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError) as error:
        raise HealthUnavailable(
            f"Something other than a worker answers at {health_url(host, port)}{path}.",
            "set WORKER_HEALTH_PORT to the worker's port.",
        ) from error


def _address() -> tuple[str, int]:
    """Return the host and the port at which a worker with these settings serves its health."""
    found = sources.read({"health_host", "health_port"})
    host = _checked("health_host", found.get("health_host", DEFAULT_HEALTH_HOST), health_host)
    port = _checked("health_port", found.get("health_port", str(DEFAULT_HEALTH_PORT)), health_port)
    if port == 0:
        raise SettingsError(
            "WORKER_HEALTH_PORT is 0, so only the worker's log says which port it took.",
            "set WORKER_HEALTH_PORT to a fixed port for the worker and for this command.",
        )
    return host, port


def _checked(name: str, text: str, check: Callable[[str], T]) -> T:
    try:
        return check(text)
    except ValueError as error:
        raise SettingsError(
            f"Settings cannot be used: {variable_of(name)}: {error} (it is {value_shown(text)}).",
            CORRECT,
        ) from None
