"""Who answers whom: the draw of a canary, batches of both models put together, a shadow that harms nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemark.v1 import scoring_pb2

from service.api.scoring import encode_batch, encode_score
from service.errors import Reason, RequestError
from service.scoring.model import Model
from service.scoring.model_router import ModelRouter, ModelSet, ServingModel, drawn, in_canary
from service.scoring.scorer import Scorer
from service.scoring.shadow import BATCH_ROWS, MAX_WAITING_ROWS, Shadow
from service.scoring.types import ScoreRequest, Scores, mute, rows_of

IDS = st.lists(st.text(max_size=20), max_size=30)
SHARES = st.floats(0, 1)


class FakeModel:
    def __init__(self, version: str) -> None:
        self.version = version


class FakeScorer:
    """Every probability is that of the model; an id says by its first letter what else is to be told."""

    def __init__(self, version: str, probability: float) -> None:
        self.version, self.probability = version, probability
        self.asked: list[list[ScoreRequest]] = []
        self.failure: Exception | None = None

    async def score(self, parts: Sequence[ScoreRequest]) -> list[Scores]:
        self.asked.append(list(parts))
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return [self._scores(part) for part in parts]

    def _scores(self, part: ScoreRequest) -> Scores:
        ids = part.customer_ids
        table = np.array([[self.probability, 0.5, float(len(name)), 0.4, 0.9, 30.0, 7.0, 1.7e9] for name in ids])
        unknown = RequestError(Reason.CUSTOMER_UNKNOWN, "nobody", "customer_id")
        errors = {at: unknown for at, name in enumerate(ids) if name.startswith("?")} | dict(part.refused)
        rows = rows_of(table)
        mute(rows, [at for at, name in enumerate(ids) if name.startswith("!")])
        return Scores(rows, errors, self.version)


def served(version: str, probability: float) -> tuple[ServingModel, FakeScorer]:
    scorer = FakeScorer(version, probability)
    return ServingModel(cast("Model", FakeModel(version)), cast("Scorer", scorer)), scorer


def shadow_of(scorer: FakeScorer) -> Shadow:
    return Shadow(cast("Model", FakeModel(scorer.version)), cast("Scorer", scorer))


# --- the draw -------------------------------------------------------------------------------------------------------


@given(st.text(), SHARES, SHARES)
def test_a_customer_of_a_canary_is_in_every_larger_canary(customer_id: str, one: float, other: float) -> None:
    smaller, larger = sorted([one, other])
    assert in_canary([customer_id], smaller) <= in_canary([customer_id], larger)


@given(IDS, SHARES)
def test_a_customer_is_drawn_alone_as_among_others(ids: list[str], share: float) -> None:
    assert in_canary(ids, share) == [in_canary([name], share)[0] for name in ids]


@given(st.text())
def test_a_share_of_zero_contains_no_customer_and_a_share_of_one_all(customer_id: str) -> None:
    assert 0 <= drawn(customer_id) < 1
    assert in_canary([customer_id], 0.0) == [False]
    assert in_canary([customer_id], 1.0) == [True]


def test_a_draw_is_the_same_in_every_process_and_release() -> None:
    assert [round(drawn(name), 6) for name in ("900", "客户")] == [0.517976, 0.36656]


@pytest.mark.parametrize("pattern", ["{}", "{:06d}", "customer-{}", "{}@example.com"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_customers_is_as_requested_for_ids_of_any_pattern(pattern: str, share: float) -> None:
    count = 20_000
    result = sum(in_canary([pattern.format(number) for number in range(count)], share))
    assert abs(result - count * share) < 5 * np.sqrt(count * share * (1 - share))


# --- batches of both ------------------------------------------------------------------------------------------------


@given(st.lists(IDS.filter(bool), min_size=1, max_size=4), SHARES)
def test_each_customer_of_a_batch_is_answered_by_the_right_model_in_the_right_place(
    batch: list[list[str]], share: float
) -> None:
    (active, _), (canary, _) = served("old", 0.1), served("new", 0.2)
    router = ModelRouter(ModelSet(active, canary, share))
    refusal = RequestError(Reason.CUSTOMER_ID_INVALID, "bad", "customer_ids")
    parts = [ScoreRequest(ids, {0: 0.5}, 60.0, {0: refusal} if len(ids) > 1 else {}) for ids in batch]
    for part, scores in zip(parts, asyncio.run(router.score(parts)), strict=True):
        assert isinstance(scores, Scores)
        names = scores.versions or [scores.model_version] * len(part.customer_ids)
        wanted = ["new" if chosen else "old" for chosen in in_canary(part.customer_ids, share)]
        assert list(names) == wanted
        assert scores.rows["churn"]["probability"].tolist() == [{"old": 0.1, "new": 0.2}[name] for name in wanted]
        assert scores.rows["expected_spend"].tolist() == [len(name) for name in part.customer_ids]
        unknown = {at for at, name in enumerate(part.customer_ids) if name.startswith("?")}
        assert set(scores.errors) == unknown | set(part.refused)
        assert all(scores.errors[at] is refusal for at in part.refused)
        muted = scores.rows["churn"]["automated_response_off"].tolist()
        assert muted == [name.startswith("!") for name in part.customer_ids]


def test_the_terms_of_a_call_reach_both_models() -> None:
    (active, item), (canary, two) = served("old", 0.1), served("new", 0.2)
    ids = [str(number) for number in range(50)]
    asyncio.run(ModelRouter(ModelSet(active, canary, 0.5)).score([ScoreRequest(ids, {3: 9.0}, 60.0)]))
    for scorer in (item, two):
        ((part,),) = scorer.asked
        assert (part.economics, part.max_age_s) == ({3: 9.0}, 60.0)
    assert sorted([*item.asked[0][0].customer_ids, *two.asked[0][0].customer_ids]) == sorted(ids)


def test_a_store_that_is_away_fails_a_mixed_batch_as_it_fails_any() -> None:
    (active, _), (canary, scorer) = served("old", 0.1), served("new", 0.2)
    scorer.failure = RequestError(Reason.FEATURE_STORE_UNAVAILABLE, "away")
    with pytest.raises(RequestError) as caught:
        asyncio.run(ModelRouter(ModelSet(active, canary, 0.5)).score([ScoreRequest([str(n) for n in range(20)])]))
    assert caught.value.reason is Reason.FEATURE_STORE_UNAVAILABLE


def test_without_a_canary_a_batch_is_handed_on_as_it_is() -> None:
    active, scorer = served("old", 0.1)
    part = ScoreRequest(["a"])
    asyncio.run(ModelRouter(ModelSet(active)).score([part]))
    assert scorer.asked == [[part]]


def test_slices_that_a_switch_has_come_between_name_the_model_of_each_row() -> None:
    slices = [Scores(rows_of(np.full((2, 8), 1.7e9)), {}, version) for version in ("old", "old", "new")]
    joined = Scores.joined(slices)
    assert joined.versions == ["old"] * 4 + ["new"] * 2
    reply = scoring_pb2.BatchScoreCustomersResponse.FromString(encode_batch(ScoreRequest(list("abcdef")), joined))
    assert [result.score.model_version for result in reply.results] == joined.versions
    assert Scores.joined(slices[:2]).versions is None


def test_versions_of_rows_are_written_as_the_generated_messages_have_them() -> None:
    rows = rows_of(np.array([[0.1, 0.2, 3.0, 0.4, 0.5, 30.0, 7.0, 1.7e9 + at] for at in range(3)]))
    mixed = Scores(rows, {}, "v1", versions=["v1", "v2", "v1"])
    reply = scoring_pb2.BatchScoreCustomersResponse.FromString(encode_batch(ScoreRequest(["a", "b", "c"]), mixed))
    for at, result in enumerate(reply.results):
        alone = Scores(rows[at : at + 1], {}, ["v1", "v2", "v1"][at])
        wanted = scoring_pb2.ScoreCustomerResponse.FromString(encode_score(ScoreRequest(["abc"[at]]), alone))
        assert result.score == wanted.score


# --- the shadow -----------------------------------------------------------------------------------------------------


async def settle(shadow: Shadow) -> None:
    if shadow._task is not None:
        await shadow._task


def test_a_shadow_counts_how_its_answers_differ() -> None:
    async def run() -> Shadow:
        active, _ = served("old", 0.1)
        shadow = shadow_of(FakeScorer("new", 0.6))
        router = ModelRouter(ModelSet(active, shadow=shadow))
        scores: list[Any] = [*await router.score([ScoreRequest(["a", "?", "b"]), ScoreRequest(["c"])])]
        assert [s.model_version for s in scores] == ["old", "old"]
        await settle(shadow)
        return shadow

    shadow = asyncio.run(run())
    assert (shadow.compared, shadow.unscored, shadow.dropped) == (3, 0, 0)
    churn, propensity = (shadow.differences[offer] for offer in ("churn", "propensity"))
    assert (round(shadow.mean("churn"), 9), round(churn.largest, 9), churn.alerts) == (0.5, 0.5, 3)  # beyond 0.4
    assert (propensity.total, propensity.largest, propensity.alerts) == (0.0, 0.0, 0)


def test_a_shadow_works_after_the_answer_and_never_fails_it() -> None:
    async def run() -> tuple[Shadow, FakeScorer]:
        active, _ = served("old", 0.1)
        scorer = FakeScorer("new", 0.6)
        scorer.failure = ValueError("a fault")
        shadow = shadow_of(scorer)
        await ModelRouter(ModelSet(active, shadow=shadow)).score([ScoreRequest(["a"])])
        assert scorer.asked == []
        await settle(shadow)
        return shadow, scorer

    shadow, scorer = asyncio.run(run())
    assert len(scorer.asked) == 1
    assert (shadow.compared, shadow.dropped) == (0, 1)


def test_a_shadow_that_falls_behind_drops_calls() -> None:
    async def run() -> tuple[Shadow, FakeScorer]:
        active, _ = served("old", 0.1)
        scorer = FakeScorer("new", 0.6)
        shadow = shadow_of(scorer)
        parts = [ScoreRequest(["a"] * 100) for _ in range(50)]
        shadow.compare_later(parts, await active.scorer.score(parts))
        await settle(shadow)
        return shadow, scorer

    shadow, scorer = asyncio.run(run())
    assert shadow.compared <= MAX_WAITING_ROWS
    assert shadow.compared + shadow.dropped == 5000
    assert max(sum(len(part.customer_ids) for part in parts) for parts in scorer.asked) < BATCH_ROWS + 100


def test_a_shadow_begins_anew_when_another_model_answers() -> None:
    async def run() -> ModelSet:
        (active, _), (later, _) = served("old", 0.1), served("later", 0.1)
        shadow = shadow_of(FakeScorer("new", 0.6))
        router = ModelRouter(ModelSet(active, shadow=shadow))
        await router.score([ScoreRequest(["a"])])
        await settle(shadow)
        assert shadow.compared == 1
        return router.model_set.with_active(later)

    shadow = asyncio.run(run()).shadow
    assert shadow is not None
    assert (shadow.compared, shadow.model.version) == (0, "new")
