"""The contract of EventService over a socket: what is recorded, refused and guarded, and what the next score knows."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import events_pb2

from tests.e2e.conftest import RedisProcess, refused, until_answered
from tests.e2e.live import (
    EVENTS,
    HOUR_S,
    Live,
    Request,
    Start,
    StreamRequest,
    Summed,
    calling,
    event,
    info_of,
    may_retry,
    someone,
    starter,
    summed,
    told_of,
)
from tests.e2e.raw_client import RawClient, framed
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until

STREAM = f"/{EVENTS}/StreamEvents"
INTERNAL, INVALID_ARGUMENT = 13, 3
MEGABYTE = 2**20

pytestmark = pytest.mark.both_fronts

Send = Callable[[Live, list[events_pb2.Event]], Any]
SENDS: list[Send] = [lambda live, events: live.record(*events), lambda live, events: live.stream([events])]
"""Both ways to bring events."""


@pytest.fixture(scope="module")
def live(channel: grpc.Channel) -> Live:
    return Live(channel)


@pytest.fixture
def start(loaded_redis: str, small_registry: Path, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield starter(stack, small_registry, tmp_path, loaded_redis)


def fates(reply: Any) -> tuple[int, int, list[int], list[int]]:
    """Accepted, duplicates, and which were rejected and guarded."""
    return reply.accepted, reply.duplicates, [r.index for r in reply.rejected], [g.index for g in reply.guarded]


def names(noted: Any) -> list[tuple[int, str, str]]:
    """Index, field and reason."""
    return [(item.index, item.field, item.reason) for item in noted]


# --- what is recorded -----------------------------------------------------------------------------------------------


def test_events_are_accepted_once_and_told_apart(live: Live) -> None:
    customer = someone()
    ours = [event(customer, event_id=str(number), item_id="a") for number in range(3)]
    assert fates(live.record(*ours)) == (3, 0, [], [])
    assert fates(live.record(*ours, event(customer, event_id="3"))) == (1, 3, [], [])
    assert fates(live.record(*[event(customer, event_id="4")] * 5)) == (1, 4, [], [])
    assert fates(live.record(event(someone(), event_id="4"))) == (1, 0, [], [])  # an id is its customer's
    assert fates(live.record(*[event(customer)] * 2)) == (2, 0, [], [])  # without one, each is another
    assert live.score(customer).top_interest.views == 3


def test_a_request_without_events_records_none(live: Live) -> None:
    assert fates(live.record()) == (0, 0, [], [])


def test_each_bad_event_rejects_itself_alone_and_says_why(live: Live) -> None:
    customer, never = someone(), event("x")
    never.ClearField("event_time")
    bad = {
        "customer_id": [event(""), event("x" * 257), event("tab\there")],
        "event_type": [event(customer, ""), event(customer, "x" * 65), event(customer, "new\nline")],
        "event_time": [never, event(customer, ago_s=73 * HOUR_S), event(customer, ago_s=-301)],
        "amount": [event(customer, amount=float(text)) for text in ("nan", "inf", "-1e13")],
        "duration": [
            event(customer, duration=Duration(seconds=seconds, nanos=nanos))
            for seconds, nanos in ((-1, 0), (0, -1), (0, 1_000_000_000), (10**12, 0))
        ],
        "item_id": [event(customer, item_id="x" * 257), event(customer, item_id="\x7f")],
        "channel": [event(customer, channel="x" * 65)],
        "event_id": [event(customer, event_id="ü" * 129)],
        "text": [event(customer, text="x" * 10_001)],
    }
    every: list[Any] = []
    fields: dict[int, str] = {}
    for field, events in bad.items():
        for item in events:
            fields[len(every)] = field
            every += [item, event(customer, channel="web")]
    reply = live.record(*every)
    assert {item.index: item.field for item in reply.rejected} == fields
    assert reply.accepted == live.counted(customer) == len(fields)
    assert [item.index for item in reply.rejected] == sorted(fields)
    for item in reply.rejected:
        assert item.reason.isupper()
        assert item.message
        assert customer not in item.message


def test_the_bounds_of_time_are_named_in_the_reason(live: Live, start: Start) -> None:
    customer = someone()
    early, late = live.record(event(customer, ago_s=-310), event(customer, ago_s=73 * HOUR_S)).rejected
    assert (early.reason, late.reason) == ("EVENT_IN_FUTURE", "EVENT_TOO_LATE")
    assert "300 s" in early.message
    assert "72 h" in late.message
    assert fates(live.record(event(customer, ago_s=-290), event(customer, ago_s=71.9 * HOUR_S))) == (2, 0, [], [])
    with calling(start("--max-lateness-hours", "0.5", "--max-future-s", "5").target) as strict:
        early, late = strict.record(event(customer, ago_s=-10), event(customer, ago_s=2000)).rejected
        assert "5 s" in early.message
        assert "0.5 h" in late.message


@pytest.mark.parametrize("seconds", [-1, -(2**40), 253_402_300_800, 2**62])
def test_a_time_out_of_this_world_is_rejected(live: Live, seconds: int) -> None:
    item = event(someone())
    item.event_time.CopyFrom(Timestamp(seconds=seconds))
    assert names(live.record(item).rejected)[0][:2] == (0, "event_time")
    item.event_time.CopyFrom(Timestamp(seconds=int(time.time()), nanos=-1))
    assert names(live.record(item).rejected) == [(0, "event_time", "EVENT_TIME_INVALID")]


def test_a_thousand_events_are_one_request_and_more_are_too_many(live: Live) -> None:
    customers = [someone() for _ in range(10)]
    events = [event(customers[number % 10], channel="web") for number in range(1000)]
    assert fates(live.record(*events)) == (1000, 0, [], [])
    assert [live.counted(customer) for customer in customers] == [100] * 10
    for send in SENDS:
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
            send(live, [*events, events[0]])
        assert told_of(result[0]) == ("TOO_MANY_EVENTS", "events")
    assert [live.counted(customer) for customer in customers] == [100] * 10


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x05half", b"\x0a\x03\x0a\x01\xff"])
def test_bytes_that_are_no_events_are_an_invalid_argument(live: Live, data: bytes) -> None:
    record: Any = live.channel.unary_unary(f"/{EVENTS}/RecordEvents")
    stream: Any = live.channel.stream_stream(STREAM)
    asked: list[Callable[[], Any]] = [
        lambda: record(data, timeout=PATIENCE_S),
        lambda: next(stream(iter([data]), timeout=PATIENCE_S)),
    ]
    for ask in asked:
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as result:
            ask()
        assert info_of(result[0]).reason == "REQUEST_MALFORMED"


def test_what_is_beyond_a_cap_is_accepted_and_told_and_not_folded(start: Start) -> None:
    caps = ["--max-events-per-type-hour", "3", "--max-events-per-hour", "5", "--max-events-per-customer", "8"]
    with calling(start(*caps).target) as live:
        customer = someone()
        reply = live.record(*(event(customer, "visit", channel="web") for _ in range(5)))
        assert fates(reply) == (5, 0, [], [3, 4])
        assert names(reply.guarded) == [(3, "customer_id", "EVENT_CAPPED"), (4, "customer_id", "EVENT_CAPPED")]
        assert "3 events of one type" in reply.guarded[0].message
        assert live.count(customer, "visit") == pytest.approx(3, rel=1e-3)
        reply = live.record(*(event(customer, channel="web") for _ in range(3)))
        assert "5 events of a customer in an hour" in reply.guarded[0].message
        assert fates(reply) == (3, 0, [], [2])
        reply = live.record(*(event(customer, f"t{n}", ago_s=n * HOUR_S, channel="web") for n in range(2, 7)))
        assert fates(reply) == (5, 0, [], [3, 4])
        assert "8 events of a customer in 72 h" in reply.guarded[0].message
        assert live.counted(customer) == 8
        streamed = live.stream([[event(customer)], [event("")], [event(customer)]])
        assert (streamed.accepted, len(streamed.guarded), len(streamed.rejected)) == (2, 2, 1)
        assert [item.index for item in streamed.guarded] == [0, 2]


def test_events_are_refused_where_the_archive_is_behind(own_redis: RedisProcess, start: Start) -> None:
    server = start("--max-unarchived-commits", "3", redis=own_redis.url)
    with calling(server.target) as live:
        customer = someone()
        for _ in range(3):
            assert live.record(event(customer, channel="web")).accepted == 1
        for send in SENDS:
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as result:
                send(live, [event(customer)])
            assert info_of(result[0]).reason == "ARCHIVE_BEHIND"
            assert may_retry(result[0])
        assert live.counted(customer) == 3
        live.delete(customer)  # whoever wants to be forgotten does not wait for the archive


# --- what the next score knows --------------------------------------------------------------------------------------


def test_the_next_score_knows_an_acknowledged_event_a_thousand_times(live: Live) -> None:
    customers = [someone() for _ in range(4)]
    for number in range(1000):
        customer = customers[number % 4]
        assert live.record(event(customer, item_id="boots", event_id=str(number))).accepted == 1
        top = live.score(customer).top_interest
        assert (top.item_id, top.views) == ("boots", number // 4 + 1)


def test_a_purchase_changes_the_score_and_the_features_exactly(live: Live) -> None:
    customer, days = someone(), 2.0
    past = days * 86_400
    live.record(event(customer, "purchase", ago_s=past, amount=10.0), event(customer, "produce", ago_s=past))
    before = live.score(customer)
    live.record(event(customer, "purchase", amount=50.0), event(customer, "visit"), event(customer, "produce"))
    after = live.score(customer)
    assert after.expected_spend > before.expected_spend
    assert after.churn.probability != before.churn.probability
    for half_life, amount in live.decayed(customer, "purchase_amount").items():
        assert amount == pytest.approx(50.0 + 10.0 * 2 ** (-days / half_life), rel=1e-4)
    assert live.feature(customer, "purchase_latest") == pytest.approx(0, abs=1e-3)


def test_repeated_views_are_told_until_the_item_is_bought(live: Live) -> None:
    customer = someone()
    live.record(event(customer, "purchase", ago_s=50 * HOUR_S, item_id="socks", amount=5))
    assert not live.score(customer).HasField("top_interest")
    for views in (1, 2, 3, 4):
        live.record(event(customer, ago_s=60 - views, item_id="boots"))
        score = live.score(customer)
        assert (score.top_interest.item_id, score.top_interest.views) == ("boots", views)
        assert score.propensity.repeated_view is (views >= 3)
        assert not score.churn.repeated_view
    live.record(event(customer, "purchase", item_id="boots", amount=80))
    score = live.score(customer)
    assert not score.HasField("top_interest")
    assert not score.propensity.repeated_view
    live.record(event(customer, ago_s=30, item_id="boots"))  # comes late: it was before the purchase
    assert not live.score(customer).HasField("top_interest")


def test_the_order_of_arrival_changes_nothing(live: Live) -> None:
    first, second = someone(), someone()
    ages = [n * 5000.0 for n in range(12)]
    pick, now = random.Random(1), time.time()
    moments = [Timestamp(seconds=int(now - age)) for age in ages]
    for customer in (first, second):
        shuffled = pick.sample(range(12), 12)
        for at in shuffled:
            item = event(customer, ("purchase", "visit", "view")[at % 3], amount=at * 1.5, item_id=f"i{at % 2}")
            item.event_time.CopyFrom(moments[at])
            live.record(item)
    ours, theirs = live.get(first), live.get(second)
    assert [f.value for f in ours.features] == pytest.approx([f.value for f in theirs.features], rel=1e-6, abs=1e-6)
    assert (ours.first_seen_time, ours.last_seen_time) == (theirs.first_seen_time, theirs.last_seen_time)


def test_what_several_clients_send_again_in_any_order_is_counted_once(server: ServerProcess, live: Live) -> None:
    customers = [someone() for _ in range(5)]
    events = [event(customers[n % 5], "visit", event_id=str(n), channel="web", ago_s=n) for n in range(500)]

    def send(seed: int) -> int:
        pick, accepted = random.Random(seed), 0
        ours = pick.sample(events, len(events))
        with calling(server.target) as client:
            while ours:
                size = pick.choice((1, 7, 50))
                part, ours = ours[:size], ours[size:]
                reply = client.record(*part) if pick.random() < 0.7 else client.stream([part[:3], part[3:]])
                assert reply.accepted + reply.duplicates == len(part)
                accepted += reply.accepted
        return accepted

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(send, range(4))) == 500
    assert [live.counted(customer) for customer in customers] == [100] * 5
    assert live.count(customers[0], "visit") == pytest.approx(100, rel=1e-3)


# --- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_means_what_its_messages_would(live: Live) -> None:
    customer = someone()
    item = event(customer, event_id="1", channel="web")
    reply = live.stream([[item, event("")], [], [item], [event(customer, channel="app"), event(customer, "")]])
    assert fates(reply) == (2, 1, [1, 4], [])
    assert names(reply.rejected) == [(1, "customer_id", "CUSTOMER_ID_INVALID"), (4, "event_type", "EVENT_TYPE_INVALID")]
    assert reply.messages == 4
    assert live.counted(customer) == 2


@pytest.mark.parametrize("messages", [[], [[]], [[]] * 500])
def test_a_stream_without_events_ends_well(live: Live, messages: list[list[Any]]) -> None:
    assert fates(live.stream(messages)) == (0, 0, [], [])


def test_each_message_is_acknowledged_before_the_next_is_sent(live: Live) -> None:
    customer, acknowledged = someone(), threading.Semaphore(1)

    def requests() -> Iterator[Any]:
        for number in range(5):
            acknowledged.acquire()
            yield StreamRequest(events=[event(customer, event_id=str(number), channel="web"), event("")])

    for number, reply in enumerate(live.streaming(requests()), 1):
        assert (reply.acknowledged_messages, reply.accepted) == (number, 1)
        assert [item.index for item in reply.rejected] == [1]
        assert live.counted(customer) == number
        acknowledged.release()


def test_every_event_that_was_refused_is_told(live: Live) -> None:
    customer = someone()
    messages = [[event("")] * 600, [event(customer, channel="web")], [event("")] * 600, [event("")] * 600]
    reply = live.stream(messages)
    assert (reply.accepted, len(reply.rejected)) == (1, 1800)
    assert [item.index for item in reply.rejected] == [*range(600), *range(601, 1801)]


def test_two_thousand_messages_are_one_stream(live: Live) -> None:
    customers = [someone() for _ in range(20)]
    messages = [[event(customers[n % 20], event_id=str(n), channel="web")] for n in range(2000)]
    assert fates(live.stream(messages)) == (2000, 0, [], [])
    assert {live.counted(customer) for customer in customers} == {100}


def test_messages_of_a_stream_may_be_compressed(live: Live) -> None:
    customer = someone()
    messages = [[event(customer, channel="web", text="x" * 3000)] for _ in range(50)]
    assert live.stream(messages, compression=grpc.Compression.Gzip).accepted == 50
    assert live.counted(customer) == 50


@pytest.mark.parametrize("bad", [b"\xff\xff", Request(events=[event("x")] * 1001).SerializeToString()])
def test_a_bad_message_ends_its_stream_and_what_came_before_stays(live: Live, bad: bytes) -> None:
    customer = someone()
    good = StreamRequest(events=[event(customer, channel="web")]).SerializeToString()
    stream: Any = live.channel.stream_stream(STREAM)
    replies: list[bytes] = []
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        replies.extend(stream(iter([good, good, bad, *[good] * 100]), timeout=PATIENCE_S))
    assert len(replies) == 2
    assert live.counted(customer) == 2


def test_what_came_before_a_client_gives_up_stays(live: Live) -> None:
    customer, over = someone(), threading.Event()

    def forever() -> Iterator[Any]:
        while not over.is_set():
            yield StreamRequest(events=[event(customer, "visit", channel="web")])
            time.sleep(0.01)

    live.record(event(customer, channel="web"))
    for how in ("cancelled", "late"):
        before = live.counted(customer)
        call = live.streaming(forever(), timeout=2.0 if how == "late" else PATIENCE_S)
        if how == "cancelled":
            until(lambda: live.counted(customer) > before)  # noqa: B023  # called before the loop goes on
            call.cancel()
        with pytest.raises(grpc.RpcError):
            summed(call)
        assert call.code() is {"cancelled": grpc.StatusCode.CANCELLED, "late": grpc.StatusCode.DEADLINE_EXCEEDED}[how]
        assert live.counted(customer) > before
    over.set()

    def stays() -> bool:
        counted = live.counted(customer)
        time.sleep(0.2)
        return live.counted(customer) == counted

    until(stays)


def test_a_slow_client_is_waited_for(server: ServerProcess) -> None:
    customer = someone()
    data = framed(StreamRequest(events=[event(customer, channel="web")]).SerializeToString())
    with RawClient(server.target) as raw, calling(server.target) as live:
        stream = raw.begin(STREAM)
        for number in range(3):
            for start_, stop in ((0, 3), (3, 20), (20, len(data))):
                raw.send(stream, data[start_:stop], end=False)
                time.sleep(0.05)
            # Recorded as it comes, not at the end.
            until(lambda: live.counted(customer) > number, passing=grpc.RpcError)  # noqa: B023  # as above
        raw.send(stream, b"")
        assert summed(acknowledgements(raw.end(stream).data)).accepted == 3


def test_a_stream_that_ends_within_a_message_has_failed(server: ServerProcess, front: str) -> None:
    customer = someone()
    data = framed(StreamRequest(events=[event(customer, channel="web")]).SerializeToString())
    with RawClient(server.target) as raw, calling(server.target) as live:
        stream = raw.begin(STREAM)
        raw.send(stream, data + data[:-1])
        reply = raw.end(stream)
        if front == "lean":
            assert (reply.code, summed(acknowledgements(reply.data)).accepted) == (INTERNAL, 1)
        assert live.counted(customer) == 1


def test_a_client_that_is_too_fast_is_held_back_and_others_are_not(start: Start) -> None:
    server = start("--max-buffered-bytes", str(MEGABYTE))
    customers = [someone() for _ in range(50)]
    request = StreamRequest(events=[event(customers[n % 50], item_id="x" * 200) for n in range(1000)])
    process = psutil.Process(server.process.pid)
    with calling(server.target) as live, ThreadPoolExecutor(1) as pool:
        live.record(*request.events)
        before, most, scores = process.memory_info().rss, 0, 0
        stream = live.streaming(iter([request] * 25), timeout=PATIENCE_S)
        call = pool.submit(summed, stream)
        while not call.done():
            live.score(customers[0])  # on the same connection
            scores += 1
            most = max(most, process.memory_info().rss)
            time.sleep(0.02)
        assert call.result().accepted == 25_000
    assert 25 * request.ByteSize() > 5 * MEGABYTE
    assert most < before + 24 * MEGABYTE
    assert scores >= 5  # none of them had to wait for the whole stream


def acknowledgements(data: bytes) -> list[Any]:
    """The messages in the body of a response."""
    messages = []
    while data:
        size = 5 + int.from_bytes(data[1:5])
        messages.append(events_pb2.StreamEventsResponse.FromString(data[5:size]))
        data = data[size:]
    return messages


# --- while something else happens -----------------------------------------------------------------------------------


class Dripping:
    """A stream that brings an event now and then, until it is told to end."""

    def __init__(self, live: Live, **options: Any) -> None:
        self.customer, self._over = someone(), threading.Event()
        self.sent = 0
        self.call = live.streaming(self._requests(), **options)
        until(lambda: live.counted(self.customer) >= 3, passing=grpc.RpcError)

    def _requests(self) -> Iterator[Any]:
        while not self._over.wait(0.02):
            self.sent += 1
            yield StreamRequest(events=[event(self.customer, event_id=str(self.sent), channel="web")])

    def end(self) -> Summed:
        """The sum of its acknowledgements."""
        self._over.set()
        return summed(self.call)

    def broken(self) -> grpc.RpcError:
        """The error that ends it."""
        with pytest.raises(grpc.RpcError) as caught:
            summed(self.call)
        self._over.set()
        return caught.value


def test_a_connection_of_age_lets_its_streams_end(start: Start) -> None:
    server = start("--max-connection-age-s", "0.3")
    with calling(server.target) as live:
        stream = Dripping(live)
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            assert live.record(event(someone())).accepted == 1  # on a new connection after a while
        assert stream.end().accepted == stream.sent
        assert live.counted(stream.customer) == stream.sent
    assert "Traceback" not in server.log


def test_a_stop_waits_for_streams_that_end_and_ends_those_that_do_not(start: Start) -> None:
    server = start("--grace-s", "4")
    with calling(server.target) as first, calling(server.target) as second:
        ending, endless = Dripping(first), Dripping(second)
        server.process.terminate()
        server.wait_for("stopping")
        assert ending.end().accepted == ending.sent
        assert isinstance(endless.broken(), grpc.RpcError)
        assert endless.call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert server.process.wait(PATIENCE_S) == 0
    assert "stopped" in server.log
    assert "Traceback" not in server.log
    assert "never retrieved" not in server.log
    with calling(start().target) as live:
        assert live.counted(ending.customer) == ending.sent
        assert live.counted(endless.customer) >= 3


def test_a_stop_under_load_keeps_what_it_acknowledged(start: Start) -> None:
    server = start()
    customers = [someone() for _ in range(6)]

    ends: set[Any] = set()
    accepted = Counter[str]()

    def load(customer: str) -> None:
        with calling(server.target) as live:
            try:
                while True:
                    accepted[customer] += live.record(*(event(customer, channel="web") for _ in range(3))).accepted
            except grpc.RpcError as error:
                ends.add(error.code())

    with ThreadPoolExecutor(len(customers)) as pool:
        loading = [pool.submit(load, customer) for customer in customers]
        until(lambda: all(accepted[customer] for customer in customers))
        assert server.stop() == 0
        for item in loading:
            item.result()
    assert ends <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert "Traceback" not in server.log
    with calling(start().target) as live:
        for customer, count in accepted.items():
            assert min(count, 300) <= live.counted(customer) <= count + 3  # the last one may not have been answered


def test_redis_away_ends_streams_and_calls_with_a_time_to_retry_and_heals(
    own_redis: RedisProcess, start: Start
) -> None:
    server = start(redis=own_redis.url)
    with calling(server.target) as live:
        stream = Dripping(live)
        own_redis.kill()
        error = stream.broken()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        asked: list[Callable[[], Any]] = [
            lambda: live.record(event("x")),
            lambda: live.stream([[event("x")]]),
            lambda: live.get("x"),
            lambda: live.merge("x", "y"),
            lambda: live.delete("x"),
            lambda: live.consent("x", scoring=False),
        ]
        for ask in asked:
            with refused(grpc.StatusCode.UNAVAILABLE) as result:
                ask()
            assert info_of(result[0]).reason == "FEATURE_STORE_UNAVAILABLE"
            assert may_retry(result[0])
        own_redis.start()
        again = until_answered(lambda: live.record(event(stream.customer, event_id="1", channel="web")))
        assert again.duplicates == 1
        assert live.record(event(stream.customer, event_id="after", channel="web")).accepted == 1
        assert 3 <= live.counted(stream.customer) <= stream.sent + 1
    assert "Traceback" not in server.log
    assert "never retrieved" not in server.log


def test_events_that_a_hanging_redis_took_late_are_counted_once(own_redis: RedisProcess, start: Start) -> None:
    server = start("--redis-timeout-s", "1", redis=own_redis.url)
    with calling(server.target) as live:
        customer = someone()
        events = [event(customer, event_id=str(number), channel="web") for number in range(200)]
        until_answered(lambda: live.record(events[0]))
        own_redis.pause()
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(live.record, *events) for _ in range(2)] + [pool.submit(live.stream, [events])]
            for call in calls:
                with refused(grpc.StatusCode.UNAVAILABLE):
                    call.result()
        own_redis.resume()
        reply = until_answered(lambda: live.record(*events))
        assert reply.accepted + reply.duplicates == 200
        assert live.counted(customer) == 200
    assert "Traceback" not in server.log


def test_what_became_of_events_is_in_the_log(loaded_redis: str, small_registry: Path, tmp_path: Path) -> None:
    options = [
        "--registry",
        str(small_registry),
        "--redis",
        loaded_redis,
        "--port",
        "0",
        "--max-events-per-type-hour",
        "1",
    ]
    with ServerProcess(tmp_path, *options) as process:
        process.wait_for("health is SERVING")
        customer = someone()
        with calling(process.target) as live:
            live.record(*(event(customer, "visit") for _ in range(3)), event("", "visit"))
        process.stop()
        process.wait_for(r"events so far: CUSTOMER_ID_INVALID 1, EVENT_CAPPED 2, accepted 3")
