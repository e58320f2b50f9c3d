import os
import subprocess
import sys

from tests.waiting import patience


class TestTheDemo:
    def test_proves_what_it_claims(self, broker_url: str) -> None:
        """A newcomer sees every claim hold, in plain text of 100 columns, and exit code 0."""
        demo = subprocess.run(
            [sys.executable, "-m", "tests.demo"],
            env=os.environ | {"WORKER_AMQP_URL": broker_url},
            capture_output=True,
            text=True,
            timeout=patience(120),
            check=False,
        )

        assert (demo.returncode, demo.stderr) == (0, "")
        assert "because WORKER_AMQP_URL names it" in demo.stdout
        assert "\nAll as claimed, " in demo.stdout
        assert "\x1b" not in demo.stdout
        assert max(map(len, demo.stdout.splitlines())) <= 100
