"""A table of figures, for the terminal and for the page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable

WIDTH = 150


@dataclass(frozen=True, slots=True)
class Table:
    """One table of figures, with the names of things in the first column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    has_remarks: bool = False
    """Whether the last column is text as well."""

    def markdown(self) -> str:
        """Return it as Markdown, for the page."""
        rules = ["---" if self._is_text(place) else "---:" for place in range(len(self.columns))]
        lines = [self.columns, rules, *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def rich(self) -> RichTable:
        """Return it as a table for the terminal."""
        table = RichTable(box=SIMPLE_HEAD)
        for place, column in enumerate(self.columns):
            justify: JustifyMethod = "left" if self._is_text(place) else "right"
            table.add_column(column, justify=justify, no_wrap=not self._is_remark(place))
        for row in self.rows:
            table.add_row(*row)
        return table

    def _is_text(self, place: int) -> bool:
        return place == 0 or self._is_remark(place)

    def _is_remark(self, place: int) -> bool:
        return self.has_remarks and place == len(self.columns) - 1


def console() -> Console:
    """Return the console: as wide as the terminal, or plain text if there is none."""
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


def show(on: Console, tables: Iterable[Table]) -> None:
    """Print tables."""
    for table in tables:
        on.print(f"\n{table.title}")
        on.print(table.rich())
