"""The network connection below the library's connection.

Promise: `abort` closes it at once, whatever the library and the peer still wait for.
"""

import asyncio
from typing import Any

from aiormq.connection import SSLContextProvider, TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from worker.broker.intake import Intake, IntakeReader


class Transport(TransportFactory):
    """Connects the library to the broker; deliveries go to the intake, if there is one."""

    def __init__(self, intake: Intake | None, host: str) -> None:
        """Prepare to connect to `host`, which is the URL's host or one of its addresses."""
        self._intake = intake
        self._host = host
        self._opened: list[asyncio.Transport] = []

    async def create(
        self,
        url: URL,
        **kwargs: Any,  # noqa: ANN401 - what the library passes to its own transports
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return an open connection; raises `AMQPConnectionError`, as the library's own do."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader() if self._intake is None else IntakeReader(self._intake)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        provider: SSLContextProvider = kwargs.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol,
                self._host,
                url.port or 0,
                ssl=context,
                # The certificate is for the host's name, whichever of its addresses this is.
                server_hostname=url.host if context else None,
                **kwargs,
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self._opened.append(transport)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def abort(self) -> None:
        """Close the open connections at once, without the AMQP or TLS close; may be repeated."""
        for transport in self._opened:
            transport.abort()
