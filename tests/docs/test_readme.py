import json
import re

import pytest

from tests.benchmarks.contenders import WORKER
from tests.benchmarks.figures import median_rate
from tests.docs.pages import README, ROOT, blocks, rows, section
from tests.docs.settings_table import settings_table

MAX_WORDS = 1_500
FIRST_SCREEN = README.splitlines()[:40]


class TestTheReadme:
    """It is short, and its first screen says what the program is."""

    def test_can_be_read_in_six_minutes(self) -> None:
        """All of it counts, code and tables too."""
        assert len(README.split()) <= MAX_WORDS

    def test_first_screen_has_a_handler_and_three_commands(self) -> None:
        """Whoever looks once sees what it is, how it is extended and how it is used."""
        commands = [line for line in FIRST_SCREEN if line.startswith("$ ")]

        assert "**The rows are the fold of the messages" in "\n".join(FIRST_SCREEN)
        assert FIRST_SCREEN.index("```python") <= 25
        assert len(blocks(README, "python")[0].splitlines()) <= 8
        assert re.findall(r" (run|publish|list)\b", "\n".join(commands)) == [
            "run",
            "publish",
            "list",
        ]

    def test_is_as_fast_as_it_says(self) -> None:
        """The figure of its first sentence is the measured one, rounded down."""
        [claimed] = re.findall(r"([\d,]+) messages a second", "\n".join(FIRST_SCREEN))
        results = json.loads((ROOT / "docs/performance/results.json").read_text())

        measured = median_rate(results["throughput"], WORKER)

        assert int(claimed.replace(",", "")) == measured // 1_000 * 1_000

    def test_has_the_ten_strongest_guarantees(self) -> None:
        """Each of them names the test that proves it."""
        guarantees = list(rows(section(README, "## Guarantees")))

        assert len(guarantees) == 10
        assert all("`tests/" in proof for _, _, proof in guarantees)

    def test_settings_are_rows_of_the_full_table(self) -> None:
        """The most needed settings say the same as in docs/operate.md."""
        shown = re.findall(r"^\| `WORKER_.*$", README, re.MULTILINE)

        assert shown
        assert [row for row in shown if row not in settings_table().splitlines()] == []

    def test_tree_is_that_of_the_project(self) -> None:
        """What it draws is there."""
        tree = section(README, "## Develop")
        inside = re.findall(r"^ {6}([\w/.]+)  ", tree, re.MULTILINE)
        outside = re.findall(r"(?<=[ ])([a-z]+/)(?=\s)", re.sub(r"^ {6}.*", "", tree, flags=re.M))

        assert {"fold.py", "broker/", "store/"} <= set(inside)
        assert {"worker/", "tests/", "deploy/", "docs/"} <= set(outside)
        assert [name for name in inside if not (ROOT / "worker" / name).exists()] == []
        assert [name for name in outside if not (ROOT / name).exists()] == []

    @pytest.mark.parametrize("page", ["publish", "extend", "operate", "scale", "upgrade", "design"])
    def test_leads_to_every_page(self, page: str) -> None:
        """Nothing is documented where nobody finds it."""
        assert f"(docs/{page}.md)" in section(README, "## Documentation")
