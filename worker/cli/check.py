"""`check`: whether everything is as the worker needs it, and if not, how to fix it."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

import typer

from worker.addresses import health_url
from worker.broker import commands as broker
from worker.broker.claim import ClaimNotPermitted, claimed_by_another
from worker.broker.partitions import has_priorities
from worker.broker_settings import address_of
from worker.cli import healthcheck
from worker.cli.app import AsJson, app
from worker.cli.contents import content_of
from worker.cli.current_topology import current_topology
from worker.cli.output import print_json, verdict
from worker.errors import (
    BrokerRefused,
    HealthUnavailable,
    StoreUnavailable,
    StoreUnusable,
)
from worker.projections import load
from worker.settings import Settings, load_settings, unknown_variables
from worker.sources import variable_of
from worker.store.engines import store_of
from worker.store.findings import DATABASE, Finding, failure, finding
from worker.telemetry.http import unavailable

Look = Callable[[Settings], Awaitable[Finding]]


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


async def _look(settings: Settings) -> list[Finding]:
    looks: dict[str, Look] = {
        "settings": _settings,
        "broker": _broker,
        "topology": _asking_database("topology", _topology),
        "partitions": _asking_database("partitions", _partitions),
        "claim": _asking_database("claim", _claim),
        "projections": _projections,
    }
    if isinstance(settings.database, Path):
        del looks["partitions"]
    lines = [await finding(subject, look(settings)) for subject, look in looks.items()]
    can_be_folded = lines[-1].verdict != "FAIL"
    lines += [
        each if can_be_folded or each.subject != DATABASE else _not_folded()
        for each in await _database(settings)
    ]
    return [*lines, await finding("health", _health(settings))]


def _asking_database(subject: str, look: Look) -> Look:
    async def looked(settings: Settings) -> Finding:
        try:
            return await look(settings)
        except (StoreUnavailable, StoreUnusable):
            if isinstance(settings.database, Path):
                raise
            # Its own line says why.
            found = "not checked, because the database cannot be asked"
            return Finding("warn", subject, found, "fix the database first.")

    return looked


async def _settings(settings: Settings) -> Finding:
    known = map(variable_of, sorted(Settings.model_fields))
    if unknown := unknown_variables():
        return Finding(
            "warn",
            "settings",
            f"Unknown settings: {', '.join(unknown)}.",
            f"remove them, or correct their names; the settings are: {', '.join(known)}.",
        )
    return Finding(
        "ok", "settings", f"prefetch {settings.prefetch}, batch size {settings.batch_size}"
    )


async def _broker(settings: Settings) -> Finding:
    await broker.reach(address_of(settings))
    return Finding("ok", "broker", f"{settings.broker} answers")


async def _topology(settings: Settings) -> Finding:
    topology, address = await current_topology(settings), address_of(settings)
    try:
        verified = await broker.verify(address, topology)
    except BrokerRefused as error:
        if await _has_database(settings):
            raise
        await broker.require_known_types(address, topology)
        fix = "start the worker, which creates what is missing at its first start."
        return Finding("warn", "topology", error.message, fix)
    if verified.not_permitted:
        found = f"{verified.waiting}. Not verified: {', '.join(verified.not_permitted)}."
        command = topology.needed_to_apply.command(address.user, address.vhost)
        return Finding("warn", "topology", found, f"run the check again after {command}")
    if verified.dead_letters:
        fix = "run 'projection-worker dead-letters list'."
        return Finding("warn", "topology", f"queue {topology.queue}: {verified.waiting}.", fix)
    found = f"queue {topology.queue} is as it should be; {verified.waiting}"
    return Finding("ok", "topology", found)


async def _partitions(settings: Settings) -> Finding:
    number = (await current_topology(settings)).partitions
    version = await broker.reach(address_of(settings))
    if settings.ordinal is None and not has_priorities(version):
        found = f"RabbitMQ {version} ignores priorities, so the first worker to start consumes "
        found += "everything, and the others stand by until it ends."
        fix = "number the workers from 0 with WORKER_ORDINAL, or use RabbitMQ 4.0 or newer."
        return Finding("warn", "partitions", found, fix)
    spread = "names" if settings.ordinal is None else "ordinals"
    found = f"{number} partitions, which workers share by their {spread}; RabbitMQ {version}"
    return Finding("ok", "partitions", found)


async def _has_database(settings: Settings) -> bool:
    try:
        return await store_of(settings.store).exists()
    except (StoreUnavailable, StoreUnusable):
        # There is one that does not answer; its own line says why.
        return True


async def _claim(settings: Settings) -> Finding:
    shown, queue = settings.shown_database, settings.queue
    own_id = await store_of(settings.store).id()
    claimed = (await current_topology(settings)).claimed
    try:
        owner = await broker.owner(address_of(settings), claimed, own_id)
    except ClaimNotPermitted as error:
        return Finding("warn", "claim", error.message, error.hint)
    if owner is None:
        found = f"queue {queue} belongs to no database; the next worker to start claims it"
        return Finding("ok", "claim", found)
    if owner != own_id:
        raise claimed_by_another(queue, owner, shown, own_id)
    return Finding("ok", "claim", f"queue {queue} belongs to {shown} (identity {own_id})")


async def _projections(_: Settings) -> Finding:
    registry = load()
    tables = ", ".join(f"{table} (version {v})" for table, v in registry.versions.items())
    return Finding("ok", "projections", f"{len(registry.handlers)} kinds; tables: {tables}")


async def _database(settings: Settings) -> list[Finding]:
    try:
        store = store_of(settings.store)
    except StoreUnusable as error:
        return [failure(DATABASE, error)]
    return await store.examine(content_of(store))


def _not_folded() -> Finding:
    found = "not checked, because the projections cannot be loaded"
    return Finding("warn", DATABASE, found, "fix the projections first.")


async def _health(settings: Settings) -> Finding:
    host, port = settings.health_host, settings.health_port
    at = health_url(host, port)
    try:
        # As the worker would, but only for a moment.
        async with await asyncio.start_server(lambda reader, writer: None, host, port):
            return Finding("ok", "health", f"can be served at {at}")
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) != errno.EADDRINUSE:
            raise unavailable(host, port, error) from error
    try:
        await asyncio.to_thread(healthcheck.ask, host, port, "/livez")
    except HealthUnavailable as error:
        fix = "set WORKER_HEALTH_PORT to a free port, or to 0 for any free one."
        return Finding(
            "FAIL", "health", f"{at} is in use by another program ({error.message})", fix
        )
    return Finding("ok", "health", f"a worker answers at {at}")
