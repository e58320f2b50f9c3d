"""The supervisor: become the writer, open, consume, hold, drain, close.

It decides what happens when the broker goes away, the database cannot commit, or the process is
told to stop. One task runs the loop that commits and acks, and nothing cancels it.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from worker import backoff
from worker.breaker import Breaker
from worker.broker.claim import Claimant
from worker.broker.connection import BrokerAddress, answer_within
from worker.broker.consumer import Consumer, Reception
from worker.broker.partitions import has_priorities
from worker.broker.session import Session, session
from worker.broker_settings import ranking_of, topology_of
from worker.deliveries import Outcome
from worker.errors import BrokerRefused, MustHold, SessionLost, WriterLocked
from worker.messages import Arrival, receive
from worker.projector import Projector
from worker.rebuild import (
    create_tables,
    reason_to_rebuild,
    rebuild,
    require_known_kinds,
    require_not_older,
    require_same_columns,
    require_schemas,
)
from worker.registry import Registry
from worker.settings import Settings
from worker.sources import SettingsError
from worker.store.consumption import Consumption
from worker.store.database import Writer
from worker.store.store import Lock, Store
from worker.telemetry.report import Report

T = TypeVar("T")

# A standby must consume within five seconds of the end of the worker that it replaces. Opening a
# session takes about one second.
STANDBY_SECONDS = 0.5
OPEN_SECONDS = 10
VERIFY_EVERY_SECONDS = 5
# A verification asks some sixteen questions, one after the other. Giving up costs the session, and
# on a slow link the next one may not open in time.
VERIFICATION_SECONDS = 30
# A drain waits for no server longer than this, so that it has time to end in order.
PATIENCE_SECONDS = 3
# The log stores the message, and a row stores most of it again.
COPIES_OF_A_MESSAGE = 2


class Service:
    """One worker, from its start until it is told to stop."""

    _claimant: Claimant
    """Known once the database is open."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        registry: Registry,
        report: Report,
        address: Callable[[], BrokerAddress],
    ) -> None:
        """Keep the configuration; must be called in the running loop, and opens nothing yet.

        `address` is called for each connection, so that a renewed password needs no restart.
        """
        self._settings = settings
        self._store = store
        self._registry = registry
        self._report = report
        self._address = address
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._losses = 0
        self._partitions: int | None = None
        """Over how many partitions the messages are spread; None if there is one queue."""
        self._held: Sequence[Arrival] = ()
        self._breaker = Breaker(settings.breaker_failures)

    def stop(self) -> None:
        """Take no more messages, finish those that were taken, and let `run` return."""
        if not self._stopped.done():
            self._stopped.set_result(None)

    async def run(self) -> None:
        """Consume until `stop`; then drain and return.

        Raises errors that waiting would not cure: `StoreUnusable` and, until the worker has
        consumed once, `BrokerRefused`.
        """
        lock = self._store.lock()
        try:
            if await self._become_writer(lock):
                writer = self._store.writer(lock)
                try:
                    await self._write(writer)
                finally:
                    await writer.close()
        finally:
            lock.release()

    async def _become_writer(self, lock: Lock) -> bool:
        """Wait until no other process writes the file; return False if told to stop first."""

        async def rival() -> str | None:
            try:
                lock.acquire()
            except WriterLocked as error:
                return error.message
            return None

        return await self._stand_by(rival)

    async def _stand_by(self, rival: Callable[[], Coroutine[Any, Any, str | None]]) -> bool:
        """Wait while there is a rival, and report each one once; return False if told to stop."""
        reported = None
        while not self._stopped.done():
            self._report.step()
            reason = await self._unless_stopped(rival())
            if reason is not None:
                if reason != reported:
                    self._report.standing_by(reason)
                    reported = reason
                await self._pause(STANDBY_SECONDS)
            elif not self._stopped.done():
                if reported is not None:
                    self._report.taking_over()
                return True
        return False

    async def _write(self, writer: Writer) -> None:
        loop = asyncio.get_running_loop()
        self._stopped.add_done_callback(lambda _: loop.call_later(PATIENCE_SECONDS, writer.give_up))
        if not await self._until_possible(writer.open):
            return
        await self._until_possible(lambda: self._prepare_tables(writer))
        projector = Projector(self._registry, writer, folding=self._report.folding)
        await self._sessions(writer, projector)

    async def _until_possible(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Retry work that needs the database until it succeeds; return False if told to stop.

        This is done before anything is consumed, so that no message loses a delivery while the disk
        fails.
        """
        attempt = 0
        while not self._stopped.done():
            self._report.step()
            try:
                await self._unless_stopped(work())
            except MustHold as error:
                self._report.holding(error, messages=0)
                attempt += 1
                await self._pause(backoff.holding(error, attempt))
            else:
                self._report.commits()
                return not self._stopped.done()
        return False

    async def _prepare_tables(self, writer: Writer) -> None:
        """Create the tables, or rebuild those of other versions; refuse a file without its log."""
        await require_schemas(writer, self._registry)
        await writer.require_log()
        await require_known_kinds(writer, self._registry)
        is_new = await writer.is_log_empty()
        self._claimant = Claimant(self._settings.shown_database, await writer.id(), is_new)
        noted = await writer.noted_versions()
        reason = reason_to_rebuild(noted, self._registry)
        if self._store.is_shared:
            require_not_older(noted, self._registry, writer.named)
        if reason is None:
            await require_same_columns(writer, self._registry)
            return
        if is_new:
            await create_tables(writer, self._registry)
            return
        self._report.rebuilding(reason)
        started = time.monotonic()
        audit = await rebuild(writer, self._registry, lambda done, total: None)
        self._report.rebuilt(
            audit.dropped_indexes,
            messages=audit.messages,
            rows=audit.rows,
            differing=audit.differing,
            seconds=round(time.monotonic() - started, 3),
        )

    async def _sessions(self, writer: Writer, projector: Projector) -> None:
        """Run one session after the other until told to stop."""
        was_connected = False
        while await self._until_possible(lambda: self._prove(writer, projector)):
            self._report.connecting()
            try:
                async with AsyncExitStack() as stack:
                    opened = await self._unless_stopped(
                        answer_within(stack.enter_async_context(self._session()), OPEN_SECONDS)
                    )
                    if opened is None:
                        return
                    self._report.session_opened(opened.unclaimed)
                    self._tell_who_consumes(opened)
                    opened.call_when_lost(self._report.losing)
                    # From now on a missing queue is an error. Creating it silently would hide that
                    # the messages published without it are lost.
                    self._claimant = replace(self._claimant, is_new=False)
                    await stack.enter_async_context(opened.beside(self._verify(opened, writer)))
                    if not await self._begin(opened):
                        return
                    self._report.connected(self._settings.broker)
                    was_connected = True
                    await self._consume(opened.consumer, projector)
            except (SessionLost, BrokerRefused) as error:
                if isinstance(error, BrokerRefused) and not was_connected:
                    raise
                self._losses += 1
                self._report.connection_lost(error, self._losses)
                await self._pause(backoff.reconnecting(self._losses))

    async def _prove(self, writer: Writer, projector: Projector) -> None:
        """Prove that the database can commit, before anything is consumed.

        Each session that settles nothing costs its messages a delivery, and eventually the broker
        dead-letters them. So the disk must have room for the largest message, and the batch that
        the last session held must commit and pass the breaker. Its messages are redelivered, and
        are duplicates then.
        """
        # Read again before each session, because it may change while there is none.
        self._partitions = await writer.agree_on_partitions(self._settings.partitions)
        await writer.probe(COPIES_OF_A_MESSAGE * self._settings.max_message_bytes)
        if self._held:
            self._breaker.require_closed(await projector.project(self._held))
            self._held = ()

    def _session(self) -> AbstractAsyncContextManager[Session]:
        try:
            address = self._address()
        except SettingsError as error:
            # The file with the password may be half written at this moment.
            raise BrokerRefused(error.message, error.hint) from error
        return session(
            address,
            topology_of(self._settings, self._partitions),
            self._claimant,
            Reception(
                partial(receive, self._registry.wire, max_bytes=self._settings.max_message_bytes),
                self._settings.prefetch,
                self._settings.batch_size,
                ranking_of(self._settings),
            ),
            on_blocked=self._report.blocked,
            on_settled_late=self._report.settled,
        )

    def _tell_who_consumes(self, opened: Session) -> None:
        if self._partitions is None or self._settings.ordinal is not None:
            return
        if not has_priorities(opened.broker_version):
            self._report.priorities_ignored(opened.broker_version)

    async def _verify(self, opened: Session, writer: Writer) -> None:
        """Verify the topology at intervals for as long as the session lasts."""
        while await opened.lasts(VERIFY_EVERY_SECONDS):
            consumption = _consumption(self._settings.worker_name, opened)
            if self._partitions is not None:
                await self._follow_partitions(opened, writer, consumption)
            try:
                verified = await answer_within(opened.verify(), VERIFICATION_SECONDS)
            except (BrokerRefused, SessionLost) as error:
                self._report.topology(error)
            else:
                self._report.topology(None)
                self._report.sizes(verified.queue, verified.dead_letters, writer.wal_bytes())
                self._report.partitions(verified.partitions, consumption)

    async def _follow_partitions(
        self, opened: Session, writer: Writer, consumption: Sequence[Consumption]
    ) -> None:
        """Consume from as many partitions as the database says, and tell what this worker has."""
        # What keeps the database from answering is reported by the loop that projects.
        with suppress(MustHold):
            number = await writer.partitions()
            if number is not None and number != self._partitions:
                self._partitions = number
                opened.resize(number)
                self._report.resized(number)
            await writer.report(consumption)

    async def _begin(self, opened: Session) -> bool:
        """Consume once it is this worker's turn; return False if told to stop first."""
        if not await self._stand_by(lambda: answer_within(opened.rival(), OPEN_SECONDS)):
            return False
        await self._unless_stopped(answer_within(opened.consume(), OPEN_SECONDS))
        return not self._stopped.done()

    async def _consume(self, consumer: Consumer, projector: Projector) -> None:
        def drain(_: asyncio.Future[None]) -> None:
            consumer.drain()

        self._stopped.add_done_callback(drain)
        try:
            async for batch in consumer:
                self._report.taken(batch[0].delivery)
                started = time.monotonic()
                outcomes = await self._project(batch, consumer, projector)
                seconds = time.monotonic() - started
                if outcomes is None:
                    return
                self._report.settled(await consumer.settle(outcomes), seconds)
                # Only progress resets the backoff: a fault that ends each session at its first
                # message must not make the worker hammer the broker.
                self._losses = 0
        finally:
            self._stopped.remove_done_callback(drain)

    async def _project(
        self, batch: Sequence[Arrival], consumer: Consumer, projector: Projector
    ) -> list[Outcome] | None:
        """Project a batch, and hold it while it cannot be settled; None if the worker drains."""
        attempt = 0
        while True:
            try:
                with self._report.transaction():
                    outcomes = await projector.project(batch, meanwhile=consumer.look_ahead)
                # The batch is committed. An open breaker holds the settlement of all of it, the
                # good messages and the bad.
                self._breaker.require_closed(outcomes)
            except MustHold as error:
                self._held = batch
                self._report.holding(error, len(batch))
                attempt += 1
                if await consumer.drains(within_seconds=backoff.holding(error, attempt)):
                    return None
            else:
                self._held = ()
                self._report.commits()
                return outcomes

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of work, or cancel it and return None if told to stop first."""
        task = asyncio.ensure_future(work)
        ends: set[asyncio.Future[Any]] = {task, self._stopped}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        # Wait without a bound, because the store must not be left in the middle of closing its
        # file. Neither the store nor `in_time` loses a cancellation, and a drain has its deadline.
        task.cancel()
        with suppress(asyncio.CancelledError, SessionLost, BrokerRefused):
            await task
        return None

    async def _pause(self, seconds: float) -> None:
        """Wait this long, or until told to stop."""
        await asyncio.wait({self._stopped}, timeout=seconds)


def _consumption(worker: str, opened: Session) -> list[Consumption]:
    """Return what a worker has received and not settled, by partition."""
    now = datetime.now(UTC)
    return [
        Consumption(
            each.partition,
            worker,
            (now - each.delivered_at).total_seconds(),
            each.unsettled,
            None if each.oldest_at is None else (now - each.oldest_at).total_seconds(),
        )
        for each in opened.consumer.activities()
        if each.delivered_at is not None
    ]
