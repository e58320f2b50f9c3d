"""A connection to the server: how it is opened, and the statements that it has prepared."""

import socket
from collections.abc import Sequence
from typing import Any

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from worker.errors import StoreUnusable
from worker.store.failures import StoreFault
from worker.store.postgres.address import Address
from worker.store.postgres.dialect import Translated, translated
from worker.store.postgres.faults import DIRECTLY, STATEMENT_SECONDS, opening_failed
from worker.store.statements import Parameters, Row, Value
from worker.store.tables import quoted

OPEN_SECONDS = 10
GOODBYE_SECONDS = 1
# There are few texts; a handler that makes a new one for each message must not fill the memory.
MOST_PREPARED = 500
# The kernel gives up a silent connection after some ten seconds.
SILENT_SECONDS = 10
PROBES = {"TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}

SETTINGS = {
    "default_transaction_isolation": "read committed",
    # Whoever waits for a worker that has been stopped waits until its session is ended.
    "lock_timeout": "3s",
    "idle_in_transaction_session_timeout": "2s",
    # The statements are short, and compiling them takes longer than running them.
    "jit": "off",
    # Planning takes a third of the time of a short statement, and the values never matter: rows are
    # found by key. A plan is made while a table is still empty, so it must not scan.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
}
# To the server, a worker that is frozen while it sends statements is not idle, but active. Servers
# before 17 have no limit for that. A fold of millions of messages fits.
TRANSACTION_TIMEOUT = "5min"
BEGINNING = """
    SELECT current_setting('search_path'),
        (SELECT set_config(name, $1, FALSE) FROM pg_settings WHERE name = 'transaction_timeout')
"""
WHOLE = frozenset({"int2", "int4", "int8"})
# Nobody waits for a long transaction, until it locks others out.
LONG = {"idle_in_transaction_session_timeout": "5min", "statement_timeout": "0"}


class _Connection(asyncpg.Connection):
    """A connection that the kernel ends if the other side falls silent."""

    # The driver's own classes have slots, and so no room for more.
    __slots__ = ()

    def __init__(self, protocol: Any, transport: Any, *rest: Any) -> None:  # noqa: ANN401 - as there
        """Begin, as the driver does."""
        super().__init__(protocol, transport, *rest)
        _end_silence(transport.get_extra_info("socket"))

    @property
    def tls_version(self) -> str | None:
        """The version of TLS that protects the connection; None if nothing does."""
        tls = self._transport.get_extra_info("ssl_object")  # type: ignore[attr-defined]  # untyped
        return None if tls is None else str(tls.version())


class Session:
    """One connection, which one task uses."""

    def __init__(self, connection: _Connection) -> None:
        """Use a connection that is open."""
        self._connection = connection
        self._prepared: dict[str, asyncpg.prepared_stmt.PreparedStatement] = {}

    @property
    def user(self) -> str:
        """The role that it has logged in as."""
        return str(self._connection.get_settings().session_authorization)

    @property
    def tls_version(self) -> str | None:
        """The version of TLS that protects the connection; None if nothing does."""
        return self._connection.tls_version

    @property
    def is_open(self) -> bool:
        """Whether nothing has ended it, as far as this side knows."""
        return not self._connection.is_closed()

    async def run(self, sql: str) -> str:
        """Run statements without parameters, and return what the server calls the last one."""
        return await self._connection.execute(sql)

    async def ask(self, sql: str, *parameters: object) -> list[Row]:
        """Return all rows of a statement that is not asked again, as PostgreSQL writes it."""
        return list(await self._connection.fetch(sql, *parameters))

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return all rows of a statement, whose parameters are written as SQLite's."""
        statement = translated(sql)
        prepared = await self.prepared(statement.sql)
        return list(await prepared.fetch(*_bound(prepared, statement, parameters)))

    async def run_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        """Run a statement once for each of these rows of parameters, in one round trip."""
        statement = translated(sql)
        prepared = await self.prepared(statement.sql)
        await prepared.executemany([_bound(prepared, statement, row) for row in rows])

    async def prepared(self, sql: str) -> asyncpg.prepared_stmt.PreparedStatement:
        """Return the prepared statement of a text; it is prepared once."""
        if (found := self._prepared.get(sql)) is None:
            if len(self._prepared) >= MOST_PREPARED:
                # The driver lets the server forget them.
                self._prepared.clear()
            found = self._prepared[sql] = await self._connection.prepare(sql)
        return found

    async def close(self) -> None:
        """Say goodbye to the server, if it listens."""
        try:
            await self._connection.close(timeout=GOODBYE_SECONDS)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.abort()

    def abort(self) -> None:
        """Close without a word; waits for nothing, and the server rolls back."""
        self._connection.terminate()


def _bound(
    prepared: asyncpg.prepared_stmt.PreparedStatement, statement: Translated, row: Parameters
) -> Sequence[Value]:
    """Return the parameters of a statement in order; raises `TypeError` for those it cannot take.

    The driver would cut off the fraction of a number where the server expects a whole one.
    """
    values = statement.bound(row)
    if float in map(type, values):
        for place, (value, kind) in enumerate(zip(values, prepared.get_parameters(), strict=False)):
            if isinstance(value, float) and kind.name in WHOLE and not value.is_integer():
                raise TypeError(
                    f"PostgreSQL takes parameter {place + 1} for a whole number, not {value}: "
                    "write CAST(? AS DOUBLE PRECISION), or give its column that type"
                )
    return values


async def connect(
    address: Address,
    name: str,
    *,
    search: Sequence[str] = (),
    is_long: bool = False,
    is_first: bool = True,
    writes: bool = True,
) -> Session:
    """Open a connection whose statements find their tables in these schemas, or in the address's.

    `name` is what the server shows beside the connection. A long one is for a transaction that may
    take hours, as may each of its statements. Raises `StoreUnavailable` if trying again
    may help, and `StoreUnusable` if the server refuses for good; it does so only for the first
    connection of a process.
    """
    path = ", ".join(map(quoted, search or (address.schema,)))
    url = address.current_url
    try:
        connection = await asyncpg.connect(
            url,
            timeout=OPEN_SECONDS,
            command_timeout=None if is_long else STATEMENT_SECONDS,
            connection_class=_Connection,
            ssl=address.tls(),
            target_session_attrs=SessionAttribute.read_write if writes else None,
            server_settings={
                **SETTINGS,
                "search_path": path,
                "application_name": name,
                **(LONG if is_long else {}),
            },
        )
        found = await connection.fetchval(BEGINNING, "0" if is_long else TRANSACTION_TIMEOUT)
    except Exception as error:
        raise _failed(error, address, is_first=is_first) from error
    if found != path:
        connection.terminate()
        raise StoreUnusable(
            "Something between the worker and the server drops the parameters with which a "
            f"connection starts ({address.named}).",
            DIRECTLY,
        )
    return Session(connection)


def _failed(error: Exception, address: Address, *, is_first: bool) -> StoreFault | Exception:
    if isinstance(error, ValueError) and not isinstance(error, asyncpg.InterfaceError | OSError):
        # What the driver makes of a malformed address.
        error = asyncpg.ClientConfigurationError(str(error))
    return opening_failed(error, address.named, is_first=is_first) or error


def _end_silence(connected: socket.socket | None) -> None:
    """Let the kernel end a connection whose other side acknowledges nothing."""
    if connected is None or connected.family == socket.AF_UNIX:
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {**PROBES, "TCP_USER_TIMEOUT": SILENT_SECONDS * 1_000}
    for option, value in options.items():
        # Not every system has all of them.
        if number := getattr(socket, option, None):
            connected.setsockopt(socket.IPPROTO_TCP, number, value)
