"""A private RabbitMQ node: started from the installed package, on free ports of 127.0.0.1.

Everything it needs is in one temporary folder, and it starts even Erlang's port mapper (epmd)
itself, so that nothing is left behind. It uses nothing of the caller's environment or the machine's
configuration, and does not touch the machine's own node.
"""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from tests.servers import (
    START_SECONDS,
    STOP_SECONDS,
    NodeFailed,
    dying_with_us,
    free_ports,
    kill_family,
    poll,
    spawn,
)
from tests.waiting import patience

# On the path, Debian has a wrapper of this name that requires root or the user rabbitmq.
DEBIAN_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

# Before version 4.3, partitions need a plugin.
SHARDING = "rabbitmq_sharding"
HAS_SHARDING_INSIDE = (4, 3)

# Erlang chose it at the first start; a node must have it to join.
COOKIE = ".erlang.cookie"
AMQP_GREETING = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"

CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
# A test machine's disk may be nearly full; the default stops publishers at 50 MB.
disk_free_limit.absolute = 1MB
log.console = false
"""

# A node joins when it first boots (rabbitmq.com/docs/cluster-formation).
JOINING = """\
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = {friend}
"""


class RabbitMQNode:
    """A private node; `async with` starts it, and leaving the block removes every trace.

    It belongs to no event loop: one may start it and another use it. Start it from a thread that
    lives as long as the node, because the kernel kills the node's processes with that thread, which
    is how they end with a test run that is killed.
    """

    def __init__(
        self,
        configuration: str = "",
        friend: "RabbitMQNode | None" = None,
        *,
        has_sharding: bool = True,
    ) -> None:
        """Store further lines of rabbitmq.conf; nothing is started or written yet.

        A node with a friend, which must be running, becomes a member of its cluster.
        `has_sharding` enables the plugin for partitions, if this version needs one.
        """
        self._friend = friend
        self._plugins = [SHARDING] if has_sharding and version() < HAS_SHARDING_INSIDE else []
        self.port = 0
        """Its AMQP port; the same after every start."""
        self._configuration = configuration
        self._folder = Path()
        self._environment: dict[str, str] = {}
        self._epmd_port = 0
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Its name in a cluster."""
        return f"test-{self.port}@localhost"

    @property
    def url(self) -> str:
        """The address for clients to connect to."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    async def __aenter__(self) -> Self:
        """Start the node, or leave nothing behind."""
        try:
            await self.start()
        except BaseException:
            self._remove()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what was started, and remove the folder."""
        # Killed, because whatever a clean stop would save is removed a moment later.
        self._remove()

    async def start(self) -> None:
        """Start the node, on the same ports and data as before, and wait until it answers."""
        program = server_program()
        if program is None:
            raise NodeFailed("No RabbitMQ server is installed; `make setup` installs one.")
        if not self._environment:
            self._prepare()
        if self._epmd is None and self._friend is None:
            self._epmd = self._spawn("epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port))
            await self._until(lambda: _answer(self._epmd_port) is not None, self._epmd)
        if self._server is None:
            self._server = self._spawn(str(program))
            await self._until(
                lambda: _answer(self.port, AMQP_GREETING) == METHOD_FRAME, self._server
            )

    async def stop(self) -> None:
        """Shut the node down as an operator would; its data stays for the next start."""
        server, self._server = self._server, None
        if server is None:
            return
        try:
            server.terminate()
            await poll(lambda: server.poll() is not None, STOP_SECONDS)
        finally:
            kill_family(server)

    async def kill(self) -> None:
        """Kill the node as a crash would; its data stays for the next start."""
        server, self._server = self._server, None
        if server is not None:
            kill_family(server)

    def freeze(self) -> None:
        """Stop its processes while its connections stay open, until it is thawed."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    async def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this node, and return its output."""
        return await self._tool("rabbitmqctl", *arguments)

    async def plugins(self, *arguments: str) -> str:
        """Run rabbitmq-plugins against this node, and return its output."""
        return await self._tool("rabbitmq-plugins", *arguments)

    async def _tool(self, name: str, *arguments: str) -> str:
        result = await asyncio.to_thread(self._run, name, arguments)
        if result.returncode != 0:
            raise NodeFailed(f"{name} {' '.join(arguments)}: {result.stderr}{result.stdout}")
        return result.stdout

    def _run(self, name: str, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        program = server_program()
        assert program is not None
        return subprocess.run(
            (program.with_name(name), "--quiet", *arguments),
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(),
            check=False,
        )

    def _prepare(self) -> None:
        """Choose ports and lay out the folder."""
        self.port, self._epmd_port, distribution_port = free_ports(3)
        folder = self._folder = Path(tempfile.mkdtemp(prefix="rabbitmq-node-"))
        configuration = CONFIGURATION.format(port=self.port) + self._configuration
        if self._friend is not None:
            self._epmd_port = self._friend._epmd_port
            shutil.copy(self._friend._folder / COOKIE, folder / COOKIE)
            configuration += JOINING.format(friend=self._friend.name)
        files = {
            "rabbitmq.conf": configuration,
            # Empty, but present: otherwise the machine's own files would be read.
            "rabbitmq-env.conf": "",
            "advanced.config": "[].\n",
            "enabled_plugins": f"[{','.join(self._plugins)}].\n",
        }
        for name, text in files.items():
            (folder / name).write_text(text)
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            # Erlang keeps the cookie there, which distinguishes this node's cluster from others.
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            # For whatever Erlang starts by itself: no other epmd, no port for other machines.
            "ERL_FLAGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # The start script becomes the node instead of waiting for it as a child, so that the
            # process that we signal is the node.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        return spawn((*dying_with_us(), *command), self._folder, self._environment)

    async def _until(self, answers: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Wait until the process answers; one that ends before fails at once."""
        in_time = await poll(lambda: process.poll() is not None or answers(), START_SECONDS)
        if process.returncode is not None or not in_time:
            ending = "is silent" if process.returncode is None else f"ended: {process.returncode}"
            raise NodeFailed(f"{process.args!r} {ending}\n{self._tail()}")

    def _tail(self) -> str:
        """Return the end of everything that the node wrote."""
        files = [self._folder / "console", *sorted((self._folder / "log").glob("*.log"))]
        return "\n".join(f"--- {file.name}\n{file.read_text()[-8_000:]}" for file in files)

    def _remove(self) -> None:
        """End what is left, and delete the folder; awaits nothing, so nothing interrupts it."""
        with ExitStack() as stack:
            if self._environment:
                stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            for process in (self._epmd, self._server):
                if process is not None:
                    stack.callback(kill_family, process)
        self._epmd = self._server = None
        self._environment = {}


def server_program() -> Path | None:
    """Return the program that starts a node; None if RabbitMQ is not installed."""
    found = DEBIAN_SERVER if DEBIAN_SERVER.exists() else shutil.which("rabbitmq-server")
    return Path(found) if found else None


def version() -> tuple[int, ...]:
    """Return the installed version, such as (4, 3, 6); RabbitMQ's folder is named after it."""
    program = server_program()
    found = program and re.search(r"rabbitmq_server-([\d.]+)", str(program.resolve()))
    return tuple(map(int, found[1].split("."))) if found else ()


def _answer(port: int, greeting: bytes = b"") -> bytes | None:
    """Connect, and return the first byte of the answer to a greeting; None if nobody listens."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
        connection.sendall(greeting)
        return connection.recv(1) if greeting else b""
    return None
