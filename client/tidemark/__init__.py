"""The client of tidemark: scores customers, records events, and manages customers and models.

Each of the four services has a blocking client and an asyncio client with the same methods. They need grpcio and
protobuf alone.

Example:
    from tidemark import ScoringClient

    with ScoringClient("127.0.0.1:50051") as client:
        print(client.score("900").churn.probability)
"""

from tidemark.aio import AsyncCustomerClient, AsyncEventClient, AsyncModelClient, AsyncScoringClient
from tidemark.channel import RETRY_POLICY
from tidemark.customers import CustomerClient
from tidemark.errors import CallFailedError, Problem
from tidemark.events import EventClient
from tidemark.explanation import Contribution, Explanation, SlotValue, ThresholdExplanation
from tidemark.models import ModelClient
from tidemark.scoring import ScoringClient
from tidemark.types import (
    Alert,
    Canary,
    Consent,
    Customer,
    Economics,
    Event,
    GuardedEvent,
    Interest,
    Model,
    ModelState,
    Offer,
    OfferDifferences,
    Recorded,
    Refusal,
    RejectedEvent,
    Score,
    ServingModel,
    Shadow,
    ShadowDifferences,
)

__all__ = [
    "RETRY_POLICY",
    "Alert",
    "AsyncCustomerClient",
    "AsyncEventClient",
    "AsyncModelClient",
    "AsyncScoringClient",
    "CallFailedError",
    "Canary",
    "Consent",
    "Contribution",
    "Customer",
    "CustomerClient",
    "Economics",
    "Event",
    "EventClient",
    "Explanation",
    "GuardedEvent",
    "Interest",
    "Model",
    "ModelClient",
    "ModelState",
    "Offer",
    "OfferDifferences",
    "Problem",
    "Recorded",
    "Refusal",
    "RejectedEvent",
    "Score",
    "ScoringClient",
    "ServingModel",
    "Shadow",
    "ShadowDifferences",
    "SlotValue",
    "ThresholdExplanation",
]
