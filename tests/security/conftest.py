import pytest
import pytest_asyncio

from tests.rabbitmq import RabbitMQNode
from tests.security.password import CANARY, USER


# Created once, because each command of rabbitmqctl takes half a second of CPU.
@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def known_user(running_node: RabbitMQNode) -> str:
    """Return a user with a password; each test decides what the user may do."""
    await running_node.ctl("add_user", USER, CANARY)
    return USER


@pytest.fixture
async def user(node: RabbitMQNode, known_user: str) -> str:
    """Return a user with a password who may do everything."""
    await node.ctl("set_permissions", known_user, ".*", ".*", ".*")
    return known_user
