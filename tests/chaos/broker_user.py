"""The workers' user on the broker, with a password that is used nowhere else."""

from dataclasses import dataclass

from tests.proxy import Proxy
from tests.rabbitmq import RabbitMQNode


@dataclass(frozen=True, slots=True)
class BrokerUser:
    """A user with all rights on the virtual host."""

    name: str
    password: str

    def url_through(self, proxy: Proxy) -> str:
        """Return the broker's address for this user."""
        return proxy.url.replace("guest:guest", f"{self.name}:{self.password}")


async def broker_user(node: RabbitMQNode) -> BrokerUser:
    """Create the user."""
    user = BrokerUser("projection", "S3CR3T-canary")
    await node.ctl("add_user", user.name, user.password)
    await node.ctl("set_permissions", "-p", "/", user.name, ".*", ".*", ".*")
    return user
