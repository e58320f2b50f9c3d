"""`import-log`: bring the log of another database, and with it all rows, into the worker's."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.app import AsJson, app
from worker.cli.output import print_json, progress_bar, say, table
from worker.database_urls import database_shown, is_database_url
from worker.deliveries import Outcome
from worker.log_import import Account, Progress, import_log, prepare
from worker.plurals import counted
from worker.projections import load
from worker.reader import Reader
from worker.settings import Settings, load_settings
from worker.store.engines import store_of


@app.command("import-log")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="The path of an SQLite file, or postgresql://user@host/database without a "
            "password: that comes from PGPASSWORD or ~/.pgpass."
        ),
    ],
    *,
    schema: Annotated[str, typer.Option(help="The schema of a PostgreSQL source.")] = "projection",
    ca_file: Annotated[
        Path | None, typer.Option(help="Who signed the certificate of a PostgreSQL source.")
    ] = None,
    allow_plain_text: Annotated[
        bool, typer.Option(help="Allow an unencrypted connection to a PostgreSQL source.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring every message of another database's log into the one that WORKER_DATABASE names.

    Messages that it has already are duplicates, so it can be run again at any time. The source's
    worker may run meanwhile. An SQLite file is only written while its own worker is stopped.
    """
    if is_database_url(source) and _has_password(source):
        raise typer.BadParameter(
            "SOURCE holds a password, which every user of this machine could see; leave it out, "
            "and set PGPASSWORD or write ~/.pgpass."
        )
    settings = load_settings()
    reader = Reader(source, schema=schema, ca_file=ca_file, allow_plain_text=allow_plain_text)
    with progress_bar("Importing messages") as bar:
        account = asyncio.run(_import(reader, settings, bar.show))
    shown = database_shown(source) if is_database_url(source) else source
    if as_json:
        print_json(_document(account, shown, settings.shown_database))
    else:
        _show(account, shown, settings.shown_database)
    if account.rejected:
        raise typer.Exit(1)


async def _import(reader: Reader, settings: Settings, progress: Progress) -> Account:
    registry, store = load(), store_of(settings.store)
    # Opened first, so that a source that is not there leaves no new database behind.
    async with reader:
        with store.lock() as lock:
            async with store.writer(lock) as target:
                await prepare(target, registry)
                return await import_log(reader.database, target, registry, progress)


def _has_password(url: str) -> bool:
    return ":" in url.partition("://")[2].rpartition("@")[0]


def _show(account: Account, source: str, target: str) -> None:
    if account.rejections:
        columns = ("event_id", "id", "kind", "reason", "detail")
        rows = (_rejection(outcome) for outcome in account.rejections)
        table(columns, [[row[column] for column in columns] for row in rows])
        if (more := account.rejected - len(account.rejections)) > 0:
            say(f"... and {counted(more, 'message')} more.")
    say(
        f"Read {counted(account.verdicts.total(), 'message')} from {source}: {account.added:,} "
        f"added, {account.known:,} known already, {account.rejected:,} rejected."
    )
    but = " but those that were rejected" if account.rejected else ""
    say(f"{target} has every message of it{but}.")


def _document(account: Account, source: str, target: str) -> dict[str, object]:
    return {
        "source": source,
        "target": target,
        "read": account.verdicts.total(),
        "added": account.added,
        "known": account.known,
        "rejected": account.rejected,
        "rejections": [_rejection(outcome) for outcome in account.rejections],
    }


def _rejection(outcome: Outcome) -> dict[str, str | None]:
    return {
        "event_id": outcome.event_id,
        "id": outcome.message_id,
        "kind": outcome.kind,
        "reason": outcome.rejected.reason.value if outcome.rejected else None,
        "detail": outcome.rejected.detail if outcome.rejected else None,
    }
