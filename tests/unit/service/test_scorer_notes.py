"""What records have to say to scores: consent, interests, and the guards that are shown what alerts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

import numpy as np
import pytest

from feature_store.definitions import Feature, Interests
from feature_store.state.layout import Floats, State, StateBatch, StateLayout
from feature_store.state.profile import LEAST_WEIGHT, Interest, Told
from service.errors import Code, Reason, RequestError
from service.scoring.alert_spikes import SpikeGuard
from service.scoring.model import Model
from service.scoring.scorer import Note, Scorer, ScoreRequest, Scores, Spikes

NOW = 1_800_000_000.0
LAYOUT = StateLayout([Feature(name="visits", event="visit", aggregate="count", half_life_days=7)])
RULES = Interests(half_life_days=7, repeated_views=3)
LAMP = Interest("lamp", 3, 2.5, NOW - 60)
ONCE = Interest("sofa", 1, 1.0, NOW - 60)

TOLD: Mapping[str, Told] = {
    "lamp": Told(scoring=True, automated_response=True, top=LAMP),
    "lamp-calm": Told(scoring=True, automated_response=True, top=LAMP),
    "once": Told(scoring=True, automated_response=True, top=ONCE),
    "once-calm": Told(scoring=True, automated_response=True, top=ONCE),
    "off": Told(scoring=True, automated_response=False, top=None),
    "off-lamp": Told(scoring=True, automated_response=False, top=LAMP),
    "withheld": Told(scoring=False, automated_response=True, top=LAMP),
    "withheld-off": Told(scoring=False, automated_response=False, top=None),
    "withheld-unknown": Told(scoring=False, automated_response=True, top=None),
    "torn-lamp": Told(scoring=True, automated_response=True, top=LAMP),
}


class FakeStore:
    """Customers with the records above; those named ``…-unknown`` have no state, ``torn…`` half of one."""

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        batch = LAYOUT.unpack([self._value(customer_id) for customer_id in customer_ids])
        batch.told = {row: TOLD[name] for row, name in enumerate(customer_ids) if name in TOLD}
        return batch

    def recent(self, customer_ids: Sequence[str], within_s: Sequence[float]) -> StateBatch | None:
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
    economics = np.array([0.25, *[1.0] * 10])
    interests = RULES

    def run(self, states: StateBatch, now: float, _economics: Floats) -> Floats:
        assert now == NOW
        table = np.full((len(states.slots), 6), 0.5)
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


def score(*parts: ScoreRequest, churn: FakeGuard | None = None, propensity: FakeGuard | None = None) -> list[Scores]:
    guards = iter([churn or FakeGuard(), propensity or FakeGuard()])
    scorer = Scorer(FakeStore(), cast("Model", FakeModel()), lambda: NOW, lambda: cast("SpikeGuard", next(guards)))
    return cast("list[Scores]", asyncio.run(scorer.score(parts)))


def reasons(scores: Scores) -> dict[int, Reason]:
    return {at: error.reason for at, error in scores.errors.items()}


def note(name: str) -> Note | None:
    (scores,) = score(ScoreRequest([name]))
    return scores.notes.get(0)


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
    assert scores.table[[0, 2], 0].tolist() == [0.75, 0.75]


def test_what_the_graph_made_of_a_customer_without_consent_is_blanked_and_not_noted() -> None:
    (scores,) = score(ScoreRequest(["withheld", "plain"]))
    assert scores.table[0].tolist() == [0.0] * 6
    assert scores.notes == {}


def test_consent_comes_before_any_other_reason() -> None:
    (scores,) = score(ScoreRequest(["withheld", "plain"], max_age_s=1.0))
    assert reasons(scores) == {0: Reason.CONSENT_WITHHELD, 1: Reason.FEATURES_TOO_OLD}


def test_each_part_hears_of_its_own_customers() -> None:
    error = RequestError(Reason.CUSTOMER_ID_INVALID, "empty", "customer_ids")
    one, two, three = score(
        ScoreRequest(["plain", "lamp"]),
        ScoreRequest(["", "withheld", "off"], refused={0: error}),
        ScoreRequest(["withheld"]),
    )
    assert [reasons(scores) for scores in (one, two, three)] == [
        {},
        {0: Reason.CUSTOMER_ID_INVALID, 1: Reason.CONSENT_WITHHELD},
        {0: Reason.CONSENT_WITHHELD},
    ]
    assert [sorted(scores.notes) for scores in (one, two, three)] == [[1], [2], []]
    assert (one.notes[1].top, two.notes[2].off) == (LAMP, True)


def test_no_error_repeats_a_customer_id() -> None:
    (scores,) = score(ScoreRequest(["withheld"]))
    assert "withheld " not in scores.errors[0].message


# --- notes ----------------------------------------------------------------------------------------------------------


def test_where_no_record_says_anything_there_is_nothing_to_add() -> None:
    assert note("plain") is None


def test_the_top_interest_is_told_and_that_it_was_looked_at_often_enough() -> None:
    assert note("lamp") is not None
    for name, repeated, top in (("lamp", True, LAMP), ("lamp-calm", True, LAMP), ("once", False, ONCE)):
        found = note(name)
        assert found is not None
        assert (found.off, found.repeated_view, found.spike, found.top) == (False, repeated, False, top)


def test_where_no_automated_response_is_allowed_a_repeated_view_is_none_either() -> None:
    found = note("off-lamp")
    assert found is not None
    assert (found.off, found.repeated_view, found.top) == (True, False, LAMP)


@pytest.mark.parametrize(("half_lives", "told"), [(4.9, True), (5.1, False)])
def test_an_interest_that_has_faded_since_is_not_told(
    monkeypatch: pytest.MonkeyPatch, half_lives: float, *, told: bool
) -> None:
    top = Interest("lamp", 9, 1.0, NOW - half_lives * RULES.half_life_s)
    assert (top.weight_at(NOW, RULES.half_life_s) >= LEAST_WEIGHT) is told
    monkeypatch.setitem(cast("dict[str, Told]", TOLD), "faded", Told(scoring=True, automated_response=True, top=top))
    found = note("faded")
    assert found is not None
    assert (found.top, found.repeated_view) == ((top, True) if told else (None, False))


def test_slices_put_together_keep_their_notes_in_place() -> None:
    names = ["plain", "lamp", "unknown", "off"]
    whole, *slices = score(ScoreRequest(names), *(ScoreRequest([name]) for name in names))
    joined = Scores.joined(slices)
    assert {at: asdict(note) for at, note in joined.notes.items()} == {
        at: asdict(note) for at, note in whole.notes.items()
    }
    assert reasons(joined) == reasons(whole) == {2: Reason.CUSTOMER_UNKNOWN}
    assert sorted(joined.notes) == [1, 3]


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
def test_who_gets_no_score_is_no_answer(name: str) -> None:
    churn, propensity = FakeGuard(), FakeGuard()
    score(ScoreRequest(["plain", name, "calm"]), churn=churn, propensity=propensity)
    assert churn.shown == propensity.shown == [(2, 1, [])]


def test_an_answer_without_automated_response_does_not_alert() -> None:
    churn, propensity = FakeGuard(), FakeGuard()
    score(ScoreRequest(["plain", "off", "off-lamp"]), churn=churn, propensity=propensity)
    assert churn.shown == propensity.shown == [(3, 1, [])]


def test_a_spike_in_total_is_told_with_every_answer_of_its_offer() -> None:
    one, two = score(ScoreRequest(["plain"]), ScoreRequest(["calm", "lamp"]), churn=FakeGuard(total=True))
    assert one.spikes == two.spikes == Spikes(churn=True, propensity=False)
    (three,) = score(ScoreRequest(["plain"]), propensity=FakeGuard(total=True))
    assert three.spikes == Spikes(churn=False, propensity=True)


def test_a_spike_of_an_item_is_told_where_it_is_the_top_interest() -> None:
    (scores,) = score(ScoreRequest(["lamp", "once", "off-lamp", "off", "plain"]), propensity=FakeGuard(items={"lamp"}))
    assert {at: note.spike for at, note in scores.notes.items()} == {0: True, 1: False, 2: True, 3: False}
    assert scores.spikes == Spikes(churn=False, propensity=False)


def test_real_guards_see_a_rise_of_alerts_about_one_item() -> None:
    clock = [0.0]
    scorer = Scorer(
        FakeStore(), cast("Model", FakeModel()), lambda: NOW, lambda: SpikeGuard(window_s=1.0, clock=lambda: clock[0])
    )
    usual, rise = ScoreRequest(["calm"] * 290 + ["once"] * 10), ScoreRequest(["calm"] * 100 + ["lamp"] * 200)

    async def main() -> list[Scores]:
        found: list[Scores] = []
        for part in [usual] * 12 + [rise]:
            found += cast("list[Scores]", await scorer.score([part]))
            clock[0] += 1.0
        return found

    *before, last = asyncio.run(main())
    assert not any(any(scores.spikes) for scores in before)
    assert last.spikes == Spikes(churn=True, propensity=True)
    assert all(note.spike for note in last.notes.values())
