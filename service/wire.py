"""Scores straight to bytes: the replies of the contract, without building a message object for every customer.

Building messages took a third of a batch's CPU (256 customers: 1.1 ms, this way 0.25 ms). A test holds
these bytes against the generated messages. Field numbers are those of ``scoring.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

# churn (2) and propensity (3), each an Alert of 20 bytes (probability, threshold, alert), and expected_spend (4).
_FIGURES: Final = struct.Struct("<2s cdcdc? 2s cdcdc? cd")
_VARINTS: Final = [bytes([n]) if n < 0x80 else bytes([n & 0x7F | 0x80, n >> 7]) for n in range(1 << 14)]  # noqa: PLR2004


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field (of less than 16 KiB, number below 16)."""
    return b"%c%b%b" % (number << 3 | 2, _VARINTS[len(data)], data)


def score(customer_id: str, row: Sequence[float], version: bytes) -> bytes:
    """A ScoreCustomerResponse; ``version`` is its encoded model_version field."""
    churn, propensity, spend, churn_threshold, propensity_threshold, as_of = row
    figures = _FIGURES.pack(
        b"\x12\x14",
        *(b"\x09", churn, b"\x11", churn_threshold, b"\x18", churn >= churn_threshold),
        b"\x1a\x14",
        *(b"\x09", propensity, b"\x11", propensity_threshold, b"\x18", propensity >= propensity_threshold),
        *(b"\x21", spend),
    )
    name = customer_id.encode()
    return b"\n%b%b%b%b%b" % (_VARINTS[len(name)], name, figures, _as_of(as_of), version)


def result(number: int, data: bytes) -> bytes:
    """One of a batch's results: a score (number 1) or a status (number 2)."""
    return field(1, field(number, data))


@lru_cache(maxsize=1024)
def _as_of(seconds: float) -> bytes:
    """The features_as_of field. Customers loaded together share it."""
    whole, fraction = divmod(seconds, 1)
    return field(5, Timestamp(seconds=int(whole), nanos=int(fraction * 1e9)).SerializeToString())
