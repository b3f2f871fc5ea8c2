"""Loads the bundles of a registry as models, and remembers which ones were refused and why.

::

    version ─► files, checksums ─► fingerprint ─► states there? ─► graph, golden rows ─► model
                        └───────────────┴──────────────┴────────────────┴─ refused, until its files change
                                                                           or the missing states are there

Files are read and graphs are built in a thread with the lowest priority, so calls go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from feature_store.bundles.bundle import BundleError, Manifest, folder_of, read_manifest
from feature_store.bundles.registry import SERVING, FileStamp, file_stamp, linked_version
from feature_store.errors import StoreUnavailableError
from service.scoring.model import Model

logger: Final = logging.getLogger("tidemark")

LOAD_PAUSE: Final = partial(time.sleep, 0.01)
"""A pause between the steps of loading a model: calls that had to wait for a step are done before the next one."""
LOWEST_PRIORITY: Final = 19

T = TypeVar("T")
StatesReady = Callable[[str], Awaitable[bool]]
"""Whether the feature store has states of a fingerprint; raises StoreUnavailableError if it does not answer."""


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served.

    Attributes:
        version: The version, or the name of a file of the registry.
        reason: Why it is refused, in words.
        moment: When it was refused, in unix seconds.
        files: The files that were refused.
        waits_for: The fingerprint of the states that are missing, if that is the reason.
    """

    version: str
    reason: str
    moment: float
    files: FileStamp
    waits_for: str | None = None


class RefusedError(Exception):
    """A version must not be served; ``args[0]`` is the reason."""


class ModelLoader:
    """Loads models from a registry.

    Attributes:
        registry: The folder of the registry.
        refused: The refusals by version, until the files of the version are as they should be.
        latest: The latest refusal.
        refusals: The number of refusals so far.
    """

    def __init__(self, registry: Path, states_ready: StatesReady, clock: Callable[[], float] = time.time) -> None:
        """Make a loader.

        Args:
            registry: The folder of the registry.
            states_ready: Whether the feature store has states of a fingerprint.
            clock: Unix seconds.
        """
        self.registry: Final = registry
        self.refused: Final[dict[str, Refusal]] = {}
        self.latest: Refusal | None = None
        self.refusals = 0
        self._states_ready: Final = states_ready
        self._clock: Final = clock
        self._files: dict[str, FileStamp] = {}
        self._thread: Final = ThreadPoolExecutor(1, "models", _take_lowest_priority)

    async def load(self, version: str, in_use: Sequence[Model], *, retry_refused: bool = False) -> Model:
        """Load a version, or return the model in use if its files have not changed.

        Args:
            version: The version.
            in_use: The models that are in use.
            retry_refused: Whether to try a version again that was refused before.

        Raises:
            RefusedError: The version must not be served. A refusal is logged once.
            StoreUnavailableError: The feature store does not say whether it has the version's states.
        """
        files = await self.in_thread(file_stamp, self.registry, version)
        for model in in_use:
            if model.version == version and self._files.get(version, files) == files:
                self._files[version] = files
                return model
        refusal = self.refused.get(version)
        if not retry_refused and refusal is not None and refusal.files == files and not await self._waited_for(refusal):
            raise RefusedError(refusal.reason)
        try:
            await self._check_states(version, files, in_use)
            model = await self.in_thread(Model.current, self.registry, version, LOAD_PAUSE)
        except BundleError as error:
            raise self.refuse(version, str(error), files) from None  # the frames of the error hold the bundle
        self.refused.pop(version, None)
        self._files = {model.version: self._files.get(model.version, ()) for model in in_use}
        self._files[version] = files
        return model

    async def _waited_for(self, refusal: Refusal) -> bool:
        """Whether the states that were missing are there now."""
        return refusal.waits_for is not None and await self._states_ready(refusal.waits_for)

    async def _check_states(self, version: str, files: FileStamp, in_use: Sequence[Model]) -> None:
        """Refuse a version without states, unless a model with the same fingerprint is in use."""
        fingerprint = (await self.in_thread(_manifest, self.registry, version)).fingerprint
        if fingerprint in {model.layout.fingerprint for model in in_use}:
            return
        if not await self._states_ready(fingerprint):
            reason = (
                f"{version}: there are no states of its features (fingerprint {fingerprint}): load its states first: "
                f"tidemark load CONFIG --registry {self.registry} --bundle {version} --redis URL"
            )
            raise self.refuse(version, reason, files, fingerprint)

    def refuse(self, version: str, reason: str, files: FileStamp, waits_for: str | None = None) -> RefusedError:
        """Keep a refusal and log it, unless it is known already; returns the error to raise."""
        refusal = self.refused.get(version)
        if refusal is None or (refusal.reason, refusal.files) != (reason, files):
            self.latest = self.refused[version] = Refusal(version, reason, self._clock(), files, waits_for)
            self.refusals += 1
            logger.error("refused, the old one goes on: %s", reason)
        return RefusedError(reason)

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function that reads or writes files in the loader's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *arguments))


def _manifest(registry: Path, version: str) -> Manifest:
    """The manifest of a version; BundleError."""
    return read_manifest(folder_of(registry, version))


def _take_lowest_priority() -> None:
    """Give the current thread only the CPU time that other threads leave: nobody waits for it."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


async def first_model(registry: Path, states_ready: StatesReady) -> Model:
    """The model to start with: the current one, or the one that served last if the current one must not be served.

    Raises:
        BundleError: There is neither.
    """
    last = linked_version(registry, SERVING)
    try:
        model = Model.current(registry)
        if last in (None, model.version) or await _probably_ready(states_ready, model.layout.fingerprint):
            return model
        reason = f"{model.version}: there are no states of its features"
    except BundleError as error:
        if last is None or last == linked_version(registry):
            raise
        reason = str(error)
    logger.error("refused, %s goes on: %s", last, reason)
    return Model.current(registry, last)


async def _probably_ready(states_ready: StatesReady, fingerprint: str) -> bool:
    """Whether there are states, or the feature store does not answer."""
    try:
        return await states_ready(fingerprint)
    except StoreUnavailableError:
        return True
