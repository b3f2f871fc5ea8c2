"""The client refuses what cannot be meant, and understands what a newer server may say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tidemark.rpc import status_pb2
from tidemark.v1 import events_pb2

from service.replay import replay
from tests.conftest import Call
from tidemark.events import Event, EventClient, _Sent
from tidemark.loopback import stays_here
from tidemark.scoring import RETRY_POLICY, CallFailedError, ScoringClient, _problem


def test_one_text_is_not_taken_for_a_list_of_ids() -> None:
    with ScoringClient("127.0.0.1:1") as client, pytest.raises(TypeError, match="list of ids"):
        client.score_many("900")


def test_no_time_at_all_is_a_deadline_too() -> None:
    with ScoringClient("127.0.0.1:1") as client, pytest.raises(CallFailedError) as caught:
        client.score("900", timeout_s=0)
    assert caught.value.problem.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_code_of_tomorrow_is_unknown_today() -> None:
    assert _problem(status_pb2.Status(code=99, message="new")).code is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("here", ["127.0.0.1:1", "localhost:1", "[::1]:1", "ipv4:127.0.0.1:1", "dns:///localhost:1"])
def test_a_token_may_go_to_this_machine_without_tls(here: str) -> None:
    assert stays_here(here)
    ScoringClient(here, token="secret").close()


@pytest.mark.parametrize(
    "target", ["ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "unix:/tmp/s", "dns://1.1.1.1/localhost"]
)
def test_other_names_of_this_machine(target: str) -> None:
    assert stays_here(target)


@pytest.mark.parametrize(
    "elsewhere",
    [
        *("10.0.0.1:1", "scores.example:1", "localhost.example:1", "[::2]:1", "ipv4:127.0.0.1:1,10.0.0.1:1", ":1"),
        *("dns:///scores.example:1", "xds:///localhost:1", "127.0.0.1.example:1", "user@localhost:1", ""),
    ],
)
def test_a_token_goes_nowhere_else_without_tls(elsewhere: str) -> None:
    with pytest.raises(ValueError, match="in the clear"):
        ScoringClient(elsewhere, token="secret")
    ScoringClient(elsewhere, token="secret", credentials=grpc.ssl_channel_credentials()).close()


@pytest.mark.parametrize("bad", ["", "two words", "line\n", "tök", "tab\t"])
def test_what_cannot_be_a_token_is_refused_and_not_repeated(bad: str) -> None:
    with pytest.raises(ValueError, match="copy it again") as caught:
        ScoringClient(token=bad)
    assert not bad or bad not in str(caught.value)


def test_a_replay_sends_its_token_nowhere_else_either(call: Call, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    done = call(replay, "complete_journey", "10.0.0.1:1", "--token-file", tmp_path / "token")
    assert done.is_bad_input
    assert "in the clear" in done.err
    assert "secret" not in done.err


def test_the_retry_policy_of_the_readme_is_the_clients() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    found = re.search(r"```json\n(\{\n  \"methodConfig\".*?)```", readme, re.DOTALL)
    assert found is not None
    assert json.loads(found[1]) == RETRY_POLICY


def test_messages_of_a_stream_are_drawn_once_and_sent_as_often_as_need_be() -> None:
    drawn: list[int] = []

    def messages() -> Iterator[events_pb2.StreamEventsRequest]:
        for size in range(3):
            drawn.append(size)
            yield events_pb2.StreamEventsRequest(events=[events_pb2.Event()] * size)

    sent = _Sent(messages())
    first = sent.again()
    assert [len(next(first).events) for _ in range(2)] == [0, 1]
    assert drawn == [0, 1]
    assert [len(message.events) for message in sent.again()] == [0, 1, 2]
    assert [len(message.events) for message in first] == [2]
    assert drawn == [0, 1, 2]
    assert sent.events == 3
    assert not _Sent(iter([]))


def streaming(answer: Callable[[list[Any]], events_pb2.StreamEventsResponse]) -> EventClient:
    """A client whose streams are answered here."""
    stub: Any = SimpleNamespace(StreamEvents=lambda messages, **_: answer(list(messages)))
    client = EventClient("127.0.0.1:1")
    client._make_stub = lambda _: stub  # type: ignore[assignment]
    return client


def test_a_stream_of_which_not_all_arrived_is_sent_again() -> None:
    calls: list[int] = []

    def answer(messages: list[Any]) -> events_pb2.StreamEventsResponse:
        calls.append(sum(len(message.events) for message in messages))
        if len(calls) == 1:
            return events_pb2.StreamEventsResponse(accepted=1000, rejected_count=1)
        return events_pb2.StreamEventsResponse(accepted=498, duplicates=1001, rejected_count=1)

    with streaming(answer) as client:
        recorded = client.stream([Event("a", "view")] * 1500, timeout_s=10)
    assert calls == [1500, 1500]
    assert (recorded.accepted, recorded.duplicates) == (498, 1001)


def test_a_stream_that_never_arrives_whole_fails_in_the_end() -> None:
    client = streaming(lambda _: events_pb2.StreamEventsResponse(accepted=1))
    with client, pytest.raises(CallFailedError, match="1 events out of 2") as caught:
        client.stream([Event("a", "view")] * 2, timeout_s=0.15)
    assert caught.value.problem.code is grpc.StatusCode.DATA_LOSS


def test_grpc_does_not_repeat_a_stream_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, Any]] = []
    real = grpc.insecure_channel

    def noting(target: str, given: Any) -> grpc.Channel:
        options.append(dict(given))
        return real(target, given)

    monkeypatch.setattr(grpc, "insecure_channel", noting)
    with EventClient("127.0.0.1:1") as client, pytest.raises(CallFailedError):
        client.stream([Event("a", "view")], timeout_s=0.05)
    assert [found.get("grpc.enable_retries") for found in options] == [None, 0]
    config: Any = RETRY_POLICY["methodConfig"]
    events = [name for one in config for name in one["name"] if name["service"].endswith("EventService")]
    assert events == [{"service": "tidemark.v1.EventService", "method": "RecordEvents"}]
