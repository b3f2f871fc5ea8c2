"""gRPC's framing: whatever the cut, compression or size, a message comes out whole, or the call ends with a status."""

from __future__ import annotations

import base64
import gzip
import math
import tracemalloc
import zlib
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Code, Reason, RequestError
from service.transport.call_error import CallError, call_error
from service.transport.lean.framing import (
    GZIP,
    IDENTITY,
    PREFIX,
    check_encoding,
    compressed_frame,
    frame,
    next_message,
    only_message,
    timeout_s,
)

MOST = 100_000
DEFLATE = b"deflate"
TWO_MEMBERS = gzip.compress(b"a", mtime=0) * 2


def packed(data: bytes, encoding: bytes) -> bytes:
    message = gzip.compress(data, mtime=0) if encoding == GZIP else zlib.compress(data)
    return b"\1%b%b" % (len(message).to_bytes(4), message)


def code(body: bytes, encoding: bytes = IDENTITY, most: int = MOST) -> Code:
    with pytest.raises((CallError, RequestError)) as caught:
        only_message(body, encoding, most)
    return call_error(caught.value).code


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_messages_come_out_in_order_wherever_the_body_was_cut(messages: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(frame, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    body, result = bytearray(), []
    for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        body += whole[start:stop]
        while (taken := next_message(body, IDENTITY, MOST)) is not None:
            result.append(taken[0])
            del body[: taken[1]]
    assert result == messages
    assert not body


@given(st.binary(max_size=5000), st.binary(max_size=20))
def test_what_we_compress_comes_out_as_it_went_in(message: bytes, more: bytes) -> None:
    body = compressed_frame(message)
    assert next_message(body + more, GZIP, MOST) == (message, len(body))
    assert gzip.decompress(body[PREFIX:]) == message


@pytest.mark.parametrize("encoding", [GZIP, DEFLATE])
@given(message=st.binary(max_size=5000))
def test_what_others_compress_comes_out_as_it_went_in(encoding: bytes, message: bytes) -> None:
    assert only_message(packed(message, encoding), encoding, MOST) == message


@given(st.binary(max_size=200), st.sampled_from([IDENTITY, GZIP, DEFLATE, b"br", b""]))
def test_any_bytes_are_a_message_within_bounds_or_an_error_with_a_status(body: bytes, encoding: bytes) -> None:
    try:
        result = next_message(body, encoding, 100)
    except (CallError, RequestError) as error:
        assert error.code in (Code.INTERNAL, Code.RESOURCE_EXHAUSTED)  # noqa: PT017  # either is right
    else:
        assert result is None or (len(result[0]) <= 100 and PREFIX <= result[1] <= len(body))


@given(st.binary(min_size=1, max_size=2000), st.sampled_from([GZIP, DEFLATE]), st.data())
def test_compressed_data_that_was_damaged_or_cut_is_an_error_or_the_same(
    message: bytes, encoding: bytes, data: st.DataObject
) -> None:
    good = bytearray(packed(message, encoding)[PREFIX:])
    if data.draw(st.booleans()):
        del good[data.draw(st.integers(0, len(good) - 1)) :]
    else:
        good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    body = b"\1%b%b" % (len(good).to_bytes(4), bytes(good))
    try:
        assert only_message(body, encoding, MOST) == message  # a byte of gzip's header that says nothing
    except (CallError, RequestError) as error:
        assert error.code in (Code.INTERNAL, Code.RESOURCE_EXHAUSTED)  # noqa: PT017  # either is right


@pytest.mark.parametrize("size", [MOST - 1, MOST, MOST + 1])
@pytest.mark.parametrize("encoding", [IDENTITY, GZIP, DEFLATE])
def test_the_bound_is_the_same_before_and_after_decompression(encoding: bytes, size: int) -> None:
    body = frame(bytes(size)) if encoding == IDENTITY else packed(bytes(size), encoding)
    if size > MOST:
        assert code(body, encoding) is Code.RESOURCE_EXHAUSTED
    else:
        assert only_message(body, encoding, MOST) == bytes(size)


def test_a_bomb_takes_no_more_memory_than_a_message_may() -> None:
    bomb = packed(bytes(200_000_000), GZIP)
    tracemalloc.start()
    try:
        assert code(bomb, GZIP, 1_000_000) is Code.RESOURCE_EXHAUSTED
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_too_large_is_too_large_before_it_has_come() -> None:
    with pytest.raises(RequestError, match="4294967295") as caught:
        next_message(b"\0\xff\xff\xff\xff", IDENTITY, MOST)
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
    assert dict(call_error(caught.value).trailers())[b"grpc-retry-pushback-ms"] == b"-1"


@pytest.mark.parametrize(
    ("body", "encoding", "expected"),
    [
        (b"", IDENTITY, Code.UNIMPLEMENTED),
        (b"\0\0", IDENTITY, Code.INTERNAL),
        (frame(b"abc")[:-1], IDENTITY, Code.INTERNAL),
        (frame(b"a") + frame(b"b"), IDENTITY, Code.UNIMPLEMENTED),
        (frame(b"a") + b"\0", IDENTITY, Code.UNIMPLEMENTED),
        (b"\2" + frame(b"a")[1:], GZIP, Code.INTERNAL),
        (packed(b"a", GZIP), IDENTITY, Code.INTERNAL),
        (packed(b"a", GZIP), DEFLATE, Code.INTERNAL),
        (packed(b"a", DEFLATE), GZIP, Code.INTERNAL),
        (b"\1\0\0\0\0", GZIP, Code.INTERNAL),
        (b"\1\0\0\0\x2a" + TWO_MEMBERS, GZIP, Code.INTERNAL),
    ],
)
def test_a_body_that_is_not_exactly_one_message_is_refused(body: bytes, encoding: bytes, expected: Code) -> None:
    assert code(body, encoding) is expected


def test_known_compressions_pass_and_others_are_unimplemented() -> None:
    for encoding in (IDENTITY, GZIP, DEFLATE):
        check_encoding(encoding)
    for encoding in (b"br", b"", b"GZIP", b"gzip, deflate"):
        with pytest.raises(CallError) as caught:
            check_encoding(encoding)
        assert caught.value.code is Code.UNIMPLEMENTED


@given(st.integers(0, 99_999_999), st.sampled_from("HMSmun"))
def test_a_timeout_is_its_number_times_its_unit(number: int, unit: str) -> None:
    seconds = {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}[unit]
    assert timeout_s(f"{number}{unit}".encode()) == pytest.approx(number * seconds, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    "value",
    [b"", b"S", b"5", b"5s", b"5 S", b" 5S", b"-5S", b"+5S", b"5.0S", b"1e3S", b"0x5S", b"\xb2S", b"12345678901S"],
)
def test_a_malformed_timeout_is_an_error_with_a_status(value: bytes) -> None:
    with pytest.raises(CallError) as caught:
        timeout_s(value)
    assert caught.value.code is Code.INTERNAL


def test_without_a_timeout_there_is_no_end() -> None:
    assert timeout_s(None) == math.inf


@given(st.text(max_size=200), st.binary(max_size=100))
def test_messages_and_details_come_through_headers_as_clients_read_them(message: str, details: bytes) -> None:
    headers = dict(CallError(Code.NOT_FOUND, message, details).trailers())
    assert headers[b"grpc-status"] == b"5"
    text = headers[b"grpc-message"].decode("ascii")
    assert text.isprintable()
    assert unquote(text) == message
    result = headers.get(b"grpc-status-details-bin", b"")
    assert b"=" not in result
    assert base64.b64decode(result + b"=" * (-len(result) % 4), validate=True) == details


def test_when_to_come_back_is_a_trailer_of_its_own() -> None:
    headers = dict(CallError(Code.RESOURCE_EXHAUSTED, "", b"", 120).trailers())
    assert headers[b"grpc-retry-pushback-ms"] == b"120"
    assert b"grpc-retry-pushback-ms" not in dict(CallError(Code.RESOURCE_EXHAUSTED, "").trailers())


def test_only_what_must_be_is_encoded_in_a_message() -> None:
    headers = dict(CallError(Code.INTERNAL, "50 % of ~ is\nÄ").trailers())
    assert headers[b"grpc-message"] == b"50 %25 of ~ is%0A%C3%84"
