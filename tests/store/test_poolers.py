"""What stands between a worker and its server, and does not pass on all that the worker sets."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from worker.errors import StoreUnusable
from worker.store.postgres.address import Address
from worker.store.postgres.store import Writer

# As pgbouncer answers, whatever its mode.
REFUSAL = b"SFATAL\0C08P01\0Munsupported startup parameter: jit\0\0"


@pytest.fixture
async def refusing() -> AsyncIterator[int]:
    """Yield the port of a pooler that refuses what it does not know."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int.from_bytes(await reader.readexactly(4)) - 4)
        writer.write(b"E" + (len(REFUSAL) + 4).to_bytes(4) + REFUSAL)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


class TestAPooler:
    """The worker sets search path and timeouts when a connection starts, and relies on them."""

    async def test_that_refuses_them_is_refused(self, refusing: int) -> None:
        """The error says where the worker should connect to instead."""
        url = f"postgresql://worker:secret@127.0.0.1:{refusing}/chats?sslmode=disable"

        with pytest.raises(StoreUnusable, match="startup parameter") as raised:
            await Writer(Address(url)).open()

        assert "pgbouncer" in raised.value.hint

    async def test_that_drops_them_is_refused(
        self, schema: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise a rebuild would make its tables among the live ones."""
        real = asyncpg.connect

        def dropping(*arguments: Any, server_settings: dict[str, str], **options: Any) -> Any:
            return real(*arguments, **options)

        monkeypatch.setattr(asyncpg, "connect", dropping)

        with pytest.raises(StoreUnusable, match="drops the parameters") as raised:
            await Writer(schema).open()

        assert "pgbouncer" in raised.value.hint
