"""A worker follows its registry: real bundles, no server and no Redis."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from feature_store.bundles import bundle
from feature_store.bundles.bundle import BundleError
from feature_store.bundles.registry import (
    NO_ROLLOUT,
    ROLLOUT_FILE,
    SERVING,
    Rollout,
    linked_version,
    list_versions,
    manifests_in_use,
    read_rollout,
    remember_serving,
    write_rollout,
)
from feature_store.definitions import fingerprint
from feature_store.errors import StoreUnavailableError
from service.scoring import model_loader
from service.scoring.model import Model
from service.scoring.model_loader import ModelLoader, first_model
from service.scoring.model_router import ModelRouter, ModelSet, ServingModel
from service.scoring.registry_watcher import RegistryWatcher, RegistryWriteError
from service.scoring.scorer import Scorer
from tests.e2e.models import republished, with_other_features


@dataclass
class Worker:
    """What a watch works with, and what it was told."""

    registry: Path
    ready: set[str] = field(default_factory=set)
    away: bool = False
    used: list[str] = field(default_factory=list)
    asked: int = 0

    async def is_ready(self, fingerprint: str) -> bool:
        self.asked += 1
        if self.away:
            raise StoreUnavailableError
        return fingerprint in self.ready

    async def use(self, model: Model) -> None:
        if self.away:
            raise StoreUnavailableError
        self.used.append(model.version)

    @staticmethod
    def make(model: Model, *, shadow: bool = False) -> Scorer:
        return Scorer(cast("Any", None), model, on_loop_rows=0 if shadow else 64)

    def watch(self) -> RegistryWatcher:
        model = Model.current(self.registry)
        model_set = ModelSet(ServingModel(model, self.make(model)))
        loader = ModelLoader(self.registry, self.is_ready)
        return RegistryWatcher(loader, ModelRouter(model_set), self, self.use)

    def run(self, act: Callable[[RegistryWatcher], Awaitable[None]]) -> None:
        async def run() -> None:
            await act(self.watch())

        asyncio.run(run())


@pytest.fixture
def worker(registry: Path) -> Worker:
    return Worker(registry)


def serving(watch: RegistryWatcher) -> str:
    return watch.router.model_set.active.model.version


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def test_a_refused_version_is_not_tried_again_until_its_files_change(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[str] = []

    def current(registry: Path, version: str, pause: Callable[[], None]) -> Model:
        read.append(version)
        return honest(registry, version, pause)

    async def act(watch: RegistryWatcher) -> None:
        before, bad = serving(watch), republished(worker.registry)
        monkeypatch.setattr(Model, "current", current)
        graph = worker.registry / bad / bundle.MODEL_FILE
        whole = graph.read_bytes()
        tear(graph)
        for _ in range(3):
            await watch.look()
        assert (serving(watch), read, watch.loader.refusals) == (before, [bad], 1)
        assert "damaged or was changed" in watch.loader.refused[bad].reason
        assert watch.loader.latest is watch.loader.refused[bad]
        assert caplog.text.count("refused, the old one goes on") == 1
        graph.write_bytes(whole)
        await watch.look()
        assert (serving(watch), watch.loader.refused, worker.used) == (bad, {}, [bad])
        read.clear()
        await watch.look()
        assert (read, watch.switches) == ([], 1)

    honest = Model.current
    worker.run(act)


def test_a_model_is_loaded_with_the_lowest_priority(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[None] = []

    async def act(watch: RegistryWatcher) -> None:
        assert os.getpriority(os.PRIO_PROCESS, await watch.loader.in_thread(threading.get_native_id)) == 19
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 19
        republished(worker.registry)
        monkeypatch.setattr(model_loader, "LOAD_PAUSE", partial(pauses.append, None))
        await watch.look()
        assert len(pauses) == 3

    worker.run(act)


def test_a_version_without_states_is_refused_until_they_are_loaded(worker: Worker) -> None:
    async def act(watch: RegistryWatcher) -> None:
        before, other = serving(watch), with_other_features(worker.registry)
        bundle.set_link(worker.registry, bundle.CURRENT, other)
        await watch.look()
        await watch.look()
        assert (serving(watch), watch.loader.refusals) == (before, 1)
        assert "load its states first: tidemark load" in watch.loader.refused[other].reason
        worker.ready.add(bundle.read_manifest(worker.registry / other).fingerprint)
        worker.away = True
        await watch.look()
        assert serving(watch) == before
        worker.away = False
        await watch.look()
        assert serving(watch) == other

    worker.run(act)


def test_a_redis_that_does_not_answer_postpones_a_switch_and_leaves_the_current_link(worker: Worker) -> None:
    async def act(watch: RegistryWatcher) -> None:
        before, later = serving(watch), republished(worker.registry, activate=False)
        worker.away = True
        with pytest.raises(StoreUnavailableError):
            await watch.activate(later)
        assert (serving(watch), linked_version(worker.registry)) == (before, before)
        assert watch.loader.refused == {}

    worker.run(act)


def test_a_registry_that_cannot_be_written_refuses_and_stays(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError

    async def act(watch: RegistryWatcher) -> None:
        before, later = serving(watch), republished(worker.registry, activate=False)
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.mkdtemp", fail)
            patch.setattr("feature_store.bundles.registry.write_atomically", fail)
            for call in (watch.activate(later), watch.roll_out(Rollout(shadow=later))):
                with pytest.raises(RegistryWriteError, match="cannot be written"):
                    await call
        assert (serving(watch), worker.used[-1], watch.rollout) == (before, before, NO_ROLLOUT)
        bundle.set_link(worker.registry, bundle.CURRENT, later)
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.mkdtemp", fail)
            await watch.look()
        assert serving(watch) == later  # to follow needs no writing

    worker.run(act)


def test_a_rollout_is_followed_kept_by_a_refusal_and_ended(worker: Worker) -> None:
    async def act(watch: RegistryWatcher) -> None:
        canary = republished(worker.registry, activate=False)
        write_rollout(worker.registry, Rollout(canary=canary, share=0.25))
        await watch.look()
        model_set = watch.router.model_set
        assert model_set.canary is not None
        assert (model_set.canary.model.version, model_set.share) == (canary, 0.25)
        write_rollout(worker.registry, Rollout(canary=canary, share=0.5))
        await watch.look()
        assert watch.router.model_set.canary is model_set.canary  # another share takes no other model
        assert watch.router.model_set.share == 0.5
        for rubbish in ("{", '{"canary": "a", "share": 2}', '{"canary": "a"}', '{"shadow": "../a"}', "[]", "\xff"):
            (worker.registry / ROLLOUT_FILE).write_text(rubbish)
            await watch.look()
            assert watch.rollout == Rollout(canary=canary, share=0.5)
            assert watch.loader.latest is not None
            assert watch.loader.latest.version == ROLLOUT_FILE
        (worker.registry / ROLLOUT_FILE).unlink()
        await watch.look()
        assert not watch.router.model_set.canary
        assert watch.rollout == NO_ROLLOUT
        await watch.roll_out(Rollout(shadow=canary))
        assert read_rollout(worker.registry) == Rollout(shadow=canary)
        await watch.activate(canary)
        assert read_rollout(worker.registry) == NO_ROLLOUT
        assert (serving(watch), watch.router.model_set.shadow, watch.rollout) == (canary, None, NO_ROLLOUT)

    worker.run(act)


def test_a_bundle_that_serves_and_is_damaged_on_disk_goes_on_from_memory(worker: Worker) -> None:
    async def act(watch: RegistryWatcher) -> None:
        before = serving(watch)
        await watch.look()
        tear(worker.registry / before / bundle.MODEL_FILE)
        await watch.look()
        assert (serving(watch), watch.switches) == (before, 0)
        assert before in watch.loader.refused

    worker.run(act)


def test_models_that_are_replaced_are_freed_without_the_garbage_collector(worker: Worker) -> None:
    gone: list[weakref.ref[Model]] = []

    async def act(watch: RegistryWatcher) -> None:
        for at in range(4):
            gone.append(weakref.ref(watch.router.model_set.active.model))
            later, tried = (republished(worker.registry, activate=False) for _ in range(2))
            await watch.roll_out(Rollout(canary=tried, share=0.5) if at % 2 else Rollout(shadow=tried))
            await watch.activate(later)
            assert gone[-1]() is None

    gc.collect()
    gc.disable()
    try:
        worker.run(act)
    finally:
        gc.enable()


def test_memory_does_not_grow_with_switches(worker: Worker) -> None:
    import psutil  # noqa: PLC0415  # for this test alone

    async def act(watch: RegistryWatcher) -> None:
        item, two = serving(watch), republished(worker.registry, activate=False)

        async def switches(count: int) -> int:
            for at in range(count):
                await watch.activate((two, item)[at % 2])
            return int(psutil.Process(os.getpid()).memory_info().rss)

        before = await switches(20)
        assert await switches(100) <= 1.1 * before

    worker.run(act)


# --- beginning ------------------------------------------------------------------------------------------------------


def test_a_start_takes_the_model_that_served_last_if_the_current_one_must_not_be_served(worker: Worker) -> None:
    async def begin() -> str:
        return (await first_model(worker.registry, worker.is_ready)).version

    first = linked_version(worker.registry)
    assert first is not None
    other = with_other_features(worker.registry)
    bundle.set_link(worker.registry, bundle.CURRENT, other)
    assert asyncio.run(begin()) == other  # nothing is known of before
    remember_serving(worker.registry, first)
    assert asyncio.run(begin()) == first  # there are no states of its features
    worker.away = True
    assert asyncio.run(begin()) == other  # nobody can say
    worker.away = False
    worker.ready.add(bundle.read_manifest(worker.registry / other).fingerprint)
    assert asyncio.run(begin()) == other
    tear(worker.registry / other / bundle.GOLDEN_FILE)
    assert asyncio.run(begin()) == first
    (worker.registry / SERVING).unlink()
    with pytest.raises(BundleError, match="damaged or was changed"):
        asyncio.run(begin())


# --- what stands in a registry --------------------------------------------------------------------------------------


def test_bundles_are_listed_newest_first_and_nothing_else_is(registry: Path) -> None:
    first = linked_version(registry)
    later = republished(registry, activate=False)
    remember_serving(registry, later)
    write_rollout(registry, Rollout(shadow=later))
    (registry / ".staging-x").mkdir()
    (registry / "notes.txt").write_text("")
    assert list_versions(registry) == [later, first]
    assert [manifest.version for manifest in manifests_in_use(registry)] == [first, later]


def test_a_folder_in_the_place_of_current_is_the_version_that_its_manifest_names(registry: Path) -> None:
    folder = (registry / bundle.CURRENT).resolve()
    (registry / bundle.CURRENT).unlink()
    folder.rename(registry / bundle.CURRENT)
    assert linked_version(registry) == folder.name
    assert list_versions(registry) == [folder.name]
    assert Model.current(registry).version == Model.current(registry, folder.name).version == folder.name
    assert [manifest.version for manifest in manifests_in_use(registry)] == [folder.name]


def test_a_folder_copied_under_another_name_is_refused(registry: Path) -> None:
    (registry / bundle.CURRENT).resolve().rename(registry / "copy")
    with pytest.raises(BundleError, match="copy no folders"):
        Model.current(registry, "copy")


def test_a_graph_as_wide_as_other_features_is_refused(registry: Path) -> None:
    path = registry / bundle.CURRENT / bundle.MANIFEST_FILE
    result = json.loads(path.read_text())
    result["features"].pop()
    result["baseline"].pop()
    features = bundle.Manifest.model_validate(result).features
    result["fingerprint"] = fingerprint(features)
    result[bundle.MANIFEST_HASH] = bundle.manifest_hash(result)
    path.write_text(json.dumps(result))
    with pytest.raises(BundleError, match="another number of features"):
        Model.current(registry)
