"""What is a version follows one rule, however a registry came to be: links, volumes, and copies of it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_store.bundles import bundle
from feature_store.bundles.bundle import BundleError, Manifest, publish, set_link
from feature_store.bundles.registry import (
    SERVING,
    file_stamp,
    linked_version,
    list_versions,
    manifests_in_use,
    remember_serving,
)
from feature_store.definitions import Feature, fingerprint

FEATURES = [Feature(name="last", aggregate="latest", event="visit")]


def golden() -> bytes:
    file = io.BytesIO()
    np.savez(file, nothing=np.zeros(1))
    return file.getvalue()


def publish_version(registry: Path, version: str) -> None:
    rows = golden()
    manifest = Manifest(
        format=bundle.FORMAT,
        version=version,
        created="2026-01-01T00:00:00+00:00",
        config="shop",
        fingerprint=fingerprint(FEATURES),
        features=FEATURES,
        derived=[],
        inputs={name: [] for name in bundle.INPUTS},
        outputs=list(bundle.OUTPUTS),
        cutoffs={},
        metrics={},
        economics=dict.fromkeys(bundle.CONFIG_ECONOMICS, 1.0),
        model_sha256=bundle.sha256(version.encode()),
        golden_sha256=bundle.sha256(rows),
        libraries={},
        source={},
    )
    publish(registry, manifest, version.encode(), rows)


def plain(folder: Path) -> Path:
    """Versions a and b; b is current, a was served last."""
    for version in ("a", "b"):
        publish_version(folder, version)
    remember_serving(folder, "a")
    return folder


def volume(folder: Path) -> Path:
    """As Kubernetes projects a folder into a volume: every name is a link through ``..data``."""
    plain(folder / "..2026_01_01")
    (folder / "..data").symlink_to("..2026_01_01")
    for name in ("a", "b", bundle.CURRENT, SERVING):
        (folder / name).symlink_to(f"..data/{name}")
    return folder


def synced(folder: Path) -> Path:
    """As git-sync does it: the registry itself is a link to a worktree."""
    plain(folder / "worktrees" / "1234")
    (folder / "registry").symlink_to("worktrees/1234")
    return folder / "registry"


def named(folder: Path) -> Path:
    """With names for versions beside them, and ``current`` by way of one."""
    plain(folder)
    (folder / "prod").symlink_to("b")
    (folder / "also-a").symlink_to(folder / "a")
    (folder / bundle.CURRENT).unlink()
    (folder / bundle.CURRENT).symlink_to("prod")
    return folder


def stored_elsewhere(folder: Path) -> Path:
    """Versions are links to folders that are named by their content."""
    plain(folder / "made")
    registry = folder / "registry"
    registry.mkdir()
    for version in ("a", "b"):
        (folder / "made" / version).rename(folder / f"sha256-{version * 8}")
        (registry / version).symlink_to(folder / f"sha256-{version * 8}")
    set_link(registry, bundle.CURRENT, "b")
    set_link(registry, SERVING, "a")
    return registry


def copied(folder: Path) -> Path:
    """A copy by a tool that follows links: ``current`` and ``serving`` are folders."""
    shutil.copytree(plain(folder / "original"), folder / "copy")
    return folder / "copy"


LAYOUTS = [plain, volume, synced, named, stored_elsewhere, copied]


@pytest.mark.parametrize("make", LAYOUTS)
def test_the_versions_are_the_same_in_every_layout(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    registry = make(tmp_path)
    assert list_versions(registry) == ["b", "a"]
    assert (linked_version(registry), linked_version(registry, SERVING)) == ("b", "a")
    assert [manifest.version for manifest in manifests_in_use(registry)] == ["a", "b"]
    for name, version in ((bundle.CURRENT, "b"), ("a", "a"), ("b", "b")):
        assert bundle.read(registry, name).manifest.version == version
        assert None not in file_stamp(registry, version)


def test_a_volume_that_is_replaced_is_followed(tmp_path: Path) -> None:
    registry = volume(tmp_path)
    before = file_stamp(registry, "b")
    publish_version(tmp_path / "..2026_01_02", "b")
    publish_version(tmp_path / "..2026_01_02", "c")
    (tmp_path / "..new").symlink_to("..2026_01_02")
    (tmp_path / "..new").replace(tmp_path / "..data")
    (tmp_path / "a").unlink()
    (tmp_path / "c").symlink_to("..data/c")
    assert list_versions(registry) == ["c", "b"]
    assert linked_version(registry) == "c"
    assert file_stamp(registry, "b") != before


def test_a_bundle_that_is_there_as_current_alone_is_a_version(tmp_path: Path) -> None:
    shutil.copytree(plain(tmp_path / "original") / "b", tmp_path / "copy" / bundle.CURRENT)
    registry = tmp_path / "copy"
    assert (list_versions(registry), linked_version(registry)) == (["b"], "b")
    assert bundle.read(registry, "b").manifest.version == "b"
    assert file_stamp(registry, "b") == file_stamp(registry, bundle.CURRENT)
    assert [manifest.version for manifest in manifests_in_use(registry)] == ["b"]


def test_a_copy_without_links_says_which_link_is_missing(tmp_path: Path) -> None:
    registry = plain(tmp_path)
    for name in (bundle.CURRENT, SERVING):
        (registry / name).unlink()
    assert (list_versions(registry), linked_version(registry)) == (["b", "a"], None)
    with pytest.raises(BundleError, match=r"no link 'current'.*ln -s b "):
        bundle.read(registry)
    (registry / bundle.CURRENT).symlink_to("gone")
    assert linked_version(registry) == "gone"
    with pytest.raises(BundleError, match=r"no bundle at .*/current: the link leads to no folder"):
        bundle.read(registry)
    with pytest.raises(BundleError, match="tidemark fit"):
        bundle.read(tmp_path / "nothing")


def test_what_is_no_folder_is_no_version(tmp_path: Path) -> None:
    registry = plain(tmp_path)
    (registry / "notes.txt").write_text("x")
    (registry / "broken").symlink_to("nowhere")
    (registry / ".hidden").mkdir()
    (registry / "damaged").mkdir()
    assert list_versions(registry) == ["damaged", "b", "a"]
    (registry / "loop").symlink_to(bundle.CURRENT)
    assert list_versions(registry) == ["damaged", "b", "a"]
