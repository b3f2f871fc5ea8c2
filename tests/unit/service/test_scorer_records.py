"""What records have to say to scores: consent, interests, and the guards that are shown what alerts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from feature_store.bundles.bundle import ECONOMICS, OUTPUTS
from feature_store.definitions import Feature, Interests
from feature_store.state.layout import Floats, State, StateBatch, StateLayout
from feature_store.state.profile import MIN_INTEREST_WEIGHT, Interest, ProfileSummary
from service.errors import Code, Reason, RequestError
from service.scoring import row_errors
from service.scoring.alert_spikes import SpikeGuard
from service.scoring.model import Model
from service.scoring.scorer import Guards, Scorer
from service.scoring.types import SCORE_ROW, ScoreRequest, Scores
from service.telemetry.logs import CustomerLog

NOW = 1_800_000_000.0
LAYOUT = StateLayout([Feature(name="visits", event="visit", aggregate="count", half_life_days=7)])
RULES = Interests(half_life_days=7, repeated_views=3)
LAMP = Interest("lamp", 3, 2.5, NOW - 60)
ONCE = Interest("sofa", 1, 1.0, NOW - 60)

TOLD: Mapping[str, ProfileSummary] = {
    "lamp": ProfileSummary(scoring=True, automated_response=True, top=LAMP),
    "lamp-calm": ProfileSummary(scoring=True, automated_response=True, top=LAMP),
    "once": ProfileSummary(scoring=True, automated_response=True, top=ONCE),
    "once-calm": ProfileSummary(scoring=True, automated_response=True, top=ONCE),
    "off": ProfileSummary(scoring=True, automated_response=False, top=None),
    "off-lamp": ProfileSummary(scoring=True, automated_response=False, top=LAMP),
    "withheld": ProfileSummary(scoring=False, automated_response=True, top=LAMP),
    "withheld-off": ProfileSummary(scoring=False, automated_response=False, top=None),
    "withheld-unknown": ProfileSummary(scoring=False, automated_response=True, top=None),
    "torn-lamp": ProfileSummary(scoring=True, automated_response=True, top=LAMP),
}


class FakeStore:
    """Customers with the records above; those named ``…-unknown`` have no state, ``torn…`` half of one."""

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        batch = LAYOUT.unpack([self._value(customer_id) for customer_id in customer_ids])
        batch.profiles = {row: TOLD[name] for row, name in enumerate(customer_ids) if name in TOLD}
        return batch

    def read_stale(self, customer_ids: Sequence[str], within_s: Sequence[float]) -> StateBatch | None:
        raise NotImplementedError

    def _value(self, customer_id: str) -> bytes | None:
        if "unknown" in customer_id:
            return None
        visits = 0.0 if customer_id.endswith("calm") else 1.0
        value = LAYOUT.pack(State(NOW - 5, np.array([visits])))
        return value[:-1] if customer_id.startswith("torn") else value


class FakeModel:
    """All who have a visit are beyond both thresholds; nobody else is."""

    version = "v1"
    economics = np.array([0.25, *[1.0] * (len(ECONOMICS) - 1)])
    interests = RULES

    def run(self, states: StateBatch, now: float, _economics: Floats) -> Floats:
        assert now == NOW
        table = np.full((len(states.slots), len(OUTPUTS) + 1), 0.5)
        table[:, :2] = np.where(states.slots > 0, 0.75, 0.25)
        table[:, -1] = states.as_of
        return table


@dataclass
class FakeGuard:
    """Remembers what it was shown, and says what it was told to say."""

    total: bool = False
    items: set[str] = field(default_factory=set)
    shown: list[tuple[int, int, list[str]]] = field(default_factory=list)

    def observe(self, answers: int, alerts: int, items: Iterable[str] = ()) -> None:
        self.shown.append((answers, alerts, sorted(items)))

    def in_total(self) -> bool:
        return self.total

    def of_item(self, item: str) -> bool:
        return item in self.items


def score(*requests: ScoreRequest, churn: FakeGuard | None = None, propensity: FakeGuard | None = None) -> list[Scores]:
    guards = cast("Guards", SimpleNamespace(churn=churn or FakeGuard(), propensity=propensity or FakeGuard()))
    scorer = Scorer(FakeStore(), cast("Model", FakeModel()), guards, clock=lambda: NOW)
    return cast("list[Scores]", asyncio.run(scorer.score(requests)))


def reasons(scores: Scores) -> dict[int, Reason]:
    return {at: error.reason for at, error in scores.errors.items()}


def flags(name: str, offer: str = "propensity") -> tuple[bool, bool]:
    """Whether automated responses are off for a customer, and whether there was a repeated view."""
    (scores,) = score(ScoreRequest([name]))
    columns = scores.rows[offer][0]
    return bool(columns["automated_response_off"]), bool(columns["repeated_view"])


def top_interest(name: str) -> Interest | None:
    (scores,) = score(ScoreRequest([name]))
    return scores.top_interests.get(0)


def column(scores: Scores, offer: str, name: str) -> list[bool]:
    return cast("list[bool]", scores.rows[offer][name].tolist())


# --- consent --------------------------------------------------------------------------------------------------------


def test_without_consent_there_is_no_score_for_this_customer_alone() -> None:
    (scores,) = score(ScoreRequest(["plain", "withheld", "lamp", "withheld-unknown", "unknown", "withheld-off"]))
    assert reasons(scores) == {
        1: Reason.CONSENT_WITHHELD,
        3: Reason.CONSENT_WITHHELD,
        4: Reason.CUSTOMER_UNKNOWN,
        5: Reason.CONSENT_WITHHELD,
    }
    assert (scores.errors[1].code, scores.errors[1].field) == (Code.PERMISSION_DENIED, "customer_id")
    assert scores.rows["churn"]["probability"][[0, 2]].tolist() == [0.75, 0.75]


def test_the_row_of_a_customer_without_consent_is_blank() -> None:
    (scores,) = score(ScoreRequest(["withheld", "plain"]))
    assert scores.rows[0] == np.zeros((), SCORE_ROW)
    assert scores.top_interests == {}


def test_consent_comes_before_any_other_reason() -> None:
    (scores,) = score(ScoreRequest(["withheld", "plain"], max_age_s=1.0))
    assert reasons(scores) == {0: Reason.CONSENT_WITHHELD, 1: Reason.FEATURES_TOO_OLD}


def test_each_request_gets_the_errors_and_interests_of_its_own_customers() -> None:
    error = RequestError(Reason.CUSTOMER_ID_INVALID, "empty", "customer_ids")
    item, two, three = score(
        ScoreRequest(["plain", "lamp"]),
        ScoreRequest(["", "withheld", "off"], refused={0: error}),
        ScoreRequest(["withheld"]),
    )
    assert [reasons(scores) for scores in (item, two, three)] == [
        {},
        {0: Reason.CUSTOMER_ID_INVALID, 1: Reason.CONSENT_WITHHELD},
        {0: Reason.CONSENT_WITHHELD},
    ]
    assert [dict(scores.top_interests) for scores in (item, two, three)] == [{1: LAMP}, {}, {}]
    assert column(item, "churn", "automated_response_off") == [False, False]
    assert column(two, "churn", "automated_response_off") == [False, False, True]


def test_no_error_repeats_a_customer_id() -> None:
    (scores,) = score(ScoreRequest(["withheld"]))
    assert "withheld " not in scores.errors[0].message


def test_only_what_is_damaged_is_logged_and_not_a_missing_consent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CustomerLog()
    monkeypatch.setattr(row_errors, "customers", log)
    score(ScoreRequest(["withheld", "torn", "unknown", "withheld-off"]))
    assert [record.getMessage() for record in caplog.records] == [
        f"customer {log.hashed('torn')}: what is stored cannot be used"
    ]


# --- records --------------------------------------------------------------------------------------------------------


def test_a_customer_without_a_record_has_no_top_interest() -> None:
    assert top_interest("plain") is None
    assert flags("plain") == flags("plain", "churn") == (False, False)


def test_the_top_interest_is_returned_and_whether_it_was_viewed_often_enough() -> None:
    for name, repeated, top in (("lamp", True, LAMP), ("lamp-calm", True, LAMP), ("once", False, ONCE)):
        assert top_interest(name) == top
        assert flags(name) == (False, repeated)
        assert flags(name, "churn") == (False, False)


def test_a_repeated_view_needs_consent_to_automated_responses() -> None:
    assert top_interest("off-lamp") == LAMP
    assert flags("off-lamp") == (True, False)


def test_a_customer_without_consent_to_automated_responses_never_alerts() -> None:
    (scores,) = score(ScoreRequest(["plain", "off", "off-lamp", "calm"]))
    for offer in ("churn", "propensity"):
        assert column(scores, offer, "alert") == [True, False, False, False]
        assert column(scores, offer, "automated_response_off") == [False, True, True, False]


@pytest.mark.parametrize(("half_lives", "counts"), [(4.9, True), (5.1, False)])
def test_an_interest_that_has_faded_is_not_returned(
    monkeypatch: pytest.MonkeyPatch, half_lives: float, *, counts: bool
) -> None:
    top = Interest("lamp", 9, 1.0, NOW - half_lives * RULES.half_life_s)
    assert (top.weight_at(NOW, RULES.half_life_s) >= MIN_INTEREST_WEIGHT) is counts
    monkeypatch.setitem(
        cast("dict[str, ProfileSummary]", TOLD), "faded", ProfileSummary(scoring=True, automated_response=True, top=top)
    )
    assert (top_interest("faded"), flags("faded")[1]) == ((top, True) if counts else (None, False))


def test_joined_slices_keep_flags_and_interests_in_place() -> None:
    names = ["plain", "lamp", "unknown", "off"]
    whole, *slices = score(ScoreRequest(names), *(ScoreRequest([name]) for name in names))
    joined = Scores.joined(slices)
    assert (joined.rows == whole.rows).all()
    assert joined.top_interests == whole.top_interests == {1: LAMP}
    assert reasons(joined) == reasons(whole) == {2: Reason.CUSTOMER_UNKNOWN}
    assert column(joined, "propensity", "automated_response_off") == [False, False, False, True]


# --- spikes ---------------------------------------------------------------------------------------------------------


def test_the_guards_are_shown_how_many_answers_alert_and_about_what() -> None:
    churn, propensity = FakeGuard(), FakeGuard()
    score(
        ScoreRequest(["plain", "calm", "lamp"]),
        ScoreRequest(["lamp-calm", "once", "once-calm"]),
        churn=churn,
        propensity=propensity,
    )
    assert churn.shown == [(6, 3, [])]
    # A look repeated often enough is told though the customer is below the threshold; a single one is not.
    assert propensity.shown == [(6, 3, ["lamp", "lamp", "sofa"])]


@pytest.mark.parametrize("name", ["withheld", "unknown", "torn", "torn-lamp", "withheld-off"])
def test_a_customer_without_a_score_is_not_counted_as_an_answer(name: str) -> None:
    churn, propensity = FakeGuard(), FakeGuard()
    score(ScoreRequest(["plain", name, "calm"]), churn=churn, propensity=propensity)
    assert churn.shown == propensity.shown == [(2, 1, [])]


def test_an_answer_without_automated_response_does_not_alert() -> None:
    churn, propensity = FakeGuard(), FakeGuard()
    score(ScoreRequest(["plain", "off", "off-lamp"]), churn=churn, propensity=propensity)
    assert churn.shown == propensity.shown == [(3, 1, [])]


def test_a_spike_in_total_marks_every_answer_about_its_offer() -> None:
    item, two = score(ScoreRequest(["plain"]), ScoreRequest(["calm", "lamp"]), churn=FakeGuard(total=True))
    assert column(item, "churn", "spike") + column(two, "churn", "spike") == [True] * 3
    assert column(item, "propensity", "spike") + column(two, "propensity", "spike") == [False] * 3
    (three,) = score(ScoreRequest(["plain"]), propensity=FakeGuard(total=True))
    assert (column(three, "churn", "spike"), column(three, "propensity", "spike")) == ([False], [True])


def test_a_spike_of_an_item_marks_the_customers_whose_top_interest_it_is() -> None:
    (scores,) = score(ScoreRequest(["lamp", "once", "off-lamp", "off", "plain"]), propensity=FakeGuard(items={"lamp"}))
    assert column(scores, "propensity", "spike") == [True, False, True, False, False]
    assert not any(column(scores, "churn", "spike"))


def test_without_guards_nothing_is_a_spike() -> None:
    scorer = Scorer(FakeStore(), cast("Model", FakeModel()), clock=lambda: NOW)
    (scores,) = cast("list[Scores]", asyncio.run(scorer.score([ScoreRequest(["lamp", "plain"])])))
    assert column(scores, "propensity", "alert") == [True, True]
    assert not any(column(scores, "churn", "spike") + column(scores, "propensity", "spike"))


def test_real_guards_see_a_rise_of_alerts_about_one_item() -> None:
    clock = [0.0]
    guards = Guards(*(SpikeGuard(window_s=1.0, clock=lambda: clock[0]) for _ in range(2)))
    scorer = Scorer(FakeStore(), cast("Model", FakeModel()), guards, clock=lambda: NOW)
    usual = ScoreRequest(["calm"] * 290 + ["once"] * 10)
    rise = ScoreRequest(["calm"] * 100 + ["lamp"] * 200)

    async def main() -> list[Scores]:
        answers: list[Scores] = []
        for request in [usual] * 12 + [rise]:
            answers += cast("list[Scores]", await scorer.score([request]))
            clock[0] += 1.0
        return answers

    *before, last = asyncio.run(main())
    assert not any(any(column(scores, offer, "spike")) for scores in before for offer in ("churn", "propensity"))
    assert all(column(last, "churn", "spike") + column(last, "propensity", "spike"))
