"""Follows the registry: what it says is to be served is checked and warmed, and takes over between two batches.

::

    current, rollout.json ─► changed? ─► files, hashes ─► fingerprint ─► states there? ─► graph, golden rows ─► router
                                                └──────────────┴───────────────┴────────────────┴─ refused: the old
                                                                                                  one goes on
Files are read and graphs are made in a thread that leaves cores and interpreter to others, so calls go on meanwhile.
What was refused is tried again when its files change, or when the states that it lacks are there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

from feature_store.bundles.bundle import CURRENT, BundleError, point, read_manifest
from feature_store.bundles.registry import (
    NO_ROLLOUT,
    ROLLOUT_FILE,
    SERVING,
    Rollout,
    Stamp,
    linked,
    read_rollout,
    remember_serving,
    stamp,
    write_rollout,
)
from feature_store.errors import StoreUnavailableError
from service.errors import Reason, RequestError
from service.scoring.model import Model
from service.scoring.model_router import ModelRouter, ModelSet, ServingModel
from service.scoring.scorer import Scorer
from service.scoring.shadow import Shadow

logger: Final = logging.getLogger("tidemark")

REST: Final = partial(time.sleep, 0.01)
"""Between the steps of loading a model, so that calls that had to wait for one of them are done before the next."""

T = TypeVar("T")


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served; ``waits_for`` are states whose coming changes that."""

    version: str
    reason: str
    moment: float
    files: Stamp
    waits_for: str | None = None


class RefusedError(Exception):
    """A bundle must not be served; ``args[0]`` says why."""


class ScorerFactory(Protocol):
    """Makes the scorers of models."""

    def make(self, model: Model, *, shadow: bool = False) -> Scorer:
        """The scorer of a model; that of a shadow leaves the event loop to others."""


@dataclass(frozen=True)
class Hooks:
    """What the watch works with.

    scorers: makes the scorers of models; is_ready: whether there are states of a fingerprint; use: is called with a
    model before it answers.
    """

    scorers: ScorerFactory
    is_ready: Callable[[str], Awaitable[bool]]
    use: Callable[[Model], Awaitable[None]]


class RegistryWatcher:
    """Keeps a worker's models as the registry has it."""

    def __init__(
        self, registry: Path, router: ModelRouter, hooks: Hooks, clock: Callable[[], float] = time.time
    ) -> None:
        self.registry: Final = registry
        self.router: Final = router
        self.since = clock()
        """When the model began to answer here."""
        self.refused: Final[dict[str, Refusal]] = {}
        """By version, until its files are as they should be."""
        self.refusal: Refusal | None = None
        """The newest."""
        self.rollout = NO_ROLLOUT
        """What is tried out here."""
        self.counts: Final[Counter[str]] = Counter()
        """Switches and refusals so far."""
        self._hooks = hooks
        self._clock = clock
        self._files: dict[str, Stamp] = {}
        self._one_at_a_time = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "models", _behind_all_others)

    # --- following ----------------------------------------------------------------------------------------------

    async def run(self, interval_s: float) -> None:
        """Follow until cancelled."""
        await self._remember(self.router.model_set.active.model)
        while True:
            await self.look()
            await asyncio.sleep(interval_s)

    async def look(self) -> None:
        """Do what the registry says, as far as it can be done now."""
        async with self._one_at_a_time:
            for step in (self._follow_current, self._follow_rollout):
                try:
                    await step()
                except RefusedError:
                    pass  # it was told when it was refused
                except (StoreUnavailableError, OSError) as error:
                    logger.debug("the registry is looked at again later: %s", type(error).__name__)
                except Exception as error:  # whatever it is: what serves goes on
                    logger.error("the registry could not be followed: %s", type(error).__name__)

    async def _follow_current(self) -> None:
        if (version := await self.aside(linked, self.registry)) is None:
            return
        model = await self._opened(version)
        if model is not self.router.model_set.active.model:
            await self._hooks.use(model)
            await self._switch(model)

    async def _follow_rollout(self) -> None:
        try:
            rollout = await self.aside(read_rollout, self.registry)
        except BundleError as error:
            raise self._refuse(ROLLOUT_FILE, str(error), ()) from None
        self.refused.pop(ROLLOUT_FILE, None)
        await self._apply(rollout)

    # --- what callers ask for -----------------------------------------------------------------------------------

    async def activate(self, version: str) -> None:
        """Serve a version here, and let all others follow; RequestError where it stays as it was."""
        async with self._one_at_a_time:
            before = self.router.model_set.active.model
            model = await self._checked(self._opened(version, anew=True), "version")
            await self._checked(self._hooks.use(model), "version")
            try:
                await self._kept(point, self.registry, CURRENT, version)
            except RequestError:
                await self._checked(self._hooks.use(before), "version")
                raise
            if model is not before:
                await self._switch(model)
            if await self._rolled_out() == version:
                await self._kept(write_rollout, self.registry, NO_ROLLOUT)

    async def roll_out(self, rollout: Rollout) -> None:
        """Try a version out here, and let all others follow; RequestError where it stays as it was."""
        field = "rollout.shadow.version" if rollout.shadow else "rollout.canary.version"
        async with self._one_at_a_time:
            if (version := rollout.version) is not None:
                if version == self.router.model_set.active.model.version:
                    message = "this model serves already: there is nothing to try out"
                    raise RequestError(Reason.MODEL_REFUSED, message, field)
                await self._checked(self._opened(version, anew=True), field)
            await self._kept(write_rollout, self.registry, rollout)
            await self._checked(self._apply(rollout), field)

    async def _rolled_out(self) -> str | None:
        try:
            return (await self.aside(read_rollout, self.registry)).version
        except BundleError:
            return None

    async def _checked(self, operation: Awaitable[T], field: str) -> T:
        try:
            return await operation
        except RefusedError as error:
            raise RequestError(Reason.MODEL_REFUSED, str(error), field) from error
        except StoreUnavailableError as error:
            message = "the feature store does not answer: try again shortly"
            raise RequestError(Reason.FEATURE_STORE_UNAVAILABLE, message) from error

    async def _kept(self, write: Callable[..., None], *arguments: object) -> None:
        try:
            await self.aside(write, *arguments)
        except OSError as error:
            message = f"the registry cannot be written ({type(error).__name__}): let the server write into its folder"
            raise RequestError(Reason.REGISTRY_UNAVAILABLE, message) from error

    # --- one step -----------------------------------------------------------------------------------------------

    async def _switch(self, model: Model) -> None:
        """Have a model answer from the next batch on."""
        model_set = self.router.model_set
        self.router.model_set = model_set.with_active(self._served(model))
        self.since = self._clock()
        self.counts["switches"] += 1
        told = {"model": model.version, "fingerprint": model.layout.fingerprint}
        logger.info("model %s, fingerprint %s, serves from now on", *told.values(), extra=told)
        if self.rollout.version == model.version:  # it is not tried out any more, whatever the registry says
            await self._apply(NO_ROLLOUT)
        await self._remember(model)

    async def _remember(self, model: Model) -> None:
        """Keep what serves for a start at which the current bundle may not be served."""
        try:
            await self.aside(remember_serving, self.registry, model.version)
        except OSError as error:
            logger.info("the registry cannot keep which model serves (%s)", type(error).__name__)

    async def _apply(self, rollout: Rollout) -> None:
        """Try out what is to be tried out; RefusedError or StoreUnavailableError."""
        model_set = self.router.model_set
        if rollout.version == model_set.active.model.version:
            rollout = NO_ROLLOUT
        model = None if rollout.version is None else await self._opened(rollout.version)
        if rollout == self.rollout and (model is None or model in model_set.models):
            return
        canary = shadow = None
        if model is not None and rollout.shadow:
            shadow = Shadow(model, self._hooks.scorers.make(model, shadow=True))
        elif model is not None:
            canary = self._served(model)
        self.router.model_set = ModelSet(model_set.active, canary, rollout.share, shadow)
        if model_set.shadow is not None:
            model_set.shadow.close()
        self.rollout = rollout
        logger.info("rollout: %s", rollout.model_dump_json(exclude_defaults=True))

    def _served(self, model: Model) -> ServingModel:
        """With the scorer that it has, where it is in use already."""
        model_set = self.router.model_set
        for one in (model_set.active, model_set.canary):
            if one is not None and one.model is model:
                return one
        return ServingModel(model, self._hooks.scorers.make(model))

    async def _opened(self, version: str, *, anew: bool = False) -> Model:
        """The model in use, or one from the registry; RefusedError, told once, or StoreUnavailableError.

        ``anew``: though it was refused before.
        """
        files = await self.aside(stamp, self.registry, version)
        for model in self.router.model_set.models:
            if model.version == version and self._files.get(version, files) == files:
                self._files[version] = files
                return model
        if not anew and (known := self.refused.get(version)) is not None and known.files == files:
            hopeless = known.waits_for is None or not await self._hooks.is_ready(known.waits_for)
            if hopeless:
                raise RefusedError(known.reason)
        try:
            await self._check_states(version, files)
            model = await self.aside(Model.current, self.registry, version, REST)
        except BundleError as error:
            raise self._refuse(version, str(error), files) from None  # its frames hold the bundle
        self.refused.pop(version, None)
        self._files = {one.version: self._files.get(one.version, ()) for one in self.router.model_set.models}
        self._files[version] = files
        return model

    async def _check_states(self, version: str, files: Stamp) -> None:
        """Refuse a bundle whose states are not there; those of a fingerprint in use are."""
        fingerprint = (await self.aside(read_manifest, self.registry / version)).fingerprint
        if fingerprint in {model.layout.fingerprint for model in self.router.model_set.models}:
            return
        if not await self._hooks.is_ready(fingerprint):
            reason = (
                f"{version}: there are no states of its features (fingerprint {fingerprint}): load its states first: "
                f"tidemark load CONFIG --registry {self.registry} --bundle {version} --redis URL"
            )
            raise self._refuse(version, reason, files, fingerprint)

    def _refuse(self, version: str, reason: str, files: Stamp, waits_for: str | None = None) -> RefusedError:
        """Keep and tell that a version is refused, once."""
        known = self.refused.get(version)
        if known is None or (known.reason, known.files) != (reason, files):
            self.refusal = self.refused[version] = Refusal(version, reason, self._clock(), files, waits_for)
            self.counts["refused"] += 1
            logger.error("refused, the old one goes on: %s", reason)
        return RefusedError(reason)

    async def aside(self, function: Callable[..., T], *arguments: object) -> T:
        """The result of something that reads or writes files, in the thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *arguments))


def _behind_all_others() -> None:
    """Let the calling thread have what others leave of the cores: nobody waits for it."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


async def first_model(registry: Path, is_ready: Callable[[str], Awaitable[bool]]) -> Model:
    """The model to begin with: the current one, or what servers went over to last where that must not be served.

    BundleError where there is neither.
    """
    last = linked(registry, SERVING)
    try:
        model = Model.current(registry)
        if last in (None, model.version) or await _surely(is_ready, model.layout.fingerprint):
            return model
        reason = f"{model.version}: there are no states of its features"
    except BundleError as error:
        if last is None or last == linked(registry):
            raise
        reason = str(error)
    logger.error("refused, %s goes on: %s", last, reason)
    return Model.current(registry, last)


async def _surely(is_ready: Callable[[str], Awaitable[bool]], fingerprint: str) -> bool:
    """Whether there are states, as far as can be told."""
    try:
        return await is_ready(fingerprint)
    except StoreUnavailableError:
        return True
