"""Features know nothing of what comes after their cut-off, two fits are one, and one that is stopped leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from feature_store.bundles import bundle
from feature_store.bundles.bundle import OFFERS
from feature_store.config import load_config
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import StateLayout
from tests.conftest import DAY_S, TOY_DAYS, TOY_START, Shop
from tests.waiting import FIT_S
from training import __main__ as main
from training.arrays import Features
from training.config import TrainingConfig
from training.customer_key import KEY_BYTES, default_key_path
from training.data.candidate_features import candidates, overdue, rates
from training.data.clipping import learn_clips
from training.data.cutoffs import CutoffPlan, lay_out
from training.data.dataset import Rows, build_rows
from training.fit import fit, workers_for
from training.graph.features import FeatureSpec, filled_matrix

if TYPE_CHECKING:
    from tests.conftest import Call

pytestmark = pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning")

FEW = "FROM old WHERE customer_id < 'c0200'"
"""Half of the customers."""
CANDIDATES = """[candidates]
events = ["purchase"]
half_lives_days = [7, 28]
most_slots = 4
"""


def wide(shop: Shop) -> Path:
    """The shop's config with candidates in place of its features."""
    path = shop.folder / "wide.toml"
    path.write_text(shop.config.read_text().partition("[[feature]]")[0] + CANDIDATES)
    return path


def features_of(config: TrainingConfig, plan: CutoffPlan, cutoffs: list[float]) -> tuple[Rows, Features, list[str]]:
    """Rows and model matrix of some cut-offs, from whatever the source holds now; learnt as a fit does it."""
    with OfflineStore(config.source) as source:
        lines = candidates(config, source, plan.newest_known)
        layout = StateLayout(learn_clips(source, lines, plan.newest_known))
        spec = FeatureSpec(layout, overdue(config, lines), rates=rates(config, lines))
        rows = build_rows(source, layout, config, cutoffs)
    known = rows.at([cutoff for cutoff in cutoffs if cutoff <= plan.newest_known])
    return rows, filled_matrix(spec, known.state)(rows.state), spec.names


@pytest.mark.parametrize("after", ["newest training cut-off", "first test cut-off"])
@pytest.mark.parametrize("chosen", ["lines", "candidates"])
def test_features_are_the_same_without_all_that_came_after_their_cut_off(shop: Shop, chosen: str, after: str) -> None:
    config = load_config(TrainingConfig, str(wide(shop) if chosen == "candidates" else shop.config))
    plan = lay_out(config, TOY_START, TOY_START + TOY_DAYS * DAY_S)
    last = plan.newest_known if after == "newest training cut-off" else plan.churn.test[0]
    cutoffs = [cutoff for cutoff in plan.churn.training if cutoff <= last]
    cutoffs += [last] if last not in cutoffs else []
    rows, matrix, names = features_of(config, plan, cutoffs)
    assert np.isfinite(rows.churn).all()

    shop.change_events(f"FROM old WHERE ts <= {last}")
    before, matrix_before, names_before = features_of(config, plan, cutoffs)
    assert names_before == names
    assert len(names) > 7
    # Who was active at a cut-off is told by events up to it, so the rows are the same ones.
    np.testing.assert_array_equal(before.customer_id, rows.customer_id)
    np.testing.assert_array_equal(before.cutoff, rows.cutoff)
    np.testing.assert_array_equal(before.state, rows.state)
    np.testing.assert_array_equal(matrix_before, matrix)
    np.testing.assert_array_equal(before.recency_days, rows.recency_days)
    # What became of them is not known any more.
    assert np.isnan(before.at([last]).churn).all()
    assert len(before.at([last])) > 100


CHANGES = """
attributes = \"\"\"
SELECT customer_id, income, 'plan ' || least(orders // 10, 4) AS plan, to_timestamp({start}) AS valid_from
FROM '${{data}}/customers.csv' LEFT JOIN (SELECT customer_id, count(*) AS orders FROM '${{data}}/events.parquet'
    WHERE event_type = 'purchase' AND ts <= {moment} GROUP BY customer_id) USING (customer_id)\"\"\"
"""
LATER_CHANGES = """
UNION ALL SELECT customer_id, (hash(customer_id) % 1000)::DOUBLE, 'noise ' || hash(customer_id) % 5,
    to_timestamp({moment} + 1) FROM '${{data}}/customers.csv'\"\"\"
"""
NOISE = """
SELECT * FROM old WHERE ts <= {moment} OR ts = (SELECT max(ts) FROM old)
UNION ALL
SELECT * REPLACE ('c0' || lpad((hash(ts, 1) % 400)::VARCHAR, 3, '0') AS customer_id,
    {moment} + 1 + (hash(ts, 2) % 1000000) / 1e6 * ((SELECT max(ts) FROM old) - {moment} - 2) AS ts,
    CASE WHEN hash(ts, 3) % 3 = 0 THEN 'purchase' WHEN hash(ts, 3) % 3 = 1 THEN 'view' ELSE 'noise' END AS event_type,
    (hash(ts, 4) % 100000)::DOUBLE AS amount, (hash(ts, 5) % 1000000)::DOUBLE AS duration_s)
FROM old WHERE ts > {moment} AND ts < (SELECT max(ts) FROM old)
"""


def with_changes(config: Path, moment: float, later: str = "") -> Path:
    """A config whose attributes have times, with changes at the end."""
    text = config.read_text()
    head, _, tail = text.partition("attributes = ")
    changes = CHANGES.format(start=TOY_START, moment=moment)
    if later:
        changes = changes.rstrip().removesuffix('"""') + later
    path = config.with_name("changes.toml")
    path.write_text(head + changes.lstrip() + tail.partition("\n")[2])
    return path


def choices(path: Path, offers: tuple[str, ...]) -> tuple[Any, ...]:
    """Everything that a fit has chosen or learnt for the models of these offers before they are tested."""
    config = load_config(TrainingConfig, str(path))
    with OfflineStore(config.source) as source:
        made = fit(config, "wide", source, lambda *_: lambda: None)
    spec = made.scorer.models.matrix.spec
    subsets = [subset.model_copy(update={"graph_us": None}) for subset in made.selected.subsets]
    learners = {offer: made.chosen.learners[offer].name for offer in offers}
    return spec.layout.features, spec.names, spec.fill, subsets, made.selected.stability, learners


@pytest.mark.usefixtures("quick_fits")
def test_noise_after_the_last_training_time_changes_no_choice_of_a_fit(shop: Shop) -> None:
    """Slots, learners, clips, categories and medians are those that were known when the first test begins.

    What is common to both offers must not know anything of the earlier test, that of churn; the learner of propensity
    may know what comes before its own.
    """
    plan = lay_out(load_config(TrainingConfig, str(wide(shop))), TOY_START, TOY_START + TOY_DAYS * DAY_S)
    first, later = plan.of("churn").test[0], plan.of("propensity").test[0]
    assert first < later
    before = choices(with_changes(wide(shop), first), OFFERS)
    assert any(feature.categories for feature in before[0])  # the plan tells much, so it is chosen
    original = (shop.folder / "events.parquet").read_bytes()
    for moment, offers in ((first, ("churn",)), (later, OFFERS)):
        (shop.folder / "events.parquet").write_bytes(original)
        shop.change_events(NOISE.format(moment=moment))
        later_changes = LATER_CHANGES.format(moment=moment)
        after = choices(with_changes(wide(shop), first, later_changes), offers)
        assert list(after[-1]) == list(offers)
        for was, result in zip(before[:-1], after[:-1], strict=True):
            assert was == result
        assert {offer: before[-1][offer] for offer in offers} == after[-1]


@pytest.mark.usefixtures("without_pictures")
def test_candidates_fitted_on_one_core_and_on_two_are_the_same_model_to_the_last_bit(
    call: Call, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.change_events(FEW)
    config = wide(shop)
    made, rows = [], []
    for processes, registry in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        monkeypatch.setattr(main, "workers_for", partial(workers_for, processes=processes))
        default_key_path(registry).write_text("5a" * KEY_BYTES)
        default_key_path(registry).chmod(0o600)
        done = call(main.cli, "fit", config, "--registry", registry)
        assert (done.code, done.err) == (0, "")
        folder = registry / "current"
        made.append((bundle.read(registry).manifest, json.loads((folder / "evidence.json").read_text())))
        rows.append((folder / "evidence.npz").read_bytes())
    (first, evidence), (second, again) = made
    assert rows[0] == rows[1]
    assert first.model_sha256 == second.model_sha256
    assert first.golden_sha256 == second.golden_sha256
    assert first.metrics == second.metrics
    for rung in (*evidence["ladder"], *again["ladder"]):
        assert rung.pop("graph_us") > 0  # the one thing in it that is measured
    assert evidence == again
    # Features were selected, and the selected ones are served.
    (rung,) = (rung for rung in evidence["ladder"] if rung["chosen"])
    assert [feature.name for feature in first.features] == rung["slots"]
    assert len(rung["slots"]) <= 4 < evidence["candidates"]


@pytest.mark.parametrize("moment", ["model selection", "evidence"])
def test_a_fit_that_is_stopped_leaves_nothing_in_the_registry(shop: Shop, tmp_path: Path, moment: str) -> None:
    shop.change_events(FEW)
    registry = tmp_path / "registry"
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        fit = subprocess.Popen(
            [sys.executable, "-u", "-c", PIECEWISE, moment, "fit", str(shop.config), "--registry", str(registry)],
            cwd=tmp_path,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "reached").exists():
            assert fit.poll() is None, (tmp_path / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(fit.pid, signal.SIGINT)
        assert fit.wait(timeout=FIT_S) == 130, (tmp_path / "err").read_text()
    finally:
        if fit.poll() is None:
            fit.kill()
            fit.wait()
    assert (tmp_path / "err").read_text().strip() == "error: stopped"
    assert not registry.exists() or list(registry.iterdir()) == []


PIECEWISE = """
import pathlib, signal, sys
import training.__main__ as main
from feature_store.cli import run_cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts in the background ignores it
step, plain = sys.argv.pop(1), main.steps_of
def told(progress):
    begin = plain(progress)
    def named(name, parts):
        if name == step:
            pathlib.Path("reached").touch()
        return begin(name, parts)
    return named
main.steps_of = told
run_cli(main.cli)
"""
"""A fit that tells when it has reached a step."""
