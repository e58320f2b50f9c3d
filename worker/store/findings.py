"""What an examination finds in a database: a verdict for each subject, and how to correct it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from worker.errors import WorkerError
from worker.store.database import Database

Content = Callable[[Database], Awaitable[str | None]]
"""Returns why the rows must be rebuilt; None if not. Raises for what a start would refuse."""

DATABASE = "database"
"""The subject that stands for what is in the database."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one subject."""

    verdict: str
    """ok, warn or FAIL."""
    subject: str
    found: str
    fix: str | None = None


def failure(subject: str, error: WorkerError) -> Finding:
    """Return what an error says about a subject."""
    return Finding("FAIL", subject, error.message, error.hint)


async def finding(subject: str, look: Awaitable[Finding]) -> Finding:
    """Return what a look finds; if it raises, the error is what was found."""
    try:
        return await look
    except WorkerError as error:
        return failure(subject, error)


def missing(shown: str) -> Finding:
    """Return the finding for a database that no worker has made yet."""
    fix = "start the worker, which creates it."
    return Finding("warn", DATABASE, f"{shown} does not exist yet.", fix)


def older_schema(shown: str, version: int) -> Finding:
    """Return the finding for a database whose own tables are of an older release."""
    fix = "start the worker, which upgrades it."
    return Finding("warn", DATABASE, f"{shown} has an older schema ({version}).", fix)


def to_be_rebuilt(shown: str, reason: str) -> Finding:
    """Return the finding for a database whose rows other versions of the projections have made."""
    fix = "start the worker, which rebuilds it first."
    return Finding("warn", DATABASE, f"{shown} must be rebuilt: {reason}.", fix)
