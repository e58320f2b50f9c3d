"""What the README says, compared with what the program is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.settings_table import settings_table
from worker.broker.topology import Topology

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DESIGN = (ROOT / "docs/design.md").read_text()
RELIABILITY = (ROOT / "docs/reliability.md").read_text()


class TestTheReadme:
    """The README promises nothing that is not there."""

    def test_its_settings_are_those_of_the_program(self) -> None:
        """The table of settings is the one that `python -m tests.docs.settings_table` prints."""
        assert settings_table() in README

    def test_its_user_may_do_what_a_worker_needs(self) -> None:
        """The command that grants it is the one that a worker without it names."""
        topology = Topology("chat.events", "chat.events.projection", delivery_limit=20)

        assert topology.needed_to_consume.command("projection", "/") in README

    def test_every_guarantee_names_a_test(self) -> None:
        """Each row of the table of guarantees names a test."""
        table = README.partition("## What happens when")[2].partition("\n## ")[0]
        rows = [line for line in table.splitlines() if line.startswith("| ")][2:]

        assert len(rows) >= 10
        assert all("`tests/" in row for row in rows)

    @pytest.mark.parametrize("text", [README, RELIABILITY], ids=["README", "reliability"])
    def test_every_test_it_names_exists(self, text: str) -> None:
        """A proof that is not there proves nothing."""
        names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)(?:::(\w+))?`", text)

        assert len(names) >= 10
        for path, first, second in names:
            source = (ROOT / path).read_text()
            for name in filter(None, (first, second)):
                assert re.search(rf"(class|def) {name}\b", source), f"{path} has no {name}"

    @pytest.mark.parametrize(
        "text", [README, DESIGN, RELIABILITY], ids=["README", "design", "reliability"]
    )
    def test_every_path_it_names_exists(self, text: str) -> None:
        """Files of the repository that are named or linked are there."""
        named = re.findall(
            r"[`(]((?:worker|tests|deploy|docs)/[\w./-]+\.(?:py|sql|md|sh|example))", text
        )

        assert named
        assert [path for path in named if not (ROOT / path).exists()] == []

    def test_its_commands_exist(self) -> None:
        """Every `projection-worker` command in it is one that the program knows."""
        commands = set(re.findall(r"projection-worker ((?:dead-letters )?[a-z]+)", README))

        assert {"check", "rebuild", "publish"} <= commands
        for command in sorted(commands):
            asked = [sys.executable, "-m", "worker", *command.split(), "--help"]
            ran = subprocess.run(asked, capture_output=True, text=True, check=False)
            assert ran.returncode == 0, f"{command}: {ran.stderr}"

    def test_its_targets_exist(self) -> None:
        """Every `make` target in it is in the Makefile."""
        makefile = (ROOT / "Makefile").read_text()

        targets = set(re.findall(r"^\$ make ([a-z]+)", README, re.MULTILINE))

        assert {"demo", "test", "setup", "run"} <= targets
        assert [name for name in targets if f"\n{name}:" not in makefile] == []
