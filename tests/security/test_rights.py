"""Users of the broker who have only the rights that they need."""

import json
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.builders import planned, started
from tests.cli.commands import run_command
from tests.database import rows
from tests.health import read
from tests.letters import headers, put
from tests.oracle import expected_rows
from tests.processes import StartWorker, WorkerProcess
from tests.queues import DELIVERY_LIMIT, Queues
from tests.rabbitmq import RabbitMQNode
from tests.security.password import with_password
from tests.waiting import eventually
from worker.broker.claim import exchange_of
from worker.broker.topology import Topology

NOTHING = "^$"
EVERYTHING = ".*"


@dataclass
class Limited:
    """A user whose permissions a test chooses."""

    name: str
    url: str
    node: RabbitMQNode

    async def may(
        self, *, configure: str = NOTHING, write: str = NOTHING, read: str = NOTHING
    ) -> None:
        """Grant these permissions and nothing else."""
        await self.node.ctl("set_permissions", self.name, configure, write, read)

    async def may_consume(self, queues: Queues) -> None:
        """Grant the permissions that docs/operate.md names for a worker of this queue."""
        topology = Topology(queues.exchange, queues.name, DELIVERY_LIMIT)
        command = topology.needed_to_consume.command(self.name, "/")
        await self.node.ctl(*shlex.split(command)[1:])

    async def may_not_claim(self, queues: Queues) -> None:
        """Grant the permissions for consuming, and nothing else."""
        await self.may(write=only(queues.dead_letters), read=only(queues.name))

    async def is_granted_what(self, hint: str) -> None:
        """Run the command of a hint exactly as it is printed."""
        found = re.search(r"run rabbitmqctl (.*?)(, or let another user.*)?$", hint.strip())
        assert found, hint
        await self.node.ctl(*shlex.split(found[1]))


@pytest.fixture
def limited(user: str, node: RabbitMQNode) -> Limited:
    return Limited(user, with_password(node.url, user), node)


def only(name: str) -> str:
    return f"^{re.escape(name)}$"


async def refusal(worker: WorkerProcess) -> dict[str, Any]:
    """Wait for a worker that does not start, and return the line that says why."""
    assert await worker.exit_code() == 1
    (line,) = worker.said("failed", level="error")
    return line


def metric(worker: WorkerProcess, name: str) -> float:
    (line,) = worker.said("health_served")
    found = re.search(rf"^{name} (.*)$", read(f"{line['url']}/metrics"), re.MULTILINE)
    assert found
    return float(found[1])


@pytest.mark.parametrize("configure", [NOTHING, EVERYTHING], ids=["fixed", "configures"])
class TestAUserWithFewRights:
    """Another user created the queues; this one reads one and writes to its exchange."""

    @pytest.mark.parametrize("is_first", [True, False], ids=["new file", "old file"])
    async def test_consumes_and_dead_letters(
        self,
        queues: Queues,
        database: Path,
        limited: Limited,
        start_worker: StartWorker,
        configure: str,
        *,
        is_first: bool,
    ) -> None:
        """This works with and without the right to configure, and with and without a file."""
        await queues.declare()
        if not is_first:
            first = await start_worker()
            await first.wait_for_log("connected")
            first.terminate()
            await first.exit_code()
        write, read = only(queues.dead_letters), only(queues.name)
        await limited.may(configure=configure, write=write, read=read)

        worker = await start_worker(amqp_url=limited.url)
        await worker.wait_for_log("connected")
        await queues.publish([plan := planned("e-1"), start := started("e-1"), b"broken"])
        await worker.wait_until_settled(3)

        assert rows(database) == expected_rows([plan, start])
        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"

    async def test_is_told_that_it_may_not_read(
        self, queues: Queues, limited: Limited, start_worker: StartWorker, configure: str
    ) -> None:
        """The start fails, and names the command that grants what is missing."""
        await queues.declare()
        await limited.may(configure=configure, write=only(queues.dead_letters))
        refused = await refusal(await start_worker(amqp_url=limited.url))

        await limited.is_granted_what(refused["hint"])
        worker = await start_worker(amqp_url=limited.url)
        await worker.wait_for_log("connected")
        await queues.publish([planned("e-1"), b"broken"])
        await worker.wait_until_settled(2)

        assert f"user {limited.name!r} may not read queue {queues.name!r}" in refused["reason"]

    async def test_is_told_that_it_may_not_write(
        self,
        queues: Queues,
        database: Path,
        limited: Limited,
        start_worker: StartWorker,
        configure: str,
    ) -> None:
        """Dead letters wait for the permission without a restart; other messages are projected."""
        await queues.declare()
        await limited.may(configure=configure, read=only(queues.name))
        worker = await start_worker(amqp_url=limited.url)
        await worker.wait_for_log("connected")
        await queues.publish([plan := planned("e-1"), b"broken", start := started("e-1")])
        blocked = await worker.wait_for_log("blocked")
        await eventually(lambda: rows(database) == expected_rows([plan, start]))

        await limited.is_granted_what(blocked["hint"])
        await worker.wait_for_log("unblocked")
        await worker.wait_until_settled(3)

        assert f"may not write to exchange {queues.dead_letters!r}" in blocked["reason"]
        assert worker.said("connection_lost") == []
        assert len(await queues.take_dead_letters()) == 1


class TestAUserWithTheRightsOfAHint:
    async def test_makes_the_exchanges_and_queues(
        self, queues: Queues, database: Path, limited: Limited, start_worker: StartWorker
    ) -> None:
        """The rights that the refusal of the first start names are sufficient and necessary."""
        await limited.may(read=only(queues.name))
        refused = await refusal(await start_worker(amqp_url=limited.url))

        await limited.is_granted_what(refused["hint"])
        worker = await start_worker(amqp_url=limited.url)
        await worker.wait_for_log("connected")
        await queues.publish([plan := planned("e-1"), b"broken"])
        await worker.wait_until_settled(2)

        assert "may not make the exchanges and queues" in refused["reason"]
        assert "projection-worker topology apply" in refused["hint"]
        assert rows(database) == expected_rows([plan])
        assert len(await queues.take_dead_letters()) == 1


class TestWhatAUserMayNotSee:
    async def test_is_no_depth_of_zero(
        self, queues: Queues, limited: Limited, start_worker: StartWorker
    ) -> None:
        """RabbitMQ 4 shows a queue only to users with a permission on it; 3.10 shows it to all."""
        await queues.declare()
        first = await start_worker()
        await queues.publish([b"broken"])
        await first.wait_until_settled(1)
        first.terminate()
        await first.exit_code()
        await limited.may(read=only(queues.name))

        worker = await start_worker(amqp_url=limited.url)
        await worker.wait_for_log("connected")
        # Unknown before the first look, which finds both.
        await eventually(lambda: metric(worker, "projection_queue_messages") == 0)

        depth = metric(worker, "projection_dead_letter_queue_messages")
        assert depth == 1 or math.isnan(depth)

    async def test_is_named_by_the_commands_that_look(
        self, queues: Queues, database: Path, limited: Limited, tmp_path: Path
    ) -> None:
        """`check` warns, and `topology show` does not claim that all is well."""
        await queues.declare()
        await limited.may(write=only(queues.dead_letters), read=only(queues.name))
        settings: dict[str, Any] = {
            **queues.settings,
            "database": database,
            "amqp_url": limited.url,
        }

        for arguments in (["topology", "show"], ["check"]):
            code, out, err = await run_command(*arguments, folder=tmp_path, **settings)

            assert code == 0, err
            assert f"the arguments of queue '{queues.name}'" in out
            assert "0 messages and 0 dead letters wait" in out


class TestACommand:
    async def test_says_which_permission_it_needs(
        self, queues: Queues, database: Path, limited: Limited, tmp_path: Path
    ) -> None:
        """It works once the command that it names has granted the permission."""
        await queues.declare()
        await limited.may()
        settings: dict[str, Any] = {
            **queues.settings,
            "database": database,
            "amqp_url": limited.url,
        }
        publish = ["publish", "--kind", "event_started", "--event-id", "e-1", "--sequence", "1"]
        needs = [
            (["topology", "apply"], "may not make the exchanges and queues"),
            (publish, f"may not write to exchange '{queues.exchange}'"),
            (["dead-letters", "list"], f"may not read queue '{queues.dead_letters}'"),
        ]

        for arguments, sentence in needs:
            code, out, err = await run_command(*arguments, folder=tmp_path, **settings)
            assert code == 1, out
            assert sentence in err.replace("\n", " ")

            await limited.is_granted_what(err.replace("\n", " "))
            code, _, err = await run_command(*arguments, folder=tmp_path, **settings)
            assert code == 0, err
            await limited.may()

    async def test_requeues_nothing_that_it_may_not_publish(
        self, queues: Queues, database: Path, limited: Limited, tmp_path: Path
    ) -> None:
        """The dead letter stays, and the command says which permission it needs."""
        await queues.declare()
        await put(queues, [planned("e-1", id="m-1")], headers=headers())
        await limited.may(read=only(queues.dead_letters))
        settings: dict[str, Any] = {
            **queues.settings,
            "database": database,
            "amqp_url": limited.url,
        }
        requeue = ["dead-letters", "requeue", "--id", "m-1", "--yes"]

        code, _, err = await run_command(*requeue, folder=tmp_path, **settings)

        assert code == 1
        assert "may not write to exchange 'amq.default'" in err.replace("\n", " ")
        assert len(await queues.take_dead_letters()) == 1


class TestAClaim:
    async def test_of_a_user_who_may_consume_keeps_another_file_away(
        self, queues: Queues, limited: Limited, tmp_path: Path, start_worker: StartWorker
    ) -> None:
        """The permissions in docs/operate.md suffice, and no line complains."""
        await queues.declare()
        await limited.may_consume(queues)
        worker = await start_worker(amqp_url=limited.url)
        await worker.wait_for_log("connected")

        second = await start_worker(amqp_url=limited.url, database=tmp_path / "other.db")

        assert await second.exit_code() == 1
        assert "topology release" in second.said("failed")[0]["hint"]
        assert worker.said("queue_not_claimed") == []

    async def test_that_is_not_permitted_is_told_once(
        self, queues: Queues, database: Path, limited: Limited, start_worker: StartWorker
    ) -> None:
        """The worker consumes; one line names what to grant, however many sessions follow."""
        await queues.declare()
        await limited.may_not_claim(queues)
        worker = await start_worker(amqp_url=limited.url)
        line = await worker.wait_for_log("queue_not_claimed")
        await worker.wait_for_log("connected")
        await limited.node.ctl("close_all_connections", "by an operator")
        await worker.wait_for_log("connected", times=2)
        await queues.publish([plan := planned("e-1"), start := started("e-1")])
        await worker.wait_until_settled(2)

        assert exchange_of(queues.name) in line["hint"]
        assert len(worker.said("queue_not_claimed")) == 1
        assert rows(database) == expected_rows([plan, start])

    async def test_that_is_not_permitted_is_warned_of_by_check(
        self,
        queues: Queues,
        database: Path,
        limited: Limited,
        tmp_path: Path,
        start_worker: StartWorker,
    ) -> None:
        """It names the permissions to grant; `topology show` still shows everything else."""
        worker = await start_worker()
        await worker.wait_for_log("connected")
        await limited.may_not_claim(queues)
        settings: dict[str, Any] = {
            **queues.settings,
            "amqp_url": limited.url,
            "database": database,
        }

        _, out, _ = await run_command("check", "--json", folder=tmp_path, **settings)
        code, shown, _ = await run_command("topology", "show", folder=tmp_path, **settings)

        (claim,) = (each for each in json.loads(out) if each["subject"] == "claim")
        assert claim["verdict"] == "warn"
        assert exchange_of(queues.name) in claim["fix"]
        assert code == 0
        assert "may not claim queue" in shown
