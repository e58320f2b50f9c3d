"""The command line: one file for each noun that the user types.

Exit codes: 0 done, 1 failed, 2 called wrongly.
"""

import gc
import logging
import sys
from importlib import import_module

from worker.cli import healthcheck
from worker.cli.sentences import complain, discard, prepare_streams
from worker.errors import WorkerError
from worker.sources import SettingsError

COMMANDS = (
    "check",
    "dead_letters",
    "events",
    "healthcheck_options",
    "publish",
    "rebuild",
    "run",
    "topology",
)

# New containers between two searches for cycles; a batch of messages has some ten thousand.
COLLECT_AFTER = 20_000


def main() -> None:
    """Run a command; turn what the operator can correct into a sentence and an exit code."""
    prepare_streams()
    try:
        code = _code(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads has seen enough, such as `head`.
        code = 1
        discard(1)
    except OSError as error:
        code = 1
        complain(
            f"The system does not permit what the command needs ({error}).",
            "see that standard output can be written, and that files and folders are there.",
        )
        discard(1)
    sys.exit(code)


def _code(arguments: list[str]) -> str | int | None:
    try:
        _run(arguments)
    except SystemExit as end:
        return end.code
    except SettingsError as error:
        complain(error.message, error.hint)
        return 2
    except WorkerError as error:
        complain(error.message, error.hint)
        return 1
    return 0


def _run(arguments: list[str]) -> None:
    # Bytes that are not UTF-8 arrive as lone surrogates, which neither SQLite nor JSON takes.
    if odd := [each for each in arguments if not each.isascii() and _is_no_text(each)]:
        raise SettingsError(
            f"An argument has bytes that are not UTF-8 ({odd[0]}).",
            "give it in UTF-8; rename a file whose name is not.",
        )
    if arguments in (["healthcheck"], ["healthcheck", "--ready"]):
        # All the others take most of a second to import.
        sys.exit(healthcheck.report(is_ready="--ready" in arguments))
    # Within reach of main's handlers, because they import projections, which may hold a mistake.
    for name in COMMANDS:
        import_module(f"{__name__}.{name}")
    _collect_rarely()
    _silence_libraries()
    import_module(f"{__name__}.app").app()


def _is_no_text(argument: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in argument)


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
