import asyncio
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.commands import run_command
from tests.processes import environment
from worker.telemetry.health import Facts, State
from worker.telemetry.http import HealthServer
from worker.telemetry.metrics import Metrics

# Python itself imports about 150 of them.
MOST_MODULES = 250


async def imports(folder: Path, *arguments: str) -> tuple[int, set[str]]:
    """Run a command; return its exit code, and the modules that it imported."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "importtime", "-m", "worker", *arguments),
        cwd=folder, env=environment(health_port=1), stdout=DEVNULL, stderr=PIPE,
    )  # fmt: skip
    _, err = await process.communicate()
    lines = [line for line in err.decode().splitlines() if line.startswith("import time:")]
    return process.returncode or 0, {line.rpartition("|")[2].strip() for line in lines}


async def checked(
    state: State, folder: Path, *options: str, bound: str = "127.0.0.1", asked: str | None = None
) -> tuple[int, str, str]:
    """Ask a worker in a given state for its health."""
    facts = Facts(state)
    async with HealthServer(bound, 0, facts, Metrics(facts, sqlite_version="3")) as server:
        port = urlsplit(server.url).port
        return await run_command(
            "healthcheck", *options, folder=folder, health_host=asked or bound, health_port=port
        )


class TestHealthcheck:
    """A container's runtime calls `healthcheck`, and uses its exit code."""

    async def test_of_a_standby_is_good(self, tmp_path: Path) -> None:
        """A standby is live, because a restart would not help."""
        code, out, err = await checked(State.STANDING_BY, tmp_path)

        assert (code, out, err) == (0, "The worker is standing by.\n", "")

    async def test_for_readiness_of_a_standby_is_not(self, tmp_path: Path) -> None:
        """It exits with 1, and prints the reason on standard error."""
        code, out, err = await checked(State.STANDING_BY, tmp_path, "--ready")

        assert (code, out, err) == (1, "", "The worker is standing by.\n")

    async def test_for_readiness_of_a_consumer_is_good(self, tmp_path: Path) -> None:
        """A worker that consumes is ready."""
        code, out, _ = await checked(State.CONSUMING, tmp_path, "--ready")

        assert (code, out) == (0, "The worker is consuming.\n")

    @pytest.mark.parametrize(("bound", "asked"), [("0.0.0.0", "0.0.0.0"), ("::1", "::")])
    async def test_asks_on_the_loopback(self, tmp_path: Path, bound: str, asked: str) -> None:
        """If the worker listens on every address, the loopback address is asked."""
        code, _, _ = await checked(State.CONSUMING, tmp_path, bound=bound, asked=asked)

        assert code == 0

    async def test_uses_no_proxy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A container's proxy cannot reach the worker."""
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

        assert (await checked(State.CONSUMING, tmp_path))[0] == 0

    async def test_without_a_worker_is_bad(self, tmp_path: Path) -> None:
        """It exits with 1, and says what to check."""
        with socket.socket() as unheard:
            # Bound but not listening, so that the port refuses and nobody else takes it.
            unheard.bind(("127.0.0.1", 0))
            port = unheard.getsockname()[1]
            code, _, err = await run_command(
                "healthcheck", folder=tmp_path, health_host="0.0.0.0", health_port=port
            )

        assert code == 1
        assert f"127.0.0.1:{port}/livez" in err
        assert "WORKER_HEALTH_PORT" in err

    async def test_of_something_else_is_bad(self, tmp_path: Path) -> None:
        """Another program on that port is not mistaken for a worker."""
        facts = Facts()
        async with HealthServer("127.0.0.1", 0, facts, Metrics(facts, sqlite_version="3")) as other:
            other._paths.clear()
            port = urlsplit(other.url).port
            code, _, err = await run_command("healthcheck", folder=tmp_path, health_port=port)

        assert code == 1
        assert "Something other than a worker answers" in err

    async def test_of_any_port_is_no_check(self, tmp_path: Path) -> None:
        """Port 0 names no port, which is an error in the settings."""
        code, _, err = await run_command("healthcheck", folder=tmp_path, health_port=0)

        assert code == 2
        assert "WORKER_HEALTH_PORT" in err

    async def test_of_a_host_in_brackets_is_refused(self, tmp_path: Path) -> None:
        """The rule is the one that the worker applies."""
        code, _, err = await run_command("healthcheck", folder=tmp_path, health_host="[::1]")

        assert code == 2
        assert "WORKER_HEALTH_HOST: must be" in err

    async def test_imports_very_little(self, tmp_path: Path) -> None:
        """A runtime asks every few seconds, and the libraries take most of a second to import."""
        code, imported = await imports(tmp_path, "healthcheck")

        heavy = {"aio_pika", "aiormq", "aiosqlite", "asyncio", "pydantic", "rich", "structlog"}
        assert code == 1
        assert "http.client" in imported
        assert imported & (heavy | {"dotenv", "prometheus_client", "sqlite3", "typer"}) == set()
        assert len(imported) < MOST_MODULES

    @pytest.mark.parametrize("source", ["environment", "dotenv", "secret"])
    async def test_asks_the_port_of_the_same_settings(self, tmp_path: Path, source: str) -> None:
        """The port may be set in the environment, in .env or in a secret file."""
        facts = Facts(State.CONSUMING)
        async with HealthServer("127.0.0.1", 0, facts, Metrics(facts, sqlite_version="3")) as at:
            port = str(urlsplit(at.url).port)
            if source == "dotenv":
                (tmp_path / ".env").write_text(f"WORKER_HEALTH_PORT={port}\n")
            elif source == "secret":
                (tmp_path / "worker_health_port").write_text(port)
            code, out, err = await run_command(
                "healthcheck",
                folder=tmp_path,
                secrets_dir=tmp_path,
                health_port=port if source == "environment" else "",
            )

        assert (code, out, err) == (0, "The worker is consuming.\n", "")

    async def test_with_another_option_is_told_which_there_are(self, tmp_path: Path) -> None:
        """The shortcut past the other commands does not hide a mistyped option."""
        code, _, err = await run_command("healthcheck", "--redy", folder=tmp_path)

        assert code == 2
        assert "--ready" in err
