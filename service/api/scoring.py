"""Between the wire and the core: the messages of ScoringService.

Only this module and those beside it named ``convert_…`` read or write protobuf messages of the contract.

``METHODS`` is the contract as the fronts see it: for every path, how request bytes become a part and scores become
reply bytes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from tidemark.v1 import scoring_pb2

from feature_store.bundles.bundle import ECONOMICS
from feature_store.definitions import MAX_ID_BYTES
from feature_store.state.events import text_fault
from service.api import score_wire as wire
from service.api.explanations import encoded_by_offer, max_reasons
from service.api.status import encoded_status
from service.errors import Reason, RequestError
from service.scoring.types import ScoreRequest, Scores

SERVICE: Final = "tidemark.v1.ScoringService"
MAX_BATCH: Final = 1000
SURELY_SHORT: Final = MAX_ID_BYTES // 4
"""Characters that cannot be more than MAX_ID_BYTES in UTF-8."""
MAX_NANOS: Final = 999_999_999
MAX_DURATION_S: Final = 315_576_000_000
"""About 10,000 years, the bound that google.protobuf.Duration sets itself."""


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
    """A ScoreCustomerRequest."""
    request = parsed(scoring_pb2.ScoreCustomerRequest, data)
    customer_id = request.customer_id
    surely_good = 0 < len(customer_id) <= SURELY_SHORT and customer_id.isprintable()
    if not surely_good and (error := id_error(customer_id, "customer_id")):
        raise error
    return ScoreRequest(
        [customer_id],
        _economics(request),
        _max_age(request),
        allow_stale_s=_allow_stale(request),
        max_reasons=max_reasons(request, 1),
    )


def decode_batch(data: bytes) -> ScoreRequest:
    """A BatchScoreCustomersRequest."""
    request = parsed(scoring_pb2.BatchScoreCustomersRequest, data)
    if (count := len(request.customer_ids)) > MAX_BATCH:
        message = f"{count} customers are too many for one call: send at most {MAX_BATCH}"
        raise RequestError(Reason.TOO_MANY_CUSTOMERS, message, "customer_ids")
    ids = list(request.customer_ids)
    refused = {}
    if not (all(ids) and max(map(len, ids), default=0) <= SURELY_SHORT and all(map(str.isprintable, ids))):
        for at, customer_id in enumerate(ids):
            if error := id_error(customer_id, "customer_ids"):
                refused[at] = error
                ids[at] = ""
    explain = max_reasons(request, count)
    return ScoreRequest(ids, _economics(request), _max_age(request), refused, _allow_stale(request), explain)


def parsed(kind: Any, data: bytes) -> Any:
    """The message of a request; RequestError where the bytes are none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        message = f"the request is not a {kind.DESCRIPTOR.full_name}: build it from the published proto files"
        raise RequestError(Reason.REQUEST_MALFORMED, message) from error


def id_error(customer_id: str, field: str) -> RequestError | None:
    """What is wrong with an id that came in ``field``; the message never repeats the id. None for a good id."""
    if (problem := text_fault(customer_id, MAX_ID_BYTES)) is None:
        return None
    message = f"the customer id {problem}: send 1 to {MAX_ID_BYTES} bytes of printable text"
    return RequestError(Reason.CUSTOMER_ID_INVALID, message, field)


def _max_age(request: Any) -> float | None:
    if not request.HasField("max_feature_age"):
        return None
    return _seconds(request.max_feature_age, "max_feature_age", Reason.MAX_FEATURE_AGE_INVALID)


def _allow_stale(request: Any) -> float | None:
    if not request.HasField("allow_stale"):
        return None
    return _seconds(request.allow_stale, "allow_stale", Reason.ALLOW_STALE_INVALID)


def _seconds(duration: Duration, name: str, reason: Reason) -> float:
    if not (0 <= duration.seconds <= MAX_DURATION_S and 0 <= duration.nanos <= MAX_NANOS):
        raise RequestError(reason, f"{name} is negative or out of range: send a duration of zero or more", name)
    return duration.seconds + duration.nanos / 1e9


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
    """A ScoreCustomerResponse."""
    if scores.errors:
        raise scores.errors[0]
    explanations = None if scores.explanations is None else encoded_by_offer(scores.explanations[0])
    return wire.score(request.customer_ids[0], scores, 0, _version(scores.model_version), explanations)


def encode_batch(request: ScoreRequest, scores: Scores) -> bytes:
    """A BatchScoreCustomersResponse."""
    ids = request.customer_ids
    if not ids:
        return b""
    version = _version(scores.model_version) if scores.versions is None else [*map(_version, scores.versions)]
    results = wire.results(ids, scores, version)
    for at, explanations in (scores.explanations or {}).items():
        row_version = version if isinstance(version, bytes) else version[at]
        score = wire.score(ids[at], scores, at, row_version, encoded_by_offer(explanations))
        results[at] = wire.long_field(1, wire.long_field(1, score))
    encoded: dict[RequestError, bytes] = {}  # customers with the same fault share one error
    for at, error in scores.errors.items():
        if (result := encoded.get(error)) is None:
            field = "customer_ids" if error.field == "customer_id" else error.field
            result = encoded[error] = wire.field(1, wire.field(2, encoded_status(error, field)))
        results[at] = result
    return b"".join(results)


@lru_cache(maxsize=16)
def _version(model_version: str) -> bytes:
    return wire.field(6, model_version.encode())


METHODS: Final[Mapping[str, Method]] = {
    f"/{SERVICE}/ScoreCustomer": Method(decode_score, encode_score, single=True),
    f"/{SERVICE}/BatchScoreCustomers": Method(decode_batch, encode_batch),
}
