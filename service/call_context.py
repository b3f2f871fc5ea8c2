"""What a call carries beside its request, from the transport through the handlers into the batchers."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from service.telemetry.batch_stages import Trace


class CallContext(NamedTuple):
    """The context of one call.

    Attributes:
        deadline: When the client stops waiting, by the monotonic clock in seconds; infinite without a deadline.
        trace: The trace of the call; None if it is not traced.
    """

    deadline: float = math.inf
    trace: Trace | None = None


NO_CONTEXT: Final = CallContext()
"""Of a call without a deadline that is not traced."""
