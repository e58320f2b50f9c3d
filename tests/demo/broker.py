"""The broker that the demo uses, and everything that the demo does on it besides the worker.

Promise: the exchanges and queues have names unique to this run, and are gone when the block ends.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import aio_pika
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity

from tests.demo.story import Publication
from tests.rabbitmq import RabbitMQNode, server_program
from tests.waiting import eventually, patiently
from worker.broker.claim import exchange_of
from worker.broker.connection import BrokerAddress
from worker.broker.permissions import Permissions
from worker.broker.publisher import Publisher, publisher
from worker.broker.topology import Topology

INSTALL = Path(__file__).parents[2] / "deploy" / "install-test-tools.sh"
LOCAL = "amqp://guest:guest@localhost:5672/"
PROBE_SECONDS = 5
DELIVERY_LIMIT = 20
# This many publishes wait for their confirms together; more are no faster.
UNCONFIRMED = 100
# The depth counts as steady once it is the same this often in a row.
STEADY_LOOKS = 8

Say = Callable[[str], None]


class DemoFailed(Exception):
    """The demo cannot go on; the text says why, for a person."""


async def until(look: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Wait until a condition holds; fail in words that a person understands."""
    try:
        await eventually(look)
    except AssertionError:
        raise DemoFailed(f"Timed out waiting until {what}.") from None


@asynccontextmanager
async def chosen(say: Say, *, is_private: bool) -> AsyncIterator[str]:
    """Yield the address of the broker to use, after saying which one it is and why.

    That is WORKER_AMQP_URL's broker, or the machine's own, or a private node, for which RabbitMQ
    is installed if necessary. `is_private` asks for the private node at once.
    """
    url = os.environ.get("WORKER_AMQP_URL")
    if url and not is_private:
        if problem := await _problem(url):
            raise DemoFailed(f"The broker that WORKER_AMQP_URL names cannot be used: {problem}.")
        say(f"Broker: the one on {urlsplit(url).hostname}, because WORKER_AMQP_URL names it.")
        yield url
        return
    if not is_private and await _problem(LOCAL) is None:
        say("Broker: the one on localhost:5672, because it answers and lets guest in.")
        yield LOCAL
        return
    why = "--private asks for one" if is_private else "none on localhost:5672 lets guest in"
    if server_program() is None:
        say("Broker: RabbitMQ is not installed here; installing it ...")
        await install()
    say(f"Broker: starting a private RabbitMQ, because {why} ...")
    async with RabbitMQNode() as node:
        yield node.url


async def _problem(url: str) -> str | None:
    """Connect to the broker; return what is wrong, or None."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            connection = await aio_pika.connect(url)
            await connection.close()
    except (AMQPError, OSError, TimeoutError, ValueError) as error:
        return str(error).rstrip(".") or type(error).__name__
    return None


async def install() -> None:
    """Install the servers that the tests start."""
    process = await asyncio.create_subprocess_exec(INSTALL)
    try:
        exit_code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if exit_code != 0:
        raise DemoFailed("There is no usable server, and none could be installed (see above).")


@dataclass(frozen=True, slots=True)
class Depth:
    """The broker's counts for a queue."""

    ready: int
    consumers: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What the demo finds in the dead-letter queue."""

    reason: str
    detail: str
    body: bytes


class Broker:
    """The exchanges and queues of one run."""

    def __init__(self, url: str, topology: Topology, channel: aio_pika.abc.AbstractChannel) -> None:
        """Publish and read at the broker's address; the channel is for counting."""
        self.url = url
        self.topology = topology
        self._channel = channel

    async def publish(self, part: Sequence[Publication], pause_seconds: float = 0) -> int:
        """Publish as chat servers do; return how many publishes the broker has confirmed.

        With a pause after each hundred, this takes a while.
        """
        confirmed = 0
        exchange = self.topology.exchange
        async with publisher(
            BrokerAddress((self.url,)), exchange, "demo publisher", Permissions(write=(exchange,))
        ) as publishing:
            for start in range(0, len(part), UNCONFIRMED):
                chunk = part[start : start + UNCONFIRMED]
                await self._publish_together(publishing, chunk)
                confirmed += len(chunk)
                await asyncio.sleep(pause_seconds)  # noqa: TID251 - a slow publisher is the story
        return confirmed

    async def _publish_together(self, to: Publisher, chunk: Sequence[Publication]) -> None:
        try:
            async with patiently(), asyncio.TaskGroup() as group:
                for each in chunk:
                    group.create_task(to.publish(each.body, routing_key=each.chat_id))
        except TimeoutError:
            raise DemoFailed("The broker confirms no publishes; it may be in an alarm.") from None
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def depth(self) -> Depth:
        """Return how many messages wait in the queue, and how many consumers it has."""
        queue = await self._channel.declare_queue(self.topology.queue, passive=True)
        found = queue.declaration_result
        return Depth(found.message_count or 0, found.consumer_count or 0)

    async def ready(self, *, consumers: int) -> int:
        """Return how many messages wait, once that is steady with this many consumers."""
        looks: list[Depth] = []

        async def is_steady() -> bool:
            looks.append(await self.depth())
            last = set(looks[-STEADY_LOOKS:])
            return (
                len(looks) >= STEADY_LOOKS and len(last) == 1 and looks[-1].consumers == consumers
            )

        await until(is_steady, f"the queue is steady and has {consumers} consumers")
        return looks[-1].ready

    async def take_dead_letters(self) -> list[DeadLetter]:
        """Take everything out of the dead-letter queue."""
        queue = await self._channel.get_queue(self.topology.dead_letters)
        letters = []
        while found := await queue.get(no_ack=True, fail=False):
            reason, detail = (str(found.headers.get(name)) for name in ("x-reason", "x-detail"))
            letters.append(DeadLetter(reason, detail, found.body))
        return letters


@asynccontextmanager
async def topology_of_this_run(url: str) -> AsyncIterator[Broker]:
    """Declare exchanges and queues as the worker does, under new names; delete them at the end."""
    name = f"demo-{uuid4().hex[:12]}"
    topology = Topology(name, f"{name}.projection", DELIVERY_LIMIT)
    connection = await aio_pika.connect(url, client_properties={"connection_name": name})
    async with connection:
        try:
            channel = await connection.channel()
            await topology.apply(channel)
            yield Broker(url, topology, channel)
        finally:
            # On its own connection, because a failure may have ended the other one.
            await _delete(url, topology)


async def _delete(url: str, topology: Topology) -> None:
    async with await aio_pika.connect(url) as connection:
        # A quorum queue with at-least-once dead-lettering refuses `if_unused`.
        for name in (topology.queue, topology.dead_letters):
            async with connection.channel() as channel:
                with suppress(ChannelNotFoundEntity):
                    await channel.queue_delete(name)
        for name in (topology.exchange, topology.dead_letters, exchange_of(topology.queue)):
            async with connection.channel() as channel:
                with suppress(ChannelNotFoundEntity):
                    await channel.exchange_delete(name)
