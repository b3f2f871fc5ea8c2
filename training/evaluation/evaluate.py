"""The evidence: how good the models are where they have never looked, and what the report is made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import duckdb
import numpy as np
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import train_test_split

from feature_store.bundles.bundle import OFFERS
from feature_store.bundles.onnx_session import Graph
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from feature_store.sql import identifier
from feature_store.state.layout import Floats
from training.arrays import Features, Index
from training.config import TrainingConfig
from training.data.training_table import Data
from training.evaluation import metrics as evaluate
from training.evaluation import policies as policy
from training.evaluation.cost_metrics import cost_metrics
from training.evaluation.off_policy import check_chance, experiment
from training.evaluation.policies import Scored
from training.evaluation.uplift import evaluate_treatment
from training.evidence import (
    Cell,
    Finding,
    Importance,
    Optimism,
    Policy,
    Quality,
    Segment,
    TestRows,
    Value,
    hashed_ids,
)
from training.graph.customer_costs import own_figures, terms_of
from training.models.export import graph_inputs
from training.models.model_set import Models
from training.models.probability import Learner
from training.models.segments import profile
from training.parallel import Task, WorkerPool
from training.selection.fold_losses import shuffled
from training.statistics import poisson_losses

RANDOM_TEST: Final = 0.25
REPEATS: Final = 3


class ScoringGraph:
    """A graph with the economics that it is run with. Worker processes can be sent one."""

    def __init__(self, model: bytes, figures: Mapping[str, float], own: Collection[str]) -> None:
        """``model``: the serialised graph; ``own``: names of the figures that each customer has their own of."""
        self._model, self._figures, self._own = model, figures, own
        self._graph: Final = Graph(model)

    def __reduce__(self) -> tuple[type[ScoringGraph], tuple[bytes, Mapping[str, float], Collection[str]]]:
        """Pickled as the serialised graph: a session of onnxruntime cannot be."""
        return ScoringGraph, (self._model, self._figures, self._own)

    def run(self, state: Floats) -> dict[str, Floats]:
        """Outputs ``[n]`` by name for states ``[n, slots]``, in float64."""
        outputs = self._graph.run(**graph_inputs(state, self._figures, self._own))
        return {name: value.astype(np.float64) for name, value in outputs.items()}


@dataclass(frozen=True)
class Judged:
    """The models of the evaluation, their graph, and the economics with the budget prices that they found."""

    config: TrainingConfig
    data: Data
    models: Models
    model: bytes
    figures: dict[str, float]

    @cached_property
    def graph(self) -> ScoringGraph:
        """The graph with these economics."""
        return ScoringGraph(self.model, self.figures, own_figures(self.config, self.data.spec.layout))

    @property
    def seed(self) -> int:
        """Of everything drawn by lot."""
        return self.config.evaluation.seed

    def run(self, state: Floats) -> dict[str, Floats]:
        """What the graph says about states, in float64."""
        return self.graph.run(state)

    def scored(self, offer: str, index: Index) -> Scored:
        """Rows as the policies want them."""
        rows = self.data.rows.take(index)
        found = self.run(rows.state)
        terms = terms_of(self.config, self.data.spec.layout, offer, rows.state)
        own = terms is not self.config.economics.offer(offer)
        return Scored(
            customer=hashed_ids(rows.customer_id.tolist()),
            probability=found[f"{offer}_probability"],
            value=self.config.economics.margin * found["expected_spend"],
            label=rows.label(offer) > 0,
            recency=None if self.data.plan is None else rows.recency_days,
            frequency=None if self.data.plan is None else rows.frequency,
            monetary=None if self.data.plan is None else rows.monetary,
            contact_cost=np.asarray(terms.contact_cost) if own else None,
            offer_cost=np.asarray(terms.offer_cost) if own else None,
        )


def offers(data: Data) -> list[str]:
    """The offers there are labels for."""
    return [offer for offer in OFFERS if offer in data.splits]


def metrics(judged: Judged) -> tuple[dict[str, Any], dict[str, TestRows]]:
    """Figures for the manifest, and the scored test rows by offer."""
    found: dict[str, Any] = {}
    scored: dict[str, TestRows] = {}
    for offer in offers(judged.data):
        found[offer], scored[offer] = _offer(judged, offer)
    if "spend" in judged.data.splits:
        test = judged.data.splits["spend"].test
        rows = judged.data.rows.take(test)
        found["spend"] = evaluate.spend_metrics(rows.spend, judged.run(rows.state)["expected_spend"])
    else:
        found["spend"] = {}
    return {f"{offer}_auc": found[offer]["auc"] for offer in scored} | found, scored


def _offer(judged: Judged, offer: str) -> tuple[dict[str, Any], TestRows]:
    split, rows = judged.data.splits[offer], judged.data.rows
    known, newest, test = rows.take(split.evaluation.everything), split.evaluation.calibration, rows.take(split.test)
    found, before = judged.run(test.state), judged.run(rows.state[newest])
    label, probability = test.label(offer) > 0, found[f"{offer}_probability"]
    value = judged.config.economics.margin * found["expected_spend"]
    terms = terms_of(judged.config, judged.data.spec.layout, offer, test.state)
    timed = judged.data.plan is not None
    baseline = np.full(len(test), known.label(offer).mean())
    if timed:
        baseline = evaluate.recency_probability(known.recency_days, known.label(offer) > 0, test.recency_days)
    result = {
        **evaluate.probability_metrics(label, probability),
        "alert_share_newest_block": float((before[f"{offer}_probability"] >= before[f"{offer}_threshold"]).mean()),
        "policy": evaluate.policy_metrics(label, probability, value, found[f"{offer}_threshold"], terms),
    }
    if timed:
        result["recency_alone"] = evaluate.probability_metrics(label, baseline)
    return result, TestRows(
        customer=hashed_ids(test.customer_id.tolist()),
        cutoff=test.cutoff,
        label=label,
        probability=probability,
        threshold=found[f"{offer}_threshold"],
        value=value,
        contact_cost=np.broadcast_to(terms.contact_cost, len(test)).astype(np.float64),
        offer_cost=np.broadcast_to(terms.offer_cost, len(test)).astype(np.float64),
        recency_days=test.recency_days,
        baseline=baseline,
        random=np.full(len(test), np.nan),
    )


def optimism(
    judged: Judged, learners: Mapping[str, Learner], rows_of: Mapping[str, TestRows], pool: WorkerPool
) -> dict[str, Task[tuple[Optimism, Floats]]]:
    """What a random split of all the rows would have promised, beside what later cut-offs held.

    Returns a task by offer, which gives the comparison, and of each test row the probability by the model of the random
    split ``[n]``, NaN where the row was in its training part.
    """
    data, seed = judged.data, judged.config.evaluation.seed
    features = judged.models.matrix(data.rows.state)
    tasks = {}
    for offer in offers(data):
        split, labels = data.splits[offer], data.rows.label(offer)
        known = np.union1d(split.evaluation.everything, split.test)
        place = np.searchsorted(known, split.test)
        tasks[offer] = pool.submit(
            _optimism, offer, learners[offer], rows_of[offer], features[known], labels[known], place, seed
        )
    return tasks


def _optimism(
    offer: str, learner: Learner, test: TestRows, features: Features, labels: Floats, place: Index, seed: int
) -> tuple[Optimism, Floats]:
    """Of an offer, from features and labels of all rows, and the places ``[n]`` of the test rows among them."""
    fit, judge = train_test_split(np.arange(len(labels)), test_size=RANDOM_TEST, random_state=seed)
    model = learner.fit(features[fit], labels[fit], seed)
    promised = expit(model.decision_function(features[judge].astype(np.float64)))
    by_row = np.full(len(labels), np.nan)
    by_row[judge] = promised
    found = Optimism(
        offer=offer,
        random=_quality(labels[judge], promised),
        temporal=_quality(test.label.astype(np.float64), test.probability),
    )
    return found, by_row[place]


def _quality(label: Floats, probability: Floats) -> Quality:
    return Quality(auc=float(roc_auc_score(label, probability)), log_loss=float(log_loss(label, probability)))


def importance(judged: Judged, pool: WorkerPool) -> dict[str, Task[dict[str, list[Importance]]]]:
    """How much is lost on the test rows when the values of a slot change customers: by target, a task for it.

    Targets with the same test rows share a task, and with it the runs of the graph.
    """
    data = judged.data
    slots = [feature.name for feature in data.spec.layout.features]
    targets: dict[bytes, list[str]] = {}
    for target, split in data.splits.items():
        targets.setdefault(split.test.tobytes(), []).append(target)
    tasks: dict[str, Task[dict[str, list[Importance]]]] = {}
    for together in targets.values():
        rows = data.rows.take(data.splits[together[0]].test)
        labels = {target: rows.label(target) for target in together}
        tasks |= dict.fromkeys(together, pool.submit(_importance, judged.graph, rows.state, labels, slots, judged.seed))
    return {target: tasks[target] for target in data.splits}


def _importance(
    graph: ScoringGraph, state: Floats, labels: Mapping[str, Floats], slots: Sequence[str], seed: int
) -> dict[str, list[Importance]]:
    usual = _worth(labels, graph.run(state))
    found: dict[str, list[Importance]] = {target: [] for target in labels}
    for column, slot in enumerate(slots):
        worth = [_worth(labels, graph.run(shuffled(state, column, seed + 1000 * repeat))) for repeat in range(REPEATS)]
        for target, lines in found.items():
            lost = [usual[target] - changed[target] for changed in worth]
            lines.append(Importance(target=target, slot=slot, lost=float(np.mean(lost)), spread=float(np.std(lost))))
    return found


def _worth(labels: Mapping[str, Floats], outputs: Mapping[str, Floats]) -> dict[str, float]:
    """By target the AUC of an offer, or how small the deviance of the spend is."""
    return {
        target: float(roc_auc_score(label, outputs[f"{target}_probability"]))
        if target in OFFERS
        else -float(poisson_losses(label, outputs["expected_spend"]).mean())
        for target, label in labels.items()
    }


def policies(judged: Judged) -> tuple[list[Policy], list[Cell], dict[str, float]]:
    """What the dynamic threshold is worth against other ways to choose, over assumed rates, and by what it saves."""
    found: list[Policy] = []
    cells: list[Cell] = []
    costs: dict[str, float] = {}
    plan = judged.config.evaluation
    for offer in offers(judged.data):
        split, terms = judged.data.splits[offer], judged.config.economics.offer(offer)
        before, after = judged.scored(offer, split.evaluation.calibration), judged.scored(offer, split.test)
        least = judged.config.economics.threshold_min
        found += policy.policies(
            offer, terms, before, after, threshold_min=least, resamples=plan.bootstrap, seed=plan.seed
        )
        cells += policy.grid(offer, terms, before, after, threshold_min=least, resamples=plan.bootstrap, seed=plan.seed)
        saved = cost_metrics(terms, before, after, threshold_min=least)
        costs |= {f"{offer}_{name}": value for name, value in saved.items()}
    return found, cells, costs


def segments(judged: Judged) -> list[Segment]:
    """Who is in which segment at the test cut-offs, and what they did: of an offer's test where they differ."""
    data, found = judged.data, judged.models.segments
    target = "churn" if "churn" in data.splits else offers(data)[0]
    rows = data.rows.take(data.splits[target].test)

    def known(label: Floats) -> Floats | None:
        return label if np.isfinite(label).all() else None

    churn, propensity = known(rows.churn), known(rows.propensity)
    return profile(
        found,
        judged.models.matrix(rows.state),
        None if churn is None else churn > 0,
        None if propensity is None else propensity > 0,
        known(rows.spend),
    )


def treatment(judged: Judged, source: OfflineStore) -> tuple[list[Value], list[Finding]]:
    """Values of policies where an offer was made at random, and what is odd about the chances."""
    asked = judged.config.treatment
    if asked is None:
        return [], []
    chance = asked.probability if isinstance(asked.probability, float) else identifier(asked.probability)
    columns = (
        f"{identifier(asked.column)}::DOUBLE AS treated, {chance}::DOUBLE AS chance, "
        f"{identifier(asked.outcome)}::DOUBLE"
    )
    try:
        found = source.connection.execute(
            f"SELECT customer_id, {columns} AS outcome FROM attributes ORDER BY customer_id"
        ).fetchnumpy()
    except duckdb.Error as error:
        raise InputError(f"treatment: a column that it names cannot be read: {str(error).splitlines()[0]}") from error
    ids = np.asarray(found["customer_id"], dtype=object)
    treated, chances, outcome = (np.ma.filled(found[n].astype(float), np.nan) for n in ("treated", "chance", "outcome"))
    # Customers as they were when the offer was made: the newest rows there are of them.
    rows = judged.data.rows
    newest = {name: at for at, name in enumerate(rows.customer_id)}
    index = np.array([newest.get(name, -1) for name in ids], dtype=np.intp)
    there = (index >= 0) & np.isfinite(treated)
    state = rows.state[index[there]]
    hashes, seed = hashed_ids(ids[there].tolist()), judged.config.evaluation.seed
    trial = experiment(treated[there], chances[there], outcome[there], hashes, asked.cost)
    warning = check_chance(trial)
    values = evaluate_treatment(judged.models.matrix(state).astype(np.float64), trial, seed=seed)
    return values, [warning] if warning else []
