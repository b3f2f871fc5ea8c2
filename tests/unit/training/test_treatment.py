"""A randomised offer beside events: who counts, and what is known of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import training.evaluation.treatment
from feature_store.config import Source
from feature_store.definitions import Feature
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import Floats, StateLayout
from training.config import TrainingConfig
from training.evaluation.off_policy import Experiment
from training.evaluation.scorer import EvaluationScorer
from training.evaluation.treatment import evaluate_randomised_offer
from training.evidence import Value
from training.graph.features import FeatureSpec, filled_matrix

COUNT = Feature(name="purchases", aggregate="count", event="purchase", half_life_days=30)
AGE = Feature(name="age", aggregate="attribute")
LAYOUT = StateLayout([COUNT, AGE])
OFFER = {"contact_cost": 0.1, "offer_cost": 1, "success_rate": 0.1, "redemption_rate": 0.1, "budget_share": 0.1}
TREATMENT = {"column": "offered", "probability": 0.5, "outcome": "bought", "time": "drawn_at"}

# A customer buys i % 4 times before the draw; whoever got the offer buys five times afterwards. Every fifth customer
# has never bought before, and c0 to c9 took no part.
EVENTS = """
WITH people AS (
    SELECT i, 'c' || i AS customer_id, TIMESTAMP '2024-03-01' + to_hours(i) AS drawn_at, hash(i) % 2 AS offered
    FROM range(800) AS rows(i)
)
SELECT customer_id, drawn_at - to_days(n::INTEGER) AS event_time, 'purchase' AS event_type
FROM people, range(1, 4) AS times(n) WHERE n <= i % 4 AND i % 5 > 0
UNION ALL
SELECT customer_id, drawn_at + to_days(n::INTEGER), 'purchase' FROM people, range(1, 6) AS times(n) WHERE offered = 1
"""
PEOPLE = """
SELECT 'c' || i AS customer_id, CASE WHEN i >= 10 THEN hash(i) % 2 END AS offered,
    CASE WHEN i >= 10 THEN TIMESTAMP '2024-03-01' + to_hours(i) END AS drawn_at,
    (hash(i) % 2 = 1)::INTEGER AS bought, 100 * (hash(i) % 2) AS age
FROM range(800) AS rows(i)
"""


def config(**treatment: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "source": {"events": EVENTS, "attributes": PEOPLE},
            "feature": [line.model_dump(exclude_none=True) for line in LAYOUT.features],
            "economics": {"margin": 0.3, "churn": OFFER, "propensity": OFFER},
            "treatment": TREATMENT | treatment,
        }
    )


def evaluated(settings: TrainingConfig, people: str = PEOPLE) -> list[Value]:
    with OfflineStore(Source(events=EVENTS, attributes=people)) as source:
        known = np.array([[0.0, 20.0], [3.0, 60.0]])
        scorer = SimpleNamespace(
            config=settings,
            table=SimpleNamespace(spec=SimpleNamespace(layout=LAYOUT)),
            models=SimpleNamespace(matrix=filled_matrix(FeatureSpec(LAYOUT), known)),
            seed=7,
        )
        return evaluate_randomised_offer(cast("EvaluationScorer", scorer), source)[0]


def test_every_participant_counts_as_of_the_time_of_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Floats, Experiment]] = []

    def watched(features: Floats, trial: Experiment, **_: Any) -> list[Value]:
        seen.append((features, trial))
        return []

    monkeypatch.setattr(training.evaluation.treatment, "evaluate_treatment", watched)
    evaluated(config())
    ((features, trial),) = seen
    assert len(trial) == 790
    ids = sorted(f"c{i}" for i in range(10, 800))
    numbers = np.array([int(name[1:]) for name in ids])
    before = np.array([sum(0.5 ** (n / 30) for n in range(1, i % 4 + 1)) if i % 5 else 0.0 for i in numbers])
    np.testing.assert_allclose(features[:, 0], np.log1p(before), atol=1e-6)
    # The attribute is today's: whoever got the offer has another one now. It must not be used.
    assert len(np.unique(features[:, 1])) == 1


def test_the_effect_is_found_although_half_of_the_participants_were_inactive() -> None:
    values = {(value.policy, value.estimator): value for value in evaluated(config(cost=0.1))}
    effect = values["treat everybody instead of treat nobody", "DR"]
    assert effect.value == pytest.approx(1 - 0.1)  # everybody with the offer bought, nobody without


def test_without_a_time_the_section_is_refused() -> None:
    with pytest.raises(ValueError, match=r"treatment\.time: name the column with the time of the offer"):
        config(time=None)


def test_a_participant_without_a_time_is_an_error() -> None:
    nobody = PEOPLE.replace("CASE WHEN i >= 10 THEN TIMESTAMP", "CASE WHEN i >= 30 THEN TIMESTAMP")
    with pytest.raises(InputError, match=r"treatment\.time: 20 of 790 customers who took part have no time in column"):
        evaluated(config(), nobody)


def test_a_time_in_unix_seconds_is_read() -> None:
    numbers = PEOPLE.replace("TIMESTAMP '2024-03-01' + to_hours(i)", "epoch(TIMESTAMP '2024-03-01' + to_hours(i))")
    assert numbers != PEOPLE
    assert evaluated(config(), numbers) == evaluated(config())
