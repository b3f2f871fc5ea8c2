"""Limits of the contract, which the server enforces and the client splits its calls by."""

from __future__ import annotations

from typing import Final

MAX_CUSTOMERS_PER_CALL: Final = 1000
"""Customers of one BatchScoreCustomers call."""
MAX_EXPLAINED_PER_CALL: Final = 100
"""Customers of one call that asks for explanations: each takes about a millisecond of computing time."""
MAX_EVENTS_PER_MESSAGE: Final = 1000
"""Events of one RecordEvents call, and of one message of a StreamEvents call."""
DEFAULT_PAGE_SIZE: Final = 100
"""Models in one page of ListModels, if the request does not say how many."""
MAX_PAGE_SIZE: Final = 1000
"""Models in one page of ListModels, whatever the request says."""
