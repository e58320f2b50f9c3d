import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from worker.cli import healthcheck

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = ROOT / "docker-compose.yml"
SCALE = ROOT / "deploy" / "compose.scale.yml"
RUNTIME = ROOT / "deploy" / "requirements.txt"
DEVELOPMENT = ROOT / "deploy" / "requirements-dev.txt"

# In parts, so that the search does not find this file.
REGISTRIES = [".".join(parts) for parts in (("pypi", "org"), ("python" + "hosted", "org"))]
REGISTRIES += [".".join(parts) for parts in (("deb", "debian", "org"), ("registry", "npm" + "js"))]
PERSONAL_FOLDER = re.compile(
    r"(?<![\w.~}*])/(?:" + "|".join(("root", "home", "Users", "work")) + ")/"
)


# Prints the signals that are blocked when a command begins and when it ends.
TELL_MASK = """
import signal
from worker.__main__ import main

def tell():
    print(*sorted(each.name for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())))

tell()
try:
    main()
finally:
    tell()
"""


def run_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a checker from the environment that runs the tests."""
    return subprocess.run(
        (Path(sys.executable).with_name(name), *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions in order, each as its keyword and the rest."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    words = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in words]


def last(word: str) -> str:
    """Return the value of this instruction in the final image."""
    return [rest for found, rest in instructions() if found == word][-1]


def service(name: str, compose: Path = COMPOSE) -> dict[str, Any]:
    """Return one service of docker-compose.yml, or of another Compose file."""
    found: dict[str, Any] = YAML(typ="safe").load(compose.read_text())["services"][name]
    return found


def pins(requirements: Path) -> dict[str, str]:
    """Map each pinned package to its version."""
    found = re.findall(r"^([\w.-]+)==(\S+)", requirements.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


class TestDockerfile:
    def test_passes_hadolint(self) -> None:
        """Neither hadolint nor shellcheck, on its shell lines, finds anything."""
        result = run_tool("hadolint", DOCKERFILE)

        assert result.returncode == 0, result.stdout

    def test_builds_with_the_script_that_make_runs(self) -> None:
        """Running the tests also tries the steps that build the image."""
        [build] = [rest for word, rest in instructions() if word == "RUN" and "VENV=" in rest]

        assert " deploy/setup.sh " in build
        assert "deploy/setup.sh" in (ROOT / "Makefile").read_text()

    def test_has_one_base_image(self) -> None:
        """The environment is used with the interpreter that built it."""
        bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"}

        assert bases == {"${PYTHON_IMAGE}"}

    def test_runs_as_a_number_that_is_not_root(self) -> None:
        """Kubernetes can see that it is not root, and a volume keeps its owner."""
        assert last("USER") == "10001:10001"

    @pytest.mark.parametrize("word", ["ENTRYPOINT", "CMD"])
    def test_starts_without_a_shell(self, word: str) -> None:
        """The worker receives the signals itself."""
        assert isinstance(json.loads(last(word)), list)

    @pytest.mark.parametrize(
        ("arguments", "waits"),
        [("run --help", True), ("--version", False), ("check --help", False)],
    )
    def test_lets_a_signal_wait_until_the_worker_runs(self, arguments: str, *, waits: bool) -> None:
        """Process 1 would lose it while Python starts; it ends other commands at once."""
        *before, program = json.loads(last("ENTRYPOINT"))
        assert program == "projection-worker"

        result = subprocess.run(
            (*before, sys.executable, "-c", TELL_MASK, *arguments.split()),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )

        told = result.stdout.splitlines()
        assert told[0] == "SIGINT SIGTERM"
        assert told[-1] == ("SIGINT SIGTERM" if waits else "")

    def test_waits_for_the_health_check(self) -> None:
        """Docker waits longer than the command, which can then say why there was no answer."""
        timeout = re.search(r"--timeout=(\d+)s", last("HEALTHCHECK"))

        assert timeout
        assert int(timeout[1]) > healthcheck.ANSWER_SECONDS
        assert "healthcheck" not in service("worker")

    def test_copies_only_what_the_build_context_has(self) -> None:
        """What .dockerignore leaves out cannot be copied."""
        context = re.findall(r"^!(.+?)/?$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
        copies = [rest.split() for word, rest in instructions() if word == "COPY"]

        sources = [s.rstrip("/") for copy in copies if "--from" not in copy[0] for s in copy[:-1]]

        assert sorted(sources) == sorted(context)
        assert all((ROOT / source).exists() for source in sources)


class TestCompose:
    @pytest.mark.parametrize("compose", [COMPOSE, SCALE], ids=["one", "scale"])
    def test_matches_the_schema(self, compose: Path) -> None:
        """It is valid by the Compose specification."""
        result = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose)

        assert result.returncode == 0, result.stdout

    def test_writes_no_password_down(self) -> None:
        """Without a password from outside, nothing starts; there is no default password."""
        password = service("rabbitmq")["environment"]["RABBITMQ_DEFAULT_PASS"]

        assert password.startswith("${RABBITMQ_PASSWORD:?")

    def test_worker_has_no_more_rights_than_it_needs(self) -> None:
        """A vulnerability in the worker exposes its data and nothing else."""
        worker = service("worker")

        assert worker["read_only"] is True
        assert worker["cap_drop"] == ["ALL"]
        assert worker["security_opt"] == ["no-new-privileges:true"]
        assert "user" not in worker  # the image's own is not root

    def test_worker_may_finish_its_batch(self) -> None:
        """Compose's default of ten seconds is too short for a slow disk."""
        assert service("worker")["stop_grace_period"] == "30s"

    def test_worker_waits_for_a_broker_that_answers(self) -> None:
        """The health check tests the port, not the process."""
        condition = service("worker")["depends_on"]["rabbitmq"]["condition"]

        assert condition == "service_healthy"
        assert "check_port_connectivity" in service("rabbitmq")["healthcheck"]["test"]

    def test_data_outlives_the_containers(self) -> None:
        """Both the queue and the read model are in named volumes."""
        assert service("worker")["volumes"] == ["worker-data:/data"]
        assert service("worker")["environment"]["WORKER_DATABASE"].startswith("/data/")
        assert service("rabbitmq")["volumes"] == ["rabbitmq-data:/var/lib/rabbitmq"]
        assert service("rabbitmq")["hostname"]


class TestScale:
    """The file that adds PostgreSQL and lets any number of workers share the messages."""

    def test_writes_no_password_down(self) -> None:
        """Without the passwords from outside, nothing starts."""
        environment = service("postgres", SCALE)["environment"]

        passwords = {name: value for name, value in environment.items() if "PASSWORD" in name}
        assert set(passwords) == {"POSTGRES_PASSWORD", "WORKER_PASSWORD", "READER_PASSWORD"}
        assert all(value == f"${{{name}:?set {name}}}" for name, value in passwords.items())

    def test_worker_waits_for_a_database_that_answers(self) -> None:
        """The server that makes the roles does not answer where the health check asks."""
        worker, postgres = service("worker", SCALE), service("postgres", SCALE)

        assert worker["depends_on"]["postgres"]["condition"] == "service_healthy"
        assert "--host=127.0.0.1" in postgres["healthcheck"]["test"]

    def test_workers_are_alike(self) -> None:
        """Nothing in the file keeps two workers from running: no name, no port, no volume."""
        worker = service("worker") | service("worker", SCALE)

        assert not worker.keys() & {"container_name", "hostname", "ports"}
        assert worker["environment"]["WORKER_DATABASE"].startswith("postgresql://worker:${")

    def test_mounts_files_that_exist(self) -> None:
        """Docker would create a folder in the place of a missing file."""
        mounts = [
            mount.split(":")[0]
            for name in ("rabbitmq", "postgres")
            for mount in service(name, SCALE)["volumes"]
            if mount.startswith("./")
        ]

        assert mounts
        assert all((ROOT / mount).is_file() for mount in mounts)

    def test_data_outlives_the_containers(self) -> None:
        """The database is in a named volume."""
        assert "postgres-data:/var/lib/postgresql" in service("postgres", SCALE)["volumes"]


class TestRequirements:
    @pytest.mark.parametrize("requirements", [RUNTIME, DEVELOPMENT], ids=["runtime", "development"])
    def test_every_package_has_a_hash(self, requirements: Path) -> None:
        """Pip refuses a file other than the pinned one."""
        entries = re.split(r"^(?=[\w.-]+==)", requirements.read_text(), flags=re.MULTILINE)[1:]

        assert entries
        assert all("--hash=sha256:" in entry for entry in entries)

    def test_the_image_has_what_the_tests_ran_with(self) -> None:
        """The development requirements add packages, and change none of the runtime's."""
        assert pins(RUNTIME).items() <= pins(DEVELOPMENT).items()

    def test_are_what_pyproject_asks_for(self) -> None:
        """`make lock` has been run since the dependencies changed."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        runtime = project["project"]["dependencies"] + project["dependency-groups"]["build"]
        runtime += project["project"]["optional-dependencies"]["postgres"]
        development = [d for d in project["dependency-groups"]["dev"] if isinstance(d, str)]

        missing = [
            line
            for pinned, lines in ((pins(RUNTIME), runtime), (pins(DEVELOPMENT), development))
            for line in lines
            if pinned.get(canonicalize_name((asked := Requirement(line)).name), "0")
            not in asked.specifier
        ]

        assert missing == []


class TestRepository:
    def test_names_no_registry_and_no_personal_folder(self) -> None:
        """Anyone who clones it uses their own registry and folders."""
        listing = subprocess.run(
            ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        files = [ROOT / name for name in listing.stdout.split("\0") if name]

        findings = [
            f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
            for file in files
            if file.is_file()
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1)
            if any(host in line for host in REGISTRIES) or PERSONAL_FOLDER.search(line)
        ]

        assert files
        assert findings == []
