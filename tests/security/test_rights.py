"""A worker that may do no more than it must."""

from pathlib import Path

from tests.builders import planned, started
from tests.database import rows
from tests.oracle import expected_rows
from tests.processes import StartWorker
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.security.test_secrets import user, with_password

__all__ = ["user"]


class TestAUserWithFewRights:
    async def test_consumes_and_dead_letters(
        self,
        queues: Queues,
        database: Path,
        user: str,
        node: RabbitMQNode,
        broker_url: str,
        start_worker: StartWorker,
    ) -> None:
        """It may configure nothing, write to the dead-letter exchange, and read its queue."""
        await queues.declare()
        dead_letters = queues.dead_letters.replace(".", "\\.")
        await node.ctl("set_permissions", user, "^$", f"^{dead_letters}$", f"^{queues.name}$")
        # The tables are there, so that the worker has nothing to make.
        first = await start_worker()
        await first.wait_for_log("connected")
        await queues.publish([plan := planned("e-1")])
        await first.wait_until_settled(1)
        first.terminate()
        await first.exit_code()

        worker = await start_worker(amqp_url=with_password(broker_url, user))
        await worker.wait_for_log("connected")
        await queues.publish([start := started("e-1"), b"broken"])
        await worker.wait_until_settled(2)

        assert rows(database) == expected_rows([plan, start])
        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"
