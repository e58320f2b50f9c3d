"""What tests of several folders need: a broker of their own, and workers as processes."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.processes import StartWorker, WorkerProcess, environment, worker_process
from tests.proxy import Proxy
from tests.queues import Queues, queues_on
from tests.rabbitmq import RabbitMQNode, server_program

# A shell that runs the tests in the background ignores Ctrl-C, and their processes would inherit it
# (signal(7): what is ignored stays so through execve, what has a handler does not).
signal.signal(signal.SIGINT, signal.default_int_handler)


# The node belongs to no event loop, so that one may start it and those of the tests use it.
@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running_node() -> AsyncIterator[RabbitMQNode]:
    if server_program() is None and "CI" not in os.environ:
        pytest.skip("RabbitMQ is not installed; `make setup` installs it")
    async with RabbitMQNode() as node:
        yield node


@pytest.fixture
async def node(running_node: RabbitMQNode) -> AsyncIterator[RabbitMQNode]:
    """One private RabbitMQ for the whole run; whoever stops it finds it running afterwards."""
    yield running_node
    await running_node.start()


@pytest.fixture
def broker_url(node: RabbitMQNode) -> str:
    return node.url


@pytest.fixture
async def queues(broker_url: str) -> AsyncIterator[Queues]:
    async with queues_on(broker_url) as queues:
        yield queues


@pytest.fixture
async def proxy(node: RabbitMQNode) -> AsyncIterator[Proxy]:
    async with Proxy(node.port) as proxy:
        yield proxy


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "projection.db"


@pytest.fixture
async def start_command(
    queues: Queues, database: Path, tmp_path: Path
) -> AsyncIterator[StartWorker]:
    """Give a function that starts a command of the worker, with settings as keywords."""
    common = {**queues.settings, "database": database, "secrets_dir": tmp_path}
    workers: list[WorkerProcess] = []
    async with AsyncExitStack() as stack:

        async def start(*arguments: str, **settings: object) -> WorkerProcess:
            of_this = environment(**common | settings)
            started = worker_process(*arguments, settings=of_this, folder=tmp_path)
            worker = await stack.enter_async_context(started)
            if arguments == ("run",):
                workers.append(worker)
            return worker

        yield start
    for worker in workers:
        worker.require_calm()


@pytest.fixture
def start_worker(start_command: StartWorker) -> StartWorker:
    """Give a function that starts a worker, with settings as keywords."""

    async def start(**settings: object) -> WorkerProcess:
        return await start_command("run", **settings)

    return start
