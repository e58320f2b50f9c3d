"""`check`: whether everything is as the worker needs it, and if not, how to fix it."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from worker.addresses import health_url
from worker.broker import commands as broker
from worker.broker.claim import ClaimNotPermitted, claimed_by_another
from worker.broker_settings import address_of, topology_of
from worker.cli import healthcheck
from worker.cli.app import AsJson, app
from worker.cli.output import print_json, verdict
from worker.errors import BrokerRefused, HealthUnavailable, WorkerError
from worker.projections import load
from worker.rebuild import reason_to_rebuild, require_known_kinds, require_same_columns
from worker.settings import Settings, load_settings, unknown_variables
from worker.sources import variable_of
from worker.store.sqlite import inspection as store
from worker.store.sqlite.connection import Reader
from worker.store.sqlite.library import dotted, require_safe_commits
from worker.store.sqlite.lock import WriterLock
from worker.store.sqlite.migrations import SCHEMA_VERSION
from worker.telemetry.http import unavailable

WARN_FREE_BYTES = 1024**3
FAIL_FREE_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Line:
    """The result for one subject."""

    verdict: str
    """ok, warn or FAIL."""
    subject: str
    found: str
    fix: str | None = None


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
    looks: dict[str, Callable[[Settings], Awaitable[Line]]] = {
        "settings": _settings,
        "broker": _broker,
        "topology": _topology,
        "claim": _claim,
        "projections": _projections,
        "database": _database,
        "disk": _disk,
        "health": _health,
        "sqlite": _sqlite,
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
        if store.is_file(settings.database):
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


async def _claim(settings: Settings) -> Line:
    path, queue = settings.database, settings.queue
    file_id = await store.file_id(path)
    try:
        owner = await broker.owner(address_of(settings), queue, file_id)
    except ClaimNotPermitted as error:
        return Line("warn", "claim", error.message, error.hint)
    if owner is None:
        found = f"queue {queue} belongs to no database file; the next worker to start claims it"
        return Line("ok", "claim", found)
    if owner != file_id:
        raise claimed_by_another(queue, owner, path, file_id)
    return Line("ok", "claim", f"queue {queue} belongs to {path} (identity {file_id})")


async def _projections(_: Settings) -> Line:
    registry = load()
    tables = ", ".join(f"{table} (version {v})" for table, v in registry.versions.items())
    return Line("ok", "projections", f"{len(registry.handlers)} kinds; tables: {tables}")


async def _database(settings: Settings) -> Line:
    path = settings.database
    if not store.is_file(path):
        return Line(
            "warn", "database", f"{path} does not exist yet.", "start the worker, which creates it."
        )
    store.require_writable(path)
    registry = load()
    async with Reader(path) as reader:
        if (version := await store.schema_version(reader)) < SCHEMA_VERSION:
            fix = "start the worker, which upgrades it."
            return Line("warn", "database", f"{path} has an older schema ({version}).", fix)
        await store.require_acked(reader, path)
        await reader.require_log()
        await require_known_kinds(reader, registry)
        reason = reason_to_rebuild(await reader.noted_versions(), registry)
        if reason is None:
            await require_same_columns(reader, registry)
    if reason:
        fix = "start the worker, which rebuilds it first."
        return Line("warn", "database", f"{path} must be rebuilt: {reason}.", fix)
    return Line("ok", "database", f"{path}, {_held(path)}")


def _held(path: Path) -> str:
    holder = WriterLock(path).holder()
    return f"in use by {holder}" if holder else "in use by no worker"


async def _disk(settings: Settings) -> Line:
    folder = store.existing_folder(settings.database)
    free = store.free_bytes(folder)
    found = f"{folder} has {free / 1024**3:,.1f} GiB free"
    if not store.can_write(folder):
        fix = "grant this user write access, or set WORKER_DATABASE to another folder."
        return Line("FAIL", "disk", f"This user cannot write to {folder}.", fix)
    if free < WARN_FREE_BYTES:
        word = "FAIL" if free < FAIL_FREE_BYTES else "warn"
        return Line(
            word, "disk", found, "free some space; on a full disk the worker holds its messages."
        )
    return Line("ok", "disk", found)


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


async def _sqlite(_: Settings) -> Line:
    require_safe_commits()
    return Line("ok", "sqlite", f"SQLite {dotted()}")
