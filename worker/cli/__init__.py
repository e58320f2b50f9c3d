"""The command line: one file for each noun that the user types.

Exit codes: 0 done, 1 failed, 2 called wrongly.
"""

import gc
import logging
import sys
from importlib import import_module

from worker.cli.app import app
from worker.cli.output import complain
from worker.errors import WorkerError
from worker.settings import SettingsError

COMMANDS = (
    "check",
    "dead_letters",
    "events",
    "healthcheck",
    "publish",
    "rebuild",
    "run",
    "topology",
)

# New containers between two searches for cycles; a batch of messages has some ten thousand.
COLLECT_AFTER = 20_000


def main() -> None:
    """Run a command; turn what the operator can correct into a sentence and an exit code."""
    try:
        # In here, because they import projections, and those may hold a mistake.
        for name in COMMANDS:
            import_module(f"{__name__}.{name}")
        _collect_rarely()
        _silence_libraries()
        app()
    except SettingsError as error:
        complain(error.message, error.hint)
        sys.exit(2)
    except WorkerError as error:
        complain(error.message, error.hint)
        sys.exit(1)
    except KeyboardInterrupt:
        complain("Interrupted.")
        sys.exit(1)


def _collect_rarely() -> None:
    # Messages are freed by their reference counts. To search them for cycles, and all that has been
    # imported with them, took a tenth of the worker's time.
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _silence_libraries() -> None:
    # What they have to say of a connection that ends arrives as an exception, too; here they would
    # print it with a traceback.
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
