"""Between the wire and the core: the messages of CustomerService."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import customers_pb2, scoring_pb2

from feature_store.definitions import Feature
from feature_store.online.customer_store import Customer
from feature_store.state.layout import DAY_S
from feature_store.state.profile import Interest, Record
from service.api.scoring import id_error, parsed
from service.errors import Reason, RequestError

SERVICE: Final = "tidemark.v1.CustomerService"


def decode_get(data: bytes) -> str:
    """The id of a GetCustomerRequest."""
    return _checked(parsed(customers_pb2.GetCustomerRequest, data), "customer_id")


def decode_delete(data: bytes) -> str:
    """The id of a DeleteCustomerRequest."""
    return _checked(parsed(customers_pb2.DeleteCustomerRequest, data), "customer_id")


def decode_merge(data: bytes) -> tuple[str, str]:
    """``from`` and ``into`` of a MergeCustomersRequest."""
    request = parsed(customers_pb2.MergeCustomersRequest, data)
    return _checked(request, "from"), _checked(request, "into")


def decode_consent(data: bytes) -> tuple[str, bool | None, bool | None]:
    """Id, scoring and automated_response of a SetConsentRequest; None for what is not set."""
    request = parsed(customers_pb2.SetConsentRequest, data)
    customer_id = _checked(request, "customer_id")
    scoring, response = (
        getattr(request, name) if request.HasField(name) else None for name in ("scoring", "automated_response")
    )
    if scoring is None and response is None:
        message = "neither scoring nor automated_response is set: set one to true or false"
        raise RequestError(Reason.CONSENT_MISSING, message, "scoring")
    return customer_id, scoring, response


def _checked(request: Any, name: str) -> str:
    customer_id = str(getattr(request, name))
    if error := id_error(customer_id, name):
        raise error
    return customer_id


def encode_customer(customer: Customer, interests: Sequence[Interest], now: float) -> bytes:
    """A GetCustomerResponse as of ``now`` (unix seconds), with these interests."""
    states, record, layout = customer.states, customer.record, customer.layout
    values = layout.advance(states.slots[0], now - states.as_of[0]) if states.found[0] else layout.identity
    seen = [(f, now + value) for f, value in zip(layout.features, values, strict=True) if math.isfinite(value)]
    first = min(record.first_seen, *(t for f, t in seen if f.aggregate == "earliest"), math.inf)
    last = max(record.last_seen, *(t for f, t in seen if f.aggregate == "latest"), -math.inf)
    reply = customers_pb2.GetCustomerResponse(
        customer_id=customer.customer_id,
        features=[_feature(f, float(v)) for f, v in zip(layout.features, values, strict=True)],
        first_seen=_timestamp(first),
        last_seen=_timestamp(last),
        channels=[
            customers_pb2.Channel(channel=name, events=count)
            for name, count in sorted(record.channels.items(), key=lambda item: (-item[1], item[0]))
        ],
        interests=[
            scoring_pb2.Interest(item_id=i.item_id, views=i.views, last_viewed=_timestamp(i.at)) for i in interests
        ],
        consent=_consent(record),
        aliases=record.aliases,
    )
    return bytes(reply.SerializeToString())


def encode_merged(customer_id: str) -> bytes:
    """A MergeCustomersResponse."""
    return bytes(customers_pb2.MergeCustomersResponse(customer_id=customer_id).SerializeToString())


def encode_consent(record: Record) -> bytes:
    """A SetConsentResponse."""
    return bytes(customers_pb2.SetConsentResponse(consent=_consent(record)).SerializeToString())


def _consent(record: Record) -> customers_pb2.Consent:
    return customers_pb2.Consent(scoring=record.scoring, automated_response=record.automated_response)


def _feature(feature: Feature, value: float) -> customers_pb2.FeatureValue:
    """Times as the days since then; no value for what is unknown or never happened."""
    if feature.aggregate in ("latest", "earliest"):
        value = -value / DAY_S
    return customers_pb2.FeatureValue(name=feature.name, value=value if math.isfinite(value) else None)


def _timestamp(seconds: float) -> Timestamp | None:
    if not math.isfinite(seconds):
        return None
    whole, fraction = divmod(seconds, 1)
    return Timestamp(seconds=int(whole), nanos=int(fraction * 1e9))
