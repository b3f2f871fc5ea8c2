"""Client of tidemark: scores customers, records events, and looks after customers."""

from tidemark.events import Consent, Customer, CustomerClient, Event, EventClient, Recorded, Told
from tidemark.explanation import Contribution, Explanation, SlotValue
from tidemark.scoring import Alert, CallFailedError, Economics, Interest, Offer, Problem, Score, ScoringClient

__all__ = [
    "Alert",
    "CallFailedError",
    "Consent",
    "Contribution",
    "Customer",
    "CustomerClient",
    "Economics",
    "Event",
    "EventClient",
    "Explanation",
    "Interest",
    "Offer",
    "Problem",
    "Recorded",
    "Score",
    "ScoringClient",
    "SlotValue",
    "Told",
]
