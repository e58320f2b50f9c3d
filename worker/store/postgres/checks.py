"""Checks that a server keeps what it has confirmed, each time a connection is opened."""

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.postgres.session import Session
from worker.store.statements import Row

# The tests pass on 15 and on 18. The last fixes of 14 came in November 2026.
OLDEST = 15
SERVER = """
    SELECT current_setting('server_version') AS version,
        current_setting('server_version_num')::int / 10000 AS major,
        current_setting('server_encoding') AS encoding,
        current_setting('fsync') AS fsync,
        current_setting('full_page_writes') AS full_page_writes,
        current_setting('synchronous_commit') AS synchronous_commit,
        pg_is_in_recovery() AS in_recovery
"""


async def server_of(session: Session) -> Row:
    """Return what the server says about itself."""
    (server,) = await session.ask(SERVER)
    return server


async def require_server(session: Session, named: str, *, writes: bool) -> None:
    """Raise `StoreUnusable` for a server on which messages could be lost or changed.

    Raises `StoreUnavailable` for a standby, if the worker wants to write: it may be promoted.
    """
    server = await server_of(session)
    require_readable(server, named)
    if writes:
        require_durable(server, named)
    if writes and server["in_recovery"]:
        raise StoreUnavailable(
            f"The server takes no writes: it is a standby ({named}).",
            "a failover may be under way. Name all hosts in WORKER_DATABASE, and the worker finds "
            "the primary.",
        )


def require_readable(server: Row, named: str) -> None:
    """Raise `StoreUnusable` for a server that is too old, or cannot hold every text."""
    if server["major"] < OLDEST:
        raise StoreUnusable(
            f"The server is too old ({named}: PostgreSQL {server['version']}).",
            f"upgrade it to PostgreSQL {OLDEST} or newer.",
        )
    if server["encoding"] != "UTF8":
        raise StoreUnusable(
            f"The database cannot hold every message ({named}: its encoding is "
            f"{server['encoding']}).",
            "create a database with ENCODING 'UTF8'.",
        )


def require_durable(server: Row, named: str) -> None:
    """Raise `StoreUnusable` for a server that may lose what it has confirmed."""
    for setting in ("fsync", "synchronous_commit"):
        if server[setting] == "off":
            raise StoreUnusable(
                f"The server may lose what it has confirmed ({named}: {setting} is off).",
                f"set {setting} to on for the server, or for this role and database.",
            )
