"""What was acknowledged is there afterwards, and once: whoever was killed in the middle, and however often."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.conftest import RedisProcess, refused
from tests.e2e.live import Start, calling, event, info_of, may_retry, someone, starter
from tests.waiting import PATIENCE_S, until

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CLIENTS, TOGETHER = 6, 10

Kept = Callable[[str], RedisProcess]


@pytest.fixture(scope="module", autouse=True)
def _once(front: str) -> None:
    if front != "lean":
        pytest.skip("nothing here depends on the front")


@pytest.fixture
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """``kept("everysec")``: a Redis that keeps what is written in this way."""
    with ExitStack() as stack:

        def begin(fsync: str) -> RedisProcess:
            result = RedisProcess(tmp_path_factory.mktemp("r"), fsync)
            stack.callback(result.kill)
            return result

        yield begin


@pytest.fixture
def start(small_registry: Path, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield starter(stack, small_registry, tmp_path, "")


class Client(threading.Thread):
    """Sends events, each as often as it takes until it is acknowledged, and no more then."""

    def __init__(self, target: str, customers: list[str], number: int) -> None:
        super().__init__(daemon=True)
        self._target, self._customers, self._number = target, customers, number
        self.over = threading.Event()
        self.sent: list[tuple[str, str]] = []
        """Customer and event id of all that was acknowledged."""
        self.failed: Counter[grpc.StatusCode] = Counter()
        self.problem = ""

    def run(self) -> None:
        while not self.over.is_set():
            first = len(self.sent)
            ours = [self._event(first + at) for at in range(TOGETHER)]
            while (reply := self._send(ours)) is None:
                time.sleep(0.05)
            if reply.accepted + reply.duplicates != TOGETHER:
                self.problem = str(reply)
            self.sent += [(item.customer_id, item.event_id) for item in ours]

    def _event(self, at: int) -> Any:
        customer = self._customers[at % len(self._customers)]
        return event(customer, f"type-{at % 40}", event_id=f"{self._number}-{at}", channel="web")

    def _send(self, events: list[Any]) -> Any:
        try:
            with calling(self._target) as live:  # a new connection each time: after a kill nothing of the old is left
                if len(self.sent) % 3:
                    return live.record(*events, timeout=PATIENCE_S)
                return live.stream([events[:4], events[4:]], timeout=PATIENCE_S)
        except grpc.RpcError as error:
            self.failed[error.code()] += 1
            return None


@contextmanager
def load(target: str) -> Iterator[list[Client]]:
    """Clients at work, all of them on the same few customers; at the end each of them is through."""
    customers = [someone() for _ in range(8)]
    clients = [Client(target, customers, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    yield clients
    for client in clients:
        client.over.set()
    for client in clients:
        client.join(PATIENCE_S)
        assert not client.is_alive()
        assert not client.problem


def await_more(clients: list[Client]) -> None:
    """Until something more has been acknowledged, and something else is on its way."""
    before = sum(len(client.sent) for client in clients)
    until(lambda: sum(len(client.sent) for client in clients) > before)
    time.sleep(0.3)  # any moment will do


def assert_all_is_there(url: str, target: str, clients: list[Client]) -> None:
    """All that was acknowledged stands once in the customers and once in the log, and nothing else does."""
    sent = Counter(single for client in clients for single in client.sent)
    assert set(sent.values()) == {1}
    assert len(sent) >= CLIENTS * TOGETHER
    logged: Counter[tuple[str, str]] = Counter()
    with redis.Redis.from_url(url) as store:
        for name in store.scan_iter("tm:log:[0-9]*", count=1000):
            events = (item for item in json.loads(store.get(name) or b"[]") if item[0] == "e")
            logged.update((event[1], event[8]) for event in events)
    assert logged == sent
    with calling(target) as live:
        of_customer = Counter(customer for customer, _ in sent)
        assert {customer: live.counted(customer) for customer in of_customer} == dict(of_customer)


def settings() -> list[str]:
    """Caps out of the way."""
    options = ("--max-events-per-type-hour", "--max-events-per-hour", "--max-events-per-customer")
    return [word for option in options for word in (option, "100000")]


def test_a_killed_server_loses_nothing_that_it_acknowledged(kept: Kept, start: Start) -> None:
    store = kept("everysec")
    server = start(*settings(), redis=store.url)
    target = server.target
    port = target.rpartition(":")[2]
    with load(target) as clients:
        for _ in range(2):
            await_more(clients)
            server.process.kill()
            server.process.wait()
            server = start(*settings(), "--port", port, redis=store.url)
    assert sum(client.failed[grpc.StatusCode.UNAVAILABLE] for client in clients)
    assert_all_is_there(store.url, target, clients)
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("fsync", "options"), [("always", []), ("everysec", ["--durable-events"])], ids=["always", "durable"]
)
def test_a_killed_redis_loses_nothing_that_was_acknowledged(
    kept: Kept, start: Start, fsync: str, options: list[str]
) -> None:
    store = kept(fsync)
    server = start(*settings(), *options, redis=store.url)
    with load(server.target) as clients:
        for _ in range(3):
            await_more(clients)
            store.kill()
            time.sleep(0.05)
            store.start()
    assert sum(client.failed[grpc.StatusCode.UNAVAILABLE] for client in clients)
    assert set().union(*(client.failed for client in clients)) == {grpc.StatusCode.UNAVAILABLE}
    assert_all_is_there(store.url, server.target, clients)
    assert "Traceback" not in server.log


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_durable_acknowledgement_comes_when_the_disk_has_it_without_further_settings(
    kept: Kept, start: Start, fsync: str
) -> None:
    server = start("--durable-events", redis=kept(fsync).url)
    with calling(server.target) as live:
        customer = someone()
        began = time.monotonic()
        item = event(customer, event_id="1", channel="web")
        assert live.record(item).accepted == 1
        assert live.stream([[item]]).duplicates == 1
        assert live.consent(customer, automated_response=False) == (True, False)
        assert time.monotonic() - began > (1 if fsync == "everysec" else 0)
        assert live.counted(customer) == 1


def test_without_an_append_only_file_a_durable_server_acknowledges_nothing_and_says_why(
    kept: Kept, start: Start
) -> None:
    store = kept("never")
    server = start(
        "--durable-events", redis=store.url, wait_for="NOT_SERVING.*--durable-events needs a Redis with appendonly"
    )
    with calling(server.target) as live:
        check = health_pb2_grpc.HealthStub(live.channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert check.status == NOT_SERVING
        item = event(someone(), event_id="1", channel="web")
        for send in (lambda: live.record(item), lambda: live.stream([[item]]), lambda: live.delete(item.customer_id)):
            with refused(grpc.StatusCode.UNAVAILABLE) as result:
                send()
            assert info_of(result[0]).reason == "FEATURE_STORE_UNAVAILABLE"
            assert may_retry(result[0])
        with redis.Redis.from_url(store.url) as connection:
            connection.config_set("appendonly", "yes")
        server.wait_for("health is SERVING")
        # The erasure may have happened although nobody acknowledged it, and then events from before it are refused.
        other = event(someone(), event_id="1", channel="web")
        assert live.record(other).accepted == 1
        assert live.counted(other.customer_id) == 1
