"""Figures of training: what a fit takes, how good and how small its models are, and what better ones could do."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from lightgbm import LGBMClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from feature_store.bundles.bundle import OFFERS, default_economics
from feature_store.bundles.onnx_session import load_graph
from feature_store.config import load_config
from feature_store.definitions import Feature
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import Floats, StateLayout
from tests.benchmarks.setting import Bench, Measured, cpu_of
from tests.redis_processes import free_port
from training.config import TrainingConfig
from training.data.candidate_features import candidates
from training.data.clipping import learn_clips
from training.data.cutoffs import lay_out
from training.data.dataset import Rows, build_rows
from training.data.splits import Splits, temporal_splits
from training.evidence import Evidence, read_evidence
from training.graph.features import FeatureMatrix, FeatureSpec

SAMPLE: Final = "complete_journey"
CORES: Final = 2
LIMIT_S: Final = 900.0
DAMAGED: Final = 0.2
CALIBRATION_ROWS: Final = 100_000
CALIBRATION_RUNS: Final = 3
ANSWERED: Final = "customers scored in"
"""What the line below the table of answers says."""
ROUNDS: Final = 41
RUNS: Final = 2000
"""Rows of a round, of which one or 256 are in a run."""

HALF_LIVES: Final = (2.0, 3.5, 5.0, 7.0, 14.0, 28.0, 56.0, 112.0, 224.0)
TUNINGS: Final[tuple[Mapping[str, Any], ...]] = (
    {"n_estimators": 250, "learning_rate": 0.03, "num_leaves": 8, "min_child_samples": 100, "feature_fraction": 0.3},
    {"n_estimators": 250, "learning_rate": 0.03, "num_leaves": 16, "min_child_samples": 200, "feature_fraction": 0.2},
    {"n_estimators": 300, "learning_rate": 0.05, "num_leaves": 4, "min_child_samples": 50, "feature_fraction": 0.3},
    {"n_estimators": 200, "learning_rate": 0.03, "num_leaves": 31, "min_child_samples": 400, "feature_fraction": 0.1},
)
"""Of the strong model, whose scores are averaged."""


@contextmanager
def pinned(cores: int) -> Iterator[None]:
    """Processes started in the block have this many cores, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def fit_seconds(_bench: Bench) -> Measured:
    """A whole fit of the sample, evidence included, in a fresh process, over a fixed fit of scikit-learn.

    The ratio is about the same on a slow and on a fast machine.
    """
    with tempfile.TemporaryDirectory() as registry, pinned(CORES):
        before = calibration_seconds()
        command = [sys.executable, "-P", "-m", "training", "fit", SAMPLE, "--registry", registry]
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=LIMIT_S)
        seconds = time.perf_counter() - start
        calibration = statistics.mean((before, calibration_seconds()))
    note = f"{seconds:.1f} s on {CORES} cores, over calibration_seconds {calibration:.2f}, of {SAMPLE}"
    return seconds / calibration, note


def calibration_seconds() -> float:
    """The median of some fits of scikit-learn on made-up data, one thread each: how fast this machine is now."""
    random = np.random.default_rng(0)
    features = random.normal(size=(CALIBRATION_ROWS, 40))
    label = features[:, :4].sum(axis=1) + random.normal(size=CALIBRATION_ROWS) > 0
    model = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=12, early_stopping=False, random_state=0)
    times = []
    with threadpool_limits(1):
        for _ in range(CALIBRATION_RUNS):
            start = time.perf_counter()
            model.fit(features, label)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def first_answer_seconds(_bench: Bench) -> Measured:
    """``make run`` in a made environment and without a bundle, from its start to the table of answers."""
    with tempfile.TemporaryDirectory() as folder, pinned(CORES):
        options = ["--registry", f"{folder}/registry", "--port", str(free_port())]
        command = [sys.executable, "-P", "-m", "service.demo", SAMPLE, *options]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
            assert demo.stdout is not None
            try:
                answered = any(ANSWERED in line for line in demo.stdout)
                seconds = time.perf_counter() - start
            finally:
                demo.send_signal(signal.SIGINT)
                demo.communicate(timeout=LIMIT_S)
    if not answered:
        raise RuntimeError("make run ended before it had answered")
    return seconds, f"{SAMPLE} on {CORES} cores, an empty registry; evidence and report are made later"


def quality(bench: Bench) -> dict[str, Measured]:
    """What the bundle says of itself: manifest and evidence."""
    manifest = bench.bundle.manifest
    result: dict[str, Measured] = {
        f"{o}_auc": (manifest.metrics[f"{o}_auc"], "manifest, test cut-offs") for o in OFFERS
    }
    for offer in OFFERS:
        result[f"calibration_error_{offer}"] = manifest.metrics[offer]["calibration_error"], "manifest, test cut-offs"
    layout = StateLayout(manifest.features)
    result["state_slots"] = float(len(layout.features)), f"a packed state has {layout.dtype.itemsize} bytes"
    evidence, _ = read_evidence(bench.registry / manifest.version)
    return result | {
        "robustness_20": robustness(evidence),
        "dynamic_wins": dynamic_wins(evidence),
        "value_reliability": value_reliability(evidence),
    }


def value_reliability(evidence: Evidence) -> Measured:
    """How far the total predicted value of the alerted customers is from the realised one, at most over the offers."""
    ratios = {value.offer: value.alerted for value in evidence.values if value.alerted is not None}
    note = "; ".join(
        f"{offer} {ratio.ratio:.3f}, 95 % {ratio.low:.3f} to {ratio.high:.3f} ({ratio.rows:,} rows)"
        for offer, ratio in ratios.items()
    )
    return max(abs(ratio.ratio - 1) for ratio in ratios.values()), f"|predicted / realised - 1| if alerted; {note}"


def robustness(evidence: Evidence) -> Measured:
    """The largest share of AUC - 0.5 that a fifth of damaged data costs."""
    whole = {(damage.offer, damage.kind): damage.auc for damage in evidence.robustness if damage.share == 0}
    lost = {
        f"{damage.offer}, {damage.kind}": 1 - (damage.auc - 0.5) / (whole[damage.offer, damage.kind] - 0.5)
        for damage in evidence.robustness
        if damage.share == DAMAGED
    }
    worst = max(lost, key=lost.__getitem__)
    return lost[worst], f"of AUC - 0.5 at 20 % damage; {worst}"


def dynamic_wins(evidence: Evidence) -> Measured:
    """The share of assumed rates at which the dynamic threshold is ahead of a single one, beyond doubt."""
    cells = evidence.grid
    tuned = statistics.mean((cell.tuned_low or 0.0) > 0 for cell in cells)
    behind = sum(cell.high < 0 for cell in cells)
    note = (
        f"of {len(cells)} cells, at equal contacts; behind in {behind}; against a tuned number of contacts {tuned:.2f}"
    )
    return statistics.mean(cell.low > 0 for cell in cells), note


def graph_times(bench: Bench) -> dict[str, Measured]:
    """Microseconds per row of the graph as the server runs it, one customer at a time and 256 at once."""
    graph, states = load_graph(bench.bundle), bench.bundle.golden["input_state"]
    result: dict[str, Measured] = {}
    for rows in (1, 256):
        inputs = {
            "state": np.resize(states, (rows, states.shape[1])),
            "age": np.ones((rows, 1)),
            "economics": np.tile(default_economics(bench.bundle.manifest), (rows, 1)),
        }

        def run(inputs: Mapping[str, Floats] = inputs) -> None:
            graph.run(**inputs)

        times = [cpu_of(run, max(RUNS // rows, 10)) / rows * 1e6 for _ in range(ROUNDS)]
        note = f"CPU per row; {min(times):.2f} to {max(times):.2f} in {ROUNDS} rounds"
        result[f"graph_{rows}_us"] = statistics.median(times), note
    return result


# --- a model without limits -----------------------------------------------------------------------------------------


def auc_gap(bench: Bench) -> Measured:
    """AUC given away against boosted trees of any size on every slot we could think of, the worse of both offers."""
    metrics = bench.bundle.manifest.metrics
    rows, splits, features = everything()
    gaps, notes = [], []
    for offer in OFFERS:
        split, labels = splits[offer], rows.label(offer)
        if not np.isclose(labels[split.test].mean(), metrics[offer]["base_rate"]):
            raise RuntimeError("the bundle was judged on other rows: fit it again")
        strong = float(roc_auc_score(labels[split.test], strong_scores(features, labels, split)))
        gaps.append(strong - metrics[f"{offer}_auc"])
        notes.append(f"{offer} {strong:.4f} over {metrics[f'{offer}_auc']:.4f}")
    return max(gaps), f"{'; '.join(notes)}; {len(TUNINGS)} LightGBMs on {features.shape[1]} features"


def everything() -> tuple[Rows, Mapping[str, Splits], npt.NDArray[np.float32]]:
    """Rows, splits and features ``[n, many]`` of the sample, at the cut-offs of a fit."""
    config = load_config(TrainingConfig, SAMPLE)
    assert config.candidates is not None
    wide = config.candidates.model_copy(update={"half_lives_days": HALF_LIVES})
    config = config.model_copy(update={"candidates": wide})
    with OfflineStore(config.source) as source:
        plan = lay_out(config, source.summary.start, source.summary.end)
        layout = StateLayout(learn_clips(source, candidates(config, source, plan.newest_known), plan.newest_known))
        rows = build_rows(source, layout, config, plan.every)
    numbers = FeatureMatrix(FeatureSpec(layout))(rows.state)
    splits = temporal_splits(rows, plan, config.evaluation.folds)
    return rows, splits, np.concatenate([numbers, ratios(layout.features, numbers)], axis=1)


def ratios(features: tuple[Feature, ...], numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Differences of logarithms ``[n, pairs]``: recent over older, amount over count, time away and usual interval."""
    at = {(f.event, f.aggregate, f.half_life_days): column for column, f in enumerate(features)}
    events = sorted({str(f.event) for f in features})
    result = []
    for event in events:
        count, amount = (
            [at[event, kind, days] for days in HALF_LIVES if (event, kind, days) in at] for kind in ("count", "sum")
        )
        for slots in (count, amount):
            result += [numbers[:, short] - numbers[:, long] for short, long in zip(slots, slots[2:], strict=False)]
        result += [numbers[:, much] - numbers[:, often] for much, often in zip(amount, count, strict=False)]
        result += [numbers[:, at[event, "latest", None]] + numbers[:, often] for often in count]
        result.append(numbers[:, at[event, "earliest", None]] - numbers[:, at[event, "latest", None]])
    return np.column_stack(result)


def strong_scores(features: npt.NDArray[np.float32], labels: Floats, split: Splits) -> Floats:
    """Mean scores of the test rows ``[n]`` by models of all that may be learnt from before them."""
    known = split.evaluation.everything
    scores = []
    for seed, tuning in enumerate(TUNINGS):
        model = LGBMClassifier(
            **tuning, reg_lambda=10.0, bagging_fraction=0.7, bagging_freq=1, random_state=seed, n_jobs=CORES, verbose=-1
        )
        model.fit(features[known], labels[known])
        scores.append(np.asarray(model.predict(features[split.test], raw_score=True)))
    return np.asarray(np.mean(scores, axis=0))
