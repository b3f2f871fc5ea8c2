"""The client refuses what cannot be meant, and understands what a newer server may say."""

from __future__ import annotations

import grpc
import pytest
from tidemark.rpc import status_pb2

from service.client import CallFailedError, ScoringClient, _problem


def test_one_text_is_not_taken_for_a_list_of_ids() -> None:
    with ScoringClient("127.0.0.1:1") as client, pytest.raises(TypeError, match="list of ids"):
        client.score_many("900")


def test_no_time_at_all_is_a_deadline_too() -> None:
    with ScoringClient("127.0.0.1:1") as client, pytest.raises(CallFailedError) as caught:
        client.score("900", timeout_s=0)
    assert caught.value.problem.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_code_of_tomorrow_is_unknown_today() -> None:
    assert _problem(status_pb2.Status(code=99, message="new")).code is grpc.StatusCode.UNKNOWN
