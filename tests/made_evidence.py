"""Made-up evidence of a fit: scored rows of customers with a truth of their own, and tables that are all filled."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from feature_store.bundles.bundle import (
    CONFIG_ECONOMICS,
    FORMAT,
    INPUTS,
    MANIFEST_FILE,
    OFFERS,
    OUTPUTS,
    Manifest,
    publish,
    sha256,
)
from feature_store.definitions import Feature, fingerprint
from feature_store.state.layout import Floats
from training.config import Offer
from training.evaluation.holdout_metrics import policy_summary
from training.evaluation.metrics import probability_metrics
from training.evaluation.policies import DYNAMIC, RANDOM, RECENCY, RFM, SINGLE, TIMES_VALUE
from training.evidence import (
    ROWS_FILE,
    TABLES_FILE,
    BinaryAttribute,
    Cell,
    Damage,
    Evidence,
    FeatureSubset,
    Finding,
    HoldoutRows,
    HorizonEffect,
    Importance,
    NegativeControl,
    Optimism,
    Policy,
    Quality,
    Ratio,
    Segment,
    SlotStability,
    Trial,
    Value,
    ValueBin,
    ValueReliability,
    hashed_ids,
    pack_rows,
)
from training.graph.thresholds import threshold

DAY_S = 86_400.0
CUTOFFS = (1_509_940_880.0, 1_511_150_480.0, 1_512_360_080.0)
OFFER = Offer(contact_cost=0.1, offer_cost=3.0, success_rate=0.2, redemption_rate=0.1, budget_share=0.1)
SLOTS = [
    "last_purchase",
    "first_purchase",
    *(f"{kind}_{days}d" for kind in ("visits", "spend", "private_label_baskets") for days in (7, 28, 112)),
]
POLICIES = {SINGLE: 0.25, TIMES_VALUE: 0.02, RFM: 0.45, RECENCY: 0.6, RANDOM: 1.0}


def logistic(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))


def made_rows(offer: str = "churn", *, customers: int = 800, seed: int = 1, snapshot: bool = False) -> HoldoutRows:
    """Rows of an offer; a snapshot has one row per customer, no cut-offs and no recency."""
    random = np.random.default_rng([seed, OFFERS.index(offer)])
    cutoffs = (0.0,) if snapshot else CUTOFFS
    who = np.tile(np.arange(customers), len(cutoffs))
    habit, amount = random.normal(size=customers), random.lognormal(4.2, 1.0, customers)
    recency = random.exponential(12, len(who)) * np.exp(0.5 * habit[who])
    sign = 1 if offer == "churn" else -1
    logit = (
        sign * (1.1 * habit[who] + 0.05 * (recency - 12))
        + random.normal(0, 0.9, len(who))
        - (1.9 if sign > 0 else -0.5)
    )
    label = random.random(len(who)) < logistic(logit)
    seen = 0.85 * (logit + random.normal(0, 0.6, len(who)))
    value = 0.25 * amount[who] * random.lognormal(0, 0.2, len(who))
    base = logistic(sign * 0.06 * (recency - 12) - (1.6 if sign > 0 else -0.4))
    nothing = np.full(len(who), np.nan)
    return HoldoutRows(
        customer=hashed_ids([f"customer-{n}" for n in range(customers)])[who],
        cutoff=np.repeat(cutoffs, customers),
        label=label,
        probability=logistic(seen),
        threshold=threshold(value, OFFER, 0.3, 0.01),
        value=value,
        realised_value=value * random.lognormal(0, 0.3, len(who)),
        value_correction=np.zeros(len(who)),
        contact_cost=np.full(len(who), OFFER.contact_cost),
        offer_cost=np.full(len(who), OFFER.offer_cost),
        recency_days=nothing if snapshot else recency,
        baseline=np.full(len(who), label.mean()) if snapshot else base,
        random=np.where(random.random(len(who)) < 0.3, logistic(seen + 0.6 * (2 * label - 1)), np.nan),
    )


def made_evidence(seed: int = 1) -> Evidence:
    """Every table filled, with figures that might be a fit's."""
    random = np.random.default_rng(seed)
    return Evidence(
        audit=[
            Finding(
                severity="note",
                check="daylight saving",
                where="source.events",
                message="times name no zone",
                fix="name the zone in the SQL",
            ),
            Finding(
                severity="warning",
                check="late rows",
                where="source.events",
                message="events come up to 9 days late",
                fix="wait with the fit",
                share=0.012,
            ),
            Finding(
                severity="warning",
                check="constant slots",
                where="visits_7d",
                message="one value in 99.5 % of the rows",
                fix="leave the slot out",
                share=0.995,
            ),
        ],
        optimism=[
            Optimism(
                offer="churn", random=Quality(auc=0.881, log_loss=0.271), temporal=Quality(auc=0.857, log_loss=0.2926)
            ),
            Optimism(
                offer="propensity",
                random=Quality(auc=0.822, log_loss=0.504),
                temporal=Quality(auc=0.8085, log_loss=0.5209),
            ),
        ],
        trials=[
            Trial(
                target=target,
                model=model,
                loss=0.29 + behind,
                behind=behind,
                error=0.0004 + behind / 3,
                chosen=model == "boosted trees, 8 leaves",
            )
            for target in (*OFFERS, "stay_spend")
            for model, behind in {
                "boosted trees, 31 leaves": 0.0,
                "boosted trees, 8 leaves": 0.0006,
                "logistic regression": 0.0042,
                "recency alone": 0.031,
            }.items()
        ],
        ladder=_ladder(random),
        stability=[
            SlotStability(
                slot="spend_28d", group="purchase amount sum", chosen=True, frequency=0.45, group_frequency=0.95
            ),
            SlotStability(
                slot="spend_7d", group="purchase amount sum", chosen=False, frequency=0.6, group_frequency=0.95
            ),
        ],
        candidates=180,
        earned_nothing=0.86,
        importance=[
            Importance(target=target, slot=slot, lost=0.08 * 0.7**n, spread=0.002 + 0.01 * 0.7**n)
            for target in (*OFFERS, "stay_spend")
            for n, slot in enumerate(random.permutation(SLOTS).tolist())
        ],
        robustness=[
            Damage(offer=offer, kind=kind, share=share, auc=0.857 - steep * share)
            for offer in OFFERS
            for kind, steep in {"missing values": 0.25, "lost events": 0.18, "duplicated events": 0.03}.items()
            for share in (0.0, 0.05, 0.1, 0.2, 0.4)
        ],
        segments=_segments(random),
        policies=[policy for offer in OFFERS for policy in made_policies(offer)],
        controls=[
            NegativeControl(offer=offer, shuffles=20, mean_lead=-310.0, shown_ahead=0, passed=True) for offer in OFFERS
        ],
        values=[
            ValueReliability(
                offer=offer,
                bins=[ValueBin(predicted=v, realised=0.95 * v, low=0.9 * v, high=1.02 * v) for v in range(1, 11)],
                total=Ratio(ratio=1.052, low=0.98, high=1.12, rows=2400),
                alerted=Ratio(ratio=1.031, low=0.91, high=1.17, rows=240),
            )
            for offer in OFFERS
        ],
        horizons=[
            HorizonEffect(
                horizon_days=days,
                learnt_from=9000,
                mean_value=days,
                never=0.3 / days,
                paying=0.2,
                alerts=0.1,
                same_alerts=28 / days,
                profit=40 * days,
                low=30 * days,
                high=50 * days,
            )
            for days in (28.0, 90.0)
        ]
        + [HorizonEffect(horizon_days=180.0, learnt_from=12)],
        grid=[
            Cell(
                offer=offer,
                success_rate=s,
                redemption_rate=r,
                contacts=500,
                ahead=ahead,
                low=ahead - 160,
                high=ahead + 160,
            )
            for offer in OFFERS
            for s, r in itertools.product((0.05, 0.1, 0.2, 0.3, 0.4), (0.02, 0.05, 0.1, 0.2))
            for ahead in [4000 * (s - 0.12) + 900 * r + random.normal(0, 40)]
        ],
        treatment=[
            Value(policy=policy, estimator=estimator, value=value, low=value - reach, high=value + reach)
            for policy, value in {
                "dynamic threshold": 1.31,
                "single threshold": 1.18,
                "everybody": 1.02,
                "nobody": 0.9,
            }.items()
            for estimator, reach in {"IPS": 0.21, "SNIPS": 0.17, "DR": 0.09}.items()
        ],
        tags=[
            BinaryAttribute(
                tag=tag, said_by=said_by, support=0.12, confidence=confidence, cluster=n // 2, kept=confidence < 0.9
            )
            for n, (tag, said_by, confidence) in enumerate(
                [
                    ("buys-organic", ["buys-produce"], 0.97),
                    ("newsletter", [], 0.2),
                    ("weekend", ["evening", "city-centre-store"], 0.93),
                    ("coupon", ["sale"], 0.71),
                ]
            )
        ],
        tags_cost={"churn AUC": 0.0004, "propensity AUC": 0.0001},
        costs={"graph µs per row, batches of 256": 11.4, "state bytes per customer": 152},
        notes=["demographics have no date and were left out"],
    )


def _ladder(random: np.random.Generator) -> list[FeatureSubset]:
    rungs = []
    for count in (1, 2, 3, 4, 6, 8, 10, 11):
        behind = {
            target: 0.05 * np.exp(-count / 2) + abs(random.normal(0, 0.0004)) for target in (*OFFERS, "stay_spend")
        }
        rungs.append(
            FeatureSubset(
                slots=SLOTS[:count],
                state_bytes=24 + 8 * count,
                loss={t: 0.29 + b for t, b in behind.items()},
                behind=behind,
                error=dict.fromkeys(behind, 0.0015),
                graph_us=20 + 3.1 * count,
                chosen=count == 6,
            )
        )
    return rungs


def _segments(random: np.random.Generator) -> list[Segment]:
    names = {
        "k-means": ("regulars", "bargain hunters", "new customers", "once a month", "nearly gone"),
        "RFM": ("champions", "loyal", "at risk", "asleep"),
    }
    result = []
    for scheme, members in names.items():
        shares = random.dirichlet(np.full(len(members), 5))
        for name, share in zip(members, shares, strict=True):
            profile = {slot: float(random.lognormal(2, 1)) for slot in SLOTS[:8]}
            result.append(
                Segment(
                    name=name,
                    scheme="RFM" if scheme == "RFM" else "k-means",
                    share=share,
                    churn_rate=random.random(),
                    propensity_rate=random.random(),
                    mean_spend=100 * random.random(),
                    profile=profile,
                )
            )
    return result


def made_policies(offer: str, seed: int = 1) -> list[Policy]:
    """Profits of an offer's policies; the config's budget is a tenth of the customers."""
    random = np.random.default_rng([seed, OFFERS.index(offer)])
    result = []
    for share in (0.02, 0.05, OFFER.budget_share, 0.15, 0.2, 0.3, 0.5):
        best = 9000 * share * (1 - 1.1 * share)
        common: dict[str, Any] = {
            "offer": offer,
            "budget_share": share,
            "is_own_budget": share == OFFER.budget_share,
            "rows": 2400,
            "contacts": round(2400 * share),
            "precision": 0.4,
        }
        reach = 300 + 900 * share
        for name, worse in {DYNAMIC: 0.0, **POLICIES}.items():
            lost = 0.0 if name == DYNAMIC else best * worse + random.normal(0, 20)
            lead: dict[str, Any] = {} if name == DYNAMIC else _lead(lost, reach)
            result.append(
                Policy(
                    policy=name,
                    expected=1.05 * (best - lost),
                    at_model_values=1.1 * (best - lost),
                    realised=best - lost,
                    low=best - lost - reach,
                    high=best - lost + reach,
                    **common,
                    **lead,
                )
            )
    return result


def _lead(lost: float, reach: float) -> dict[str, float]:
    return {"ahead": lost, "ahead_low": lost - reach / 3, "ahead_high": lost + reach / 3}


def made_manifest(
    rows: dict[str, HoldoutRows],
    *,
    version: str = "20261122T051945-2fc7ed8d",
    model: bytes = b"graph",
    golden: bytes = b"",
) -> Manifest:
    """A manifest whose figures are those of the rows."""
    features = [
        Feature.model_validate({"name": "last_purchase", "aggregate": "latest", "event": "purchase"}),
        Feature.model_validate({"name": "visits_28d", "aggregate": "count", "event": "visit", "half_life_days": 28}),
    ]
    figures = OFFER.model_dump(exclude={"budget_share"}) | {"budget_price": 0.3}
    metrics: dict[str, Any] = {
        offer: probability_metrics(test.label, test.probability) | {"policy": policy_summary(made_policies(offer))}
        for offer, test in rows.items()
    }
    return Manifest(
        format=FORMAT,
        version=version,
        created="2026-11-22T05:19:45+00:00",
        config="made_up",
        fingerprint=fingerprint(features),
        features=features,
        derived=["log1p(last_purchase)"],
        inputs={name: ["n", 2] for name in INPUTS},
        outputs=list(OUTPUTS),
        cutoffs={
            "fit": ["2017-03-13T04:01:20+00:00", "2017-08-28T04:01:20+00:00"],
            "calibration": ["2017-10-09T04:01:20+00:00"],
            "test": ["2017-11-06T04:01:20+00:00", "2017-12-04T04:01:20+00:00"],
        },
        metrics=metrics | {"spend": {"mean_absolute_error": 72.7, "total_ratio": 0.92, "model": "Poisson GLM"}},
        economics={name: 0.25 if name == "margin" else figures[name.partition(".")[2]] for name in CONFIG_ECONOMICS},
        model_sha256=sha256(model),
        golden_sha256=sha256(golden),
        libraries={"python": "3.11.7", "scikit-learn": "1.9.1"},
        source={
            "events": 513_844,
            "customers": 2469,
            "start": "2017-01-01T11:53:26+00:00",
            "end": "2018-01-01T04:01:20+00:00",
            "left_out": {"without a time": 3},
        },
    )


def made_bundle(
    registry: Path, rows: dict[str, HoldoutRows], evidence: Evidence, version: str = "20261122T051945-2fc7ed8d"
) -> Path:
    """A bundle with evidence, published; its model is no graph."""
    file = io.BytesIO()
    np.savez(file, state=np.zeros(1))
    golden = file.getvalue()
    folder = publish(registry, made_manifest(rows, version=version, golden=golden), b"graph", golden)
    (folder / TABLES_FILE).write_text(evidence.model_dump_json())
    (folder / ROWS_FILE).write_bytes(pack_rows(rows))
    assert (folder / MANIFEST_FILE).exists()
    return folder
