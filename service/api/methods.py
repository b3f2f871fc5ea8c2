"""The methods of EventService, CustomerService and ModelService by path: bytes in, bytes out, for either transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from service.api import customers, events, models
from service.batching.event_batcher import EventBatcher
from service.call_context import CallContext

Unary = Callable[[bytes, CallContext], Awaitable[bytes]]
"""A unary method: takes an encoded request and the context of its call, and returns the encoded response.

It raises RequestError if it fails.
"""


class Stream(Protocol):
    """A call with a stream of requests, each of which gets one response."""

    async def answer(self, request: bytes) -> bytes:
        """Handle the next request and return its encoded response.

        Raises:
            RequestError: The whole call failed.
        """


@dataclass(frozen=True)
class Handlers:
    """Methods by path, except those of ScoringService."""

    unary: Mapping[str, Unary] = field(default_factory=dict)
    streams: Mapping[str, Callable[[CallContext], Stream]] = field(default_factory=dict)


NO_HANDLERS: Final = Handlers()


def handlers(recorder: EventBatcher, customer_methods: customers.Customers, model_methods: models.Models) -> Handlers:
    """The methods of all three services."""
    event_methods = events.Events(recorder)
    return Handlers(
        {
            f"/{events.SERVICE}/RecordEvents": event_methods.record,
            f"/{customers.SERVICE}/GetCustomer": customer_methods.get,
            f"/{customers.SERVICE}/MergeCustomers": customer_methods.merge,
            f"/{customers.SERVICE}/DeleteCustomer": customer_methods.delete,
            f"/{customers.SERVICE}/SetConsent": customer_methods.set_consent,
            f"/{models.SERVICE}/GetServingModel": model_methods.serving,
            f"/{models.SERVICE}/ListModels": model_methods.bundles,
            f"/{models.SERVICE}/ActivateModel": model_methods.activate,
            f"/{models.SERVICE}/SetRollout": model_methods.set_rollout,
            f"/{models.SERVICE}/ClearRollout": model_methods.clear_rollout,
        },
        {f"/{events.SERVICE}/StreamEvents": partial(events.EventStream, recorder)},
    )
