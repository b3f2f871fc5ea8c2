"""Follows the registry: the models that it names are loaded and checked, and take over between two batches.

::

    current, rollout.json ─► changed? ─► loader ─► router
                                           └ refused: the models in use go on

A version that was refused is tried again when its files change, or when the states that it lacks are there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from feature_store.bundles.bundle import CURRENT, BundleError, set_link
from feature_store.bundles.registry import (
    NO_ROLLOUT,
    ROLLOUT_FILE,
    Rollout,
    linked_version,
    read_rollout,
    remember_serving,
    write_rollout,
)
from feature_store.errors import StoreUnavailableError
from service.scoring.model import Model
from service.scoring.model_loader import ModelLoader, RefusedError
from service.scoring.model_router import ModelRouter, ModelSet, ServingModel
from service.scoring.scorer import Scorer
from service.scoring.shadow import Shadow

logger: Final = logging.getLogger("tidemark")


class RegistryWriteError(Exception):
    """The registry cannot be written; ``args[0]`` is the reason."""


class ScorerFactory(Protocol):
    """Makes the scorers of models."""

    def make(self, model: Model, *, shadow: bool = False) -> Scorer:
        """The scorer of a model; that of a shadow leaves the event loop to others."""


class RegistryWatcher:
    """Keeps the models of a worker as the registry names them.

    Attributes:
        loader: Loads the models.
        router: Answers with the models.
        since: When the active model started to answer here, in unix seconds.
        rollout: The rollout that is followed here.
        switches: How often another model became active.
    """

    def __init__(
        self,
        loader: ModelLoader,
        router: ModelRouter,
        scorers: ScorerFactory,
        before_switch: Callable[[Model], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a watcher.

        Args:
            loader: Loads models from the registry.
            router: Answers with the models.
            scorers: Makes the scorers of models.
            before_switch: Is awaited with a model before it becomes active; raises StoreUnavailableError if the
                feature store cannot be prepared for it.
            clock: Unix seconds.
        """
        self.loader: Final = loader
        self.router: Final = router
        self.since = clock()
        self.rollout = NO_ROLLOUT
        self.switches = 0
        self._scorers: Final = scorers
        self._before_switch: Final = before_switch
        self._clock: Final = clock
        self._lock: Final = asyncio.Lock()

    # --- following ----------------------------------------------------------------------------------------------

    async def run(self, interval_s: float) -> None:
        """Follow the registry until cancelled."""
        await self._remember(self.router.model_set.active.model)
        while True:
            await self.look()
            await asyncio.sleep(interval_s)

    async def look(self) -> None:
        """Do what the registry says, as far as that is possible now."""
        async with self._lock:
            for step in (self._follow_current, self._follow_rollout):
                try:
                    await step()
                except RefusedError:
                    pass  # logged when it was refused
                except (StoreUnavailableError, OSError) as error:
                    logger.debug("the registry is looked at again later: %s", type(error).__name__)
                except Exception as error:  # of any kind: the models in use go on
                    logger.error("the registry could not be followed: %s", type(error).__name__)

    async def _follow_current(self) -> None:
        if (version := await self.loader.in_thread(linked_version, self.loader.registry)) is None:
            return
        model = await self._load(version)
        if model is not self.router.model_set.active.model:
            await self._before_switch(model)
            await self._switch(model)

    async def _follow_rollout(self) -> None:
        try:
            rollout = await self.loader.in_thread(read_rollout, self.loader.registry)
        except BundleError as error:
            raise self.loader.refuse(ROLLOUT_FILE, str(error), ()) from None
        self.loader.refused.pop(ROLLOUT_FILE, None)
        await self._apply(rollout)

    # --- requests of callers ------------------------------------------------------------------------------------

    async def activate(self, version: str) -> None:
        """Serve a version here, and name it in the registry so that all other workers follow.

        Raises:
            RefusedError: The version must not be served; nothing has changed.
            RegistryWriteError: The registry cannot be written; nothing has changed.
            StoreUnavailableError: The feature store does not answer; nothing has changed.
        """
        async with self._lock:
            before = self.router.model_set.active.model
            model = await self._load(version, retry_refused=True)
            await self._before_switch(model)
            try:
                await self._write(set_link, CURRENT, version)
            except RegistryWriteError:
                await self._before_switch(before)
                raise
            if model is not before:
                await self._switch(model)
            if await self._rollout_version() == version:
                await self._write(write_rollout, NO_ROLLOUT)

    async def roll_out(self, rollout: Rollout) -> None:
        """Start a rollout here, and write it to the registry so that all other workers follow.

        Raises:
            RefusedError: The version must not be served, or is the active one; nothing has changed.
            RegistryWriteError: The registry cannot be written; nothing has changed.
            StoreUnavailableError: The feature store does not answer.
        """
        async with self._lock:
            if (version := rollout.version) is not None:
                if version == self.router.model_set.active.model.version:
                    raise RefusedError("this model serves already: there is nothing to try out")
                await self._load(version, retry_refused=True)
            await self._write(write_rollout, rollout)
            await self._apply(rollout)

    async def _rollout_version(self) -> str | None:
        try:
            return (await self.loader.in_thread(read_rollout, self.loader.registry)).version
        except BundleError:
            return None

    async def _write(self, write: Callable[..., None], *arguments: object) -> None:
        try:
            await self.loader.in_thread(write, self.loader.registry, *arguments)
        except OSError as error:
            message = f"the registry cannot be written ({type(error).__name__}): let the server write into its folder"
            raise RegistryWriteError(message) from error

    # --- steps --------------------------------------------------------------------------------------------------

    async def _load(self, version: str, *, retry_refused: bool = False) -> Model:
        return await self.loader.load(version, self.router.model_set.models, retry_refused=retry_refused)

    async def _switch(self, model: Model) -> None:
        """Let a model answer from the next batch on."""
        self.router.model_set = self.router.model_set.with_active(self._serving(model))
        self.since = self._clock()
        self.switches += 1
        fields = {"model": model.version, "fingerprint": model.layout.fingerprint}
        logger.info("model %s, fingerprint %s, serves from now on", *fields.values(), extra=fields)
        if self.rollout.version == model.version:  # an active model is not tried out, whatever the registry says
            await self._apply(NO_ROLLOUT)
        await self._remember(model)

    async def _remember(self, model: Model) -> None:
        """Write down the active model, for a start at which the current bundle must not be served."""
        try:
            await self.loader.in_thread(remember_serving, self.loader.registry, model.version)
        except OSError as error:
            logger.info("the registry cannot keep which model serves (%s)", type(error).__name__)

    async def _apply(self, rollout: Rollout) -> None:
        """Make the canary or the shadow of a rollout, and end those of the rollout before."""
        models = self.router.model_set
        if rollout.version == models.active.model.version:
            rollout = NO_ROLLOUT
        model = None if rollout.version is None else await self._load(rollout.version)
        if rollout == self.rollout and (model is None or model in models.models):
            return
        canary = shadow = None
        if model is not None and rollout.shadow:
            shadow = Shadow(model, self._scorers.make(model, shadow=True))
        elif model is not None:
            canary = self._serving(model)
        self.router.model_set = ModelSet(models.active, canary, rollout.share, shadow)
        if models.shadow is not None:
            models.shadow.close()
        self.rollout = rollout
        logger.info("rollout: %s", rollout.model_dump_json(exclude_defaults=True))

    def _serving(self, model: Model) -> ServingModel:
        """The model with its scorer: the one that it has if it is in use already."""
        models = self.router.model_set
        for serving in (models.active, models.canary):
            if serving is not None and serving.model is model:
                return serving
        return ServingModel(model, self._scorers.make(model))
