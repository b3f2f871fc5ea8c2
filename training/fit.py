"""The whole of training in one straight line: source → slots → learners → models → parity gate → bundle → evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from feature_store.bundles.bundle import Manifest, sha256
from feature_store.bundles.onnx_session import Graph
from feature_store.bundles.typical_customer import told, typical
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import Floats
from feature_store.timestamps import iso8601
from training.audit.findings import audit, stop_on_fatal
from training.config import TrainingConfig
from training.data.dataset import Rows
from training.data.training_table import Data, Progress, prepare
from training.evaluation import evaluate as judge
from training.evaluation.evaluate import Judged
from training.evaluation.robustness import DAMAGES, robustness
from training.evidence import ROWS_FILE, TABLES_FILE, Evidence, Finding, TestRows, pack_rows
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
)
from training.models.model_set import EVALUATION, FINAL, Models, fit_models
from training.parallel import IN_PROCESS, WorkerPool
from training.selection.backward_elimination import Chosen, choose_learners, learners_of

SMALL_SOURCE: Final = 50_000
"""Events, or customers of a snapshot, up to which a fit takes less time than workers take to start."""


@dataclass(frozen=True)
class Fitted:
    """What a fit produced: a bundle that is ready to be published, and what ``gather_evidence`` needs.

    Attributes:
        manifest: The bundle's manifest.
        model: The serialised graph.
        golden: Packed golden rows.
        judged: The models of the evaluation, which have seen nothing of the test rows.
        chosen: The learner of each target, and what was tried.
        scored: Scored test rows by offer.
        findings: What the audit found in the source.
    """

    manifest: Manifest
    model: bytes
    golden: bytes
    judged: Judged
    chosen: Chosen
    scored: dict[str, TestRows]
    findings: list[Finding]


def workers_for(source: OfflineStore, processes: int | None = None) -> WorkerPool:
    """The pool of worker processes for a fit of this source.

    Args:
        source: The opened source.
        processes: Number of workers; None means one for each core, and no workers for a small source.
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
        source: The opened source of the config.
        progress: Called when a step begins.
        pool: Worker processes; their number changes no bit of the result.

    Raises:
        InputError: The source cannot support the config.
        ParityError: The exported graph does not compute what scikit-learn computes.
        WorkerLostError: A worker process died.
    """
    # One thread for each step: the same bits on any machine, and many small fits do not wait for each other's threads.
    with threadpool_limits(1):
        return _fit(config, name, source, progress, pool)


def gather_evidence(
    fitted: Fitted, source: OfflineStore, progress: Progress, pool: WorkerPool = IN_PROCESS
) -> dict[str, bytes]:
    """Make the files of a bundle that no server reads: the evidence and the report.

    Args:
        fitted: What ``fit`` returned.
        source: The same source, still open.
        progress: Called when a step begins.
        pool: Worker processes; their number changes no bit of the result.

    Returns:
        The files' contents by name, in the order in which they must be written.

    Raises:
        WorkerLostError: A worker process died.
    """
    from training.report.render import REPORT_FILE, render_report  # noqa: PLC0415  # matplotlib is slow to import

    with threadpool_limits(1):
        evidence, scored = _evidence(fitted, source, progress, pool)
        done = progress("report", 1)
        report = render_report(fitted.manifest, evidence, scored)
        done()
    tables = (evidence.model_dump_json(indent=1) + "\n").encode()
    return {ROWS_FILE: pack_rows(scored), TABLES_FILE: tables, REPORT_FILE: report.encode()}


def _fit(config: TrainingConfig, name: str, source: OfflineStore, progress: Progress, pool: WorkerPool) -> Fitted:
    done = progress("audit", 1)
    findings = audit(config, source)
    stop_on_fatal(findings)
    done()
    data = prepare(config, source, progress, pool)
    chosen = _choose(config, data, progress, pool)

    done = progress("models", 4)
    tasks = [
        pool.submit(fit_models, config, data.spec, data.rows, data.splits, chosen.learners, stage)
        for stage in (EVALUATION, FINAL)
    ]
    judged = _judged(config, data, tasks[0].result())
    done()
    metrics, scored = judge.metrics(judged)
    models = tasks[1].result()
    done()
    figures = _figures(config, data, models, FINAL)
    model = build_graph(models, config)
    graph = Graph(model)
    done()
    test = data.rows.take(np.unique(np.concatenate([split.test for split in data.splits.values()])))
    inputs = graph_inputs(test.state, figures, own_figures(config, data.spec.layout))
    metrics["parity"] = check_parity(graph, inputs, expected_outputs(models, test.state, config, figures))
    golden = golden_rows(graph, inputs)
    done()
    metrics["rows"] = _numbers(data, test)
    metrics["spend"]["model"] = models.spend.name
    for offer, found in models.probability.items():
        metrics[offer]["model"] = found.name
    manifest = _manifest(config, name, source, data, models, graph, figures, metrics, model, golden)
    return Fitted(manifest, model, golden, judged, chosen, scored, findings)


def _choose(config: TrainingConfig, data: Data, progress: Progress, pool: WorkerPool) -> Chosen:
    done = progress("models worth having", sum(len(learners_of(target)) for target in data.splits))
    features = filled_matrix(data.spec, data.rows.state)(data.rows.state)
    return choose_learners(features, data.rows, data.splits, config.evaluation.seed, done, pool)


def _judged(config: TrainingConfig, data: Data, models: Models) -> Judged:
    """Models that have seen nothing of the test, as a graph like the one that is served."""
    return Judged(config, data, models, build_graph(models, config), _figures(config, data, models, EVALUATION))


def _evidence(
    fitted: Fitted, source: OfflineStore, progress: Progress, pool: WorkerPool
) -> tuple[Evidence, dict[str, TestRows]]:
    """The tables, and the scored rows with what a random split would have said of them."""
    judged, chosen = fitted.judged, fitted.chosen
    data, notes = judged.data, []
    kinds = 1 if data.plan is None else 3
    done = progress("evidence", 4 + kinds * len(DAMAGES))
    if data.plan is None:
        notes.append(
            f"a snapshot has no time: the test customers were drawn {_drawn(judged.config)}, and later data will hold "
            "less"
        )
    if not data.rungs:
        notes.append("the config names its features one by one, so there was no ladder to climb")
    # Workers compute the slow tables while this process uses the source: they have no access to its DuckDB.
    optimism_tasks = {} if data.plan is None else judge.optimism(judged, chosen.learners, fitted.scored, pool)
    importance_tasks = judge.importance(judged, pool)
    treatment, warnings = judge.treatment(judged, source)
    done()
    damages = list(robustness(judged, source, done))
    policies, cells, costs = judge.policies(judged)
    done()
    importance = [line for target, task in importance_tasks.items() for line in task.result()[target]]
    done()
    optimism, scored = [], dict(fitted.scored)
    for offer, task in optimism_tasks.items():
        found, random = task.result()
        optimism.append(found)
        scored[offer] = replace(scored[offer], random=random)
    done()
    evidence = Evidence(
        audit=[*fitted.findings, *warnings],
        optimism=optimism,
        trials=chosen.trials,
        ladder=data.rungs,
        candidates=max((len(rung.slots) for rung in data.rungs), default=0),
        earned_nothing=1
        - min((len(rung.slots) for rung in data.rungs if rung.chosen), default=1)
        / max((len(rung.slots) for rung in data.rungs), default=1),
        importance=importance,
        robustness=damages,
        segments=judge.segments(judged),
        policies=policies,
        grid=cells,
        costs=costs,
        treatment=treatment,
        tags=data.tags,
        tags_cost=dict(data.tags_cost),
        notes=notes,
    )
    return evidence, scored


def _figures(config: TrainingConfig, data: Data, models: Models, stage: str) -> dict[str, float]:
    """The economics, with the price of each offer's budget found on the block that the models were calibrated on."""
    prices = {}
    for offer in models.probability:
        rows = data.rows.take(getattr(data.splits[offer], stage).calibration)
        features = models.matrix(rows.state)
        prices[offer] = budget_price(
            models.predict(offer, features),
            config.economics.margin * models.spend.predict(features),
            terms_of(config, data.spec.layout, offer, rows.state),
            config.economics.threshold_min,
        )
    return config.economics.figures(prices)


def _numbers(data: Data, test: Rows) -> dict[str, int]:
    evaluation = [split.evaluation for split in data.splits.values()]
    return {
        "training": max(len(split.everything) for split in evaluation),
        "calibration": max(len(split.calibration) for split in evaluation),
        "test": len(test),
    }


def _manifest(
    config: TrainingConfig,
    name: str,
    source: OfflineStore,
    data: Data,
    models: Models,
    graph: Graph,
    figures: Mapping[str, float],
    metrics: dict[str, Any],
    model: bytes,
    golden: bytes,
) -> Manifest:
    created = datetime.now(UTC)
    layout = data.spec.layout
    cutoffs = {} if data.plan is None else data.plan.described()
    return Manifest(
        version=f"{created:%Y%m%dT%H%M%S}-{sha256(model)[:8]}",
        created=created.isoformat(timespec="seconds"),
        config=name,
        fingerprint=layout.fingerprint,
        features=list(layout.features),
        interests=config.interests,
        derived=models.matrix.spec.names,
        inputs=graph.inputs,
        outputs=graph.outputs,
        labels=config.labels,
        segments=models.segments.names,
        segment_edges=models.segments.edges(),
        cutoffs={block: [iso8601(cutoff) for cutoff in some] for block, some in cutoffs.items()},
        metrics=metrics,
        economics=dict(figures),
        own_figures=sorted(own_figures(config, layout)),
        baseline=told(typical(layout, _newest(data, models))),
        model_sha256=sha256(model),
        golden_sha256=sha256(golden),
        libraries=library_versions(),
        source={
            "events": source.summary.events,
            "customers": source.summary.customers,
            "start": iso8601(source.summary.start),
            "end": iso8601(source.summary.end),
            "left_out": source.summary.left_out,
            "test": _drawn(config),
        },
    )


def _newest(data: Data, models: Models) -> Floats:
    """States of the customers that the models were calibrated on: as they are now, or of a snapshot drawn by lot."""
    offer = next(iter(models.probability))
    return data.rows.state[data.splits[offer].final.calibration]


def _drawn(config: TrainingConfig) -> str:
    """How the test rows were chosen."""
    if config.snapshot is None:
        return "by time"
    group = config.snapshot.group
    return f"by lot, all of one {group} together" if group else "by lot"
