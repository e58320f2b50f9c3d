"""The same messages make the same bytes in either store."""

import math
from typing import Any

import pytest

from tests.builders import Message as Wire
from tests.builders import message
from tests.places import Place, rows
from tests.store.test_versions import rebuilt
from tests.unit.projecting import audited, project, verdicts
from worker import Message, Payload, Transaction
from worker.registry import Registry
from worker.store.postgres.address import Address

TEXTS = [
    "", " ", "'", '"', "''", "\\", "?", ":name", "$1", "%", "\n\r\t", "\x01", "\x7f", "\ufeff",
    "\u00e9", "e\u0301", "\u00df", "\u0130", "\uffff", "\U0001f600", "\U0010ffff", "NULL",
    "1", "1.0", "0x1F", "null", "{}", "-- x", "/*", "a" * 3_000,
]  # fmt: skip
NUMBERS = [0, 1, -1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, -(2**63)]
REALS = [
    0.0, 1.0, -1.5, 0.1, 1 / 3, 1e300, -1e300, 5e-324, 2.2250738585072014e-308, 2.0**53,
    1.7976931348623157e308, 123456789.123456789, float(2**63),
]  # fmt: skip
BYTES = [b"", b"\x00", b"\x00\xff", b"'", b"\\x00", bytes(range(256))]
COLUMNS = "event_id, text, number, real, data, small, made"
ALL = f"SELECT {COLUMNS} FROM kept ORDER BY event_id"


class Kept(Payload):
    """What one row says."""

    text: str | None
    number: int | None
    real: float | None
    data: str | None


def registry() -> Registry:
    """Return a registry with columns of all types, which handlers write in several ways."""
    made = Registry()
    table = """
        CREATE TABLE kept (
            event_id TEXT NOT NULL PRIMARY KEY, text TEXT, number BIGINT, real DOUBLE PRECISION,
            data BYTEA, small INTEGER DEFAULT 7, made TEXT DEFAULT 'it''s'
        )
    """
    made.projection(table="kept", version=1, schema=(table,))

    @made.on("said")
    async def said(tx: Transaction, message: Message[Kept]) -> None:
        it = message.payload
        row = {
            "e": message.event_id,
            "text": it.text,
            "number": it.number,
            "real": it.real,
            "data": None if it.data is None else bytes.fromhex(it.data),
        }
        await tx.execute(
            """
            INSERT INTO kept (event_id, text, number, real, data)
            VALUES (:e, :text, :number, :real, :data) ON CONFLICT (event_id) DO UPDATE
            SET text = excluded.text, number = excluded.number, real = excluded.real,
                data = excluded.data, small = kept.small + 1
            """,
            row,
        )
        found = await tx.fetch_one("SELECT text, data FROM kept WHERE event_id = ?", (row["e"],))
        assert found is not None
        assert (found["text"], found[1]) == (row["text"], row["data"])

    made.require_schemas()
    return made


def messages() -> list[tuple[Wire, tuple[Any, ...]]]:
    """Return messages of one stream each, and the row that each must leave."""
    made = []
    nothing = [None] * len(TEXTS)
    columns = zip(TEXTS, [*NUMBERS, *nothing], [*REALS, *nothing], [*BYTES, *nothing], strict=False)
    for place, (text, number, real, data) in enumerate([*columns, (None, None, None, None)]):
        event_id = f"{place:03}{text or ''}"[:100]
        payload = {
            "event_id": event_id,
            "text": text,
            "number": number,
            "real": real,
            "data": None if data is None else data.hex(),
        }
        row = (event_id, text, number, real, data, 7, "it's")
        made.append((message("said", payload), row))
    return made


class TestRows:
    @pytest.mark.parametrize("at_once", [1, 100])
    async def test_hold_what_the_messages_say(self, place: Place, at_once: int) -> None:
        """Every type, NULL, odd texts, and the limits of numbers: live, audited and rebuilt."""
        made = messages()
        expected = sorted((row for _, row in made), key=lambda row: row[0].encode())
        wires = [wire for wire, _ in made]
        batches = [wires[start : start + at_once] for start in range(0, len(wires), at_once)]

        outcomes = await project(place, *batches, registry=registry())
        live = rows(place, ALL)
        audit = await audited(place, registry())
        await rebuilt(place, registry())

        assert verdicts(outcomes) == ["applied"] * len(made)
        assert list(map(repr, live)) == list(map(repr, expected))
        assert (audit.rows, audit.differing) == (len(made), 0)
        assert rows(place, ALL) == live


def computing(value: float) -> Registry:
    """Return a registry whose handler writes this number into both columns of numbers."""
    made = Registry()
    table = "CREATE TABLE kept (event_id TEXT PRIMARY KEY, number BIGINT, real DOUBLE PRECISION)"
    made.projection(table="kept", version=1, schema=(table,))

    @made.on("said")
    async def said(tx: Transaction, message: Message[Payload]) -> None:
        await tx.execute("INSERT INTO kept VALUES (?, ?, ?)", (message.event_id, value, value))

    return made


class TestANumberThatHandlersCompute:
    @pytest.mark.parametrize(
        ("value", "number", "real"), [(-0.0, 0, 0.0), (3.0, 3, 3.0), (math.nan, None, None)]
    )
    async def test_is_kept_alike(
        self, place: Place, value: float, number: int | None, real: float | None
    ) -> None:
        """NaN is NULL, zero has no sign, and a whole number is an integer in its column."""
        await project(place, [message("said", {"event_id": "e"})], registry=computing(value))

        assert repr(rows(place, "SELECT number, real FROM kept")) == repr([(number, real)])

    async def test_is_not_cut_off(self, address: Address) -> None:
        """SQLite keeps a fraction in a column of integers; PostgreSQL refuses it, and says so."""
        said = [message("said", {"event_id": "e"})]

        (outcome,) = await project(address, said, registry=computing(1.5))

        assert outcome.rejected is not None
        assert "takes parameter 2 for a whole number, not 1.5" in outcome.rejected.detail
