"""How a call ends that has failed: the status that both transports send, made from any exception."""

from __future__ import annotations

import base64
import logging
from typing import Final
from urllib.parse import quote

from service.api.status import encoded_status
from service.errors import PUSHBACK, Code, Reason, RequestError

logger = logging.getLogger(__name__)

PRINTABLE: Final = bytes(range(0x20, 0x7F)).decode().replace("%", "")
"""Characters that grpc-message carries as they are; all others are percent-encoded."""


class CallError(Exception):
    """The status of a call that failed.

    Attributes:
        code: The status code.
        message: The text for the caller.
        details: An encoded google.rpc.Status, empty if there is none.
        pushback_ms: Milliseconds after which gRPC's own retries should try again; None leaves that to the client.
    """

    def __init__(self, code: Code, message: str, details: bytes = b"", pushback_ms: int | None = None) -> None:
        super().__init__(message)
        self.code: Final = code
        self.message: Final = message
        self.details: Final = details
        self.pushback_ms: Final = pushback_ms

    def trailers(self) -> list[tuple[bytes, bytes]]:
        """The status as HTTP/2 trailers."""
        trailers = [
            (b"grpc-status", b"%d" % self.code),
            (b"grpc-message", quote(self.message, safe=PRINTABLE).encode()),
        ]
        if self.details:
            trailers.append((b"grpc-status-details-bin", base64.b64encode(self.details).rstrip(b"=")))
        if self.pushback_ms is not None:
            trailers.append((PUSHBACK.encode(), b"%d" % self.pushback_ms))
        if self.code is Code.UNIMPLEMENTED:
            trailers.append((b"grpc-accept-encoding", b"identity, deflate, gzip"))
        return trailers


def call_error(error: Exception) -> CallError:
    """Turn any exception into the status of a call.

    Args:
        error: A CallError, which is returned as it is; a RequestError; or a fault of the server, of which the caller
            learns the exception's class and nothing else.

    Returns:
        The status to send.
    """
    if isinstance(error, CallError):
        return error
    if not isinstance(error, RequestError):
        name = type(error).__name__
        logger.error("a call failed: %s", name)
        error = RequestError(Reason.INTERNAL, f"the server failed ({name})")
    return CallError(error.code, error.message, encoded_status(error), error.pushback_ms)
