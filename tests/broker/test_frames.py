"""Bytes from the broker that are not frames, or are not those that were sent."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import planned
from tests.database import rows
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.proxy import Proxy
from tests.queues import Queues

# Only short ones: a length that promises more than ever comes is found by its silence, which
# tests/broker/test_network.py waits for.
SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda frame: bytes(len(frame)),
    "cut short": lambda frame: frame[: len(frame) // 2],
    "another end": lambda frame: frame[:-1] + b"\x00",
    "another type": lambda frame: b"\x09" + frame[1:],
}


class TestAFrame:
    @pytest.mark.parametrize("kind", SPOILED)
    async def test_that_was_spoiled_ends_the_session(
        self, queues: Queues, database: Path, proxy: Proxy, start_worker: StartWorker, kind: str
    ) -> None:
        """There is one log line and no traceback; the messages in the frame are redelivered."""
        await proxy.listen()
        worker = await start_worker(amqp_url=proxy.url)
        await worker.wait_for_log("connected")
        messages = [planned(f"e-{number}") for number in range(10)]

        proxy.spoils = SPOILED[kind]
        await queues.publish(messages)
        await worker.wait_for_log("connected", times=2)
        await worker.wait_until_settled(len(messages))

        assert len(worker.said("connection_lost")) == 1
        assert rows(database) == expected_rows(messages)
        assert await queues.take_dead_letters() == []
