"""Runs a command of the worker as a user would, and returns what it printed."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

from tests.processes import environment
from tests.waiting import patiently


async def run_command(
    *arguments: str, folder: Path, stdin: bytes = b"", **settings: Any
) -> tuple[int, str, str]:
    """Run `python -m worker` with arguments; return its exit code and both outputs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", *arguments,
        cwd=folder, env=environment(**settings), stdin=PIPE, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    try:
        async with patiently():
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), err.decode()
