"""Messages of ScoringService."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tidemark.v1 import scoring_pb2

from tidemark.errors import Problem, problem_of_status
from tidemark.explanation import Contribution, Explanation, SlotValue, ThresholdExplanation
from tidemark.limits import MAX_CUSTOMERS_PER_CALL, MAX_EXPLAINED_PER_CALL
from tidemark.messages.times import moment
from tidemark.types import Alert, Economics, Interest, Score


@dataclass(frozen=True)
class Terms:
    """What the requests for one and for many customers have in common."""

    economics: Economics | None = None
    max_feature_age: timedelta | None = None
    allow_stale: timedelta | None = None
    explain: bool = False
    max_reasons: int = 0

    def fields(self) -> dict[str, Any]:
        """The fields of a request."""
        return {**vars(self), "economics": _economics(self.economics)}


def score_request(customer_id: str, terms: Terms) -> scoring_pb2.ScoreCustomerRequest:
    """The request for one customer."""
    return scoring_pb2.ScoreCustomerRequest(customer_id=customer_id, **terms.fields())


def batch_requests(
    customer_ids: Sequence[str], terms: Terms
) -> Iterator[tuple[Sequence[str], scoring_pb2.BatchScoreCustomersRequest]]:
    """The requests for many customers, each with its ids.

    Raises:
        TypeError: ``customer_ids`` is a single string.
    """
    if isinstance(customer_ids, str):
        raise TypeError("customer_ids is one text: give a list of ids")
    step = MAX_EXPLAINED_PER_CALL if terms.explain else MAX_CUSTOMERS_PER_CALL
    for start in range(0, len(customer_ids), step):
        ids = customer_ids[start : start + step]
        yield ids, scoring_pb2.BatchScoreCustomersRequest(customer_ids=ids, **terms.fields())


def batch_results(
    customer_ids: Sequence[str], response: scoring_pb2.BatchScoreCustomersResponse
) -> list[Score | Problem]:
    """The results of a batch, in the order of its ids."""
    return [
        score_of(result.score) if result.HasField("score") else problem_of_status(result.status, customer_id)
        for customer_id, result in zip(customer_ids, response.results, strict=True)
    ]


def score_of(score: scoring_pb2.Score) -> Score:
    """The score in a message."""
    return Score(
        customer_id=score.customer_id,
        churn=_alert(score.churn),
        propensity=_alert(score.propensity),
        expected_spend=score.expected_spend,
        feature_time=moment(score.feature_time),
        model_version=score.model_version,
        top_interest=interest_of(score.top_interest) if score.HasField("top_interest") else None,
        stale=score.stale,
    )


def interest_of(interest: scoring_pb2.Interest) -> Interest:
    """The interest in a message."""
    return Interest(interest.item_id, interest.views, moment(interest.last_view_time))


def _economics(economics: Economics | None) -> scoring_pb2.Economics | None:
    if economics is None:
        return None
    offers = {name: scoring_pb2.Offer(**vars(getattr(economics, name))) for name in ("churn", "propensity")}
    return scoring_pb2.Economics(margin=economics.margin, **offers)


def _alert(alert: scoring_pb2.Alert) -> Alert:
    return Alert(
        probability=alert.probability,
        threshold=alert.threshold,
        alert=alert.alert,
        repeated_view=alert.repeated_view,
        automated_response_off=alert.automated_response_off,
        spike=alert.spike,
        explanation=_explanation(alert.explanation) if alert.HasField("explanation") else None,
        value_if_won=alert.value_if_won,
    )


def _explanation(explanation: scoring_pb2.Explanation) -> Explanation:
    contributions = [
        Contribution(
            feature=contribution.feature,
            contribution=contribution.contribution,
            reason_code=contribution.reason_code,
            sentence=contribution.sentence,
            slots=[_slot_value(slot) for slot in contribution.slots],
        )
        for contribution in explanation.contributions
    ]
    return Explanation(
        explanation.baseline_probability,
        contributions,
        explanation.other_contribution,
        explanation.exact,
        _threshold(explanation.threshold) if explanation.HasField("threshold") else None,
    )


def _threshold(threshold: scoring_pb2.ThresholdExplanation) -> ThresholdExplanation:
    optional = {
        name: getattr(threshold, name) if threshold.HasField(name) else None
        for name in ("margin", "spend_if_won", "contact_cost", "offer_cost", "gain_if_intended", "cost_if_other")
    }
    return ThresholdExplanation(
        value_if_won=threshold.value_if_won,
        success_rate=threshold.success_rate,
        redemption_rate=threshold.redemption_rate,
        budget_price=threshold.budget_price,
        sentence=threshold.sentence,
        **optional,
    )


def _slot_value(slot: scoring_pb2.SlotValue) -> SlotValue:
    value = slot.value if slot.HasField("value") else None
    typical = slot.typical if slot.HasField("typical") else None
    return SlotValue(slot.slot, value, typical, slot.unit, slot.text, slot.typical_text)
