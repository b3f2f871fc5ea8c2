"""ScoringService: its messages.

``METHODS`` is the service as the transports see it: for each path, how an encoded request becomes a ScoreRequest, and
how Scores become an encoded response.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from tidemark.v1 import scoring_pb2

from feature_store.bundles.bundle import ECONOMICS
from feature_store.definitions import MAX_ID_BYTES
from service.api import score_wire as wire
from service.api.encoding import field
from service.api.explanations import encoded_by_offer, max_reasons
from service.api.messages import duration_s, id_error, parsed
from service.api.status import encoded_status
from service.errors import Reason, RequestError
from service.scoring.types import ScoreRequest, Scores
from tidemark.limits import MAX_CUSTOMERS_PER_CALL

SERVICE: Final = "tidemark.v1.ScoringService"
_SHORT: Final = MAX_ID_BYTES // 4
"""Characters that cannot be more than MAX_ID_BYTES in UTF-8."""


ENCODED_ROWS: Final = 256
"""Customers that are encoded without yielding the event loop: about half a millisecond, two at most."""
ENCODED_EXPLAINED_ROWS: Final = 8
"""The same for customers with explanations, which take a hundred times as long to encode."""


@dataclass(frozen=True)
class Method:
    """A method of ScoringService.

    Attributes:
        decode: Decodes a request; raises RequestError for a bad one.
        encode: Encodes a reply; raises RequestError if the call has failed as a whole. The encoded replies for slices
            of a request, one behind the other, are the encoded reply, since a reply is a list of results.
        single: Whether every request is for one customer.
    """

    decode: Callable[[bytes], ScoreRequest]
    encode: Callable[[ScoreRequest, Scores], bytes]
    single: bool = False

    def encodes_at_once(self, scores: Scores) -> bool:
        """Whether a reply is small enough to be encoded without yielding the event loop."""
        return self.single or len(scores.rows) <= _encoded_rows(scores)

    async def encode_in_slices(self, request: ScoreRequest, scores: Scores) -> bytes:
        """Encode a reply like ``encode``, and yield the event loop between slices of its customers."""
        pieces, size, rows = [], len(scores.rows), _encoded_rows(scores)
        for start in range(0, size, rows):
            if start:
                await asyncio.sleep(0)
            stop = min(start + rows, size)
            pieces.append(self.encode(request.slice(start, stop), scores.slice(start, stop)))
        return b"".join(pieces)


def _encoded_rows(scores: Scores) -> int:
    return ENCODED_ROWS if scores.explanations is None else ENCODED_EXPLAINED_ROWS


# --- requests -------------------------------------------------------------------------------------------------------


def decode_score(data: bytes) -> ScoreRequest:
    """The request in an encoded ScoreCustomerRequest."""
    request = parsed(scoring_pb2.ScoreCustomerRequest, data)
    customer_id = request.customer_id
    is_valid = 0 < len(customer_id) <= _SHORT and customer_id.isprintable()
    if not is_valid and (error := id_error(customer_id, "customer_id")):
        raise error
    return ScoreRequest(
        [customer_id],
        _economics(request),
        _max_age(request),
        allow_stale_s=_allow_stale(request),
        max_reasons=max_reasons(request, 1),
    )


def decode_batch(data: bytes) -> ScoreRequest:
    """The request in an encoded BatchScoreCustomersRequest. Ids that are invalid become empty strings."""
    request = parsed(scoring_pb2.BatchScoreCustomersRequest, data)
    if (count := len(request.customer_ids)) > MAX_CUSTOMERS_PER_CALL:
        message = f"{count} customers are too many for one call: send at most {MAX_CUSTOMERS_PER_CALL}"
        raise RequestError(Reason.TOO_MANY_CUSTOMERS, message, "customer_ids")
    ids = list(request.customer_ids)
    refused = {}
    if not (all(ids) and max(map(len, ids), default=0) <= _SHORT and all(map(str.isprintable, ids))):
        for at, customer_id in enumerate(ids):
            if error := id_error(customer_id, "customer_ids"):
                refused[at] = error
                ids[at] = ""
    explain = max_reasons(request, count)
    return ScoreRequest(ids, _economics(request), _max_age(request), refused, _allow_stale(request), explain)


def _max_age(request: Any) -> float | None:
    return _seconds(request, "max_feature_age", Reason.MAX_FEATURE_AGE_INVALID)


def _allow_stale(request: Any) -> float | None:
    return _seconds(request, "allow_stale", Reason.ALLOW_STALE_INVALID)


def _seconds(request: Any, field: str, reason: Reason) -> float | None:
    """A duration in seconds, None where it is not set."""
    if not request.HasField(field):
        return None
    if math.isnan(seconds := duration_s(getattr(request, field))):
        raise RequestError(reason, f"{field} is negative or out of range: send a duration of zero or more", field)
    return seconds


def _economics(request: Any) -> Mapping[int, float]:
    """The figures that the request sets, by column of the graph's input."""
    if not request.HasField("economics"):
        return {}
    figures: dict[int, float] = {}
    for column, name in enumerate(ECONOMICS):
        offer, _, figure = name.rpartition(".")
        holder = getattr(request.economics, offer) if offer else request.economics
        if holder.HasField(figure):
            figures[column] = _checked(f"economics.{name}", getattr(holder, figure))
    return figures


def _checked(field: str, figure: float) -> float:
    share = field.endswith(("rate", "margin"))
    if not math.isfinite(figure) or figure < 0 or (share and figure > 1):
        wanted = "a share from 0 to 1" if share else "a finite amount of zero or more"
        raise RequestError(Reason.ECONOMICS_INVALID, f"{field} is out of range: send {wanted}", field)
    return figure


# --- replies --------------------------------------------------------------------------------------------------------


def encode_score(request: ScoreRequest, scores: Scores) -> bytes:
    """An encoded ScoreCustomerResponse.

    Raises:
        RequestError: The customer has no score.
    """
    if scores.errors:
        raise scores.errors[0]
    explanations = None if scores.explanations is None else encoded_by_offer(scores.explanations[0])
    score = wire.score(request.customer_ids[0], scores, 0, _version(scores.model_version), explanations)
    return wire.response(score)


def encode_batch(request: ScoreRequest, scores: Scores) -> bytes:
    """An encoded BatchScoreCustomersResponse."""
    ids = request.customer_ids
    if not ids:
        return b""
    version = _version(scores.model_version) if scores.versions is None else [*map(_version, scores.versions)]
    results = wire.results(ids, scores, version)
    for at, explanations in (scores.explanations or {}).items():
        row_version = version if isinstance(version, bytes) else version[at]
        score = wire.score(ids[at], scores, at, row_version, encoded_by_offer(explanations))
        results[at] = wire.score_result(ids[at], score)
    encoded: dict[RequestError, bytes] = {}  # customers with the same fault share one error
    for at, error in scores.errors.items():
        if (status := encoded.get(error)) is None:
            field = "customer_ids" if error.field == "customer_id" else error.field
            status = encoded[error] = wire.status_field(encoded_status(error, field))
        results[at] = wire.status_result(ids[at], status)
    return b"".join(results)


@lru_cache(maxsize=16)
def _version(model_version: str) -> bytes:
    """The encoded field model_version of a Score."""
    return field(6, model_version.encode())


METHODS: Final[Mapping[str, Method]] = {
    f"/{SERVICE}/ScoreCustomer": Method(decode_score, encode_score, single=True),
    f"/{SERVICE}/BatchScoreCustomers": Method(decode_batch, encode_batch),
}
