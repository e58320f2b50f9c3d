import functools
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator

from tests.builders import Message as Wire
from tests.builders import message, planned, started
from tests.oracle import expected_rows
from tests.places import change
from tests.unit.projecting import audited, project, rows, verdicts
from worker import Identifier, Message, Payload, Transaction
from worker.errors import RegistrationError
from worker.projections import events, load
from worker.rebuild import rebuild
from worker.registry import Registry
from worker.store.sqlite.store import Writer

NOTES_TABLE = "CREATE TABLE notes (event_id TEXT PRIMARY KEY, text TEXT, count INTEGER)"


class Noted(Payload):
    """Somebody wrote something down."""

    text: Identifier


class Brittle(Payload):
    """A model whose validator has a bug."""

    text: Annotated[str, AfterValidator(lambda text: {}[text])]


async def noted(tx: Transaction, message: Message[Noted]) -> None:
    """Do nothing, as a correct handler may."""


def not_async(tx: Transaction, message: Message[Noted]) -> None: ...
async def no_parameter() -> None: ...
async def one_parameter(message: Message[Noted]) -> None: ...
async def three_parameters(tx: Transaction, message: Message[Noted], more: int) -> None: ...
async def any_number(tx: Transaction, message: Message[Noted], *more: int) -> None: ...
async def no_annotation(tx, message) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001 - the fault in question
async def unknown_annotation(tx: Transaction, message: "Message[Nowhere]") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the fault in question
async def no_expression(tx: Transaction, message: "Message[") -> None: ...  # type: ignore[valid-type]  # noqa: F722 - the fault in question
async def bare_message(tx: Transaction, message: Message) -> None: ...  # type: ignore[type-arg]
async def no_message(tx: Transaction, message: dict[str, Any]) -> None: ...
async def payload_alone(tx: Transaction, message: Noted) -> None: ...
async def no_payload(tx: Transaction, message: Message[int]) -> None: ...  # type: ignore[type-var]
async def or_none(tx: Transaction, message: Message[Noted] | None) -> None: ...


BAD_HANDLERS = (
    not_async, no_parameter, one_parameter, three_parameters, any_number, no_annotation,
    unknown_annotation, no_expression, bare_message, no_message, payload_alone, no_payload,
    or_none, functools.partial(three_parameters, more=1),
)  # fmt: skip


class Undefined(Payload):
    place: "Nowhere"  # type: ignore[name-defined]  # noqa: F821 - the mistake


class Numbered(Payload):
    event_id: int  # type: ignore[assignment]  # the mistake


class Optional(Payload):
    event_id: str | None = None  # type: ignore[assignment]  # the mistake


class TestBadHandlers:
    @pytest.mark.parametrize("handler", BAD_HANDLERS)
    def test_are_refused_at_once(self, handler: Any) -> None:
        """The error shows the right form and the place of the wrong one."""
        registry = Registry()

        with pytest.raises(RegistrationError, match="must be 'async def") as refused:
            registry.on("noted")(handler)

        name = getattr(handler, "__name__", "")
        assert f"async def {name}" in str(refused.value)
        assert "(tx, message: Message[Model])" in str(refused.value)
        assert registry.handlers == {}
        if name:
            assert re.search(r"test_registry\.py:\d+\)", str(refused.value))

    @pytest.mark.parametrize(
        ("model", "wrong"),
        [
            (Undefined, "uses the name 'Nowhere'"),
            (Numbered, "defines event_id in its own way"),
            (Optional, "defines event_id in its own way"),
        ],
    )
    def test_with_a_model_that_fails_for_all_messages_are_refused(
        self, model: type[Payload], wrong: str
    ) -> None:
        """One such model would dead-letter every message of every kind, or end the worker."""

        async def handler(tx: Transaction, message: Any) -> None: ...

        handler.__annotations__["message"] = Message[model]  # type: ignore[valid-type]  # made here
        with pytest.raises(RegistrationError, match=wrong) as refused:
            Registry().on("noted")(handler)

        assert re.search(r"test_registry\.py:\d+\)", refused.value.message)

    def test_second_one_of_a_kind_is_refused(self) -> None:
        """The error names both places, and the first handler stays."""
        registry = Registry()
        registry.on("noted")(noted)

        with pytest.raises(RegistrationError) as refused:

            @registry.on("noted")
            async def another(tx: Transaction, message: Message[Noted]) -> None: ...

        places = re.findall(r"test_registry\.py:(\d+)", refused.value.message)
        assert refused.value.message.startswith("Kind 'noted' is registered twice (")
        assert len(set(places)) == 2
        assert places[0] == str(noted.__code__.co_firstlineno)

    def test_second_table_of_a_name_is_refused(self) -> None:
        """Two projections would overwrite each other's rows."""
        registry = Registry()
        registry.projection(table="notes", version=1, schema=(NOTES_TABLE,))

        with pytest.raises(RegistrationError) as refused:
            registry.projection(table="notes", version=2, schema=(NOTES_TABLE,))

        places = re.findall(r"test_registry\.py:(\d+)", refused.value.message)
        assert refused.value.message.startswith("Table 'notes' is registered twice (")
        assert len(set(places)) == 2


NAMES = [
    "log", "streams", "messages", "projections", "file", "kinds", "filler", "sqlite_notes",
    "json_each", "json_tree", "pragma_table_info", "", "Notes", "my-notes", "my notes", "1st",
    "_notes", "notes\n", "main.notes", '"notes"', "notes; DROP TABLE log", "n\u00f6tes", None, 7,
]  # fmt: skip
VERSIONS = [0, -1, 2**63, "1", 1.0, True, None]
SCHEMAS = [(), [], [NOTES_TABLE], NOTES_TABLE, None, (NOTES_TABLE, None), {NOTES_TABLE: 1}]
BAD_PARTS = [
    *({"table": name} for name in NAMES),
    *({"version": version} for version in VERSIONS),
    *({"schema": schema} for schema in SCHEMAS),
]  # fmt: skip


class TestBadProjections:
    @pytest.mark.parametrize("wrong", BAD_PARTS, ids=str)
    def test_are_refused_at_once(self, wrong: dict[str, Any]) -> None:
        """The error says what is wrong and where, and the hint says what would be right."""
        registry = Registry()
        parts: dict[str, Any] = {"table": "notes", "version": 1, "schema": (NOTES_TABLE,)}

        with pytest.raises(RegistrationError) as refused:
            registry.projection(**(parts | wrong))

        assert re.search(r"test_registry\.py:\d+\)\.$", refused.value.message)
        assert refused.value.hint
        assert registry.projections == ()

    def test_are_refused_when_all_are_known(self) -> None:
        """SQLite's error is reported with the place of the registration."""
        registry = notebook()
        _, line = registry.projections[0].place.rsplit(":", 1)
        registry.projection(table="more", version=1, schema=("CREATE TABLE more (text)",))

        with pytest.raises(RegistrationError) as refused:
            registry.require_schemas()

        found = re.fullmatch(
            r"Table 'more' has no column event_id \(.*test_registry\.py:(\d+)\)\.",
            refused.value.message,
        )
        assert found
        assert found.group(1) != line
        assert "event_id TEXT NOT NULL" in refused.value.hint

    @pytest.mark.parametrize("kind", ["", None, 7, noted])
    def test_are_joined_by_kinds_that_are_no_text(self, kind: Any) -> None:
        """A decorator without a kind would silently register nothing."""
        with pytest.raises(RegistrationError, match=r"kind must be text.*test_registry\.py:\d+"):
            Registry().on(kind)


class TestRegistry:
    def test_knows_the_six_kinds(self) -> None:
        """Loading the projections registers the kinds of DESIGN.md."""
        assert tuple(sorted(load().handlers)) == (
            "event_cancelled", "event_completed", "event_expired", "event_planned",
            "event_started", "event_status_reverted",
        )  # fmt: skip
        assert load().versions == {"events": 2}

    async def test_works_with_one_kind(self, tmp_path: Path) -> None:
        """A single kind needs no union."""
        registry = notebook()
        del registry._kinds["note_erased"]

        outcomes = await project(
            tmp_path / "p.db", [note("e", "a"), planned("e")], registry=registry
        )

        assert verdicts(outcomes) == ["applied", "unknown_kind"]

    async def test_rejects_what_the_validator_of_a_model_fails_for(self, tmp_path: Path) -> None:
        """A bug in a model rejects the messages of its kind, and does not end the worker."""
        registry = notebook()

        @registry.on("broken")
        async def broken(tx: Transaction, message: Message[Brittle]) -> None:
            raise AssertionError(tx, message)

        batch = [message("broken", {"event_id": "e", "text": "b"}), note("e", "a")]
        outcomes = await project(tmp_path / "p.db", batch, registry=registry)

        assert verdicts(outcomes) == ["bad_payload", "applied"]
        assert outcomes[0].rejected is not None
        assert "KeyError: 'b'" in outcomes[0].rejected.detail

    async def test_takes_a_kind_after_the_first_message(self, tmp_path: Path) -> None:
        """The union of kinds is rebuilt for each registration."""
        registry = notebook()
        await project(tmp_path / "p.db", [note("e", "a")], registry=registry)

        registry.on("noted_otherwise")(noted)
        outcomes = await project(
            tmp_path / "p.db",
            [message("noted_otherwise", {"event_id": "e", "text": "b"})],
            registry=registry,
        )

        assert verdicts(outcomes) == ["applied"]


def notebook() -> Registry:
    """Return a projection as its author would write it in a separate file."""
    registry = Registry()
    registry.projection(table="notes", version=1, schema=(NOTES_TABLE,))

    @registry.on("note_written")
    async def written(tx: Transaction, message: Message[Noted]) -> None:
        key = (message.event_id,)
        await tx.execute("INSERT INTO notes VALUES (?, '', 0) ON CONFLICT DO NOTHING", key)
        row = await tx.fetch_one("SELECT text, count FROM notes WHERE event_id = ?", key)
        assert row is not None
        await tx.execute(
            "UPDATE notes SET text = ?, count = ? WHERE event_id = ?",
            (f"{row['text']}{message.payload.text}", row["count"] + 1, message.event_id),
        )

    @registry.on("note_erased")
    async def erased(tx: Transaction, message: Message[Payload]) -> None:
        await tx.execute("UPDATE notes SET text = '' WHERE event_id = ?", (message.event_id,))

    return registry


NOTES = "SELECT * FROM notes ORDER BY event_id"


def note(event_id: str, text: str, **envelope: Any) -> Wire:
    return message("note_written", {"event_id": event_id, "text": text}, **envelope)


class TestOwnProjection:
    @pytest.mark.parametrize("batch_size", [1, 3, 99])
    async def test_sees_its_own_writes_in_any_order(self, tmp_path: Path, batch_size: int) -> None:
        """A handler that reads sees all earlier writes of its stream, even in late messages."""
        erased = message("note_erased", {"event_id": "e"}, sequence=3)
        history = [
            note("e", "c", sequence=4), note("e", "a", sequence=1), note("f", "x"), erased,
            note("e", "b", sequence=2), note("e", "d", sequence=5), note("f", "y"),
        ]  # fmt: skip
        batches = [history[n : n + batch_size] for n in range(0, len(history), batch_size)]

        outcomes = await project(tmp_path / "p.db", *batches, registry=notebook())

        assert verdicts(outcomes) == [
            "applied", "late", "applied", "late", "late", "applied", "applied",
        ]  # fmt: skip
        assert rows(tmp_path / "p.db", NOTES) == [("e", "cd", 4), ("f", "xy", 2)]

    async def test_is_rebuilt_from_the_log(self, tmp_path: Path) -> None:
        """A user's projection is checked and repaired like the worker's own."""
        await project(tmp_path / "p.db", [note("e", "a"), note("e", "b")], registry=notebook())
        change(tmp_path / "p.db", "UPDATE notes SET text = 'no'")
        assert (await audited(tmp_path / "p.db", notebook())).differing == 1

        async with Writer(tmp_path / "p.db") as writer:
            await rebuild(writer, notebook(), lambda done, total: None)

        assert rows(tmp_path / "p.db", NOTES) == [("e", "ab", 2)]

    async def test_lives_beside_the_events(self, tmp_path: Path) -> None:
        """With two projections in one file, a late message folds the stream's rows in both."""
        registry = notebook()
        (projection,) = load().projections
        registry.projection(table="events", version=1, schema=projection.schema)
        registry.on("event_planned")(events.planned)
        registry.on("event_started")(events.started)
        life = [started("e", sequence=3), note("e", "b", sequence=2), planned("e", sequence=1)]

        outcomes = await project(tmp_path / "p.db", *([each] for each in life), registry=registry)

        assert verdicts(outcomes) == ["orphan", "late", "late"]
        assert rows(tmp_path / "p.db") == expected_rows([life[0], life[2]])
        assert rows(tmp_path / "p.db", NOTES) == [("e", "b", 1)]
        assert (await audited(tmp_path / "p.db", registry)).rows == 2
