"""The process around the service: signals, health, and an exit in time even if something hangs."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from worker.broker_settings import address_of
from worker.errors import StoreUnavailable
from worker.registry import Registry
from worker.service import Service
from worker.settings import Settings
from worker.sources import SettingsError
from worker.store.engines import store_of
from worker.store.postgres.address import Address
from worker.store.sqlite.library import dotted
from worker.tasks import end
from worker.telemetry.health import Facts
from worker.telemetry.http import HealthServer
from worker.telemetry.metrics import Metrics
from worker.telemetry.report import Report

# A terminal sends SIGHUP when it closes; nohup makes the process ignore it.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A drain is cut off after this time, even if the broker or the disk hangs; what is not acked is
# redelivered.
DRAIN_SECONDS = 4.5
TICK_SECONDS = 1


async def run(registry: Registry, load_settings: Callable[[], Settings]) -> None:
    """Run a worker until SIGTERM, SIGINT or SIGHUP; a second signal ends the process at once.

    `load_settings` is called at each connection to the broker or to a database on a server, so that
    a renewed password is used.
    Raises what `Service.run` raises, and `HealthUnavailable` if the health port is in use.
    """
    settings = load_settings()
    facts = Facts()
    metrics = Metrics(facts, sqlite_version=dotted())
    report = Report(facts, metrics, settings.summary_seconds)
    store = store_of(_renewing(load_settings))
    service = Service(settings, store, registry, report, lambda: address_of(load_settings()))
    ending = _Ending(service, report)
    report.starting(
        database=settings.shown_database,
        sqlite=dotted(),
        broker=settings.broker,
        queue=settings.queue,
    )
    async with (
        HealthServer(settings.health_host, settings.health_port, facts, metrics) as server,
        _ticking(facts),
    ):
        report.health_served(server.url)
        await service.run()
    ending.is_complete = True
    report.stopped()


def _renewing(load_settings: Callable[[], Settings]) -> Path | Address:
    """Return the database of the settings, whose address is read again for each connection."""
    database = load_settings().store
    if isinstance(database, Path):
        return database

    def renewed() -> str:
        try:
            now = load_settings().store
        except SettingsError as error:
            # The file with the password may be half written at this moment.
            raise StoreUnavailable(error.message, error.hint) from error
        return now.url if isinstance(now, Address) else database.url

    return replace(database, renewed=renewed)


class _Ending:
    """Handles the signals that end the process, from its construction on."""

    def __init__(self, service: Service, report: Report) -> None:
        self.is_complete = False
        self._service = service
        self._report = report
        self._has_begun = False
        loop = asyncio.get_running_loop()
        for number in ENDING:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
        # A signal may have been waiting since the start of the process (__main__.py).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._has_begun:
            # What is committed is on the disk, and what is not committed is not acked.
            self._report.ended_at_once(number.name)
            _exit(128 + number)
        self._has_begun = True
        self._report.draining(number.name)
        self._service.stop()
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._on_deadline)

    def _on_deadline(self) -> None:
        # It may also fire while connections are being closed, which a dead peer can stall.
        if not self.is_complete:
            self._report.drain_timed_out(DRAIN_SECONDS)
        _exit(0 if self.is_complete else 1)


def _exit(code: int) -> None:
    os._exit(code)


@asynccontextmanager
async def _ticking(facts: Facts) -> AsyncIterator[None]:
    """Record once a second that the event loop turns."""

    async def tick() -> None:
        while True:
            facts.loop_turned_at = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)

    ticker = asyncio.create_task(tick())
    try:
        yield
    finally:
        await end(ticker)
