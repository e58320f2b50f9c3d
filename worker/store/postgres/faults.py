"""What an error of PostgreSQL or of its driver blames: a statement, the moment, or the database."""

import ssl

import asyncpg

from worker.errors import StoreConflict, StoreUnavailable, StoreUnusable
from worker.store.failures import StoreFault

# A statement takes milliseconds, and waits for a lock for three seconds at most. One that takes
# longer waits for a server that is frozen, or for its disk.
STATEMENT_SECONDS = 15
UNIQUE_VIOLATION = "23505"
# The codes and classes of codes (postgresql.org/docs/current/errcodes-appendix.html) that are about
# the server, the network or another session, not about the statement; what to do about each.
_MOMENT = {
    "08": "find out whether the server runs and can be reached.",
    "25006": "the server takes no writes: a failover may be under way. With several hosts in "
    "WORKER_DATABASE, the worker finds the new primary. Or the role only reads "
    "(default_transaction_read_only).",
    "25P03": "the worker was stopped, or too slow, in the middle of a transaction; give it more of "
    "a processor if it happens again.",
    "25P04": "the worker was stopped while it sent statements, or its transaction took longer than "
    "transaction_timeout; give it more of a processor if it happens again.",
    "40001": "it met another transaction, and runs again.",
    "40P01": "it met another transaction, and runs again.",
    "53": "find out what the server lacks.",
    "53100": "free space on the server's disk.",
    "53200": "give the server more memory, or set WORKER_BATCH_SIZE lower.",
    "53300": "let the server accept more connections (max_connections), or run fewer workers.",
    "55P03": "another session holds a lock for long: a rebuild, a worker that is stopped, or a "
    "person; pg_stat_activity and pg_locks show which.",
    "57014": "somebody, or a statement_timeout, has cancelled the statement.",
    "57P": "the server stops or starts; the worker connects again.",
    "58": "look at the server's log: its disk or its system may be failing.",
}
# The driver finds a connection closed that was open when the transaction began, and has no code.
_FOUND_CLOSED = (
    f"the server or the network has ended the connection between two statements. If the server "
    f"runs, its log says why; after 25P03, {_MOMENT['25P03']}"
)
_CONFLICTS = frozenset({"40001", "40P01"})
_DAMAGE = frozenset({"XX001", "XX002"})
DIRECTLY = (
    "let WORKER_DATABASE lead to the server itself, not to a pooler such as pgbouncer: each worker "
    "needs one connection, and needs all of it."
)
# While a connection is opened: waiting does not cure a wrong password or a database that is not
# there. It may do so later, while the server is restored or its passwords are renewed.
_REFUSED = {
    # What a pooler answers to a parameter that it does not know.
    "08P01": DIRECTLY,
    "28": "check the user and the password in WORKER_DATABASE, and the server's pg_hba.conf.",
    "3D000": "create the database, or correct its name in WORKER_DATABASE.",
    "42501": "let the role connect to the database (GRANT CONNECT).",
}
# What a query asks for may be missing, or hidden from the role.
_LACKING = {
    "42501": "let the worker's role own its tables, and let a reader's role read them "
    "(docs/operate.md, 'A role that only reads').",
    "42P01": "start the worker once, which creates the tables; let a reader's role use the schema "
    "(GRANT USAGE). If the worker has already run, restore a backup.",
    "3F000": "set WORKER_DATABASE_SCHEMA to the schema of the worker.",
}
UNTRUSTED = (
    "set WORKER_DATABASE_CA_FILE to the certificate of the authority that signed the server's, and "
    "name the server in WORKER_DATABASE as its certificate does."
)


def code_of(error: BaseException) -> str:
    """Return the SQLSTATE that the server has sent; empty for an error of this side."""
    return getattr(error, "sqlstate", None) or ""


def fault(error: BaseException, named: str) -> StoreFault | None:
    """Return the error to raise if the moment or the database is at fault; None otherwise."""
    code = code_of(error)
    if code in _DAMAGE:
        return StoreUnusable(
            f"The database is damaged ({named}, {code}: {_text(error)}).",
            "look at the server's log, and restore a backup or fail over to a standby.",
        )
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return unavailable(named, error, "a table was changed; the worker looks at it again.")
    if isinstance(error, asyncpg.PostgresError):
        hint = _for(code, _MOMENT)
        return None if hint is None else unavailable(named, error, hint)
    if isinstance(error, asyncpg.InterfaceError):
        # Of its kinds, only that of a lost connection is not about the statement.
        return unavailable(named, error, _FOUND_CLOSED) if "closed" in str(error) else None
    if isinstance(error, TimeoutError) and error.errno is None:
        # The driver's, not the kernel's.
        return StoreUnavailable(
            f"A statement took more than {STATEMENT_SECONDS} seconds ({named}, TimeoutError).",
            "find out whether the server is frozen, overloaded, or waits for its disk.",
        )
    if isinstance(error, OSError | asyncpg.InternalClientError):
        return unavailable(named, error, _MOMENT["08"])
    return None


def opening_failed(error: BaseException, named: str, *, is_first: bool) -> StoreFault | None:
    """Return the error for a connection that could not be opened; None for a bug."""
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return StoreUnavailable(
            f"The server takes no writes: it is a standby, or read-only ({named}).",
            _MOMENT["25006"],
        )
    hint = UNTRUSTED if isinstance(error, ssl.SSLError) else _for(code_of(error), _REFUSED)
    if hint is not None and is_first:
        return StoreUnusable(f"The database cannot be opened ({named}: {_text(error)}).", hint)
    if isinstance(error, asyncpg.ClientConfigurationError):
        return StoreUnusable(
            f"WORKER_DATABASE is not the address of a database ({named}: {_text(error)}).",
            "write it as postgresql://user:password@host:5432/name.",
        )
    is_timeout = isinstance(error, TimeoutError)
    if hint is None and not is_timeout and (found := fault(error, named)):
        return found
    if isinstance(error, OSError | asyncpg.PostgresError | asyncpg.InterfaceError):
        return unavailable(named, error, hint or _MOMENT["08"])
    return None


def unavailable(named: str, error: BaseException, hint: str) -> StoreUnavailable:
    """Return the error for a database that cannot be used now."""
    kind = StoreConflict if code_of(error) in _CONFLICTS else StoreUnavailable
    code = code_of(error) or type(error).__name__
    return kind(f"The database cannot be used now ({named}, {code}: {_text(error)}).", hint)


def incomplete(named: str, error: BaseException) -> StoreUnusable:
    """Return the error for a database that lacks, or denies, what a query asks for."""
    code = code_of(error)
    return StoreUnusable(
        f"The database does not answer a query ({named}, {code}: {_text(error)}).",
        _for(code, _LACKING) or "correct the query, and the number and types of its parameters.",
    )


def _for(code: str, hints: dict[str, str]) -> str | None:
    """Return the hint for a code, or for the longest beginning of it."""
    return next((hints[code[:n]] for n in range(len(code), 1, -1) if code[:n] in hints), None)


def _text(error: BaseException) -> str:
    """Return the error's text on one line, without the driver's own advice."""
    return " ".join(str(getattr(error, "message", None) or error or type(error).__name__).split())
