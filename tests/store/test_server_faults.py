"""What becomes of a batch when the server, the network or another session is in the way."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from tests.builders import completed, message, planned, started
from tests.oracle import expected_rows
from tests.places import change, rows
from tests.postgres import PostgresDatabase, PostgresNode
from tests.unit.projecting import (
    EVENTS,
    LOG,
    arrivals,
    projecting,
    projecting_with,
    shipped,
    verdicts,
)
from worker.errors import StoreConflict, StoreUnavailable, StoreUnusable
from worker.messages import Message, Payload
from worker.projector import Projector
from worker.registry import Registry
from worker.store.postgres import session as module
from worker.store.postgres.address import Address
from worker.store.postgres.faults import fault, opening_failed
from worker.store.postgres.session import Session, connect
from worker.store.postgres.store import Writer
from worker.store.transaction import Transaction

MOMENT = {
    "08006": "can be reached",
    "25006": "failover",
    "25P03": "too slow",
    "25P04": "transaction_timeout",
    "53100": "free space",
    "53200": "more memory",
    "53300": "max_connections",
    "53400": "what the server lacks",
    "55P03": "holds a lock",
    "57014": "cancelled",
    "57P01": "stops or starts",
    "57P03": "stops or starts",
    "58030": "server's log",
}
"""Codes that blame the moment, and a part of what the error advises."""
LOST = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
"""What the driver raises for a session that the server has ended, now or a moment ago."""
WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database()
"""
SEEN = "CREATE TABLE seen (event_id TEXT PRIMARY KEY)"
STATEMENT = ["22001", "22003", "22P02", "23502", "23505", "23514", "42601", "42703", "42P01",
             "54000", "0A000", "P0001", "XX000"]  # fmt: skip


def error_of(code: str) -> asyncpg.PostgresError:
    """Return the error that the driver makes of a code."""
    return asyncpg.PostgresError.new({"C": code, "M": "no", "S": "ERROR"})


@pytest.fixture
async def writer(schema: Address) -> AsyncIterator[Writer]:
    writer = Writer(schema)
    async with projecting_with(writer):
        yield writer


@pytest.fixture
def projector(writer: Writer) -> Projector:
    return Projector(shipped(), writer)


@asynccontextmanager
async def locking(address: Address, event_id: str) -> AsyncIterator[Session]:
    """Lend a session, such as a worker's, that has locked a stream and does nothing more."""
    session = await connect(address, "projection-worker frozen")
    try:
        await session.run("BEGIN")
        await session.fetch("SELECT 1 FROM streams WHERE event_id = ? FOR UPDATE", (event_id,))
        yield session
    finally:
        session.abort()


def begin_to_send(session: Session) -> None:
    """Send the first part of what makes a statement run, as if frozen before the rest."""
    parse = b"\0SELECT 1\0" + bytes(2)
    transport: Any = getattr(session._connection, "_transport")  # noqa: B009
    transport.write(b"P" + (len(parse) + 4).to_bytes(4, "big") + parse)


async def until_waiting(database: PostgresDatabase, task: asyncio.Task[object]) -> None:
    """Wait until a session of the database waits for a lock, or the task has ended."""
    while await database.query(WAITING) == [(0,)] and not task.done():
        await asyncio.wait([task], timeout=0.01)


class TestWhoIsToBlame:
    @pytest.mark.parametrize("code", MOMENT)
    def test_is_the_moment(self, code: str) -> None:
        """These codes do not concern the statement; each says what to do."""
        blamed = fault(error_of(code), "database d on h")

        assert type(blamed) is StoreUnavailable
        assert blamed.message == f"The database cannot be used now (database d on h, {code}: no)."
        assert MOMENT[code] in blamed.hint

    @pytest.mark.parametrize("code", ["40001", "40P01"])
    def test_is_another_transaction(self, code: str) -> None:
        """The same batch may succeed at once."""
        assert type(fault(error_of(code), "d")) is StoreConflict

    @pytest.mark.parametrize("code", ["XX001", "XX002"])
    def test_is_the_database(self, code: str) -> None:
        """Waiting repairs no damage."""
        blamed = fault(error_of(code), "d")

        assert isinstance(blamed, StoreUnusable)
        assert "damaged" in blamed.message

    @pytest.mark.parametrize("code", STATEMENT)
    def test_is_the_statement(self, code: str) -> None:
        """Waiting does not help with these codes."""
        assert fault(error_of(code), "d") is None

    @pytest.mark.parametrize(
        "error", [ConnectionResetError("no"), TimeoutError(), OSError("no"),
                  asyncpg.ConnectionDoesNotExistError("no"),
                  asyncpg.InterfaceError("connection is closed")],
    )  # fmt: skip
    def test_is_the_connection(self, error: Exception) -> None:
        """The driver has its own errors for a lost connection, and Python others."""
        assert isinstance(fault(error, "d"), StoreUnavailable)

    def test_of_a_connection_that_is_found_closed_may_be_the_workers(self) -> None:
        """The server's reason is in its log only, and being too slow is one."""
        blamed = fault(asyncpg.InterfaceError("connection is closed"), "d")

        assert blamed is not None
        assert "25P03" in blamed.hint
        assert MOMENT["25P03"] in blamed.hint

    def test_of_a_statement_that_takes_too_long_says_so(self) -> None:
        """The driver says nothing at all; an opening that takes too long is no statement."""
        blamed = fault(TimeoutError(), "d")
        opening = opening_failed(TimeoutError(), "d", is_first=True)

        assert blamed is not None
        assert blamed.message == "A statement took more than 15 seconds (d, TimeoutError)."
        assert isinstance(opening, StoreUnavailable)
        assert "can be reached" in opening.hint

    @pytest.mark.parametrize("code", ["28000", "28P01", "3D000"])
    def test_is_the_address(self, code: str) -> None:
        """A wrong password does not become right, unless it was right before."""
        assert isinstance(opening_failed(error_of(code), "d", is_first=True), StoreUnusable)
        assert isinstance(opening_failed(error_of(code), "d", is_first=False), StoreUnavailable)


class TestALostConnection:
    async def test_is_opened_again(
        self, schema: Address, projector: Projector, postgres: PostgresNode
    ) -> None:
        """The batch that met it is held; whether it had committed, the log knows."""
        batch = [planned("e"), started("e")]
        await projector.project(arrivals(batch))
        await postgres.terminate_backends("projection-worker%")

        outcomes = []
        for _ in range(2):
            with suppress(StoreUnavailable):
                outcomes = await projector.project(arrivals([*batch, last := completed("e")]))
                break

        assert verdicts(outcomes) == ["duplicate", "duplicate", "applied"]
        assert rows(schema, EVENTS) == expected_rows([*batch, last])

    async def test_may_be_that_of_a_server_that_starts_again(
        self, schema: Address, projector: Projector, postgres: PostgresNode
    ) -> None:
        """While it is down, each try says so; then the worker goes on."""
        await projector.project(arrivals([planned("e")]))
        await postgres.stop()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="cannot be used now"):
                await projector.project(arrivals([started("e")]))
        await postgres.start()

        outcomes = await projector.project(arrivals([started("e")]))

        assert verdicts(outcomes) == ["applied"]

    async def test_is_noticed_if_the_server_freezes(
        self,
        projector: Projector,
        writer: Writer,
        postgres: PostgresNode,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """No statement and no opening waits forever, although the kernel answers for the server."""
        for limit in ("STATEMENT_SECONDS", "OPEN_SECONDS"):
            monkeypatch.setattr(module, limit, 0.2)
        writer._abort()
        with suppress(StoreUnavailable):
            await writer.probe()
        postgres.freeze()
        try:
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await projector.project(arrivals([planned("e")]))
        finally:
            postgres.thaw()
        monkeypatch.undo()

        assert verdicts(await projector.project(arrivals([planned("e")]))) == ["applied"]

    async def test_keeps_no_worker_from_stopping(
        self, schema: Address, postgres: PostgresNode
    ) -> None:
        """A server that no longer answers is left without a goodbye."""
        writer = Writer(schema)
        await writer.open()
        postgres.freeze()
        try:
            await writer.close()
        finally:
            postgres.thaw()

        async with Writer(schema) as other:
            await other.probe()

    @pytest.mark.parametrize("is_open", [True, False], ids=["a statement", "an opening"])
    async def test_is_given_up_when_the_worker_ends(
        self, schema: Address, postgres: PostgresNode, *, is_open: bool
    ) -> None:
        """What waits for a frozen server ends at once, and nothing waits for it again."""
        async with Writer(schema) as writer:
            if not is_open:
                writer._abort()
            postgres.freeze()
            try:
                waiting = asyncio.create_task(writer.probe())
                await asyncio.wait({waiting}, timeout=0.1)
                writer.give_up()
                for probe in (waiting, writer.probe()):
                    with pytest.raises(StoreUnavailable):
                        await asyncio.wait_for(probe, module.OPEN_SECONDS / 2)
            finally:
                postgres.thaw()

    async def test_is_ended_by_the_kernel_if_nothing_is_acknowledged(self, writer: Writer) -> None:
        """Whether something was sent, or an answer is waited for."""
        transport: Any = getattr((await writer.session())._connection, "_transport")  # noqa: B009
        connected = transport.get_extra_info("socket")

        def option(name: str, level: int = socket.IPPROTO_TCP) -> int:
            return int(connected.getsockopt(level, getattr(socket, name)))

        assert option("SO_KEEPALIVE", socket.SOL_SOCKET) == 1
        assert option("TCP_USER_TIMEOUT") == 10_000
        idle, interval, probes = map(option, ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"))
        assert idle + interval * probes == 10


class TestASlowBatch:
    async def test_is_not_taken_for_a_frozen_worker(self, schema: Address) -> None:
        """Handlers may compute for longer than the server waits for an idle transaction."""
        registry = Registry()
        registry.projection(table="seen", version=1, schema=(SEEN,))

        @registry.on("noted")
        async def noted(tx: Transaction, message: Message[Payload]) -> None:
            # As if it computed, which blocks the event loop, too.
            time.sleep(0.1)  # noqa: TID251, ASYNC251
            await tx.execute("INSERT INTO seen VALUES (?)", (message.event_id,))

        async with projecting(schema, registry) as projector:
            many = [message("noted", {"event_id": f"e-{each}"}) for each in range(25)]
            outcomes = await projector.project(arrivals(many, registry))

        assert verdicts(outcomes) == ["applied"] * 25
        assert len(rows(schema, LOG)) == 25


class TestALock:
    async def test_of_a_frozen_worker_is_freed(self, schema: Address, projector: Projector) -> None:
        """The server ends its session while it keeps a transaction open, and the others go on."""
        await projector.project(arrivals([planned("e")]))
        async with locking(schema, "e") as frozen:
            outcomes = await projector.project(arrivals([started("e")]))

            assert verdicts(outcomes) == ["applied"]
            with pytest.raises(LOST):
                await frozen.run("COMMIT")

    async def test_of_a_worker_that_is_frozen_while_it_sends_is_freed(
        self,
        schema: Address,
        writer: Writer,
        projector: Projector,
        postgres: PostgresNode,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its session is active to the server, which waits for the rest, but not forever."""
        if not await postgres.query("SELECT FROM pg_settings WHERE name = 'transaction_timeout'"):
            pytest.skip("servers before 17 wait forever; docs/operate.md says what to do")
        await projector.project(arrivals([planned("e")]))
        monkeypatch.setattr(module, "TRANSACTION_TIMEOUT", "500ms")
        async with locking(schema, "e") as frozen:
            begin_to_send(frozen)
            monkeypatch.undo()
            outcomes = await projector.project(arrivals([started("e")]))

            assert verdicts(outcomes) == ["applied"]

    async def test_that_is_held_for_long_holds_the_batch(
        self, schema: Address, writer: Writer, projector: Projector, postgres: PostgresNode
    ) -> None:
        """The error says that another session has it; nothing was written."""
        await projector.project(arrivals([planned("e")]))
        await (await writer.session()).run("SET lock_timeout = '50ms'")
        async with locking(schema, "e"):
            with pytest.raises(StoreUnavailable, match="55P03") as refused:
                await projector.project(arrivals([started("e")]))

        assert "holds a lock" in refused.value.hint
        assert len(rows(schema, LOG)) == 1

    async def test_is_not_waited_for_by_a_task_that_is_cancelled(
        self, schema: Address, projector: Projector, shared_database: PostgresDatabase
    ) -> None:
        """The task ends at once, and the worker can go on later."""
        await projector.project(arrivals([planned("e")]))
        async with locking(schema, "e") as other:
            task = asyncio.create_task(projector.project(arrivals([started("e")])))
            await until_waiting(shared_database, task)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await other.run("COMMIT") == "COMMIT"

        assert verdicts(await projector.project(arrivals([started("f")]))) == ["orphan"]


class TestATransactionThatMeetsAnother:
    async def test_runs_again_at_once(
        self, schema: Address, projector: Projector, shared_database: PostgresDatabase
    ) -> None:
        """A deadlock with a session that locks in another order costs a second try."""
        await projector.project(arrivals([planned("e"), planned("f")]))
        batch = arrivals([started("e"), started("f")])
        async with locking(schema, "f") as other:
            task = asyncio.create_task(projector.project(batch))
            await until_waiting(shared_database, task)
            # The server ends the transaction that has waited longer.
            await other.fetch("SELECT 1 FROM streams WHERE event_id = 'e' FOR UPDATE")
            await other.run("COMMIT")
            outcomes = await task

        assert verdicts(outcomes) == ["applied", "applied"]
        assert projector.conflicts == 1


class TestTablesOfAnotherRelease:
    async def test_hold_the_worker(self, schema: Address, projector: Projector) -> None:
        """It would fold by other rules than those that made the rows."""
        await projector.project(arrivals([planned("e")]))
        change(schema, "UPDATE projections SET version = 7")

        with pytest.raises(
            StoreUnavailable, match="events was folded by version 7, this worker has 2"
        ):
            await projector.project(arrivals([started("e")]))
        change(schema, "UPDATE projections SET version = 2")

        assert verdicts(await projector.project(arrivals([started("e")]))) == ["applied"]
