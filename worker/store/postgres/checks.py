"""Checks that a server keeps what it has confirmed, each time a connection is opened."""

from worker.errors import StoreUnavailable, StoreUnusable
from worker.store.postgres.session import Session

# Older ones get no fixes any more, and no test runs on them.
OLDEST = 15
SERVER = """
    SELECT current_setting('server_version_num')::int / 10000 AS version,
        current_setting('server_encoding') AS encoding,
        current_setting('fsync') AS fsync,
        current_setting('synchronous_commit') AS synchronous_commit,
        pg_is_in_recovery() AS in_recovery
"""


async def require_server(session: Session, named: str, *, writes: bool) -> None:
    """Raise `StoreUnusable` for a server on which messages could be lost or changed.

    Raises `StoreUnavailable` for a standby, if the worker wants to write: it may be promoted.
    """
    (server,) = await session.ask(SERVER)
    if server["version"] < OLDEST:
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
    if writes:
        _require_durable(server["fsync"], server["synchronous_commit"], named)
    if writes and server["in_recovery"]:
        raise StoreUnavailable(
            f"The server takes no writes: it is a standby ({named}).",
            "a failover may be under way. Name all hosts in WORKER_DATABASE, and the worker finds "
            "the primary.",
        )


def _require_durable(fsync: str, synchronous_commit: str, named: str) -> None:
    for setting, value in (("fsync", fsync), ("synchronous_commit", synchronous_commit)):
        if value == "off":
            raise StoreUnusable(
                f"The server may lose what it has confirmed ({named}: {setting} is off).",
                f"set {setting} to on for the server, or for this role and database.",
            )
