"""The exchanges, queues and bindings that the worker needs, and how they are created.

A different entity of the same name is an error that says how to fix it.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPChannelError, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused, ConnectionCommandInvalid

from worker.broker.claim import Claimed, exchange_of
from worker.broker.command_lock import lock_of
from worker.broker.partitions import queue_of
from worker.broker.permissions import Numbered, Permissions, Prefix
from worker.errors import BrokerRefused

# A quorum queue counts a delivery each time that somebody looks at a dead letter, and no number of
# looks may lose it (rabbitmq.com/docs/quorum-queues, "Poison message handling").
DEAD_LETTERS_DELIVERY_LIMIT = 1_000_000


class Binding(NamedTuple):
    """A route from an exchange to a queue, or to another exchange."""

    exchange: str
    destination: str
    routing_key: str
    to_exchange: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """The names, and the delivery limit, from which everything else follows."""

    exchange: str
    """The durable topic exchange to which chat servers publish."""
    queue: str
    """The queue; with partitions, the exchange that spreads messages over their queues."""
    delivery_limit: int
    """How many lost deliveries of a message the broker allows before it dead-letters it itself."""
    partitions: int | None = None
    """Over how many queues the messages are spread; None: there is one queue."""

    @property
    def dead_letters(self) -> str:
        """The name of the dead-letter exchange and of its queue."""
        return f"{self.queue}.dead-letters"

    @property
    def work_queues(self) -> tuple[str, ...]:
        """The queues from which workers consume, in the order of their partitions."""
        if self.partitions is None:
            return (self.queue,)
        return tuple(queue_of(self.queue, partition) for partition in range(self.partitions))

    @property
    def exchanges(self) -> dict[str, ExchangeType]:
        """Every exchange with its type; the dead-letter exchange first."""
        spreading = {} if self.partitions is None else {self.queue: ExchangeType.X_MODULUS_HASH}
        return {
            self.dead_letters: ExchangeType.FANOUT,
            **spreading,
            self.exchange: ExchangeType.TOPIC,
        }

    @property
    def queues(self) -> dict[str, dict[str, str | int | bool]]:
        """Every queue with its arguments, which cannot be changed later."""
        return {
            self.dead_letters: {
                "x-queue-type": "quorum",
                "x-delivery-limit": DEAD_LETTERS_DELIVERY_LIMIT,
            },
            **dict.fromkeys(self.work_queues, self.work_queue_arguments),
        }

    @property
    def work_queue_arguments(self) -> dict[str, str | int | bool]:
        """The arguments of each queue from which workers consume."""
        return {
            "x-queue-type": "quorum",
            # A second worker on the queue is a hot standby and never a second writer.
            "x-single-active-consumer": True,
            "x-delivery-limit": self.delivery_limit,
            "x-dead-letter-exchange": self.dead_letters,
            # at-least-once loses no dead letter, and requires reject-publish
            # (rabbitmq.com/docs/quorum-queues, "Activating at-least-once dead-lettering").
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Every binding, in an order in which none lets messages in before they have a route."""
        dead_letters = Binding(self.dead_letters, self.dead_letters, "")
        if self.partitions is None:
            return dead_letters, Binding(self.exchange, self.queue, "#")
        return (
            dead_letters,
            # The exchange ignores the keys of its bindings, but RabbitMQ up to 3.13 orders the
            # queues by them first.
            *(Binding(self.queue, name, "") for name in self.work_queues),
            Binding(self.exchange, self.queue, "#", to_exchange=True),
        )

    @property
    def claimed(self) -> Claimed:
        """What the database of the workers claims."""
        exchange = exchange_of(self.queue, has_partitions=self.partitions is not None)
        return Claimed(self.queue, self.work_queues, exchange)

    @property
    def needed_to_consume(self) -> Permissions:
        """The permissions of a worker whose exchanges and queues another user has made.

        Read on the queues and write on the dead letters are for consuming, all others for the
        claim.
        """
        claim = self.claimed.exchange
        return Permissions(
            configure=(claim,),
            write=(self.dead_letters, Prefix(f"{claim}.")),
            read=(*self._permitted_work_queues, claim),
        )

    @property
    def needed_to_apply(self) -> Permissions:
        """The permissions for all commands on the topology, and a worker that makes its queue."""
        claim = self.claimed.exchange
        # With partitions, the queue's name is also that of the exchange that spreads messages.
        spreading = () if self.partitions is None else (self.queue,)
        own = (*spreading, *self._permitted_work_queues)
        return Permissions(
            configure=(self.exchange, *own, self.dead_letters, claim, lock_of(self.queue)),
            # A binding needs write on what it leads to and read on its exchange; a queue with a
            # dead-letter exchange needs read on itself and write on that exchange.
            write=(*own, self.dead_letters, Prefix(f"{claim}.")),
            read=(self.exchange, *own, self.dead_letters, claim),
        )

    @property
    def _permitted_work_queues(self) -> tuple[str, ...]:
        # Of any number, so that more partitions need no further grant.
        return (self.queue,) if self.partitions is None else (Numbered(self.queue),)

    async def apply(self, channel: AbstractChannel) -> None:
        """Create what is missing, and check what exists.

        Raises `BrokerRefused` for an entity that differs, and `ChannelAccessRefused`, the library's
        error, for what the user may not do; either leaves the channel closed.
        """
        try:
            for exchange in self.exchanges:
                await self.declare_exchange(channel, exchange)
            for queue in self.queues:
                await self.declare_queue(channel, queue)
            for binding in self.bindings:
                await bind(channel, binding)
        except ChannelPreconditionFailed as error:
            raise self.differs(error) from error
        except ChannelAccessRefused:
            raise
        except AMQPChannelError as error:
            raise BrokerRefused(
                f"The broker refuses the worker's exchanges and queues ({error}).",
                "see RabbitMQ's log.",
            ) from error

    async def declare_exchange(self, channel: AbstractChannel, name: str) -> None:
        """Create an exchange, or check its type; raises `BrokerRefused` for an unknown type.

        The broker closes the connection, and not just the channel, if it does not know the type.
        """
        await self._declare_exchange(channel, name, self.exchanges[name])

    async def require_known_types(self, channel: AbstractChannel) -> None:
        """Raise `BrokerRefused` if the broker does not know a type; creates nothing.

        The channel may be closed afterwards.
        """
        for name, kind in self.exchanges.items():
            if kind is ExchangeType.X_MODULUS_HASH:
                # Every virtual host has this one, of another type. The broker looks at the type
                # first, and then refuses.
                with suppress(ChannelPreconditionFailed, ChannelAccessRefused):
                    await self._declare_exchange(channel, name, kind, "amq.topic")

    async def _declare_exchange(
        self, channel: AbstractChannel, name: str, kind: ExchangeType, asked: str | None = None
    ) -> None:
        try:
            await channel.declare_exchange(asked or name, kind, durable=True)
        except ConnectionCommandInvalid as error:
            raise BrokerRefused(
                f"The broker does not know the type {kind.value} of exchange {name!r} ({error}); "
                "if the exchange exists, it spreads no messages.",
                "run 'rabbitmq-plugins enable rabbitmq_sharding' on each node of the broker, which "
                "is needed before RabbitMQ 4.3.",
            ) from error

    async def declare_queue(self, channel: AbstractChannel, name: str) -> None:
        """Create a queue, or check its arguments."""
        await channel.declare_queue(name, durable=True, arguments=dict(self.queues[name]))

    def differs(self, error: Exception) -> BrokerRefused:
        """Return the error for an exchange or queue that exists with other arguments."""
        return BrokerRefused(
            f"The broker has an exchange or queue with other arguments ({error}).",
            f"drain and delete it (rabbitmqctl delete_queue {self.work_queues[0]}), then run "
            "'projection-worker topology apply'; or set WORKER_QUEUE or WORKER_EXCHANGE to other "
            "names.",
        )


async def bind(channel: AbstractChannel, binding: Binding) -> None:
    """Create a binding, unless it exists."""
    if binding.to_exchange:
        exchange = await channel.get_exchange(binding.destination, ensure=False)
        await exchange.bind(binding.exchange, binding.routing_key)
    else:
        queue = await channel.get_queue(binding.destination, ensure=False)
        await queue.bind(binding.exchange, binding.routing_key)
