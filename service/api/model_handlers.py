"""What the methods of ModelService do: request bytes in, reply bytes out, for either front."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

from feature_store.bundles.bundle import BundleError, Manifest, read_manifest
from feature_store.bundles.registry import Rollout, Stamp, stamp, versions
from feature_store.errors import StoreUnavailableError
from service.api import models as convert_models
from service.call_context import CallContext
from service.errors import Reason, RequestError
from service.scoring.model_loader import RefusedError
from service.scoring.registry_watcher import RegistryWatcher, RegistryWriteError

Told = tuple[str, Manifest | None, str]
"""A version, its manifest if it can be read, and why it is refused, if it is."""


class Models:
    """The methods of ModelService."""

    def __init__(self, watch: RegistryWatcher) -> None:
        self._watch: Final = watch
        self._read: dict[str, tuple[Stamp, Manifest | None, str]] = {}
        self._running: Final[set[asyncio.Task[None]]] = set()

    async def serving(self, request: bytes, _context: CallContext) -> bytes:
        """GetServingModel."""
        convert_models.decode_serving(request)
        watch = self._watch
        return convert_models.encode_serving(watch.router.model_set, watch.since, watch.rollout, watch.loader.latest)

    async def bundles(self, request: bytes, _context: CallContext) -> bytes:
        """ListModels."""
        convert_models.decode_list(request)
        try:
            found = await self._watch.loader.in_thread(self._look)
        except OSError as error:
            raise _unreadable(error) from error
        return convert_models.encode_models(found, self._watch.router.model_set)

    async def activate(self, request: bytes, _context: CallContext) -> bytes:
        """ActivateModel."""
        version = convert_models.decode_activate(request)
        await self._known(version, "version")
        await self._to_the_end(self._watch.activate(version), "version")
        return convert_models.encode_activated(version, self._watch.since)

    async def roll_out(self, request: bytes, _context: CallContext) -> bytes:
        """SetRollout."""
        rollout = convert_models.decode_rollout(request)
        if rollout.version is not None:
            await self._known(rollout.version, _field(rollout))
        await self._to_the_end(self._watch.roll_out(rollout), _field(rollout))
        return convert_models.encode_rollout(self._watch.rollout)

    async def _known(self, version: str, field: str) -> None:
        try:
            known = version in await self._watch.loader.in_thread(versions, self._watch.loader.registry)
        except OSError as error:
            raise _unreadable(error) from error
        if not known:
            message = "the registry has no bundle of this version: send one that ListModels tells"
            raise RequestError(Reason.MODEL_UNKNOWN, message, field)

    async def _to_the_end(self, operation: Awaitable[None], field: str) -> None:
        """Complete an operation on the version in a field of the request, even if the caller does not wait."""
        task = asyncio.ensure_future(operation)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear of it
        try:
            await asyncio.shield(task)
        except RefusedError as error:
            raise RequestError(Reason.MODEL_REFUSED, str(error), field) from error
        except RegistryWriteError as error:
            raise RequestError(Reason.REGISTRY_UNAVAILABLE, str(error)) from error
        except StoreUnavailableError as error:
            message = "the feature store does not answer: try again shortly"
            raise RequestError(Reason.FEATURE_STORE_UNAVAILABLE, message) from error

    def _look(self) -> list[Told]:
        """All bundles of the registry. Manifests are read once, until a file changes."""
        registry, refused, before = self._watch.loader.registry, self._watch.loader.refused, self._read
        self._read = {}
        found: list[Told] = []
        for version in versions(registry):
            files = stamp(registry, version)
            known = before.get(version)
            if known is None or known[0] != files:
                known = (files, *_manifest(registry / version))
            self._read[version] = known
            refusal = refused.get(version)
            reason = refusal.reason if refusal is not None and refusal.files == files else known[2]
            found.append((version, known[1], reason))
        return found


def _manifest(folder: Path) -> tuple[Manifest | None, str]:
    """A bundle's manifest, or why there is none."""
    try:
        return read_manifest(folder), ""
    except BundleError as error:
        return None, str(error)


def _field(rollout: Rollout) -> str:
    return "rollout.shadow.version" if rollout.shadow else "rollout.canary.version"


def _unreadable(error: OSError) -> RequestError:
    message = f"the registry cannot be read ({type(error).__name__}): see that its folder is there"
    return RequestError(Reason.REGISTRY_UNAVAILABLE, message)
