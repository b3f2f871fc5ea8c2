"""gRPC's framing on HTTP/2: the prefix of messages, their compression, and the deadline in a header."""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import Final

from service.errors import Code, message_too_large
from service.transport.call_error import CallError
from service.transport.lean.http2 import Headers

PREFIX: Final = 5
"""Bytes before each message: one flag for compression, and its length in four bytes."""
IDENTITY: Final = b"identity"
GZIP: Final = b"gzip"
WINDOW_BITS: Final = {GZIP: 31, b"deflate": 15}
"""The wbits argument of zlib by grpc-encoding."""
MIN_COMPRESSED_BYTES: Final = 1024
"""Replies of at least this size are compressed, if the client compresses its requests too."""
UNITS: Final = {ord("H"): 3600.0, ord("M"): 60.0, ord("S"): 1.0, ord("m"): 1e-3, ord("u"): 1e-6, ord("n"): 1e-9}
MAX_DIGITS: Final = 10

HEAD: Final[Headers] = [(b"content-type", b"application/grpc")]
GZIP_HEAD: Final[Headers] = [*HEAD, (b"grpc-encoding", GZIP)]
OK: Final[Headers] = [(b"grpc-status", b"0")]


def frame(message: bytes) -> bytes:
    """A message with its prefix."""
    return b"\0%b%b" % (len(message).to_bytes(4), message)


def compressed_frame(message: bytes) -> bytes:
    """A message with its prefix, compressed by gzip at its fastest."""
    compressor = zlib.compressobj(1, wbits=WINDOW_BITS[GZIP])
    packed = compressor.compress(message) + compressor.flush()
    return b"\1%b%b" % (len(packed).to_bytes(4), packed)


def next_message(body: bytes | bytearray, encoding: bytes, max_bytes: int) -> tuple[bytes, int] | None:
    """The first message of a body and the bytes it took; None where it is not whole yet.

    RequestError (MESSAGE_TOO_LARGE) where it is larger than ``max_bytes``, compressed or not; CallError where it
    cannot be decompressed.
    """
    if (size := announced_size(body, max_bytes)) is None or len(body) < PREFIX + size:
        return None
    message = bytes(body[PREFIX : PREFIX + size])
    if body[0]:
        message = _decompressed(message, encoding if body[0] == 1 else b"", max_bytes)
    return message, PREFIX + size


def announced_size(body: bytes | bytearray, max_bytes: int) -> int | None:
    """The size of the first message of a body, None before it has arrived; CallError if it is too large."""
    if len(body) < PREFIX:
        return None
    size = int.from_bytes(body[1:PREFIX])
    if size > max_bytes:
        raise message_too_large(str(size), max_bytes)
    return size


def only_message(body: bytes | bytearray, encoding: bytes, max_bytes: int) -> bytes:
    """The message of a body that has ended; CallError if it is not exactly one message."""
    if len(body) >= PREFIX and not body[0] and int.from_bytes(body[1:PREFIX]) == len(body) - PREFIX <= max_bytes:
        return bytes(body[PREFIX:])  # as nearly all requests are
    if (first := next_message(body, encoding, max_bytes)) is None:
        if body:
            raise CallError(Code.INTERNAL, "the request ended within a message")
        raise CallError(Code.UNIMPLEMENTED, "the request has no message: this method takes exactly one")
    message, size = first
    if size != len(body):
        raise CallError(Code.UNIMPLEMENTED, "the request goes on after its message: this method takes exactly one")
    return message


def _decompressed(message: bytes, encoding: bytes, max_bytes: int) -> bytes:
    if encoding not in WINDOW_BITS:
        raise CallError(Code.INTERNAL, "a message is marked as compressed, and grpc-encoding does not say how")
    unpack = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        unpacked = unpack.decompress(message, max_bytes + 1)
    except zlib.error:
        unpacked = b""
    if len(unpacked) > max_bytes:
        whole = int.from_bytes(message[-4:], "little") if encoding == GZIP else 0  # gzip states it at the end
        raise message_too_large(str(max(whole, max_bytes + 1)), max_bytes)
    if not unpack.eof or unpack.unused_data:
        name = encoding.decode()
        raise CallError(Code.INTERNAL, f"Unexpected error decompressing data for algorithm {name}")
    return unpacked


def check_encoding(encoding: bytes) -> None:
    """CallError for an unknown compression."""
    if encoding != IDENTITY and encoding not in WINDOW_BITS:
        raise CallError(Code.UNIMPLEMENTED, "grpc-encoding is unknown: use identity, deflate or gzip")


@lru_cache(maxsize=1024)
def timeout_s(value: bytes | None) -> float:
    """Seconds of a grpc-timeout header, infinite without one; CallError if it is malformed."""
    if value is None:
        return math.inf
    digits, unit = value[:-1], UNITS.get(value[-1] if value else 0)
    if unit is None or not digits.isdigit() or len(digits) > MAX_DIGITS:
        raise CallError(Code.INTERNAL, "Error parsing 'grpc-timeout' metadata")
    return int(digits) * unit
