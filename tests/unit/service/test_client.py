"""The client refuses what cannot be meant, and understands what a newer server may say."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import grpc
import pytest
from tidemark.rpc import status_pb2
from tidemark.v1 import events_pb2

from service.api.messages import duration_s
from service.api.status import encoded_status
from service.errors import Reason, RequestError
from service.replay import replay
from tests.conftest import Call
from tidemark import CallFailedError, Event, EventClient, ScoringClient
from tidemark.channel import RETRY_POLICY
from tidemark.errors import problem_of_status
from tidemark.loopback import is_local_target
from tidemark.messages.events import MAX_MESSAGE_BYTES, batches, event_message


def test_one_text_is_not_taken_for_a_list_of_ids() -> None:
    with ScoringClient("127.0.0.1:1") as client, pytest.raises(TypeError, match="list of ids"):
        client.score_many("900")


def test_no_time_at_all_is_a_deadline_too() -> None:
    with ScoringClient("127.0.0.1:1") as client, pytest.raises(CallFailedError) as caught:
        client.score("900", timeout_s=0)
    assert caught.value.problem.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_code_of_tomorrow_is_unknown_today() -> None:
    assert problem_of_status(status_pb2.Status(code=99, message="new")).code is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("here", ["127.0.0.1:1", "localhost:1", "[::1]:1", "ipv4:127.0.0.1:1", "dns:///localhost:1"])
def test_a_token_may_go_to_this_machine_without_tls(here: str) -> None:
    assert is_local_target(here)
    ScoringClient(here, token="secret").close()


@pytest.mark.parametrize(
    "target", ["ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "unix:/tmp/s", "dns://1.1.1.1/localhost"]
)
def test_other_names_of_this_machine(target: str) -> None:
    assert is_local_target(target)


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


@dataclass
class FakeServer:
    """Acknowledges each message of a stream, and ends the call by an error where it is told to."""

    breaks: dict[int, Exception] = field(default_factory=dict)
    """Errors by the number of messages that arrived before, over all calls."""
    calls: list[list[str]] = field(default_factory=list)
    counted: set[str] = field(default_factory=set)
    loses: int = 0
    """So many events of the first message are not acknowledged."""

    def __call__(self, messages: Iterator[Any], **_: Any) -> Any:
        call = MagicMock()
        call.__iter__.return_value = self._answers(messages)
        return call

    def _answers(self, messages: Iterator[Any]) -> Iterator[events_pb2.StreamEventsResponse]:
        self.calls.append([])
        for message in messages:
            arrived = sum(map(len, self.calls))
            if (error := self.breaks.pop(arrived, None)) is not None:
                raise error
            ids = [event.event_id for event in message.events]
            self.calls[-1].append(ids[0])
            new = len(set(ids) - self.counted)
            self.counted |= set(ids)
            lost, self.loses = self.loses, 0
            yield events_pb2.StreamEventsResponse(accepted=new - lost, duplicates=len(ids) - new)


class Broken(grpc.RpcError):
    """The end of a call, with the details of the server or without."""

    def __init__(self, error: RequestError | None = None) -> None:
        super().__init__()
        self.error = error

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "Socket closed"

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", encoded_status(self.error)),) if self.error else ()


def streaming(server: FakeServer) -> EventClient:
    """A client whose streams are answered here."""
    stub: Any = SimpleNamespace(StreamEvents=server)
    client = EventClient("127.0.0.1:1")
    client._make_stub = lambda _: stub  # type: ignore[assignment]
    return client


def views(count: int) -> list[Event]:
    return [Event("a", "view", event_id=str(n)) for n in range(count)]


def test_a_stream_that_breaks_sends_only_what_is_not_acknowledged() -> None:
    server = FakeServer({2: Broken()})
    with streaming(server) as client:
        recorded = client.stream(views(3500), timeout_s=10)
    assert server.calls == [["0", "1000"], ["2000", "3000"]]
    assert (recorded.accepted, recorded.duplicates) == (3500, 0)


def test_events_are_drawn_once_however_often_the_stream_breaks() -> None:
    drawn: list[int] = []

    def events() -> Iterator[Event]:
        for n in range(2500):
            drawn.append(n)
            yield Event("a", "view", event_id=str(n))

    server = FakeServer({0: Broken(), 1: Broken(), 2: Broken()})
    with streaming(server) as client:
        assert client.stream(events(), timeout_s=10).accepted == 2500
    assert drawn == list(range(2500))
    assert len(server.calls) == 4


def test_a_message_that_is_acknowledged_in_part_is_sent_again() -> None:
    server = FakeServer(loses=1)
    with streaming(server) as client:
        recorded = client.stream(views(1500), timeout_s=10)
    assert server.calls == [["0"], ["0", "1000"]]
    assert (recorded.accepted, recorded.duplicates) == (500, 1000)


def test_a_stream_that_is_never_acknowledged_fails_when_its_time_is_up() -> None:
    server = FakeServer()
    server._answers = lambda messages: iter(())  # type: ignore[method-assign]  # noqa: ARG005
    with streaming(server) as client, pytest.raises(CallFailedError, match="0 of 2 events") as caught:
        client.stream(views(2), timeout_s=0.15)
    assert caught.value.problem.code is grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize("reason", [Reason.TOO_MANY_EVENTS, Reason.MESSAGE_TOO_LARGE, Reason.NOT_IN_CLUSTER])
def test_a_stream_that_cannot_succeed_is_not_repeated(reason: Reason) -> None:
    server = FakeServer({0: Broken(RequestError(reason, "why"))})
    with streaming(server) as client, pytest.raises(CallFailedError, match=reason):
        client.stream(views(1), timeout_s=10)
    assert len(server.calls) == 1


def test_a_stream_waits_as_long_as_the_server_recommends() -> None:
    server = FakeServer({0: Broken(RequestError(Reason.OVERLOADED, "why", retry_s=0.3))})
    began = time.monotonic()
    with streaming(server) as client:
        client.stream(views(1), timeout_s=10)
    assert time.monotonic() - began >= 0.3


def test_a_recommendation_beyond_the_deadline_ends_the_stream_at_once() -> None:
    server = FakeServer({0: Broken(RequestError(Reason.OVERLOADED, "why", retry_s=60))})
    with streaming(server) as client, pytest.raises(CallFailedError) as caught:
        client.stream(views(1), timeout_s=10)
    assert caught.value.retry_after == timedelta(seconds=60)


def test_an_error_of_the_events_own_iterator_is_raised() -> None:
    def events() -> Iterator[Event]:
        yield from views(1000)
        yield from views(1000)
        raise RuntimeError("no more rows")

    with streaming(FakeServer()) as client, pytest.raises(RuntimeError, match="no more rows"):
        client.stream(events(), timeout_s=10)


def test_no_events_make_no_call() -> None:
    server = FakeServer()
    with streaming(server) as client:
        assert client.stream([], timeout_s=10).accepted == 0
    assert server.calls == []


def test_events_are_split_by_bytes_as_well_as_by_count() -> None:
    large = [Event("a", "view", text="x" * 9_000) for _ in range(200)]
    split = list(batches([*views(2100), *large]))
    assert sum(len(batch.events) for batch in split) == 2300
    assert max(len(batch.events) for batch in split) == 1000
    assert max(batch.message.ByteSize() for batch in split) <= MAX_MESSAGE_BYTES
    assert [batch.start for batch in split[:3]] == [0, 1000, 2000]


@pytest.mark.parametrize("seconds", [0.0, 3.3, 0.1, 86_399.999, 1e-9])
def test_a_duration_arrives_as_it_was(seconds: float) -> None:
    assert duration_s(event_message(Event("a", "view", duration_s=seconds)).duration) == seconds


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.5, 1e300])
def test_a_duration_that_cannot_be_is_left_to_the_server_to_reject(seconds: float) -> None:
    assert math.isnan(duration_s(event_message(Event("a", "view", duration_s=seconds)).duration))


def test_grpc_does_not_repeat_a_stream_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, Any]] = []
    real = grpc.insecure_channel

    def noting(target: str, given: Any) -> grpc.Channel:
        options.append(dict(given))
        return real(target, given)

    monkeypatch.setattr(grpc, "insecure_channel", noting)
    with EventClient("127.0.0.1:1") as client, pytest.raises(CallFailedError):
        client.stream([Event("a", "view")], timeout_s=0.05)
    assert [result.get("grpc.enable_retries") for result in options] == [None, 0]
    config: Any = RETRY_POLICY["methodConfig"]
    events = [name for item in config for name in item["name"] if name["service"].endswith("EventService")]
    assert events == [{"service": "tidemark.v1.EventService", "method": "RecordEvents"}]
