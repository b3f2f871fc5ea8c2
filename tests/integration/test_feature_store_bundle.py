"""Bundles are published whole or not at all, and whatever is wrong with one is found before it serves."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from feature_store import files
from feature_store.bundles import bundle
from feature_store.bundles.bundle import ECONOMICS, INPUTS, OUTPUTS, BundleError, Manifest
from feature_store.bundles.onnx_session import Graph, load_graph

if TYPE_CHECKING:
    from tests.conftest import Trained

Damage = Callable[[Path], object]


def current(registry: Path) -> Path:
    return registry / bundle.CURRENT


def rewrite(registry: Path, **changes: Any) -> None:
    path = current(registry) / bundle.MANIFEST_FILE
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(fields | {bundle.MANIFEST_HASH: bundle.manifest_hash(fields)}))


def replace_golden(registry: Path, change: Callable[[bundle.Arrays], None]) -> None:
    """Change the golden rows and the manifest's hash of them."""
    result = bundle.read(registry)
    arrays = dict(result.golden)
    change(arrays)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    (current(registry) / bundle.GOLDEN_FILE).write_bytes(file.getvalue())
    rewrite(registry, golden_sha256=bundle.sha256(file.getvalue()))


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / bundle.MANIFEST_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def truncate(path: Path, by: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def test_a_bundle_is_read_as_it_was_written(toy: Trained) -> None:
    result = bundle.read(toy.registry)
    assert set(result.manifest.inputs) == set(INPUTS)
    assert set(result.manifest.outputs) == {*OUTPUTS, "segment", "rfm"}
    assert {name.partition("_")[0] for name in result.golden} == {"input", "output"}
    assert bundle.read(toy.registry, result.manifest.version).manifest == result.manifest


def test_a_good_bundle_opens_and_gives_its_golden_rows(toy: Trained) -> None:
    result = bundle.read(toy.registry)
    graph = load_graph(result)
    outputs = graph.run(**{name: result.golden[f"input_{name}"] for name in INPUTS})
    for name in OUTPUTS:
        np.testing.assert_allclose(outputs[name], result.golden[f"output_{name}"], rtol=1e-6)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda at: truncate(at / "model.onnx"), "model.onnx is damaged or was changed"),
        (lambda at: truncate(at / "golden.npz"), "golden.npz is damaged or was changed"),
        (lambda at: (at / "golden.npz").write_bytes(b""), "golden.npz is damaged or was changed"),
        (lambda at: (at / "model.onnx").unlink(), r"model.onnx cannot be read \(FileNotFoundError\)"),
        (lambda at: (at / "golden.npz").unlink(), r"golden.npz cannot be read \(FileNotFoundError\)"),
        (lambda at: (at / "manifest.json").unlink(), r"manifest.json cannot be read \(FileNotFoundError\)"),
        (lambda at: truncate(at / "manifest.json", 2), "manifest.json is not valid"),
        (lambda at: (at / "manifest.json").write_text("{}"), "manifest.json is not valid: version: Field required"),
        (lambda at: rewrite(at.parent, format=1), "format 1, this release serves format 2: fit it again"),
        (lambda at: rewrite(at.parent, format=3), "format 3, which a later release wrote"),
        (lambda at: rewrite(at.parent, fingerprint="00000000"), "the fingerprint does not match the feature"),
        (lambda at: rewrite(at.parent, features=[]), "the fingerprint does not match the feature"),
        (lambda at: rewrite(at.parent, version="../../etc"), "manifest.json is not valid: version"),
        (lambda at: rewrite(at.parent, outputs=list(OUTPUTS[1:])), "inputs or outputs are not the ones this release"),
        (lambda at: rewrite(at.parent, inputs={"state": ["n", 6]}), "inputs or outputs are not the ones this release"),
        (lambda at: rewrite(at.parent, model_sha256="0" * 64), "model.onnx is damaged or was changed"),
        (lambda at: edit(at, '"margin": 0.3', '"margin": 0.9'), "manifest.json is damaged or was changed"),
        (lambda at: edit(at, '"margin": 0.3', '"margin": 1e999'), "manifest.json is not valid: economics.margin"),
        (lambda at: edit(at, '"margin": 0.3', '"margin": -1'), "manifest.json is not valid: economics.margin"),
    ],
)
def test_a_damaged_bundle_is_refused_by_the_name_of_what_is_wrong(registry: Path, damage: Damage, told: str) -> None:
    damage(current(registry))
    with pytest.raises(BundleError, match=told):
        bundle.read(registry)


@pytest.mark.parametrize("version", ["current", "20200101T000000-00000000"])
def test_a_missing_bundle_is_refused_with_the_mend(tmp_path: Path, version: str) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*: run 'tidemark fit CONFIG --registry .*' first"):
        bundle.read(tmp_path, version)


def test_a_link_to_a_bundle_that_is_gone_is_refused(registry: Path) -> None:
    shutil.rmtree(current(registry).resolve())
    with pytest.raises(BundleError, match="no bundle at"):
        bundle.read(registry)


def test_golden_rows_never_run_code(registry: Path) -> None:
    file = io.BytesIO()
    np.savez(file, input_state=np.array([print], dtype=object))
    (current(registry) / bundle.GOLDEN_FILE).write_bytes(file.getvalue())
    rewrite(registry, golden_sha256=bundle.sha256(file.getvalue()))
    with pytest.raises(BundleError, match=r"golden.npz does not hold arrays \(ValueError\)"):
        bundle.read(registry)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_differs_from_its_golden_row_is_refused_by_name(registry: Path, name: str) -> None:
    def change(arrays: bundle.Arrays) -> None:
        expected = arrays[f"output_{name}"].copy()
        expected[-1] *= 1.001
        arrays[f"output_{name}"] = expected

    replace_golden(registry, change)
    with pytest.raises(BundleError, match=f"golden rows give other results: {name} is off by"):
        load_graph(bundle.read(registry))


def test_golden_rows_without_an_expectation_are_refused(registry: Path) -> None:
    def change(arrays: bundle.Arrays) -> None:
        del arrays["output_expected_spend"]

    replace_golden(registry, change)
    with pytest.raises(BundleError, match=r"the golden rows cannot be run \(KeyError\)"):
        load_graph(bundle.read(registry))


def test_a_bundle_without_a_single_golden_row_is_refused(registry: Path) -> None:
    def change(arrays: bundle.Arrays) -> None:
        arrays.update({name: array[:0] for name, array in arrays.items()})

    replace_golden(registry, change)
    with pytest.raises(BundleError):
        load_graph(bundle.read(registry))


def test_a_graph_that_is_none_is_refused(registry: Path) -> None:
    (current(registry) / bundle.MODEL_FILE).write_bytes(b"not a graph")
    rewrite(registry, model_sha256=bundle.sha256(b"not a graph"))
    with pytest.raises(BundleError, match="the graph cannot be loaded"):
        load_graph(bundle.read(registry))


def test_a_graph_with_other_inputs_than_its_manifest_says_is_refused(registry: Path) -> None:
    rewrite(registry, inputs={"state": ["n", 99], "age": ["n", 1], "economics": ["n", len(ECONOMICS)]})
    with pytest.raises(BundleError, match="the graph's inputs are not those of the manifest"):
        load_graph(bundle.read(registry))


# --- publishing -------------------------------------------------------------------------------------------------------


def contents(registry: Path) -> tuple[set[str], str]:
    return {path.name for path in registry.iterdir()}, str(current(registry).readlink())


def newer(registry: Path, version: str = "29990101T000000-newer") -> tuple[Manifest, bytes, bytes]:
    result = bundle.read(registry)
    golden = (current(registry) / bundle.GOLDEN_FILE).read_bytes()
    return result.manifest.model_copy(update={"version": version}), result.model, golden


def test_publishing_adds_a_version_and_moves_current_to_it(registry: Path) -> None:
    before, _ = contents(registry)
    folder = bundle.publish(registry, *newer(registry))
    assert contents(registry) == (before | {"29990101T000000-newer"}, "29990101T000000-newer")
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "manifest.json", "golden.npz"}
    load_graph(bundle.read(registry))


@pytest.mark.parametrize(
    "broken", ["os.fsync", "pathlib.Path.rename", "pathlib.Path.symlink_to", "pathlib.Path.replace"]
)
def test_a_failed_publish_leaves_neither_a_version_nor_a_changed_current(
    registry: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, next_one = contents(registry), newer(registry)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="No space left on device"):
        bundle.publish(registry, *next_one)
    monkeypatch.undo()
    assert contents(registry) == before
    load_graph(bundle.read(registry))


def test_a_publish_stopped_half_way_leaves_nothing_that_could_be_served(registry: Path) -> None:
    before = contents(registry)
    script = f"""
import os, pathlib
from feature_store.bundles import bundle
registry = pathlib.Path({str(registry)!r})
found = bundle.read(registry)
calls = []
os.fsync = lambda _: calls.append(0) or (os._exit(9) if len(calls) == 2 else None)
bundle.publish(registry, found.manifest.model_copy(update={{"version": "newer"}}), found.model, b"golden")
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=registry.parent, check=False).returncode == 9
    versions, link = contents(registry)
    assert {name for name in versions if not name.startswith(".")} == before[0]
    assert link == before[1]


def test_a_version_that_another_process_published_meanwhile_stays(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two fits of the same data in the same second give the same version.
    next_one, write = newer(registry), files.write_atomically
    others: list[Path] = []

    def meanwhile(path: Path, data: bytes, **options: Any) -> None:
        if not others:
            others.append(path)
            bundle.publish(registry, *next_one)
        write(path, data, **options)

    monkeypatch.setattr(bundle, "write_atomically", meanwhile)
    with pytest.raises(OSError):  # noqa: PT011  # which one is for the system to say
        bundle.publish(registry, *next_one)
    assert bundle.read(registry).manifest.version == next_one[0].version


def test_a_version_is_never_written_over(registry: Path) -> None:
    model = bundle.read(registry).model
    version = str(current(registry).readlink())
    with pytest.raises(OSError, match="exists already"):
        bundle.publish(registry, newer(registry, version)[0], b"another model", b"")
    assert bundle.read(registry).model == model


def test_a_graph_keeps_to_one_thread(toy: Trained) -> None:
    options = Graph(bundle.read(toy.registry).model)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_a_version_published_while_another_is_read_does_not_mix_with_it(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, next_one = str(current(registry).readlink()), newer(registry)
    honest = bundle.read_manifest

    def publish_meanwhile(folder: Path) -> Manifest:
        manifest = honest(folder)
        monkeypatch.setattr(bundle, "read_manifest", honest)
        folder_of_next = bundle.publish(registry, *next_one)
        (folder_of_next / "model.onnx").write_bytes(b"another model")
        return manifest

    monkeypatch.setattr(bundle, "read_manifest", publish_meanwhile)
    assert bundle.read(registry).manifest.version == before
    assert str(current(registry).readlink()) != before
