"""What the scorer takes and returns: a request for scores of some customers, and their scores in named columns.

Both are named tuples. They are made for every call, and a named tuple that cannot be changed takes a third of the time
of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from feature_store.bundles.bundle import OFFERS, OUTPUTS
from feature_store.state.layout import Floats
from feature_store.state.profile import Interest
from service.errors import RequestError
from tidemark.explanation import Explanation

Rows = npt.NDArray[np.void]
"""A structured array ``[n]`` of SCORE_ROW."""

OFFER_COLUMNS: Final = np.dtype(
    [
        ("probability", "f8"),
        ("threshold", "f8"),
        ("alert", "?"),
        ("repeated_view", "?"),
        ("automated_response_off", "?"),
        ("spike", "?"),
        ("value_if_won", "f8"),
    ]
)
"""What a score says about one offer.

alert: the probability reaches the threshold and the customer allows automated responses; repeated_view: the customer
viewed the top interest often enough (propensity only); spike: far more answers alert than usual, in total or about the
customer's top interest; value_if_won: what winning the customer is worth, in the currency of the data.
"""

SCORE_ROW: Final = np.dtype(
    [
        *((offer, OFFER_COLUMNS) for offer in OFFERS),
        ("expected_spend", "f8"),
        ("features_as_of", "f8"),
        ("stale", "?"),
    ]
)
"""The score of a customer.

expected_spend: in the currency of the data; features_as_of: unix seconds up to which events are known; stale: computed
from a state that was read before the feature store stopped answering.
"""

_COLUMN: Final = {name: column for column, name in enumerate((*OUTPUTS, "features_as_of"))}


def rows_of(table: Floats) -> Rows:
    """Name the columns of what a model computed, and decide who alerts.

    Args:
        table: float64 ``[n, outputs + 1]``, as ``Model.run`` returns it.

    Returns:
        Rows ``[n]`` whose flags are all False except ``alert``. Consent is not applied: see :func:`mute`.
    """
    rows = np.zeros(len(table), SCORE_ROW)
    for offer in OFFERS:
        columns = rows[offer]
        probability, threshold = table[:, _COLUMN[f"{offer}_probability"]], table[:, _COLUMN[f"{offer}_threshold"]]
        columns["probability"], columns["threshold"] = probability, threshold
        columns["alert"] = probability >= threshold
        columns["value_if_won"] = table[:, _COLUMN[f"{offer}_value_if_won"]]
    rows["expected_spend"] = table[:, _COLUMN["expected_spend"]]
    rows["features_as_of"] = table[:, _COLUMN["features_as_of"]]
    return rows


def mute(rows: Rows, positions: Sequence[int]) -> None:
    """Withdraw the alerts of the customers at these positions: they allow no automated responses."""
    if positions:
        for offer in OFFERS:
            columns = rows[offer]
            columns["alert"][positions], columns["automated_response_off"][positions] = False, True


NO_FIGURES: Final[Mapping[int, float]] = {}
NO_ERRORS: Final[Mapping[int, RequestError]] = {}
NO_INTERESTS: Final[Mapping[int, Interest]] = {}


class ScoreRequest(NamedTuple):
    """Customers to score on the same terms: a call, or a slice of a large one.

    Attributes:
        customer_ids: The customers. An invalid id is replaced by the empty string, and has an entry in ``refused``.
        economics: Figures that replace a default of the model, by column of the graph's input.
        max_age_s: Maximum age of the features in seconds; None for any age.
        refused: Errors of ids that were found invalid before scoring, by position.
        allow_stale_s: Maximum seconds since the state was read, if the feature store does not answer; None to
            accept no stale state.
        max_reasons: Maximum number of contributions in an explanation; None to explain nothing.
    """

    customer_ids: Sequence[str]
    economics: Mapping[int, float] = NO_FIGURES
    max_age_s: float | None = None
    refused: Mapping[int, RequestError] = NO_ERRORS
    allow_stale_s: float | None = None
    max_reasons: int | None = None

    def slice(self, start: int, stop: int) -> ScoreRequest:
        """The request for the customers at positions ``start`` to ``stop`` (exclusive)."""
        if start == 0 and stop == len(self.customer_ids):
            return self
        return self._replace(customer_ids=self.customer_ids[start:stop], refused=_within(self.refused, start, stop))


class Scores(NamedTuple):
    """The scores of a request, a row for each of its customers, in their order.

    Attributes:
        rows: The scores, a structured array ``[n]`` of SCORE_ROW. The row of a customer with an error means nothing.
        errors: Why a customer has no score, by position.
        model_version: The model that computed the scores.
        top_interests: The item that a customer is most interested in, by position.
        versions: The model of each row, if not all are of ``model_version``.
        explanations: Why a score is what it is, by position and offer, if the request asked for it.
    """

    rows: Rows
    errors: Mapping[int, RequestError]
    model_version: str
    top_interests: Mapping[int, Interest] = NO_INTERESTS
    versions: Sequence[str] | None = None
    explanations: Mapping[int, Mapping[str, Explanation]] | None = None

    def slice(self, start: int, stop: int) -> Scores:
        """The scores of the customers at positions ``start`` to ``stop`` (exclusive)."""
        explanations = self.explanations
        return Scores(
            self.rows[start:stop],
            _within(self.errors, start, stop),
            self.model_version,
            _within(self.top_interests, start, stop),
            None if self.versions is None else self.versions[start:stop],
            None if explanations is None else _within(explanations, start, stop),
        )

    @staticmethod
    def joined(slices: Sequence[Scores]) -> Scores:
        """The scores of a request from those of its slices, in their order."""
        if len(slices) == 1:
            return slices[0]
        groups, start = [], 0
        for scores in slices:
            groups.append((range(start, start + len(scores.rows)), scores))
            start += len(scores.rows)
        return Scores.placed(groups)

    @staticmethod
    def placed(groups: Sequence[tuple[Sequence[int], Scores]]) -> Scores:
        """The scores of a request from groups of its customers, each with the positions of its rows."""
        size = sum(len(scores.rows) for _, scores in groups)
        rows, versions = np.zeros(size, SCORE_ROW), [""] * size
        errors: dict[int, RequestError] = {}
        top_interests: dict[int, Interest] = {}
        explanations: dict[int, Mapping[str, Explanation]] = {}
        for positions, scores in groups:
            rows[positions] = scores.rows
            errors.update(_moved(scores.errors, positions))
            top_interests.update(_moved(scores.top_interests, positions))
            explanations.update(_moved(scores.explanations or {}, positions))
            row_versions = scores.versions or [scores.model_version] * len(positions)
            for position, version in zip(positions, row_versions, strict=True):
                versions[position] = version
        mixed = None if versions.count(versions[0]) == size else versions
        return Scores(rows, errors, versions[0], top_interests, mixed, explanations or None)


NO_SCORES: Final = Scores(np.zeros(0, SCORE_ROW), NO_ERRORS, "")
"""The scores of a request without customers."""


Value = TypeVar("Value")


def _within(by_position: Mapping[int, Value], start: int, stop: int) -> dict[int, Value]:
    if not by_position:
        return {}
    return {at - start: by_position[at] for at in range(start, stop) if at in by_position}


def _moved(by_position: Mapping[int, Value], positions: Sequence[int]) -> dict[int, Value]:
    return {positions[at]: value for at, value in by_position.items()}
