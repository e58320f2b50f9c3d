"""A private PostgreSQL node: started from the installed package, on a free port of 127.0.0.1.

Everything it needs is in one temporary folder. It uses nothing of the caller's environment or the
machine's configuration, and does not touch the machine's own clusters. Its default collation is
that of English and not of bytes, so that a column without `COLLATE "C"` is found out.
"""

import asyncio
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import asyncpg
import trustme

from tests.disk import HeldDisk
from tests.postgres_programs import (
    ENVIRONMENT,
    own_folder,
    owner,
    programs,
    template,
    unprivileged,
)
from tests.servers import (
    START_SECONDS,
    STOP_SECONDS,
    NodeFailed,
    free_ports,
    kill_family,
    poll,
    signal_family,
    spawn,
)
from tests.waiting import patience

CONFIGURATION = """\
listen_addresses = '127.0.0.1'
port = {port}
cluster_name = '{name}'
unix_socket_directories = '{folder}'
# In the data folder, so that a node that is killed leaves nothing in /dev/shm.
dynamic_shared_memory_type = mmap
shared_buffers = 16MB
max_connections = 50
"""
ENCRYPTION = """\
ssl = on
ssl_cert_file = '{folder}/server.pem'
ssl_key_file = '{folder}/server.key'
"""

# Superusers come through the socket, which is in a folder that nobody else may enter.
RIGHTS = """\
local all all trust
local replication all trust
{host} all all 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True)
class PostgresDatabase:
    """A database of its own on a node, owned by a role of its own that owns nothing else."""

    node: "PostgresNode"
    name: str
    """The name of the database, and of its owner."""
    password: str

    @property
    def url(self) -> str:
        """The address for a worker to connect to."""
        return self.url_at(self.node)

    def url_at(self, node: "PostgresNode", host: str = "127.0.0.1") -> str:
        """Return the address of the same database on another node, such as a standby."""
        return f"postgresql://{self.name}:{self.password}@{host}:{node.port}/{self.name}"

    async def query(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Run a statement as superuser, and return its rows."""
        return await self.node.query(sql, *arguments, database=self.name)


class PostgresNode:
    """A private node; `async with` starts it, and leaving the block removes every trace.

    It belongs to no event loop: one may start it and another use it. Start it from a thread that
    lives as long as the node, because the kernel kills the node's processes with that thread, which
    is how they end with a test run that is killed.
    """

    def __init__(
        self,
        settings: Mapping[str, object] | None = None,
        *,
        certificate: trustme.LeafCert | None = None,
        disk: str | None = None,
        parent: Path | None = None,
    ) -> None:
        """Store further settings of postgresql.conf; nothing is started or written yet.

        With a certificate, it accepts no connection without TLS. With a disk, its data is on a
        small disk with these mount options, such as `size=128m`; that needs root. Its folder is in
        `parent`, or where temporary files are.
        """
        self.port = 0
        """Its port; the same after every start."""
        self._settings = dict(settings or {})
        self._certificate = certificate
        self._disk_options = disk
        self._parent = parent
        self._disk: HeldDisk | None = None
        self._folder = Path()
        self._held = ExitStack()
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Its name, as a standby's in the primary's settings."""
        return f"node-{self.port}"

    @property
    def folder(self) -> Path:
        """The folder of its socket."""
        return self._folder

    @property
    def pid(self) -> int:
        """The process from which all others of the node descend."""
        assert self._server is not None
        return self._server.pid

    @property
    def data(self) -> Path:
        """Its data folder as seen from outside."""
        return self._folder / "data" if self._disk is None else self._disk.seen

    @property
    def is_running(self) -> bool:
        """Whether it was started, and has not ended since."""
        return self._server is not None and self._server.poll() is None

    @property
    def console_file(self) -> Path:
        """The file with everything that it writes."""
        return self._folder / "console"

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
        """Start the node, on the same port and data as before, and wait until it answers."""
        if not self.port:
            await asyncio.to_thread(self._prepare)
        if self._server is None:
            program = str(programs() / "postgres")
            command = (*self._inside, *unprivileged(), program, "-D", str(self._folder / "data"))
            server = self._server = spawn(command, self._folder, ENVIRONMENT)
            answers = await poll(
                lambda: server.poll() is not None or self._is_ready(), START_SECONDS
            )
            if server.returncode is not None or not answers:
                raise NodeFailed(f"{server.args!r} did not start\n{self.console()}")

    async def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Shut the node down as an operator would; its data stays for the next start.

        SIGINT ends the sessions (fast), SIGTERM waits for their end (smart), and SIGQUIT leaves a
        recovery to the next start (immediate).
        """
        server, self._server = self._server, None
        if server is None:
            return
        try:
            server.send_signal(how)
            await poll(lambda: server.poll() is not None, STOP_SECONDS)
        finally:
            kill_family(server)

    async def kill(self) -> None:
        """Kill the node as a crash would; its data stays for the next start."""
        server, self._server = self._server, None
        if server is not None:
            kill_family(server)

    async def restart(self) -> None:
        """Stop and start the node."""
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """Stop its processes while its connections stay open, until it is thawed."""
        assert self._server is not None
        signal_family(self._server, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        assert self._server is not None
        signal_family(self._server, signal.SIGCONT)

    async def query(
        self, sql: str, *arguments: object, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run a statement as superuser, and return its rows."""
        connection = await asyncpg.connect(
            host=str(self._folder), port=self.port, user="postgres", database=database
        )
        try:
            return [tuple(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    async def create_database(self) -> PostgresDatabase:
        """Create a fresh database and its owner, which may do nothing elsewhere."""
        name, password = f"test_{secrets.token_hex(4)}", secrets.token_hex(8)
        await self.query(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        await self.query(f"CREATE DATABASE {name} OWNER {name}")
        return PostgresDatabase(self, name, password)

    async def drop_database(self, database: PostgresDatabase) -> None:
        """Drop a database and its owner, and end the sessions on it."""
        await self.query(f"DROP DATABASE {database.name} WITH (FORCE)")
        await self.query(f"DROP ROLE {database.name}")

    async def terminate_backends(self, application_name: str) -> int:
        """End the sessions whose name matches a pattern of LIKE, and return how many there were."""
        ended = await self.query(
            "SELECT pg_terminate_backend(pid, $2) FROM pg_stat_activity"
            " WHERE application_name LIKE $1 AND pid <> pg_backend_pid()",
            application_name,
            int(patience(STOP_SECONDS) * 1_000),
        )
        return len(ended)

    def console(self) -> str:
        """Return the end of everything that the node wrote."""
        return self.console_file.read_text(errors="replace")[-8_000:]

    def _prepare(self) -> None:
        """Choose a port and lay out the folder."""
        (self.port,) = free_ports(1)
        self._folder = own_folder(self._parent)
        self._held.callback(shutil.rmtree, self._folder, ignore_errors=True)
        (self._folder / "data").mkdir(0o700)
        if self._disk_options is not None:
            disk = HeldDisk(self._folder / "data", self._disk_options)
            self._disk = self._held.enter_context(disk)
        shutil.chown(self.data, *owner())
        self.data.chmod(0o700)
        self._make_data()
        self._configure()

    @property
    def _inside(self) -> Sequence[str]:
        """What stands before a command that sees its data."""
        return () if self._disk is None else self._disk.inside

    def _make_data(self) -> None:
        """Fill the data folder."""
        subprocess.run(("cp", "-a", f"{template()}/.", self.data), check=True)

    def _configure(self) -> None:
        """Write the files of settings."""
        text = CONFIGURATION.format(port=self.port, name=self.name, folder=self._folder)
        if self._certificate is not None:
            text += ENCRYPTION.format(folder=self._folder)
            chain = b"".join(pem.bytes() for pem in self._certificate.cert_chain_pems)
            (self._folder / "server.pem").write_bytes(chain)
            key = self._folder / "server.key"
            key.touch(0o600)
            key.write_bytes(self._certificate.private_key_pem.bytes())
            shutil.chown(key, *owner())
        text += "".join(f"{name} = '{value}'\n" for name, value in self._settings.items())
        (self.data / "postgresql.conf").write_text(text)
        host = "host" if self._certificate is None else "hostssl"
        (self.data / "pg_hba.conf").write_text(RIGHTS.format(host=host))

    def _is_ready(self) -> bool:
        """Return whether it accepts connections, by the file in which it says so."""
        assert self._server is not None
        # The file is written in pieces.
        with suppress(OSError, IndexError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return lines[0] == str(self._server.pid) and lines[7:] == ["ready   "]
        return False

    def _remove(self) -> None:
        """End what is left, and delete the folder; awaits nothing, so nothing interrupts it."""
        with self._held as held:
            held.callback(self._remove_shared_memory)
            if self._server is not None:
                held.callback(kill_family, self._server)
        self._server = None
        self.port = 0

    def _remove_shared_memory(self) -> None:
        """Remove the few bytes of System V memory that a killed server leaves in the kernel."""
        with suppress(OSError, IndexError):
            *_, segment = (self.data / "postmaster.pid").read_text().splitlines()[6].split()
            subprocess.run(("ipcrm", "--shmem-id", segment), check=False)
