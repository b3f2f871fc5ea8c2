"""Bundles made of another one, and ModelService as another service calls it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Final

import grpc
from tidemark.v1 import models_pb2, models_pb2_grpc

from feature_store.bundles import bundle
from feature_store.definitions import fingerprint
from tests.waiting import PATIENCE_S

_numbers = itertools.count(1)
HALF_LIFE: Final = "half_life_days = 28"
OTHER_HALF_LIFE: Final = "half_life_days = 7"


def republished(registry: Path, *, activate: bool = True, **changes: Any) -> str:
    """The current bundle once more, under another version and with some changes of its manifest."""
    result = bundle.read(registry)
    golden = (registry / bundle.CURRENT / bundle.GOLDEN_FILE).read_bytes()
    version = f"29990101T{next(_numbers):06}"
    manifest = result.manifest.model_copy(update={"version": version, **changes})
    bundle.publish(registry, manifest, result.model, golden, activate=activate)
    return version


def with_other_features(registry: Path) -> str:
    """A bundle of the same graph on other features, as edited by OTHER_HALF_LIFE; it is not the current one."""
    features = [
        f.model_copy(update={"half_life_days": 7.0}) if f.half_life_days == 28.0 else f
        for f in bundle.read(registry).manifest.features
    ]
    return republished(registry, activate=False, features=features, fingerprint=fingerprint(features))


class Models:
    """ModelService on a channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = models_pb2_grpc.ModelServiceStub(channel)

    def serving(self) -> Any:
        """GetServingModel."""
        return self._stub.GetServingModel(models_pb2.GetServingModelRequest(), timeout=PATIENCE_S)

    def listed(self) -> dict[str, Any]:
        """ListModels, by version."""
        result = self.page().models
        return {model.version: model for model in result}

    def page(self, size: int = 0, token: str = "") -> Any:
        """ListModels."""
        request = models_pb2.ListModelsRequest(page_size=size, page_token=token)
        return self._stub.ListModels(request, timeout=PATIENCE_S)

    def state(self, version: str) -> str:
        """What a worker does with a version."""
        return models_pb2.ModelState.Name(self.listed()[version].state).removeprefix("MODEL_STATE_")

    def activate(self, version: str) -> Any:
        """ActivateModel."""
        return self._stub.ActivateModel(models_pb2.ActivateModelRequest(version=version), timeout=PATIENCE_S)

    def roll_out(self, *, shadow: str = "", canary: str = "", share: float = 0.0) -> Any:
        """SetRollout."""
        rollout = None
        if shadow:
            rollout = models_pb2.Rollout(shadow=models_pb2.Shadow(version=shadow))
        if canary:
            rollout = models_pb2.Rollout(canary=models_pb2.Canary(version=canary, share=share))
        return self._stub.SetRollout(models_pb2.SetRolloutRequest(rollout=rollout), timeout=PATIENCE_S).rollout

    def clear_rollout(self) -> Any:
        """ClearRollout."""
        return self._stub.ClearRollout(models_pb2.ClearRolloutRequest(), timeout=PATIENCE_S)
