"""No bundle exists whose graph does not compute what scikit-learn computes, and none that was written by halves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import training.fit
import training.models.export
from feature_store.bundles import bundle
from feature_store.bundles.bundle import MONEY_OUTPUTS, OUTPUTS, Arrays
from feature_store.bundles.onnx_session import Graph
from feature_store.state.layout import StateLayout
from training.__main__ import cli
from training.graph.builder import GraphBuilder
from training.graph.features import FeatureSpec, add_features
from training.models.export import ParityError, check_parity, expected_outputs

if TYPE_CHECKING:
    from tests.conftest import Call, Trained

pytestmark = pytest.mark.filterwarnings("ignore:Field onnx.AttributeProto.ints:DeprecationWarning")


@pytest.fixture
def untouched(registry: Path) -> Iterator[Path]:
    """A registry with a bundle, which must be as it was when the test is over."""

    def contents() -> tuple[list[str], Path]:
        return sorted(path.name for path in registry.iterdir()), (registry / "current").readlink()

    before = contents()
    yield registry
    assert contents() == before
    bundle.read(registry)


def golden(toy: Trained) -> tuple[Graph, Arrays, Arrays]:
    """A graph, inputs, and what is expected of them."""
    result = bundle.read(toy.registry)
    inputs = {name: result.golden[f"input_{name}"] for name in result.manifest.inputs}
    return Graph(result.model), inputs, {name: result.golden[f"output_{name}"].astype(np.float64) for name in OUTPUTS}


def test_equal_outputs_pass_with_their_differences(toy: Trained) -> None:
    worst = check_parity(*golden(toy))
    assert set(worst) == set(OUTPUTS)
    assert max(worst.values()) < 1e-6


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("off", [2.0, np.nan])
def test_one_row_that_is_off_in_one_output_stops_the_export(toy: Trained, name: str, off: float) -> None:
    graph, inputs, expected = golden(toy)
    expected[name][-1] += off * (1e-4 * expected[name][-1] if name in MONEY_OUTPUTS else 1e-5)
    with pytest.raises(ParityError, match=f"the exported graph differs from scikit-learn: {name} is off by"):
        check_parity(graph, inputs, expected)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_difference_within_the_tolerance_passes(toy: Trained, name: str) -> None:
    graph, inputs, expected = golden(toy)
    step = 0.5e-4 * expected[name] if name in MONEY_OUTPUTS else 0.5e-5
    check_parity(graph, inputs, expected | {name: expected[name] + step})


@pytest.mark.usefixtures("quick_fits")
def test_a_fit_whose_graph_is_off_on_the_last_test_row_publishes_nothing(
    toy: Trained, untouched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(*arguments: Any) -> Arrays:
        outputs = expected_outputs(*arguments)
        outputs["churn_probability"][-1] += 1e-4
        return outputs

    monkeypatch.setattr(training.fit, "expected_outputs", off)
    with pytest.raises(SystemExit, match=r"error: .*churn_probability is off by 0\.0001; no bundle was written"):
        cli.main(["fit", str(toy.shop.config), "--registry", str(untouched)], standalone_mode=False)


@pytest.mark.usefixtures("quick_fits")
def test_a_graph_that_is_off_only_for_older_states_publishes_nothing(
    toy: Trained, untouched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets_slowly(graph: GraphBuilder, spec: FeatureSpec) -> str:
        rates = {line.rate for line in spec.overdue}  # with another half-life, these are off at age 0 too
        lines = [
            line.model_copy(update={"half_life_days": 2 * line.half_life_days})
            if line.half_life_days and line.name not in rates
            else line
            for line in spec.layout.features
        ]
        assert lines != list(spec.layout.features)
        return add_features(graph, replace(spec, layout=StateLayout(lines)))

    monkeypatch.setattr(training.models.export, "add_features", forgets_slowly)
    with pytest.raises(SystemExit, match=r"the exported graph differs from scikit-learn: .*churn_probability is off"):
        cli.main(["fit", str(toy.shop.config), "--registry", str(untouched)], standalone_mode=False)


@pytest.mark.usefixtures("quick_fits")
def test_a_silently_wrong_conversion_publishes_nothing(
    toy: Trained, untouched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What skl2onnx does to boosted trees with a log link: the spend comes out as its logarithm.
    honest = GraphBuilder.add

    def silent(graph: GraphBuilder, operator: str, *inputs: str, **attributes: Any) -> str:
        of_spend = operator == "Exp" and inputs[0].startswith("gather")  # the other one is the decay of states
        return honest(graph, "Identity" if of_spend else operator, *inputs, **attributes)

    monkeypatch.setattr(GraphBuilder, "add", silent)
    with pytest.raises(SystemExit, match="expected_spend is off by"):
        cli.main(["fit", str(toy.shop.config), "--registry", str(untouched)], standalone_mode=False)


@pytest.mark.usefixtures("quick_fits")
def test_a_full_disk_ends_in_one_line_and_publishes_nothing(
    call: Call, toy: Trained, untouched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = call(cli, "fit", toy.shop.config, "--registry", untouched)
    assert done.is_bad_input
    assert done.err == f"error: --registry {untouched} cannot be written: No space left on device\n"
