"""A projection of notes whose handlers fail in many ways, and the messages for it."""

from typing import Any

from tests.builders import Message as Wire
from tests.builders import message
from worker import Message, Payload, Transaction
from worker.deliveries import Outcome
from worker.registry import Registry

NOTES = "SELECT event_id, text FROM notes ORDER BY event_id"
LOGGED = "SELECT id FROM log ORDER BY id"
TABLE = "CREATE TABLE notes (event_id TEXT PRIMARY KEY, text TEXT NOT NULL CHECK (text <> 'bad'))"


class Text(Payload):
    """Some text."""

    text: str = ""


class Failures:
    """How often a handler ran, and how often it is to fail."""

    def __init__(self, failures: int) -> None:
        """Fail this many times."""
        self.left = failures
        self.runs = 0


class Counter:
    """How often handlers ran."""

    def __init__(self, registry: Registry) -> None:
        """Count the runs of a registry's handlers."""
        self.runs = 0
        for kind, handler in registry.handlers.items():
            registry.handlers[kind] = self._counted(handler)

    def _counted(self, handler: Any) -> Any:
        async def counted(tx: Transaction, message: Any) -> None:
            self.runs += 1
            await handler(tx, message)

        return counted


async def written(tx: Transaction, message: Message[Text]) -> None:
    sql = "INSERT INTO notes VALUES (?, ?) ON CONFLICT DO UPDATE SET text = text || ?"
    await tx.execute(sql, (message.event_id, message.payload.text, message.payload.text))


def notebook() -> Registry:
    """Return a projection with one handler for each way in which a handler can fail."""
    registry = Registry()
    registry.projection(table="notes", version=1, schema=(TABLE,))
    registry.on("written")(written)

    @registry.on("ran_sql")
    async def ran_sql(tx: Transaction, message: Message[Text]) -> None:
        await tx.execute("INSERT INTO notes VALUES (?, 'x') ON CONFLICT DO NOTHING", ("half",))
        await tx.execute(message.payload.text)

    @registry.on("asked_sql")
    async def asked_sql(tx: Transaction, message: Message[Text]) -> None:
        await tx.fetch_all(message.payload.text)

    @registry.on("raised")
    async def raised(tx: Transaction, message: Message[Text]) -> None:
        await tx.execute("INSERT INTO notes VALUES (?, 'x') ON CONFLICT DO NOTHING", ("half",))
        raise KeyError(message.payload.text)

    @registry.on("needs_row")
    async def needs_row(tx: Transaction, message: Message[Text]) -> None:
        if not await tx.fetch_one("SELECT 1 FROM notes WHERE event_id = ?", (message.event_id,)):
            raise LookupError("no row")

    @registry.on("removed")
    async def removed(tx: Transaction, message: Message[Text]) -> None:
        await tx.execute("DELETE FROM notes WHERE event_id = ?", (message.event_id,))

    return registry


def flaky_notebook(left: Failures) -> Registry:
    """Return a projection whose handler fails a given number of times."""
    registry = notebook()

    @registry.on("flaky")
    async def flaky(tx: Transaction, message: Message[Text]) -> None:
        left.runs += 1
        await written(tx, message)
        if left.left:
            left.left -= 1
            raise TimeoutError("not yet")

    return registry


def detail_of(outcome: Outcome) -> str:
    assert outcome.rejected is not None
    return outcome.rejected.detail


def said(kind: str, event_id: str, text: str = "", **envelope: Any) -> Wire:
    return message(kind, {"event_id": event_id, "text": text}, **envelope)


FAILING = {
    "raises": (said("raised", "x", "why"), "KeyError: 'why'"),
    "constraint": (said("written", "x", "bad"), "IntegrityError: CHECK constraint failed"),
    "no table": (said("ran_sql", "x", "DELETE FROM nowhere"), "no such table: nowhere"),
    "no parameter": (said("ran_sql", "x", "DELETE FROM notes WHERE text = ?"), "ProgrammingError"),
    "no sql": (said("ran_sql", "x", "nonsense"), "syntax error"),
    "query to execute": (said("ran_sql", "x", "SELECT 1"), "ProgrammingError"),
    "no table to ask": (said("asked_sql", "x", "SELECT * FROM nowhere"), "no such table: nowhere"),
    "commit": (said("ran_sql", "x", "commit"), "must not begin or end transactions"),
    "commit to ask": (said("asked_sql", "x", " COMMIT"), "must not begin or end transactions"),
    "rollback": (
        said("ran_sql", "x", "INSERT OR ROLLBACK INTO notes VALUES ('x', 'bad')"),
        "must not begin or end transactions",
    ),
    "null": (said("ran_sql", "x", "INSERT INTO notes VALUES ('x', NULL)"), "NOT NULL constraint"),
    "log": (said("ran_sql", "x", "DELETE FROM log"), "may only read, and"),
    "quoted": (said("ran_sql", "x", 'UPDATE main."file" SET commits = 0'), "may only read, and"),
    "log to ask": (said("asked_sql", "x", "DELETE FROM Log RETURNING id"), "may only read, and"),
    "from a query": (
        said("ran_sql", "x", "WITH x AS (SELECT 'x') INSERT INTO kinds SELECT * FROM x"),
        "may only read, and",
    ),
    "definition": (said("asked_sql", "x", "DROP TABLE notes"), "may only read, and"),
    "pragma": (said("asked_sql", "x", "PRAGMA user_version = 9"), "may only read, and"),
}
