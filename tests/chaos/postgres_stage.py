"""The stage with PostgreSQL: any number of workers, and what must be true of all of them."""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from tests.chaos.ending import command, some, work_queues
from tests.chaos.pair import Pair
from tests.chaos.stage import Stage
from tests.chaos.verdict import Check
from tests.oracle import Row
from tests.processes import worker_process
from tests.waiting import LISTING_SECONDS, eventually

# What the servers may report: a lost connection; a message that the log knows already, which the
# worker finds out so; a standby; a frozen worker; a full disk or too many sessions; a lock; a
# statement or a session that somebody has ended; a server that starts or stops.
EXPECTED = ("08", "23505", "25006", "25P03", "25P04", "53", "55P03", "57014", "57P")


@dataclass(kw_only=True)
class PostgresStage(Stage):
    """A stage whose workers share a database in PostgreSQL."""

    pair: Pair
    database_name: str
    partitions: int
    """How many there are, or will be once a resize succeeds."""
    commands: Counter[str] = field(default_factory=Counter)
    """How the commands that were run meanwhile have ended."""
    tracebacks: list[str] = field(default_factory=list)
    """What commands printed that contains one."""

    async def query(self, sql: str, *arguments: object) -> list[Row]:
        """Run a statement as superuser on the primary."""
        return await self.pair.primary.query(sql, *arguments, database=self.database_name)

    async def attempt(self, seconds: float, *arguments: str) -> None:
        """Run a command of the worker, which may fail, and kill it if it takes too long."""
        running = worker_process(*arguments, settings=self.fleet.settings, folder=self.folder)
        async with running as process:
            is_late = await process.outlives(seconds)
        ending = "killed" if is_late else f"exit code {await process.exit_code()}"
        self.commands[f"{arguments[0]}: {ending}"] += 1
        if "Traceback" in process.output:
            self.tracebacks.append(process.output)
        with (self.folder / "commands.log").open("a") as log:
            log.write(f"{' '.join(arguments)}: {ending}\n{process.output}\n")

    async def healed(self) -> list[Check]:
        """Check that a resize succeeds now, and that each partition has its consumer."""
        resize = ("topology", "resize", str(self.partitions))
        exit_code, output = await command(self.fleet, self.folder, *resize)
        return [
            Check("a last resize succeeds", output if exit_code else ""),
            Check("each partition has one active consumer", await self._misses_consumers()),
        ]

    async def _misses_consumers(self) -> str:
        wanted = {f"{self.queues.name}.{number:03}": 1 for number in range(self.partitions)}

        async def found() -> dict[str, int]:
            listed = await self.node.ctl(
                *("list_consumers", "queue_name", "active", "--formatter", "json")
            )
            names = [each["queue_name"] for each in json.loads(listed) if each["active"]]
            return {name: count for name, count in Counter(names).items() if name in wanted}

        async def is_right() -> bool:
            return await found() == wanted and set(
                await work_queues(self.node, self.queues)
            ) == set(wanted)

        with suppress(AssertionError):
            await eventually(is_right, every=LISTING_SECONDS)
            return ""
        queues = sorted(await work_queues(self.node, self.queues))
        return f"active consumers {await found()}, queues {queues}"

    async def ended(self) -> list[Check]:
        """Check what the servers and the commands have said."""
        errors = self.pair.errors()
        others = {code: n for code, n in errors.items() if not code.startswith(EXPECTED)}
        return [
            Check("no transaction met a deadlock", str(errors["40P01"] or "")),
            Check("PostgreSQL reports no error but those of the faults", str(others or "")),
            Check("no command prints a traceback", some(iter(self.tracebacks))),
        ]

    def counted(self) -> dict[str, int]:
        """Return how commands have ended, and the errors that PostgreSQL reported."""
        errors = {f"PostgreSQL said {code}": n for code, n in self.pair.errors().items()}
        connections = sum(relay.connections for relay in self.pair.relays)
        return {"connections to the database": connections, **self.commands, **errors}
