"""Figures of live events: how soon they count, what they cost, what they take of the scores, and what is kept of them.

The Redis of these figures keeps what it has on disk (``DURABILITY``), as one that takes in events should.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import grpc
import grpc.aio
import numpy as np
import redis
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import events_pb2, scoring_pb2

from feature_store.bundles import bundle
from feature_store.bundles.bundle import Bundle
from feature_store.embedded_redis import embedded_redis
from feature_store.online.customer_store import CustomerStore
from feature_store.online.keys import Keys, profile_keys
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder, StoredCustomer
from feature_store.state.layout import DAY_S, StateLayout
from service.batching import event_batcher as recorder
from tests.benchmarks import front, raw_load
from tests.benchmarks.setting import (
    CUSTOMERS,
    UNARY,
    Bench,
    Measured,
    Server,
    customer_id,
    empty_server,
    load_customers,
    paired,
    tidemark_server,
)

RECORD: Final = "/tidemark.v1.EventService/RecordEvents"
DURABILITY: Final = ("--appendonly", "yes", "--appendfsync", "everysec")
ROWS: Final = 256
DURABLE_ROWS: Final = 64
REQUESTS: Final = 64
"""Batches of events in one slice of load."""
LINES: Final = 4
SINGLES: Final = 4000
"""Requests with one event, more than fit into a slice."""
REDIS_TIMEOUT_S: Final = 5.0

ROUNDS: Final = 10_000
CLIENTS: Final = 16
SCORES_A_SECOND: Final = 1000
SCORES: Final = 4000
DISTURBED_S: Final = 8.0
"""Events flow for longer than the scores that are measured beside them."""

MONTH_DAYS: Final = 30
A_MONTH: Final = 100
SIMULATED: Final = 2000
COPIES: Final = 10
"""Ids that each simulated customer is stored under."""
HOUR_S: Final = 3600.0
CHANNELS: Final = ("web", "app", "store")
ITEMS: Final = 5000
VIEW: Final = "view"


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kinds:
    """Types of events, one of each in turn: those of the features, and as many views."""

    types: Sequence[str]
    amounts: frozenset[str]

    @classmethod
    def of(cls, loaded: Bundle) -> Kinds:
        """Those of a bundle."""
        features = loaded.manifest.features
        types = sorted({feature.event for feature in features if feature.event})
        amounts = frozenset(feature.event for feature in features if feature.event and feature.field)
        return cls([name for kind in types for name in (kind, VIEW)], amounts)


def drawn(kinds: Kinds, count: int, customers: int = CUSTOMERS) -> list[Event]:
    """New events of the last minute, of customers drawn evenly, in turn of all kinds; messages of them are as long."""
    now, rng = int(time.time()), random.Random()
    result = []
    for at in range(count):
        kind = kinds.types[at % len(kinds.types)]
        event = Event(customer_id(rng.randrange(customers)), kind, now - rng.randrange(1, 60) + rng.uniform(0.5, 0.99))
        fill(event, kinds, rng)
        result.append(event)
    return result


def fill(event: Event, kinds: Kinds, rng: random.Random) -> None:
    """The rest of an event: an id as long as a UUID's digits, an item of 13 digits, a channel, an amount."""
    event.event_id = f"{rng.getrandbits(128):032x}"
    if event.event_type in kinds.amounts:
        event.amount = rng.uniform(1, 100)
    if event.event_type in (VIEW, "purchase"):
        event.item_id = f"{4_000_000_000_000 + rng.randrange(ITEMS) ** 2:013d}"
        event.channel = CHANNELS[0]


def message(events: Sequence[Event]) -> bytes:
    """A request to record them."""
    return bytes(events_pb2.RecordEventsRequest(events=map(_event, events)).SerializeToString())


def _event(event: Event) -> events_pb2.Event:
    seconds = math.floor(event.event_time)
    return events_pb2.Event(
        customer_id=event.customer_id,
        event_type=event.event_type,
        event_time=Timestamp(seconds=seconds, nanos=int((event.event_time - seconds) * 1e9)),
        amount=event.amount,
        item_id=event.item_id,
        channel=event.channel,
        event_id=event.event_id,
    )


class EventRequests:
    """Requests with new events, each to be sent once."""

    FRAME_BYTES: Final = 16_384

    def __init__(self, port: int, kinds: Kinds, requests: int, rows: int) -> None:
        self.first_headers: Final = raw_load.first_headers(port, RECORD)
        messages = [message(drawn(kinds, rows)) for _ in range(requests)]
        (size,) = {len(item) for item in messages}
        self.message_bytes: Final = size + 5
        self._frames = [self._framed(item) for item in messages]
        starts = range(0, self.message_bytes, self.FRAME_BYTES)
        self._ids = [5, *(raw_load.DATA_AT + 5 + at + raw_load.HEAD * part for part, at in enumerate(starts))]

    def _framed(self, one: bytes) -> bytearray:
        body = b"\0" + len(one).to_bytes(4) + one
        parts = [body[at : at + self.FRAME_BYTES] for at in range(0, len(body), self.FRAME_BYTES)]
        frames = [raw_load.frame(raw_load.HEADERS, raw_load.END_HEADERS, 0, raw_load.LATER_HEADERS)]
        frames += [raw_load.frame(raw_load.DATA, 0, 0, part) for part in parts[:-1]]
        return bytearray(b"".join([*frames, raw_load.frame(raw_load.DATA, raw_load.END_STREAM, 0, parts[-1])]))

    @property
    def left(self) -> int:
        """Requests that are still to come."""
        return len(self._frames)

    def group(self, stream: int, count: int) -> bytes:
        """The next requests, as streams from that one on."""
        taken = [self._frames.pop() for _ in range(count)]
        for number, frames in enumerate(taken):
            for at in self._ids:
                frames[at : at + 4] = (stream + 2 * number).to_bytes(4)
        return b"".join(taken)


# --- what they run against ------------------------------------------------------------------------------------------


@contextmanager
def durable_redis(bench: Bench) -> Iterator[str]:
    """A Redis of our own that keeps what it has on disk, with the customers loaded."""
    with embedded_redis(*DURABILITY) as url:
        load_customers(url, bench.bundle)
        yield url


def record_rate(target: Server, kinds: Kinds, rows: int = ROWS) -> float:
    """Events a second through RecordEvents in batches of ``rows``, four of them in flight."""
    requests = EventRequests(target.port, kinds, REQUESTS, rows)
    start = time.perf_counter()
    front.paced(target.port, requests, math.inf, REQUESTS, LINES)
    return REQUESTS * rows / (time.perf_counter() - start)


class Bare:
    """The same fold without a server: events that are there already, as many batches at once as the server has."""

    def __init__(self, url: str, loaded: Bundle) -> None:
        manifest = loaded.manifest
        self._loop = uvloop.new_event_loop()
        self._redis = RedisStore(url, REDIS_TIMEOUT_S)
        self._store = CustomerStore(
            self._redis, EventFolder([StateLayout(manifest.features)], manifest.interests, Rules())
        )
        self._kinds = Kinds.of(loaded)

    def rate(self) -> float:
        """Events a second."""
        events = drawn(self._kinds, REQUESTS * ROWS)
        batches = [events[at : at + recorder.BATCH_ROWS] for at in range(0, len(events), recorder.BATCH_ROWS)]
        start = time.perf_counter()
        self._loop.run_until_complete(self._all(batches))
        return len(events) / (time.perf_counter() - start)

    async def _all(self, batches: list[list[Event]]) -> None:
        async def some() -> None:
            while batches:
                await self._store.record(batches.pop())

        await asyncio.gather(*(some() for _ in range(recorder.WORKERS)))

    def close(self) -> None:
        """Close the connections."""
        self._loop.run_until_complete(self._redis.close())
        self._loop.close()


class Commands:
    """What Redis says of the time that it takes."""

    TOP: Final = ("evalsha", "eval", "mget")
    """What the server sends; commands within the script stand in the statistics too, and in the script's time."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(url)

    def reset(self) -> None:
        """Begin to count."""
        self._redis.config_resetstat()
        self._cpu = self._cpu_s()

    def usec(self) -> float:
        """Microseconds in the commands that the server sent since then."""
        stats = self._redis.info("commandstats")
        return float(sum(stats[f"cmdstat_{name}"]["usec"] for name in self.TOP if f"cmdstat_{name}" in stats))

    def cpu_usec(self) -> float:
        """Microseconds of all that Redis did since then: reading, commands, replies and its file."""
        return (self._cpu_s() - self._cpu) * 1e6

    def _cpu_s(self) -> float:
        cpu = self._redis.info("cpu")
        return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])

    def used_memory(self) -> int:
        """Bytes that Redis uses, all included."""
        return int(self._redis.info("memory")["used_memory"])

    def put(self, values: dict[bytes, bytes]) -> None:
        """Store values."""
        items = list(values.items())
        for at in range(0, len(items), 1000):
            self._redis.mset(dict(items[at : at + 1000]))


def check(port: int, kinds: Kinds) -> None:
    """Raise RuntimeError unless a request like those of the load is recorded whole."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(RECORD, None, events_pb2.RecordEventsResponse.FromString)
        reply = call(message(drawn(kinds, ROWS)))
    if reply.accepted != ROWS:
        raise RuntimeError(f"not all events were recorded: {reply}")


# --- figures --------------------------------------------------------------------------------------------------------


def durable_cost(bench: Bench) -> Measured:
    """Seconds of RecordEvents with --durable-events over without, on one Redis that writes before it answers."""
    kinds = Kinds.of(bench.bundle)
    with embedded_redis("--appendfsync", "always") as url:
        load_customers(url, bench.bundle)
        with (
            tidemark_server(bench.registry, url, "--durable-events") as durable,
            tidemark_server(bench.registry, url) as usual,
        ):
            for server in (durable, usual):
                check(server.port, kinds)
            result = paired(
                lambda: 1 / record_rate(durable, kinds, DURABLE_ROWS),
                lambda: 1 / record_rate(usual, kinds, DURABLE_ROWS),
            )
    rate = 1 / result.unit
    return (
        result.median,
        f"batches of {DURABLE_ROWS}, {LINES} in flight; without {rate:,.0f} events a second; {result.spread}",
    )


def throughput(bench: Bench) -> dict[str, Measured]:
    """Events a second in batches of 256, alone and over the bare fold, and what Redis takes for each."""
    kinds, commands, total = Kinds.of(bench.bundle), [], []
    rates: list[float] = []
    with durable_redis(bench) as url, tidemark_server(bench.registry, url) as ours:
        check(ours.port, kinds)
        bare, stats = Bare(url, bench.bundle), Commands(url)

        def served() -> float:
            stats.reset()
            rates.append(record_rate(ours, kinds))
            commands.append(stats.usec() / REQUESTS / ROWS)
            total.append(stats.cpu_usec() / REQUESTS / ROWS)
            return rates[-1]

        result = paired(served, bare.rate)
        bare.close()
    rate, usec = statistics.median(rates[1:]), statistics.median(commands[1:])
    spread = f"{min(commands[1:]):.1f} to {max(commands[1:]):.1f}, all CPU of Redis {statistics.median(total[1:]):.0f}"
    return {
        "record_256_rate": (rate, f"4 calls in flight, appendonly; {min(rates[1:]):,.0f} to {max(rates[1:]):,.0f}"),
        "record_256_share": (result.median, f"the bare fold does {result.unit:,.0f} a second; {result.spread}"),
        "fold_us": (usec, f"MGET and EVALSHA, whose time has its inner commands in it; {spread}"),
    }


def record_1_latency(bench: Bench) -> Measured:
    """Median latency of recording one event at a time, over the empty call's."""
    kinds = Kinds.of(bench.bundle)
    with durable_redis(bench) as url, tidemark_server(bench.registry, url) as ours, empty_server() as empty:
        result = paired(
            lambda: front.latency(ours, EventRequests(ours.port, Kinds(kinds.types[:1], kinds.amounts), SINGLES, 1)),
            lambda: front.latency(empty, raw_load.Requests(empty.port)),
        )
    return result.median, f"the empty call takes {result.unit * 1e6:.0f} µs; {result.spread}"


def visible_next(bench: Bench) -> Measured:
    """Scores whose state is as of an event that was acknowledged just before they were asked for, by other workers."""
    with durable_redis(bench) as url, tidemark_server(bench.registry, url, "--workers", "2") as ours:
        reflected = asyncio.run(_seen(ours.port))
    return float(reflected), f"{reflected:,} of {ROUNDS:,}, {CLIENTS} clients, two workers, events and scores apart"


async def _seen(port: int) -> int:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(CLIENTS)]
    events: list[Any] = [
        item.unary_unary(RECORD, None, events_pb2.RecordEventsResponse.FromString) for item in channels
    ]
    scores: list[Any] = [
        item.unary_unary(UNARY, None, scoring_pb2.ScoreCustomerResponse.FromString) for item in channels
    ]

    async def client(number: int) -> int:
        rng, reflected = random.Random(number), 0
        for at in range(ROUNDS // CLIENTS):
            name = customer_id(rng.randrange(number, CUSTOMERS, CLIENTS))  # nobody else's
            event = Event(name, "purchase", time.time(), amount=1.0, event_id=f"{number} {at}")
            recorded = await events[number](message([event]))
            reply = await scores[number - 1](scoring_pb2.ScoreCustomerRequest(customer_id=name).SerializeToString())
            feature_time = reply.score.feature_time.seconds + reply.score.feature_time.nanos / 1e9
            reflected += recorded.accepted == 1 and abs(feature_time - event.event_time) < 1e-6
        return reflected

    reflected = sum(await asyncio.gather(*(client(number) for number in range(CLIENTS))))
    for channel in channels:
        await channel.close()
    return reflected


def score_p99_under_events(bench: Bench) -> Measured:
    """p99 of unary scores at a fixed rate while events flow at half of what the server can take, over without."""
    kinds = Kinds.of(bench.bundle)
    with durable_redis(bench) as url, tidemark_server(bench.registry, url) as ours:
        half = statistics.median(record_rate(ours, kinds) for _ in range(3)) / 2

        def p99() -> float:
            requests = raw_load.Requests(ours.port)
            return float(np.quantile(front.paced(ours.port, requests, SCORES_A_SECOND, SCORES), front.P99))

        def disturbed() -> float:
            with flowing(ours.port, bench.registry, half):
                return p99()

        result = paired(disturbed, p99)
    rates = f"{SCORES_A_SECOND:,} scores a second beside {half:,.0f} events"
    return result.median, f"without {result.unit * 1e3:.1f} ms, {rates}; {result.spread}"


@contextmanager
def flowing(port: int, registry: Path, rate: float) -> Iterator[None]:
    """Events at this rate, from another process, while the block runs."""
    options = {"port": port, "registry": registry, "rate": rate, "seconds": DISTURBED_S}
    provided = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.benchmarks.events", *provided]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdout.readline()  # the requests are made
        client.stdin.write("\n")
        client.stdin.flush()
        yield
        if client.poll() is not None:
            raise RuntimeError("the events ended before the scores")
        client.communicate()


def live_bytes_ratio(bench: Bench) -> Measured:
    """Redis memory of all that is kept of live events after a month with 100 of them, over the states alone."""
    layout = StateLayout(bench.bundle.manifest.features)
    keys = Keys(layout.fingerprint)
    customers = list(month(bench.bundle))
    ids = [customer_id(number) for number in range(len(customers) * COPIES)]
    states, records = zip(*[(customer.states[0], customer.profile) for customer in customers] * COPIES, strict=True)
    with embedded_redis(*DURABILITY) as url:
        stats = Commands(url)
        empty = stats.used_memory()
        stats.put(dict(zip(keys.states(ids), states, strict=True)))
        time.sleep(SETTLE_S)
        with_states = stats.used_memory()
        stats.put(dict(zip(profile_keys(ids), records, strict=True)))
        time.sleep(SETTLE_S)
        with_records = stats.used_memory()
    plain, live = ((with_states - empty) / len(ids), (with_records - with_states) / len(ids))
    size = statistics.mean(map(len, records))
    return live / plain, f"{live:.0f} over {plain:.0f} bytes a customer; a record has {size:.0f}"


SETTLE_S: Final = 3.0


def month(loaded: Bundle) -> list[StoredCustomer]:
    """Customers after a month with 100 events each at random times, taken in as they happen, hour by hour."""
    manifest, kinds, rng = loaded.manifest, Kinds.of(loaded), random.Random(5)
    fold = EventFolder([StateLayout(manifest.features)], manifest.interests, Rules())
    customers = [StoredCustomer(customer_id(number), [None], None) for number in range(SIMULATED)]
    start = int(time.time()) - MONTH_DAYS * DAY_S
    hours = int(MONTH_DAYS * DAY_S / HOUR_S)
    happened: list[dict[int, list[Event]]] = [{} for _ in range(hours)]
    for number, customer in enumerate(customers):
        for _ in range(A_MONTH):
            hour = rng.randrange(hours)
            event = Event(customer.customer_id, rng.choice(kinds.types), start + (hour + rng.random()) * HOUR_S)
            fill(event, kinds, rng)
            event.channel = rng.choice(CHANNELS)
            happened[hour].setdefault(number, []).append(event)
    for hour, events in enumerate(happened):
        known = [customers[number] for number in events]
        for customer, change in zip(
            known, fold.fold(known, list(events.values()), start + (hour + 1) * HOUR_S), strict=True
        ):
            customer.states, customer.profile = change.states, change.profile
    return customers


@click.command()
@click.option("--port", required=True, type=int)
@click.option("--registry", required=True, type=click.Path(path_type=Path))
@click.option("--rate", required=True, type=float)
@click.option("--seconds", required=True, type=float)
def main(port: int, registry: Path, rate: float, seconds: float) -> None:
    """Make requests of 256 events, say so, wait for a line, and send them at an even rate."""
    calls = int(rate * seconds / ROWS)
    requests = EventRequests(port, Kinds.of(bundle.read(registry)), calls, ROWS)
    print("ready", flush=True)
    sys.stdin.readline()
    front.paced(port, requests, rate / ROWS, calls, LINES)


if __name__ == "__main__":
    main()
