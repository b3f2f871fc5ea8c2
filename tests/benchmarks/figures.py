"""The figures: what each one measures, and the goal it is held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import h2.config
import h2.connection
import h2.events
import numpy as np
import redis.asyncio
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import scoring_pb2

from feature_store.embedded_redis import embedded_redis
from feature_store.online.keys import Keys, profile_keys
from feature_store.online.state_reader import StateReader
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.layout import StateLayout
from service.api.scoring import encode_batch
from service.scoring.types import ScoreRequest, Scores, rows_of
from service.transport.lean.framing import HEAD, OK
from service.transport.lean.http2 import Http2
from tests.benchmarks import (
    bursts,
    commits,
    documentation,
    events,
    explain,
    front,
    garbage,
    hillstrom,
    known_truth,
    load,
    loop_holds,
    memory,
    models,
    outage,
    overload,
    raw_load,
    rolling,
    states,
    suite,
    training,
)
from tests.benchmarks.setting import CUSTOMERS, Bench, Measured, cpu_of, customer_id, load_customers, paired

ROUND: Final = 400
"""Calls, which fit into the first windows."""
AT_ONCE: Final = 40
SETTLE_S: Final = 3.0
"""Redis grows its table of keys step by step after the last of them."""


@dataclass(frozen=True)
class Figure:
    """A measured value and its goal, ``<= n``, ``>= n`` or ``n to m``, or none."""

    name: str
    value: float
    goal: str
    note: str

    @property
    def ok(self) -> bool:
        """Whether the goal is reached, where there is one."""
        if not self.goal:
            return True
        sign, bound = self.goal.replace(" to ", "- ").split()
        if sign.endswith("-"):
            return float(sign[:-1]) <= self.value <= float(bound)
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)


def redis_bytes_ratio(bench: Bench) -> Measured:
    """Redis memory per customer, all included, over plain string keys with the bare slots."""
    layout = StateLayout(bench.bundle.manifest.features)
    slots = b"\1" * 8 * len(layout.features)
    with embedded_redis() as packed, embedded_redis() as plain:
        load_customers(packed, bench.bundle)
        with StateWriter(packed, layout) as ours, StateWriter(plain, layout) as floor:
            floor.write([customer_id(i) for i in range(CUSTOMERS)], [slots] * CUSTOMERS)
            time.sleep(SETTLE_S)
            own, least = ours.client.used_memory() / CUSTOMERS, floor.client.used_memory() / CUSTOMERS
    return own / least, f"{own:.0f} over {least:.0f} bytes a customer, {len(layout.features)} slots"


def encode_256_ratio(_bench: Bench) -> Measured:
    """Why replies are written as bytes: 256 scores that way, over building message objects."""
    ids = [customer_id(i) for i in range(256)]
    part, scores = (
        ScoreRequest(ids),
        Scores(
            rows_of(np.array([[0.25, 0.5, 120.0, 0.3, 0.5, 30.0, 7.0, 1.7e9]] * 256)), {}, "20260102T030405-0123abcd"
        ),
    )

    def by_messages() -> None:
        results = [
            scoring_pb2.CustomerResult(
                customer_id=name,
                score=scoring_pb2.Score(
                    customer_id=name,
                    churn=scoring_pb2.Alert(
                        probability=churn[0], threshold=churn[1], alert=churn[2], value_if_won=churn[6]
                    ),
                    propensity=scoring_pb2.Alert(
                        probability=propensity[0],
                        threshold=propensity[1],
                        alert=propensity[2],
                        value_if_won=propensity[6],
                    ),
                    expected_spend=spend,
                    feature_time=Timestamp(seconds=int(as_of)),
                    model_version=scores.model_version,
                ),
            )
            for name, (churn, propensity, spend, as_of, _) in zip(ids, scores.rows.tolist(), strict=True)
        ]
        scoring_pb2.BatchScoreCustomersResponse(results=results).SerializeToString()

    result = paired(lambda: cpu_of(lambda: encode_batch(part, scores)), lambda: cpu_of(by_messages))
    return result.median, f"CPU; with message objects {result.unit * 1e6:,.0f} µs; {result.spread}"


def mget_256_ratio(bench: Bench) -> Measured:
    """Why Redis is asked over redis-py's connections: 256 states and records that way, over redis-py's client."""
    layout = StateLayout(bench.bundle.manifest.features)
    ids = [customer_id(i * 37) for i in range(256)]
    keys = Keys(layout.fingerprint)
    loop = uvloop.new_event_loop()
    store, theirs = RedisStore(bench.url, 1.0), redis.asyncio.Redis.from_url(bench.url, socket_timeout=1.0)
    ours = StateReader(store, layout)

    async def by_client() -> None:
        values: Any = await theirs.mget([*keys.states(ids), *profile_keys(ids)])
        layout.unpack(values[: len(ids)])

    result = paired(
        lambda: cpu_of(lambda: loop.run_until_complete(ours.read(ids))),
        lambda: cpu_of(lambda: loop.run_until_complete(by_client())),
    )
    loop.run_until_complete(store.close())
    loop.run_until_complete(theirs.aclose())
    loop.close()
    return result.median, f"CPU; redis-py's client {result.unit * 1e6:,.0f} µs; {result.spread}"


def http2_ratio(_bench: Bench) -> Measured:
    """Why zttp speaks HTTP/2: frames of a call in and frames of its reply out, over h2, the usual library for that."""
    requests, reply = raw_load.Requests(0), bytes(100)
    first = b"".join([raw_load.PREFACE, requests.first_headers, requests.group(1, 1)[raw_load.DATA_AT :]])
    rest = bytes(requests.group(3, ROUND))
    step = len(rest) // ROUND * AT_ONCE
    parts = [first, *(rest[at : at + step] for at in range(0, len(rest), step))]

    def by_zttp() -> None:
        connection = Http2(len(rest))
        for part in parts:
            for stream in list(connection.receive(part)):
                connection.send(stream, HEAD, reply, OK)
            connection.to_send()

    def by_h2() -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        connection.initiate_connection()
        for part in parts:
            for event in connection.receive_data(part):
                if isinstance(event, h2.events.StreamEnded):
                    connection.send_headers(event.stream_id, [(b":status", b"200"), *HEAD])
                    connection.send_data(event.stream_id, reply)
                    connection.send_headers(event.stream_id, OK, end_stream=True)
            connection.data_to_send()

    result = paired(lambda: cpu_of(by_zttp, 3), lambda: cpu_of(by_h2, 3))
    return result.median, f"CPU per call; h2 {result.unit / ROUND * 1e6:.0f} µs; {result.spread}"


FIGURES: Final[Sequence[tuple[str, str, Callable[[Bench], Measured]]]] = (
    ("fit_seconds", "<= 27", training.fit_seconds),  # 60 s where nothing else runs and calibration takes 2.2 s
    ("first_answer_seconds", "<= 90", training.first_answer_seconds),
    ("auc_gap", "<= 0.002", training.auc_gap),
    ("unary_64", "<= 0.12", partial(front.unary, 64)),
    ("unary_16", "<= 0.30", partial(front.unary, 16)),
    ("unary_1", "<= 0.7", partial(front.unary, 1)),
    ("unary_1_latency", "<= 0.75", front.unary_1_latency),
    ("fronts_1", "<= 1", front.fronts_1),
    ("unary_64_clients", "<= 0.3", partial(front.unary_clients, "lean")),
    ("unary_64_aio", "<= 2.2", partial(front.unary_clients, "grpcio")),
    ("metrics_cost", "<= 1.05", front.metrics_cost),
    ("front_share", "<= 0.40", front.front_share),
    ("batch_256_share", ">= 0.85", front.batch_256_share),
    ("workers_2", ">= 1.6", front.workers_2),
    ("interference_p99", "<= 3", front.interference_p99),
    ("longest_hold_ms", "<= 2", loop_holds.longest_hold_ms),
    ("unknown_ids_ratio", "<= 2", loop_holds.unknown_ids_ratio),
    ("explain_ratio", "", explain.explain_ratio),
    ("explain_p99", "<= 3", explain.explain_p99),
    ("http2_ratio", "<= 0.1", http2_ratio),
    ("shed_ratio", "<= 0.3", overload.shed_ratio),
    ("redis_bytes_ratio", "<= 1.1", redis_bytes_ratio),
    ("encode_256_ratio", "<= 0.5", encode_256_ratio),
    ("mget_256_ratio", "<= 0.8", mget_256_ratio),
    ("visible_next", ">= 10000", events.visible_next),
    ("record_1_latency", "<= 2", events.record_1_latency),
    ("score_p99_under_events", "<= 1.5", events.score_p99_under_events),
    ("live_bytes_ratio", "<= 2", events.live_bytes_ratio),
    ("load_ratio", "<= 0.6", load.load_ratio),
    ("rolling_lost", "<= 0", rolling.rolling_lost),
    ("customer_burst", "<= 0", bursts.customer_burst),
    ("silent_connections", "<= 1", bursts.silent_connections),
    ("durable_cost", "", events.durable_cost),
    ("worker_memory", "<= 1.1", memory.worker_memory),
    ("garbage", "<= 0", garbage.garbage),
)

GROUPS: Final[Sequence[tuple[Mapping[str, str], Callable[[Bench], Mapping[str, Measured]]]]] = (
    (
        {
            "churn_auc": ">= 0.857",
            "propensity_auc": ">= 0.815",
            "calibration_error_churn": "<= 0.015",
            "calibration_error_propensity": "<= 0.02",
            "state_slots": "<= 24",
            "robustness_20": "<= 0.10",
            "dynamic_wins": "",
            "value_reliability": "<= 0.1",
        },
        training.quality,
    ),
    ({"graph_1_us": "<= 40", "graph_256_us": "<= 6"}, training.graph_times),
    ({"record_256_rate": ">= 20000", "record_256_share": ">= 0.5", "fold_us": "<= 15"}, events.throughput),
    (
        {
            "erase_ms_100k": "<= 2",
            "commit_commands": "",
            "commit_sent_bytes": "",
            "commit_file_bytes": "",
            "commit_redis_us": "",
        },
        commits.commits,
    ),
    ({"overload_goodput": ">= 0.9", "overload_p99": "<= 3"}, overload.overload),
    ({"million_failed": "<= 0", "million_memory": "<= 1.05"}, front.million_calls),
    ({"outage_ms": "<= 20", "recovery_s": "<= 1"}, outage.outage),
    ({"switch_failed": "<= 0", "switch_p99": "<= 1.5"}, models.switches),
    ({"states_ratio": "<= 3", "states_ratio_wide": "", "states_gib": "<= 8"}, states.states),
    ({"test_seconds": "<= 360", "slow_machine": "<= 0"}, suite.latest_runs),
    (
        {
            "readme_lines": "<= 200",
            "docs_examples": ">= 1",
            "docs_reference_by_hand": "<= 0",
            "docs_build_seconds": "<= 60",
            "first_score_commands": "<= 5",
        },
        documentation.documentation,
    ),
    ({"hillstrom_policy": ""}, hillstrom.hillstrom_policy),
    ({"coverage_95": "0.93 to 0.97", "biased_estimates": "<= 0.1"}, known_truth.intervals),
    (
        {
            "oracle_share": ">= 0.95",
            "oracle_share_decile": ">= 0.90",
            "truth_wins": "",
            "fitted_profit_error": "",
            "shuffled_value_wins": "<= 3",
        },
        known_truth.whole_fits,
    ),
    (dict.fromkeys(("peer_tidemark_64", "peer_mosec_64", "peer_empty_cpp_64"), ""), front.peers),
)
"""Figures that are found together; those without a goal are there to compare with, where the peer is at hand."""
