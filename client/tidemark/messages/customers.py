"""Messages of CustomerService."""

from __future__ import annotations

from tidemark.v1 import customers_pb2

from tidemark.messages.scoring import interest_of
from tidemark.messages.times import moment_or_none
from tidemark.types import Consent, Customer


def get_request(customer_id: str) -> customers_pb2.GetCustomerRequest:
    """The request for the data of a customer."""
    return customers_pb2.GetCustomerRequest(customer_id=customer_id)


def merge_request(source_customer_id: str, target_customer_id: str) -> customers_pb2.MergeCustomersRequest:
    """The request to merge one customer into another."""
    return customers_pb2.MergeCustomersRequest(
        source_customer_id=source_customer_id, target_customer_id=target_customer_id
    )


def delete_request(customer_id: str) -> customers_pb2.DeleteCustomerRequest:
    """The request to delete a customer."""
    return customers_pb2.DeleteCustomerRequest(customer_id=customer_id)


def consent_request(
    customer_id: str, *, scoring: bool | None, automated_response: bool | None
) -> customers_pb2.SetConsentRequest:
    """The request to store what a customer allows; None keeps a value."""
    return customers_pb2.SetConsentRequest(
        customer_id=customer_id, scoring=scoring, automated_response=automated_response
    )


def customer_of(response: customers_pb2.GetCustomerResponse) -> Customer:
    """The customer in a response."""
    return Customer(
        customer_id=response.customer_id,
        features={feature.name: feature.value if feature.HasField("value") else None for feature in response.features},
        first_seen_time=moment_or_none(response, "first_seen_time"),
        last_seen_time=moment_or_none(response, "last_seen_time"),
        channels={channel.channel: channel.events for channel in response.channels},
        interests=[interest_of(interest) for interest in response.interests],
        consent=consent_of(response.consent),
        aliases=list(response.aliases),
    )


def consent_of(consent: customers_pb2.Consent) -> Consent:
    """The consent in a message."""
    return Consent(consent.scoring, consent.automated_response)
