"""What the blocking clients have in common."""

from __future__ import annotations

from typing import Any, Final, Self

import grpc

from tidemark.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, Connection
from tidemark.errors import call_failed


class Client:
    """A connection to a server. Threads may share a client. Close it, or use it in a ``with`` statement."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> None:
        """Connect when the first call is made.

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
        self._channel: Final[grpc.Channel] = self._connection.channel(grpc)
        self._stub: Final = self._make_stub(self._channel)

    @staticmethod
    def _make_stub(channel: grpc.Channel) -> Any:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Calls that still run are cancelled."""
        self._channel.close()

    def _call(self, method: Any, request: Any, timeout_s: float | None, customer_id: str | None = None) -> Any:
        """The response of a unary call; ``customer_id``: whom it is about, for its error."""
        try:
            timeout_s = self._timeout_s if timeout_s is None else timeout_s
            return method(request, timeout=timeout_s, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise call_failed(error, customer_id) from None
