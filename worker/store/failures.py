"""What went wrong in one transaction, and whose fault it is: a handler's, the log's or the store's.

The register decides what may continue. After a handler's failure the other streams do, so that one
pass finds all failures; after any other failure, nothing does. Either way nothing is committed.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from worker.errors import StoreUnavailable, StoreUnusable, described

StoreFault = StoreUnavailable | StoreUnusable


class Author(NamedTuple):
    """On whose behalf a statement is run.

    It names the message instead of holding it, so that a message can be freed before its
    statements have run.
    """

    event_id: str
    message_id: str | None = None
    """None where the rows of the event are replaced."""
    kind: str = ""

    def __str__(self) -> str:
        """Return what an error calls it."""
        return (
            f"the handler of {self.kind!r}, message {self.message_id!r} of event {self.event_id!r}"
        )


# One for each message: a plain tuple is made in a tenth of the time.
PlainAuthor = tuple[str, str | None, str]
"""The fields of an `Author`."""


class Failure(NamedTuple):
    """The author of what failed, and the error."""

    author: Author
    error: BaseException

    def __str__(self) -> str:
        """Return the error's type and text, for people."""
        return described(self.error)


Failures = dict[str, Failure]
"""Stream -> what failed first in it."""


def note(failures: Failures, author: PlainAuthor, error: BaseException) -> None:
    """Note a failure, unless the stream has one already."""
    author = Author(*author)
    failures.setdefault(author.event_id, Failure(author, error))


class HandlersFailed(Exception):
    """Handlers failed, or statements of theirs: the streams of `failures`, and no others."""

    def __init__(self, failures: Mapping[str, Failure]) -> None:
        """Report the first failure."""
        super().__init__(next(map(str, failures.values())))
        self.failures = failures


class Refused(Exception):
    """A statement of the store itself failed: the log's key has refused a message that is known."""


class Register(ABC):
    """What went wrong in one transaction."""

    def __init__(self, named: str) -> None:
        """Begin without failures, for a transaction in the database that errors name so."""
        self._named = named
        self.store_fault: StoreFault | None = None
        """Set once the moment or the file is at fault, and no message."""
        self.casts_doubt = False
        """Whether the database must be opened again before anything is believed."""
        self.of_handlers: Failures = {}
        self._refused: Refused | None = None

    def forget(self) -> None:
        """Forget what the rollback of a savepoint undoes: all failures but a store fault."""
        self.of_handlers = {}
        self._refused = None

    def require_no_store_fault(self) -> None:
        """Raise the store fault, if there is one, even if a handler has caught it."""
        if self.store_fault is not None:
            raise self.store_fault from self.store_fault.__cause__

    def require_none_for(self, author: PlainAuthor | None) -> None:
        """Raise the failure that stops this author; None stands for the store itself."""
        self.require_no_store_fault()
        if self._refused is not None:
            raise self._refused
        if author is not None and (failure := self.of_handlers.get(author[0])):
            raise failure.error

    def require_no_failure(self) -> None:
        """Raise `HandlersFailed` if any handler has failed."""
        if self.of_handlers:
            raise HandlersFailed(self.of_handlers)

    def of_statement(self, error: Exception, author: PlainAuthor | None) -> Exception:
        """Note the error of a statement, and return the one to raise."""
        if isinstance(error, HandlersFailed):
            return error
        if isinstance(error, Refused):
            self._refused = error
            return error
        if found := self._store_fault(error):
            self.store_fault = found
            return found
        if author is not None:
            note(self.of_handlers, author, error)
        return error

    def raise_for_handler(self, error: BaseException, author: PlainAuthor) -> None:
        """Note what a handler has raised, and raise what the caller should see.

        Whatever a handler raises is its failure, `SystemExit` included. Three errors are not: a
        cancellation of the task, or a failure that has been noted already, for which this returns,
        and the lack of memory.
        """
        self.require_no_store_fault()
        if self._refused is not None:
            raise self._refused
        if isinstance(error, HandlersFailed):
            return
        if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
            return
        if isinstance(error, MemoryError):
            self.store_fault = out_of_memory(self._named, f"no memory for {Author(*author)}")
            raise self.store_fault from error
        note(self.of_handlers, author, error)
        raise HandlersFailed(self.of_handlers) from error

    @abstractmethod
    def _store_fault(self, error: Exception) -> StoreFault | None:
        """Return the error to raise if a statement's error is not the statement's fault."""


def out_of_memory(named: str, cause: str = "out of memory") -> StoreUnavailable:
    """Return the error for a statement or a handler that ran out of memory."""
    return StoreUnavailable(
        f"The database cannot be used now ({named}, {cause}).",
        "give the worker more memory, or set WORKER_BATCH_SIZE lower.",
    )


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
