"""Prints the verdict on a terminal."""

from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from tests.chaos.verdict import MEANINGS, Verdict


def show(on: Console, verdict: Verdict) -> None:
    """Print the counts, what happened, and each check."""
    counts = Table("", "messages", "", title=f"seed {verdict.seed}, {verdict.seconds:.0f} seconds")
    for name, number in asdict(verdict.counts).items():
        counts.add_row(name.replace("_", " "), f"{number:,}", MEANINGS[name])
    on.print(counts)
    _numbers(on, "faults injected", verdict.injected)
    _numbers(on, "what else happened", verdict.happened)
    _numbers(on, "exit codes of workers", {str(code): n for code, n in verdict.exit_codes.items()})
    if verdict.failures:
        _numbers(on, "why workers gave up", verdict.failures)
    checks = Table("", "must be true", "found", title="checks")
    for check in verdict.checks:
        mark = "[green]true[/]" if check.is_true else "[bold red]FALSE[/]"
        checks.add_row(mark, check.promise, check.problem[:1_000].replace("[", "\\["))
    on.print(checks)


def _numbers(on: Console, title: str, numbers: Mapping[str, int]) -> None:
    table = Table("", "", title=title, show_header=False)
    for name, number in sorted(numbers.items()):
        table.add_row(name.replace("[", "\\["), f"{number:,}")
    on.print(table)
