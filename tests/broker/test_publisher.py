import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.letters import place_of
from tests.proxy import Proxy
from tests.queues import Queues
from worker.broker.publisher import IN_FLIGHT, publish_all, publisher
from worker.errors import BrokerRefused, SessionLost


class TestAPublish:
    async def test_is_not_confirmed_if_one_of_its_message_id_came_back(
        self, queues: Queues
    ) -> None:
        """The library cannot tell them apart, so if one is returned, none is confirmed."""
        address, topology = place_of(queues)
        await queues.declare()
        async with queues.channel() as channel:
            await (await channel.get_queue(queues.name)).unbind(queues.exchange, "#")
            await (await channel.get_queue(queues.name)).bind(queues.exchange, "there")
        same = {"message_id": "same"}

        async with publisher(
            address, queues.exchange, "test", topology.needed_to_consume
        ) as opened:
            results = await asyncio.gather(
                *(
                    opened.publish(b"", routing_key=key, properties=same)
                    for key in ("nowhere", "there", "there")
                ),
                opened.publish(b"", routing_key="there", properties={"message_id": "other"}),
                return_exceptions=True,
            )

        assert [type(result) for result in results] == [BrokerRefused] * 3 + [type(None)]

    async def test_of_many_ends_with_the_connection(self, queues: Queues, proxy: Proxy) -> None:
        """No publish that the library has not sent yet waits forever."""
        await queues.declare()
        await proxy.listen()
        address, topology = place_of(queues, proxy.url)
        confirmed = 0

        def cut_after_some() -> None:
            nonlocal confirmed
            confirmed += 1
            if confirmed == IN_FLIGHT // 10:
                proxy.cut()

        async def many() -> AsyncIterator[tuple[bytes, str]]:
            for _ in range(3 * IN_FLIGHT):
                yield b"x", "k"

        async with publisher(
            address, queues.exchange, "test", topology.needed_to_consume
        ) as opened:
            with pytest.raises(SessionLost):
                await publish_all(opened, many(), cut_after_some)

        assert IN_FLIGHT // 10 <= confirmed < 3 * IN_FLIGHT
