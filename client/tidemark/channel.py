"""How clients connect: options, retry policy and credentials, the same for blocking and asyncio channels."""

from __future__ import annotations

import json
from typing import Any, Final

import grpc

from tidemark.errors import RETRIED
from tidemark.loopback import is_local_target

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S: Final = 1.0
RETRY_POLICY: Final = {
    "methodConfig": [
        {
            "name": [
                {"service": "tidemark.v1.ScoringService"},
                {"service": "tidemark.v1.EventService", "method": "RecordEvents"},
                {"service": "tidemark.v1.CustomerService"},
                {"service": "tidemark.v1.ModelService"},
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": [code.name for code in RETRIED],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}
"""gRPC's own retries, within the deadline, and fewer where most calls fail. It is a service config for any language.

Retries are safe: scoring changes nothing, an event is counted once by its id, and repeating a change of a customer or
of the models changes nothing. With this policy no call is lost while the workers of a server are replaced. StreamEvents
is not part of it: see NO_RETRIES.
"""
OPTIONS: Final = (
    ("grpc.service_config", json.dumps(RETRY_POLICY)),
    # The defaults wait a second before a connection is tried again, which is longer than all retries together.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
NO_RETRIES: Final = ("grpc.enable_retries", 0)
"""For streams of requests. Where gRPC's C core repeats one, also without a retry policy, it may leave out messages and
report OK, or end the process (grpc#40283, seen with grpcio 1.81.1 and 1.85.1). Clients resume streams themselves."""


class Connection:
    """Where and how to connect. It opens channels of :mod:`grpc` and of :mod:`grpc.aio` alike."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None, token: str | None) -> None:
        """Check the token.

        Args:
            target: ``host:port``, or another target of gRPC.
            credentials: For TLS; None for a connection without TLS.
            token: Sent with each call; None for none.

        Raises:
            ValueError: The token is malformed, or would leave this machine without TLS.
        """
        self.metadata: Final = auth_metadata(token, target, secure=credentials is not None)
        self._target: Final = target
        self._credentials: Final = credentials

    def channel(self, grpc_module: Any, *options: tuple[str, Any]) -> Any:
        """Open a channel.

        Args:
            grpc_module: :mod:`grpc` or :mod:`grpc.aio`.
            options: Further channel options.

        Returns:
            The channel, to be closed by the caller.
        """
        options = (*OPTIONS, *options)
        if self._credentials is not None:
            return grpc_module.secure_channel(self._target, self._credentials, options)
        if self.metadata is not None:
            options = (*options, ("grpc.enable_http_proxy", 0))  # a proxy would take the clear token off this machine
        return grpc_module.insecure_channel(self._target, options)


def auth_metadata(token: str | None, target: str, *, secure: bool) -> tuple[tuple[str, str], ...] | None:
    """The metadata that sends a token with a call.

    Args:
        token: The token, None for none.
        target: Where the call goes.
        secure: Whether the channel uses TLS.

    Returns:
        The metadata, None without a token.

    Raises:
        ValueError: The token is malformed, or would leave this machine without TLS. The message does not repeat it.
    """
    if token is None:
        return None
    if not (token and token.isascii() and token.isprintable()) or " " in token:
        raise ValueError("the token is empty, or has spaces or other characters that no token has: copy it again")
    if not secure and not is_local_target(target):
        raise ValueError("a token would be sent in the clear: give credentials as well, so that TLS is used")
    return (("authorization", f"Bearer {token}"),)
