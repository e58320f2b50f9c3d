"""The command line: one file for each command or group of commands.

Exit codes: 0 success, 1 failure, 2 wrong usage or settings.
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
    "import_log",
    "partitions",
    "publish",
    "rebuild",
    "run",
    "topology",
)

# Containers that are allocated between two collections; a batch allocates about 10,000.
COLLECT_AFTER = 20_000


def main() -> None:
    """Run a command; report what the operator can correct as a sentence and an exit code."""
    prepare_streams()
    try:
        code = _code(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe.
        code = 1
        discard(1)
    except OSError as error:
        code = 1
        complain(
            f"The operating system refused an operation ({error}).",
            "check that standard output can be written to, and that files and folders exist.",
        )
        discard(1)
    try:
        sys.stderr.flush()
    except OSError:
        # Python would replace the exit code by 120.
        discard(2)
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
    # Bytes that are not UTF-8 arrive as lone surrogates, which neither SQLite nor JSON accepts.
    if odd := [each for each in arguments if not each.isascii() and _has_surrogates(each)]:
        raise SettingsError(
            f"An argument contains bytes that are not UTF-8 ({odd[0]}).",
            "write it in UTF-8; rename a file whose name is not UTF-8.",
        )
    if arguments in (["healthcheck"], ["healthcheck", "--ready"]):
        # Importing the other commands takes most of a second.
        sys.exit(healthcheck.report(is_ready="--ready" in arguments))
    # Imported here so that main handles their errors: they import projections, which may be wrong.
    for name in COMMANDS:
        import_module(f"{__name__}.{name}")
    _collect_rarely()
    _silence_libraries()
    import_module(f"{__name__}.app").app()


def _has_surrogates(argument: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in argument)


def _collect_rarely() -> None:
    # Reference counting frees the messages. Searching them and all imported modules for cycles took
    # a tenth of the worker's time.
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _silence_libraries() -> None:
    # They log a lost connection with a traceback; the same error also arrives as an exception.
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
