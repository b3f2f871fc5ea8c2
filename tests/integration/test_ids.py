"""An id that can be loaded can be asked for: the source's rule and the server's are one."""

from __future__ import annotations

import pytest
from tidemark.v1 import scoring_pb2

from feature_store.config import Source
from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from service.api.scoring import decode_score
from service.errors import RequestError


def loads(customer_id: str) -> bool:
    quoted = "||".join(f"chr({ord(letter)})" for letter in customer_id) or "''"
    events = f"SELECT {quoted} AS customer_id, TIMESTAMP '2024-01-01' AS event_time, 'purchase' AS event_type"
    try:
        with OfflineStore(Source(events=events)):
            return True
    except InputError:
        return False


def scores(customer_id: str) -> bool:
    try:
        return bool(decode_score(scoring_pb2.ScoreCustomerRequest(customer_id=customer_id).SerializeToString()))
    except RequestError:
        return False


@pytest.mark.parametrize(
    "customer_id",
    [
        "7",
        "a b",
        "é",
        "客户",
        "🙂",
        "x" * 256,
        "x" * 257,
        "é" * 129,
        "a\u00a0b",
        "a\u200bb",
        "a\tb",
        "\u2028",
        "\ue000",
        "$1'",
    ],
)
def test_the_source_and_the_server_take_the_same_ids(customer_id: str) -> None:
    assert loads(customer_id) is scores(customer_id)
