"""The worker's commands, run as a user runs them."""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.demo.broker import DemoFailed
from tests.processes import environment
from tests.waiting import patiently
from worker.broker.topology import Topology


def settings_of(url: str, topology: Topology, database: Path) -> dict[str, str]:
    """Return the environment of a worker; none of the caller's own settings reach it."""
    return environment(
        amqp_url=url,
        exchange=topology.exchange,
        queue=topology.queue,
        delivery_limit=topology.delivery_limit,
        # The address is the caller's own choice.
        amqp_allow_plain_text=True,
        database=database,
        log_format="json",
        # One line for each batch, from which the demo knows what the worker has done.
        log_level="debug",
        # No secret files of this machine.
        secrets_dir=database.parent,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command."""

    exit_code: int
    printed: str
    complaint: str
    """Its standard error."""


async def command(*arguments: str, settings: dict[str, str], folder: Path) -> Answer:
    """Run a command of the worker until it ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", *arguments),
        env=settings,
        # A folder without a .env.
        cwd=folder,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        # The terminal's Ctrl-C is for the demo, which then ends the command.
        start_new_session=True,
    )
    try:
        async with patiently():
            printed, complaint = await process.communicate()
    except TimeoutError:
        raise DemoFailed(f"The command {arguments[0]} does not finish.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Answer(process.returncode or 0, printed.decode(), complaint.decode())


async def read_json(*arguments: str, settings: dict[str, str], folder: Path) -> Any:
    """Run a command that reads; return the document that it prints."""
    answer = await command(*arguments, "--json", settings=settings, folder=folder)
    if answer.exit_code != 0:
        raise DemoFailed(f"The command {' '.join(arguments)} fails: {answer.complaint}")
    return json.loads(answer.printed)
