"""A broker whose name has several addresses, some of which do not answer."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.rabbitmq import RabbitMQNode
from worker.broker import connection
from worker.broker.commands import reach
from worker.broker.connection import BrokerAddress
from worker.errors import SessionLost

# Another address of this machine, so that the port may be the broker's.
SILENT = "127.0.0.2"
NAME = "broker.test"


def silent(stack: ExitStack, port: int, *, swallows: bool) -> None:
    """Listen like a machine that drops every packet, or one that accepts and sends nothing."""
    listener = stack.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((SILENT, port))
    listener.listen(0 if swallows else 100)
    while swallows:
        # Linux drops connection requests once the backlog is full.
        filler = stack.enter_context(socket.socket())
        filler.settimeout(0.2)
        try:
            filler.connect((SILENT, port))
        except TimeoutError:
            break


@pytest.fixture(params=[True, False], ids=["swallows packets", "accepts in silence"])
def port(node: RabbitMQNode, request: pytest.FixtureRequest) -> Iterator[int]:
    with ExitStack() as stack:
        silent(stack, node.port, swallows=request.param)
        yield node.port


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str, name: str = NAME) -> None:
    """Make a name resolve to these addresses, in this order."""
    real = socket.getaddrinfo

    def looked_up(host: str | bytes | None, *rest: Any, **options: Any) -> Any:
        hosts = addresses if host == name else [host]
        return [found for each in hosts for found in real(each, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


class TestAName:
    async def test_with_an_address_that_does_not_answer_is_connected_to(
        self, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The worker connects even if that address comes first each time."""
        resolve(monkeypatch, SILENT, "127.0.0.1")

        await reach(BrokerAddress((f"amqp://{NAME}:{port}/",)))

    async def test_without_an_address_that_answers_is_reported(
        self, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error contains the name that the operator knows."""
        monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
        resolve(monkeypatch, SILENT)

        with pytest.raises(SessionLost, match=NAME):
            await reach(BrokerAddress((f"amqp://{NAME}:{port}/",)))

    async def test_is_reported_with_the_reason_of_each_address(
        self, node: RabbitMQNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error gives the reason of each address, because any may be the one that matters."""
        resolve(monkeypatch, SILENT, "127.0.0.3")

        with pytest.raises(SessionLost) as lost:
            await reach(BrokerAddress((f"amqp://{NAME}:{node.port}/",)))

        assert SILENT in lost.value.message
        assert "127.0.0.3" in lost.value.message

    async def test_that_is_unknown_is_reported(self) -> None:
        """An unknown name is one error, whatever the resolver calls it."""
        with pytest.raises(SessionLost, match=r"nowhere\.invalid"):
            await reach(BrokerAddress(("amqp://nowhere.invalid/",)))


class TestSeveralNodes:
    async def test_of_which_most_do_not_answer_are_connected_to(self, port: int) -> None:
        """The worker connects in whatever order the nodes are tried."""
        silent_nodes = [f"amqp://{SILENT}:{port}/"] * 4

        await reach(BrokerAddress((*silent_nodes, f"amqp://127.0.0.1:{port}/")))

    async def test_leave_nothing_behind(self, port: int) -> None:
        """No task and no connection of a failed attempt is left."""
        others = asyncio.all_tasks()

        await reach(BrokerAddress((f"amqp://{SILENT}:{port}/", f"amqp://127.0.0.1:{port}/")))

        assert asyncio.all_tasks() == others
