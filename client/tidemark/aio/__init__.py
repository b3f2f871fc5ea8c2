"""The asyncio clients, which do the same as the blocking ones."""

from tidemark.aio.base import AsyncClient
from tidemark.aio.customers import AsyncCustomerClient
from tidemark.aio.events import AsyncEventClient
from tidemark.aio.models import AsyncModelClient
from tidemark.aio.scoring import AsyncScoringClient

__all__ = ["AsyncClient", "AsyncCustomerClient", "AsyncEventClient", "AsyncModelClient", "AsyncScoringClient"]
