"""The Python of the README and of the pages, run as it stands."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError
from pamqp.commands import Basic

from tests.builders import body, message, planned, started
from tests.docs.pages import PAGES, ROOT, blocks
from tests.queues import Queues
from tests.unit.projecting import arrivals
from tests.waiting import PATIENCE_SECONDS
from worker.deliveries import Delivery
from worker.messages import decode
from worker.projections import load
from worker.projector import Projector
from worker.rebuild import create_tables
from worker.registry import Registry
from worker.store.sqlite.store import Writer

# Projects the bodies on its command line, in the package of the folder where it runs.
APPLY = """
import asyncio, pathlib, sys
from worker.deliveries import Delivery
from worker.messages import receive
from worker.projections import load
from worker.projector import Projector
from worker.rebuild import create_tables
from worker.store.sqlite.store import Writer

async def main():
    async with Writer(pathlib.Path("projection.db")) as writer:
        await create_tables(writer, load())
        deliveries = [Delivery(each.encode()) for each in sys.argv[1:]]
        batch = [receive(load().wire, each, 10_000) for each in deliveries]
        outcomes = await Projector(load(), writer).project(batch)
        (row,) = await writer.fetch_all("SELECT planned_for FROM events")
        print([outcome.verdict.value for outcome in outcomes], row["planned_for"])

asyncio.run(main())
"""


def example(page: str, containing: str) -> str:
    """Return the one example of a page that contains a text."""
    (found,) = [text for text in blocks(PAGES[page], "python") if containing in text]
    return found


def run(text: str, **names: Any) -> dict[str, Any]:
    """Run an example, and return the names that it has defined."""
    exec(text, names)
    return names


async def taken(queues: Queues) -> AbstractIncomingMessage:
    """Take the one message that waits; a queue with one active consumer must be consumed."""
    async with queues.channel() as channel:
        queue = await channel.get_queue(queues.name)
        async with queue.iterator(no_ack=True, timeout=PATIENCE_SECONDS) as messages:
            return await anext(messages)


class TestHandlers:
    """Whoever copies a handler or a projection gets what the page says."""

    @pytest.mark.parametrize("page", ["README.md", "docs/extend.md"])
    def test_a_kind_is_added_in_ten_lines_of_one_file(self, page: str, tmp_path: Path) -> None:
        """Pasted into events.py, the example of a new kind is all that its messages need."""
        text = example(page, "event_postponed")
        shutil.copytree(ROOT / "worker", tmp_path / "worker")
        with (tmp_path / "worker/projections/events.py").open("a") as file:
            file.write(f"\n\n{text}")
        payload = {"event_id": "e-1", "planned_for": "2026-05-01T08:00:00Z"}
        bodies = [body(planned("e-1")), body(message("event_postponed", payload))]

        ran = subprocess.run(
            [sys.executable, "-c", APPLY, *bodies],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert ran.stderr == ""
        assert ran.stdout == "['applied', 'applied'] 2026-05-01T08:00:00.000000Z\n"
        assert len(text.strip().splitlines()) <= 10

    def test_a_projection_may_have_the_table_that_is_shown(self) -> None:
        """It keeps all rules of the table above it."""
        registry = Registry()

        run(example("docs/extend.md", "projection("), projection=registry.projection)

        registry.require_schemas()
        assert registry.versions == {"chats": 1}


class TestPublishers:
    """Whoever copies a publisher publishes messages that the worker accepts."""

    def test_the_wire_is_what_the_worker_reads(self) -> None:
        """The JSON of docs/publish.md is a message."""
        (wire,) = blocks(PAGES["docs/publish.md"], "json")

        decoded = decode(load().wire, Delivery(wire.encode()), 10_000)

        assert getattr(decoded, "event_id", decoded) == "e-42"

    async def test_the_readmes_publishes_one_message(self, queues: Queues) -> None:
        """Persistent, with the chat's id as its routing key, and confirmed when it returns."""
        await queues.declare()
        text = example("README.md", "publish_started").replace("chat.events", queues.exchange)

        await run(text)["publish_started"](queues.url, "chat-7", "e-42", 7)

        found = await taken(queues)
        decoded = decode(load().wire, Delivery(found.body), 10_000)
        assert (getattr(decoded, "event_id", decoded), json.loads(found.body)["sequence"]) == (
            "e-42",
            7,
        )
        assert (found.routing_key, found.content_type) == ("chat-7", "application/json")
        assert found.delivery_mode == aio_pika.DeliveryMode.PERSISTENT

    async def test_the_readmes_says_that_no_queue_is_bound(self, queues: Queues) -> None:
        """A message that the broker cannot route is not taken for published."""
        text = example("README.md", "publish_started").replace("chat.events", queues.exchange)
        async with queues.channel() as channel:
            await channel.declare_exchange(queues.exchange, "topic", durable=True)

        with pytest.raises(DeliveryError):
            await run(text)["publish_started"](queues.url, "chat-7", "e-42", 7)

    async def test_the_one_that_tries_again_returns_with_the_confirm(self, queues: Queues) -> None:
        """The function of docs/publish.md, on the channel that the page describes."""
        await queues.declare()
        publish = run(example("docs/publish.md", "async def publish("))["publish"]

        async with queues.channel() as channel:
            await publish(await channel.get_exchange(queues.exchange), b"{}", "chat-7")

        assert ((found := await taken(queues)).body, found.routing_key) == (b"{}", "chat-7")

    async def test_the_one_that_tries_again_goes_on_after_a_nack(self) -> None:
        """A returned message is somebody's to look at; a nacked one is published again."""
        publish = run(
            example("docs/publish.md", "async def publish(").replace("sleep(1)", "sleep(0)")
        )
        answers = [DeliveryError(None, Basic.Nack()), None]

        class Nacking:
            async def publish(self, *_: object, **__: object) -> None:
                if answer := answers.pop(0):
                    raise answer

        await publish["publish"](Nacking(), b"{}", "chat-7")

        assert answers == []


class TestReaders:
    """Whoever copies the example of reading reads."""

    async def test_reading_is_what_it_says(self, database: Path) -> None:
        """It runs against a file that a worker wrote."""
        text = example("docs/publish.md", "import get_event")

        event, active, done = await read(text.replace("data/projection.db", str(database)))

        assert (event["status"], event["props"]) == ("active", {})
        assert [row["event_id"] for row in active] == ["e-42", "e-43"]
        assert done == []

    async def test_reading_ones_own_writes_is_what_it_says(self, database: Path) -> None:
        """It runs in the block of the example before it."""
        opening = example("docs/publish.md", "import get_event").partition("    await")[0]
        text = example("docs/publish.md", "after=")
        text = opening.replace("data/projection.db", str(database)) + textwrap.indent(text, "    ")

        event, active, ((rows,),) = await read(text)

        assert event["event_id"] == "e-42"
        assert [row["event_id"] for row in active] == ["e-42", "e-43"]
        assert rows == 2


@pytest.fixture
async def database(tmp_path: Path) -> Path:
    """Return a file with two events of chat-7."""
    path, registry = tmp_path / "projection.db", load()
    async with Writer(path) as writer:
        await create_tables(writer, registry)
        history = [
            planned("e-42", chat_id="chat-7", id="0198c0de"),
            started("e-42"),
            planned("e-43", chat_id="chat-7", id="0198c0df"),
        ]
        await Projector(registry, writer).project(arrivals(history))
    return path


async def read(text: str) -> list[Any]:
    """Run an example, and return what it awaits in its block."""
    text = re.sub(r"^    await (.*?)(?: +#.*)?$", r"    found.append(await \1)", text, flags=re.M)
    reading = run("async def reading(found):\n" + textwrap.indent(text, "    "))["reading"]
    found: list[Any] = []
    await reading(found)
    return found
