"""What the clients take and return. All of it is plain, immutable data."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum

from tidemark.explanation import Explanation


def _now() -> datetime:
    return datetime.now(UTC)


def _new_id() -> str:
    return uuid.uuid4().hex


# --- scores ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """Costs and effects of an offer. Amounts are in the currency of the shop's data; None keeps the model's value.

    Attributes:
        contact_cost: Cost of contacting a customer.
        offer_cost: Cost of the offer when a customer redeems it.
        success_rate: Share of the intended customers that the offer wins, 0 to 1.
        redemption_rate: Share of the other customers that redeem the offer anyway, 0 to 1.
        budget_price: Minimum gain per contact that is worth acting for.
        value_if_won: Value of winning a customer, in place of the model's: profit, not spend.
    """

    contact_cost: float | None = None
    offer_cost: float | None = None
    success_rate: float | None = None
    redemption_rate: float | None = None
    budget_price: float | None = None
    value_if_won: float | None = None


@dataclass(frozen=True)
class Economics:
    """What acting on alerts costs and gains; None keeps the model's value.

    Attributes:
        margin: Share of spend that is profit, 0 to 1.
        churn: Offer that is meant to keep a customer who is about to leave.
        propensity: Offer that is meant to win another purchase.
    """

    margin: float | None = None
    churn: Offer = Offer()
    propensity: Offer = Offer()


@dataclass(frozen=True)
class Alert:
    """A calibrated probability, the threshold of this customer, and the decision that follows from them.

    Attributes:
        probability: Calibrated probability, 0 to 1.
        threshold: Probability from which acting pays for this customer, 0 to 1.
        alert: Whether acting pays now.
        repeated_view: Whether the customer viewed the score's top interest often and did not buy it.
        automated_response_off: Whether the customer does not allow automated responses; then ``alert`` is False.
        spike: Whether far more scores alert than usual, so that irreversible actions should be held back.
        explanation: What moves the probability, and what the threshold is made of, if the call asked for it.
        value_if_won: Value of winning this customer with the offer, which the threshold depends on.
    """

    probability: float
    threshold: float
    alert: bool
    repeated_view: bool = False
    automated_response_off: bool = False
    spike: bool = False
    explanation: Explanation | None = None
    value_if_won: float = 0.0


@dataclass(frozen=True)
class Interest:
    """An item that a customer viewed and did not buy since.

    Attributes:
        item_id: Id of the item.
        views: Number of views since the customer last bought it.
        last_view_time: Time of the latest view.
    """

    item_id: str
    views: int
    last_view_time: datetime


@dataclass(frozen=True)
class Score:
    """The score of one customer.

    Attributes:
        customer_id: Id of the customer, as the call has it.
        churn: The probability that the customer makes no purchase within the churn horizon.
        propensity: The probability that the customer makes a purchase within the propensity horizon.
        expected_spend: Expected spend over the value horizon, in the currency of the shop's data.
        feature_time: Time up to which the features reflect the shop's data.
        model_version: Version of the model that computed the score.
        top_interest: The item that the customer viewed most and did not buy since.
        stale: Whether the score comes from features that the server read before its feature store stopped answering.
    """

    customer_id: str
    churn: Alert
    propensity: Alert
    expected_spend: float
    feature_time: datetime
    model_version: str
    top_interest: Interest | None = None
    stale: bool = False


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that a customer did.

    An event without an ``event_id`` gets a random one, so that it is counted once even if the client has to send it
    again. To be safe against repetitions by your own code, pass an id of the shop, such as an order number.

    Attributes:
        customer_id: Id of the customer, known or anonymous.
        event_type: Type of the event, as the features of the config name it.
        event_time: Time at which it happened; a naive time is UTC.
        amount: Money, in the currency of the shop's data; negative for a return.
        item_id: Id of the item that the event is about.
        channel: Channel on which it happened, such as ``web``.
        duration_s: Duration in seconds, such as the dwell time of a view.
        event_id: Identity of the event among the customer's events.
        text: Feedback in words, at most 10,000 characters.
    """

    customer_id: str
    event_type: str
    event_time: datetime = field(default_factory=_now)
    amount: float | None = None
    item_id: str = ""
    channel: str = ""
    duration_s: float | None = None
    event_id: str = field(default_factory=_new_id)
    text: str = ""


@dataclass(frozen=True)
class RejectedEvent:
    """An event that was rejected and had no effect.

    Attributes:
        index: Position of the event among those passed to the call, from 0.
        field: Name of the field that is wrong.
        reason: Code such as ``EVENT_TOO_LATE``.
        message: Explanation, with a way to correct the event.
        help_url: Address of the documentation's page about the reason, or its path in the documentation.
    """

    index: int
    field: str
    reason: str
    message: str
    help_url: str = ""


@dataclass(frozen=True)
class GuardedEvent:
    """An accepted event whose effect was changed by a guard.

    Attributes:
        index: Position of the event among those passed to the call, from 0.
        field: Name of the field that the guard checks.
        reason: Code such as ``EVENT_CAPPED`` or ``AMOUNT_CLIPPED``.
        message: Explanation.
        help_url: Address of the documentation's page about the reason, or its path in the documentation.
    """

    index: int
    field: str
    reason: str
    message: str
    help_url: str = ""


@dataclass(frozen=True)
class Recorded:
    """The outcome for the events of a call.

    Attributes:
        accepted: Number of events recorded by this call.
        duplicates: Number of events that had been recorded before, by their event_id.
        rejected: Events that were rejected.
        guarded: Accepted events whose effect was changed by a guard.
        unread: Number of accepted events whose type no feature reads. They are archived, but change no score.
    """

    accepted: int
    duplicates: int
    rejected: list[RejectedEvent]
    guarded: list[GuardedEvent]
    unread: int = 0


# --- customers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Consent:
    """What a customer allows.

    Attributes:
        scoring: Whether events may be recorded and scores computed.
        automated_response: Whether a score may trigger an action without a human decision.
    """

    scoring: bool
    automated_response: bool


@dataclass(frozen=True)
class Customer:
    """The data of a customer.

    Attributes:
        customer_id: Id of the customer, which differs from that of the call if it has been merged.
        features: Values by name; None for a value that is unknown or an event that never happened.
        first_seen_time: Time of the earliest known event.
        last_seen_time: Time of the latest known event.
        channels: Number of live events by channel.
        interests: Items that the customer viewed and did not buy since.
        consent: What the customer allows.
        aliases: Ids that have been merged into this customer.
    """

    customer_id: str
    features: dict[str, float | None]
    first_seen_time: datetime | None
    last_seen_time: datetime | None
    channels: dict[str, int]
    interests: list[Interest]
    consent: Consent
    aliases: list[str]


# --- models ---------------------------------------------------------------------------------------------------------


class ModelState(Enum):
    """Use of a bundle by the worker that answers."""

    UNKNOWN = "UNSPECIFIED"
    SERVING = "SERVING"
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    AVAILABLE = "AVAILABLE"
    REFUSED = "REFUSED"


@dataclass(frozen=True)
class Model:
    """A bundle of the registry.

    Attributes:
        version: Its version.
        state: Its use by the worker that answered.
        create_time: Time at which it was created, if that can be read.
        fingerprint: Fingerprint of its features.
        reason: Code of the refusal, empty if it is not refused.
        message: Explanation of the refusal, empty if it is not refused.
        churn_auc: AUC of churn on data after training, if the manifest has it.
        propensity_auc: AUC of propensity on data after training, if the manifest has it.
    """

    version: str
    state: ModelState
    create_time: datetime | None = None
    fingerprint: str = ""
    reason: str = ""
    message: str = ""
    churn_auc: float | None = None
    propensity_auc: float | None = None


@dataclass(frozen=True)
class Shadow:
    """A model that computes scores for comparison and answers no customer.

    Attributes:
        version: Version of its bundle.
    """

    version: str


@dataclass(frozen=True)
class Canary:
    """A model that answers a share of the customers.

    Attributes:
        version: Version of its bundle.
        share: Share of the customer ids, above 0 and at most 1.
    """

    version: str
    share: float


@dataclass(frozen=True)
class OfferDifferences:
    """Differences between the shadow's scores and the answers for one offer.

    Attributes:
        mean: Mean absolute difference of the probabilities.
        largest: Largest absolute difference of the probabilities.
        alerts: Number of customers for which exactly one of the two models alerts.
    """

    mean: float
    largest: float
    alerts: int


@dataclass(frozen=True)
class ShadowDifferences:
    """Differences between the shadow's scores and the answers, as seen by the worker that answered.

    Attributes:
        compared: Number of customers scored by both models.
        unscored: Number of customers that only the answering model scored.
        dropped: Number of customers that the shadow skipped.
        churn: Differences of the churn offer.
        propensity: Differences of the propensity offer.
    """

    compared: int
    unscored: int
    dropped: int
    churn: OfferDifferences
    propensity: OfferDifferences


@dataclass(frozen=True)
class Refusal:
    """A bundle, or a file of the registry, that a worker refuses to use.

    Attributes:
        version: Version of the bundle, empty if a file is refused.
        file: Name of the file, empty if a bundle is refused.
        reason: Code such as ``MODEL_REFUSED``.
        message: Explanation, with a way to correct the cause.
        refuse_time: Time of the refusal.
    """

    version: str
    file: str
    reason: str
    message: str
    refuse_time: datetime


@dataclass(frozen=True)
class ServingModel:
    """The models that the worker that answered uses.

    Attributes:
        version: Version of the active bundle.
        fingerprint: Fingerprint of its features.
        create_time: Time at which it was created, if that is known.
        activate_time: Time at which the worker began to serve it.
        rollout: What is tried out, None without a rollout.
        shadow_differences: Differences of the shadow, None without one.
        refusal: Newest refusal, None if the worker refused nothing.
    """

    version: str
    fingerprint: str
    create_time: datetime | None
    activate_time: datetime
    rollout: Shadow | Canary | None
    shadow_differences: ShadowDifferences | None
    refusal: Refusal | None
