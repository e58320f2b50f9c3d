import subprocess
import sys
from pathlib import Path

from tests.rabbitmq import RabbitMQNode
from tests.waiting import patience


class TestTheDemoOfSeveralWorkers:
    def test_proves_what_it_claims(
        self, running_node: RabbitMQNode, postgres_programs: Path
    ) -> None:
        """A newcomer sees who consumes what, and every claim hold, in 100 columns of plain text."""
        demo = subprocess.run(
            [sys.executable, "-m", "tests.demo.scale"],
            capture_output=True,
            text=True,
            timeout=patience(120),
            check=False,
        )

        assert (demo.returncode, demo.stderr) == (0, "")
        assert "worker-2 (pid" in demo.stdout
        assert "topology resize 12" in demo.stdout
        assert "\nAll as claimed, " in demo.stdout
        assert "\x1b" not in demo.stdout
        assert max(map(len, demo.stdout.splitlines())) <= 100
