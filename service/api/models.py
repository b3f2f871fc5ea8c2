"""Between the wire and the core: the messages of ModelService."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import models_pb2

from feature_store.bundles.bundle import Manifest
from feature_store.bundles.registry import NO_ROLLOUT, Rollout, is_version
from service.api.scoring import parsed
from service.errors import Reason, RequestError
from service.scoring.model_loader import Refusal
from service.scoring.model_router import ModelSet
from service.scoring.shadow import Shadow

SERVICE: Final = "tidemark.v1.ModelService"
MAX_VERSION: Final = 128
"""Longest version that is looked for."""


def decode_serving(data: bytes) -> None:
    """A GetServingModelRequest, which says nothing."""
    parsed(models_pb2.GetServingModelRequest, data)


def decode_list(data: bytes) -> None:
    """A ListModelsRequest, which says nothing."""
    parsed(models_pb2.ListModelsRequest, data)


def decode_activate(data: bytes) -> str:
    """The version of an ActivateModelRequest."""
    return _version(parsed(models_pb2.ActivateModelRequest, data).version, "version")


def decode_rollout(data: bytes) -> Rollout:
    """What a SetRolloutRequest wants to be tried out."""
    rollout = parsed(models_pb2.SetRolloutRequest, data).rollout
    kind = rollout.WhichOneof("kind")
    if kind is None:
        return NO_ROLLOUT
    version = _version(getattr(rollout, kind).version, f"rollout.{kind}.version")
    if kind == "shadow":
        return Rollout(shadow=version)
    if not 0 < rollout.canary.share <= 1:  # not a number is neither
        message = "the share of a canary is out of range: send a number above 0 and at most 1"
        raise RequestError(Reason.ROLLOUT_SHARE_INVALID, message, "rollout.canary.share")
    return Rollout(canary=version, share=rollout.canary.share)


def _version(version: str, field: str) -> str:
    if not is_version(version) or len(version) > MAX_VERSION:
        message = f"{field} is no version: send one that ListModels tells"
        raise RequestError(Reason.MODEL_VERSION_INVALID, message, field)
    return version


def encode_serving(model_set: ModelSet, since: float, rollout: Rollout, refusal: Refusal | None) -> bytes:
    """A GetServingModelResponse."""
    model = model_set.active.model
    reply = models_pb2.GetServingModelResponse(
        version=model.version,
        fingerprint=model.layout.fingerprint,
        created=_created(model.created),
        serving_since=_timestamp(since),
        rollout=_rollout(rollout),
        shadow_differences=None if model_set.shadow is None else _differences(model_set.shadow),
    )
    if refusal is not None:
        reply.refusal.CopyFrom(
            models_pb2.Refusal(version=refusal.version, reason=refusal.reason, refused=_timestamp(refusal.moment))
        )
    return bytes(reply.SerializeToString())


def encode_activated(version: str, since: float) -> bytes:
    """An ActivateModelResponse."""
    reply = models_pb2.ActivateModelResponse(version=version, serving_since=_timestamp(since))
    return bytes(reply.SerializeToString())


def encode_rollout(rollout: Rollout) -> bytes:
    """A SetRolloutResponse."""
    return bytes(models_pb2.SetRolloutResponse(rollout=_rollout(rollout)).SerializeToString())


def encode_models(found: Sequence[tuple[str, Manifest | None, str]], model_set: ModelSet) -> bytes:
    """A ListModelsResponse of versions, each with its manifest, if it can be read, and why it is refused, if it is."""
    models = [_model(version, manifest, reason, model_set) for version, manifest, reason in found]
    return bytes(models_pb2.ListModelsResponse(models=models).SerializeToString())


def _model(version: str, manifest: Manifest | None, reason: str, model_set: ModelSet) -> models_pb2.Model:
    told = models_pb2.Model(version=version, state=_state(version, model_set, refused=bool(reason)), reason=reason)
    if manifest is not None:
        told.fingerprint = manifest.fingerprint
        if (created := _created(manifest.created)) is not None:
            told.created.CopyFrom(created)
        for name in ("churn_auc", "propensity_auc"):
            if isinstance(figure := manifest.metrics.get(name), int | float):
                setattr(told, name, figure)
    return told


def _state(version: str, model_set: ModelSet, *, refused: bool) -> Any:
    """What is done with it; a model in use stays so though its files were damaged since."""
    used = (
        (model_set.active, models_pb2.MODEL_STATE_SERVING),
        (model_set.canary, models_pb2.MODEL_STATE_CANARY),
        (model_set.shadow, models_pb2.MODEL_STATE_SHADOW),
    )
    for one, state in used:
        if one is not None and one.model.version == version:
            return state
    return models_pb2.MODEL_STATE_REFUSED if refused else models_pb2.MODEL_STATE_AVAILABLE


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


def _created(text: str) -> Timestamp | None:
    """A time as it stands in a manifest, None where it is none."""
    try:
        return _timestamp(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        return None


def _timestamp(seconds: float) -> Timestamp:
    whole, fraction = divmod(seconds, 1)
    return Timestamp(seconds=int(whole), nanos=int(fraction * 1e9))
