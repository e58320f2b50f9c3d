"""A session: connections, channel and consumer, which open together and end together.

It uses the library's plain connection, not the robust one: whatever breaks, the session ends, its
deliveries are forgotten, and the service opens a new session.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from worker.broker import claim, dead_letters, verification
from worker.broker.claim import Claimant, ClaimNotPermitted, QueueClaimed
from worker.broker.connection import (
    BrokerAddress,
    closing,
    connection,
    loss_raised_as,
    sentence,
    version_of,
)
from worker.broker.consumer import Consumer, Reception
from worker.broker.intake import Intake
from worker.broker.life import Life, ended
from worker.broker.partitions import Plan, has_priorities, window_of
from worker.broker.permissions import requiring
from worker.broker.publisher import Publisher, publisher
from worker.broker.quarantine import Quarantine
from worker.broker.settlement import OnBlocked, OnSettledLate, Settlement
from worker.broker.topology import Topology
from worker.broker.verification import Verification
from worker.deliveries import Outcome
from worker.tasks import end


@dataclass(slots=True, kw_only=True)
class Session:
    """An open session."""

    consumer: Consumer
    unclaimed: ClaimNotPermitted | None
    """Why the queue could not be claimed for the worker's database; None if it was."""
    broker_version: str
    """RabbitMQ's version, such as 4.3.6; empty if it does not say."""
    _claimant: Claimant
    _life: Life
    _consuming: AbstractConnection
    _asking: AbstractConnection
    _topology: Topology
    _quarantine: Quarantine
    _address: BrokerAddress
    _not_permitted: tuple[str, ...]
    """What the user may not see, so that it is not asked for again."""
    _looks_beyond: bool = True
    """Whether to ask for a queue beyond the partitions: once, and then as long as there is one."""

    @asynccontextmanager
    async def beside(self, work: Coroutine[None, None, None]) -> AsyncIterator[None]:
        """Run work in the background during the block; a bug in it ends the session.

        A loop in it must check `lasts` in each round, because the library may lose a cancellation.
        """
        task = asyncio.create_task(work)
        task.add_done_callback(self._life.end_with)
        try:
            yield
        finally:
            await end(task)

    async def lasts(self, seconds: float) -> bool:
        """Wait this long; return False as soon as the session is lost or the worker drains."""
        return await self._life.lasts(seconds)

    def call_when_lost(self, call: Callable[[BaseException], None]) -> None:
        """Register a callback that gets the reason of a loss before any part is closed."""
        self._life.call_when_lost(call)

    async def rival(self) -> str | None:
        """Return that another consumer is active on the queue; None if it is this worker's turn.

        The broker does not tell a consumer whether it is the active one. So a worker begins only
        when there is none, and never takes itself for active while it waits. With partitions there
        is no such turn: it attaches to all of them, and the broker gives it some.
        """
        self._life.require()
        if self._topology.partitions is not None:
            return None
        queue = self._topology.queue
        with self._life.depends_on_channel(), _reading(self._topology, self._address):
            if await self._quarantine.has_rival():
                return f"Another consumer is active on queue {queue!r}."
        return None

    async def consume(self) -> None:
        """Let the broker deliver."""
        with self._life.depends_on_channel():
            await self.consumer.start()

    def resize(self, partitions: int) -> None:
        """Consume from this many partitions from now on, and verify them.

        The session attaches to the queues of new ones, and leaves those of all others when what it
        has taken from them is settled.
        """
        if partitions != self._topology.partitions:
            self._looks_beyond = True
        self._topology = replace(self._topology, partitions=partitions)
        self._quarantine.assign(partitions)

    async def verify(self) -> Verification:
        """Verify that the topology is still as declared; raises `BrokerRefused` if not.

        Ends the session and raises `SessionLost` if it turns out to be over, which the library may
        not have reported, or `QueueClaimed` if the queue belongs to another database.
        """
        with self._life.depends_on_channel():
            if self._consuming.is_closed or self._asking.is_closed:
                raise ended("its connection is closed")
            if self.unclaimed is None:
                try:
                    await claim.make(self._asking, self._topology.claimed, self._claimant)
                except QueueClaimed as error:
                    self._life.end(error)
                    raise
            topology = self._topology
            verified = await verification.verify(
                topology,
                self._asking,
                consumes=True,
                beyond=self._looks_beyond,
                not_permitted=self._not_permitted,
            )
            if topology is self._topology:
                self._looks_beyond = verified.has_surplus
            return verified


def _reading(topology: Topology, address: BrokerAddress) -> AbstractContextManager[None]:
    to_read = f"read queue {topology.queue!r}"
    if topology.partitions is not None:
        to_read = f"read the partitions of queue {topology.queue!r}"
    return requiring(topology.needed_to_consume, address, to_read)


@asynccontextmanager
async def session(
    address: BrokerAddress,
    topology: Topology,
    claimant: Claimant,
    reception: Reception,
    *,
    on_blocked: OnBlocked,
    on_settled_late: OnSettledLate,
) -> AsyncIterator[Session]:
    """Open a session for a database, and close it after the block; it does not consume yet.

    For a new one, what is missing on the broker is created. For any other, a missing part is an
    error, because messages published meanwhile may be lost. Nothing is created or changed for one
    that the queue does not belong to. Raises `SessionLost` if the broker cannot be reached, and
    `BrokerRefused` if it refuses.
    """
    intake = Intake(reception.decode)

    def settled_late(outcomes: Sequence[Outcome]) -> None:
        intake.settled(outcomes)
        on_settled_late(outcomes)

    async with AsyncExitStack() as stack:
        with loss_raised_as(ended):
            name = f"projection-worker {topology.queue}"
            consuming = await stack.enter_async_context(connection(address, name, intake))
            # A second connection, because nothing is read from the first one while the intake is
            # full, and an answer there would wait behind the deliveries.
            asking = await stack.enter_async_context(connection(address, f"{name} (verification)"))
            unclaimed, verified = await _prepare(asking, address, topology, claimant)
            dead_letter_publisher = await stack.enter_async_context(
                publisher(
                    address,
                    topology.dead_letters,
                    f"projection-worker {topology.dead_letters}",
                    topology.needed_to_consume,
                )
            )
            channel = await consuming.channel(publisher_confirms=False)
            # The channel is closed before the connection, and without basic.cancel: once our
            # consumer is cancelled, the next one would start before our unacked deliveries come
            # back (rabbitmq.com/docs/queues, "Message Ordering").
            stack.push_async_callback(closing, channel)
            underlay = await channel.get_underlay_channel()
            life = Life()
            window = window_of(reception.prefetch, topology.partitions)
            settlement = await stack.enter_async_context(
                Settlement(
                    underlay,
                    partial(dead_letters.publish, dead_letter_publisher, topology.queue),
                    life,
                    window,
                    on_blocked,
                    settled_late,
                )
            )
            version = version_of(consuming)
            plan = Plan(reception.ranking, has_priorities(version))
            quarantine = await stack.enter_async_context(
                Quarantine(
                    underlay,
                    life,
                    intake,
                    topology,
                    plan,
                    partial(_reading, topology, address),
                )
            )
            _watch(underlay, asking, dead_letter_publisher, life, quarantine)
            # This runs before anything is closed, so that whatever notices the end later finds its
            # reason already set.
            stack.callback(life.lose, "the worker closes it")
            of_each = replace(reception, prefetch=window)
            consumer = Consumer(intake, underlay, settlement, quarantine, life, of_each)
        yield Session(
            consumer=consumer,
            unclaimed=unclaimed,
            broker_version=version,
            _claimant=claimant,
            _life=life,
            _consuming=consuming,
            _asking=asking,
            _topology=topology,
            _quarantine=quarantine,
            _address=address,
            _not_permitted=verified.not_permitted,
        )


async def _prepare(
    connection: AbstractConnection, address: BrokerAddress, topology: Topology, claimant: Claimant
) -> tuple[ClaimNotPermitted | None, Verification]:
    """Claim the queue, and create the topology for a new database.

    Returns why the queue was not claimed (None if it was), and the verification of the topology.
    """
    if not claimant.is_new:
        # This comes before the claim, so that no claim is left behind for a missing queue.
        await verification.verify(topology, connection)
    unclaimed = await claim.make(connection, topology.claimed, claimant)
    if claimant.is_new and await verification.missing(topology, connection):
        await _make(connection, address, topology)
    return unclaimed, await verification.verify(topology, connection, binds=claimant.is_new)


async def _make(connection: AbstractConnection, address: BrokerAddress, topology: Topology) -> None:
    or_else = ", or let another user run 'projection-worker topology apply'"
    async with connection.channel() as channel:
        with requiring(
            topology.needed_to_apply, address, "make the exchanges and queues", or_else=or_else
        ):
            await topology.apply(channel)


def _watch(
    channel: AbstractChannel,
    asking: AbstractConnection,
    publisher: Publisher,
    life: Life,
    quarantine: Quarantine,
) -> None:
    """End the session with its channel, its consumer, or one of its other connections."""

    def on_closed(closed: asyncio.Future[None]) -> None:
        error = None if closed.cancelled() else closed.exception()
        if isinstance(error, asyncio.CancelledError):
            # The library's heartbeat cancels its reader.
            life.lose("no heartbeat came from the broker")
        else:
            life.lose(sentence(error) if error else "the channel was closed")

    def on_cancelled(cancel: Basic.Cancel) -> None:
        # This must not block, because the library's reader waits for it to return. The broker gives
        # no reason, and for a moment it still shows a queue that it is deleting.
        if not quarantine.forgets(cancel.consumer_tag or ""):
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
