"""The same messages make the same bytes in either store."""

import random
from typing import Any

import pytest

from tests.builders import Message as Wire
from tests.builders import message
from tests.places import Place, rows
from tests.store.test_versions import rebuilt
from tests.unit.projecting import audited, project, verdicts
from worker import Message, Payload, Transaction
from worker.registry import Registry

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
    order = random.Random(1)
    made = []
    for place in range(max(map(len, (TEXTS, NUMBERS, REALS, BYTES)))):
        text, number, real, data = (
            order.choice([None, each]) if place >= len(values) else each
            for values in (TEXTS, NUMBERS, REALS, BYTES)
            for each in [values[place % len(values)]]
        )
        event_id = f"{place:03}{(text or '')[:100]}"
        payload = {
            "event_id": event_id,
            "text": text,
            "number": number,
            "real": real,
            "data": None if data is None else data.hex(),
        }
        row = (event_id, text, number, real, data, 7, "it's")
        made.append((message("said", payload), row))
    nothing = {"event_id": "null", "text": None, "number": None, "real": None, "data": None}
    return [*made, (message("said", nothing), ("null", None, None, None, None, 7, "it's"))]


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
