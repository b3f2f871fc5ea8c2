"""The asyncio client of CustomerService.

Example:
    async with AsyncCustomerClient("127.0.0.1:50051") as client:
        await client.merge("cookie-17", "900")
        await client.set_consent("900", automated_response=False)
"""

from __future__ import annotations

from tidemark.v1 import customers_pb2_grpc

from tidemark.aio.base import AsyncClient
from tidemark.messages.customers import (
    consent_of,
    consent_request,
    customer_of,
    delete_request,
    get_request,
    merge_request,
)
from tidemark.types import Consent, Customer


class AsyncCustomerClient(AsyncClient):
    """Shows, merges and deletes customers, and stores their consent."""

    _make_stub = staticmethod(customers_pb2_grpc.CustomerServiceStub)

    async def get(self, customer_id: str, *, timeout_s: float | None = None) -> Customer:
        """Return the data of a customer as of now.

        Args:
            customer_id: Id of the customer, or an id that has been merged into it.
            timeout_s: Seconds for the call, its retries included; None for the client's default.

        Returns:
            The customer.

        Raises:
            CallFailedError: The call failed, for example with CUSTOMER_UNKNOWN.
        """
        request = get_request(customer_id)
        return customer_of(await self._call(self._stub.GetCustomer, request, timeout_s, customer_id))

    async def merge(self, source_customer_id: str, target_customer_id: str, *, timeout_s: float | None = None) -> str:
        """Merge one customer into another, for example when an anonymous visitor signs in.

        Args:
            source_customer_id: Id of the customer that is merged and then becomes an alias of the target.
            target_customer_id: Id of the customer that remains.
            timeout_s: Seconds for the call, its retries included; None for the client's default.

        Returns:
            Id of the customer that both ids now refer to.

        Raises:
            CallFailedError: The call failed, for example with ALREADY_MERGED.
        """
        request = merge_request(source_customer_id, target_customer_id)
        response = await self._call(self._stub.MergeCustomers, request, timeout_s, source_customer_id)
        return str(response.customer_id)

    async def delete(self, customer_id: str, *, timeout_s: float | None = None) -> None:
        """Delete everything that is stored about a customer.

        Args:
            customer_id: Id of the customer, or an id that has been merged into it.
            timeout_s: Seconds for the call, its retries included; None for the client's default.

        Raises:
            CallFailedError: The call failed.
        """
        await self._call(self._stub.DeleteCustomer, delete_request(customer_id), timeout_s, customer_id)

    async def set_consent(
        self,
        customer_id: str,
        *,
        scoring: bool | None = None,
        automated_response: bool | None = None,
        timeout_s: float | None = None,
    ) -> Consent:
        """Store what a customer allows.

        Args:
            customer_id: Id of the customer, who need not exist yet.
            scoring: Whether events may be recorded and scores computed; None keeps the value.
            automated_response: Whether a score may trigger an action without a human decision; None keeps the value.
            timeout_s: Seconds for the call, its retries included; None for the client's default.

        Returns:
            What the customer allows now.

        Raises:
            CallFailedError: The call failed.
        """
        request = consent_request(customer_id, scoring=scoring, automated_response=automated_response)
        response = await self._call(self._stub.SetConsent, request, timeout_s, customer_id)
        return consent_of(response.consent)
