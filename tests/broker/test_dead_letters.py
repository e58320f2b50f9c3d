from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aio_pika.abc import AbstractIncomingMessage

from tests.builders import Message, body, planned, started
from tests.database import rows
from tests.oracle import expected_rows
from tests.processes import Line, StartWorker, environment, worker_process
from tests.queues import Queues, queues_on
from tests.rabbitmq import RabbitMQNode

MEBIBYTE = 1024 * 1024


def with_props(text: str) -> bytes:
    return body(planned("e-bad", payload={"props": {"n": "@@"}})).replace(b'"@@"', text.encode())


def without(field: str) -> bytes:
    return body({name: each for name, each in planned("e-bad").items() if name != field})


TAKEN = planned("e-good", id="m-taken")
FIRST = body(planned("e-bad"))
# Name -> body, reason, part of the detail.
BAD = {
    "truncated": (FIRST[:-1], "not_json", "EOF"),
    "deep": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "not_json", "recursion"),
    "NaN": (with_props("NaN"), "not_json", "NaN"),
    "1e999": (with_props("1e999"), "not_json", "too large for a double"),
    "lone surrogate": (with_props(r'"\ud800"'), "not_json", "line 1"),
    "U+0000": (with_props(r'"\u0000"'), "not_json", "U+0000"),
    "empty": (b"", "not_json", "empty"),
    "text/plain": (FIRST, "not_json", "'text/plain'"),
    "over the cap": (FIRST.ljust(MEBIBYTE + 1), "too_large", "1,048,577 bytes"),
    "missing field": (without("id"), "bad_envelope", "id: Field required"),
    "long event id": (body(planned("e" * 99_999)), "bad_payload", "at most 255 characters"),
    "wrong type": (body(planned("e-bad", sequence="1")), "bad_envelope", "sequence: "),
    "wrong payload": (body(planned("e-bad", payload={"props": []})), "bad_payload", "props: "),
    "unknown kind": (body(planned("e-bad") | {"kind": "event_x"}), "unknown_kind", "event_start"),
    "id conflict": (body(started("e-good", id="m-taken")), "id_conflict", "'m-taken'"),
}
ADDED = {"x-reason", "x-detail", "x-queue", "x-rejected-at"}
# The broker's counts for a dead letter's delivery; RabbitMQ 4 adds none to the first one.
COUNTS = {"x-delivery-count", "x-acquired-count"}
SENT_AT = datetime(2026, 4, 27, 10, 39, tzinfo=UTC)


def properties(name: str) -> dict[str, Any]:
    """Return the properties that the publisher sends with a message."""
    return {
        "message_id": f"amqp-{name}",
        "content_type": "text/plain" if name == "text/plain" else "application/json",
        "headers": {"x-origin": name, "more": {"list": [1, "two"]}},
        "correlation_id": "c-1",
        "app_id": "chat",
        "type": "fact",
        "timestamp": SENT_AT,
    }


@dataclass(frozen=True)
class Ending:
    """The state after a worker has settled one bad message of each kind, with good ones."""

    letters: dict[str, list[AbstractIncomingMessage]]
    lines: list[Line]
    batches: list[Line]
    left: int
    good: list[Message]
    rows: list[Any]


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def ending(
    running_node: RabbitMQNode, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ending]:
    folder = tmp_path_factory.mktemp("dead-letters")
    database = folder / "p.db"
    good = [planned(f"e-{number}") for number in range(len(BAD))]
    async with queues_on(running_node.url) as queues:
        await queues.declare()
        await queues.publish([TAKEN])
        for message, (name, (content, _, _)) in zip(good, BAD.items(), strict=True):
            await queues.publish([content], **properties(name))
            await queues.publish([message])
        settings = environment(**queues.settings, database=database, secrets_dir=folder)
        async with worker_process("run", settings=settings, folder=folder) as worker:
            await worker.wait_until_settled(2 * len(BAD) + 1)
            worker.terminate()
            assert await worker.exit_code() == 0
        letters: dict[str, list[AbstractIncomingMessage]] = {}
        for letter in await queues.take_dead_letters():
            letters.setdefault(str(letter.message_id), []).append(letter)
        yield Ending(
            letters,
            worker.said("dead_lettered"),
            worker.said("batch_committed"),
            await queues.left(),
            [TAKEN, *good],
            rows(database),
        )


class TestABadMessage:
    @pytest.mark.parametrize("name", BAD)
    def test_is_dead_lettered_once_with_its_reason(self, ending: Ending, name: str) -> None:
        """Its only dead letter has the raw body and headers that say why."""
        content, reason, detail = BAD[name]

        (letter,) = ending.letters[f"amqp-{name}"]

        assert letter.body == content
        assert letter.headers["x-reason"] == reason
        assert detail in str(letter.headers["x-detail"])
        assert str(letter.headers["x-queue"]).endswith(".projection")
        assert str(letter.headers["x-rejected-at"]).endswith("Z")

    @pytest.mark.parametrize("name", BAD)
    def test_keeps_what_its_publisher_said(self, ending: Ending, name: str) -> None:
        """Routing key, headers and properties are the original ones, and none is invented."""
        (letter,) = ending.letters[f"amqp-{name}"]
        sent = properties(name)

        headers = sent.pop("headers")

        assert {name: getattr(letter, name) for name in sent} == sent
        assert letter.routing_key == "chat-1"
        assert headers.items() <= letter.headers.items()
        assert letter.headers.keys() - headers.keys() - COUNTS == ADDED

    @pytest.mark.parametrize("name", BAD)
    def test_gets_one_line_in_the_log(self, ending: Ending, name: str) -> None:
        """The line says the same as the headers of the dead letter."""
        (letter,) = ending.letters[f"amqp-{name}"]
        said = Counter(
            (each["reason"], each["detail"], each["body_bytes"]) for each in ending.lines
        )

        key = (letter.headers["x-reason"], letter.headers["x-detail"], len(letter.body))

        assert said[key] == 1
        assert len(ending.lines) == len(BAD)

    def test_costs_its_neighbours_nothing(self, ending: Ending) -> None:
        """The good messages of its batch are committed, and everything is acked."""
        assert ending.rows == expected_rows(ending.good)
        assert ending.left == 0
        assert any(line.get("applied") and line.get("rejected") for line in ending.batches)


class TestHeaders:
    async def test_that_do_not_fit_into_a_frame_are_left_out(
        self, queues: Queues, database: Path, start_worker: StartWorker
    ) -> None:
        """With the reason, the headers would be too large for a frame; the reason is kept."""
        await queues.declare()
        await queues.publish([b"broken"], headers={"x-origin": "x" * 100_000})

        worker = await start_worker()
        await worker.wait_until_settled(1)

        (letter,) = await queues.take_dead_letters()
        assert letter.body == b"broken"
        assert letter.headers["x-reason"] == "not_json"
        assert "x-origin" not in letter.headers
