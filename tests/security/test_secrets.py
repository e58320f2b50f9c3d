"""A password must not appear in anything that the worker writes."""

from pathlib import Path
from typing import Any

import pytest

from tests.builders import planned
from tests.cli.commands import run_command
from tests.health import read
from tests.processes import StartWorker, WorkerProcess
from tests.proxy import Proxy
from tests.queues import Queues
from tests.rabbitmq import RabbitMQNode
from tests.security.password import CANARY, with_password


class TestThePassword:
    async def test_is_in_nothing_that_a_worker_writes(
        self,
        queues: Queues,
        database: Path,
        user: str,
        node: RabbitMQNode,
        proxy: Proxy,
        start_worker: StartWorker,
    ) -> None:
        """It is in no log line (even at debug), file, metric or argument, whatever happens."""
        await proxy.listen()
        worker = await start_worker(amqp_url=with_password(proxy.url, user))
        await worker.wait_for_log("connected")
        await queues.publish([planned("e-1"), b"broken"])
        await worker.wait_until_settled(2)
        proxy.cut()
        await worker.wait_for_log("connected", times=2)
        await node.ctl("clear_permissions", user)
        proxy.cut()
        await worker.wait_for_log("connection_refused")
        (line,) = worker.said("health_served")
        served = [read(f"{line['url']}/{path}") for path in ("metrics", "livez")]
        arguments = told_to(worker, "cmdline")
        worker.terminate()
        await worker.exit_code()

        files = [each.read_bytes() for each in database.parent.iterdir() if each.is_file()]
        assert CANARY not in "".join([worker.output, arguments, *served])
        assert not any(CANARY.encode() in content for content in files)
        assert len(files) >= 2

    @pytest.mark.parametrize(
        "command",
        [
            ["check"],
            ["check", "--json"],
            ["topology", "show"],
            ["topology", "export"],
            ["dead-letters", "list"],
            ["publish", "--kind", "event_started", "--event-id", "e-1", "--sequence", "1"],
        ],
        ids=" ".join,
    )
    @pytest.mark.parametrize("flaw", ["refused", "absent"])
    async def test_is_in_nothing_that_a_command_prints(
        self, queues: Queues, tmp_path: Path, broker_url: str, command: list[str], flaw: str
    ) -> None:
        """This holds if the broker refuses the command, and if there is no broker."""
        url = broker_url.replace("guest:guest", f"nobody:{CANARY}")
        if flaw == "absent":
            url = f"amqp://nobody:{CANARY}@127.0.0.1:1/"
        settings: dict[str, Any] = {
            **queues.settings,
            "database": tmp_path / "p.db",
            "amqp_url": url,
        }

        _, out, err = await run_command(*command, folder=tmp_path, **settings)

        assert out + err
        assert CANARY not in out + err

    async def test_comes_from_a_file_that_only_the_worker_reads(
        self, tmp_path: Path, broker_url: str, user: str, start_worker: StartWorker
    ) -> None:
        """The process's environment then contains nothing of it."""
        (tmp_path / "worker_amqp_url").write_text(with_password(broker_url, user))
        worker = await start_worker(amqp_url=None)
        await worker.wait_for_log("connected")

        assert CANARY not in told_to(worker, "environ")


def told_to(worker: WorkerProcess, what: str) -> str:
    """Return a process's arguments or environment."""
    return Path(f"/proc/{worker.pid}/{what}").read_text()
