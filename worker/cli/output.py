"""What commands print: tables, JSON, progress, questions, and sentences (sentences.py).

Text from messages comes from publishers: it is printed escaped, and never interpreted as markup.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from worker.cli.sentences import complain, say
from worker.sources import escaped

__all__ = [
    "Bar",
    "complain",
    "confirm",
    "escaped",
    "plain",
    "print_json",
    "print_raw",
    "progress_bar",
    "say",
    "table",
    "verdict",
]

# Wide enough for a table that goes to a file or a pipe, where lines need not fit a terminal.
PIPE_WIDTH: Final = 200


def _console(stream: Any) -> Console:  # noqa: ANN401 - sys.stdout has no narrower type
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def confirm(question: str) -> None:
    """Ask for confirmation; end the command if the answer is no, or if there is no terminal."""
    if not sys.stdin.isatty():
        complain(question, "there is no terminal to ask on; run the command with --yes.")
        raise typer.Exit(2)
    if not typer.confirm(escaped(question), err=True):
        complain("Nothing was changed.")
        raise typer.Exit(1)


def say_all(lines: Iterable[str]) -> None:
    """Print many lines, a thousand in a few milliseconds."""
    print("\n".join(map(escaped, lines)), flush=True)


def print_json(document: object) -> None:
    """Print one JSON document."""
    print(json.dumps(document, ensure_ascii=False, indent=2, default=str))


class JsonList:
    """A JSON list that is printed while it grows, so that it need not fit in memory."""

    def __init__(self, opening: str = "[") -> None:
        """Start a list after this text."""
        self._before = opening

    def add(self, element: object) -> None:
        """Print the next element."""
        print(self._before)
        print(json.dumps(element, ensure_ascii=False, default=str), end="")
        self._before = ","

    def close(self, closing: str = "]") -> None:
        """Print the text that follows the last element."""
        print(closing if self._before == "," else self._before + closing, flush=True)


def print_raw(text: str) -> None:
    """Print text as it is, but escape control characters other than line breaks and tabs."""
    print("".join(c if c in "\n\t" else escaped(c) for c in text))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print rows under their columns; None is an empty cell."""
    grid = Table(title=escaped(title) or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(escaped("" if cell is None else str(cell))) for cell in row))
    _console(sys.stdout).print(grid)


def verdict(word: str, subject: str, found: str, fix: str | None) -> None:
    """Print the line of `check` for one subject."""
    style = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}[word]
    line = Text.assemble((f"{word:4}", style), f"  {subject:9}  {escaped(found)}")
    if fix:
        line.append(f"  Fix: {escaped(fix)}")
    _console(sys.stdout).print(line, soft_wrap=True)


def plain(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row as JSON can hold it: bytes as text, or as hexadecimal if they are not UTF-8."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: object) -> object:
    match value:
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value.hex()
        case dict():
            return plain(value)
        case list():
            return [_plain(each) for each in value]
        case None | bool() | int() | float() | str():
            return value
    return str(value)


class _Rate(ProgressColumn):
    """The number per second."""

    def render(self, task: Task) -> Text:
        """Render the rate."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "-/s")


class Bar:
    """A progress bar whose total may become known later."""

    def __init__(self, progress: Progress, what: str) -> None:
        """Start at zero."""
        self._progress = progress
        self._task = progress.add_task(what, total=None)

    def show(self, done: int, total: int | None) -> None:
        """Show this much as done."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def progress_bar(what: str) -> Iterator[Bar]:
    """Show progress, its rate and the remaining time on standard error, if that is a terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=_console(sys.stderr),
        disable=not sys.stderr.isatty(),
    ) as progress:
        yield Bar(progress, what)
