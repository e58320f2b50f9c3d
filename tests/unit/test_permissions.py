import re
import shlex

import pytest

from worker.broker.connection import BrokerAddress
from worker.broker.permissions import Permissions
from worker.broker.topology import Topology
from worker.broker.verification import Verification


class TestACommand:
    def test_survives_a_shell(self) -> None:
        """Whatever characters the names contain, the shell passes them on unchanged."""
        permissions = Permissions(write=("a.b", "c|d"), read=("it's $HOME",))

        *words, configure, write, read = shlex.split(permissions.command("o'user", "my vhost"))

        assert words == ["rabbitmqctl", "set_permissions", "-p", "my vhost", "o'user"]
        assert configure == "^$"
        assert [name for name in ("a.b", "c|d", "axb", "c") if re.search(write, name)] == [
            "a.b",
            "c|d",
        ]
        assert re.search(read, "it's $HOME")

    def test_is_for_the_user_and_virtual_host_of_the_address(self) -> None:
        """They are written as the broker knows them, not as a URL encodes them."""
        address = BrokerAddress(("amqp://a%40b:secret@localhost:5672/my%2Fvhost",))

        assert (address.user, address.vhost) == ("a@b", "my/vhost")
        assert BrokerAddress(("amqp://localhost",)).vhost == "/"


class TestATopology:
    @pytest.mark.parametrize("partitions", [None, 2])
    def test_asks_for_a_right_to_each_of_its_names(self, partitions: int | None) -> None:
        """Of partitions, too, and to no queue of somebody else."""
        topology = Topology("e", "e.q", 20, partitions)

        *_, configure, write, read = shlex.split(topology.needed_to_apply.command("u", "/"))

        own = {*topology.exchanges, *topology.queues}
        assert all(re.search(configure, name) and re.search(read, name) for name in own)
        assert all(re.search(write, name) for name in own - {"e"})
        assert not re.search(configure, "e.q.other")

    def test_asks_workers_for_partitions_of_any_number(self) -> None:
        """So a resize needs no further right."""
        *_, read = shlex.split(Topology("e", "q", 20, 2).needed_to_consume.command("u", "/"))

        assert re.search(read, "q.000")
        assert re.search(read, "q.255")
        assert not re.search(read, "q")


class TestAVerification:
    def test_says_what_it_could_not_count(self) -> None:
        """An unknown number is not reported as 0."""
        assert Verification(1_000, 0).waiting == "1,000 messages and 0 dead letters wait"
        assert Verification(None, 2).waiting == (
            "an unknown number of messages and 2 dead letters wait"
        )
        assert Verification(1, 1).waiting == "1 message and 1 dead letter wait"
