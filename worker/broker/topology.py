"""The exchanges, queues and bindings that the worker needs.

It creates and verifies them. A missing or different entity is an error that says how to fix it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    AMQPChannelError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from aiormq.exceptions import ChannelAccessRefused

from worker.broker.claim import exchange_of
from worker.broker.permissions import Permissions, Prefix, Questions
from worker.errors import BrokerRefused
from worker.plurals import counted

# A quorum queue counts a delivery each time that somebody looks at a dead letter, and no number of
# looks may lose it (rabbitmq.com/docs/quorum-queues, "Poison message handling").
DEAD_LETTERS_DELIVERY_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification that found no fault in what the user may see."""

    queue: int | None
    """How many messages wait in the queue; None if the user may not see it."""
    dead_letters: int | None
    """How many dead letters wait; None if the user may not see it."""
    not_permitted: tuple[str, ...] = ()
    """What could not be verified, because the user lacks the permission."""

    @property
    def waiting(self) -> str:
        """Return how many messages wait, in words."""
        queue, dead_letters = (
            f"an unknown number of {noun}s" if count is None else counted(count, noun)
            for count, noun in ((self.queue, "message"), (self.dead_letters, "dead letter"))
        )
        return f"{queue} and {dead_letters} wait"


@dataclass(frozen=True, slots=True)
class Topology:
    """The names, and the delivery limit, from which everything else follows."""

    exchange: str
    """The durable topic exchange to which chat servers publish."""
    queue: str
    delivery_limit: int
    """How many lost deliveries of a message the broker allows before it dead-letters it itself."""

    @property
    def dead_letters(self) -> str:
        """The name of the dead-letter exchange and of its queue."""
        return f"{self.queue}.dead-letters"

    @property
    def exchanges(self) -> dict[str, ExchangeType]:
        """Every exchange with its type; the dead-letter exchange first."""
        return {self.dead_letters: ExchangeType.FANOUT, self.exchange: ExchangeType.TOPIC}

    @property
    def queues(self) -> dict[str, dict[str, str | int | bool]]:
        """Every queue with its arguments, which cannot be changed later."""
        return {
            self.dead_letters: {
                "x-queue-type": "quorum",
                "x-delivery-limit": DEAD_LETTERS_DELIVERY_LIMIT,
            },
            self.queue: {
                "x-queue-type": "quorum",
                # A second worker on the queue is a hot standby and never a second writer.
                "x-single-active-consumer": True,
                "x-delivery-limit": self.delivery_limit,
                "x-dead-letter-exchange": self.dead_letters,
                # at-least-once loses no dead letter, and requires reject-publish
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

    @property
    def needed_to_consume(self) -> Permissions:
        """The permissions of a worker whose exchanges and queues another user has made.

        Read on the queue and write on the dead letters are for consuming, all others for the claim.
        """
        claim = exchange_of(self.queue)
        return Permissions(
            configure=(claim,),
            write=(self.dead_letters, Prefix(f"{claim}.")),
            read=(self.queue, claim),
        )

    @property
    def needed_to_apply(self) -> Permissions:
        """The permissions for `apply`, a full verification, and a worker that makes its queue."""
        claim = exchange_of(self.queue)
        return Permissions(
            configure=(self.exchange, self.queue, self.dead_letters, claim),
            # A binding needs write on its queue and read on its exchange; a queue with a
            # dead-letter exchange needs read on itself and write on that exchange.
            write=(self.queue, self.dead_letters, Prefix(f"{claim}.")),
            read=(self.exchange, self.queue, self.dead_letters, claim),
        )

    async def apply(self, channel: AbstractChannel) -> None:
        """Create what is missing, and check what exists.

        Raises `BrokerRefused` for an entity that differs, and `ChannelAccessRefused`, the library's
        error, for what the user may not do; either leaves the channel closed.
        """
        try:
            for exchange in self.exchanges:
                await self._declare_exchange(channel, exchange)
            for queue in self.queues:
                await self._declare_queue(channel, queue)
            for binding in self.bindings:
                await _bind(channel, *binding)
        except ChannelPreconditionFailed as error:
            raise self._differs(error) from error
        except ChannelAccessRefused:
            raise
        except AMQPChannelError as error:
            raise BrokerRefused(
                f"The broker refuses the worker's exchanges and queues ({error}).",
                "see RabbitMQ's log.",
            ) from error

    async def missing(self, connection: AbstractConnection) -> list[str]:
        """Return the exchanges and queues that do not exist, as far as the user may see that."""
        missing = []
        async with Questions(connection) as questions:
            for name in self.exchanges:
                try:
                    await questions.ask(_exchange(name), _find_exchange, name)
                except ChannelNotFoundEntity:
                    missing.append(_exchange(name))
            for name in self.queues:
                try:
                    await questions.ask(_queue(name), _find_queue, name)
                except ChannelNotFoundEntity:
                    missing.append(_queue(name))
        return missing

    async def verify(
        self,
        connection: AbstractConnection,
        *,
        binds: bool = False,
        not_permitted: Iterable[str] = (),
    ) -> Verification:
        """Verify that everything exists as declared; creates no exchange and no queue.

        Bindings cannot be verified, because no client can list them. The one of the dead letters is
        restored. `binds` also creates the one through which messages arrive, for a first start
        only: later, that would silently undo what an operator did to stop the inflow.
        `not_permitted` lists what the user may not see, from an earlier verification. Raises
        `BrokerRefused` for what is missing or differs.
        """
        async with Questions(connection, not_permitted) as questions:
            try:
                waiting = await self._look(questions)
                await self._compare(questions)
                for exchange, queue, routing_key in self.bindings:
                    if binds or exchange == self.dead_letters:
                        subject = f"the binding of queue {queue!r} to exchange {exchange!r}"
                        await questions.ask(subject, _bind, exchange, queue, routing_key)
            except ChannelNotFoundEntity as error:
                raise BrokerRefused(
                    f"An exchange or queue of the worker is missing on the broker ({error}).",
                    "create it with 'projection-worker topology apply'. Messages published "
                    "meanwhile may be lost: ask the publishers to publish them again.",
                ) from error
            except ChannelPreconditionFailed as error:
                raise self._differs(error) from error
            return Verification(
                waiting.get(self.queue),
                waiting.get(self.dead_letters),
                tuple(questions.not_permitted),
            )

    async def _look(self, questions: Questions) -> dict[str, int | None]:
        """Return how many messages wait in each queue; raises if something does not exist."""
        for name in self.exchanges:
            await questions.ask(_exchange(name), _find_exchange, name)
        return {name: await questions.ask(_queue(name), _find_queue, name) for name in self.queues}

    async def _compare(self, questions: Questions) -> None:
        """Declare what exists, which the broker refuses if the arguments differ."""
        for name in self.exchanges:
            # Declaring one that the user may not see could create it.
            if _exchange(name) not in questions.not_permitted:
                await questions.ask(f"the type of {_exchange(name)}", self._declare_exchange, name)
        for name in self.queues:
            if _queue(name) not in questions.not_permitted:
                await questions.ask(f"the arguments of {_queue(name)}", self._declare_queue, name)

    async def _declare_exchange(self, channel: AbstractChannel, name: str) -> None:
        await channel.declare_exchange(name, self.exchanges[name], durable=True)

    async def _declare_queue(self, channel: AbstractChannel, name: str) -> None:
        await channel.declare_queue(name, durable=True, arguments=dict(self.queues[name]))

    def _differs(self, error: Exception) -> BrokerRefused:
        return BrokerRefused(
            f"The broker has an exchange or queue with other arguments ({error}).",
            f"drain and delete it (rabbitmqctl delete_queue {self.queue}), then run "
            "'projection-worker topology apply'; or set WORKER_QUEUE or WORKER_EXCHANGE to other "
            "names.",
        )


def _exchange(name: str) -> str:
    return f"exchange {name!r}"


def _queue(name: str) -> str:
    return f"queue {name!r}"


async def _find_exchange(channel: AbstractChannel, name: str) -> None:
    await channel.get_exchange(name, ensure=True)


async def _find_queue(channel: AbstractChannel, name: str) -> int:
    queue = await channel.declare_queue(name, passive=True)
    return queue.declaration_result.message_count or 0


async def _bind(channel: AbstractChannel, exchange: str, name: str, routing_key: str) -> None:
    queue = await channel.get_queue(name, ensure=False)
    await queue.bind(exchange, routing_key)
