"""How the worker's log lines look: JSON for machines, colours for people, never a password.

Called "logs" because the log is the table of messages.
"""

import json
import logging
import os
import stat
import sys
from io import TextIOBase
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor


class Lines(TextIOBase):
    """Standard output for log lines, which never holds the worker up and never ends it.

    A pipe whose reader stands still would block the event loop, and with it the heartbeats; a log
    file on a full disk would end the process. Lines that cannot be written are dropped, and their
    number is the next line that can be.
    """

    def __init__(self, descriptor: int) -> None:
        """Write to a descriptor; one of a pipe does not block any more."""
        super().__init__()
        self._descriptor = descriptor
        self._dropped = 0
        # A terminal or a file may be shared with programs that do not expect it.
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.set_blocking(descriptor, False)

    def write(self, line: str) -> int:
        """Write a line whole, or drop it."""
        rest = line.encode(errors="backslashreplace")
        if self._dropped:
            rest = self._account() + rest
        try:
            while rest:
                # Whole or not at all for a pipe, up to 4,096 bytes (pipe(7)); few lines are longer.
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            self._dropped += 1
        else:
            self._dropped = 0
        return len(line)

    def _account(self) -> bytes:
        account = {"event": "log_lines_dropped", "level": "warning", "lines": self._dropped}
        return json.dumps(account).encode() + b"\n"


def configure(log_format: str, level: str) -> None:
    """Send all log lines to standard output, from `level` on.

    `log_format` is json, console, or auto: console where standard output is a terminal.
    """
    for_people = log_format == "console" or (log_format == "auto" and sys.stdout.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _lead,
    ]
    # Locals in tracebacks could hold a password.
    renderers: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if for_people
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    lines = cast("TextIO", Lines(sys.stdout.fileno()))
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(lines),
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # What these libraries have to say arrives as exceptions, and is reported once, as a change of
    # state; at DEBUG they would print whole frames, new secrets among them.
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _lead(logger: object, method: str, fields: EventDict) -> EventDict:
    """Put first what a person looks for first."""
    leading = {name: fields.pop(name) for name in ("at", "level", "event")}
    return {**leading, **fields}


def get_logger() -> FilteringBoundLogger:
    """Give the logger of the worker."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger
