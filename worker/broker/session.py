"""One life of connection, channel and consumer: they open together and end together.

A plain connection and not the library's robust one: whatever breaks, the session ends, its
deliveries are forgotten, and the service opens a new one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from worker.broker import claim, dead_letters
from worker.broker.claim import ClaimNotPermitted, DatabaseFile, QueueClaimed
from worker.broker.connection import (
    BrokerAddress,
    closing,
    connection,
    sentence,
    telling_loss,
)
from worker.broker.consumer import Consumer, Reception
from worker.broker.intake import Intake
from worker.broker.life import Life, ended
from worker.broker.permissions import requiring
from worker.broker.publisher import Publisher, publisher
from worker.broker.settlement import OnBlocked, OnSettledLate, Settlement
from worker.broker.topology import Topology, Verification
from worker.deliveries import Outcome
from worker.tasks import end


@dataclass(frozen=True, slots=True)
class Session:
    """What is open together."""

    consumer: Consumer
    unclaimed: ClaimNotPermitted | None
    """Why the queue could not be claimed for the worker's file; None if it was."""
    _file: DatabaseFile
    _life: Life
    _consuming: AbstractConnection
    _asking: AbstractConnection
    _topology: Topology
    _address: BrokerAddress
    _not_permitted: tuple[str, ...]
    """What the user may not see: it is not asked again."""

    @asynccontextmanager
    async def beside(self, work: Coroutine[None, None, None]) -> AsyncIterator[None]:
        """Let work go on for the length of the block; a bug in it ends the session.

        A loop asks `lasts` each time: a cancellation that the library loses must not keep it going.
        """
        task = asyncio.create_task(work)
        task.add_done_callback(self._life.end_with)
        try:
            yield
        finally:
            await end(task)

    async def lasts(self, seconds: float) -> bool:
        """Wait so long; return False as soon as the session is lost or the worker drains."""
        return await self._life.lasts(seconds)

    def call_when_lost(self, call: Callable[[BaseException], None]) -> None:
        """Call this with the reason once the session is lost, before anything of it is closed."""
        self._life.call_when_lost(call)

    async def rival(self) -> str | None:
        """Say that another consumer is active on the queue; None if it is this worker's turn.

        The broker does not tell a consumer whether it is the active one. So a worker begins only
        when there is none: it never takes itself for active while it waits.
        """
        self._life.require()
        with self._life.depends_on_channel(), self._reading():
            if await self.consumer.has_rival():
                return f"Another consumer is active on queue {self._topology.queue!r}."
        return None

    async def consume(self) -> None:
        """Let the broker deliver."""
        with self._life.depends_on_channel(), self._reading():
            await self.consumer.start()

    async def verify(self) -> Verification:
        """See that the topology is still as it must be; raises `BrokerRefused` if not.

        Raises `SessionLost` if the session turns out to be over, and `QueueClaimed` if the queue
        belongs to another file, and ends the session: whatever the library did not tell the
        consumer, this finds.
        """
        with self._life.depends_on_channel():
            if self._consuming.is_closed or self._asking.is_closed:
                raise ended("its connection is closed")
            if self.unclaimed is None:
                try:
                    await claim.make(self._asking, self._topology.queue, self._file)
                except QueueClaimed as error:
                    self._life.end(error)
                    raise
            return await self._topology.verify(self._asking, not_permitted=self._not_permitted)

    def _reading(self) -> AbstractContextManager[None]:
        to_read = f"read queue {self._topology.queue!r}"
        return requiring(self._topology.needed_to_consume, self._address, to_read)


@asynccontextmanager
async def session(
    address: BrokerAddress,
    topology: Topology,
    file: DatabaseFile,
    reception: Reception,
    *,
    on_blocked: OnBlocked,
    on_settled_late: OnSettledLate,
) -> AsyncIterator[Session]:
    """Open a session for a file, in which nothing is consumed yet; close it with the block.

    For a new file, what is missing on the broker is made; for any other, it is refused, because
    messages may have been published to nowhere meanwhile. Nothing is made or changed for a file
    that the queue does not belong to. Raises `SessionLost` if the broker cannot be reached,
    `BrokerRefused` if it says no.
    """
    intake = Intake(reception.decode)

    def settled_late(outcomes: Sequence[Outcome]) -> None:
        intake.settled(outcomes)
        on_settled_late(outcomes)

    async with AsyncExitStack() as stack:
        with telling_loss(ended):
            name = f"projection-worker {topology.queue}"
            consuming = await stack.enter_async_context(connection(address, name, intake))
            # While the intake is full, nothing is read from the one that consumes: an answer there
            # would wait as long as the deliveries before it.
            asking = await stack.enter_async_context(connection(address, f"{name} (verification)"))
            unclaimed, verified = await _prepare(asking, address, topology, file)
            dead_letter_publisher = await stack.enter_async_context(
                publisher(
                    address,
                    topology.dead_letters,
                    f"projection-worker {topology.dead_letters}",
                    topology.needed_to_consume,
                )
            )
            channel = await consuming.channel(publisher_confirms=False)
            # The channel before the connection, and no basic.cancel: a cancelled consumer would
            # let the next one start while our unacked deliveries are still out
            # (rabbitmq.com/docs/queues, "Message Ordering").
            stack.push_async_callback(closing, channel)
            underlay = await channel.get_underlay_channel()
            life = Life()
            _watch(underlay, asking, dead_letter_publisher, life)
            settlement = await stack.enter_async_context(
                Settlement(
                    underlay,
                    partial(dead_letters.publish, dead_letter_publisher, topology.queue),
                    life,
                    reception.prefetch,
                    on_blocked,
                    settled_late,
                )
            )
            # Before anything is closed: what notices the end later must find that it is known.
            stack.callback(life.lose, "the worker closes it")
            consumer = Consumer(intake, underlay, settlement, life, topology.queue, reception)
        yield Session(
            consumer,
            unclaimed,
            file,
            life,
            consuming,
            asking,
            topology,
            address,
            verified.not_permitted,
        )


async def _prepare(
    connection: AbstractConnection, address: BrokerAddress, topology: Topology, file: DatabaseFile
) -> tuple[ClaimNotPermitted | None, Verification]:
    """Claim the queue, and make the topology for a new file.

    Returns why the queue was not claimed, and what was found of the topology.
    """
    if not file.is_new:
        # Before the claim, which would be left behind for a queue that is not there.
        await topology.verify(connection)
    unclaimed = await claim.make(connection, topology.queue, file)
    if file.is_new and await topology.is_missing(connection):
        await _make(connection, address, topology)
    return unclaimed, await topology.verify(connection, binds=file.is_new)


async def _make(connection: AbstractConnection, address: BrokerAddress, topology: Topology) -> None:
    or_else = ", or let another user run 'projection-worker topology apply'"
    async with connection.channel() as channel:
        with requiring(
            topology.needed_to_apply, address, "make the exchanges and queues", or_else=or_else
        ):
            await topology.apply(channel)


def _watch(
    channel: AbstractChannel, asking: AbstractConnection, publisher: Publisher, life: Life
) -> None:
    """End the session with its channel, its consumer, or one of its other connections."""

    def on_closed(closed: asyncio.Future[None]) -> None:
        error = None if closed.cancelled() else closed.exception()
        if isinstance(error, asyncio.CancelledError):
            # The library's reader, which its heartbeat cancels.
            life.lose("no heartbeat came from the broker")
        else:
            life.lose(sentence(error) if error else "the channel was closed")

    def on_cancelled(_: Basic.Cancel) -> None:
        # Only sets a flag: the library's reader waits for this to return. The broker gives no
        # reason, and for a moment it still shows a queue that it is deleting.
        life.lose(
            "the broker cancelled the consumer: a delivery was unacked for longer than the "
            "broker's consumer timeout, or the queue was deleted"
        )

    def on_asking_closed(_: object, error: BaseException | None) -> None:
        life.lose(f"verifying: {sentence(error) if error else 'closed'}")

    channel.closing.add_done_callback(on_closed)
    channel.on_consumer_cancel_callbacks.add(on_cancelled)
    asking.close_callbacks.add(on_asking_closed)
    publisher.call_when_lost(life.lose)
