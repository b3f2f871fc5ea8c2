"""Encodes scores as bytes, without building a message object for every customer.

``make bench`` shows what that saves (``encode_256_ratio``), and tests hold these bytes against the generated messages.
Field numbers are those of ``scoring.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from feature_store.state.profile import Interest
from service.api.encoding import VARINTS, field, long_field, varint
from service.api.messages import timestamp
from service.scoring.types import OFFER_COLUMNS, Scores

# churn (2) and propensity (3), each an Alert of 35 bytes, and expected_spend (4). What is false is written out as well,
# so that every customer's figures have the same length.
_FIGURES: Final = struct.Struct("<2s cdcdc?c?c?c?cd 2s cdcdc?c?c?c?cd cd")
_ALERT: Final = np.dtype(
    {
        "names": list(OFFER_COLUMNS.names or ()),
        "formats": ["<f8", "<f8", "?", "?", "?", "?", "<f8"],
        "offsets": [1, 10, 19, 21, 23, 25, 27],
        "itemsize": 35,
    }
)
_CHURN_AT: Final = 2
_PROPENSITY_AT: Final = 39
_FIGURES_TABLE: Final = np.dtype(
    {
        "names": ["churn", "propensity", "expected_spend"],
        "formats": [_ALERT, _ALERT, "<f8"],
        "offsets": [_CHURN_AT, _PROPENSITY_AT, 75],
        "itemsize": _FIGURES.size,
    }
)
_STALE: Final = b"\x40\x01"
"""The field stale (8) with the value true."""
_SPEND_BYTES: Final = 9


def score(
    customer_id: str, scores: Scores, at: int, version: bytes, explanations: Mapping[str, bytes] | None = None
) -> bytes:
    """An encoded Score: the one at position ``at`` of ``scores``.

    Args:
        customer_id: The customer's id as the caller wrote it.
        scores: The scores of the call.
        at: The position of the customer.
        version: The encoded model_version field.
        explanations: Encoded explanations by offer, if the call asked for them.
    """
    churn, propensity, spend, as_of, stale = scores.rows[at].item()
    figures = _pack(churn, propensity, spend)
    if explanations is not None:
        figures = _explained(figures, explanations)
    parts = [field(1, customer_id.encode()), figures, _as_of(as_of), version]
    if (top := scores.top_interests.get(at)) is not None:
        parts.append(_top(top))
    if stale:
        parts.append(_STALE)
    return b"".join(parts)


def results(customer_ids: Sequence[str], scores: Scores, version: bytes | Sequence[bytes]) -> list[bytes]:
    """The fields results (1) of a batch response: like :func:`score`, for all customers of a call.

    Args:
        customer_ids: The customers' ids as the caller wrote them.
        scores: The scores of the call.
        version: The encoded model_version field: one for all rows, or one for each row.
    """
    rows = scores.rows
    blank = bytearray(_BLANK * len(rows))
    block = np.frombuffer(blank, dtype=_FIGURES_TABLE)
    for name in _FIGURES_TABLE.fields or ():
        block[name] = rows[name]
    as_of = rows["features_as_of"]
    # Customers that were loaded together share their time.
    if not isinstance(version, bytes):
        tails = [_as_of(t) + own for t, own in zip(as_of.tolist(), version, strict=True)]
    elif (as_of == as_of[0]).all():
        tails = [_as_of(float(as_of[0])) + version] * len(rows)
    else:
        tails = [_as_of(t) + version for t in as_of.tolist()]
    for at, top in scores.top_interests.items():
        tails[at] += _top(top)
    for at in np.flatnonzero(rows["stale"]).tolist():
        tails[at] += _STALE
    figures, size = bytes(blank), _FIGURES.size
    names = (customer_id.encode() for customer_id in customer_ids)
    encoded = []
    for customer_id, tail, at in zip(names, tails, range(0, len(figures), size), strict=True):
        result, score = _heads(len(customer_id), len(tail))
        encoded.append(b"%b%b%b%b%b%b" % (result, customer_id, score, customer_id, figures[at : at + size], tail))
    return encoded


def response(score: bytes) -> bytes:
    """An encoded ScoreCustomerResponse with this encoded score (1)."""
    return long_field(1, score)


def score_result(customer_id: str, score: bytes) -> bytes:
    """The field results (1) of a batch response, for an encoded score (2)."""
    return long_field(1, field(1, customer_id.encode()) + long_field(2, score))


def status_field(status: bytes) -> bytes:
    """The field status (3) of a CustomerResult."""
    return field(3, status)


def status_result(customer_id: str, status: bytes) -> bytes:
    """The field results (1) of a batch response, for an encoded status field; an empty id is left out."""
    return field(1, (field(1, customer_id.encode()) if customer_id else b"") + status)


_Alert = tuple[float, float, bool, bool, bool, bool, float]
"""A row of OFFER_COLUMNS."""


def _pack(churn: _Alert, propensity: _Alert, spend: float) -> bytes:
    a, b = churn, propensity
    return _FIGURES.pack(
        *(
            b"\x12\x23",
            b"\x09",
            a[0],
            b"\x11",
            a[1],
            b"\x18",
            a[2],
            b"\x20",
            a[3],
            b"\x28",
            a[4],
            b"\x30",
            a[5],
            b"\x41",
            a[6],
        ),
        *(
            b"\x1a\x23",
            b"\x09",
            b[0],
            b"\x11",
            b[1],
            b"\x18",
            b[2],
            b"\x20",
            b[3],
            b"\x28",
            b[4],
            b"\x30",
            b[5],
            b"\x41",
            b[6],
        ),
        *(b"\x21", spend),
    )


def _explained(figures: bytes, why: Mapping[str, bytes]) -> bytes:
    """Figures whose alerts have their explanations (7). The order of fields does not matter to readers."""
    alerts = []
    for number, offer, start in ((2, "churn", _CHURN_AT), (3, "propensity", _PROPENSITY_AT)):
        alert = figures[start : start + _ALERT.itemsize]
        alerts.append(long_field(number, alert + long_field(7, why[offer]) if offer in why else alert))
    return b"".join([*alerts, figures[-_SPEND_BYTES:]])


_BLANK: Final = _pack((0, 0, False, False, False, False, 0), (0, 0, False, False, False, False, 0), 0)


def _top(top: Interest) -> bytes:
    """The top_interest field."""
    last_view_time = timestamp(top.at).SerializeToString()
    return field(7, b"%b\x10%b%b" % (field(1, top.item_id.encode()), varint(top.views), field(3, last_view_time)))


@lru_cache(maxsize=4096)
def _heads(name: int, tail: int) -> tuple[bytes, bytes]:
    """The tags and lengths before the two places of a customer id in a result.

    Args:
        name: Bytes of the customer id.
        tail: Bytes of the score after its figures.

    Returns:
        results (1) and CustomerResult.customer_id (1); CustomerResult.score (2) and Score.customer_id (1).
    """
    customer_id = b"\n" + VARINTS[name]
    size = len(customer_id) + name
    score = b"\x12%b%b" % (VARINTS[size + _FIGURES.size + tail], customer_id)
    return b"\n%b%b" % (VARINTS[size + len(score) + name + _FIGURES.size + tail], customer_id), score


@lru_cache(maxsize=1024)
def _as_of(seconds: float) -> bytes:
    """The feature_time field."""
    return field(5, timestamp(seconds).SerializeToString())
