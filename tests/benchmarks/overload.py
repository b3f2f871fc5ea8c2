"""Past capacity: what is still answered, and how quickly, with open-loop arrivals on the lean front.

Capacity is what a server that sheds nothing answers in a second of calls that come far too fast, by the same load over
the same connections: groups of calls cost less than calls one by one, so another load would find another capacity.
The load is a process of its own, which tells how late it was and how much of a core it took: a round in which it was
late for longer than half the latency that it measured, or took more than three quarters of a core, says so in the note.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from service.batching.score_batcher import ScoreBatcher
from service.scoring.types import ScoreRequest, Scores
from service.settings import Settings
from service.transport.interface import Backend
from service.transport.lean.connection import Connection
from service.transport.lean.http2 import LoadShedder
from service.transport.lean.server import LeanServer
from tests.benchmarks import open_load, raw_load
from tests.benchmarks.open_load import Apart, Seen
from tests.benchmarks.setting import Bench, Measured, cpu_of, paired, tidemark_server

CONNECTIONS: Final = 16
FAR_TOO_MANY: Final = 100_000.0
"""Calls a second; as many as the server allows at once, 2,048, are always in flight then."""
NO_BOUND: Final = ("--max-queue-s", "600")
ROUNDS: Final = 7
SLICE_S: Final = 1.0
SETTLE_S: Final = 0.4
"""Of a slice before it counts: a queue takes so long to be known as a standing one."""
MOST_CPU: Final = 0.75
SATURATE_S: Final = 0.3
CALLS: Final = 2000
"""Of a connection, which ends after 3,000."""
AT_ONCE: Final = 20

Round = tuple[float, Seen, Seen, Seen]
"""Capacity in calls a second, and what came of 80 % of it, of all of it and of twice as much."""


def overload(bench: Bench) -> dict[str, Measured]:
    """Goodput at twice the capacity over that at capacity, and p99 of accepted calls there over p99 at 80 %."""
    with (
        tidemark_server(bench.registry, bench.url) as ours,
        tidemark_server(bench.registry, bench.url, *NO_BOUND) as patient,
        open_load.apart(ours.port, CONNECTIONS) as load,
        open_load.apart(patient.port, CONNECTIONS) as unbound,
    ):
        _round(unbound, load)
        rounds = [_round(unbound, load) for _ in range(ROUNDS)]
    shares = [most.goodput / whole.goodput for _, _, whole, most in rounds]
    slower = [most.p99_ms / quiet.p99_ms for _, quiet, _, most in rounds]
    capacity = statistics.median(result for result, *_ in rounds)
    shed = statistics.median(most.shed / most.offered for *_, most in rounds)
    goodput = f"capacity {capacity:,.0f} a second, {shed:.0%} shed at twice that; {_load(rounds)}; {_spread(shares)}"
    quiet_ms, most_ms, shed_ms = (
        _median(rounds, figure)
        for figure in (lambda one: one[1].p99_ms, lambda one: one[3].p99_ms, lambda one: one[3].shed_p99_ms)
    )
    p99 = (
        f"at 80 % {quiet_ms:.1f} ms, at twice the capacity {most_ms:.1f}, of the shed {shed_ms:.1f}; {_spread(slower)}"
    )
    return {"overload_goodput": (statistics.median(shares), goodput), "overload_p99": (statistics.median(slower), p99)}


class _Nowhere:
    """A transport whose bytes nobody reads."""

    def get_extra_info(self, _name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return False

    def write(self, _data: bytes) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def shed_ratio(_bench: Bench) -> Measured:
    """CPU of shedding calls before they are read, over refusing them as all other errors are told."""
    requests = raw_load.Requests(0)
    first = b"".join([raw_load.PREFACE, requests.first_headers, requests.group(1, 1)[raw_load.DATA_AT :]])
    rest = bytes(requests.group(3, CALLS))
    step = len(rest) // CALLS * AT_ONCE
    parts = [first, *(rest[at : at + step] for at in range(0, len(rest), step))]
    loop = asyncio.new_event_loop()
    batcher = ScoreBatcher(_never, max_wait_s=1e-3)
    server = LeanServer(Backend(Settings(registry=Path(), redis="redis://nowhere"), batcher))
    lane: Any = batcher._small
    lane.rows, lane.waiting = 10**6, deque([None] * 10**5)  # full, with nobody who works on it
    sheds = dict(server.sheds)

    async def refuse(by: Mapping[bytes, LoadShedder]) -> None:
        server.sheds.clear()
        server.sheds.update(by)
        connection = Connection(server)
        connection.connection_made(cast("asyncio.Transport", _Nowhere()))
        for part in parts:
            connection.data_received(part)
            await asyncio.sleep(0)
        server.lost(connection)

    result = paired(
        lambda: cpu_of(lambda: loop.run_until_complete(refuse(sheds)), 3),
        lambda: cpu_of(lambda: loop.run_until_complete(refuse({})), 3),
    )
    loop.close()
    return result.median, f"CPU per call; refused like any other {result.unit / CALLS * 1e6:.1f} µs; {result.spread}"


async def _never(_parts: Sequence[ScoreRequest]) -> list[Scores]:
    raise AssertionError


def _round(unbound: Apart, load: Apart) -> Round:
    capacity = unbound.run(FAR_TOO_MANY, SATURATE_S).answered
    quiet, whole, most = (load.run(share * capacity, SLICE_S, SETTLE_S) for share in (0.8, 1.0, 2.0))
    if failed := quiet.failed + whole.failed + most.failed:
        raise RuntimeError(f"{failed} calls failed otherwise than by being shed")
    return capacity, quiet, whole, most


def _load(rounds: list[Round]) -> str:
    """What the load itself was like, and whether it stood in the way."""
    cpu, late = _median(rounds, lambda one: one[3].cpu), _median(rounds, lambda one: one[3].late_ms)
    slow = sum(
        one.late_ms > one.p99_ms / 2 or one.cpu > MOST_CPU for _, quiet, _, most in rounds for one in (quiet, most)
    )
    return f"load took {cpu:.0%} of a core and was {late:.1f} ms late, too slow in {slow} of {2 * len(rounds)} slices"


def _median(rounds: list[Round], figure: Callable[[Round], float]) -> float:
    return statistics.median(map(figure, rounds))


def _spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f} in {len(values)} rounds"
