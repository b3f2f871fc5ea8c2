"""ModelService: its messages, and what its methods do."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import models_pb2

from feature_store.bundles.bundle import BundleError, Manifest, folder_of, read_manifest
from feature_store.bundles.registry import (
    NO_ROLLOUT,
    ROLLOUT_FILE,
    FileStamp,
    Rollout,
    file_stamp,
    is_version,
    list_versions,
)
from feature_store.errors import StoreUnavailableError
from service.api.messages import parsed, timestamp
from service.call_context import CallContext
from service.errors import Reason, RequestError
from service.scoring.model_loader import Refusal, RefusedError
from service.scoring.model_router import ModelSet
from service.scoring.registry_watcher import RegistryWatcher, RegistryWriteError
from service.scoring.shadow import Shadow
from tidemark.limits import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE

SERVICE: Final = "tidemark.v1.ModelService"
MAX_VERSION: Final = 128
"""Characters of the longest version that is looked up."""
_AFTER: Final = "after:"
"""Prefix of a decoded page token. The last version of the previous page follows."""


class Bundle(NamedTuple):
    """A bundle of the registry.

    Attributes:
        version: Its version.
        manifest: Its manifest, None where it cannot be read.
        reason: Why it is refused, None where it is not.
        message: The same in words.
    """

    version: str
    manifest: Manifest | None
    reason: Reason | None = None
    message: str = ""


class Page(NamedTuple):
    """What a ListModelsRequest asks for: at most ``size`` bundles, all with versions below ``after`` unless None."""

    size: int
    after: str | None


class Models:
    """The methods of ModelService: bytes of the request in, bytes of the response out, RequestError on failure."""

    def __init__(self, watch: RegistryWatcher) -> None:
        self._watch: Final = watch
        self._manifests: dict[str, tuple[FileStamp, Bundle]] = {}
        self._running: Final[set[asyncio.Task[None]]] = set()

    async def serving(self, request: bytes, _context: CallContext) -> bytes:
        """GetServingModel."""
        decode_serving(request)
        watch = self._watch
        return encode_serving(watch.router.model_set, watch.since, watch.rollout, watch.loader.latest)

    async def bundles(self, request: bytes, _context: CallContext) -> bytes:
        """ListModels."""
        page = decode_list(request)
        try:
            bundles, more = await self._watch.loader.in_thread(self._page, page)
        except OSError as error:
            raise _unreadable(error) from error
        return encode_models(bundles, self._watch.router.model_set, more=more)

    async def activate(self, request: bytes, _context: CallContext) -> bytes:
        """ActivateModel."""
        version = decode_activate(request)
        await self._check_known(version, "version")
        await self._complete(self._watch.activate(version), "version")
        return encode_activated(version, self._watch.since)

    async def set_rollout(self, request: bytes, _context: CallContext) -> bytes:
        """SetRollout."""
        rollout, field = decode_rollout(request)
        await self._check_known(str(rollout.version), field)
        await self._complete(self._watch.roll_out(rollout), field)
        return encode_rollout(self._watch.rollout)

    async def clear_rollout(self, request: bytes, _context: CallContext) -> bytes:
        """ClearRollout."""
        decode_clear(request)
        await self._complete(self._watch.roll_out(NO_ROLLOUT), None)
        return b""

    async def _check_known(self, version: str, field: str) -> None:
        try:
            known = version in await self._watch.loader.in_thread(list_versions, self._watch.loader.registry)
        except OSError as error:
            raise _unreadable(error) from error
        if not known:
            message = "the registry has no bundle of this version: send one that ListModels returns"
            raise RequestError(Reason.MODEL_UNKNOWN, message, field)

    async def _complete(self, operation: Awaitable[None], field: str | None) -> None:
        """Carry an operation out to its end even if the caller does not wait for it.

        Args:
            operation: What to do with the version in ``field`` of the request.
            field: The field that the error names if the version is refused.

        Raises:
            RequestError: The operation failed.
        """
        task = asyncio.ensure_future(operation)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may not be there
        try:
            await asyncio.shield(task)
        except RefusedError as error:
            raise RequestError(Reason.MODEL_REFUSED, str(error), field) from error
        except RegistryWriteError as error:
            raise RequestError(Reason.REGISTRY_UNAVAILABLE, str(error)) from error
        except StoreUnavailableError as error:
            message = "the feature store does not answer: try again shortly"
            raise RequestError(Reason.FEATURE_STORE_UNAVAILABLE, message) from error

    def _page(self, page: Page) -> tuple[list[Bundle], bool]:
        """The bundles of a page, and whether more follow. Manifests are read once, until their files change."""
        registry = self._watch.loader.registry
        every = list_versions(registry)
        self._manifests = {version: self._manifests[version] for version in every if version in self._manifests}
        wanted = [version for version in every if page.after is None or version < page.after]
        return [self._bundle(version) for version in wanted[: page.size]], len(wanted) > page.size

    def _bundle(self, version: str) -> Bundle:
        registry = self._watch.loader.registry
        files = file_stamp(registry, version)
        read = self._manifests.get(version)
        if read is None or read[0] != files:
            read = self._manifests[version] = (files, _bundle(folder_of(registry, version), version))
        refusal = self._watch.loader.refused.get(version)
        if refusal is None or refusal.files != files:
            return read[1]
        return read[1]._replace(reason=_reason(refusal), message=refusal.reason)


def _bundle(folder: Path, version: str) -> Bundle:
    try:
        return Bundle(version, read_manifest(folder))
    except BundleError as error:
        return Bundle(version, None, Reason.MODEL_REFUSED, str(error))


def _reason(refusal: Refusal) -> Reason:
    if refusal.version == ROLLOUT_FILE:
        return Reason.ROLLOUT_FILE_INVALID
    return Reason.MODEL_REFUSED if refusal.waits_for is None else Reason.FEATURES_NOT_LOADED


def _unreadable(error: OSError) -> RequestError:
    message = f"the registry cannot be read ({type(error).__name__}): check that its folder exists"
    return RequestError(Reason.REGISTRY_UNAVAILABLE, message)


# --- requests -------------------------------------------------------------------------------------------------------


def decode_serving(data: bytes) -> None:
    """Check an encoded GetServingModelRequest, which has no fields."""
    parsed(models_pb2.GetServingModelRequest, data)


def decode_list(data: bytes) -> Page:
    """The page that an encoded ListModelsRequest asks for.

    Raises:
        RequestError: It is malformed, its page size is negative, or its token is not one of :func:`page_token`.
    """
    request = parsed(models_pb2.ListModelsRequest, data)
    if request.page_size < 0:
        message = f"page_size is negative: send a number from 0 to {MAX_PAGE_SIZE}"
        raise RequestError(Reason.PAGE_SIZE_INVALID, message, "page_size")
    size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    return Page(size, _version_of_token(request.page_token) if request.page_token else None)


def page_token(last: str) -> str:
    """The token of the page after the one that ends with version ``last``."""
    return base64.urlsafe_b64encode(f"{_AFTER}{last}".encode()).decode()


def _version_of_token(token: str) -> str:
    try:
        decoded = base64.b64decode(token, b"-_", validate=True).decode()
    except ValueError:
        decoded = ""
    version = decoded.removeprefix(_AFTER)
    if version == decoded or not is_version(version):
        message = "page_token is not a token of ListModels: send next_page_token of the previous response as it is"
        raise RequestError(Reason.PAGE_TOKEN_INVALID, message, "page_token")
    return version


def decode_activate(data: bytes) -> str:
    """The version of an encoded ActivateModelRequest."""
    return _valid_version(parsed(models_pb2.ActivateModelRequest, data).version, "version")


def decode_rollout(data: bytes) -> tuple[Rollout, str]:
    """The rollout of an encoded SetRolloutRequest, and the field that holds its version.

    Raises:
        RequestError: It is malformed, names no rollout, or its version or share is invalid.
    """
    rollout = parsed(models_pb2.SetRolloutRequest, data).rollout
    kind = rollout.WhichOneof("kind")
    if kind is None:
        message = "the request names neither a shadow nor a canary: set one, or call ClearRollout to end the rollout"
        raise RequestError(Reason.ROLLOUT_MISSING, message, "rollout")
    field = f"rollout.{kind}.version"
    version = _valid_version(getattr(rollout, kind).version, field)
    if kind == "shadow":
        return Rollout(shadow=version), field
    if not 0 < rollout.canary.share <= 1:  # a share that is not a number fails both comparisons
        message = "the share of a canary is out of range: send a number above 0 and at most 1"
        raise RequestError(Reason.ROLLOUT_SHARE_INVALID, message, "rollout.canary.share")
    return Rollout(canary=version, share=rollout.canary.share), field


def decode_clear(data: bytes) -> None:
    """Check an encoded ClearRolloutRequest, which has no fields."""
    parsed(models_pb2.ClearRolloutRequest, data)


def _valid_version(version: str, field: str) -> str:
    if not is_version(version) or len(version) > MAX_VERSION:
        message = f"{field} cannot be a version: send one that ListModels returns"
        raise RequestError(Reason.MODEL_VERSION_INVALID, message, field)
    return version


# --- responses ------------------------------------------------------------------------------------------------------


def encode_serving(model_set: ModelSet, since: float, rollout: Rollout, refusal: Refusal | None) -> bytes:
    """An encoded GetServingModelResponse; ``since`` in unix seconds."""
    model = model_set.active.model
    response = models_pb2.GetServingModelResponse(
        version=model.version,
        fingerprint=model.layout.fingerprint,
        create_time=_create_time(model.created),
        activate_time=timestamp(since),
        rollout=_rollout(rollout),
        shadow_differences=None if model_set.shadow is None else _differences(model_set.shadow),
        refusal=None if refusal is None else _refusal(refusal),
    )
    return bytes(response.SerializeToString())


def _refusal(refusal: Refusal) -> models_pb2.Refusal:
    is_file = refusal.version == ROLLOUT_FILE
    return models_pb2.Refusal(
        version="" if is_file else refusal.version,
        file=refusal.version if is_file else "",
        reason=_reason(refusal),
        message=refusal.reason,
        refuse_time=timestamp(refusal.moment),
    )


def encode_activated(version: str, since: float) -> bytes:
    """An encoded ActivateModelResponse; ``since`` in unix seconds."""
    response = models_pb2.ActivateModelResponse(version=version, activate_time=timestamp(since))
    return bytes(response.SerializeToString())


def encode_rollout(rollout: Rollout) -> bytes:
    """An encoded SetRolloutResponse."""
    return bytes(models_pb2.SetRolloutResponse(rollout=_rollout(rollout)).SerializeToString())


def encode_models(bundles: Sequence[Bundle], model_set: ModelSet, *, more: bool = False) -> bytes:
    """An encoded ListModelsResponse; ``more``: whether bundles follow after these."""
    response = models_pb2.ListModelsResponse(
        models=[_model(bundle, model_set) for bundle in bundles],
        next_page_token=page_token(bundles[-1].version) if more else "",
    )
    return bytes(response.SerializeToString())


def _model(bundle: Bundle, model_set: ModelSet) -> models_pb2.Model:
    model = models_pb2.Model(
        version=bundle.version,
        state=_state(bundle, model_set),
        reason=bundle.reason or "",
        message=bundle.message,
    )
    if (manifest := bundle.manifest) is not None:
        model.fingerprint = manifest.fingerprint
        if (created := _create_time(manifest.created)) is not None:
            model.create_time.CopyFrom(created)
        for name in ("churn_auc", "propensity_auc"):
            if isinstance(figure := manifest.metrics.get(name), int | float):
                setattr(model, name, figure)
    return model


def _state(bundle: Bundle, model_set: ModelSet) -> Any:
    """Use of a bundle. A model in use keeps its state even if its files were damaged since."""
    used = (
        (model_set.active, models_pb2.MODEL_STATE_SERVING),
        (model_set.canary, models_pb2.MODEL_STATE_CANARY),
        (model_set.shadow, models_pb2.MODEL_STATE_SHADOW),
    )
    for user, state in used:
        if user is not None and user.model.version == bundle.version:
            return state
    return models_pb2.MODEL_STATE_AVAILABLE if bundle.reason is None else models_pb2.MODEL_STATE_REFUSED


def _rollout(rollout: Rollout) -> models_pb2.Rollout | None:
    if rollout.shadow is not None:
        return models_pb2.Rollout(shadow=models_pb2.Shadow(version=rollout.shadow))
    if rollout.canary is not None:
        return models_pb2.Rollout(canary=models_pb2.Canary(version=rollout.canary, share=rollout.share))
    return None


def _differences(shadow: Shadow) -> models_pb2.ShadowDifferences:
    offers = {
        name: models_pb2.OfferDifferences(mean=shadow.mean(name), largest=seen.largest, alerts=seen.alerts)
        for name, seen in shadow.differences.items()
    }
    return models_pb2.ShadowDifferences(
        compared=shadow.compared, unscored=shadow.unscored, dropped=shadow.dropped, **offers
    )


def _create_time(text: str) -> Timestamp | None:
    """The creation time in a manifest (ISO 8601), None where it is not a time."""
    try:
        return timestamp(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        return None
