"""How long grpcio lets calls wait, and how many are shed for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.transport.grpcio.queue_probe import MAX_SHED_SHARE, QueueProbe


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shed_of(lag: QueueProbe, calls: int = 1000) -> int:
    return sum(lag.sheds() for _ in range(calls))


@pytest.mark.parametrize(("lag_s", "share"), [(0.0, 0), (0.05, 0), (0.06, 0.2), (0.075, 0.5), (0.2, MAX_SHED_SHARE)])
def test_the_longer_calls_wait_the_more_are_shed(lag_s: float, share: float) -> None:
    lag = QueueProbe(0.05)
    lag._last_s = lag_s
    assert shed_of(lag) == pytest.approx(1000 * share, abs=2)


def test_a_call_that_still_waits_counts_too() -> None:
    clock = Clock()
    lag = QueueProbe(0.05, clock)
    lag._probed_at = clock.now
    assert shed_of(lag) == 0
    clock.now += 0.1
    assert lag.seconds() == pytest.approx(0.1)
    assert shed_of(lag) > 800


def test_after_a_quiet_time_nothing_is_owed() -> None:
    lag = QueueProbe(0.05)
    shed_of(lag)
    lag._last_s = 0.075
    assert shed_of(lag, 1) == 0


def test_a_pause_that_is_over_is_looked_at_again_although_no_call_came() -> None:
    clock = Clock()
    lag = QueueProbe(0.05, clock)

    async def probe(takes_s: float) -> None:
        clock.now += takes_s

    async def main() -> None:
        await lag._look(lambda: probe(0.2))
        assert lag.seconds() == 0, "nobody called: there was nothing to measure for"
        await lag._look(lambda: probe(0.2))
        assert lag.seconds() == pytest.approx(0.2)
        lag._had_calls = False
        assert lag._beyond
        await lag._look(lambda: probe(0.001))
        assert lag.seconds() == pytest.approx(0.001)
        assert not lag._beyond

    asyncio.run(main())


def test_without_a_server_nothing_is_shed_and_nothing_is_left_behind() -> None:
    async def main() -> None:
        lag = QueueProbe(0.05)
        folder = Path(lag.address().removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o077 == 0
        lag.start()
        for _ in range(10):
            lag.sheds()
            await asyncio.sleep(0.02)
        assert lag._last_s == 0
        await lag.stop()
        assert not folder.exists()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
