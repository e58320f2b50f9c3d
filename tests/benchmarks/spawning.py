"""The benchmark's helper programs, each in a process that ends with the benchmark."""

import asyncio
import json
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.processes import ROOT


class Program:
    """A process that reports in lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process, module: str) -> None:
        """Talk to a process that has been started."""
        self._process = process
        self._module = module

    async def told(self) -> dict[str, Any]:
        """Wait for its next line."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, f"{self._module} failed"
        return dict(json.loads(line))

    async def finish(self) -> None:
        """Close its standard input, and wait until it has ended successfully."""
        await self._process.communicate(b"")
        assert self._process.returncode == 0, f"{self._module} failed"


@asynccontextmanager
async def program(module: str, *arguments: object) -> AsyncIterator[Program]:
    """Start a module of the benchmark; kill it at the end of the block if it still runs."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, arguments)]
    if shutil.which("setpriv"):
        # The kernel ends it with the benchmark, even if the benchmark is killed.
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
        # Ctrl-C in the terminal goes only to the benchmark, which then ends the program.
        start_new_session=True,
    )
    try:
        yield Program(process, module)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
