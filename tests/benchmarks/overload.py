"""Past capacity: what is still answered, and how quickly, with open-loop arrivals on the lean front.

Capacity is the most that the server answers in a second with 128 calls always in flight, a number that is never shed.
The load is a process of its own, which tells how late it was and how much of a core it took: a round in which it was
late for longer than half the latency that it measured, or took more than three quarters of a core, says so in the note.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Final

from tests.benchmarks import open_load, raw_load
from tests.benchmarks.open_load import Apart, Seen
from tests.benchmarks.setting import Bench, Measured, tidemark_server

CONNECTIONS: Final = 16
IN_FLIGHT: Final = 8
"""On each."""
ROUNDS: Final = 7
SLICE_S: Final = 1.0
SETTLE_S: Final = 0.4
"""Of a slice before it counts: a queue takes so long to be known as a standing one."""
MOST_CPU: Final = 0.75

Round = tuple[float, Seen, Seen, Seen]
"""Capacity in calls a second, and what came of 80 % of it, of all of it and of twice as much."""


def overload(bench: Bench) -> dict[str, Measured]:
    """Goodput at twice the capacity over that at capacity, and p99 of accepted calls there over p99 at 80 %."""
    with (
        tidemark_server(bench.registry, bench.url) as ours,
        open_load.apart(ours.port, CONNECTIONS) as load,
    ):
        _round(ours.port, load)
        rounds = [_round(ours.port, load) for _ in range(ROUNDS)]
    shares = [most.goodput / whole.goodput for _, _, whole, most in rounds]
    slower = [most.p99_ms / quiet.p99_ms for _, quiet, _, most in rounds]
    capacity = statistics.median(found for found, *_ in rounds)
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


def _round(port: int, load: Apart) -> Round:
    closed = raw_load.run_apart(port, connections=CONNECTIONS, in_flight=IN_FLIGHT, seconds=SLICE_S)
    capacity = closed.calls / closed.seconds
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
