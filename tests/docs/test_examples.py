"""The README's Python, run as it stands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.builders import body, message, planned, started
from tests.unit.projecting import arrivals
from worker.projections import load
from worker.projector import Projector
from worker.rebuild import create_tables
from worker.store.connection import Writer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

# Projects the bodies on its command line, in the package of the folder where it runs.
APPLY = """
import asyncio, pathlib, sys
from worker.deliveries import Delivery
from worker.messages import receive
from worker.projections import load
from worker.projector import Projector
from worker.rebuild import create_tables
from worker.store.connection import Writer

async def main():
    async with Writer(pathlib.Path("projection.db")) as writer:
        await create_tables(writer, load())
        deliveries = [Delivery(each.encode()) for each in sys.argv[1:]]
        batch = [receive(load().wire, each, 10_000) for each in deliveries]
        outcomes = await Projector(load(), writer).project(batch)
        (row,) = await writer.fetch_all("SELECT planned_for FROM events")
        print([outcome.verdict.value for outcome in outcomes], row["planned_for"])

asyncio.run(main())
"""


def example(containing: str) -> str:
    (found,) = [text for text in EXAMPLES if containing in text]
    return str(found)


class TestTheExamples:
    """Whoever copies an example gets what the README says."""

    def test_a_kind_is_added_in_ten_lines_of_one_file(self, tmp_path: Path) -> None:
        """Pasted into events.py, the example of a new kind is all that its messages need."""
        text = example("event_postponed")
        shutil.copytree(ROOT / "worker", tmp_path / "worker")
        with (tmp_path / "worker/projections/events.py").open("a") as file:
            file.write(f"\n\n{text}")
        payload = {"event_id": "e-1", "planned_for": "2026-05-01T08:00:00Z"}
        bodies = [body(planned("e-1")), body(message("event_postponed", payload))]

        ran = subprocess.run(
            [sys.executable, "-c", APPLY, *bodies],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert ran.stderr == ""
        assert ran.stdout == "['applied', 'applied'] 2026-05-01T08:00:00.000000Z\n"
        assert len(text.strip().splitlines()) <= 10

    async def test_reading_is_what_it_says(self, tmp_path: Path) -> None:
        """The example of reading runs against a file that a worker wrote."""
        path = tmp_path / "projection.db"
        registry = load()
        async with Writer(path) as writer:
            await create_tables(writer, registry)
            history = [planned("e-42", chat_id="chat-7"), started("e-42")]
            await Projector(registry, writer).project(arrivals(history))
        text = example("list_active_events").replace("data/projection.db", str(path))
        lines = [re.sub(r"^    await (.*?)(?: +#.*)?$", r"    found.append(await \1)", line)
                 for line in text.splitlines()]  # fmt: skip
        names: dict[str, Any] = {}

        exec("async def run(found):\n" + "\n".join(f"    {line}" for line in lines), names)
        found: list[Any] = []
        await names["run"](found)

        event, active, done = found
        assert (event["status"], event["props"]) == ("active", {})
        assert active == [event]
        assert done == []
