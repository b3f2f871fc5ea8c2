"""Reasons that concern the server: its feature store, its load, its callers, and faults."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from service.error_catalog.entry import TARGET, ErrorEntry, customers, scoring
from service.errors import Reason

TOKEN: Final = "token-of-the-shop"  # noqa: S105  # of the examples alone
CALLERS: Final = f"""\
[[caller]]
name = "shop"
scopes = ["score"]
sha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}" # of {TOKEN}; make yours with tidemark tokens
quota = 0.01
burst = 10
"""
OPTIONS: Final = ("--callers", "callers.toml")
FILES: Final = {"callers.toml": CALLERS}
REDIS: Final = "import os\n\nimport redis\n"
STORE: Final = 'store = redis.Redis.from_url(os.environ["REDIS_URL"])\n'


def _flood(method: str, request: str, calls: int, arguments: str = "") -> str:
    """An example that makes many calls of a method at once, without the retries of the clients."""
    return (
        "import grpc\nfrom tidemark.v1 import scoring_pb2, scoring_pb2_grpc\n\n"
        f'with grpc.insecure_channel("{TARGET}") as channel:\n'
        "    stub = scoring_pb2_grpc.ScoringServiceStub(channel)\n"
        f"    request = scoring_pb2.{request}\n"
        f"    calls = [stub.{method}.future(request{arguments}) for _ in range({calls})]\n"
        "    for call in calls:\n"
        "        call.result()"
    )


def _damaged(damage: str, example: str) -> str:
    """An example that changes something in Redis first."""
    imports, _, body = example.partition("\n\n")
    return f"{REDIS}{imports}\n\n{STORE}store.{damage}\n{body}"


SERVER: Final[Mapping[str, ErrorEntry]] = {
    Reason.CONFLICT: ErrorEntry(
        "Other writers kept changing the same customer while the server tried to commit a change.",
        "Send the call again; events with the same ids. If it happens often, send the events of one customer through "
        "one connection, or several in one call.",
        by_hand="Change the customer's profile in Redis between each read and each commit of the server.",
    ),
    Reason.FEATURES_NOT_LOADED: ErrorEntry(
        "Redis holds no features of the serving model, of any customer. Either nothing was ever loaded, or Redis was "
        "emptied.",
        "Run `tidemark load`. If features were loaded before, check that the server uses the same Redis and the same "
        "database, and that Redis keeps its data (`appendonly yes`).",
        _damaged("flushall()", scoring('client.score("900")')),
    ),
    Reason.STATE_UNREADABLE: ErrorEntry(
        "The stored value of the customer is damaged, belongs to other features, or gives no finite score. Or the "
        "customer has a state and its profile was lost, for example evicted, so nobody knows what the customer allows.",
        "Load the features again, or delete the customer. If the profile was lost, store the customer's consent. Find "
        "out what else writes into this Redis, and whether its `maxmemory-policy` is `noeviction`.",
        _damaged('set("tm:live:visitor-11", "damaged")', customers('customers.get("visitor-11")')),
    ),
    Reason.FEATURE_STORE_FULL: ErrorEntry(
        "Redis has no memory left for writes. Scores, DeleteCustomer and SetConsent go on.",
        "Give Redis more memory (`maxmemory`), or remove what is not needed: `tidemark prune`, and `tidemark archive` "
        "for the log.",
        _damaged(
            'config_set("maxmemory", 1)',
            "from tidemark import Event, EventClient\n\n"
            f'with EventClient("{TARGET}", timeout_s=10) as events:\n'
            '    events.record([Event("900", "visit")])',
        ),
    ),
    Reason.FEATURE_STORE_UNAVAILABLE: ErrorEntry(
        "Redis did not answer within `redis_timeout_s`, is loading its data, is a replica, or cannot write its file. "
        "Whether events of the call were recorded is not known.",
        "Check that Redis runs and is not overloaded. The server notices by itself when it is back. Send the call "
        "again; events with the same ids. For scores while Redis is away, set `stale_cache_bytes` and send "
        "`allow_stale`.",
        _damaged("shutdown(nosave=True)", scoring('client.score("900")')).replace(
            f'"{TARGET}"', f'"{TARGET}", timeout_s=10'
        ),
    ),
    Reason.SERVER_STOPPING: ErrorEntry(
        "The server stops, and the call did not end before its time was up (`grace_s`).",
        "Send the call again, to another server or to the next worker; events with the same ids. The clients do it.",
        by_hand="Stop a server with `grace_s` 0 while a call waits for Redis.",
    ),
    Reason.DEADLINE_TOO_SHORT: ErrorEntry(
        "The call cannot be answered before its deadline, or it has waited in a queue beyond it.",
        "Give the call more time; the message says how much is needed. If the deadline is generous, the server is "
        "overloaded.",
        by_hand="Send a call with a deadline below the server's fastest answer. A gRPC client often reports its own "
        "DEADLINE_EXCEEDED before the server's answer arrives, so a program does not get the reason every time.",
    ),
    Reason.OVERLOADED: ErrorEntry(
        "The server has more to do than it can: the call would wait longer than `max_queue_s`, or for events "
        "`max_event_queue_s`. Nothing was done.",
        "Call again after the delay in RetryInfo. If it lasts, add workers or servers, send customers in batches, or "
        "ask for fewer explanations.",
        _flood("BatchScoreCustomers", 'BatchScoreCustomersRequest(customer_ids=["900"] * 1000)', 500),
        options=("--max-queue-s", "0.000001"),
    ),
    Reason.CREDENTIALS_MISSING: ErrorEntry(
        "The server requires credentials, and the call has neither a token nor a client certificate.",
        "Send the metadata `authorization: Bearer TOKEN`, or connect with a certificate. In Python: "
        "`ScoringClient(target, token=…)`.",
        scoring('client.score("900")'),
        options=OPTIONS,
        files=FILES,
    ),
    Reason.CREDENTIALS_INVALID: ErrorEntry(
        "The token or the certificate is not in the server's file of callers, or has expired.",
        "Create a token with `tidemark tokens` and put its hash into the file, which the server reads again by itself.",
        scoring('client.score("900")').replace(f'"{TARGET}"', f'"{TARGET}", token="another-token"'),
        options=OPTIONS,
        files=FILES,
    ),
    Reason.SCOPE_MISSING: ErrorEntry(
        "The caller does not have the scope that the method needs. The message names it.",
        "Add the scope (`score`, `events`, `customers` or `models`) to the caller in the file of callers.",
        customers('customers.get("900")').replace(f'"{TARGET}"', f'"{TARGET}", token="{TOKEN}"'),
        options=OPTIONS,
        files=FILES,
    ),
    Reason.QUOTA_EXCEEDED: ErrorEntry(
        "The caller has used up its quota of customers and events per second.",
        "Call again after the delay in RetryInfo, or raise `quota` and `burst` in the file of callers.",
        _flood(
            "ScoreCustomer",
            'ScoreCustomerRequest(customer_id="900")',
            20,
            f', metadata=[("authorization", "Bearer {TOKEN}")]',
        ),
        options=OPTIONS,
        files=FILES,
    ),
    Reason.INTERNAL: ErrorEntry(
        "The server has a fault.",
        "Look into the server's log at the time of the call, and report the fault.",
        by_hand="Replace a part of the server by one that raises an exception.",
    ),
}
"""By reason."""
