"""A table of figures, for the terminal and for the page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

WIDTH = 130


@dataclass(frozen=True, slots=True)
class Table:
    """One table; the first column is text, the others are figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return it as Markdown, for the page."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def rich(self) -> RichTable:
        """Return it as a table for the terminal."""
        table = RichTable(box=SIMPLE_HEAD)
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="right" if place else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table


def console() -> Console:
    """Return the console to print on: as wide as the terminal, or plain text elsewhere."""
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


def show(on: Console, tables: Iterable[Table]) -> None:
    """Print tables."""
    for table in tables:
        on.print(f"\n{table.title}")
        on.print(table.rich())
