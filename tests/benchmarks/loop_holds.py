"""How long one large call holds the event loop, and what a batch of unknown customers costs."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from tidemark.v1 import scoring_pb2

from tests.benchmarks.events import RECORD, Kinds, drawn, message
from tests.benchmarks.setting import BATCH, Bench, Caller, Measured, batch_requests, paired, server, tidemark_server

ROWS: Final = 1000
"""Customers or events of a call: the most that the contract allows."""
CALLS: Final = 15
"""Calls of each kind, one after the other, after as many that are not measured."""
SLICE_S: Final = 1.0


def unknown_requests(count: int = 8) -> list[bytes]:
    """Batches of customers that nobody has loaded."""
    return [
        scoring_pb2.BatchScoreCustomersRequest(
            customer_ids=[f"unknown-{batch}-{row}" for row in range(ROWS)]
        ).SerializeToString()
        for batch in range(count)
    ]


@dataclass(frozen=True)
class Window:
    """When a call started and ended, by the monotonic clock."""

    start: float
    end: float


def longest_hold_ms(bench: Bench) -> Measured:
    """The longest time that a call with 1,000 events, known customers or unknown customers holds the event loop.

    Of each kind the median of its calls counts, of the kinds the longest.
    """
    kinds = Kinds.of(bench.bundle)
    event_requests = [message(drawn(kinds, ROWS)) for _ in range(2 * CALLS)]
    requests = {
        "events": (RECORD, event_requests),
        "known customers": (BATCH, batch_requests(ROWS, 8)),
        "unknown customers": (BATCH, unknown_requests()),
    }
    windows: dict[str, list[Window]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "holds.json"
        options = ["--registry", str(bench.registry), "--redis", bench.url, "--port", "0"]
        with (
            server("tests.benchmarks.held_server", *options, environment={"HOLDS": str(path)}) as held,
            _channel(held.port) as call,
        ):
            for kind, (method, messages) in requests.items():
                windows[kind] = [_timed(call, method, messages[at % len(messages)]) for at in range(2 * CALLS)]
        holds: list[tuple[float, float]] = json.loads(path.read_text())
    longest = {kind: _median_hold(holds, measured[CALLS:]) * 1e3 for kind, measured in windows.items()}
    note = ", ".join(f"{kind} {ms:.2f}" for kind, ms in longest.items())
    return max(longest.values()), f"ms of the loop's thread, median of {CALLS} calls with {ROWS} each: {note}"


def unknown_ids_ratio(bench: Bench) -> Measured:
    """Server CPU of a batch of 1,000 unknown customers, over a batch of 1,000 known ones."""
    with tidemark_server(bench.registry, bench.url) as ours:
        unknown = Caller(ours, BATCH, unknown_requests(), 1)
        known = Caller(ours, BATCH, batch_requests(ROWS, 8), 1)
        ratio = paired(lambda: unknown.cost(SLICE_S), lambda: known.cost(SLICE_S))
        unknown.close()
        known.close()
    return ratio.median, f"CPU per call; of known ones {ratio.unit * 1e3:.1f} ms; {ratio.spread}"


@contextmanager
def _channel(port: int) -> Iterator[Callable[[str, bytes], Any]]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:

        def call(method: str, request: bytes) -> Any:
            unary: Any = channel.unary_unary(method)
            return unary(request)

        yield call


def _timed(call: Callable[[str, bytes], Any], method: str, request: bytes) -> Window:
    start = time.monotonic()
    call(method, request)
    return Window(start, time.monotonic())


def _median_hold(holds: Sequence[tuple[float, float]], windows: Sequence[Window]) -> float:
    """The median over some calls of the longest hold during each."""
    return statistics.median(
        max((seconds for end, seconds in holds if window.start <= end <= window.end), default=0.0) for window in windows
    )
