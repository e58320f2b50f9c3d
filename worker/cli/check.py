"""`check`: whether everything is as the worker needs it, and if not, how to fix it."""

import asyncio
import errno
from dataclasses import asdict

import typer

from worker.addresses import health_url
from worker.broker import commands as broker
from worker.broker.claim import ClaimNotPermitted, claimed_by_another
from worker.broker_settings import address_of, topology_of
from worker.cli import healthcheck
from worker.cli.app import AsJson, app
from worker.cli.current_topology import current_topology
from worker.cli.database_checks import Line, Looks, database_looks
from worker.cli.output import print_json, verdict
from worker.errors import (
    BrokerRefused,
    HealthUnavailable,
    StoreUnavailable,
    StoreUnusable,
    WorkerError,
)
from worker.projections import load
from worker.settings import Settings, load_settings, unknown_variables
from worker.sources import variable_of
from worker.store.engines import store_of
from worker.telemetry.http import unavailable


@app.command()
def check(*, as_json: AsJson = False) -> None:
    """Check everything that the worker needs, from settings to disk; change nothing."""
    settings = load_settings()
    lines = asyncio.run(_look(settings))
    if as_json:
        print_json([asdict(line) for line in lines])
    else:
        for line in lines:
            verdict(line.verdict, line.subject, line.found, line.fix)
    if any(line.verdict == "FAIL" for line in lines):
        raise typer.Exit(1)


async def _look(settings: Settings) -> list[Line]:
    looks: Looks = {
        "settings": _settings,
        "broker": _broker,
        "topology": _topology,
        "claim": _claim,
        "projections": _projections,
        **database_looks(settings),
        "health": _health,
    }
    lines: list[Line] = []
    for subject, look in looks.items():
        if subject == "database" and lines[-1].verdict == "FAIL":
            found = "not checked, because the projections cannot be loaded"
            lines.append(Line("warn", subject, found, "fix the projections first."))
            continue
        try:
            lines.append(await look(settings))
        except WorkerError as error:
            lines.append(Line("FAIL", subject, error.message, error.hint))
    return lines


async def _settings(settings: Settings) -> Line:
    known = map(variable_of, sorted(Settings.model_fields))
    if unknown := unknown_variables():
        return Line(
            "warn",
            "settings",
            f"Unknown settings: {', '.join(unknown)}.",
            f"remove them, or correct their names; the settings are: {', '.join(known)}.",
        )
    return Line("ok", "settings", f"prefetch {settings.prefetch}, batch size {settings.batch_size}")


async def _broker(settings: Settings) -> Line:
    await broker.reach(address_of(settings))
    return Line("ok", "broker", f"{settings.broker} answers")


async def _topology(settings: Settings) -> Line:
    topology, address = topology_of(settings), address_of(settings)
    try:
        verified = await broker.verify(address, topology)
    except BrokerRefused as error:
        if await _has_database(settings):
            raise
        fix = "start the worker, which creates what is missing at its first start."
        return Line("warn", "topology", error.message, fix)
    if verified.not_permitted:
        found = f"{verified.waiting}. Not verified: {', '.join(verified.not_permitted)}."
        command = topology.needed_to_apply.command(address.user, address.vhost)
        return Line("warn", "topology", found, f"run the check again after {command}")
    if verified.dead_letters:
        fix = "run 'projection-worker dead-letters list'."
        return Line("warn", "topology", f"queue {topology.queue}: {verified.waiting}.", fix)
    found = f"queue {topology.queue} is as it should be; {verified.waiting}"
    return Line("ok", "topology", found)


async def _has_database(settings: Settings) -> bool:
    try:
        return await store_of(settings.store).exists()
    except (StoreUnavailable, StoreUnusable):
        # There is one that does not answer; its own line says why.
        return True


async def _claim(settings: Settings) -> Line:
    shown, queue = settings.shown_database, settings.queue
    own_id = await store_of(settings.store).id()
    claimed = (await current_topology(settings)).claimed
    try:
        owner = await broker.owner(address_of(settings), claimed, own_id)
    except ClaimNotPermitted as error:
        return Line("warn", "claim", error.message, error.hint)
    if owner is None:
        found = f"queue {queue} belongs to no database; the next worker to start claims it"
        return Line("ok", "claim", found)
    if owner != own_id:
        raise claimed_by_another(queue, owner, shown, own_id)
    return Line("ok", "claim", f"queue {queue} belongs to {shown} (identity {own_id})")


async def _projections(_: Settings) -> Line:
    registry = load()
    tables = ", ".join(f"{table} (version {v})" for table, v in registry.versions.items())
    return Line("ok", "projections", f"{len(registry.handlers)} kinds; tables: {tables}")


async def _health(settings: Settings) -> Line:
    host, port = settings.health_host, settings.health_port
    at = health_url(host, port)
    try:
        # As the worker would, but only for a moment.
        async with await asyncio.start_server(lambda reader, writer: None, host, port):
            return Line("ok", "health", f"can be served at {at}")
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) != errno.EADDRINUSE:
            raise unavailable(host, port, error) from error
    try:
        await asyncio.to_thread(healthcheck.ask, host, port, "/livez")
    except HealthUnavailable as error:
        fix = "set WORKER_HEALTH_PORT to a free port, or to 0 for any free one."
        return Line("FAIL", "health", f"{at} is in use by another program ({error.message})", fix)
    return Line("ok", "health", f"a worker answers at {at}")
