"""CustomerService: its messages, and what its methods do."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from tidemark.v1 import customers_pb2, scoring_pb2

from feature_store.definitions import Feature, Interests
from feature_store.errors import NotInClusterError, StoreUnavailableError
from feature_store.online.customer_store import (
    ConflictError,
    Customer,
    CustomerStore,
    MergeRefusedError,
    UnknownCustomerError,
)
from feature_store.state.layout import DAY_S
from feature_store.state.profile import MIN_INTEREST_WEIGHT, Interest, Profile, UnreadableProfileError
from service.api.messages import id_error, parsed, timestamp, timestamp_or_none
from service.call_context import CallContext
from service.errors import Reason, RequestError, not_in_cluster, store_error

SERVICE: Final = "tidemark.v1.CustomerService"
MERGE_REFUSALS: Final = {
    Reason.MERGE_WITH_ITSELF: ("source_customer_id", "source and target are the same id: send two different ids"),
    Reason.MERGE_CYCLE: (
        "target_customer_id",
        "the target has been merged into the source before: both are one customer already, under the source's id",
    ),
    Reason.ALREADY_MERGED: (
        "source_customer_id",
        "the source has been merged into another customer before: merge that customer instead, if it is the same",
    ),
    Reason.TOO_MANY_ALIASES: (
        "target_customer_id",
        "the target has too many aliases: an id with that many aliases does not belong to one customer",
    ),
}
"""The wrong field and the message for each reason to refuse a merge."""

Result = TypeVar("Result")


class Customers:
    """The methods of CustomerService: bytes of the request in, bytes of the response out, RequestError on failure."""

    def __init__(self, store: CustomerStore, interests: Interests, clock: Callable[[], float] = time.time) -> None:
        self._store: Final = store
        self.interests = interests
        """Rules about interests, of the model that serves."""
        self._clock: Final = clock

    async def get(self, request: bytes, context: CallContext) -> bytes:
        """GetCustomer."""
        customer_id = decode_get(request)
        context.charge(1)
        customer = await _completed(self._store.get(customer_id))
        now, half_life_s = self._clock(), self.interests.half_life_s
        interests = [
            interest
            for interest in customer.profile.interests
            if interest.views and interest.weight_at(now, half_life_s) >= MIN_INTEREST_WEIGHT
        ]
        return encode_customer(customer, interests, now)

    async def merge(self, request: bytes, context: CallContext) -> bytes:
        """MergeCustomers."""
        source, target = decode_merge(request)
        context.charge(1)
        return encode_merged(await _completed(self._store.merge(source, target)))

    async def delete(self, request: bytes, context: CallContext) -> bytes:
        """DeleteCustomer."""
        customer_id = decode_delete(request)
        context.charge(1)
        await _completed(self._store.erase(customer_id))
        return b""

    async def set_consent(self, request: bytes, context: CallContext) -> bytes:
        """SetConsent."""
        customer_id, scoring, automated_response = decode_consent(request)
        context.charge(1)
        return encode_consent(await _completed(self._store.consent(customer_id, scoring, automated_response)))


async def _completed(operation: Awaitable[Result]) -> Result:
    """The result of an operation, which is carried out to its end even if the caller does not wait for it.

    Raises:
        RequestError: The operation failed.
    """
    task = asyncio.ensure_future(operation)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may not be there to take it
    try:
        return await asyncio.shield(task)
    except StoreUnavailableError as error:
        raise store_error(error) from error
    except NotInClusterError as error:
        raise not_in_cluster() from error
    except UnknownCustomerError as error:
        message = "the server has no data about this customer: check the id"
        raise RequestError(Reason.CUSTOMER_UNKNOWN, message, "customer_id") from error
    except UnreadableProfileError as error:
        message = (
            "the stored data of this customer cannot be read: load its features again, or delete the customer; if its "
            "profile was lost, store its consent"
        )
        raise RequestError(Reason.STATE_UNREADABLE, message, "customer_id") from error
    except ConflictError as error:
        raise RequestError(Reason.CONFLICT, "other writers keep changing this customer: call again") from error
    except MergeRefusedError as error:
        reason = Reason[error.args[0]]
        field, message = MERGE_REFUSALS[reason]
        raise RequestError(reason, message, field) from error


# --- requests -------------------------------------------------------------------------------------------------------


def decode_get(data: bytes) -> str:
    """The customer id of an encoded GetCustomerRequest."""
    return _valid_id(parsed(customers_pb2.GetCustomerRequest, data), "customer_id")


def decode_delete(data: bytes) -> str:
    """The customer id of an encoded DeleteCustomerRequest."""
    return _valid_id(parsed(customers_pb2.DeleteCustomerRequest, data), "customer_id")


def decode_merge(data: bytes) -> tuple[str, str]:
    """The ids of source and target in an encoded MergeCustomersRequest."""
    request = parsed(customers_pb2.MergeCustomersRequest, data)
    return _valid_id(request, "source_customer_id"), _valid_id(request, "target_customer_id")


def decode_consent(data: bytes) -> tuple[str, bool | None, bool | None]:
    """Customer id, scoring and automated_response of an encoded SetConsentRequest; None for what is not set."""
    request = parsed(customers_pb2.SetConsentRequest, data)
    customer_id = _valid_id(request, "customer_id")
    scoring = request.scoring if request.HasField("scoring") else None
    automated_response = request.automated_response if request.HasField("automated_response") else None
    if scoring is None and automated_response is None:
        message = "neither scoring nor automated_response is set: set one to true or false"
        raise RequestError(Reason.CONSENT_MISSING, message, "scoring")
    return customer_id, scoring, automated_response


def _valid_id(request: Any, field: str) -> str:
    customer_id = str(getattr(request, field))
    if error := id_error(customer_id, field):
        raise error
    return customer_id


# --- responses ------------------------------------------------------------------------------------------------------


def encode_customer(customer: Customer, interests: Sequence[Interest], now: float) -> bytes:
    """An encoded GetCustomerResponse with these interests, as of ``now`` (unix seconds)."""
    states, record, layout = customer.states, customer.profile, customer.layout
    values = layout.advance(states.slots[0], now - states.as_of[0]) if states.found[0] else layout.identity
    seen = [(f, now + value) for f, value in zip(layout.features, values, strict=True) if math.isfinite(value)]
    first = min(record.first_seen, *(t for f, t in seen if f.aggregate == "earliest"), math.inf)
    last = max(record.last_seen, *(t for f, t in seen if f.aggregate == "latest"), -math.inf)
    response = customers_pb2.GetCustomerResponse(
        customer_id=customer.customer_id,
        features=[_feature(f, float(v)) for f, v in zip(layout.features, values, strict=True)],
        first_seen_time=timestamp_or_none(first),
        last_seen_time=timestamp_or_none(last),
        channels=[
            customers_pb2.Channel(channel=name, events=count)
            for name, count in sorted(record.channels.items(), key=lambda item: (-item[1], item[0]))
        ],
        interests=[
            scoring_pb2.Interest(item_id=i.item_id, views=i.views, last_view_time=timestamp(i.at)) for i in interests
        ],
        consent=_consent(record),
        aliases=record.aliases,
    )
    return bytes(response.SerializeToString())


def encode_merged(customer_id: str) -> bytes:
    """An encoded MergeCustomersResponse."""
    return bytes(customers_pb2.MergeCustomersResponse(customer_id=customer_id).SerializeToString())


def encode_consent(record: Profile) -> bytes:
    """An encoded SetConsentResponse."""
    return bytes(customers_pb2.SetConsentResponse(consent=_consent(record)).SerializeToString())


def _consent(record: Profile) -> customers_pb2.Consent:
    return customers_pb2.Consent(scoring=record.scoring, automated_response=record.automated_response)


def _feature(feature: Feature, value: float) -> customers_pb2.FeatureValue:
    """A feature, whose times become the days since then; no value for what is unknown or never happened."""
    if feature.aggregate in ("latest", "earliest"):
        value = -value / DAY_S
    return customers_pb2.FeatureValue(name=feature.name, value=value if math.isfinite(value) else None)
