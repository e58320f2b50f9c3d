"""Errors that an operator sees: what happened, to which file or entity, and what to do about it.

A fault of one message is never an exception here; it is a `Rejected` value (`deliveries.py`).
Anything else is a bug and shows its traceback.
"""


def described(error: BaseException) -> str:
    """Return the type and text of an error of other people's code, whatever its `__str__` does."""
    try:
        text = str(error)
    except MemoryError:
        raise
    except BaseException as failed:  # noqa: BLE001 - also SystemExit and the like
        text = f"(its text cannot be read: {type(failed).__name__})"
    return f"{type(error).__name__}: {text}"


class WorkerError(Exception):
    """Something went wrong; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        """Keep the two sentences separate, so that tables and log lines can show them so."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return both sentences, as the log, `check` and the CLI print them."""
        return f"{self.message} Hint: {self.hint}"


class RegistrationError(WorkerError):
    """A handler or projection cannot be registered; raised while its module is imported."""


class MustHold(WorkerError):
    """The batch cannot be settled now; the worker holds it until it can."""


class StoreUnavailable(MustHold):
    """The database cannot commit now: locked, full or failing. No message is at fault."""


class StoreConflict(StoreUnavailable):
    """The transaction met another one, and the database ended it; the next try may succeed."""


class BreakerOpen(MustHold):
    """Every message of a kind fails (breaker.py)."""


class StoreUnusable(WorkerError):
    """This worker cannot use the database at all, and waiting will not change that."""


class NotYet(WorkerError):
    """What a read was asked to contain is not in the log yet."""

    def __init__(self, message: str, hint: str, missing: tuple[tuple[str, str], ...]) -> None:
        """Name the missing messages, each by the id of its event and its own."""
        super().__init__(message, hint)
        self.missing = missing


class WriterLocked(WorkerError):
    """Another process writes this database."""


class BrokerRefused(WorkerError):
    """The broker answers with a refusal: credentials, permissions, or an entity that differs."""


class SessionLost(WorkerError):
    """The session with the broker has ended; its deliveries went back to the queue."""


class HealthUnavailable(WorkerError):
    """The worker cannot serve its health, or no worker serves it."""
