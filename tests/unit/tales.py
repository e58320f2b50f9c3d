"""Two projections whose rows show the order in which handlers ran, and an independent fold."""

from tests.builders import Message, message
from worker import Message as Message_
from worker import Payload, Transaction
from worker.registry import Registry

TALES = """
    SELECT event_id, text, value FROM tales LEFT JOIN marks USING (event_id)
    UNION SELECT event_id, NULL, value FROM marks WHERE event_id NOT IN (SELECT event_id FROM tales)
    ORDER BY event_id
"""


MARKS = "CREATE TABLE marks (event_id TEXT PRIMARY KEY, value DOUBLE PRECISION, data BYTEA)"


class Word(Payload):
    text: str


def telling(runs: list[int] | None = None) -> Registry:
    """Return two projections whose rows show the order in which their handlers ran."""
    registry = Registry()
    registry.projection(
        table="tales",
        version=1,
        schema=("CREATE TABLE tales (event_id TEXT PRIMARY KEY, text TEXT, odd TEXT)",),
    )
    registry.projection(
        table="marks",
        version=1,
        schema=(MARKS,),
    )

    @registry.on("told")
    async def told(tx: Transaction, message: Message_[Word]) -> None:
        if runs is not None:
            runs.append(message.sequence)
        await tx.execute(
            """
            INSERT INTO tales VALUES (?, ?, 'x')
            ON CONFLICT (event_id) DO UPDATE SET text = tales.text || ?
            """,
            (message.event_id, message.payload.text, message.payload.text),
        )

    @registry.on("marked")
    async def marked(tx: Transaction, message: Message_[Word]) -> None:
        row = await tx.fetch_one("SELECT value FROM marks WHERE event_id = ?", (message.event_id,))
        value = (row["value"] if row else 0.5) * 3 + len(message.payload.text)
        await tx.execute(
            """
            INSERT INTO marks VALUES (?, ?, ?)
            ON CONFLICT (event_id) DO UPDATE SET value = excluded.value
            """,
            (message.event_id, value % 1_000, b"\x00\xff"),
        )

    @registry.on("wiped")
    async def wiped(tx: Transaction, message: Message_[Word]) -> None:
        await tx.execute("DELETE FROM marks WHERE event_id = ?", (message.event_id,))
        if message.payload.text:
            await tx.execute("DELETE FROM tales WHERE event_id = ?", (message.event_id,))

    return registry


def expected(messages: list[Message]) -> list[tuple[str, str | None, float | None]]:
    """Return the rows of both tables, folded without the worker."""
    tales: dict[str, str] = {}
    marks: dict[str, float] = {}
    unique = {(m["payload"]["event_id"], m["id"]): m for m in messages}
    for each in sorted(unique.values(), key=lambda m: (m["sequence"], m["occurred_at"], m["id"])):
        event_id, text = each["payload"]["event_id"], each["payload"]["text"]
        match each["kind"]:
            case "told":
                tales[event_id] = tales.get(event_id, "") + text
            case "marked":
                marks[event_id] = (marks.get(event_id, 0.5) * 3 + len(text)) % 1_000
            case _:
                marks.pop(event_id, None)
                if text:
                    tales.pop(event_id, None)
    return [(e, tales.get(e), marks.get(e)) for e in sorted({*tales, *marks})]


def word(sequence: int, text: str = "", *, event_id: str = "e", kind: str = "told") -> Message:
    payload = {"event_id": event_id, "text": text or f"{sequence},"}
    return message(kind, payload, sequence=sequence)
