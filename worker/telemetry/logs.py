"""The format of the worker's log lines: JSON for machines, colours for people, never a password.

The module is called "logs" because "the log" is the table of messages.
"""

import atexit
import json
import logging
import os
import select
import sys
from collections import deque
from io import TextIOBase
from threading import Condition, Lock, Thread
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

# A live reader reads a line within microseconds.
WRITE_SECONDS = 0.05
FINISH_SECONDS = 0.5
# The lines that wait for a stalled reader: less than a hundred kilobytes.
MAX_WAITING_LINES = 250


class Lines(TextIOBase):
    """Standard output for log lines, which never delays the worker for long and never ends it.

    A pipe, terminal or socket with a stalled reader would block the event loop, and with it the
    heartbeats; a log file on a full disk would end the process. Therefore a separate thread writes.
    `write` waits until the line is written, because it may be the last line before the process is
    killed, but it does not wait for a stalled reader. Lines that cannot be written are dropped, and
    the next line that can be written says how many.

    The descriptor stays blocking: O_NONBLOCK belongs to the open file (open(2)), so setting it
    would affect all programs that share the file, such as those of a start script.
    """

    def __init__(self, descriptor: int) -> None:
        """Write to a descriptor."""
        super().__init__()
        self._descriptor = descriptor
        # Each line with the number of lines that are lost if it is dropped.
        self._waiting: deque[tuple[bytes, int]] = deque()
        lock = Lock()
        self._arrived = Condition(lock)
        self._emptied = Condition(lock)
        self._dropped = 0
        # A daemon thread, so that the end of the process does not wait for the reader.
        Thread(target=self._write_all, name="log", daemon=True).start()

    def write(self, line: str) -> int:
        """Write a whole line, or drop it."""
        with self._arrived:
            if len(self._waiting) >= MAX_WAITING_LINES:
                self._dropped += 1
                return len(line)
            keeps_up = not self._waiting
            self._account()
            self._waiting.append((line.encode(errors="backslashreplace"), 1))
            self._arrived.notify()
            if keeps_up:
                self._emptied.wait(WRITE_SECONDS)
        return len(line)

    def finish(self) -> None:
        """Wait a moment for a slow reader; lines that are still unwritten are lost."""
        with self._emptied:
            if self._waiting:
                self._emptied.wait(FINISH_SECONDS)

    def _write_all(self) -> None:
        while True:
            with self._arrived:
                while not self._waiting:
                    self._arrived.wait()
                line, lines = self._waiting[0]
            is_written = _write(self._descriptor, line)
            with self._emptied:
                self._waiting.popleft()
                if not is_written:
                    self._dropped += lines
                elif not self._waiting:
                    self._account()
                if not self._waiting:
                    self._emptied.notify_all()

    def _account(self) -> None:
        if self._dropped:
            account = {
                "event": "log_lines_dropped",
                "level": "warning",
                "lines": self._dropped,
            }
            self._waiting.append((json.dumps(account).encode() + b"\n", self._dropped))
            self._dropped = 0


def _write(descriptor: int, rest: bytes) -> bool:
    """Write everything, however long it takes; return whether that succeeded."""
    try:
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                # Another program has made it non-blocking.
                select.select([], [descriptor], [])
    except OSError:
        return False
    return True


def configure(log_format: str, level: str) -> None:
    """Send log lines of `level` and above to standard output.

    `log_format` is json, console, or auto: console if standard output is a terminal, else json.
    """
    for_people = log_format == "console" or (log_format == "auto" and sys.stdout.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _lead,
    ]
    # Local variables in tracebacks could hold a password.
    renderers: list[Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                exception_formatter=structlog.dev.plain_traceback,
                sort_keys=False,
                timestamp_key="at",
            )
        ]
        if for_people
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    output = Lines(sys.stdout.fileno())
    atexit.register(output.finish)
    lines = cast("TextIO", output)
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


def _lead(logger: object, method: str, fields: EventDict) -> EventDict:
    """Put the fields first that a person looks for first."""
    leading = {name: fields.pop(name) for name in ("at", "level", "event")}
    return {**leading, **fields}


def get_logger() -> FilteringBoundLogger:
    """Return the worker's logger."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger
