"""The quarantine: one delivery at a time, until no message is suspected to kill its consumers.

Whatever kills the process, or the client library before any code of ours, kills it again when it
comes again, and each time the broker counts a lost delivery for everything that was out with it. So
every session begins with a window of one message, and the window becomes wide only once a message
that is no suspect has been decided. Promise: the broker's delivery limit takes the culprit alone,
and no neighbour loses more than two deliveries to it.
"""

import asyncio

from aiormq.abc import AbstractChannel, DeliveredMessage

from worker.broker.life import Life


class Quarantine:
    """The narrow window and the wide one, on the channel of one session.

    Two consumers, of which a queue with a single active consumer serves the narrow one until it is
    cancelled.
    """

    def __init__(self, channel: AbstractChannel, life: Life, queue: str) -> None:
        """Consume from this queue; nothing is asked of the channel yet."""
        self._channel = channel
        self._life = life
        self._queue = queue
        self._narrow_tag: str | None = None

    @property
    def is_on(self) -> bool:
        """Whether one message is out at a time."""
        return self._narrow_tag is not None

    async def begin(self, prefetch: int) -> None:
        """Let the broker deliver one message at a time; `prefetch` is that of the wide window."""
        # Both from the start, so that no other worker's consumer stands between them. Where they
        # have to wait, RabbitMQ 3 activates the first one, and RabbitMQ 4 the one with the higher
        # priority, or else with the larger prefetch.
        self._narrow_tag = await self._consume(prefetch=1, priority=1)
        await self._consume(prefetch, priority=0)

    async def end(self) -> None:
        """Leave the queue to the wide window, if that has not been done.

        Called while the only delivery of the narrow one is not acked yet: no further one can be on
        its way to it then, and come back counted as lost.
        """
        if self._narrow_tag is None or self._life.drains:
            return
        narrow_tag, self._narrow_tag = self._narrow_tag, None
        cancelling = asyncio.create_task(self._cancel(narrow_tag))
        cancelling.add_done_callback(self._life.end_with)
        # Not longer than until a drain: a broker that has fallen silent answers nothing, and to
        # cancel the request would close the channel, on which there is something to ack.
        await self._life.wait(cancelling)

    async def _cancel(self, tag: str) -> None:
        with self._life.depends_on_channel():
            await self._channel.basic_cancel(tag)

    async def _consume(self, prefetch: int, priority: int) -> str:
        # The broker applies a prefetch to the consumers that begin after it
        # (rabbitmq.com/docs/consumer-prefetch).
        await self._channel.basic_qos(prefetch_count=prefetch)
        answer = await self._channel.basic_consume(
            self._queue, _taken_already, arguments={"x-priority": priority}
        )
        return str(answer.consumer_tag)


async def _taken_already(_: DeliveredMessage) -> None:
    """Stand for what the library would do with a delivery, which the intake takes before."""
