"""Messages of ModelService."""

from __future__ import annotations

from tidemark.v1 import models_pb2

from tidemark.messages.times import moment, moment_or_none
from tidemark.types import (
    Canary,
    Model,
    ModelState,
    OfferDifferences,
    Refusal,
    ServingModel,
    Shadow,
    ShadowDifferences,
)


def list_request(page_size: int, page_token: str = "") -> models_pb2.ListModelsRequest:
    """The request for a page of models."""
    return models_pb2.ListModelsRequest(page_size=page_size, page_token=page_token)


def activate_request(version: str) -> models_pb2.ActivateModelRequest:
    """The request to activate a bundle."""
    return models_pb2.ActivateModelRequest(version=version)


def rollout_request(rollout: Shadow | Canary) -> models_pb2.SetRolloutRequest:
    """The request to try a bundle out."""
    if isinstance(rollout, Shadow):
        message = models_pb2.Rollout(shadow=models_pb2.Shadow(version=rollout.version))
    else:
        message = models_pb2.Rollout(canary=models_pb2.Canary(version=rollout.version, share=rollout.share))
    return models_pb2.SetRolloutRequest(rollout=message)


def serving_model_of(response: models_pb2.GetServingModelResponse) -> ServingModel:
    """The serving model in a response."""
    return ServingModel(
        version=response.version,
        fingerprint=response.fingerprint,
        create_time=moment_or_none(response, "create_time"),
        activate_time=moment(response.activate_time),
        rollout=rollout_of(response.rollout),
        shadow_differences=_differences(response.shadow_differences)
        if response.HasField("shadow_differences")
        else None,
        refusal=_refusal(response.refusal) if response.HasField("refusal") else None,
    )


def rollout_of(rollout: models_pb2.Rollout) -> Shadow | Canary | None:
    """The rollout in a message, None where there is none."""
    kind = rollout.WhichOneof("kind")
    if kind is None:
        return None
    return Shadow(rollout.shadow.version) if kind == "shadow" else Canary(rollout.canary.version, rollout.canary.share)


def model_of(model: models_pb2.Model) -> Model:
    """The model in a message. A state that this version does not know becomes UNKNOWN."""
    names = {number: name.removeprefix("MODEL_STATE_") for name, number in models_pb2.ModelState.items()}
    return Model(
        version=model.version,
        state=ModelState(names.get(model.state, ModelState.UNKNOWN.value)),
        create_time=moment_or_none(model, "create_time"),
        fingerprint=model.fingerprint,
        reason=model.reason,
        message=model.message,
        churn_auc=model.churn_auc if model.HasField("churn_auc") else None,
        propensity_auc=model.propensity_auc if model.HasField("propensity_auc") else None,
    )


def _differences(differences: models_pb2.ShadowDifferences) -> ShadowDifferences:
    return ShadowDifferences(
        compared=differences.compared,
        unscored=differences.unscored,
        dropped=differences.dropped,
        churn=_offer_differences(differences.churn),
        propensity=_offer_differences(differences.propensity),
    )


def _offer_differences(differences: models_pb2.OfferDifferences) -> OfferDifferences:
    return OfferDifferences(differences.mean, differences.largest, differences.alerts)


def _refusal(refusal: models_pb2.Refusal) -> Refusal:
    return Refusal(refusal.version, refusal.file, refusal.reason, refusal.message, moment(refusal.refuse_time))
