"""The asyncio client of ModelService.

Example:
    async with AsyncModelClient("127.0.0.1:50051", timeout_s=30) as client:
        bundles = await client.list()
        await client.set_rollout(Canary(bundles[0].version, share=0.05))
"""

from __future__ import annotations

from datetime import datetime

from tidemark.v1 import models_pb2, models_pb2_grpc

from tidemark.aio.base import AsyncClient
from tidemark.messages.models import (
    activate_request,
    list_request,
    model_of,
    rollout_of,
    rollout_request,
    serving_model_of,
)
from tidemark.messages.times import moment
from tidemark.types import Canary, Model, ServingModel, Shadow


class AsyncModelClient(AsyncClient):
    """Lists the models of a server, activates one, and tries one out."""

    _make_stub = staticmethod(models_pb2_grpc.ModelServiceStub)

    async def serving(self, *, timeout_s: float | None = None) -> ServingModel:
        """Return the models that the worker that answers uses now.

        Args:
            timeout_s: Seconds for the call, its retries included; None for the client's default.

        Returns:
            The active model, the rollout and the newest refusal.

        Raises:
            CallFailedError: The call failed.
        """
        request = models_pb2.GetServingModelRequest()
        return serving_model_of(await self._call(self._stub.GetServingModel, request, timeout_s))

    async def list(self, *, page_size: int = 0, timeout_s: float | None = None) -> list[Model]:
        """Return all bundles of the registry, newest first.

        Args:
            page_size: Maximum number of bundles that one call asks for; 0 means the server's default.
            timeout_s: Seconds for each call, its retries included; None for the client's default.

        Returns:
            All bundles.

        Raises:
            CallFailedError: A call failed.
        """
        models: list[Model] = []
        request = list_request(page_size)
        while True:
            response = await self._call(self._stub.ListModels, request, timeout_s)
            models += map(model_of, response.models)
            if not response.next_page_token:
                return models
            request = list_request(page_size, response.next_page_token)

    async def activate(self, version: str, *, timeout_s: float | None = None) -> datetime:
        """Activate a bundle, newer or older. The call returns when the worker that answers serves it.

        Args:
            version: Version of the bundle.
            timeout_s: Seconds for the call, its retries included; None for the client's default. Checking and warming a
                bundle takes longer than scoring.

        Returns:
            Time at which the worker began to serve it.

        Raises:
            CallFailedError: The call failed, for example with MODEL_REFUSED; then nothing changed.
        """
        response = await self._call(self._stub.ActivateModel, activate_request(version), timeout_s)
        return moment(response.activate_time)

    async def set_rollout(self, rollout: Shadow | Canary, *, timeout_s: float | None = None) -> Shadow | Canary | None:
        """Try a bundle out, in place of the one that is tried out now.

        Args:
            rollout: The bundle, as a shadow or as a canary.
            timeout_s: Seconds for the call, its retries included; None for the client's default.

        Returns:
            The rollout of the worker that answered.

        Raises:
            CallFailedError: The call failed, for example with MODEL_REFUSED; then nothing changed.
        """
        response = await self._call(self._stub.SetRollout, rollout_request(rollout), timeout_s)
        return rollout_of(response.rollout)

    async def clear_rollout(self, *, timeout_s: float | None = None) -> None:
        """End the rollout, if there is one.

        Args:
            timeout_s: Seconds for the call, its retries included; None for the client's default.

        Raises:
            CallFailedError: The call failed.
        """
        await self._call(self._stub.ClearRollout, models_pb2.ClearRolloutRequest(), timeout_s)
