"""Reasons that concern a request about scores or customers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from service.error_catalog.entry import TARGET, ErrorEntry, customers, scoring, stub
from service.errors import Reason

TIMEDELTA: Final = "from datetime import timedelta\n\n"

REQUESTS: Final[Mapping[str, ErrorEntry]] = {
    Reason.REQUEST_MALFORMED: ErrorEntry(
        "The bytes of the request are not the message that the method takes.",
        "Encode the request with code generated from the proto files. If you do, check that client and server use the "
        "same version of the contract, and that nothing between them changes the bytes.",
        "import grpc\n\n"
        f'with grpc.insecure_channel("{TARGET}") as channel:\n'
        '    score = channel.unary_unary("/tidemark.v1.ScoringService/ScoreCustomer")\n'
        '    score(b"\\xff")',
    ),
    Reason.MESSAGE_TOO_LARGE: ErrorEntry(
        "A request has more bytes than the setting `max_message_bytes` allows, after decompression.",
        "Send fewer customers or events at once, or raise `max_message_bytes`. Do not send the same request again: no "
        "retry can succeed.",
        scoring('client.score("9" * 2_000_000)'),
    ),
    Reason.CUSTOMER_ID_INVALID: ErrorEntry(
        "A customer id is empty, longer than 256 bytes in UTF-8, or contains characters that cannot be printed.",
        "Send the id exactly as the shop's data has it. Look for missing values, line ends and zero bytes.",
        scoring('client.score("")'),
    ),
    Reason.TOO_MANY_CUSTOMERS: ErrorEntry(
        "A call asks for the scores of more than 1000 customers.",
        "Split the ids into calls of at most 1000. `ScoringClient.score_many` does it.",
        stub("scoring", "BatchScoreCustomers", 'BatchScoreCustomersRequest(customer_ids=["900"] * 1001)'),
    ),
    Reason.TOO_MANY_EXPLAINED: ErrorEntry(
        "A call asks for explanations of more than 100 customers.",
        "Split the ids into calls of at most 100, or ask without explanations. `ScoringClient.score_many` splits them.",
        stub(
            "scoring",
            "BatchScoreCustomers",
            'BatchScoreCustomersRequest(customer_ids=["900"] * 101, explain=True)',
        ),
    ),
    Reason.ECONOMICS_INVALID: ErrorEntry(
        "A figure of the economics is not finite, is negative, or is a share above 1.",
        "Correct the figure; the error names its field. Shares such as a margin of 25 % are written as 0.25.",
        scoring('client.score("900", economics=Economics(margin=25.0))').replace(
            "import ScoringClient", "import Economics, ScoringClient"
        ),
    ),
    Reason.MAX_FEATURE_AGE_INVALID: ErrorEntry(
        "The duration `max_feature_age` is negative or out of range.",
        "Send a duration of zero or more, or leave the field out to accept features of any age.",
        scoring('client.score("900", max_feature_age=timedelta(seconds=-1))', TIMEDELTA),
    ),
    Reason.ALLOW_STALE_INVALID: ErrorEntry(
        "The duration `allow_stale` is negative or out of range.",
        "Send a duration of zero or more, or leave the field out to accept no stale scores.",
        scoring('client.score("900", allow_stale=timedelta(seconds=-1))', TIMEDELTA),
    ),
    Reason.FEATURES_TOO_OLD: ErrorEntry(
        "The customer's features are older than `max_feature_age`.",
        "Load newer features with `tidemark load`, record live events, or allow a larger `max_feature_age`.",
        scoring('client.score("900", max_feature_age=timedelta(milliseconds=1))', TIMEDELTA),
    ),
    Reason.CUSTOMER_UNKNOWN: ErrorEntry(
        "The server has no data about the customer: no features were loaded, and no events were recorded.",
        "Check the id: leading zeros and upper case count. New customers are known from their first event on.",
        scoring('client.score("nobody")'),
    ),
    Reason.CONSENT_WITHHELD: ErrorEntry(
        "The customer does not allow scoring. Scores are refused, and events are rejected.",
        "Respect it. If the customer agrees later, call SetConsent with `scoring` set to true.",
        "from tidemark import CustomerClient, ScoringClient\n\n"
        f'with CustomerClient("{TARGET}") as customers, ScoringClient("{TARGET}") as client:\n'
        '    customers.set_consent("visitor-1", scoring=False)\n'
        '    client.score("visitor-1")',
    ),
    Reason.CONSENT_MISSING: ErrorEntry(
        "SetConsent sets neither `scoring` nor `automated_response`.",
        "Set at least one of them to true or false. A field that is not set keeps its value.",
        customers('customers.set_consent("visitor-1")'),
    ),
    Reason.MERGE_WITH_ITSELF: ErrorEntry(
        "Source and target of a merge are the same id.",
        "Send two different ids.",
        customers('customers.merge("visitor-2", "visitor-2")'),
    ),
    Reason.MERGE_CYCLE: ErrorEntry(
        "The target of a merge has been merged into the source before.",
        "There is nothing to do: both ids are one customer already, under the id of the source.",
        customers('customers.merge("visitor-3", "visitor-4")', 'customers.merge("visitor-4", "visitor-3")'),
    ),
    Reason.ALREADY_MERGED: ErrorEntry(
        "The source of a merge has been merged into another customer before. A merge cannot be undone.",
        "If both customers are the same person, merge the other customer instead. If they are not, the first merge was "
        "a mistake: delete the customer.",
        customers('customers.merge("visitor-5", "visitor-6")', 'customers.merge("visitor-5", "visitor-7")'),
    ),
    Reason.TOO_MANY_ALIASES: ErrorEntry(
        "After the merge more than 1000 ids would belong to one customer.",
        "Find out what merges so many ids: often it is a shared device, a test account or a placeholder id.",
        customers("for number in range(1001):", '    customers.merge(f"cookie-{number}", "visitor-8")'),
    ),
}
"""By reason."""
