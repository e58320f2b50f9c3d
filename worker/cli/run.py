"""`run`: the worker itself."""

import asyncio

import typer

from worker import process
from worker.cli.app import app
from worker.errors import WorkerError
from worker.projections import load
from worker.settings import load_settings
from worker.telemetry import logs


@app.command()
def run() -> None:
    """Consume messages until SIGTERM or SIGINT; log to standard output."""
    settings = load_settings()
    logs.configure(settings.log_format, settings.log_level)
    try:
        asyncio.run(process.run(load(), load_settings))
    except WorkerError as error:
        logs.get_logger().error("failed", reason=error.message, hint=error.hint)
        raise typer.Exit(1) from None
    except Exception:  # noqa: BLE001 - a bug is logged here, and nowhere else
        logs.get_logger().exception("crashed")
        raise typer.Exit(1) from None
