"""The figures: what each one measures, and the goal it is held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis.asyncio
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from tidemark.v1 import scoring_pb2

from feature_store.bundle import Bundle
from feature_store.embedded import embedded_redis
from feature_store.online import Keys, StateReader, StateWriter
from feature_store.state import StateLayout
from service.convert import encode_batch
from service.models import Model
from service.scorer import Part, Scores
from tests.benchmarks.setting import (
    BATCH,
    CUSTOMERS,
    UNARY,
    Caller,
    batch_requests,
    cpu_of,
    customer_id,
    empty_server,
    load_customers,
    paired,
    tidemark_server,
    unary_requests,
)

SLICE_S: Final = 1.5
SETTLE_S: Final = 3.0
"""Redis grows its table of keys step by step after the last of them."""


@dataclass(frozen=True)
class Figure:
    """A measured value and its goal, ``<= n`` or ``>= n``."""

    name: str
    value: float
    goal: str
    note: str

    @property
    def ok(self) -> bool:
        """Whether the goal is reached."""
        sign, bound = self.goal.split()
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)


@dataclass(frozen=True)
class Bench:
    """What every measurement needs."""

    registry: Path
    url: str
    bundle: Bundle
    console: Console


Measured = tuple[float, str]


def churn_auc(bench: Bench) -> Measured:
    """From the bundle's manifest."""
    return bench.bundle.manifest.metrics["churn_auc"], "manifest, test cut-offs"


def propensity_auc(bench: Bench) -> Measured:
    """From the bundle's manifest."""
    return bench.bundle.manifest.metrics["propensity_auc"], "manifest, test cut-offs"


def unary_64_aio(bench: Bench) -> Measured:
    """Server CPU per unary call with 64 in flight, over an empty call on grpcio's sync server."""
    with tidemark_server(bench.registry, bench.url) as ours, empty_server() as empty:
        a, b = Caller(ours, UNARY, unary_requests(), 64), Caller(empty, UNARY, unary_requests(), 64)

        def cost(caller: Caller) -> float:
            load = caller.run(SLICE_S)
            return load.cpu_s / load.calls

        found = paired(lambda: cost(a), lambda: cost(b))
        a.close()
        b.close()
    return found.median, f"CPU per call; the empty call costs {found.unit * 1e6:.0f} µs; {found.spread}"


def batch_256_share(bench: Bench) -> Measured:
    """Customers per second in batches of 256, over the bare loop of MGET, decode and run."""
    model = Model(bench.bundle)
    requests, economics = batch_requests(256), np.tile(model.economics, (256, 1))
    ids = [list(scoring_pb2.BatchScoreCustomersRequest.FromString(request).customer_ids) for request in requests]
    with tidemark_server(bench.registry, bench.url) as ours, StateWriter(bench.url, model.layout) as redis:
        caller = Caller(ours, BATCH, requests, 4)

        def served() -> float:
            load = caller.run(SLICE_S)
            return load.calls * 256 / load.seconds

        def bare() -> float:
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < SLICE_S:
                states = model.layout.unpack(redis.read(ids[done % len(ids)]))
                model.run(states, time.time(), economics)
                done += 1
            return done * 256 / (time.perf_counter() - start)

        found = paired(served, bare)
        caller.close()
    return found.median, f"customers a second, 4 calls in flight; the bare loop does {found.unit:,.0f}; {found.spread}"


def redis_bytes_ratio(bench: Bench) -> Measured:
    """Redis memory per customer, all included, over plain string keys with the bare slots."""
    layout = StateLayout(bench.bundle.manifest.features)
    slots = b"\1" * 8 * len(layout.features)
    with embedded_redis() as packed, embedded_redis() as plain:
        load_customers(packed, bench.bundle)
        with StateWriter(packed, layout) as ours, StateWriter(plain, layout) as floor:
            floor.write([customer_id(i) for i in range(CUSTOMERS)], [slots] * CUSTOMERS)
            time.sleep(SETTLE_S)
            mine, least = ours.used_memory() / CUSTOMERS, floor.used_memory() / CUSTOMERS
    return mine / least, f"{mine:.0f} over {least:.0f} bytes a customer, {len(layout.features)} slots"


def encode_256_ratio(_bench: Bench) -> Measured:
    """Why replies are written as bytes: 256 scores that way, over building message objects."""
    ids = [customer_id(i) for i in range(256)]
    part, scores = (
        Part(ids),
        Scores(np.array([[0.25, 0.5, 120.0, 0.3, 0.5, 1.7e9]] * 256), {}, "20260102T030405-0123abcd"),
    )

    def by_messages() -> None:
        results = [
            scoring_pb2.CustomerResult(
                score=scoring_pb2.ScoreCustomerResponse(
                    customer_id=name,
                    churn=scoring_pb2.Alert(probability=row[0], threshold=row[3], alert=row[0] >= row[3]),
                    propensity=scoring_pb2.Alert(probability=row[1], threshold=row[4], alert=row[1] >= row[4]),
                    expected_spend=row[2],
                    features_as_of=Timestamp(seconds=int(row[5])),
                    model_version=scores.model_version,
                )
            )
            for name, row in zip(ids, scores.table.tolist(), strict=True)
        ]
        scoring_pb2.BatchScoreCustomersResponse(results=results).SerializeToString()

    found = paired(lambda: cpu_of(lambda: encode_batch(part, scores)), lambda: cpu_of(by_messages))
    return found.median, f"CPU; with message objects {found.unit * 1e6:,.0f} µs; {found.spread}"


def mget_256_ratio(bench: Bench) -> Measured:
    """Why Redis is asked over redis-py's connections: 256 states that way, over redis-py's client."""
    layout = StateLayout(bench.bundle.manifest.features)
    ids = [customer_id(i * 37) for i in range(256)]
    keys = Keys(layout.fingerprint)
    loop = uvloop.new_event_loop()
    ours, theirs = StateReader(bench.url, layout, 1.0), redis.asyncio.Redis.from_url(bench.url, socket_timeout=1.0)

    async def by_client() -> None:
        values: Any = await theirs.mget(keys.of(ids))
        layout.unpack(values)

    found = paired(
        lambda: cpu_of(lambda: loop.run_until_complete(ours.read(ids))),
        lambda: cpu_of(lambda: loop.run_until_complete(by_client())),
    )
    loop.run_until_complete(ours.close())
    loop.run_until_complete(theirs.aclose())
    loop.close()
    return found.median, f"CPU; redis-py's client {found.unit * 1e6:,.0f} µs; {found.spread}"


FIGURES: Final[Sequence[tuple[str, str, Callable[[Bench], Measured]]]] = (
    ("churn_auc", ">= 0.85", churn_auc),
    ("propensity_auc", ">= 0.807", propensity_auc),
    ("unary_64_aio", "<= 2.2", unary_64_aio),
    ("batch_256_share", ">= 0.75", batch_256_share),
    ("redis_bytes_ratio", "<= 1.1", redis_bytes_ratio),
    ("encode_256_ratio", "<= 0.5", encode_256_ratio),
    ("mget_256_ratio", "<= 0.8", mget_256_ratio),
)
