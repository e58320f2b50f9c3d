import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.builders import completed, planned
from tests.cli.commands import run_command
from tests.cli.conftest import Place
from tests.database import log, query
from tests.processes import ROOT
from tests.unit.projecting import project
from worker.store.postgres.address import Address

NO_EVENT_ID = """
from worker import projection

projection(table="notes", version=1, schema=("CREATE TABLE notes (id TEXT PRIMARY KEY)",))
"""
THE_LOG = """
from worker import projection

projection(
    table="log",
    version=1,
    schema=("CREATE TABLE log (event_id TEXT PRIMARY KEY)",),
)
"""
NO_SYNTAX = """
def said(:
"""
NO_PAYLOAD = """
from worker import Message, Transaction, on

class Said:
    text: str

@on("said")
async def said(tx: Transaction, message: Message[Said]) -> None: ...
"""
SENTENCES = {
    NO_EVENT_ID: "Table 'notes' has no column event_id ({}:4).",
    THE_LOG: "A projection's table cannot be named 'log' ({}:4).",
}
COMMANDS = [
    "run",
    "rebuild",
    "rebuild --verify",
    "show e-1",
    "publish --kind event_started --event-id e-1",
]
NOWHERE = "amqp://127.0.0.1:9/"
LIFE = [planned("e-1"), completed("e-1")]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a copy of the package, which commands run in its folder use."""
    return Path(shutil.copytree(ROOT / "worker", tmp_path / "changed" / "worker"))


def add(package: Path, text: str, name: str = "notes.py") -> str:
    """Add a projection to the program; return the sentence that says what is wrong with it."""
    file = package / "projections" / name
    file.write_text(text)
    return SENTENCES[text].format(file)


def content(database: Path) -> bytes:
    return database.read_bytes()


async def told(*arguments: str, folder: Path, **settings: Any) -> tuple[int, str]:
    """Run a command; return its exit code and all its output on one line."""
    code, out, err = await run_command(*arguments, folder=folder, **settings)
    assert "Traceback" not in out + err
    return code, " ".join((out + err).split())


class TestAProjectionWithAMistake:
    """It is reported in one sentence with a hint; nothing is consumed, and nothing is dropped."""

    @pytest.mark.parametrize("text", SENTENCES, ids=["no event_id", "the log"])
    @pytest.mark.parametrize("command", COMMANDS)
    async def test_ends_every_command_that_loads_it(
        self, package: Path, database: Path, command: str, text: str
    ) -> None:
        """The command ends before it touches the file."""
        await project(database, LIFE)
        before = content(database)
        sentence = add(package, text)

        code, out = await told(
            *command.split(), folder=package.parent, database=database, amqp_url=NOWHERE
        )

        assert code == 1
        assert sentence in out
        assert "hint" in out.lower()
        assert content(database) == before

    async def test_ends_a_command_that_imports_it(self, package: Path, database: Path) -> None:
        """A mistake in the events' own file is reported in the same way by any command."""
        file = package / "projections" / "events.py"
        file.write_text(f'{file.read_text()}\non("event_planned")(planned)\n')

        code, out = await told("show", "e-1", folder=package.parent, database=database)

        assert code == 1
        assert "Kind 'event_planned' is registered twice (" in out

    @pytest.mark.parametrize("text", SENTENCES, ids=["no event_id", "the log"])
    async def test_ends_the_start_before_anything_is_consumed(
        self, package: Path, place: Place, text: str
    ) -> None:
        """No message is dead-lettered, and the next worker projects them all."""
        await place.queues.declare()
        await place.queues.publish(LIFE)
        sentence = add(package, text)

        code, out, _ = await run_command("run", folder=package.parent, **place.settings)

        (line,) = [json.loads(each) for each in out.splitlines() if '"failed"' in each]
        assert (code, line["reason"]) == (1, sentence)
        assert line["hint"]
        assert await place.queues.left() == len(LIFE)
        assert await place.queues.take_dead_letters() == []
        assert not place.database.exists()

        worker = await place.start_worker()
        await worker.wait_until_settled(len(LIFE))
        assert len(log(place.database)) == len(LIFE)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            (NO_SYNTAX, "'notes' cannot be loaded (SyntaxError: invalid syntax (notes.py, line 2)"),
            (NO_PAYLOAD, "notes.py:8)"),
            ("import nothing_of_the_kind", "No module named 'nothing_of_the_kind'"),
        ],
        ids=["syntax", "payload", "import"],
    )
    async def test_that_python_finds_is_no_traceback(
        self, package: Path, database: Path, text: str, sentence: str
    ) -> None:
        """The sentence names the module, the error and the line."""
        (package / "projections" / "notes.py").write_text(text)

        code, said = await told(
            "rebuild", folder=package.parent, database=database, amqp_url=NOWHERE
        )

        assert code == 1
        assert sentence in said

    async def test_is_seen_by_check(self, package: Path, place: Place) -> None:
        """`check` reports it even before there is a database."""
        sentence = add(package, NO_EVENT_ID)

        code, out, _ = await run_command("check", "--json", folder=package.parent, **place.settings)

        (line,) = [each for each in json.loads(out) if each["subject"] == "projections"]
        assert (code, line["verdict"], line["found"]) == (1, "FAIL", sentence)


class TestASchemaThatOnlySqliteKeeps:
    @pytest.mark.parametrize("command", ["run", "check", "rebuild", "rebuild --verify"])
    async def test_is_refused_on_postgres(
        self, package: Path, database_url: str, command: str
    ) -> None:
        """The sentence names the table, the column, the file and line, and what to write."""
        await project(Address(database_url), LIFE)
        text = NO_EVENT_ID.replace("(id TEXT", "(event_id TEXT").replace("KEY)", "KEY, n NUMERIC)")
        (package / "projections" / "notes.py").write_text(text)

        code, said = await told(
            *command.split(), folder=package.parent, database=database_url, amqp_url=NOWHERE
        )

        assert code == 1
        assert (
            "'notes' has a column of a type that PostgreSQL and SQLite keep differently: n" in said
        )
        assert f"{package / 'projections' / 'notes.py'}:4" in said
        assert "declare it TEXT, BIGINT, DOUBLE PRECISION or BYTEA" in said


class TestASchemaThatWasChanged:
    async def test_without_its_version_is_refused(self, package: Path, place: Place) -> None:
        """Otherwise every message that needs the new column would be dead-lettered."""
        file = package / "projections" / "notes.py"
        file.write_text(NO_EVENT_ID.replace("(id TEXT", "(event_id TEXT"))
        worker = await place.consuming()
        await place.queues.publish(LIFE)
        await worker.wait_until_settled(len(LIFE))
        worker.terminate()
        await worker.exit_code()
        await told("rebuild", folder=package.parent, **place.settings)
        file.write_text(file.read_text().replace("KEY)", "KEY, more TEXT)"))

        run = await told("run", folder=package.parent, **place.settings)
        check = await told("check", folder=package.parent, **place.settings)

        for code, said in (run, check):
            assert code == 1
            assert "The table notes has other columns than its schema" in said


class TestAProjectionThatIsAsItMustBe:
    async def test_is_built_at_the_next_start(self, package: Path, place: Place) -> None:
        """A new file adds its table, and leaves the rows of the others alone."""
        worker = await place.consuming()
        await place.queues.publish(LIFE)
        await worker.wait_until_settled(len(LIFE))
        worker.terminate()
        await worker.exit_code()
        (package / "projections" / "notes.py").write_text(
            NO_EVENT_ID.replace("(id TEXT", "(event_id TEXT")
        )

        code, out = await told("rebuild", folder=package.parent, **place.settings)

        assert code == 0, out
        assert query(place.database, "SELECT table_name FROM projections") == [
            ("events",), ("notes",),
        ]  # fmt: skip
        assert query(place.database, "SELECT count(*) FROM notes") == [(0,)]
        assert len(log(place.database)) == len(LIFE)
