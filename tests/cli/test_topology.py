import json
from pathlib import Path

import pytest

from tests.cli.commands import run_command
from tests.cli.conftest import Place
from tests.database import query
from tests.rabbitmq import RabbitMQNode


def overwrite(database: Path) -> None:
    database.write_bytes(b"no database " * 999)


class TestTopology:
    async def test_before_it_is_made_is_shown_with_what_is_missing(self, place: Place) -> None:
        """`show` creates nothing, and names the fix."""
        code, out, err = await run_command(
            "topology", "show", folder=place.folder, **place.settings
        )

        assert code == 1
        assert place.queues.dead_letters in out
        assert "projection-worker topology apply" in err

    async def test_that_was_applied_is_as_it_must_be(self, place: Place) -> None:
        """`apply` says what it created; a second one finds everything there."""
        applied = [
            await run_command("topology", "apply", folder=place.folder, **place.settings)
            for _ in range(2)
        ]
        names = f"exchange '{place.queues.exchange}', queue '{place.queues.dead_letters}'"
        assert [code for code, _, _ in applied] == [0, 0]
        assert names in applied[0][1]
        assert applied[1][1].startswith("All exchanges and queues existed.")
        await place.queues.publish([b"one", b"two"])

        code, out, _ = await run_command("topology", "show", folder=place.folder, **place.settings)

        assert code == 0
        assert "2 messages and 0 dead letters wait" in out

    async def test_that_is_otherwise_is_left_as_it_is(self, place: Place) -> None:
        """A queue with other arguments is an error that says how to replace it."""
        await place.queues.declare(delivery_limit=7)

        code, _, err = await run_command("topology", "apply", folder=place.folder, **place.settings)

        assert code == 1
        assert "x-delivery-limit" in err
        assert f"rabbitmqctl delete_queue {place.queues.name}" in err

    async def test_says_to_which_file_the_queue_belongs(self, place: Place) -> None:
        """It belongs to no file after `apply`, and then to that of the first worker to start."""
        settings = place.settings
        await run_command("topology", "apply", folder=place.folder, **settings)
        _, before, _ = await run_command("topology", "show", folder=place.folder, **settings)
        await place.consuming()
        ((identity,),) = query(place.database, "SELECT id FROM file")

        _, out, _ = await run_command("topology", "show", folder=place.folder, **settings)
        _, shown, _ = await run_command(
            "topology", "show", "--json", folder=place.folder, **settings
        )
        elsewhere = settings | {"database": place.folder / "other.db"}
        _, of_another, _ = await run_command("topology", "show", folder=place.folder, **elsewhere)

        assert "belongs to no database yet" in before
        assert f"belongs to database {place.database} (identity {identity})" in out
        assert json.loads(shown)["database"] == identity
        assert f"belongs to another database (identity {identity})" in of_another

    async def test_is_released_only_if_somebody_says_so(self, place: Place) -> None:
        """Without a terminal or --yes nothing changes; the question says what is lost."""
        worker = await place.consuming()
        worker.terminate()
        await worker.exit_code()

        code, _, err = await run_command(
            "topology", "release", folder=place.folder, **place.settings
        )
        _, out, _ = await run_command("topology", "show", folder=place.folder, **place.settings)

        assert code == 2
        assert "without the content of the old one" in err
        assert f"belongs to database {place.database}" in out

    async def test_is_released_where_the_file_cannot_be_read(self, place: Place) -> None:
        """A broken file may be the reason for the release."""
        worker = await place.consuming()
        worker.terminate()
        await worker.exit_code()
        overwrite(place.database)

        code, out, err = await run_command(
            "topology", "release", "--yes", folder=place.folder, **place.settings
        )

        assert code == 0, err
        assert "is free" in out

    async def test_that_belongs_to_no_file_needs_no_release(self, place: Place) -> None:
        """If there is nothing to release, no question is asked."""
        code, out, _ = await run_command(
            "topology", "release", folder=place.folder, **place.settings
        )

        assert code == 0
        assert "There is nothing to release." in out

    async def test_that_was_imported_from_its_export_is_as_it_must_be(
        self, place: Place, node: RabbitMQNode
    ) -> None:
        """An operator who imports the export creates what the worker would."""
        _, exported, _ = await run_command(
            "topology", "export", folder=place.folder, **place.settings
        )
        file = place.folder / "definitions.json"
        file.write_text(exported)
        await node.ctl("import_definitions", str(file))

        code, _, err = await run_command("topology", "show", folder=place.folder, **place.settings)
        policies = await node.ctl("list_policies", "--formatter", "json")

        assert code == 0, err
        ours = [each for each in json.loads(policies) if each["name"] == place.queues.name]
        assert [json.loads(each["definition"]) for each in ours] == [{"delivery-limit": 20}]
        await node.ctl("clear_policy", place.queues.name)
        await node.ctl("clear_policy", place.queues.dead_letters)

    @pytest.mark.parametrize(
        ("url", "vhost"),
        [("amqp://localhost/", "/"), ("amqp://localhost/chat%2Fone", "chat/one")],
    )
    async def test_is_exported_for_the_virtual_host(
        self, place: Place, url: str, vhost: str
    ) -> None:
        """The export asks no broker."""
        code, out, _ = await run_command(
            "topology", "export", folder=place.folder, **(place.settings | {"amqp_url": url})
        )

        assert code == 0
        kinds = json.loads(out).values()
        assert {each["vhost"] for kind in kinds for each in kind} == {vhost}
