"""Requests are checked field by field before anything is done, and replies are what protobuf itself would write."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from tidemark.v1 import scoring_pb2

from feature_store.bundles.bundle import ECONOMICS
from feature_store.state.profile import Interest
from service.api.scoring import (
    ENCODED_EXPLAINED_ROWS,
    ENCODED_ROWS,
    METHODS,
    decode_batch,
    decode_score,
    encode_batch,
    encode_score,
)
from service.errors import Reason, RequestError
from service.scoring.types import ScoreRequest, Scores, mute, rows_of
from tidemark.explanation import Contribution, Explanation, SlotValue, ThresholdExplanation
from tidemark.messages.scoring import score_of

ROW = [0.25, 0.5, 120.0, 0.3, 0.5, 30.0, 7.5, 1_700_000_000.25]

BAD_IDS = {
    "empty": "",
    "257 bytes": "x" * 257,
    "over 256 bytes in fewer characters": "é" * 129,
    "new line": "a\nb",
    "NUL": "\x00",
    "zero-width space": "a\u200bb",
    "private use": "\ue000",
}


def score_request(**fields: object) -> bytes:
    return scoring_pb2.ScoreCustomerRequest(**fields).SerializeToString()  # type: ignore[arg-type]


def batch_request(**fields: object) -> bytes:
    return scoring_pb2.BatchScoreCustomersRequest(**fields).SerializeToString()  # type: ignore[arg-type]


def refusal(data: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_score(data)
    return caught.value


@pytest.mark.parametrize("customer_id", BAD_IDS.values(), ids=BAD_IDS)
def test_a_bad_id_is_refused_without_being_repeated(customer_id: str) -> None:
    error = refusal(score_request(customer_id=customer_id))
    assert (error.reason, error.field) == (Reason.CUSTOMER_ID_INVALID, "customer_id")
    assert not customer_id or customer_id not in error.message


@pytest.mark.parametrize("customer_id", ["7", "x" * 256, "é" * 128, "客户 42", "a b", "../../etc"])
def test_any_printable_id_of_up_to_256_bytes_is_taken(customer_id: str) -> None:
    assert decode_score(score_request(customer_id=customer_id)).customer_ids == [customer_id]


def test_a_bad_id_in_a_batch_spoils_only_itself() -> None:
    part = decode_batch(batch_request(customer_ids=["a", "", "b", "x" * 300]))
    assert part.customer_ids == ["a", "", "b", ""]
    assert {at: error.field for at, error in part.refused.items()} == {1: "customer_ids", 3: "customer_ids"}


def test_a_thousand_ids_are_taken_and_one_more_is_not() -> None:
    assert len(decode_batch(batch_request(customer_ids=["a"] * 1000)).customer_ids) == 1000
    with pytest.raises(RequestError, match="at most 1000") as caught:
        decode_batch(batch_request(customer_ids=["a"] * 1001))
    assert (caught.value.reason, caught.value.field) == (Reason.TOO_MANY_CUSTOMERS, "customer_ids")


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"GET / HTTP/1.1"])
@pytest.mark.parametrize("path", METHODS)
def test_bytes_that_are_no_request_are_refused_as_malformed(path: str, data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        METHODS[path].decode(data)
    assert caught.value.reason is Reason.REQUEST_MALFORMED


def test_unset_economics_keep_the_models_defaults() -> None:
    assert decode_score(score_request(customer_id="a")).economics == {}
    economics = scoring_pb2.Economics(churn=scoring_pb2.Offer())
    assert decode_score(score_request(customer_id="a", economics=economics)).economics == {}


def test_every_figure_of_the_economics_lands_in_its_column() -> None:
    offers = {
        offer: scoring_pb2.Offer(
            contact_cost=base + 0.1,
            offer_cost=base + 0.2,
            success_rate=base / 10 + 0.03,
            redemption_rate=base / 10 + 0.04,
            budget_price=base + 0.5,
            value_if_won=base + 40.0,
        )
        for offer, base in (("churn", 1.0), ("propensity", 2.0))
    }
    economics = scoring_pb2.Economics(margin=0.4, **offers)
    result = decode_score(score_request(customer_id="a", economics=economics)).economics
    named = {ECONOMICS[column]: round(figure, 6) for column, figure in result.items()}
    assert named == {
        "margin": 0.4,
        "churn.contact_cost": 1.1,
        "churn.offer_cost": 1.2,
        "churn.success_rate": 0.13,
        "churn.redemption_rate": 0.14,
        "churn.budget_price": 1.5,
        "propensity.contact_cost": 2.1,
        "propensity.offer_cost": 2.2,
        "propensity.success_rate": 0.23,
        "propensity.redemption_rate": 0.24,
        "propensity.budget_price": 2.5,
        "churn.value_if_won": 41.0,
        "propensity.value_if_won": 42.0,
    }


def test_a_zero_in_the_economics_is_a_figure_not_a_default() -> None:
    economics = scoring_pb2.Economics(propensity=scoring_pb2.Offer(contact_cost=0.0))
    assert list(decode_score(score_request(customer_id="a", economics=economics)).economics.values()) == [0.0]


@pytest.mark.parametrize("figure", [-0.01, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ECONOMICS)
def test_a_figure_out_of_range_is_refused_by_name(name: str, figure: float) -> None:
    error = refusal(score_request(customer_id="a", economics=_economics(name, figure)))
    assert (error.reason, error.field) == (Reason.ECONOMICS_INVALID, f"economics.{name}")


@pytest.mark.parametrize("name", [name for name in ECONOMICS if name.endswith(("rate", "margin"))])
def test_a_share_above_one_is_refused(name: str) -> None:
    assert "0 to 1" in refusal(score_request(customer_id="a", economics=_economics(name, 1.01))).message


def _economics(name: str, figure: float) -> scoring_pb2.Economics:
    offer, _, field = name.rpartition(".")
    if not offer:
        return scoring_pb2.Economics(margin=figure)
    return scoring_pb2.Economics(**{offer: scoring_pb2.Offer(**{field: figure})})  # type: ignore[arg-type]


def test_a_feature_age_is_read_in_seconds() -> None:
    duration = Duration(seconds=90, nanos=500_000_000)
    assert decode_score(score_request(customer_id="a", max_feature_age=duration)).max_age_s == 90.5
    assert decode_score(score_request(customer_id="a", max_feature_age=Duration())).max_age_s == 0.0
    assert decode_score(score_request(customer_id="a")).max_age_s is None


@pytest.mark.parametrize(("seconds", "nanos"), [(-1, 0), (0, -1), (0, 1_000_000_000), (10**12, 0)])
def test_a_feature_age_out_of_range_is_refused(seconds: int, nanos: int) -> None:
    error = refusal(score_request(customer_id="a", max_feature_age=Duration(seconds=seconds, nanos=nanos)))
    assert (error.reason, error.field) == (Reason.MAX_FEATURE_AGE_INVALID, "max_feature_age")


def test_how_stale_a_score_may_be_is_a_duration() -> None:
    assert decode_score(score_request(customer_id="a")).allow_stale_s is None
    assert decode_score(score_request(customer_id="a", allow_stale=Duration(seconds=5))).allow_stale_s == 5.0
    batch = scoring_pb2.BatchScoreCustomersRequest(customer_ids=["a"], allow_stale=Duration()).SerializeToString()
    assert decode_batch(batch).allow_stale_s == 0.0
    error = refusal(score_request(customer_id="a", allow_stale=Duration(seconds=-1)))
    assert (error.reason, error.field) == (Reason.ALLOW_STALE_INVALID, "allow_stale")


probabilities = st.floats(0, 1, width=32)
amounts = st.floats(0, 1e9, width=32)
rows = st.tuples(
    probabilities, probabilities, amounts, probabilities, probabilities, amounts, amounts, st.floats(0, 2.5e11)
).map(list)
ids = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=64)


tops = st.none() | st.builds(
    Interest,
    st.text(max_size=64),
    st.integers(1, 2**32 - 1),
    st.just(1.0),
    st.sampled_from([0.0, 0.999999999, 2.5e11]) | st.floats(0, 2.5e11),
)


class Flags(NamedTuple):
    """What is true of a customer's score beside the figures."""

    off: bool = False
    repeated_view: bool = False
    churn_spike: bool = False
    propensity_spike: bool = False
    stale: bool = False


flags = st.builds(Flags, *[st.booleans()] * 5)
Customer = tuple[str, list[float], Flags, Interest | None]
customers = st.tuples(ids, rows, flags, tops)


def scores_of(customers: Sequence[Customer], version: str, **fields: Any) -> Scores:
    """Scores with these flags, as the scorer makes them."""
    made = rows_of(np.array([row for _, row, _, _ in customers]))
    mute(made, [at for at, (_, _, flags, _) in enumerate(customers) if flags.off])
    for row, (_, _, flags, _) in zip(made, customers, strict=True):
        row["churn"]["spike"], row["propensity"]["spike"] = flags.churn_spike, flags.propensity_spike
        row["propensity"]["repeated_view"], row["stale"] = flags.repeated_view, flags.stale
    tops = {at: top for at, (_, _, _, top) in enumerate(customers) if top is not None}
    return Scores(made, fields.pop("errors", {}), version, tops, **fields)


def timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def expected_reply(customer: Customer, version: str) -> scoring_pb2.Score:
    """The reply as protobuf itself builds it."""
    customer_id, row, flags, top = customer
    churn, propensity, spend, churn_threshold, propensity_threshold, churn_value, propensity_value, as_of = row
    reply = scoring_pb2.Score(
        customer_id=customer_id,
        churn=scoring_pb2.Alert(
            probability=churn,
            threshold=churn_threshold,
            alert=churn >= churn_threshold and not flags.off,
            automated_response_off=flags.off,
            spike=flags.churn_spike,
            value_if_won=churn_value,
        ),
        propensity=scoring_pb2.Alert(
            probability=propensity,
            threshold=propensity_threshold,
            alert=propensity >= propensity_threshold and not flags.off,
            repeated_view=flags.repeated_view,
            automated_response_off=flags.off,
            spike=flags.propensity_spike,
            value_if_won=propensity_value,
        ),
        expected_spend=spend,
        feature_time=timestamp(as_of),
        model_version=version,
        stale=flags.stale,
    )
    if top is not None:
        reply.top_interest.CopyFrom(
            scoring_pb2.Interest(item_id=top.item_id, views=top.views, last_view_time=timestamp(top.at))
        )
    return reply


@given(batch=st.lists(customers, min_size=1, max_size=5), version=st.sampled_from(["v", "x" * 200]))
def test_replies_say_what_protobuf_would_say(batch: list[Customer], version: str) -> None:
    request = ScoreRequest([customer_id for customer_id, *_ in batch])
    scores = scores_of(batch, version)
    response = scoring_pb2.BatchScoreCustomersResponse.FromString(encode_batch(request, scores))
    expected = [expected_reply(customer, version) for customer in batch]
    assert [result.score for result in response.results] == expected
    assert [result.customer_id for result in response.results] == [customer_id for customer_id, *_ in batch]
    assert all(result.WhichOneof("result") == "score" for result in response.results)
    assert scoring_pb2.ScoreCustomerResponse.FromString(encode_score(request, scores)).score == expected[0]


@given(customer=customers)
def test_replies_hold_nothing_that_the_contract_does_not_know(customer: Customer) -> None:
    encoded = encode_score(ScoreRequest([customer[0]]), scores_of([customer], "v"))
    reply = scoring_pb2.ScoreCustomerResponse.FromString(encoded)
    whole = reply.ByteSize()
    reply.DiscardUnknownFields()
    assert reply.ByteSize() == whole


def test_the_largest_reply_of_a_customer_can_be_written() -> None:
    top = Interest("客" * 85 + "x", 2**32 - 1, 1.0, 253_402_300_799.5)
    customer = "é" * 128, [*ROW[:7], 253_402_300_799.5], Flags(*[True] * 5), top
    version = "v" * 255
    encoded = encode_batch(ScoreRequest([customer[0]] * 1000), scores_of([customer] * 1000, version))
    response = scoring_pb2.BatchScoreCustomersResponse.FromString(encoded)
    assert [result.score for result in response.results] == [expected_reply(customer, version)] * 1000


def test_flags_and_interests_are_those_of_their_own_customer() -> None:
    errors = {2: RequestError(Reason.CONSENT_WITHHELD, "withheld", "customer_id")}
    row, top = [0.9, 0.9, *ROW[2:]], Interest("lamp", 3, 1.0, 1_700_000_000.5)
    muted = Flags(off=True), top
    batch: list[Customer] = [
        (name, row, *(muted if name in "bc" else (Flags(), None))) for name in ("a", "b", "c", "d")
    ]
    encoded = encode_batch(ScoreRequest(["a", "b", "c", "d"]), scores_of(batch, "v", errors=errors))
    results = scoring_pb2.BatchScoreCustomersResponse.FromString(encoded).results
    assert [result.WhichOneof("result") for result in results] == ["score", "score", "status", "score"]
    assert [result.score.churn.alert for result in results] == [True, False, False, True]
    assert [result.score.propensity.automated_response_off for result in results] == [False, True, False, False]
    assert [result.score.HasField("top_interest") for result in results] == [False, True, False, False]
    assert results[2].status.code == 7


def test_a_batch_gives_each_id_a_score_or_a_status_of_its_own() -> None:
    errors = {
        1: RequestError(Reason.CUSTOMER_UNKNOWN, "unknown", "customer_id"),
        2: RequestError(Reason.FEATURES_TOO_OLD, "old", "max_feature_age"),
    }
    encoded = encode_batch(ScoreRequest(["a", "b", "c"]), Scores(rows_of(np.array([ROW] * 3)), errors, "v"))
    results = scoring_pb2.BatchScoreCustomersResponse.FromString(encoded).results
    assert [result.WhichOneof("result") for result in results] == ["score", "status", "status"]
    assert [result.customer_id for result in results] == ["a", "b", "c"]
    assert [result.status.code for result in results] == [0, 5, 9]
    assert b"customer_ids" in results[1].status.details[0].value
    assert b"max_feature_age" in results[2].status.details[0].value


def test_the_error_of_a_single_customer_is_the_error_of_the_call() -> None:
    error = RequestError(Reason.CUSTOMER_UNKNOWN, "unknown", "customer_id")
    with pytest.raises(RequestError) as caught:
        encode_score(ScoreRequest(["a"]), Scores(rows_of(np.array([ROW])), {0: error}, "v"))
    assert caught.value is error


def test_explanations_are_asked_for_with_five_reasons_or_as_many_as_wanted() -> None:
    for decode, request in ((decode_score, {"customer_id": "a"}), (decode_batch, {"customer_ids": ["a"] * 100})):
        made = score_request if decode is decode_score else batch_request
        assert decode(made(**request)).max_reasons is None
        assert decode(made(**request, max_reasons=9)).max_reasons is None
        for asked, expected in ((0, 5), (9, 9), (2**32 - 1, 2**32 - 1)):
            assert decode(made(**request, explain=True, max_reasons=asked)).max_reasons == expected


def test_more_than_a_hundred_customers_are_too_many_to_explain() -> None:
    assert len(decode_batch(batch_request(customer_ids=["a"] * 101)).customer_ids) == 101
    with pytest.raises(RequestError, match="at most 100") as caught:
        decode_batch(batch_request(customer_ids=["a"] * 101, explain=True))
    assert (caught.value.reason, caught.value.field) == (Reason.TOO_MANY_EXPLAINED, "customer_ids")


WHY = Explanation(
    0.2,
    [
        Contribution("age", 0.1, "AGE_UNKNOWN", "Why.", [SlotValue("age", None, 40.0, "", "not known", "40")]),
        Contribution("region", -0.06, "REGION_DIFFERS", "Why not.", []),
    ],
    0.01,
    exact=True,
    threshold=ThresholdExplanation(23.0, 0.25, 92.0, 0.1, None, 0.2, 0.1, 1.0, 3.9, None, "From 32.6 % on."),
)


def test_an_explanation_stands_with_its_alert() -> None:
    flags = Flags(off=True, churn_spike=True)
    plain = scores_of([("a", ROW, flags, Interest("shoe", 3, 1.0, 1.7e9))], "v1")
    scores = plain._replace(explanations={0: {"churn": WHY}})
    reply = scoring_pb2.ScoreCustomerResponse.FromString(encode_score(ScoreRequest(["a"]), scores)).score
    reported = reply.churn.explanation
    assert (reported.baseline_probability, reported.other_contribution, reported.exact) == (0.2, 0.01, True)
    assert [item.direction for item in reported.contributions] == [1, 2]
    assert [item.reason_code for item in reported.contributions] == ["AGE_UNKNOWN", "REGION_DIFFERS"]
    slot = reported.contributions[0].slots[0]
    assert (slot.HasField("value"), slot.typical, slot.text) == (False, 40.0, "not known")
    assert not reply.propensity.HasField("explanation")
    assert (reported.threshold.value_if_won, reported.threshold.spend_if_won, reported.threshold.budget_price) == (
        23.0,
        92.0,
        1.0,
    )
    assert (reported.threshold.HasField("offer_cost"), reported.threshold.HasField("cost_if_other")) == (False, False)
    assert score_of(reply).churn.explanation == WHY  # as the client reads it
    reply.churn.ClearField("explanation")
    assert reply == scoring_pb2.ScoreCustomerResponse.FromString(encode_score(ScoreRequest(["a"]), plain)).score


def test_in_a_batch_each_has_its_own_explanation_or_error() -> None:
    error = RequestError(Reason.CUSTOMER_UNKNOWN, "who", "customer_id")
    flags = Flags(repeated_view=True, propensity_spike=True)
    batch = [("a", ROW, Flags(), None), ("b", ROW, Flags(), None), ("c", [0.5, *ROW[1:]], flags, None)]
    plain, part = scores_of(batch, "v1"), ScoreRequest(["a", "b", "c"])
    scores = plain._replace(errors={1: error}, explanations={0: {"churn": WHY}, 2: {"propensity": WHY}})
    results = scoring_pb2.BatchScoreCustomersResponse.FromString(encode_batch(part, scores)).results
    assert [result.WhichOneof("result") for result in results] == ["score", "status", "score"]
    assert [result.customer_id for result in results] == ["a", "b", "c"]
    assert results[0].score.churn.explanation.contributions[0].sentence == "Why."
    assert results[2].score.propensity.explanation == results[0].score.churn.explanation
    for result in results:
        result.score.churn.ClearField("explanation")
        result.score.propensity.ClearField("explanation")
    expected = scoring_pb2.BatchScoreCustomersResponse.FromString(encode_batch(part, plain)).results
    assert [results[0], results[2]] == [expected[0], expected[2]]


def test_a_reply_that_is_encoded_in_slices_is_the_same_and_others_run_in_between() -> None:
    batch: list[Customer] = [
        (f"c{at}", [at / 1000, *ROW[1:]], Flags(off=at % 3 == 0, stale=at % 5 == 0), tops_of(at)) for at in range(1000)
    ]
    unknown = RequestError(Reason.CUSTOMER_UNKNOWN, "unknown", "customer_id")
    plain = scores_of(batch, "v", errors=dict.fromkeys(range(100, 1000, 7), unknown))
    mixed = plain._replace(versions=["v" if at % 2 else "w" for at in range(1000)])
    explained = scores_of(batch[:100], "v")._replace(explanations={at: {"churn": WHY} for at in range(0, 100, 3)})
    method = METHODS["/tidemark.v1.ScoringService/BatchScoreCustomers"]
    for scores, rows in ((plain, ENCODED_ROWS), (mixed, ENCODED_ROWS), (explained, ENCODED_EXPLAINED_ROWS)):
        request = ScoreRequest([name for name, *_ in batch[: len(scores.rows)]])
        assert not method.encodes_at_once(scores)
        assert method.encodes_at_once(scores.slice(0, rows))
        turns = 0

        async def encode(request: ScoreRequest = request, scores: Scores = scores) -> bytes:
            async def count_turns() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.create_task(count_turns())
            encoded = await method.encode_in_slices(request, scores)
            counting.cancel()
            return encoded

        assert asyncio.run(encode()) == encode_batch(request, scores)
        assert turns >= math.ceil(len(scores.rows) / rows) - 1


def tops_of(at: int) -> Interest | None:
    return Interest(f"item-{at}", 1 + at, 1.0, 1.7e9 + at) if at % 2 else None
