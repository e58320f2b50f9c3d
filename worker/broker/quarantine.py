"""The quarantine: one delivery at a time, until no message is suspected of killing its consumers.

A message that kills the process, or the client library before it calls our code, does so on every
redelivery. Each time, the broker counts a lost delivery for every message that was unacked with it.
So every session begins with a window of one message, which widens only after a message that is not
suspect has been decided. Promise: the broker's delivery limit catches the culprit alone, and no
other message loses more than two deliveries to it.
"""

import asyncio
from collections.abc import Coroutine

from aiormq.abc import AbstractChannel, DeliveredMessage

from worker.broker.life import Life


class Quarantine:
    """The narrow and the wide window on the channel of one session.

    They are two consumers. A queue with a single active consumer serves the narrow one until it is
    cancelled.
    """

    def __init__(self, channel: AbstractChannel, life: Life, queue: str) -> None:
        """Prepare to consume from this queue; sends nothing yet."""
        self._channel = channel
        self._life = life
        self._queue = queue
        self._narrow_tag: str | None = None
        self._wide_tag = ""

    @property
    def is_on(self) -> bool:
        """Whether only one message is delivered at a time."""
        return self._narrow_tag is not None

    async def begin(self, prefetch: int) -> None:
        """Let the broker deliver one message at a time; `prefetch` is for the wide window."""
        # Both consumers start now, so that no other worker's consumer gets between them. If they
        # have to wait, RabbitMQ 3 activates the first one, and RabbitMQ 4 the one with the higher
        # priority or, if equal, the larger prefetch.
        self._narrow_tag = await self._consume(prefetch=1, priority=1)
        self._wide_tag = await self._consume(prefetch, priority=0)

    async def end(self) -> None:
        """Leave the queue to the wide window, unless that has been done already.

        Call it while the narrow window's only delivery is still unacked: then no further delivery
        can be on its way to the narrow window, to come back and count as lost.
        """
        if self._narrow_tag is None or self._life.drains:
            return
        narrow_tag, self._narrow_tag = self._narrow_tag, None
        await self._ask(self._cancel(narrow_tag))

    async def resize(self, prefetch: int) -> None:
        """Replace the wide window by one of this size; unacked deliveries stay unacked."""
        await self._ask(self._replace(prefetch))

    async def _ask(self, request: Coroutine[None, None, None]) -> None:
        asking = asyncio.create_task(request)
        asking.add_done_callback(self._life.end_with)
        # A drain ends the wait, because a silent broker never answers. The request itself is not
        # cancelled: that would close the channel, which still has a delivery to ack.
        await self._life.wait(asking)

    async def _cancel(self, tag: str) -> None:
        with self._life.depends_on_channel():
            await self._channel.basic_cancel(tag)

    async def _replace(self, prefetch: int) -> None:
        with self._life.depends_on_channel():
            replaced, self._wide_tag = self._wide_tag, await self._consume(prefetch, priority=0)
            await self._channel.basic_cancel(replaced)

    async def _consume(self, prefetch: int, priority: int) -> str:
        # The broker applies a prefetch to consumers that start after it is set
        # (rabbitmq.com/docs/consumer-prefetch).
        await self._channel.basic_qos(prefetch_count=prefetch)
        answer = await self._channel.basic_consume(
            self._queue, _never_called, arguments={"x-priority": priority}
        )
        return str(answer.consumer_tag)


async def _never_called(_: DeliveredMessage) -> None:
    """Do nothing: the library requires a callback, but the intake takes deliveries before it."""
