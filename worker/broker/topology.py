"""The exchanges, queues and bindings that the worker stands on, and what they must be.

Declares them; a broker that has them otherwise refuses, and that is said with its way out.
"""

from dataclasses import dataclass

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import (
    AMQPChannelError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from worker.errors import BrokerRefused

# A quorum queue hands a dead letter back after somebody looked at it, and counts that; no number
# of looks may lose it (rabbitmq.com/docs/quorum-queues, "Poison message handling").
LOOKS_AT_DEAD_LETTERS = 1_000_000


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
    def queue_arguments(self) -> dict[str, str | int | bool]:
        """What makes the queue safe; a queue cannot be changed to these later."""
        return {
            "x-queue-type": "quorum",
            # A second worker on the queue is a hot standby and never a second writer.
            "x-single-active-consumer": True,
            "x-delivery-limit": self.delivery_limit,
            "x-dead-letter-exchange": self.dead_letters,
            # at-least-once loses no dead letter, and demands reject-publish
            # (rabbitmq.com/docs/quorum-queues, "Activating at-least-once dead-lettering").
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }

    async def declare(self, channel: AbstractChannel) -> AbstractQueue:
        """Make what is missing and check what is there; give the queue.

        Raises `BrokerRefused` for an entity that exists otherwise or may not be touched; the
        channel is closed then.
        """
        try:
            # The way out of the queue first: a queue without it would drop dead letters.
            await self._declare_dead_letters(channel)
            await channel.declare_exchange(self.exchange, ExchangeType.TOPIC, durable=True)
            queue = await channel.declare_queue(
                self.queue, durable=True, arguments=dict(self.queue_arguments)
            )
            await queue.bind(self.exchange, routing_key="#")
        except ChannelPreconditionFailed as error:
            raise BrokerRefused(
                f"The broker has an exchange or queue with other arguments ({error}).",
                f"drain and delete it (rabbitmqctl delete_queue {self.queue}), and the worker "
                "declares it anew; or set WORKER_QUEUE or WORKER_EXCHANGE to other names.",
            ) from error
        except AMQPChannelError as error:
            raise BrokerRefused(
                f"The broker refuses the worker's exchanges and queues ({error}).",
                "grant the worker's user configure, write and read on them "
                "(rabbitmqctl set_permissions).",
            ) from error
        return queue

    async def exists(self, channel: AbstractChannel) -> bool:
        """Tell whether all is there, making nothing; closes the channel if it is not."""
        try:
            for name in (self.exchange, self.dead_letters):
                await channel.get_exchange(name, ensure=True)
            for name in (self.queue, self.dead_letters):
                await channel.declare_queue(name, passive=True)
        except ChannelNotFoundEntity:
            return False
        return True

    async def _declare_dead_letters(self, channel: AbstractChannel) -> None:
        exchange = await channel.declare_exchange(
            self.dead_letters, ExchangeType.FANOUT, durable=True
        )
        queue = await channel.declare_queue(
            self.dead_letters,
            durable=True,
            arguments={"x-queue-type": "quorum", "x-delivery-limit": LOOKS_AT_DEAD_LETTERS},
        )
        await queue.bind(exchange)
