"""The whole of training in one straight line: source → states at cut-offs → models → gate → evidence → bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from feature_store.bundle import OFFERS, Manifest, sha256
from feature_store.graph import Graph
from feature_store.offline import OfflineStore
from feature_store.state import StateLayout
from training import evaluate
from training.clips import learn_clips
from training.config import Economics, TrainingConfig
from training.cutoffs import Cutoffs, lay_out
from training.dataset import Rows, build_rows
from training.export import (
    Models,
    build_graph,
    check_parity,
    expected_outputs,
    golden_rows,
    graph_inputs,
    library_versions,
)
from training.features import FeatureMatrix, FeatureSpec
from training.probability import Features, check_outcomes, fit_probability
from training.spend import fit_spend
from training.thresholds import budget_price

Progress = Callable[[str, int], Callable[[], None]]
"""Called with a step's name and its number of parts; returns what to call after each part."""


@dataclass(frozen=True)
class Fitted:
    """What a fit produced, ready to be published."""

    manifest: Manifest
    model: bytes
    golden: bytes


def fit(config: TrainingConfig, name: str, source: OfflineStore, progress: Progress) -> Fitted:
    """Fit a bundle; InputError where the source cannot support it, ParityError where the export is not exact."""
    cutoffs = lay_out(config, source.summary.start, source.summary.end)
    layout = StateLayout(learn_clips(source, config.feature, cutoffs.training[-1]))
    spec = FeatureSpec(layout, config.overdue)
    every = [*cutoffs.training, *cutoffs.test]
    rows = build_rows(source, layout, config, every, progress("states and labels", len(every)))

    for offer in OFFERS:
        for block in ("fit", "calibration", "test"):
            check_outcomes(offer, block, getattr(rows.at(getattr(cutoffs, block)), offer))

    done = progress("models", 3)
    matrix = FeatureMatrix(spec)
    models = _fit_models(config, matrix, rows, cutoffs, done)
    newest = matrix(rows.at(cutoffs.calibration).state)
    figures = config.economics.figures(_budget_prices(config.economics, models, newest))

    done = progress("export, parity, evaluation", 3)
    model = build_graph(spec, models, config.economics)
    graph = Graph(model)
    done()
    test = rows.at(cutoffs.test)
    inputs = graph_inputs(test.state, figures)
    parity = check_parity(graph, inputs, expected_outputs(matrix(test.state), models, config.economics, figures))
    golden = golden_rows(graph, inputs)
    done()
    metrics = _evaluate(config, graph, figures, rows, cutoffs)
    metrics["parity"] = parity
    metrics["spend"]["model"] = models.spend.name
    done()

    created = datetime.now(UTC)
    manifest = Manifest(
        version=f"{created:%Y%m%dT%H%M%S}-{sha256(model)[:8]}",
        created=created.isoformat(timespec="seconds"),
        config=name,
        fingerprint=layout.fingerprint,
        features=list(layout.features),
        interests=config.interests,
        derived=spec.names,
        inputs=graph.inputs,
        outputs=graph.outputs,
        cutoffs={block: [_timestamp(cutoff) for cutoff in getattr(cutoffs, block)] for block in vars(cutoffs)},
        metrics=metrics,
        economics=figures,
        model_sha256=sha256(model),
        golden_sha256=sha256(golden),
        libraries=library_versions(),
        source={
            "events": source.summary.events,
            "customers": source.summary.customers,
            "start": _timestamp(source.summary.start),
            "end": _timestamp(source.summary.end),
            "left_out": source.summary.left_out,
        },
    )
    return Fitted(manifest, model, golden)


def _timestamp(seconds: float) -> str:
    """ISO 8601, for the manifest's readers."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _fit_models(
    config: TrainingConfig, matrix: FeatureMatrix, rows: Rows, cutoffs: Cutoffs, done: Callable[[], None]
) -> Models:
    seed = config.evaluation.seed
    blocks = [rows.at(block) for block in (cutoffs.fit, cutoffs.calibration, cutoffs.training)]
    features = [matrix(block.state) for block in blocks]
    probability = {}
    for offer in OFFERS:
        fit, calibration, everything = zip(features, (getattr(block, offer) for block in blocks), strict=True)
        probability[offer] = fit_probability(fit, calibration, everything, seed)
        done()
    fit, calibration, everything = zip(features, (block.spend for block in blocks), strict=True)
    spend = fit_spend(fit, calibration, everything, seed)
    done()
    return Models(probability, spend)


def _budget_prices(economics: Economics, models: Models, features: Features) -> dict[str, float]:
    """The price of each offer's budget, set on the newest block before the test."""
    value = economics.margin * models.spend.predict(features)
    return {
        name: budget_price(
            models.probability[name].predict_proba(features)[:, 1],
            value,
            economics.offer(name),
            economics.threshold_min,
        )
        for name in OFFERS
    }


def _evaluate(
    config: TrainingConfig,
    graph: Graph,
    figures: dict[str, float],
    rows: Rows,
    cutoffs: Cutoffs,
) -> dict[str, Any]:
    """The evidence of the manifest, from the graph that will be served and outcomes it has never seen."""
    known, newest, test = rows.at(cutoffs.training), rows.at(cutoffs.calibration), rows.at(cutoffs.test)
    found, before = graph.run(**graph_inputs(test.state, figures)), graph.run(**graph_inputs(newest.state, figures))
    spend = found["expected_spend"].astype(np.float64)
    metrics: dict[str, Any] = {"rows": {"training": len(known), "calibration": len(newest), "test": len(test)}}
    for name in OFFERS:
        probability = found[f"{name}_probability"].astype(np.float64)
        labels, offer = getattr(test, name), config.economics.offer(name)
        baseline = evaluate.recency_probability(known.recency_days, getattr(known, name), test.recency_days)
        metrics[name] = {
            **evaluate.probability_metrics(labels, probability),
            "recency_alone": evaluate.probability_metrics(labels, baseline),
            "alert_share_newest_block": float((before[f"{name}_probability"] >= before[f"{name}_threshold"]).mean()),
            "policy": evaluate.policy_metrics(
                labels, probability, figures["margin"] * spend, found[f"{name}_threshold"].astype(np.float64), offer
            ),
        }
    metrics["spend"] = evaluate.spend_metrics(test.spend, spend)
    return {f"{name}_auc": metrics[name]["auc"] for name in OFFERS} | metrics
