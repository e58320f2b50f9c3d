"""The image as a container: `make image-test` builds it and runs these tests.

They are not part of `make test`, which needs neither an engine nor a base image: pytest collects a
file of this name only if it is given on the command line.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from random import Random

import pytest

from tests.builders import planned
from tests.histories import histories
from tests.image.engine import NEEDED, Container, Engine, find
from tests.processes import blocks, environment
from tests.queues import Queues
from tests.servers import free_ports
from tests.waiting import eventually

StartContainer = Callable[..., AbstractAsyncContextManager[Container]]


@pytest.fixture(scope="session")
def engine() -> Engine:
    return find() or pytest.exit(NEEDED, returncode=2)


@pytest.fixture(scope="session")
def healthcheck(engine: Engine) -> Iterator[list[str]]:
    """Build the image, and yield the command of its HEALTHCHECK."""
    with engine.image() as command:
        yield command


@pytest.fixture
def container(engine: Engine, healthcheck: list[str], queues: Queues) -> Iterator[StartContainer]:
    """Yield a function that starts a container; all containers of a test share one volume."""
    assert healthcheck

    with engine.volume() as volume:

        def start(**settings: object) -> AbstractAsyncContextManager[Container]:
            (port,) = free_ports(1)
            told = environment(**queues.settings, health_port=port, **settings)
            own = {name: value for name, value in told.items() if name.startswith("WORKER_")}
            return engine.container(volume, own)

        yield start


class TestAContainer:
    """The worker as an operator runs it."""

    async def test_is_well_by_its_own_health_check(
        self, container: StartContainer, healthcheck: list[str]
    ) -> None:
        """The command that the engine would run every 30 seconds exits with 0."""
        async with container() as running:
            await running.worker.wait_for_log("connected")

            result = running.run(*healthcheck)

            assert result.returncode == 0, result.stderr
            assert "consum" in result.stdout

    async def test_has_no_rights_but_to_its_data(self, container: StartContainer) -> None:
        """It is process 1, not root, without capabilities, and its root is read-only."""
        async with container() as running:
            started = await running.worker.wait_for_log("starting")
            status = running.status()
            written = [
                folder
                for folder in ("/", "/opt/venv", "/home", "/var/tmp", "/data", "/tmp")
                if running.run("touch", f"{folder}/file").returncode == 0
            ]

            has_pip = running.run("python", "-m", "pip").returncode == 0

        assert not has_pip
        assert started["pid"] == 1
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"10001"}
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert written == ["/data", "/tmp"]

    async def test_that_is_stopped_as_it_starts_ends_well(self, container: StartContainer) -> None:
        """SIGTERM before Python has imported anything is not lost on process 1."""
        async with container() as running:
            await eventually(lambda: blocks(running.pid, signal.SIGTERM))
            assert running.worker.lines == []

            running.terminate()

            assert await running.worker.exit_code() == 0
            assert running.worker.said("stopped")

    async def test_that_is_stopped_under_load_drains(
        self, container: StartContainer, queues: Queues
    ) -> None:
        """What was taken is acked, and what was not is still in the queue."""
        published = histories(Random(1), events=500)
        await queues.declare()
        await queues.publish(published)
        async with container(batch_size=5, prefetch=50) as running:
            await running.worker.wait_until_settled(100)

            running.terminate()

            assert await running.worker.exit_code() == 0
            left = await queues.left()
            assert left > 0
            assert running.worker.settled + left == len(published)

    async def test_beside_another_on_its_volume_stands_by(
        self, container: StartContainer, healthcheck: list[str], queues: Queues
    ) -> None:
        """It is healthy meanwhile, and takes over when the first one has ended."""
        async with container() as first:
            await first.worker.wait_for_log("connected")
            async with container() as second:
                await second.worker.wait_for_log("standing_by")
                assert second.run(*healthcheck).returncode == 0

                first.terminate()
                assert await first.worker.exit_code() == 0
                await second.worker.wait_for_log("connected")
                await queues.publish([planned("e-1")])
                await second.worker.wait_until_settled(1)
