"""`topology`: the exchanges, queues and bindings that the worker stands on."""

import asyncio

import typer

from worker.broker import probe
from worker.broker.definitions import definitions
from worker.broker.topology import Topology
from worker.cli.app import AsJson, app
from worker.cli.output import print_json, say, table
from worker.service import address_of, topology_of
from worker.settings import load_settings

topology = typer.Typer(
    name="topology",
    help="Look at, make or export the worker's exchanges and queues.",
    no_args_is_help=True,
)
app.add_typer(topology)


@topology.command("show")
def show(*, as_json: AsJson = False) -> None:
    """Show what must be on the broker, and verify that it is; makes nothing."""
    settings = load_settings()
    wanted = topology_of(settings)
    if not as_json:
        _print(wanted)
    verified = asyncio.run(probe.verify(address_of(settings), wanted))
    if as_json:
        waiting = {"queue": verified.queue, "dead_letters": verified.dead_letters}
        not_verified = {"not_verified": verified.not_permitted}
        print_json({**definitions(wanted, settings.vhost), "waiting": waiting, **not_verified})
    else:
        found = f"All of it is on {settings.broker}."
        if verified.not_permitted:
            hidden = ", ".join(verified.not_permitted)
            found = f"The user may not see all of it on {settings.broker}: not {hidden}."
        say(f"{found} {verified.waiting.capitalize()}.")


@topology.command("apply")
def apply() -> None:
    """Make what is missing on the broker; what is there otherwise is an error, and is left."""
    settings = load_settings()
    asyncio.run(probe.apply(address_of(settings), topology_of(settings)))
    say(f"All that the worker needs is on {settings.broker}.")


@topology.command("export")
def export() -> None:
    """Print it as RabbitMQ definitions, for `rabbitmqctl import_definitions`; asks no broker."""
    settings = load_settings()
    print_json(definitions(topology_of(settings), settings.vhost))


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
    table(("from exchange", "to queue", "routing key"), wanted.bindings)
