"""The whole of training: source → features → learners → models → parity check → bundle → evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from feature_store.bundles.bundle import FORMAT, Manifest, sha256
from feature_store.bundles.onnx_session import Graph
from feature_store.bundles.typical_customer import to_manifest, typical_state
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import DAY_S
from feature_store.timestamps import iso8601
from training.audit.findings import audit, stop_on_fatal
from training.config import TrainingConfig
from training.data.splits import rows_for_medians
from training.data.training_table import Progress, TrainingTable
from training.evaluation.evidence_tables import gather_tables
from training.evaluation.holdout_metrics import TestMetrics, evaluate
from training.evaluation.scorer import EvaluationScorer
from training.evidence import ROWS_FILE, TABLES_FILE, Finding, HoldoutRows, key_name, pack_rows, with_keyed_ids
from training.graph.customer_costs import own_figures, terms_of
from training.graph.features import filled_matrix
from training.graph.thresholds import budget_price
from training.models.export import (
    build_graph,
    check_parity,
    expected_outputs,
    golden_rows,
    graph_inputs,
    library_versions,
    parity_ages,
)
from training.models.model_set import EVALUATION, FINAL, Models, fit_models
from training.parallel import IN_PROCESS, WorkerPool
from training.selection.model_selection import ChosenLearners, choose_learners, learners_of
from training.selection.select_features import SelectedFeatures, select_features

SMALL_SOURCE: Final = 50_000
"""Number of events, or customers of a snapshot, up to which a fit is faster than starting workers."""


@dataclass(frozen=True)
class Fitted:
    """The result of a fit: a bundle that can be published, and what ``gather_evidence`` needs.

    Attributes:
        manifest: The bundle's manifest.
        model: The serialised graph.
        golden: Packed golden rows.
        scorer: The evaluation models, which have not seen the test rows.
        selected: The features, and how they were selected.
        chosen: The learner of each target, and all that were tried.
        scored: Scored test rows by offer.
        metrics: Metrics of the test rows.
        findings: Findings of the audit.
    """

    manifest: Manifest
    model: bytes
    golden: bytes
    scorer: EvaluationScorer
    selected: SelectedFeatures
    chosen: ChosenLearners
    scored: dict[str, HoldoutRows]
    metrics: TestMetrics
    findings: list[Finding]


@dataclass(frozen=True)
class _Served:
    """The models to serve, exported and checked."""

    models: Models
    figures: dict[str, float]
    model: bytes
    graph: Graph
    golden: bytes
    parity: dict[str, float]
    test_rows: int


def workers_for(source: OfflineStore, processes: int | None = None) -> WorkerPool:
    """The pool of worker processes for a fit of this source.

    Args:
        source: The open source.
        processes: Number of workers; None means one per core, and no workers for a small source.
    """
    small = max(source.summary.events, source.summary.customers) <= SMALL_SOURCE
    return WorkerPool(1 if small and processes is None else processes)


def fit(
    config: TrainingConfig, name: str, source: OfflineStore, progress: Progress, pool: WorkerPool = IN_PROCESS
) -> Fitted:
    """Fit a bundle.

    Args:
        config: The config.
        name: The config's name, for the manifest.
        source: The open source of the config.
        progress: Called when a step begins.
        pool: Worker processes; the result does not depend on their number.

    Raises:
        InputError: The source does not fit the config, or has too little data.
        ParityError: The exported graph does not give the results of scikit-learn.
        WorkerLostError: A worker process died.
    """
    # One thread: the same bits on any machine, and small fits do not wait for each other's threads.
    with threadpool_limits(1):
        return _fit(config, name, source, progress, pool)


def gather_evidence(
    fitted: Fitted, source: OfflineStore, progress: Progress, key: bytes, pool: WorkerPool = IN_PROCESS
) -> dict[str, bytes]:
    """Make the files of a bundle that servers do not read: the evidence and the report.

    Args:
        fitted: The result of ``fit``.
        source: The same source, still open.
        progress: Called when a step begins.
        key: Of the hashes of customers in the evidence.
        pool: Worker processes; the result does not depend on their number.

    Returns:
        Contents of the files by name, in the order in which they must be written.

    Raises:
        WorkerLostError: A worker process died.
    """
    from training.report.render import REPORT_FILE, render_report  # noqa: PLC0415  # matplotlib is slow to import

    with threadpool_limits(1):
        evidence, scored = gather_tables(
            fitted.scorer,
            fitted.selected,
            fitted.chosen,
            fitted.scored,
            fitted.metrics,
            fitted.findings,
            source,
            progress,
            pool,
        )
        evidence = evidence.model_copy(update={"customer_key": key_name(key)})
        scored = {offer: with_keyed_ids(rows, key) for offer, rows in scored.items()}
        done = progress("report", 1)
        report = render_report(fitted.manifest, evidence, scored, pool)
        done()
    tables = (evidence.model_dump_json(indent=1) + "\n").encode()
    return {ROWS_FILE: pack_rows(scored), TABLES_FILE: tables, REPORT_FILE: report.encode()}


def _fit(config: TrainingConfig, name: str, source: OfflineStore, progress: Progress, pool: WorkerPool) -> Fitted:
    done = progress("audit", 1)
    findings = audit(config, source)
    stop_on_fatal(findings)
    done()
    selected = select_features(config, source, progress, pool)
    table = selected.table
    chosen = _choose(config, table, progress, pool)

    done = progress("models", 4)
    tasks = [
        pool.submit(fit_models, config, table.spec, table.rows, table.splits, chosen.learners, stage)
        for stage in (EVALUATION, FINAL)
    ]
    scorer = _scorer(config, table, tasks[0].result())
    done()
    metrics, scored = evaluate(scorer)
    models = tasks[1].result()
    done()
    served = _served(config, table, models, done)
    described = metrics.as_json(models.names, served.parity, _row_counts(table, served.test_rows))
    manifest = _manifest(config, name, source, table, served, described)
    return Fitted(manifest, served.model, served.golden, scorer, selected, chosen, scored, metrics, findings)


def _choose(config: TrainingConfig, table: TrainingTable, progress: Progress, pool: WorkerPool) -> ChosenLearners:
    splits = {target: s for target, s in table.splits.items() if target != "spend" or not config.spend_follows}
    has_rates = len(table.spec.counts) > 0
    done = progress("model selection", sum(len(learners_of(target, with_rates=has_rates)) for target in splits))
    seen = rows_for_medians(table.rows, [split.evaluation for split in table.splits.values()])
    features = filled_matrix(table.spec, table.rows.state[seen])(table.rows.state)
    without_rates = table.spec.without_rates if has_rates else None
    return choose_learners(features, table.rows, splits, config.evaluation.seed, done, pool, without_rates)


def _scorer(config: TrainingConfig, table: TrainingTable, models: Models) -> EvaluationScorer:
    figures = _figures(config, table, models, EVALUATION)
    return EvaluationScorer(config, table, models, build_graph(models, config), figures)


def _served(config: TrainingConfig, table: TrainingTable, models: Models, done: Callable[[], None]) -> _Served:
    """Export the models to serve, and check the graph against scikit-learn on all test rows, at various ages."""
    figures = _figures(config, table, models, FINAL)
    model = build_graph(models, config)
    graph = Graph(model)
    done()
    test = table.rows.take(np.unique(np.concatenate([split.test for split in table.splits.values()])))
    layout = table.spec.layout
    ages = parity_ages(len(test), config.evaluation.seed)
    inputs = graph_inputs(test.state, figures, own_figures(config, layout), ages)
    aged = layout.advance(test.state, ages * DAY_S)
    parity = check_parity(graph, inputs, expected_outputs(models, aged, config, figures))
    golden = golden_rows(graph, inputs)
    done()
    return _Served(models, figures, model, graph, golden, parity, len(test))


def _figures(config: TrainingConfig, table: TrainingTable, models: Models, stage: str) -> dict[str, float]:
    """The economics, with the price of each offer's budget as found on the calibration rows of the stage.

    The rows are scored by models that were not fitted on them.
    """
    prices = {}
    for offer, held_out in models.held_out.items():
        rows = table.rows.take(getattr(table.splits[offer], stage).calibration)
        prices[offer] = budget_price(
            held_out.probability,
            config.economics.margin * held_out.spend,
            terms_of(config, table.spec.layout, offer, rows.state),
            config.economics.threshold_min,
        )
    return config.economics.figures(prices)


def _row_counts(table: TrainingTable, test_rows: int) -> dict[str, int]:
    evaluation = [split.evaluation for split in table.splits.values()]
    return {
        "training": max(len(split.everything) for split in evaluation),
        "calibration": max(len(split.calibration) for split in evaluation),
        "test": test_rows,
    }


def _manifest(
    config: TrainingConfig,
    name: str,
    source: OfflineStore,
    table: TrainingTable,
    served: _Served,
    metrics: dict[str, Any],
) -> Manifest:
    created, models = datetime.now(UTC), served.models
    layout = table.spec.layout
    cutoffs = {} if table.plan is None else table.plan.described()
    # The typical customer is one of the newest rows.
    newest = table.rows.state[table.splits[next(iter(models.probability))].final.calibration]
    return Manifest(
        format=FORMAT,
        version=f"{created:%Y%m%dT%H%M%S}-{sha256(served.model)[:8]}",
        created=created.isoformat(timespec="seconds"),
        config=name,
        fingerprint=layout.fingerprint,
        features=list(layout.features),
        interests=config.interests,
        derived=models.matrix.spec.names,
        inputs=served.graph.inputs,
        outputs=served.graph.outputs,
        labels=config.labels,
        segments=models.segments.names,
        segment_edges=models.segments.edges(),
        cutoffs={block: [iso8601(cutoff) for cutoff in times] for block, times in cutoffs.items()},
        metrics=metrics,
        economics=dict(served.figures),
        own_figures=sorted(own_figures(config, layout)),
        baseline=to_manifest(typical_state(layout, newest)),
        model_sha256=sha256(served.model),
        golden_sha256=sha256(served.golden),
        libraries=library_versions(),
        source={
            "events": source.summary.events,
            "customers": source.summary.customers,
            "start": iso8601(source.summary.start),
            "end": iso8601(source.summary.end),
            "left_out": source.summary.left_out,
            "test": config.test_rows,
        },
    )
