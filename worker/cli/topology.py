"""`topology`: the exchanges, queues and bindings that the worker uses."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from worker.broker import commands
from worker.broker.claim import ClaimNotPermitted
from worker.broker.definitions import definitions
from worker.broker.topology import Topology
from worker.broker_settings import address_of, topology_of
from worker.cli.app import AsJson, Yes, app
from worker.cli.current_topology import current_topology
from worker.cli.output import complain, confirm, print_json, say, table
from worker.errors import StoreUnavailable, StoreUnusable
from worker.plurals import counted
from worker.settings import MAX_PARTITIONS, Settings, load_settings
from worker.store.engines import store_of

topology = typer.Typer(
    name="topology",
    help="Show, create, resize or export the worker's exchanges and queues; release them.",
    no_args_is_help=True,
)
app.add_typer(topology)


@topology.command("show")
def show(*, as_json: AsJson = False) -> None:
    """Show what must be on the broker, and verify that it is; create nothing."""
    settings = load_settings()
    wanted = asyncio.run(current_topology(settings))
    if not as_json:
        _print(wanted)
    verified = asyncio.run(commands.verify(address_of(settings), wanted))
    try:
        owner, belonging = asyncio.run(_owner(settings))
    except ClaimNotPermitted as error:
        owner, belonging = None, error.message
    if as_json:
        waiting = {"queue": verified.queue, "dead_letters": verified.dead_letters}
        found = {"waiting": waiting, "not_verified": verified.not_permitted, "database": owner}
        print_json({**definitions(wanted, settings.vhost), **found})
    else:
        seen = f"All of it is on {settings.broker}; bindings cannot be verified by a client."
        if verified.not_permitted:
            hidden = ", ".join(verified.not_permitted)
            seen = (
                f"The user may not verify all of it on {settings.broker}. Not verified: {hidden}."
            )
        say(f"{seen} {verified.waiting.capitalize()}.")
        say(belonging)


@topology.command("apply")
def apply() -> None:
    """Create what is missing on the broker, and print what was created.

    An exchange or queue that exists with other arguments is an error, and is left as it is.

    Bindings that somebody removed are created again, which the worker never does by itself.

    A new queue belongs to no database: the first worker to start claims it for its own.
    """
    settings = load_settings()
    current = partial(current_topology, settings)
    created = asyncio.run(commands.apply(address_of(settings), current))
    names = f"Created {', '.join(created)}." if created else "All exchanges and queues existed."
    say(f"{names} Everything that the worker needs is on {settings.broker}.")


@topology.command("release")
def release(*, yes: Yes = False) -> None:
    """Release the queue from its database; the next worker to start claims it for its own.

    Use this to start anew. Stop the old worker first, and keep its database: its content exists
    nowhere else, and the new one starts without it.
    """
    settings = load_settings()
    owner, belonging = asyncio.run(_owner(settings))
    if owner is None:
        say(f"{belonging} There is nothing to release.")
        return
    if not yes:
        confirm(
            f"{belonging} After the release, the next worker to start claims it for its own "
            "database, which starts without the content of the old one. Continue?"
        )
    claimed = asyncio.run(_known_topology(settings)).claimed
    asyncio.run(commands.release(address_of(settings), claimed))
    say(f"Queue {settings.queue!r} is free: the next worker to start claims it.")


@topology.command("retire")
def retire(*, yes: Yes = False) -> None:
    """Delete what the reader has left: the one queue after a move to PostgreSQL, or partitions.

    Run it with the new settings, once their worker consumes: what it uses is bound, and what it has
    left is unbound. That is deleted once it is empty and its worker is stopped; until then, the
    command fails, and can be run again. Dead letters stay.
    """
    settings = load_settings()
    wanted = asyncio.run(current_topology(settings))
    old = asyncio.run(commands.old_topology(address_of(settings), wanted))
    if old is None:
        say("There is nothing to retire.")
        return
    owner, belonging = asyncio.run(_owner(settings))
    if owner is None or owner != asyncio.run(store_of(settings.store).id()):
        complain(f"{belonging} So it is not the new one.", "start the worker on the new one first.")
        raise typer.Exit(1)
    if not yes:
        confirm(
            f"{settings.shown_database} gets all messages from now on. Stop the inflow of what was "
            f"used before it ({_named(old)}), and delete that once it is empty?"
        )
    current = partial(current_topology, settings)
    deleted = asyncio.run(commands.retire(address_of(settings), current))
    if deleted is None:
        say("Another command has retired it meanwhile.")
    else:
        say(f"Deleted what was empty: {_named(deleted)}.")


@topology.command("export")
def export() -> None:
    """Print RabbitMQ definitions for `rabbitmqctl import_definitions`, without asking a broker."""
    settings = load_settings()
    print_json(definitions(asyncio.run(current_topology(settings)), settings.vhost))


@topology.command("resize")
def resize(
    partitions: Annotated[
        int, typer.Argument(min=1, max=MAX_PARTITIONS, help="The new number of partitions.")
    ],
) -> None:
    """Change the number of partitions while workers run; they follow within seconds.

    With fewer partitions, it ends when workers have emptied the queues of the others, which are
    then deleted. It may be interrupted and run again.
    """
    settings = load_settings()
    if isinstance(settings.database, Path):
        complain(
            "The database is a file, so there is one queue without partitions.",
            "set WORKER_DATABASE to a PostgreSQL database; docs/scale.md says how to move.",
        )
        raise typer.Exit(1)
    asyncio.run(_resize(settings, partitions))
    say(f"The messages are spread over {counted(partitions, 'partition')}.")


async def _resize(settings: Settings, partitions: int) -> None:
    store = store_of(settings.store)
    if not await store.exists():
        raise StoreUnusable(
            f"No worker has made the database yet ({store.named}).",
            "set WORKER_PARTITIONS to this number before the first start.",
        )

    async def write(number: int) -> None:
        async with store.writer(store.lock()) as writer:
            await writer.set_partitions(number)

    current = partial(current_topology, settings)
    await commands.resize(address_of(settings), current, partitions, write, say)


def _named(old: Topology) -> str:
    if old.partitions is None:
        return f"queue {old.queue!r}"
    return counted(old.partitions, "partition")


def _print(wanted: Topology) -> None:
    table(("exchange", "type"), [(name, kind.value) for name, kind in wanted.exchanges.items()])
    table(
        ("queue", "argument", "value"),
        [
            (name, key, value)
            for name, arguments in wanted.queues.items()
            for key, value in arguments.items()
        ],
    )
    table(
        ("from exchange", "to", "routing key"),
        [(each.exchange, each.destination, each.routing_key) for each in wanted.bindings],
    )


async def _known_topology(settings: Settings) -> Topology:
    """Return the current topology, or that of the settings if the database cannot say it."""
    try:
        return await current_topology(settings)
    except (StoreUnavailable, StoreUnusable):
        return topology_of(settings, settings.partitions)


async def _owner(settings: Settings) -> tuple[str | None, str]:
    """Return the identity of the database of the queue, and a sentence that says so."""
    try:
        own = await store_of(settings.store).id()
    except (StoreUnavailable, StoreUnusable):
        # A broken database may be the reason for the move to another one.
        own = None
    claimed = (await _known_topology(settings)).claimed
    owner = await commands.owner(address_of(settings), claimed, own)
    if owner is None:
        which = "no database yet"
    elif owner == own:
        which = f"database {settings.shown_database} (identity {owner})"
    else:
        which = f"another database (identity {owner}) than {settings.shown_database}"
    return owner, f"Queue {settings.queue!r} belongs to {which}."
