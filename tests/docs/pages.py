"""The README and the pages in docs/, and how the tests of this folder read them."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
OPERATE = PAGES["docs/operate.md"]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks in one language."""
    return [body for found, body in _FENCE.findall(text) if found == language]


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", text)


def section(text: str, heading: str) -> str:
    """Return what is below a heading, up to the next one of its level or above."""
    level = heading.index(" ")
    _, _, rest = text.partition(f"\n{heading}\n")
    assert rest, f"there is no {heading!r}"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the tables in a text, without their heads."""
    for line, following in pairwise([*text.splitlines(), ""]):
        if line.startswith("| ") and "| --- |" not in line and "| --- |" not in following:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def names(text: str) -> list[str]:
    """Return the first cell of each row, without backticks and without labels in braces."""
    return [re.sub(r"\{.*?\}|`", "", cells[0]) for cells in rows(text)]


def quoted(text: str) -> list[str]:
    """Return what the prose of a page has in backticks."""
    return re.findall(r"`([^`]+)`", " ".join(prose(text).split()))


def commands(text: str, program: str) -> list[list[str]]:
    """Return the words that follow a program's name, in console blocks and in backticks."""
    lines = [line for block in blocks(text, "console") for line in block.splitlines()]
    shown = [line.partition(" #")[0] for line in lines if line.startswith("$ ")] + quoted(text)
    found = [re.search(rf"(?:^|[ /]){program} (.+)", each) for each in shown]
    return [each[1].split() for each in found if each]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
