"""Point-in-time states: 12 cut-offs over 20 million events of 200,000 customers in two years, on two cores.

The unit is one bare scan-and-group of the same table for each cut-off. Everything is measured in a process of its own,
whose memory is what it ever held: DuckDB, the events as they were read and all states included.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import click
import duckdb

from feature_store.config import Source
from feature_store.definitions import Feature
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import DAY_S, StateLayout
from tests.benchmarks.setting import Bench, Measured, paired

EVENTS: Final = 20_000_000
CUSTOMERS: Final = 200_000
DAYS: Final = 730
CUTOFFS: Final = 12
STEP_DAYS: Final = 30.0
CORES: Final = 2
PAIRS: Final = 3
TYPES: Final = ("view", "cart", "purchase", "search", "return")
LIMIT_S: Final = 900.0

GENERATED: Final = f"""
    SELECT 'c' || lpad((floor({CUSTOMERS} * pow(hash(i, 1) % 1000003 / 1000003, 2)))::BIGINT::VARCHAR, 7, '0')
            AS customer_id,
        make_timestamp(1700000000000000 + i * {DAYS * DAY_S * 1e6 / EVENTS:.0f} + (hash(i, 2) % 3600000000)::BIGINT)
            AS event_time,
        ['view', 'view', 'view', 'view', 'view', 'cart', 'cart', 'purchase', 'search', 'return'][1 + kind]
            AS event_type,
        CASE kind WHEN 7 THEN amount WHEN 9 THEN -amount END AS amount,
        CASE WHEN kind < 5 THEN (hash(i, 3) % 3000) / 10 END AS duration_s,
        'item-' || hash(i, 4) % 50000 AS item_id
    FROM (SELECT i, (hash(i, 5) % 10)::BIGINT AS kind, round((hash(i, 6) % 20000) / 100, 2) AS amount
        FROM range({EVENTS}) AS t (i))"""
"""Events as they come in: about in order of time, some customers with far more of them than others."""


def narrow() -> StateLayout:
    """24 slots: what a bundle serves."""
    features = [feature for kind in TYPES for feature in (*_times(kind), *_counts(kind, 14), *_counts(kind, 56))]
    for days in (14, 56):
        features += [_sum("purchase", "amount", days), _sum("view", "duration_s", days)]
    return StateLayout(features)


def wide() -> StateLayout:
    """100 slots: a set of candidates."""
    features = [feature for kind in TYPES for feature in _times(kind)]
    for kind in TYPES:
        for days in (3.5, 7, 14, 28, 56, 112):
            features += [*_counts(kind, days), _sum(kind, "amount", days), _sum(kind, "duration_s", days)]
    return StateLayout(features)


def _times(kind: str) -> list[Feature]:
    return [
        Feature(name=f"{kind}_latest", aggregate="latest", event=kind),
        Feature(name=f"{kind}_earliest", aggregate="earliest", event=kind),
    ]


def _counts(kind: str, days: float) -> list[Feature]:
    return [Feature(name=f"{kind}_count_{days * 10:.0f}", aggregate="count", event=kind, half_life_days=days)]


def _sum(kind: str, field: str, days: float) -> Feature:
    name = f"{kind}_{field}_{days * 10:.0f}"
    return Feature(name=name, aggregate="sum", event=kind, field=field, half_life_days=days, clip=150)  # type: ignore[arg-type]


def states(_bench: Bench) -> dict[str, Measured]:
    """Time over that of the bare scans with 24 and with 100 slots, and GiB of memory with 100."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        with duckdb.connect(":memory:") as connection:
            connection.execute(f"SET threads = {CORES}")
            connection.execute(f"COPY ({GENERATED}) TO '{path}'")
        command = [sys.executable, "-m", "tests.benchmarks.states", "--events", str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=LIMIT_S)
    result = json.loads(done.stdout)
    return {name: (value, note) for name, (value, note) in result.items()}


@click.command()
@click.option("--events", required=True, type=click.Path(path_type=Path))
def main(events: Path) -> None:
    """Print the figures as JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    result: dict[str, Measured] = {}
    with OfflineStore(Source(events=f"FROM '{events}'"), threads=CORES) as source:
        read = peak_gib()
        cutoffs = [source.summary.end - STEP_DAYS * DAY_S * i for i in range(CUTOFFS)][::-1]
        for name, layout, pairs in (("states_ratio", narrow(), PAIRS), ("states_ratio_wide", wide(), 1)):
            ours, cpu = timed(partial(all_states, source, layout, cutoffs))
            bare, bare_cpu = timed(partial(scans, source, cutoffs))
            ratio = paired(ours, bare, pairs)
            note = f"{len(layout.features)} slots; the scans take {ratio.unit:.1f} s; {ratio.spread}"
            result[name] = ratio.median, f"{note}; CPU {min(cpu) / min(bare_cpu):.2f}"
    result["states_gib"] = peak_gib(), f"at most, all included; {read:.1f} when the events had been read"
    print(json.dumps(result))


def all_states(source: OfflineStore, layout: StateLayout, cutoffs: list[float]) -> None:
    """Ours: states at each cut-off, of which one at a time is held."""
    for result in source.states_at(layout, cutoffs):
        assert len(result.customer_ids)


def scans(source: OfflineStore, cutoffs: list[float]) -> None:
    """The unit: the least that a query for each cut-off has to do."""
    for cutoff in cutoffs:
        source.connection.execute(
            "SELECT customer_id, count(*), sum(amount), max(t) FROM read WHERE t <= ? GROUP BY customer_id", [cutoff]
        ).fetchnumpy()


def timed(work: Callable[[], None]) -> tuple[Callable[[], float], list[float]]:
    """Seconds that a piece of work takes, as a function, and the CPU seconds of each time that it was called."""
    cpu: list[float] = []

    def seconds() -> float:
        start, used = time.perf_counter(), time.process_time()
        work()
        cpu.append(time.process_time() - used)
        return time.perf_counter() - start

    return seconds, cpu


def peak_gib() -> float:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
