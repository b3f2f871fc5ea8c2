"""What a call carries beside its request, from the transport through the handlers into the batchers."""

from __future__ import annotations

import math
from typing import Final, NamedTuple, Protocol

from service.telemetry.batch_stages import Trace


class Quota(Protocol):
    """How many units a caller may use: an event, or a customer scored, read or changed."""

    def charge(self, units: int) -> None:
        """Use units at once; RequestError if the quota does not allow that now."""

    async def wait(self, units: int) -> None:
        """Use units as soon as the quota allows that; RequestError if too many calls wait already."""


class CallContext(NamedTuple):
    """The context of one call.

    Attributes:
        deadline: When the client stops waiting, by the monotonic clock in seconds; infinite without a deadline.
        trace: The trace of the call; None if it is not traced.
        quota: The quota of its caller; None if the caller has none.
    """

    deadline: float = math.inf
    trace: Trace | None = None
    quota: Quota | None = None

    def charge(self, units: int) -> None:
        """Charge units to the caller's quota.

        Raises:
            QuotaExceededError: The quota does not allow these units now; none are charged.
        """
        if self.quota is not None:
            self.quota.charge(units)

    async def wait_and_charge(self, units: int) -> None:
        """Charge units to the caller's quota as soon as it allows that.

        Raises:
            QuotaExceededError: Too many streams of the caller wait already.
        """
        if self.quota is not None:
            await self.quota.wait(units)


NO_CONTEXT: Final = CallContext()
"""The context of a call with no deadline, no trace and no quota."""
