"""Real processes that run a few lines of code and print a line at each point of interest."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def process(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run code in a separate process; kill it at the end of the block, whatever it does."""
    started = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            yield started
        finally:
            started.kill()


def line(running: subprocess.Popen[str]) -> str:
    """Return the next line that the process prints, or fail with its standard error."""
    assert running.stdout is not None
    assert running.stderr is not None
    said = running.stdout.readline().rstrip("\n")
    assert said, running.stderr.read()
    return said
