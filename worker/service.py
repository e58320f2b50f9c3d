"""The supervisor: become the writer, open, consume, hold, drain, close.

Owns what happens when the house fails: the broker goes away, the database cannot commit, somebody
wants the process to end. One task runs the loop that commits and acks, and nothing cancels it.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any, TypeVar

from worker.broker.consumer import Consumer
from worker.broker.session import session
from worker.broker.topology import Topology
from worker.deliveries import BatchReport, Delivery, Outcome
from worker.errors import BrokerRefused, SessionLost, StoreUnavailable, WriterLocked
from worker.projector import Projector
from worker.rebuild import create_tables, reason_to_rebuild, rebuild
from worker.registry import Registry
from worker.settings import Settings
from worker.store import log
from worker.store.connection import Writer
from worker.store.lock import WriterLock
from worker.store.tables import noted_versions
from worker.telemetry.logs import get_logger
from worker.telemetry.summary import Summary, verdict_fields

T = TypeVar("T")

# A standby consumes within five seconds of its predecessor's end; opening takes about one.
STANDBY_SECONDS = 0.5
OPEN_SECONDS = 10
RECONNECT_SECONDS = (0.5, 8.0)
HOLD_SECONDS = (0.1, 2.0)
# A drain ends before this, whatever the broker and the disk do; what is not acked is redelivered.
DRAIN_SECONDS = 4.5


class Service:
    """One worker: from its start to its end by a signal."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        """Configure; nothing is opened yet."""
        self._settings = settings
        self._registry = registry
        self._log = get_logger()
        self._stop = asyncio.Event()
        self._has_ended = False
        self._topology = topology_of(settings)
        self._summary = Summary(
            settings.summary_seconds, lambda fields: self._log.info("projected", **fields)
        )

    async def run(self) -> None:
        """Consume until SIGTERM or SIGINT; then drain and return.

        Raises `StoreUnusable` and, before the first session, `BrokerRefused`: waiting would not
        help. Raises `StoreUnavailable` if the file cannot be opened or rebuilt now: nothing has
        been consumed then. A second signal ends the process at once.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        self._log.info(
            "starting",
            pid=os.getpid(),
            database=str(self._settings.database),
            broker=self._settings.broker,
            queue=self._settings.queue,
        )
        lock = WriterLock(self._settings.database)
        try:
            if await self._become_writer(lock):
                async with Writer(self._settings.database) as writer:
                    await self._write(writer)
        finally:
            self._summary.flush()
            lock.release()
            self._has_ended = True
        self._log.info("stopped")

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            # Whatever is committed is on the disk, and whatever is not is not acked.
            self._log.warning("ended_at_once", signal=number.name)
            self._exit(128 + number)
        self._log.info("draining", signal=number.name)
        self._stop.set()
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._on_drain_deadline)

    def _on_drain_deadline(self) -> None:
        # Reached in the middle of closing, too: a peer that is gone can stall that.
        if not self._has_ended:
            self._log.warning("drain_timed_out", seconds=DRAIN_SECONDS)
        self._exit(0 if self._has_ended else 1)

    def _exit(self, code: int) -> None:
        sys.stdout.flush()
        os._exit(code)

    async def _become_writer(self, lock: WriterLock) -> bool:
        """Wait until no other process writes the file; False if told to stop meanwhile."""
        stands_by = False
        while not self._stop.is_set():
            try:
                lock.acquire()
            except WriterLocked as error:
                if not stands_by:
                    self._log.info("standing_by", reason=error.message)
                    stands_by = True
                await self._pause(STANDBY_SECONDS)
            else:
                if stands_by:
                    self._log.info("taking_over")
                return True
        return False

    async def _write(self, writer: Writer) -> None:
        if reason := reason_to_rebuild(await noted_versions(writer), self._registry):
            if await log.is_empty(writer):
                await create_tables(writer, self._registry)
            else:
                await self._unless_stopped(self._rebuild(writer, reason))
        projector = Projector(
            self._registry, writer, max_message_bytes=self._settings.max_message_bytes
        )
        await self._sessions(projector)

    async def _rebuild(self, writer: Writer, reason: str) -> None:
        self._log.info("rebuilding", reason=reason)
        started = time.monotonic()
        audit = await rebuild(
            writer, self._settings.database, self._registry, lambda done, total: None
        )
        self._log.info(
            "rebuilt",
            messages=audit.messages,
            rows=audit.rows,
            differing=audit.differing,
            seconds=round(time.monotonic() - started, 3),
        )

    async def _sessions(self, projector: Projector) -> None:
        """Live one session after the other."""
        was_connected = False
        reported: type[Exception] | None = None
        attempt = 0
        while not self._stop.is_set():
            try:
                async with AsyncExitStack() as stack:
                    consumer = await self._unless_stopped(
                        _in_time(stack.enter_async_context(self._session()))
                    )
                    if consumer is None:
                        return
                    self._log.info("connected", broker=self._settings.broker)
                    was_connected, reported, attempt = True, None, 0
                    await self._consume(consumer, projector)
            except (SessionLost, BrokerRefused) as error:
                if isinstance(error, BrokerRefused) and not was_connected:
                    raise
                if type(error) is not reported:
                    # A broker that is away and one that says no are two states.
                    self._log.warning("connection_lost", reason=error.message, hint=error.hint)
                    reported = type(error)
                else:
                    self._log.debug("connection_failed", attempt=attempt, reason=error.message)
            attempt += 1
            await self._pause(_backoff(attempt, RECONNECT_SECONDS))

    def _session(self) -> AbstractAsyncContextManager[Consumer]:
        return session(
            self._settings.amqp_url.get_secret_value(),
            self._topology,
            prefetch=self._settings.prefetch,
            batch_size=self._settings.batch_size,
            on_blocked=self._on_blocked,
        )

    def _on_blocked(self, reason: str | None) -> None:
        if reason is None:
            self._log.info("unblocked")
        else:
            hint = "see 'rabbitmqctl list_alarms' and the dead-letter queue."
            self._log.warning("blocked", reason=reason, hint=hint)

    async def _consume(self, consumer: Consumer, projector: Projector) -> None:
        draining = asyncio.ensure_future(self._stop.wait())
        draining.add_done_callback(lambda _: consumer.drain())
        try:
            async for batch in consumer:
                started = time.monotonic()
                outcomes = await self._project(batch, consumer, projector)
                if outcomes is None:
                    return
                seconds = time.monotonic() - started
                if not await consumer.settle(outcomes):
                    return
                self._report(BatchReport.of(outcomes, seconds))
        finally:
            draining.cancel()

    async def _project(
        self, batch: Sequence[Delivery], consumer: Consumer, projector: Projector
    ) -> list[Outcome] | None:
        """Project a batch; hold it while the database cannot commit; None if the worker drains."""
        attempt = 0
        while True:
            try:
                outcomes = await projector.project(batch)
            except StoreUnavailable as error:
                if not attempt:
                    self._log.error(
                        "holding", messages=len(batch), reason=error.message, hint=error.hint
                    )
                attempt += 1
                if await consumer.drains(within_seconds=_backoff(attempt, HOLD_SECONDS)):
                    return None
            else:
                if attempt:
                    self._log.info("resumed", attempts=attempt)
                return outcomes

    def _report(self, report: BatchReport) -> None:
        self._summary.add(report)
        self._log.debug(
            "batch_committed",
            messages=sum(report.verdicts.values()),
            commit_seconds=round(report.commit_seconds, 4),
            **verdict_fields(report.verdicts),
        )
        for outcome in report.rejections:
            if outcome.rejected is not None:
                self._log.warning(
                    "dead_lettered",
                    reason=outcome.rejected.reason.value,
                    detail=outcome.rejected.detail,
                    message_id=outcome.message_id,
                    kind=outcome.kind,
                    event_id=outcome.event_id,
                    routing_key=outcome.delivery.routing_key,
                    body_bytes=len(outcome.delivery.body),
                )

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do work that may be cancelled; None if told to stop before it was done."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if task.done():
            return task.result()
        task.cancel()
        with suppress(asyncio.CancelledError, SessionLost, BrokerRefused):
            await task
        return None

    async def _pause(self, seconds: float) -> None:
        """Wait, but not once told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()


async def _in_time(opening: Coroutine[Any, Any, T]) -> T:
    """Open a session, or give up: a node that is just starting may never answer a declaration."""
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            return await opening
    except TimeoutError as error:
        raise SessionLost(
            f"The broker did not answer within {OPEN_SECONDS} seconds.",
            "see whether it is starting, overloaded or without a quorum.",
        ) from error


def topology_of(settings: Settings) -> Topology:
    """Give the topology that the settings name."""
    return Topology(settings.exchange, settings.queue, settings.delivery_limit)


def _backoff(attempt: int, bounds: tuple[float, float]) -> float:
    """Give seconds to wait: twice as long each time, with jitter, so that workers spread out."""
    shortest, longest = bounds
    return random.uniform(0.5, 1.0) * min(longest, shortest * 2.0 ** (attempt - 1))
