"""Explanations of the contract. They are rare enough to be built as message objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tidemark.v1 import scoring_pb2

from service.errors import Reason, RequestError
from tidemark.explanation import Contribution, Explanation
from tidemark.limits import MAX_EXPLAINED_PER_CALL

DEFAULT_REASONS: Final = 5
"""Contributions of each explanation if the request does not say how many."""


def max_reasons(request: Any, customers: int) -> int | None:
    """How many contributions an explanation may have; None if the request does not ask for explanations.

    Raises:
        RequestError: The request asks for explanations of too many customers.
    """
    if not request.explain:
        return None
    if customers > MAX_EXPLAINED_PER_CALL:
        message = (
            f"{customers} customers are too many to explain in one call: "
            f"send at most {MAX_EXPLAINED_PER_CALL} with explain"
        )
        raise RequestError(Reason.TOO_MANY_EXPLAINED, message, "customer_ids")
    return int(request.max_reasons) or DEFAULT_REASONS


def encoded_by_offer(explanations: Mapping[str, Explanation]) -> dict[str, bytes]:
    """The encoded explanations of a score, by offer."""
    return {offer: encoded(explanation) for offer, explanation in explanations.items()}


def encoded(explanation: Explanation) -> bytes:
    """An encoded Explanation."""
    threshold = explanation.threshold
    return scoring_pb2.Explanation(
        baseline_probability=explanation.baseline_probability,
        contributions=map(_contribution, explanation.contributions),
        other_contribution=explanation.other_contribution,
        exact=explanation.exact,
        threshold=None if threshold is None else scoring_pb2.ThresholdExplanation(**threshold._asdict()),
    ).SerializeToString()


def _contribution(contribution: Contribution) -> scoring_pb2.Contribution:
    raises = contribution.contribution > 0
    return scoring_pb2.Contribution(
        feature=contribution.feature,
        contribution=contribution.contribution,
        direction=scoring_pb2.DIRECTION_RAISES if raises else scoring_pb2.DIRECTION_LOWERS,
        reason_code=contribution.reason_code,
        sentence=contribution.sentence,
        slots=[scoring_pb2.SlotValue(**slot._asdict()) for slot in contribution.slots],
    )
