"""No command ends in a traceback, whatever its input."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.commands import run_command
from tests.processes import environment, worker_process
from tests.proxy import Proxy
from tests.queues import Queues
from tests.waiting import eventually
from worker import cli
from worker.broker import commands
from worker.broker.connection import BrokerAddress
from worker.broker.topology import Topology
from worker.errors import SessionLost
from worker.settings import Settings

NOWHERE = "amqp://127.0.0.1:9/"
# All commands except `run`, which only a signal ends.
NOUNS = (
    "check", "healthcheck", "list", "show", "publish", "rebuild", "dead-letters", "topology",
    "apply", "export", "release", "requeue", "discard", "--help", "--version",
)  # fmt: skip
OPTIONS = (
    "--json", "--yes", "--ready", "--status", "--kind", "--event-id", "--field", "--verify",
    "--reason", "--limit", "--id", "--dry-run", "--force", "-", "--", "-x", "event_started", "0",
    "-1", "9" * 30, "planned", "e-1", "a=b", "=", "[/red]", "{}", "%s", "\x1b[31m",
)  # fmt: skip
# Lone surrogates are how Python passes on bytes that are not UTF-8.
ODD = (
    "",
    " ",
    "\udcff",
    "ü",
    "%",
    "\t",
    "\x1b]0;x",
    "nan",
    "1e9",
    "x" * 5000,
    "/",
    "/dev/null",
    "~",
)
FILES = ("a folder", "a file", "a file/below", "missing/below", "no text", "no database.db")
# Nothing can listen at any of these addresses.
URLS = (NOWHERE, "amqp://", "amqp://u:p@@127.0.0.1:9/", "amqp://[", "http://127.0.0.1:9/", "x y")

WORDS = st.sampled_from((*OPTIONS, *ODD, *FILES)) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), max_size=8
)
ARGUMENTS = st.tuples(
    st.lists(st.sampled_from(NOUNS), min_size=1, max_size=2), st.lists(WORDS, max_size=4)
).map(lambda parts: [*parts[0], *parts[1]])
VARIABLES = st.dictionaries(
    st.sampled_from(sorted({*Settings.model_fields, "secrets_dir"} - {"amqp_url"})),
    st.sampled_from((*ODD, *FILES, "tcp://10.0.0.1:80", "0", "-1", "true")),
    max_size=2,
)


def prepare(folder: Path) -> None:
    """Create what a wrong path may point to."""
    (folder / "a folder").mkdir(exist_ok=True)
    (folder / "a file").write_text("{}\n")
    (folder / "no text").write_bytes(b"\xff\xfe\x00" * 99)
    (folder / "no database.db").write_bytes(b"no database " * 999)


def end_of(arguments: Sequence[str]) -> object:
    """Run a command in this process; return its exit code. Any other exception is a traceback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["projection-worker", *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        # It takes longer than the command, and would change this process for good.
        patch.setattr(cli, "_collect_rarely", lambda: None)
        patch.setattr(cli, "discard", lambda _: None)
        with pytest.raises(SystemExit) as end:
            cli.main()
    return end.value.code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("odd")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


class TestAnyInput:
    @given(arguments=ARGUMENTS, variables=VARIABLES, url=st.sampled_from(URLS))
    @settings(
        max_examples=150,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def test_ends_with_an_exit_code(
        self, place: Path, arguments: list[str], variables: dict[str, str], url: str
    ) -> None:
        """Odd bytes, folders in place of files, or invalid numbers: it is 0, 1 or 2."""
        with pytest.MonkeyPatch.context() as patch:
            usual = {"secrets_dir": str(place), "health_port": "0", "database": "p.db"}
            for name, value in (usual | variables | {"amqp_url": url}).items():
                patch.setenv(f"WORKER_{name.upper()}", value)

            assert end_of(arguments) in (0, 1, 2, None)

    @pytest.mark.parametrize("name", sorted(Settings.model_fields))
    def test_of_a_setting_is_refused_or_taken_by_check(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """No command fails unexpectedly on a value that the settings accept."""
        # Empty values are left out: they mean the default broker, which may be running.
        for value in filter(str.strip, ODD):
            usual = {"amqp_url": NOWHERE, "health_port": "0", "database": "p.db"}
            for variable, text in (usual | {name: value, "secrets_dir": str(place)}).items():
                monkeypatch.setenv(f"WORKER_{variable.upper()}", text)

            assert end_of(["check"]) in (1, 2)


class TestTheStandardStreams:
    @pytest.mark.parametrize("command", ["topology export", "healthcheck", "check"])
    @pytest.mark.parametrize(
        "streams",
        [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>/dev/full"],
    )
    def test_may_be_closed_or_full(self, tmp_path: Path, command: str, streams: str) -> None:
        """The exit code is 0, unless the requested output is lost."""
        script = f'"$0" -m worker {command} {streams}'
        ran = subprocess.run(
            ("sh", "-c", script, sys.executable),
            env=environment(amqp_url=NOWHERE, health_port=1, secrets_dir=tmp_path),
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

        is_lost = command != "topology export" or "full" in streams
        assert ran.returncode == int(is_lost)
        assert "Traceback" not in ran.stdout + ran.stderr
        assert "Exception ignored" not in ran.stderr

    def test_may_be_left_by_who_reads(self, tmp_path: Path) -> None:
        """A reader such as `head` may close the pipe, and no error is printed."""
        reading, writing = os.pipe()
        os.close(reading)
        ran = subprocess.run(
            (sys.executable, "-m", "worker", "topology", "export"),
            env=environment(amqp_url=NOWHERE, secrets_dir=tmp_path),
            cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        os.close(writing)

        assert (ran.returncode, ran.stderr) == (1, "")

    async def test_may_lack_the_characters_of_a_message(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a terminal with another character set they are escaped."""
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")

        code, _, err = await run_command("show", "ü", folder=tmp_path, queue="ü")

        assert code == 2
        assert "\\xfc" in err


class TestABrokerThatFallsSilent:
    async def test_in_the_middle_of_a_command_is_told(
        self, queues: Queues, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The command does not wait for ever."""
        monkeypatch.setattr(commands, "ANSWER_SECONDS", 0.5)
        await proxy.listen()
        declare: Any = Topology.declare_queue

        async def silenced(*arguments: Any) -> None:
            proxy.stall()
            await declare(*arguments)

        monkeypatch.setattr(Topology, "declare_queue", silenced)

        with pytest.raises(SessionLost, match="did not answer within"):
            await commands.apply(BrokerAddress((proxy.url,)), queues.current)

    async def test_and_an_operator_who_does_not_wait(self, proxy: Proxy, tmp_path: Path) -> None:
        """Ctrl-C ends a command with the usual exit code, and not with a traceback."""
        await proxy.listen()
        proxy.stall()
        given = environment(amqp_url=proxy.url, secrets_dir=tmp_path)
        async with worker_process("topology", "apply", settings=given, folder=tmp_path) as command:
            await eventually(lambda: proxy.connections)

            command.send(signal.SIGINT)

            assert await command.exit_code() == 128 + signal.SIGINT
        assert command.output == ""
