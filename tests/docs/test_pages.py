import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import get_type_hints

import pytest

from tests.docs import program
from tests.docs.pages import (
    OPERATE,
    PAGES,
    ROOT,
    anchors,
    commands,
    names,
    prose,
    quoted,
    rows,
    section,
)
from tests.docs.settings_table import settings_table
from worker.broker.topology import Topology
from worker.deliveries import Reason
from worker.projections import load
from worker.store.postgres.address import Address
from worker.telemetry.health import State

LINK = re.compile(r"\]\(([^)\s]+)\)")
# Where the settings come from, so no setting itself.
SECRETS_DIR_VARIABLE = "WORKER_SECRETS_DIR"
READ = section(PAGES["docs/publish.md"], "## Read")
# The broker's own, and the one for letters without any.
OTHER_REASONS = {"delivery_limit", "unknown"}

every_page = pytest.mark.parametrize("page", PAGES)


@every_page
class TestAPage:
    """It names nothing that is not there."""

    def test_leads_to_what_is_there(self, page: str) -> None:
        """Every relative link resolves, to the heading if it names one."""
        broken = []
        for link in LINK.findall(prose(PAGES[page])):
            path, _, anchor = link.partition("#")
            if path.startswith("https:"):
                continue
            target = (ROOT / page).parent / path if path else ROOT / page
            if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
                broken.append(link)

        assert broken == []

    def test_names_tests_that_exist(self, page: str) -> None:
        """A proof that is not there proves nothing."""
        for path, first, second in re.findall(
            r"`(tests/[\w/]+\.py)::(\w+)(?:::(\w+))?`", PAGES[page]
        ):
            source = (ROOT / path).read_text()
            for name in filter(None, (first, second)):
                assert re.search(rf"(class|def) {name}\b", source), f"{path} has no {name}"

    def test_names_paths_that_exist(self, page: str) -> None:
        """Files and folders of the repository that it names are there."""
        named = re.findall(
            r"(?:^|[`(\s])((?:worker|tests|deploy|docs)/[\w./-]*\w/?)", PAGES[page], re.MULTILINE
        )

        assert [path for path in named if not (ROOT / path).exists()] == []

    def test_names_commands_that_exist(self, page: str) -> None:
        """Every command is one of the program's, and so is every option of it."""
        known = program.commands()
        starts = {path.split()[0] for path in known if path}
        told = commands(PAGES[page], "projection-worker")
        told += [words for each in quoted(PAGES[page]) if (words := each.split())[0] in starts]

        for words in told:
            path = max((p for p in known if words[: len(p.split())] == p.split()), key=len)
            options = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert path, words
            assert words == path.split() or path not in program.groups(), words
            assert options <= known[path], words

    def test_names_options_that_exist(self, page: str) -> None:
        """An option that stands alone belongs to some command, of ours or of the benchmark."""
        known = set().union(*program.commands().values()) | {"--document", "--rounds"}

        assert {each for each in quoted(PAGES[page]) if re.fullmatch(r"--[\w-]+", each)} <= known

    def test_names_targets_that_exist(self, page: str) -> None:
        """Every `make` target is in the Makefile."""
        makefile = (ROOT / "Makefile").read_text()
        targets = {words[0] for words in commands(PAGES[page], "make")}

        assert [name for name in targets if f"\n{name}:" not in makefile] == []

    def test_names_settings_that_exist(self, page: str) -> None:
        """Every variable with the worker's prefix is a setting."""
        known = {*names(settings_table()), SECRETS_DIR_VARIABLE}

        assert SECRETS_DIR_VARIABLE in program.words()
        assert set(re.findall(r"WORKER_\w+", PAGES[page])) <= known

    def test_names_metrics_that_exist(self, page: str) -> None:
        """Every word that looks like a metric is one, or the schema of a rebuild."""
        known = {name.partition("{")[0] for name in program.metrics()}
        known.add(Address("").rebuild_schema)

        assert set(re.findall(r"\bprojection_\w+", PAGES[page])) <= known

    def test_names_words_of_the_program(self, page: str) -> None:
        """A log event, a column, a header or a function that is quoted is somewhere in the code."""
        told = {each for each in quoted(PAGES[page]) if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", each)}

        assert told <= program.words()

    def test_quotes_what_the_program_says(self, page: str) -> None:
        """Whoever looks for an error's sentence finds it as it was printed."""
        said = [each for each in quoted(PAGES[page]) if re.match(r"[A-Z][a-z]+ [a-z. ]+", each)]

        for sentence in said:
            for part in sentence.split("..."):
                assert part.strip() in program.sentences(), sentence


class TestThePagesForOperators:
    """Everything that an operator meets is documented."""

    def test_have_every_setting(self) -> None:
        """The table of settings is the one that `python -m tests.docs.settings_table` prints."""
        assert settings_table() in OPERATE

    def test_have_every_command(self) -> None:
        """Groups of commands need no row of their own."""
        told = [name.split(" ", 1)[1] for name in names(section(OPERATE, "## Commands"))]

        assert sorted(told) == sorted(program.commands().keys() - program.groups())

    def test_have_every_log_event(self) -> None:
        """With its level."""
        told = [(event, cells[1]) for event, cells in _table("## Log events")]

        assert sorted(told) == sorted(program.log_events().items())

    def test_have_every_metric(self) -> None:
        """With its labels and its type; those of the process are Prometheus' own."""
        told = {cells[0].strip("`"): cells[1] for _, cells in _table("## Metrics")}
        ours = {k: v for k, v in program.metrics().items() if not k.startswith("process_")}

        assert told.pop("process_*") == ""
        assert told == ours

    def test_have_every_state(self) -> None:
        """In the words of `/readyz`."""
        assert sorted(names(section(OPERATE, "### It is not ready"))) == sorted(State)

    def test_have_every_reason_of_a_dead_letter(self) -> None:
        """The worker's own and the broker's."""
        told = names(section(OPERATE, "### Dead letters"))

        assert sorted(told) == sorted({*Reason, *OTHER_REASONS})

    def test_have_the_permissions_that_a_worker_needs(self) -> None:
        """The command that grants them is the one that a worker without them names."""
        topology = Topology("chat.events", "chat.events.projection", delivery_limit=20)
        spread = replace(topology, partitions=32)

        assert topology.needed_to_consume.command("projection", "/") in OPERATE
        assert spread.needed_to_consume.command("projection", "/") in PAGES["docs/scale.md"]

    def test_have_every_page_that_an_error_names(self) -> None:
        """A hint leads to a heading that exists."""
        named = re.findall(r"(docs/\w+\.md), '([^']+)'", program.sentences())

        assert named
        for page, heading in named:
            assert re.search(rf"^#+ {heading}$", PAGES[page], re.MULTILINE), (page, heading)


class TestThePageForPublishers:
    """It has all that a publisher may send, and all that a reader finds."""

    def test_has_every_kind_with_its_payload(self) -> None:
        """Its fields, and the kind of which another has the same."""
        told: dict[str, set[str]] = {}
        for kind, payload, _ in rows(section(PAGES["docs/publish.md"], "### Kinds")):
            fields = re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", payload))
            told[kind.strip("`")] = told.get(fields[0], set(fields))

        assert told == {
            kind: set(
                get_type_hints(handler)["message"].model_fields["payload"].annotation.model_fields
            )
            for kind, handler in load().handlers.items()
        }

    def test_has_every_column(self) -> None:
        """Of the table of events."""
        (events,) = load().projections
        with closing(sqlite3.connect(":memory:")) as connection:
            for statement in events.schema:
                connection.execute(statement)
            found = [name for _, name, *_ in connection.execute("PRAGMA table_info(events)")]

        told = dict(zip(names(READ), rows(READ), strict=True))["events"][1].partition(". ")[0]

        assert re.findall(r"`(\w+)`", told) == found


class TestThePageOfGuarantees:
    """Each of them is proved."""

    def test_names_a_test_in_each_row(self) -> None:
        """A guarantee without a test is a hope."""
        guarantees = list(rows(section(PAGES["docs/reliability.md"], "## Guarantees")))

        assert len(guarantees) >= 30
        assert all("`tests/" in proof for _, _, proof in guarantees)


def _table(heading: str) -> list[tuple[str, list[str]]]:
    text = section(OPERATE, heading)
    return list(zip(names(text), rows(text), strict=True))
