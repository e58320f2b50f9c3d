"""Whether a server, and the worker's rights there, are as the worker needs them."""

from collections.abc import Awaitable

import asyncpg

from worker.errors import WorkerError
from worker.plurals import counted
from worker.store.findings import (
    DATABASE,
    Content,
    Finding,
    failure,
    finding,
    missing,
    older_schema,
    to_be_rebuilt,
)
from worker.store.postgres.address import Address
from worker.store.postgres.checks import require_durable, require_readable, server_of
from worker.store.postgres.connection import PrimaryReader
from worker.store.postgres.faults import fault, incomplete
from worker.store.postgres.migrations import SCHEMA_VERSION, is_ours, schema_version
from worker.store.postgres.rights import missing_rights
from worker.store.postgres.session import Session, connect
from worker.store.statements import Row

NAME = "projection-worker check"
# Each worker has a connection, and a second one while it rebuilds; a rolling deployment starts the
# new workers before the old ones have ended.
FEW_CONNECTIONS = 5

# Without pg_read_all_stats, a role does not see which of them are synchronous.
STANDBYS = """
    SELECT standby.application_name FROM pg_stat_replication AS standby
    JOIN pg_stat_activity USING (pid) WHERE datid IS NULL ORDER BY 1
"""
COMMITS = """
    SELECT current_setting('synchronous_standby_names') AS names,
        current_setting('synchronous_commit') AS waits
"""
CONNECTIONS = """
    SELECT current_setting('max_connections')::int
            - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true), '0')::int
            - (SELECT sum(numbackends) FROM pg_stat_database)::int AS of_server,
        (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
            AS most_of_database,
        (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS on_database,
        (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS most_of_role,
        (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user) AS of_role
"""


async def examine(address: Address, content: Content) -> list[Finding]:
    """Return what is found, and change nothing."""
    try:
        session = await connect(address, NAME)
    except WorkerError as error:
        return [failure(DATABASE, error)]
    examination = _Examination(session, address)
    looks: dict[str, Awaitable[Finding]] = {
        DATABASE: examination.content(content),
        "server": examination.server(),
        "durability": examination.durability(),
        "rights": examination.rights(),
        "tls": examination.tls(),
        "replication": examination.replication(),
        "connections": examination.connections(),
    }
    try:
        return [await finding(subject, examination.asked(look)) for subject, look in looks.items()]
    finally:
        session.abort()


class _Examination:
    """The looks at one server, on one connection."""

    def __init__(self, session: Session, address: Address) -> None:
        self._session = session
        self._address = address
        self._named = address.named

    async def asked(self, look: Awaitable[Finding]) -> Finding:
        """Return what a look finds; raises the worker's errors for the driver's."""
        try:
            return await look
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise fault(error, self._named) or incomplete(self._named, error) from error

    async def content(self, content: Content) -> Finding:
        if not await is_ours(self._session, self._address):
            return missing(self._named)
        if (version := await schema_version(self._session)) < SCHEMA_VERSION:
            return older_schema(self._named, version)
        async with PrimaryReader(self._address) as reader:
            reason = await content(reader)
        if reason:
            return to_be_rebuilt(self._named, reason)
        return Finding("ok", DATABASE, self._named)

    async def server(self) -> Finding:
        server = await server_of(self._session)
        require_readable(server, self._named)
        found = f"PostgreSQL {server['version'].split()[0]}, encoding {server['encoding']}"
        return Finding("ok", "server", found)

    async def durability(self) -> Finding:
        server = await server_of(self._session)
        require_durable(server, self._named)
        if server["full_page_writes"] == "off":
            found = "full_page_writes is off, so a power cut can damage tables beyond repair."
            fix = "set full_page_writes to on, unless the file system never writes half a page."
            return Finding("warn", "durability", found, fix)
        waits = server["synchronous_commit"]
        return Finding("ok", "durability", f"fsync is on, synchronous_commit is {waits}")

    async def rights(self) -> Finding:
        if lacking := await missing_rights(self._session, self._address):
            found = f"The role {self._session.user!r} lacks {', '.join(lacking)}."
            fix = f"let an administrator run in this database: {' '.join(lacking.values())}"
            return Finding("FAIL", "rights", found, fix)
        schemas = f"{self._address.schema} and {self._address.rebuild_schema}"
        found = f"role {self._session.user} may make and replace all tables in {schemas}"
        return Finding("ok", "rights", found)

    async def tls(self) -> Finding:
        version, is_verified = self._session.tls_version, self._address.tls() is not None
        if version and is_verified:
            return Finding("ok", "tls", f"{version}, and the server's certificate is verified")
        if not self._address.leaves_machine:
            return Finding("ok", "tls", f"{version or 'not used'}; the server is on this machine")
        fix = "set WORKER_DATABASE_ALLOW_PLAIN_TEXT to false, and WORKER_DATABASE_CA_FILE for your "
        fix += "own authority."
        if version:
            found = f"{version}, but anybody in between could pretend to be the server."
        else:
            found = "Not used: the password's proof and all messages go unencrypted."
        return Finding("warn", "tls", found, fix)

    async def replication(self) -> Finding:
        (commits,) = await self._session.ask(COMMITS)
        standbys = [str(name) for (name,) in await self._session.ask(STANDBYS)]
        return _replication(commits["names"], commits["waits"], standbys)

    async def connections(self) -> Finding:
        (found,) = await self._session.ask(CONNECTIONS)
        left = _connections_left(found)
        text = f"{counted(left, 'connection')} left; a worker has one, and two while it rebuilds"
        if left < FEW_CONNECTIONS:
            fix = "raise max_connections, or the limit of this role or database, before you start "
            fix += "more workers."
            return Finding("warn", "connections", f"{text}.", fix)
        return Finding("ok", "connections", text)


def _replication(names: str, waits: str, standbys: list[str]) -> Finding:
    following = f"{counted(len(standbys), 'standby')} ({', '.join(standbys)})"
    lost = "if one is promoted, it lacks commits whose messages are acked"
    if not names and not standbys:
        return Finding("ok", "replication", "no standby follows")
    if not names:
        found = f"No commit waits for a standby, and of {following} {lost}."
        return Finding("warn", "replication", found, "set synchronous_standby_names on the server.")
    if waits == "local":
        found = f"synchronous_commit is local, so no commit waits for '{names}': {lost}."
        fix = "set synchronous_commit to on for the server, or for this role and database."
        return Finding("warn", "replication", found, fix)
    if not standbys:
        found = f"Commits wait for '{names}' (synchronous_standby_names), and no standby follows."
        fix = "start the standby; until then the worker holds its messages."
        return Finding("warn", "replication", found, fix)
    found = f"commits wait for '{names}' (synchronous_standby_names); {following} follow"
    return Finding("ok", "replication", found)


def _connections_left(found: Row) -> int:
    left: list[int] = [found["of_server"]]
    for most, used in (("most_of_database", "on_database"), ("most_of_role", "of_role")):
        if found[most] >= 0:
            left.append(found[most] - found[used])
    return max(0, min(left))
