import struct

from tests.letters import EVERY, place_of, requeue_all, take_back, unheard
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.raw_amqp import raw_publisher
from tests.waiting import eventually
from worker.broker.dead_letter_queue import dead_letter_queue


def long_text(name: bytes, value: bytes) -> bytes:
    """Return one entry of a header table as it is sent."""
    return bytes([len(name)]) + name + b"S" + struct.pack(">I", len(value)) + value


class TestGarbage:
    """Messages that no client library would publish can be listed, requeued and discarded."""

    async def test_in_headers_is_left_out_and_named(
        self, queues: Queues, node: RabbitMQNode
    ) -> None:
        """A header that cannot be encoded again is dropped, and nothing else of the message."""
        await queues.declare()
        table = long_text(b"odd", b"\xff\xfe") + long_text(b"trace", b"abc")
        async with raw_publisher(node.port) as raw:
            await raw.publish(queues.dead_letters, b"\xff", headers=table)

        assert await requeue_all(queues) == [["odd"]]

        (message,) = await take_back(queues)
        assert message.body == b"\xff"
        assert message.headers["trace"] == "abc"
        assert message.headers["x-requeue-count"] == 1

    async def test_does_not_hide_the_reason_of_the_broker(
        self, queues: Queues, node: RabbitMQNode
    ) -> None:
        """Undecodable headers and a body that is not a message do not hide the reason."""
        await queues.declare()
        table = long_text(b"\xff", b"?") + long_text(b"x-first-death-reason", b"delivery_limit")
        async with raw_publisher(node.port) as raw:
            await raw.publish(queues.dead_letters, b"\x00\xff", headers=table)
            await raw.publish(queues.dead_letters, b"{}", headers=table, timestamp=b"\xff" * 8)

        async with dead_letter_queue(*place_of(queues)) as queue:
            letters = [letter async for letter in queue.letters(EVERY)]
            for letter in letters:
                await queue.requeue([letter], unheard)

        assert [letter.reason for letter in letters] == ["delivery_limit", "delivery_limit"]
        assert [each.body for each in await take_back(queues)] == [b"\x00\xff", b"{}"]

    async def test_that_the_broker_dead_lettered_has_its_reason_and_time(
        self, queues: Queues
    ) -> None:
        """A message that expired has that reason, and the queue that it was in."""
        await queues.declare()
        await queues.publish([b"\xff"], headers={"x-reason": "the publisher's"}, expiration=0)

        async def look() -> str | None:
            async with dead_letter_queue(*place_of(queues)) as queue:
                async for letter in queue.letters(EVERY):
                    assert queues.name in letter.detail
                    assert letter.rejected_at is not None
                    return letter.reason
            return None

        assert await eventually(look) == "expired"
