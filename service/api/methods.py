"""What the methods of EventService, CustomerService and ModelService do: bytes in, bytes out, for either front."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, TypeVar

from feature_store.definitions import Interests
from feature_store.errors import NotInClusterError, StoreUnavailableError
from feature_store.online.customer_store import ConflictError, CustomerStore, MergeRefusedError, UnknownCustomerError
from feature_store.state.profile import LEAST_WEIGHT, UnreadableRecordError
from service.api import customers as convert_customers
from service.api import events as convert_events
from service.api import models as convert_models
from service.api.model_handlers import Models
from service.batching.event_batcher import EventBatcher, RecordingResult
from service.call_context import CallContext
from service.errors import Reason, RequestError, not_in_cluster, store_error

Unary = Callable[[bytes, CallContext], Awaitable[bytes]]
"""A unary method: takes an encoded request and the context of its call, and returns the encoded reply.

It raises RequestError if it fails.
"""

Reply = TypeVar("Reply")
MOST_TOLD: Final = 1000
"""Events of a stream whose fate is told one by one."""


class Stream(Protocol):
    """A call with many requests and one reply."""

    async def add(self, request: bytes) -> None:
        """The next request; RequestError where the call fails."""

    def reply(self) -> bytes:
        """When there are no more."""


@dataclass(frozen=True)
class Handlers:
    """Methods by path, beside those of ScoringService."""

    unary: Mapping[str, Unary] = field(default_factory=dict)
    streams: Mapping[str, Callable[[CallContext], Stream]] = field(default_factory=dict)


NO_HANDLERS: Final = Handlers()


def handlers(recorder: EventBatcher, customers: Customers, models: Models) -> Handlers:
    """The methods of all three services."""
    event, customer, model = (f"/{convert.SERVICE}" for convert in (convert_events, convert_customers, convert_models))

    async def record(request: bytes, context: CallContext) -> bytes:
        recorder.admit(context)  # before the request is read, so that shedding costs little
        events = convert_events.decode_events(request)
        context.charge(len(events))
        return convert_events.encode_recorded(await recorder.record(events, context))

    return Handlers(
        {
            f"{event}/RecordEvents": record,
            f"{customer}/GetCustomer": customers.get,
            f"{customer}/MergeCustomers": customers.merge,
            f"{customer}/DeleteCustomer": customers.delete,
            f"{customer}/SetConsent": customers.consent,
            f"{model}/GetServingModel": models.serving,
            f"{model}/ListModels": models.bundles,
            f"{model}/ActivateModel": models.activate,
            f"{model}/SetRollout": models.roll_out,
        },
        {f"{event}/StreamEvents": partial(EventStream, recorder)},
    )


class EventStream:
    """A StreamEvents call: each message is recorded before the next one is taken."""

    def __init__(self, recorder: EventBatcher, context: CallContext) -> None:
        self._recorder = recorder
        self._context = context
        self._begun = False
        self._seen = 0
        self._sum = RecordingResult()

    async def add(self, request: bytes) -> None:
        """Record the events of a message; only the first may be shed, later ones wait, and their caller with them."""
        if not self._begun:
            self._recorder.admit(self._context)
            self._begun = True
        events = convert_events.decode_events(request)
        await self._context.wait_and_charge(len(events))  # meanwhile the client's window stays closed
        self._sum.add(await self._recorder.record(events, self._context), self._seen, MOST_TOLD)
        self._seen += len(events)

    def reply(self) -> bytes:
        """What became of all of them."""
        return convert_events.encode_streamed(self._sum, MOST_TOLD)


class Customers:
    """The methods of CustomerService."""

    def __init__(self, store: CustomerStore, interests: Interests, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self.interests = interests
        """Of the model that serves."""
        self._clock = clock

    async def get(self, request: bytes, context: CallContext) -> bytes:
        """GetCustomer."""
        context.charge(1)
        customer = await _answered(self._store.get(convert_customers.decode_get(request)))
        now, half_life_s = self._clock(), self.interests.half_life_s
        interests = [
            interest
            for interest in customer.record.interests
            if interest.views and interest.weight_at(now, half_life_s) >= LEAST_WEIGHT
        ]
        return convert_customers.encode_customer(customer, interests, now)

    async def merge(self, request: bytes, context: CallContext) -> bytes:
        """MergeCustomers."""
        context.charge(1)
        given_up, stays = convert_customers.decode_merge(request)
        return convert_customers.encode_merged(await _answered(self._store.merge(given_up, stays)))

    async def delete(self, request: bytes, context: CallContext) -> bytes:
        """DeleteCustomer."""
        context.charge(1)
        await _answered(self._store.erase(convert_customers.decode_delete(request)))
        return b""

    async def consent(self, request: bytes, context: CallContext) -> bytes:
        """SetConsent."""
        context.charge(1)
        return convert_customers.encode_consent(
            await _answered(self._store.consent(*convert_customers.decode_consent(request)))
        )


REFUSED: Final = {
    "MERGE_WITH_ITSELF": "from and into are the same id: name two",
    "MERGE_CYCLE": "into has been merged into from before: the two are one customer already, under the id in from",
    "ALREADY_MERGED": "from has been merged into another customer before: merge that one, if they are the same",
    "TOO_MANY_ALIASES": "into has too many aliases: an id that so many share is no customer's",
}


async def _answered(operation: Awaitable[Reply]) -> Reply:
    """The result of an operation that goes on even if the caller does not wait; RequestError for what can go wrong."""
    task = asyncio.ensure_future(operation)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear of it
    try:
        return await asyncio.shield(task)
    except StoreUnavailableError as error:
        raise store_error(error) from error
    except NotInClusterError as error:
        raise not_in_cluster() from error
    except UnknownCustomerError as error:
        message = "nothing is known about this customer: check the id"
        raise RequestError(Reason.CUSTOMER_UNKNOWN, message, "customer_id") from error
    except UnreadableRecordError as error:
        message = "what is stored for this customer cannot be used: load its features again, or delete the customer"
        raise RequestError(Reason.STATE_UNREADABLE, message, "customer_id") from error
    except ConflictError as error:
        raise RequestError(Reason.CONFLICT, "others keep changing this customer: send again") from error
    except MergeRefusedError as error:
        reason = str(error.args[0])
        meant = "into" if reason in {"MERGE_CYCLE", "TOO_MANY_ALIASES"} else "from"
        raise RequestError(Reason[reason], REFUSED[reason], meant) from error
