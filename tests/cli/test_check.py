import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.builders import planned
from tests.cli.commands import run_command
from tests.cli.conftest import Place
from tests.database import change
from tests.postgres import PostgresDatabase
from tests.rabbitmq import HAS_SHARDING_INSIDE, RabbitMQNode, version
from tests.unit.projecting import project
from worker.store.postgres.address import Address

HAS_PRIORITIES = (4, 0)
CANARY = "S3CR3T-canary"
NOWHERE = f"amqp://user:{CANARY}@127.0.0.1:9/"
COMMANDS = [
    "check", "rebuild", "rebuild --verify", "show e-1", "list chat-1", "publish -",
    "publish --kind event_started --event-id e-1", "dead-letters list", "dead-letters show 1",
]  # fmt: skip


async def checked(place: Place, **settings: Any) -> tuple[int, dict[str, tuple[str, str]]]:
    """Run the check; return its exit code, and subject -> verdict and fix."""
    code, out, _ = await run_command(
        "check", "--json", folder=place.folder, **(place.settings | settings)
    )
    lines = json.loads(out)
    return code, {line["subject"]: (line["verdict"], line["fix"] or "") for line in lines}


class TestCheck:
    """Checks everything and creates nothing."""

    async def test_before_the_first_start_warns_and_makes_nothing(self, place: Place) -> None:
        """A check creates no file and no queue."""
        first, lines = await checked(place)
        second, again = await checked(place)

        assert (first, second) == (0, 0)
        assert lines == again
        assert lines["topology"][0] == lines["database"][0] == "warn"
        assert lines["broker"][0] == lines["settings"][0] == lines["disk"][0] == "ok"
        assert lines["claim"][0] == "ok"
        assert not place.database.exists()

    async def test_beside_a_running_worker_finds_all_well(self, place: Place) -> None:
        """It names the worker that writes the file, and does not disturb it."""
        worker = await place.consuming()

        code, out, _ = await run_command("check", folder=place.folder, **place.settings)

        assert code == 0
        assert "FAIL" not in out
        assert f"pid {worker.pid}" in out

    async def test_of_a_database_on_a_server_looks_at_no_disk(
        self, place: Place, database_url: str
    ) -> None:
        """Its tables are looked at as those of a file."""
        _, before = await checked(place, database=database_url)
        await project(Address(database_url), [planned("e-1")])
        _, after = await checked(place, database=database_url)

        assert (before["database"][0], after["database"][0]) == ("warn", "ok")
        assert before["claim"][0] == after["claim"][0] == "ok"
        assert {"disk", "sqlite"}.isdisjoint(after)

    async def test_with_another_file_than_the_queue_has_fails(self, place: Place) -> None:
        """It fails before a worker is started on the file, even if there is no file yet."""
        worker = await place.consuming()
        _, with_its_own = await checked(place)

        code, lines = await checked(place, database=place.folder / "other.db")

        assert with_its_own["claim"][0] == "ok"
        assert code == 1
        assert lines["claim"][0] == "FAIL"
        assert "topology release" in lines["claim"][1]
        assert worker.said("connection_lost") == []

    async def test_fails_for_a_file_that_the_worker_would_refuse(self, place: Place) -> None:
        """These are kinds that only a newer release knows, and a copy older than the acks."""
        await project(place.database, [planned("e-1")])
        shutil.copyfile(place.database, place.folder / "backup.db")
        await project(place.database, [planned("e-2")])
        change(place.database, "INSERT INTO kinds VALUES ('event_postponed')")
        _, unknown = await checked(place)
        shutil.copyfile(place.folder / "backup.db", place.database)

        code, older = await checked(place)

        assert unknown["database"][0] == older["database"][0] == "FAIL"
        assert "roll back" in unknown["database"][1]
        assert ".lock" in older["database"][1]
        assert code == 1

    async def test_fails_for_what_a_start_would_refuse(self, place: Place) -> None:
        """These are a file with two names, another machine's address, and a port in use."""
        await project(place.database, [planned("e-1")])
        (place.folder / "second.db").hardlink_to(place.database)
        of_the_broker = urlsplit(place.queues.url).port

        _, taken = await checked(place, health_port=of_the_broker)
        _, elsewhere = await checked(place, health_host="192.0.2.1")

        assert taken["database"][0] == "FAIL"
        assert "remove the others" in taken["database"][1]
        assert taken["health"][0] == elsewhere["health"][0] == "FAIL"
        assert "WORKER_HEALTH_PORT" in taken["health"][1]
        assert "WORKER_HEALTH_HOST" in elsewhere["health"][1]

    async def test_without_a_broker_fails_with_the_fix(self, place: Place) -> None:
        """It exits with 1, and still prints the other lines."""
        code, lines = await checked(place, amqp_url=NOWHERE)

        assert code == 1
        assert lines["broker"][0] == lines["topology"][0] == "FAIL"
        assert "WORKER_AMQP_URL" in lines["broker"][1]
        assert lines["disk"][0] == "ok"

    async def test_tells_of_variables_that_are_no_settings(self, place: Place) -> None:
        """A misspelt setting would otherwise go unnoticed."""
        code, lines = await checked(place, prefech=7)

        assert code == 0
        assert lines["settings"][0] == "warn"
        assert "PREFETCH" in lines["settings"][1]


class TestCheckOnPostgres:
    """With partitions on the broker, and a server for the rows."""

    async def test_before_the_first_start_warns_and_makes_nothing(
        self, place: Place, database_url: str
    ) -> None:
        """A check creates no schema and no queue."""
        first, lines = await checked(place, database=database_url)
        second, again = await checked(place, database=database_url)

        assert (first, second) == (0, 0)
        assert lines == again
        assert lines["topology"][0] == lines["database"][0] == "warn"
        assert "disk" not in lines

    async def test_beside_a_running_worker_finds_all_well(
        self, place: Place, database_url: str
    ) -> None:
        """It looks at as many partitions as the database says, not the settings."""
        worker = await place.consuming(database=database_url, partitions=3)
        await place.queues.publish([planned("e-1")])
        await worker.wait_until_settled(1)

        code, out, _ = await run_command(
            "check",
            folder=place.folder,
            **(place.settings | {"database": database_url, "partitions": 5, "ordinal": 0}),
        )

        assert code == 0
        assert "3 partitions" in out
        assert re.findall(r"^(?:warn|FAIL) +(\w+)", out, re.MULTILINE) == []

    async def test_says_when_one_worker_gets_everything(
        self, place: Place, database_url: str
    ) -> None:
        """Both the check and the worker do, on a broker that ignores priorities; once is enough."""
        worker = await place.consuming(database=database_url, partitions=2)
        expected = [] if version() >= HAS_PRIORITIES else ["priorities_ignored"]

        _, lines = await checked(place, database=database_url)

        assert [line["event"] for line in worker.said("priorities_ignored")] == expected
        assert lines["partitions"][0] == ("warn" if expected else "ok")

    async def test_without_a_server_says_so_once(self, place: Place, database_url: str) -> None:
        """What must be asked of the database is not checked."""
        code, lines = await checked(place, database=f"{database_url}_elsewhere")

        assert code == 1
        assert [each for each, (verdict, _) in lines.items() if verdict == "FAIL"] == ["database"]
        assert {lines[each][0] for each in ("topology", "partitions", "claim")} == {"warn"}

    async def test_names_the_plugin_that_is_missing(self, place: Place, database_url: str) -> None:
        """Before the first start, which would fail without it."""
        if version() >= HAS_SHARDING_INSIDE:
            pytest.skip("this RabbitMQ needs no plugin")
        async with RabbitMQNode(has_sharding=False) as node:
            code, lines = await checked(place, database=database_url, amqp_url=node.url)

        assert code == 1
        assert lines["topology"][0] == "FAIL"
        assert "rabbitmq-plugins enable rabbitmq_sharding" in lines["topology"][1]

    async def test_whose_rows_are_a_newer_releases_fails(
        self, place: Place, postgres_database: PostgresDatabase
    ) -> None:
        """A start would hold, and never fold them again by itself."""
        await place.consuming(database=postgres_database.url, partitions=1)
        await postgres_database.query("UPDATE projection.projections SET version = version + 1")

        code, lines = await checked(place, database=postgres_database.url)

        assert code == 1
        assert lines["database"][0] == "FAIL"
        assert "projection-worker rebuild" in lines["database"][1]


class TestSettings:
    """They come from the environment, .env, and secret files."""

    async def test_that_are_wrong_are_named_with_what_is_allowed(self, tmp_path: Path) -> None:
        """The command exits with 2 before it opens anything."""
        code, out, err = await run_command(
            "run", folder=tmp_path, prefetch=0, log_format="xml", amqp_url=f"http://{CANARY}"
        )

        assert (code, out) == (2, "")
        for expected in ("WORKER_PREFETCH", "1", "WORKER_LOG_FORMAT", "'json'", "amqp://"):
            assert expected in err
        assert CANARY not in err

    async def test_may_come_from_files(self, tmp_path: Path) -> None:
        """A secret file and .env are read; the environment wins."""
        (tmp_path / "worker_amqp_url").write_text(NOWHERE.replace(":9/", ":10/"))
        (tmp_path / ".env").write_text("WORKER_DATABASE=from-dotenv.db\nWORKER_QUEUE=q")

        _, out, _ = await run_command("check", folder=tmp_path, secrets_dir=tmp_path)

        assert "127.0.0.1:10" in out
        assert "from-dotenv.db" in out


class TestAPassword:
    """It appears nowhere, whatever goes wrong."""

    @pytest.mark.parametrize("command", COMMANDS)
    async def test_is_not_printed(self, tmp_path: Path, command: str) -> None:
        """It is neither on standard output nor on standard error."""
        _, out, err = await run_command(
            *command.split(), folder=tmp_path, amqp_url=NOWHERE, database=tmp_path / "p.db"
        )

        assert out + err
        assert CANARY not in out + err


class TestTheProgram:
    """The program without a command."""

    async def test_says_what_it_can_do(self, tmp_path: Path) -> None:
        """--version and --help work whatever the settings."""
        _, version, _ = await run_command("--version", folder=tmp_path, prefetch=0)
        _, usage, _ = await run_command("--help", folder=tmp_path, prefetch=0)

        assert version == "0.1.0\n"
        assert "dead-letters" in usage
