"""The exchanges, queues and bindings that the worker stands on, and what they must be.

Makes them, and verifies them; what is missing or otherwise is an error that says the way out.
"""

from dataclasses import dataclass

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    AMQPChannelError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from aiormq.exceptions import ChannelAccessRefused

from worker.errors import BrokerRefused

# A quorum queue hands a dead letter back after somebody looked at it, and counts that; no number
# of looks may lose it (rabbitmq.com/docs/quorum-queues, "Poison message handling").
LOOKS_AT_DEAD_LETTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class Depths:
    """How many messages wait for somebody to take them."""

    queue: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class Topology:
    """The names, and the one number, from which everything else follows."""

    exchange: str
    """The durable topic exchange to which chat servers publish."""
    queue: str
    delivery_limit: int
    """How many lost deliveries of a message the broker bears before it dead-letters it itself."""

    @property
    def dead_letters(self) -> str:
        """The name of the dead-letter exchange, and of the queue behind it."""
        return f"{self.queue}.dead-letters"

    @property
    def exchanges(self) -> dict[str, ExchangeType]:
        """Every exchange with its type; the way out of the queue first."""
        return {self.dead_letters: ExchangeType.FANOUT, self.exchange: ExchangeType.TOPIC}

    @property
    def queues(self) -> dict[str, dict[str, str | int | bool]]:
        """Every queue with what makes it safe; a queue cannot be changed to these later."""
        return {
            self.dead_letters: {
                "x-queue-type": "quorum",
                "x-delivery-limit": LOOKS_AT_DEAD_LETTERS,
            },
            self.queue: {
                "x-queue-type": "quorum",
                # A second worker on the queue is a hot standby and never a second writer.
                "x-single-active-consumer": True,
                "x-delivery-limit": self.delivery_limit,
                "x-dead-letter-exchange": self.dead_letters,
                # at-least-once loses no dead letter, and demands reject-publish
                # (rabbitmq.com/docs/quorum-queues, "Activating at-least-once dead-lettering").
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        }

    @property
    def bindings(self) -> tuple[tuple[str, str, str], ...]:
        """Every (exchange, queue, routing key)."""
        return (
            (self.dead_letters, self.dead_letters, ""),
            (self.exchange, self.queue, "#"),
        )

    async def apply(self, channel: AbstractChannel) -> None:
        """Make what is missing, and check what is there.

        Raises `BrokerRefused` for an entity that exists otherwise or may not be touched; the
        channel is closed then.
        """
        try:
            await self._declare(channel)
            await self._bind(channel)
        except ChannelPreconditionFailed as error:
            raise self._otherwise(error) from error
        except AMQPChannelError as error:
            raise BrokerRefused(
                f"The broker refuses the worker's exchanges and queues ({error}).",
                "grant the worker's user configure, write and read on them "
                "(rabbitmqctl set_permissions), or let 'projection-worker topology apply' make "
                "them as another user.",
            ) from error

    async def verify(self, connection: AbstractConnection, *, binds: bool = False) -> Depths:
        """See that everything is there as it must be, making no exchange and no queue.

        `binds` puts back bindings that somebody removed: no client can ask which there are.
        Raises `BrokerRefused` for what is missing or otherwise. A user who may not configure
        exchanges and queues can see that they are there, but not their arguments.
        """
        async with connection.channel() as channel:
            try:
                depths = await self._look(channel)
                await self._declare(channel)
                if binds:
                    await self._bind(channel)
            except ChannelNotFoundEntity as error:
                raise BrokerRefused(
                    f"What the worker needs is not on the broker ({error}).",
                    "make it with 'projection-worker topology apply'; what was published "
                    "meanwhile may be lost: ask the publishers to publish it again.",
                ) from error
            except ChannelPreconditionFailed as error:
                raise self._otherwise(error) from error
            except ChannelAccessRefused:
                pass
        return depths

    async def _look(self, channel: AbstractChannel) -> Depths:
        for name in self.exchanges:
            await channel.get_exchange(name, ensure=True)
        waiting = {}
        for name in self.queues:
            queue = await channel.declare_queue(name, passive=True)
            waiting[name] = queue.declaration_result.message_count or 0
        return Depths(waiting[self.queue], waiting[self.dead_letters])

    async def _declare(self, channel: AbstractChannel) -> None:
        for exchange, kind in self.exchanges.items():
            await channel.declare_exchange(exchange, kind, durable=True)
        for name, arguments in self.queues.items():
            await channel.declare_queue(name, durable=True, arguments=dict(arguments))

    async def _bind(self, channel: AbstractChannel) -> None:
        for exchange, name, routing_key in self.bindings:
            queue = await channel.get_queue(name, ensure=False)
            await queue.bind(exchange, routing_key)

    def _otherwise(self, error: Exception) -> BrokerRefused:
        return BrokerRefused(
            f"The broker has an exchange or queue with other arguments ({error}).",
            f"drain and delete it (rabbitmqctl delete_queue {self.queue}), then run "
            "'projection-worker topology apply'; or set WORKER_QUEUE or WORKER_EXCHANGE to other "
            "names.",
        )
