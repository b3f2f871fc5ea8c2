"""What the asyncio clients have in common."""

from __future__ import annotations

from typing import Any, Final, Self

import grpc
import grpc.aio

from tidemark.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, Connection
from tidemark.errors import call_failed


class AsyncClient:
    """A connection to a server, for one event loop. Close it, or use it in an ``async with`` statement."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> None:
        """Connect when the first call is made. Create the client in the event loop that uses it.

        Args:
            target: ``host:port`` of the server.
            timeout_s: Seconds for each call, its retries included, unless the call says otherwise.
            credentials: For TLS, such as ``grpc.ssl_channel_credentials(...)``; None for no TLS.
            token: Token of the caller, where the server requires one.

        Raises:
            ValueError: The token is malformed, or would leave this machine without TLS.
        """
        self._connection: Final = Connection(target, credentials, token)
        self._timeout_s: Final = timeout_s
        self._channel: Final[grpc.aio.Channel] = self._connection.channel(grpc.aio)
        self._stub: Final = self._make_stub(self._channel)

    @staticmethod
    def _make_stub(channel: grpc.aio.Channel) -> Any:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls that still run are cancelled."""
        await self._channel.close()

    async def _call(self, method: Any, request: Any, timeout_s: float | None, customer_id: str | None = None) -> Any:
        """The response of a unary call; ``customer_id``: whom it is about, for its error."""
        try:
            timeout_s = self._timeout_s if timeout_s is None else timeout_s
            return await method(request, timeout=timeout_s, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise call_failed(error, customer_id) from None
