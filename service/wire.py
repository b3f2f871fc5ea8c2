"""Scores straight to bytes: the replies of the contract, without building a message object for every customer.

``make bench`` shows what that saves (``encode_256_ratio``), and tests hold these bytes against the generated messages.
Field numbers are those of ``scoring.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from typing import Final

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from feature_store.state import Floats

# churn (2) and propensity (3), each an Alert of 20 bytes (probability, threshold, alert), and expected_spend (4).
_FIGURES: Final = struct.Struct("<2s cdcdc? 2s cdcdc? cd")
_FIGURES_TABLE: Final = np.dtype(
    {
        "names": ["churn", "churn_threshold", "churn_alert", "propensity", "threshold", "alert", "spend"],
        "formats": ["<f8", "<f8", "?", "<f8", "<f8", "?", "<f8"],
        "offsets": [3, 12, 21, 25, 34, 43, 45],
        "itemsize": _FIGURES.size,
    }
)
_VARINTS: Final = [bytes([n]) if n < 0x80 else bytes([n & 0x7F | 0x80, n >> 7]) for n in range(1 << 14)]  # noqa: PLR2004


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field (of less than 16 KiB, number below 16)."""
    return b"%c%b%b" % (number << 3 | 2, _VARINTS[len(data)], data)


def score(customer_id: str, row: Sequence[float], version: bytes) -> bytes:
    """A ScoreCustomerResponse of one row of Scores; ``version`` is its encoded model_version field."""
    churn, propensity, spend, churn_threshold, propensity_threshold, as_of = row
    figures = _pack(churn, churn_threshold, propensity, propensity_threshold, spend)
    return b"%b%b%b%b" % (field(1, customer_id.encode()), figures, _as_of(as_of), version)


def results(customer_ids: Sequence[str], table: Floats, version: bytes) -> list[bytes]:
    """The CustomerResult fields of a batch response, for the rows of Scores: like :func:`score`, for many at once."""
    blank = bytearray(_BLANK * len(table))
    block = np.frombuffer(blank, dtype=_FIGURES_TABLE)
    for column, name in enumerate(("churn", "propensity", "spend", "churn_threshold", "threshold")):
        block[name] = table[:, column]
    block["churn_alert"] = table[:, 0] >= table[:, 3]
    block["alert"] = table[:, 1] >= table[:, 4]
    figures, size, as_of = bytes(blank), _FIGURES.size, table[:, 5]
    # Customers that were loaded together share their time.
    same = bool((as_of == as_of[0]).all())
    tails = repeat(_as_of(float(as_of[0])) + version) if same else (_as_of(t) + version for t in as_of.tolist())
    names = (customer_id.encode() for customer_id in customer_ids)
    return [
        b"%b%b%b%b" % (_head(len(name), len(tail)), name, figures[at : at + size], tail)
        for name, tail, at in zip(names, tails, range(0, len(figures), size), strict=False)
    ]


def _pack(churn: float, churn_threshold: float, propensity: float, threshold: float, spend: float) -> bytes:
    return _FIGURES.pack(
        b"\x12\x14",
        *(b"\x09", churn, b"\x11", churn_threshold, b"\x18", churn >= churn_threshold),
        b"\x1a\x14",
        *(b"\x09", propensity, b"\x11", threshold, b"\x18", propensity >= threshold),
        *(b"\x21", spend),
    )


_BLANK: Final = _pack(0, 0, 0, 0, 0)


@lru_cache(maxsize=4096)
def _head(name: int, tail: int) -> bytes:
    """What stands before the id of so many bytes: results (1), score (1) and customer_id (1) with their lengths."""
    customer_id = b"\n" + _VARINTS[name]
    score = b"\n" + _VARINTS[len(customer_id) + name + _FIGURES.size + tail]
    return b"\n%b%b%b" % (_VARINTS[len(score) + len(customer_id) + name + _FIGURES.size + tail], score, customer_id)


@lru_cache(maxsize=1024)
def _as_of(seconds: float) -> bytes:
    """The features_as_of field."""
    whole, fraction = divmod(seconds, 1)
    return field(5, Timestamp(seconds=int(whole), nanos=int(fraction * 1e9)).SerializeToString())
