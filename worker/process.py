"""The process around the service: signals, health, and an end in time, whatever hangs."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from worker.broker_settings import address_of
from worker.registry import Registry
from worker.service import Service
from worker.settings import Settings
from worker.store.library import dotted
from worker.tasks import end
from worker.telemetry.health import Facts
from worker.telemetry.http import HealthServer
from worker.telemetry.metrics import Metrics
from worker.telemetry.report import Report

# SIGHUP is what a terminal that closes sends; nohup has it ignored.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A drain ends before this, whatever the broker and the disk do; what is not acked is redelivered.
DRAIN_SECONDS = 4.5
TICK_SECONDS = 1


async def run(registry: Registry, load_settings: Callable[[], Settings]) -> None:
    """Run a worker until SIGTERM, SIGINT or SIGHUP; a second signal ends the process at once.

    `load_settings` is called at each connection to the broker, for a password that was renewed.
    Raises what `Service.run` raises, and `HealthUnavailable` if its port is taken.
    """
    settings = load_settings()
    facts = Facts()
    metrics = Metrics(facts, sqlite_version=dotted())
    report = Report(facts, metrics, settings.summary_seconds)
    service = Service(settings, registry, report, lambda: address_of(load_settings()))
    ending = _Ending(service, report)
    report.starting(
        database=str(settings.database),
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


class _Ending:
    """What signals do, from now on."""

    def __init__(self, service: Service, report: Report) -> None:
        self.is_complete = False
        self._service = service
        self._report = report
        self._has_begun = False
        loop = asyncio.get_running_loop()
        for number in ENDING:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
        # One may be waiting since the start of the process (__main__.py).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._has_begun:
            # Whatever is committed is on the disk, and whatever is not is not acked.
            self._report.ended_at_once(number.name)
            _exit(128 + number)
        self._has_begun = True
        self._report.draining(number.name)
        self._service.stop()
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._on_deadline)

    def _on_deadline(self) -> None:
        # Reached in the middle of closing, too: a peer that is gone can stall that.
        if not self.is_complete:
            self._report.drain_timed_out(DRAIN_SECONDS)
        _exit(0 if self.is_complete else 1)


def _exit(code: int) -> None:
    os._exit(code)


@asynccontextmanager
async def _ticking(facts: Facts) -> AsyncIterator[None]:
    """Note every second that the loop turns."""

    async def tick() -> None:
        while True:
            facts.loop_turned_at = time.monotonic()
            await asyncio.sleep(TICK_SECONDS)

    ticker = asyncio.create_task(tick())
    try:
        yield
    finally:
        await end(ticker)
