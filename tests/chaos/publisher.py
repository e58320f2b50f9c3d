"""The chat servers: they publish all the time, with confirms, and reconnect to the broker.

This module uses the library and nothing of the worker, which is under test.
"""

import asyncio
from random import Random

import aio_pika
from aio_pika.abc import AbstractExchange
from aio_pika.exceptions import AMQPError

from tests.chaos.ledger import Ledger, Publication
from tests.chaos.moments import pause
from tests.chaos.traffic import Traffic

# Portions of about thirty messages at this interval make some 250 messages a second.
PORTION_SECONDS = 0.12
RETRY_SECONDS = 0.2
CONNECT_SECONDS = 10
# Longer than any alarm lasts. A publish without a confirm by then gets another connection.
CONFIRM_SECONDS = 60
LOST = (AMQPError, OSError, RuntimeError, TimeoutError)


class Publisher:
    """Publishes until it is told to finish."""

    def __init__(
        self, url: str, exchange: str, ledger: Ledger, traffic: Traffic, rng: Random
    ) -> None:
        """Publish directly to the broker, not through the proxy."""
        self._url = url
        self._exchange = exchange
        self._ledger = ledger
        self._traffic = traffic
        self._rng = rng
        self._again: list[Publication] = []
        self._is_finishing = False
        self.connections = 0

    def finish(self) -> None:
        """Let `run` publish what was held back, and return."""
        self._is_finishing = True

    async def run(self) -> None:
        """Publish, whatever happens to the broker."""
        while not (self._is_finishing and not self._again):
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    connection = await aio_pika.connect(self._url, heartbeat=10)
            except LOST:
                await pause(RETRY_SECONDS)
                continue
            self.connections += 1
            try:
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                await self._publish(await channel.get_exchange(self._exchange, ensure=False))
            except LOST:
                await pause(RETRY_SECONDS)
            finally:
                await _close(connection)

    async def _publish(self, exchange: AbstractExchange) -> None:
        """Publish until all is done, or something is not confirmed."""
        while not self._is_finishing:
            again, self._again = self._again, []
            if not await self._together(exchange, again + await self._traffic.portion()):
                return
            await pause(PORTION_SECONDS)
        rest = self._again + self._traffic.rest()
        self._again = []
        await self._together(exchange, rest, keeps_all=True)

    async def _together(
        self, exchange: AbstractExchange, sent: list[Publication], *, keeps_all: bool = False
    ) -> bool:
        """Publish all and wait for their confirms; return whether all of them came.

        Half of the others are published again later, and half never: some chat servers do that, and
        some do not.
        """
        for each in sent:
            self._ledger.attempt(each)
        # gather returns cancelled publishes, too: the library cancels them when a channel is lost.
        failed = await asyncio.gather(
            *(self._one(exchange, each) for each in sent), return_exceptions=True
        )
        unconfirmed = [each for each, error in zip(sent, failed, strict=True) if error is not None]
        self._again += [each for each in unconfirmed if keeps_all or self._rng.random() < 0.5]
        return not unconfirmed

    async def _one(self, exchange: AbstractExchange, publication: Publication) -> None:
        message = aio_pika.Message(
            publication.body,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=publication.identity,
        )
        async with asyncio.timeout(CONFIRM_SECONDS):
            await exchange.publish(message, publication.routing_key, mandatory=True)
        self._ledger.confirm(publication)


async def _close(connection: aio_pika.abc.AbstractConnection) -> None:
    try:
        async with asyncio.timeout(1):
            await connection.close()
    except LOST:
        return
