"""A projection of notes whose handlers fail in many ways, and the messages for it."""

from typing import Any

from tests.builders import Message as Wire
from tests.builders import message
from worker import Message, Payload, Transaction
from worker.deliveries import Outcome
from worker.registry import Registry

NOTES = "SELECT event_id, text FROM notes ORDER BY event_id"
LOGGED = "SELECT id FROM log ORDER BY id"
WRITE = """
    INSERT INTO notes VALUES (?, ?) ON CONFLICT (event_id) DO UPDATE SET text = notes.text || ?
"""
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
    await tx.execute(WRITE, (message.event_id, message.payload.text, message.payload.text))


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
    "raises": (said("raised", "x", "why"), "KEYERROR: 'WHY'"),
    "constraint": (said("written", "x", "bad"), "CHECK CONSTRAINT"),
    "no table": (said("ran_sql", "x", "DELETE FROM nowhere"), "NOWHERE"),
    "no parameter": (said("ran_sql", "x", "DELETE FROM notes WHERE text = ?"), "ERROR"),
    "no sql": (said("ran_sql", "x", "nonsense"), "SYNTAX ERROR"),
    "no table to ask": (said("asked_sql", "x", "SELECT * FROM nowhere"), "NOWHERE"),
    "commit": (said("ran_sql", "x", "commit"), "MUST NOT BEGIN OR END TRANSACTIONS"),
    "commit to ask": (said("asked_sql", "x", " COMMIT"), "MUST NOT BEGIN OR END TRANSACTIONS"),
    "rollback": (
        said("ran_sql", "x", "INSERT OR ROLLBACK INTO notes VALUES ('x', 'bad')"),
        "MUST NOT BEGIN OR END TRANSACTIONS",
    ),
    "null": (said("ran_sql", "x", "INSERT INTO notes VALUES ('x', NULL)"), "CONSTRAINT"),
    "log": (said("ran_sql", "x", "DELETE FROM log"), "MAY ONLY READ, AND"),
    "log to ask": (said("asked_sql", "x", "DELETE FROM Log RETURNING id"), "MAY ONLY READ, AND"),
    "from a query": (
        said("ran_sql", "x", "INSERT INTO kinds SELECT event_id FROM notes"),
        "MAY ONLY READ, AND",
    ),
    "definition": (said("asked_sql", "x", "DROP TABLE notes"), "MAY ONLY READ, AND"),
}
"""What fails in either store, and what the detail of the rejection says, in capitals."""

FAILING_IN_A_FILE = {
    "query to execute": (said("ran_sql", "x", "SELECT 1"), "PROGRAMMINGERROR"),
    "quoted": (said("ran_sql", "x", 'UPDATE main."file" SET commits = 0'), "MAY ONLY READ, AND"),
    "with": (
        said("ran_sql", "x", "WITH x AS (SELECT 'x') INSERT INTO kinds SELECT * FROM x"),
        "MAY ONLY READ, AND",
    ),
    "pragma": (said("asked_sql", "x", "PRAGMA user_version = 9"), "MAY ONLY READ, AND"),
}
FAILING_ON_A_SERVER = {
    "new table": (said("ran_sql", "x", "CREATE TABLE x AS SELECT 1"), "MAY ONLY READ, AND"),
    "into": (said("ran_sql", "x", "SELECT 1 INTO x"), "MAY ONLY READ, AND"),
    "within": (
        said("asked_sql", "x", "WITH x AS (DELETE FROM log RETURNING id) SELECT * FROM x"),
        "MAY ONLY READ, AND",
    ),
    "elsewhere": (said("ran_sql", "x", "DELETE FROM pg_catalog.pg_class"), "ERROR"),
    "lock": (said("asked_sql", "x", "SELECT * FROM streams FOR UPDATE"), "MAY ONLY READ, AND"),
    "setting": (said("ran_sql", "x", "SET search_path = public"), "MAY ONLY READ, AND"),
    "copy": (said("ran_sql", "x", "COPY notes TO STDOUT"), "ERROR"),
    "two": (said("ran_sql", "x", "SELECT 1; SELECT 2"), "MULTIPLE COMMANDS"),
    "several tables": (said("ran_sql", "x", "TRUNCATE notes"), "MAY ONLY READ, AND"),
    "nul": (said("ran_sql", "x", "SELECT chr(0)"), "ERROR"),
}
