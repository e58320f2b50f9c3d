"""How the worker's log lines look: JSON for machines, colours for people, never a password.

Called "logs" because the log is the table of messages.
"""

import logging
import sys

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor


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
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    handler = logging.StreamHandler(sys.stdout)
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
