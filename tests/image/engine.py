"""Builds the image, and runs it as a container, with an available engine.

`ENGINE` names docker, podman or buildah; without it, the first one that works is used.
`PYTHON_IMAGE` replaces the Dockerfile's base image, and `BUILD_OPTIONS` are further options of the
build, such as a `--volume` with pip's settings.

A container has what docker-compose.yml gives it: a read-only root, /data, a /tmp in memory and no
privileges; but it uses the machine's network, where the tests have their broker. buildah cannot run
an image as its configuration says, so bubblewrap runs its files in the same environment.
"""

import json
import os
import shlex
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from tests.processes import ROOT, WorkerProcess, watched
from tests.waiting import eventually

IMAGE = "localhost/projection-worker:image-test"
# Only this format has HEALTHCHECK.
WITH_HEALTHCHECK = ("--format", "docker")
NEEDED = (
    "No engine for containers works here. Install Docker or Podman; or buildah, bubblewrap and "
    "setpriv, and be root."
)

Settings = Mapping[str, str]


@dataclass(frozen=True)
class Container:
    """A worker in a container, and what can be done to it from outside."""

    worker: WorkerProcess
    pid: int
    """The pid of its process 1 on this machine."""
    terminate: Callable[[], object]
    run: Callable[..., "subprocess.CompletedProcess[str]"]
    """Runs another program in it to its end."""

    def status(self) -> dict[str, str]:
        """Return what the kernel says about its process 1 (proc_pid_status(5))."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


class Engine(Protocol):
    """Builds the image and runs it."""

    def image(self) -> AbstractContextManager[list[str]]:
        """Build the image, for use in the block; yield the command of its HEALTHCHECK."""

    def volume(self) -> AbstractContextManager[str]:
        """Make an empty volume for /data."""

    def container(self, volume: str, settings: Settings) -> AbstractAsyncContextManager[Container]:
        """Start a worker with a volume, and end it after the block."""


class Runtime:
    """docker, or podman, which has the same commands."""

    def __init__(self, program: str, build: Sequence[str] = (), run: Sequence[str] = ()) -> None:
        """Use this program, with further options of its own to build and to run."""
        self._program = program
        self._build = build
        self._run = run

    @contextmanager
    def image(self) -> Iterator[list[str]]:
        """Build the image and keep it, so that the next build is short."""
        build(self._program, *self._build)
        image = json.loads(said_by(self._program, "image", "inspect", IMAGE))[0]
        # docker has the health check in the configuration, podman next to it.
        yield command_of(image.get("Healthcheck") or image["Config"]["Healthcheck"])

    @contextmanager
    def volume(self) -> Iterator[str]:
        """Make a named volume, which takes over the owner of the image's /data."""
        name = said_by(self._program, "volume", "create", unique())
        try:
            yield name
        finally:
            said_by(self._program, "volume", "rm", "--force", name)

    @asynccontextmanager
    async def container(self, volume: str, settings: Settings) -> AsyncIterator[Container]:
        """Start the worker by the image's own ENTRYPOINT and CMD."""
        name = unique()
        program = [
            *(self._program, "run", "--rm", "--name", name, "--network", "host", "--read-only"),
            *("--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--volume", f"{volume}:/data", *(f"--env={n}={v}" for n, v in settings.items())),
            *(*self._run, IMAGE),
        ]
        async with watched(program, dict(os.environ), ROOT) as worker:
            try:
                yield Container(
                    worker,
                    await eventually(lambda: self._pid_of(name)),
                    terminate=lambda: said_by(self._program, "kill", "--signal", "TERM", name),
                    run=lambda *command: done(self._program, "exec", name, *command),
                )
            finally:
                works(self._program, "rm", "--force", name)

    def _pid_of(self, container: str) -> int:
        found = done(self._program, "inspect", "--format", "{{.State.Pid}}", container)
        return int(found.stdout) if found.returncode == 0 else 0


class Bubblewrap:
    """buildah, whose image is run by bubblewrap as its configuration says."""

    def __init__(self) -> None:
        """Build nothing yet."""
        self._root = ""
        self._config: dict[str, Any] = {}

    @contextmanager
    def image(self) -> Iterator[list[str]]:
        """Build it, and unpack its files for the block."""
        build("buildah", *WITH_HEALTHCHECK, "--isolation", "chroot")
        inspected = json.loads(said_by("buildah", "inspect", "--type", "image", IMAGE))
        self._config = inspected["Docker"]["config"]
        with TemporaryDirectory(prefix="image-test-") as folder:
            # Everybody may read it, as in a container's own root.
            Path(folder).chmod(0o755)
            self._root = f"{folder}/root"
            container = said_by("buildah", "from", IMAGE)
            try:
                said_by("cp", "--archive", said_by("buildah", "mount", container), self._root)
            finally:
                said_by("buildah", "rm", container)
            yield command_of(self._config["Healthcheck"])

    @contextmanager
    def volume(self) -> Iterator[str]:
        """Make a folder with the owner of the image's /data."""
        owner = (Path(self._root) / "data").stat()
        with TemporaryDirectory(prefix="image-test-") as folder:
            os.chown(folder, owner.st_uid, owner.st_gid)
            yield folder

    @asynccontextmanager
    async def container(self, volume: str, settings: Settings) -> AsyncIterator[Container]:
        """Start what the image's ENTRYPOINT and CMD name, by its user, as process 1."""
        user, _, group = self._config["User"].partition(":")
        variables = dict(each.split("=", 1) for each in self._config["Env"]) | dict(settings)
        sandbox = [
            *("setpriv", "--reuid", user, "--regid", group, "--clear-groups"),
            *("bwrap", "--ro-bind", self._root, "/", "--proc", "/proc", "--dev", "/dev"),
            *("--tmpfs", "/tmp", "--bind", volume, "/data", "--chdir", self._config["WorkingDir"]),
            *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--as-pid-1"),
            *("--die-with-parent", "--clearenv"),
            *(part for n, v in variables.items() for part in ("--setenv", n, v)),
        ]
        program = [*sandbox, *self._config["Entrypoint"], *self._config["Cmd"]]
        async with watched(program, dict(os.environ), ROOT) as worker:
            pid = await eventually(lambda: child_of(worker.pid))
            yield Container(
                worker,
                pid,
                terminate=lambda: os.kill(pid, signal.SIGTERM),
                # In a separate container, which is enough because both share the network.
                run=lambda *command: done(*sandbox, *command),
            )


def find() -> Engine | None:
    """Return the requested engine, or the first one that works."""
    podman = Runtime("podman", build=WITH_HEALTHCHECK, run=["--read-only-tmpfs=false"])
    engines: dict[str, tuple[Engine, Callable[[], bool]]] = {
        "docker": (Runtime("docker"), lambda: works("docker", "info")),
        "podman": (podman, lambda: works("podman", "info")),
        "buildah": (Bubblewrap(), has_bubblewrap),
    }
    asked = os.environ.get("ENGINE")
    for engine, is_there in [engines[asked]] if asked else engines.values():
        if is_there():
            return engine
    return None


def build(program: str, *options: str) -> None:
    """Build deploy/Dockerfile, and show the engine's output."""
    base = os.environ.get("PYTHON_IMAGE")
    command = [
        *(program, "build", "--tag", IMAGE, "--file", "deploy/Dockerfile", *options),
        *(("--build-arg", f"PYTHON_IMAGE={base}") if base else ()),
        *shlex.split(os.environ.get("BUILD_OPTIONS", "")),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True)


def command_of(healthcheck: Mapping[str, Any]) -> list[str]:
    """Return what a HEALTHCHECK runs."""
    form, *command = map(str, healthcheck["Test"])
    assert form == "CMD"
    return command


def has_bubblewrap() -> bool:
    """Return whether an image can be built by buildah and run by bubblewrap."""
    programs = ("buildah", "bwrap", "setpriv")
    return os.geteuid() == 0 and all(works(program, "--version") for program in programs)


def child_of(pid: int) -> int:
    """Return the only child of a process, 0 if it has none yet."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text() or 0)


def unique() -> str:
    """Return an unused name."""
    return f"image-test-{uuid.uuid4().hex[:12]}"


def done(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def works(*command: str) -> bool:
    """Return whether a program exists and succeeds."""
    try:
        return done(*command).returncode == 0
    except FileNotFoundError:
        return False


def said_by(*command: str) -> str:
    """Run a program that must succeed, and return its output."""
    result = done(*command)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
