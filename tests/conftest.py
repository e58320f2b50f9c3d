"""Fixtures for tests of several folders: a private broker, and workers as processes."""

import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.places import Place
from tests.postgres import PostgresDatabase, PostgresNode
from tests.postgres_programs import programs, server_programs
from tests.processes import StartWorker, WorkerProcess, environment, worker_process
from tests.proxy import Proxy
from tests.queues import Queues, queues_on
from tests.rabbitmq import RabbitMQNode, server_program
from worker.store.postgres.address import Address

# A shell that runs the tests in the background ignores Ctrl-C, and their processes would inherit
# that: across execve, an ignored signal stays ignored, and one with a handler does not (signal(7)).
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests start hundreds of processes, each of which would compile the worker again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

POSTGRES = "postgres"

# The slowest files. They start first, because one that started last would be waited for alone.
LONGEST = (
    "chaos/test_chaos.py",
    "chaos/test_postgres.py",
    "broker/test_cluster.py",
    "broker/test_every_moment.py",
    "broker/test_session.py",
    "security/test_rights.py",
    "broker/test_network.py",
    "broker/test_requeue.py",
    "broker/test_claim.py",
    "crash/test_kill.py",
    "benchmarks/test_benchmarks.py",
    "broker/test_topology.py",
    "crash/test_every_boundary.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-broker", action="store_true", help="leave out what needs RabbitMQ or PostgreSQL"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the slowest files first, and keep the others in order."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if config.getoption("--no-broker"):
        needing = [item for item in items if _needs_server(item)]
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


def _needs_server(item: pytest.Item) -> bool:
    servers = {"running_node", "postgres_programs"}
    in_postgres = (spec := getattr(item, "callspec", None)) and spec.params.get("place") == POSTGRES
    return bool(in_postgres or servers & {*getattr(item, "fixturenames", ())})


# The node belongs to no event loop, so one loop may start it and the tests' loops may use it.
@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running_node() -> AsyncIterator[RabbitMQNode]:
    if server_program() is None and "CI" not in os.environ:
        pytest.skip("RabbitMQ is not installed; `make setup` installs it")
    async with RabbitMQNode() as node:
        yield node


@pytest.fixture
async def node(running_node: RabbitMQNode) -> AsyncIterator[RabbitMQNode]:
    """Return the private node of the whole run; a test that stops it may leave it stopped."""
    yield running_node
    await running_node.start()


@pytest.fixture
def broker_url(node: RabbitMQNode) -> str:
    return node.url


@pytest.fixture(scope="session")
def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs; what needs a server asks for this."""
    if server_programs() is None and "CI" not in os.environ:
        pytest.skip("PostgreSQL is not installed; `make setup` installs it")
    return programs()


# It belongs to no event loop either.
@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running_postgres(postgres_programs: Path) -> AsyncIterator[PostgresNode]:
    async with PostgresNode() as postgres:
        yield postgres


@pytest.fixture
async def postgres(running_postgres: PostgresNode) -> AsyncIterator[PostgresNode]:
    """Return the node of the whole run; a test that stops it may leave it stopped."""
    yield running_postgres
    await running_postgres.start()


@pytest.fixture
async def postgres_database(postgres: PostgresNode) -> AsyncIterator[PostgresDatabase]:
    """Return a fresh database on the node of the whole run."""
    database = await postgres.create_database()
    yield database
    await postgres.start()
    await postgres.drop_database(database)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_database(running_postgres: PostgresNode) -> PostgresDatabase:
    """Return one database for the whole run, in which each test has a schema of its own."""
    return await running_postgres.create_database()


@pytest.fixture
def schema(shared_database: PostgresDatabase) -> Address:
    """Return the address of a schema that nobody has made yet."""
    return Address(shared_database.url, schema=f"test_{secrets.token_hex(4)}")


@pytest.fixture(params=["sqlite", POSTGRES])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return where a fresh database may be made: what every store promises is tested in each."""
    if request.param != POSTGRES:
        return tmp_path / "p.db"
    made: Address = request.getfixturevalue("schema")
    return made


@pytest.fixture
def database_url(postgres_database: PostgresDatabase) -> str:
    """Return the address of a fresh database, as a worker's setting."""
    return postgres_database.url


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
    """Return a function that starts a command of the worker, with settings as keywords."""
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
    """Return a function that starts a worker, with settings as keywords."""

    async def start(**settings: object) -> WorkerProcess:
        return await start_command("run", **settings)

    return start
