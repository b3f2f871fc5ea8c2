"""The main path on a fake store and a fake model: which id gets a score, and which an error of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from feature_store.bundles.bundle import ECONOMICS, OFFERS, OUTPUTS
from feature_store.definitions import Feature, Interests
from feature_store.errors import StoreUnavailableError
from feature_store.state.layout import Floats, MissingReason, State, StateBatch, StateLayout
from feature_store.state.profile import ProfileSummary
from service.errors import Reason, RequestError
from service.scoring.model import Model
from service.scoring.scorer import Scorer
from service.scoring.threshold_text import explain_threshold
from service.scoring.types import ScoreRequest, Scores
from tidemark.explanation import Explanation

NOW = 1_800_000_000.0
WITHHELD = ProfileSummary(scoring=False, automated_response=True, top=None)
LAYOUT = StateLayout([Feature(name="visits", event="visit", aggregate="count", half_life_days=7)])


class FakeStore:
    """Customers ``known-<age>`` have a state of that many seconds; ``torn`` has half of one."""

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        return LAYOUT.unpack([self._value(customer_id) for customer_id in customer_ids])

    def read_stale(self, customer_ids: Sequence[str], within_s: Sequence[float]) -> StateBatch | None:
        raise NotImplementedError

    def _value(self, customer_id: str) -> bytes | None:
        if customer_id == "torn":
            return LAYOUT.pack(State(NOW, np.array([1.0])))[:-3]
        if customer_id == "year-30000":
            return LAYOUT.pack(State(9e11, np.array([1.0])))
        if not customer_id.startswith("known-"):
            return None
        as_of = NOW - float(customer_id.removeprefix("known-"))
        return LAYOUT.pack(State(as_of, np.array([1.0])))


def explanation(age_s: float, max_reasons: int) -> Explanation:
    """One that repeats what the explainer was asked, with the threshold that the fake model computes."""
    threshold = explain_threshold("churn", FakeModel.economics, 0.25, 0.25)
    return Explanation(age_s, [], max_reasons, exact=True, threshold=threshold)


class FakeExplainer:
    """Repeats the age and the number of reasons; cannot explain a state that is three days old."""

    def explain(
        self, slots: Floats, age_s: Floats, probabilities: Floats, max_reasons: int
    ) -> list[dict[str, Explanation] | RequestError]:
        assert len(slots) == len(age_s) == len(probabilities)
        assert probabilities.shape[1] == len(OFFERS)
        error = RequestError(Reason.STATE_UNREADABLE, "cannot be explained", "customer_id")
        plain = [{"churn": Explanation(age, [], max_reasons, exact=True)} for age in age_s]
        return [error if age == 3 * 86_400 else why for age, why in zip(age_s, plain, strict=True)]


class FakeModel:
    """Says the margin it was given as every output, NaN for a customer whose state is a day old."""

    version = "v1"
    interests = Interests()
    economics = np.array([0.25, *[1.0] * (len(ECONOMICS) - 3), np.nan, np.nan])
    explainer = FakeExplainer()

    def run(self, states: StateBatch, now: float, economics: Floats) -> Floats:
        table = np.repeat(economics[:, :1], len(OUTPUTS) + 1, axis=1)
        table[:, -1] = states.as_of
        table[now - states.as_of == 86_400.0, 0] = np.nan
        return table


def score(*parts: ScoreRequest) -> list[Scores]:
    scorer = Scorer(FakeStore(), cast("Model", FakeModel()), clock=lambda: NOW)
    return cast("list[Scores]", asyncio.run(scorer.score(parts)))


def reasons(scores: Scores) -> dict[int, Reason]:
    return {at: error.reason for at, error in scores.errors.items()}


def test_each_id_gets_a_score_or_an_error_of_its_own() -> None:
    (scores,) = score(ScoreRequest(["known-5", "nobody", "torn", "known-86400", "year-30000", "known-7"]))
    assert reasons(scores) == {
        1: Reason.CUSTOMER_UNKNOWN,
        2: Reason.STATE_UNREADABLE,
        3: Reason.STATE_UNREADABLE,
        4: Reason.STATE_UNREADABLE,
    }
    assert scores.rows[0].item()[:3] == ((0.25, 0.25, True, False, False, False, 0.25),) * 2 + (0.25,)
    assert scores.rows["features_as_of"][5] == NOW - 7


def test_features_older_than_the_caller_allows_are_refused_for_that_caller_only() -> None:
    ids = ["known-59", "known-61", "nobody"]
    strict, lenient = score(ScoreRequest(ids, max_age_s=60.0), ScoreRequest(ids))
    assert reasons(strict) == {1: Reason.FEATURES_TOO_OLD, 2: Reason.CUSTOMER_UNKNOWN}
    assert reasons(lenient) == {2: Reason.CUSTOMER_UNKNOWN}
    assert strict.errors[1].field == "max_feature_age"


def test_the_economics_of_one_call_do_not_reach_its_neighbours() -> None:
    item, two, three = score(
        ScoreRequest(["known-1"]), ScoreRequest(["known-1"] * 2, economics={0: 0.5}), ScoreRequest(["known-1"])
    )
    assert [spend for scores in (item, two, three) for spend in scores.rows["expected_spend"].tolist()] == [
        0.25,
        0.5,
        0.5,
        0.25,
    ]


def test_an_id_refused_before_keeps_its_error() -> None:
    error = RequestError(Reason.CUSTOMER_ID_INVALID, "empty", "customer_ids")
    (scores,) = score(ScoreRequest(["known-1", "", "known-2"], refused={1: error}))
    assert scores.errors == {1: error}


def test_a_store_that_is_away_fails_the_whole_batch_as_unavailable() -> None:
    class Away(FakeStore):
        async def read(self, customer_ids: Sequence[str]) -> StateBatch:
            raise StoreUnavailableError(f"cannot reach {len(customer_ids)} at secret-host")

    scorer = Scorer(Away(), cast("Model", FakeModel()))
    with pytest.raises(RequestError) as caught:
        asyncio.run(scorer.score([ScoreRequest(["known-1"])]))
    assert caught.value.reason is Reason.FEATURE_STORE_UNAVAILABLE
    assert "secret" not in caught.value.message


class Remembering(FakeStore):
    """Away; has read customers ``known-…`` ten seconds ago, and heard that ``known-2`` does not allow scoring."""

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        raise StoreUnavailableError(f"{len(customer_ids)} are asked for")

    def read_stale(self, customer_ids: Sequence[str], within_s: Sequence[float]) -> StateBatch | None:
        pairs = zip(customer_ids, within_s, strict=True)
        batch = LAYOUT.unpack([self._value(name) if bound >= 10.0 else None for name, bound in pairs])
        batch.profiles = {at: WITHHELD for at, name in enumerate(customer_ids) if name == "known-2" and batch.found[at]}
        batch.missing, batch.stale = MissingReason.STORE_AWAY, True
        return batch


def without_store(*parts: ScoreRequest) -> tuple[Sequence[Scores | RequestError], int]:
    scorer = Scorer(Remembering(), cast("Model", FakeModel()), clock=lambda: NOW)
    return asyncio.run(scorer.score(parts)), scorer.counts["stale"]


def test_while_the_store_does_not_answer_requests_that_allow_it_get_stale_scores() -> None:
    unwilling = ScoreRequest(["known-1"])
    willing = ScoreRequest(["known-1", "nobody", "known-2", "known-3"], allow_stale_s=10.0)
    strict = ScoreRequest(["known-1", "known-61"], max_age_s=60.0, allow_stale_s=99.0)
    (refused, stale, checked, too_old), answers = without_store(
        unwilling, willing, strict, ScoreRequest(["known-1"], allow_stale_s=9.0)
    )
    assert isinstance(refused, RequestError)
    assert refused.reason is Reason.FEATURE_STORE_UNAVAILABLE
    assert isinstance(stale, Scores)
    assert reasons(stale) == {1: Reason.FEATURE_STORE_UNAVAILABLE, 2: Reason.CONSENT_WITHHELD}
    assert stale.errors[1].field == "allow_stale"
    assert np.flatnonzero(stale.rows["stale"]).tolist() == [0, 3]
    assert stale.rows["features_as_of"][3] == NOW - 3
    assert isinstance(checked, Scores)
    assert reasons(checked) == {1: Reason.FEATURES_TOO_OLD}
    assert isinstance(too_old, Scores)
    assert reasons(too_old) == {0: Reason.FEATURE_STORE_UNAVAILABLE}
    assert answers == 4


def test_a_slice_of_a_part_may_be_stale_where_another_is_not() -> None:
    part = ScoreRequest(["known-1"] * 3, allow_stale_s=60.0)
    assert part.slice(1, 3).allow_stale_s == 60.0
    (fresh,) = score(part.slice(0, 1))
    ((stale,), _) = without_store(part.slice(1, 3))
    assert isinstance(stale, Scores)
    assert Scores.joined([fresh, stale]).rows["stale"].tolist() == [False, True, True]


def test_an_empty_store_is_reported_as_not_loaded_rather_than_as_unknown_customers() -> None:
    class Empty(FakeStore):
        async def read(self, customer_ids: Sequence[str]) -> StateBatch:
            batch = LAYOUT.unpack([None for _ in customer_ids])
            batch.missing = MissingReason.NOT_LOADED
            return batch

    scorer = Scorer(Empty(), cast("Model", FakeModel()))
    (scores,) = cast("list[Scores]", asyncio.run(scorer.score([ScoreRequest(["known-1"])])))
    assert reasons(scores) == {0: Reason.FEATURES_NOT_LOADED}


def test_no_error_repeats_a_customer_id() -> None:
    (scores,) = score(ScoreRequest(["nobody-4711", "torn"], max_age_s=0.0))
    assert not any("4711" in error.message or "torn" in error.message for error in scores.errors.values())


def test_only_scores_of_parts_that_ask_for_it_are_explained_each_with_its_own_age() -> None:
    ids = ["known-5", "nobody", "known-61", "known-259200"]
    plain, asked, strict = score(
        ScoreRequest(ids), ScoreRequest(ids, max_reasons=3), ScoreRequest(ids, max_age_s=60.0, max_reasons=1)
    )
    assert plain.explanations is None
    assert reasons(plain) == {1: Reason.CUSTOMER_UNKNOWN}
    assert asked.explanations == {0: {"churn": explanation(5, 3)}, 2: {"churn": explanation(61, 3)}}
    assert reasons(asked) == {1: Reason.CUSTOMER_UNKNOWN, 3: Reason.STATE_UNREADABLE}
    assert strict.explanations == {0: {"churn": explanation(5, 1)}}
    assert set(strict.errors) == {1, 2, 3}


def test_a_threshold_is_explained_with_the_figures_of_its_own_call() -> None:
    column = ECONOMICS.index("churn.value_if_won")
    asked = ScoreRequest(["known-1"], max_reasons=1)
    usual, priced = score(asked, asked._replace(economics={column: 9.0}))
    assert usual.explanations is not None
    assert priced.explanations is not None
    first, second = (scores.explanations[0]["churn"].threshold for scores in (usual, priced))  # type: ignore[index]
    assert first is not None
    assert second is not None
    assert (first.margin, first.spend_if_won) == (0.25, 1.0)
    assert (second.margin, second.spend_if_won) == (None, None)


def test_a_slice_asks_for_explanations_too_and_they_come_back_in_place() -> None:
    part = ScoreRequest(["known-1", "known-2", "nobody", "known-3"], max_reasons=2)
    (first,), (second,) = score(part.slice(0, 2)), score(part.slice(2, 4))
    joined = Scores.joined([first, second])
    assert joined.explanations == {at: {"churn": explanation(age_s, 2)} for at, age_s in ((0, 1), (1, 2), (3, 3))}
